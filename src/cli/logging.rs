//! The log of the processes that serve mounts, on standard error.

use std::io;

use tracing_subscriber::EnvFilter;

use super::environment::Environment;

/// What is logged unless OCIFS_LOG or RUST_LOG says otherwise.
const FILTER: &str = "warn,ocifs=info";

/// Starts logging. `coloured` is for people who watch; a log file has no colours.
pub(super) fn start(environment: &Environment, coloured: bool) {
    let filter = environment.text("OCIFS_LOG").or_else(|| environment.text("RUST_LOG")).unwrap_or(FILTER);
    let started = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::builder().parse_lossy(filter))
        .with_writer(io::stderr)
        .with_ansi(coloured)
        // It would be told on standard error, which is what cannot be written to; that ends the process.
        .log_internal_errors(false)
        .try_init();
    if let Err(error) = started {
        tracing::debug!(%error, "this process logs already");
    }
}

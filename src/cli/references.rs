//! `ocifs references`: how images are named; `ocifs help references` shows the same.

use super::help;
use super::output::Output;
use super::stop::Stop;

/// Explains.
pub(super) fn run() -> Result<(), Stop> {
    let mut output = Output::new();
    writeln!(output, "{}", help::REFERENCES)?;
    output.finish()
}

//! The `ocifs` program: everything is in the library, from the command line downwards.

use std::process::ExitCode;

fn main() -> ExitCode {
    ocifs::cli::main()
}

//! The `ocifs` program: everything is in the library, from the command line downwards.

use std::process::ExitCode;

/// Decoding takes and gives back buffers of half a megabyte all the time; this allocator returns them to the system,
/// where the C library's keeps hundreds of megabytes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ocifs::cli::main()
}

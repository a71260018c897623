//! The `ocifs` program.

fn main() {}

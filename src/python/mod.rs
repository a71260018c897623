//! What a Python module says about other modules: the imports that run when it is imported.
//!
//! A Python program begins by importing hundreds of files, each of which names the next ones: on a slow line a chain of
//! round trips. What a module imports can be read from it without running it. Four things say it: compiled code
//! ([`Compiled`], a `.pyc` file: a header, an object tree in the format of the `marshal` module, and in it the bytecode of the
//! module), source text ([`imports_of_source`]), lines of `.pth` files, which are source, and the constants of an extension
//! ([`imports_of_constants`]). Only what runs at import time
//! counts: bodies of functions do not, and neither does what `if TYPE_CHECKING:` guards.
//!
//! Nothing here looks for files, and nothing is believed: whoever asks uses the answer as a guess. Time and memory are bounded
//! by the length of the input, names and their number by constants; nothing recurses.

mod compiled;
mod constants;
mod marshal;
mod source;
#[cfg(test)]
mod tests;

pub use compiled::{Compiled, Stamp};
pub use constants::{imports as imports_of_constants, imports_of_names, names as names_in_constants};
pub use source::imports as imports_of_source;

/// One `import` statement, or one `from … import`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Import {
    /// How many leading dots: 0 for an absolute name, 1 for the package of the module itself, and so on upwards.
    pub level: u32,
    /// The dotted name; empty in `from . import x`.
    pub module: String,
    /// The names after `import` in a `from` statement: submodules perhaps.
    pub names: Vec<String>,
}

/// Most imports taken from one module.
const MOST: usize = 4096;

/// The largest level that means anything: packages are not nested deeper.
const LEVELS: u32 = 32;

//! Imports of an extension module, whose code is not Python's.
//!
//! C code imports by name (`PyImport_ImportModule("random")`, and what Cython makes of `import`), so among its constants is
//! the name as a string that ends with a NUL. Most strings that are a whole identifier are no module, but those that are the
//! name of one that could be imported nearly always are imported: of pandas' 66 extensions, 67 names of 70.

use std::collections::HashSet;

use super::{Import, MOST};
use crate::limits::MODULE_NAME_BYTES;

/// What a module with these constants may import. `is_known` says whether there is a module or package with that name outside
/// any package.
pub fn imports(constants: &[u8], is_known: impl Fn(&str) -> bool) -> Vec<Import> {
    imports_of_names(names(constants, MODULE_NAME_BYTES), is_known)
}

/// The names of at most `longest` bytes among these constants that a module could have; nearly all of them are something else.
pub fn names(constants: &[u8], longest: usize) -> impl Iterator<Item = &str> {
    // What follows the last NUL goes on beyond these bytes.
    let end = constants.iter().rposition(|byte| *byte == 0).unwrap_or(0);
    constants[..end].split(|byte| *byte == 0).filter(move |text| text.len() <= longest).filter_map(name)
}

/// What a module with such [`names`] among its constants may import.
pub fn imports_of_names<'a>(names: impl IntoIterator<Item = &'a str>, is_known: impl Fn(&str) -> bool) -> Vec<Import> {
    let mut seen = HashSet::new();
    let names = names.into_iter();
    let names = names.filter(|name| is_known(name.split('.').next().unwrap_or(name)) && seen.insert(*name));
    names.take(MOST).map(|name| Import { level: 0, module: name.to_owned(), names: Vec::new() }).collect()
}

/// The text if it is a dotted name.
fn name(text: &[u8]) -> Option<&str> {
    let is_part = |part: &[u8]| {
        let first = part.first();
        first.is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_')
            && part.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
    };
    let is_name = text.len() >= 2 && text.split(|byte| *byte == b'.').all(is_part);
    std::str::from_utf8(text).ok().filter(|_| is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_strings_that_name_a_known_module_are_imports() {
        let constants =
            b"half of random\0random\0pkg.sub._c\0random\0.pkg\0pkg.\0pkg..a\0unknown\0pkg.9\0r\0\xffrandom\0random";
        let found = imports(constants, |name| ["random", "pkg", "r"].contains(&name));
        let names: Vec<_> = found.iter().map(|import| (import.level, import.module.as_str())).collect();
        assert_eq!(names, [(0, "random"), (0, "pkg.sub._c")]);
        assert!(imports(b"random", |_| true).is_empty(), "it may go on");
        let long = [vec![b'a'; MODULE_NAME_BYTES + 1], vec![0]].concat();
        assert!(imports(&long, |_| true).is_empty());
    }
}

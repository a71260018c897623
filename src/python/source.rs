//! Source text: the import statements that run when it is imported.
//!
//! No parser of Python: logical lines (brackets, backslashes, strings and comments are understood), their indentation, and of
//! each only whether it is an import, or begins a block that does not run now.

use super::{Import, LEVELS, MOST};
use crate::limits::MODULE_NAME_BYTES;

const IMPORT: &str = "import";

/// Longest source text looked at, in bytes; the longest of Python's own library is a third of it.
const LONGEST: usize = 1 << 20;

/// The imports of a module's source text that run when it is imported, in their order. Anything is accepted: what is no
/// Python has no imports, or wrong ones.
pub fn imports(text: &[u8]) -> Vec<Import> {
    let mut imports = Vec::new();
    // The indentation of the block that is passed over.
    let mut skipped: Option<usize> = None;
    let lines = Lines { rest: &text[..text.len().min(LONGEST)] };
    for (indentation, line) in lines {
        if skipped.is_some_and(|block| indentation > block) {
            continue;
        }
        skipped = None;
        let mut words = line.split_whitespace();
        match words.next() {
            Some("def" | "async") => skipped = Some(indentation),
            Some("if") if is_type_checking(&line) => skipped = Some(indentation),
            _ => {
                for statement in line.split(';') {
                    // What follows the colon of a block on its own line.
                    let statement = statement.rsplit(": ").next().unwrap_or(statement);
                    read(statement.trim(), &mut imports);
                }
            }
        }
        if imports.len() >= MOST {
            break;
        }
    }
    imports.truncate(MOST);
    imports
}

/// True for `if TYPE_CHECKING:` and `if typing.TYPE_CHECKING:`.
fn is_type_checking(line: &str) -> bool {
    let condition = line.strip_prefix("if").and_then(|rest| rest.trim().strip_suffix(':'));
    condition.is_some_and(|condition| {
        let condition = condition.trim();
        condition == "TYPE_CHECKING" || condition.ends_with(".TYPE_CHECKING")
    })
}

/// Reads one statement.
fn read(statement: &str, imports: &mut Vec<Import>) {
    let names = |text: &str| -> Vec<String> {
        let text = text.trim().trim_start_matches('(').trim_end_matches(')');
        let names = text.split(',').filter_map(|name| name.split_whitespace().next());
        names.filter(|name| is_name(name)).map(str::to_owned).collect()
    };
    if let Some(rest) = statement.strip_prefix("import ") {
        let modules = names(rest).into_iter();
        imports.extend(modules.map(|module| Import { level: 0, module, names: Vec::new() }));
    } else if let Some(rest) = statement.strip_prefix("from ") {
        // `import` as a word: names may contain it.
        let is_word = |(at, _): &(usize, &str)| {
            let (before, after) = (rest[..*at].chars().last(), rest[at + IMPORT.len()..].chars().next());
            before.is_some_and(|letter| letter == ' ' || letter == '.')
                && after.is_none_or(|letter| " (*".contains(letter))
        };
        let Some((at, _)) = rest.match_indices(IMPORT).find(is_word) else { return };
        let (module, list) = (rest[..at].trim(), &rest[at + IMPORT.len()..]);
        let name = module.trim_start_matches('.');
        let level = u32::try_from(module.len() - name.len()).unwrap_or(u32::MAX);
        if level <= LEVELS && (is_name(name) || name.is_empty() && level > 0) {
            imports.push(Import { level, module: name.to_owned(), names: names(list) });
        }
    }
}

/// True for names of modules with their packages.
fn is_name(name: &str) -> bool {
    if name.len() > MODULE_NAME_BYTES {
        return false;
    }
    let is_part = |part: &str| {
        part.chars().next().is_some_and(|first| first == '_' || first.is_alphabetic())
            && part.chars().all(|letter| letter == '_' || letter.is_alphanumeric())
    };
    name.split('.').all(is_part)
}

/// Logical lines: their indentation, and their text without comments, strings and line ends.
struct Lines<'a> {
    rest: &'a [u8],
}

impl Iterator for Lines<'_> {
    type Item = (usize, String);

    fn next(&mut self) -> Option<(usize, String)> {
        while !self.rest.is_empty() {
            let indentation = self.rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
            let line = self.line();
            if !line.trim().is_empty() {
                return Some((indentation, line.trim().to_owned()));
            }
        }
        None
    }
}

impl Lines<'_> {
    /// Takes one logical line.
    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut depth = 0_usize;
        while let Some((first, rest)) = self.rest.split_first() {
            match first {
                b'\n' if depth == 0 => {
                    self.rest = rest;
                    break;
                }
                b'#' => {
                    let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                    self.rest = &rest[end..];
                    continue;
                }
                b'"' | b'\'' => {
                    self.string(*first);
                    line.push(b'"');
                    continue;
                }
                b'\\' if rest.first() == Some(&b'\n') => {
                    self.rest = &rest[1..];
                    line.push(b' ');
                    continue;
                }
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            line.push(if first.is_ascii_whitespace() { b' ' } else { *first });
            self.rest = rest;
        }
        String::from_utf8_lossy(&line).into_owned()
    }

    /// Passes over a string that begins with `quote`: one that may have line ends if it begins with three.
    fn string(&mut self, quote: u8) {
        let is_long = self.rest.starts_with(&[quote; 3]);
        let length = if is_long { 3 } else { 1 };
        self.rest = &self.rest[length..];
        while let Some((first, rest)) = self.rest.split_first() {
            if *first == b'\\' {
                self.rest = rest.get(1..).unwrap_or_default();
            } else if is_long && self.rest.starts_with(&[quote; 3]) {
                self.rest = &self.rest[3..];
                return;
            } else if !is_long && *first == b'\n' {
                // Not closed; the line goes on without it.
                return;
            } else if !is_long && *first == quote {
                self.rest = rest;
                return;
            } else {
                self.rest = rest;
            }
        }
    }
}

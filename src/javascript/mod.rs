//! What JavaScript says about other modules, as Node.js finds them: the specifiers of a module and the entry points of a
//! package.
//!
//! A server in JavaScript begins by loading hundreds of files, each named by the one before. [`specifiers`] finds the names in a
//! module without running it: in `require("…")`, and in `import` and `export … from "…"`. A call in a function counts like one
//! outside: whether it runs nobody knows. [`Package`] is what `package.json` says about which file a name means
//! (nodejs.org/api/packages.html).
//!
//! Nothing here looks for files, and nothing is believed: whoever asks uses the answer as a guess. Time and memory are bounded
//! by the length of the input, the number of names by a constant; nothing recurses deeper than a constant.

mod package;
#[cfg(test)]
mod tests;

pub use package::Package;

use crate::limits::MODULE_NAME_BYTES;

/// Most specifiers taken from one module.
const MOST: usize = 4096;

/// What came before a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// `require` or `import`, and then perhaps an opening parenthesis.
    Loader {
        is_called: bool,
    },
    /// `from`.
    From,
    Other,
}

/// The names of modules in a module, in its order, each once. Text that is no JavaScript has none, or wrong ones.
pub fn specifiers(text: &[u8]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let mut before = Before::Other;
    let mut at = 0;
    while let Some(byte) = text.get(at).copied() {
        let rest = &text[at..];
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => at += 1,
            b'/' if rest.starts_with(b"//") => at += rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with(b"/*") => at += end_of_comment(rest),
            b'"' | b'\'' => {
                let (content, length) = string(rest, byte);
                at += length;
                let is_loaded = matches!(before, Before::Loader { .. } | Before::From);
                if let Some(name) = content.filter(|_| is_loaded).and_then(|content| std::str::from_utf8(content).ok())
                    && (1..=MODULE_NAME_BYTES).contains(&name.len())
                    && found.len() < MOST
                    && seen.insert(name)
                {
                    found.push(name.to_owned());
                }
                before = Before::Other;
            }
            b'`' => {
                at += string(rest, byte).1;
                before = Before::Other;
            }
            b'(' if before == (Before::Loader { is_called: false }) => {
                before = Before::Loader { is_called: true };
                at += 1;
            }
            _ if is_of_word(byte) => {
                let length = rest.iter().position(|byte| !is_of_word(*byte)).unwrap_or(rest.len());
                // Behind three dots it is a value of its own.
                let is_member = text[..at].ends_with(b".") && !text[..at].ends_with(b"...");
                before = match &rest[..length] {
                    b"require" | b"import" if !is_member => Before::Loader { is_called: false },
                    b"from" if !is_member => Before::From,
                    _ => Before::Other,
                };
                at += length;
            }
            _ => {
                before = Before::Other;
                at += 1;
            }
        }
    }
    found
}

fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

/// Length of a comment that begins with `/*`.
fn end_of_comment(text: &[u8]) -> usize {
    text.windows(2).skip(2).position(|pair| pair == b"*/").map_or(text.len(), |end| end + 4)
}

/// The content of a string that begins with `quote`, unless something in it is escaped, and the length of all of it. One that does
/// not end on its line is none, but for templates.
fn string(text: &[u8], quote: u8) -> (Option<&[u8]>, usize) {
    let mut at = 1;
    let mut is_plain = true;
    while let Some(byte) = text.get(at).copied() {
        match byte {
            b'\\' => {
                is_plain = false;
                at += 2;
            }
            b'\n' if quote != b'`' => return (None, at),
            _ if byte == quote => return (Some(&text[1..at]).filter(|_| is_plain), at + 1),
            _ => at += 1,
        }
    }
    (None, text.len())
}

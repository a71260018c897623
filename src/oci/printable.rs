//! Outside text on a terminal: names, labels and messages of strangers must not move the cursor or reorder a line.
//!
//! A file name may hold any byte but NUL and `/`, a label any text. Shown as they are, escape sequences retitle or
//! rewrite the terminal, bidirectional controls make a line read differently from what it says, and a line break forges
//! a log record (D-070). [`Printable`] shows such bytes with every character of that kind escaped; text made of
//! ordinary letters stays as it is.

use std::fmt::{self, Write};
use std::path::Path;

/// Bytes shown as text that is safe on a terminal and in a log.
///
/// Different bytes never look the same: a backslash is doubled and bytes that are not UTF-8 become `\xff`. A precision
/// cuts long text: `{:.80}` shows at most eighty characters of the original and then `…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Printable<'a>(pub &'a [u8]);

impl<'a> Printable<'a> {
    /// Shows `text`, a string or bytes.
    pub fn of<T: AsRef<[u8]> + ?Sized>(text: &'a T) -> Self {
        Self(text.as_ref())
    }

    /// Shows a path.
    pub fn path(path: &'a Path) -> Self {
        Self(path.as_os_str().as_encoded_bytes())
    }
}

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = f.precision().unwrap_or(usize::MAX);
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if left == 0 {
                    return f.write_char('…');
                }
                left -= 1;
                write_character(f, character)?;
            }
            for byte in chunk.invalid() {
                if left == 0 {
                    return f.write_char('…');
                }
                left -= 1;
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// A message on one line, whose outside text is escaped already: backslashes stay as they are, and what was forgotten is
/// escaped like by [`Printable`].
///
/// The last gate before a terminal. Shown as outside text once more, every backslash would be doubled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a>(pub &'a str);

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '\\' => f.write_char('\\'),
            character => write_character(f, character),
        })
    }
}

fn write_character(f: &mut fmt::Formatter<'_>, character: char) -> fmt::Result {
    match character {
        '\\' => f.write_str("\\\\"),
        '\n' => f.write_str("\\n"),
        '\r' => f.write_str("\\r"),
        '\t' => f.write_str("\\t"),
        // A lone byte cannot be written as \x80 and above, because that is how bytes outside UTF-8 are shown.
        '\0'..='\x1f' | '\x7f' => write!(f, "\\x{:02x}", u32::from(character)),
        _ if is_deceptive(character) => write!(f, "\\u{{{:x}}}", u32::from(character)),
        _ => f.write_char(character),
    }
}

/// Characters that change how their neighbours are shown, or that show nothing at all.
fn is_deceptive(character: char) -> bool {
    matches!(character,
        '\u{80}'..='\u{9f}'             // C1 controls; 9b is CSI on 8-bit terminals
        | '\u{ad}'                      // soft hyphen
        | '\u{61c}'                     // Arabic letter mark
        | '\u{115f}'..='\u{1160}'       // Hangul fillers
        | '\u{180e}'                    // Mongolian vowel separator
        | '\u{200b}'..='\u{200f}'       // zero-width characters, direction marks
        | '\u{2028}'..='\u{202e}'       // line and paragraph separator, bidirectional embedding and override
        | '\u{2060}'..='\u{206f}'       // invisible operators, bidirectional isolates
        | '\u{3164}'                    // Hangul filler
        | '\u{fe00}'..='\u{fe0f}'       // variation selectors
        | '\u{feff}'                    // byte order mark
        | '\u{fff9}'..='\u{fffb}'       // interlinear annotation
        | '\u{e0000}'..='\u{e0fff}'     // tags and more variation selectors
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_text_stays_as_it_is() {
        for text in ["", "usr/bin/env", "naïve 日本語 emoji 🦀", "a b'c\"d"] {
            assert_eq!(Printable::of(text).to_string(), text);
        }
    }

    #[test]
    fn d_070_escape_sequences_bidi_and_line_breaks_are_escaped() {
        assert_eq!(Printable::of("\x1b]0;pwn\x07").to_string(), "\\x1b]0;pwn\\x07");
        assert_eq!(Printable::of("a\nb\r\tc").to_string(), "a\\nb\\r\\tc");
        assert_eq!(Printable::of("\u{202e}gpj.exe").to_string(), "\\u{202e}gpj.exe");
        assert_eq!(Printable::of("\u{9b}31m").to_string(), "\\u{9b}31m");
        assert_eq!(Printable(b"\xff\xc3").to_string(), "\\xff\\xc3");
        assert_eq!(Printable::of("\\n").to_string(), "\\\\n");
    }

    #[test]
    fn a_precision_cuts_long_text() {
        assert_eq!(format!("{:.3}", Printable::of("abcdef")), "abc…");
        assert_eq!(format!("{:.3}", Printable::of("abc")), "abc");
        assert_eq!(format!("{:.1}", Printable(b"\xff\xff")), "\\xff…");
    }

    #[test]
    fn d_070_a_message_is_escaped_once_however_often_it_passes_a_gate() {
        let message = format!("no {} \x1b\n", Printable(b"\xff\\"));
        let once = Message(&message).to_string();
        assert_eq!(once, "no \\xff\\\\ \\x1b\\n");
        assert_eq!(Message(&once).to_string(), once);
    }

    proptest! {
        #[test]
        fn d_070_no_bytes_get_a_control_character_through(bytes: Vec<u8>) {
            let shown = Printable(&bytes).to_string();
            prop_assert!(!shown.chars().any(|character| character.is_control() || is_deceptive(character)));
        }

        #[test]
        fn different_bytes_are_shown_differently(one in "[\\\\\\x00-\\x7f\u{80}-\u{ff}nx1b]{0,6}", two: Vec<u8>) {
            prop_assume!(one.as_bytes() != two);
            prop_assert_ne!(Printable::of(&one).to_string(), Printable(&two).to_string());
        }
    }
}

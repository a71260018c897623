//! Columns of text without lines between them, and numbers as people read them.

use std::fmt;

use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, presets};

/// How a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    /// Text, with its heading.
    Text(&'static str),
    /// Numbers, with their heading.
    Number(&'static str),
}

/// A table with one line a row and no space at the ends of lines.
#[derive(Debug)]
pub(super) struct Rows(Table);

impl Rows {
    /// An empty table.
    pub(super) fn new(columns: &[Column]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(columns.iter().map(|column| match column {
            Column::Text(heading) | Column::Number(heading) => *heading,
        }));
        for (column, wanted) in table.column_iter_mut().zip(columns) {
            column.set_padding((0, 2));
            if matches!(wanted, Column::Number(_)) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        Self(table)
    }

    /// Adds a row; outside text in it is escaped already.
    pub(super) fn add<const N: usize>(&mut self, row: [String; N]) {
        self.0.add_row(row);
    }

    /// The lines, each after `indent`.
    pub(super) fn indented(&self, indent: &str) -> String {
        self.0.lines().map(|line| format!("{indent}{}\n", line.trim_end())).collect()
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.indented(""))
    }
}

/// A number of bytes: `12.3 MiB`.
pub(super) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// A share in whole percent, rounded down so that 100 % means all; nothing of nothing is all.
pub(super) fn percent(part: u64, whole: u64) -> String {
    let share = (u128::from(part.min(whole)) * 100).checked_div(u128::from(whole)).unwrap_or(100);
    format!("{share} %")
}

/// The first digits of a digest, enough to tell layers apart.
pub(super) fn short_digest(digest: &str) -> &str {
    digest.split_once(':').and_then(|(_, hex)| hex.get(..12)).unwrap_or(digest)
}

/// A count with its noun: `1 layer`, `3 layers`.
pub(super) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_end_space() {
        let mut rows = Rows::new(&[Column::Text("NAME"), Column::Number("SIZE"), Column::Text("NOTE")]);
        rows.add(["a".to_owned(), size(1536), String::new()]);
        rows.add(["longer".to_owned(), size(7), "x".to_owned()]);
        assert_eq!(rows.to_string(), "NAME       SIZE  NOTE\na       1.5 KiB\nlonger      7 B  x\n");
    }

    #[test]
    fn percent_reaches_100_only_with_the_last_byte() {
        assert_eq!(percent(999, 1000), "99 %");
        assert_eq!(percent(u64::MAX, u64::MAX), "100 %");
        assert_eq!(percent(0, 0), "100 %");
    }

    #[test]
    fn digests_are_shortened_without_their_algorithm() {
        assert_eq!(short_digest("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_digest("odd"), "odd");
    }
}

//! Standard output, buffered; a reader that goes away ends the command without a complaint.

use std::fmt;
use std::io::{self, BufWriter, StdoutLock, Write};

use serde::Serialize;

use super::stop::Stop;

/// Standard output. Nothing is certain to be written before [`Output::finish`].
#[derive(Debug)]
pub(super) struct Output(BufWriter<StdoutLock<'static>>);

impl Output {
    /// Takes standard output.
    pub(super) fn new() -> Self {
        Self(BufWriter::new(io::stdout().lock()))
    }

    /// Writes formatted text; what `write!` and `writeln!` call.
    pub(super) fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> Result<(), Stop> {
        self.0.write_fmt(text).map_err(|error| Stop::output(&error))
    }

    /// Writes a report as JSON for programs: indented, one document, with a line break at its end.
    pub(super) fn json(&mut self, report: &impl Serialize) -> Result<(), Stop> {
        serde_json::to_writer_pretty(&mut self.0, report).map_err(|error| Stop::output(&error.into()))?;
        writeln!(self)
    }

    /// Raw access, for bytes that are no text.
    pub(super) fn raw(&mut self) -> &mut dyn Write {
        &mut self.0
    }

    /// Writes out what is buffered.
    pub(super) fn finish(mut self) -> Result<(), Stop> {
        self.0.flush().map_err(|error| Stop::output(&error))
    }
}

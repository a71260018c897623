//! Spans too large for memory: a layer that is one big zstd frame is one span.
//!
//! Such a span is decoded once into a file without a name, which goes when the layer is closed or the process ends, and
//! is memory-mapped from there: the kernel keeps of it what it has room for.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use memmap2::Mmap;
use rustix::fs::{Mode, OFlags};

use crate::index::{Error, LayerIndex, SpanId};

/// Decoded spans above this many bytes go to a file.
const LARGE: u64 = 16 << 20;

/// The large spans of one layer that have been decoded.
#[derive(Debug)]
pub struct LargeSpans {
    /// Where the files are made.
    directory: PathBuf,
    /// Protects the table; held for look-ups and insertions only.
    decoded: Mutex<HashMap<SpanId, Bytes>>,
}

impl LargeSpans {
    /// None yet; their files will be made in `directory`, on the cache's file system.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, decoded: Mutex::default() }
    }

    pub(super) fn get(&self, span: SpanId) -> Option<Bytes> {
        self.decoded.lock().unwrap_or_else(PoisonError::into_inner).get(&span).cloned()
    }

    /// Keeps a span if it is large; false if it is not.
    pub(super) fn put(&self, span: SpanId, bytes: &Bytes) -> bool {
        let is_large = bytes.len() as u64 > LARGE;
        if is_large {
            self.decoded.lock().unwrap_or_else(PoisonError::into_inner).insert(span, bytes.clone());
        }
        is_large
    }

    /// Decodes and verifies a span, through a file if it is large.
    pub(super) fn decode(&self, index: &LayerIndex, span: SpanId, compressed: &[u8]) -> Result<Bytes, Error> {
        let range = index.decoded(span);
        if range.end - range.start <= LARGE {
            return index.decode(span, compressed);
        }
        let file = self.create().map_err(Error::Output)?;
        let mut writer = BufWriter::with_capacity(1 << 20, &file);
        index.decode_to(span, compressed, &mut writer)?;
        writer.flush().map_err(Error::Output)?;
        drop(writer);
        map(&file).map_err(Error::Output)
    }

    fn create(&self) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::open(&self.directory, flags, Mode::RUSR | Mode::WUSR)?))
    }
}

fn map(file: &File) -> io::Result<Bytes> {
    // SAFETY: the file has no name and only this process has it open, so nobody can change or shorten it while it is
    // mapped.
    let map = unsafe { Mmap::map(file)? };
    Ok(Bytes::from_owner(map))
}

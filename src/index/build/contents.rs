//! The stage that reads tar: chunks of the stream become entries, each with the digest of its content and what that says
//! about other files.

use std::sync::mpsc::{Receiver, SyncSender};

use sha2::{Digest as _, Sha256};

use super::Stop;
use super::chunk::Chunk;
use crate::dependencies::{Observer, module_of};
use crate::index::dependencies::DependencyWriter;
use crate::index::entries::{EntryWriter, Written};
use crate::limits::{CONTENT_DIGEST_BYTES, LAYER_ENTRIES, SPARSE_HASH_BYTES, SPARSE_HASH_LAYER_BYTES};
use crate::tar::{Entry, Kind, Parser, Sink};

/// A chunk and what was found in it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) chunk: Chunk,
    /// About how many bytes of index all entries so far take.
    pub(super) entry_bytes: u64,
}

/// What the stage made.
#[derive(Debug)]
pub(super) struct Examined {
    pub(super) entries: Written,
    /// The section of dependencies.
    pub(super) dependencies: Vec<u8>,
}

/// Runs the stage.
pub(super) fn run(chunks: &Receiver<Chunk>, seen: &SyncSender<Seen>) -> Result<Examined, Stop> {
    let mut parser = Parser::new();
    let mut contents = Contents::new();
    for chunk in chunks {
        parser.push(&chunk.bytes, &mut contents)?;
        contents.check()?;
        let entry_bytes = contents.writer.estimate();
        seen.send(Seen { chunk, entry_bytes }).map_err(|_| Stop::Downstream)?;
    }
    parser.finish()?;
    contents.close();
    contents.check()?;
    Ok(Examined { entries: contents.writer.finish(), dependencies: contents.dependencies.finish() })
}

/// Receives entries and writes each once its content is hashed.
struct Contents {
    writer: EntryWriter,
    dependencies: DependencyWriter,
    current: Option<Current>,
    /// Hole bytes that may still be hashed.
    holes: u64,
    too_long: bool,
}

/// The entry whose bytes pass by.
struct Current {
    entry: Entry,
    hash: Option<FileHash>,
    /// Where its bytes begin in the stream, and who looks at them.
    observer: Option<(u64, Observer)>,
}

impl Contents {
    fn new() -> Self {
        Self {
            writer: EntryWriter::new(),
            dependencies: DependencyWriter::default(),
            current: None,
            holes: SPARSE_HASH_LAYER_BYTES,
            too_long: false,
        }
    }

    fn check(&self) -> Result<(), Stop> {
        if self.too_long {
            return Err(Stop::Limit("one of its entries is too long"));
        }
        if self.writer.count() > LAYER_ENTRIES {
            return Err(Stop::Limit("it has too many entries"));
        }
        Ok(())
    }

    /// Writes the current entry.
    fn close(&mut self) {
        let Some(Current { mut entry, hash, observer }) = self.current.take() else { return };
        if let Kind::Regular { size, content, .. } = &mut entry.kind {
            *content = hash.map(|hash| hash.finish(*size));
        }
        if let Some(module) = module_of(&entry.path) {
            self.dependencies.note_module(module);
        }
        if let Some((place, observer)) = observer
            && let Some(dependencies) = observer.finish()
        {
            self.dependencies.push(place, dependencies);
        }
        self.too_long |= !self.writer.push(&entry);
    }

    /// A hash for the content of a file, unless there is too little or too much to hash.
    fn hash(&mut self, entry: &Entry) -> Option<FileHash> {
        let Kind::Regular { size, segments, .. } = &entry.kind else { return None };
        let held: u64 = segments.iter().map(|segment| segment.length).sum();
        let holes = size.saturating_sub(held);
        if *size < CONTENT_DIGEST_BYTES || holes > 0 && (*size > SPARSE_HASH_BYTES || holes > self.holes) {
            return None;
        }
        self.holes -= holes;
        Some(FileHash { hasher: Sha256::new(), position: 0, segment: 0, left: 0 })
    }
}

impl Sink for Contents {
    fn entry(&mut self, entry: Entry) {
        self.close();
        let hash = self.hash(&entry);
        let observer = observer(&entry);
        self.current = Some(Current { entry, hash, observer });
    }

    fn data(&mut self, bytes: &[u8]) {
        let Some(current) = &mut self.current else { return };
        if let (Kind::Regular { segments, .. }, Some(hash)) = (&current.entry.kind, &mut current.hash) {
            hash.data(segments, bytes);
        }
        if let Some((_, observer)) = &mut current.observer {
            observer.data(bytes);
        }
    }
}

/// Who looks at the bytes of a file, and where they begin; none for what is no file, or has holes.
fn observer(entry: &Entry) -> Option<(u64, Observer)> {
    match &entry.kind {
        Kind::Regular { size, segments, .. } => match &segments[..] {
            [one] if one.file_offset == 0 && one.length == *size => {
                Some((one.layer_offset, Observer::new(&entry.path, *size)))
            }
            _ => None,
        },
        _ => None,
    }
}

/// SHA-256 of a file, holes included.
struct FileHash {
    hasher: Sha256,
    /// How far in the file.
    position: u64,
    /// The segment to come.
    segment: usize,
    /// Bytes of the current segment to come.
    left: u64,
}

impl FileHash {
    fn data(&mut self, segments: &[crate::tar::Segment], mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left == 0 {
                let Some(segment) = segments.get(self.segment) else { return };
                self.zeros_to(segment.file_offset);
                self.left = segment.length;
                self.segment += 1;
            }
            let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(length);
            self.hasher.update(now);
            self.left -= length as u64;
            self.position += length as u64;
            bytes = later;
        }
    }

    fn zeros_to(&mut self, end: u64) {
        const ZEROS: [u8; 16 << 10] = [0; 16 << 10];
        while self.position < end {
            let length = (end - self.position).min(ZEROS.len() as u64);
            self.hasher.update(&ZEROS[..length as usize]);
            self.position += length;
        }
    }

    fn finish(mut self, size: u64) -> [u8; 32] {
        self.zeros_to(size);
        self.hasher.finalize().into()
    }
}

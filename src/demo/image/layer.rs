//! One layer as bytes: a sorted list of things becomes a tar stream, hashed and compressed on its way out.
//!
//! [`Items`] says what is in it and [`pack`] writes it, in one pass and without holding it: the files of the host and the
//! generated text are read as they are written.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;

use super::Error;
use crate::oci::{Algorithm, Digest, Hasher};

/// When everything in the image was last modified: 2024-01-01, so that the image depends on the files' bytes only.
const MTIME: u64 = 1_704_067_200;

/// How much of the third layer one zstd frame holds: decoding starts at frames, so this is what one read costs.
const FRAME_BYTES: u64 = 1 << 20;

/// What a layer holds, by path without the leading slash; sorted, so that directories come before what is in them.
pub(super) type Items = BTreeMap<PathBuf, Item>;

/// One thing in a layer; directories that are only on the way need none.
#[derive(Debug)]
pub(super) enum Item {
    Directory(u32),
    Text(&'static str),
    /// A file of the host, executable.
    Host(PathBuf),
    /// A symbolic link.
    Link(PathBuf),
    /// A text of this many bytes.
    Generated(u64),
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Compression {
    Gzip,
    Zstd,
}

/// Writes `items` as a compressed tar stream to `out`, called `path` in errors.
pub(super) fn pack<W: Write>(
    items: &Items,
    compression: Compression,
    out: W,
    path: &Path,
) -> Result<(W, Digest), Error> {
    let failed = |source| Error::Io { doing: "writing", path: path.into(), source };
    let compressor = Compressor::new(compression, out).map_err(failed)?;
    let mut tar = tar::Builder::new(Tap { hasher: Hasher::new(Algorithm::Sha256), out: compressor });
    let mut made = Vec::new();
    let mut first_paths = HashMap::new();
    for (place, item) in items {
        for parent in place.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
            let is_new = !parent.as_os_str().is_empty() && !items.contains_key(parent) && !made.contains(&parent);
            if is_new {
                append(&mut tar, parent, &Item::Directory(0o755)).map_err(failed)?;
                made.push(parent);
            }
        }
        // One file of the host that has several paths is one file in the image too.
        let twin = match item {
            Item::Host(source) => first_paths.insert(source.clone(), place.clone()),
            _ => None,
        };
        match (twin, item) {
            (Some(twin), _) => {
                let mut header = header(tar::EntryType::Link, 0o755, 0);
                tar.append_link(&mut header, place, twin).map_err(failed)?;
            }
            (None, Item::Host(source)) => append(&mut tar, place, item).map_err(|error| Error::Io {
                doing: "copying",
                path: source.clone(),
                source: error,
            })?,
            (None, _) => append(&mut tar, place, item).map_err(failed)?,
        }
    }
    let tap = tar.into_inner().map_err(failed)?;
    Ok((tap.out.finish().map_err(failed)?, tap.hasher.finish()))
}

fn append<W: Write>(tar: &mut tar::Builder<W>, place: &Path, item: &Item) -> io::Result<()> {
    match item {
        Item::Directory(mode) => tar.append_data(&mut header(tar::EntryType::Directory, *mode, 0), place, io::empty()),
        Item::Text(text) => {
            tar.append_data(&mut header(tar::EntryType::Regular, 0o644, text.len() as u64), place, text.as_bytes())
        }
        Item::Host(source) => {
            let file = File::open(source)?;
            let size = file.metadata()?.len();
            tar.append_data(&mut header(tar::EntryType::Regular, 0o755, size), place, Exactly { file, left: size })
        }
        Item::Link(target) => tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), place, target),
        Item::Generated(size) => {
            let text = BufReader::with_capacity(64 << 10, LogText::new(*size));
            tar.append_data(&mut header(tar::EntryType::Regular, 0o644, *size), place, text)
        }
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MTIME);
    header.set_size(size);
    header
}

/// Reads a file of the length it had when it was opened, or fails: a header before it already says how long it is.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.file.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was copied"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Hashes what goes through it.
struct Tap<W> {
    hasher: Hasher,
    out: W,
}

impl<W: Write> Write for Tap<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Compresses a layer.
enum Compressor<W: Write> {
    Gzip(GzEncoder<W>),
    /// The encoder of the present frame, which is missing only after an error, and how much went into it.
    Zstd(Option<zstd::Encoder<'static, W>>, u64),
}

impl<W: Write> Compressor<W> {
    fn new(compression: Compression, out: W) -> io::Result<Self> {
        Ok(match compression {
            Compression::Gzip => Self::Gzip(flate2::GzBuilder::new().write(out, flate2::Compression::new(6))),
            Compression::Zstd => Self::Zstd(Some(frame(out)?), 0),
        })
    }

    fn finish(self) -> io::Result<W> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(Some(encoder), _) => encoder.finish(),
            Self::Zstd(None, _) => Err(broken()),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder, length) => {
                if *length >= FRAME_BYTES {
                    let out = encoder.take().ok_or_else(broken)?.finish()?;
                    *encoder = Some(frame(out)?);
                    *length = 0;
                }
                let count = encoder.as_mut().ok_or_else(broken)?.write(bytes)?;
                *length += count as u64;
                Ok(count)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder, _) => encoder.as_mut().ok_or_else(broken)?.flush(),
        }
    }
}

fn frame<W: Write>(out: W) -> io::Result<zstd::Encoder<'static, W>> {
    let mut encoder = zstd::Encoder::new(out, 3)?;
    encoder.include_checksum(true)?;
    Ok(encoder)
}

fn broken() -> io::Error {
    io::Error::other("the zstd encoder failed before")
}

/// Text that looks like the log of a web server and compresses like one, always the same.
struct LogText {
    state: u64,
    line: Vec<u8>,
    at: usize,
    number: u64,
    left: u64,
}

impl LogText {
    fn new(length: u64) -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15, line: Vec::new(), at: 0, number: 0, left: length }
    }

    /// The next of a fixed sequence of numbers (xorshift).
    fn random(&mut self, below: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % below
    }

    fn next_line(&mut self) {
        const WORDS: [&str; 8] = ["images", "layers", "blobs", "manifests", "tokens", "indexes", "spans", "profiles"];
        let (word, host, part) = (self.random(8), self.random(16), self.random(256));
        let (minute, second) = (self.number / 60 % 60, self.number % 60);
        let text = format!(
            "2024-01-01T{:02}:{minute:02}:{second:02}Z node-{host:02}.cluster.example.com registry[4711]: info: GET \
             /v2/library/{}/{part:02x} HTTP/1.1 answered with status=200 from=cache attempt=1\n",
            self.number / 3600 % 24,
            WORDS[usize::try_from(word).unwrap_or(0)],
        );
        self.number += 1;
        self.line.clear();
        self.line.extend_from_slice(text.as_bytes());
        self.at = 0;
    }
}

impl Read for LogText {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let mut filled = 0;
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        while filled < most {
            if self.at == self.line.len() {
                self.next_line();
            }
            let count = (self.line.len() - self.at).min(most - filled);
            buffer[filled..filled + count].copy_from_slice(&self.line[self.at..self.at + count]);
            self.at += count;
            filled += count;
        }
        self.left -= filled as u64;
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_large_layer_can_be_decoded_from_a_frame_in_its_middle() {
        let (bytes, _) = pack(
            &Items::from([("x".into(), Item::Generated(3 << 20))]),
            Compression::Zstd,
            Vec::new(),
            Path::new("layer"),
        )
        .expect("it can be packed");
        let magic = 0xfd2f_b528_u32.to_le_bytes();
        let starts: Vec<usize> = (0..bytes.len() - 4).filter(|at| bytes[*at..*at + 4] == magic).collect();
        assert!(starts.len() >= 3, "{starts:?}");
        let tail = zstd::decode_all(&bytes[starts[1]..]).expect("a frame starts there");
        assert!((1 << 20..3 << 20).contains(&tail.len()), "{}", tail.len());
    }

    #[test]
    fn the_generated_text_does_not_depend_on_how_it_is_read() {
        let mut whole = Vec::new();
        LogText::new(10_000).read_to_end(&mut whole).expect("it never fails");
        let mut text = LogText::new(10_000);
        let mut pieces = Vec::new();
        let mut buffer = [0; 7];
        while let Ok(count @ 1..) = text.read(&mut buffer) {
            pieces.extend_from_slice(&buffer[..count]);
        }
        assert_eq!((whole.len(), whole == pieces), (10_000, true));
        assert!(whole.is_ascii() && whole.ends_with(&pieces[9_990..]));
    }
}

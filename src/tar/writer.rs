//! Writes tar streams: what ocifs makes itself (the demo image, archives for tests) from the same [`Entry`] values that
//! a parser gives.
//!
//! A [`Writer`] writes ustar headers and, for long names, fractions of seconds and extended attributes, a PAX header
//! before them. It is deterministic: equal entries give equal bytes.

use std::io::{self, Read, Write};

use super::header::BLOCK;
use super::name::{OPAQUE, WHITEOUT};
use super::{Entry, Kind};

/// Writes one tar stream to `W`, which should be buffered.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// A writer at the beginning of a stream.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes an entry, and of a regular file the content: as many bytes of `content` as the entry's size says.
    ///
    /// The segments of a regular file are ignored, and whatever else has no content does not read any. Fails with
    /// [`io::ErrorKind::UnexpectedEof`] if the content is shorter than the size.
    pub fn append(&mut self, entry: &Entry, content: impl Read) -> io::Result<()> {
        let fields = Fields::of(entry);
        let records = fields.records(entry);
        if !records.is_empty() {
            let header = Fields { path: b"PaxHeaders/0".to_vec(), size: records.len() as u64, ..Fields::empty(b'x') };
            self.out.write_all(&header.block())?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.out.write_all(&fields.block())?;
        let copied = io::copy(&mut content.take(fields.size), &mut self.out)?;
        if copied < fields.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.pad(copied)
    }

    /// Writes the end marker and gives back the destination.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn pad(&mut self, written: u64) -> io::Result<()> {
        let rest = (written % BLOCK as u64) as usize;
        if rest == 0 { Ok(()) } else { self.out.write_all(&[0; BLOCK][rest..]) }
    }
}

/// The fields of a header, before they are fitted into it.
struct Fields {
    typeflag: u8,
    path: Vec<u8>,
    link: Vec<u8>,
    mode: u64,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: u64,
    major: u64,
    minor: u64,
}

impl Fields {
    fn empty(typeflag: u8) -> Self {
        let (path, link) = (Vec::new(), Vec::new());
        Self { typeflag, path, link, mode: 0o644, uid: 0, gid: 0, size: 0, mtime: 0, major: 0, minor: 0 }
    }

    fn of(entry: &Entry) -> Self {
        let mut fields = Self {
            path: name(entry),
            mode: entry.mode.into(),
            uid: entry.uid.into(),
            gid: entry.gid.into(),
            mtime: entry.mtime.seconds.unsigned_abs(),
            ..Self::empty(b'0')
        };
        match &entry.kind {
            Kind::Directory => fields.typeflag = b'5',
            Kind::Regular { size, .. } => fields.size = *size,
            Kind::Symlink { target } => (fields.typeflag, fields.link) = (b'2', target.clone()),
            Kind::HardLink { target } => (fields.typeflag, fields.link) = (b'1', target.clone()),
            Kind::CharDevice { major, minor } => {
                (fields.typeflag, fields.major, fields.minor) = (b'3', u64::from(*major), u64::from(*minor));
            }
            Kind::BlockDevice { major, minor } => {
                (fields.typeflag, fields.major, fields.minor) = (b'4', u64::from(*major), u64::from(*minor));
            }
            Kind::Fifo => fields.typeflag = b'6',
            Kind::Whiteout | Kind::Opaque => {}
        }
        fields
    }

    /// The PAX records for what the block cannot hold.
    fn records(&self, entry: &Entry) -> Vec<u8> {
        let mut records = Vec::new();
        if self.path.len() > 100 {
            record(&mut records, b"path", &self.path);
        }
        if self.link.len() > 100 {
            record(&mut records, b"linkpath", &self.link);
        }
        if entry.mtime.nanos > 0 {
            record(&mut records, b"mtime", format!("{}.{:09}", self.mtime, entry.mtime.nanos).as_bytes());
        }
        for xattr in &entry.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", &xattr.name[..]].concat(), &xattr.value);
        }
        records
    }

    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        text(&mut block[..100], &self.path);
        number(&mut block[100..108], self.mode);
        number(&mut block[108..116], self.uid);
        number(&mut block[116..124], self.gid);
        number(&mut block[124..136], self.size);
        number(&mut block[136..148], self.mtime);
        block[148..156].fill(b' ');
        block[156] = self.typeflag;
        text(&mut block[157..257], &self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        number(&mut block[329..337], self.major);
        number(&mut block[337..345], self.minor);
        let sum = block.iter().map(|&byte| u64::from(byte)).sum();
        number(&mut block[148..155], sum);
        block
    }
}

/// The name under which an entry is written; the parser takes it back to the entry's path.
fn name(entry: &Entry) -> Vec<u8> {
    let path = &entry.path;
    match entry.kind {
        Kind::Directory => [if path.is_empty() { b"." } else { &path[..] }, b"/"].concat(),
        Kind::Whiteout => {
            let start = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
            [&path[..start], WHITEOUT, &path[start..]].concat()
        }
        Kind::Opaque if path.is_empty() => OPAQUE.to_vec(),
        Kind::Opaque => [&path[..], b"/", OPAQUE].concat(),
        _ => path.clone(),
    }
}

/// Appends `LENGTH KEY=VALUE\n`, whose length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + b" =\n".len();
    let mut length = rest + 1;
    while rest + length.to_string().len() > length {
        length += 1;
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn text(field: &mut [u8], value: &[u8]) {
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
}

/// Writes a number in octal with a NUL after it or, if it does not fit, in base-256, which everything reads.
fn number(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    if value >> (3 * digits) > 0 {
        let bytes = value.to_be_bytes();
        let length = bytes.len().min(field.len());
        let (head, tail) = field.split_at_mut(field.len() - length);
        head.fill(0);
        tail.copy_from_slice(&bytes[bytes.len() - length..]);
        field[0] |= 0x80;
        return;
    }
    for (index, byte) in field[..digits].iter_mut().enumerate() {
        *byte = b'0' + ((value >> (3 * (digits - 1 - index))) & 7) as u8;
    }
    field[digits] = 0;
}

//! Archives: one file that holds everything, plain or compressed.
//!
//! A plain tar file is read where it lies. A compressed one cannot be read at random, so it is decompressed once into a
//! private file that has no name and disappears with the last descriptor (B-028). [`OciArchive`] is a tar file with an
//! OCI image layout inside.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::files::Files;
use super::image_layout::ImageLayout;
use super::members::Members;
use super::{BlobReader, BoxFuture, Document, Error, ErrorKind, Source};
use crate::limits;
use crate::oci::{Descriptor, LocalSelector, Printable};

/// One image of a tar file that holds an OCI image layout: `oci-archive:FILE`.
#[derive(Debug)]
pub struct OciArchive(ImageLayout);

impl OciArchive {
    /// Opens the archive `file` and chooses an image of it; blocks on local file I/O, for a compressed archive as long
    /// as it takes to decompress it into `scratch`.
    ///
    /// Without a selector the archive has to hold exactly one image.
    pub fn open(file: &Path, selector: Option<&LocalSelector>, scratch: &Path) -> Result<Self, Error> {
        let members = open_members(file, "oci-archive", scratch)?;
        if !ImageLayout::is_in(&members) && members.open("manifest.json").is_ok() {
            let message = format!("{} is an archive of Docker's own format", members.name());
            let hint = format!("write docker-archive:{}", Printable::path(file));
            return Err(Error::new(ErrorKind::Invalid, message).hint(hint));
        }
        ImageLayout::open(Arc::new(members), selector).map(Self)
    }
}

impl Source for OciArchive {
    fn name(&self) -> String {
        self.0.name()
    }

    fn resolve(&self) -> BoxFuture<'_, Result<Document, Error>> {
        self.0.resolve()
    }

    fn manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document, Error>> {
        self.0.manifest(descriptor)
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn BlobReader> {
        self.0.blob(descriptor)
    }
}

/// Opens an archive of `transport` and lists its members, decompressing it first if need be.
pub(super) fn open_members(path: &Path, transport: &str, scratch: &Path) -> Result<Members, Error> {
    let name = format!("{transport}:{}", Printable::path(path));
    let file = open_file(path, &name)?;
    let io = |error| Error::new(ErrorKind::Io, format!("cannot read {name}")).because(error);
    let file = match Compression::of(&file).map_err(io)? {
        Compression::None => file,
        Compression::Other(kind) => {
            let message = format!("{name} is compressed with {kind}, which is not supported");
            let hint = format!("decompress it first: {kind} -dk FILE");
            return Err(Error::new(ErrorKind::Unsupported, message).hint(hint));
        }
        Compression::Gzip => unpack(flate2::bufread::MultiGzDecoder::new(BufReader::new(file)), &name, scratch)?,
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::new(file).map_err(io)?;
            unpack(decoder, &name, scratch)?
        }
    };
    Members::scan(file, name)
}

fn open_file(path: &Path, name: &str) -> Result<File, Error> {
    // A FIFO opened without NONBLOCK would hang here until someone writes to it.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let descriptor = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        rustix::io::Errno::NOENT => Error::new(ErrorKind::NotFound, format!("{name} does not exist")),
        _ => Error::new(ErrorKind::Io, format!("cannot open {name}")).because(errno),
    })?;
    let file = File::from(descriptor);
    let metadata =
        file.metadata().map_err(|error| Error::new(ErrorKind::Io, format!("cannot examine {name}")).because(error))?;
    if metadata.is_dir() {
        let hint = "for an image layout in a directory write oci:DIRECTORY";
        return Err(Error::new(ErrorKind::Invalid, format!("{name} is a directory")).hint(hint));
    }
    if !metadata.is_file() {
        return Err(Error::new(ErrorKind::Invalid, format!("{name} is not a regular file")));
    }
    Ok(file)
}

/// How a stream is compressed, judged by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
    /// A format that is recognised but not read; the name of its tool.
    Other(&'static str),
}

/// Bytes that [`Compression::from_start`] looks at.
pub(super) const MAGIC_BYTES: usize = 6;

impl Compression {
    fn of(file: &File) -> io::Result<Self> {
        let mut start = [0; MAGIC_BYTES];
        let mut length = 0;
        while length < start.len() {
            match file.read_at(&mut start[length..], length as u64) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self::from_start(&start[..length]))
    }

    /// Judges by `start`, the first [`MAGIC_BYTES`] bytes or all there are.
    pub(super) fn from_start(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A zstd stream may begin with a skippable frame.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Other("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A'] => Self::Other("bzip2"),
            _ => Self::None,
        }
    }
}

/// Decompresses an archive into a file without a name.
fn unpack(mut stream: impl Read, name: &str, scratch: &Path) -> Result<File, Error> {
    let in_scratch = |error| {
        Error::new(ErrorKind::Io, format!("cannot decompress {name} into {}", Printable::path(scratch))).because(error)
    };
    let mut file = unnamed_file(scratch).map_err(in_scratch)?;
    let mut buffer = vec![0; 256 << 10];
    let mut length = 0_u64;
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(Error::new(ErrorKind::Corrupt, format!("cannot decompress {name}")).because(error));
            }
        };
        length += count as u64;
        if length > limits::ARCHIVE_UNPACKED_BYTES {
            let limit = limits::ARCHIVE_UNPACKED_BYTES;
            return Err(Error::new(ErrorKind::Invalid, format!("{name} decompresses to more than {limit} bytes")));
        }
        file.write_all(&buffer[..count]).map_err(in_scratch)?;
    }
    file.seek(SeekFrom::Start(0)).map_err(in_scratch)?;
    Ok(file)
}

/// Makes a private file in `directory` that disappears when it is closed.
fn unnamed_file(directory: &Path) -> io::Result<File> {
    let (flags, mode) = (OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    match rustix::fs::open(directory, flags | OFlags::TMPFILE, mode) {
        Ok(descriptor) => return Ok(descriptor.into()),
        // Some file systems (overlay on old kernels, NFS) do not know unnamed files.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {}
        Err(errno) => return Err(errno.into()),
    }
    for attempt in 0..100 {
        let path = directory.join(format!("archive-{}-{attempt}", std::process::id()));
        match rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, mode) {
            Ok(descriptor) => {
                rustix::fs::unlink(&path)?;
                return Ok(descriptor.into());
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests;

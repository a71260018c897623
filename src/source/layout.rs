//! An OCI image layout in a directory: `oci:DIR`.
//!
//! The directory may come from anyone, and blobs are found by name below it, so nothing may lead outside:
//! every file is opened with `openat2` and `RESOLVE_BENEATH`, and has to be a regular file (B-030).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::files::Files;
use super::image_layout::ImageLayout;
use super::section::Section;
use super::{BlobReader, BoxFuture, Document, Error, ErrorKind, Source};
use crate::oci::{Descriptor, LocalSelector, Printable};

/// One image of a layout directory.
#[derive(Debug)]
pub struct Layout(ImageLayout);

impl Layout {
    /// Opens the layout `dir` and chooses an image of it; blocks on local file I/O.
    ///
    /// Without a selector the layout has to hold exactly one image. The directory stays open, so that renaming it does
    /// no harm.
    pub fn open(dir: &Path, selector: Option<&LocalSelector>) -> Result<Self, Error> {
        let directory = Directory::open(dir)?;
        ImageLayout::open(Arc::new(directory), selector).map(Self)
    }
}

impl Source for Layout {
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

/// An open directory.
#[derive(Debug)]
struct Directory {
    descriptor: OwnedFd,
    name: String,
}

/// Attempts at an open that the kernel asks to repeat, because something was renamed meanwhile.
const ATTEMPTS: usize = 16;

impl Directory {
    fn open(dir: &Path) -> Result<Self, Error> {
        let name = format!("oci:{}", Printable::path(dir));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(dir, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => Error::new(ErrorKind::NotFound, format!("{name} does not exist")),
            Errno::NOTDIR => Error::new(ErrorKind::Invalid, format!("{name} is not a directory"))
                .hint("for a tar file write oci-archive:FILE or docker-archive:FILE"),
            _ => Error::new(ErrorKind::Io, format!("cannot open {name}")).because(errno),
        })?;
        Ok(Self { descriptor, name })
    }

    fn open_beneath(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match rustix::fs::openat2(&self.descriptor, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) if attempts < ATTEMPTS => {}
                result => return result,
            }
        }
    }
}

impl Files for Directory {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, name: &str) -> Result<Section, Error> {
        let label = format!("{} file {}", self.name, Printable::of(name));
        // Without NONBLOCK a FIFO in place of a blob would hang the caller before anyone could see that it is one.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let descriptor = self.open_beneath(name, flags).map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR => Error::new(ErrorKind::NotFound, format!("{label} does not exist")),
            Errno::XDEV => Error::new(ErrorKind::Invalid, format!("{label} is a symbolic link out of the layout")),
            Errno::LOOP => Error::new(ErrorKind::Invalid, format!("{label} is a symbolic link that leads nowhere")),
            _ => Error::new(ErrorKind::Io, format!("cannot open {label}")).because(errno),
        })?;
        let file = File::from(descriptor);
        let metadata = file
            .metadata()
            .map_err(|error| Error::new(ErrorKind::Io, format!("cannot examine {label}")).because(error))?;
        if !metadata.is_file() {
            return Err(Error::new(ErrorKind::Invalid, format!("{label} is not a regular file")));
        }
        Ok(Section::new(Arc::new(file), 0, metadata.len(), &label))
    }

    fn has_directory(&self, name: &str) -> bool {
        self.open_beneath(name, OFlags::PATH | OFlags::DIRECTORY).is_ok()
    }
}

#[cfg(test)]
mod tests;

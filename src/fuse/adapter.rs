//! Requests of the kernel in, replies out; nothing is decided here.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};
use tokio::runtime::Handle;

use crate::fs::{self, Attr, FileSystem, FileType, Ino, Open, Read, StatFs};

/// How long the kernel may keep what it was told. The tree never changes, so the only reason for an end is that the
/// kernel counts in jiffies and a larger value would overflow on some platforms.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Read requests that the kernel may have in flight in the background (read-ahead) before it calls us congested.
const BACKGROUND: u16 = 128;

/// How every file is opened: data stays cached across opens, and closing needs no flush.
const OPENED: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_NOFLUSH);

/// One mount's file system as the FUSE crate calls it.
#[derive(Debug)]
pub(super) struct Adapter {
    pub(super) fs: Arc<FileSystem>,
    pub(super) runtime: Handle,
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for capability in [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ] {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "the kernel does not offer this");
            }
        }
        // Nothing is ever written; the size only bounds the pages of one read request: 1 MiB.
        if let Err(nearest) = config.set_max_write(1 << 20) {
            tracing::debug!(nearest, "request size stays at the default");
        }
        if let Err(nearest) = config.set_max_background(BACKGROUND) {
            tracing::debug!(nearest, "background requests stay at the default");
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.fs.lookup(Ino(parent.0), name.as_bytes()) {
            Ok(attr) => reply.entry(&FOREVER, &file_attr(&attr), Generation(0)),
            // Node 0 with a time-out is how the protocol says that a name does not exist and will not.
            Err(fs::Error::NotFound) => reply.entry(&FOREVER, &absent(), Generation(0)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.fs.getattr(Ino(ino.0)) {
            Ok(attr) => reply.attr(&FOREVER, &file_attr(&attr)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.fs.readlink(Ino(ino.0)) {
            Ok(target) => reply.data(target),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn open(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.fs.open(Ino(ino.0)) {
            Ok(Open::Ready(_)) => reply.opened(FileHandle(0), OPENED),
            Ok(Open::Later(pending)) => {
                self.runtime.spawn(async move {
                    pending.await;
                    reply.opened(FileHandle(0), OPENED);
                });
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // Reading may start work on the runtime, which this thread is not one of.
        let _runtime = self.runtime.enter();
        match self.fs.read(Ino(ino.0), offset, size) {
            Ok(Read::Ready(bytes)) => reply.data(&bytes),
            Ok(Read::Later(pending)) => {
                self.runtime.spawn(async move {
                    match pending.await {
                        Ok(bytes) => reply.data(&bytes),
                        Err(error) => reply.error(logged(ino, &error)),
                    }
                });
            }
            Err(error) => reply.error(logged(ino, &error)),
        }
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.fs.release(Ino(ino.0));
        reply.ok();
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // With NO_OPENDIR_SUPPORT, ENOSYS tells the kernel to open directories itself, to keep their listings cached
        // and never to ask again.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let directory = match self.fs.directory(Ino(ino.0)) {
            Ok(directory) => directory,
            Err(error) => return reply.error(errno(&error)),
        };
        for entry in directory.entries(offset) {
            if reply.add(INodeNo(entry.ino.0), entry.next, kind(entry.file_type), OsStr::from_bytes(entry.name)) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let directory = match self.fs.directory(Ino(ino.0)) {
            Ok(directory) => directory,
            Err(error) => return reply.error(errno(&error)),
        };
        for entry in directory.entries(offset) {
            let attr = file_attr(&self.fs.attr_of_entry(&entry));
            let name = OsStr::from_bytes(entry.name);
            if reply.add(INodeNo(entry.ino.0), entry.next, name, &FOREVER, &attr, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let stat = self.fs.statfs();
        reply.statfs(stat.blocks, 0, 0, stat.files, 0, StatFs::BLOCK, StatFs::NAME, StatFs::BLOCK);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.fs.getxattr(Ino(ino.0), name.as_bytes()) {
            Ok(value) => sized(value, size, reply),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.fs.listxattr(Ino(ino.0)) {
            Ok(names) => sized(&names, size, reply),
            Err(error) => reply.error(errno(&error)),
        }
    }
}

/// Answers a request for a value of unknown length: its length if `size` is 0, the value if it fits, else ERANGE.
fn sized(value: &[u8], size: u32, reply: ReplyXattr) {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    match size {
        0 => reply.size(length),
        _ if length > size => reply.error(errno(&fs::Error::Range)),
        _ => reply.data(value),
    }
}

/// Reports a read that failed. The reader only gets EIO; why is in the log.
fn logged(ino: INodeNo, error: &fs::Error) -> Errno {
    tracing::error!(ino = ino.0, error = %crate::fs::Chain(error), "read failed");
    errno(error)
}

fn errno(error: &fs::Error) -> Errno {
    match error.errno() {
        fs::Errno::NoEntry => Errno::ENOENT,
        fs::Errno::NameTooLong => Errno::ENAMETOOLONG,
        fs::Errno::Stale => Errno::ESTALE,
        fs::Errno::NotDirectory => Errno::ENOTDIR,
        fs::Errno::Invalid => Errno::EINVAL,
        fs::Errno::NoData => Errno::ENODATA,
        fs::Errno::Range => Errno::ERANGE,
        fs::Errno::ReadOnly => Errno::EROFS,
        fs::Errno::Io => Errno::EIO,
    }
}

fn kind(file_type: FileType) -> fuser::FileType {
    match file_type {
        FileType::Directory => fuser::FileType::Directory,
        FileType::Regular => fuser::FileType::RegularFile,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::CharDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::Fifo => fuser::FileType::NamedPipe,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    let seconds = Duration::new(u64::try_from(attr.mtime.seconds).unwrap_or(0), attr.mtime.nanos);
    let mtime = SystemTime::UNIX_EPOCH.checked_add(seconds).unwrap_or(SystemTime::UNIX_EPOCH);
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: kind(attr.file_type),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device_number(attr.device),
        blksize: StatFs::BLOCK,
        flags: 0,
    }
}

/// The kernel's 32-bit encoding of a device number: 12 bits of major, 20 of minor (new_encode_dev in kdev_t.h).
fn device_number((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

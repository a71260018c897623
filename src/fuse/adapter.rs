//! Requests of the kernel in, replies out; nothing is decided here.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, Filesystem, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use tokio::runtime::Handle;

use super::io::Opens;
use super::killed;
use super::push::Pusher;
use super::requests::{Kind, Requests};
use super::wakeful::Pulse;
use crate::fs::{self, Attr, FileSystem, FileType, Ino, Open, Read, StatFs};

/// How long the kernel may keep what it was told. The tree never changes, so the only reason for an end is that the
/// kernel counts in jiffies and a larger value would overflow on some platforms.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Read requests that the kernel may have in flight in the background: as many as it can count.
///
/// It reads files into its pages in the background even where a reader waits, and keeps what is more than this to itself: then
/// the bytes that are here would wait behind those that a registry does not send. Nothing is lost by taking them all: each is
/// answered at once or becomes a task, and how many there are is bounded by the readers, of whom each has two.
const BACKGROUND: u16 = u16::MAX;

/// How deep the mount counts as stacked if files are passed through: their own file system is below it. The kernel stacks
/// two deep, so one overlay on top is possible, and a cache that is on an overlay itself is not.
const STACKED: u32 = 1;

/// How the kernel is told that a request has no answer here and never will have: it does without from then on.
const NEVER: Errno = Errno::ENOSYS;

/// One mount's file system as the FUSE crate calls it.
#[derive(Debug)]
pub(super) struct Adapter {
    pub(super) fs: Arc<FileSystem>,
    pub(super) runtime: Handle,
    /// Whether passthrough is to be asked of the kernel.
    pub(super) passthrough: bool,
    pub(super) shared: Arc<Shared>,
}

/// What the adapter shares with the mount it belongs to.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) requests: Requests,
    /// Beats with each of them.
    pub(super) pulse: Arc<Pulse>,
    /// What the kernel said when the connection began.
    pub(super) offer: OnceLock<Offer>,
    /// Gives the kernel what it will ask for; where files are cached.
    pub(super) pusher: OnceLock<Pusher>,
    /// Settled after that, before requests are taken.
    pub(super) opens: OnceLock<Arc<Opens>>,
}

/// What this kernel can do.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Offer {
    /// Pass files through; only looked at if it was wanted.
    pub(super) passthrough: bool,
    /// Open files by itself.
    pub(super) no_open: bool,
}

impl Shared {
    /// Takes note that the kernel was given bytes of a file.
    fn has_read(&self, ino: INodeNo, offset: u64, bytes: &[u8]) {
        if offset == 0
            && let Some(pusher) = self.pusher.get()
        {
            pusher.note(Ino(ino.0), bytes.len() as u64);
        }
    }

    /// Takes note that somebody has opened a file and waits for an answer about it.
    fn is_opened(&self, ino: INodeNo) {
        if let Some(pusher) = self.pusher.get() {
            pusher.opened(Ino(ino.0));
        }
    }
}

impl Adapter {
    fn count(&self, kind: Kind) {
        self.shared.requests.count(kind);
        self.shared.pulse.beat();
    }

    fn refuse(&self, reply: impl FnOnce()) {
        self.count(Kind::Refused);
        reply();
    }
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
        let offer = Offer {
            passthrough: self.passthrough
                && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
                && config.set_max_stack_depth(STACKED).is_ok(),
            no_open: config.add_capabilities(InitFlags::FUSE_NO_OPEN_SUPPORT).is_ok(),
        };
        self.shared.offer.get_or_init(|| offer);
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
        self.count(Kind::Lookup);
        match self.fs.lookup(Ino(parent.0), name.as_bytes()) {
            Ok(attr) => reply.entry(&FOREVER, &file_attr(&attr), Generation(0)),
            // Node 0 with a time-out is how the protocol says that a name does not exist and will not.
            Err(fs::Error::NotFound) => reply.entry(&FOREVER, &absent(), Generation(0)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Kind::Getattr);
        match self.fs.getattr(Ino(ino.0)) {
            Ok(attr) => reply.attr(&FOREVER, &file_attr(&attr)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        self.count(Kind::Readlink);
        match self.fs.readlink(Ino(ino.0)) {
            Ok(target) => reply.data(target),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn open(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Kind::Open);
        let Some(opens) = self.shared.opens.get().filter(|opens| !opens.kernel_opens()) else {
            // With NO_OPEN_SUPPORT, the kernel then opens and closes files itself, keeps their pages and never asks again.
            return reply.error(NEVER);
        };
        // Opening may start work on the runtime, which this thread is not one of.
        let _runtime = self.runtime.enter();
        match self.fs.open(Ino(ino.0)) {
            Ok(Open::Ready(backing)) => opens.answer(Ino(ino.0), &backing, reply),
            Ok(Open::Later(pending)) => {
                let opens = Arc::clone(opens);
                self.runtime.spawn(async move { opens.answer(Ino(ino.0), &pending.await, reply) });
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(Kind::Read);
        // Reading may start work on the runtime, which this thread is not one of.
        let _runtime = self.runtime.enter();
        match self.fs.read(Ino(ino.0), offset, size) {
            Ok(Read::Ready(bytes)) => {
                reply.data(&bytes);
                self.shared.has_read(ino, offset, &bytes);
            }
            Ok(Read::Later(pending)) => {
                let shared = Arc::clone(&self.shared);
                let reader = killed::waiting(request.pid(), flags);
                self.runtime.spawn(async move {
                    let outcome = tokio::select! {
                        outcome = pending => outcome,
                        () = killed::killed(reader) => return reply.error(Errno::EINTR),
                    };
                    match outcome {
                        Ok(bytes) => {
                            reply.data(&bytes);
                            shared.has_read(ino, offset, &bytes);
                        }
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
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Kind::Release);
        if let Some(opens) = self.shared.opens.get() {
            opens.release(Ino(ino.0), handle);
        }
        self.fs.release(Ino(ino.0));
        reply.ok();
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Kind::Opendir);
        // With NO_OPENDIR_SUPPORT, ENOSYS tells the kernel to open directories itself, to keep their listings cached
        // and never to ask again.
        reply.error(NEVER);
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.count(Kind::Readdir);
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
        self.count(Kind::Readdirplus);
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
        self.fs.listed(Ino(ino.0));
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.count(Kind::Statfs);
        let stat = self.fs.statfs();
        reply.statfs(stat.blocks, 0, 0, stat.files, 0, StatFs::BLOCK, StatFs::NAME, StatFs::BLOCK);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(Kind::Getxattr);
        if !self.fs.tree().has_xattrs() {
            // Nothing is cached of attributes: each exec and each `ls -l` would ask again.
            return reply.error(NEVER);
        }
        match self.fs.getxattr(Ino(ino.0), name.as_bytes()) {
            Ok(value) => sized(value, size, reply),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Kind::Listxattr);
        if !self.fs.tree().has_xattrs() {
            return reply.error(NEVER);
        }
        match self.fs.listxattr(Ino(ino.0)) {
            Ok(names) => sized(&names, size, reply),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn forget(&self, _request: &Request, _ino: INodeNo, _lookups: u64) {
        // Inode numbers are those of the tree, so nothing is kept for them.
        self.count(Kind::Forget);
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions itself.
        self.refuse(|| reply.error(NEVER));
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        self.refuse(|| reply.error(NEVER));
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _data: bool, reply: ReplyEmpty) {
        self.refuse(|| reply.error(NEVER));
    }

    fn fsyncdir(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _data: bool, reply: ReplyEmpty) {
        self.refuse(|| reply.error(NEVER));
    }

    fn ioctl(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _output: u32,
        reply: ReplyIoctl,
    ) {
        self.count(Kind::Ioctl);
        let _runtime = self.runtime.enter();
        // Languages ask of every file they open whether it is a terminal, and the kernel passes each question on. They
        // read it next.
        self.shared.is_opened(ino);
        reply.error(Errno::ENOTTY);
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        // The kernel then says that a file is all data up to its end, as its block count does, without asking again.
        self.refuse(|| reply.error(NEVER));
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

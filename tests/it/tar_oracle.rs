//! GNU tar and we agree about archives: what it writes from a directory, in every format and every encoding of holes, we
//! read as that directory; and what we write it unpacks to what we meant.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use ocifs::tar::{Entry, Kind, Parser, Segment, Sink, Timestamp, Writer, Xattr};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

/// Entries by path, with the bytes that followed them.
#[derive(Default)]
struct Seen {
    entries: Vec<(Entry, Vec<u8>)>,
}

impl Sink for Seen {
    fn entry(&mut self, entry: Entry) {
        self.entries.push((entry, Vec::new()));
    }

    fn data(&mut self, bytes: &[u8]) {
        self.entries.last_mut().expect("data follows an entry").1.extend_from_slice(bytes);
    }
}

fn parse(stream: &[u8]) -> anyhow::Result<Vec<(Entry, Vec<u8>)>> {
    let mut seen = Seen::default();
    let mut parser = Parser::new();
    for piece in stream.chunks(1000) {
        parser.push(piece, &mut seen)?;
    }
    parser.finish()?;
    Ok(seen.entries)
}

/// How exact a format is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Times {
    Seconds,
    Nanoseconds,
}

/// Runs GNU tar; none if there is none, which is an error in CI.
fn tar(arguments: &[&str], directory: &Path, input: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
    let mut command = Command::new("tar");
    command.args(arguments).current_dir(directory).env("LC_ALL", "C");
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == io::ErrorKind::NotFound && std::env::var_os("CI").is_none() => {
            eprintln!("SKIPPED: tar is not installed");
            return Ok(None);
        }
        spawned => spawned.context("tar")?,
    };
    child.stdin.take().context("a pipe")?.write_all(input)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "tar {arguments:?}: {}", output.status);
    Ok(Some(output.stdout))
}

/// Everything that every format can say.
fn populate(root: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(root.join("d/e"))?;
    fs::write(root.join("d/empty"), b"")?;
    fs::write(root.join("d/block"), [b'b'; 512])?;
    fs::write(root.join("d/odd"), [b'o'; 10_241])?;
    fs::write(root.join(OsStr::from_bytes(b"d/\xff\xfe \n\\")), b"bytes")?;
    fs::write(root.join("d/suid"), b"#!")?;
    fs::set_permissions(root.join("d/suid"), Permissions::from_mode(0o4751))?;
    fs::set_permissions(root.join("d/e"), Permissions::from_mode(0o1777))?;
    fs::hard_link(root.join("d/odd"), root.join("d/second"))?;
    symlink("../nowhere/at all", root.join("d/e/link"))?;
    rustix::fs::mknodat(CWD, root.join("d/fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    if rustix::process::geteuid().is_root() {
        let device = rustix::fs::makedev(7, 300);
        rustix::fs::mknodat(CWD, root.join("d/device"), FileType::BlockDevice, Mode::from_raw_mode(0o600), device)?;
        std::os::unix::fs::lchown(root.join("d/block"), Some(70_000), Some(123))?;
    }
    File::open(root.join("d/block"))?
        .set_modified(SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 987_654_321))?;
    Ok(())
}

/// What takes a longer name than the oldest formats have.
fn populate_long(root: &Path) -> anyhow::Result<()> {
    let mut directory = root.join("long");
    for letter in ["a", "b", "c"] {
        directory.push(letter.repeat(150));
    }
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("n".repeat(255)), b"long name")?;
    symlink("t".repeat(1000), directory.join("link"))?;
    fs::hard_link(directory.join("n".repeat(255)), root.join("long/again"))?;
    Ok(())
}

/// Files with holes: at the end only, few regions, more than a header or one extension block holds.
fn populate_sparse(root: &Path) -> anyhow::Result<()> {
    fs::create_dir(root.join("sparse"))?;
    for regions in [0, 1, 3, 4, 5, 25, 26, 100] {
        let file = File::create(root.join(format!("sparse/{regions}")))?;
        for region in 0..regions {
            file.write_all_at(format!("region {region}").as_bytes(), (region * 2 + 1) * 65_536)?;
        }
        file.set_len(regions * 2 * 65_536 + 200_001)?;
    }
    Ok(())
}

/// Every path below `root`, relative to it; the root itself as an empty one.
fn walk(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    let mut next = 0;
    while let Some(relative) = found.get(next).cloned() {
        let path = root.join(&relative);
        if fs::symlink_metadata(&path)?.is_dir() {
            for child in fs::read_dir(&path)? {
                found.push(relative.join(child?.file_name()));
            }
        }
        next += 1;
    }
    Ok(found)
}

fn content(size: u64, segments: &[Segment], data: &[u8]) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(size).expect("small")];
    let mut rest = data;
    for segment in segments {
        let (bytes, later) = rest.split_at(segment.length as usize);
        content[segment.file_offset as usize..][..bytes.len()].copy_from_slice(bytes);
        rest = later;
    }
    content
}

/// Fails unless the entries are what is in the directory: nothing less, nothing more, nothing different.
fn compare(entries: &[(Entry, Vec<u8>)], root: &Path, times: Times) -> anyhow::Result<()> {
    let by_path: BTreeMap<_, _> = entries.iter().map(|(entry, data)| (&entry.path[..], (entry, data))).collect();
    let found = walk(root)?;
    ensure!(by_path.len() == entries.len() && found.len() == entries.len(), "{} for {}", entries.len(), found.len());
    for relative in found {
        let path = root.join(&relative);
        let (entry, data) = by_path.get(relative.as_os_str().as_bytes()).with_context(|| path.display().to_string())?;
        compare_one(entry, data, &path, root, times).with_context(|| format!("{entry:?}"))?;
    }
    Ok(())
}

fn compare_one(entry: &Entry, data: &[u8], path: &Path, root: &Path, times: Times) -> anyhow::Result<()> {
    let stat = fs::symlink_metadata(path)?;
    let kind = stat.file_type();
    let device = |major, minor| stat.rdev() == rustix::fs::makedev(major, minor);
    let is_equal = match &entry.kind {
        Kind::Directory => kind.is_dir(),
        Kind::Regular { size, segments, .. } => kind.is_file() && fs::read(path)? == content(*size, segments, data),
        Kind::Symlink { target } => kind.is_symlink() && fs::read_link(path)?.into_os_string().into_vec() == *target,
        Kind::HardLink { target } => fs::symlink_metadata(root.join(OsStr::from_bytes(target)))?.ino() == stat.ino(),
        Kind::CharDevice { major, minor } => kind.is_char_device() && device(*major, *minor),
        Kind::BlockDevice { major, minor } => kind.is_block_device() && device(*major, *minor),
        Kind::Fifo => kind.is_fifo(),
        Kind::Whiteout | Kind::Opaque => false,
    };
    ensure!(is_equal, "another kind or content");
    ensure!(u32::from(entry.mode) == stat.mode() & 0o7777, "mode {:o}", stat.mode());
    ensure!((entry.uid, entry.gid) == (stat.uid(), stat.gid()), "owner {} {}", stat.uid(), stat.gid());
    let nanos = if times == Times::Nanoseconds { stat.mtime_nsec() } else { 0 };
    let is_time = entry.mtime.seconds == stat.mtime() && i64::from(entry.mtime.nanos) == nanos;
    ensure!(is_time, "time {} {}", stat.mtime(), stat.mtime_nsec());
    for Xattr { name, value } in &entry.xattrs {
        let mut buffer = [0; 100];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut buffer)?;
        ensure!(buffer[..length] == value[..], "attribute");
    }
    Ok(())
}

#[test]
fn a_157_what_gnu_tar_writes_in_any_format_is_read_as_the_directory_it_came_from() -> anyhow::Result<()> {
    for (format, times) in [
        ("v7", Times::Seconds),
        ("ustar", Times::Seconds),
        ("oldgnu", Times::Seconds),
        ("gnu", Times::Seconds),
        ("pax", Times::Nanoseconds),
    ] {
        let root = tempfile::tempdir()?;
        populate(root.path())?;
        match format {
            // Version 7 knew no special files, and neither of them long names.
            "v7" => fs::remove_file(root.path().join("d/fifo"))?,
            "ustar" => {}
            _ => populate_long(root.path())?,
        }
        if format == "v7" && root.path().join("d/device").try_exists()? {
            fs::remove_file(root.path().join("d/device"))?;
        }
        let format = format!("--format={format}");
        let Some(stream) = tar(&["-c", &format, "."], root.path(), b"")? else { return Ok(()) };
        compare(&parse(&stream)?, root.path(), times).context(format)?;
    }
    Ok(())
}

#[test]
fn a_163_a_164_what_gnu_tar_writes_of_sparse_files_is_read_as_the_files() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    populate_sparse(root.path())?;
    for format in [
        &["--format=oldgnu"][..],
        &["--format=gnu"],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let arguments = [&["-c", "-S", "--hole-detection=raw", "."][..], format].concat();
        let Some(stream) = tar(&arguments, root.path(), b"")? else { return Ok(()) };
        let times = if format[0] == "--format=pax" { Times::Nanoseconds } else { Times::Seconds };
        let entries = parse(&stream)?;
        compare(&entries, root.path(), times).with_context(|| format!("{format:?}"))?;
        let has_holes = |(entry, _): &(Entry, Vec<u8>)| matches!(&entry.kind, Kind::Regular { segments, .. } if segments.len() > 25);
        ensure!(entries.iter().any(has_holes), "{format:?} was not tested, the file system keeps no holes");
    }
    Ok(())
}

#[test]
fn a_131_a_132_attributes_that_gnu_tar_writes_are_read() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let file = root.path().join("file");
    fs::write(&file, b"content")?;
    if rustix::fs::setxattr(&file, "user.origin", b"\0 =\n\xff", XattrFlags::empty()).is_err() {
        eprintln!("SKIPPED: the file system has no user attributes");
        return Ok(());
    }
    let Some(stream) = tar(&["-c", "--xattrs", "--format=pax", "file"], root.path(), b"")? else { return Ok(()) };
    let entries = parse(&stream)?;
    assert_eq!(entries[0].0.xattrs, [Xattr { name: b"user.origin".to_vec(), value: b"\0 =\n\xff".to_vec() }]);
    Ok(())
}

/// A member with attributes that tell it from others.
fn member(path: &str, kind: Kind, number: u32) -> Entry {
    let mtime = Timestamp { seconds: 1_000_000_000 + i64::from(number), nanos: number * 1001 };
    let (uid, gid) = if rustix::process::geteuid().is_root() {
        (number * 100_000, number * 3_000_000)
    } else {
        (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
    };
    let mode = if matches!(kind, Kind::Symlink { .. }) { 0o777 } else { 0o640 | (number as u16 & 0o7) };
    Entry { path: path.as_bytes().to_vec(), kind, mode, uid, gid, mtime, xattrs: Vec::new() }
}

#[test]
fn what_we_write_gnu_tar_unpacks_to_what_we_meant() -> anyhow::Result<()> {
    let file = |size| Kind::Regular { size, segments: Vec::new(), content: None };
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let mut entries = vec![
        member("", Kind::Directory, 1),
        member(&"d".repeat(200), Kind::Directory, 2),
        member(&long, file(1000), 3),
        member("l", Kind::Symlink { target: vec![b't'; 300] }, 4),
        member("empty", file(0), 5),
        member("fifo", Kind::Fifo, 6),
    ];
    if rustix::process::geteuid().is_root() {
        entries.push(member("device", Kind::CharDevice { major: 200, minor: 70_000 }, 7));
    }
    let mut writer = Writer::new(Vec::new());
    for entry in &entries {
        writer.append(entry, io::repeat(b'x'))?;
    }
    // A hard link has the attributes of its target.
    let link =
        Entry { path: b"hard".to_vec(), kind: Kind::HardLink { target: long.into_bytes() }, ..entries[2].clone() };
    writer.append(&link, io::empty())?;
    entries.push(link);
    let stream = writer.finish()?;

    let root = tempfile::tempdir()?;
    if tar(&["-xp", "--delay-directory-restore"], root.path(), &stream)?.is_none() {
        return Ok(());
    }
    let expected: Vec<_> = entries.into_iter().map(with_content).collect();
    compare(&expected, root.path(), Times::Nanoseconds)
}

/// The entry as a parser would give it, and its content.
fn with_content(mut entry: Entry) -> (Entry, Vec<u8>) {
    let mut data = Vec::new();
    if let Kind::Regular { size, segments, .. } = &mut entry.kind
        && *size > 0
    {
        segments.push(Segment { file_offset: 0, layer_offset: 0, length: *size });
        data = vec![b'x'; *size as usize];
    }
    (entry, data)
}

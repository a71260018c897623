//! Random layer stacks unpacked by Debian's umoci give the tree that we merge.
//!
//! umoci is the reference for the sequential model (reference/cases.md, section 0). Each stack is written as tar layers
//! of a real image layout and unpacked as root; types, modes, owners, times, contents, links, extended attributes and
//! devices are compared. What the generator leaves out, because the cases decide otherwise than umoci 0.4.7:
//!
//! - a file where a parent directory is needed: umoci fails, newer ones replace the file as we do (A-063 to A-065);
//! - the time of directories without an entry, and of those in which one was made: umoci leaves the time of unpacking
//!   (A-073, A-074), or of the root the epoch; neither is among the generated times;
//! - root-level names `.wh..wh.*`, which umoci leaves visible (A-035), and whiteouts of `.` and `..`, with which it
//!   removes what it should not (A-032): names are letters only;
//! - times before the epoch (A-121), empty attribute values (A-137), attributes that we do not serve (A-132 to A-135);
//! - global headers and old GNU sparse files, which umoci rejects (A-162, A-164): our writer makes neither.
//!
//! `OCIFS_TEST_STACKS=N` compares N stacks that differ from run to run.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ocifs::oci::Digest;
use ocifs::tar::Timestamp;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use rustix::fs::{lgetxattr, llistxattr, major, minor};
use serde_json::json;

use crate::merge_model::{Model, Seen, Stack, Verdict, View, What, merge, stacks, streams, view, without};
use crate::support::{require, require_root, temp_dir};

/// What umoci cannot do, or what nobody should.
const LEFT_OUT: [Verdict; 2] = [Verdict::AppliedThroughFile, Verdict::Rejected];

/// Generated times are before this, the time of unpacking is after it.
const LAST_GENERATED: i64 = 1_600_000_000;

#[test]
fn random_stacks_unpack_as_umoci_unpacks_them() {
    run(500, |stack, directory| {
        let stack = without(stack, &LEFT_OUT);
        (differs(&stack, directory)).map(|difference| (smallest(stack, directory), difference))
    });
}

#[test]
fn what_umoci_rejects_is_rejected() {
    run(150, |stack, directory| {
        let stack = until_rejected(stack)?;
        let streams = streams(&stack);
        let ours = merge(&streams).is_err();
        let theirs = unpack(&streams, directory).is_err();
        (!ours || !theirs).then(|| (stack, format!("rejected by us: {ours}, by umoci: {theirs}")))
    });
}

/// Gives as many stacks to `check`, which returns a stack and what is wrong with it.
fn run(count: usize, check: impl Fn(&Stack, &Path) -> Option<(Stack, String)> + Sync) {
    if !require(&["umoci"]) || !require_root() {
        return;
    }
    let asked = std::env::var("OCIFS_TEST_STACKS").ok().and_then(|text| text.parse().ok());
    let mut runner = if asked.is_some() { TestRunner::default() } else { TestRunner::deterministic() };
    let stacks: Vec<Stack> = (0..asked.unwrap_or(count))
        .map(|_| stacks().new_tree(&mut runner).expect("nothing is filtered").current())
        .collect();
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let directory = temp_dir();
                while let Some(stack) = stacks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(found) = check(stack, directory.path()) {
                        next.store(stacks.len(), Ordering::Relaxed);
                        *failure.lock().expect("no panic while it was held") = Some(found);
                    }
                }
            });
        }
    });
    if let Some((stack, difference)) = failure.into_inner().expect("no panic while it was held") {
        panic!("{difference}\nstack:\n{}", shown(&stack));
    }
}

/// The stack up to its first rejected entry, without what umoci cannot do.
fn until_rejected(stack: &Stack) -> Option<Stack> {
    let stack = without(stack, &[Verdict::AppliedThroughFile]);
    let mut model = Model::new();
    for (number, layer) in stack.iter().enumerate() {
        model.begin_layer();
        if let Some(position) = layer.iter().position(|item| model.apply(item) == Verdict::Rejected) {
            let mut start = stack[..number].to_vec();
            start.push(layer[..=position].to_vec());
            return Some(start);
        }
    }
    None
}

/// What is different between our tree and umoci's, if anything is.
fn differs(stack: &Stack, directory: &Path) -> Option<String> {
    let streams = streams(stack);
    let ours = match merge(&streams) {
        Ok(tree) => view(&tree, &streams),
        Err(error) => return Some(format!("rejected by us: {error}")),
    };
    let mut theirs = match unpack(&streams, directory) {
        Ok(theirs) => theirs,
        Err(message) => return Some(format!("rejected by umoci: {message}")),
    };
    for (path, theirs) in &mut theirs {
        let is_generated = theirs.mtime.is_some_and(|mtime| (1..=LAST_GENERATED).contains(&mtime.seconds));
        if let (What::Directory, false, Some(ours)) = (&theirs.what, is_generated, ours.get(path)) {
            theirs.mtime = ours.mtime;
        }
    }
    let paths = ours.keys().chain(theirs.keys());
    let different = paths.clone().find(|path| ours.get(*path) != theirs.get(*path))?;
    Some(format!("{different:?}\n ours: {:?}\numoci: {:?}", ours.get(different), theirs.get(different)))
}

/// Leaves out entries as long as the stack still differs.
fn smallest(mut stack: Stack, directory: &Path) -> Stack {
    let mut changed = true;
    while std::mem::take(&mut changed) {
        for layer in (0..stack.len()).rev() {
            for position in (0..stack[layer].len()).rev() {
                let mut smaller = stack.clone();
                smaller[layer].remove(position);
                if without(&smaller, &LEFT_OUT) == smaller && differs(&smaller, directory).is_some() {
                    stack = smaller;
                    changed = true;
                }
            }
        }
    }
    stack
}

fn shown(stack: &Stack) -> String {
    let layer = |(number, layer): (usize, &Vec<_>)| {
        let entries = layer.iter().map(|(entry, _): &(ocifs::tar::Entry, Vec<u8>)| format!("  {entry:?}\n"));
        format!("layer {number}\n{}", entries.collect::<String>())
    };
    stack.iter().enumerate().map(layer).collect()
}

/// Unpacks layers with umoci and looks at the result.
fn unpack(streams: &[Vec<u8>], directory: &Path) -> Result<View, String> {
    let (layout, rootfs) = (directory.join("layout"), directory.join("rootfs"));
    for old in [&layout, &rootfs] {
        if old.exists() {
            fs::remove_dir_all(old).expect("the directory of the last stack is ours");
        }
    }
    write_layout(&layout, streams);
    let image = format!("{}:t", layout.display());
    let output = Command::new("umoci").args(["raw", "unpack", "--image", &image]).arg(&rootfs).output();
    let output = output.expect("umoci runs");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let mut all = vec![String::new()];
    let mut next = 0;
    while let Some(path) = all.get(next).cloned() {
        next += 1;
        let full = rootfs.join(&path);
        if fs::symlink_metadata(&full).expect("it was listed").is_dir() {
            for entry in fs::read_dir(&full).expect("we are root") {
                let name = entry.expect("we are root").file_name().into_string().expect("names are letters");
                all.push(if path.is_empty() { name } else { format!("{path}/{name}") });
            }
        }
    }
    all.sort();
    let mut inodes = std::collections::HashMap::new();
    Ok(all
        .into_iter()
        .map(|path| {
            let full = rootfs.join(&path);
            let number = fs::symlink_metadata(&full).expect("it was listed").ino();
            let inode = inodes.entry(number).or_insert(path.clone()).clone();
            (path, seen(&full, inode))
        })
        .collect())
}

fn seen(path: &Path, inode: String) -> Seen {
    let stat = fs::symlink_metadata(path).expect("it was listed");
    let device = || (major(stat.rdev()), minor(stat.rdev()));
    let what = match stat.mode() & 0o170_000 {
        0o040_000 => What::Directory,
        0o100_000 => What::Regular(fs::read(path).expect("we are root")),
        0o120_000 => What::Symlink(fs::read_link(path).expect("a link").as_os_str().as_bytes().to_vec()),
        0o020_000 => What::CharDevice(device().0, device().1),
        0o060_000 => What::BlockDevice(device().0, device().1),
        0o010_000 => What::Fifo,
        other => unreachable!("no layer makes type {other:o}"),
    };
    let mtime = Timestamp { seconds: stat.mtime(), nanos: stat.mtime_nsec() as u32 };
    let mode = (stat.mode() & 0o7777) as u16;
    Seen { what, mode, uid: stat.uid(), gid: stat.gid(), mtime: Some(mtime), xattrs: xattrs(path), inode }
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let length = llistxattr(path, &mut names[..]).expect("the file system has extended attributes");
    let names = names[..length].split(|&byte| byte == 0).filter(|name| name.starts_with(b"user."));
    let mut all: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 4096];
            let length = lgetxattr(path, name, &mut value[..]).expect("it was listed");
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect();
    all.sort();
    all
}

/// Writes an image of plain tar layers, tagged `t`.
fn write_layout(layout: &Path, streams: &[Vec<u8>]) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("the directory is ours");
    let blob = |media_type: &str, bytes: &[u8]| {
        let digest = Digest::sha256(bytes);
        fs::write(blobs.join(digest.hex()), bytes).expect("the directory is ours");
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    };
    let layers: Vec<_> = streams.iter().map(|stream| blob("application/vnd.oci.image.layer.v1.tar", stream)).collect();
    let diff_ids: Vec<_> = streams.iter().map(|stream| Digest::sha256(stream).to_string()).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": streams.iter().map(|_| json!({ "created_by": "test" })).collect::<Vec<_>>(),
    });
    let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers }).to_string();
    let mut manifest = blob("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "t" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string();
    fs::write(layout.join("index.json"), index).expect("the directory is ours");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("the directory is ours");
}

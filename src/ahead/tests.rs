//! An image of one layer, served from memory: which spans are asked for, and in which order.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::elf::Elf;
use crate::fetch::Options;
use crate::index::{Claim, ClaimedSpan, Expected, LayerIndex, SpanDigest, Start, Times, build};
use crate::limits::AHEAD_PATH_BYTES;
use crate::oci::Digest;
use crate::profile::{Access, Origin};
use crate::source::{self, BlobReader, BoxFuture, ByteStream};
use crate::store::Store;
use crate::tar::{Entry, Kind, Timestamp, Writer};
use crate::tree::Merger;

/// A blob in memory, of which some bytes may be kept back.
#[derive(Debug)]
struct Memory(Bytes, Mutex<Range<u64>>);

impl BlobReader for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, source::Error>> {
        let kept = self.1.lock().expect("no test panics with it").clone();
        if range.start < kept.end && kept.start < range.end {
            return Box::pin(std::future::pending());
        }
        let bytes = self.0.slice(range.start as usize..range.end as usize);
        Box::pin(async move { Ok(Box::pin(futures_util::stream::iter([Ok(bytes)])) as ByteStream) })
    }
}

struct Scene {
    files: Files,
    tar: Bytes,
    _cache: TempDir,
}

/// Something in the image: a file with its content, or a link.
enum Item<'a> {
    File(&'a [u8]),
    Link(&'a str),
    Device,
}

fn scene(items: &[(&str, Item<'_>)]) -> Scene {
    let mut writer = Writer::new(Vec::new());
    for (path, item) in items {
        let (kind, content): (_, &[u8]) = match item {
            Item::File(content) => {
                (Kind::Regular { size: content.len() as u64, segments: Vec::new(), content: None }, content)
            }
            Item::Link(target) => (Kind::Symlink { target: target.as_bytes().to_vec() }, &[]),
            Item::Device => (Kind::BlockDevice { major: 8, minor: 0 }, &[]),
        };
        let mtime = Timestamp { seconds: 0, nanos: 0 };
        let entry = Entry { path: (*path).into(), kind, mode: 0o755, uid: 0, gid: 0, mtime, xattrs: Vec::new() };
        writer.append(&entry, content).expect("written to memory");
    }
    let tar = Bytes::from(writer.finish().expect("written to memory"));
    let digest = Digest::sha256(&tar);
    let expected = Expected { layer: digest, size: tar.len() as u64, diff_id: digest };
    let pieces = std::iter::once(Ok::<_, std::convert::Infallible>(tar.clone()));
    let index = build(pieces, expected).expect("a good layer");
    let mut merger = Merger::new();
    merger.layer(Some(digest), index.entries()).expect("a good layer");
    let tree = Tree::open(Bytes::from(merger.finish())).expect("a good tree");
    let cache = tempfile::tempdir().expect("a temporary directory");
    let store = Arc::new(Store::open(&cache.path().join("cache")).expect("a new store"));
    let blob = store.blob(&digest, expected.size).expect("a new blob");
    let reader = Arc::new(Memory(tar.clone(), Mutex::default()));
    let layer = Layer::new(index, blob, Some(reader), "memory", store.scratch());
    let files = Files { tree, layers: vec![Arc::new(layer)], fetcher: Fetcher::new(Options::default()), store };
    Scene { files, tar, _cache: cache }
}

fn image_config(config: &str) -> ImageConfig {
    let text = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":[]}},"config":{config}}}"#
    );
    ImageConfig::parse(text.as_bytes()).expect("a configuration")
}

impl Scene {
    /// The files of which all bytes are here.
    fn local(&self, paths: &[&str]) -> Vec<bool> {
        let is_local = |path: &&str| {
            let node = self.files.tree.resolve(path.as_bytes(), true).expect("it is in the image");
            let extents: Vec<_> = self.files.tree.node(node).extents().collect();
            extents.iter().all(|extent| {
                let layer = &self.files.layers[extent.layer as usize];
                let mut spans = layer.index.spans(extent.layer_offset..extent.layer_offset + extent.length);
                spans.all(|span| layer.blob.missing(layer.index.compressed(span)).is_empty())
            })
        };
        paths.iter().map(is_local).collect()
    }

    /// The SHA-256 of a file's content.
    fn content(&self, path: &str) -> [u8; 32] {
        let node = self.files.tree.resolve(path.as_bytes(), false).expect("it is there");
        *self.files.tree.node(node).content().expect("a file has a digest")
    }

    async fn run(&self, config: &str, profile: Option<&Profile>) -> Progress {
        let config = image_config(config);
        let progress = Progress::default();
        run(&self.files, &config, profile, &progress).await;
        assert!(progress.is_done());
        progress
    }

    fn session(&self) -> Session<'_> {
        Session::new(&self.files, Box::leak(Box::default()))
    }

    async fn plan(&self, profile: &Profile) -> Vec<u32> {
        let session = self.session();
        replay::plan(&session, profile).await.0.iter().map(|(_, span)| span.get()).collect()
    }

    /// The same layer with an index that knows nothing of dependencies, such as other tools make.
    fn without_dependencies(self) -> Self {
        with_landmark(self, u64::MAX)
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn profile(accesses: &[(&[u8], u64, u64)]) -> Profile {
    let origin = Origin { image: Digest::sha256(b""), recorded: 0, mount: "/m".into() };
    Profile::new(origin, accesses.iter().filter_map(|(path, start, end)| Access::new(path.to_vec(), *start, *end)))
}

/// Publishes a decoded copy of a file.
fn publish(store: &Store, content: &[u8; 32], bytes: &[u8]) {
    let file = store.new_file(content, bytes.len() as u64).expect("a new file");
    file.write(0, bytes).expect("written");
    file.publish().expect("the digest is right");
}

fn big(seed: u8) -> Vec<u8> {
    vec![seed; 3 << 20]
}

#[tokio::test]
async fn a_profile_is_replayed_in_its_order_and_each_span_once() {
    let (a, b) = (big(1), big(2));
    let scene = scene(&[("a", Item::File(&a)), ("b", Item::File(&b))]);
    let all = scene.files.layers[0].index.span_count();
    let plan =
        scene.plan(&profile(&[(b"b", 2 << 20, 3 << 20), (b"a", 0, 100), (b"b", 0, 3 << 20), (b"a", 50, 200)])).await;
    let (of_a, of_b): (Vec<u32>, Vec<u32>) = (vec![0], plan.iter().copied().filter(|span| *span > 0).collect());
    assert_eq!(of_b.iter().collect::<HashSet<_>>().len(), of_b.len(), "{plan:?}");
    let first = plan.iter().position(|span| *span == 0).expect("the start of a");
    assert!(first > 0 && first < plan.len() - 1, "between the end of b and its start: {plan:?}");
    assert_eq!(of_a.len() + of_b.len(), plan.len());
    assert!(plan[..first].iter().min() > plan[first + 1..].iter().max(), "{plan:?} of {all}");
}

#[tokio::test]
async fn what_a_foreign_profile_names_is_passed_over() {
    let content = big(1);
    let items =
        [("d/a", Item::File(&content)), ("link", Item::Link("d/a")), ("disk", Item::Device), ("l", Item::Link("l"))];
    let scene = scene(&items);
    let far = i64::MAX as u64;
    for (path, start, end) in [
        (&b"nothing"[..], 0, 10),
        (b"d", 0, 10),
        (b"link", 0, 10),
        (b"disk", 0, 10),
        (b"l/x", 0, 10),
        (b"d/a/x", 0, 10),
        (b"d/\xff", 0, 10),
        (b"d/a", far - 1, far),
        (b"d/a", 3 << 20, far),
    ] {
        assert_eq!(scene.plan(&profile(&[(path, start, end)])).await, [0_u32; 0], "{}", path.escape_ascii());
    }
    let all: Vec<u32> = (0..scene.files.layers[0].index.span_count()).collect();
    assert_eq!(scene.plan(&profile(&[(b"d/a", 0, far)])).await[..], all[..], "beyond the end is cut");
}

#[tokio::test]
async fn no_profile_fetches_more_than_half_of_a_large_image() {
    let contents: Vec<_> = (0..3).map(|seed| vec![seed; 50 << 20]).collect();
    let scene =
        scene(&[("a", Item::File(&contents[0])), ("b", Item::File(&contents[1])), ("c", Item::File(&contents[2]))]);
    let all = profile(&[(b"a", 0, 1 << 40), (b"b", 0, 1 << 40), (b"c", 0, 1 << 40)]);
    let index = &scene.files.layers[0].index;
    let (spans, total) = (scene.plan(&all).await, index.compressed_size());
    let fraction = spans.len() as f64 / f64::from(index.span_count());
    assert!((0.4..=0.5).contains(&fraction), "{fraction} of {total}");
}

/// The same layer with another tool's index of it, in which a landmark is at `prefetch_end`.
fn with_landmark(mut scene: Scene, prefetch_end: u64) -> Scene {
    let own = Arc::clone(&scene.files.layers[0]);
    let (truth, size) = (&own.index, scene.tar.len() as u64);
    let span = |start: u64| {
        let range = start..size.min(start + (1 << 20));
        let bytes = &scene.tar[range.start as usize..range.end as usize];
        ClaimedSpan {
            compressed: range.clone(),
            bit: 0,
            skip: 0,
            length: range.end - range.start,
            start: Start::Fresh,
            digest: SpanDigest::Decoded(Digest::sha256(bytes).bytes().try_into().expect("32 bytes")),
        }
    };
    let claim = Claim {
        compression: truth.compression(),
        entries: truth.entries().collect::<Result<_, _>>().expect("a good index"),
        spans: (0..size).step_by(1 << 20).map(span).collect(),
        uncompressed_size: size,
        fidelity: Times::Exact,
        prefetch_end: Some(prefetch_end),
    };
    let expected = Expected { layer: truth.layer(), size, diff_id: truth.diff_id() };
    let index = LayerIndex::claimed(&expected, claim).expect("it is well-formed");
    let scratch = crate::store::Scratch::new(scene._cache.path().join("cache/tmp"));
    let layer = Layer::new(index, Arc::clone(&own.blob), own.reader.clone(), "memory", scratch);
    scene.files.layers = vec![Arc::new(layer)];
    scene
}

#[tokio::test]
async fn what_lies_before_a_landmark_is_fetched_where_there_is_no_profile() {
    let contents = [big(1), big(2), big(3)];
    let items: Vec<_> = ["a", "b", "c"].into_iter().zip(contents.iter().map(|content| Item::File(content))).collect();
    let marked = || with_landmark(scene(&items), 7 << 20);
    let unprofiled = marked();
    let progress = unprofiled.run("{}", None).await;
    assert_eq!((progress.reason(), progress.replayed_spans()), (Some(Reason::Landmark), 7));
    assert_eq!(unprofiled.local(&["a", "b", "c"]), [true, true, false]);

    let profiled = marked();
    let progress = profiled.run("{}", Some(&profile(&[(b"c", 0, 3 << 20)]))).await;
    assert_eq!(progress.reason(), Some(Reason::Profile));
    assert_eq!(profiled.local(&["a", "b", "c"]), [false, false, true]);

    // One at the end, or none, says nothing.
    let nothing = with_landmark(scene(&items), u64::MAX);
    assert_eq!(nothing.run("{}", None).await.reason(), None);
    assert_eq!(scene(&items).run("{}", None).await.reason(), None);
}

/// An image with the shell of this host and everything that it needs, and the paths of all of that.
fn shell() -> (Vec<(String, Vec<u8>)>, Vec<String>) {
    let read = |path: &str| std::fs::read(path).expect("a file of this host");
    let shell = std::fs::canonicalize("/bin/sh").expect("there is a shell");
    let shell = shell.to_str().expect("a plain path").to_owned();
    let elf = Elf::read(&std::fs::File::open(&shell).expect("it is there")).expect("it is a program");
    let mut paths = vec![shell];
    if let Some(interpreter) = &elf.interpreter {
        paths.push(String::from_utf8(interpreter.clone()).expect("a plain path"));
        let defaults = crate::elf::default_directories(elf.machine, interpreter);
        for name in &elf.needed {
            let places = defaults
                .iter()
                .map(|dir| format!("{}/{}", String::from_utf8_lossy(dir), String::from_utf8_lossy(name)));
            paths.extend(places.into_iter().find(|place| std::path::Path::new(place).is_file()));
        }
    }
    (paths.iter().map(|path| (path.clone(), read(path))).collect(), paths)
}

#[tokio::test]
async fn a_script_leads_to_its_interpreter_and_that_to_its_libraries() {
    let (files, paths) = shell();
    let (script, other) = (format!("#! {} -e\nexec app\n", paths[0]), big(7));
    let mut items: Vec<(&str, Item<'_>)> = vec![("opt/run", Item::File(script.as_bytes()))];
    items.push(("big-1", Item::File(&other)));
    items.extend(files.iter().map(|(path, content)| (path.trim_start_matches('/'), Item::File(content))));
    items.push(("big-2", Item::File(&other)));
    let wanted: Vec<&str> = paths.iter().map(String::as_str).chain(["opt/run"]).collect();
    for scene in [scene(&items), scene(&items).without_dependencies()] {
        let progress = scene.run(r#"{"Entrypoint":["run","--flag"],"Env":["PATH=/none:/opt"]}"#, None).await;
        assert_eq!(progress.reason(), Some(Reason::EntryPoint));
        assert!(progress.entry_point_spans() > 0 && progress.replayed_spans() == 0);
        assert!(scene.local(&wanted).iter().all(|local| *local), "{wanted:?}: {:?}", scene.local(&wanted));
        assert_eq!(scene.local(&["big-1", "big-2"]), [false, false]);
    }
}

#[tokio::test]
async fn words_of_the_command_line_that_are_files_are_fetched() {
    let content = big(1);
    let items = [
        ("app/main.py", Item::File(b"print()")),
        ("pad-1", Item::File(&content)),
        ("usr/bin/tool", Item::File(b"#!/usr/bin/env -S A=1 inner\n")),
        ("pad-2", Item::File(&content)),
        ("usr/bin/real", Item::File(b"data")),
        ("usr/bin/env", Item::File(b"env")),
        ("pad-3", Item::File(&content)),
        ("bin", Item::Link("usr/bin")),
        ("usr/bin/inner", Item::Link("/bin/../bin/real")),
    ];
    let scene = scene(&items);
    scene.run(r#"{"Cmd":["/bin/sh","-c","X=1 exec \"tool\" ./main.py --nothing"],"WorkingDir":"/app"}"#, None).await;
    let found = scene.local(&["app/main.py", "usr/bin/tool", "usr/bin/real", "usr/bin/env"]);
    assert_eq!(found, [true; 4]);
    assert_eq!(scene.local(&["pad-1", "pad-2", "pad-3"]), [false; 3]);
}

#[tokio::test]
async fn the_entry_point_follows_a_profile_that_does_not_know_it() {
    let content = big(1);
    let items = [
        ("app", Item::File(b"program")),
        ("pad-1", Item::File(&content)),
        ("etc/motd", Item::File(b"hello")),
        ("pad-2", Item::File(&content)),
    ];
    let looked = profile(&[(b"etc/motd", 0, 5)]);
    let one = scene(&items);
    let progress = one.run(r#"{"Cmd":["/app"]}"#, Some(&looked)).await;
    assert_eq!((progress.reason(), progress.replayed_spans() > 0), (Some(Reason::Profile), true));
    assert_eq!(one.local(&["app", "etc/motd"]), [true, true]);
    let foreign = scene(&items).run(r#"{"Cmd":["/app"]}"#, Some(&profile(&[(b"other", 0, 5)]))).await;
    assert_eq!((foreign.reason(), foreign.replayed_spans()), (Some(Reason::EntryPoint), 0));
    let known = scene(&items).run(r#"{"Cmd":["/app"]}"#, Some(&profile(&[(b"app", 0, 1)]))).await;
    assert_eq!((known.reason(), known.entry_point_spans()), (Some(Reason::Profile), 0));
    let nothing = scene(&items).run(r#"{"Cmd":["nowhere","/dev/null"]}"#, None).await;
    assert_eq!((nothing.reason(), nothing.entry_point_spans()), (None, 0));
}

/// Source that is compiled as this host's Python does it, for the source as it is in the image.
fn compiled(source: &str, mtime: u32) -> Vec<u8> {
    let program = "import sys, marshal, importlib.util as u; code = compile(sys.argv[1], 'm.py', 'exec', dont_inherit=True); \
                   n = lambda x: int(x).to_bytes(4, 'little'); sys.stdout.buffer.write(u.MAGIC_NUMBER + n(0) + \
                   n(sys.argv[2]) + n(len(sys.argv[1])) + marshal.dumps(code))";
    let output = std::process::Command::new("python3").args(["-c", program, source]).arg(mtime.to_string()).output();
    let output = output.expect("this host has a Python");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// `Y` of the 3.Y of this host's Python, which compiles what the images here hold.
fn minor() -> u32 {
    let output = std::process::Command::new("python3").args(["-c", "import sys; print(sys.version_info[1])"]).output();
    String::from_utf8(output.expect("this host has a Python").stdout).expect("digits").trim().parse().expect("a number")
}

/// An extension for nobody, with constants behind its headers (elf(5)).
fn extension(constants: &[u8]) -> Vec<u8> {
    let mut elf = vec![0; 4096];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    // One program header, of 56 bytes, at 64: PT_LOAD, PF_R.
    for (place, value) in [(32, 64), (54, 56), (56, 1), (64, 1), (68, 4)] {
        elf[place] = value;
    }
    elf[72..80].copy_from_slice(&4096_u64.to_le_bytes());
    elf[96..104].copy_from_slice(&(constants.len() as u64).to_le_bytes());
    elf.extend(constants);
    elf
}

#[tokio::test]
async fn a_python_program_brings_what_it_imports_and_what_that_imports() {
    let (pad, minor) = (big(1), minor());
    let library = format!("usr/lib/python3.{minor}");
    let site = format!("venv/lib/python3.{minor}/site-packages");
    let cache = |dir: &str, stem: &str| format!("{dir}/__pycache__/{stem}.cpython-3{minor}.pyc");
    let package = "from . import near\nfrom .deep import (thing, far)\nimport os.path as p, missing.one\n";
    let near = "import hooked, _native\nif False:\n    pass\n";
    let (package_pyc, near_pyc) = (compiled(package, 0), compiled(near, 77));
    let machine = if cfg!(target_arch = "aarch64") { "aarch64" } else { "x86_64" };
    let native = format!("{library}/lib-dynload/_native.cpython-3{minor}-{machine}-linux-gnu.so");
    let mut wanted = vec![
        ("app/main.py".to_owned(), b"import package\ndef later():\n    import unused\n".to_vec()),
        (format!("{library}/os.py"), b"pass".to_vec()),
        (format!("{library}/encodings/__init__.py"), b"from . import aliases".to_vec()),
        (format!("{library}/encodings/aliases.py"), b"pass".to_vec()),
        (native, extension(b"_native\0called\0unuse\0")),
        (format!("{site}/called.py"), b"pass".to_vec()),
        (cache(&format!("{site}/package"), "__init__"), package_pyc),
        (cache(&format!("{site}/package"), "near"), near_pyc),
        // Its compiled form is of another time, so it is going to be compiled again.
        (format!("{site}/package/near.py"), near.as_bytes().to_vec()),
        (format!("{site}/package/deep/far.py"), b"pass".to_vec()),
        (format!("{site}/extra/hooked.py"), b"pass".to_vec()),
        (format!("{site}/extra.pth"), b"extra\nimport started\n".to_vec()),
        (format!("{site}/started.py"), b"pass".to_vec()),
        ("venv/pyvenv.cfg".to_owned(), b"home = /usr/bin\n".to_vec()),
    ];
    // Nothing is linked to it, as far as indexes know.
    let beside = format!("{site}/package.libs/libfar-1.so");
    let unwanted = [
        (beside.clone(), extension(b"")),
        (format!("{site}/package/__init__.py"), package.as_bytes().to_vec()),
        (format!("{site}/unused.py"), b"pass".to_vec()),
        (format!("{site}/package/other.py"), b"pass".to_vec()),
    ];
    if minor >= 11 {
        // It is in the interpreter.
        wanted.retain(|(path, _)| !path.ends_with("/os.py"));
    }
    let os = format!("{library}/os.py");
    let pads: Vec<_> = (0..2 * (wanted.len() + unwanted.len())).map(|number| format!("pad/{number}")).collect();
    let mut items: Vec<(&str, Item<'_>)> = vec![
        ("usr/bin/python3", Item::Link(if minor < 10 { "python3.9" } else { "real" })),
        ("venv/bin/python", Item::Link("/usr/bin/python3")),
    ];
    let real = format!("usr/bin/python3.{minor}");
    items[0] = ("usr/bin/python3", Item::Link(real.rsplit('/').next().expect("a name")));
    items.push((&real, Item::File(b"a program of another machine")));
    if minor >= 11 {
        items.push((&os, Item::File(b"pass")));
    }
    for ((path, content), pad_path) in wanted.iter().chain(&unwanted).zip(&pads) {
        items.push((pad_path, Item::File(&pad)));
        items.push((path, Item::File(content)));
    }
    let pads: Vec<_> = pads.iter().take(wanted.len()).map(String::as_str).collect();
    for (scene, is_known) in [(scene(&items), true), (scene(&items).without_dependencies(), false)] {
        let progress =
            scene.run(r#"{"Entrypoint":["/venv/bin/python","-u","main.py"],"WorkingDir":"/app"}"#, None).await;
        assert!(progress.entry_point_spans() > 0);
        for (path, _) in &wanted {
            assert!(scene.local(&[path]) == [true], "{path}");
        }
        for (path, _) in &unwanted {
            assert!(scene.local(&[path]) == [!is_known && *path == beside], "{path}");
        }
        assert!(scene.local(&pads).iter().all(|local| !local), "{:?}", scene.local(&pads));
    }
}

#[tokio::test]
async fn a_node_program_brings_what_it_loads_and_what_that_loads() {
    let pad = big(1);
    let wanted: [(&str, &[u8]); 18] = [
        ("app/main.js", b"require('./lib'); require('plain'); require('@a/scoped/deep'); import('exported/sub.js')"),
        ("app/package.json", b"{}"),
        ("app/lib/index.js", b"require('../near'); require('fs'); require('missing')"),
        ("app/near.json", b"{}"),
        ("app/node_modules/plain/package.json", br#"{"main":"dist/plain"}"#),
        ("app/node_modules/plain/dist/plain.js", b"const x = require('inner'), y = require('above')"),
        ("app/node_modules/plain/node_modules/inner/package.json", br#"{"name":"inner"}"#),
        ("app/node_modules/plain/node_modules/inner/index.js", b"require('plain')"),
        ("node_modules/above/package.json", br#"{"main":"./lib"}"#),
        ("node_modules/above/lib/index.js", b"0"),
        ("app/node_modules/@a/scoped/package.json", b"{}"),
        ("app/node_modules/@a/scoped/deep.js", b"require('./directory')"),
        ("app/node_modules/@a/scoped/directory/package.json", br#"{"main":"entry"}"#),
        ("app/node_modules/@a/scoped/directory/entry.js", b"0"),
        (
            "app/node_modules/exported/package.json",
            br#"{"exports":{"./*.js":{"import":"./m/*.mjs","default":"./c/*.cjs"}}}"#,
        ),
        ("app/node_modules/exported/m/sub.mjs", b"0"),
        ("app/node_modules/exported/c/sub.cjs", b"export * from '../last.js'"),
        ("app/node_modules/exported/last.js", b"0"),
    ];
    let unwanted: [(&str, &[u8]); 3] = [
        ("app/node_modules/exported/sub.js", b"0"),
        ("app/node_modules/plain/index.js", b"0"),
        ("app/node_modules/inner/index.js", b"0"),
    ];
    let program = extension(b"");
    let mut items = vec![("usr/bin/node", Item::File(&program)), ("usr/bin/env", Item::File(&program))];
    items.push(("bin/run", Item::File(b"#!/usr/bin/env node\nrequire('/app/main')\n")));
    let pads: Vec<_> = (0..wanted.len() + unwanted.len()).map(|number| format!("pad/{number}")).collect();
    for ((path, content), pad_path) in wanted.iter().chain(&unwanted).zip(&pads) {
        items.push((pad_path, Item::File(&pad)));
        items.push((path, Item::File(content)));
    }
    for command in [r#"["node","--flag","main"]"#, r#"["/bin/run"]"#] {
        let scene = scene(&items);
        let run = format!(r#"{{"Cmd":{command},"WorkingDir":"/app","Env":["PATH=/usr/bin"]}}"#);
        assert!(scene.run(&run, None).await.entry_point_spans() > 0);
        for (path, _) in &wanted {
            assert!(scene.local(&[path]) == [true], "{path} by {command}");
        }
        for (path, _) in &unwanted {
            assert!(scene.local(&[path]) == [false], "{path} by {command}");
        }
    }
}

/// Keeps back the bytes of a file.
fn keep_back(scene: &Scene, path: &str) -> Arc<Memory> {
    let node = scene.files.tree.resolve(path.as_bytes(), true).expect("it is in the image");
    let extent = scene.files.tree.node(node).extents().next().expect("it has bytes");
    let memory = Memory(scene.tar.clone(), Mutex::new(extent.layer_offset..extent.layer_offset + extent.length));
    Arc::new(memory)
}

#[tokio::test]
async fn what_a_module_leads_to_is_fetched_before_a_byte_of_the_module_has_come() {
    let (pad, minor) = (big(1), minor());
    let library = format!("usr/lib/python3.{minor}");
    let (real, os) = (format!("usr/bin/python3.{minor}"), format!("{library}/os.py"));
    let (first, second) = (format!("{library}/first.py"), format!("{library}/second.py"));
    let program = extension(b"");
    let items = [
        (real.as_str(), Item::File(&program)),
        (os.as_str(), Item::File(b"pass")),
        ("pad/1", Item::File(&pad)),
        ("main.py", Item::File(b"import first")),
        ("pad/2", Item::File(&pad)),
        (second.as_str(), Item::File(b"pass")),
        ("pad/3", Item::File(&pad)),
        // In a short span, beside which the line has room.
        (first.as_str(), Item::File(b"import second")),
    ];
    let run = format!(r#"{{"Cmd":["/{real}","/main.py"]}}"#);
    for (mut scene, is_known) in [(scene(&items), true), (scene(&items).without_dependencies(), false)] {
        let (own, reader) = (Arc::clone(&scene.files.layers[0]), keep_back(&scene, &first));
        let scratch = crate::store::Scratch::new(scene._cache.path().join("cache/tmp"));
        let layer = Layer::new(own.index.clone(), Arc::clone(&own.blob), Some(reader), "memory", scratch);
        scene.files.layers = vec![Arc::new(layer)];
        let walked = tokio::time::timeout(Duration::from_secs(2), scene.run(&run, None)).await;
        assert!(walked.is_err(), "it waits for what is kept back");
        assert_eq!(scene.local(&["main.py", &second, &first]), [true, is_known, false]);
    }
}

#[tokio::test]
async fn servers_and_modules_lead_to_what_they_are_told_to_run() {
    let (pad, minor) = (big(1), minor());
    let library = format!("usr/lib/python3.{minor}");
    let (os, main, server) =
        (format!("{library}/os.py"), format!("{library}/tool/__main__.py"), format!("{library}/server/__init__.py"));
    let tool = format!("{library}/tool/__init__.py");
    let real = format!("usr/bin/python3.{minor}");
    let items = || {
        vec![
            (real.as_str(), Item::File(b"program")),
            (os.as_str(), Item::File(b"pass")),
            ("pad/1", Item::File(&pad)),
            (main.as_str(), Item::File(b"import server")),
            (tool.as_str(), Item::File(b"#")),
            ("pad/2", Item::File(&pad)),
            (server.as_str(), Item::File(b"pass")),
            ("pad/3", Item::File(&pad)),
            ("srv/shop/wsgi.py", Item::File(b"import settings")),
            ("srv/settings.py", Item::File(b"pass")),
            ("srv/shop/__init__.py", Item::File(b"pass")),
            ("pad/4", Item::File(&pad)),
            ("srv/alone.py", Item::File(b"pass")),
        ]
    };
    let run = format!(r#"{{"Cmd":["/{real}","-m","tool","shop.wsgi:application"],"WorkingDir":"/srv"}}"#);
    for scene in [scene(&items()), scene(&items()).without_dependencies()] {
        scene.run(&run, None).await;
        assert_eq!(scene.local(&[&main, &server, "srv/shop/wsgi.py", "srv/settings.py"]), [true; 4]);
        assert_eq!(scene.local(&["pad/3", "pad/4"]), [false; 2]);
    }

    // What Python is told to run is Python, whatever its first line says.
    let mut polyglot = items();
    polyglot.push(("srv/start", Item::File(b"#!/bin/sh\n\"exec\" \"python3\" \"$0\"\nimport alone\n")));
    for scene in [scene(&polyglot), scene(&polyglot).without_dependencies()] {
        scene.run(&format!(r#"{{"Cmd":["/{real}","/srv/start"]}}"#), None).await;
        assert_eq!(scene.local(&["srv/alone.py", "pad/1"]), [true, false]);
    }

    let mut scripted = items();
    let script = format!("#!/usr/bin/env -S python3.{minor} -u\nfrom server import main\n");
    scripted.push(("usr/bin/serve", Item::File(script.as_bytes())));
    scripted.push(("usr/bin/env", Item::File(b"env")));
    for scene in [scene(&scripted), scene(&scripted).without_dependencies()] {
        scene.run(r#"{"Entrypoint":["serve","--port","80","shop.wsgi"],"WorkingDir":"/srv"}"#, None).await;
        assert_eq!(scene.local(&[&server, "srv/shop/wsgi.py", "srv/settings.py"]), [true; 3]);
        assert_eq!(scene.local(&["pad/1", "pad/3"]), [false; 2]);
    }
}

#[test]
fn a_place_is_found_through_links_and_tells_its_real_directory() {
    let items = [
        ("usr/local/bin/python3.12", Item::File(b"x")),
        ("usr/local/bin/python", Item::Link("python3.12")),
        ("opt/venv/bin/python", Item::Link("/usr/local/bin/python")),
        ("loop", Item::Link("loop/x")),
        ("up", Item::Link("../../../usr")),
    ];
    let scene = scene(&items);
    let names = Names::new(scene.files.tree.clone(), 100);
    for path in
        ["/opt/venv/bin/python", "opt/venv/bin/python", "/up/local/../local/bin/python", "//usr/./local/bin/python3.12"]
    {
        let place = names.file(path.as_bytes()).expect(path);
        assert_eq!(place.path.escape_ascii().to_string(), "/usr/local/bin/python3.12");
        assert_eq!(place.directory(), b"/usr/local/bin");
        assert_eq!(scene.files.tree.resolve(path.as_bytes(), true), Some(place.node), "as the tree finds it");
    }
    for path in ["/", "", "..", "/usr", "/loop", "/nothing", "/usr/local/bin/python/x"] {
        assert_eq!(names.file(path.as_bytes()), None, "{path}");
    }
    let long = |length: usize| format!("/usr/local/bin/{}python", "./".repeat((length - 21) / 2));
    assert!(names.file(long(AHEAD_PATH_BYTES).as_bytes()).is_some());
    assert!(names.file(long(AHEAD_PATH_BYTES + 2).as_bytes()).is_none());
    // A component takes a lookup, a link those that it leads through.
    let names = Names::new(scene.files.tree.clone(), 5 + 5 + 3);
    let found = [b"usr/local/bin/python".as_slice(), b"up/local/bin/python3.12", b"usr/local/bin", b"usr"];
    assert_eq!(found.map(|path| names.walk(path).is_some()), [true, true, true, false]);
}

#[test]
fn no_index_has_more_decoded_than_one_run_may() {
    let scene = scene(&[("a.py", Item::File(b"import b")), ("b.py", Item::File(b"pass"))]);
    let (session, node) = (&scene.session(), scene.files.tree.resolve(b"a.py", false).expect("it is there"));
    assert!(!session.knows(node), "nobody has read the indexes");
    runtime().block_on(session.know());
    assert!(session.knows(node) && session.dependencies(node).is_some());
    for step in [1 << 20, 1] {
        while session.budget().parse(step) {}
    }
    assert!(session.knows(node) && session.dependencies(node).is_none());
}

#[test]
fn an_extension_whose_record_is_not_decoded_is_read_instead() {
    let library = extension(b"_native\0called\0");
    let scene = scene(&[("usr/lib/a.so", Item::File(&library)), ("usr/lib/called.py", Item::File(b"pass"))]);
    let (session, config) = (&scene.session(), image_config("{}"));
    let walk = programs::Walk::new(session, &config);
    let names = || {
        let place = session.names.file(b"/usr/lib/a.so").expect("it is there");
        runtime().block_on(walk.extension(place, &Order::new(), &programs::Linked::default())).expect("nothing fails")
    };
    runtime().block_on(session.know());
    assert!(matches!(names(), programs::Constants::Names(_)));
    for step in [1 << 20, 1] {
        while session.budget().parse(step) {}
    }
    assert!(matches!(names(), programs::Constants::Parts(parts) if !parts.is_empty()));
}

#[tokio::test]
async fn all_of_a_large_program_is_fetched_in_the_end() {
    let mut program = extension(b"");
    program.resize(13 << 20, 0);
    let items =
        [("usr/bin/node", Item::File(&program)), ("a.js", Item::File(b"require('/b')")), ("b.js", Item::File(b"0"))];
    for scene in [scene(&items), scene(&items).without_dependencies()] {
        scene.run(r#"{"Cmd":["/usr/bin/node","a.js"]}"#, None).await;
        assert_eq!(scene.local(&["usr/bin/node", "a.js", "b.js"]), [true; 3]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_profile_and_no_program_does_harm(
        accesses in prop::collection::vec(("[a-c/.]{1,4}", any::<u64>(), any::<u64>()), 0..20),
        program in prop::collection::vec(any::<u8>(), 0..300),
        magic in prop::sample::select(vec![&b""[..], b"\x7fELF\x02\x01", b"#!", b"#!/a "]),
        word in "[a-z/. =-]{0,8}",
    ) {
        let program = [magic, &program].concat();
        let scene = scene(&[("a", Item::File(&program)), ("b/c", Item::File(b"x")), ("c", Item::Link("b/../c"))]);
        let accesses: Vec<_> = accesses.iter().map(|(path, start, end)| (path.as_bytes(), *start, *end)).collect();
        let profile = profile(&accesses);
        runtime().block_on(scene.run(&format!(r#"{{"Entrypoint":["/a"],"Cmd":["{word}"]}}"#), Some(&profile)));
    }
}

#[tokio::test]
async fn what_has_no_copy_is_decoded_before_it_is_asked_for() {
    let (pad, copied) = (big(1), vec![2; crate::limits::CONTENT_DIGEST_BYTES as usize]);
    let scene = scene(&[
        ("tiny", Item::File(b"tiny")),
        ("pad/a", Item::File(&pad)),
        ("copied", Item::File(&copied)),
        ("pad/b", Item::File(&pad)),
        ("unread", Item::File(b"unread")),
    ]);
    let files = &scene.files;
    let layer = &files.layers[0];
    warm::run(files, &profile(&[(b"tiny", 0, 4)])).await;
    assert_eq!(files.fetcher.memory_used(), 0, "nothing is here, and nothing is fetched");

    layer.blob.write(0, &scene.tar).expect("written");
    publish(&files.store, &scene.content("copied"), &copied);
    warm::run(files, &profile(&[(b"copied", 0, 4), (b"tiny", 0, 2), (b"copied", 4, 8), (b"tiny", 2, 4)])).await;
    let is_decoded = |path: &str| {
        let node = files.tree.resolve(path.as_bytes(), false).expect("it is there");
        let part = files.parts(node, 0..1).next().expect("it has bytes");
        let span = layer.index.spans(part.stream).next().expect("they are in a span");
        files.fetcher.cached(layer, span).is_some()
    };
    let decoding = async {
        while !is_decoded("tiny") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), decoding).await.expect("it is decoded");
    assert_eq!(["copied", "unread"].map(is_decoded), [false, false]);
}

#[tokio::test]
async fn copies_that_a_profile_names_are_verified_before_they_are_asked_for() {
    let bytes = |name: &str| name.repeat(crate::limits::CONTENT_DIGEST_BYTES as usize).into_bytes();
    let (good, bad, other) = (bytes("good"), bytes("bad"), bytes("other"));
    let scene = scene(&[("good", Item::File(&good)), ("bad", Item::File(&bad)), ("other", Item::File(&other))]);
    let content = |name: &str| scene.content(name);
    let cache = tempfile::tempdir().expect("a temporary directory");
    let open = || Store::open(&cache.path().join("cache")).expect("a store");
    let store = open();
    for name in ["good", "bad", "other"] {
        publish(&store, &content(name), &bytes(name));
    }
    let damaged = store.file(&content("bad")).expect("a file").expect("it is there");
    drop(store);
    // A file of the cache is read-only, but not to root and not to a disk that rots.
    let path = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&*damaged)));
    let path = path.expect("an open file has a path");
    std::fs::remove_file(&path).expect("it is there");
    std::fs::write(&path, b"rot").expect("written");

    let files = Files { store: Arc::new(open()), ..scene.files.clone() };
    assert!(!files.store.is_verified(&content("good")), "this process has not read it");
    warm::run(&files, &profile(&[(b"good", 0, 4), (b"bad", 0, 3), (b"good", 2, 4), (b"nothing", 0, 1)])).await;
    let state = |name: &str| (files.store.is_verified(&content(name)), files.store.has_file(&content(name)));
    assert_eq!([state("good"), state("bad"), state("other")], [(true, true), (false, false), (false, true)]);
}

//! An image of three layers made from the host's own files, for the demo and for tests.
//!
//! It has to run without anything from elsewhere, to show every rule by which layers are merged, and to be mostly bytes
//! that nobody reads. So the first layer (gzip) holds a shell and a few commands with the libraries they need, and some
//! files under [`DEMO_DIRECTORY`] that the second layer (gzip) hides or replaces: one by a whiteout, some by an opaque
//! directory, one by a new version. The third (zstd, in frames, so that it can be read from the middle) holds one
//! [`LARGE_FILE`].
//!
//! Each program keeps its path on the host, and `/bin` has symbolic links to them: programs that look at their own place or
//! name (BusyBox, coreutils in one binary) work as they do here. The same host files give the same bytes: times and
//! owners are fixed, everything is sorted.

mod elf;
mod layer;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;

use self::layer::{Compression, Item, Items};
use super::registry::Content;
use crate::oci::{Descriptor, Digest};

/// Where the image has the files that show how layers are merged.
pub const DEMO_DIRECTORY: &str = "/srv/demo";

/// The file that the second layer replaces.
pub const REPLACED_FILE: &str = "/srv/demo/replaced.txt";

/// The file that a whiteout of the second layer hides.
pub const HIDDEN_FILE: &str = "/srv/demo/hidden.txt";

/// The directory that the second layer makes opaque: of its children only `new.txt` is left.
pub const OPAQUE_DIRECTORY: &str = "/srv/demo/opaque";

/// The file that makes up the third layer; its length is [`Options::large_bytes`].
pub const LARGE_FILE: &str = "/srv/demo/large.log";

/// The commands put beside the shell, as far as the host has them.
const COMMANDS: [&str; 8] = ["cat", "head", "id", "ls", "stat", "tail", "uname", "wc"];

/// How the image is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Length of [`LARGE_FILE`] in bytes; the layer is about a seventeenth of it.
    pub large_bytes: u64,
    /// Where the layers are written, as `layer-1` to `layer-3`; none to keep them in memory. The caller creates the
    /// directory and keeps it as long as the content is served.
    pub directory: Option<PathBuf>,
    /// Where programs are looked for, in this order.
    pub search: Vec<PathBuf>,
}

impl Default for Options {
    /// A large file of 64 MiB, layers in memory, programs from the standard directories.
    fn default() -> Self {
        let search = ["/bin", "/usr/bin", "/run/current-system/sw/bin"].map(PathBuf::from).to_vec();
        Self { large_bytes: 64 << 20, directory: None, search }
    }
}

/// The image that was made.
#[derive(Debug, Clone)]
pub struct Image {
    /// The manifest.
    pub manifest: Descriptor,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// The digests of the layers' uncompressed streams.
    pub diff_ids: Vec<Digest>,
    /// The commands that are in `/bin`; `sh` is always one of them.
    pub commands: Vec<String>,
    /// The commands that could not be had, and why, in words for the user.
    pub missing: Vec<(String, String)>,
}

/// Why the image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no shell that could be put into an image.
    #[error("this host has no shell that runs in an image: {reason}")]
    NoShell {
        /// What is wrong with the one that is there.
        reason: String,
    },
    /// A file of the host cannot be read, or a layer cannot be written.
    #[error("cannot make the demo image: {doing} {}", path.display())]
    Io {
        /// What was being done to the file.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Makes the image and adds it to `content` as `repository:tag`.
///
/// Reads and writes files and compresses: a second or so with the default options, so not to be called on an async
/// thread. Holds the compressed layers in memory if so asked, and nothing else of their size.
pub fn build(content: &Content, repository: &str, tag: &str, options: &Options) -> Result<Image, Error> {
    let mut programs = Programs::default();
    if let Err(reason) = programs.add("sh", &options.search) {
        return Err(Error::NoShell { reason });
    }
    for command in COMMANDS {
        programs.add(command, &options.search).unwrap_or_else(|reason| programs.missing.push((command.into(), reason)));
    }
    let large = Items::from([(relative(LARGE_FILE), Item::Generated(options.large_bytes))]);
    let plans = [
        (base_layer(&programs)?, Compression::Gzip),
        (changing_layer(), Compression::Gzip),
        (large, Compression::Zstd),
    ];
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for (number, (items, compression)) in (1..).zip(plans) {
        let (layer, diff_id) = write_layer(content, number, &items, compression, options)?;
        layers.push(layer);
        diff_ids.push(diff_id);
    }
    let config = content.add_blob("application/vnd.oci.image.config.v1+json", config_json(&diff_ids));
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = content.add_manifest(repository, Some(tag), media_type, manifest_json(media_type, &config, &layers));
    Ok(Image { manifest, config, layers, diff_ids, commands: programs.commands, missing: programs.missing })
}

/// The host's programs for the image, with what they need.
#[derive(Debug, Default)]
struct Programs {
    files: Vec<PathBuf>,
    links: Vec<(PathBuf, PathBuf)>,
    commands: Vec<String>,
    missing: Vec<(String, String)>,
}

impl Programs {
    /// Adds the first `name` in `search` together with its libraries, or says why not.
    fn add(&mut self, name: &str, search: &[PathBuf]) -> Result<(), String> {
        let found = search.iter().map(|directory| directory.join(name)).find_map(|path| path.canonicalize().ok());
        let program = found.ok_or_else(|| format!("there is no {name} in {}", list(search)))?;
        let libraries = elf::closure(&program).map_err(|error| error.to_string())?;
        self.files.extend(libraries);
        let place = Path::new("/bin").join(name);
        if place != program {
            self.links.push((place, program.clone()));
        }
        self.files.push(program);
        self.commands.push(name.to_owned());
        Ok(())
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn base_layer(programs: &Programs) -> Result<Items, Error> {
    let mut items = Items::new();
    for (path, mode) in [("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("tmp", 0o1777), ("root", 0o700)] {
        items.insert(path.into(), Item::Directory(mode));
    }
    for (path, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
        ("srv/demo/kept.txt", "This file is in the first layer, and no later layer touches it.\n"),
        ("srv/demo/replaced.txt", "This is the first layer's version; you should not see it.\n"),
        ("srv/demo/hidden.txt", "A whiteout in the second layer hides this file; you should not see it.\n"),
        ("srv/demo/opaque/old-1.txt", "An opaque directory hides this file; you should not see it.\n"),
        ("srv/demo/opaque/old-2.txt", "And this one.\n"),
    ] {
        items.insert(path.into(), Item::Text(text));
    }
    for path in &programs.files {
        let source =
            path.canonicalize().map_err(|source| Error::Io { doing: "finding", path: path.clone(), source })?;
        items.insert(relative(path), Item::Host(source));
    }
    for (place, target) in &programs.links {
        items.entry(relative(place)).or_insert_with(|| Item::Link(target.clone()));
    }
    Ok(items)
}

fn changing_layer() -> Items {
    [
        ("srv/demo/.wh.hidden.txt", ""),
        ("srv/demo/opaque/.wh..wh..opq", ""),
        ("srv/demo/opaque/new.txt", "This file is in the second layer; what else was in this directory is hidden.\n"),
        ("srv/demo/replaced.txt", "This is the second layer's version.\n"),
    ]
    .map(|(path, text)| (PathBuf::from(path), Item::Text(text)))
    .into()
}

fn relative(path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

/// Writes one layer to where the options say, adds it to the content, and returns its descriptor and diffID.
fn write_layer(
    content: &Content,
    number: u32,
    items: &Items,
    compression: Compression,
    options: &Options,
) -> Result<(Descriptor, Digest), Error> {
    let media_type = match compression {
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    };
    let name = PathBuf::from(format!("layer-{number}"));
    let Some(directory) = &options.directory else {
        let (bytes, diff_id) = layer::pack(items, compression, Vec::new(), &name)?;
        return Ok((content.add_blob(media_type, bytes), diff_id));
    };
    let path = directory.join(name);
    let failed = |doing, source| Error::Io { doing, path: path.clone(), source };
    let file = File::create(&path).map_err(|source| failed("creating", source))?;
    let (_file, diff_id) = layer::pack(items, compression, file, &path)?;
    let layer = content.add_blob_file(media_type, &path).map_err(|source| failed("reading", source))?;
    Ok((layer, diff_id))
}

fn config_json(diff_ids: &[Digest]) -> String {
    let (architecture, variant) = go_architecture();
    let mut config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Env": ["PATH=/bin:/usr/bin"],
            "Cmd": ["/bin/sh"],
            "WorkingDir": "/",
        },
        "rootfs": {
            "type": "layers",
            "diff_ids": diff_ids.iter().map(Digest::to_string).collect::<Vec<_>>(),
        },
        "history": [
            { "created_by": "ocifs demo: a shell and some commands of this host" },
            { "created_by": "ocifs demo: a whiteout, an opaque directory and a replaced file" },
            { "created_by": "ocifs demo: a large file" },
        ],
    });
    if let Some(variant) = variant {
        config["variant"] = variant.into();
    }
    config.to_string()
}

/// This program's architecture, and with it that of the host's programs, in the words of the image specification.
fn go_architecture() -> (&'static str, Option<&'static str>) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", None),
        "x86" => ("386", None),
        "aarch64" => ("arm64", None),
        "arm" => ("arm", Some("v7")),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
        "powerpc64" => ("ppc64", None),
        "loongarch64" => ("loong64", None),
        other => (other, None),
    }
}

fn manifest_json(media_type: &str, config: &Descriptor, layers: &[Descriptor]) -> String {
    let describe = |descriptor: &Descriptor| {
        json!({
            "mediaType": descriptor.media_type,
            "digest": descriptor.digest.to_string(),
            "size": descriptor.size,
        })
    };
    json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": describe(config),
        "layers": layers.iter().map(describe).collect::<Vec<_>>(),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn small() -> Options {
        Options { large_bytes: 3 << 20, ..Options::default() }
    }

    /// The paths and link targets of a layer, after checking its digest and diffID.
    fn unpack(bytes: &[u8], layer: &Descriptor, diff_id: &Digest) -> BTreeMap<String, (tar::EntryType, Vec<u8>)> {
        assert!(layer.digest.matches(bytes));
        let mut stream = Vec::new();
        if layer.media_type.ends_with("gzip") {
            flate2::read::GzDecoder::new(bytes).read_to_end(&mut stream).expect("valid gzip");
        } else {
            stream = zstd::decode_all(bytes).expect("valid zstd");
        }
        assert!(diff_id.matches(&stream));
        let mut archive = tar::Archive::new(stream.as_slice());
        let mut entries = BTreeMap::new();
        for entry in archive.entries().expect("a tar stream") {
            let mut entry = entry.expect("a valid entry");
            let mut data = entry.link_name_bytes().map(|target| target.to_vec()).unwrap_or_default();
            entry.read_to_end(&mut data).expect("the data is there");
            let path = entry.path().expect("a path").to_string_lossy().trim_end_matches('/').to_owned();
            let kind = entry.header().entry_type();
            assert!(entries.insert(path, (kind, data)).is_none(), "every path once");
        }
        entries
    }

    #[test]
    fn three_layers_hold_what_the_module_says() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = Options { directory: Some(dir.path().to_owned()), ..small() };
        let image = build(&Content::new(), "demo", "latest", &options).expect("the host has a shell");
        let layers: Vec<_> = (1..=3)
            .map(|number| fs::read(dir.path().join(format!("layer-{number}"))).expect("the layer was written"))
            .zip(image.layers.iter().zip(&image.diff_ids))
            .map(|(bytes, (layer, diff_id))| unpack(&bytes, layer, diff_id))
            .collect();
        for path in ["srv/demo/hidden.txt", "srv/demo/replaced.txt", "srv/demo/opaque/old-1.txt", "tmp", "bin/sh"] {
            assert!(layers[0].contains_key(path), "{path}");
        }
        let second: Vec<_> = layers[1].keys().map(String::as_str).collect();
        let expected = "srv srv/demo srv/demo/.wh.hidden.txt srv/demo/opaque srv/demo/opaque/.wh..wh..opq \
                        srv/demo/opaque/new.txt srv/demo/replaced.txt";
        assert_eq!(second.join(" "), expected);
        let (_, large) = &layers[2]["srv/demo/large.log"];
        assert_eq!(large.len(), 3 << 20);
        assert!(image.layers[2].size < 3 << 18, "it compresses: {}", image.layers[2].size);
        assert!(image.layers[2].size > 3 << 14, "but not to nothing: {}", image.layers[2].size);
        assert!(image.commands.iter().any(|command| command == "sh"));
    }

    #[test]
    fn the_same_host_gives_the_same_image() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let on_disk = Options { directory: Some(dir.path().to_owned()), ..small() };
        let first = build(&Content::new(), "demo", "a", &small()).expect("the host has a shell");
        let second = build(&Content::new(), "demo", "b", &on_disk).expect("the host has a shell");
        assert_eq!(first.manifest, second.manifest);
    }

    #[test]
    fn a_host_without_commands_still_gives_an_image_and_one_without_a_shell_says_so() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = Options { search: vec![dir.path().to_owned()], ..small() };
        let none = build(&Content::new(), "demo", "latest", &options).expect_err("there is no shell");
        assert!(none.to_string().contains("there is no sh in"), "{none}");
        std::os::unix::fs::symlink("/bin/sh", dir.path().join("sh")).expect("a link can be made");
        let script = dir.path().join("cat");
        fs::write(&script, "#!/bin/sh\n").expect("a script can be written");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its mode can be set");
        let image = build(&Content::new(), "demo", "latest", &options).expect("there is a shell now");
        assert_eq!(image.commands, ["sh"]);
        assert_eq!(image.missing.len(), COMMANDS.len());
        assert!(image.missing[0].1.ends_with("cat is no ELF program"), "{:?}", image.missing);
    }
}

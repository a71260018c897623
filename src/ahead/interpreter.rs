//! A Python in the image, and how it finds modules.
//!
//! Everything is found out from names in the tree, without a byte of a file: which version it is, where its library is, which
//! directories it searches (`site`, PEP 405), and what a name means in one of them (`importlib.machinery.FileFinder`).

use std::collections::HashSet;
use std::sync::Arc;

use super::command;
use super::names::{self, Directory, Names, Place, parent};
use crate::dependencies::name_of;
use crate::limits::{AHEAD_DIRECTORIES, AHEAD_FILES, AHEAD_MODULES};
use crate::oci::ImageConfig;
use crate::tree::{NodeId, NodeKind, Tree};

/// Since 3.11 these are in the interpreter itself.
const FROZEN: [&str; 15] = [
    "_collections_abc",
    "_sitebuiltins",
    "abc",
    "codecs",
    "genericpath",
    "importlib.machinery",
    "importlib.util",
    "io",
    "ntpath",
    "os",
    "posixpath",
    "runpy",
    "site",
    "stat",
    "zipimport",
];

/// A Python: where its modules are.
#[derive(Debug)]
pub(super) struct Interpreter {
    /// `Y` of version 3.Y.
    minor: u32,
    pub(super) program: Place,
    /// `sys.path`, without the script's directory.
    pub(super) path: Vec<Directory>,
    /// Those of it whose `.pth` files are read.
    pub(super) sites: Vec<Directory>,
    /// What the names of extensions end with, the most particular first.
    suffixes: Vec<String>,
    /// Of the virtual environment, if it is in one.
    pub(super) settings: Option<NodeId>,
}

/// What a module is.
#[derive(Debug, Clone)]
pub(super) enum Found {
    /// A directory, and the file in it that is run.
    Package(Arc<Directory>, Option<Body>),
    Module(Body),
}

/// What is run when a module is imported.
#[derive(Debug, Clone)]
pub(super) enum Body {
    Extension(Place),
    /// No module, but what extensions are linked to.
    Library(Place),
    Python {
        source: Option<NodeId>,
        compiled: Option<NodeId>,
    },
}

impl Interpreter {
    /// The Python that runs as `invoked`, which leads to `place`; none if that is something else.
    ///
    /// Its version is in its name or in that of its library, which is where `bin/..` is and has an `os.py`. A file
    /// `pyvenv.cfg` beside or above what is invoked makes it a virtual environment.
    pub(super) fn of(names: &Names, config: &ImageConfig, invoked: &[u8], place: &Place) -> Option<Self> {
        let rest = name_of(&place.path).strip_prefix(b"python")?;
        let named = std::str::from_utf8(rest).ok()?.strip_prefix("3.").and_then(|minor| minor.parse::<u32>().ok());
        if named.is_none() && !matches!(rest, b"" | b"3") {
            return None;
        }
        let prefix = parent(place.directory());
        let libraries = ["lib", "lib64"].map(|name| names::join(prefix, name.as_bytes()));
        let library = |minor: u32| {
            let mut found = libraries.iter().filter_map(|base| names.directory(base, &format!("python3.{minor}")));
            found.find(|found| names.child(found, "os.py").is_some()).map(|found| (minor, found))
        };
        let (minor, library) = match named {
            Some(minor) => library(minor)?,
            None => (0..40).rev().find_map(library)?,
        };
        let own = parent(invoked);
        let settings = [names::join(own, b"pyvenv.cfg"), names::join(parent(own), b"pyvenv.cfg")];
        let settings = settings.iter().find_map(|path| names.file(path));
        let version = format!("python3.{minor}");
        let below = |base: &[u8], rest: &str| names.directory(base, rest);
        let sites: Vec<_> = match &settings {
            Some(settings) => {
                let base = settings.directory();
                ["lib", "lib64"]
                    .iter()
                    .filter_map(|lib| below(base, &format!("{lib}/{version}/site-packages")))
                    .collect()
            }
            // Debian keeps its own packages apart.
            None => [
                below(prefix, &format!("local/lib/{version}/dist-packages")),
                below(b"/usr/local", &format!("lib/{version}/dist-packages")),
                below(&library.path, "site-packages"),
                below(prefix, "lib/python3/dist-packages"),
            ]
            .into_iter()
            .flatten()
            .collect(),
        };
        let variable = command::variable(config, "PYTHONPATH").unwrap_or_default();
        let path = variable.split(':').filter(|dir| !dir.is_empty()).filter_map(|dir| below(b"/", dir));
        let dynamic = below(&library.path, "lib-dynload");
        let path = path.take(AHEAD_DIRECTORIES / 2).chain([library]).chain(dynamic).chain(sites.iter().cloned());
        let settings = settings.map(|place| place.node);
        let (path, directories) = (Vec::new(), path.collect::<Vec<_>>());
        let suffixes = suffixes(config, minor);
        let mut python = Self { minor, program: place.clone(), path, sites, suffixes, settings };
        directories.into_iter().for_each(|directory| python.search(directory));
        Some(python)
    }

    /// Adds a directory to those that are searched, if it is not among them and they are not too many.
    pub(super) fn search(&mut self, directory: Directory) {
        if self.path.len() < AHEAD_DIRECTORIES && self.path.iter().all(|known| known.node != directory.node) {
            self.path.push(directory);
        }
    }

    /// What `leaf` is in `above`, as CPython's `FileFinder` has it.
    pub(super) fn find(&self, names: &Names, above: &Directory, leaf: &str) -> Option<Found> {
        let below = names.child(above, leaf).filter(|node| names.tree.node(*node).kind() == NodeKind::Directory);
        let below = below.map(|node| Directory { node, path: names::join(&above.path, leaf.as_bytes()) });
        if let Some(below) = &below
            && let Some(body) = self.body(names, below, "__init__")
        {
            return Some(Found::Package(Arc::new(below.clone()), Some(body)));
        }
        match self.body(names, above, leaf) {
            Some(body) => Some(Found::Module(body)),
            None => below.map(|below| Found::Package(Arc::new(below), None)),
        }
    }

    /// The names that may be those of modules outside packages. Of huge directories not all are looked at.
    pub(super) fn names(&self, tree: &Tree) -> HashSet<String> {
        let children = self.path.iter().flat_map(|dir| tree.children(dir.node, 0).take(AHEAD_MODULES));
        let stems =
            children.filter_map(|child| std::str::from_utf8(child.name.split(|byte| *byte == b'.').next()?).ok());
        stems.filter(|stem| !stem.is_empty()).map(str::to_owned).collect()
    }

    fn body(&self, names: &Names, above: &Directory, stem: &str) -> Option<Body> {
        let file = |directory: &Directory, name: &str| {
            names.child(directory, name).filter(|node| names.tree.node(*node).kind() == NodeKind::Regular)
        };
        for suffix in &self.suffixes {
            let name = format!("{stem}{suffix}");
            if let Some(node) = file(above, &name) {
                return Some(Body::Extension(Place { node, path: names::join(&above.path, name.as_bytes()) }));
            }
        }
        let source = file(above, &format!("{stem}.py"));
        let compiled = match source {
            Some(_) => names
                .directory(&above.path, "__pycache__")
                .and_then(|cache| file(&cache, &format!("{stem}.cpython-3{}.pyc", self.minor))),
            None => file(above, &format!("{stem}.pyc")),
        };
        (source.is_some() || compiled.is_some()).then_some(Body::Python { source, compiled })
    }

    /// True for what is in the interpreter itself, and not in a file.
    pub(super) fn has_frozen(&self, name: &str) -> bool {
        self.minor >= 11 && FROZEN.contains(&name)
    }
}

/// The libraries that a package which is not in another one brought for its extensions: `auditwheel` puts them into a
/// directory beside it, called as it is.
pub(super) fn libraries(names: &Names, package: &Directory) -> Vec<Place> {
    let Some(beside) = names.directory(&[&package.path[..], b".libs"].concat(), "") else { return Vec::new() };
    let children = names.tree.children(beside.node, 0).take(AHEAD_FILES);
    let libraries = children.filter(|child| names.tree.node(child.node).kind() == NodeKind::Regular);
    libraries.map(|child| Place { node: child.node, path: names::join(&beside.path, child.name) }).collect()
}

/// What the names of extension modules end with (`importlib.machinery.EXTENSION_SUFFIXES`).
fn suffixes(config: &ImageConfig, minor: u32) -> Vec<String> {
    let machine = match config.platform.architecture() {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    };
    let particular = ["gnu", "musl"].map(|libc| format!(".cpython-3{minor}-{machine}-linux-{libc}.so"));
    particular.into_iter().chain([".abi3.so".to_owned(), ".so".to_owned()]).collect()
}

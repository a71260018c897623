//! The modules that a Node.js program loads, found and fetched.
//!
//! Only what indexes know is followed ([`crate::dependencies`]): names in modules are resolved in the tree as Node.js does
//! (nodejs.org/api/modules.html, "All together", and api/packages.html), so the whole start is found out without a byte of a
//! module, in the order in which it runs. Both forms of a package that can be required and imported are looked at, because
//! either may be meant.

use std::collections::HashSet;

use super::command::{self, Target};
use super::interpreter::{Directory, directory};
use super::names::{self, Place};
use super::programs::Walk;
use super::{Need, Reason};
use crate::dependencies::Dependencies;
use crate::javascript::Package;
use crate::limits::{AHEAD_MODULES, AHEAD_SPECIFIERS};
use crate::tree::Tree;

/// What is tried behind the name of a module.
const EXTENSIONS: [&str; 5] = ["", ".js", ".json", ".node", ".mjs"];

/// Modules of the interpreter that Debian keeps outside it, and what its build reads of the system.
const BESIDE: [&[u8]; 4] = [
    b"/usr/share/nodejs/cjs-module-lexer/lexer.js",
    b"/usr/share/nodejs/undici/undici-fetch.js",
    b"/usr/share/nodejs/acorn/dist/acorn.js",
    b"/etc/ssl/certs/ca-certificates.crt",
];

/// One start.
struct Finder<'a> {
    walk: &'a Walk<'a>,
    tree: &'a Tree,
    seen: HashSet<Vec<u8>>,
    /// Files to be looked at, the next one last.
    waiting: Vec<Place>,
    count: u32,
    /// Names that may still be resolved.
    names: usize,
}

/// Fetches what the first Node.js program of the command line loads, if there is one.
pub(super) fn begin(walk: &Walk<'_>, targets: &[Target]) {
    let tree = &walk.session.files.tree;
    for target in targets.iter().filter(|target| target.invoked.is_some()) {
        let script = if is_node(&target.place) {
            script(walk, &target.arguments)
        } else {
            match walk.session.dependencies(target.place.node) {
                Some(Dependencies::Script { interpreters, .. }) => {
                    let node = interpreters.last().and_then(|word| command::program(tree, walk.config, word));
                    node.filter(|(_, place)| is_node(place)).map(|_| target.place.clone())
                }
                _ => None,
            }
        };
        if let Some(script) = script {
            return Finder { walk, tree, seen: HashSet::new(), waiting: Vec::new(), count: 0, names: AHEAD_SPECIFIERS }
                .run(script);
        }
    }
}

fn is_node(place: &Place) -> bool {
    matches!(place.path.rsplit(|byte| *byte == b'/').next(), Some(b"node" | b"nodejs"))
}

/// What the command line of an interpreter names: the first word that is no option and leads to a file.
fn script(walk: &Walk<'_>, arguments: &[String]) -> Option<Place> {
    let here = command::working_directory(walk.config);
    let mut words = arguments.iter().filter(|word| !word.starts_with('-'));
    words.find_map(|word| file(&walk.session.files.tree, &names::join(here, word.as_bytes())))
}

impl Finder<'_> {
    fn run(mut self, script: Place) {
        for place in BESIDE.iter().filter_map(|path| names::file(self.tree, path)) {
            self.fetch(&place);
        }
        self.waiting.push(script);
        while let Some(place) = self.waiting.pop() {
            if self.seen.len() >= AHEAD_MODULES || !self.seen.insert(place.path.clone()) {
                continue;
            }
            self.scope(&place);
            self.fetch(&place);
            let Some(Dependencies::Script { specifiers: names, .. }) = self.walk.session.dependencies(place.node)
            else {
                continue;
            };
            let looked = names.len().min(self.names);
            self.names -= looked;
            let found: Vec<_> = names[..looked].iter().flat_map(|name| self.resolve(&place, name)).collect();
            self.waiting.extend(found.into_iter().rev());
        }
    }

    fn fetch(&mut self, place: &Place) {
        self.walk.begin_file(&Need { reason: Reason::Import, order: vec![self.count] }, place.node);
        self.count = self.count.saturating_add(1);
    }

    /// Fetches the `package.json` that a module belongs to: it says what kind of module it is.
    fn scope(&mut self, place: &Place) {
        let found = above(&place.path).find_map(|directory| self.package(directory));
        if let Some(package) = found.filter(|package| self.seen.insert(package.path.clone())) {
            self.fetch(&package);
        }
    }

    fn package(&self, directory: &[u8]) -> Option<Place> {
        names::file(self.tree, &names::join(directory, b"package.json"))
    }

    /// The files that a name in the module at `place` may mean.
    fn resolve(&mut self, place: &Place, name: &str) -> Vec<Place> {
        if name.starts_with(['.', '/']) {
            return self.named(&names::join(place.directory(), name.as_bytes())).into_iter().collect();
        }
        let end = name.match_indices('/').nth(usize::from(name.starts_with('@'))).map_or(name.len(), |(end, _)| end);
        let (package, rest) = name.split_at(end);
        for directory in above(&place.path).filter(|directory| !directory.ends_with(b"/node_modules")) {
            let modules = names::join(directory, b"node_modules");
            let Some(found) = self::directory(self.tree, &modules, package) else { continue };
            let described = self.package(&found.path);
            if let Some(described) = described.as_ref().filter(|described| self.seen.insert(described.path.clone())) {
                self.fetch(described);
            }
            let described = match described.and_then(|place| self.walk.session.dependencies(place.node)) {
                Some(Dependencies::Package(package)) => package,
                _ => Package::default(),
            };
            return self.in_package(&found, &described, rest);
        }
        Vec::new()
    }

    /// The files that `rest` behind the name of a package means: empty, or `/…`.
    fn in_package(&self, found: &Directory, package: &Package, rest: &str) -> Vec<Place> {
        if package.exports.is_some() {
            let path = format!(".{rest}");
            let targets = package.targets(&path).take(4).collect::<Vec<_>>();
            return targets
                .iter()
                .filter_map(|target| file(self.tree, &names::join(&found.path, target.as_bytes())))
                .collect();
        }
        let path = [&found.path[..], rest.as_bytes()].concat();
        let main = package.main.as_deref().filter(|_| rest.is_empty());
        let main = main.and_then(|main| self.named(&names::join(&found.path, main.as_bytes())));
        main.or_else(|| self.named(&path)).into_iter().collect()
    }

    /// The file that a path without extension means, or the index of the directory that it leads to.
    fn named(&self, path: &[u8]) -> Option<Place> {
        file(self.tree, path).or_else(|| {
            let inside = match self.package(path).and_then(|place| self.walk.session.dependencies(place.node)) {
                Some(Dependencies::Package(package)) => package.main,
                _ => None,
            };
            let main = inside.and_then(|main| file(self.tree, &names::join(path, main.as_bytes())));
            main.or_else(|| file(self.tree, &names::join(path, b"index")))
        })
    }
}

/// The file at a path, or with an extension behind it.
fn file(tree: &Tree, path: &[u8]) -> Option<Place> {
    EXTENSIONS.iter().find_map(|extension| names::file(tree, &[path, extension.as_bytes()].concat()))
}

/// The directories above a path, from the nearest up to the root.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(slash, _)| if slash == 0 { &path[..1] } else { &path[..slash] })
}

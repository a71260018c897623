//! The modules that a Node.js program loads, found and fetched.
//!
//! Only what indexes know is followed ([`crate::dependencies`]): names in modules are resolved in the tree as Node.js does
//! (nodejs.org/api/modules.html, "All together", and api/packages.html), so the whole start is found out without a byte of a
//! module, in the order in which it runs. Both forms of a package that can be required and imported are looked at, because
//! either may be meant.

use std::collections::HashSet;

use super::command::{self, Target};
use super::names::{self, Directory, Names, Place};
use super::programs::Walk;
use super::{Need, Reason};
use crate::dependencies::{Dependencies, name_of};
use crate::javascript::Package;
use crate::limits::{AHEAD_MODULES, AHEAD_SPECIFIERS};

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
    names: &'a Names,
    /// Paths: what a module names depends on where it is.
    seen: HashSet<Vec<u8>>,
    /// Files to be looked at, the next one last.
    waiting: Vec<Place>,
    count: u32,
    /// Names that may still be resolved.
    left: usize,
}

/// Fetches what the first Node.js program of the command line loads, if there is one.
pub(super) fn begin(walk: &Walk<'_>, targets: &[Target]) {
    let names = &walk.session.names;
    for target in targets.iter().filter(|target| target.invoked.is_some()) {
        let script = if is_node(&target.place) {
            script(walk, &target.arguments)
        } else {
            match walk.session.dependencies(target.place.node) {
                Some(Dependencies::Script { interpreters, .. }) => {
                    let node = interpreters.last().and_then(|word| command::program(names, walk.config, word));
                    node.filter(|(_, place)| is_node(place)).map(|_| target.place.clone())
                }
                _ => None,
            }
        };
        if let Some(script) = script {
            let left = AHEAD_SPECIFIERS;
            return Finder { walk, names, seen: HashSet::new(), waiting: Vec::new(), count: 0, left }.run(script);
        }
    }
}

fn is_node(place: &Place) -> bool {
    matches!(name_of(&place.path), b"node" | b"nodejs")
}

/// What the command line of an interpreter names: the first word that is no option and leads to a file.
fn script(walk: &Walk<'_>, arguments: &[String]) -> Option<Place> {
    let here = command::working_directory(walk.config);
    let mut words = arguments.iter().filter(|word| !word.starts_with('-'));
    words.find_map(|word| file(&walk.session.names, &names::join(here, word.as_bytes())))
}

impl Finder<'_> {
    fn run(mut self, script: Place) {
        for place in BESIDE.iter().filter_map(|path| self.names.file(path)) {
            self.fetch(&place);
        }
        self.waiting.push(script);
        while let Some(place) = self.waiting.pop() {
            if !self.see(&place) {
                continue;
            }
            // It says what kind of module this is.
            if let Some(package) = above(&place.path).find_map(|directory| self.description(directory)) {
                self.see(&package);
            }
            let Some(Dependencies::Script { specifiers: names, .. }) = self.walk.session.dependencies(place.node)
            else {
                continue;
            };
            let looked = names.len().min(self.left);
            self.left -= looked;
            let room = AHEAD_MODULES.saturating_sub(self.waiting.len());
            let mut found = Vec::new();
            for name in &names[..looked] {
                found.extend(self.resolve(&place, name).into_iter().filter(|place| !self.seen.contains(&place.path)));
                if found.len() >= room {
                    break;
                }
            }
            self.waiting.extend(found.into_iter().rev());
        }
    }

    /// Fetches a file that was not seen; false if it was, or if there were too many.
    fn see(&mut self, place: &Place) -> bool {
        let is_new = self.seen.len() < AHEAD_MODULES && self.seen.insert(place.path.clone());
        if is_new {
            self.fetch(place);
        }
        is_new
    }

    fn fetch(&mut self, place: &Place) {
        self.walk.begin_file(&Need { reason: Reason::Import, order: vec![self.count] }, place.node);
        self.count = self.count.saturating_add(1);
    }

    /// The `package.json` of a directory.
    fn description(&self, directory: &[u8]) -> Option<Place> {
        self.names.file(&names::join(directory, b"package.json"))
    }

    /// What the `package.json` of a directory says, which is read for that; nothing if there is none.
    fn package(&mut self, directory: &[u8]) -> Package {
        let Some(place) = self.description(directory) else { return Package::default() };
        self.see(&place);
        match self.walk.session.dependencies(place.node) {
            Some(Dependencies::Package(package)) => package,
            _ => Package::default(),
        }
    }

    /// The files that a name in the module at `place` may mean.
    fn resolve(&mut self, place: &Place, name: &str) -> Vec<Place> {
        if name.starts_with(['.', '/']) {
            return self.named(&names::join(place.directory(), name.as_bytes())).into_iter().collect();
        }
        let end = name.match_indices('/').nth(usize::from(name.starts_with('@'))).map_or(name.len(), |(end, _)| end);
        let (package, rest) = name.split_at(end);
        let mut above = above(&place.path).filter(|directory| !directory.ends_with(b"/node_modules"));
        let found = above.find_map(|above| self.names.directory(&names::join(above, b"node_modules"), package));
        found.map_or_else(Vec::new, |found| self.in_package(&found, rest))
    }

    /// The files that `rest` behind the name of a package means: empty, or `/…`.
    fn in_package(&mut self, found: &Directory, rest: &str) -> Vec<Place> {
        let package = self.package(&found.path);
        if package.exports.is_some() {
            let path = format!(".{rest}");
            let targets = package.targets(&path).take(4).collect::<Vec<_>>();
            return targets
                .iter()
                .filter_map(|target| file(self.names, &names::join(&found.path, target.as_bytes())))
                .collect();
        }
        let path = [&found.path[..], rest.as_bytes()].concat();
        let main = package.main.as_deref().filter(|_| rest.is_empty());
        let main = main.and_then(|main| self.named(&names::join(&found.path, main.as_bytes())));
        main.or_else(|| self.named(&path)).into_iter().collect()
    }

    /// The file that a path without extension means, or the index of the directory that it leads to.
    fn named(&mut self, path: &[u8]) -> Option<Place> {
        file(self.names, path).or_else(|| {
            let main = self.package(path).main;
            let main = main.and_then(|main| file(self.names, &names::join(path, main.as_bytes())));
            main.or_else(|| file(self.names, &names::join(path, b"index")))
        })
    }
}

/// The file at a path, or with an extension behind it.
fn file(names: &Names, path: &[u8]) -> Option<Place> {
    EXTENSIONS.iter().find_map(|extension| names.file(&[path, extension.as_bytes()].concat()))
}

/// The directories above a path, from the nearest up to the root.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(slash, _)| if slash == 0 { &path[..1] } else { &path[..slash] })
}

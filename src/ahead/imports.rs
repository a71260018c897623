//! The modules that a Python script imports, found and fetched.
//!
//! An interpreter imports one module after the other, each named by the one before: a round trip for every few of them. Here
//! they are all on their way as soon as they are named: the files of the module are looked for as CPython's path finder does
//! (`sys.path` in order; in each directory a package, an extension, source), and what they import in turn is read from them
//! ([`crate::python`]). A module whose compiled form does not fit its source is going to be compiled, so its source is
//! fetched too; an extension is a library, and brings those it is linked to and the modules that its constants name.
//!
//! Where the index of a layer knows what a file imports ([`crate::dependencies`]), nothing is read: the whole start is found out
//! before its first byte has come, and only the order of what is needed decides.
//!
//! What code does with the module search path while it runs is not known here, nor what functions import when they are called.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::command::{self, Target};
use super::interpreter::{Body, Found, Interpreter, libraries};
use super::names::{self, Directory, Names, Place};
use super::programs::{Constants, Linked, Walk};
use super::turns::{self, Order};
use super::{Need, Reason, contents, poll_once};
use crate::dependencies::Dependencies;
use crate::fetch::{Error, Foretold};
use crate::limits::{
    AHEAD_DIRECTORIES, AHEAD_HOOK_BYTES, AHEAD_HOOKS, AHEAD_MODULE_BYTES, AHEAD_MODULES, AHEAD_NAMES, MODULE_NAME_BYTES,
};
use crate::python::{Compiled, Import, Stamp, imports_of_constants, imports_of_names, imports_of_source};
use crate::tree::{NodeId, Tree};

/// Modules looked into side by side. Many lie in one span, so this is not the number of requests.
const PARALLEL: usize = 128;

/// Longest text that is parsed where it is, in bytes: tens of microseconds.
const SHORT: usize = 16 << 10;

/// Most parts of a dotted name looked for.
const MOST_PARTS: usize = 32;

/// What every start imports before the script.
const FIRST: [&str; 6] =
    ["encodings", "encodings.aliases", "encodings.utf_8", "site", "sitecustomize", "usercustomize"];

/// What nearly every script leads to by and by.
const USUAL: [&str; 4] = ["warnings", "functools", "re", "typing"];

/// What every start of Python reads besides: the locale that it chooses where there is none (PEP 538).
const BESIDE: [&[u8]; 3] =
    [b"/usr/lib/locale/C.utf8/LC_CTYPE", b"/usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache", b"/etc/localtime"];

/// One module that was found.
#[derive(Debug)]
struct Module {
    name: String,
    is_package: bool,
    body: Body,
}

/// One start.
struct Finder<'a> {
    walk: &'a Walk<'a>,
    tree: &'a Tree,
    names: &'a Names,
    python: Interpreter,
    /// Every name that was looked for; the directory of those that are packages.
    known: HashMap<String, Option<Arc<Directory>>>,
    /// By when they are needed; the number tells those apart that have the same order.
    waiting: BTreeMap<(Order, usize), Module>,
    /// The order of the module whose imports are looked at, and how many modules it has led to.
    order: Order,
    next: u32,
    /// How many ever waited.
    entered: usize,
    /// Names that may still be looked up.
    left: usize,
}

/// Fetches what the first Python of the command line imports, if there is one.
pub(super) async fn fetch(walk: &Walk<'_>, targets: &[Target]) -> Result<(), Error> {
    let names = &walk.session.names;
    for target in targets {
        let Some(invoked) = &target.invoked else { continue };
        if let Some(python) = Interpreter::of(names, walk.config, invoked, &target.place) {
            let script = Script::of_arguments(walk, &target.arguments);
            return Finder::new(walk, python, script.directory(walk)).run(script).await;
        }
        if !is_script_like(walk, &target.place) {
            continue;
        }
        for word in walk.interpreters(target.place.node).await? {
            let program = command::program(names, walk.config, &word);
            let python = program.and_then(|(invoked, place)| Interpreter::of(names, walk.config, &invoked, &place));
            if let Some(python) = python {
                let script = Script::File(target.place.clone(), target.arguments.clone());
                return Finder::new(walk, python, script.directory(walk)).run(script).await;
            }
        }
    }
    Ok(())
}

/// True for programs that are short enough to be scripts that only import.
fn is_script_like(walk: &Walk<'_>, place: &Place) -> bool {
    walk.session.files.tree.node(place.node).size() <= AHEAD_MODULE_BYTES
}

/// What an interpreter is told to run.
#[derive(Debug)]
enum Script {
    /// With its arguments.
    File(Place, Vec<String>),
    /// With `-m`.
    Module(String, Vec<String>),
    Other,
}

impl Script {
    /// What the command line of an interpreter names (`python3 --help`).
    fn of_arguments(walk: &Walk<'_>, arguments: &[String]) -> Self {
        let mut rest = arguments.iter();
        while let Some(word) = rest.next() {
            if word == "-" {
                return Self::Other;
            }
            if word == "--check-hash-based-pycs" {
                rest.next();
                continue;
            }
            let Some(options) = word.strip_prefix('-') else {
                let path = names::join(command::working_directory(walk.config), word.as_bytes());
                let place = walk.session.names.file(&path);
                return place.map_or(Self::Other, |place| Self::File(place, rest.cloned().collect()));
            };
            // Options may be joined; these end with what they are about, or take the next word.
            let Some(at) = options.find(['m', 'c', 'W', 'X']).filter(|_| !options.starts_with('-')) else { continue };
            let (name, about) = (&options[at..=at], &options[at + 1..]);
            let about = if about.is_empty() { rest.next().map(String::as_str) } else { Some(about) };
            match (name, about) {
                ("m", Some(module)) => return Self::Module(module.to_owned(), rest.cloned().collect()),
                ("m" | "c", _) => return Self::Other,
                _ => {}
            }
        }
        Self::Other
    }

    /// The first directory of `sys.path`.
    fn directory(&self, walk: &Walk<'_>) -> Vec<u8> {
        match self {
            Self::File(place, _) => place.directory().to_vec(),
            Self::Module(..) | Self::Other => command::working_directory(walk.config).to_vec(),
        }
    }
}

impl<'a> Finder<'a> {
    fn new(walk: &'a Walk<'a>, mut python: Interpreter, first: Vec<u8>) -> Self {
        let names = &walk.session.names;
        if let Some(first) = names.directory(&first, "") {
            python.path.insert(0, first);
        }
        Self {
            walk,
            tree: &walk.session.files.tree,
            names,
            python,
            known: HashMap::new(),
            waiting: BTreeMap::new(),
            order: Vec::new(),
            next: 0,
            entered: 0,
            left: AHEAD_NAMES,
        }
    }

    /// Fetches what the interpreter itself, `script`, and what they import need.
    async fn run(mut self, script: Script) -> Result<(), Error> {
        // What follows is known, and need not be guessed.
        self.walk.session.files.layers.iter().for_each(|layer| layer.foretell(Foretold::Files));
        let beside = BESIDE.iter().filter_map(|path| self.names.file(path)).map(|place| place.node);
        for file in self.python.settings.into_iter().chain(beside) {
            self.walk.begin_file(&need(&Order::new(), 0), file);
        }
        // Where indexes know what modules import, it is known when these are needed as well.
        let is_known = self.walk.session.knows(self.python.program.node);
        for name in FIRST.iter().chain(USUAL.iter().filter(|_| !is_known)) {
            self.find(name);
        }
        let (hooks, read) = tokio::join!(self.hooks(), self.script(&script));
        let (directories, imports) = hooks?;
        directories.into_iter().for_each(|directory| self.python.search(directory));
        imports.iter().for_each(|import| self.import("", false, import));
        read?.iter().for_each(|import| self.import("__main__", false, import));
        if let Script::Module(name, _) = &script {
            self.find(name);
            self.find(&format!("{name}.__main__"));
        }
        self.arguments(&script);
        self.follow().await;
        Ok(())
    }

    /// Reads all that is waiting, and what that leads to.
    async fn follow(&mut self) {
        let linked = self.walk.how_linked(&self.python.program).await;
        let names = Arc::new(self.python.names(self.tree));
        let mut reading = FuturesUnordered::new();
        loop {
            let mut read = None;
            while read.is_none()
                && reading.len() < PARALLEL
                && let Some(((order, _), module)) = self.waiting.pop_first()
            {
                let (walk, linked, names) = (self.walk, &linked, &names);
                let mut one = Box::pin(async move {
                    let imports = match &module.body {
                        Body::Extension(place) => extension(walk, linked, names, place, &order).await,
                        Body::Library(place) => walk.extension(place.clone(), &order, linked).await.map(|_| Vec::new()),
                        Body::Python { source, compiled } => self::read(walk, *source, *compiled, &order).await,
                    };
                    (imports, module, order)
                });
                // What a module leads to comes before its neighbours, so those wait if it is known already.
                match poll_once(&mut one).await {
                    Poll::Ready(known) => read = Some(known),
                    Poll::Pending => reading.push(one),
                }
            }
            let read = if read.is_some() { read } else { reading.next().await };
            let Some((imports, module, order)) = read else { return };
            match imports {
                Ok(imports) => {
                    (self.order, self.next) = (order, 0);
                    imports.iter().for_each(|import| self.import(&module.name, module.is_package, import));
                }
                Err(error) => tracing::debug!(module = module.name, %error, "not fetched ahead"),
            }
        }
    }

    /// What the `.pth` files of the site directories add: directories, and imports.
    async fn hooks(&self) -> Result<(Vec<Directory>, Vec<Import>), Error> {
        let (mut directories, mut imports) = (Vec::new(), Vec::new());
        let files = self.python.sites.iter().flat_map(|site| {
            let names = self.tree.children(site.node, 0).filter(|child| child.name.ends_with(b".pth"));
            names.map(move |child| (site, child.node))
        });
        let files: Vec<_> = files.take(AHEAD_HOOKS).collect();
        for (site, file) in files {
            if self.tree.node(file).size() > AHEAD_HOOK_BYTES {
                continue;
            }
            let text = self.hook(file).await?;
            for line in text.split(|byte| *byte == b'\n') {
                if line.starts_with(b"import ") || line.starts_with(b"import\t") {
                    imports.extend(imports_of_source(line));
                    imports.extend(called(line));
                } else if let Ok(name) = std::str::from_utf8(line.trim_ascii())
                    && !name.is_empty()
                    && directories.len() < AHEAD_DIRECTORIES
                {
                    directories.extend(self.names.directory(&site.path, name));
                }
            }
        }
        Ok((directories, imports))
    }

    /// The text of a `.pth` file.
    async fn hook(&self, file: NodeId) -> Result<Vec<u8>, Error> {
        let need = need(&Order::new(), 0);
        match known(self.walk, &need, file) {
            Some(Dependencies::Text(text)) if text.len() as u64 <= AHEAD_HOOK_BYTES => Ok(text),
            _ => Ok(text(self.walk, &need, file, <[u8]>::to_vec).await?.unwrap_or_default()),
        }
    }

    /// What the script itself imports.
    async fn script(&self, script: &Script) -> Result<Vec<Import>, Error> {
        let Script::File(place, _) = script else { return Ok(Vec::new()) };
        source_imports(self.walk, &need(&Order::new(), 0), place.node).await
    }

    /// Looks for modules that the arguments of a script name, as servers have it: `gunicorn package.module:application`.
    fn arguments(&mut self, script: &Script) {
        let (Script::File(_, arguments) | Script::Module(_, arguments)) = script else { return };
        let Some(here) = self.names.directory(command::working_directory(self.walk.config), "") else { return };
        let is_named = |word: &&String| !word.starts_with('-') && !word.contains('/');
        for word in arguments.iter().filter(is_named) {
            let name = word.split(':').next().unwrap_or(word);
            let first = name.split('.').next().unwrap_or(name);
            if self.python.find(self.names, &here, first).is_some() {
                self.python.search(here.clone());
            }
            self.find(name);
        }
    }

    /// Looks for what an import in `module` means.
    fn import(&mut self, module: &str, is_package: bool, import: &Import) {
        let base = match import.level {
            0 => Some(String::new()),
            level => ancestor(module, level - u32::from(is_package)),
        };
        let Some(base) = base else { return };
        let name = if base.is_empty() || import.module.is_empty() {
            base + &import.module
        } else {
            format!("{base}.{}", import.module)
        };
        if !name.is_empty() && self.find(&name).is_some() {
            for part in import.names.iter().filter(|part| *part != "*") {
                self.find(&format!("{name}.{part}"));
            }
        }
    }

    /// Looks for a module and the packages that it is in; its directory if it is a package.
    fn find(&mut self, name: &str) -> Option<Arc<Directory>> {
        self.left = self.left.checked_sub(1)?;
        if name.len() > MODULE_NAME_BYTES || name.split('.').count() > MOST_PARTS {
            return None;
        }
        let mut above: Option<Arc<Directory>> = None;
        let ends = name.match_indices('.').map(|(end, _)| end).chain([name.len()]);
        for end in ends {
            let (name, leaf) = (&name[..end], name[..end].rsplit('.').next().unwrap_or_default());
            if let Some(known) = self.known.get(name) {
                above = known.clone();
            } else {
                let found = self.look(name, leaf, above.as_deref())?;
                above = self.enter(name, found);
            }
            above.as_ref()?;
        }
        above
    }

    /// Looks for a module that nobody has looked for, in its package if it has one; none if there were too many.
    fn look(&self, name: &str, leaf: &str, above: Option<&Directory>) -> Option<Option<Found>> {
        if self.known.len() >= AHEAD_MODULES {
            return None;
        }
        if self.python.has_frozen(name) {
            return Some(None);
        }
        Some(match above {
            Some(above) => self.python.find(self.names, above, leaf),
            None => self.python.path.iter().find_map(|dir| self.python.find(self.names, dir, leaf)),
        })
    }

    fn enter(&mut self, name: &str, found: Option<Found>) -> Option<Arc<Directory>> {
        let (directory, body) = match found {
            Some(Found::Package(directory, body)) => (Some(directory), body),
            Some(Found::Module(body)) => (None, Some(body)),
            None => (None, None),
        };
        self.known.insert(name.to_owned(), directory.clone());
        let is_package = directory.is_some();
        // They are large, and lead to others, so they go before the package unless it is known that it leads to them.
        let package = directory.as_ref().filter(|_| !name.contains('.'));
        for library in package.map_or_else(Vec::new, |package| libraries(self.names, package)) {
            if !self.walk.session.knows(library.node) {
                self.wait(name, false, Body::Library(library));
            }
        }
        if let Some(body) = body {
            self.wait(name, is_package, body);
        }
        directory
    }

    fn wait(&mut self, name: &str, is_package: bool, body: Body) {
        if self.entered >= 2 * AHEAD_MODULES {
            return;
        }
        let order = turns::part(&self.order, self.next);
        self.next += 1;
        self.entered += 1;
        self.waiting.insert((order, self.entered), Module { name: name.to_owned(), is_package, body });
    }
}

/// The name of the package `level` above `module`; none if there is none.
fn ancestor(module: &str, level: u32) -> Option<String> {
    let mut name = module;
    for _ in 0..level {
        name = name.rsplit_once('.')?.0;
    }
    Some(name.to_owned())
}

/// Modules that a line of a `.pth` file imports by calling.
fn called(line: &[u8]) -> Vec<Import> {
    let line = String::from_utf8_lossy(line);
    let names = line.split("__import__(").skip(1).filter_map(|rest| {
        let rest = rest.strip_prefix(['\'', '"'])?;
        rest.split(['\'', '"']).next().map(str::to_owned)
    });
    names.map(|module| Import { level: 0, module, names: Vec::new() }).collect()
}

/// Fetches an extension and what it is linked to; what it imports, as far as its constants show.
async fn extension(
    walk: &Walk<'_>,
    linked: &Linked,
    names: &Arc<HashSet<String>>,
    place: &Place,
    order: &Order,
) -> Result<Vec<Import>, Error> {
    let constants = match walk.extension(place.clone(), order, linked).await? {
        Constants::Parts(parts) => parts,
        Constants::Names(found) => {
            return Ok(imports_of_names(found.iter().map(String::as_str), |name| names.contains(name)));
        }
    };
    let mut imports = Vec::new();
    for constants in constants {
        let names = Arc::clone(names);
        let look = move |bytes: &[u8]| imports_of_constants(bytes, |name| names.contains(name));
        let range = constants.start..constants.end.min(constants.start.saturating_add(AHEAD_MODULE_BYTES));
        imports.extend(part(walk, &need(order, 3), place.node, range, look).await?.unwrap_or_default());
    }
    Ok(imports)
}

/// Fetches a module; what it imports.
async fn read(
    walk: &Walk<'_>,
    source: Option<NodeId>,
    compiled: Option<NodeId>,
    order: &Order,
) -> Result<Vec<Import>, Error> {
    let compiled = match compiled {
        Some(node) => parsed(walk, &need(order, 0), node).await?,
        None => None,
    };
    let is_fresh = compiled.as_ref().is_some_and(|compiled| match (compiled.stamp, source) {
        (Stamp::Source { mtime, size }, Some(source)) => {
            let node = walk.session.files.tree.node(source);
            (mtime, size) == (node.mtime().seconds as u32, node.size() as u32)
        }
        (Stamp::Hash, Some(_)) => false,
        (_, None) | (Stamp::Unchecked, _) => true,
    });
    if let Some(imports) = compiled.and_then(|compiled| compiled.imports) {
        if let Some(source) = source.filter(|_| !is_fresh) {
            let spans = walk.session.take(source, 0..AHEAD_MODULE_BYTES);
            walk.session.begin(&need(order, 1), spans);
        }
        return Ok(imports);
    }
    match source {
        Some(source) => source_imports(walk, &need(order, 1), source).await,
        None => Ok(Vec::new()),
    }
}

/// Fetches a compiled module; what it says, if it is one.
async fn parsed(walk: &Walk<'_>, need: &Need, node: NodeId) -> Result<Option<Compiled>, Error> {
    match known(walk, need, node) {
        Some(Dependencies::Compiled(compiled)) => Ok(Some(compiled)),
        _ => Ok(text(walk, need, node, Compiled::parse).await?.flatten()),
    }
}

/// Fetches a text in Python; what it imports.
async fn source_imports(walk: &Walk<'_>, need: &Need, node: NodeId) -> Result<Vec<Import>, Error> {
    match known(walk, need, node) {
        // Of what begins as a script for another language the index does not know what Python would read in it.
        Some(Dependencies::Script { imports, interpreters, .. }) if interpreters.is_empty() || !imports.is_empty() => {
            Ok(imports)
        }
        _ => Ok(text(walk, need, node, imports_of_source).await?.unwrap_or_default()),
    }
}

/// What the index knows of a file; it is on its way then.
fn known(walk: &Walk<'_>, need: &Need, node: NodeId) -> Option<Dependencies> {
    let known = walk.session.dependencies(node)?;
    walk.session.begin(need, walk.session.take(node, 0..AHEAD_MODULE_BYTES));
    Some(known)
}

/// Part `number` of what is needed at `order`.
fn need(order: &Order, number: u32) -> Need {
    Need { reason: Reason::Import, order: turns::part(order, number) }
}

/// What `parse` says of a file's bytes; none if it is too long, or may not be fetched.
async fn text<T: Send + 'static>(
    walk: &Walk<'_>,
    need: &Need,
    node: NodeId,
    parse: impl FnOnce(&[u8]) -> T + Send + 'static,
) -> Result<Option<T>, Error> {
    let size = walk.session.files.tree.node(node).size();
    part(walk, need, node, 0..size, parse).await
}

/// What `parse` says of a part of a file; none if it is too long, or may not be fetched. Parses beside the runtime.
async fn part<T: Send + 'static>(
    walk: &Walk<'_>,
    need: &Need,
    node: NodeId,
    range: Range<u64>,
    parse: impl FnOnce(&[u8]) -> T + Send + 'static,
) -> Result<Option<T>, Error> {
    let size = range.end.saturating_sub(range.start);
    if size > AHEAD_MODULE_BYTES || !walk.session.budget().parse(size) {
        return Ok(None);
    }
    let kibibytes = u32::try_from(size >> 10).unwrap_or(u32::MAX).saturating_add(1);
    let held = walk.session.held.acquire_many(kibibytes).await.map_err(|_| Error::Interrupted)?;
    let Some(bytes) = contents::read(walk.session, need, node, range).await? else { return Ok(None) };
    let parsed = if bytes.len() <= SHORT {
        parse(&bytes)
    } else {
        tokio::task::spawn_blocking(move || parse(&bytes)).await.map_err(|_| Error::Interrupted)?
    };
    drop(held);
    Ok(Some(parsed))
}

//! A program, what interprets it, and the libraries it is linked to: found and fetched.
//!
//! Nothing runs while this looks, so it looks where kernel and dynamic loader will: `#!` lines (`env NAME` too), the
//! interpreter named in an ELF file, and for each library `DT_RPATH`, `LD_LIBRARY_PATH`, `DT_RUNPATH`, the image's
//! `/etc/ld.so.cache`, the default directories, in ld.so(8)'s order. The libraries of one level are looked at side by
//! side, because each may cost a round trip.
//!
//! # How much of each file
//!
//! A file of up to [`WHOLE`] bytes is fetched whole: it is a few spans, relocation and start-up code touch most of them, and
//! asking for the rest later would cost a round trip. Of a larger one (`libLLVM`, `node`, a Go program) starting touches little:
//! the parts that [`Elf::start`] names, each up to [`PART`]. What the program then does with its code no header tells; a profile
//! does. Programs themselves, and extensions of an interpreter, are fetched whole up to [`WHOLE_PROGRAM`] bytes, those parts first.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::OnceCell;

use super::command::{self, Target};
use super::names::{self, Place};
use super::turns::{self, Order};
use super::{Need, Reason, Session, contents};
use crate::dependencies::Dependencies;
use crate::elf::{self, Elf, LoaderCache, Machine};
use crate::fetch::Error;
use crate::limits::{AHEAD_FILES, AHEAD_SEARCHED, LOADER_CACHE_BYTES};
use crate::oci::ImageConfig;
use crate::source::BoxFuture;
use crate::tree::NodeId;

/// Files up to this length are fetched whole. Of the libraries of a python or node image one in fifty is longer.
const WHOLE: u64 = 6 << 20;

/// Programs and extensions up to this length are fetched whole, though what starting touches comes first: an interpreter uses
/// most of itself, and importing an extension runs through its tables from one end to the other.
const WHOLE_PROGRAM: u64 = 12 << 20;

/// Files that a program is linked to, and programs, up to this length are fetched whole once all else is asked for, if they are
/// code: `libnode` and `libjvm` are read here and there until the program is ready, a round trip each time.
const WHOLE_IN_THE_END: u64 = 128 << 20;

/// Longest part of a large file that is fetched: its tables or its data.
const PART: u64 = WHOLE;

/// The start of a large file that is no program.
const HEAD: u64 = 1 << 20;

/// Files looked at side by side.
const PARALLEL: usize = 8;

/// Interpreters that programs name, beside which the C library lies.
const INTERPRETERS: [&[u8]; 5] = [
    b"/lib64/ld-linux-x86-64.so.2",
    b"/lib/ld-linux-aarch64.so.1",
    b"/lib/ld-musl-x86_64.so.1",
    b"/lib/ld-musl-aarch64.so.1",
    b"/lib/ld-linux-riscv64-lp64d.so.1",
];

/// Libraries that read a file as soon as they are used.
const CONFIGURED: [(&[u8], &[u8]); 1] = [(b"libcrypto.so", b"/usr/lib/ssl/openssl.cnf")];

/// How often a script's interpreter may be a script; Linux follows 4 (BINPRM loop in fs/exec.c).
const SCRIPTS: usize = 5;

/// What may be names of modules in an extension.
#[derive(Debug)]
pub(super) enum Constants {
    /// These.
    Names(Vec<String>),
    /// What is in these parts of it.
    Parts(Vec<Range<u64>>),
}

/// A library that is to be found, and where its loader has it looked for first.
struct Wanted {
    name: Vec<u8>,
    before: Arc<Vec<Vec<u8>>>,
    after: Arc<Vec<Vec<u8>>>,
}

/// A library, if the image has it.
type Found = Result<Option<(Place, Elf)>, Error>;

/// What holds for all programs of one command line.
pub(super) struct Walk<'a> {
    pub(super) session: &'a Session<'a>,
    pub(super) config: &'a ImageConfig,
    /// The image's `/etc/ld.so.cache`.
    cache: OnceCell<Vec<u8>>,
    /// The names of the libraries that extensions asked for.
    asked: Mutex<HashSet<Vec<u8>>>,
    /// What is read here and there once all else was, see [`Walk::begin_rest`].
    rest: Mutex<Vec<NodeId>>,
}

/// What of a program holds for all that it loads.
#[derive(Debug, Default)]
pub(super) struct Linked {
    /// The path of its interpreter.
    interpreter: Vec<u8>,
    /// Directories of `LD_LIBRARY_PATH`.
    environment: Vec<Vec<u8>>,
    /// What its `DT_RPATH` says.
    inherited: Vec<Vec<u8>>,
}

/// Where the libraries of one machine are looked for.
struct Linking<'a> {
    machine: Machine,
    defaults: Vec<Vec<u8>>,
    linked: &'a Linked,
}

impl<'a> Linking<'a> {
    fn new(machine: Machine, linked: &'a Linked) -> Self {
        Self { machine, defaults: elf::default_directories(machine, &linked.interpreter), linked }
    }
}

impl Need {
    /// What the kernel is about to read.
    fn entry_point() -> Self {
        Self { reason: Reason::EntryPoint, order: Order::new() }
    }

    /// What the same file needs next.
    fn later(&self) -> Self {
        Self { reason: self.reason, order: turns::part(&self.order, 0) }
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(session: &'a Session<'a>, config: &'a ImageConfig) -> Self {
        Self { session, config, cache: OnceCell::new(), asked: Mutex::default(), rest: Mutex::default() }
    }

    /// Fetches the targets and what they need.
    pub(super) async fn fetch(&self, targets: &[Target]) -> Result<(), Error> {
        let mut seen = HashSet::new();
        let is_unknown = |target: &Target| !self.session.knows(target.place.node);
        if targets.iter().any(|target| target.invoked.is_some() && is_unknown(target)) {
            self.begin_usual();
        }
        for target in targets {
            if target.invoked.is_some() {
                self.program(&target.place, &mut seen).await?;
            } else if seen.insert(target.place.node) {
                self.begin_file(&Need::entry_point(), target.place.node);
            }
        }
        Ok(())
    }

    /// Fetches what nearly every program turns out to need, a round trip before it is known.
    fn begin_usual(&self) {
        for interpreter in INTERPRETERS.iter().filter_map(|path| self.session.names.file(path)) {
            self.begin_file(&Need::entry_point(), interpreter.node);
            let library = self.session.names.file(&names::join(interpreter.directory(), b"libc.so.6"));
            let cache = self.session.names.file(b"/etc/ld.so.cache").filter(|_| library.is_some());
            for place in library.iter().chain(&cache) {
                self.begin_file(&Need::entry_point(), place.node);
            }
        }
    }

    /// Fetches a program, its interpreters and its libraries.
    async fn program(&self, place: &Place, seen: &mut HashSet<NodeId>) -> Result<(), Error> {
        let mut waiting = vec![place.clone()];
        let mut scripts = 0;
        while let Some(place) = waiting.pop() {
            if !seen.insert(place.node) {
                continue;
            }
            match self.content(&Need::entry_point(), place.node).await? {
                Some(Dependencies::Program { elf, .. }) => {
                    self.begin_whole(&Need::entry_point().later(), place.node);
                    self.note_rest(place.node, &elf);
                    self.linked(&place, *elf, seen).await?;
                }
                Some(Dependencies::Script { interpreters, .. }) if scripts < SCRIPTS => {
                    scripts += 1;
                    let programs =
                        interpreters.iter().filter_map(|word| command::program(&self.session.names, self.config, word));
                    waiting.extend(programs.map(|(_, place)| place));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The programs that interpret a file if it is a script: what its first line names.
    pub(super) async fn interpreters(&self, node: NodeId) -> Result<Vec<Vec<u8>>, Error> {
        Ok(match self.look(&Need::entry_point(), node, self.session.dependencies(node)).await? {
            Some(Dependencies::Script { interpreters, .. }) => interpreters,
            _ => Vec::new(),
        })
    }

    /// Fetches what a linked program needs.
    async fn linked(&self, place: &Place, elf: Elf, seen: &mut HashSet<NodeId>) -> Result<(), Error> {
        let Some(path) = &elf.interpreter else { return Ok(()) };
        if let Some(interpreter) = self.session.names.file(path).filter(|interpreter| seen.insert(interpreter.node)) {
            self.begin_file(&Need::entry_point(), interpreter.node);
        }
        let linked = self.linked_as(&elf, place);
        let linking = Linking::new(elf.machine, &linked);
        let mut names = HashSet::new();
        let first = wanted(&elf, place, &[], &mut names);
        self.libraries(&Need::entry_point(), first, &linking, |elf, place| {
            self.note_rest(place.node, elf);
            seen.insert(place.node);
            wanted(elf, place, &linked.inherited, &mut names)
        })
        .await
    }

    /// How a program is linked, which holds for what it loads as well; nothing particular if that cannot be read.
    pub(super) async fn how_linked(&self, program: &Place) -> Linked {
        match self.look(&Need::entry_point(), program.node, self.session.dependencies(program.node)).await {
            Ok(Some(Dependencies::Program { elf, .. })) => self.linked_as(&elf, program),
            _ => Linked::default(),
        }
    }

    fn linked_as(&self, elf: &Elf, program: &Place) -> Linked {
        let origin = Some(program.directory());
        let environment = command::variable(self.config, "LD_LIBRARY_PATH");
        Linked {
            interpreter: elf.interpreter.clone().unwrap_or_default(),
            environment: environment.map_or_else(Vec::new, |text| directories(&[text.as_bytes().to_vec()], origin)),
            inherited: directories(&elf.rpath, origin),
        }
    }

    /// Fetches what a library needs that a running program loads. What may be names of modules among its constants.
    pub(super) async fn extension(&self, place: Place, order: &Order, linked: &Linked) -> Result<Constants, Error> {
        let need = |number| Need { reason: Reason::Import, order: turns::part(order, number) };
        let known = self.session.dependencies(place.node);
        let is_known = known.is_some();
        let Some(Dependencies::Program { elf, names }) = self.content_of(&need(0), place.node, known).await? else {
            return Ok(Constants::Names(Vec::new()));
        };
        self.begin_whole(&need(2), place.node);
        let linking = Linking::new(elf.machine, linked);
        let needs = |elf: &Elf, place: &Place| {
            wanted(elf, place, &linked.inherited, &mut self.asked.lock().unwrap_or_else(PoisonError::into_inner))
        };
        self.libraries(&need(1), needs(&elf, &place), &linking, needs).await?;
        Ok(if is_known { Constants::Names(names) } else { Constants::Parts(elf.constants) })
    }

    /// Fetches libraries level by level; `needs` says what each asks for that nobody asked for before.
    async fn libraries(
        &self,
        need: &Need,
        mut level: Vec<Wanted>,
        linking: &Linking<'_>,
        mut needs: impl FnMut(&Elf, &Place) -> Vec<Wanted>,
    ) -> Result<(), Error> {
        if level.is_empty() {
            return Ok(());
        }
        let cache = self.loader_cache().await?;
        while !level.is_empty() {
            let find = |wanted| self.library(need, wanted, linking, cache);
            let finding = level.into_iter().map(find).collect::<Vec<_>>();
            let found: Vec<_> = stream::iter(finding).buffered(PARALLEL).try_collect().await?;
            level = found.into_iter().flatten().flat_map(|(place, elf)| needs(&elf, &place)).collect();
        }
        Ok(())
    }

    /// Finds one library and fetches it; none if the image does not have it.
    fn library<'b>(
        &'b self,
        need: &'b Need,
        wanted: Wanted,
        linking: &'b Linking<'b>,
        cache: &'b [u8],
    ) -> BoxFuture<'b, Found> {
        Box::pin(async move {
            for path in candidates(&wanted, linking, cache) {
                let Some(place) = self.session.names.file(&path) else { continue };
                // One for another machine is passed over, as the loader does.
                if let Some(Dependencies::Program { elf, .. }) = self.content(need, place.node).await?
                    && elf.machine == linking.machine
                {
                    self.begin_configuration(need, &wanted.name);
                    return Ok(Some((place, *elf)));
                }
            }
            Ok(None)
        })
    }

    /// What a file says. Its useful parts are being fetched then; only what had to be looked at is here.
    async fn content(&self, need: &Need, node: NodeId) -> Result<Option<Dependencies>, Error> {
        self.content_of(need, node, self.session.dependencies(node)).await
    }

    /// [`Walk::content`], of which its index says what is `known`.
    async fn content_of(
        &self,
        need: &Need,
        node: NodeId,
        known: Option<Dependencies>,
    ) -> Result<Option<Dependencies>, Error> {
        let is_small = self.session.files.tree.node(node).size() <= WHOLE;
        if is_small {
            // All at once: its parts would be fetched one after the other.
            self.begin_file(need, node);
        }
        let content = self.look(need, node, known).await?;
        if !is_small {
            match &content {
                Some(Dependencies::Program { elf, .. }) => {
                    // What it is linked to is mapped by its head, and then both are relocated.
                    let (head, rest) = elf.start.split_at(elf.start.len().min(1));
                    self.begin_parts(need, node, head);
                    self.begin_parts(&need.later(), node, rest);
                }
                _ => self.begin_file(need, node),
            }
        }
        Ok(content)
    }

    /// What a program or script says of itself: by its index, or by its bytes.
    async fn look(
        &self,
        need: &Need,
        node: NodeId,
        known: Option<Dependencies>,
    ) -> Result<Option<Dependencies>, Error> {
        match known {
            Some(known) => Ok(Some(known)),
            None => Ok(contents::parse(self.session, need, node, Dependencies::of_program).await?.flatten()),
        }
    }

    /// Fetches a file that is only read: all of it, or its head.
    pub(super) fn begin_file(&self, need: &Need, node: NodeId) {
        let size = self.session.files.tree.node(node).size();
        let length = if size <= WHOLE { size } else { HEAD };
        self.begin_parts(need, node, std::slice::from_ref(&(0..length)));
    }

    /// Fetches what a library reads when it is used.
    fn begin_configuration(&self, need: &Need, library: &[u8]) {
        let files = CONFIGURED.iter().filter(|(name, _)| library.starts_with(name));
        for place in files.filter_map(|(_, path)| self.session.names.file(path)) {
            self.begin_file(need, place.node);
        }
    }

    /// Fetches the rest of a program of which much will be run.
    fn begin_whole(&self, need: &Need, node: NodeId) {
        let size = self.session.files.tree.node(node).size();
        if size <= WHOLE_PROGRAM {
            self.session.begin(need, self.session.take(node, 0..size));
        }
    }

    /// Takes note of a large file that is linked to the program that is started, or of that itself, unless it is mostly constants:
    /// that is a table of something, such as `libicudata`, of which little is read.
    fn note_rest(&self, node: NodeId, elf: &Elf) {
        let size = self.session.files.tree.node(node).size();
        let constants: u64 =
            elf.constants.iter().map(|part| part.end.saturating_sub(part.start)).fold(0, u64::saturating_add);
        if (WHOLE..=WHOLE_IN_THE_END).contains(&size) && constants < size / 2 {
            self.rest.lock().unwrap_or_else(PoisonError::into_inner).push(node);
        }
    }

    /// Fetches the rest of what was noted, after all else, if as much may still be fetched.
    pub(super) fn begin_rest(&self) {
        let need = Need { reason: Reason::EntryPoint, order: vec![turns::LAST] };
        let nodes = std::mem::take(&mut *self.rest.lock().unwrap_or_else(PoisonError::into_inner));
        for node in nodes {
            self.session.begin(&need, self.session.take(node, 0..self.session.files.tree.node(node).size()));
        }
    }

    fn begin_parts(&self, need: &Need, node: NodeId, parts: &[Range<u64>]) {
        let cut = |part: &Range<u64>| part.start..part.end.min(part.start.saturating_add(PART));
        let spans = parts.iter().flat_map(|part| self.session.take(node, cut(part))).collect();
        self.session.begin(need, spans);
    }

    /// The image's cache of libraries, read once; empty if there is none.
    async fn loader_cache(&self) -> Result<&[u8], Error> {
        let read = || async {
            let tree = &self.session.files.tree;
            let Some(place) = self.session.names.file(b"/etc/ld.so.cache") else { return Ok(Vec::new()) };
            let size = tree.node(place.node).size();
            if size > LOADER_CACHE_BYTES {
                return Ok(Vec::new());
            }
            if let Some(Dependencies::Text(text)) = self.session.dependencies(place.node) {
                self.begin_file(&Need::entry_point(), place.node);
                return Ok(text);
            }
            let read = contents::read(self.session, &Need::entry_point(), place.node, 0..size).await?;
            Ok(read.map_or_else(Vec::new, Vec::from))
        };
        self.cache.get_or_try_init(read).await.map(Vec::as_slice)
    }
}

/// The libraries that `elf` asks for and nobody asked for before.
fn wanted(elf: &Elf, place: &Place, inherited: &[Vec<u8>], names: &mut HashSet<Vec<u8>>) -> Vec<Wanted> {
    let origin = Some(place.directory());
    let (before, after) = match elf.runpath.as_slice() {
        [] => ([directories(&elf.rpath, origin), inherited.to_vec()].concat(), Vec::new()),
        runpath => (Vec::new(), directories(runpath, origin)),
    };
    let (before, after) = (Arc::new(before), Arc::new(after));
    let new = elf.needed.iter().filter(|name| names.len() < AHEAD_FILES && names.insert((*name).clone()));
    new.map(|name| Wanted { name: name.clone(), before: Arc::clone(&before), after: Arc::clone(&after) }).collect()
}

/// The paths at which the loader looks for a library, in its order.
fn candidates(wanted: &Wanted, linking: &Linking<'_>, cache: &[u8]) -> Vec<Vec<u8>> {
    let name = &wanted.name;
    if name.contains(&b'/') {
        return vec![name.clone()];
    }
    let within = |directories: &[Vec<u8>]| directories.iter().map(|dir| names::join(dir, name)).collect::<Vec<_>>();
    let cached =
        LoaderCache::parse(cache).map_or_else(Vec::new, |cache| cache.find(name).map(<[u8]>::to_vec).collect());
    [
        within(&wanted.before),
        within(&linking.linked.environment),
        within(&wanted.after),
        cached,
        within(&linking.defaults),
    ]
    .concat()
}

fn directories(paths: &[Vec<u8>], origin: Option<&[u8]>) -> Vec<Vec<u8>> {
    paths.iter().flat_map(|text| elf::search_path(text, origin)).take(AHEAD_SEARCHED).collect()
}

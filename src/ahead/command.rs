//! Which files the image's command line names.
//!
//! `Entrypoint` and `Cmd` are one line of words. The first is the program; others may be programs too (`tini -- app`,
//! `docker-entrypoint.sh postgres`, `/bin/sh -c "exec app --flag"`), or the script it interprets. Every word that names
//! a file counts: guessing one wrong costs little, and a word that names nothing costs nothing.

use super::names::{self, Place};
use crate::limits::AHEAD_WORDS;
use crate::oci::ImageConfig;
use crate::tree::Tree;

/// What a shell and the kernel search where `Env` has no `PATH`; Docker's default.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A file that will be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) place: Place,
    /// It will be run, not only read.
    pub(super) is_program: bool,
}

/// The files that the command line names, in its order.
pub(super) fn targets(tree: &Tree, config: &ImageConfig) -> Vec<Target> {
    let words = config.entrypoint.iter().chain(&config.cmd).flat_map(|word| split(word));
    let named = words.take(AHEAD_WORDS).filter_map(|word| target(tree, config, word.as_bytes()));
    let mut targets: Vec<Target> = Vec::new();
    for target in named {
        if targets.iter().all(|known| known.place.node != target.place.node) {
            targets.push(target);
        }
    }
    targets
}

/// A word, or the words of a shell's command. Options and assignments name no file.
fn split(word: &str) -> impl Iterator<Item = &str> {
    let words = word.split_whitespace().map(|word| word.trim_matches(|letter| "\"'`;&|()".contains(letter)));
    words.filter(|word| {
        let is_assignment = word.find('=').is_some_and(|equals| word.find('/').is_none_or(|slash| equals < slash));
        !word.is_empty() && !word.starts_with('-') && !is_assignment
    })
}

fn target(tree: &Tree, config: &ImageConfig, word: &[u8]) -> Option<Target> {
    if let Some(place) = program(tree, config, word) {
        return Some(Target { place, is_program: true });
    }
    let place = names::file(tree, &names::join(working_directory(config), word))?;
    Some(Target { place, is_program: false })
}

/// The program that `name` means: a path, or a name that is looked for in `PATH` (execvp(3)).
pub(super) fn program(tree: &Tree, config: &ImageConfig, name: &[u8]) -> Option<Place> {
    let is_executable = |place: &Place| tree.node(place.node).mode() & 0o111 != 0;
    if name.contains(&b'/') {
        return names::file(tree, &names::join(working_directory(config), name)).filter(is_executable);
    }
    let path = variable(config, "PATH").unwrap_or(PATH);
    path.split(':')
        .filter(|directory| directory.starts_with('/'))
        .find_map(|directory| names::file(tree, &names::join(directory.as_bytes(), name)).filter(is_executable))
}

/// The value of a variable of the image's environment.
pub(super) fn variable<'a>(config: &'a ImageConfig, name: &str) -> Option<&'a str> {
    config.env.iter().rev().find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='))
}

fn working_directory(config: &ImageConfig) -> &[u8] {
    config.working_dir.as_deref().filter(|dir| dir.starts_with('/')).unwrap_or("/").as_bytes()
}

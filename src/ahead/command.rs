//! Which files the image's command line names.
//!
//! `Entrypoint` and `Cmd` are one line of words. The first is the program; others may be programs too (`tini -- app`,
//! `docker-entrypoint.sh postgres`, `/bin/sh -c "exec app --flag"`), or the script it interprets. Every word that names
//! a file counts: guessing one wrong costs little, and a word that names nothing costs nothing.

use super::names::{self, Names, Place};
use crate::limits::AHEAD_WORDS;
use crate::oci::ImageConfig;

/// What a shell and the kernel search where `Env` has no `PATH`; Docker's default.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A file that will be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) place: Place,
    /// The path by which it will be run; none if it is only read.
    pub(super) invoked: Option<Vec<u8>>,
    /// The words that follow it.
    pub(super) arguments: Vec<String>,
}

/// The files that the command line names, in its order.
pub(super) fn targets(names: &Names, config: &ImageConfig) -> Vec<Target> {
    let words = config.entrypoint.iter().chain(&config.cmd).flat_map(|word| split(word));
    let words: Vec<&str> = words.take(AHEAD_WORDS).collect();
    let mut targets: Vec<Target> = Vec::new();
    for (number, word) in words.iter().enumerate().filter(|(_, word)| names_a_file(word)) {
        let Some((invoked, place)) = target(names, config, word.as_bytes()) else { continue };
        if targets.iter().all(|known| known.place.node != place.node) {
            let arguments = words[number + 1..].iter().map(|word| (*word).to_owned()).collect();
            targets.push(Target { place, invoked, arguments });
        }
    }
    targets
}

/// A word, or the words of a shell's command.
fn split(word: &str) -> impl Iterator<Item = &str> {
    let words = word.split_whitespace().map(|word| word.trim_matches(|letter| "\"'`;&|()".contains(letter)));
    words.filter(|word| !word.is_empty())
}

/// Options and assignments name no file.
fn names_a_file(word: &str) -> bool {
    let is_assignment = word.find('=').is_some_and(|equals| word.find('/').is_none_or(|slash| equals < slash));
    !word.starts_with('-') && !is_assignment
}

fn target(names: &Names, config: &ImageConfig, word: &[u8]) -> Option<(Option<Vec<u8>>, Place)> {
    if let Some((invoked, place)) = program(names, config, word) {
        return Some((Some(invoked), place));
    }
    let place = names.file(&names::join(working_directory(config), word))?;
    Some((None, place))
}

/// The program that `name` means: a path, or a name that is looked for in `PATH` (execvp(3)). The path by which it is
/// found, and what it leads to.
pub(super) fn program(names: &Names, config: &ImageConfig, name: &[u8]) -> Option<(Vec<u8>, Place)> {
    let executable = |path: Vec<u8>| {
        let place = names.file(&path).filter(|place| names.tree.node(place.node).mode() & 0o111 != 0)?;
        Some((path, place))
    };
    if name.contains(&b'/') {
        return executable(names::join(working_directory(config), name));
    }
    let path = variable(config, "PATH").unwrap_or(PATH);
    path.split(':')
        .filter(|directory| directory.starts_with('/'))
        .find_map(|directory| executable(names::join(directory.as_bytes(), name)))
}

/// The value of a variable of the image's environment.
pub(super) fn variable<'a>(config: &'a ImageConfig, name: &str) -> Option<&'a str> {
    config.env.iter().rev().find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='))
}

/// Where the program starts.
pub(super) fn working_directory(config: &ImageConfig) -> &[u8] {
    config.working_dir.as_deref().filter(|dir| dir.starts_with('/')).unwrap_or("/").as_bytes()
}

//! Bytes that change in the cache while nobody looks.

use std::fs;
use std::path::Path;

use super::served::{Opening, Served};
use super::{Dice, copy_below, files_below, flip};
use crate::support::temp_dir;

/// What a look without the registry must be after damage.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Alone {
    /// The cache has all that it takes to make the damaged object again.
    Right,
    /// Only the registry has it.
    Error,
    /// It depends on the byte.
    Either,
}

/// Damages every object below `part` of copies of the cache, one byte at a time, `count` bytes each, and looks.
fn damage(served: &Served, cache: &Path, part: &str, count: u64, alone: Alone) {
    let mut dice = Dice::new(0x5eed);
    let objects = files_below(&cache.join(part));
    assert!(!objects.is_empty(), "the cache has no {part}");
    let mut errors = 0;
    for object in objects {
        let name = object.strip_prefix(cache).expect("it is below");
        let size = fs::metadata(&object).expect("it is there").len();
        // The name of a tree is found again with the tree.
        let is_of_tree = fs::read(&object).expect("it is there").windows(8).any(|part| part == b"tree of ");
        let alone = if part == "refs" && is_of_tree { Alone::Right } else { alone };
        for number in 0..count.min(size) {
            // The first and the last byte, and in between one somewhere in each of equal stretches.
            let stretch = size / count.max(1);
            let place = match number {
                0 => 0,
                1 => size - 1,
                _ => (number * stretch + dice.below(stretch.max(1))).min(size - 1),
            };
            let mask = if dice.below(4) == 0 { 0xff } else { 1 << dice.below(8) };
            let copy = temp_dir();
            copy_below(cache, copy.path());
            flip(&copy.path().join(name), place, mask);
            let what = format!("{} with byte {place} of {size} changed by {mask:#04x}", name.display());
            let looks = if number % 2 == 0 { [true, false] } else { [false, true] };
            let opening = if number / 2 % 2 == 0 { Opening::Told } else { Opening::Untold };
            for (turn, offline) in looks.into_iter().enumerate() {
                let looked = served.look_as(copy.path(), &served.tagged(), offline, opening);
                match (offline, &looked) {
                    (false, Err(error)) => panic!("{what}: {error}"),
                    // What was read with the registry at hand has been healed.
                    (true, Err(error)) if turn == 1 || alone == Alone::Right => panic!("{what}, offline: {error}"),
                    (true, Ok(())) if turn == 0 && alone == Alone::Error => {
                        panic!("{what}: offline nothing was missed")
                    }
                    (true, Err(_)) => errors += 1,
                    (_, Ok(())) => {}
                }
            }
            // Layers are healed where they are read; long decoded files are checked in the background.
            if part != "blobs" && size <= 256 << 10 {
                let healed = fs::read(copy.path().join(name)).ok();
                let damaged = healed.is_some_and(|bytes| bytes != fs::read(&object).expect("it is there"));
                assert!(!damaged, "{what}: the damage stays");
            }
        }
    }
    assert!(alone == Alone::Right || errors > 0, "no byte of {part} was ever missed");
}

#[test]
fn a_damaged_document_or_reference_is_fetched_again_or_missed() {
    let served = Served::new();
    let cache = served.complete();
    damage(&served, cache.path(), "manifests", 8, Alone::Error);
    damage(&served, cache.path(), "refs", 8, Alone::Error);
}

#[test]
fn a_damaged_index_or_tree_is_made_again_from_the_layers() {
    let served = Served::new();
    let cache = served.complete();
    damage(&served, cache.path(), "indexes", 5, Alone::Right);
    damage(&served, cache.path(), "trees", 16, Alone::Right);
}

#[test]
fn a_damaged_index_is_made_again_by_fetching_the_layer_if_that_is_not_here() {
    let served = Served::new();
    let cache = served.lazy();
    damage(&served, cache.path(), "indexes", 2, Alone::Error);
}

#[test]
fn a_damaged_byte_of_a_complete_layer_is_never_read() {
    let served = Served::new();
    let cache = served.complete();
    damage(&served, cache.path(), "blobs", 8, Alone::Either);
}

#[test]
fn a_damaged_byte_of_a_partial_layer_or_its_map_is_never_read() {
    let served = Served::new();
    let cache = served.partial();
    let names = files_below(&cache.path().join("blobs"));
    let with = |suffix: &str| names.iter().filter(|name| name.to_string_lossy().ends_with(suffix)).count();
    assert!(with(".partial") > 3 && with(".partial") == with(".map"), "{names:?}");
    damage(&served, cache.path(), "blobs", 6, Alone::Either);
}

#[test]
fn a_damaged_decoded_file_is_never_read() {
    let served = Served::new();
    let cache = served.published();
    damage(&served, cache.path(), "files", 4, Alone::Error);
}

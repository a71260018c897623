//! Servers that lie about manifests, configurations and layers, for a while or always.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ocifs::demo::registry::{Answer, Fault, Request as Asked};
use ocifs::oci::Digest;

use super::served::{Looked, Served, view_of};
use super::{Dice, copy_below};
use crate::support::temp_dir;

/// What a lie of the server may lead to. A wrong byte it never may.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    /// The client notices and gets the right bytes in the end.
    Right,
    /// There is nothing right to be had.
    Error,
    /// An error if a part of the blob is asked for; asking for the whole of it gets it.
    ErrorOfRange,
}

impl Outcome {
    fn fits(self, looked: &Looked) -> bool {
        match self {
            Self::Right => looked.is_ok(),
            Self::Error => looked.is_err(),
            Self::ErrorOfRange => true,
        }
    }
}

/// Decides how one kind of answer goes wrong.
type Lie = Box<dyn Fn(&Asked) -> Option<Fault> + Send + Sync>;

fn lie(lie: impl Fn(&Asked) -> Option<Fault> + Send + Sync + 'static) -> Lie {
    Box::new(lie)
}

/// The fault in the first two answers.
fn twice(fault: Fault) -> Lie {
    let told = AtomicU32::new(0);
    lie(move |_| (told.fetch_add(1, Ordering::Relaxed) < 2).then(|| fault.clone()))
}

/// The ways in which a server lies about a blob of `size` bytes.
fn lies(size: u64) -> Vec<(String, Lie, Outcome)> {
    use Outcome::{Error, ErrorOfRange, Right};
    let slow = Fault::Drip { bytes: 20_000, every: Duration::from_millis(5) };
    let mut lies = vec![
        ("cuts answers short, twice".to_owned(), twice(Fault::Truncate { after: 70 }), Right),
        (
            "cuts answers without a length short, twice".to_owned(),
            twice(Fault::Many(vec![Fault::NoLength, Fault::Truncate { after: 70 }])),
            Right,
        ),
        ("stops and resets, twice".to_owned(), twice(Fault::Many(vec![slow, Fault::Reset { after: 70 }])), Right),
        ("ignores ranges".to_owned(), lie(|_| Some(Fault::IgnoreRange)), Right),
        ("states no range".to_owned(), lie(|asked| asked.range().map(|_| Fault::ContentRange(None))), ErrorOfRange),
        (
            "states another range".to_owned(),
            lie(|asked| asked.range().map(|_| Fault::ContentRange(Some("bytes 1-2/3".to_owned())))),
            ErrorOfRange,
        ),
        ("sends another range".to_owned(), lie(|_| Some(Fault::OtherRange(1..9))), Error),
        ("sends another blob".to_owned(), lie(|_| Some(Answer::new(200).body("<html>not found</html>").into())), Error),
        (
            "sends zeros".to_owned(),
            lie(move |_| Some(Answer::new(200).body(vec![0; usize::try_from(size).expect("a small blob")]).into())),
            Error,
        ),
        (
            "sends zeros and more of them".to_owned(),
            lie(move |_| Some(Answer::new(200).body(vec![0; usize::try_from(size).expect("a small blob") + 1]).into())),
            Error,
        ),
    ];
    let mut dice = Dice::new(size);
    for offset in [0, size / 2, size - 1, dice.below(size)] {
        lies.push((format!("inverts byte {offset}"), lie(move |_| Some(Fault::Corrupt { offset })), Error));
    }
    lies
}

/// Lies about `digest` only, from now on.
fn tell(served: &Served, digest: Digest, lie: Lie) {
    served.registry.forget_requests();
    served.registry.set_faults(move |asked| asked.path.ends_with(&digest.to_string()).then(|| lie(asked)).flatten());
}

/// How often the blob was asked for since the lie began.
fn asked(served: &Served, digest: Digest) -> usize {
    let requests = served.registry.requests();
    requests.iter().filter(|record| record.request.path.ends_with(&digest.to_string())).count()
}

#[test]
fn a_server_that_lies_at_first_contact_gets_no_byte_through_and_is_believed_again_when_it_is_right() {
    let served = Served::new();
    let config = served.built.config.clone();
    let mut refused_ranges = 0;
    // One layer of each compression: every lie is told to each, and takes its pauses.
    for blob in served.built.layers.iter().step_by(2).chain([&config]) {
        for (what, lie, outcome) in lies(blob.size) {
            let what = format!("blob of {} bytes: the server {what}", blob.size);
            let cache = temp_dir();
            tell(&served, blob.digest, lie);
            let looked = served.look(cache.path(), &served.tagged(), false);
            assert!(outcome.fits(&looked), "{what}: {looked:?}");
            let enough = if what.ends_with(", twice") { 3 } else { 1 };
            assert!(asked(&served, blob.digest) >= enough, "{what}: nobody was lied to");
            if outcome == Outcome::ErrorOfRange && looked.is_err() {
                refused_ranges += 1;
            }
            served.assert_nothing_wrong_is_kept(cache.path());
            served.registry.clear_faults();
            let looked = served.look(cache.path(), &served.tagged(), false);
            assert_eq!(looked, Ok(()), "{what}, but no more");
        }
    }
    assert!(refused_ranges > 0, "no layer was asked for in parts: {:?}", served.built.layers);
}

#[test]
fn a_server_that_lies_to_lazy_reads_gets_no_byte_through_and_is_believed_again_when_it_is_right() {
    let served = Served::new();
    let cache = served.lazy();
    for (number, blob) in served.built.layers.iter().enumerate().step_by(2) {
        for (what, lie, outcome) in lies(blob.size) {
            let what = format!("layer {number} of {} bytes: the server {what}", blob.size);
            let copy = temp_dir();
            copy_below(cache.path(), copy.path());
            tell(&served, blob.digest, lie);
            let (first, second) = served.runtime.block_on(async {
                let opened = served.open(copy.path(), &served.tagged(), false).await.expect("it needs no layer");
                let first = served.compare(&view_of(&opened.fs, &|_| true).await);
                served.registry.clear_faults();
                assert!(asked(&served, blob.digest) > 0, "{what}: nobody was lied to");
                (first, served.compare(&view_of(&opened.fs, &|_| true).await))
            });
            // Bytes that no file needs, such as the end of the archive, may be wrong as they like.
            let may_be_right = what.contains("inverts byte");
            assert!(outcome.fits(&first) || (first.is_ok() && may_be_right), "{what}: {first:?}");
            assert_eq!(second, Ok(()), "{what}, but no more");
            served.assert_nothing_wrong_is_kept(copy.path());
        }
    }
}

#[test]
fn a_span_that_is_wrong_once_is_fetched_again_within_the_same_read() {
    let served = Served::new();
    let cache = served.lazy();
    let lied = Mutex::new(HashSet::new());
    served.registry.forget_requests();
    // The first answer about every layer is wrong, behind the header of a gzip member, where a byte may mean nothing.
    served.registry.set_faults(move |asked| {
        let start =
            asked.range().and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse::<u64>().ok());
        let offset = start.unwrap_or(0) + 20;
        let is_first = asked.is_blob() && lied.lock().ok()?.insert(asked.path.clone());
        is_first.then_some(Fault::Corrupt { offset })
    });
    assert_eq!(served.look(cache.path(), &served.tagged(), false), Ok(()));
    served.assert_nothing_wrong_is_kept(cache.path());
    for layer in &served.built.layers {
        assert!(asked(&served, layer.digest) >= 2, "{} was not asked for again", layer.digest);
    }
}

#[test]
fn a_manifest_with_a_wrong_byte_is_refused_by_digest_and_leads_to_no_wrong_tree_by_tag() {
    let served = Served::new();
    let size = served.built.manifest.size;
    let mut refused = 0;
    for offset in (0..size).step_by(usize::try_from(size / 60).expect("a short document").max(1)) {
        served.registry.set_faults(move |asked| asked.is_manifest().then_some(Fault::Corrupt { offset }));
        let cache = temp_dir();
        let pinned = served.look(cache.path(), &served.pinned(), false);
        assert!(pinned.is_err(), "byte {offset} is wrong");
        // A tag may lead anywhere, even to another manifest, but what layers hold is pinned by their digests.
        refused += u64::from(served.look(cache.path(), &served.tagged(), false).is_err());
        served.assert_nothing_wrong_is_kept(cache.path());
        served.registry.clear_faults();
        assert_eq!(served.look(cache.path(), &served.tagged(), false), Ok(()));
        assert_eq!(served.look(cache.path(), &served.pinned(), true), Ok(()));
    }
    assert!(refused > 0);
}

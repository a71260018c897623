//! What the cache lacks of an image whose source may not be asked, or does not answer: in numbers, and layer by layer.

use std::collections::HashSet;
use std::sync::Arc;

use bytesize::ByteSize;

use super::control::OnOutage;
use super::{Code, Failure};
use crate::fetch::{Layer, Progress};
use crate::image::{Image, Lack, Origin};
use crate::oci::{Digest, Printable};
use crate::store::Store;

/// Most layers that one failure names; the others are counted.
const NAMED: usize = 8;

/// What the cache lacks of `layer`.
pub(super) fn of(layer: &Layer) -> Lack {
    let (size, present) = (layer.blob.size(), layer.blob.present_bytes());
    Lack { layer: layer.blob.digest(), missing: size.saturating_sub(present), size }
}

/// `3 MiB of 2 of 7 layers are not in the cache`; `lacking` is not empty.
fn sentence(lacking: &[Lack], count: usize) -> String {
    let bytes = ByteSize::b(lacking.iter().map(|lack| lack.missing).sum()).display().iec();
    format!("{bytes} of {} of {count} layers are not in the cache", lacking.len())
}

/// The failure that names what is lacking of `count` layers; none if nothing is.
pub(super) fn failure(lacking: &[Lack], count: usize) -> Option<Failure> {
    if lacking.is_empty() {
        return None;
    }
    let failure = Failure::new(Code::Unreachable, sentence(lacking, count)).hint("leave out --offline to fetch them");
    let named = lacking.iter().take(NAMED).fold(failure, |failure, lack| {
        let (missing, size) = (ByteSize::b(lack.missing).display().iec(), ByteSize::b(lack.size).display().iec());
        failure.because(format!("layer {} lacks {missing} of {size}", lack.layer))
    });
    Some(match lacking.len().saturating_sub(NAMED) {
        0 => named,
        more => named.because(format!("and {more} more")),
    })
}

/// What to tell who mounts `image` when nothing may be fetched for it, or when its registry did not answer: which part of it
/// cannot be read. None if all of it can.
pub(super) fn warning(image: &Image, offline: bool, on_outage: OnOutage) -> Option<String> {
    let mut seen = HashSet::new();
    let distinct: Vec<&Arc<Layer>> =
        image.layers.iter().map(|layer| &layer.layer).filter(|layer| seen.insert(layer.blob.digest())).collect();
    // What the manifest embeds has a reader even offline.
    let is_cut_off = |layer: &&&Arc<Layer>| !offline || layer.reader.is_none();
    let lacking: Vec<_> =
        distinct.iter().filter(is_cut_off).map(|layer| of(layer)).filter(|lack| lack.missing > 0).collect();
    let then = consequence(offline, on_outage);
    (!lacking.is_empty()).then(|| format!("{}: {then}", sentence(&lacking, distinct.len())))
}

/// The layers of `image` that were streamed for it now, each once, with how that went.
pub(super) fn streamed(image: &Image) -> Vec<(Digest, Arc<Progress>)> {
    let mut seen = HashSet::new();
    let streamed = image.layers.iter().filter(|layer| matches!(layer.origin, Origin::FirstContact));
    let streamed = streamed.filter_map(|layer| Some((layer.descriptor.digest, layer.streamed.clone()?)));
    streamed.filter(|(digest, _)| seen.insert(*digest)).collect()
}

/// What to tell whose layers were `streamed` in vain, because the cache does not keep what was learned from that; none
/// if it does. Blocks on the file system.
pub(super) fn unkept(streamed: &[(Digest, Arc<Progress>)], store: &Store) -> Option<String> {
    let is_lost = |(layer, _): &&(Digest, Arc<Progress>)| !store.index(layer).is_ok_and(|index| index.is_some());
    let lost: Vec<_> = streamed.iter().filter(is_lost).collect();
    if lost.is_empty() {
        return None;
    }
    let of = format!("the index of {} of {} layers", lost.len(), streamed.len());
    // What was kept and is gone again had to make room.
    let refusal = lost.iter().filter_map(|(_, progress)| progress.unkept.get()).find(|error| !error.is_out_of_space());
    let dir = Printable::path(store.dir());
    let told = match refusal {
        Some(error) => {
            let Failure { error, causes, .. } = Failure::of(Code::Cache, error);
            format!("{dir} does not keep {of} ({})", [vec![error], causes].concat().join(": "))
        }
        None => {
            let free = store
                .free_bytes()
                .map_or_else(|_| "no".to_owned(), |free| ByteSize::b(free).display().iec().to_string());
            format!("{dir} has no room for {of} ({free} free)")
        }
    };
    Some(format!("{told}: they are streamed again next time"))
}

/// What becomes of who reads what is not here.
fn consequence(offline: bool, on_outage: OnOutage) -> &'static str {
    match on_outage {
        _ if offline => "reading them fails",
        OnOutage::Wait(_) => "reading them has to wait for the registry",
        OnOutage::Eio => "reading them fails until the registry is back",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_errors_in_an_outage_is_told_of_errors() {
        assert_eq!(consequence(true, OnOutage::default()), "reading them fails");
        assert!(consequence(false, OnOutage::default()).contains("wait"));
        assert_eq!(consequence(false, OnOutage::Eio), "reading them fails until the registry is back");
    }

    #[test]
    fn what_is_lacking_is_told_in_numbers_and_layer_by_layer() {
        let lack =
            |number: u64| Lack { layer: Digest::sha256(&number.to_le_bytes()), missing: 1 << 20, size: number << 20 };
        assert_eq!(failure(&[], 3), None);
        let lacking: Vec<_> = (1..=10).map(lack).collect();
        let failure = failure(&lacking, 12).expect("something is lacking");
        assert_eq!(failure.error, "10.0 MiB of 10 of 12 layers are not in the cache");
        assert_eq!(failure.causes.len(), 9);
        assert_eq!(failure.causes[1], format!("layer {} lacks 1.0 MiB of 2.0 MiB", lacking[1].layer));
        assert_eq!(failure.causes[8], "and 2 more");
    }
}

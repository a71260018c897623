//! Claims: whatever a valid one cuts a layer into decodes exactly, and whatever is wrong with one is refused.

use super::*;
use crate::limits::{CLAIM_SKIP_BYTES, XATTR_VALUE_BYTES};

/// A claim that cuts the stream where `index` does, with whole windows and digests of the kinds that `kinds` says.
pub(super) fn claim_like(index: &LayerIndex, blob: &[u8], tar: &[u8], kinds: u64) -> Claim {
    let span = |id: SpanId| {
        let (compressed, decoded) = (index.compressed(id), index.decoded(id));
        let own = index.span(id);
        let start = match own.window {
            spans::FRESH => Start::Fresh,
            _ => {
                Start::Window(tar[..decoded.start as usize][decoded.start.saturating_sub(32 << 10) as usize..].to_vec())
            }
        };
        let digest = match kinds >> (id.get() % 64) & 1 {
            0 => SpanDigest::Decoded(sha256(blob_bytes(tar, decoded.clone()))),
            _ => SpanDigest::Compressed(sha256(blob_bytes(blob, compressed.clone()))),
        };
        ClaimedSpan { compressed, bit: own.bit, skip: 0, length: decoded.end - decoded.start, start, digest }
    };
    Claim {
        compression: index.compression(),
        entries: entries(index),
        spans: index.span_ids().map(span).collect(),
        uncompressed_size: index.uncompressed_size(),
        fidelity: Times::Exact,
        prefetch_end: None,
    }
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Digest::sha256(bytes).bytes().try_into().expect("32 bytes")
}

fn claimed(blob: &[u8], tar: &[u8], claim: Claim) -> LayerIndex {
    LayerIndex::claimed(&expect(blob, tar), claim).expect("a valid claim")
}

/// A claim about members or frames of `part` bytes of the stream each, of which the pieces at `cuts` (place and length)
/// are the spans, in this order.
fn claim_of_parts(
    compression: Compression,
    parts: &[(Range<u64>, Range<u64>)],
    tar: &[u8],
    cuts: &[(u64, u64)],
) -> Claim {
    let mut spans = Vec::new();
    for (place, length) in cuts {
        let mut at = *place;
        while at < place + length {
            let (compressed, decoded) =
                parts.iter().find(|(_, decoded)| decoded.contains(&at)).expect("a part of the stream");
            let end = decoded.end.min(place + length);
            spans.push(ClaimedSpan {
                compressed: compressed.clone(),
                bit: 0,
                skip: at - decoded.start,
                length: end - at,
                start: Start::Fresh,
                digest: SpanDigest::Decoded(sha256(blob_bytes(tar, at..end))),
            });
            at = end;
        }
    }
    let uncompressed_size = spans.iter().map(|span| span.length).sum();
    let fidelity = Times::Seconds;
    Claim { compression, entries: Vec::new(), spans, uncompressed_size, fidelity, prefetch_end: None }
}

/// Decodes every span of a claim in both ways and joins them.
fn decode_all(index: &LayerIndex, blob: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for span in index.span_ids() {
        let compressed = blob_bytes(blob, index.compressed(span));
        let decoded = index.decode(span, compressed).expect("the right bytes");
        let mut streamed = Vec::new();
        index.decode_to(span, in_pieces(compressed), &mut streamed).expect("the right bytes");
        assert!(streamed == decoded, "both ways of decoding agree");
        assert_eq!(index.decoded(span), all.len() as u64..(all.len() + decoded.len()) as u64);
        all.extend_from_slice(&decoded);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_claim_cut_like_a_true_index_decodes_exactly(
        seed: u64,
        sizes in prop::collection::vec(prop_oneof![0_usize..3000, 0_usize..900_000], 1..5),
        form in 0..4,
        level in 0_u32..10,
        part in 1000_usize..900_000,
        kinds: u64,
    ) {
        let (tar, _) = tar_of(seed, &sizes);
        let blob = match form {
            0 => tar.clone(),
            1 => gzip(&tar, level),
            2 => pieces_of(&tar, part, |bytes| gzip(bytes, level)),
            _ => pieces_of(&tar, part, zstd_frame),
        };
        let truth = index(&blob, &tar);
        let claim = claimed(&blob, &tar, claim_like(&truth, &blob, &tar, kinds));
        prop_assert!(decode_all(&claim, &blob) == tar);
        prop_assert_eq!(entries(&claim), entries(&truth));
        prop_assert!(!claim.is_proven() && truth.is_proven());
        prop_assert_eq!(truth.identity(), truth.layer());
        prop_assert_ne!(claim.identity(), truth.identity());
        let stored = LayerIndex::open_claim(claim.as_bytes().clone()).expect("an encoded claim");
        prop_assert_eq!(stored.identity(), claim.identity());
        prop_assert!(LayerIndex::open(claim.as_bytes().clone()).is_err(), "a claim is not taken for a proven index");
    }

    #[test]
    fn chunks_anywhere_in_members_and_frames_in_any_order_decode_exactly(
        seed: u64,
        gzipped: bool,
        part in 2000_usize..120_000,
        cuts in prop::collection::vec((0_u64..240_000, 1_u64..60_000), 1..12),
        flip: prop::sample::Index,
    ) {
        let (tar, _) = tar_of(seed, &[100_000, 300, 200_000]);
        let compress = |bytes: &[u8]| if gzipped { gzip(bytes, 6) } else { zstd_frame(bytes) };
        let (mut blob, mut parts) = (Vec::new(), Vec::new());
        for (number, bytes) in tar.chunks(part).enumerate() {
            let (start, decoded) = (blob.len() as u64, (number * part) as u64);
            blob.extend(compress(bytes));
            parts.push((start..blob.len() as u64, decoded..decoded + bytes.len() as u64));
        }
        let compression = if gzipped { Compression::Gzip } else { Compression::Zstd };
        let claim = claimed(&blob, &tar, claim_of_parts(compression, &parts, &tar, &cuts));
        let wanted: Vec<u8> =
            cuts.iter().flat_map(|(place, length)| blob_bytes(&tar, *place..place + length)).copied().collect();
        prop_assert!(decode_all(&claim, &blob) == wanted);
        // A flipped bit gives an error or the same bytes, never others: it may lie behind the chunk, or in a header's time.
        let mut wrong = blob.clone();
        wrong[flip.index(blob.len())] ^= 0x10;
        for span in claim.span_ids() {
            let compressed = blob_bytes(&wrong, claim.compressed(span));
            let right = blob_bytes(&wanted, claim.decoded(span));
            let mut streamed = Vec::new();
            prop_assert!(claim.decode(span, compressed).map_or(true, |bytes| bytes == right));
            prop_assert!(claim.decode_to(span, in_pieces(compressed), &mut streamed).is_err() || streamed == right);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn d_021_a_claim_forged_with_right_digests_is_refused_or_harmless(
        form in 0..3,
        forgeries in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_records: bool,
        whole: bool,
    ) {
        let (tar, _) = tar_of(51, &[3000, 70_000, 100]);
        let blob = match form {
            0 => tar.clone(),
            1 => gzip(&tar, 6),
            _ => pieces_of(&tar, 20_000, zstd_frame),
        };
        let truth = index(&blob, &tar);
        let claim = claimed(&blob, &tar, claim_like(&truth, &blob, &tar, 0b0110));
        for index in [&truth, &claim] {
            let mut bytes = index.as_bytes().to_vec();
            let metadata = index.metadata_len() as usize;
            let records = format::HEADER_BYTES + index.span_count() as usize * 52;
            for (place, value) in &forgeries {
                // Not the digests of the header, which are made right again.
                let place = if in_records { format::HEADER_BYTES + place.index(records - format::HEADER_BYTES) }
                    else { place.index(metadata) };
                bytes[place] = *value;
            }
            format::reseal(&mut bytes);
            if !whole { bytes.truncate(metadata) }
            let Ok(forged) = LayerIndex::open_claim(Bytes::from(bytes)) else { continue };
            prop_assert!(forged.check().is_ok() || whole);
            let entries = forged.entries().take(1000).filter(Result::is_ok).count() as u64;
            prop_assert!(entries <= forged.entry_count());
            prop_assert!(forged.check_entries().is_err() || entries == forged.entry_count());
            for span in forged.span_ids() {
                let (range, decoded) = (forged.compressed(span), forged.decoded(span));
                prop_assert!(range.start < range.end && decoded.start < decoded.end);
                prop_assert!(range.end <= forged.compressed_size() && decoded.end <= forged.uncompressed_size());
                let Some(compressed) = blob.get(range.start as usize..range.end.min(1 << 40) as usize) else { continue };
                // What has a digest that is not forged is right; a span that says it is huge is streamed.
                let mut streamed = Vec::new();
                let outcome = forged.decode_to(span, in_pieces(compressed), &mut streamed);
                prop_assert!(outcome.is_err() || streamed.len() as u64 == decoded.end - decoded.start);
                if decoded.end - decoded.start <= 1 << 20 {
                    prop_assert_eq!(forged.decode(span, compressed).ok(), outcome.ok().map(|()| Bytes::from(streamed)));
                }
            }
        }
    }
}

#[test]
fn a_flipped_bit_under_a_digest_of_compressed_bytes_is_always_found() {
    let (tar, _) = tar_of(31, &[1_200_000]);
    for blob in [gzip(&tar, 6), tar.clone()] {
        let claim = claimed(&blob, &tar, claim_like(&index(&blob, &tar), &blob, &tar, u64::MAX));
        let span = claim.span_ids().nth(1).expect("two spans");
        let right = blob_bytes(&blob, claim.compressed(span)).to_vec();
        claim.decode(span, &right).expect("the right bytes");
        for at in (0..right.len()).step_by(right.len() / 30) {
            let mut wrong = right.clone();
            wrong[at] ^= 1;
            let is_digest = |error| matches!(error, Error::Span { fault: SpanFault::Digest, .. });
            assert!(is_digest(claim.decode(span, &wrong).expect_err("wrong bytes")), "byte {at}");
            assert!(is_digest(claim.decode_to(span, in_pieces(&wrong), &mut Vec::new()).expect_err("wrong bytes")));
        }
        for wrong in [&right[1..], &right[..right.len() - 1], &[]] {
            assert!(matches!(claim.decode(span, wrong), Err(Error::Span { fault: SpanFault::Length, .. })));
            assert!(claim.decode_to(span, in_pieces(wrong), &mut Vec::new()).is_err());
        }
    }
}

#[test]
fn right_bytes_that_a_claim_leads_astray_are_the_claims_fault() {
    let (tar, _) = tar_of(32, &[1_200_000]);
    let blob = gzip(&tar, 6);
    let mut claim = claim_like(&index(&blob, &tar), &blob, &tar, u64::MAX);
    claim.spans[1].bit ^= 5;
    claim.spans[1].start = Start::Window(vec![]);
    let claim = claimed(&blob, &tar, claim);
    let span = claim.span_ids().nth(1).expect("two spans");
    let outcome = claim.decode(span, blob_bytes(&blob, claim.compressed(span)));
    // Noise may happen to be deflate data; it is what the claim says then.
    assert!(matches!(outcome, Ok(_) | Err(Error::Damaged(..))), "{outcome:?}");
}

#[test]
fn windows_may_come_after_the_metadata() {
    let (tar, _) = tar_of(33, &[1_500_000, 20_000]);
    let blob = gzip(&tar, 6);
    let whole = index(&blob, &tar);
    let (bytes, length) = (whole.as_bytes().clone(), whole.metadata_len() as usize);
    assert_eq!(whole.encoded_len() as usize, bytes.len());
    let early = LayerIndex::open_claim(bytes.slice(..length)).expect("the metadata is enough");
    assert_eq!(early.identity(), LayerIndex::open_claim(bytes.clone()).expect("all of it").identity());
    assert_eq!(entries(&early), entries(&whole));
    assert!(!early.has_windows() && early.encoded_len() == whole.encoded_len());
    early.check().expect("what is here is sound");
    let (first, second) = (SpanId(0), SpanId(1));
    let decode = |index: &LayerIndex, span| index.decode(span, blob_bytes(&blob, whole.compressed(span)));
    assert!(!early.lacks_window(first) && decode(&early, first).is_ok(), "a member's beginning needs none");
    assert!(early.lacks_window(second) && matches!(decode(&early, second), Err(Error::NoWindows(_))));
    let windows = bytes.slice(length..);
    let mut wrong = windows.to_vec();
    wrong[7] ^= 1;
    for wrong in [wrong.into(), windows.slice(1..), windows.slice(..windows.len() - 1), Bytes::new()] {
        assert!(matches!(early.set_windows(wrong), Err(Error::Damaged(..))) && !early.has_windows());
    }
    let clone = early.clone();
    early.set_windows(windows).expect("the right ones");
    assert!(clone.has_windows() && !clone.lacks_window(second));
    check_spans(&clone, &blob, &tar);
    for end in (0..length).step_by(97).chain([length + 1, bytes.len() - 1]) {
        assert!(LayerIndex::open_claim(bytes.slice(..end)).is_err(), "cut to {end}");
    }
    assert!(LayerIndex::open(bytes.slice(..length)).is_err(), "a proven index is whole");
}

/// A small valid claim about a gzip layer, to be spoiled.
fn sample() -> (Vec<u8>, Vec<u8>, Claim) {
    let (tar, _) = tar_of(34, &[1_200_000, 2000]);
    let blob = gzip(&tar, 6);
    let claim = claim_like(&index(&blob, &tar), &blob, &tar, 0);
    (tar, blob, claim)
}

#[test]
fn d_017_d_018_malformed_spans_are_refused() {
    let (tar, blob, claim) = sample();
    assert!(claim.spans.len() >= 2);
    type Spoil = fn(&mut Claim);
    let spoilers: [(&str, Spoil); 19] = [
        ("begins after the end", |claim| claim.spans[0].compressed.start = u64::MAX),
        ("ends beyond the blob", |claim| claim.spans[1].compressed.end += 1 << 40),
        ("ends before it begins", |claim| claim.spans[1].compressed.end = 0),
        ("has no bytes", |claim| claim.spans[1].compressed.end = claim.spans[1].compressed.start),
        ("decodes to nothing", |claim| claim.spans.insert(1, ClaimedSpan { length: 0, ..claim.spans[1].clone() })),
        ("is too long", |claim| claim.spans[1].length += 1 << 40),
        ("overflows", |claim| claim.spans[1].length = u64::MAX),
        ("leaves a gap", |claim| claim.spans[1].length -= 1),
        ("is missing", |claim| drop(claim.spans.pop())),
        ("is one too many", |claim| claim.spans.push(claim.spans[1].clone())),
        ("begins inside a byte without a window", |claim| claim.spans[0].bit = 3),
        ("has nine bits", |claim| claim.spans[1].bit = 9),
        ("has too long a window", |claim| claim.spans[1].start = Start::Window(vec![1; codec::WINDOW + 1])),
        ("skips too much", |claim| claim.spans[0].skip = CLAIM_SKIP_BYTES + 1),
        ("skips far too much", |claim| claim.spans[0].skip = u64::MAX),
        ("has a window in zstd", |claim| claim.compression = Compression::Zstd),
        ("is longer than its tar", |claim| claim.compression = Compression::None),
        ("makes up another stream", |claim| claim.uncompressed_size += 1),
        ("makes up nothing", |claim| claim.spans.clear()),
    ];
    for (what, spoil) in spoilers {
        let mut spoiled = claim.clone();
        spoil(&mut spoiled);
        let refused = LayerIndex::claimed(&expect(&blob, &tar), spoiled).expect_err(what);
        assert!(matches!(refused, Malformed::Claim { .. }), "{what}: {refused}");
    }
    claimed(&blob, &tar, claim);
}

#[test]
fn d_018_d_020_malformed_entries_are_refused_by_name() {
    let (tar, blob, claim) = sample();
    fn file(claim: &mut Claim) -> (&mut u64, &mut Vec<Segment>) {
        let found = claim.entries.iter_mut().find_map(|entry| match &mut entry.kind {
            Kind::Regular { size, segments, .. } => Some((size, segments)),
            _ => None,
        });
        found.expect("a file")
    }
    type Spoil = fn(&mut Claim);
    let spoilers: [(&str, Spoil); 24] = [
        ("goes up", |claim| claim.entries[1].path = b"dir/../x".to_vec()),
        ("is absolute", |claim| claim.entries[1].path = b"/dir/x".to_vec()),
        ("has a NUL", |claim| claim.entries[1].path = b"dir/\0".to_vec()),
        ("has an empty name", |claim| claim.entries[1].path = b"dir//x".to_vec()),
        ("has a long name", |claim| claim.entries[1].path = vec![b'x'; 256]),
        ("has a type in its mode", |claim| claim.entries[1].mode = 0o10644),
        ("is from before the epoch", |claim| claim.entries[1].mtime.seconds = -1),
        ("is from the far future", |claim| claim.entries[1].mtime.seconds = i64::MAX),
        ("has too many nanoseconds", |claim| claim.entries[1].mtime.nanos = 1_000_000_000),
        ("has attributes twice", |claim| {
            let xattr = || Xattr { name: b"user.x".to_vec(), value: vec![] };
            claim.entries[1].xattrs = vec![xattr(), xattr()];
        }),
        ("has an attribute without a name", |claim| {
            claim.entries[1].xattrs = vec![Xattr { name: vec![], value: vec![] }];
        }),
        ("steers the host (A-133)", |claim| {
            claim.entries[1].xattrs = vec![Xattr { name: b"trusted.overlay.opaque".to_vec(), value: b"y".to_vec() }];
        }),
        ("steers an overlay above (A-134)", |claim| {
            claim.entries[1].xattrs = vec![Xattr { name: b"user.overlay.opaque".to_vec(), value: b"y".to_vec() }];
        }),
        ("has a long attribute", |claim| {
            claim.entries[1].xattrs = vec![Xattr { name: b"user.x".to_vec(), value: vec![0; XATTR_VALUE_BYTES + 1] }];
        }),
        ("has bytes beyond the stream", |claim| file(claim).1[0].layer_offset += 1 << 30),
        ("has bytes beyond itself", |claim| *file(claim).0 -= 1),
        ("overflows in the stream", |claim| file(claim).1[0].layer_offset = u64::MAX),
        ("overflows in the file", |claim| file(claim).1[0].file_offset = u64::MAX),
        ("overflows in length", |claim| file(claim).1[0].length = u64::MAX),
        ("has an empty piece", |claim| file(claim).1[0].length = 0),
        ("has a piece twice", |claim| {
            let (size, segments) = file(claim);
            *size *= 2;
            let length = segments[0].length;
            segments.push(Segment { file_offset: length, ..segments[0] });
        }),
        ("is longer than any file", |claim| *file(claim).0 = u64::MAX),
        ("leads nowhere", |claim| claim.entries[1].kind = Kind::Symlink { target: vec![] }),
        ("is a link to itself (D-019)", |claim| {
            let target = claim.entries[1].path.clone();
            claim.entries[1].kind = Kind::HardLink { target };
        }),
    ];
    for (what, spoil) in spoilers {
        let mut spoiled = claim.clone();
        spoil(&mut spoiled);
        let refused = LayerIndex::claimed(&expect(&blob, &tar), spoiled).expect_err(what);
        assert!(matches!(refused, Malformed::Entry { .. }), "{what}: {refused}");
    }
}

#[test]
fn short_files_have_no_content_digest_in_claims_either() {
    let (tar, blob, mut claim) = sample();
    for entry in &mut claim.entries {
        if let Kind::Regular { size, content, .. } = &mut entry.kind {
            (*size, *content) = (*size, Some([7; 32]));
        }
    }
    let tiny = Kind::Regular { size: CONTENT_DIGEST_BYTES - 1, segments: vec![], content: Some([7; 32]) };
    claim.entries.push(entry("tiny", tiny));
    let kept = entries(&claimed(&blob, &tar, claim));
    let is_tiny = |entry: &Entry| matches!(entry.kind, Kind::Regular { content: None, .. });
    assert_eq!(kept.iter().filter(|entry| is_tiny(entry)).count(), 1);
    assert!(kept.last().is_some_and(is_tiny));
}

#[test]
fn a_flipped_byte_anywhere_in_a_claim_is_noticed() {
    let (tar, blob, claim) = sample();
    let index = claimed(&blob, &tar, claim);
    let bytes = index.as_bytes();
    // Most of it is windows, which are alike.
    let metadata = index.metadata_len() as usize;
    for at in (0..metadata).chain((metadata..bytes.len()).step_by(101)) {
        let mut wrong = bytes.to_vec();
        wrong[at] ^= 1 << (at % 8);
        let noticed = LayerIndex::open_claim(Bytes::from(wrong)).map_or(true, |opened| opened.check().is_err());
        assert!(noticed, "byte {at} of {}", bytes.len());
    }
}

//! Any layer, in any form, gives what tar gives; and no bytes at all make a reader panic.

use std::convert::Infallible;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::index::{self, Expected, LayerIndex};

fn kinds() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let mode = (0_u16..=0o7777, any::<(u32, u32)>(), (0_i64..4_000_000_000, 0_u32..1_000_000_000));
    let name = prop::collection::vec(prop::sample::select(vec!["a", "b", "dir", "\u{e9}", "long-name"]), 1..4);
    let content = prop_oneof![
        (0_usize..40, any::<u64>()).prop_map(|(length, seed)| text(length, seed)),
        (0_usize..30_000, any::<u64>()).prop_map(|(length, seed)| text(length, seed)),
        (0_usize..30_000, any::<u64>())
            .prop_map(|(zeros, seed)| [vec![0; zeros], text(700, seed), vec![0; zeros]].concat()),
    ];
    (name, 0..9, mode, content).prop_map(|(name, kind, (mode, owner, time), content)| {
        let path = name.join("/");
        let target = b"a/b".to_vec();
        let (mut entry, content) = match kind {
            0..3 => file(&path, content),
            3 => (entry(&path, Kind::Directory), Vec::new()),
            4 => (entry(&path, Kind::Symlink { target }), Vec::new()),
            5 if path != "a/b" => (entry(&path, Kind::HardLink { target }), Vec::new()),
            6 => (entry(&path, Kind::CharDevice { major: 5, minor: 255 }), Vec::new()),
            7 => (entry(&path, Kind::Whiteout), Vec::new()),
            _ => (entry(&path, Kind::Opaque), Vec::new()),
        };
        if !matches!(entry.kind, Kind::Whiteout | Kind::Opaque) {
            entry.mode = if matches!(entry.kind, Kind::Symlink { .. }) { 0o777 } else { mode };
            (entry.uid, entry.gid) = owner;
            entry.mtime = Timestamp { seconds: time.0, nanos: time.1 };
        }
        (entry, content)
    })
}

fn how() -> impl Strategy<Value = How> {
    let sizes =
        (prop::sample::select(vec![300, 4096, 20_000, 1 << 20]), prop::sample::select(vec![0, 10_000, 1 << 20]));
    (prop::sample::select(Form::ALL.to_vec()), sizes, any::<bool>()).prop_map(
        |(form, (chunk, member), has_landmark)| {
            let member = if form == Form::ZstdStorage { 0 } else { member };
            How { chunk, member, has_landmark, ..How::new(form) }
        },
    )
}

/// A layer in which no name comes twice.
fn layers() -> impl Strategy<Value = Vec<(Entry, Vec<u8>)>> {
    prop::collection::vec(kinds(), 0..20).prop_map(|members| {
        let mut seen = std::collections::HashSet::new();
        members
            .into_iter()
            .filter(|(entry, _)| seen.insert((entry.path.clone(), std::mem::discriminant(&entry.kind))))
            .fold((Vec::new(), std::collections::HashSet::new()), |(mut kept, mut plain), member: (Entry, Vec<u8>)| {
                let marks = matches!(member.0.kind, Kind::Whiteout | Kind::Opaque);
                if marks || plain.insert(member.0.path.clone()) {
                    kept.push(member);
                }
                (kept, plain)
            })
            .0
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_layer_gives_what_tar_gives(members in layers(), how in how()) {
        let tar = stream(&members);
        let written = write(&tar, how);
        let claim = claim_of(&written).unwrap_or_else(|error| panic!("{how:?}: {error}"));
        assert_is(&claim, &written, &tar);

        // The index that it makes is equal to the one that a first contact makes of the same blob.
        let layer = Digest::sha256(&written.blob);
        let expected = Expected { layer, size: written.blob.len() as u64, diff_id: Digest::sha256(&written.stream) };
        let pieces = [Ok::<_, Infallible>(Bytes::from(written.blob.clone()))];
        let truth = index::build(pieces.into_iter(), expected).expect("a layer");
        let claimed = LayerIndex::claimed(&expected, claim).expect("a valid claim");
        let read = |range: Range<u64>| {
            Ok::<_, Infallible>(Bytes::copy_from_slice(&written.blob[range.start as usize..range.end as usize]))
        };
        index::compare(&claimed, &truth, read).expect("the claim is true");
        for span in claimed.span_ids() {
            let compressed = claimed.compressed(span);
            claimed.decode(span, &read(compressed).expect("bytes")).expect("the layer's own bytes");
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), size in any::<u64>(), magic in 0_usize..4) {
        let footer = writer::gzip_footer(Form::Estargz, "zzSTARGZ");
        let end = [&b""[..], b"GNUlInUx", b"GnUlInUx", &footer][magic];
        let bytes = [&bytes[..], end].concat();
        let found = Footer::find(&bytes, size);
        if let Ok(Some(Footer::Within(place))) = &found {
            prop_assert!(place.bytes().end <= size && place.payload_end <= place.bytes().start);
        }
        estargz::document(&bytes).ok();
        zstd_chunked::document(&bytes, None).ok();
        for format in BOTH {
            read(format, &bytes, size).ok();
        }
    }

    #[test]
    fn any_position_is_within_the_blob_or_refused(text in "[0-9:]{0,60}", size in any::<u64>()) {
        if let Some(place) = zstd_chunked::Position::parse(&text).and_then(|position| position.place(size)) {
            prop_assert!(place.bytes().end <= size);
        }
    }

    /// Valid documents, of which a value or a byte is changed: refused, or a claim whose every part is within its bounds.
    #[test]
    fn changed_documents_are_refused_or_bounded(
        which in any::<prop::sample::Index>(),
        key in prop::sample::select(vec![
            "size", "offset", "innerOffset", "endOffset", "chunkOffset", "chunkSize", "chunkDigest", "digest", "type", "name",
            "linkName", "chunkType",
        ]),
        value in prop_oneof![
            any::<i64>().prop_map(Value::from),
            (0_i64..2000).prop_map(Value::from),
            prop::sample::select(vec!["", "reg", "chunk", "hardlink", "dir", "zeros", "bin/su", "..", DIGEST]).prop_map(Value::from),
            Just(Value::Null),
        ],
        cut in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let how = How { chunk: 9000, ..How::new(Form::ZstdStorage) };
        let written = write_changed(&stream(&everything()), how, |document| {
            let entries = document["entries"].as_array_mut().expect("entries");
            let which = which.index(entries.len());
            entries[which][key] = value;
        });
        let mut document = written.document;
        if let Some((place, byte)) = cut {
            let place = place.index(document.len());
            document[place] = byte;
        }
        for format in BOTH {
            let Ok(claim) = read(format, &document, written.blob.len() as u64) else { continue };
            let total: u64 = claim.spans.iter().map(|span| span.length).sum();
            prop_assert_eq!(total, claim.uncompressed_size);
            for span in &claim.spans {
                prop_assert!(span.compressed.start < span.compressed.end);
                prop_assert!(span.compressed.end <= written.blob.len() as u64);
            }
            for entry in &claim.entries {
                let Kind::Regular { size, segments, .. } = &entry.kind else { continue };
                let mut at = 0;
                for segment in segments {
                    prop_assert!(segment.file_offset >= at && segment.length > 0);
                    at = segment.file_offset + segment.length;
                    prop_assert!(segment.layer_offset + segment.length <= total);
                }
                prop_assert!(at <= *size);
            }
        }
    }
}

//! Layers of every compression are indexed, and every span of them is decoded and compared with the plain stream.

mod claims;
mod compared;

use std::convert::Infallible;
use std::io::Write;

use flate2::{Compression as Level, GzBuilder, write::GzEncoder};
use proptest::prelude::*;

use super::*;
use crate::limits::CONTENT_DIGEST_BYTES;
use crate::oci::Algorithm;
use crate::tar::{Kind, Segment, Timestamp, Writer, Xattr};

/// Numbers that look random and are the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// Text that compresses about as programs do, with references near and far.
    fn text(&mut self, length: usize) -> Vec<u8> {
        let mut text = Vec::with_capacity(length + 16);
        while text.len() < length {
            match self.next() % 4 {
                0 => text.extend_from_slice(&self.next().to_le_bytes()[..3]),
                1 => text.extend_from_slice(format!("word{} ", self.next() % 500).as_bytes()),
                _ if text.len() > 64 => {
                    let from = text.len() - 1 - (self.next() as usize % text.len().min(32 << 10));
                    let length = 3 + self.next() as usize % 60;
                    text.extend_from_within(from..(from + length).min(text.len()));
                }
                _ => text.extend_from_slice(b"begin "),
            }
        }
        text.truncate(length);
        text
    }
}

fn entry(path: &str, kind: Kind) -> Entry {
    let mtime = Timestamp { seconds: 1_700_000_000, nanos: 0 };
    Entry { path: path.as_bytes().to_vec(), kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: Vec::new() }
}

/// A tar stream with files of these sizes and a few other things, and the files' contents.
fn tar_of(seed: u64, sizes: &[usize]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut noise = Noise(seed);
    let mut writer = Writer::new(Vec::new());
    let mut contents = Vec::new();
    writer.append(&entry("dir", Kind::Directory), &b""[..]).expect("writing to memory");
    for (number, size) in sizes.iter().enumerate() {
        let content = noise.text(*size);
        let size = *size as u64;
        let segments = if size == 0 { vec![] } else { vec![Segment { file_offset: 0, layer_offset: 0, length: size }] };
        let kind = Kind::Regular { size, segments, content: None };
        writer.append(&entry(&format!("dir/file-{number}"), kind), &content[..]).expect("writing to memory");
        contents.push(content);
    }
    let link = Kind::Symlink { target: b"file-0".to_vec() };
    writer.append(&entry("dir/link", link), &b""[..]).expect("writing to memory");
    (writer.finish().expect("writing to memory"), contents)
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::new(level));
    encoder.write_all(bytes).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

/// Compressed piece by piece, each a member or frame of its own.
fn pieces_of(bytes: &[u8], length: usize, compress: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    bytes.chunks(length).flat_map(compress).collect()
}

fn zstd_frame(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 3).expect("compressing to memory")
}

fn expect(blob: &[u8], tar: &[u8]) -> Expected {
    Expected { layer: Digest::sha256(blob), size: blob.len() as u64, diff_id: Digest::sha256(tar) }
}

fn index_in(piece: usize, blob: &[u8], expected: Expected) -> Result<LayerIndex, Rejected> {
    let pieces: Vec<_> = blob.chunks(piece).map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece))).collect();
    build(pieces.into_iter(), expected).map_err(|error| match error {
        BuildError::Rejected(rejected) => rejected,
        BuildError::Input(never) => match never {},
    })
}

fn index(blob: &[u8], tar: &[u8]) -> LayerIndex {
    index_in(64 << 10, blob, expect(blob, tar)).expect("a valid layer")
}

fn blob_bytes(blob: &[u8], range: Range<u64>) -> &[u8] {
    &blob[range.start as usize..range.end as usize]
}

/// Decodes every span and compares it with the plain stream.
fn check_spans(index: &LayerIndex, blob: &[u8], tar: &[u8]) {
    let mut end = 0;
    for span in index.span_ids() {
        let range = index.decoded(span);
        assert_eq!(range.start, end, "spans leave no gap");
        end = range.end;
        let compressed = blob_bytes(blob, index.compressed(span));
        let decoded = index.decode(span, compressed).expect("the right bytes");
        assert!(decoded == blob_bytes(tar, range.clone()), "span {} of {range:?}", span.get());
        let mut streamed = Vec::new();
        index.decode_to(span, in_pieces(compressed), &mut streamed).expect("the right bytes");
        assert!(streamed == decoded, "both ways of decoding agree");
    }
    assert_eq!(end, tar.len() as u64, "spans cover the stream");
}

fn in_pieces(bytes: &[u8]) -> impl Iterator<Item = Bytes> {
    bytes.chunks(1000).map(Bytes::copy_from_slice)
}

fn entries(index: &LayerIndex) -> Vec<Entry> {
    index.entries().collect::<Result<_, _>>().expect("entries of a new index")
}

fn sizes() -> Vec<usize> {
    let mut sizes = vec![0, 1, 100, 5_000, 700_000, 1_400_000];
    sizes.extend((0..60).map(|n| n * 977));
    sizes
}

#[test]
fn a_180_to_a_187_one_stream_in_any_compression_has_the_same_entries_and_exact_spans() {
    let (tar, contents) = tar_of(1, &sizes());
    let plain = index(&tar, &tar);
    assert_eq!(plain.compression(), Compression::None);
    check_spans(&plain, &tar, &tar);
    let wanted = entries(&plain);
    assert_eq!(wanted.len() as u64, plain.entry_count());
    assert_eq!(wanted.len(), contents.len() + 2);
    for (entry, content) in wanted[1..].iter().zip(&contents) {
        let Kind::Regular { size, segments, content: digest } = &entry.kind else { panic!("{entry:?} is no file") };
        assert_eq!(*size, content.len() as u64);
        for segment in segments {
            let range = segment.layer_offset..segment.layer_offset + segment.length;
            assert!(blob_bytes(&tar, range) == content, "{entry:?} holds its content");
        }
        let expected = (content.len() as u64 >= CONTENT_DIGEST_BYTES).then(|| Digest::sha256(content));
        assert_eq!(digest.map(Digest::Sha256), expected);
    }
    let mut blobs: Vec<(Compression, Vec<u8>)> =
        [0, 1, 6, 9].map(|level| (Compression::Gzip, gzip(&tar, level))).to_vec();
    blobs.push((Compression::Gzip, pieces_of(&tar, 100_001, |bytes| gzip(bytes, 6))));
    blobs.push((Compression::Gzip, pieces_of(&tar, 1_200_000, |bytes| gzip(bytes, 6))));
    blobs.push((Compression::Zstd, zstd_frame(&tar)));
    blobs.push((Compression::Zstd, pieces_of(&tar, 100_001, zstd_frame)));
    for (compression, blob) in blobs {
        let index = index(&blob, &tar);
        assert_eq!(index.compression(), compression);
        assert_eq!(index.compressed_size(), blob.len() as u64);
        assert_eq!(index.uncompressed_size(), tar.len() as u64);
        assert_eq!((index.layer(), index.diff_id()), (Digest::sha256(&blob), Digest::sha256(&tar)));
        check_spans(&index, &blob, &tar);
        assert!(entries(&index) == wanted, "entries do not depend on compression");
    }
}

#[test]
fn windows_full_of_references_make_spans_long_and_not_the_index_large() {
    let (tar, _) = tar_of(2, &[2_000_000, 300_000, 300_000, 300_000, 2_000_000, 40_000, 3_000_000, 3_000_000]);
    let blob = gzip(&tar, 6);
    let index = index(&blob, &tar);
    assert!(index.as_bytes().len() * 1000 <= blob.len() * 21 + 4_096_000, "{} bytes", index.as_bytes().len());
    let longest = index.span_ids().map(|span| index.decoded(span).end - index.decoded(span).start).max();
    assert!(longest.is_some_and(|longest| longest < 5 << 20), "{longest:?}");
    assert_eq!(index.not_lazy(), None);
}

#[test]
fn spans_are_short_where_windows_are_small() {
    let mut noise = Noise(18);
    // Six random bits a byte: compressible, but with next to no references.
    let content: Vec<u8> = (0..6_000_000).map(|_| noise.next() as u8 & 0x3f).collect();
    let segments = vec![Segment { file_offset: 0, layer_offset: 0, length: 6_000_000 }];
    let mut writer = Writer::new(Vec::new());
    writer
        .append(&entry("file", Kind::Regular { size: 6_000_000, segments, content: None }), &content[..])
        .expect("writing to memory");
    let tar = writer.finish().expect("writing to memory");
    let blob = gzip(&tar, 6);
    let index = index(&blob, &tar);
    let mut lengths: Vec<_> =
        index.span_ids().map(|span| index.decoded(span)).map(|range| range.end - range.start).collect();
    let last = lengths.pop();
    assert!(lengths.iter().all(|length| (384 << 10..448 << 10).contains(length)) && last.is_some(), "{lengths:?}");
}

#[test]
fn spans_of_a_range_are_those_that_touch_it() {
    let (tar, _) = tar_of(3, &[1_000_000, 1_000_000]);
    let index = index(&tar, &tar);
    let end = tar.len() as u64;
    for range in [0..1, 0..end, 524_287..524_289, 524_288..524_289, end - 1..end, 1_000_000..1_000_001] {
        let touched: Vec<_> = index.spans(range.clone()).collect();
        let wanted: Vec<_> = index
            .span_ids()
            .filter(|span| index.decoded(*span).start < range.end && range.start < index.decoded(*span).end)
            .collect();
        assert!(touched == wanted && !wanted.is_empty(), "{range:?}");
    }
    #[expect(clippy::reversed_empty_ranges, reason = "callers may compute one")]
    for range in [0..0, 5..5, 7..3, end..end, 0..end + 1, end..end + 1] {
        assert_eq!(index.spans(range.clone()).count(), 0, "{range:?}");
    }
}

#[test]
fn a_150_an_empty_blob_is_an_empty_layer() {
    let index = index(b"", b"");
    assert_eq!((index.compression(), index.span_count(), index.entry_count()), (Compression::None, 0, 0));
    assert_eq!(index.spans(0..0).count(), 0);
}

#[test]
fn a_181_empty_members_and_frames_change_nothing() {
    let (tar, _) = tar_of(4, &[600_000, 600_000]);
    let (first, second) = tar.split_at(700_000);
    for compress in [(|bytes: &[u8]| gzip(bytes, 6)) as fn(&[u8]) -> Vec<u8>, zstd_frame] {
        let empty = compress(b"");
        let blob = [&empty[..], &empty, &compress(first), &empty, &compress(second), &empty, &empty].concat();
        check_spans(&index(&blob, &tar), &blob, &tar);
        let nothing = index(&empty, b"");
        assert_eq!((nothing.span_count(), nothing.uncompressed_size()), (0, 0));
    }
}

#[test]
fn a_182_nul_padding_is_accepted_and_not_fetched_but_garbage_is_refused() {
    let (tar, _) = tar_of(5, &[10_000]);
    let mut blob = gzip(&tar, 6);
    let length = blob.len() as u64;
    blob.extend([0; 5000]);
    let index = index(&blob, &tar);
    let last = index.span_ids().last().expect("a span");
    assert!(index.compressed(last).end <= length);
    check_spans(&index, &blob, &tar);
    blob.push(1);
    let rejected = index_in(100, &blob, expect(&blob, &tar)).expect_err("garbage");
    assert!(matches!(rejected, Rejected::Codec { source: codec::Error::TrailingGarbage, .. }), "{rejected}");
}

#[test]
fn a_187_skippable_frames_may_stand_anywhere() {
    let (tar, _) = tar_of(6, &[300_000, 500_000]);
    let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 7, 0, 0, 0][..], b"skipped"].concat();
    let nothing = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    let (first, second) = tar.split_at(450_000);
    let blob =
        [&skippable[..], &nothing, &zstd_frame(first), &skippable, &zstd_frame(second), &skippable, &nothing].concat();
    let index = index_in(11, &blob, expect(&blob, &tar)).expect("a valid layer");
    check_spans(&index, &blob, &tar);
    let last = index.span_ids().last().expect("a span");
    assert_eq!(index.compressed(last).end as usize, blob.len() - skippable.len() - nothing.len());
}

#[test]
fn a_191_another_diff_id_is_refused_and_is_not_the_bytes_fault() {
    let (tar, _) = tar_of(7, &[1000]);
    let blob = gzip(&tar, 6);
    let rejected = index_in(999, &blob, expect(&blob, b"other")).expect_err("another diffID");
    assert!(matches!(rejected, Rejected::WrongDiffId { .. }) && !rejected.is_wrong_bytes(), "{rejected}");
}

#[test]
fn a_194_other_compressions_are_refused_by_name() {
    for (name, magic) in
        [("bzip2", &b"BZh91AY&SYxxxx"[..]), ("xz", b"\xfd7zXZ\0xxxx"), ("lz4", b"\x04\x22\x4d\x18xxxxxx")]
    {
        let rejected = index_in(1, magic, expect(magic, b"")).expect_err("not for layers");
        assert!(
            matches!(rejected, Rejected::Codec { source: codec::Error::Unsupported(n), .. } if n == name),
            "{rejected}"
        );
    }
}

#[test]
fn sha512_names_work_like_sha256() {
    let (tar, _) = tar_of(8, &[1000]);
    let expected = Expected {
        layer: Digest::of(Algorithm::Sha512, &tar),
        size: tar.len() as u64,
        diff_id: Digest::of(Algorithm::Sha512, &tar),
    };
    let index = index_in(512, &tar, expected).expect("a valid layer");
    assert_eq!((index.layer(), index.diff_id()), (expected.layer, expected.diff_id));
}

#[test]
fn wrong_bytes_are_named_before_what_they_break() {
    let (tar, _) = tar_of(9, &[200_000]);
    let blob = gzip(&tar, 6);
    let expected = expect(&blob, &tar);
    for at in [0, 3, 12, blob.len() / 2, blob.len() - 5, blob.len() - 1] {
        let mut wrong = blob.clone();
        wrong[at] ^= 0x10;
        let rejected = index_in(1000, &wrong, expected).expect_err("wrong bytes");
        assert!(matches!(rejected, Rejected::WrongDigest { .. }) && rejected.is_wrong_bytes(), "{at}: {rejected}");
    }
    let rejected = index_in(1000, &blob[..blob.len() - 1], expected).expect_err("too short");
    assert!(matches!(rejected, Rejected::TooShort { .. }) && rejected.is_wrong_bytes(), "{rejected}");
    let longer = [&blob[..], b"x"].concat();
    let rejected = index_in(1000, &longer, expected).expect_err("too long");
    assert!(matches!(rejected, Rejected::TooLong { .. }) && rejected.is_wrong_bytes(), "{rejected}");
    // The same stream under its own digest is a malformed layer, not wrong bytes.
    let cut = &blob[..blob.len() - 9];
    let rejected = index_in(1000, cut, expect(cut, &tar)).expect_err("cut short");
    assert!(matches!(rejected, Rejected::Codec { source: codec::Error::Truncated, .. }), "{rejected}");
    assert!(!rejected.is_wrong_bytes());
}

#[test]
fn a_malformed_archive_is_refused_by_the_tar_reader() {
    let junk = Noise(10).text(3_000_000);
    let rejected = index_in(10_000, &junk, expect(&junk, &junk)).expect_err("no tar");
    assert!(matches!(rejected, Rejected::Tar { .. }), "{rejected}");
}

#[test]
fn an_error_of_the_input_comes_back_as_it_is() {
    let (tar, _) = tar_of(11, &[1_000_000]);
    let expected = expect(&tar, &tar);
    let error = || std::io::Error::other("connection reset");
    let pieces = [Ok(Bytes::from(tar)), Err(error())];
    let failed = build(pieces.into_iter(), Expected { size: u64::MAX, ..expected }).expect_err("the input fails");
    assert!(matches!(failed, BuildError::Input(error) if error.to_string() == "connection reset"));
}

#[test]
fn a_panicking_input_ends_the_stages() {
    let (tar, _) = tar_of(12, &[1_000_000]);
    let expected = expect(&tar, &tar);
    let pieces = tar.chunks(1000).enumerate().map(|(number, piece)| {
        assert!(number < 500, "the input panics");
        Ok::<_, Infallible>(Bytes::copy_from_slice(piece))
    });
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| build(pieces, expected).map(drop)));
    assert!(outcome.is_err());
}

#[test]
fn an_index_does_not_depend_on_how_the_bytes_arrive() {
    let (tar, _) = tar_of(13, &[900_000, 50_000, 1_500_000, 10]);
    for blob in [tar.clone(), gzip(&tar, 6), pieces_of(&tar, 400_000, |bytes| gzip(bytes, 1)), zstd_frame(&tar)] {
        let expected = expect(&blob, &tar);
        let whole = index_in(usize::MAX, &blob, expected).expect("a valid layer");
        for piece in [1021, 65_536, 300_001] {
            let again = index_in(piece, &blob, expected).expect("a valid layer");
            assert!(again.as_bytes() == whole.as_bytes(), "pieces of {piece}");
        }
    }
}

#[test]
fn d_024_wrong_compressed_bytes_never_decode() {
    let (tar, _) = tar_of(14, &[1_200_000]);
    for blob in [tar.clone(), gzip(&tar, 6), pieces_of(&tar, 300_000, zstd_frame)] {
        let index = index(&blob, &tar);
        let span = index.span_ids().nth(1).expect("two spans");
        let right = blob_bytes(&blob, index.compressed(span)).to_vec();
        let good = index.decode(span, &right).expect("the right bytes");
        for at in (0..right.len()).step_by(right.len() / 40) {
            let mut wrong = right.clone();
            wrong[at] ^= 1;
            // A bit of a byte shared with the neighbour, or of a trailer, may not matter; then the result is right.
            let (decoded, mut streamed) = (index.decode(span, &wrong), Vec::new());
            assert!(decoded.is_err() || decoded.is_ok_and(|bytes| bytes == good), "byte {at}");
            assert!(index.decode_to(span, in_pieces(&wrong), &mut streamed).is_err() || streamed == good, "byte {at}");
        }
        for wrong in [&right[1..], &right[..right.len() - 1], &[], &[&right[..], b"x"].concat()] {
            assert!(matches!(index.decode(span, wrong), Err(Error::Span { fault: SpanFault::Length, .. })));
        }
    }
}

#[test]
fn a_flipped_byte_anywhere_in_an_index_is_noticed() {
    let (tar, _) = tar_of(15, &[700_000, 500_000, 300]);
    let blob = gzip(&tar, 6);
    let index = index(&blob, &tar);
    assert!(index.span_count() >= 2, "a window is needed");
    let bytes = index.as_bytes();
    for at in 0..bytes.len() {
        let mut wrong = bytes.to_vec();
        wrong[at] ^= 1 << (at % 8);
        let Ok(opened) = LayerIndex::open(Bytes::from(wrong)) else { continue };
        let noticed = opened.span_ids().any(|span| {
            matches!(opened.decode(span, blob_bytes(&blob, opened.compressed(span))), Err(Error::Damaged(..)))
        });
        assert!(noticed, "byte {at} of {}", bytes.len());
    }
    for end in 0..bytes.len() {
        assert!(LayerIndex::open(bytes.slice(..end)).is_err(), "cut to {end}");
    }
    assert!(LayerIndex::open(Bytes::from([&bytes[..], b"x"].concat())).is_err());
}

#[test]
fn one_big_frame_is_not_lazy_and_says_so() {
    let (tar, _) = tar_of(16, &[9_000_000]);
    let blob = zstd_frame(&tar);
    let one = index(&blob, &tar);
    assert_eq!(one.span_count(), 1);
    assert!(one.not_lazy().is_some_and(|why| why.contains("zstd frame")));
    let blob = pieces_of(&tar, 1 << 20, zstd_frame);
    assert_eq!(index(&blob, &tar).not_lazy(), None);
}

#[test]
fn a_164_content_digests_cover_holes() {
    let mut header = ::tar::Header::new_gnu();
    header.set_path("sparse").expect("a short name");
    header.set_entry_type(::tar::EntryType::GNUSparse);
    header.set_size(4196);
    let gnu = header.as_gnu_mut().expect("a GNU header");
    for (run, (offset, length)) in gnu.sparse.iter_mut().zip([(4096, 4096), (1_000_000, 100)]) {
        run.offset[..11].copy_from_slice(format!("{offset:011o}").as_bytes());
        run.numbytes[..11].copy_from_slice(format!("{length:011o}").as_bytes());
    }
    gnu.realsize[..11].copy_from_slice(format!("{:011o}", 3_000_000).as_bytes());
    header.set_cksum();
    let mut file = vec![0; 3_000_000];
    file[4096..8192].fill(7);
    file[1_000_000..1_000_100].fill(9);
    let mut tar = [&header.as_bytes()[..], &[7; 4096], &[9; 100]].concat();
    tar.resize(tar.len() / 512 * 512 + 1536, 0);
    let index = index(&tar, &tar);
    let [Entry { kind: Kind::Regular { content, size, .. }, .. }] = &entries(&index)[..] else { panic!("one file") };
    assert_eq!((*size, content.map(Digest::Sha256)), (3_000_000, Some(Digest::sha256(&file))));
}

#[test]
fn d_010_zeros_make_few_and_small_spans() {
    let tar = {
        let mut writer = Writer::new(Vec::new());
        let length = 64 << 20;
        let segments = vec![Segment { file_offset: 0, layer_offset: 0, length }];
        let kind = Kind::Regular { size: length, segments, content: None };
        writer.append(&entry("zeros", kind), &vec![0; length as usize][..]).expect("writing to memory");
        writer.finish().expect("writing to memory")
    };
    let blob = gzip(&tar, 6);
    let index = index(&blob, &tar);
    check_spans(&index, &blob, &tar);
    assert!(index.as_bytes().len() < 8192, "{} bytes of index for {} of layer", index.as_bytes().len(), blob.len());
    assert!(index.span_count() > 8);
}

#[test]
fn gzip_with_all_header_flags_and_many_flushes_indexes() {
    let (tar, _) = tar_of(17, &[800_000, 900_000]);
    let mut encoder = GzBuilder::new()
        .extra(vec![1; 300])
        .filename("layer.tar")
        .comment("made by a test")
        .mtime(5)
        .write(Vec::new(), Level::new(6));
    for bytes in tar.chunks(7000) {
        encoder.write_all(bytes).expect("writing to memory");
        encoder.flush().expect("writing to memory");
    }
    let blob = encoder.finish().expect("writing to memory");
    check_spans(&index(&blob, &tar), &blob, &tar);
}

fn any_kind() -> impl Strategy<Value = Kind> {
    let name = "[a-z/]{1,9}[a-z]";
    prop_oneof![
        Just(Kind::Directory),
        (0_u64..5000, any::<[u8; 32]>()).prop_map(|(size, content)| Kind::Regular {
            size,
            segments: if size == 0 {
                vec![]
            } else {
                vec![Segment { file_offset: 0, layer_offset: 512, length: size }]
            },
            content: (size > 0).then_some(content),
        }),
        (any::<u32>(), prop::collection::vec((0_u64..99, 1_u64..99, 0_u64..9999), 0..9)).prop_map(|(tail, runs)| {
            let (mut end, mut segments) = (0, Vec::new());
            for (gap, length, layer_offset) in runs {
                segments.push(Segment { file_offset: end + gap, layer_offset, length });
                end += gap + length;
            }
            Kind::Regular { size: end + u64::from(tail), segments, content: None }
        }),
        name.prop_map(|target| Kind::Symlink { target: target.into_bytes() }),
        "[a-z]{1,9}(/[a-z]{1,3}){0,3}".prop_map(|target| Kind::HardLink { target: target.into_bytes() }),
        any::<(u32, u32)>().prop_map(|(major, minor)| Kind::CharDevice { major, minor }),
        any::<(u32, u32)>().prop_map(|(major, minor)| Kind::BlockDevice { major, minor }),
        Just(Kind::Fifo),
        Just(Kind::Whiteout),
        Just(Kind::Opaque),
    ]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let path = "([a-z]{1,4}(/[a-c\\x80-\\xff]{1,3}){0,4})?";
    let xattrs = prop::collection::btree_map("user\\.[a-z]{1,3}", any::<Vec<u8>>(), 0..3);
    let owner = prop_oneof![Just((0, 0)), any::<(u32, u32)>()];
    (path, any_kind(), 0_u16..0o10000, owner, 0..=i64::MAX, 0_u32..1_000_000_000, xattrs).prop_map(
        |(path, kind, mode, (uid, gid), seconds, nanos, xattrs)| Entry {
            path: path.into_bytes(),
            kind,
            mode,
            uid,
            gid,
            mtime: Timestamp { seconds, nanos },
            xattrs: xattrs.into_iter().map(|(name, value)| Xattr { name: name.into_bytes(), value }).collect(),
        },
    )
}

/// Reads a block to its end.
fn read_block(block: &[u8], digests: &[u8], count: usize) -> Option<Vec<Entry>> {
    let mut reader = EntryReader::new(block, digests, 20_000);
    let entries = (0..count).map(|_| reader.next()).collect::<Option<Vec<_>>>()?;
    reader.is_done().then_some(entries)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn entries_come_back_as_they_were(entries in prop::collection::vec(any_entry(), 1..40), flip: prop::sample::Index) {
        let mut writer = entries::EntryWriter::new();
        for entry in &entries {
            prop_assert!(writer.push(entry));
        }
        let written = writer.finish();
        prop_assert_eq!(written.blocks.len(), 1);
        let block = zstd::bulk::decompress(&written.entries, 1 << 20).expect("a block");
        let read = read_block(&block, &written.digests, entries.len());
        prop_assert_eq!(read.as_ref(), Some(&entries));
        // Damaged blocks may read as something else, or not at all, but always end.
        let mut damaged = block.clone();
        damaged[flip.index(block.len())] ^= 0x41;
        for block in [&damaged[..], &block[..flip.index(block.len())]] {
            let read = read_block(block, &written.digests, entries.len());
            prop_assert_ne!(read.as_ref(), Some(&entries));
        }
    }

    #[test]
    fn windows_come_back_as_they_were(runs in prop::collection::vec((0_usize..32_768, any::<Vec<u8>>()), 0..20)) {
        let mut window = [0; codec::WINDOW];
        for (at, bytes) in &runs {
            let length = bytes.len().min(codec::WINDOW - at);
            window[*at..at + length].copy_from_slice(&bytes[..length]);
        }
        let mut writer = windows::WindowWriter::default();
        let full = [0xa5; codec::WINDOW];
        prop_assert_eq!(writer.push(&full), Some(0));
        prop_assert_eq!(writer.push(&[0; codec::WINDOW]), None);
        let number = writer.push(&window);
        prop_assert_eq!(number.is_none(), window == [0; codec::WINDOW]);
        let (groups, bytes) = writer.finish();
        let read = |slot| windows::read(&bytes, &groups[0].digest, slot);
        prop_assert!(read(0).is_some_and(|read| *read == full));
        prop_assert!(number.is_none_or(|slot| read(slot).is_some_and(|read| *read == window)));
        prop_assert!(read(2).is_none());
    }

    #[test]
    fn any_layer_in_any_form_decodes_exactly(
        seed: u64,
        sizes in prop::collection::vec(prop_oneof![0_usize..3000, 0_usize..900_000], 0..6),
        form in 0..6,
        level in 0_u32..10,
        part in 1000_usize..900_000,
        piece in 1_usize..200_000,
    ) {
        let (tar, _) = tar_of(seed, &sizes);
        let blob = match form {
            0 => tar.clone(),
            1 | 2 => gzip(&tar, level),
            3 => pieces_of(&tar, part, |bytes| gzip(bytes, level)),
            4 => pieces_of(&tar, part, zstd_frame),
            _ => zstd_frame(&tar),
        };
        let index = index_in(piece, &blob, expect(&blob, &tar)).expect("a valid layer");
        check_spans(&index, &blob, &tar);
        prop_assert_eq!(index.entry_count(), sizes.len() as u64 + 2);
    }

    #[test]
    fn damaged_layers_are_refused_whatever_they_are(
        form in 0..3,
        at: prop::sample::Index,
        flip in 1_u8..,
        cut: bool,
    ) {
        let (tar, _) = tar_of(99, &[70_000, 0, 3000]);
        let mut blob = match form {
            0 => gzip(&tar, 6),
            1 => pieces_of(&tar, 20_000, |bytes| gzip(bytes, 9)),
            _ => pieces_of(&tar, 20_000, zstd_frame),
        };
        let at = at.index(blob.len());
        if cut { blob.truncate(at) } else { blob[at] ^= flip }
        // The digest is that of the damaged bytes, so nothing but their meaning can be wrong; a flipped bit of a header's
        // time stamp is no damage.
        if let Ok(index) = index_in(5000, &blob, expect(&blob, &tar)) {
            check_spans(&index, &blob, &tar);
        }
    }

    #[test]
    fn any_bytes_open_or_do_not_but_never_panic(bytes: Vec<u8>) {
        prop_assert!(LayerIndex::open(Bytes::from(bytes)).is_err());
    }
}

//! What a zTOC says of a layer is what a first contact finds, whoever wrote it.

mod hostile;
mod writer;

use std::convert::Infallible;
use std::io::Write as _;
use std::ops::Range;

use bytes::Bytes;
use flatbuffers::{ForwardsUOffset, InvalidFlatbuffer, Vector, Verifiable, Verifier, VerifierOptions};
use flate2::{Compression as Level, write::GzEncoder};
use proptest::prelude::*;

use super::*;
use crate::index::{LayerIndex, build, compare};
use crate::tar::{Entry, Kind, Timestamp, Writer, Xattr};
use writer::{Ztoc, checkpoints, gzip_ztoc, tar_ztoc};

/// Bytes that compress to half, in blocks of a few ten KiB.
fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b'a' + (seed >> 60) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::default());
    encoder.write_all(bytes).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

/// Members of `length` bytes each.
fn members(bytes: &[u8], length: usize) -> Vec<u8> {
    bytes.chunks(length).flat_map(gzip).collect()
}

fn entry(path: &[u8], kind: Kind) -> Entry {
    let mtime = Timestamp { seconds: 1_700_000_000, nanos: 0 };
    Entry { path: path.to_vec(), kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: Vec::new() }
}

/// An archive with one of everything, and files of these sizes.
fn archive(sizes: &[usize], seed: u64) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    let mut put = |entry: Entry, content: &[u8]| writer.append(&entry, content).expect("writing to memory");
    put(entry(b"usr", Kind::Directory), b"");
    for (number, size) in sizes.iter().enumerate() {
        let kind = Kind::Regular { size: *size as u64, segments: Vec::new(), content: None };
        let xattrs = vec![Xattr { name: b"user.number".to_vec(), value: vec![number as u8, 0, 255] }];
        let mtime = Timestamp { seconds: 951_868_799 + number as i64 * 40_000_000, nanos: number as u32 * 1_000_100 };
        let path = format!("usr/{number}-{}", "x".repeat(number * 60 % 240));
        put(Entry { xattrs, mtime, uid: 7, mode: 0o4755, ..entry(path.as_bytes(), kind) }, &noise(*size, seed));
    }
    let target = |target: &[u8]| target.to_vec();
    put(entry(b"caf\xe9", Kind::Symlink { target: target(b"usr/\xff") }), b"");
    put(entry(b"again", Kind::HardLink { target: target(b"usr/0-") }), b"");
    put(entry(b"null", Kind::CharDevice { major: 1, minor: 3 }), b"");
    put(entry(b"disk", Kind::BlockDevice { major: 8, minor: 1 }), b"");
    put(entry(b"pipe", Kind::Fifo), b"");
    put(entry(b"usr/gone", Kind::Whiteout), b"");
    put(entry(b"usr", Kind::Opaque), b"");
    writer.finish().expect("writing to memory")
}

fn expected(blob: &[u8], tar: &[u8]) -> Expected {
    Expected { layer: Digest::sha256(blob), size: blob.len() as u64, diff_id: Digest::sha256(tar) }
}

fn truth(blob: &[u8], tar: &[u8]) -> LayerIndex {
    let pieces = std::iter::once(Ok::<_, Infallible>(Bytes::copy_from_slice(blob)));
    build(pieces, expected(blob, tar)).expect("a layer")
}

fn entries(index: &LayerIndex) -> Vec<Entry> {
    let without_content = |mut entry: Entry| {
        if let Kind::Regular { content, .. } = &mut entry.kind {
            *content = None;
        }
        entry
    };
    index.entries().map(|entry| without_content(entry.expect("a sound index"))).collect()
}

fn claimed(blob: &[u8], tar: &[u8], ztoc: &[u8]) -> LayerIndex {
    let expected = expected(blob, tar);
    LayerIndex::claimed(&expected, claim(&expected, ztoc).expect("a good zTOC")).expect("a good claim")
}

fn reader(blob: &[u8]) -> impl Fn(Range<u64>) -> Result<Bytes, Infallible> {
    |range| Ok(Bytes::copy_from_slice(&blob[range.start as usize..range.end as usize]))
}

/// Checks that the zTOC says what is true of the layer.
fn check(blob: &[u8], tar: &[u8], ztoc: &[u8]) -> LayerIndex {
    let (claim, truth) = (claimed(blob, tar, ztoc), truth(blob, tar));
    assert_eq!(entries(&claim), entries(&truth));
    for span in claim.span_ids() {
        let range = |range: Range<u64>| range.start as usize..range.end as usize;
        let decoded = claim.decode(span, &blob[range(claim.compressed(span))]).expect("the right bytes");
        assert!(decoded == tar[range(claim.decoded(span))], "span {}", span.get());
    }
    compare(&claim, &truth, reader(blob)).expect("nothing is different");
    claim
}

fn written(blob: &[u8], tar: &[u8]) -> Vec<u8> {
    write(&truth(blob, tar), reader(blob)).expect("it can be written")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn what_another_writer_says_of_any_layer_is_what_a_first_contact_finds(
        sizes in prop::collection::vec(prop_oneof![0..2000_usize, 0..500_000_usize], 1..6),
        seed: u64,
        form in 0..3,
        part in 30_000..400_000_usize,
        span in 1..300_000_i64,
        first: bool,
    ) {
        let tar = archive(&sizes, seed);
        let (blob, ztoc) = match form {
            0 => (tar.clone(), tar_ztoc(&tar, span as usize)),
            1 => (gzip(&tar), gzip_ztoc(&gzip(&tar), &tar, span, first)),
            _ => (members(&tar, part), gzip_ztoc(&members(&tar, part), &tar, span, first)),
        };
        check(&blob, &tar, &ztoc.bytes());
    }

    #[test]
    fn what_is_written_here_is_read_here(
        sizes in prop::collection::vec(prop_oneof![0..2000_usize, 0..7_000_000_usize], 1..4),
        seed: u64,
        form in 0..3,
        part in 100_000..6_000_000_usize,
    ) {
        let tar = archive(&sizes, seed);
        let blob = match form {
            0 => tar.clone(),
            1 => gzip(&tar),
            _ => members(&tar, part),
        };
        let ztoc = written(&blob, &tar);
        prop_assert!(ztoc == written(&blob, &tar), "equal layers make equal zTOCs");
        let claim = check(&blob, &tar, &ztoc);
        let lengths: Vec<_> = claim.span_ids().map(|span| claim.decoded(span)).map(|range| range.end - range.start).collect();
        prop_assert!(lengths.iter().rev().skip(1).all(|length| *length >= SPAN_SIZE), "{:?}", lengths);
        verify(&ztoc).expect("a flatbuffer as others read it");
    }
}

#[test]
fn both_forms_of_the_checkpoints_and_places_inside_bytes_are_read() {
    let tar = archive(&[400_000, 0, 10, 600_000], 5);
    for blob in [gzip(&tar), members(&tar, 150_000)] {
        let bits: Vec<_> = checkpoints(&blob, 100_000).iter().map(|point| point.bits).collect();
        assert!(bits.len() > 5, "{bits:?}");
        if blob == gzip(&tar) {
            assert!(bits.iter().any(|bits| *bits != 0), "{bits:?}");
        }
        let both = [true, false].map(|first| check(&blob, &tar, &gzip_ztoc(&blob, &tar, 100_000, first).bytes()));
        assert_eq!(both[0].as_bytes().len(), both[1].as_bytes().len());
        assert_eq!(both[0].span_count() as usize, bits.len());
    }
}

#[test]
fn a_header_with_a_name_is_behind_the_first_checkpoint() {
    let tar = archive(&[100_000], 6);
    let mut encoder = flate2::GzBuilder::new()
        .extra(vec![1, 2, 3])
        .filename("layer.tar")
        .comment("a")
        .write(Vec::new(), Level::default());
    encoder.write_all(&tar).expect("writing to memory");
    let blob = encoder.finish().expect("writing to memory");
    let claim = check(&blob, &tar, &written(&blob, &tar));
    let first = claim.span_ids().next().expect("a span");
    assert_eq!(claim.compressed(first).start, 10 + 2 + 3 + 10 + 2);
}

#[test]
fn names_that_are_no_text_and_hidden_members_come_through() {
    let mut tar = archive(&[10], 7);
    tar.truncate(tar.len() - 1024);
    let mut header = ::tar::Header::new_ustar();
    for name in ["./usr/../etc/./passwd", ".wh..wh.aufs", ".wh..wh.plnk/1.2"] {
        header.set_path("x").expect("short");
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(3);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(7);
        header.set_entry_type(::tar::EntryType::Regular);
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(&[&b"abc"[..], &[0; 509]].concat());
        header = ::tar::Header::new_ustar();
    }
    tar.extend_from_slice(&[0; 1024]);
    let claim = check(&tar, &tar, &tar_ztoc(&tar, 4096).bytes());
    let paths: Vec<_> = entries(&claim).into_iter().map(|entry| entry.path).collect();
    assert!(paths.contains(&b"etc/passwd".to_vec()) && paths.contains(&b"caf\xe9".to_vec()), "{paths:?}");
    check(&tar, &tar, &written(&tar, &tar));
}

#[test]
fn what_soci_has_no_form_for_is_not_written() {
    let unwritable =
        |blob: &[u8], tar: &[u8]| write(&truth(blob, tar), reader(blob)).expect_err("it cannot be written").to_string();
    let tar = archive(&[100], 8);
    let zstd = zstd::bulk::compress(&tar, 3).expect("compressing to memory");
    assert_eq!(unwritable(&zstd, &tar), "SOCI has no form for zstd layers");
    assert_eq!(unwritable(&[], &[]), "SOCI has no form for empty layers");
    let mut global = ::tar::Header::new_ustar();
    global.set_path("g").expect("short");
    global.set_size(0);
    global.set_entry_type(::tar::EntryType::XGlobalHeader);
    global.set_cksum();
    let tar = [&global.as_bytes()[..], &tar].concat();
    assert_eq!(unwritable(&tar, &tar), "SOCI has no form for \"\", which is a header for all that follow");
}

/// Says for the flatbuffers crate which tables there are.
macro_rules! tables {
    ($($table:ident { $($at:literal: $kind:ty),* })*) => {
        $(
            struct $table;

            impl Verifiable for $table {
                fn run_verifier(verifier: &mut Verifier<'_, '_>, at: usize) -> Result<(), InvalidFlatbuffer> {
                    let table = verifier.visit_table(at)?;
                    $(let table = table.visit_field::<$kind>(stringify!($at), $at, true)?;)*
                    table.finish();
                    Ok(())
                }
            }
        )*
    };
}

type List<'a, T> = ForwardsUOffset<Vector<'a, ForwardsUOffset<T>>>;

tables! {
    Root {
        4: ForwardsUOffset<&str>, 6: ForwardsUOffset<&str>, 8: i64, 10: i64, 12: ForwardsUOffset<Toc>,
        14: ForwardsUOffset<Info>
    }
    Toc { 4: List<'_, File> }
    File {
        4: ForwardsUOffset<Vector<'_, u8>>, 6: ForwardsUOffset<&str>, 8: i64, 10: i64,
        12: ForwardsUOffset<Vector<'_, u8>>, 14: i64, 16: u32, 18: u32, 20: ForwardsUOffset<&str>,
        22: ForwardsUOffset<&str>, 24: ForwardsUOffset<&str>, 26: i64, 28: i64, 30: List<'_, Pair>
    }
    Pair { 4: ForwardsUOffset<&str>, 6: ForwardsUOffset<Vector<'_, u8>> }
    Info { 4: i8, 6: i32, 8: ForwardsUOffset<Vector<'_, ForwardsUOffset<&str>>>, 10: ForwardsUOffset<Vector<'_, u8>> }
}

/// Has the flatbuffers crate look at every field, its place and its alignment.
fn verify(ztoc: &[u8]) -> Result<(), InvalidFlatbuffer> {
    let options = VerifierOptions { max_tables: 1 << 20, max_apparent_size: 1 << 30, ..VerifierOptions::default() };
    ForwardsUOffset::<Root>::run_verifier(&mut Verifier::new(&options, ztoc), 0)
}

/// Decodes as SOCI's snapshotter does: zlib alone, from a place `bits` inside the byte before `compressed`, and what was
/// decoded before it.
fn inflated(bits: u8, before: u8, window: &[u8], compressed: &[u8], length: usize) -> Vec<u8> {
    use libz_rs_sys::{Z_OK, Z_SYNC_FLUSH, inflate, inflateEnd, inflateInit2_, inflatePrime, inflateSetDictionary};
    let mut out = vec![0; length];
    let mut stream = libz_rs_sys::z_stream::default();
    // SAFETY: all pointers are to what is borrowed here, with their lengths, and the stream is ended where it was begun.
    unsafe {
        let size = std::mem::size_of::<libz_rs_sys::z_stream>() as i32;
        assert_eq!(inflateInit2_(&raw mut stream, -15, libz_rs_sys::zlibVersion(), size), Z_OK);
        if bits > 0 {
            assert_eq!(inflatePrime(&raw mut stream, bits.into(), (before >> (8 - bits)).into()), Z_OK);
        }
        assert_eq!(inflateSetDictionary(&raw mut stream, window.as_ptr(), window.len() as u32), Z_OK);
        (stream.next_in, stream.avail_in) = (compressed.as_ptr(), compressed.len() as u32);
        (stream.next_out, stream.avail_out) = (out.as_mut_ptr(), length as u32);
        assert!(inflate(&raw mut stream, Z_SYNC_FLUSH) >= Z_OK);
        assert_eq!(stream.avail_out, 0);
        inflateEnd(&raw mut stream);
    }
    out
}

#[test]
fn zlib_alone_decodes_every_span_from_what_is_written() {
    let tar = archive(&[9_000_000, 5, 14_000_000], 8);
    let blob = gzip(&tar);
    let ztoc = written(&blob, &tar);
    let buffer = flat::Buffer::new(&ztoc);
    let info = buffer.root().and_then(|root| root.table(14)).ok().flatten().expect("how it is compressed");
    let (points, digests) = (info.bytes(10).expect("checkpoints"), info.strings(8).expect("digests"));
    let number = |at: usize| i64::from_le_bytes(*points[at..].first_chunk().expect("eight bytes")) as usize;
    let stored = (12..points.len()).step_by(32_785);
    let stored = stored.map(|at| (number(at), number(at + 8), points[at + 16], &points[at + 17..at + 32_785]));
    // The first one, behind a header of ten bytes, goes without saying.
    let nothing = [0; 32_768];
    let places: Vec<_> = std::iter::once((10, 0, 0, &nothing[..])).chain(stored).collect();
    assert!(places.len() > 4 && places.len() == digests.len());
    let ends = places[1..].iter().map(|(start, from, ..)| (*start, *from)).chain([(blob.len(), tar.len())]);
    let mut inside = 0;
    for (((start, from, bits, window), (end, to)), digest) in places.iter().copied().zip(ends).zip(digests) {
        inside += usize::from(bits > 0);
        assert_eq!(Digest::sha256(&blob[start - usize::from(bits > 0)..end]).to_string().as_bytes(), digest);
        assert!(
            inflated(bits, blob[start - 1], window, &blob[start..end], to - from) == tar[from..to],
            "span at {from}"
        );
    }
    assert!(inside > 0, "none begins inside a byte");
}

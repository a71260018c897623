//! Claims that are compared with the truth: what is equal passes, and whatever a hostile one says is found.

use super::claims::{claim_like, sha256};
use super::*;

type Compared = Result<(), Difference<Infallible>>;

fn compared(claim: &LayerIndex, truth: &LayerIndex, blob: &[u8]) -> Compared {
    compare(claim, truth, |range| Ok(Bytes::copy_from_slice(blob_bytes(blob, range))))
}

/// A layer of files, links and whiteouts in members of its own, and a claim about it as a table of contents makes one: its
/// stream is the files' chunks one after the other.
struct Scene {
    tar: Vec<u8>,
    blob: Vec<u8>,
    truth: LayerIndex,
    claim: Claim,
}

const CHUNK: usize = 40_000;

fn scene() -> Scene {
    let (tar, _) = tar_of(41, &[70_000, 0, 500, 3000, 3000, 120_000]);
    // A member begins with every file and with every chunk of one.
    let plain = index(&tar, &tar);
    let mut starts = vec![0];
    for entry in entries(&plain) {
        if let Kind::Regular { segments, .. } = &entry.kind {
            let chunks = |segment: &Segment| {
                let start = segment.layer_offset as usize;
                (start..start + segment.length as usize).step_by(CHUNK).collect::<Vec<_>>()
            };
            starts.extend(segments.iter().flat_map(chunks));
        }
    }
    let (mut blob, mut members) = (Vec::new(), Vec::new());
    for (number, start) in starts.iter().enumerate() {
        let end = starts.get(number + 1).copied().unwrap_or(tar.len());
        let at = blob.len() as u64;
        blob.extend(gzip(&tar[*start..end], 6));
        members.push((*start as u64, at..blob.len() as u64));
    }
    let truth = index(&blob, &tar);
    let (mut spans, mut list, mut at) = (Vec::new(), entries(&truth), 0);
    for entry in &mut list {
        let Kind::Regular { size, segments, .. } = &mut entry.kind else { continue };
        for segment in segments.iter_mut() {
            let start = segment.layer_offset;
            for place in (start..start + *size).step_by(CHUNK) {
                let length = (start + *size - place).min(CHUNK as u64);
                let (_, compressed) = members.iter().find(|(member, _)| *member == place).expect("it has its own");
                let digest = SpanDigest::Decoded(sha256(blob_bytes(&tar, place..place + length)));
                let compressed = compressed.clone();
                spans.push(ClaimedSpan { compressed, bit: 0, skip: 0, length, start: Start::Fresh, digest });
            }
            segment.layer_offset = at;
            at += *size;
        }
    }
    let claim = Claim {
        compression: Compression::Gzip,
        entries: list,
        spans,
        uncompressed_size: at,
        fidelity: Times::Seconds,
        prefetch_end: None,
    };
    Scene { tar, blob, truth, claim }
}

impl Scene {
    fn compare(&self, claim: Claim) -> Compared {
        let claim = LayerIndex::claimed(&expect(&self.blob, &self.tar), claim).expect("it is well-formed");
        compared(&claim, &self.truth, &self.blob)
    }

    /// The difference found after `change`, as a text.
    fn found(&self, change: impl FnOnce(&mut Claim)) -> String {
        let mut claim = self.claim.clone();
        change(&mut claim);
        let found = self.compare(claim).expect_err("it lies");
        assert!(matches!(found, Difference::Found { .. }), "{found:?}");
        found.to_string()
    }
}

fn file_of<'a>(claim: &'a mut Claim, name: &str) -> &'a mut Entry {
    claim.entries.iter_mut().find(|entry| entry.path == name.as_bytes()).expect("an entry of this name")
}

#[test]
fn an_honest_claim_is_equal_whatever_its_stream_is() {
    let scene = scene();
    scene.compare(scene.claim.clone()).expect("it is honest");
    for blob in [scene.tar.clone(), gzip(&scene.tar, 6), zstd_frame(&scene.tar)] {
        let truth = index(&blob, &scene.tar);
        let claim = claim_like(&truth, &blob, &scene.tar, 0b0101);
        let claim = LayerIndex::claimed(&expect(&blob, &scene.tar), claim).expect("a valid claim");
        compared(&claim, &truth, &blob).expect("it is honest");
        let shared = LayerIndex::open_claim(truth.as_bytes().slice(..truth.metadata_len() as usize)).expect("ours");
        let unread = |_: Range<u64>| -> Result<Bytes, std::io::Error> { Err(std::io::Error::other("nothing is read")) };
        compare(&shared, &truth, unread).expect("it is the truth itself");
    }
}

#[test]
fn times_of_a_second_are_compared_only_if_the_claim_has_them() {
    let scene = scene();
    let mut claim = scene.claim.clone();
    file_of(&mut claim, "dir/file-0").mtime.nanos = 5;
    scene.compare(claim.clone()).expect("it has whole seconds");
    claim.fidelity = Times::Exact;
    let found = scene.compare(claim).expect_err("it says that it is exact").to_string();
    assert!(found.starts_with("\"dir/file-0\": is of time "), "{found}");
    let found = scene.found(|claim| file_of(claim, "dir/file-0").mtime.seconds += 1);
    assert!(found.contains("is of time 1700000000"), "{found}");
}

#[test]
fn every_changed_attribute_is_found_and_named() {
    let scene = scene();
    let found = scene.found(|claim| file_of(claim, "dir/file-3").mode = 0o4755);
    assert_eq!(found, "\"dir/file-3\": has mode 0644, the claim says 4755");
    let found = scene.found(|claim| file_of(claim, "dir").uid = 7);
    assert_eq!(found, "\"dir\": belongs to 0:0, the claim says 7:0");
    let found = scene.found(|claim| {
        file_of(claim, "dir/file-3").xattrs = vec![Xattr { name: b"security.capability".to_vec(), value: vec![1] }];
    });
    assert_eq!(found, "\"dir/file-3\": has other extended attributes than the claim says");
    let found = scene.found(|claim| file_of(claim, "dir/link").kind = Kind::Symlink { target: b"file-3".to_vec() });
    assert_eq!(found, "\"dir/link\": leads to \"file-0\", the claim says \"file-3\"");
    let found = scene.found(|claim| file_of(claim, "dir/link").kind = Kind::CharDevice { major: 1, minor: 3 });
    assert_eq!(found, "\"dir/link\": is a symbolic link, the claim says character device 1:3");
    let found = scene.found(|claim| file_of(claim, "dir/file-1").path = b"dir/file-9".to_vec());
    assert_eq!(found, "\"dir/file-1\": the claim has \"dir/file-9\" in its place");
}

#[test]
fn a_changed_size_is_found() {
    let scene = scene();
    let found = scene.found(|claim| {
        let Kind::Regular { size, .. } = &mut file_of(claim, "dir/file-3").kind else { panic!("a file") };
        *size += 1;
    });
    assert_eq!(found, "\"dir/file-3\": has 3000 bytes, the claim says 3001");
}

#[test]
fn a_missing_entry_and_one_too_many_are_found() {
    let scene = scene();
    let found = scene.found(|claim| drop(claim.entries.pop()));
    assert_eq!(found, "\"dir/link\": is missing in the claim");
    let found = scene.found(|claim| claim.entries.push(entry("dir/more", Kind::Fifo)));
    assert_eq!(found, "\"dir/more\": is not in the layer");
    let found = scene.found(|claim| drop(claim.entries.remove(2)));
    assert_eq!(found, "\"dir/file-1\": the claim has \"dir/file-2\" in its place");
    let found = scene.found(|claim| claim.entries.push(entry("dir/file-1", Kind::Whiteout)));
    assert_eq!(found, "\"dir/file-1\": is not in the layer");
}

#[test]
fn swapped_contents_are_found_with_and_without_content_digests() {
    let scene = scene();
    for digests in [true, false] {
        let found = scene.found(|claim| {
            let place = |claim: &mut Claim, name: &str| match &mut file_of(claim, name).kind {
                Kind::Regular { segments, content, .. } => {
                    *content = content.filter(|_| digests);
                    segments[0].layer_offset
                }
                kind => panic!("{kind:?} is no file"),
            };
            let (third, fourth) = (place(claim, "dir/file-3"), place(claim, "dir/file-4"));
            // The spans change places, each with its own digest: every one of them verifies.
            let at = |claim: &Claim, place: u64| {
                let starts = claim.spans.iter().scan(0, |end, span| Some(std::mem::replace(end, *end + span.length)));
                starts.into_iter().position(|start| start == place).expect("a span begins with the file")
            };
            let (third, fourth) = (at(claim, third), at(claim, fourth));
            claim.spans.swap(third, fourth);
        });
        assert_eq!(found, "\"dir/file-3\": has other bytes than the claim leads to");
    }
    let found = scene.found(|claim| {
        let Kind::Regular { content, .. } = &mut file_of(claim, "dir/file-3").kind else { panic!("a file") };
        *content = Some([1; 32]);
    });
    assert_eq!(found, "\"dir/file-3\": has another content digest than the claim says");
}

#[test]
fn spans_that_do_not_hold_what_they_say_are_found() {
    let scene = scene();
    let found = scene.found(|claim| claim.spans[3].digest = SpanDigest::Decoded([3; 32]));
    assert!(found.ends_with("the claim has a wrong digest of its bytes"), "{found}");
    let found = scene.found(|claim| claim.spans[3].compressed.start += 1);
    assert!(found.contains("its bytes cannot be had as the claim says"), "{found}");
}

#[test]
fn holes_are_equal_to_zeros_and_to_nothing_else() {
    let zeros = vec![0; 9000];
    let content = [&[7; 3000][..], &zeros, &[9; 5000]].concat();
    let mut writer = Writer::new(Vec::new());
    let size = content.len() as u64;
    let kind = Kind::Regular { size, segments: vec![], content: None };
    writer.append(&entry("holes", kind), &content[..]).expect("writing to memory");
    let tar = writer.finish().expect("writing to memory");
    let truth = index(&tar, &tar);
    let segment = |file_offset, length| Segment { file_offset, layer_offset: 512 + file_offset, length };
    let with = |segments: Vec<Segment>| {
        let mut claim = claim_like(&truth, &tar, &tar, 0);
        let Kind::Regular { segments: pieces, content, .. } = &mut claim.entries[0].kind else { panic!("a file") };
        (*pieces, *content) = (segments, None);
        let claim = LayerIndex::claimed(&expect(&tar, &tar), claim).expect("a valid claim");
        compared(&claim, &truth, &tar).map_err(|error| error.to_string())
    };
    with(vec![segment(0, 3000), segment(12_000, 5000)]).expect("the hole is one");
    with(vec![segment(0, 100), segment(100, 7000), segment(7100, 9900)]).expect("cut in another way");
    with(vec![segment(0, 3000), segment(5000, 1), segment(11_000, 6000)]).expect("zeros in the hole");
    for wrong in [vec![segment(0, 3000), segment(12_001, 4999)], vec![segment(12_000, 5000)], vec![]] {
        let found = with(wrong).expect_err("there are bytes");
        assert_eq!(found, "\"holes\": has bytes where the claim has a hole");
    }
}

#[test]
fn an_index_of_ours_that_was_forged_is_found_even_if_every_digest_in_it_is_right() {
    let (tar, _) = tar_of(42, &[3000, 3000, 2000]);
    let truth = index(&tar, &tar);
    let spans::Table::Own(records, payload_end) = truth.table() else { panic!("it is ours") };
    let forge = |entries: &[Entry]| {
        let mut writer = entries::EntryWriter::new();
        assert!(entries.iter().all(|entry| writer.push(entry)));
        let content = format::Content {
            compression: Compression::None,
            uncompressed_size: truth.uncompressed_size(),
            payload_end,
            spans: format::Spans::Own(records.to_vec()),
            groups: Vec::new(),
            windows: Vec::new(),
            entries: writer.finish(),
            dependencies: Vec::new(),
        };
        let bytes = Bytes::from(format::assemble(&expect(&tar, &tar), &content));
        LayerIndex::open_claim(bytes).expect("nothing is wrong with its form")
    };
    let mut list = entries(&truth);
    let same = forge(&list);
    assert!(same.says_the_same(&truth) && same.is_of(&expect(&tar, &tar)));
    same.check_entries().expect("it is ours");
    // The second file is led to the first one's bytes: a pass over the stream must not take those between for it.
    let Kind::Regular { segments: first, .. } = list[1].kind.clone() else { panic!("a file") };
    let Kind::Regular { segments, content, .. } = &mut list[2].kind else { panic!("a file") };
    (*segments, *content) = (first, None);
    let forged = forge(&list);
    let found = compared(&forged, &truth, &tar).expect_err("it lies").to_string();
    assert_eq!(found, "\"dir/file-1\": has bytes that the claim has in no order");
    let refused = forged.check_entries().expect_err("it lies").to_string();
    assert!(refused.contains("\"dir/file-1\"") && refused.ends_with("its pieces are not in order"), "{refused}");
    list.truncate(2);
    list[1].mode = 0o777;
    let found = compared(&forge(&list), &truth, &tar).expect_err("it lies").to_string();
    assert_eq!(found, "\"dir/file-0\": has mode 0644, the claim says 0777");
}

#[test]
fn files_of_the_format_may_be_left_out_but_not_changed() {
    let mut writer = Writer::new(Vec::new());
    for name in ["a", ".prefetch.landmark", "stargz.index.json"] {
        let kind = Kind::Regular { size: 1, segments: vec![], content: None };
        writer.append(&entry(name, kind), &b"\x0f"[..]).expect("writing to memory");
    }
    let tar = writer.finish().expect("writing to memory");
    let truth = index(&tar, &tar);
    let claim = claim_like(&truth, &tar, &tar, 0);
    let with = |change: &dyn Fn(&mut Claim)| {
        let mut claim = claim.clone();
        change(&mut claim);
        compared(&LayerIndex::claimed(&expect(&tar, &tar), claim).expect("a valid claim"), &truth, &tar)
    };
    with(&|_| {}).expect("they may be there");
    with(&|claim| claim.entries.truncate(1)).expect("they may be left out");
    with(&|claim| drop(claim.entries.remove(1))).expect("one may be left out");
    assert!(with(&|claim| claim.entries[2].mode = 0o777).is_err());
    assert!(with(&|claim| drop(claim.entries.remove(0))).is_err(), "others may not");
}

#[test]
fn a_layer_that_cannot_be_read_proves_nothing() {
    let scene = scene();
    let claim = LayerIndex::claimed(&expect(&scene.blob, &scene.tar), scene.claim.clone()).expect("a valid claim");
    let failing = |range: Range<u64>| match range.start {
        0 => Ok(Bytes::copy_from_slice(blob_bytes(&scene.blob, range))),
        _ => Err(std::io::Error::other("the disk fails")),
    };
    assert!(matches!(compare(&claim, &scene.truth, failing), Err(Difference::Input(_))));
    let mut rotten = scene.blob.clone();
    rotten[40] ^= 1;
    let outcome = compared(&claim, &scene.truth, &rotten);
    assert!(outcome.is_err(), "{outcome:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_claim_with_any_byte_of_any_file_led_elsewhere_is_found(place: prop::sample::Index, far in 1_u64..50) {
        // One file's bytes are taken from a few bytes further on in the claim's stream.
        let scene = scene();
        let mut claim = scene.claim.clone();
        let last = claim.entries.iter().rposition(|entry| matches!(&entry.kind, Kind::Regular { segments, .. } if !segments.is_empty()));
        let files = last.expect("a file");
        let number = place.index(files);
        let Kind::Regular { segments, size, .. } = &mut claim.entries[number].kind else { return Ok(()) };
        if segments.is_empty() || *size <= far { return Ok(()) }
        segments[0].layer_offset += far;
        segments[0].length -= far;
        prop_assert!(scene.compare(claim).is_err());
    }
}

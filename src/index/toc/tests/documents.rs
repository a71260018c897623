//! What documents say, as their writers say it.

use super::*;

#[test]
fn every_form_gives_what_tar_gives() {
    let tar = stream(&everything());
    for form in Form::ALL {
        let written = write(&tar, How::new(form));
        let claim = claim_of(&written).unwrap_or_else(|error| panic!("{form:?}: {error}"));
        let exact = if form == Form::ZstdStorage { Times::Exact } else { Times::Seconds };
        assert_eq!(claim.fidelity, exact, "{form:?}");
        assert_is(&claim, &written, &tar);
    }
}

#[test]
fn a_226_chunks_and_inner_offsets_are_followed() {
    let tar = stream(&everything());
    for form in Form::ALL {
        for (chunk, member) in [(100, 0), (4096, 0), (70_000, 0), (1000, 5000), (50_000, 200_000), (1 << 20, 1 << 20)] {
            // containers/storage ends a frame behind each file, so it has no use for members of many.
            let member = if form == Form::ZstdStorage { 0 } else { member };
            let written = write(&tar, How { chunk, member, ..How::new(form) });
            assert_is(&claim_of(&written).unwrap_or_else(|error| panic!("{form:?}: {error}")), &written, &tar);
        }
    }
}

#[test]
fn a_226_a_chunk_without_a_size_is_the_rest_of_its_file() {
    let chunk = |offset: u64, from: u64| json!({ "type": "chunk", "offset": offset, "chunkOffset": from, "chunkDigest": DIGEST });
    let mut first = listed_file("f", 100, 512);
    first["chunkSize"] = 60.into();
    for format in BOTH {
        let claim = listed(format, &[first.clone(), chunk(700, 60)]).expect("a file of two chunks");
        let lengths: Vec<_> = claim.spans.iter().map(|span| (span.compressed.clone(), span.length)).collect();
        assert_eq!(lengths, [(512..700, 60), (700..10_000, 40)]);
        let Kind::Regular { segments, .. } = &claim.entries[0].kind else { panic!("{claim:?}") };
        assert_eq!(segments[..], [Segment { file_offset: 0, layer_offset: 0, length: 100 }]);
    }
}

#[test]
fn a_227_chunks_of_zeros_are_holes() {
    let hole = json!({ "type": "chunk", "name": "f", "offset": 600, "chunkOffset": 10, "chunkSize": 80, "chunkType": "zeros" });
    let last = json!({ "type": "chunk", "name": "f", "offset": 600, "chunkOffset": 90, "chunkSize": 10, "chunkDigest": DIGEST });
    let mut first = listed_file("f", 100, 512);
    (first["chunkSize"], first["endOffset"]) = (10.into(), 900.into());
    let claim = listed(Format::ZstdChunked, &[first, hole, last]).expect("a file with a hole");
    let spans: Vec<_> = claim.spans.iter().map(|span| (span.compressed.clone(), span.length)).collect();
    assert_eq!(spans, [(512..600, 10), (600..900, 10)], "the end of the file is that of its last chunk");
    let Kind::Regular { segments, .. } = &claim.entries[0].kind else { panic!("{claim:?}") };
    let segment = |file_offset, layer_offset| Segment { file_offset, layer_offset, length: 10 };
    assert_eq!(segments[..], [segment(0, 0), segment(90, 10)]);

    let tar =
        stream(&[file("zeros", vec![0; 5000]), file("mixed", [vec![0; 4096], text(100, 1), vec![0; 8000]].concat())]);
    let written = write(&tar, How { chunk: 512, ..How::new(Form::ZstdStorage) });
    let claim = claim_of(&written).expect("holes");
    assert!(claim.uncompressed_size < 3000, "holes are not in the stream");
    assert_is(&claim, &written, &tar);
}

#[test]
fn a_228_a_file_without_chunk_digests_has_its_own_or_is_refused() {
    let mut one = listed_file("f", 100, 512);
    one["chunkDigest"] = Value::Null;
    for format in BOTH {
        assert_eq!(listed(format, std::slice::from_ref(&one)).expect("the file's digest is enough").spans.len(), 1);
    }
    let mut first = one.clone();
    first["chunkSize"] = 50.into();
    let second = json!({ "type": "chunk", "offset": 600, "chunkOffset": 50, "chunkDigest": DIGEST });
    assert_eq!(fault(&[first.clone(), second.clone()]), Fault::Unverifiable);
    first["chunkDigest"] = DIGEST.into();
    assert_eq!(listed(Format::Estargz, &[first.clone(), second.clone()]).expect("both have digests").spans.len(), 2);
    let mut second = second;
    second["chunkDigest"] = "".into();
    assert_eq!(fault(&[first, second]), Fault::Unverifiable);
    one["digest"] = Value::Null;
    assert_eq!(fault(&[one]), Fault::Unverifiable);
}

#[test]
fn a_229_two_files_at_one_place_are_refused() {
    assert_eq!(fault(&[listed_file("a", 10, 512), listed_file("b", 10, 512)]), Fault::Shared);
    let inner = |name, size, inner: u64| {
        let mut file = listed_file(name, size, 512);
        file["innerOffset"] = inner.into();
        file
    };
    for format in BOTH {
        let claim = listed(format, &[inner("a", 10, 512), inner("b", 10, 1536), listed_file("c", 1, 700)])
            .expect("members shared");
        let spans: Vec<_> = claim.spans.iter().map(|span| (span.compressed.clone(), span.skip)).collect();
        assert_eq!(spans, [(512..700, 512), (512..700, 1536), (700..10_000, 0)]);
    }
    assert_eq!(fault(&[inner("a", 10, 512), inner("b", 10, 521)]), Fault::Shared);
    assert_eq!(fault(&[inner("a", 10, 512), inner("b", 10, 512)]), Fault::Shared);
}

#[test]
fn a_230_attributes_are_decoded_and_no_time_is_the_epoch() {
    let mut listing = json!({ "name": "d", "type": "dir", "modtime": "", "xattrs": { "user.a": "AAEC", "user.b": "", "trusted.x": "QQ==" } });
    for time in [json!(""), Value::Null, json!("1969-12-31T23:59:59.5Z"), json!("0001-01-01T00:00:00Z")] {
        listing["modtime"] = time;
        let claim = listed(Format::Estargz, std::slice::from_ref(&listing)).expect("a directory");
        assert_eq!(claim.entries[0].mtime, Timestamp::default());
        let attribute = |name: &[u8], value: &[u8]| Xattr { name: name.to_vec(), value: value.to_vec() };
        assert_eq!(claim.entries[0].xattrs, [attribute(b"user.a", &[0, 1, 2]), attribute(b"user.b", b"")]);
    }
    listing["xattrs"]["user.a"] = "A".into();
    assert_eq!(fault(std::slice::from_ref(&listing)), Fault::Xattr);
    listing["xattrs"] = Value::Null;
    listing["modtime"] = "yesterday".into();
    assert_eq!(fault(&[listing]), Fault::Time);
}

#[test]
fn a_231_landmarks_and_the_toc_itself_are_no_files_of_the_image() {
    for name in [".prefetch.landmark", ".no.prefetch.landmark", "stargz.index.json", "./.prefetch.landmark"] {
        for format in BOTH {
            let deep = format!("dir/{name}");
            let entries = [listed_file("a", 10, 100), listed_file(name, 1, 512), listed_file(&deep, 10, 700)];
            let claim = listed(format, &entries).expect("a landmark");
            assert_eq!(claim.entries.len(), 2, "{name}");
            let spans: Vec<_> = claim.spans.iter().map(|span| span.compressed.clone()).collect();
            assert_eq!(spans, [100..512, 700..10_000], "the landmark's own bytes are between");
            let is_landmark = name.ends_with("/.prefetch.landmark") || name == ".prefetch.landmark";
            assert_eq!(claim.prefetch_end, is_landmark.then_some(512), "{name}");
        }
    }
    let claim =
        listed(Format::Estargz, &[json!({ "name": ".prefetch.landmark", "type": "dir" })]).expect("a directory");
    assert_eq!(claim.entries.len(), 1, "only files are landmarks");
}

#[test]
fn go_leaves_out_what_is_zero_and_old_writers_add_what_nobody_reads() {
    let text = br#"{"tarSplitDigest":"x","entries":[{"name":"e","type":"reg","NumLink":1,"xattrs":null,"offset":0},
        {"name":"dir/","type":"dir","mode":16877,"accesstime":"0001-01-01T00:00:00Z"}],"version":1}"#;
    let claim = read(Format::ZstdChunked, text, 100).expect("a document");
    assert_eq!((claim.entries[0].path.as_slice(), claim.entries[0].mode, claim.spans.len()), (&b"e"[..], 0, 0));
    assert_eq!((claim.entries[1].path.as_slice(), claim.entries[1].mode), (&b"dir"[..], 0o755));
    assert!(read(Format::Estargz, br#"{"version":1,"entries":null}"#, 100).expect("an empty layer").entries.is_empty());
}

#[test]
fn d_020_the_last_entry_of_a_name_counts_in_estargz_and_zstd_chunked_has_one() {
    let twice = [listed_file("a", 10, 100), json!({ "name": "./a/", "type": "dir" })];
    assert_eq!(listed(Format::Estargz, &twice).expect("as in tar").entries.len(), 2);
    let refused = listed(Format::ZstdChunked, &twice);
    assert!(matches!(refused, Err(Error::Entry { fault: Fault::Twice, .. })), "{refused:?}");
    let hidden = [listed_file("a", 10, 100), json!({ "name": ".wh.a", "type": "reg" })];
    listed(Format::ZstdChunked, &hidden).expect("a whiteout is another name");
}

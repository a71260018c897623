//! Annotations and footers: where a TOC is, and which one it must be.

use super::*;
use crate::limits::TOC_BYTES;

const DOCUMENT: &str = "containerd.io/snapshot/stargz/toc.digest";
const STORAGE: &str = "io.github.containers.zstd-chunked.manifest-";
const STARGZ: &str = "io.containers.zstd-chunked.manifest-";
const OTHER: &str = "sha256:dc0e9c3658a1a3ed1ec94274d8b19925c93e1abb7ddba294923ad9bde30f8cb8";

fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn a_220_footers_are_recognised() {
    let tar = stream(&[file("f", "f")]);
    for (form, bytes) in [(Form::Estargz, 51), (Form::Stargz, 47)] {
        let written = write(&tar, How::new(form));
        let size = written.blob.len() as u64;
        let tail = &written.blob[written.blob.len() - Footer::BYTES as usize..];
        let Ok(Some(Footer::Within(place))) = Footer::find(tail, size) else { panic!("{form:?}") };
        assert_eq!(place.bytes(), written.toc.start as u64..size - bytes);
        assert_eq!(place.format(), Format::Estargz);
        assert_eq!(Footer::find(&tail[1..], size), Ok(Some(Footer::Within(place))), "the last bytes are enough");
        for cut in 1..bytes as usize {
            let found = Footer::find(&tail[tail.len() - cut..], size);
            assert!(matches!(found, Ok(None)), "{form:?}: {cut} bytes: {found:?}");
        }
    }
    let written = write(&tar, How::new(Form::External));
    let footer = Footer::find(&written.blob, written.blob.len() as u64);
    assert!(matches!(footer, Ok(Some(Footer::Outside(_)))), "{footer:?}");
    for plain in
        [writer::gzip(&tar), tar.clone(), zstd::encode_all(&tar[..], 3).expect("memory"), Vec::new(), vec![0x1f]]
    {
        assert_eq!(Footer::find(&plain, plain.len() as u64), Ok(None));
    }
}

#[test]
fn zstd_footers_of_both_writers_are_recognised() {
    let tar = stream(&[file("f", "f")]);
    for form in [Form::ZstdStargz, Form::ZstdStorage] {
        let written = write(&tar, How::new(form));
        let size = written.blob.len() as u64;
        let Ok(Some(Footer::Within(place))) = Footer::find(&written.blob, size) else { panic!("{form:?}") };
        let annotated = Pin::of(&written.annotations).expect("a pin").expect("a pin").place(size);
        assert_eq!(annotated, Ok(Some(place)), "{form:?}: the footer says what the annotation says");
        // Only the checksum is annotated.
        let mut less = written.clone();
        less.annotations.retain(|key, _| !key.ends_with("position"));
        assert_is(&claim_of(&less).expect("the footer says where"), &less, &tar);
        let mut broken = less.clone();
        let kind = broken.blob.len() - if form == Form::ZstdStorage { 40 } else { 16 };
        broken.blob[kind] = 2;
        assert_eq!(claim_of(&broken).err(), Some(Error::Place), "A-224: the type is 1");
    }
    for tail in [&b"GNUlInUx"[..], b"xGnUlInUx", &[&[0; 20][..], b"GNUlInUx"].concat()] {
        assert_eq!(Footer::find(tail, 1000), Err(Error::Place));
    }
}

#[test]
fn a_221_another_document_than_the_pinned_one_is_refused() {
    let tar = stream(&everything());
    for form in Form::ALL {
        let written = write(&tar, How::new(form));
        for key in written.annotations.keys().filter(|key| key.ends_with("digest") || key.ends_with("checksum")) {
            let mut other = written.clone();
            other.annotations.insert(key.clone(), OTHER.to_owned());
            let refused = claim_of(&other);
            assert!(matches!(refused, Err(Error::Digest { .. })), "{form:?} {key}: {refused:?}");
        }
        let mut unpinned = written.clone();
        unpinned.annotations.retain(|key, _| key.ends_with("position"));
        assert_eq!(claim_of(&unpinned).err(), Some(Error::Unpinned), "{form:?}: a position pins nothing");
    }
}

#[test]
fn an_archive_must_be_pinned_by_the_document_in_it() {
    let written = write(&stream(&[file("f", "f")]), How::new(Form::External));
    let pin = Pin::of(&annotations(&[(&format!("{STARGZ}checksum"), OTHER)])).expect("a pin").expect("a pin");
    let Ok(Some(Footer::Outside(outside))) = Footer::find(&written.blob, written.blob.len() as u64) else { panic!() };
    let archive = written.archive.expect("an archive");
    assert_eq!(open_outside(outside, &archive, &pin).err(), Some(Error::Unpinned));
}

#[test]
fn a_223_annotations_of_two_tools_are_refused() {
    let (github, old) = (format!("{STORAGE}checksum"), format!("{STARGZ}checksum"));
    let (place, old_place) = (format!("{STORAGE}position"), format!("{STARGZ}position"));
    let of = |pairs: &[(&str, &str)]| Pin::of(&annotations(pairs));
    assert_eq!(of(&[(DOCUMENT, DIGEST), (&github, DIGEST), (&place, "100:10:10:1")]), Err(Error::Two));
    assert_eq!(of(&[(&github, DIGEST), (&old, OTHER)]), Err(Error::Two));
    assert_eq!(
        of(&[(&github, DIGEST), (&place, "100:10:10:1"), (&old, DIGEST), (&old_place, "90:10:10:1")]),
        Err(Error::Two)
    );
    // The same said twice is one TOC, and so are the two digests that stargz-snapshotter writes.
    let both = [(&*github, DIGEST), (&place, "100:10:10:1"), (&old, DIGEST), (&old_place, "100:10:10:1")];
    assert!(of(&both).expect("one TOC").is_some());
    assert!(of(&[(DOCUMENT, DIGEST), (&old, OTHER), (&old_place, "100:10:10:1")]).expect("one TOC").is_some());
    assert_eq!(of(&[]), Ok(None));
    assert_eq!(of(&[("org.opencontainers.image.title", "x"), (&place, "not looked at")]), Ok(None));
    assert_eq!(of(&[(DOCUMENT, "sha256:short")]), Err(Error::Annotation(DOCUMENT)));
    assert!(matches!(of(&[(&github, "md5:d41d8cd98f00b204e9800998ecf8427e")]), Err(Error::Annotation(_))));
}

#[test]
fn a_224_positions_are_four_numbers_and_the_last_is_one() {
    let of = |position: &str| {
        let keys = (format!("{STORAGE}checksum"), format!("{STORAGE}position"));
        Pin::of(&annotations(&[(&keys.0, DIGEST), (&keys.1, position)]))
    };
    let pin = of("1000:20:300:1").expect("a position").expect("a pin");
    let place = pin.place(2000).expect("a place").expect("a place");
    assert_eq!((place.bytes(), place.length, place.payload_end), (1000..1020, Some(300), 992));
    assert_eq!(pin.digest().to_string(), DIGEST);
    for text in [
        "1000:20:300:2",
        "1000:20:300",
        "1000:20:300:1:1",
        "",
        "1000:20:300:",
        ":::1",
        "+1:20:300:1",
        "-1:2:3:1",
        "1 :2:3:1",
        "0x1:2:3:1",
        "18446744073709551616:2:3:1",
    ] {
        assert!(matches!(of(text), Err(Error::Annotation(_))), "{text}");
    }
}

#[test]
fn a_225_no_tar_split_is_needed() {
    let tar = stream(&everything());
    for form in Form::ALL {
        let written = write(&tar, How::new(form));
        assert!(!String::from_utf8_lossy(&written.document).contains("tarSplitDigest"));
        claim_of(&written).expect("the manifest pins it");
    }
}

#[test]
fn d_017_a_footer_that_leads_nowhere_is_refused() {
    let find = |text: &str, size: u64| {
        let tail = [&[0; 20][..], &writer::gzip_footer(Form::Estargz, text)].concat();
        Footer::find(&tail, size)
    };
    let size = 1000;
    assert!(matches!(find("0000000000000100STARGZ", size), Ok(Some(Footer::Within(_)))));
    for offset in ["ffffffffffffffff", "00000000000003e8", "00000000000003b5", "7fffffffffffffff"] {
        assert_eq!(find(&format!("{offset}STARGZ"), size), Err(Error::Place), "{offset}");
    }
    for offset in ["+000000000000100", "-000000000000100", "0x00000000000100", "                ", "000000000000010g"] {
        assert_eq!(find(&format!("{offset}STARGZ"), size), Err(Error::Place), "{offset}");
    }
    assert_eq!(find("0000000000000100STARGZ", 30), Err(Error::Place), "the blob is shorter than its footer");
    assert_eq!(find("0000000000000100STARGZ", TOC_BYTES + 1000), Err(Error::Length));
    assert_eq!(find("0000000000000100STARGX", size), Ok(None));
}

#[test]
fn d_021_a_position_beyond_the_blob_or_with_another_length_is_refused() {
    let tar = stream(&everything());
    for form in [Form::ZstdStargz, Form::ZstdStorage] {
        let written = write(&tar, How::new(form));
        let key = written.annotations.keys().find(|key| key.ends_with("position")).expect("a position").clone();
        let with = |offset: u64, compressed: u64, length: u64| {
            let mut other = written.clone();
            other.annotations.insert(key.clone(), format!("{offset}:{compressed}:{length}:1"));
            claim_of(&other).map(drop)
        };
        let (toc, length) = (written.toc.clone(), written.document.len() as u64);
        let (start, compressed) = (toc.start as u64, toc.len() as u64);
        assert_eq!(with(start, compressed, length), Ok(()));
        assert_eq!(with(start, compressed, length + 1), Err(Error::Length));
        assert_eq!(with(start, compressed, length - 1), Err(Error::Length));
        let size = written.blob.len() as u64;
        for (offset, compressed) in [(size, 1), (start, size), (u64::MAX, 1), (start, u64::MAX), (7, 10), (start, 0)] {
            assert_eq!(with(offset, compressed, length), Err(Error::Place));
        }
        assert_eq!(with(start, compressed, u64::MAX), Err(Error::Place));
        assert_eq!(with(start, compressed, 0), Err(Error::Place));
        assert!(matches!(with(start - 1, compressed, length), Err(Error::Digest { .. })));
    }
}

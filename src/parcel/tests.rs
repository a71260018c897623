//! Two caches and an image of three layers: what comes out of one goes into the other, and nothing else does.

use std::io::Cursor;

use flate2::{Compression as Level, write::GzEncoder};
use proptest::prelude::*;
use tempfile::TempDir;

use super::format::{Form, LayerHead, Writer};
use super::*;
use crate::index::{Expected, LayerIndex, SpanId, build};
use crate::limits::{BLOB_BYTES, PARCEL_DOCUMENTS};
use crate::profile::{Access, Origin};
use crate::store::Store;
use crate::tar::{Entry, Kind, Timestamp};
use crate::tree::Merger;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Bytes that compress to half.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b'a' + (state >> 60) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// The blob of a layer and what it is.
#[derive(Clone)]
struct Made {
    blob: Bytes,
    expected: Expected,
    index: LayerIndex,
}

fn layer(files: &[(&str, Vec<u8>)], gzip: bool) -> Made {
    let mut writer = crate::tar::Writer::new(Vec::new());
    for (path, content) in files {
        let kind = Kind::Regular { size: content.len() as u64, segments: Vec::new(), content: None };
        let mtime = Timestamp { seconds: 1, nanos: 0 };
        let entry = Entry { path: (*path).into(), kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: Vec::new() };
        writer.append(&entry, &content[..]).expect("written to memory");
    }
    let tar = writer.finish().expect("written to memory");
    let diff_id = Digest::sha256(&tar);
    let blob = if gzip {
        let mut encoder = GzEncoder::new(Vec::new(), Level::default());
        io::Write::write_all(&mut encoder, &tar).expect("written to memory");
        encoder.finish().expect("written to memory")
    } else {
        tar
    };
    let blob = Bytes::from(blob);
    let expected = Expected { layer: Digest::sha256(&blob), size: blob.len() as u64, diff_id };
    let index = build(std::iter::once(Ok::<_, std::convert::Infallible>(blob.clone())), expected).expect("a layer");
    Made { blob, expected, index }
}

/// Layers that the tests share: gzip, plain, gzip; 3 MiB, 2 MiB and 1 MiB before compression.
fn layers() -> &'static [Made; 3] {
    static LAYERS: std::sync::OnceLock<[Made; 3]> = std::sync::OnceLock::new();
    LAYERS.get_or_init(|| {
        [
            layer(&[("a", noise(1 << 20, 1)), ("b", noise(2 << 20, 2))], true),
            layer(&[("c", noise(2 << 20, 3))], false),
            layer(&[("d", noise(1 << 20, 4))], true),
        ]
    })
}

struct Cache {
    store: Arc<Store>,
    dir: TempDir,
}

impl Cache {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self { store: Arc::new(Store::open(&dir.path().join("cache")).expect("a new store")), dir }
    }

    fn blob(&self, made: &Made) -> Arc<crate::store::Blob> {
        self.store.blob(&made.expected.layer, made.expected.size).expect("a blob")
    }

    /// Puts these spans of a layer in place.
    fn touch(&self, made: &Made, spans: impl IntoIterator<Item = SpanId>) {
        let blob = self.blob(made);
        for span in spans {
            let range = made.index.compressed(span);
            blob.write(range.start, &made.blob[range.start as usize..range.end as usize]).expect("written");
        }
    }

    fn complete(&self, made: &Made) {
        let blob = self.blob(made);
        blob.write(0, &made.blob).expect("written");
        blob.complete(false).expect("all here");
    }

    /// What this cache has of the image, as the daemon would gather it.
    fn contents(&self) -> Contents {
        let layers = layers();
        let mut merger = Merger::new();
        for made in layers {
            merger.layer(Some(made.expected.layer), made.index.entries()).expect("a good layer");
        }
        let scratch = crate::store::Scratch::new(self.dir.path().into());
        let layer = |made: &Made| Layer::new(made.index.clone(), self.blob(made), None, "cache", scratch.clone());
        let manifest = Bytes::from_static(b"{\"manifest\":1}");
        let digest = Digest::sha256(&manifest);
        let named = Named {
            reference: "registry.example/it:1".to_owned(),
            digest,
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        };
        let config = Bytes::from_static(b"{}");
        Contents {
            named: Some(named),
            documents: vec![(digest, manifest), (Digest::sha256(&config), config)],
            profile: Some((digest, profile())),
            spans: Spans::All,
            layers: layers.iter().map(|made| Arc::new(layer(made))).collect(),
            tree: Tree::open(Bytes::from(merger.finish())).expect("a good tree"),
        }
    }

    /// True if every byte that counts as present is that of the layer.
    fn is_sound(&self) -> bool {
        layers().iter().all(|made| {
            let blob = self.blob(made);
            let here = made.index.span_ids().filter(|span| blob.missing(made.index.compressed(*span)).is_empty());
            here.into_iter().all(|span| {
                let bytes = blob.read(made.index.compressed(span)).expect("readable").expect("here");
                made.index.decode(span, &bytes).is_ok()
            })
        })
    }
}

fn profile() -> Profile {
    let origin = Origin { image: Digest::sha256(b"it"), recorded: 7, mount: "/m".into() };
    let access = |path: &str, start, end| Access::new(path.into(), start, end);
    Profile::new(
        origin,
        [access("b", 0, 10), access("gone", 0, 10), access("c", 1 << 20, (1 << 20) + 5)].into_iter().flatten(),
    )
}

fn write(contents: &Contents) -> (Vec<u8>, Exported) {
    let mut parcel = Vec::new();
    let exported = export(contents, &mut parcel, &Progress::default()).expect("written to memory");
    (parcel, exported)
}

fn read(parcel: &[u8], cache: &Cache) -> Result<Imported, Error> {
    import(Cursor::new(parcel), &cache.store)
}

/// A cache that was used: of the first layer two spans, of the second all, of the third nothing.
fn used() -> Cache {
    let cache = Cache::new();
    let [first, second, _] = layers();
    assert!(first.index.span_count() > 3, "enough to leave some out");
    cache.touch(first, first.index.span_ids().skip(1).take(2));
    cache.complete(second);
    cache
}

#[test]
fn what_was_touched_comes_out_of_one_cache_and_goes_into_another() -> Outcome {
    let (from, to) = (used(), Cache::new());
    let contents = from.contents();
    let (parcel, exported) = write(&contents);
    let imported = read(&parcel, &to)?;
    let reference = "registry.example/it:1".to_owned();
    assert_eq!(
        imported,
        Imported { reference: Some(reference.clone()), layers: 3, bytes: exported.bytes, profile: true }
    );
    for made in layers() {
        assert_eq!(to.blob(made).missing(0..made.expected.size), from.blob(made).missing(0..made.expected.size));
        // The second came as a whole, which proves it.
        let is_whole = made.expected.layer == layers()[1].expected.layer;
        let proven = to.store.index(&made.expected.layer)?.filter(|_| is_whole);
        let index = proven.or(to.store.claim(&made.expected.layer, &store::IMPORTED)?).expect("an index");
        assert_eq!(index.bytes(), made.index.as_bytes());
        assert_eq!(to.store.index(&made.expected.layer)?.is_some(), is_whole);
    }
    assert!(to.blob(&layers()[1]).is_complete() && to.is_sound());
    let (manifest, bytes) = &contents.documents[0];
    assert_eq!(to.store.document(manifest)?.as_ref(), Some(bytes));
    assert_eq!(to.store.reference(&reference)?.map(|(digest, _)| digest), Some(*manifest));
    assert_eq!(to.store.profile(manifest)?.as_deref(), Some(profile().to_text().as_bytes()));

    assert!(write(&to.contents()).0 == parcel, "equal contents make equal files");
    assert_eq!(read(&parcel, &to)?, imported, "once more changes nothing");
    assert!(write(&to.contents()).0 == parcel);
    Ok(())
}

#[test]
fn a_parcel_is_as_small_as_what_was_touched() {
    let (first, cache) = (&layers()[0], Cache::new());
    let indexes: u64 = layers().iter().map(|made| made.index.as_bytes().len() as u64).sum();
    let empty = write(&cache.contents()).0.len() as u64;
    assert!(empty < indexes + 2000, "{empty} bytes for indexes of {indexes}");
    cache.touch(first, first.index.span_ids().take(1));
    let (parcel, exported) = write(&cache.contents());
    assert_eq!(exported.bytes, cache.blob(first).present_bytes());
    assert_eq!(parcel.len() as u64, empty + exported.bytes + 1 + 4 + 8 + 32, "one stretch more");
    cache.touch(first, first.index.span_ids());
    let all = write(&cache.contents()).1.bytes;
    assert!(all < first.expected.size + 10, "neighbours share a byte, not more: {all} of {}", first.expected.size);
}

#[test]
fn with_its_profile_only_the_spans_that_it_names_are_carried() -> Outcome {
    let (from, to) = (Cache::new(), Cache::new());
    layers().iter().for_each(|made| from.complete(made));
    let contents = Contents { spans: Spans::OfProfile, ..from.contents() };
    let (parcel, exported) = write(&contents);
    assert_eq!(exported.bytes, contents.bytes(), "what progress counts");
    read(&parcel, &to)?;
    let [first, second, third] = layers();
    assert!(to.is_sound());
    assert_eq!(to.blob(third).present_bytes(), 0);
    let here = |made: &Made| {
        let blob = to.blob(made);
        let ids = made.index.span_ids();
        ids.filter(|span| blob.missing(made.index.compressed(*span)).is_empty()).count()
    };
    assert!((1..=2).contains(&here(first)) && (1..=2).contains(&here(second)));
    let node = contents.tree.resolve(b"b", true).expect("it is there");
    let extent = contents.tree.node(node).extents().next().expect("it has bytes");
    let span = first.index.spans(extent.layer_offset..extent.layer_offset + 10).next().expect("a span");
    assert!(to.blob(first).missing(first.index.compressed(span)).is_empty());
    Ok(())
}

#[test]
fn of_what_is_here_only_the_spans_that_were_touched_are_carried() -> Outcome {
    let (from, to) = (Cache::new(), Cache::new());
    layers().iter().for_each(|made| from.complete(made));
    let [first, second, _] = layers();
    let span = first.index.span_ids().nth(1).expect("it has several");
    let touched = first.index.compressed(span);
    let contents = |range: std::ops::Range<u64>| {
        let ranges = Ranges::from([(first.expected.layer, Vec::from([range]))]);
        Contents { spans: Spans::In(ranges), ..from.contents() }
    };
    let some = contents(touched.clone());
    let (parcel, exported) = write(&some);
    assert_eq!((exported.bytes, some.bytes()), (touched.end - touched.start, touched.end - touched.start));
    read(&parcel, &to)?;
    assert!(to.is_sound() && to.blob(first).missing(touched.clone()).is_empty());
    assert_eq!((to.blob(first).present_bytes(), to.blob(second).present_bytes()), (exported.bytes, 0));
    // A part of a span is none.
    let part = contents(touched.start + 1..touched.end);
    assert_eq!(write(&part).1.bytes, 0);
    Ok(())
}

#[test]
fn what_has_rotted_is_left_out_and_forgotten() -> Outcome {
    let from = Cache::new();
    let first = &layers()[0];
    from.touch(first, first.index.span_ids());
    let (good, _) = write(&from.contents());
    let second = first.index.span_ids().nth(1).expect("it has several");
    let range = first.index.compressed(second);
    let blob = from.blob(first);
    blob.discard(range.clone())?;
    blob.write(range.start, &vec![0x55; (range.end - range.start) as usize])?;
    let (parcel, exported) = write(&from.contents());
    assert!(exported.damaged >= 1 && parcel.len() < good.len());
    assert!(!blob.missing(range).is_empty());
    let to = Cache::new();
    read(&parcel, &to)?;
    assert!(to.is_sound());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_parcel_that_is_cut_short_or_changed_is_refused_and_leaves_a_sound_cache(
        at in any::<prop::sample::Index>(),
        bit in prop::option::of(0..8),
    ) {
        static PARCEL: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let parcel = PARCEL.get_or_init(|| write(&used().contents()).0);
        let mut changed = parcel.clone();
        let at = at.index(parcel.len());
        match bit {
            Some(bit) => changed[at] ^= 1_u8 << bit,
            None => changed.truncate(at),
        }
        let cache = Cache::new();
        prop_assert!(read(&changed, &cache).is_err());
        prop_assert!(cache.is_sound());
        prop_assert!(cache.store.reference("registry.example/it:1")?.is_none());
        // What came through is no obstacle.
        prop_assert!(read(parcel, &cache).is_ok());
    }

    #[test]
    fn any_bytes_are_refused_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), head in 0..=12_usize) {
        let bytes = [&b"ocifsprc\x01\0\0\0"[..head], &bytes].concat();
        prop_assert!(read(&bytes, &Cache::new()).is_err());
    }
}

#[test]
fn other_files_and_other_versions_are_named_so() {
    let cache = Cache::new();
    assert!(matches!(read(b"", &cache), Err(Error::Foreign)));
    assert!(matches!(read(b"ocifs", &cache), Err(Error::Truncated)));
    assert!(matches!(read(&[0x1f; 100], &cache), Err(Error::Foreign)));
    assert!(matches!(read(b"ocifsprc\x02\0\0\0", &cache), Err(Error::Version { found: 2 })));
    assert!(matches!(read(b"ocifsprc\x01\0\0\0", &cache), Err(Error::Truncated)));
    let long = [&b"ocifsprc\x01\0\0\0\x04"[..], &u32::MAX.to_le_bytes()].concat();
    assert!(matches!(read(&long, &cache), Err(Error::Damaged("a record is too long"))));
}

/// A parcel of well-formed records that an export would not write.
fn forged(write: impl FnOnce(&mut Writer<&mut Vec<u8>>) -> Result<(), Error>) -> Vec<u8> {
    let mut parcel = Vec::new();
    let mut writer = Writer::new(&mut parcel).expect("written to memory");
    write(&mut writer).expect("written to memory");
    writer.finish().expect("written to memory");
    parcel
}

fn head(made: &Made, form: Form) -> LayerHead {
    LayerHead { layer: made.expected.layer, size: made.expected.size, diff_id: made.expected.diff_id, form }
}

#[test]
fn d_025_wrong_bytes_with_right_framing_do_not_enter_the_cache() -> Outcome {
    let cache = Cache::new();
    let [first, second, _] = layers();
    let start = first.index.compressed(first.index.span_ids().next().expect("it has spans"));
    let wrong = vec![0x41; start.end as usize];
    let parts = forged(|writer| {
        writer.layer(&head(first, Form::Parts))?;
        writer.index(first.index.as_bytes())?;
        writer.stretch(0, &wrong)
    });
    let refused = read(&parts, &cache);
    assert!(matches!(&refused, Err(Error::Layer { layer, .. }) if *layer == first.expected.layer), "{refused:?}");
    let whole = forged(|writer| {
        writer.layer(&head(second, Form::Whole))?;
        let mut bytes = second.blob.to_vec();
        bytes[700_000] ^= 1;
        writer.stretch(0, &bytes)
    });
    assert!(matches!(read(&whole, &cache), Err(Error::Rejected { .. })));
    for made in layers() {
        assert_eq!(cache.blob(made).present_bytes(), 0);
        assert!(cache.store.index(&made.expected.layer)?.is_none());
        assert!(cache.store.claim(&made.expected.layer, &store::IMPORTED)?.is_none());
    }
    let document = forged(|writer| writer.document(&Digest::sha256(b"a"), b"b"));
    assert!(matches!(read(&document, &cache), Err(Error::Store(store::Error::Mismatch(_)))));
    Ok(())
}

#[test]
fn a_whole_layer_that_is_wrong_takes_nothing_away() {
    let cache = Cache::new();
    let first = &layers()[0];
    cache.touch(first, first.index.span_ids().skip(1).take(1));
    let before = cache.blob(first).missing(0..first.expected.size);
    let whole = forged(|writer| {
        writer.layer(&head(first, Form::Whole))?;
        writer.stretch(0, &first.blob[..1000])?;
        writer.stretch(1000, &vec![0; first.blob.len() - 1000])
    });
    assert!(matches!(read(&whole, &cache), Err(Error::Rejected { .. })));
    assert_eq!(cache.blob(first).missing(0..first.expected.size), before);
    assert!(cache.is_sound());
}

#[test]
fn d_025_an_index_in_a_parcel_never_replaces_one_that_the_cache_has() -> Outcome {
    let cache = Cache::new();
    let first = &layers()[0];
    let other = layer(&[("evil", noise(3 << 20, 9))], true);
    cache.store.put_index(&first.expected.layer, first.index.as_bytes())?;
    let parcel = forged(|writer| {
        writer.layer(&head(first, Form::Parts))?;
        writer.index(other.index.as_bytes())
    });
    assert!(matches!(read(&parcel, &cache), Err(Error::Malformed("an index speaks of another layer"))));
    let kept = cache.store.index(&first.expected.layer)?.expect("an index");
    assert_eq!(kept.bytes(), first.index.as_bytes());
    Ok(())
}

#[test]
fn d_060_forged_order_places_and_names_are_refused() {
    let cache = Cache::new();
    let [first, second, _] = layers();
    let refused = |parcel: Vec<u8>, why: &str| match read(&parcel, &cache) {
        Err(Error::Malformed(found)) if found == why => {}
        other => panic!("{why}: {other:?}"),
    };
    let in_parts = |writer: &mut Writer<&mut Vec<u8>>| {
        writer.layer(&head(second, Form::Parts))?;
        writer.index(second.index.as_bytes())
    };
    let order = "its parts are not in order";
    refused(forged(|writer| writer.stretch(0, b"x")), order);
    refused(forged(|writer| writer.index(b"x")), order);
    refused(forged(|writer| in_parts(writer).and_then(|()| writer.document(&Digest::sha256(b"a"), b"a"))), order);
    refused(forged(|writer| writer.layer(&head(first, Form::Parts))), "a layer in parts has no index");
    refused(forged(|writer| in_parts(writer).and_then(|()| writer.stretch(0, b""))), "a stretch is empty");
    let outside = "a stretch is not within its layer";
    refused(forged(|writer| in_parts(writer).and_then(|()| writer.stretch(second.expected.size, b"x"))), outside);
    refused(forged(|writer| in_parts(writer).and_then(|()| writer.stretch(u64::MAX, b"x"))), outside);
    let twice = forged(|writer| {
        in_parts(writer)?;
        writer.stretch(5, b"x")?;
        writer.stretch(5, b"x")
    });
    refused(twice, "the stretches of a layer are not in order");
    let gap = forged(|writer| {
        writer.layer(&head(second, Form::Whole))?;
        writer.stretch(1, &second.blob[1..])
    });
    refused(gap, "a whole layer has gaps");
    let large = LayerHead { size: BLOB_BYTES + 1, ..head(first, Form::Whole) };
    refused(forged(|writer| writer.layer(&large)), "the size of a layer is impossible");
    let many = forged(|writer| {
        (0..=PARCEL_DOCUMENTS).try_for_each(|number| {
            let text = number.to_string();
            writer.document(&Digest::sha256(text.as_bytes()), text.as_bytes())
        })
    });
    refused(many, "it has too many documents");
    refused(forged(|writer| writer.profile(&Digest::sha256(b"a"), b"no profile")), "its profile cannot be read");
    let manifest = Digest::sha256(b"a");
    for reference in ["registry.example/it:1", "it", "oci:/etc:1", "", "../x"] {
        let named = Named { reference: reference.to_owned(), digest: manifest, media_type: String::new() };
        let parcel = forged(|writer| {
            if reference != "registry.example/it:1" {
                writer.document(&manifest, b"a")?;
            }
            writer.reference(&named)
        });
        refused(parcel, "its reference names nothing in it");
    }
    let mut after = forged(|_| Ok(()));
    after.push(0);
    refused(after, "something follows its end");
}

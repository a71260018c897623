//! Reading a parcel into the cache: each part is verified before it is kept, in the order in which it comes.
//!
//! What could be used wrongly comes last: the index of a layer after its bytes, the reference after everything. Whatever
//! stops an import leaves documents that have their digests and bytes that were verified, which a later mount may use.

use std::collections::HashSet;
use std::io::Read;
use std::ops::Range;

use bytes::Bytes;

use super::format::{Form, LayerHead, Reader, Record};
use super::{Error, Imported, Named};
use crate::index::{self, BuildError, Expected, LayerIndex, SpanId};
use crate::limits::{BLOB_BYTES, LAYERS, PARCEL_DOCUMENTS, PARCEL_SPAN_BYTES};
use crate::oci::{Digest, Reference};
use crate::profile::Profile;
use crate::store::{Blob, IMPORTED, Store};

/// Reads a parcel from `input`, which it must end, into `store`. Blocks; memory does not depend on the length.
pub fn import(input: impl Read + Send, store: &Store) -> Result<Imported, Error> {
    let mut import = Import {
        reader: Reader::new(input)?,
        pending: None,
        store,
        documents: HashSet::new(),
        imported: Imported::default(),
    };
    import.all()?;
    Ok(import.imported)
}

struct Import<'a, R> {
    reader: Reader<R>,
    /// A record that was read and belongs to what comes next.
    pending: Option<Record>,
    store: &'a Store,
    documents: HashSet<Digest>,
    imported: Imported,
}

impl<R: Read + Send> Import<'_, R> {
    fn next(&mut self) -> Result<Record, Error> {
        match self.pending.take() {
            Some(record) => Ok(record),
            None => self.reader.next(),
        }
    }

    /// The next record if it is a stretch.
    fn stretch(&mut self) -> Result<Option<(u64, Bytes)>, Error> {
        match self.next()? {
            Record::Stretch(_, bytes) if bytes.is_empty() => Err(Error::Malformed("a stretch is empty")),
            Record::Stretch(offset, bytes) => {
                self.imported.bytes = self.imported.bytes.saturating_add(bytes.len() as u64);
                Ok(Some((offset, bytes)))
            }
            other => {
                self.pending = Some(other);
                Ok(None)
            }
        }
    }

    fn all(&mut self) -> Result<(), Error> {
        // In this order, and nothing comes back to an earlier part.
        while let Some((digest, bytes)) = self.document()? {
            if self.documents.len() >= PARCEL_DOCUMENTS {
                return Err(Error::Malformed("it has too many documents"));
            }
            self.store.put_document(&digest, &bytes)?;
            self.documents.insert(digest);
        }
        while let Some(head) = self.head()? {
            if self.imported.layers >= LAYERS as u64 {
                return Err(Error::Malformed("it has too many layers"));
            }
            self.layer(&head)?;
            self.imported.layers += 1;
        }
        let mut record = self.next()?;
        if let Record::Profile(manifest, text) = &record {
            self.profile(manifest, text)?;
            record = self.next()?;
        }
        let mut named = None;
        if let Record::Reference(found) = record {
            self.check_reference(&found)?;
            named = Some(found);
            record = self.next()?;
        }
        if record != Record::End {
            return Err(Error::Malformed("its parts are not in order"));
        }
        if let Some(Named { reference, digest, media_type }) = named {
            self.store.put_reference(&reference, &digest, &media_type)?;
            self.imported.reference = Some(reference);
        }
        Ok(())
    }

    fn document(&mut self) -> Result<Option<(Digest, Bytes)>, Error> {
        match self.next()? {
            Record::Document(digest, bytes) => Ok(Some((digest, bytes))),
            other => {
                self.pending = Some(other);
                Ok(None)
            }
        }
    }

    fn head(&mut self) -> Result<Option<LayerHead>, Error> {
        match self.next()? {
            Record::Layer(head) => Ok(Some(head)),
            other => {
                self.pending = Some(other);
                Ok(None)
            }
        }
    }

    fn layer(&mut self, head: &LayerHead) -> Result<(), Error> {
        if head.size > BLOB_BYTES {
            return Err(Error::Malformed("the size of a layer is impossible"));
        }
        let expected = Expected { layer: head.layer, size: head.size, diff_id: head.diff_id };
        let blob = self.store.blob(&head.layer, head.size)?;
        match head.form {
            Form::Whole => self.whole(expected, &blob),
            Form::Parts => self.parts(expected, &blob),
        }
    }

    /// A layer that is all here proves itself: its index is made from its bytes, as at first contact.
    fn whole(&mut self, expected: Expected, blob: &Blob) -> Result<(), Error> {
        if blob.is_complete() && known_index(self.store, expected)?.is_some() {
            return self.skip(expected.size);
        }
        let mark = blob.mark();
        let (size, mut at, mut written) = (expected.size, 0, Vec::new());
        let pieces = std::iter::from_fn(|| {
            (at < size).then(|| {
                let bytes = self.ordered(at, size)?;
                note(&mut written, blob.missing(at..at + bytes.len() as u64));
                blob.write(at, &bytes)?;
                at += bytes.len() as u64;
                Ok(bytes)
            })
        });
        let index = match index::build(pieces, expected) {
            Ok(index) => index,
            Err(error) => {
                // What was here before is as good as it was.
                written.into_iter().try_for_each(|range| blob.discard(range))?;
                return Err(match error {
                    BuildError::Input(error) => error,
                    BuildError::Rejected(why) => Error::Rejected { layer: expected.layer, source: Box::new(why) },
                });
            }
        };
        self.store.put_index(&expected.layer, index.as_bytes())?;
        blob.complete_since(mark)?;
        Ok(())
    }

    /// The next bytes of a layer that comes as a whole.
    fn ordered(&mut self, at: u64, size: u64) -> Result<Bytes, Error> {
        match self.stretch()? {
            Some((offset, bytes)) if offset == at && bytes.len() as u64 <= size - at => Ok(bytes),
            _ => Err(Error::Malformed("a whole layer has gaps")),
        }
    }

    fn skip(&mut self, size: u64) -> Result<(), Error> {
        let mut at = 0;
        while at < size {
            at += self.ordered(at, size)?.len() as u64;
        }
        Ok(())
    }

    /// Some spans of a layer, and the index that says what they are.
    ///
    /// An index that was made here is better than what the parcel says.
    fn parts(&mut self, expected: Expected, blob: &Blob) -> Result<(), Error> {
        let Record::Index(bytes) = self.next()? else {
            return Err(Error::Malformed("a layer in parts has no index"));
        };
        let given = open(bytes, expected)?;
        let known = known_index(self.store, expected)?;
        let index = known.as_ref().unwrap_or(&given);
        let spans = Spans::new(index);
        let mut last = None;
        while let Some((offset, bytes)) = self.stretch()? {
            if last.is_some_and(|last| offset <= last) {
                return Err(Error::Malformed("the stretches of a layer are not in order"));
            }
            last = Some(offset);
            spans.keep(offset, &bytes, blob)?;
        }
        if known.is_none() {
            keep_index(self.store, &given)?;
        }
        Ok(())
    }

    fn profile(&mut self, manifest: &Digest, text: &[u8]) -> Result<(), Error> {
        let profile = Profile::parse(text).map_err(|_| Error::Malformed("its profile cannot be read"))?;
        self.store.put_profile(manifest, profile.to_text().as_bytes())?;
        self.imported.profile = true;
        Ok(())
    }

    /// Only what a mount by this reference would look up, for a document that the parcel has.
    fn check_reference(&self, named: &Named) -> Result<(), Error> {
        let is_canonical = named.reference.parse().is_ok_and(|reference: Reference| {
            matches!(reference, Reference::Registry(_)) && reference.to_string() == named.reference
        });
        if !is_canonical || !self.documents.contains(&named.digest) {
            return Err(Error::Malformed("its reference names nothing in it"));
        }
        Ok(())
    }
}

/// Which bytes of the blob each span is made of, in their order.
struct Spans<'a> {
    index: &'a LayerIndex,
    ranges: Vec<(Range<u64>, SpanId)>,
}

impl<'a> Spans<'a> {
    fn new(index: &'a LayerIndex) -> Self {
        let mut ranges: Vec<_> = index.span_ids().map(|span| (index.compressed(span), span)).collect();
        ranges.sort_by_key(|(range, span)| (range.start, range.end, *span));
        Self { index, ranges }
    }

    /// Keeps the spans that `bytes`, at `offset` of the blob, hold as a whole, each after it was verified.
    fn keep(&self, offset: u64, bytes: &[u8], blob: &Blob) -> Result<(), Error> {
        let layer = self.index.layer();
        let malformed = Err(Error::Malformed("a stretch is not within its layer"));
        let Some(end) = offset.checked_add(bytes.len() as u64).filter(|end| *end <= blob.size()) else {
            return malformed;
        };
        let first = self.ranges.partition_point(|(range, _)| range.start < offset);
        let inside = self.ranges[first..].iter().take_while(|(range, _)| range.start < end);
        for (range, span) in inside.filter(|(range, _)| range.end <= end) {
            let decoded = self.index.decoded(*span);
            if decoded.end - decoded.start > PARCEL_SPAN_BYTES {
                continue;
            }
            let part = &bytes[(range.start - offset) as usize..(range.end - offset) as usize];
            self.index.decode(*span, part).map_err(|source| Error::Layer { layer, source: Box::new(source) })?;
            blob.write(range.start, part)?;
        }
        Ok(())
    }
}

/// The index in a parcel, if it is well-formed and speaks of this layer.
fn open(bytes: Bytes, expected: Expected) -> Result<LayerIndex, Error> {
    let failed = |source| Error::Index { layer: expected.layer, source: Box::new(source) };
    let index = LayerIndex::open_claim(bytes).map_err(failed)?;
    if !index.has_windows() {
        return Err(Error::Malformed("an index is not whole"));
    }
    index.check().map_err(failed)?;
    index.check_entries().map_err(|_| Error::Malformed("an index has entries that no layer has"))?;
    if !index.is_of(&expected) {
        return Err(Error::Malformed("an index speaks of another layer"));
    }
    Ok(index)
}

/// The index that was made here of the layer, if it is sound.
fn known_index(store: &Store, expected: Expected) -> Result<Option<LayerIndex>, Error> {
    let Some(mapped) = store.index(&expected.layer)? else { return Ok(None) };
    let opened = LayerIndex::open(mapped.bytes().clone()).and_then(|index| index.check().map(|()| index));
    Ok(opened.ok().filter(|index| index.is_of(&expected)))
}

/// Keeps an index that nobody has proven: the user trusts who wrote the parcel.
fn keep_index(store: &Store, index: &LayerIndex) -> Result<(), Error> {
    store.put_claim(&index.layer(), &IMPORTED, index.as_bytes())?;
    Ok(())
}

/// Adds ranges to a list in ascending order, joining those that touch.
fn note(list: &mut Vec<Range<u64>>, ranges: Vec<Range<u64>>) {
    for range in ranges {
        match list.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => list.push(range),
        }
    }
}

//! Chunks: which bytes of the blob hold which bytes of a file.
//!
//! A chunk begins where a gzip member or a zstd frame begins, or some bytes into what that decodes to. Where it ends in the
//! blob only some writers say; it is never behind the next place at which a chunk begins. So all chunks are collected first,
//! those of files that are no part of the image too.

use super::Fault;
use crate::index::{ClaimedSpan, SpanDigest, Start};
use crate::limits::CLAIM_SKIP_BYTES;
use crate::tar::Segment;

/// A part of a file as it is listed.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) file_offset: u64,
    /// 0 for the rest of the file.
    pub(super) length: u64,
    /// It is all zeros, and nowhere in the blob.
    pub(super) is_hole: bool,
    /// Where the member or frame begins in the blob.
    pub(super) offset: u64,
    /// How much it decodes to before the first byte of the part.
    pub(super) inner: u64,
    pub(super) end: Option<u64>,
    pub(super) digest: Option<[u8; 32]>,
}

/// What the layer holds of one file.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) segments: Vec<Segment>,
    pub(super) content: Option<[u8; 32]>,
}

/// The chunks of all files, in the order of the list.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    list: Vec<Chunk>,
    /// Length of those that belong to the image: their stream.
    length: u64,
}

#[derive(Debug)]
struct Chunk {
    /// The number of the entry it belongs to; none if that is no part of the image.
    owner: Option<usize>,
    offset: u64,
    inner: u64,
    length: u64,
    /// Where it ends at the latest, if that is said.
    end: Option<u64>,
    digest: [u8; 32],
}

impl Chunks {
    /// Adds a file of `size` bytes. `whole` is what its own entry says of it: its digest, and where its last chunk ends.
    pub(super) fn file(
        &mut self,
        owner: Option<usize>,
        size: u64,
        whole: (Option<[u8; 32]>, Option<u64>),
        parts: &[Part],
    ) -> Result<Held, Fault> {
        let (digest, end) = whole;
        let mut segments: Vec<Segment> = Vec::new();
        let mut content = digest;
        let mut at = 0_u64;
        for part in parts {
            let rest = size.checked_sub(at).filter(|rest| *rest > 0).ok_or(Fault::Chunks)?;
            let length = if part.length == 0 { rest } else { part.length };
            if part.file_offset != at || length > rest {
                return Err(Fault::Chunks);
            }
            let file_offset = at;
            at += length;
            if part.is_hole {
                continue;
            }
            // The digest of a file is that of its only chunk, and the other way round.
            let is_whole = length == size;
            let known = part.digest.or(digest.filter(|_| is_whole)).ok_or(Fault::Unverifiable)?;
            if is_whole && *content.get_or_insert(known) != known {
                return Err(Fault::Digest);
            }
            let end = [part.end, end].into_iter().flatten().min();
            self.list.push(Chunk { owner, offset: part.offset, inner: part.inner, length, end, digest: known });
            if owner.is_some() {
                self.extend(&mut segments, file_offset, length)?;
            }
        }
        if at == size { Ok(Held { segments, content }) } else { Err(Fault::Chunks) }
    }

    /// Puts the next `length` bytes of the stream at `file_offset` of a file.
    fn extend(&mut self, segments: &mut Vec<Segment>, file_offset: u64, length: u64) -> Result<(), Fault> {
        let layer_offset = self.length;
        self.length = self.length.checked_add(length).ok_or(Fault::Chunks)?;
        match segments.last_mut() {
            Some(last) if last.file_offset + last.length == file_offset => last.length += length,
            _ => segments.push(Segment { file_offset, layer_offset, length }),
        }
        Ok(())
    }

    /// The spans of the stream and its length. The bytes of chunks end at `payload_end` in the blob.
    ///
    /// A fault comes with the number of the entry that has it.
    pub(super) fn spans(&self, payload_end: u64) -> Result<(Vec<ClaimedSpan>, u64), (Option<usize>, Fault)> {
        let mut order: Vec<usize> = (0..self.list.len()).collect();
        order.sort_unstable_by_key(|number| (self.list[*number].offset, self.list[*number].inner));
        let mut ends = vec![0; self.list.len()];
        // The chunk behind the current one, and where the next member or frame begins.
        let (mut behind, mut next): (Option<&Chunk>, u64) = (None, payload_end);
        for number in order.into_iter().rev() {
            let chunk = &self.list[number];
            match behind {
                Some(behind) if behind.offset != chunk.offset => next = behind.offset,
                Some(behind) if chunk.inner.saturating_add(chunk.length) > behind.inner => {
                    return Err((chunk.owner, Fault::Shared));
                }
                _ => {}
            }
            let end = chunk.end.map_or(next, |end| end.min(next));
            // A tar header comes before any payload, so the blob cannot begin with one.
            if end <= chunk.offset || (chunk.offset, chunk.inner) == (0, 0) || chunk.inner > CLAIM_SKIP_BYTES {
                return Err((chunk.owner, Fault::Offset));
            }
            ends[number] = end;
            behind = Some(chunk);
        }
        let owned = self.list.iter().zip(ends).filter(|(chunk, _)| chunk.owner.is_some());
        let spans = owned.map(|(chunk, end)| ClaimedSpan {
            compressed: chunk.offset..end,
            bit: 0,
            skip: chunk.inner,
            length: chunk.length,
            start: Start::Fresh,
            digest: SpanDigest::Decoded(chunk.digest),
        });
        Ok((spans.collect(), self.length))
    }
}

//! Reading a file of the image while its bytes are still to come.
//!
//! Parsers are synchronous and ask for bytes by offset; bytes of an image come later. So a parser runs against the
//! pieces that are known and is told that a read would block where it needs another; that piece is fetched and the parser
//! runs again from its beginning. It needs few pieces, and parsing them again costs microseconds.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::{Need, Reason, Session, length};
use crate::elf::ReadAt;
use crate::fetch::{Error, Priority};
use crate::tree::{NodeId, NodeKind};

/// Bytes that are looked at together: headers and tables lie within a few of these, and a span is longer.
const PIECE: u64 = 64 << 10;

/// Most pieces one parser may ask for.
const PIECES: usize = 64;

/// The known pieces of a file, by number.
struct Known<'a> {
    pieces: &'a HashMap<u64, Bytes>,
    size: u64,
    /// The piece that was asked for and is not known.
    missing: Cell<Option<u64>>,
}

impl ReadAt for Known<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset >= self.size {
            return Ok(0);
        }
        let number = offset / PIECE;
        let Some(piece) = self.pieces.get(&number) else {
            self.missing.set(Some(number));
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let rest = piece.get((offset % PIECE) as usize..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

/// What `parse` says of the file; none if it is no regular file or its bytes may not be had.
pub(super) async fn parse<T>(
    session: &Session<'_>,
    need: &Need,
    node: NodeId,
    parse: impl Fn(&dyn ReadAt) -> T,
) -> Result<Option<T>, Error> {
    let (kind, size) = {
        let node = session.files.tree.node(node);
        (node.kind(), node.size())
    };
    if kind != NodeKind::Regular || !session.may_look() {
        return Ok(None);
    }
    let mut pieces = HashMap::new();
    while pieces.len() < PIECES {
        let missing = {
            let known = Known { pieces: &pieces, size, missing: Cell::new(None) };
            let parsed = parse(&known);
            match known.missing.take() {
                None => return Ok(Some(parsed)),
                Some(missing) => missing,
            }
        };
        let (start, end) = (missing * PIECE, size.min((missing + 1) * PIECE));
        let Some(piece) = read(session, need, node, start..end).await? else { return Ok(None) };
        pieces.insert(missing, piece);
    }
    Ok(None)
}

/// Bytes of a file, fetched because of `need`; none if something of them is neither here nor may be fetched ahead.
pub(super) async fn read(
    session: &Session<'_>,
    need: &Need,
    node: NodeId,
    range: Range<u64>,
) -> Result<Option<Bytes>, Error> {
    let covered = session.budget().cover(session.files, node, range.clone());
    let Some((missing, new)) = covered else { return Ok(None) };
    session.progress.note(need.reason, new.len());
    if need.reason == Reason::EntryPoint {
        session.fetch(&missing, Priority::Demand).await?;
    } else if !missing.is_empty() {
        // What was taken by somebody else is only waited for, or hurried.
        session.turns.fetch(&session.files.fetcher, &need.order, length(&new), &missing).await?;
    }
    let mut bytes = BytesMut::zeroed(usize::try_from(range.end - range.start).unwrap_or(0));
    for part in session.files.parts(node, range.clone()) {
        for span in part.layer.index.spans(part.stream.clone()) {
            let decoded = session.files.fetcher.look_into(part.layer, span).await?;
            let whole = part.layer.index.decoded(span);
            let (first, last) = (part.stream.start.max(whole.start), part.stream.end.min(whole.end));
            let source = decoded.get((first - whole.start) as usize..(last - whole.start) as usize);
            let place = (part.range.start - range.start) + (first - part.stream.start);
            let target = bytes.get_mut(place as usize..(place + (last - first)) as usize);
            let Some((target, source)) = target.zip(source) else { return Ok(None) };
            target.copy_from_slice(source);
        }
    }
    Ok(Some(bytes.freeze()))
}

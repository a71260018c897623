//! Tables of contents and zTOCs.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::OnceLock;

use bytes::Bytes;
use ocifs::index::soci;
use ocifs::index::toc::{self, Footer, Pin};
use ocifs::index::{Claim, Expected, LayerIndex, compare};
use ocifs::oci::Digest;

use crate::indexes::ask;
use crate::layers::{build, expected, gzip, stream};

#[path = "../../../src/index/toc/tests/writer.rs"]
mod writer;

use writer::{Form, How, Written};

const DOCUMENT: &str = "containerd.io/snapshot/stargz/toc.digest";
const CHECKSUM: &str = "io.containers.zstd-chunked.manifest-checksum";
const POSITION: &str = "io.containers.zstd-chunked.manifest-position";

/// The blob of the layers that the tables are of, in bytes.
const BLOB: u64 = 1 << 20;

fn pin(annotations: &[(&str, String)]) -> Pin {
    let annotations: BTreeMap<_, _> =
        annotations.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Pin::of(&annotations).expect("annotations that are right").expect("something is pinned")
}

fn digest(bytes: &[u8]) -> String {
    Digest::sha256(bytes).to_string()
}

/// Uses what a table says as a mount does.
fn believe(claim: Claim) {
    let layer = Digest::sha256(b"layer");
    if let Ok(index) = LayerIndex::claimed(&Expected { layer, size: BLOB, diff_id: layer }, claim) {
        index.check_entries().expect("what was checked when it was written");
        ask(&index);
    }
}

/// The document of an eStargz table, which may be in an archive of its own.
pub(crate) fn estargz(data: &[u8]) {
    let mut archive = writer::file_member("stargz.index.json", data);
    archive.resize(archive.len() + 1024, 0);
    let archive = gzip(&archive, 0);
    let footer = Footer::find(&writer::gzip_footer(Form::External, "STARGZEXTERNALTOC"), BLOB);
    let Ok(Some(Footer::Outside(outside))) = footer else { panic!("a footer") };
    if let Ok(claim) = toc::open_outside(outside, &archive, &pin(&[(DOCUMENT, digest(data))])) {
        believe(claim);
    }
}

/// The archive that holds such a document.
pub(crate) fn archive(data: &[u8]) {
    let footer = Footer::find(&writer::gzip_footer(Form::External, "STARGZEXTERNALTOC"), BLOB);
    let Ok(Some(Footer::Outside(outside))) = footer else { panic!("a footer") };
    for archive in [data, &gzip(data, 0)] {
        assert!(toc::open_outside(outside, archive, &pin(&[(DOCUMENT, digest(b"another"))])).is_err());
    }
}

/// The document of a zstd:chunked table.
pub(crate) fn zstd_chunked(data: &[u8]) {
    let compressed = zstd::encode_all(data, 1).expect("it is compressed");
    let position = format!("{}:{}:{}:1", BLOB / 2, compressed.len(), data.len());
    let pin = pin(&[(CHECKSUM, digest(&compressed)), (POSITION, position)]);
    let Ok(Some(place)) = pin.place(BLOB) else { return };
    if let Ok(claim) = toc::open(&place, &compressed, &pin) {
        believe(claim);
    }
}

/// Where a table is: annotations, a line each, and after an empty line the end of the blob.
pub(crate) fn place(data: &[u8]) {
    let end = data.windows(2).position(|pair| pair == b"\n\n").unwrap_or(data.len());
    let (text, tail) = (String::from_utf8_lossy(&data[..end]), data.get(end + 2..).unwrap_or_default());
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let annotations = lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let mut places = Vec::new();
    let pin = Pin::of(&annotations);
    for size in [0, tail.len() as u64, BLOB, u64::MAX] {
        if let Ok(Some(pin)) = &pin {
            places.push((size, pin.place(size).ok().flatten()));
        }
        if let Ok(Some(Footer::Within(place))) = Footer::find(tail, size) {
            places.push((size, Some(place)));
        }
    }
    for (size, place) in places {
        let Some(place) = place else { continue };
        let bytes = place.bytes();
        assert!(bytes.start < bytes.end && bytes.end <= size);
        if let Ok(Some(pin)) = &pin {
            drop(toc::open(&place, tail, pin));
        }
    }
}

/// A zTOC of a layer that is known, so that what it says is compared with the truth.
pub(crate) fn ztoc(data: &[u8]) {
    static TRUTH: OnceLock<[(Vec<u8>, LayerIndex); 2]> = OnceLock::new();
    let truth = TRUTH.get_or_init(|| {
        let stream = stream();
        [stream.clone(), gzip(&stream, 6)].map(|blob| {
            let index = build(&blob, &stream).expect("a layer");
            (blob, index)
        })
    });
    for (blob, index) in truth {
        let expected = Expected { layer: index.layer(), size: index.compressed_size(), diff_id: index.diff_id() };
        let Ok(claim) = soci::claim(&expected, data) else { continue };
        let Ok(claimed) = LayerIndex::claimed(&expected, claim) else { continue };
        ask(&claimed);
        for span in claimed.span_ids() {
            let range = claimed.compressed(span);
            drop(claimed.decode(span, &blob[range.start as usize..range.end as usize]));
        }
        drop(compare(&claimed, index, |range| Ok::<_, Infallible>(slice(blob, &range))));
    }
}

fn slice(blob: &[u8], range: &std::ops::Range<u64>) -> Bytes {
    Bytes::copy_from_slice(&blob[range.start as usize..range.end as usize])
}

fn written(stream: &[u8]) -> Vec<(Form, Written)> {
    let how = |form| How { chunk: 8 << 10, ..How::new(form) };
    let batched = How { member: 16 << 10, ..how(Form::Estargz) };
    let all = Form::ALL.map(|form| (form, writer::write(stream, how(form))));
    all.into_iter().chain([(Form::Estargz, writer::write(stream, batched))]).collect()
}

/// Layers with a table, and what it says.
pub(crate) fn claims(stream: &[u8]) -> Vec<(Vec<u8>, Claim)> {
    let claims = written(stream).into_iter().filter_map(|(_, written)| {
        let pin = Pin::of(&written.annotations).ok()??;
        let size = written.blob.len() as u64;
        let place = match pin.place(size).ok()? {
            Some(place) => place,
            None => match Footer::find(&written.blob, size).ok()?? {
                Footer::Within(place) => place,
                Footer::Outside(_) => return None,
            },
        };
        let claim = toc::open(&place, &written.blob[written.toc], &pin).ok()?;
        Some((written.blob, claim))
    });
    let claims: Vec<_> = claims.collect();
    assert!(claims.len() >= 4, "seeds that can be read");
    claims
}

pub(crate) fn estargz_seeds() -> Vec<Vec<u8>> {
    let gzip = |form: &Form| matches!(form, Form::Estargz | Form::Stargz | Form::External);
    written(&stream()).into_iter().filter(|(form, _)| gzip(form)).map(|(_, written)| written.document).collect()
}

pub(crate) fn archive_seeds() -> Vec<Vec<u8>> {
    let archives = written(&stream()).into_iter().filter_map(|(_, written)| written.archive);
    archives.chain([writer::file_member("stargz.index.json", b"{}"), stream()]).collect()
}

pub(crate) fn zstd_chunked_seeds() -> Vec<Vec<u8>> {
    let zstd = |form: &Form| matches!(form, Form::ZstdStargz | Form::ZstdStorage);
    written(&stream()).into_iter().filter(|(form, _)| zstd(form)).map(|(_, written)| written.document).collect()
}

pub(crate) fn place_seeds() -> Vec<Vec<u8>> {
    let seed = |(_, written): (Form, Written)| {
        let lines: String = written.annotations.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        let tail = &written.blob[written.blob.len().saturating_sub(2048)..];
        [lines.as_bytes(), b"\n", tail].concat()
    };
    written(&stream()).into_iter().map(seed).collect()
}

pub(crate) fn ztoc_seeds() -> Vec<Vec<u8>> {
    let stream = stream();
    let blobs = [stream.clone(), gzip(&stream, 6)];
    let ztocs = blobs.iter().map(|blob| {
        let index = build(blob, &stream).expect("a layer");
        let ztoc =
            soci::write(&index, |range| Ok::<_, Infallible>(slice(blob, &range))).expect("SOCI has a form for it");
        assert!(soci::claim(&expected(blob, &stream), &ztoc).is_ok(), "a seed that can be read");
        ztoc
    });
    ztocs.collect()
}

//! Proving a layer whose index is a claim, once all of its bytes are here.
//!
//! Until then a claim is served because it is believed, span by span as its own digests say. Then the layer can be indexed
//! as a first contact would have done it, which checks that it is what the manifest and the configuration name, and the two
//! indexes can be compared ([`index::compare`]). If they are equal, the true one is kept and the claim has served. If not,
//! the layer is *condemned*: nothing is read from it any more ([`Layer::condemned`]), because the tree that was made of the
//! claim shows another file system than the image has. The true index is kept in both cases, so that the next mount of the
//! layer by anybody begins with the truth.

use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::{Error, Fetcher, Layer, Urgency, windows};
use crate::index::{self, BuildError, Difference, Expected, LayerIndex};
use crate::limits::READ_CHUNK;
use crate::oci::{Digest, Hasher};
use crate::store::{self, Store};

/// What is known of a claim, and where it is kept.
#[derive(Debug, Default)]
pub(super) struct Proof {
    kept: Option<(Arc<Store>, Digest)>,
    outcome: OnceLock<Result<(), Error>>,
}

/// What became of an attempt to prove a layer.
#[derive(Debug)]
pub(super) enum Proved {
    /// Its index says what is so.
    Yes,
    /// Its bytes turned out to be wrong, and were forgotten.
    NotItsBytes,
}

impl Layer {
    /// The same layer, whose index is kept in `store` as what `claim` says of it.
    #[must_use]
    pub fn with_claim(self, store: Arc<Store>, claim: Digest) -> Self {
        Self { proof: Proof { kept: Some((store, claim)), ..self.proof }, ..self }
    }

    /// True if the index says what is so: it was made here, or it was compared with one that was.
    pub fn is_proven(&self) -> bool {
        self.index.is_proven() || matches!(self.proof.outcome.get(), Some(Ok(())))
    }

    /// Why nothing may be read of this layer any more: its index was found to be wrong.
    pub fn condemned(&self) -> Option<&Error> {
        self.proof.outcome.get().and_then(|outcome| outcome.as_ref().err())
    }

    /// Ends all reading of this layer. The first reason stays.
    pub(super) fn condemn(&self, error: Error) -> Error {
        tracing::error!(
            layer = %self.index.layer(), error = %error, cause = std::error::Error::source(&error).map(tracing::field::display),
            "the index of a layer is not what its bytes are; nothing is read of it any more"
        );
        if let Some((store, claim)) = &self.proof.kept
            && let Err(error) = store.remove_claim(&self.index.layer(), claim)
        {
            tracing::warn!(layer = %self.index.layer(), %error, "the wrong index is still in the cache");
        }
        match self.proof.outcome.get_or_init(|| Err(error.clone())) {
            Err(first) => first.clone(),
            Ok(()) => error,
        }
    }
}

/// Compares a layer that is complete with its claim. Errors are of the attempt, except those of a layer that is condemned.
pub(super) async fn prove(fetcher: &Fetcher, layer: &Arc<Layer>, urgency: Urgency) -> Result<Proved, Error> {
    if let Some(error) = layer.condemned() {
        return Err(error.clone());
    }
    let wanted = Arc::new(());
    let reading = Reading {
        fetcher: fetcher.clone(),
        layer: Arc::clone(layer),
        urgency,
        handle: Handle::current(),
        wanted: Arc::downgrade(&wanted),
    };
    let truth = {
        let reading = reading.clone();
        tokio::task::spawn_blocking(move || reading.truth()).await.map_err(|_| Error::Interrupted)?
    };
    let truth = match truth {
        Ok(truth) => truth,
        Err(BuildError::Input(error)) => return Err(error),
        Err(BuildError::Rejected(rejected)) if rejected.is_wrong_bytes() => {
            tracing::warn!(layer = %layer.index.layer(), %rejected, "the layer's bytes have rotted");
            if layer.reader.is_none() {
                // The spans that are good cannot be had again.
                return Err(not_the_layer(layer));
            }
            layer.blob.discard(0..layer.blob.size())?;
            return Ok(Proved::NotItsBytes);
        }
        Err(BuildError::Rejected(rejected)) => {
            let source = Arc::new(rejected);
            return Err(layer.condemn(Error::Rejected { layer: layer.index.layer(), source }));
        }
    };
    if !layer.index.says_the_same(&truth)
        && let Err(error) = layer.windows().await
    {
        if !windows::is_final(&error) {
            return Err(error);
        }
        // It may differ in how it cuts the layer only, or it may lie: without them nobody will know.
        let what = format!(
            "the rest of it cannot be had ({error}), and its beginning is another than that of the layer's own"
        );
        return Err(layer.condemn(Error::Disproven { layer: layer.index.layer(), what: what.into() }));
    }
    // What differs from the truth may be the disk's fault: the blob was right when it became complete, and that may be long ago.
    let compared = tokio::task::spawn_blocking(move || -> Result<_, Error> {
        Ok(match reading.compare(&truth) {
            Err(Difference::Found { .. } | Difference::Truth(_)) if !reading.has_digest()? => None,
            compared => Some(compared),
        })
    });
    let compared = compared.await.map_err(|_| Error::Interrupted)?;
    drop(wanted);
    let Some(compared) = compared? else {
        tracing::warn!(layer = %layer.index.layer(), "the layer's bytes have rotted");
        if layer.reader.is_none() {
            return Err(not_the_layer(layer));
        }
        layer.blob.discard(0..layer.blob.size())?;
        return Ok(Proved::NotItsBytes);
    };
    match compared {
        Ok(()) => {
            layer.proof.outcome.get_or_init(|| Ok(()));
            tracing::info!(layer = %layer.index.layer(), "the layer's index is proven");
            Ok(Proved::Yes)
        }
        Err(Difference::Found { path, what }) => {
            let what = format!("\"{path}\" {what}").into();
            Err(layer.condemn(Error::Disproven { layer: layer.index.layer(), what }))
        }
        Err(Difference::Input(error)) => Err(error),
        Err(Difference::Truth(error)) => Err(Error::Index(Arc::new(error))),
    }
}

/// Reads the bytes of a complete layer in order, for whoever may block.
#[derive(Debug, Clone)]
struct Reading {
    fetcher: Fetcher,
    layer: Arc<Layer>,
    urgency: Urgency,
    handle: Handle,
    /// Dead once nobody waits for the proof: a mount that is gone must not keep its layers in use.
    wanted: Weak<()>,
}

impl Reading {
    /// Bytes of the blob, once no reader is in the way.
    fn read(&self, range: Range<u64>) -> Result<Bytes, Error> {
        if self.urgency == Urgency::Idle {
            self.handle.block_on(self.fetcher.demand().idle_for(super::fill::QUIET));
        }
        if self.wanted.strong_count() == 0 {
            return Err(Error::Interrupted);
        }
        let lost = || store::Error::Incomplete(self.layer.blob.digest());
        Ok(self.layer.blob.read(range)?.ok_or_else(lost)?)
    }

    /// The true index: from the store, where another mount's proof may have put it, or made now and put there.
    fn truth(&self) -> Result<LayerIndex, BuildError<Error>> {
        let (claimed, blob) = (&self.layer.index, &self.layer.blob);
        let kept = self.layer.proof.kept.as_ref().map(|(store, _)| store);
        if let Some(truth) = kept.and_then(|store| stored(store, claimed)) {
            return Ok(truth);
        }
        let expected = Expected { layer: claimed.layer(), size: blob.size(), diff_id: claimed.diff_id() };
        let step = usize::try_from(READ_CHUNK).unwrap_or(usize::MAX);
        let pieces = (0..blob.size()).step_by(step).map(|at| self.read(at..blob.size().min(at + READ_CHUNK)));
        let truth = index::build(pieces, expected)?;
        if let Some(store) = kept
            && let Err(error) = store.put_index(&truth.layer(), truth.as_bytes())
        {
            tracing::debug!(layer = %truth.layer(), %error, "the index is not kept");
        }
        // From the disk it takes no memory.
        Ok(kept.and_then(|store| stored(store, claimed)).unwrap_or(truth))
    }

    /// True if the bytes of the layer are those that its digest names.
    fn has_digest(&self) -> Result<bool, Error> {
        let (blob, mut at) = (&self.layer.blob, 0);
        let mut hasher = Hasher::new(blob.digest().algorithm());
        while at < blob.size() {
            let end = blob.size().min(at + READ_CHUNK);
            hasher.update(&self.read(at..end)?);
            at = end;
        }
        Ok(hasher.finish() == blob.digest())
    }

    fn compare(&self, truth: &LayerIndex) -> Result<(), Difference<Error>> {
        index::compare(&self.layer.index, truth, |range| self.read(range))?;
        if self.layer.index.says_the_same(truth)
            && let Some(windows) = truth.windows()
        {
            // They have not come perhaps, and need not any more.
            self.layer.index.set_windows(windows).map_err(Difference::Truth)?;
        }
        if let Some((store, claim)) = &self.layer.proof.kept
            && let Err(error) = store.remove_claim(&truth.layer(), claim)
        {
            // It is not used any more: a proven index goes before all claims.
            tracing::debug!(layer = %truth.layer(), %error, "a claim that was proven is left behind");
        }
        Ok(())
    }
}

/// The proven index of the claim's layer, if the store has a good one.
fn stored(store: &Store, claim: &LayerIndex) -> Option<LayerIndex> {
    let mapped = store.index(&claim.layer()).ok().flatten()?;
    let index = LayerIndex::open(mapped.bytes().clone()).ok()?;
    let is_of_layer = index.layer() == claim.layer() && index.compressed_size() == claim.compressed_size();
    (is_of_layer && index.check().is_ok()).then_some(index)
}

/// Why a layer that was fetched anew is still not its manifest's.
pub(super) fn not_the_layer(layer: &Layer) -> Error {
    Error::Corrupt {
        layer: layer.index.layer(),
        start: 0,
        end: layer.blob.size(),
        source_name: layer.source_name.to_string(),
    }
}

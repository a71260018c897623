//! Making the indexes of an image for others: `ocifs index`.
//!
//! What is pushed was made here from the whole layers, never what somebody else said of them. Nothing is mounted; a layer
//! that was indexed before is not touched.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tokio::sync::mpsc;

use super::control::{
    self, ConvertedImage, Event, IndexProfile, IndexedImage, IndexedLayer, PushReport, SharedIndex, SharedLayer,
    UnwantedIndexes,
};
use super::events::{TELL, resolve_image, send, warn_of, watched};
use super::query::request_of;
use super::{Code, Failure, ztocs};
use crate::image::{Belief, ImageLayer, Images, Progress, Request, Resolved, soci_pin, verdict_of_pins};
use crate::limits::PARALLEL_SIGNED;
use crate::oci::{Descriptor, Digest, Platform, Reference, Wanted};
use crate::profile::Profile;
use crate::registry::Repository;
use crate::share::{self, Bound, Bundle, Format, LayerBlob, Listed, Places, SociIndex};
use crate::source::{BoxFuture, Source};
use crate::store::Store;

/// What to do instead of pushing the index of a local image.
const NOT_PUSHED: &str = "name the image in its registry; `ocifs index --output oci:DIR` writes an index to a layout";

/// What to do instead of looking beside a local image.
const NOT_LISTED: &str = "indexes lie beside an image in its registry: name it there";

/// The type of an image's manifest where its source did not say: local ones need not.
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Makes the indexes, and pushes and writes them if that is wanted.
pub(super) async fn make(
    images: &Images,
    work: &control::IndexWork,
    events: &mpsc::Sender<Event>,
) -> Result<Vec<IndexedImage>, Failure> {
    let format = format_of(&work.format)?;
    check(format, work)?;
    let first = request_of(&work.image)?;
    if let Some(tag) = &work.tag {
        check_tag(tag, &first.reference)?;
    }
    let about = |failure: Failure| {
        let failure = if work.push { failure.online() } else { failure };
        failure.about(format!("cannot index {}", work.image.reference))
    };
    let repository = match work.push {
        true => Some(repository(images, &first, NOT_PUSHED).await.map_err(about)?.for_pushing()),
        false => None,
    };
    let (mut made, mut bound) = (Vec::new(), Vec::new());
    for request in requests(images, first, work.all_platforms).await.map_err(about)? {
        let image = one(images, work, &request, repository.as_ref(), events).await;
        let (image, binding) = image.map_err(about)?;
        made.push(image);
        bound.push(binding);
    }
    if let (Format::SociV2, Some(repository), Some(tag)) = (format, &repository, &work.tag) {
        send(events, Event::Phase { text: format!("pushing the image {}:{tag}", repository.path()) }).await;
        convert(repository, &bound, tag, &mut made).await.map_err(about)?;
    }
    Ok(made)
}

/// Makes sure that what is asked for has a meaning for the format.
fn check(format: Format, work: &control::IndexWork) -> Result<(), Failure> {
    let wrong = |what: &str, hint: &str| Err(Failure::new(Code::Usage, what).hint(hint));
    match format {
        Format::Soci | Format::SociV2 if work.replace => {
            wrong("indexes for other programs cannot replace those that are there", "leave out --replace")
        }
        Format::SociV2 if work.output.is_some() => wrong(
            "an image that names its index cannot be written into a layout without its layers",
            "push it with --push --tag TAG; any tool copies it from there",
        ),
        Format::SociV2 if work.push && work.tag.is_none() => wrong(
            "the image that names its index has no name",
            "say which with --tag, such as --tag latest-soci; the image itself is not changed",
        ),
        Format::SociV2 if work.push || work.tag.is_none() => Ok(()),
        _ if work.tag.is_some() => {
            wrong("a tag is given to nothing", "--tag goes with --push and --format soci-v2; leave it out otherwise")
        }
        Format::Ocifs | Format::Soci | Format::SociV2 => Ok(()),
    }
}

/// Makes sure that the image that names the indexes does not take the name of the one that they are made of.
fn check_tag(tag: &str, original: &Reference) -> Result<(), Failure> {
    match original {
        Reference::Registry(name) if name.tag() == Some(tag) => {
            let failure = Failure::new(Code::Usage, format!("the tag {tag} is that of {} itself", name.familiar()));
            Err(failure
                .hint(format!("give another with --tag, such as --tag {tag}-soci; the image itself is not changed")))
        }
        _ => Ok(()),
    }
}

/// Puts the image there that names the indexes of `bound`, which are there already.
async fn convert(
    repository: &Repository,
    bound: &[Bound],
    tag: &str,
    made: &mut [IndexedImage],
) -> Result<(), Failure> {
    let original = repository.resolve().await.map_err(|error| Failure::from(&error))?;
    let mut seen = HashSet::new();
    let once: Vec<_> = bound.iter().filter(|bound| seen.insert(bound.image.digest)).cloned().collect();
    let converted = share::convert(repository, &original, &once, tag).await.map_err(|error| Failure::from(&error))?;
    let by_image: HashMap<_, _> =
        once.iter().zip(converted.images).map(|(bound, manifest)| (bound.image.digest, manifest)).collect();
    for (image, bound) in made.iter_mut().zip(bound) {
        image.converted = by_image.get(&bound.image.digest).map(|manifest| ConvertedImage {
            reference: format!("{}/{}:{tag}", repository.host(), repository.path()),
            manifest: manifest.to_string(),
            digest: converted.list.to_string(),
        });
    }
    Ok(())
}

/// What the artifact is written for.
fn format_of(name: &str) -> Result<Format, Failure> {
    match name {
        "" | "ocifs" => Ok(Format::Ocifs),
        "soci" => Ok(Format::Soci),
        "soci-v2" => Ok(Format::SociV2),
        other => Err(Failure::new(Code::Usage, format!("there is no index format \"{other:.40}\""))),
    }
}

/// A request for each platform, or the one as it is.
async fn requests(images: &Images, first: Request, all: bool) -> Result<Vec<Request>, Failure> {
    if !all {
        return Ok(vec![first]);
    }
    let platforms = images.platforms(&first).await.map_err(|error| Failure::from(&error))?;
    let exactly = |platform: Platform| Request { wanted: Wanted::Exactly(platform), ..first.clone() };
    Ok(match platforms.is_empty() {
        true => vec![first],
        false => platforms.into_iter().map(exactly).collect(),
    })
}

async fn one(
    images: &Images,
    work: &control::IndexWork,
    request: &Request,
    repository: Option<&Repository>,
    events: &mpsc::Sender<Event>,
) -> Result<(IndexedImage, Bound), Failure> {
    let (resolved, layers) = prove(images, request, events).await?;
    warn_of(&resolved.warnings, events).await;
    let profile = profile(images, &work.profile, resolved.digest).await?;
    let subject = Descriptor::new(
        resolved.media_type.clone().unwrap_or_else(|| MANIFEST_TYPE.to_owned()),
        resolved.digest,
        resolved.manifest_size,
    );
    let format = format_of(&work.format)?;
    if format != Format::Ocifs && matches!(work.profile, control::IndexProfile::Text(_)) {
        let text = "SOCI's form of an index has no place for a profile: it is left out".to_owned();
        send(events, Event::Warning { text }).await;
    }
    let ztocs = match format {
        Format::Ocifs => Vec::new(),
        Format::Soci | Format::SociV2 => ztocs::write(&layers, events).await?,
    };
    let indexes: Vec<_> = layers.iter().map(encoded).collect();
    let sizes: HashMap<_, _> = ztocs.iter().map(|(layer, ztoc)| (layer.digest, ztoc.len() as u64)).collect();
    let described = layers.iter().map(|layer| match format {
        Format::Ocifs => describe(layer),
        Format::Soci | Format::SociV2 => describe_ztoc(layer, sizes.get(&layer.descriptor.digest).copied()),
    });
    let described = described.collect();
    // Hashing some hundred megabytes of indexes takes a second.
    let bundled = tokio::task::spawn_blocking(move || match format {
        Format::Ocifs => Bundle::new(&subject, &indexes, profile.as_ref()),
        Format::Soci => Bundle::soci(&subject, &ztocs),
        Format::SociV2 => Bundle::soci_v2(&subject, &ztocs),
    });
    let bundled = bundled.await;
    let bundle = bundled.map_err(|_| interrupted())?;
    let pushed = match repository {
        Some(repository) => {
            let mut pushed = push(images.store(), repository, &bundle, events).await?;
            if work.replace {
                pushed.replaced = replace(repository, &bundle, events).await?;
            }
            Some(pushed)
        }
        None => None,
    };
    let mut image = report(&resolved, &bundle, described, pushed);
    let bound = Bound {
        image: bundle.artifact.subject.clone(),
        platform: resolved.config.platform,
        index: Descriptor::new(MANIFEST_TYPE, bundle.digest(), bundle.manifest.len() as u64),
    };
    if let Some(dir) = work.output.clone() {
        image.output = Some(dir.clone());
        let written = tokio::task::spawn_blocking(move || share::write_layout(&dir, &bundle)).await;
        written.map_err(|_| interrupted())?.map_err(|error| Failure::from(&error))?;
    }
    Ok((image, bound))
}

/// The proven indexes of an image, telling how far their first contacts are.
async fn prove(
    images: &Images,
    request: &Request,
    events: &mpsc::Sender<Event>,
) -> Result<(Resolved, Vec<ImageLayer>), Failure> {
    let progress = Arc::new(Progress::default());
    let proven = watched(events, &progress, images.prove(request, &progress)).await;
    proven.map_err(|error| Failure::from(&error))
}

async fn push(
    store: &Arc<Store>,
    repository: &Repository,
    bundle: &Bundle,
    events: &mpsc::Sender<Event>,
) -> Result<PushReport, Failure> {
    let places = places(store, repository, bundle).await?;
    send(events, Event::Phase { text: format!("pushing the index to {}", repository.path()) }).await;
    let progress = share::Progress::default();
    let mut pushing = std::pin::pin!(share::push(repository, bundle, &places, &progress));
    let mut tick = tokio::time::interval(TELL);
    let sent = loop {
        tokio::select! {
            sent = &mut pushing => break sent.map_err(|error| Failure::from(&error))?,
            _ = tick.tick() => {
                let share::Pushing { blobs, finished, there, total } = progress.now();
                let now = control::Progress { layers: blobs, finished, total, taken: there, received: there };
                send(events, Event::Progress(now)).await;
            }
        }
    };
    remember(store, repository, bundle).await?;
    Ok(PushReport {
        repository: repository.name(),
        listed: match sent.listed {
            Listed::Api => "api",
            Listed::Tag => "tag",
            Listed::Image => "image",
        }
        .to_owned(),
        existed: sent.existed,
        mounted: sent.mounted,
        sent: sent.sent,
        bytes: sent.bytes,
        replaced: 0,
    })
}

/// Where the registry was seen to have the blobs.
async fn places(store: &Arc<Store>, repository: &Repository, bundle: &Bundle) -> Result<Places, Failure> {
    let (store, host, blobs) = (Arc::clone(store), repository.host().to_owned(), digests(bundle));
    let seen = move || {
        let place = |digest: Digest| Some((digest, store.place(&host, &digest).ok()??));
        blobs.into_iter().filter_map(place).collect()
    };
    tokio::task::spawn_blocking(seen).await.map_err(|_| interrupted())
}

/// Remembers that the repository has the blobs, for the next one that gets some of them.
async fn remember(store: &Arc<Store>, repository: &Repository, bundle: &Bundle) -> Result<(), Failure> {
    let (store, blobs) = (Arc::clone(store), digests(bundle));
    let (host, path) = (repository.host().to_owned(), repository.path().to_owned());
    let keep = move || {
        if let Err(error) = blobs.iter().try_for_each(|digest| store.put_place(&host, digest, &path)) {
            tracing::debug!(%error, "where blobs lie is not remembered");
        }
    };
    tokio::task::spawn_blocking(keep).await.map_err(|_| interrupted())
}

fn digests(bundle: &Bundle) -> Vec<Digest> {
    bundle.blobs.iter().map(|(digest, _)| *digest).collect()
}

/// Removes the other artifacts of the image.
async fn replace(repository: &Repository, bundle: &Bundle, events: &mpsc::Sender<Event>) -> Result<usize, Failure> {
    let subject = bundle.artifact.subject.digest;
    let found = share::discover(repository, &subject).await.map_err(|error| Failure::from(&error))?;
    let mut removed = 0;
    for shared in found.iter().filter(|shared| shared.manifest.digest != bundle.digest()) {
        take_away(repository, &subject, &shared.manifest.digest, events).await?;
        removed += 1;
    }
    Ok(removed)
}

/// Removes one artifact, and says so if it only cannot be found any more.
async fn take_away(
    repository: &Repository,
    subject: &Digest,
    artifact: &Digest,
    events: &mpsc::Sender<Event>,
) -> Result<(), Failure> {
    let gone = share::remove(repository, subject, artifact).await.map_err(|error| Failure::from(&error))?;
    if !gone {
        let text = format!("the registry does not delete {artifact}; it is in no list any more and nobody finds it");
        send(events, Event::Warning { text }).await;
    }
    Ok(())
}

/// The profile to put into the artifact.
async fn profile(images: &Images, wanted: &IndexProfile, image: Digest) -> Result<Option<Profile>, Failure> {
    let text = match wanted {
        IndexProfile::None => return Ok(None),
        IndexProfile::Text(text) => Bytes::from(text.clone()),
        IndexProfile::Auto => {
            let store = Arc::clone(images.store());
            let stored = tokio::task::spawn_blocking(move || store.profile(&image)).await;
            match stored.map_err(|_| interrupted())?.map_err(|error| Failure::from(&error))? {
                Some(text) => text,
                None => return Ok(None),
            }
        }
    };
    let profile = Profile::parse(&text);
    profile.map(Some).map_err(|error| Failure::of(Code::Usage, &error).about("this is not a profile".to_owned()))
}

fn encoded(layer: &ImageLayer) -> (Digest, Bytes, u64) {
    let index = &layer.layer.index;
    (index.layer(), index.as_bytes().clone(), index.metadata_len())
}

fn describe(layer: &ImageLayer) -> IndexedLayer {
    let index = &layer.layer.index;
    IndexedLayer {
        digest: layer.descriptor.digest.to_string(),
        size: layer.descriptor.size,
        index_size: index.encoded_len(),
        metadata_size: index.metadata_len(),
        spans: index.span_count(),
        was_streamed: layer.streamed.is_some(),
        not_lazy: index.not_lazy().map(str::to_owned),
    }
}

/// The same for a layer whose zTOC, which is read as a whole, has this length; none if SOCI has no form for the layer.
fn describe_ztoc(layer: &ImageLayer, size: Option<u64>) -> IndexedLayer {
    let size = size.unwrap_or(0);
    IndexedLayer { index_size: size, metadata_size: size, ..describe(layer) }
}

fn report(resolved: &Resolved, bundle: &Bundle, layers: Vec<IndexedLayer>, pushed: Option<PushReport>) -> IndexedImage {
    IndexedImage {
        digest: resolved.digest.to_string(),
        platform: resolved.config.platform.to_string(),
        artifact: bundle.digest().to_string(),
        layers,
        profile_size: bundle.artifact.profile.as_ref().map(|blob| blob.size),
        pushed,
        output: None,
        converted: None,
    }
}

/// The artifacts beside an image; a mount uses the first of them that it believes.
pub(super) async fn list(
    images: &Images,
    wanted: &control::Image,
    events: &mpsc::Sender<Event>,
) -> Result<Vec<SharedIndex>, Failure> {
    let listed = look(images, wanted, events).await;
    listed.map_err(|failure| failure.online().about(format!("cannot list the indexes of {}", wanted.reference)))
}

async fn look(
    images: &Images,
    wanted: &control::Image,
    events: &mpsc::Sender<Event>,
) -> Result<Vec<SharedIndex>, Failure> {
    let request = request_of(wanted)?;
    let repository = repository(images, &request, NOT_LISTED).await?;
    let resolved = resolve_image(images, &request, events).await;
    let resolved = resolved.map_err(|error| Failure::from(&error))?;
    let found = found(&repository, &resolved).await?;
    let found = signed(&repository, &request, found).await;
    let sizes: HashMap<_, _> = resolved.manifest.layers.iter().map(|layer| (layer.digest, layer.size)).collect();
    let layer = |blob: LayerBlob| SharedLayer {
        digest: blob.layer.to_string(),
        size: sizes.get(&blob.layer).copied(),
        index: blob.blob.digest.to_string(),
        index_size: blob.blob.size,
        metadata_size: blob.metadata.size,
    };
    let describe = |(found, signer): (Found, Result<Option<String>, String>)| {
        let verdict = match found.format {
            Format::SociV2 => verdict_of_pins(request.trust),
            Format::Ocifs | Format::Soci => request.verdict(),
        };
        let believed = signer.and_then(|signer| verdict.of(signer.as_deref()));
        SharedIndex {
            digest: found.digest.to_string(),
            format: found.format.name().to_owned(),
            image: resolved.digest.to_string(),
            platform: resolved.config.platform.to_string(),
            profile_size: found.profile_size,
            image_layers: sizes.len(),
            layers: found.layers.into_iter().map(layer).collect(),
            believed: believed.is_ok(),
            reason: believed.unwrap_or_else(|why| why),
        }
    };
    Ok(found.into_iter().map(describe).collect())
}

/// The artifacts, each with the key of the user that signed it, if that is what decides about it, or why that is not known.
async fn signed(
    repository: &Repository,
    request: &Request,
    found: Vec<Found>,
) -> Vec<(Found, Result<Option<String>, String>)> {
    let is_asked = request.verdict().belief == Belief::Signed;
    let looking: Vec<BoxFuture<'_, _>> = found
        .into_iter()
        .map(|found| {
            Box::pin(async move {
                if !is_asked || found.format == Format::SociV2 {
                    return (found, Ok(None));
                }
                let signature = share::signature(repository, found.digest, &request.keys).await;
                let signer = signature.map(|found| found.map(|(_, signer)| signer)).map_err(|error| error.to_string());
                (found, signer)
            }) as BoxFuture<'_, _>
        })
        .collect();
    stream::iter(looking).buffered(PARALLEL_SIGNED).collect().await
}

/// An artifact beside an image, whomever it is for.
struct Found {
    format: Format,
    digest: Digest,
    layers: Vec<LayerBlob>,
    profile_size: Option<u64>,
}

impl Found {
    fn soci(format: Format, digest: Digest, index: &SociIndex) -> Self {
        Self { format, digest, profile_size: None, layers: index.layers.iter().map(LayerBlob::of_ztoc).collect() }
    }
}

/// The artifacts of an image in the order in which a mount asks them: the one that its manifest names, ours, of which it
/// uses the first, then those that it falls back to.
async fn found(repository: &Repository, image: &Resolved) -> Result<Vec<Found>, Failure> {
    let subject = &image.digest;
    let (pinned, ours, soci) = tokio::join!(
        pinned(repository, image),
        share::discover(repository, subject),
        share::discover_soci(repository, subject)
    );
    let ours = ours.map_err(|error| Failure::from(&error))?.into_iter().map(|shared| Found {
        format: Format::Ocifs,
        digest: shared.manifest.digest,
        profile_size: shared.artifact.profile.map(|blob| blob.size),
        layers: shared.artifact.layers,
    });
    let soci = soci.map_err(|error| Failure::from(&error))?;
    let soci = soci.into_iter().map(|(manifest, index, _)| Found::soci(Format::Soci, manifest.digest, &index));
    Ok(pinned.into_iter().chain(ours).chain(soci).collect())
}

/// The index that the image's manifest names. One that cannot be used is passed over, as by a mount.
async fn pinned(repository: &Repository, image: &Resolved) -> Option<Found> {
    let pin = soci_pin(&image.manifest)?;
    let index = share::pinned_soci(repository, pin, &image.digest).await;
    let passed_over =
        |error: &share::Error| tracing::warn!(%pin, error = error as &dyn std::error::Error, "passed over");
    let (index, _) = index.inspect_err(passed_over).ok()?;
    Some(Found::soci(Format::SociV2, pin, &index))
}

/// Takes artifacts of an image out of its registry; answers how many.
///
/// Those for other programs go only if they are asked for: whoever put them there need not know of this one.
pub(super) async fn remove(
    images: &Images,
    unwanted: &UnwantedIndexes,
    events: &mpsc::Sender<Event>,
) -> Result<usize, Failure> {
    let UnwantedIndexes { image: wanted, format, artifact } = unwanted;
    let format = format_of(format)?.name();
    let about = |failure: Failure| failure.online().about(format!("cannot remove the indexes of {}", wanted.reference));
    let listed = look(images, wanted, events).await.map_err(about)?;
    let repository = repository(images, &request_of(wanted)?, NOT_LISTED).await.map_err(about)?.for_pushing();
    let digest = |text: &str| text.parse::<Digest>().map_err(|error| about(Failure::of(Code::Usage, &error)));
    let is_chosen = |shared: &&SharedIndex| match artifact {
        Some(artifact) => shared.digest == *artifact,
        None => shared.format == format,
    };
    let chosen: Vec<_> = listed.iter().filter(is_chosen).collect();
    if chosen.is_empty() {
        let failure = Failure::new(Code::NotFound, format!("there is no such index of {}", wanted.reference));
        return Err(failure.hint("`ocifs index list REF` shows what there is"));
    }
    if chosen.iter().any(|shared| shared.format == Format::SociV2.name()) {
        let failure = Failure::new(Code::Usage, format!("{} itself names that index", wanted.reference));
        return Err(about(
            failure.hint("it is there as long as the image; the image that it was made of is another one"),
        ));
    }
    for shared in &chosen {
        let (subject, artifact) = (digest(&shared.image)?, digest(&shared.digest)?);
        take_away(&repository, &subject, &artifact, events).await.map_err(about)?;
    }
    Ok(chosen.len())
}

/// The repository of an image, which a local one does not have; `hint` is for that.
async fn repository(images: &Images, request: &Request, hint: &str) -> Result<Repository, Failure> {
    if request.offline {
        return Err(
            Failure::new(Code::Usage, "indexes in a registry cannot be reached offline").hint("leave out --offline")
        );
    }
    let repository = images.repository(request).await.map_err(|error| Failure::from(&error))?;
    repository
        .ok_or_else(|| Failure::new(Code::Usage, format!("{} is not in a registry", request.reference)).hint(hint))
}

fn interrupted() -> Failure {
    Failure::new(Code::Other, "the daemon is stopping")
}

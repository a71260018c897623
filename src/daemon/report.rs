//! What the daemon tells of itself: mounts, layers, images and the cache, in the words of [`control`].

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use super::control::{self, CacheReport, ImageReport, LayerReport, LayerSummary, MountReport, OutageReport, UsedBy};
use super::mounts::{InUse, Mounted};
use crate::fetch::OnOutage;
use crate::fs::FileSystem;
use crate::fuse;
use crate::image::{ImageLayer, Origin, Resolved};
use crate::index::Compression;
use crate::registry::{HostState, Repository};
use crate::store::{DiskUsage, Dropped, Store, Usage};

/// One mount in detail.
pub(super) fn mount(mounted: &Mounted) -> MountReport {
    let image = &mounted.image;
    let before = mounted.before.layers.iter().copied().chain(std::iter::repeat((0, 0)));
    let layers: Vec<_> = image.layers.iter().zip(before).map(|(one, before)| layer(one, before)).collect();
    let io = mounted.served.connection.io();
    let awake = mounted.served.connection.kept_awake() - mounted.before.awake;
    MountReport {
        dir: mounted.request.dir.clone(),
        reference: mounted.request.image.reference.clone(),
        digest: image.resolved.digest.to_string(),
        platform: image.resolved.config.platform.to_string(),
        fill: mounted.request.fill,
        filling: mounted.filling.report(),
        on_outage: mounted.request.on_outage.to_string(),
        outage: outage(&mounted.served.fs),
        bytes_needed: layers.iter().map(|layer| layer.size).sum(),
        bytes_local: layers.iter().map(|layer| layer.local).sum(),
        bytes_fetched: layers.iter().map(|layer| layer.fetched).sum(),
        requests: layers.iter().map(|layer| layer.requests).sum(),
        io: match io.mode {
            fuse::Mode::Passthrough => control::Io::Passthrough,
            fuse::Mode::Cached => control::Io::Cached,
        },
        io_reason: io.reason,
        hosts: image.repository.iter().flat_map(Repository::hosts).map(host).collect(),
        hosts_rule: image.repository.as_ref().and_then(Repository::rule),
        open_files: mounted.served.connection.sees_opens().then(|| mounted.served.fs.open_files()),
        kernel_requests: kernel_requests(mounted),
        low_latency_ms: u64::try_from(awake.as_millis()).unwrap_or(u64::MAX),
        entries: u64::from(image.tree.node_count()),
        profile: mounted.profiling.report(),
        layers,
    }
}

/// One host.
fn host(state: HostState) -> control::HostReport {
    let HostState { name, received, trouble, .. } = state;
    control::HostReport { name, received, trouble }
}

/// The outage that readers of `fs` are in, or would be.
fn outage(fs: &FileSystem) -> Option<OutageReport> {
    let outage = fs.outage()?;
    let waiting = fs.patience().longest_wait();
    let left = match (fs.patience().policy(), waiting) {
        (OnOutage::Wait(Some(longest)), Some(waited)) => Some(longest.saturating_sub(waited)),
        _ => None,
    };
    Some(OutageReport {
        host: outage.place.to_string(),
        since: outage.since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        seconds: outage.lasting.as_secs(),
        error: crate::fs::Chain(&outage.error).to_string(),
        waiting: waiting.as_ref().map(Duration::as_secs),
        fails_in: left.as_ref().map(Duration::as_secs),
    })
}

/// The kernel's requests since it was mounted, those of other mounts that are served together included.
fn kernel_requests(mounted: &Mounted) -> std::collections::BTreeMap<String, u64> {
    let before: std::collections::HashMap<_, _> = mounted.before.kernel.iter().copied().collect();
    let since = |(kind, count): (&'static str, u64)| (kind.to_owned(), count - before.get(kind).unwrap_or(&0));
    mounted.served.connection.requests().map(since).collect()
}

/// One layer; `before` are the bytes and requests that it had needed before this mount.
fn layer(layer: &ImageLayer, before: (u64, u64)) -> LayerReport {
    let inner = &layer.layer;
    let (streamed_bytes, streamed_requests) =
        layer.streamed.as_ref().map_or((0, 0), |progress| (progress.traffic.bytes(), progress.traffic.requests()));
    LayerReport {
        digest: layer.descriptor.digest.to_string(),
        media_type: layer.descriptor.media_type.clone(),
        compression: match inner.index.compression() {
            Compression::None => "tar",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
        .to_owned(),
        indexed: match layer.origin {
            Origin::Cached => "cache",
            Origin::Toc(format) => format.name(),
            Origin::FirstContact => "first-contact",
            Origin::Shared(_) => "shared",
            Origin::Imported => "imported",
        }
        .to_owned(),
        index_artifact: match layer.origin {
            Origin::Shared(artifact) => Some(artifact.to_string()),
            Origin::Cached | Origin::Toc(_) | Origin::FirstContact | Origin::Imported => None,
        },
        index_reason: layer.reason.clone(),
        size: layer.descriptor.size,
        local: inner.blob.present_bytes(),
        fetched: inner.traffic.bytes() - before.0 + streamed_bytes,
        requests: inner.traffic.requests() - before.1 + streamed_requests,
        spans: inner.index.span_count(),
        not_lazy: inner.index.not_lazy().map(str::to_owned),
    }
}

/// An image that was only resolved.
pub(super) fn image(reference: &str, resolved: &Resolved, store: &Store) -> ImageReport {
    let mut seen = std::collections::HashSet::new();
    let layers = resolved.manifest.layers.iter().zip(&resolved.config.diff_ids);
    ImageReport {
        reference: reference.to_owned(),
        digest: resolved.digest.to_string(),
        platform: resolved.config.platform.to_string(),
        platforms: resolved.index.iter().flat_map(|index| &index.entries).filter_map(platform).collect(),
        size: resolved.manifest.layers.iter().filter(|layer| seen.insert(layer.digest)).map(|layer| layer.size).sum(),
        layers: layers
            .map(|(layer, diff_id)| LayerSummary {
                digest: layer.digest.to_string(),
                diff_id: diff_id.to_string(),
                media_type: layer.media_type.clone(),
                size: layer.size,
                indexed: store.index(&layer.digest).is_ok_and(|index| index.is_some()),
            })
            .collect(),
        // The configuration was parsed before, so it is JSON.
        config: serde_json::from_slice(&resolved.config_bytes).unwrap_or_default(),
    }
}

fn platform(entry: &crate::oci::IndexEntry) -> Option<String> {
    entry.platform.as_ref().filter(|platform| !platform.is_unknown()).map(ToString::to_string)
}

/// What the cache holds.
pub(super) fn cache(store: &Store, usage: &DiskUsage) -> CacheReport {
    CacheReport {
        dir: store.dir().to_owned(),
        limit: store.limits().max_bytes,
        used: usage.total().bytes,
        manifests: part(usage.manifests),
        blobs: part(usage.blobs),
        indexes: part(usage.indexes),
        trees: part(usage.trees),
        files: part(usage.files),
        profiles: part(usage.profiles),
        decoded: part(usage.scratch),
    }
}

/// One part of the cache.
pub(super) fn part(usage: Usage) -> control::Usage {
    control::Usage { count: usage.count, bytes: usage.bytes }
}

/// What became of parts of the cache that were to be dropped. Mounts need what is `in_use`, those that are in the mount
/// table what is `mounted`.
pub(super) fn dropped(parts: &[(&str, Dropped)], in_use: &InUse, mounted: &InUse) -> control::DropReport {
    let mut removed = Usage::default();
    let mut kept: BTreeMap<(usize, UsedBy), Usage> = BTreeMap::new();
    for (number, (_, dropped)) in parts.iter().enumerate() {
        removed.add(dropped.freed);
        for (digest, usage) in &dropped.kept {
            let used_by = match () {
                () if mounted.needs(digest) => UsedBy::Mount,
                () if in_use.needs(digest) => UsedBy::EndedMount,
                () => UsedBy::Reader,
            };
            kept.entry((number, used_by)).or_default().add(*usage);
        }
    }
    let kept = kept.into_iter().map(|((number, used_by), usage)| {
        let part = parts[number].0.to_owned();
        control::Kept { part, usage: self::part(usage), used_by }
    });
    control::DropReport { removed: part(removed), kept: kept.collect() }
}

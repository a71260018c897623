//! The registry that is never well.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use ocifs::demo::registry::{Answer, Bearer, Content, Endpoint, Fault, Registry, Request};
use ocifs::oci::Digest;
use serde_json::Value;
use tokio::runtime::Runtime;

/// How long a token is taken.
const TOKEN: Duration = Duration::from_secs(20);

/// How long it runs between two restarts.
const LIFE: Duration = Duration::from_secs(60);

/// One request in so many fails.
const FAILS: u64 = 20;

/// What it was asked and how it answered.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    failed: AtomicU64,
    tokens: AtomicU64,
    restarts: AtomicU64,
    /// True if wrong bytes are among the failures.
    spoils: AtomicBool,
}

/// The registry with the image. Dropping it ends it.
pub(super) struct Ailing {
    reference: String,
    counts: Arc<Counts>,
    _runtime: Runtime,
}

impl Ailing {
    /// Serves the image `tag` of a layout as `soak/image:latest`.
    pub(super) fn start(layout: &Path, tag: &str, pause: Duration) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let content = content(layout, tag)?;
        let counts = Arc::<Counts>::default();
        let registry = runtime.block_on(Registry::start(content.clone()))?;
        let addr = registry.addr();
        sicken(&registry, &counts);
        let counting = Arc::clone(&counts);
        runtime.spawn(async move {
            let mut registry = registry;
            loop {
                tokio::time::sleep(LIFE).await;
                registry.stop().await;
                tokio::time::sleep(pause).await;
                registry = match Registry::start_at(addr, content.clone()).await {
                    Ok(registry) => registry,
                    Err(error) => return eprintln!("the registry cannot come back: {error}"),
                };
                sicken(&registry, &counting);
                counting.restarts.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { reference: format!("{addr}/soak/image:latest"), counts, _runtime: runtime })
    }

    /// By what the image is mounted.
    pub(super) fn reference(&self) -> String {
        self.reference.clone()
    }

    /// Sends a wrong byte now and then from now on. A layer that is not what its digest says fails the mount that streams
    /// it, as it should, so this begins when the image is mounted.
    pub(super) fn spoil(&self) {
        self.counts.spoils.store(true, Ordering::Relaxed);
    }

    pub(super) fn tell(&self) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counts { requests, failed, tokens, restarts, .. } = &*self.counts;
        let (requests, failed) = (count(requests), count(failed));
        println!(
            "the registry: {requests} requests, {failed} failed, {} tokens, {} restarts",
            count(tokens),
            count(restarts)
        );
    }
}

/// The blobs of a layout, and its image `tag`.
fn content(layout: &Path, tag: &str) -> Result<Content> {
    let content = Content::new();
    for entry in fs::read_dir(layout.join("blobs/sha256"))? {
        content.add_blob_file("application/octet-stream", entry?.path())?;
    }
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let is_tagged = |manifest: &&Value| manifest["annotations"]["org.opencontainers.image.ref.name"] == tag;
    let manifest = index["manifests"].as_array().and_then(|all| all.iter().find(is_tagged));
    let manifest = manifest.with_context(|| format!("the layout has no tag {tag}"))?;
    let digest: Digest = manifest["digest"].as_str().and_then(|text| text.parse().ok()).context("no digest")?;
    let bytes = fs::read(layout.join("blobs/sha256").join(digest.hex()))?;
    let media_type = manifest["mediaType"].as_str().context("no media type")?;
    content.add_manifest("soak/image", Some("latest"), media_type, bytes);
    Ok(content)
}

/// Makes a registry demand tokens and fail now and then.
fn sicken(registry: &Registry, counts: &Arc<Counts>) {
    let counts = Arc::clone(counts);
    registry.set_faults(move |request| {
        let number = counts.requests.fetch_add(1, Ordering::Relaxed);
        let is_token = request.endpoint == Endpoint::Token;
        counts.tokens.fetch_add(u64::from(is_token), Ordering::Relaxed);
        // Every other token is said to be good for long.
        let stated = Some(if number.is_multiple_of(2) { TOKEN.as_secs() } else { 300 });
        let mut faults = vec![Fault::Bearer(Bearer { lifetime: TOKEN, stated, ..Bearer::default() })];
        if scramble(number).is_multiple_of(FAILS) {
            counts.failed.fetch_add(1, Ordering::Relaxed);
            let spoils = counts.spoils.load(Ordering::Relaxed);
            faults.push(ailment(scramble(number) / FAILS, request, spoils));
        }
        Some(Fault::Many(faults))
    });
}

/// One of the ways in which registries fail. Only blobs break off or are wrong, so that every request in twenty really fails.
fn ailment(choice: u64, request: &Request, spoils: bool) -> Fault {
    let after = choice / 16 % 200_000;
    let start = request.range().and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
    match choice % if request.is_blob() { 8 + u64::from(spoils) } else { 4 } {
        0 => Fault::status(500),
        1 => Answer::new(503).header("Retry-After", "1").into(),
        2 => Answer::new(429).header("Retry-After", "1").into(),
        3 => Fault::HangUp { after: 0 },
        4 => Fault::Truncate { after },
        5 => Fault::Reset { after },
        6 => Fault::IgnoreRange,
        7 => Fault::Delay(Duration::from_secs(3)),
        _ => Fault::Corrupt { offset: start.unwrap_or(0_u64) + after % 2000 },
    }
}

/// Spreads numbers that follow each other (the finisher of splitmix64).
fn scramble(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

//! What a daemon does while nobody asks for anything: memory is given back, the cache stays within its limits and where it
//! was, and what others unmount is noticed.

use std::sync::Arc;
use std::time::Duration;

use super::mounts::Mounts;
use super::{Failure, query};
use crate::image::Images;
use crate::oci::Printable;
use crate::store::Missing;

/// How long readers must have been quiet before decoded spans are dropped from memory.
const MEMORY_QUIET: Duration = Duration::from_secs(5);

/// How often the size of the cache is looked at while mounts stay the same: reads add to it.
const EVICTION: Duration = Duration::from_secs(300);

/// How long after a change, and after the last read, the cache is looked at: by then a mount that ended has let go of its
/// layers, and one that began is being read by the program that is to start from it.
const SETTLED: Duration = Duration::from_secs(2);

/// How long readers may put that off.
const BUSY: Duration = Duration::from_secs(10);

/// How long the mounts that a daemon has ended may take to let go of their layers before it looks for the last time.
const SEEN_OFF: Duration = Duration::from_secs(3);

/// How long that last look may take.
const LAST: Duration = Duration::from_secs(5);

/// How often the cache directory is looked for while something is mounted.
const LOOK: Duration = Duration::from_secs(10);

/// Does all of it, for ever.
pub(super) async fn run(images: &Images, mounts: &Arc<Mounts>) {
    tokio::join!(
        images.fetcher().shrink_when_idle(MEMORY_QUIET),
        keep_cache_bounded(images, mounts),
        keep_cache_in_place(images, mounts),
        mounts.places().watch(),
    );
}

/// Evicts what no mount uses whenever something was mounted, filled or unmounted, and now and then.
async fn keep_cache_bounded(images: &Images, mounts: &Mounts) {
    let (mut count, grown) = (mounts.count(), mounts.grown());
    loop {
        tokio::select! {
            changed = count.changed() => if changed.is_err() { return std::future::pending().await },
            () = grown.notified() => {}
            () = tokio::time::sleep(EVICTION) => {}
        }
        tokio::time::sleep(SETTLED).await;
        // It looks at every file of the cache, which a start that reads from the same disk would feel.
        let quiet = images.fetcher().demand().idle_for(SETTLED);
        drop(tokio::time::timeout(BUSY, quiet).await);
        mounts.served().tidy();
        evict(images, mounts).await;
    }
}

async fn evict(images: &Images, mounts: &Mounts) {
    match query::evict(images, mounts).await {
        Ok(freed) if freed.count > 0 => tracing::info!(?freed, "evicted from the cache"),
        Ok(_) => {}
        Err(failure) => tracing::warn!(%failure, "cannot evict from the cache"),
    }
}

/// Evicts once more when the daemon ends and its mounts were ended: one that lives for seconds never comes to it otherwise.
pub(super) async fn evict_last(images: &Images, mounts: &Mounts) {
    // One that is still in use stays, and keeps what it has.
    let mut count = mounts.count();
    drop(tokio::time::timeout(SEEN_OFF, count.wait_for(|count| *count == 0)).await);
    if tokio::time::timeout(LAST, evict(images, mounts)).await.is_err() {
        tracing::debug!("the daemon ends without another look at the size of the cache");
    }
}

/// Makes the cache directory anew if it is taken away while something is mounted, so that what is read is kept again.
/// Without a mount, whoever asks for something does.
async fn keep_cache_in_place(images: &Images, mounts: &Mounts) {
    let mut count = mounts.count();
    let mut last = None;
    while count.wait_for(|count| *count > 0).await.is_ok() {
        tokio::time::sleep(LOOK).await;
        let failure = restore_cache(images, mounts).await.err();
        if let Some(failure) = failure.as_ref().filter(|failure| last.as_ref() != Some(*failure)) {
            tracing::warn!(%failure, "the cache directory is gone, and cannot be made anew");
        }
        last = failure;
    }
}

/// Makes anew what was taken away of the cache directory; what is to be told of that, if anything was.
pub(super) async fn restore_cache(images: &Images, mounts: &Mounts) -> Result<Option<String>, Failure> {
    let Some(missing) = query::restore(images).await? else { return Ok(None) };
    mounts.served().forget_all();
    mounts.all().iter().for_each(|mounted| mounted.filling.look_again());
    let text = told_of(&missing, &Printable::path(images.store().dir()).to_string());
    tracing::warn!("{text}");
    Ok(Some(text))
}

/// What is told of a cache `dir` of which this was missing.
fn told_of(missing: &Missing, dir: &str) -> String {
    const NEEDED: &str = "what is mounted needs its registry until it is filled again";
    match missing {
        Missing::Everything => {
            format!("{dir} was removed while its daemon ran; it was made anew, what was in it is lost, and {NEEDED}")
        }
        Missing::Parts(parts) => {
            let parts = parts.join(", ");
            format!("{parts} of {dir} were removed while its daemon ran; what was in them is lost, and {NEEDED}")
        }
        Missing::Lock => format!("the lock of {dir} was removed or replaced while its daemon ran; it was made anew"),
    }
}

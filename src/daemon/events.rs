//! Telling a client how its request goes on, before the answer.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::control::{self, Event};
use crate::image::{self, Image, Images, Progress, Request, Resolved, Streamed};
use crate::oci::Message;

/// How often progress is told.
pub(super) const TELL: Duration = Duration::from_millis(100);

/// A host that has said nothing for so long is named to whoever waits for it: registries answer within a second, and one
/// that has to fetch the answer from elsewhere within a few.
const SILENCE: Duration = Duration::from_secs(5);

/// Opens an image, telling how far its first contact is.
pub(super) async fn open_image(
    images: &Images,
    request: &Request,
    events: &mpsc::Sender<Event>,
) -> Result<Image, image::Error> {
    let progress = Arc::new(Progress::default());
    let image = watched(events, &progress, images.open(request, &progress)).await;
    tell(events, &progress).await;
    image
}

/// Follows a reference to an image, telling who is waited for.
pub(super) async fn resolve_image(
    images: &Images,
    request: &Request,
    events: &mpsc::Sender<Event>,
) -> Result<Resolved, image::Error> {
    let progress = Progress::default();
    watched(events, &progress, images.resolve(request, &progress)).await
}

/// Does `work`, telling how far it is by `progress`, and once of each host that is waited for and says nothing.
pub(super) async fn watched<T>(events: &mpsc::Sender<Event>, progress: &Progress, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut tick = tokio::time::interval(TELL);
    let mut told = HashSet::new();
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = tick.tick() => {}
        }
        tell(events, progress).await;
        let silent = progress.silence().filter(|(_, silence)| *silence >= SILENCE);
        if let Some((host, silence)) = silent.filter(|(host, _)| told.insert(host.clone())) {
            let host = Message(&host);
            let text = format!("{host} has said nothing for {} seconds, still waiting for it", silence.as_secs());
            send(events, Event::Warning { text }).await;
        }
    }
}

/// Tells how far opening an image is.
async fn tell(events: &mpsc::Sender<Event>, progress: &Progress) {
    send(events, Event::Progress(shown(progress.now()))).await;
}

/// As people see it: bytes that are here count, also while they wait for those before them.
pub(super) fn shown(now: Streamed) -> control::Progress {
    let Streamed { layers, finished, total, taken, kept, received } = now;
    let here = kept.saturating_add(received).min(total);
    control::Progress { layers, finished, total, taken: taken.max(here), received }
}

/// Tells what the user should know of an image, such as that its registry did not answer.
pub(super) async fn warn_of(warnings: &[String], events: &mpsc::Sender<Event>) {
    for text in warnings {
        send(events, Event::Warning { text: Message(text).to_string() }).await;
    }
}

/// Tells the client. One that went away cancels the whole request elsewhere.
pub(super) async fn send(events: &mpsc::Sender<Event>, event: Event) {
    if events.send(event).await.is_err() {
        tracing::debug!("the client is gone");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_moves_with_every_byte_and_never_beyond_the_end() {
        let taken = |taken, kept, received| {
            let shown = shown(Streamed { layers: 1, finished: 0, total: 10, taken, kept, received });
            assert_eq!(shown.received, received, "what was there is no traffic");
            shown.taken
        };
        assert_eq!((taken(0, 0, 3), taken(4, 0, 3), taken(4, 0, 12)), (3, 4, 10));
        assert_eq!((taken(0, 2, 3), taken(4, 4, 3), taken(10, 4, 12)), (5, 7, 10));
    }
}

//! A registry that throttles is left in peace by everybody, and asked less at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ocifs::registry::{Options, Selector};
use ocifs::source::Source;
use tokio::sync::watch;

use super::scripted::{Reply, Server};
use super::{client, descriptor, noise, quick, read};

#[tokio::test]
async fn b_097_retry_after_holds_for_all_requests_to_the_host() {
    let blob = noise(10_000);
    let (bytes, times) = (blob.clone(), Arc::new(Mutex::new(Vec::new())));
    let noted = Arc::clone(&times);
    let server = Server::start(move |request, count| {
        noted.lock().expect("no test panics with it").push(Instant::now());
        match count {
            0 => Reply::error(429, "TOOMANYREQUESTS", "slow down").with("Retry-After", "1"),
            _ => Reply::blob(request, &bytes),
        }
    })
    .await;
    let client = client(Options { attempts: 1, ..quick() });
    let reader =
        |name: &str| client.repository(&server.host(), name, Selector::Tag("v1".into())).blob(&descriptor(&blob));
    let (first, second) = (reader("team/app"), reader("team/other"));
    read(&first, 0..100).await.expect_err("one attempt is all it has");
    let (one, two) = tokio::join!(read(&first, 0..100), read(&second, 100..200));
    assert_eq!(
        (one.expect("a range"), two.expect("a range")),
        (blob[..100].to_vec().into(), blob[100..200].to_vec().into())
    );
    let times = times.lock().expect("no test panics with it");
    let waits: Vec<_> = times[1..].iter().map(|time| time.duration_since(times[0]).as_millis()).collect();
    // Who was not asked to wait himself waits, too.
    assert!(waits.len() == 2 && waits.iter().all(|wait| *wait >= 990), "{waits:?}");
}

#[tokio::test]
async fn a_registry_that_bears_few_requests_at_once_gets_fewer() {
    let (blob, refused) = (noise(100_000), Arc::new(AtomicUsize::new(0)));
    let (bytes, counted, running) = (blob.clone(), Arc::clone(&refused), Arc::new(()));
    // It bears four requests at once, and says so to the others. The first four take until there is a fifth.
    let busy = watch::Sender::new(true);
    let server = Server::start(move |request, _| {
        if Arc::strong_count(&running) > 4 {
            counted.fetch_add(1, Ordering::SeqCst);
            busy.send_replace(false);
            return Reply::new(429, "").with("Retry-After", "0");
        }
        let (mut is_busy, held) = (busy.subscribe(), Arc::clone(&running));
        Reply::blob(request, &bytes).after(async move {
            drop(is_busy.wait_for(|is_busy| !is_busy).await);
            tokio::time::sleep(Duration::from_millis(30)).await;
            drop(held);
        })
    })
    .await;
    let options = Options { attempts: 12, first_pause: Duration::from_millis(20), ..quick() };
    let repository = client(options).repository(&server.host(), "team/app", Selector::Tag("v1".into()));
    let reader = repository.blob(&descriptor(&blob));
    let reads = (0..100_u64).map(|number| {
        let range = number * 1000..(number + 1) * 1000;
        let (reader, blob) = (&reader, &blob);
        async move {
            let bytes = read(reader, range.clone()).await.expect("in the end each is answered");
            assert!(bytes == blob[range.start as usize..range.end as usize]);
        }
    });
    futures_util::future::join_all(reads).await;
    let refused = refused.load(Ordering::SeqCst);
    assert!(refused > 0 && refused < 150, "{refused} of {} requests were refused", server.log().len());
}

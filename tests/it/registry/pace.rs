//! A registry that throttles is left in peace by everybody, and asked less at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ocifs::registry::{Options, Selector};
use ocifs::source::Source;

use super::scripted::{Reply, Server};
use super::{client, descriptor, noise, quick, read};

#[tokio::test]
async fn b_097_retry_after_holds_for_all_requests_to_the_host() {
    let blob = noise(10_000);
    let bytes = blob.clone();
    let server = Server::start(move |request, count| match count {
        0 => Reply::error(429, "TOOMANYREQUESTS", "slow down").with("Retry-After", "1"),
        _ => Reply::blob(request, &bytes),
    })
    .await;
    let client = client(quick());
    let reader =
        |name: &str| client.repository(&server.host(), name, Selector::Tag("v1".into())).blob(&descriptor(&blob));
    let (first, second) = (reader("team/app"), reader("team/other"));
    let begun = Instant::now();
    let other = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let bytes = read(&second, 100..200).await;
        assert!(begun.elapsed() >= Duration::from_millis(990), "it was not asked to wait itself, but waits");
        bytes
    };
    let early = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        server.log().len()
    };
    let (one, two, early) = tokio::join!(read(&first, 0..100), other, early);
    assert_eq!(
        (one.expect("a range"), two.expect("a range")),
        (blob[..100].to_vec().into(), blob[100..200].to_vec().into())
    );
    assert_eq!((early, server.log().len()), (1, 3), "in the meantime nobody asked");
}

#[tokio::test]
async fn a_registry_that_bears_few_requests_at_once_gets_fewer() {
    let (blob, running, refused) = (noise(100_000), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (bytes, counted) = (blob.clone(), Arc::clone(&refused));
    // It bears four requests in thirty milliseconds, and says so to the others.
    let started = Instant::now();
    let server = Server::start(move |request, _| {
        let window = usize::try_from(started.elapsed().as_millis() / 30).expect("a short test");
        let before = running.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |state| {
            Some(if state >> 8 == window { state + 1 } else { window << 8 })
        });
        let is_too_many = before.is_ok_and(|state| state >> 8 == window && state & 0xff >= 4);
        counted.fetch_add(usize::from(is_too_many), Ordering::SeqCst);
        if is_too_many { Reply::new(429, "").with("Retry-After", "0") } else { Reply::blob(request, &bytes) }
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

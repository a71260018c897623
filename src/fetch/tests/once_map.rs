//! Single flight on the runtime it is used with.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::fetch::OnceMap;

#[tokio::test]
async fn callers_at_once_share_one_run() {
    let map = OnceMap::<u8, usize>::default();
    let runs = Arc::new(AtomicUsize::new(0));
    let waiters: Vec<_> = (0..64)
        .map(|_| {
            let runs = Arc::clone(&runs);
            map.join(1, || async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                runs.fetch_add(1, Ordering::SeqCst) + 1
            })
        })
        .collect();
    for waiter in waiters {
        assert_eq!(waiter.await, Some(1));
    }
    assert_eq!(map.join(1, || async { 7 }).await, Some(7), "a finished result is not kept");
}

#[tokio::test]
async fn one_caller_giving_up_does_not_end_the_work_of_the_others() {
    let map = OnceMap::<u8, u8>::default();
    let first = map.join(1, || async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        9
    });
    let second = map.join(1, || async { 0 });
    drop(first);
    assert_eq!(second.await, Some(9));
}

#[tokio::test]
async fn work_nobody_waits_for_ends_and_can_begin_anew() {
    let map = OnceMap::<u8, u8>::default();
    let (done, mut ended) = tokio::sync::oneshot::channel::<()>();
    drop(map.join(1, || async move {
        let _held = done;
        std::future::pending::<()>().await;
        1
    }));
    let ended = tokio::time::timeout(Duration::from_secs(60), &mut ended).await;
    assert!(ended.expect("the abandoned work ends").is_err(), "its future was dropped");
    assert_eq!(map.join(1, || async { 2 }).await, Some(2));
}

#[tokio::test]
async fn those_who_join_a_claim_get_its_result_or_none() {
    let map = OnceMap::<u8, u8>::default();
    let claim = map.claim(1).expect("nobody is at it");
    assert!(map.claim(1).is_none());
    let joined = map.join(1, || async { 0 });
    claim.finish(5);
    assert_eq!(joined.await, Some(5));
    let abandoned = map.claim(1).expect("the last one is over");
    let joined = map.join(1, || async { 0 });
    drop(abandoned);
    assert_eq!(joined.await, None);
    assert_eq!(map.join(1, || async { 6 }).await, Some(6));
}

#[tokio::test]
async fn a_claim_is_handed_over_to_work_that_begins_only_for_those_who_joined() {
    let map = OnceMap::<u8, u8>::default();
    let begun = Arc::new(AtomicUsize::new(0));
    let work = |result| {
        let begun = Arc::clone(&begun);
        async move {
            begun.fetch_add(1, Ordering::SeqCst);
            result
        }
    };
    map.claim(1).expect("nobody is at it").hand_over(work(7));
    tokio::task::yield_now().await;
    assert_eq!((begun.load(Ordering::SeqCst), map.is_empty()), (0, true));
    let claim = map.claim(1).expect("the last one is over");
    let joined = map.join(1, || work(8));
    claim.hand_over(work(9));
    assert_eq!((joined.await, begun.load(Ordering::SeqCst)), (Some(9), 1));
}

#[tokio::test]
async fn work_that_panics_gives_none_and_is_forgotten() {
    let map = OnceMap::<u8, u8>::default();
    assert_eq!(map.join(1, || async { panic!("on purpose") }).await, None);
    assert_eq!(map.join(1, || async { 3 }).await, Some(3));
}

#[test]
fn work_that_a_runtime_refuses_because_it_goes_down_gives_none() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let handle = runtime.handle().clone();
    runtime.shutdown_timeout(Duration::from_secs(60));
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _entered = handle.enter();
        let map = OnceMap::<u8, u8>::default();
        let join = map.join(1, || async { 1 });
        send.send((futures_util::FutureExt::now_or_never(join), map.is_empty()))
    });
    let answer = receive.recv_timeout(Duration::from_secs(60)).expect("nobody waits for himself");
    assert_eq!(answer, (Some(None), true));
}

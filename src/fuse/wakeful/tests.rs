//! Wakefulness on a clock that stands still while anything is at work; a file is the device.

use std::pin::pin;
use std::sync::atomic::AtomicUsize;

use super::*;

const MOMENT: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

struct Scene {
    device: tempfile::NamedTempFile,
    pulse: Arc<Pulse>,
    wakeful: Wakeful,
}

/// A machine on which a start is expected.
fn scene() -> Scene {
    let scene = scene_without_start();
    scene.expect_start();
    scene
}

fn scene_without_start() -> Scene {
    let (device, pulse) = (tempfile::NamedTempFile::new().expect("there is room"), Arc::default());
    let wakeful = Wakeful::new(Arc::clone(&pulse), Handle::current());
    Scene { device, pulse, wakeful }
}

impl Scene {
    fn expect_start(&self) {
        self.wakeful.expect_start_on(Some(MOST), self.device.path());
    }

    /// How many descriptors of this process are open for the device, beside the test's own.
    fn holders(&self) -> usize {
        let device = self.device.path().canonicalize().expect("it is there");
        let open = std::fs::read_dir("/proc/self/fd").expect("proc is mounted").filter_map(Result::ok);
        // Other tests close theirs meanwhile.
        open.filter(|open| std::fs::read_link(open.path()).is_ok_and(|path| path == device)).count() - 1
    }

    /// Has a request come every 10 ms.
    async fn ask_for(&self, time: Duration) {
        let since = Instant::now();
        while since.elapsed() < time {
            self.pulse.beat();
            tokio::time::sleep(10 * MOMENT).await;
        }
    }
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

#[tokio::test(start_paused = true)]
async fn the_device_is_held_while_requests_come_and_let_go_when_it_is_quiet() {
    let scene = scene();
    tokio::time::sleep(HOUR).await;
    assert_eq!((scene.holders(), scene.pulse.held()), (0, Duration::ZERO), "nothing was asked");
    for round in 1..=3 {
        scene.pulse.beat();
        tokio::time::sleep(MOMENT).await;
        assert_eq!(scene.holders(), 1, "by the first request of round {round}");
        assert_eq!(std::fs::read(scene.device.path()).expect("a file"), 0_i32.to_ne_bytes());
        scene.ask_for(Duration::from_secs(1)).await;
        assert_eq!(scene.holders(), 1, "requests come");
        tokio::time::sleep(2 * QUIET).await;
        assert_eq!(scene.holders(), 0, "it is quiet");
        assert!(scene.pulse.held() >= round * Duration::from_secs(1));
        assert!(scene.pulse.held() <= round * (Duration::from_secs(1) + 3 * QUIET));
    }
}

#[tokio::test(start_paused = true)]
async fn when_the_time_is_used_up_it_is_over_until_another_start_is_expected() {
    let scene = scene();
    for round in 1..=2 {
        assert_eq!(tasks(), 1);
        scene.ask_for(BUDGET / 2).await;
        tokio::time::sleep(HOUR).await;
        assert_eq!((scene.holders(), tasks()), (0, 1), "a pause takes nothing");
        scene.ask_for(BUDGET).await;
        assert_eq!((scene.holders(), tasks()), (0, 0));
        assert!(scene.pulse.held() <= round * BUDGET && scene.pulse.held() > round * (BUDGET - 2 * QUIET));
        scene.pulse.beat();
        assert_eq!(scene.pulse.state.load(Ordering::Relaxed), BEATING, "requests cost nothing any more");
        scene.expect_start();
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_expected_during_another_has_the_whole_time_and_the_same_watcher() {
    let scene = scene();
    scene.ask_for(BUDGET * 3 / 4).await;
    scene.expect_start();
    scene.ask_for(BUDGET * 3 / 4).await;
    assert_eq!((scene.holders(), tasks()), (1, 1));
    scene.ask_for(BUDGET * 3 / 4).await;
    assert_eq!((scene.holders(), tasks()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_runs_while_no_request_comes() {
    let scene = scene_without_start();
    scene.pulse.account().left = BUDGET;
    scene.pulse.state.store(RESTING, Ordering::Relaxed);
    let polls = Arc::new(AtomicUsize::new(0));
    let (counter, watching) = (Arc::clone(&polls), Arc::clone(&scene.pulse).watch(scene.device.path().to_owned()));
    tokio::spawn(async move {
        let mut watching = pin!(watching);
        std::future::poll_fn(|context| {
            counter.fetch_add(1, Ordering::Relaxed);
            watching.as_mut().poll(context)
        })
        .await;
    });
    let mut before = 0;
    for _ in 0..3 {
        tokio::time::sleep(2 * QUIET).await;
        let settled = polls.load(Ordering::Relaxed);
        assert!(settled > before, "it is told of requests");
        tokio::time::sleep(HOUR).await;
        assert_eq!(polls.load(Ordering::Relaxed), settled);
        scene.pulse.beat();
        before = settled;
    }
}

#[tokio::test(start_paused = true)]
async fn where_it_would_cost_too_much_or_cannot_be_done_nothing_is_done() {
    let scene = scene_without_start();
    for processors in [Some(MOST + 1), None] {
        scene.wakeful.expect_start_on(processors, scene.device.path());
        scene.pulse.beat();
        tokio::time::sleep(MOMENT).await;
        assert_eq!((scene.holders(), tasks()), (0, 0), "{processors:?}");
    }
    for _ in 0..2 {
        scene.wakeful.expect_start_on(Some(1), Path::new("/no/device"));
        scene.pulse.beat();
        tokio::time::sleep(MOMENT).await;
        assert_eq!((tasks(), scene.pulse.state.load(Ordering::Relaxed)), (0, BEATING));
    }
    assert_eq!(scene.pulse.held(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn it_is_let_go_with_the_connection() {
    for is_held in [false, true] {
        let scene = scene();
        if is_held {
            scene.pulse.beat();
        }
        tokio::time::sleep(MOMENT).await;
        assert_eq!((scene.holders(), tasks()), (usize::from(is_held), 1));
        let Scene { device, pulse, wakeful } = scene;
        drop(wakeful);
        tokio::time::sleep(MOMENT).await;
        let wakeful = Wakeful::new(Arc::clone(&pulse), Handle::current());
        assert_eq!((Scene { device, pulse, wakeful }.holders(), tasks()), (0, 0));
    }
}

#[test]
fn processors_are_counted_from_the_kernels_list() {
    let lists = [("0\n", 1), ("0-1\n", 2), ("0-3,6,8-15\n", 13), ("5", 1)];
    for (list, expected) in lists {
        assert_eq!(count(list), Some(expected), "{list:?}");
    }
    for list in ["", "\n", "0-", "-1", "3-1", "0,,1", "a", "0-18446744073709551615", "18446744073709551616"] {
        assert_eq!(count(list), None, "{list:?}");
    }
    let online = std::fs::read_to_string(ONLINE).expect("sysfs is mounted");
    assert!(count(&online).is_some_and(|count| count > 0), "{online:?}");
}

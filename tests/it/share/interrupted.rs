//! A pusher that is killed: nobody finds a part, and the next one sends only what is still missing.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::json;

use super::{Machine, image, origins, ready};
use crate::support::{DockerRegistry, eventually, temp_dir, wait_for_end};

/// Longest that anything here may take on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// Passes connections on to a server, and of what each sends only so many bytes; the rest is never taken.
struct Stalling {
    addr: String,
    stalled: Arc<AtomicUsize>,
}

impl Stalling {
    fn start(to: &str, after: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let addr = listener.local_addr().expect("a bound socket has an address").to_string();
        let stalled = Arc::new(AtomicUsize::new(0));
        let (to, count) = (to.to_owned(), Arc::clone(&stalled));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(&to).expect("the registry listens");
                pass(client, server, after, Arc::clone(&count));
            }
        });
        Self { addr, stalled }
    }
}

/// The threads end with the connections, which end with the processes at their ends.
fn pass(client: TcpStream, server: TcpStream, after: u64, stalled: Arc<AtomicUsize>) {
    let (mut from_server, mut to_client) =
        (server.try_clone().expect("a descriptor"), client.try_clone().expect("a descriptor"));
    std::thread::spawn(move || io::copy(&mut from_server, &mut to_client));
    std::thread::spawn(move || {
        let mut server = server;
        let passed = io::copy(&mut (&client).take(after), &mut server);
        if passed.is_ok_and(|passed| passed == after) {
            stalled.fetch_add(1, Ordering::Relaxed);
            wait_until_gone(&client);
        }
        server.flush().ok();
    });
}

/// Takes nothing, and returns when the other end is gone.
fn wait_until_gone(client: &TcpStream) {
    let mut byte = [0];
    client.set_nonblocking(true).expect("it can be set");
    loop {
        // What was sent and not taken stays; that the process died shows as a reset.
        match client.peek(&mut byte) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            _ if client.take_error().is_ok_and(|error| error.is_some()) => return,
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// How many blobs the registry has.
fn blobs(registry: &DockerRegistry) -> usize {
    fn count(dir: &Path) -> usize {
        let entries = std::fs::read_dir(dir).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
        entries.iter().map(|entry| if entry.file_name() == "data" { 1 } else { count(&entry.path()) }).sum()
    }
    count(&registry.store().join("data/docker/registry/v2/blobs"))
}

#[test]
fn a_push_whose_daemon_is_killed_is_finished_by_the_next() {
    if !ready() {
        return;
    }
    let Some(registry) = DockerRegistry::start() else { return };
    let layout = temp_dir();
    image().to_layout(layout.path(), "v1");
    registry.push(layout.path(), "v1", "team/app:v1");
    let before = blobs(&registry);
    let proxy = Stalling::start(registry.addr(), 32 << 10);
    let maker = Machine::new();
    let mut push = maker.ocifs.command(["index", "--push", &format!("{}/team/app:v1", proxy.addr)]);
    let mut push = push.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    // The configuration and the index of the small layer are there, and that of the large one is on its way.
    eventually(LONG, "the large blob is on its way", || {
        blobs(&registry) == before + 2 && proxy.stalled.load(Ordering::Relaxed) == 1
    });
    let daemon = maker.ocifs.daemon().expect("it runs");
    kill_process(daemon, Signal::KILL).expect("it is ours");
    wait_for_end(daemon);
    assert!(!push.wait().expect("it ends").success(), "it is not told that all is well");

    let reference = format!("{}/team/app:v1", registry.addr());
    assert_eq!(maker.ocifs.json(["index", "list", "--json", &reference]), json!([]), "nobody finds a part");
    let made = maker.push(&reference);
    assert_eq!((&made["pushed"]["existed"], &made["pushed"]["sent"]), (&json!(2), &json!(1)), "{made}");
    assert!(made["layers"].as_array().expect("layers").iter().all(|layer| layer["was_streamed"] == false), "{made}");
    assert_eq!(origins(&Machine::new().mount(&[], &reference)), ["shared"; 2]);
}

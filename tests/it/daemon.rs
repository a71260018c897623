//! The daemon as a process: who may speak to it, what ends it and what does not, what it takes from who starts it, and
//! what is told of one that is gone.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::set_thread_res_uid;

use crate::support::{
    Image, Layer, Mount, Ocifs, eventually, has_ended, require, require_fuse, require_root, run, temp_dir,
};

const NOBODY: u32 = 65534;

/// Longest that something is waited for.
const MINUTE: Duration = Duration::from_secs(60);

/// An installation with a small image in the layout `image`.
struct Bench {
    ocifs: Ocifs,
    point: Mount,
}

impl Bench {
    /// None, loudly, where nothing can be mounted.
    fn new() -> Option<Self> {
        if !require_fuse() || !require_root() {
            return None;
        }
        let ocifs = Ocifs::new();
        Image::new().layer(Layer::new().file("hello", "hello\n")).to_layout(&ocifs.home().join("image"), "1.0");
        Some(Self { point: ocifs.mount_point("m"), ocifs })
    }

    fn reference(&self) -> String {
        format!("oci:{}:1.0", self.ocifs.home().join("image").display())
    }

    fn dir(&self) -> &str {
        self.point.path().to_str().expect("a plain path")
    }

    /// Starts a daemon in the foreground and waits until it has mounted.
    fn in_foreground(&self, stderr: impl Into<Stdio>) -> Child {
        let args = ["mount", "--foreground", &self.reference(), self.dir()];
        let mut command = self.ocifs.command(args);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().expect("it runs");
        eventually(MINUTE, "it is mounted", || {
            let ended = child.try_wait().expect("it is ours");
            assert!(ended.is_none(), "it does not mount: {ended:?}");
            self.point.is_mounted()
        });
        self.assert_served();
        // It answers once the mount is made: a signal before that interrupts the command.
        assert_eq!(self.ocifs.run(["list"]).code(), 0);
        child
    }

    #[track_caller]
    fn assert_served(&self) {
        assert_eq!(fs::read(self.point.path().join("hello")).expect("it is served"), b"hello\n");
    }

    fn socket(&self) -> PathBuf {
        let files =
            fs::read_dir(self.ocifs.runtime()).expect("a daemon runs").map(|entry| entry.expect("a name").path());
        files.into_iter().find(|path| path.extension().is_some_and(|end| end == "sock")).expect("a socket")
    }
}

fn signal(pid: Pid, signal: Signal) {
    kill_process(pid, signal).expect("it is there");
}

/// What a daemon answers to a question.
fn asked(socket: &Path) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).expect("nothing is in the way");
    // Who is refused may be told so by a closed connection at any time.
    stream.write_all(b"{\"request\":\"list\"}\n").ok();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok();
    answer
}

#[test]
fn only_its_user_is_heard_by_a_daemon_whatever_the_permissions_of_its_socket() {
    if !require_root() {
        return;
    }
    let ocifs = Ocifs::new();
    ocifs.run(["cache", "du"]).ok();
    let bench = Bench { point: ocifs.mount_point("m"), ocifs };
    let socket = bench.socket();
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&socket), mode(&bench.ocifs.runtime())), (0o600, 0o700));
    for (path, mode) in [(bench.ocifs.home(), 0o711), (&bench.ocifs.runtime(), 0o755), (&socket, 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    }
    assert!(asked(&socket).starts_with(b"{\"event\":\"done\""), "its user is heard");
    let path = socket.clone();
    // In Linux a thread has a user of its own.
    let other = std::thread::spawn(move || {
        let nobody = Some(rustix::process::Uid::from_raw(NOBODY));
        set_thread_res_uid(nobody, nobody, nobody).expect("root may");
        asked(&path)
    });
    assert_eq!(other.join().expect("it can connect"), b"", "another user is not");
}

#[test]
fn a_runtime_directory_that_others_may_write_to_is_refused() {
    let ocifs = Ocifs::new();
    fs::create_dir(ocifs.runtime()).expect("a directory");
    fs::set_permissions(ocifs.runtime(), fs::Permissions::from_mode(0o777)).expect("it is ours");
    for command in [&["cache", "du"][..], &["list"]] {
        let ran = ocifs.run(command);
        assert_eq!(ran.code(), 4, "{}", ran.stderr);
        assert!(ran.stderr.contains("\ncause: it must be a directory of this user that nobody else may write to\n"));
    }
}

#[test]
fn signals_that_do_not_mean_the_end_leave_the_mounts_of_a_daemon() {
    let Some(bench) = Bench::new() else { return };
    bench.ocifs.mount(&bench.reference(), &bench.point);
    let daemon = bench.ocifs.daemon().expect("it runs");
    for harmless in [Signal::HUP, Signal::USR1, Signal::USR2] {
        signal(daemon, harmless);
    }
    std::thread::sleep(Duration::from_millis(200));
    bench.assert_served();
    signal(daemon, Signal::QUIT);
    eventually(MINUTE, "it ends", || has_ended(daemon));
    assert!(!bench.point.is_mounted(), "it unmounts before it ends");
}

#[test]
fn a_daemon_in_the_foreground_ends_in_order_when_its_terminal_is_closed() {
    let Some(bench) = Bench::new() else { return };
    for ending in [Signal::HUP, Signal::QUIT] {
        let mut child = bench.in_foreground(Stdio::null());
        signal(Pid::from_child(&child), ending);
        assert!(child.wait().expect("it ends").success(), "{ending:?}");
        assert!(!bench.point.is_mounted(), "{ending:?}");
    }
    // As nohup(1) starts it.
    let script = "trap '' HUP; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_ocifs"), "mount", "--foreground"]);
    command.args([&bench.reference(), bench.dir()]).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("HOME", bench.ocifs.home()).env("OCIFS_CACHE_DIR", bench.ocifs.cache());
    let mut child = command.env("OCIFS_RUNTIME_DIR", bench.ocifs.runtime()).spawn().expect("it runs");
    eventually(MINUTE, "it is mounted", || bench.point.is_mounted());
    assert_eq!(bench.ocifs.run(["list"]).code(), 0);
    signal(Pid::from_child(&child), Signal::HUP);
    std::thread::sleep(Duration::from_millis(200));
    bench.assert_served();
    signal(Pid::from_child(&child), Signal::TERM);
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn who_ends_it_while_it_mounts_leaves_no_mount_that_nobody_knows() {
    let Some(bench) = Bench::new() else { return };
    let seen = |child: &mut Child| {
        while !bench.point.is_mounted() && child.try_wait().expect("it is ours").is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
    };
    let reference = bench.reference();
    let start = |options: &[&str]| {
        let all = [&["mount", "--profile-until=0"], options, &[&reference, bench.dir()]].concat();
        let mut command = bench.ocifs.command(all);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs")
    };
    for ending in [Signal::TERM, Signal::HUP].into_iter().cycle().take(20) {
        let mut child = start(&["--foreground"]);
        seen(&mut child);
        signal(Pid::from_child(&child), ending);
        let code = child.wait().expect("it ends").code();
        assert!(matches!(code, Some(0 | 130)), "{ending:?}: {code:?}");
        assert!(!bench.point.is_mounted(), "{ending:?}, {code:?}");
    }
    for _ in 0..20 {
        let mut child = start(&[]);
        seen(&mut child);
        // Until it is waited for, its number is nobody else's.
        if child.try_wait().expect("it is ours").is_none() {
            signal(Pid::from_child(&child), Signal::INT);
        }
        child.wait().expect("it ends");
        // It was too late to interrupt it, or there is none in the end.
        eventually(MINUTE, "the daemon knows of it", || {
            let listed = bench.ocifs.json(["list", "--json"]).as_array().is_some_and(|mounts| !mounts.is_empty());
            listed == bench.point.is_mounted()
        });
        // A daemon that learns only now that it was interrupted takes the mount back itself: then it is none of its own.
        eventually(MINUTE, "there is none", || {
            if bench.point.is_mounted() {
                let ran = bench.ocifs.run([OsStr::new("umount"), bench.point.path().as_ref()]);
                let expected = [" is not a mount of this daemon", " is in use by "];
                assert!(ran.code() == 0 || expected.iter().any(|&it| ran.stderr.contains(it)), "{}", ran.stderr);
            }
            !bench.point.is_mounted()
        });
    }
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let Some(bench) = Bench::new() else { return };
    let full = fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let mut child = bench.in_foreground(full);
    signal(Pid::from_child(&child), Signal::TERM);
    assert!(child.wait().expect("it ends").success());
    assert!(!bench.point.is_mounted());
}

#[test]
fn a_daemon_keeps_no_lock_of_who_started_it() {
    if !require(&["flock"]) {
        return;
    }
    let ocifs = Ocifs::new();
    let lock = ocifs.home().join("lock");
    let mut command = ocifs.command(["cache", "du"]);
    let program = command.get_program().to_owned();
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 9>\"$0\" && flock -n 9 && \"$@\""]).arg(&lock).arg(program).args(["cache", "du"]);
    let set = command.env("LC_ALL", "C").get_envs().filter_map(|(name, value)| Some((name, value?)));
    run(shell.env_clear().envs(set)).ok();
    assert!(ocifs.daemon().is_some(), "the daemon stays a while");
    run(Command::new("flock").arg("-n").arg(&lock).arg("true")).ok();
}

#[test]
fn a_cache_directory_that_is_removed_under_its_daemon_is_made_anew_and_told_of() {
    let Some(bench) = Bench::new() else { return };
    bench.ocifs.mount(&bench.reference(), &bench.point);
    let mut removed = 0;
    let mut remove = || {
        removed += 1;
        // At once, so that nothing is made in it meanwhile.
        fs::rename(bench.ocifs.cache(), bench.ocifs.home().join(format!("removed-{removed}"))).expect("its user may");
    };
    remove();
    let other = bench.ocifs.mount_point("other");
    bench.ocifs.run(["mount", &bench.reference(), other.path().to_str().expect("a plain path")]).ok();
    bench.assert_served();
    let du = bench.ocifs.run(["cache", "du"]).ok();
    assert!(du.stderr.is_empty(), "once is enough: {}", du.stderr);
    let indexes = fs::read_dir(bench.ocifs.cache().join("indexes")).expect("it is there again").count();
    assert_eq!(indexes, 1, "what is made is kept: {}", du.stdout);
    let warning = format!("warning: {} was removed while its daemon ran; ", bench.ocifs.cache().display());
    eventually(
        MINUTE,
        "whoever asks for something is told, unless the daemon has found it out by itself just before",
        || {
            remove();
            bench.ocifs.run(["cache", "du"]).ok().stderr.starts_with(&warning)
        },
    );
    remove();
    eventually(MINUTE, "it is there for the mounts if nobody asks", || bench.ocifs.cache().join("version").exists());
}

#[test]
fn a_daemon_whose_runtime_directory_is_removed_can_be_reached_again() {
    let Some(bench) = Bench::new() else { return };
    bench.ocifs.mount(&bench.reference(), &bench.point);
    fs::remove_dir_all(bench.ocifs.runtime()).expect("its user may");
    eventually(MINUTE, "its socket is there again", || bench.ocifs.daemon().is_some());
    bench.ocifs.umount(&bench.point);
}

#[test]
fn a_mount_in_the_foreground_takes_the_place_of_a_daemon_that_has_nothing_to_do() {
    let Some(bench) = Bench::new() else { return };
    bench.ocifs.run(["cache", "du"]).ok();
    let idle = bench.ocifs.daemon().expect("it stays a while");
    let mut child = bench.in_foreground(Stdio::inherit());
    eventually(MINUTE, "the idle one ends", || has_ended(idle));
    let other = bench.ocifs.mount_point("other");
    let args = ["mount", "--foreground", &bench.reference(), other.path().to_str().expect("a plain path")];
    let refused = bench.ocifs.run(args);
    assert_eq!(refused.code(), 9, "one that serves a mount stays: {}", refused.stderr);
    signal(Pid::from_child(&child), Signal::TERM);
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn what_is_mounted_below_a_mount_is_named_when_it_cannot_be_ended() {
    let Some(bench) = Bench::new() else { return };
    bench.ocifs.mount(&bench.reference(), &bench.point);
    let below = bench.point.path().join("hello");
    rustix::mount::mount_bind("/dev/null", &below).expect("root may");
    let ran = bench.ocifs.run(["umount", bench.dir()]);
    rustix::mount::unmount(&below, rustix::mount::UnmountFlags::empty()).expect("it is ours");
    let error = format!("error: {} is in use by the mount {}\n", bench.dir(), below.display());
    assert!(ran.code() == 8 && ran.stderr.starts_with(&error), "{}", ran.stderr);
}

#[test]
fn who_has_taken_a_mount_point_is_told_with_advice_that_helps() {
    let Some(bench) = Bench::new() else { return };
    let taken = bench.ocifs.mount_point("taken");
    rustix::mount::mount("none", taken.path(), "tmpfs", rustix::mount::MountFlags::empty(), None).expect("root may");
    let args = ["mount", &bench.reference(), taken.path().to_str().expect("a plain path")];
    let ran = bench.ocifs.run(args);
    let end = "\ncause: a file system of type tmpfs is mounted there\nhint: use another directory\n";
    assert!(ran.code() == 7 && ran.stderr.ends_with(end), "{}", ran.stderr);

    bench.ocifs.mount(&bench.reference(), &bench.point);
    let ran = bench.ocifs.run(["mount", &bench.reference(), bench.dir()]);
    assert!(ran.code() == 7 && ran.stderr.contains("`ocifs status "), "{}", ran.stderr);
    let other = Ocifs::new();
    let ran = other.run(["mount", &bench.reference(), bench.dir()]);
    let cause = "\ncause: a daemon of another cache directory has mounted an image there\n";
    assert!(ran.code() == 7 && ran.stderr.contains(cause), "{}", ran.stderr);
}

#[test]
fn mounts_whose_daemon_was_killed_are_told_of() {
    let Some(bench) = Bench::new() else { return };
    bench.ocifs.mount(&bench.reference(), &bench.point);
    let daemon = bench.ocifs.daemon().expect("it runs");
    signal(daemon, Signal::KILL);
    eventually(MINUTE, "it ends", || has_ended(daemon));
    for command in ["list", "status"] {
        let warning = format!("warning: the daemon of the mount {} is gone, ", bench.dir());
        // It waits a second for the daemons of others, and says nothing of mounts that it has not looked at by then.
        eventually(MINUTE, &warning, || bench.ocifs.run([command]).ok().stderr.contains(&warning));
    }
    bench.ocifs.umount(&bench.point);
    assert!(!bench.ocifs.run(["list"]).ok().stderr.contains(bench.dir()));
}

#[test]
fn a_daemon_that_does_not_answer_is_not_waited_for_without_an_end() {
    let ocifs = Ocifs::new();
    ocifs.run(["cache", "du"]).ok();
    let daemon = ocifs.daemon().expect("it runs");
    signal(daemon, Signal::STOP);
    let ran = ocifs.run(["list"]);
    signal(daemon, Signal::CONT);
    assert!(ran.code() == 1 && ran.stderr.contains("the daemon has not answered for 10 seconds"), "{}", ran.stderr);
    assert!(ran.stderr.contains("\nhint: it may have been stopped; its log is "), "{}", ran.stderr);
}

#[test]
fn a_daemon_that_does_not_begin_what_takes_its_time_is_told_of_and_waited_for() {
    let ocifs = Ocifs::new();
    ocifs.run(["cache", "du"]).ok();
    let daemon = ocifs.daemon().expect("it runs");
    signal(daemon, Signal::STOP);
    let mut command = ocifs.command(["cache", "du"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it runs");
    let mut told = String::new();
    let read = BufReader::new(child.stderr.take().expect("a pipe")).read_line(&mut told);
    signal(daemon, Signal::CONT);
    read.expect("text");
    assert!(told.starts_with("warning: the daemon has not answered for 10 seconds; "), "{told}");
    assert!(child.wait().expect("it ends").success(), "it is served when the daemon goes on");
}

#[test]
fn who_stands_in_a_mount_can_end_it_unless_others_do_as_well() {
    let Some(bench) = Bench::new() else { return };
    bench.ocifs.mount(&bench.reference(), &bench.point);
    run(bench.ocifs.command(["umount", "."]).current_dir(bench.point.path())).ok();
    assert!(!bench.point.is_mounted());
}

#[test]
fn a_demo_that_is_ended_while_it_waits_leaves_nothing_behind() {
    if !require_fuse() || !require_root() || !require(&["script"]) {
        return;
    }
    for ending in [Signal::TERM, Signal::HUP] {
        let (ocifs, temporary) = (Ocifs::new(), temp_dir());
        let program = ocifs.command(["demo"]).get_program().to_owned();
        // Its standard input stays open, so that the demo waits.
        let mut terminal = Command::new("script")
            .args(["-q", "-e", "-c", &format!("exec {} demo", program.display()), "/dev/null"])
            .env("TMPDIR", temporary.path())
            .env("HOME", ocifs.home())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it runs");
        let mut out = terminal.stdout.take().expect("a pipe");
        let mut told = Vec::new();
        let mut piece = [0; 4096];
        while !told.windows(11).any(|window| window == b"press Enter") {
            let count = out.read(&mut piece).expect("text");
            assert!(count > 0, "it ends early: {}", String::from_utf8_lossy(&told));
            told.extend_from_slice(&piece[..count]);
        }
        let base = fs::read_dir(temporary.path()).expect("a directory").next().expect("its own").expect("a name");
        let name = base.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix("ocifs-demo-").and_then(|number| number.parse().ok());
        signal(number.and_then(Pid::from_raw).expect("a process number"), ending);
        drop(std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink())));
        eventually(MINUTE, "the directory of the demo is gone", || !base.path().exists());
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("there is a /proc");
        assert!(!mounts.contains(&name), "it is mounted: {mounts}");
        drop(terminal.stdin.take());
        terminal.wait().expect("it ends");
    }
}

#[test]
fn a_demo_whose_reader_has_read_enough_ends_without_a_complaint() {
    if !require_fuse() || !require_root() {
        return;
    }
    let (ocifs, temporary) = (Ocifs::new(), temp_dir());
    let mut command = ocifs.command(["demo"]);
    command.env("TMPDIR", temporary.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    let mut line = String::new();
    // The reader, and with it the pipe, is gone after one line.
    BufReader::with_capacity(1, child.stdout.take().expect("a pipe")).read_line(&mut line).expect("text");
    let output = child.wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.is_empty(), "{}: {told}", output.status);
    assert_eq!(fs::read_dir(temporary.path()).expect("a directory").count(), 0, "it leaves nothing behind");
}

#[test]
fn a_demo_that_has_no_place_for_its_socket_says_where_it_would_have_one() {
    let (ocifs, temporary) = (Ocifs::new(), temp_dir());
    let long = temporary.path().join("x".repeat(90));
    fs::create_dir(&long).expect("a directory");
    let ran = run(ocifs.command(["demo"]).env("TMPDIR", &long));
    assert!(ran.stderr.ends_with("\nhint: set TMPDIR to a directory with a shorter path\n"), "{}", ran.stderr);
    assert_eq!((ran.code(), fs::read_dir(&long).expect("a directory").count()), (2, 0));
}

//! Noticing that somebody was killed who waits for one request.
//!
//! Who reads through the kernel's pages waits for a page, and can be killed at any time. Who reads with O_DIRECT waits for
//! the request itself, and once that was handed out the kernel has even a killed process wait until it is answered
//! (`request_wait_answer` in fs/fuse/dev.c): in an outage, for as long as the mount says. The kernel would tell of it by
//! FUSE_INTERRUPT, but the FUSE crate (fuser 0.18) answers that by itself with ENOSYS, and after that it is told no more. So
//! the kernel is asked: the signal that ends a thread is pending until the thread has left the system call.

use std::io;
use std::time::Duration;

use fuser::OpenFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// How often the kernel is asked.
const LOOK: Duration = Duration::from_millis(500);

/// SIGKILL in a mask of signals. Any signal that ends a process is made into it, for each of its threads.
const KILL: u64 = 1 << 8;

/// The thread that waits for the answer to its own read, if it does: `thread` has asked, for a file that it has opened with
/// `flags`.
pub(super) fn waiting(thread: u32, flags: OpenFlags) -> Option<u32> {
    let is_direct = OFlags::from_bits_retain(flags.0.cast_unsigned()).contains(OFlags::DIRECT);
    // One of another PID namespace has no number here.
    (is_direct && thread != 0).then_some(thread)
}

/// Returns once nobody waits for an answer any more because `thread` was killed; never without one, and never if it cannot
/// be seen.
pub(super) async fn killed(thread: Option<u32>) {
    let Some(thread) = thread else { return std::future::pending().await };
    let mut watched = Watched { thread, process: None };
    loop {
        tokio::time::sleep(LOOK).await;
        match watched.look().await {
            Sight::Waits => {}
            Sight::Killed => return,
            Sight::Hidden => return std::future::pending().await,
        }
    }
}

/// A thread that is looked at in /proc.
#[derive(Debug)]
struct Watched {
    thread: u32,
    /// The process that the thread belongs to, once it was seen. Until then a thread that is not in /proc may live: of another
    /// user (`hidepid`, proc(5)), or in a PID namespace that this /proc does not show.
    process: Option<u32>,
}

/// What was seen of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    Waits,
    Killed,
    Hidden,
}

impl Watched {
    async fn look(&mut self) -> Sight {
        match tokio::fs::read(format!("/proc/{}/status", self.thread)).await {
            Ok(status) if is_killed(&status) => Sight::Killed,
            Ok(status) => {
                self.process = field(&status, b"Tgid:").and_then(|process| process.parse().ok());
                Sight::Waits
            }
            Err(error) if is_gone(&error) => match self.process {
                // A thread may end before what it has asked for is there (io_submit(2)): its process waits for that.
                Some(process) if process != self.thread => {
                    self.thread = process;
                    Sight::Waits
                }
                Some(_) => Sight::Killed,
                None => Sight::Hidden,
            },
            Err(error) => {
                tracing::debug!(thread = self.thread, %error, "whether it was killed cannot be seen");
                Sight::Hidden
            }
        }
    }
}

/// True if a file of /proc is not there; one that was open by then says ESRCH.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// True if a thread with this `status` (proc_pid_status(5)) is about to end.
fn is_killed(status: &[u8]) -> bool {
    let pending = field(status, b"SigPnd:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    pending.is_some_and(|mask| mask & KILL != 0)
}

/// What a `status` has after `name`.
fn field<'a>(status: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let found = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name));
    found.and_then(|value| std::str::from_utf8(value).ok()).map(str::trim)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_pending_kill_is_read_from_the_status() {
        let status = |mask: &str| format!("Name:\tdd\nThreads:\t1\nSigPnd:\t{mask}\nShdPnd:\t0000000000000100\n");
        assert!(is_killed(status("0000000000000100").as_bytes()) && is_killed(status("0000000000004100").as_bytes()));
        assert!(!is_killed(status("0000000000004000").as_bytes()) && !is_killed(b"") && !is_killed(b"SigPnd:\tx\n"));
        assert!(!is_killed(&std::fs::read("/proc/thread-self/status").expect("proc is mounted")));
    }

    #[tokio::test]
    async fn only_who_reads_directly_and_can_be_seen_is_looked_after() {
        let direct = OpenFlags(OFlags::DIRECT.bits().cast_signed());
        assert_eq!((waiting(7, direct), waiting(0, direct), waiting(7, OpenFlags(0))), (Some(7), None, None));
        assert_eq!(killed(None).now_or_never(), None);
        let own = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        assert!(tokio::time::timeout(3 * LOOK, killed(Some(own))).await.is_err(), "this one lives");
        // No number of a process is as high (proc_sys_kernel(5), pid_max).
        assert!(tokio::time::timeout(3 * LOOK, killed(Some(1 << 30))).await.is_err(), "it may be one that is hidden");
    }

    #[tokio::test]
    async fn a_thread_that_was_seen_and_is_gone_waits_as_long_as_its_process() {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid()).expect("somebody listens");
            ended.recv().expect_err("nothing is sent");
        });
        let number = told.recv().expect("it is told").as_raw_nonzero().get().cast_unsigned();
        let mut watched = Watched { thread: number, process: None };
        assert_eq!((watched.look().await, watched.process), (Sight::Waits, Some(std::process::id())));
        drop(end);
        thread.join().expect("it ends well");
        // It is in /proc for another moment.
        while watched.thread == number {
            assert_eq!(watched.look().await, Sight::Waits);
        }
        assert_eq!((watched.thread, watched.look().await), (std::process::id(), Sight::Waits));
    }

    #[tokio::test]
    async fn a_process_that_was_seen_and_is_gone_waits_for_nothing() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().expect("sleep runs");
        let mut watched = Watched { thread: child.id(), process: None };
        assert_eq!(watched.look().await, Sight::Waits);
        child.kill().and_then(|()| child.wait()).expect("it ends");
        assert_eq!(watched.look().await, Sight::Killed);
        assert_eq!(Watched { thread: child.id(), process: None }.look().await, Sight::Hidden);
    }
}

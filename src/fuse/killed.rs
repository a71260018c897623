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

/// Returns once nobody waits for an answer any more because `thread` was killed; never without one.
pub(super) async fn killed(thread: Option<u32>) {
    let Some(thread) = thread else { return std::future::pending().await };
    let path = format!("/proc/{thread}/status");
    loop {
        tokio::time::sleep(LOOK).await;
        match tokio::fs::read(&path).await {
            Ok(status) if is_killed(&status) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                tracing::debug!(thread, %error, "whether it was killed cannot be seen");
                return std::future::pending().await;
            }
        }
    }
}

/// True if a thread with this `status` (proc_pid_status(5)) is about to end.
fn is_killed(status: &[u8]) -> bool {
    let pending = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"SigPnd:"));
    let pending = pending.and_then(|mask| std::str::from_utf8(mask).ok());
    pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & KILL != 0)
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
        tokio::time::timeout(6 * LOOK, killed(Some(1 << 30))).await.expect("a thread that is gone waits for nothing");
    }
}

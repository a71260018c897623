//! Letting go of what blocks, where blocking is allowed.
//!
//! The last mount of a connection ends when its descriptor is closed, and the kernel waits for much then. A file that
//! has no name any more gives its room on the disk back when it is closed. Both are held by values that tasks of the runtime
//! share, so that any of them may be the last to let go: on one of the few threads that answer everybody's reads.

use std::ops::Deref;

use tokio::runtime::Handle;

/// A value that is dropped on a thread which may block. Made and dropped in the context of a runtime; outside of one it is
/// dropped at once.
#[derive(Debug)]
pub struct Elsewhere<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Elsewhere<T> {
    /// Takes care of `value`.
    pub fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T: Send + 'static> Deref for Elsewhere<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is only taken out when this is dropped")
    }
}

impl<T: Send + 'static> Drop for Elsewhere<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        if let Ok(runtime) = Handle::try_current() {
            // A runtime that is going down drops it here and now, and nobody waits for this thread any more.
            drop(runtime.spawn_blocking(move || drop(value)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use super::*;

    /// Its end takes until somebody allows it; tells whether that happened.
    struct Slow(Receiver<()>, Sender<bool>);

    impl Drop for Slow {
        fn drop(&mut self) {
            let allowed = self.0.recv_timeout(Duration::from_secs(60)).is_ok();
            self.1.send(allowed).expect("somebody listens");
        }
    }

    fn slow() -> (Elsewhere<Slow>, Sender<()>, Receiver<bool>) {
        let ((allow, allowed), (tell, told)) = (channel(), channel());
        (Elsewhere::new(Slow(allowed, tell)), allow, told)
    }

    #[tokio::test]
    async fn the_thread_that_lets_go_goes_on() {
        let (slow, allow, told) = slow();
        drop(slow);
        allow.send(()).expect("it is waiting");
        let told = tokio::task::spawn_blocking(move || told.recv()).await.expect("it does not panic");
        assert_eq!(told, Ok(true));
    }

    #[test]
    fn without_a_runtime_it_is_dropped_at_once() {
        let (slow, allow, told) = slow();
        allow.send(()).expect("it is there");
        drop(slow);
        assert_eq!(told.try_recv(), Ok(true));
    }
}

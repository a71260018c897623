//! What [`OnceMap`](super::OnceMap) is made of: the locks of the standard library, the tasks of tokio.
//!
//! Its file is compiled twice: here, and in the tests with shuttle's counterparts of these names, which try one schedule
//! after the other.

pub(super) use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

pub(super) use tokio::spawn;
pub(super) use tokio::sync::watch;
pub(super) use tokio::task::AbortHandle;

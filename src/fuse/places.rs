//! Noticing that a mount is gone.
//!
//! Anybody with the right may unmount, and the kernel tells a file system only when its last mount ends. So whoever has
//! one file system mounted in several directories, or keeps it for the next mount, has to look at the kernel's table,
//! which says by poll(2) when it changed (proc(5), `/proc/pid/mountinfo`).

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::kernel::{self, MountPoint};

/// The mounts of this process that are in the kernel's table. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Protects the list; never held while the table is read.
    list: Arc<Mutex<List>>,
}

#[derive(Debug, Default)]
struct List {
    places: Vec<Place>,
    /// How many were ever taken in.
    entered: u64,
}

#[derive(Debug)]
struct Place {
    number: u64,
    key: Key,
    gone: watch::Sender<bool>,
}

/// What tells a mount in the table: its number, and its device, since numbers are used again.
type Key = (u64, String);

impl Places {
    /// Looks at the table whenever it changes. Runs for ever, in a runtime with I/O.
    pub async fn watch(&self) {
        if let Err(error) = self.follow().await {
            tracing::warn!(%error, "mounts that others end are noticed late");
            std::future::pending::<()>().await;
        }
    }

    async fn follow(&self) -> io::Result<()> {
        let table = File::open(kernel::TABLE)?;
        // SAFETY: the file owns its descriptor, and is owned by the registration from here on.
        let table = unsafe { AsyncFd::register_with_interest(table, Interest::PRIORITY) }.map_err(io::Error::from)?;
        loop {
            let mut changed = table.ready(Interest::PRIORITY).await?;
            changed.clear_ready();
            self.look();
        }
    }

    /// Takes in a mount that is in the table now. The answer becomes true when it is not any more.
    pub(super) fn enter(&self, point: &MountPoint) -> watch::Receiver<bool> {
        let key = (point.id, point.device.clone());
        let (gone, receiver) = watch::channel(false);
        let mut list = self.lock();
        // Its number is free again, so whoever had it is gone.
        let before: Vec<_> = list.places.extract_if(.., |place| place.key == key).collect();
        list.entered += 1;
        let number = list.entered;
        list.places.push(Place { number, key, gone });
        drop(list);
        tell(before);
        receiver
    }

    /// Looks at the table now.
    pub(super) fn look(&self) {
        // What is entered while the table is read may not be in what was read.
        let last = {
            let list = self.lock();
            if list.places.is_empty() {
                return;
            }
            list.entered
        };
        let table = match std::fs::read(kernel::TABLE) {
            Ok(table) => table,
            Err(error) => return tracing::warn!(%error, "the mount table cannot be read"),
        };
        let there: HashSet<Key> = kernel::parse(&table).map(|point| (point.id, point.device)).collect();
        let is_gone = |place: &mut Place| place.number <= last && !there.contains(&place.key);
        let gone: Vec<_> = self.lock().places.extract_if(.., is_gone).collect();
        tell(gone);
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(gone: Vec<Place>) {
    for place in gone {
        place.gone.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mount that every process has.
    fn real() -> MountPoint {
        let table = std::fs::read(kernel::TABLE).expect("proc is mounted");
        kernel::parse(&table).next().expect("there is a root")
    }

    #[test]
    fn what_is_not_in_the_table_is_gone_and_what_is_stays() {
        let (places, real) = (Places::default(), real());
        let stays = places.enter(&real);
        let goes = places.enter(&MountPoint { device: "999:999".to_owned(), ..real });
        assert!(!*stays.borrow() && !*goes.borrow());
        places.look();
        assert!(!*stays.borrow() && *goes.borrow());
        assert_eq!(places.lock().places.len(), 1, "it is not looked for again");
    }

    #[test]
    fn a_mount_whose_number_another_has_is_gone() {
        let (places, real) = (Places::default(), real());
        let first = places.enter(&real);
        let second = places.enter(&real);
        assert!(*first.borrow() && !*second.borrow());
    }
}

//! Making a mount: look before anything is fetched, open the image, attach it to the kernel.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::control::{self, Event, Fill};
use super::events::{open_image, send, warn_of};
use super::failure::no_device;
use super::fill::Filling;
use super::mounts::{Counts, Mounted, Mounts, Reservation};
use super::profiles::Profiling;
use super::query::request_of;
use super::served::{self, Served};
use super::{Code, Failure, lacking};
use crate::fetch::{OnOutage, Urgency};
use crate::fs::{FileSystem, Ino};
use crate::fuse::{self, Access, Elsewhere};
use crate::image::{Image, Images};

/// Mounts an image, telling its progress to `events`. Dropping the future leaves nothing behind but cached bytes.
pub(super) async fn mount(
    images: &Images,
    mounts: &Arc<Mounts>,
    wanted: control::Mount,
    events: &tokio::sync::mpsc::Sender<Event>,
) -> Result<control::MountReport, Failure> {
    let request = request_of(&wanted.image)?;
    let dir = wanted.dir.clone();
    let Some(reservation) = mounts.reserve(&dir) else {
        return Err(taken(&dir));
    };
    let looked = tokio::task::spawn_blocking(move || check_mount_point(&dir));
    looked.await.map_err(|_| interrupted())??;

    let image = open_image(images, &request, events).await;
    let image =
        image.map_err(|error| Failure::from(&error).about(format!("cannot mount {}", wanted.image.reference)))?;
    warn_of(&image.resolved.warnings, events).await;
    if (wanted.image.offline || image.resolved.is_remembered)
        && let Some(text) = lacking::warning(&image, wanted.image.offline, wanted.on_outage)
    {
        send(events, Event::Warning { text }).await;
    }
    if let Some(text) = unkept(images, &image).await? {
        send(events, Event::Warning { text }).await;
    }
    if let Some(text) = control::other_cache_size(images.store().limits().max_bytes, wanted.cache_size) {
        send(events, Event::Warning { text }).await;
    }
    let (asked, made) = oneshot::channel();
    tokio::spawn(enter(images.clone(), Arc::clone(mounts), reservation, wanted, image, asked));
    let mounted = made.await.map_err(|_| interrupted())??;
    let io = mounted.served.connection.io();
    if io.degraded {
        send(events, Event::Warning { text: format!("files are not read by passthrough: {}", io.reason) }).await;
    }
    Ok(super::report::mount(&mounted))
}

/// Makes the mount and enters it in the table; ends it if whoever `asked` has gone away meanwhile.
///
/// A task of its own, which nobody cancels: a mount that is dropped halfway would stay, and nobody would know of it.
async fn enter(
    images: Images,
    mounts: Arc<Mounts>,
    reservation: Reservation,
    wanted: control::Mount,
    image: Image,
    asked: oneshot::Sender<Result<Arc<Mounted>, Failure>>,
) {
    let Some(_entering) = mounts.enter() else { return };
    let made = attach(&images, &mounts, wanted, image).await;
    if let Ok(mounted) = &made {
        reservation.fill(Arc::clone(mounted));
    }
    if let Err(Ok(mounted)) = asked.send(made) {
        tracing::info!(dir = %mounted.request.dir.display(), "ending a mount that nobody waits for any more");
        if let Err(failure) = unmount(&mounted, true).await {
            tracing::error!(%failure, "a mount stays behind");
        }
    }
}

/// Ends a mount, and what it records.
pub(super) async fn unmount(mounted: &Arc<Mounted>, lazy: bool) -> Result<(), Failure> {
    let inner = Arc::clone(mounted);
    let ended = tokio::task::spawn_blocking(move || inner.mount.unmount(lazy)).await;
    ended.map_err(|_| interrupted())?.map_err(|error| Failure::from(&error))?;
    // A client that was told so finds the profile.
    mounted.profiling.end().await;
    Ok(())
}

/// What to tell of an image whose indexes could not be kept.
async fn unkept(images: &Images, image: &Image) -> Result<Option<String>, Failure> {
    let (store, streamed) = (Arc::clone(images.store()), lacking::streamed(image));
    tokio::task::spawn_blocking(move || lacking::unkept(&streamed, &store)).await.map_err(|_| interrupted())
}

/// A mount that the kernel has, before anything runs beside it.
struct Attached {
    mount: fuse::Mount,
    served: Arc<Elsewhere<Served>>,
    using: served::Use,
    profiling: Arc<Profiling>,
    /// None for the first mount of what serves it.
    before: Option<Counts>,
}

/// Joins the image with the kernel and starts what runs beside it.
async fn attach(
    images: &Images,
    mounts: &Arc<Mounts>,
    wanted: control::Mount,
    mut image: Image,
) -> Result<Arc<Mounted>, Failure> {
    let key = served::Key::new(&wanted, &image);
    if image.merged || image.layers.iter().any(|layer| layer.streamed.is_some()) {
        mounts.served().forget(&key);
    }
    let attached = match again(images, mounts, &wanted, &mut image, &key).await? {
        Some(attached) => attached,
        None => first(images, mounts, &wanted, &image, key).await?,
    };
    let Attached { mount, served, using, profiling, before } = attached;
    let filling = Arc::new(Filling::new(images, &image.layers, mounts.grown()));
    match wanted.fill {
        // What an offline mount could do is done when somebody waits for it.
        _ if wanted.image.offline => {}
        Fill::Off => {}
        Fill::Idle => filling.start(Urgency::Idle),
        Fill::Now => filling.start(Urgency::Now),
    }
    let tasks = profiling.record(wanted.profile_until, before.is_some()).into_iter().collect();
    let (image, using) = (Elsewhere::new(image), std::sync::Mutex::new(Some(using)));
    let before = before.unwrap_or_default();
    let mounted = Arc::new(Mounted { request: wanted, image, served, using, before, mount, profiling, filling, tasks });
    tokio::spawn(see_off(Arc::clone(mounts), Arc::clone(&mounted)));
    Ok(mounted)
}

/// Mounts what is served already in another directory; none if there is nothing, or this kernel cannot do that.
async fn again(
    images: &Images,
    mounts: &Arc<Mounts>,
    wanted: &control::Mount,
    image: &mut Image,
    key: &served::Key,
) -> Result<Option<Attached>, Failure> {
    let Some((served, using)) = mounts.served().find(key) else { return Ok(None) };
    let (dir, places, known) = (wanted.dir.clone(), mounts.places().clone(), Arc::clone(&served));
    let mount = tokio::task::spawn_blocking(move || fuse::Mount::again(&known.connection, &dir, &places));
    let mount = mount.await.map_err(|_| interrupted())?.map_err(|error| Failure::from(&error))?;
    let Some(mount) = mount else { return Ok(None) };
    for (layer, known) in image.layers.iter_mut().zip(&served.layers) {
        layer.layer = Arc::clone(known);
    }
    let recorder = served.fs.recorder();
    // The start of another mount of it is being recorded.
    let recorder = if recorder.is_active() { Arc::default() } else { Arc::clone(recorder) };
    let profiling = Profiling::start(images, wanted, image, Arc::clone(&served.fs), recorder);
    let before = Some(Counts::now(&served));
    Ok(Some(Attached { mount, served, using, profiling, before }))
}

/// Makes a connection for the image, and its first mount.
async fn first(
    images: &Images,
    mounts: &Arc<Mounts>,
    wanted: &control::Mount,
    image: &Image,
    key: served::Key,
) -> Result<Attached, Failure> {
    let layers: Vec<_> = image.layers.iter().map(|layer| Arc::clone(&layer.layer)).collect();
    let (fetcher, store) = (images.fetcher().clone(), Arc::clone(images.store()));
    let fs = FileSystem::new(image.tree.clone(), layers.clone(), fetcher, store);
    let fs = Arc::new(fs.on_outage(patience(wanted.on_outage)));
    let recorder = Arc::clone(fs.recorder());
    let profiling = Profiling::start(images, wanted, image, Arc::clone(&fs), recorder);
    let mount = connect(mounts, wanted, Arc::clone(&fs)).await?;
    let served = Served { fs, connection: Arc::clone(mount.connection()), layers };
    let (served, using) = mounts.served().enter(key, image, served);
    Ok(Attached { mount, served, using, profiling, before: None })
}

/// Waits for the end of a mount, by whatever hand, and does what is to be done then.
async fn see_off(mounts: Arc<Mounts>, mounted: Arc<Mounted>) {
    tokio::select! {
        () = mounted.mount.ended() => {}
        () = mounted.filling.condemned() => forget(&mounted).await,
    }
    mounted.mount.ended().await;
    // It may have ended first, and others go on with what the kernel has.
    if mounted.served.fs.is_stopped() {
        forget(&mounted).await;
    }
    mounted.profiling.end().await;
    tracing::info!(dir = %mounted.request.dir.display(), "unmounted");
    mounts.remove(&mounted);
}

fn patience(wanted: control::OnOutage) -> OnOutage {
    match wanted {
        control::OnOutage::Wait(seconds) => OnOutage::Wait(seconds.map(|seconds| Duration::from_secs(seconds.into()))),
        control::OnOutage::Eio => OnOutage::Fail,
    }
}

/// Makes a connection for `fs` and its first mount.
async fn connect(mounts: &Arc<Mounts>, wanted: &control::Mount, fs: Arc<FileSystem>) -> Result<fuse::Mount, Failure> {
    let access = if rustix::process::geteuid().is_root() { Access::Everyone } else { Access::Owner };
    let io = match wanted.io {
        control::Io::Auto => fuse::Io::Auto,
        control::Io::Passthrough => fuse::Io::Passthrough,
        control::Io::Cached => fuse::Io::Cached,
    };
    let low_latency = wanted.low_latency;
    let (dir, runtime, places) = (wanted.dir.clone(), tokio::runtime::Handle::current(), mounts.places().clone());
    let attached = tokio::task::spawn_blocking(move || {
        let options = fuse::Options { source: "ocifs", access, io, low_latency };
        fuse::Mount::new(fs, runtime, &dir, options, &places)
    });
    attached.await.map_err(|_| interrupted())?.map_err(|error| Failure::from(&error))
}

/// Takes back what the kernel was told of a mount that has turned out to show something else than its image.
async fn forget(mounted: &Arc<Mounted>) {
    tracing::error!(dir = %mounted.request.dir.display(), "the mount has stopped serving: the index of a layer is wrong");
    let (mounted, last) = (Arc::clone(mounted), Ino(u64::from(mounted.image.tree.node_count())));
    if tokio::task::spawn_blocking(move || mounted.served.connection.forget(last)).await.is_err() {
        tracing::warn!("the kernel keeps what it was told");
    }
}

/// Finds what would make the mount fail before anything is fetched for it. Blocks on the file system.
fn check_mount_point(dir: &Path) -> Result<(), Failure> {
    fuse::is_available()
        .map_err(|error| no_device(Failure::io("cannot open /dev/fuse", &error).coded(Code::Mount), &error))?;
    if let Some(point) = fuse::mounted_at(dir).map_err(|error| Failure::io("cannot read the mount table", &error))? {
        if !point.is_ocifs() || !fuse::is_dead(dir) {
            return Err(taken_by(&point));
        }
        tracing::info!(dir = %dir.display(), "removing the mount of a daemon that is gone");
        fuse::unmount_stale(dir, true).map_err(|error| Failure::from(&error))?;
    }
    let what = || format!("cannot mount on {}", crate::oci::Printable::path(dir));
    let mut names = std::fs::read_dir(dir).map_err(|error| {
        let failure = Failure::io(&what(), &error).coded(Code::Mount);
        match error.kind() {
            io::ErrorKind::NotFound => {
                failure.hint(format!("make it first: mkdir -p {}", crate::oci::Printable::path(dir)))
            }
            io::ErrorKind::NotConnected => failure
                .hint("a mount above it has lost its daemon: `ocifs list` shows which, `ocifs umount` removes it"),
            io::ErrorKind::NotADirectory => failure.hint("the mount point must be a directory"),
            _ => failure,
        }
    })?;
    if !rustix::process::geteuid().is_root() && rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_err() {
        return Err(Failure::new(Code::Mount, what())
            .because("this user may not write to the directory")
            .hint("users other than root mount only on directories of their own"));
    }
    if names.next().is_some() {
        return Err(Failure::new(Code::Mount, what())
            .because("the directory is not empty")
            .hint("use an empty directory"));
    }
    Ok(())
}

fn taken(dir: &Path) -> Failure {
    let dir = crate::oci::Printable::path(dir);
    Failure::new(Code::Mount, format!("cannot mount on {dir}"))
        .because("something is mounted there already")
        .hint(format!("`ocifs umount {dir}` ends it, `ocifs status {dir}` describes it"))
}

/// The failure for a directory on which something is mounted that this daemon does not serve.
fn taken_by(point: &fuse::MountPoint) -> Failure {
    let dir = crate::oci::Printable::path(&point.path);
    let me = rustix::process::geteuid().as_raw();
    let failure = Failure::new(Code::Mount, format!("cannot mount on {dir}"));
    match point.user {
        Some(user) if point.is_ocifs() && user != me && me != 0 => {
            failure.because(format!("user {user} has mounted an image there")).hint("use another directory")
        }
        _ if point.is_ocifs() => failure
            .because("a daemon of another cache directory has mounted an image there")
            .hint(format!("use another directory, or end it with `ocifs umount {dir}`")),
        _ => failure
            .because(format!(
                "a file system of type {} is mounted there",
                crate::oci::Printable::of(&point.file_system)
            ))
            .hint("use another directory"),
    }
}

fn interrupted() -> Failure {
    Failure::new(Code::Other, "the daemon is stopping")
}

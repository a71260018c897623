//! How connections to one host are made, where that is not how all are made: certificates, time-outs, proxies.
//!
//! [`Wishes`] is what the configuration says, as a value. A [`Link`] is the connection pool made of it. Certificates are
//! renewed under running mounts, so the files are looked at again now and then, and the pool is made anew if they
//! changed. Leaving the host for another one, which a redirect or a token server may demand, takes along the authorities
//! only ([`Link::abroad`]): they say whom the user believes, while the rest is between the user and this host.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::{Client, Identity, Proxy};

use super::error::Reason;
use super::tls;
use super::transport::{Settings, builder};
use crate::limits::CERTIFICATE_BYTES;
use crate::source::{Error, ErrorKind};

/// How often the files are looked at: seldom enough to cost nothing, often enough for a certificate that was renewed just
/// before it expired.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What the configuration says of connections to a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Wishes {
    /// Files with certificates of authorities that are believed beside those of the system.
    pub(super) authorities: Vec<PathBuf>,
    /// What is shown to a server that wants to know its client; the first counts.
    pub(super) identities: Vec<Pair>,
    /// Any certificate of the server will do.
    pub(super) unverified: bool,
    /// Speak through no proxy, whatever the environment says.
    pub(super) direct: bool,
    /// How long a TCP connection may take.
    pub(super) connect: Option<Duration>,
    /// Speak through this proxy, whatever the environment says.
    pub(super) proxy: Option<String>,
}

/// A client certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    pub(super) certificate: PathBuf,
    /// None if the key is in the same file.
    pub(super) key: Option<PathBuf>,
}

impl Wishes {
    /// True if certificates are named.
    pub(super) fn has_certificates(&self) -> bool {
        !self.authorities.is_empty() || !self.identities.is_empty()
    }

    /// The files that connections are made with.
    fn files(&self) -> impl Iterator<Item = &Path> {
        let pair = self.identities.first().into_iter();
        let pair = pair.flat_map(|pair| std::iter::once(&pair.certificate).chain(&pair.key));
        self.authorities.iter().chain(pair).map(PathBuf::as_path)
    }
}

/// The connections to one host.
pub(super) struct Link {
    wishes: Wishes,
    /// Held while connections are prepared, so that the files are read once.
    built: tokio::sync::Mutex<Option<Built>>,
    abroad: Option<Arc<Self>>,
}

struct Built {
    client: Client,
    stamps: Vec<Option<Stamp>>,
    /// When the files were looked at; none if they are to be looked at again at once.
    looked: Option<Instant>,
}

impl Built {
    fn is_recent(&self) -> bool {
        self.looked.is_some_and(|looked| looked.elapsed() < LOOK_AGAIN)
    }
}

/// By what it shows that a file has changed: device, inode, length, seconds and nanoseconds of its time.
type Stamp = (u64, u64, u64, i64, i64);

impl Link {
    /// The link that fulfils `wishes`; none if all connections are like that.
    pub(super) fn new(wishes: &Wishes) -> Option<Arc<Self>> {
        if *wishes == Wishes::default() {
            return None;
        }
        let abroad = Wishes { authorities: wishes.authorities.clone(), ..Wishes::default() };
        let abroad = if abroad == *wishes { None } else { Self::new(&abroad) };
        Some(Arc::new(Self { wishes: wishes.clone(), built: tokio::sync::Mutex::default(), abroad }))
    }

    /// How other hosts are spoken to if this one sends us there.
    pub(super) fn abroad(self: &Arc<Self>) -> Option<Arc<Self>> {
        let is_only_authorities = self.abroad.is_none() && !self.wishes.authorities.is_empty();
        if is_only_authorities { Some(Arc::clone(self)) } else { self.abroad.clone() }
    }

    /// The connection pool. Reads the files when it is made, and again when they have changed.
    pub(super) async fn client(&self, settings: &Settings) -> Result<Client, Error> {
        let mut built = self.built.lock().await;
        if let Some(built) = built.as_ref().filter(|built| built.is_recent()) {
            return Ok(built.client.clone());
        }
        let (wishes, settings) = (self.wishes.clone(), settings.clone());
        let known = built.as_ref().map(|built| built.stamps.clone());
        let task = tokio::task::spawn_blocking(move || {
            let stamps: Vec<_> = wishes.files().map(stamp).collect();
            // Taken before the files are read: what changes meanwhile is then read again.
            let client = (known.as_ref() != Some(&stamps)).then(|| build(&wishes, &settings)).transpose();
            (client, stamps)
        });
        let (client, stamps) = task.await.map_err(|_| Error::new(ErrorKind::Io, "the process is ending"))?;
        match (client, built.as_mut()) {
            (Ok(Some(client)), _) => {
                *built = Some(Built { client: client.clone(), stamps, looked: Some(Instant::now()) });
                Ok(client)
            }
            (Ok(None), Some(built)) => {
                built.looked = Some(Instant::now());
                Ok(built.client.clone())
            }
            // Whoever renews certificates may be half done; the ones at hand may still be good.
            (Err(error), Some(built)) => {
                tracing::warn!(%error, "the certificates have changed, but cannot be used; going on with the old ones");
                built.looked = Some(Instant::now());
                Ok(built.client.clone())
            }
            (Err(error), None) => Err(error),
            (Ok(None), None) => Err(Error::new(ErrorKind::Io, "no connections")),
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("wishes", &self.wishes).finish_non_exhaustive()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

fn build(wishes: &Wishes, settings: &Settings) -> Result<Client, Error> {
    let mut settings = settings.clone();
    settings.connect = wishes.connect.unwrap_or(settings.connect);
    let mut builder = builder(&settings);
    if wishes.direct {
        builder = builder.no_proxy();
    }
    if let Some(proxy) = &wishes.proxy {
        let wrong = |_| Error::new(ErrorKind::Misconfigured, "the proxy in the host configuration is no address");
        builder = builder.no_proxy().proxy(Proxy::all(proxy).map_err(wrong)?);
    }
    let mut authorities = Vec::new();
    for path in &wishes.authorities {
        let found = tls::certificates(&read(path)?).map_err(|error| unusable(path).because(error))?;
        if found.is_empty() {
            return Err(unusable(path).hint("a file of authorities holds certificates in PEM form"));
        }
        authorities.extend(found);
    }
    let identity = wishes.identities.first().map(|pair| pem(pair).map(|pem| (pair, pem))).transpose()?;
    let impossible = || {
        let named: Vec<_> = wishes.files().map(|path| path.display().to_string()).collect();
        let message = format!("cannot prepare connections with the certificates in {}", named.join(", "));
        Error::new(ErrorKind::Misconfigured, message)
    };
    if wishes.unverified {
        // An empty set of certificates keeps the pool from loading the system's.
        builder = builder.tls_certs_only([]).tls_danger_accept_invalid_certs(true);
        if let Some((pair, pem)) = identity {
            builder = builder.identity(Identity::from_pem(&pem).map_err(|_| no_identity(pair))?);
        }
    } else if wishes.has_certificates() {
        let shown = identity.map(|(pair, pem)| tls::identity(&pem).ok_or_else(|| no_identity(pair))).transpose()?;
        let config = tls::config(authorities, shown).map_err(|error| impossible().because(error))?;
        builder = builder.tls_backend_preconfigured(config);
    }
    builder.build().map_err(|error| impossible().because(Reason::of(error)))
}

/// A client certificate with its key.
fn pem(pair: &Pair) -> Result<Vec<u8>, Error> {
    let mut pem = read(&pair.certificate)?;
    if let Some(key) = &pair.key {
        pem.push(b'\n');
        pem.extend(read(key)?);
    }
    Ok(pem)
}

/// What is wrong with a key is not told in more detail: the parser's words may hold parts of it.
fn no_identity(pair: &Pair) -> Error {
    let hint = "a client certificate and its key are in PEM form, the key not encrypted";
    unusable(pair.key.as_ref().unwrap_or(&pair.certificate)).hint(hint)
}

fn unusable(path: &Path) -> Error {
    Error::new(ErrorKind::Misconfigured, format!("cannot use the certificates in {}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(CERTIFICATE_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|error| {
        Error::new(ErrorKind::Misconfigured, format!("cannot read the certificates in {}", path.display()))
            .because(error)
    })?;
    match bytes.len() as u64 > CERTIFICATE_BYTES {
        true => Err(unusable(path).hint(format!("a file of certificates has at most {CERTIFICATE_BYTES} bytes"))),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let time = Duration::from_secs(5);
        Settings { user_agent: "test".to_owned(), connect: time, stall: time }
    }

    #[test]
    fn no_wishes_need_no_link() {
        assert!(Link::new(&Wishes::default()).is_none());
    }

    #[test]
    fn b_148_only_the_authorities_go_along_to_another_host() {
        let pair = Pair { certificate: "/c".into(), key: None };
        let wishes =
            Wishes { authorities: vec!["/a".into()], identities: vec![pair], unverified: true, ..Wishes::default() };
        let link = Link::new(&wishes).expect("wishes");
        let abroad = link.abroad().expect("an authority");
        assert_eq!(abroad.wishes, Wishes { authorities: vec!["/a".into()], ..Wishes::default() });
        assert_eq!(abroad.abroad().expect("itself").wishes, abroad.wishes);
        let timed = Wishes { connect: Some(Duration::from_secs(1)), ..Wishes::default() };
        assert!(Link::new(&timed).expect("a wish").abroad().is_none());
    }

    #[tokio::test]
    async fn b_143_a_file_that_is_no_certificate_is_named_and_its_content_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let (bad, missing) = (dir.path().join("ca.crt"), dir.path().join("none.crt"));
        std::fs::write(&bad, "hunter2").expect("a file");
        let pair = Pair { certificate: bad.clone(), key: None };
        for wishes in [
            Wishes { authorities: vec![bad.clone()], ..Wishes::default() },
            Wishes { authorities: vec![missing.clone()], ..Wishes::default() },
            Wishes { identities: vec![pair], unverified: true, ..Wishes::default() },
        ] {
            let link = Link::new(&wishes).expect("wishes");
            let error = link.client(&settings()).await.expect_err("no certificate");
            assert_eq!(error.kind(), ErrorKind::Misconfigured);
            let shown = format!("{error:?}");
            assert!(shown.contains(".crt") && !shown.contains("hunter2"), "{shown}");
        }
    }

    #[tokio::test]
    async fn b_143_changed_files_are_read_again_and_a_broken_one_does_not_end_what_works() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("ca.crt");
        std::fs::write(&file, AUTHORITY).expect("a file");
        let link = Link::new(&Wishes { authorities: vec![file.clone()], ..Wishes::default() }).expect("wishes");
        link.client(&settings()).await.expect("a certificate");
        let look_again = async || {
            if let Some(built) = link.built.lock().await.as_mut() {
                built.looked = None;
            }
        };
        let stamps = async || link.built.lock().await.as_ref().map(|built| built.stamps.clone());
        let first = stamps().await;
        std::fs::write(&file, format!("{AUTHORITY}\n{AUTHORITY}")).expect("a file");
        link.client(&settings()).await.expect("the pool at hand");
        assert_eq!(stamps().await, first, "it is not looked at each time");
        look_again().await;
        link.client(&settings()).await.expect("the new one");
        let second = stamps().await;
        assert_ne!(second, first);
        std::fs::write(&file, "broken").expect("a file");
        look_again().await;
        link.client(&settings()).await.expect("the one before");
        assert_eq!(stamps().await, second);
    }

    /// A certificate of an authority that has no key any more.
    const AUTHORITY: &str = "\
-----BEGIN CERTIFICATE-----
MIIBejCCAR+gAwIBAgIUfV9twpmyVUZrF9b5JoEVVwQrh1swCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGbm9ib2R5MCAXDTI2MTEyMjA3NTI1OFoYDzIxMjYxMDI5MDc1
MjU4WjARMQ8wDQYDVQQDDAZub2JvZHkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AAQn50vAEQpiPlQzdqkppgiWTjMYItV0OH88DZ5TkY+U5pllMSxRNNX4snqWSMbO
5P69mnA03A16CUu0eLadeZD6o1MwUTAdBgNVHQ4EFgQUnsK9oceXWUezK5ECDIf4
GpyYUJcwHwYDVR0jBBgwFoAUnsK9oceXWUezK5ECDIf4GpyYUJcwDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEAmL6dL9RfuatJhvFrjOYRIBIu7NN+
Wj+prqq63KGg2q8CIQCyEbx3j3EaBOMXSGHUgXLPO2+kWretKF/YAA841bZTiw==
-----END CERTIFICATE-----\n";
}

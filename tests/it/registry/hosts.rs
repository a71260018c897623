//! Mirrors: several hosts for one repository, by containerd's and podman's files.
//!
//! The registry and its mirrors are scripted servers on this machine. What counts is who was asked for what, in which order,
//! and with which secrets.

mod certificates;
mod rules;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ocifs::oci::Digest;
use ocifs::registry::{HostFiles, Options, Repository, Selector};
use ocifs::source::{ErrorKind, Source, read_checked};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::scripted::{Fate, Reply, Request, Server};
use super::{client, descriptor, noise, quick, read, shown};

/// What a client would wait at most that does as it is told.
const LONG: Duration = Duration::from_secs(60);

const MANIFEST: &str = r#"{"schemaVersion":2,"layers":[]}"#;

/// A machine's files about hosts.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    fn write(&self, name: &str, text: &str) -> &Self {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        std::fs::write(path, text).expect("a file");
        self
    }

    /// Asks `mirrors`, each with the fields of its table, before the registry `server`.
    fn hosts_toml(&self, server: &Server, mirrors: &[(&Server, &str)]) -> &Self {
        let table = |(mirror, fields): &(&Server, &str)| format!("[host.'{}']\n{fields}\n", mirror.url(""));
        let text: String = mirrors.iter().map(table).collect();
        self.write(&format!("tree/{}/hosts.toml", server.host().replace(':', "_") + "_"), &text)
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn options(&self) -> Options {
        let hosts = HostFiles {
            trees: vec![self.path().join("tree")],
            registries: vec![self.path().join("registries.conf")],
            certificates: vec![self.path().join("certs.d")],
        };
        Options { hosts, ..quick() }
    }

    async fn repository(&self, server: &Server, options: Options) -> Repository {
        let selector = Selector::Tag("v1".to_owned());
        client(options).find(&server.host(), "team/app", selector).await.expect("sound files")
    }
}

/// A host that has the manifest under every name, and `blob`.
async fn serving(blob: &[u8]) -> Server {
    let blob = blob.to_vec();
    Server::start(move |request, _| answer(request, &blob)).await
}

fn answer(request: &Request, blob: &[u8]) -> Reply {
    match request.path().contains("/manifests/") {
        true => Reply::new(200, MANIFEST),
        false => Reply::blob(request, blob),
    }
}

/// A host that answers everything in the same way.
async fn always(reply: Reply) -> Server {
    Server::start(move |_, _| reply.clone()).await
}

#[tokio::test]
async fn b_145_d_041_a_mirror_that_may_not_resolve_hands_out_blobs_and_says_nothing_of_tags() {
    let blob = noise(5000);
    let lie = Reply::new(200, r#"{"schemaVersion":2,"layers":[{}]}"#);
    let liar = {
        let blob = blob.clone();
        Server::start(move |request, _| match request.path().contains("/manifests/") {
            true => lie.clone(),
            false => Reply::blob(request, &blob),
        })
        .await
    };
    let registry = serving(&blob).await;
    let files = Files::new();
    files.hosts_toml(&registry, &[(&liar, "capabilities = ['pull']")]);
    let repository = files.repository(&registry, files.options()).await;
    let document = repository.resolve().await.expect("the registry knows");
    assert_eq!(document.bytes, MANIFEST);
    assert!(liar.paths().is_empty(), "nobody asks it for a tag");
    let bytes = read(&repository.blob(&descriptor(&blob)), 1000..2000).await.expect("the mirror has it");
    assert_eq!(bytes, blob[1000..2000]);
    assert_eq!((liar.paths().len(), registry.paths().len()), (1, 1));
    assert_eq!(repository.name(), format!("{}/team/app", registry.host()));
}

#[tokio::test]
async fn b_144_b_146_a_mirror_is_told_whose_images_are_wanted_below_its_own_path() {
    let blob = noise(100);
    let (mirror, registry) = (serving(&blob).await, serving(&blob).await);
    let files = Files::new();
    let table = format!(
        "[host.'{}/hub/x']\noverride_path = true\n[host.'{}/hub/x'.header]\nx-key = 'hunter2'\n",
        mirror.url(""),
        mirror.url("")
    );
    files.write(&format!("tree/{}/hosts.toml", registry.host()), &table);
    let repository = files.repository(&registry, files.options()).await;
    repository.resolve().await.expect("the mirror may resolve");
    read(&repository.blob(&descriptor(&blob)), 0..10).await.expect("the mirror has it");
    let log = mirror.log();
    assert_eq!(log[0].target, format!("/hub/x/team/app/manifests/v1?ns={}", registry.host().replace(':', "%3A")));
    assert!(log[1].target.starts_with("/hub/x/team/app/blobs/sha256:") && log[1].target.contains("?ns="));
    assert!(log.iter().all(|request| request.header("x-key") == Some("hunter2")));
    assert!(registry.log().is_empty());
}

#[tokio::test]
async fn two_mirrors_at_one_address_keep_their_redirects_and_tokens_apart() {
    let blob = noise(4000);
    let mut wrong = blob.clone();
    wrong[2500] ^= 1;
    let right = blob.clone();
    let mirrors = Server::start(move |request, _| {
        let place = |path: &str| format!("http://{}{path}", request.header("host").unwrap_or_default());
        let token = request.header("authorization").unwrap_or_default();
        match request.path() {
            "/a/token" => Reply::new(200, r#"{"token":"a"}"#),
            "/b/token" => Reply::new(200, r#"{"token":"b"}"#),
            "/store/a" => Reply::blob(request, &wrong),
            path if path.starts_with("/a/") && token == "Bearer a" => Reply::redirect(place("/store/a")),
            path if path.starts_with("/a/") => Reply::bearer(&place("/a/token"), ""),
            _ if token == "Bearer b" => Reply::blob(request, &right),
            _ => Reply::bearer(&place("/b/token"), ""),
        }
    })
    .await;
    let registry = always(Reply::new(404, "")).await;
    let files = Files::new();
    let table = |path: &str| format!("[host.'{}']\noverride_path = true\n", mirrors.url(path));
    files.write(&format!("tree/{}/hosts.toml", registry.host()), &[table("/a"), table("/b")].concat());
    let repository = files.repository(&registry, files.options()).await;
    let reader = repository.blob(&descriptor(&blob));
    let bytes = read_checked(reader.as_ref(), 4000, &descriptor(&blob).digest).await.expect("an answer");
    assert_eq!(bytes, Some(blob.into()), "the second mirror has the right bytes");
    let tokens = mirrors.paths().into_iter().filter(|path| path.ends_with("/token")).collect::<Vec<_>>();
    assert_eq!(tokens, ["/a/token", "/b/token"]);
}

#[tokio::test]
async fn b_146_the_registry_itself_is_not_told_its_own_name() {
    let registry = serving(b"").await;
    let files = Files::new();
    files.write(&format!("tree/{}/hosts.toml", registry.host()), &format!("server = '{}'", registry.url("")));
    files.repository(&registry, files.options()).await.resolve().await.expect("it answers");
    assert_eq!(registry.log()[0].target, "/v2/team/app/manifests/v1");
}

/// A server that speaks plain HTTP and sometimes loses a connection that wants TLS; and how often it was offered TLS.
async fn losing_tls(reply: &'static [u8]) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let (addr, offered) = (listener.local_addr().expect("an address"), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&offered);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut heard = [0; 2048];
            let length = stream.read(&mut heard).await.unwrap_or(0);
            match heard[..length].first() {
                // A handshake begins with this.
                Some(0x16) => drop(counted.fetch_add(1, Ordering::SeqCst)),
                // A client that is gone needs no answer.
                _ => drop(stream.write_all(reply).await),
            }
        }
    });
    (addr, offered)
}

#[tokio::test]
async fn b_142_a_lost_connection_does_not_make_a_host_one_of_plain_http() {
    const FOUND: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Length: 31\r\nConnection: close\r\n\r\n{\"schemaVersion\":2,\"layers\":[]}";
    const DENIED: &[u8] =
        b"HTTP/1.1 401 X\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    for (reply, is_found) in [(FOUND, true), (DENIED, false)] {
        let (addr, offered) = losing_tls(reply).await;
        let files = Files::new();
        let table = format!("server = 'http://{addr}'\nskip_verify = true");
        files.write(&format!("tree/{addr}/hosts.toml"), &table);
        let options = Options { attempts: 1, ..files.options() };
        let found = client(options).find(&addr.to_string(), "team/app", Selector::Tag("v1".to_owned())).await;
        let repository = found.expect("sound files");
        for count in 1..4 {
            let answer = repository.resolve().await.map_err(|error| shown(&error));
            assert_eq!(answer.is_ok(), is_found, "{answer:?}");
            assert_eq!(offered.load(Ordering::SeqCst), count, "TLS is tried each time");
        }
    }
}

#[tokio::test]
async fn b_147_whatever_is_wrong_with_a_mirror_the_next_host_is_asked_at_once() {
    let blob = noise(3000);
    let gone = Server::start(|_, _| Reply::new(200, "")).await;
    let closed = gone.url("");
    drop(gone);
    for bad in [
        Reply::error(404, "MANIFEST_UNKNOWN", "no"),
        Reply::error(403, "DENIED", "no"),
        Reply::new(500, ""),
        Reply::new(429, "").with("Retry-After", "60"),
        Reply::new(200, "not what was asked for"),
        Reply::redirect("ftp://elsewhere.example/"),
        Reply::new(401, "").with("WWW-Authenticate", "Negotiate"),
        Reply::new(200, "x").fated(Fate::Reset(0)),
    ] {
        let (mirror, registry) = (always(bad.clone()).await, serving(&blob).await);
        let files = Files::new();
        let options = Options { attempts: 1, longest_pause: LONG, ..files.options() };
        let tables = format!("[host.'{closed}']\n[host.'{}']\n", mirror.url(""));
        files.write(&format!("tree/{}/hosts.toml", registry.host()), &tables);
        let repository = files.repository(&registry, options.clone()).await;
        let child = descriptor(MANIFEST.as_bytes());
        let begun = Instant::now();
        let document = repository.manifest(&child).await.unwrap_or_else(|error| panic!("{bad:?}: {}", shown(&error)));
        assert_eq!(document.bytes, MANIFEST);
        // A client that does not know yet.
        let repository = files.repository(&registry, options.clone()).await;
        let reader = repository.blob(&descriptor(&blob));
        let bytes = read_checked(reader.as_ref(), 3000, &descriptor(&blob).digest).await;
        let bytes = bytes.unwrap_or_else(|error| panic!("{bad:?}: {}", shown(&error)));
        assert_eq!(bytes.expect("right bytes"), blob);
        assert!(begun.elapsed() < LONG, "{bad:?}: nobody waits for a mirror");
    }
}

#[tokio::test]
async fn b_147_b_162_each_host_is_asked_once_a_round_for_what_refers_to_an_image() {
    let subject = Digest::sha256(b"an image");
    let entry = format!(
        r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{subject}","size":3,"artifactType":"a/b"}}"#
    );
    let index = |entries: &str| {
        let index_type = "application/vnd.oci.image.index.v1+json";
        let index = format!(r#"{{"schemaVersion":2,"mediaType":"{index_type}","manifests":[{entries}]}}"#);
        Reply::new(200, index).with("Content-Type", index_type)
    };
    // What the mirror and the registry answer first and from then on, whether anything is found, and who was asked how often.
    let (busy, none, some) = (Reply::new(503, ""), index(""), index(&entry));
    for (mirror, registry, found, asked) in [
        ([busy.clone(), busy.clone()], [some.clone(), some.clone()], true, (1, 1)),
        ([none.clone(), none.clone()], [some.clone(), some.clone()], true, (1, 1)),
        ([none.clone(), none.clone()], [busy.clone(), some.clone()], true, (2, 2)),
        ([Reply::new(404, ""), some.clone()], [busy.clone(), busy.clone()], true, (2, 1)),
        ([some.clone(), some.clone()], [none.clone(), none.clone()], true, (1, 0)),
        ([none.clone(), none.clone()], [none.clone(), none.clone()], false, (1, 1)),
    ] {
        let start = |[first, later]: [Reply; 2]| {
            Server::start(move |_, before| if before == 0 { first.clone() } else { later.clone() })
        };
        for tagged in [false, true] {
            let (mirror, registry) = (start(mirror.clone()).await, start(registry.clone()).await);
            let files = Files::new();
            files.hosts_toml(&registry, &[(&mirror, "")]);
            let repository = files.repository(&registry, files.options()).await;
            let listed = match tagged {
                true => repository.tagged_referrers(&subject, Some("a/b")).await,
                false => repository.referrers(&subject, Some("a/b")).await.map(Option::unwrap_or_default),
            };
            assert_eq!(!listed.unwrap_or_else(|error| panic!("{}", shown(&error))).is_empty(), found);
            assert_eq!((mirror.log().len(), registry.log().len()), asked, "{:?}", mirror.paths());
        }
    }
}

#[tokio::test]
async fn b_147_an_error_tells_of_the_registry_first_and_of_the_mirrors_besides() {
    let mirror = always(Reply::new(404, "")).await;
    let registry = always(Reply::error(403, "DENIED", "pay first")).await;
    let files = Files::new();
    files.hosts_toml(&registry, &[(&mirror, "")]);
    let repository = files.repository(&registry, files.options()).await;
    let error = repository.resolve().await.expect_err("both refuse");
    assert_eq!(error.kind(), ErrorKind::Denied);
    let text = shown(&error);
    assert!(text.contains("pay first (besides: "), "{text}");
    assert!(text.contains(&format!("{} answered 404 Not Found)", mirror.url(""))), "{text}");
}

#[tokio::test]
async fn b_147_a_mirror_that_has_no_manifest_under_a_tag_is_passed_over_and_named_if_nobody_has_one() {
    let page = "<!doctype html><title>Sign in to the network</title>";
    for bad in [Reply::new(200, page).with("Content-Type", "text/html; charset=utf-8"), Reply::new(200, "{}")] {
        let (mirror, registry) = (always(bad.clone()).await, serving(b"").await);
        let files = Files::new();
        files.hosts_toml(&registry, &[(&mirror, "")]);
        let document = files.repository(&registry, files.options()).await.resolve().await;
        assert_eq!(document.unwrap_or_else(|error| panic!("{bad:?}: {}", shown(&error))).bytes, MANIFEST);
        assert_eq!(mirror.log().len(), 1, "it was asked first");

        let registry = always(Reply::error(404, "MANIFEST_UNKNOWN", "no")).await;
        files.hosts_toml(&registry, &[(&mirror, "")]);
        let error = files.repository(&registry, files.options()).await.resolve().await.expect_err("nobody has it");
        let (text, named) = (shown(&error), format!("the mirror {} answered with", mirror.host()));
        assert!(text.contains(&named) && text.contains("that is no manifest"), "{text}");
    }
}

#[tokio::test]
async fn b_147_a_mirror_that_is_only_busy_is_tried_again_although_the_registry_denies() {
    let blob = noise(1000);
    let mirror = {
        let blob = blob.clone();
        Server::start(move |request, before| if before == 0 { Reply::new(503, "") } else { answer(request, &blob) })
            .await
    };
    let registry = always(Reply::error(403, "DENIED", "no")).await;
    let files = Files::new();
    files.hosts_toml(&registry, &[(&mirror, "")]);
    let repository = files.repository(&registry, files.options()).await;
    assert_eq!(read(&repository.blob(&descriptor(&blob)), 0..1000).await.expect("the second time"), blob);
}

#[tokio::test]
async fn b_147_a_tag_that_the_registry_does_not_have_is_not_waited_for_at_a_mirror() {
    let mirror = always(Reply::new(503, "")).await;
    let registry = always(Reply::error(404, "MANIFEST_UNKNOWN", "no")).await;
    let files = Files::new();
    files.hosts_toml(&registry, &[(&mirror, "")]);
    let error = files.repository(&registry, files.options()).await.resolve().await.expect_err("nobody has it");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(mirror.log().len(), 1);
}

#[tokio::test]
async fn b_148_b_123_each_host_gets_its_own_credentials_and_nobody_elses() {
    let blob = noise(100);
    let demand = |user: &'static str| {
        let blob = blob.clone();
        let expected = format!("Basic {}", base64(&format!("{user}:secret")));
        Server::start(move |request, _| match request.header("authorization") {
            None => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
            Some(given) if given == expected => answer(request, &blob),
            Some(_) => Reply::error(403, "DENIED", "not yours"),
        })
    };
    let (stranger, mirror, registry) = (demand("nobody").await, demand("mirror").await, demand("registry").await);
    let files = Files::new();
    let entry = |server: &Server, user: &str| {
        format!(r#""{}":{{"auth":"{}"}}"#, server.host(), base64(&format!("{user}:secret")))
    };
    let logins = format!(r#"{{"auths":{{{},{}}}}}"#, entry(&mirror, "mirror"), entry(&registry, "registry"));
    files.write("auth.json", &logins).hosts_toml(&registry, &[(&stranger, ""), (&mirror, "capabilities = ['pull']")]);
    let options = Options { auth_files: vec![files.path().join("auth.json")], ..files.options() };
    let repository = files.repository(&registry, options).await;
    repository.resolve().await.expect("the registry's own login");
    read(&repository.blob(&descriptor(&blob)), 0..100).await.expect("the mirror's own login");
    let given = |server: &Server| {
        let log = server.log();
        log.iter().filter_map(|request| request.header("authorization").map(str::to_owned)).collect::<Vec<_>>()
    };
    assert!(given(&stranger).is_empty(), "nothing is filed under it");
    assert_eq!(given(&mirror), [format!("Basic {}", base64("mirror:secret"))]);
    assert_eq!(given(&registry), [format!("Basic {}", base64("registry:secret"))]);
}

#[tokio::test]
async fn b_100_a_mirror_without_the_blob_is_asked_once_and_then_after_the_registry() {
    let blob = noise(5000);
    let (mirror, registry) = (always(Reply::new(404, "")).await, serving(&blob).await);
    let files = Files::new();
    files.hosts_toml(&registry, &[(&mirror, "capabilities = ['pull']")]);
    let repository = files.repository(&registry, files.options()).await;
    let reader = repository.blob(&descriptor(&blob));
    for start in [0, 1000, 2000] {
        assert_eq!(
            read(&reader, start..start + 10).await.expect("the registry has it")[..],
            blob[start as usize..][..10]
        );
    }
    assert_eq!((mirror.log().len(), registry.log().len()), (1, 3));
}

#[tokio::test]
async fn b_147_a_mirror_that_failed_rests_while_others_have_what_is_wanted() {
    let blob = noise(5000);
    let (mirror, registry) = (always(Reply::new(503, "")).await, serving(&blob).await);
    let files = Files::new();
    files.hosts_toml(&registry, &[(&mirror, "")]);
    let repository = files.repository(&registry, files.options()).await;
    let begun = Instant::now();
    for _ in 0..3 {
        repository.resolve().await.expect("the registry answers");
        read(&repository.blob(&descriptor(&blob)), 0..10).await.expect("the registry has it");
    }
    // It rests for a second at least.
    assert!((1..=1 + begun.elapsed().as_secs() as usize).contains(&mirror.log().len()), "{:?}", mirror.paths());
    assert!(repository.hosts()[0].trouble.as_ref().is_some_and(|text| text.contains("503")));
}

#[tokio::test]
async fn b_147_a_mirror_whose_store_fails_rests_as_well() {
    let blob = noise(5000);
    for failure in [Reply::new(503, ""), Reply::new(429, "").with("Retry-After", "60")] {
        let (store, registry) = (always(failure).await, serving(&blob).await);
        let mirror = always(Reply::redirect(store.url("/x"))).await;
        let files = Files::new();
        files.hosts_toml(&registry, &[(&mirror, "")]);
        let repository = files.repository(&registry, files.options()).await;
        let begun = Instant::now();
        for _ in 0..3 {
            read(&repository.blob(&descriptor(&blob)), 0..10).await.expect("the registry has it");
        }
        // It rests for a second at least.
        let tries = mirror.log().len();
        assert!((1..=1 + begun.elapsed().as_secs() as usize).contains(&tries), "{:?}", mirror.paths());
        assert_eq!((store.log().len(), registry.log().len()), (tries, 3));
    }
}

#[tokio::test]
async fn a_body_that_breaks_at_a_mirror_goes_on_at_the_next_host_from_its_last_byte() {
    let blob = noise(100_000);
    let breaking = {
        let blob = blob.clone();
        Server::start(move |request, _| Reply::blob(request, &blob).fated(Fate::Cut(30_000))).await
    };
    let registry = serving(&blob).await;
    let files = Files::new();
    files.hosts_toml(&registry, &[(&breaking, "")]);
    let repository = files.repository(&registry, Options { attempts: 1, ..files.options() }).await;
    assert_eq!(read(&repository.blob(&descriptor(&blob)), 0..100_000).await.expect("two hosts make it"), blob);
    let rest = registry.log()[0].range().expect("a range");
    assert!(rest.0 > 0 && rest.0 <= 30_000 && rest.1 == 99_999, "{rest:?}");
}

#[tokio::test]
async fn wrong_bytes_of_a_mirror_are_asked_of_the_next_host_and_never_again_of_it() {
    let blob = noise(4000);
    let mut wrong = blob.clone();
    wrong[2500] ^= 1;
    let (mirror, registry) = (serving(&wrong).await, serving(&blob).await);
    let files = Files::new();
    files.hosts_toml(&registry, &[(&mirror, "")]);
    let repository = files.repository(&registry, files.options()).await;
    let reader = repository.blob(&descriptor(&blob));
    let digest = descriptor(&blob).digest;
    assert_eq!(read_checked(reader.as_ref(), 4000, &digest).await.expect("an answer"), Some(blob.clone().into()));
    assert_eq!(read(&reader, 0..10).await.expect("the registry"), blob[..10]);
    assert_eq!((mirror.log().len(), registry.log().len()), (1, 2));
    let alone = client(quick()).repository(&mirror.host(), "team/app", Selector::Tag("v1".to_owned()));
    let reader = alone.blob(&descriptor(&blob));
    assert_eq!(read_checked(reader.as_ref(), 4000, &digest).await.expect("an answer"), None, "there is nobody else");
}

#[tokio::test]
async fn a_push_goes_to_the_registry_that_the_name_says_and_not_to_a_mirror() {
    let mirror = serving(b"").await;
    let registry = Server::start(|_, _| Reply::new(201, "")).await;
    let files = Files::new();
    files.hosts_toml(&registry, &[(&mirror, "capabilities = ['pull', 'resolve']")]);
    let repository = files.repository(&registry, files.options()).await.for_pushing();
    let tag = Selector::Tag("v2".to_owned());
    repository.push_manifest(&tag, "application/json", MANIFEST.into()).await.expect("it takes it");
    assert!(mirror.log().is_empty() && registry.log().len() == 1);
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

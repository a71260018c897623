//! What the files say of hosts, and what is made of it: locations, blocks, and changes while a repository is in use.

use std::path::Path;

use ocifs::registry::Selector;
use ocifs::source::{ErrorKind, Source};

use super::{Files, always, serving};
use crate::registry::scripted::Reply;
use crate::registry::{client, descriptor, noise, read, shown};
use crate::support::require;

#[tokio::test]
async fn b_149_a_location_stands_in_for_a_registry_and_mirrors_have_names_of_their_own() {
    let blob = noise(200);
    let (mirror, registry) = (serving(&blob).await, serving(&blob).await);
    let files = Files::new();
    let conf = format!(
        "[[registry]]\nprefix = 'r.example/team'\nlocation = '{}/moved/x'\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = '{}/m'",
        registry.host(),
        mirror.host()
    );
    files.write("registries.conf", &conf);
    let selector = Selector::Tag("v1".to_owned());
    let repository = client(files.options()).find("r.example", "team/app", selector).await.expect("a rule");
    repository.resolve().await.expect("the location resolves");
    read(&repository.blob(&descriptor(&blob)), 0..10).await.expect("the mirror has it");
    assert_eq!(registry.paths(), ["/v2/moved/x/app/manifests/v1"]);
    assert_eq!(mirror.log()[0].target, format!("/v2/m/app/blobs/{}", descriptor(&blob).digest));
    assert_eq!(repository.name(), "r.example/team/app");
    assert!(repository.rule().is_some_and(|rule| rule.ends_with("registries.conf (registry r.example/team)")));
    let hosts: Vec<_> = repository.hosts().into_iter().map(|host| (host.name, host.received, host.trouble)).collect();
    assert_eq!(hosts, [(mirror.host(), 10, None), (registry.host(), 0, None)]);
}

/// Where skopeo would go for `name` by these tables: nothing answers at port 1, so that it goes everywhere.
fn asked_by_skopeo(conf: &Path, name: &str) -> Vec<String> {
    let mut skopeo = std::process::Command::new("skopeo");
    skopeo.args(["--registries-conf".as_ref(), conf.as_os_str()]).args(["--debug", "inspect", "--tls-verify=false"]);
    let output = skopeo.arg(format!("docker://{name}")).output().expect("skopeo is installed");
    let log = String::from_utf8_lossy(&output.stderr).replace('\\', "");
    let part = |line: &str, start: &str, end: &str| {
        let (_, rest) = line.split_once(start)?;
        rest.split_once(end).map(|(part, _)| part.to_owned())
    };
    let blocked: Vec<_> = log
        .lines()
        .filter(|line| line.contains("is blocked"))
        .filter_map(|line| part(line, "Accessing \"", "\""))
        .collect();
    let tried = log.lines().filter_map(|line| part(line, "Trying to access \"", "\""));
    tried.filter(|place| !blocked.contains(place)).collect()
}

#[tokio::test]
async fn b_149_what_is_blocked_is_contacted_by_us_as_little_and_as_much_as_by_skopeo() {
    if !require(&["skopeo"]) {
        return;
    }
    let blocked = "[[registry]]\nlocation = '127.0.0.2:1'\nblocked = true\n";
    let mirror = "[[registry.mirror]]\nlocation = '127.0.0.3:1/m'\n";
    let through = "[[registry]]\nlocation = '127.0.0.4:1'\n[[registry.mirror]]\nlocation = '127.0.0.2:1/m'\n";
    let moved = "[[registry]]\nprefix = '127.0.0.5:1'\nlocation = '127.0.0.3:1/x'\nblocked = true\n";
    let hidden = "[[registry]]\nprefix = '127.0.0.6:1'\nlocation = '127.0.0.2:1/x'\n";
    let below = "[[registry]]\nlocation = '127.0.0.7:1'\n[[registry]]\nlocation = '127.0.0.7:1/team'\nblocked = true\n";
    let conf = [blocked, mirror, through, moved, hidden, below].concat();
    let files = Files::new();
    files.write("registries.conf", &conf);
    for (host, places) in [("127.0.0.2", 1), ("127.0.0.4", 1), ("127.0.0.5", 1), ("127.0.0.6", 0), ("127.0.0.7", 0)] {
        let host = format!("{host}:1");
        let selector = Selector::Tag("v1".to_owned());
        let found = client(files.options()).find(&host, "team/app", selector).await;
        let ours: Vec<_> = match found {
            Ok(repository) => repository.hosts().into_iter().map(|host| host.name).collect(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Denied, "{}", shown(&error));
                Vec::new()
            }
        };
        let theirs = asked_by_skopeo(&files.path().join("registries.conf"), &format!("{host}/team/app:v1"));
        let hosts: Vec<_> = theirs.iter().filter_map(|place| place.split('/').next()).collect();
        assert_eq!((ours, hosts.len()), (hosts.iter().map(|&host| host.to_owned()).collect(), places), "{host}");
    }
}

#[tokio::test]
async fn b_149_what_is_blocked_and_what_nobody_may_do_are_errors_that_name_the_file() {
    let files = Files::new();
    files.write("registries.conf", "[[registry]]\nlocation = 'bad.example'\nblocked = true");
    files.write("tree/mute.example/hosts.toml", "server = 'https://mute.example'\ncapabilities = ['pull']");
    let find = async |host: &str| client(files.options()).find(host, "a", Selector::Tag("v1".to_owned())).await;
    let error = find("bad.example").await.expect_err("blocked");
    assert!(error.kind() == ErrorKind::Denied && shown(&error).contains("registries.conf"), "{}", shown(&error));
    let error = find("mute.example").await.expect("sound files").resolve().await.expect_err("nobody resolves");
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    let text = shown(&error);
    assert!(
        text.contains("no host is to be asked for the tags of mute.example/a") && text.contains("hosts.toml"),
        "{text}"
    );
}

#[tokio::test]
async fn a_change_of_the_files_counts_for_what_is_open_when_its_hosts_fail() {
    let blob = noise(5000);
    let gone = always(Reply::new(410, "")).await;
    let (mirror, files) = (serving(&blob).await, Files::new());
    files.hosts_toml(&gone, &[(&gone, "capabilities = ['pull']")]);
    let repository = files.repository(&gone, files.options()).await;
    let reader = repository.blob(&descriptor(&blob));
    read(&reader, 0..10).await.expect_err("nobody has it");
    let wait = async || tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    files.hosts_toml(&gone, &[(&gone, "capabilities = ['fly']")]);
    wait().await;
    read(&reader, 0..10).await.expect_err("what is wrong changes nothing");
    assert!(gone.log().iter().all(|request| request.path().contains("/blobs/")) && !gone.log().is_empty());
    files.hosts_toml(&gone, &[(&mirror, "")]);
    // They may not have been read in time, and then they count for whoever comes next.
    let begun = std::time::Instant::now();
    let bytes = loop {
        wait().await;
        match read(&reader, 0..10).await {
            Err(error) if begun.elapsed().as_secs() < 60 => eprintln!("not yet: {}", shown(&error)),
            bytes => break bytes,
        }
    };
    assert_eq!(bytes.expect("the new mirror has it"), blob[..10]);
    repository.resolve().await.expect("and resolves");
    assert_eq!(repository.hosts().into_iter().map(|host| host.name).collect::<Vec<_>>(), [mirror.host(), gone.host()]);
    files.hosts_toml(&gone, &[]);
    wait().await;
    read(&reader, 0..10).await.expect("what works is not looked at every second");
    assert_eq!(mirror.log().len(), 3);
}

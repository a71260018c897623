//! Blobs in a store of their own, as clouds have it: the registry wants a login and sends to URLs that are signed, good for a
//! moment, and refused with a login.

use std::fs;
use std::time::{Duration, Instant};

use super::servers::Server;
use super::{NAME, Shown, ready};
use crate::support::{DockerRegistry, Ocifs, output_of};

/// `me` with password `correct horse`, as htpasswd -B writes it.
const HTPASSWD: &str = "me:$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n";

/// nginx in front of `registry`, and on its second port a store with the registry's blobs. A URL is good until the ten
/// seconds in which it was given out are over.
fn front(registry: &DockerRegistry) -> Server {
    Server::nginx(2, |ports, _| {
        let blobs = registry.store().join("data/docker/registry/v2/blobs/sha256");
        format!(
            "map $time_iso8601 $now {{ '~^(?<tens>.*:.*:[0-9])' $tens; }}\n\
             server {{ listen 127.0.0.1:{near};\n\
               location / {{ proxy_pass http://{registry}; }}\n\
               location ~ /blobs/ {{\n\
                 if ($http_authorization) {{ return 307 http://127.0.0.1:{far}$uri?signed=$now; }}\n\
                 proxy_pass http://{registry}; }} }}\n\
             server {{ listen 127.0.0.1:{far};\n\
               location ~ '^/v2/.+/blobs/sha256:(?<head>[0-9a-f][0-9a-f])(?<tail>[0-9a-f]+)$' {{\n\
                 if ($http_authorization) {{ return 400; }}\n\
                 if ($arg_signed != $now) {{ return 403; }}\n\
                 alias {blobs}/$head/$head$tail/data; }} }}",
            near = ports[0],
            far = ports[1],
            registry = registry.addr(),
            blobs = blobs.display()
        )
    })
}

#[test]
fn b_083_blobs_behind_signed_urls_are_read_after_the_urls_have_run_out() {
    if !ready(&["nginx"]) {
        return;
    }
    let shown = Shown::new();
    let files = crate::support::temp_dir();
    let htpasswd = files.path().join("htpasswd");
    fs::write(&htpasswd, HTPASSWD).expect("a file");
    let auth = format!("auth: {{htpasswd: {{realm: it, path: '{}'}}}}", htpasswd.display());
    let registry = DockerRegistry::start_with(&auth).expect("the test asked whether it is here");
    let mut skopeo = std::process::Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--preserve-digests"]);
    skopeo.args(["--dest-creds", "me:correct horse"]).arg(format!("oci:{}:v1", shown.layout().display()));
    output_of(skopeo.arg(format!("docker://{}/{NAME}", registry.addr())));
    let front = front(&registry);

    let reference = format!("127.0.0.1:{}/{NAME}", front.port(0));
    let login = files.path().join("auth.json");
    let entry =
        format!(r#"{{"auths":{{"127.0.0.1:{}":{{"username":"me","password":"correct horse"}}}}}}"#, front.port(0));
    fs::write(&login, entry).expect("a file");
    let login = login.to_string_lossy().into_owned();
    let ocifs = Ocifs::new();
    let point = ocifs.mount_point("m");
    let dir = point.path().to_string_lossy().into_owned();
    let mount = ["mount", "--fill=off", "--profile-until=0", "--io=cached", "--authfile", &login, &reference, &dir];
    ocifs.run(mount).ok();
    let begun = Instant::now();
    shown.assert_shown(point.path());

    // Again without a byte of it, when what was learned before is worth nothing any more.
    ocifs.umount(&point);
    ocifs.drop_bytes();
    assert!(ocifs.end_daemon(), "it ends when it is told to");
    ocifs.run(mount).ok();
    shown.touch(point.path());
    std::thread::sleep(Duration::from_millis(10_100));
    shown.assert_shown(point.path());

    let log = front.log();
    let answered = |status: &str| log.lines().filter(|line| line.contains(&format!("\" {status} "))).count();
    assert!(answered("206") + answered("200") > 3 && answered("307") > 1, "{log}");
    assert!(answered("403") > 0, "a URL ran out within {:?}: {log}", begun.elapsed());
    assert_eq!(answered("400"), 0, "the login went to the store: {log}");
}

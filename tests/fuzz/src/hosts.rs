//! The user's files about hosts, and the headers of those hosts.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use ocifs::fuzzing::{content_range, next_page, plan};
use ocifs::registry::HostFiles;
use ocifs::registry::hosts::ShortNames;

use crate::parcels::scratch;

/// containerd's file about one registry.
pub(crate) fn hosts_toml(data: &[u8]) {
    static FILE: OnceLock<(PathBuf, HostFiles)> = OnceLock::new();
    let (file, files) = FILE.get_or_init(|| {
        let tree = scratch().join("tree");
        fs::create_dir_all(tree.join("r.example")).expect("a directory");
        let file = tree.join("r.example/hosts.toml");
        (file, HostFiles { trees: vec![tree], ..HostFiles::default() })
    });
    fs::write(file, data).expect("written");
    plan(files, "r.example", "a/b");
}

/// podman's file about all registries.
pub(crate) fn registries_conf(data: &[u8]) {
    static FILE: OnceLock<(PathBuf, HostFiles)> = OnceLock::new();
    let (file, files) = FILE.get_or_init(|| {
        let file = scratch().join("registries.conf");
        (file.clone(), HostFiles { registries: vec![file], ..HostFiles::default() })
    });
    fs::write(file, data).expect("written");
    for host in ["r.example", "docker.io", "x.r.example:5000"] {
        plan(files, host, "library/b");
    }
    if let Ok(names) = ShortNames::read(files, None) {
        for name in ["a", "a:1", "a/b@sha256:0"] {
            drop(names.expand(name));
        }
    }
}

/// Where a list goes on, and what is sent of a blob.
pub(crate) fn headers(data: &[u8]) {
    next_page(data);
    content_range(data);
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub(crate) fn hosts_toml_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "server = \"https://r.example\"\ncapabilities = [\"pull\"]\n[host.\"https://m.example/v2/x\"]\n\
         capabilities = [\"pull\", \"resolve\", \"push\"]\noverride_path = true\nskip_verify = true\nca = \"a.crt\"\n\
         client = [[\"a.cert\", \"a.key\"], [\"b\", \"\"]]\ndial_timeout = \"1m30s\"\n\
         [host.\"https://m.example/v2/x\".header]\nx-a = [\"1\", \"2\"]\nx-b = \"3\"\n",
        "[host.\"http://[::1]:5000\"]\nclient = \"a.pem\"\nproxy = \"http://u:p@proxy:3128\"\nca = [\"a\", \"b\"]\n",
    ])
}

pub(crate) fn registries_conf_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "unqualified-search-registries = [\"docker.io\"]\nshort-name-mode = \"enforcing\"\n[[registry]]\nprefix = \"*.r.example\"\n\
         location = \"m.example/x\"\ninsecure = true\n[[registry.mirror]]\nlocation = \"n.example\"\n\
         pull-from-mirror = \"digest-only\"\n[aliases]\n\"a\" = \"docker.io/library/a\"\n",
        "[[registry]]\nprefix = \"r.example/a\"\nlocation = \"r.example/a\"\nblocked = true\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"x:5000/y\"\ninsecure = true\n",
        "[registries.search]\nregistries = [\"docker.io\"]\n",
    ])
}

pub(crate) fn challenge_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "Bearer realm=\"https://auth.example/token\",service=\"r.example\",scope=\"repository:a/b:pull,push repository:c:pull\"",
        "Basic realm=\"a\\\"b\", Negotiate dG9rZW4=, BEARER realm=x",
        "Digest qop=\"auth\", nonce=\"x\"\nBearer error=\"invalid_token\"",
    ])
}

pub(crate) fn headers_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "</v2/a/referrers/sha256:0?last=1>; rel=\"next\"",
        "<x>; rel=prev, </y>; title=\"a\"; rel=next",
        "<https://r.example/x?n=1&last=a%2Fb>;rel=next\n<//e/x>; rel=next",
        "bytes 5-9/100",
        "bytes */100",
    ])
}

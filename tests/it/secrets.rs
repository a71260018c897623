//! D-034: no secret leaves the program but to the server it is meant for.
//!
//! A whole session runs under strace, with a password, an identity token, a helper program and redirects to signed URLs,
//! through expired tokens and failing servers, and logs all it can. Then every system call that could carry a secret to an
//! argument, an environment, a file or another process is looked at, and so are all files that are left. The same
//! secrets have to be seen on their way to a server, or the test would show nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocifs::demo::registry::{Bearer, Content, Credentials, Endpoint, Fault};
use serde_json::json;

use crate::support::{Embedded, Image, Layer, Mount, Ocifs, noise, require, require_fuse, require_root, run, walk};

const PASSWORD: &str = "hunter2Zq9xW7pass";
const IDENTITY: &str = "id3nt1tyKq8vV2refresh";
const HELPED: &str = "h3lperRt5yN1secret";
const SIGNATURE: &str = "s1gnatureLm4pQ8presigned";

/// The system calls that write, or start a program.
const CALLS: &str = "trace=execve,execveat,write,writev,pwrite64,pwritev,pwritev2,openat,rename,renameat2,symlinkat,\
                     setxattr,fsetxattr,sendto,sendmsg,sendmmsg";

/// Three registries that demand a token of who has one of three logins, and keep their blobs elsewhere, behind URLs with a
/// signature.
struct Registries {
    password: Embedded,
    identity: Embedded,
    helper: Embedded,
    far: Embedded,
}

impl Registries {
    fn start() -> Self {
        let content = Content::new();
        for number in 0..4 {
            let layer = Layer::new().dir("usr").file("usr/file", noise(20_000, number));
            Image::new().layer(layer).to_content(&content, "it", &format!("v{number}"));
        }
        let far = Embedded::start(content.clone());
        // A store that fails now and then, and whose signed URLs run out.
        far.set_faults(|request| match request.number % 5 {
            1 => Some(Fault::status(403)),
            2 => Some(Fault::status(500)),
            3 => Some(Fault::Reset { after: 100 }),
            _ => None,
        });
        let start = |user: &str, secret: &str| {
            let registry = Embedded::start(content.clone());
            let credentials = Some(Credentials::new(user, secret));
            let (bearer, store) = (Bearer { credentials, ..Bearer::default() }, far.addr());
            registry.set_faults(move |request| {
                let path = &request.path;
                let signed = format!("http://{store}{path}?X-Amz-Expires=60&X-Amz-Signature={SIGNATURE}");
                let is_blob = matches!(request.endpoint, Endpoint::Blob { .. });
                // The redirect stands in for the answer, so it is not for those who were refused.
                let may = !is_blob || request.header("authorization").is_some();
                let mut faults = vec![Fault::Bearer(bearer.clone())];
                faults.extend((is_blob && may).then(|| Fault::redirect(signed)));
                Some(Fault::Many(faults))
            });
            registry
        };
        let (password, identity) = (start("me", PASSWORD), start("anyone", IDENTITY));
        Self { password, identity, helper: start("helped", HELPED), far }
    }

    fn all(&self) -> [&Embedded; 3] {
        [&self.password, &self.identity, &self.helper]
    }

    /// Every token that was sent to one of them.
    fn tokens(&self) -> Vec<String> {
        let requests = self.all().into_iter().flat_map(|registry| registry.requests());
        let mut tokens: Vec<String> = requests
            .filter_map(|record| Some(record.request.header("authorization")?.strip_prefix("Bearer ")?.to_owned()))
            .collect();
        tokens.sort();
        tokens.dedup();
        tokens
    }
}

/// The user's files: the only places where secrets may lie.
struct Files {
    auth: PathBuf,
    programs: PathBuf,
}

impl Files {
    fn write(directory: &Path, registries: &Registries) -> Self {
        let programs = directory.join("programs");
        fs::create_dir_all(&programs).expect("a directory");
        let answer = programs.join("answer.json");
        let helped = json!({ "ServerURL": "x", "Username": "helped", "Secret": HELPED });
        fs::write(&answer, helped.to_string()).expect("a file");
        let helper = programs.join("docker-credential-it");
        fs::write(&helper, format!("#!/bin/sh\nexec cat {}\n", answer.display())).expect("a file");
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("the file is ours");
        let [password, identity, helper] = registries.all().map(|registry| registry.addr().to_string());
        let auth = directory.join("auth.json");
        let text = json!({
            "auths": { password: { "auth": basic("me", PASSWORD) }, identity: { "identitytoken": IDENTITY } },
            "credHelpers": { helper: "it" },
        });
        fs::write(&auth, text.to_string()).expect("a file");
        Self { auth, programs }
    }
}

/// A login as an `Authorization` header has it.
fn basic(user: &str, secret: &str) -> String {
    STANDARD.encode(format!("{user}:{secret}"))
}

/// An installation whose programs run under strace.
struct Watched {
    ocifs: Ocifs,
    path: String,
    traces: tempfile::TempDir,
    /// What commands printed.
    printed: String,
}

impl Watched {
    /// The command `arguments` under strace, whose findings go into the file `name`.
    fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut inner = self.ocifs.command(arguments);
        inner.env("PATH", &self.path).env("OCIFS_LOG", "trace");
        let mut command = Command::new("strace");
        command.args(["-f", "--seccomp-bpf", "-yy", "-v", "-s", "1000000", "-e", CALLS, "-e", "signal=none"]);
        command.arg("-o").arg(self.traces.path().join(name)).arg("--").arg(inner.get_program()).args(inner.get_args());
        command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    /// Runs a command to its end. The daemon must be there already, or strace would wait for it.
    fn run(&mut self, name: &str, arguments: &[&str]) -> i32 {
        let ran = run(&mut self.command(name, arguments));
        self.printed.push_str(&ran.stdout);
        self.printed.push_str(&ran.stderr);
        ran.code()
    }

    /// Starts a daemon that stays until it is told to end; the value is strace.
    fn daemon(&self) -> Child {
        let mut command = self.command("daemon", &["daemon"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = fs::File::create(self.traces.path().join("daemon.stderr")).expect("a file");
        let child = command.stderr(log).spawn().expect("strace can be started");
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.ocifs.daemon().is_none() {
            assert!(Instant::now() < deadline, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        child
    }

    fn mount(&mut self, files: &Files, reference: &str, point: &Mount) -> i32 {
        let (auth, dir) = (files.auth.to_string_lossy().into_owned(), point.path().to_string_lossy().into_owned());
        let arguments = ["mount", "--fill=off", "--profile-until=0", "--authfile", &auth, reference, &dir];
        let name = format!("mount-{}", reference.replace(['/', ':'], "-"));
        self.run(&name, &arguments)
    }
}

#[test]
fn d_034_no_secret_reaches_an_argument_a_child_a_file_or_the_log() {
    if !require(&["strace"]) || !require_fuse() || !require_root() {
        return;
    }
    let registries = Registries::start();
    let ocifs = Ocifs::new();
    let files = Files::write(ocifs.home(), &registries);
    let path = format!("{}:{}", files.programs.display(), std::env::var("PATH").unwrap_or_default());
    let mut watched = Watched { ocifs, path, traces: crate::support::temp_dir(), printed: String::new() };
    let mut daemon = watched.daemon();
    let points: Vec<_> = (0..3).map(|number| watched.ocifs.mount_point(&number.to_string())).collect();
    for ((number, registry), point) in registries.all().into_iter().enumerate().zip(&points) {
        assert_eq!(watched.mount(&files, &registry.name(&format!("it:v{number}")), point), 0, "{}", watched.printed);
        watched.ocifs.drop_bytes();
        registry.revoke_tokens();
        let tree = walk(point.path()).expect("it can be read");
        assert!(tree.contains_key(b"usr/file".as_slice()));
    }
    // A login that is refused and a server that is gone are errors to tell, with nothing of the secrets in them.
    fs::write(
        &files.auth,
        fs::read_to_string(&files.auth).expect("it is there").replace(IDENTITY, &basic("me", HELPED)),
    )
    .expect("a file");
    let other = watched.ocifs.mount_point("other");
    assert_ne!(watched.mount(&files, &registries.identity.name("it:v3"), &other), 0, "the login is wrong");
    registries.far.set_faults(|_| Some(Fault::status(410)));
    assert_ne!(watched.mount(&files, &registries.password.name("it:v3"), &other), 0, "the layer is gone");
    assert_eq!(watched.run("status", &["status", "--json"]), 0);
    for point in &points {
        assert_eq!(watched.run("umount", &["umount", &point.path().to_string_lossy()]), 0);
    }
    assert!(watched.ocifs.end_daemon(), "it ends when it is told to");
    assert!(daemon.wait().expect("strace ends with it").success());

    let mut secrets = vec![PASSWORD.to_owned(), IDENTITY.to_owned(), HELPED.to_owned(), SIGNATURE.to_owned()];
    secrets.extend([basic("me", PASSWORD), basic("helped", HELPED)]);
    let tokens = registries.tokens();
    assert!(tokens.len() >= 3, "each registry gave at least one: {tokens:?}");
    secrets.extend(tokens);
    assert_traces_are_clean(watched.traces.path(), &secrets);
    assert_files_are_clean(watched.ocifs.home(), &files, &secrets);
    assert_clean("what the commands printed", &watched.printed, &secrets);
    let log = fs::read_to_string(watched.traces.path().join("daemon.stderr")).expect("a log");
    assert!(log.contains("TRACE") && log.contains("DEBUG"), "the log has everything: {log}");
    assert_clean("the log", &log, &secrets);
}

/// Fails if a secret is in `text`, with the line around it.
#[track_caller]
fn assert_clean(what: &str, text: &str, secrets: &[String]) {
    for secret in secrets {
        if let Some(line) = text.lines().find(|line| line.contains(secret.as_str())) {
            panic!("{what} has the secret {secret}: {line}");
        }
    }
}

/// Fails unless every secret went to a server over TCP, and nowhere else.
fn assert_traces_are_clean(directory: &Path, secrets: &[String]) {
    let mut sent = vec![false; secrets.len()];
    let mut programs = 0;
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "stderr") {
            continue;
        }
        let text = String::from_utf8_lossy(&fs::read(&path).expect("a trace")).into_owned();
        for line in text.lines() {
            let call = line.split_once(' ').map_or("", |(_, call)| call.trim_start());
            programs += usize::from(call.starts_with("execve("));
            for (secret, sent) in secrets.iter().zip(&mut sent) {
                if line.contains(secret.as_str()) {
                    assert!(may_carry(call), "{secret} in {}: {:.2000}", path.display(), line);
                    *sent |= goes_to_a_server(call);
                }
            }
        }
    }
    assert!(programs > 6, "strace saw {programs} programs start");
    // Those that only the base64 of a login holds are never sent as they are.
    let unseen: Vec<_> =
        secrets.iter().zip(sent).filter(|(_, sent)| !sent).map(|(secret, _)| secret.as_str()).collect();
    assert_eq!(unseen, [PASSWORD, HELPED], "strace has to see what is sent");
}

/// True for a call that writes to a TCP connection.
fn goes_to_a_server(call: &str) -> bool {
    let to = call.split_once('(').map_or("", |(_, arguments)| arguments);
    let to = to.trim_start_matches(|letter: char| letter.is_ascii_digit());
    to.starts_with("<TCP:") || to.starts_with("<TCPv6:")
}

/// True for a call that may have a secret in it: one that writes to a server, or the helper program's answer.
fn may_carry(call: &str) -> bool {
    goes_to_a_server(call) || call.starts_with("write(1<pipe:")
}

/// Fails if a secret is in a file of the installation, or in the name of one.
fn assert_files_are_clean(home: &Path, files: &Files, secrets: &[String]) {
    let mut waiting = vec![home.to_owned()];
    let mut count = 0;
    while let Some(path) = waiting.pop() {
        if path == files.auth || path == files.programs {
            continue;
        }
        assert_clean("a path", &path.to_string_lossy(), secrets);
        let kind = fs::symlink_metadata(&path).expect("nobody removes it").file_type();
        if kind.is_dir() {
            waiting.extend(fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()));
        } else if kind.is_file() {
            count += 1;
            let bytes = fs::read(&path).expect("a file");
            assert_clean(&path.display().to_string(), &String::from_utf8_lossy(&bytes), secrets);
        }
    }
    assert!(count >= 6, "{count} files in the cache");
}

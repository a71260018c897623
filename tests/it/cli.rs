//! The command line as users and scripts meet it: help, exit codes, `error / cause / hint`, and what each command prints.
//! Images come from layouts on disk, so that nothing here needs a registry.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{EntryContent, Image, Layer, Ocifs, Ran, eventually, require, require_fuse, require_root, run};

/// Longest that something is waited for.
const LONG: Duration = Duration::from_secs(20);

/// An installation whose daemon is ended with the test.
struct Bench {
    ocifs: Ocifs,
}

impl Bench {
    fn new() -> Self {
        Self { ocifs: Ocifs::new() }
    }

    /// Runs a command in the home directory, so that relative paths start there.
    fn run<const N: usize>(&self, args: [&str; N]) -> Ran {
        run(self.ocifs.command(args).current_dir(self.ocifs.home()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.ocifs.home().join(name)
    }

    fn json<const N: usize>(&self, args: [&str; N]) -> Value {
        serde_json::from_str(&self.run(args).ok().stdout).expect("JSON on standard output")
    }

    /// Writes a small image into the layout `image` as `1.0`.
    fn with_image(self) -> Self {
        let layer = Layer::new()
            .dir("etc")
            .file("etc/os-release", "NAME=test\n")
            .file("bin/su", vec![7_u8; 3000])
            .mode(0o4755)
            .symlink("bin/sh", "su")
            .symlink("etc/dangling", "nowhere")
            .symlink("lib", "bin")
            .add("dev/sda", EntryContent::BlockDevice(8, 0))
            .file("etc/\x1b]0;title\x07", "")
            .file(b"etc/\xff", "");
        let config = json!({ "org.example.title": "one\ntwo\x1b[2J" });
        let image = Image::new()
            .layer(layer)
            .config("/config", "Entrypoint", json!(["/bin/sh", "-c"]))
            .config("/config", "Labels", config);
        image.to_layout(&self.path("image"), "1.0");
        self
    }

    /// The daemon's process, if one is running.
    fn daemon(&self) -> Option<Pid> {
        let pid = self.json(["status", "--json"])["pid"].as_i64()?;
        Pid::from_raw(i32::try_from(pid).expect("a process number"))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let Some(pid) = self.daemon() {
            kill_process(pid, Signal::TERM).expect("the daemon can be told to end");
        }
    }
}

/// Panics unless the command failed with `code` and told exactly `stderr`.
#[track_caller]
fn assert_failed(ran: &Ran, code: i32, stderr: &str) {
    assert_eq!((ran.stderr.as_str(), ran.code()), (stderr, code));
    assert_eq!(ran.stdout, "");
}

#[test]
fn help_shows_commands_exit_codes_and_files() {
    let bench = Bench::new();
    let help = bench.run(["--help"]).ok().stdout;
    for part in ["  mount ", "  cache ", "  8    the mount is in use", "plain-http = [", "$OCIFS_CACHE_DIR"] {
        assert!(help.contains(part), "{part} is not in:\n{help}");
    }
    assert!(!help.contains("  daemon "), "the daemon is not for people:\n{help}");
    let mount = bench.run(["mount", "--help"]).ok().stdout;
    assert!(mount.contains("ocifs mount debian:12 /mnt/debian") && mount.contains("<REF> <DIR>"), "{mount}");
    let references = bench.run(["help", "references"]).ok().stdout;
    assert!(references.contains("docker-archive:FILE[:NAME]"), "{references}");
}

#[test]
fn text_that_cannot_be_written_is_told_and_text_that_nobody_reads_on_is_not() {
    let bench = Bench::new();
    let texts: [&[&str]; 6] = [
        &["--help"],
        &["--version"],
        &["mount", "--help"],
        &["help", "references"],
        &["completions", "bash"],
        &["man"],
    ];
    for args in texts {
        let full = fs::File::options().write(true).open("/dev/full").expect("Linux has it");
        let ran = bench.ocifs.command(args).stdout(full).stderr(Stdio::piped()).spawn().expect("it runs");
        let ran = ran.wait_with_output().expect("it ends");
        let told = "error: cannot write to standard output\ncause: No space left on device (os error 28)\n";
        assert_eq!((String::from_utf8_lossy(&ran.stderr).as_ref(), ran.status.code()), (told, Some(1)), "{args:?}");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let ran = bench.ocifs.command(args).stdout(writer).stderr(Stdio::piped()).spawn().expect("it runs");
        let ran = ran.wait_with_output().expect("it ends");
        assert_eq!((String::from_utf8_lossy(&ran.stderr).as_ref(), ran.status.code()), ("", Some(0)), "{args:?}");
    }
    // What is wrong with arguments is told on standard error, whatever standard output is.
    let full = fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    assert_eq!(
        bench.ocifs.command(["nonsense"]).stdout(full).stderr(Stdio::null()).status().expect("it runs").code(),
        Some(2)
    );
}

/// True if a process has a handler for `signal` (proc_pid_status(5)).
fn catches(pid: Pid, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).map(str::trim);
    mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask >> (signal.as_raw() - 1) & 1 == 1)
}

/// Starts `ocifs` with `args`, words for a shell, on a terminal whose output goes to the file `screen` and behind `prelude`,
/// commands for the shell. Returns the terminal's process, which ends as the command does.
fn on_terminal(bench: &Bench, prelude: &str, args: &str) -> std::process::Child {
    let mut command = std::process::Command::new("script");
    let program = env!("CARGO_BIN_EXE_ocifs");
    command.args(["-q", "-e", "-f", "-c", &format!("{prelude} echo $$ > pid; exec {program} {args}"), "screen"]);
    let template = bench.ocifs.command([""; 0]);
    command.env_clear().envs(template.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "xterm");
    command.env("SHELL", "/bin/sh").current_dir(bench.ocifs.home()).stdin(Stdio::piped()).stdout(Stdio::null());
    command.spawn().expect("it runs")
}

#[test]
fn a_command_that_a_signal_ends_takes_its_progress_away() {
    if !require(&["script"]) {
        return;
    }
    for (signal, ignored) in
        [(Signal::INT, None), (Signal::TERM, None), (Signal::HUP, None), (Signal::TERM, Some("HUP"))]
    {
        let bench = Bench::new();
        rustix::fs::mkfifoat(rustix::fs::CWD, bench.path("fifo"), rustix::fs::Mode::RWXU).expect("a pipe with a name");
        let prelude = ignored.map_or_else(String::new, |ignored| format!("trap '' {ignored};"));
        let mut terminal = on_terminal(&bench, &prelude, "cache import fifo");
        // Whoever holds it open for writing keeps the command waiting.
        let held = fs::File::options().read(true).write(true).open(bench.path("fifo")).expect("it can be opened");
        let screen = || String::from_utf8_lossy(&fs::read(bench.path("screen")).unwrap_or_default()).into_owned();
        eventually(LONG, "the line is shown", || screen().contains("importing "));
        let pid = fs::read_to_string(bench.path("pid")).expect("it was written before");
        let pid = Pid::from_raw(pid.trim().parse().expect("a number")).expect("not zero");
        eventually(LONG, "signals are caught", || catches(pid, signal));
        if ignored.is_some() {
            kill_process(pid, Signal::HUP).expect("it can be sent a signal");
            let shown = screen().len();
            eventually(LONG, "the line goes on", || screen().len() > shown);
        }
        kill_process(pid, signal).expect("it can be ended");
        assert_eq!(terminal.wait().expect("it ends").code(), Some(128 + signal.as_raw()), "{signal:?}");
        drop(held);
        let screen = screen();
        let (_, after) = screen.rsplit_once("importing ").expect("it was shown");
        assert!(after.contains("\r\x1b[2K"), "{signal:?}: the line stays: {after:?}");
    }
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let bench = Bench::new();
    for args in [vec![], vec!["mount"], vec!["mount", "--no-such-option"], vec!["nonsense"], vec!["cache"]] {
        let ran = bench.ocifs.run(&args);
        assert_eq!((ran.code(), ran.stdout.as_str()), (2, ""), "{args:?}");
        assert!(ran.stderr.contains("Usage: ocifs"), "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn a_text_that_is_no_reference_is_told_before_anything_is_started() {
    let bench = Bench::new();
    assert_failed(
        &bench.run(["mount", "https://example.com/debian", "."]),
        2,
        "error: \"https://example.com/debian\" does not name an image\n\
         cause: \"https://example.com/debian\" starts with a URL scheme; write only HOST/NAME[:TAG], without https://\n\
         hint: `ocifs help references` shows how images are named\n",
    );
    assert_failed(
        &bench.run(["inspect", "--platform", "amd64", "debian"]),
        2,
        "error: cannot use the value of --platform\n\
         cause: invalid platform \"amd64\"; write os/architecture[/variant], such as linux/amd64 or linux/arm/v7\n",
    );
    assert_failed(
        &bench.run(["ls", "--authfile", "missing.json", "debian"]),
        2,
        "error: cannot read the credentials in missing.json\ncause: No such file or directory (os error 2)\n",
    );
    assert!(!bench.ocifs.runtime().exists() && !bench.ocifs.cache().exists(), "a daemon was started");
}

#[test]
fn a_mistake_in_a_configuration_file_names_file_and_line() {
    let bench = Bench::new();
    let file = bench.path(".config/ocifs/config.toml");
    fs::create_dir_all(file.parent().expect("it has one")).expect("a directory");
    fs::write(&file, "fill = 'off'\ncachedir = '/c'\n").expect("a file");
    let ran = bench.run(["list"]);
    let start = format!(
        "error: cannot use the configuration file {}\ncause: line 2: there is no key cachedir\n",
        file.display()
    );
    assert!(ran.code() == 2 && ran.stderr.starts_with(&start), "{}", ran.stderr);
    // What needs no configuration works all the same.
    bench.run(["help", "references"]).ok();
    bench.run(["completions", "bash"]).ok();
    fs::remove_file(file).expect("it is there");
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let bench = Bench::new();
    let file = bench.path(".config/ocifs/config.toml");
    fs::create_dir_all(file.parent().expect("it has one")).expect("a directory");
    fs::write(&file, "cache-dir = '/from-file'\n").expect("a file");
    let cache = |args: &[&str], variable: Option<&str>| {
        let mut command = bench.ocifs.command(args);
        command.env_remove("OCIFS_CACHE_DIR").envs(variable.map(|value| ("OCIFS_CACHE_DIR", value)));
        let status: Value = serde_json::from_str(&run(&mut command).ok().stdout).expect("JSON");
        status["cache_dir"].as_str().expect("a path").to_owned()
    };
    assert_eq!(cache(&["status", "--json"], None), "/from-file");
    assert_eq!(cache(&["status", "--json"], Some("")), "/from-file", "set to nothing is not set");
    assert_eq!(cache(&["status", "--json"], Some("/from-variable")), "/from-variable");
    assert_eq!(cache(&["--cache-dir", "/from-flag", "status", "--json"], Some("/from-variable")), "/from-flag");
}

#[test]
fn completions_and_manual_pages_are_made() {
    let bench = Bench::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(bench.run(["completions", shell]).ok().stdout.contains("umount"), "{shell}");
    }
    assert!(bench.run(["man"]).ok().stdout.contains(".SH \"EXIT STATUS\""));
    fs::create_dir(bench.path("man")).expect("a directory");
    bench.run(["man", "man"]).ok();
    for page in ["ocifs.1", "ocifs-mount.1", "ocifs-cache-verify.1"] {
        assert!(bench.path("man").join(page).is_file(), "{page}");
    }
    let failed = bench.run(["man", "missing"]);
    assert_failed(&failed, 1, "error: cannot write missing/ocifs.1\ncause: No such file or directory (os error 2)\n");
}

#[test]
fn a_reader_that_has_read_enough_is_no_failure() {
    let bench = Bench::new();
    let mut command = bench.ocifs.command(["completions", "bash"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    // Closed before anything is read: the script does not fit into the pipe or is written to nobody.
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("text");
    assert!(child.wait().expect("it ends").success() && stderr.is_empty(), "{stderr}");
}

#[test]
fn looking_for_mounts_starts_no_daemon() {
    let bench = Bench::new();
    assert_eq!(bench.run(["list"]).ok().stdout, "");
    assert_eq!(bench.run(["list", "--json"]).ok().stdout, "[]\n");
    assert!(bench.run(["status"]).ok().stdout.starts_with("no daemon is running for "));
    assert_eq!(bench.json(["status", "--json"])["mounts"], json!([]));
    let home = bench.ocifs.home().canonicalize().expect("it exists");
    let missing = format!("{} is not a mount of this daemon", home.display());
    assert_failed(&bench.run(["status", "."]), 3, &format!("error: {missing}\ncause: no daemon is running\n"));
    assert_failed(
        &bench.run(["umount", "."]),
        3,
        &format!("error: {missing}\nhint: `ocifs list` shows what is mounted\n"),
    );
    assert!(!bench.ocifs.runtime().exists() && !bench.ocifs.cache().exists());
}

#[test]
fn a_mount_point_that_cannot_be_used_is_exit_code_7() {
    if !require_fuse() {
        return;
    }
    let bench = Bench::new().with_image();
    let home = bench.ocifs.home().canonicalize().expect("it exists");
    let home = home.display();
    let reference = "oci:image:1.0";
    assert_failed(
        &bench.run(["mount", reference, "missing"]),
        7,
        &format!(
            "error: cannot mount on {home}/missing\ncause: No such file or directory (os error 2)\n\
             hint: make it first: mkdir -p {home}/missing\n"
        ),
    );
    assert_failed(
        &bench.run(["mount", reference, "image/oci-layout"]),
        7,
        &format!(
            "error: cannot mount on {home}/image/oci-layout\ncause: Not a directory (os error 20)\n\
             hint: the mount point must be a directory\n"
        ),
    );
    assert_failed(
        &bench.run(["mount", reference, "image"]),
        7,
        &format!(
            "error: cannot mount on {home}/image\ncause: the directory is not empty\nhint: use an empty directory\n"
        ),
    );
    assert_eq!(bench.json(["list", "--json"]), json!([]));
}

#[test]
fn an_image_that_is_not_there_is_exit_code_3() {
    let bench = Bench::new().with_image();
    for args in [["inspect", "oci:image:2.0"], ["ls", "oci:nowhere"], ["inspect", "docker-archive:nowhere.tar"]] {
        let ran = bench.run(args);
        assert_eq!((ran.code(), ran.stdout.as_str()), (3, ""), "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.starts_with("error: cannot ") && ran.stderr.contains("\ncause: "), "{}", ran.stderr);
    }
    let ran = bench.run(["cat", "oci:image:1.0", "/no/such"]);
    assert_failed(&ran, 3, "error: the image has no /no/such\nhint: `ocifs ls REF DIRECTORY` lists what there is\n");
    for directory in ["/etc", "", "/"] {
        let ran = bench.run(["cat", "oci:image:1.0", directory]);
        let shown = if directory.is_empty() { "/" } else { directory };
        let error = format!("error: {shown} is not a regular file\nhint: ");
        assert!(ran.code() == 3 && ran.stderr.starts_with(&error), "{}", ran.stderr);
    }
    let ran = bench.run(["cat", "oci:image:1.0", "etc/dangling"]);
    let error = "error: the link etc/dangling leads to nothing in the image\ncause: it is a symbolic link to nowhere\n";
    assert!(ran.code() == 3 && ran.stderr.starts_with(error), "{}", ran.stderr);
    let ran = bench.run(["cat", "oci:image:1.0", "etc/no\nsuch"]);
    assert!(ran.stderr.starts_with("error: the image has no etc/no\\nsuch\n"), "escaped once: {}", ran.stderr);
}

#[test]
fn d_070_inspect_shows_the_configuration_without_control_characters() {
    let bench = Bench::new().with_image();
    let text = bench.run(["inspect", "oci:image:1.0"]).ok().stdout;
    assert!(text.contains("\nentrypoint  /bin/sh -c\n"), "{text}");
    assert!(text.contains("\nlabel       org.example.title=one\\ntwo\\x1b[2J\n"), "{text}");
    let report = bench.json(["inspect", "--json", "oci:image:1.0"]);
    assert_eq!(report["config"]["config"]["Labels"]["org.example.title"], "one\ntwo\u{1b}[2J");
    assert_eq!(report["layers"][0]["indexed"], false);
}

#[test]
fn d_070_ls_looks_like_ls_and_escapes_names() {
    let bench = Bench::new().with_image();
    assert_eq!(bench.run(["ls", "oci:image"]).ok().stdout, "bin\ndev\netc\nlib\n");
    assert_eq!(bench.run(["ls", "oci:image", "lib"]).ok().stdout, "sh\nsu\n", "a link to a directory is followed");
    let link = bench.run(["ls", "-l", "oci:image", "/bin/sh"]).ok().stdout;
    assert_eq!(link, "lrwxrwxrwx 1 0 0 2 2020-09-13 12:26 /bin/sh -> su\n", "any other is not");
    let link = bench.run(["ls", "-l", "oci:image", "etc/dangling"]).ok().stdout;
    assert!(link.ends_with(" /etc/dangling -> nowhere\n"), "{link}");
    assert_eq!(bench.run(["ls", "oci:image", "etc/"]).ok().stdout, "\\x1b]0;title\\x07\ndangling\nos-release\n\\xff\n");
    assert_eq!(bench.run(["ls", "oci:image", "/etc/os-release"]).ok().stdout, "/etc/os-release\n");
    let all = bench.run(["ls", "-lR", "oci:image:1.0"]).ok().stdout;
    let lines: Vec<_> = all.lines().filter(|line| line.contains("bin/") || line.contains("dev/")).collect();
    assert_eq!(
        lines,
        [
            "lrwxrwxrwx 1 0 0    2 2020-09-13 12:26 /bin/sh -> su",
            "-rwsr-xr-x 1 0 0 3000 2020-09-13 12:26 /bin/su",
            "brw-r--r-- 1 0 0 8, 0 2020-09-13 12:26 /dev/sda",
        ]
    );
    let names = bench.json(["ls", "--json", "oci:image", "/etc"]);
    assert_eq!(names[0]["path"], "etc/\u{1b}]0;title\u{7}");
    assert_eq!((&names[3]["path"], &names[3]["path_base64"]), (&Value::Null, &json!("ZXRjL/8=")));
    assert_eq!(bench.run(["ls", "--json", "oci:image", "/"]).ok().stdout.lines().last(), Some("]"));
}

#[test]
fn a_layout_on_the_disk_is_not_missing_offline() {
    let bench = Bench::new().with_image();
    assert_eq!(bench.run(["cat", "--offline", "oci:image:1.0", "etc/os-release"]).ok().stdout, "NAME=test\n");
    let digest = bench.json(["inspect", "--json", "oci:image:1.0"])["digest"].as_str().expect("text").to_owned();
    fs::rename(bench.path("image"), bench.path("moved")).expect("it is there");
    let pinned = format!("oci:image@{digest}");
    assert_eq!(bench.run(["cat", "--offline", &pinned, "etc/os-release"]).ok().stdout, "NAME=test\n");
    assert_eq!(bench.run(["cat", &pinned, "etc/os-release"]).code(), 3, "a place that is looked at has to be there");
}

#[test]
fn a_layout_that_is_named_like_an_image_is_pointed_out() {
    let bench = Bench::new().with_image();
    let ran = bench.run(["inspect", "--offline", "image:1.0"]);
    let warning = "warning: image:1.0 is looked for in a registry; oci:image is the directory here\n";
    assert!(ran.code() == 5 && ran.stderr.starts_with(warning), "{}", ran.stderr);
}

#[test]
fn an_export_takes_no_options_about_whom_to_ask() {
    let bench = Bench::new();
    for option in ["--plain-http", "--offline", "--authfile=x"] {
        assert_eq!(bench.run(["cache", "export", option, "debian", "x"]).code(), 2, "{option}");
    }
}

#[test]
fn passwords_in_what_is_no_reference_are_not_repeated() {
    let ran = Bench::new().run(["inspect", "https://me:hunter2@r.example/a"]);
    assert!(ran.code() == 2 && ran.stderr.contains("me:***@") && !ran.stderr.contains("hunter2"), "{}", ran.stderr);
}

#[test]
fn what_is_no_text_is_refused_by_name() {
    use std::os::unix::ffi::OsStrExt;
    let bench = Bench::new().with_image();
    let name = |bytes: &'static [u8]| std::ffi::OsStr::from_bytes(bytes);
    let ran = bench.ocifs.run([name(b"mount"), name(b"debian"), name(b"/m\xff")]);
    assert_failed(
        &ran,
        2,
        "error: cannot use /m\\xff\ncause: the path is not UTF-8 text\n\
         hint: use a path all of whose names are UTF-8 text\n",
    );
    let ran = bench.ocifs.run([name(b"inspect"), name(b"oci:sm\xffall")]);
    assert!(ran.code() == 2 && ran.stderr.contains("oci:sm\\xffall is not UTF-8 text"), "{}", ran.stderr);
}

#[test]
fn a_file_that_cannot_be_read_ends_with_the_code_for_its_fault() {
    let bench = Bench::new().with_image();
    let directory = bench.run(["inspect", "--authfile", ".", "localhost:1/a"]);
    assert_failed(&directory, 2, "error: cannot read the credentials in .\ncause: it is a directory\n");
    assert_eq!(bench.run(["cache", "import", "missing"]).code(), 3);
}

#[test]
fn b_096_who_waits_for_a_registry_that_says_nothing_is_told_so() {
    let bench = Bench::new();
    // Connections are made, and nobody ever takes one.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let addr = silent.local_addr().expect("a bound socket has an address");
    for command in [&["inspect"][..], &["index", "list"]] {
        let mut ocifs = bench.ocifs.command(command);
        ocifs.arg(format!("{addr}/a:1")).stderr(std::process::Stdio::piped());
        let mut child = ocifs.spawn().expect("the program runs");
        let stderr = std::io::BufReader::new(child.stderr.take().expect("a pipe"));
        let line = std::io::BufRead::lines(stderr).next().expect("it says something").expect("text");
        child.kill().and_then(|()| child.wait()).expect("it is ours");
        assert!(line.starts_with(&format!("warning: {addr} has said nothing for ")), "{command:?}: {line}");
    }
}

#[test]
fn cat_writes_the_bytes_of_a_file() {
    let bench = Bench::new().with_image();
    assert_eq!(bench.run(["cat", "oci:image:1.0", "etc/os-release"]).ok().stdout, "NAME=test\n");
    assert_eq!(bench.run(["cat", "oci:image:1.0", "/bin/sh"]).ok().stdout.as_bytes(), [7; 3000], "links are followed");
}

#[test]
fn the_cache_is_measured_emptied_and_checked() {
    let bench = Bench::new().with_image();
    bench.run(["cat", "oci:image:1.0", "etc/os-release"]).ok();
    let full = bench.json(["cache", "du", "--json"]);
    assert_eq!(full["indexes"]["count"], 1);
    assert!(bench.run(["cache", "du"]).ok().stdout.contains("\nindexes          1  "));
    assert!(bench.run(["cache", "verify"]).ok().stdout.ends_with(" good, 0 damaged\n"));

    bench.run(["cache", "drop"]).ok();
    let kept = bench.json(["cache", "du", "--json"]);
    assert_eq!((&kept["blobs"]["count"], &kept["indexes"]["count"]), (&json!(0), &json!(1)));
    let dropped = bench.run(["cache", "drop", "--all"]).ok().stdout;
    assert!(dropped.starts_with("removed "), "{dropped}");
    let empty = bench.json(["cache", "du", "--json"]);
    for part in ["manifests", "blobs", "indexes", "trees", "files"] {
        assert_eq!(empty[part]["count"], 0, "{part}");
    }
}

#[test]
fn damage_in_the_cache_is_exit_code_9() {
    let bench = Bench::new().with_image();
    bench.run(["cat", "oci:image:1.0", "etc/os-release"]).ok();
    let index = first_file(&bench.ocifs.cache().join("indexes"));
    let mut bytes = fs::read(&index).expect("it is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&index).and_then(|()| fs::write(&index, bytes)).expect("it can be replaced");
    let ran = bench.run(["cache", "verify", "--json"]);
    let report: Value = serde_json::from_str(&ran.stdout).expect("JSON all the same");
    assert_eq!(report["removed"].as_array().map(Vec::len), Some(1), "{report}");
    assert_eq!(ran.code(), 9);
    assert!(ran.stderr.starts_with("error: the cache was damaged\ncause: 1 object had "), "{}", ran.stderr);
}

/// A file in `directory` or below it.
fn first_file(directory: &Path) -> PathBuf {
    let path = fs::read_dir(directory).expect("a directory").next().expect("an entry").expect("an entry").path();
    if path.is_dir() { first_file(&path) } else { path }
}

#[test]
fn a_mount_says_nothing_shows_the_image_and_ends() {
    if !require_fuse() || !require_root() {
        return;
    }
    let bench = Bench::new().with_image();
    let point = bench.ocifs.mount_point("m");
    let dir = point.path().to_str().expect("UTF-8");
    std::os::unix::fs::symlink(dir, bench.path("link")).expect("a link");

    let mounted = bench.run(["mount", "--fill", "off", "oci:image:1.0", "link"]).ok();
    assert_eq!((mounted.stdout.as_str(), mounted.stderr.as_str()), ("", ""));
    assert_eq!(fs::read(point.path().join("etc/os-release")).expect("it is served"), b"NAME=test\n");
    let again = bench.run(["mount", "oci:image:1.0", dir]);
    assert_eq!(again.code(), 7, "{}", again.stderr);

    let listed = bench.json(["list", "--json"]);
    assert_eq!((&listed[0]["dir"], &listed[0]["fill"]), (&json!(dir), &json!("off")));
    assert!(bench.run(["list"]).ok().stdout.contains(dir));
    let status = bench.run(["status", "link"]).ok().stdout;
    assert!(status.contains("first-contact") && status.contains("  fill       off, complete\n"), "{status}");

    let file = fs::File::open(point.path().join("etc/os-release")).expect("it opens");
    let busy = bench.run(["umount", "link"]);
    assert_eq!(busy.code(), 8, "{}", busy.stderr);
    assert!(busy.stderr.contains("hint: ") && point.is_mounted(), "{}", busy.stderr);
    drop(file);
    bench.run(["umount", "link"]).ok();
    assert!(!point.is_mounted());
    assert_eq!(bench.json(["list", "--json"]), json!([]));
}

#[test]
fn a_mount_in_the_foreground_ends_with_its_process() {
    if !require_fuse() || !require_root() {
        return;
    }
    let bench = Bench::new().with_image();
    let point = bench.ocifs.mount_point("m");
    let mut command = bench.ocifs.command(["mount", "--foreground", "oci:image:1.0"]);
    command.arg(point.path()).current_dir(bench.ocifs.home()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("it runs");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !point.path().join("etc/os-release").exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(point.is_mounted(), "it is not mounted after a minute");
    // It answers once the mount is made: a signal before that interrupts the command.
    assert_eq!(bench.run(["list"]).code(), 0);
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).expect("it can be told to end");
    assert!(child.wait().expect("it ends").success());
    assert!(!point.is_mounted());
}

#[test]
fn failures_in_the_foreground_look_the_same() {
    if !require_fuse() {
        return;
    }
    let bench = Bench::new().with_image();
    let ran = bench.run(["mount", "--foreground", "oci:image:1.0", "image"]);
    assert_eq!(ran.code(), 7);
    assert!(ran.stderr.contains("cause: the directory is not empty\nhint: use an empty directory\n"), "{}", ran.stderr);
}

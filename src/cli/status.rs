//! `ocifs status`: what mounts hold, what they fetched, and why.

use std::path::{Path, PathBuf};

use clap::ValueHint;
use serde_json::json;

use super::context::Context;
use super::duration;
use super::list::warn_of_abandoned;
use super::output::Output;
use super::settings::settled;
use super::stop::Stop;
use super::table::{Column, Rows, count, percent, short_digest, size};
use crate::daemon::control::{Fill, FillReport, Io, LayerReport, MountReport, ProfileReport, Request, StatusReport};
use crate::daemon::{Code, Failure};
use crate::fuse;
use crate::oci::Printable;

const EXAMPLES: &str = "\
Examples:
  ocifs status
  ocifs status /mnt/debian
  ocifs status --json | jq '.mounts[] | [.dir, .bytes_fetched]'";

/// Show what mounts hold, what they fetched, and why
///
/// For each layer: where its index came from (the cache, an index beside the image in its registry, or streaming the layer
/// once) and why, how much of it is here, and why it cannot be read lazily if it cannot. Never starts a daemon.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    /// The mount point; without it all mounts are shown
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,

    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Shows the status.
pub(super) fn run(args: &Args, context: &Context) -> Result<(), Stop> {
    let dir = args.dir.as_deref().map(settled).transpose()?;
    let report: Option<StatusReport> = context.ask_if_running(&Request::Status { dir: dir.clone() })?;
    if dir.is_none() {
        warn_of_abandoned(report.as_ref().map_or(&[], |report| &report.mounts), context);
    }
    let mut output = Output::new();
    match (report, dir) {
        (Some(report), _) if args.json => output.json(&report)?,
        (Some(report), _) => write!(output, "{}", text(&report))?,
        (None, Some(dir)) => return Err(unserved(&dir).into()),
        // The fields of a report, so that programs need not look twice.
        (None, None) if args.json => output.json(&json!({
            "pid": null,
            "version": env!("CARGO_PKG_VERSION"),
            "cache_dir": context.settings.cache_dir,
            "memory_spans": 0,
            "memory_limit": 0,
            "memory_daemon": null,
            "bytes_in_flight": 0,
            "mounts": [],
        }))?,
        (None, None) => {
            writeln!(output, "no daemon is running for {}", Printable::path(&context.settings.cache_dir))?;
        }
    }
    output.finish()
}

/// The failure for a mount point when there is no daemon.
fn unserved(dir: &Path) -> Failure {
    let shown = Printable::path(dir);
    match fuse::mounted_at(dir) {
        Ok(Some(point)) if point.is_ocifs() => {
            Failure::new(Code::NotFound, format!("no daemon of this cache directory serves {shown}"))
                .because("it was killed, or the mount belongs to another --cache-dir")
                .hint(format!("`ocifs umount {shown}` removes the mount"))
        }
        _ => Failure::new(Code::NotFound, format!("{shown} is not a mount of this daemon"))
            .because("no daemon is running"),
    }
}

fn text(report: &StatusReport) -> String {
    let own = report.memory_daemon.map_or_else(|| "not known".to_owned(), size);
    let head = format!(
        "daemon {}, ocifs {}, cache {}\nmemory {own}, in which decoded data has {} of at most {}; {} on the way\n",
        report.pid,
        Printable::of(&report.version),
        Printable::path(&report.cache_dir),
        size(report.memory_spans),
        size(report.memory_limit),
        size(report.bytes_in_flight)
    );
    report.mounts.iter().fold(head, |text, mount| text + "\n" + &describe(mount))
}

fn describe(mount: &MountReport) -> String {
    let layers = count(mount.layers.len() as u64, "layer");
    let io = match mount.io {
        Io::Auto => "auto",
        Io::Passthrough => "passthrough",
        Io::Cached => "cached",
    };
    let mut text = format!("{}\n", Printable::path(&mount.dir));
    let lines = [
        ("image", Printable::of(&mount.reference).to_string()),
        ("digest", Printable::of(&mount.digest).to_string()),
        ("platform", Printable::of(&mount.platform).to_string()),
        ("size", format!("{} in {layers}, {}", size(mount.bytes_needed), count(mount.entries, "node"))),
        ("local", format!("{} ({})", size(mount.bytes_local), percent(mount.bytes_local, mount.bytes_needed))),
        ("fetched", format!("{} in {}", size(mount.bytes_fetched), count(mount.requests, "request"))),
        (
            "open files",
            mount.open_files.map_or_else(|| "known to the kernel alone".to_owned(), |open| open.to_string()),
        ),
        ("hosts", hosts(mount)),
        ("io", format!("{io} ({})", Printable::of(&mount.io_reason))),
        ("kernel", kernel(mount)),
        ("outage", outage(mount)),
        ("fill", filling(mount.fill, &mount.filling)),
        ("profile", profile(&mount.profile)),
        ("ahead", ahead(&mount.profile)),
    ];
    for (label, value) in lines {
        text += &format!("  {label:<11}{value}\n");
    }
    text + "\n" + &layer_table(&mount.layers).indented("  ") + &provenance(&mount.layers) + &reasons(&mount.layers)
}

/// Who is asked for what is missing, in order, and by which rule.
fn hosts(mount: &MountReport) -> String {
    if mount.hosts.is_empty() {
        return "none".to_owned();
    }
    let hosts = mount.hosts.iter().map(|host| {
        let trouble = host.trouble.as_ref().map_or_else(String::new, |text| format!(", {}", Printable::of(text)));
        format!("{} ({} to all mounts{trouble})", Printable::of(&host.name), size(host.received))
    });
    let rule = mount.hosts_rule.as_ref().map_or_else(String::new, |rule| format!(" by {}", Printable::of(rule)));
    hosts.collect::<Vec<_>>().join(", ") + &rule
}

/// What the kernel asked, and what was done for it.
fn kernel(mount: &MountReport) -> String {
    let requests = count(mount.kernel_requests.values().sum(), "request");
    match mount.low_latency_ms {
        0 => requests,
        held => format!("{requests}, no processor slept for {held} ms"),
    }
}

/// The outage that the mount is in, and what its readers do; or would do.
fn outage(mount: &MountReport) -> String {
    let policy = Printable::of(&mount.on_outage);
    let Some(report) = &mount.outage else { return format!("none ({policy})") };
    let waiting = match (report.waiting, report.fails_in) {
        (None, _) => format!("nobody waits ({policy})"),
        (Some(waiting), None) => format!("readers have waited for {} ({policy})", duration::shown(waiting)),
        (Some(waiting), Some(left)) => {
            let (waiting, left) = (duration::shown(waiting), duration::shown(left));
            format!("readers have waited for {waiting}, the first will fail in {left} ({policy})")
        }
    };
    let (host, lasting) = (Printable::of(&report.host), duration::shown(report.seconds));
    format!("{host} has not answered for {lasting}, {waiting}: {}", Printable::of(&report.error))
}

/// When the rest is fetched, and how far that is.
fn filling(fill: Fill, report: &FillReport) -> String {
    let fill = match fill {
        Fill::Off => "off",
        Fill::Idle => "idle",
        Fill::Now => "now",
    };
    let state = match report.state.as_str() {
        "" => String::new(),
        state if state == fill => String::new(),
        state => format!(", {}", Printable::of(state)),
    };
    let error = report.error.as_ref().map_or_else(String::new, |error| format!(": {}", Printable::of(error)));
    format!("{fill}{state}{error}")
}

/// What is known of the image's start.
fn profile(report: &ProfileReport) -> String {
    match report.state.as_str() {
        "recording" => format!("recording, {} first reads so far", report.accesses),
        state => Printable::of(state).to_string(),
    }
}

/// What was fetched ahead, and why.
fn ahead(report: &ProfileReport) -> String {
    let Some(reason) = &report.ahead else { return "nothing".to_owned() };
    let spans = count(report.replayed_spans + report.entry_point_spans, "span");
    let end = if report.ahead_done { "" } else { ", not all here yet" };
    format!("{spans} by {}{end}", Printable::of(reason))
}

fn layer_table(layers: &[LayerReport]) -> Rows {
    let mut rows = Rows::new(&[
        Column::Text("LAYER"),
        Column::Text("FORMAT"),
        Column::Text("INDEX FROM"),
        Column::Number("SIZE"),
        Column::Number("LOCAL"),
        Column::Number("FETCHED"),
        Column::Number("REQUESTS"),
        Column::Number("SPANS"),
        Column::Text("LAZY"),
    ]);
    for layer in layers {
        rows.add([
            Printable::of(short_digest(&layer.digest)).to_string(),
            Printable::of(&layer.compression).to_string(),
            Printable::of(&layer.indexed).to_string(),
            size(layer.size),
            percent(layer.local, layer.size),
            size(layer.fetched),
            layer.requests.to_string(),
            layer.spans.to_string(),
            if layer.not_lazy.is_some() { "no" } else { "yes" }.to_owned(),
        ]);
    }
    rows
}

/// Where indexes came from and why they were believed or made: a line for each answer, with the layers it holds for. What
/// was made here before needs none.
fn provenance(layers: &[LayerReport]) -> String {
    let mut lines: Vec<(String, Vec<String>)> = Vec::new();
    for layer in layers.iter().filter(|layer| layer.indexed != "cache" && !layer.index_reason.is_empty()) {
        let reason = Printable::of(&layer.index_reason);
        let line = match (layer.indexed.as_str(), &layer.index_artifact) {
            (_, Some(artifact)) => {
                format!("index from {}, believed because {reason}", Printable::of(short_digest(artifact)))
            }
            ("first-contact", None) => format!("index made by streaming, because {reason}"),
            ("imported", None) => format!("index imported, believed because {reason}"),
            (format, None) => format!("index from the layer ({}), believed because {reason}", Printable::of(format)),
        };
        let digest = Printable::of(short_digest(&layer.digest)).to_string();
        match lines.iter_mut().find(|(known, _)| *known == line) {
            Some((_, digests)) if !digests.contains(&digest) => digests.push(digest),
            Some(_) => {}
            None => lines.push((line, vec![digest])),
        }
    }
    lines.into_iter().map(|(line, digests)| format!("  {}: {line}\n", digests.join(" "))).collect()
}

/// Why layers are not lazy, one line each.
fn reasons(layers: &[LayerReport]) -> String {
    let reason = |layer: &LayerReport| {
        let reason = layer.not_lazy.as_ref()?;
        let digest = Printable::of(short_digest(&layer.digest)).to_string();
        Some(format!("  {digest} is not lazy: {}\n", Printable::of(reason)))
    };
    layers.iter().filter_map(reason).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::control::{HostReport, OutageReport};

    fn layer() -> LayerReport {
        LayerReport {
            digest: format!("sha256:{}", "ab".repeat(32)),
            media_type: "application/vnd.oci.image.layer.v1.tar+zstd".to_owned(),
            compression: "zstd".to_owned(),
            indexed: "first-contact".to_owned(),
            index_artifact: None,
            index_reason: "the registry has no index of the image".to_owned(),
            size: 3 << 20,
            local: 1 << 20,
            fetched: 1 << 20,
            requests: 2,
            spans: 1,
            not_lazy: Some("one frame of 9 MiB".to_owned()),
        }
    }

    fn report() -> StatusReport {
        StatusReport {
            pid: 12,
            version: "1.2.3".to_owned(),
            cache_dir: "/c".into(),
            memory_spans: 1536,
            memory_limit: 64 << 20,
            memory_daemon: Some(33 << 20),
            bytes_in_flight: 0,
            mounts: vec![MountReport {
                dir: "/mnt/\u{1b}[31m".into(),
                reference: "debian:12".to_owned(),
                digest: format!("sha256:{}", "cd".repeat(32)),
                platform: "linux/amd64".to_owned(),
                fill: Fill::Idle,
                filling: FillReport { state: "failed".to_owned(), error: Some("gone: for\never".to_owned()) },
                on_outage: "wait:5m".to_owned(),
                outage: None,
                bytes_needed: 3 << 20,
                bytes_local: 1 << 20,
                bytes_fetched: 1 << 20,
                requests: 2,
                hosts: vec![
                    HostReport { name: "m.example".to_owned(), received: 0, trouble: Some("it\nfailed".to_owned()) },
                    HostReport { name: "r.example:5000".to_owned(), received: 1 << 20, trouble: None },
                ],
                hosts_rule: Some("/etc/h/hosts.toml".to_owned()),
                io: Io::Cached,
                io_reason: "files are small: 28 KiB on average".to_owned(),
                open_files: None,
                kernel_requests: [("lookup".to_owned(), 3), ("read".to_owned(), 4)].into(),
                low_latency_ms: 1240,
                entries: 7,
                profile: ProfileReport {
                    state: "stored".to_owned(),
                    ahead: Some("profile".to_owned()),
                    replayed_spans: 3,
                    ahead_done: true,
                    ..ProfileReport::default()
                },
                layers: vec![layer()],
            }],
        }
    }

    #[test]
    fn every_index_says_where_it_came_from_and_why_it_is_believed() {
        let of = |indexed: &str, reason: &str, artifact: Option<&str>| {
            let (indexed, index_reason) = (indexed.to_owned(), reason.to_owned());
            provenance(&[LayerReport {
                indexed,
                index_reason,
                index_artifact: artifact.map(|hex| format!("sha256:{}", hex.repeat(32))),
                ..layer()
            }])
        };
        let cases = [
            ("first-contact", "there is none", None, "index made by streaming, because there is none"),
            (
                "estargz",
                "the manifest pins it",
                None,
                "index from the layer (estargz), believed because the manifest pins it",
            ),
            ("imported", "a user imported it", None, "index imported, believed because a user imported it"),
            ("shared", "the tag moves", Some("cd"), "index from cdcdcdcdcdcd, believed because the tag moves"),
        ];
        for (indexed, reason, artifact, line) in cases {
            assert_eq!(of(indexed, reason, artifact), format!("  abababababab: {line}\n"));
        }
        assert_eq!(of("cache", "it was made here", None), "");
    }

    #[test]
    fn a_local_image_has_no_hosts_and_a_registry_without_mirrors_no_rule() {
        let mut mount = report().mounts.remove(0);
        mount.hosts_rule = None;
        mount.hosts.remove(0);
        assert_eq!(hosts(&mount), "r.example:5000 (1.0 MiB to all mounts)");
        mount.hosts.clear();
        assert_eq!(hosts(&mount), "none");
    }

    #[test]
    fn of_processors_that_were_free_to_sleep_nothing_is_said() {
        let mount = MountReport { low_latency_ms: 0, ..report().mounts.remove(0) };
        assert_eq!(kernel(&mount), "7 requests");
    }

    #[test]
    fn status_says_what_is_local_and_why_a_layer_is_not_lazy() {
        let expected = "\
daemon 12, ocifs 1.2.3, cache /c
memory 33.0 MiB, in which decoded data has 1.5 KiB of at most 64.0 MiB; 0 B on the way

/mnt/\\x1b[31m
  image      debian:12
  digest     sha256:cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd
  platform   linux/amd64
  size       3.0 MiB in 1 layer, 7 nodes
  local      1.0 MiB (33 %)
  fetched    1.0 MiB in 2 requests
  open files known to the kernel alone
  hosts      m.example (0 B to all mounts, it\\nfailed), r.example:5000 (1.0 MiB to all mounts) by /etc/h/hosts.toml
  io         cached (files are small: 28 KiB on average)
  kernel     7 requests, no processor slept for 1240 ms
  outage     none (wait:5m)
  fill       idle, failed: gone: for\\never
  profile    stored
  ahead      3 spans by profile

  LAYER         FORMAT  INDEX FROM        SIZE  LOCAL  FETCHED  REQUESTS  SPANS  LAZY
  abababababab  zstd    first-contact  3.0 MiB   33 %  1.0 MiB         2      1  no
  abababababab: index made by streaming, because the registry has no index of the image
  abababababab is not lazy: one frame of 9 MiB
";
        assert_eq!(text(&report()), expected);
    }

    #[test]
    fn status_says_who_is_away_and_how_long_readers_wait() {
        let mut mount = report().mounts.remove(0);
        let outage = OutageReport {
            host: "r.example:5000".to_owned(),
            since: 1_700_000_000,
            seconds: 130,
            error: "connection\nrefused".to_owned(),
            waiting: Some(90),
            fails_in: Some(210),
        };
        let mut line = |outage| {
            mount.outage = Some(outage);
            let text = describe(&mount);
            text.lines().find_map(|line| line.strip_prefix("  outage     ")).map(str::to_owned)
        };
        let away = "r.example:5000 has not answered for 2m 10s,";
        let why = "(wait:5m): connection\\nrefused";
        let expected = format!("{away} readers have waited for 1m 30s, the first will fail in 3m 30s {why}");
        assert_eq!(line(outage.clone()), Some(expected));
        let patient = OutageReport { fails_in: None, ..outage.clone() };
        assert_eq!(line(patient), Some(format!("{away} readers have waited for 1m 30s {why}")));
        let alone = OutageReport { waiting: None, fails_in: None, ..outage };
        assert_eq!(line(alone), Some(format!("{away} nobody waits {why}")));
    }
}

//! `ocifs inspect`: what an image is, without touching its layers.

use super::context::Context;
use super::image;
use super::output::Output;
use super::progress::Meter;
use super::stop::Stop;
use super::table::{Column, Rows, count, size};
use crate::daemon::control::{ImageReport, LayerSummary, Request};
use crate::oci::{ImageConfig, Printable};

const EXAMPLES: &str = "\
Examples:
  ocifs inspect debian:12
  ocifs inspect --platform linux/arm64 ghcr.io/owner/name:1.2
  ocifs inspect --json oci:build/image | jq .config.config.Env";

/// Show an image's platforms, layers and configuration
///
/// Reads manifest and configuration only. The column INDEXED says which layers a mount would not have to stream.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    image: image::Args,

    /// Print JSON for programs, with the configuration as its publisher wrote it
    #[arg(long)]
    json: bool,
}

/// Inspects.
pub(super) fn run(args: &Args, context: &Context) -> Result<(), Stop> {
    let request = Request::Inspect(args.image.request(context)?);
    let meter = Meter::new("looking up the image".to_owned());
    let report: Result<ImageReport, _> = context.ask(&request, &meter);
    meter.clear();
    let report = report?;
    let mut output = Output::new();
    if args.json {
        output.json(&report)?;
    } else {
        write!(output, "{}", text(&report))?;
    }
    output.finish()
}

fn text(report: &ImageReport) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| text += &format!("{label:<11} {}\n", Printable::of(value));
    line("reference", &report.reference);
    line("digest", &report.digest);
    line("platform", &report.platform);
    if !report.platforms.is_empty() {
        line("platforms", &report.platforms.join(", "));
    }
    line("size", &format!("{} in {}", size(report.size), count(report.layers.len() as u64, "layer")));
    // The daemon has read the configuration by the same rules, so that it does not fail here.
    if let Ok(config) = ImageConfig::parse(report.config.to_string().as_bytes()) {
        describe(&config, line);
    }
    text + "\n" + &layer_table(&report.layers).to_string()
}

/// Shows what a runtime would do with the image.
fn describe(config: &ImageConfig, mut line: impl FnMut(&str, &str)) {
    let mut optional = |label: &str, value: &Option<String>| {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            line(label, value);
        }
    };
    optional("created", &config.created);
    optional("author", &config.author);
    optional("user", &config.user);
    optional("workdir", &config.working_dir);
    optional("stop signal", &config.stop_signal);
    for (label, words) in [("entrypoint", &config.entrypoint), ("cmd", &config.cmd)] {
        if !words.is_empty() {
            line(label, &command_line(words));
        }
    }
    config.env.iter().for_each(|variable| line("env", variable));
    config.exposed_ports.iter().for_each(|port| line("port", port));
    config.volumes.iter().for_each(|volume| line("volume", volume));
    config.labels.iter().for_each(|(key, value)| line("label", &format!("{key}={value}")));
}

/// Words as a shell would read them back.
fn command_line(words: &[String]) -> String {
    let is_plain = |word: &str| {
        !word.is_empty()
            && word.chars().all(|character| character.is_alphanumeric() || "-_./:=@%+,".contains(character))
    };
    let quoted = words.iter().map(|word| match is_plain(word) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

fn layer_table(layers: &[LayerSummary]) -> Rows {
    let mut rows = Rows::new(&[
        Column::Text("LAYER"),
        Column::Number("SIZE"),
        Column::Text("INDEXED"),
        Column::Text("MEDIA TYPE"),
    ]);
    for layer in layers {
        rows.add([
            Printable::of(&layer.digest).to_string(),
            size(layer.size),
            if layer.indexed { "yes" } else { "no" }.to_owned(),
            Printable::of(&layer.media_type).to_string(),
        ]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_configuration_is_shown_as_a_runtime_reads_it_and_escaped() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let report = ImageReport {
            reference: "debian:12".to_owned(),
            digest: digest.clone(),
            platform: "linux/amd64".to_owned(),
            platforms: vec!["linux/amd64".to_owned(), "linux/arm64".to_owned()],
            layers: vec![LayerSummary {
                digest: digest.clone(),
                diff_id: digest.clone(),
                media_type: "application/x\u{1b}".to_owned(),
                size: 5,
                indexed: true,
            }],
            size: 5,
            config: json!({
                "os": "linux",
                "architecture": "amd64",
                "rootfs": { "type": "layers", "diff_ids": [digest] },
                "config": {
                    "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo it's"], "Env": ["A=\u{202e}b"],
                    "User": "", "WorkingDir": "/srv", "Labels": { "l": "one\ntwo" },
                },
            }),
        };
        let expected = format!(
            "\
reference   debian:12
digest      {digest}
platform    linux/amd64
platforms   linux/amd64, linux/arm64
size        5 B in 1 layer
workdir     /srv
entrypoint  /bin/sh -c
cmd         'echo it'\\\\''s'
env         A=\\u{{202e}}b
label       l=one\\ntwo

LAYER{:68}SIZE  INDEXED  MEDIA TYPE
{digest}   5 B  yes      application/x\\x1b
",
            ""
        );
        assert_eq!(text(&report), expected);
    }
}

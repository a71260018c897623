//! `ocifs index`: make what makes first mounts lazy, and share it through the registry.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use serde::de::DeserializeOwned;

use super::context::Context;
use super::image::ImageArgs;
use super::interrupt::or_interrupted;
use super::output::Output;
use super::progress::Meter;
use super::settings::settled;
use super::stop::{Stop, usage};
use super::table::{Column, Rows, count, percent, short_digest, size};
use crate::daemon::Failure;
use crate::daemon::control::{self, IndexProfile, IndexWork, IndexedImage, Request, SharedIndex, UnwantedIndexes};
use crate::limits::PROFILE_TEXT_BYTES;
use crate::oci::{Printable, Reference};
use crate::profile::Profile;

const EXAMPLES: &str = "\
Examples:
  ocifs index debian:12                                  # what does it cost? nothing leaves this machine
  ocifs index --push ghcr.io/owner/name:1.2              # from now on its first mount is lazy everywhere
  ocifs index --all-platforms --push ghcr.io/owner/name:1.2
  ocifs index --profile start.profile --push ghcr.io/owner/name:1.2
  ocifs index --output oci:indexes oci:build/image:latest
  ocifs index --format soci-v2 --push --tag 1.2-soci ghcr.io/owner/name:1.2
  ocifs index list ghcr.io/owner/name:1.2
  ocifs index rm ghcr.io/owner/name:1.2

An image that is itself called list, show or rm is written docker://list.";

/// Make the index of an image, and share it through its registry
///
/// A layer can only be read lazily by who knows where in it what is. That is found out by streaming it once; layers that
/// this machine knows are not touched. With --push the result is put beside the image in its registry, which changes
/// nothing of the image: an OCI artifact whose subject is the image's manifest, with one blob a layer, so that images
/// share those of common layers, and with the recorded start of the image if there is one (see `ocifs profile`). From then
/// on `ocifs mount` of a tag finds it and is lazy on every machine at once; see --trust-index there for who is believed.
///
/// Two machines that index the same image with the same recording push the same bytes, and pushing again sends nothing.
/// Indexes with other recordings lie beside each other, until --replace.
///
/// The SOCI snapshotter believes since 0.10 only an index that the image's manifest names, and ignores others unless its
/// configuration enables `pull_modes.soci_v1`. With --format soci-v2 such an image is pushed under --tag, like one that
/// `soci convert` made: other manifests, the same layers. The image itself stays as it is. `ocifs mount` is lazy with it too,
/// and believes the index even if the reference is a digest.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,

    // None beside a command, which has its own.
    #[command(flatten)]
    image: Option<ImageArgs>,

    /// Make it for every platform of the image
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,

    /// The recorded start that goes with it: auto (the one recorded here, if any), none, or a file of `ocifs profile export`
    #[arg(long, value_name = "auto|FILE|none", default_value = "auto")]
    profile: String,

    /// Put it into the image's registry
    #[arg(long)]
    push: bool,

    /// Remove the other indexes beside the image, such as one with an older recording
    #[arg(long, requires = "push")]
    replace: bool,

    /// Write it into an image layout, made if it is not there
    #[arg(long, value_name = "oci:DIR", value_parser = layout)]
    output: Option<PathBuf>,

    /// For which program
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "ocifs")]
    format: Format,

    /// With --format soci-v2: what to call the image that names the index, beside the image in its repository
    #[arg(long, value_name = "TAG", value_parser = tag)]
    tag: Option<String>,

    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// For which program an index is made.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// This one
    Ocifs,
    /// The SOCI snapshotter, version 1: a zTOC a layer, without a profile, beside the image; this program finds it as well
    Soci,
    /// The SOCI snapshotter from 0.10 on: the same in an image of its own, as `soci convert` makes it
    SociV2,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Ocifs => "ocifs",
            Self::Soci => "soci",
            Self::SociV2 => "soci-v2",
        }
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the indexes beside an image in its registry
    ///
    /// A mount uses the first of them that it believes. Those of the SOCI snapshotter are listed as well: soci for one beside the image,
    /// soci-v2 for one that the image's manifest names.
    #[command(
        mut_arg("offline", never_offered),
        after_long_help = "Examples:\n  ocifs index list debian:12\n  ocifs index list --json debian:12"
    )]
    List {
        #[command(flatten)]
        image: ImageArgs,

        /// Print JSON for programs
        #[arg(long)]
        json: bool,
    },
    /// Show what the indexes beside an image hold, layer by layer
    #[command(
        mut_arg("offline", never_offered),
        after_long_help = "Examples:\n  ocifs index show debian:12\n  ocifs index show --json debian:12"
    )]
    Show {
        #[command(flatten)]
        image: ImageArgs,

        /// Print JSON for programs
        #[arg(long)]
        json: bool,
    },
    /// Remove the indexes beside an image from its registry
    ///
    /// The image is not changed. A registry may not allow that a manifest is deleted; it is then taken out of the list, so
    /// that nobody finds it, where the list is kept under a tag.
    #[command(
        mut_arg("offline", never_offered),
        after_long_help = "Examples:\n  ocifs index rm ghcr.io/owner/name:1.2\n  ocifs index rm --format soci ghcr.io/owner/name:1.2"
    )]
    Rm {
        #[command(flatten)]
        image: ImageArgs,

        /// Only the one with this digest, whatever program it is for
        #[arg(long, value_name = "DIGEST", conflicts_with = "format")]
        artifact: Option<String>,

        /// Those for this program
        #[arg(long, value_enum, value_name = "FORMAT", default_value = "ocifs")]
        format: Format,
    },
}

/// An option of all commands that read an image, for one by which it is always refused.
fn never_offered(option: clap::Arg) -> clap::Arg {
    option.hide(true)
}

/// Does what was asked for.
pub(super) fn run(args: &Args, context: &Context) -> Result<(), Stop> {
    match (&args.action, &args.image) {
        (Some(Action::List { image, json }), _) => list(&shared(image, context)?, *json, list_text),
        (Some(Action::Show { image, json }), _) => list(&shared(image, context)?, *json, show_text),
        (Some(Action::Rm { image, artifact, format }), _) => {
            let request = Request::RemoveIndexes(UnwantedIndexes {
                image: image.request(context)?,
                format: format.name().to_owned(),
                artifact: artifact.clone(),
            });
            let what = format!("removing indexes of {}", Printable::of(image.reference()));
            ask::<usize>(request, Meter::new(what), context).map(drop)
        }
        (None, Some(image)) => make(args, image, context),
        (None, None) => Err(usage("there is nothing to index", "no image was named").into()),
    }
}

fn make(make: &Args, image: &ImageArgs, context: &Context) -> Result<(), Stop> {
    let image = image.request(context)?;
    let meter = Meter::looking_up(&image.reference);
    let work = IndexWork {
        image,
        all_platforms: make.all_platforms,
        profile: profile(&make.profile)?,
        push: make.push,
        replace: make.replace,
        output: make.output.as_deref().map(settled).transpose()?,
        format: make.format.name().to_owned(),
        tag: make.tag.clone(),
    };
    let images: Vec<IndexedImage> = ask(Request::Index(work), meter, context)?;
    let mut output = Output::new();
    if make.json {
        output.json(&images)?;
    } else {
        let texts: Vec<_> = images.iter().map(made_text).collect();
        write!(output, "{}", texts.join("\n"))?;
    }
    output.finish()
}

/// Asks about an image, which may have to be looked up and streamed.
fn ask<T: DeserializeOwned + Send + 'static>(request: Request, meter: Meter, context: &Context) -> Result<T, Stop> {
    let (context, shown) = (context.clone(), meter.clone());
    let outcome = or_interrupted(move || context.ask(&request, &shown));
    meter.clear();
    outcome
}

fn shared(image: &ImageArgs, context: &Context) -> Result<Vec<SharedIndex>, Stop> {
    let image: control::Image = image.request(context)?;
    let meter = Meter::looking_up(&image.reference);
    ask(Request::ListIndexes(image), meter, context)
}

/// A tag by itself (distribution-spec, "Pulling manifests").
fn tag(text: &str) -> Result<String, String> {
    match format!("localhost/name:{text}").parse() {
        Ok(Reference::Registry(name)) if name.tag() == Some(text) => Ok(text.to_owned()),
        _ => Err("it is not a tag".to_owned()),
    }
}

/// The directory of `oci:DIR`.
fn layout(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("oci:") {
        Some(dir) if !dir.is_empty() => Ok(dir.into()),
        _ => Err("it is written oci:DIR".to_owned()),
    }
}

/// Reads what goes with the index. A file is checked before a daemon is started for it.
fn profile(text: &str) -> Result<IndexProfile, Failure> {
    match text {
        "auto" => Ok(IndexProfile::Auto),
        "none" => Ok(IndexProfile::None),
        file => {
            let shown = Printable::path(Path::new(file)).to_string();
            let mut bytes = Vec::new();
            let read = |file: fs::File| file.take(PROFILE_TEXT_BYTES as u64 + 1).read_to_end(&mut bytes);
            fs::File::open(file).and_then(read).map_err(|error: io::Error| {
                Failure::io(&format!("cannot read {shown}"), &error)
                    .coded(crate::daemon::Code::Usage)
                    .hint("--profile is auto, none or a file that `ocifs profile export` wrote")
            })?;
            let profile =
                Profile::parse(&bytes).map_err(|error| usage(format!("cannot use the profile in {shown}"), error))?;
            Ok(IndexProfile::Text(profile.to_text()))
        }
    }
}

/// What was made of one image.
fn made_text(image: &IndexedImage) -> String {
    let layers = &image.layers;
    let (bytes, index): (u64, u64) =
        layers.iter().fold((0, 0), |(bytes, index), layer| (bytes + layer.size, index + layer.index_size));
    let metadata: u64 = layers.iter().map(|layer| layer.metadata_size).sum();
    let streamed = layers.iter().filter(|layer| layer.was_streamed).count() as u64;
    let mut text = String::new();
    let mut line = |label: &str, value: String| text += &format!("{label:<9} {value}\n");
    line("image", format!("{} ({})", Printable::of(&image.digest), Printable::of(&image.platform)));
    line("layers", format!("{}, {}, {streamed} streamed now", layers.len(), size(bytes)));
    line(
        "index",
        format!("{} ({} of the layers), {} before the first read", size(index), share(index, bytes), size(metadata)),
    );
    line("profile", image.profile_size.map_or_else(|| "none".to_owned(), size));
    line("artifact", Printable::of(&image.artifact).to_string());
    if let Some(pushed) = &image.pushed {
        let by = match pushed.listed.as_str() {
            "api" => "the referrers API",
            "image" => "the image that names it",
            _ => "its tag",
        };
        let blobs = count(pushed.sent as u64, "blob");
        line("pushed", format!("to {}, found by {by}", Printable::of(&pushed.repository)));
        line(
            "sent",
            format!("{} in {blobs}; {} there, {} mounted", size(pushed.bytes), pushed.existed, pushed.mounted),
        );
        if pushed.replaced > 0 {
            line("replaced", count(pushed.replaced as u64, "other artifact"));
        }
    }
    if let Some(converted) = &image.converted {
        line("converted", Printable::of(&converted.reference).to_string());
        line("now", Printable::of(&converted.digest).to_string());
    }
    if let Some(dir) = &image.output {
        line("written", format!("to oci:{}", Printable::path(dir)));
    }
    for layer in layers {
        if let Some(reason) = &layer.not_lazy {
            let digest = Printable::of(short_digest(&layer.digest)).to_string();
            text += &format!("{digest} is not lazy: {}\n", Printable::of(reason));
        }
    }
    text
}

/// A small share in percent with two places.
fn share(part: u64, whole: u64) -> String {
    let hundredths = (u128::from(part) * 10_000).checked_div(u128::from(whole)).unwrap_or(0);
    format!("{}.{:02} %", hundredths / 100, hundredths % 100)
}

fn list(listed: &Vec<SharedIndex>, as_json: bool, text: impl Fn(&[SharedIndex]) -> String) -> Result<(), Stop> {
    let mut output = Output::new();
    if as_json {
        output.json(listed)?;
    } else {
        write!(output, "{}", text(listed))?;
    }
    output.finish()
}

/// One line an artifact, and whether a mount believes them.
fn list_text(listed: &[SharedIndex]) -> String {
    if listed.is_empty() {
        return "the registry has no index of the image\n".to_owned();
    }
    let mut rows = Rows::new(&[
        Column::Text("ARTIFACT"),
        Column::Text("FORMAT"),
        Column::Text("PLATFORM"),
        Column::Text("LAYERS"),
        Column::Number("SIZE"),
        Column::Number("PROFILE"),
    ]);
    for shared in listed {
        rows.add([
            Printable::of(&shared.digest).to_string(),
            Printable::of(&shared.format).to_string(),
            Printable::of(&shared.platform).to_string(),
            format!("{} of {}", shared.layers.len(), shared.image_layers),
            size(shared.layers.iter().map(|layer| layer.index_size).sum()),
            shared.profile_size.map_or_else(|| "none".to_owned(), size),
        ]);
    }
    let mut verdicts: Vec<(&SharedIndex, Vec<&str>)> = Vec::new();
    for shared in listed {
        match verdicts.iter_mut().find(|(one, _)| (one.believed, &one.reason) == (shared.believed, &shared.reason)) {
            Some((_, formats)) if formats.contains(&shared.format.as_str()) => {}
            Some((_, formats)) => formats.push(&shared.format),
            None => verdicts.push((shared, vec![&shared.format])),
        }
    }
    let is_one = verdicts.len() == 1;
    let verdicts = verdicts.iter().map(|(shared, formats)| {
        let believed = if shared.believed { "believes" } else { "does not believe" };
        let them = if is_one { "them".to_owned() } else { Printable::of(&formats.join(" and ")).to_string() };
        format!("a mount {believed} {them}: {}\n", Printable::of(&shared.reason))
    });
    format!("{rows}\n{}", verdicts.collect::<String>())
}

/// One table an artifact.
fn show_text(listed: &[SharedIndex]) -> String {
    if listed.is_empty() {
        return list_text(listed);
    }
    let tables = listed.iter().map(|shared| {
        let mut rows = Rows::new(&[
            Column::Text("LAYER"),
            Column::Number("SIZE"),
            Column::Number("INDEX"),
            Column::Number("SHARE"),
            Column::Number("BEFORE MOUNT"),
            Column::Text("BLOB"),
        ]);
        for layer in &shared.layers {
            rows.add([
                Printable::of(short_digest(&layer.digest)).to_string(),
                layer.size.map_or_else(|| "unknown".to_owned(), size),
                size(layer.index_size),
                layer.size.map_or_else(String::new, |whole| percent(layer.index_size, whole)),
                size(layer.metadata_size),
                Printable::of(short_digest(&layer.index)).to_string(),
            ]);
        }
        format!("{}\n{}", Printable::of(&shared.digest), rows.indented("  "))
    });
    tables.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args;
    use crate::daemon::control::{ConvertedImage, IndexedLayer, PushReport, SharedLayer};

    fn parse(arguments: &[&str]) -> Result<Args, clap::Error> {
        let arguments = [&["ocifs", "index"], arguments].concat();
        args::Args::try_parse_from(arguments).map(|args| match args.command {
            args::Command::Index(args) => args,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn an_image_is_made_and_the_words_are_commands() {
        let made = parse(&["--push", "debian:12"]).expect("right");
        assert!(made.action.is_none() && made.image.is_some() && made.push && !made.all_platforms);
        for word in ["list", "show", "rm"] {
            let asked = parse(&[word, "debian:12"]).expect("right");
            assert!(asked.action.is_some() && asked.image.is_none(), "{word}");
            assert!(parse(&[word]).is_err(), "{word} needs an image");
        }
        assert!(parse(&["docker://list"]).expect("an image").image.is_some());
        let tagged = |tag: &str| parse(&["--format", "soci-v2", "--push", "--tag", tag, "debian:12"]);
        assert_eq!(tagged("12-soci").expect("right").tag.as_deref(), Some("12-soci"));
        for wrong in ["", "a b", "a@b", "a:b", "a/b", "-a"] {
            assert!(tagged(wrong).is_err(), "{wrong}");
        }
        for wrong in
            [&[][..], &["--push"], &["--all-platforms", "--platform", "linux/arm64", "a"], &["--output", "x", "a"]]
        {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_only_a_registry_knows_is_not_offered_offline() {
        use clap::CommandFactory;
        let program = args::Args::command();
        let index = program.find_subcommand("index").expect("a command");
        let is_offered = |command: &clap::Command| {
            command.get_arguments().any(|option| option.get_id() == "offline" && !option.is_hide_set())
        };
        assert!(is_offered(index));
        for word in ["list", "show", "rm"] {
            assert!(!is_offered(index.find_subcommand(word).expect("a command")), "{word}");
        }
    }

    #[test]
    fn what_was_made_is_told_with_its_cost() {
        let layer = IndexedLayer {
            digest: format!("sha256:{}", "ab".repeat(32)),
            size: 10 << 20,
            index_size: 100 << 10,
            metadata_size: 30 << 10,
            spans: 20,
            was_streamed: true,
            not_lazy: Some("one frame".to_owned()),
        };
        let image = IndexedImage {
            digest: "sha256:1".to_owned(),
            platform: "linux/amd64".to_owned(),
            artifact: "sha256:2".to_owned(),
            layers: vec![layer],
            profile_size: Some(512),
            pushed: Some(PushReport {
                repository: "r.example/a".to_owned(),
                listed: "tag".to_owned(),
                existed: 1,
                mounted: 0,
                sent: 2,
                bytes: 2048,
                replaced: 0,
            }),
            output: None,
            converted: None,
        };
        let expected = "\
image     sha256:1 (linux/amd64)
layers    1, 10.0 MiB, 1 streamed now
index     100.0 KiB (0.97 % of the layers), 30.0 KiB before the first read
profile   512 B
artifact  sha256:2
pushed    to r.example/a, found by its tag
sent      2.0 KiB in 2 blobs; 1 there, 0 mounted
abababababab is not lazy: one frame
";
        assert_eq!(made_text(&image), expected);
        let converted = ConvertedImage {
            reference: "r.example/a:soci".to_owned(),
            manifest: "sha256:3".to_owned(),
            digest: "sha256:4".to_owned(),
        };
        let text = made_text(&IndexedImage { converted: Some(converted), ..image });
        assert!(text.contains("converted r.example/a:soci\nnow       sha256:4\n"), "{text}");
    }

    #[test]
    fn what_is_in_a_registry_is_listed_with_whether_it_is_believed() {
        let layer = SharedLayer {
            digest: format!("sha256:{}", "ab".repeat(32)),
            size: Some(1 << 20),
            index: format!("sha256:{}", "cd".repeat(32)),
            index_size: 10 << 10,
            metadata_size: 1 << 10,
        };
        let shared = SharedIndex {
            digest: "sha256:2".to_owned(),
            format: "soci".to_owned(),
            image: "sha256:1".to_owned(),
            platform: "linux/amd64".to_owned(),
            image_layers: 2,
            layers: vec![layer],
            profile_size: None,
            believed: false,
            reason: "because".to_owned(),
        };
        let pinned = SharedIndex {
            format: "soci-v2".to_owned(),
            believed: true,
            reason: "it is pinned".to_owned(),
            ..shared.clone()
        };
        let mixed = list_text(&[pinned, shared.clone()]);
        let ends = "\n\na mount believes soci-v2: it is pinned\na mount does not believe soci: because\n";
        assert!(mixed.ends_with(ends), "{mixed}");
        let listed = [shared];
        let expected = "\
ARTIFACT  FORMAT  PLATFORM     LAYERS      SIZE  PROFILE
sha256:2  soci    linux/amd64  1 of 2  10.0 KiB     none

a mount does not believe them: because
";
        assert_eq!(list_text(&listed), expected);
        let expected = "\
sha256:2
  LAYER            SIZE     INDEX  SHARE  BEFORE MOUNT  BLOB
  abababababab  1.0 MiB  10.0 KiB    0 %       1.0 KiB  cdcdcdcdcdcd
";
        assert_eq!(show_text(&listed), expected);
        assert_eq!(list_text(&[]), show_text(&[]));
    }
}

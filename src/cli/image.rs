//! The arguments of all commands that read an image, and the request they make.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::ValueHint;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::context::Context;
use super::settings::nameable;
use super::stop::{usage, warn};
use super::trust::TrustArgs;
use super::{credentials, hosts};
use crate::daemon::{Code, Failure, control};
use crate::oci::{Platform, Printable, Reference, without_password};

/// Which image, and how its source may be asked.
#[derive(Debug, Default, clap::Args)]
pub(super) struct ImageArgs {
    /// The image, such as debian:12 or oci:DIR (see `ocifs help references`)
    #[arg(value_name = "REF", value_parser = OsStringValueParser::new().try_map(text))]
    reference: String,

    /// Choose the image for this platform instead of this machine's
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,

    /// Use only what the cache has
    #[arg(long)]
    offline: bool,

    /// Speak plain HTTP with the registry (done anyway on this machine, but for port 443)
    #[arg(long)]
    plain_http: bool,

    /// Read credentials from this file only
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    authfile: Option<PathBuf>,

    /// Read mirrors from this tree of HOST/hosts.toml files [default: /etc/containerd/certs.d]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    hosts_dir: Option<PathBuf>,

    /// Read mirrors and short names from this registries.conf only [default: podman's]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    registries_conf: Option<PathBuf>,
}

/// What the files say that tell how registries are reached.
const HOSTS: &str = "host configuration";

/// Which image of those that the cache has.
#[derive(Debug, clap::Args)]
pub(super) struct CachedImageArgs {
    /// The image, such as debian:12 or oci:DIR (see `ocifs help references`)
    #[arg(value_name = "REF", value_parser = OsStringValueParser::new().try_map(text))]
    reference: String,

    /// Choose the image for this platform instead of this machine's
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,

    /// Read short names from this registries.conf only [default: podman's]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    registries_conf: Option<PathBuf>,
}

impl CachedImageArgs {
    /// The image to ask the daemon for.
    pub(super) fn believing(&self, trust: &TrustArgs, context: &Context) -> Result<control::Image, Failure> {
        let Self { reference, platform, registries_conf } = self;
        let image = ImageArgs {
            reference: reference.clone(),
            platform: platform.clone(),
            registries_conf: registries_conf.clone(),
            ..ImageArgs::default()
        };
        image.believing(trust, context)
    }
}

impl ImageArgs {
    /// The reference as it was typed.
    pub(super) fn reference(&self) -> &str {
        &self.reference
    }

    /// The image to ask the daemon for, believing whom the settings say.
    pub(super) fn request(&self, context: &Context) -> Result<control::Image, Failure> {
        self.believing(&TrustArgs::default(), context)
    }

    /// The image to ask the daemon for. Wrong arguments are told before a daemon is started for them.
    pub(super) fn believing(&self, trust: &TrustArgs, context: &Context) -> Result<control::Image, Failure> {
        let reference = parsed(&self.reference)?;
        if let Some(platform) = &self.platform {
            platform.parse::<Platform>().map_err(|error| usage("cannot use the value of --platform", error))?;
        }
        if let Some(file) = &self.authfile {
            must_open("credentials", file)?;
            if file.is_dir() {
                let what = format!("cannot read the credentials in {}", Printable::path(file));
                return Err(usage(what, "it is a directory"));
            }
        }
        if self.authfile.is_none()
            && let Some(dir) = credentials::missing_runtime_dir(&context.environment)
        {
            let dir = Printable::path(&dir).to_string();
            warn(&context.environment, &format!("there is no XDG_RUNTIME_DIR {dir}, so no credentials are there"));
        }
        if let Some(layout) = layout_named(&reference, &self.reference) {
            let dir = Printable::of(&self.reference).to_string();
            let layout = Printable::of(layout);
            warn(
                &context.environment,
                &format!("{dir} is looked for in a registry; oci:{layout} is the directory here"),
            );
        }
        let auth_files = credentials::files(self.authfile.as_deref(), &context.environment);
        let is_remote = matches!(reference, Reference::Registry(_));
        let (hosts, aliases) = self.hosts(context, is_remote)?;
        let expanded = hosts::expanded(&self.reference, &reference, &hosts, aliases.as_deref())?;
        let (text, reference) = match expanded {
            Some(text) => {
                let reference = parsed(&text)?;
                (text, reference)
            }
            None => (self.reference.clone(), reference),
        };
        let (trust_index, index_keys) = trust.settle(&context.settings, is_remote)?;
        Ok(control::Image {
            platform: self.platform.clone(),
            offline: self.offline,
            plain_http: self.plain_http || context.settings.is_plain_http(&reference),
            auth_files: auth_files.iter().map(|file| absolute(file)).collect::<Result<_, _>>()?,
            hosts,
            reference: with_absolute_path(&text, reference)?,
            trust_index,
            index_keys,
        })
    }

    /// The files that say how registries are reached, and the one with recorded aliases. Those that the user names must be
    /// there, and those that a configuration file names if a registry is to be asked.
    fn hosts(&self, context: &Context, is_remote: bool) -> Result<(control::HostFiles, Option<PathBuf>), Failure> {
        let tree = self.hosts_dir.as_deref().map(absolute).transpose()?;
        let registries = self.registries_conf.as_deref().map(absolute).transpose()?;
        let flags = hosts::Named { tree: tree.as_deref(), registries: registries.as_deref() };
        let named = flags.or_configured(&context.settings);
        let by_environment = named.by_environment(&context.environment);
        let by_tree = (named.tree, true, flags.tree.is_none().then_some("hosts-dir"));
        let by_file = (named.registries, false, flags.registries.is_none().then_some("registries-conf"));
        for (file, is_tree, configured) in [by_tree, by_file, (by_environment.as_deref(), false, None)] {
            let Some(file) = file.filter(|_| is_remote || configured.is_none()) else { continue };
            let found = must_open(HOSTS, file).and_then(|()| must_be(file, is_tree));
            found.map_err(|failure| match configured {
                Some(key) => failure.hint(format!("a configuration file names it as {key}")),
                None => failure,
            })?;
        }
        let mut files = named.files(&context.environment);
        // The daemon is in another directory, and a variable may hold what is relative to this one.
        for file in &mut files.registries {
            *file = absolute(file)?;
        }
        Ok((files, named.recorded_aliases(&context.environment)))
    }
}

/// The image layout in the working directory that has the name of an image in a registry.
fn layout_named<'a>(reference: &Reference, text: &'a str) -> Option<&'a str> {
    let untagged = text.rsplit_once(':').map_or(text, |(name, _)| name);
    let is_layout = |name: &&str| Path::new(name).join("oci-layout").is_file();
    matches!(reference, Reference::Registry(_)).then_some([text, untagged])?.into_iter().find(is_layout)
}

fn parsed(text: &str) -> Result<Reference, Failure> {
    text.parse().map_err(|error| {
        let shown = without_password(text);
        usage(format!("\"{:.200}\" does not name an image", Printable::of(&*shown)), error)
            .hint("`ocifs help references` shows how images are named")
    })
}

/// Fails if host configuration is a directory where a file is meant, or the other way round.
fn must_be(file: &Path, is_tree: bool) -> Result<(), Failure> {
    match (file.is_dir(), is_tree) {
        (true, true) | (false, false) => Ok(()),
        (is_directory, _) => Err(usage(
            format!("cannot read the {HOSTS} in {}", Printable::path(file)),
            if is_directory { "it is a directory" } else { "it is not a directory" },
        )),
    }
}

/// Fails if a file that the user named cannot be opened.
fn must_open(what: &str, file: &Path) -> Result<(), Failure> {
    std::fs::File::open(file).map(drop).map_err(|error| {
        let failure = Failure::io(&format!("cannot read the {what} in {}", Printable::path(file)), &error);
        // Whoever names a file that is not there has mistyped it; one that may not be read is another matter.
        if failure.code == Code::Denied { failure } else { failure.coded(Code::Usage) }
    })
}

/// The text of a reference with the path of a local place made absolute; other references as the user wrote them.
fn with_absolute_path(text: &str, reference: Reference) -> Result<String, Failure> {
    if matches!(reference, Reference::Registry(_)) {
        return Ok(text.to_owned());
    }
    let here = std::env::current_dir().map_err(|error| Failure::io("cannot find the working directory", &error))?;
    let reference = reference.against(&here).map_err(|error| {
        usage(format!("cannot name \"{:.200}\" from this working directory", Printable::of(text)), error)
    })?;
    Ok(reference.to_string())
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let found = std::path::absolute(path);
    nameable(found.map_err(|error| Failure::io(&format!("cannot find {}", Printable::path(path)), &error))?)
}

/// A reference as it was typed, which goes through text.
fn text(typed: OsString) -> Result<String, String> {
    typed.into_string().map_err(|typed| format!("{} is not UTF-8 text", Printable::of(typed.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(text: &str) -> Result<String, Failure> {
        with_absolute_path(text, text.parse().expect("a reference"))
    }

    #[test]
    fn names_in_registries_are_sent_as_they_were_written() {
        for text in ["debian", "docker://a.b/c:1", "localhost:5000/a"] {
            assert_eq!(sent(text), Ok(text.to_owned()));
        }
    }

    #[test]
    fn paths_in_references_become_absolute_and_keep_their_selector() {
        let here = std::env::current_dir().expect("a working directory");
        let here = here.to_str().expect("UTF-8");
        let digest = "sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945";
        for (transport, selector) in [
            ("oci", ":1.0"),
            ("oci", &format!("@{digest}")),
            ("docker-archive", ":a:b"),
            ("oci-archive", ":@1"),
            ("oci", ""),
        ] {
            assert_eq!(
                sent(&format!("{transport}:dir/x{selector}")),
                Ok(format!("{transport}:{here}/dir/x{selector}"))
            );
            assert_eq!(sent(&format!("{transport}:/x{selector}")), Ok(format!("{transport}:/x{selector}")));
        }
        assert_eq!(sent("oci:../a"), Ok(format!("oci:{here}/../a")), "links are followed as they will be then");
    }
}

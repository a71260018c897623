//! The arguments of all commands that read an image, and the request they make.

use std::path::{Path, PathBuf};

use clap::ValueHint;

use super::context::Context;
use super::stop::{usage, warn};
use super::{credentials, hosts};
use crate::daemon::{Code, Failure, control};
use crate::oci::{Platform, Printable, Reference};

/// Which image, and how its source may be asked.
#[derive(Debug, clap::Args)]
pub(super) struct ImageArgs {
    /// The image, such as debian:12 or oci:DIR (see `ocifs help references`)
    #[arg(value_name = "REF")]
    reference: String,

    /// Choose the image for this platform instead of this machine's
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,

    /// Use only what the cache has
    #[arg(long)]
    offline: bool,

    /// Speak plain HTTP with the registry (always done for localhost)
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

impl ImageArgs {
    /// The reference as it was typed.
    pub(super) fn reference(&self) -> &str {
        &self.reference
    }

    /// The image to ask the daemon for. Wrong arguments are told before a daemon is started for them.
    pub(super) fn request(&self, context: &Context) -> Result<control::Image, Failure> {
        let reference = parsed(&self.reference)?;
        if let Some(platform) = &self.platform {
            platform.parse::<Platform>().map_err(|error| usage("cannot use the value of --platform", error))?;
        }
        if let Some(file) = &self.authfile {
            must_open("credentials", file)?;
        }
        if self.authfile.is_none()
            && let Some(dir) = credentials::missing_runtime_dir(&context.environment)
        {
            let dir = Printable::path(&dir).to_string();
            warn(&context.environment, &format!("there is no XDG_RUNTIME_DIR {dir}, so no credentials are there"));
        }
        let auth_files = credentials::files(self.authfile.as_deref(), &context.environment);
        let (hosts, aliases) = self.hosts(context)?;
        let expanded = hosts::expanded(&self.reference, &reference, &hosts, aliases.as_deref())?;
        let (text, reference) = match expanded {
            Some(text) => {
                let reference = parsed(&text)?;
                (text, reference)
            }
            None => (self.reference.clone(), reference),
        };
        Ok(control::Image {
            platform: self.platform.clone(),
            offline: self.offline,
            plain_http: self.plain_http || context.settings.is_plain_http(&reference),
            auth_files: auth_files.iter().map(|file| absolute(file)).collect::<Result<_, _>>()?,
            hosts,
            reference: with_absolute_path(&text, reference)?,
            trust_index: control::TrustIndex::default(),
        })
    }

    /// The files that say how registries are reached, and the one with recorded aliases. Those that the user names must be
    /// there.
    fn hosts(&self, context: &Context) -> Result<(control::HostFiles, Option<PathBuf>), Failure> {
        let tree = self.hosts_dir.as_deref().map(absolute).transpose()?;
        let registries = self.registries_conf.as_deref().map(absolute).transpose()?;
        let named = hosts::Named { tree: tree.as_deref(), registries: registries.as_deref() };
        let named = named.or_configured(&context.settings);
        let by_environment = named.by_environment(&context.environment);
        for file in tree.iter().chain(&registries).chain(&by_environment) {
            must_open("host configuration", file)?;
        }
        let mut files = named.files(&context.environment);
        // The daemon is in another directory, and a variable may hold what is relative to this one.
        for file in &mut files.registries {
            *file = absolute(file)?;
        }
        Ok((files, named.recorded_aliases(&context.environment)))
    }
}

fn parsed(text: &str) -> Result<Reference, Failure> {
    text.parse().map_err(|error| {
        usage(format!("\"{:.200}\" does not name an image", Printable::of(text)), error)
            .hint("`ocifs help references` shows how images are named")
    })
}

/// Fails if a file that the user named cannot be opened.
fn must_open(what: &str, file: &Path) -> Result<(), Failure> {
    let opened = std::fs::File::open(file).map(drop);
    opened.map_err(|error| {
        Failure::io(&format!("cannot read the {what} in {}", Printable::path(file)), &error).coded(Code::Usage)
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
    std::path::absolute(path).map_err(|error| Failure::io(&format!("cannot find {}", Printable::path(path)), &error))
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

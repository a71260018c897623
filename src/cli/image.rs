//! The arguments of all commands that read an image, and the request they make.

use std::path::{Path, PathBuf};

use clap::ValueHint;

use super::context::Context;
use super::credentials;
use super::stop::usage;
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
}

impl ImageArgs {
    /// The reference as it was typed.
    pub(super) fn reference(&self) -> &str {
        &self.reference
    }

    /// The image to ask the daemon for. Wrong arguments are told before a daemon is started for them.
    pub(super) fn request(&self, context: &Context) -> Result<control::Image, Failure> {
        let reference: Reference = self.reference.parse().map_err(|error| {
            usage(format!("\"{:.200}\" does not name an image", Printable::of(&self.reference)), error)
                .hint("`ocifs help references` shows how images are named")
        })?;
        if let Some(platform) = &self.platform {
            platform.parse::<Platform>().map_err(|error| usage("cannot use the value of --platform", error))?;
        }
        if let Some(file) = &self.authfile
            && let Err(error) = std::fs::File::open(file)
        {
            return Err(Failure::io(&format!("cannot read the credentials in {}", Printable::path(file)), &error)
                .coded(Code::Usage));
        }
        let auth_files = credentials::files(self.authfile.as_deref(), &context.environment);
        Ok(control::Image {
            platform: self.platform.clone(),
            offline: self.offline,
            plain_http: self.plain_http || context.settings.is_plain_http(&reference),
            auth_files: auth_files.iter().map(|file| absolute(file)).collect::<Result<_, _>>()?,
            reference: with_absolute_path(&self.reference, reference)?,
            trust_index: control::TrustIndex::default(),
        })
    }
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

//! `ocifs cat`: the bytes of one file of an image.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;

use super::context::{Context, Sink, unexpected};
use super::image::ImageArgs;
use super::interrupt::or_interrupted;
use super::output::Output;
use super::progress::Meter;
use super::stop::Stop;
use crate::daemon::control::{Listed, Request};
use crate::daemon::{Connection, Failure};

const EXAMPLES: &str = "\
Examples:
  ocifs cat debian:12 /etc/os-release
  ocifs cat oci:build/image usr/bin/tool > tool";

/// Print a file of an image without mounting it
///
/// Symbolic links are followed inside the image. Only the bytes that the file needs are fetched if the image was seen
/// before.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    image: ImageArgs,

    /// The file, from the image's root
    #[arg(value_name = "PATH")]
    path: OsString,
}

/// Prints.
pub(super) fn run(args: &Args, context: &Context) -> Result<(), Stop> {
    let image = args.image.request(context)?;
    let meter = Meter::looking_up(&image.reference);
    let request = Request::Read { image, path: args.path.as_bytes().to_vec() };
    let (context, shown) = (context.clone(), meter.clone());
    let outcome = or_interrupted(move || {
        let mut file = File(Output::new());
        context.ask_into(&request, &shown, &mut file)?;
        file.0.finish()
    });
    meter.clear();
    outcome
}

/// Passes on a file as it comes.
struct File(Output);

impl Sink for File {
    fn item(&mut self, _: Listed) -> Result<(), Stop> {
        Err(unexpected().into())
    }

    fn data(&mut self, length: u64, connection: &mut Connection) -> Result<(), Stop> {
        connection.copy(length, self.0.raw()).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                Failure::io("lost the daemon", &error).into()
            }
            _ => Stop::output(&error),
        })
    }
}

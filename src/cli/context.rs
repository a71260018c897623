//! One conversation with the daemon: a request, what it tells meanwhile, and the answer.

use std::ffi::OsString;
use std::io::{self, Read};

use serde::de::DeserializeOwned;

use super::args::Global;
use super::environment::Environment;
use super::progress::Meter;
use super::settings::Settings;
use super::stop::{Stop, warn};
use crate::daemon::control::{Event, Listed, Request};
use crate::daemon::{Client, Code, Connection, Failure, Program};
use crate::oci::Printable;

/// Bytes that are sent to the daemon at once.
const PIECE: usize = 256 << 10;

/// What a command has to work with.
#[derive(Debug, Clone)]
pub(super) struct Context {
    /// The environment of this process.
    pub(super) environment: Environment,
    /// What options, environment and files say.
    pub(super) settings: Settings,
}

/// Where the parts of a long answer go.
pub(super) trait Sink {
    /// Takes one name of a listing.
    fn item(&mut self, item: Listed) -> Result<(), Stop>;

    /// Takes the next bytes of a file: exactly `length` of them from `connection`.
    fn data(&mut self, length: u64, connection: &mut Connection) -> Result<(), Stop>;
}

/// For answers without such parts.
#[derive(Debug)]
struct Nothing;

impl Sink for Nothing {
    fn item(&mut self, _: Listed) -> Result<(), Stop> {
        Err(unexpected().into())
    }

    fn data(&mut self, _: u64, _: &mut Connection) -> Result<(), Stop> {
        Err(unexpected().into())
    }
}

/// A sink that may write to the terminal on which the meter is.
struct Below<'a> {
    /// Until the first part.
    meter: Option<&'a Meter>,
    sink: &'a mut dyn Sink,
}

impl Below<'_> {
    fn begin(&mut self) -> &mut dyn Sink {
        if let Some(meter) = self.meter.take() {
            meter.clear();
        }
        self.sink
    }
}

impl Sink for Below<'_> {
    fn item(&mut self, item: Listed) -> Result<(), Stop> {
        self.begin().item(item)
    }

    fn data(&mut self, length: u64, connection: &mut Connection) -> Result<(), Stop> {
        self.begin().data(length, connection)
    }
}

impl Context {
    /// Settles what holds for this command.
    pub(super) fn new(global: &Global, environment: &Environment) -> Result<Self, Failure> {
        Ok(Self { settings: Settings::resolve(global, environment)?, environment: environment.clone() })
    }

    /// The way to the daemon of the cache directory.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let path = std::env::current_exe().map_err(|error| Failure::io("cannot find this program", &error))?;
        let Settings { cache_dir, cache_size, memory_size, runtime_dir, idle, .. } = &self.settings;
        // The daemon inherits the environment, but must serve what this process has settled.
        let mut arguments: Vec<OsString> = vec![
            "--cache-dir".into(),
            cache_dir.into(),
            "--runtime-dir".into(),
            runtime_dir.into(),
            "daemon".into(),
            "--idle".into(),
            idle.as_secs().to_string().into(),
        ];
        if let Some(size) = cache_size {
            arguments.extend(["--cache-size".into(), size.to_string().into()]);
        }
        if let Some(size) = memory_size {
            arguments.extend(["--memory-size".into(), size.to_string().into()]);
        }
        Ok(Client {
            cache_dir: cache_dir.clone(),
            runtime_dir: runtime_dir.clone(),
            program: Program { path, arguments },
        })
    }

    /// Asks for a short answer, starting the daemon if there is none.
    pub(super) fn ask<T: DeserializeOwned>(&self, request: &Request, meter: &Meter) -> Result<T, Stop> {
        self.hear(self.client()?.request(request)?, meter, &mut Nothing)
    }

    /// Asks for an answer in parts, starting the daemon if there is none. The meter is gone before the first part comes.
    pub(super) fn ask_into(&self, request: &Request, meter: &Meter, sink: &mut dyn Sink) -> Result<(), Stop> {
        let connection = self.client()?.request(request)?;
        let heard = self.hear::<serde_json::Value>(connection, meter, &mut Below { meter: Some(meter), sink });
        meter.clear();
        heard.map(drop)
    }

    /// Asks for an answer in parts that do not go to the terminal, so that the meter stays beside them.
    pub(super) fn ask_beside(&self, request: &Request, meter: &Meter, sink: &mut dyn Sink) -> Result<(), Stop> {
        let connection = self.client()?.request(request)?;
        self.hear::<serde_json::Value>(connection, meter, sink).map(drop)
    }

    /// Asks for a short answer to all of `input`, which the daemon may refuse before it has taken it.
    pub(super) fn send<T: DeserializeOwned>(
        &self,
        request: &Request,
        input: &mut dyn Read,
        meter: &Meter,
        unreadable: impl FnOnce(&io::Error) -> Stop,
    ) -> Result<T, Stop> {
        let mut connection = self.client()?.request(request)?;
        let mut buffer = vec![0; PIECE];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => break,
                // A daemon that takes no more has said why.
                Ok(count) => {
                    if connection.send(&buffer[..count]).is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(&error)),
            }
        }
        connection.finish_sending();
        self.hear(connection, meter, &mut Nothing)
    }

    /// Asks for a short answer if a daemon is running.
    pub(super) fn ask_if_running<T: DeserializeOwned>(&self, request: &Request) -> Result<Option<T>, Stop> {
        let connection = self.client()?.request_if_running(request)?;
        connection.map(|connection| self.hear(connection, &Meter::hidden(), &mut Nothing)).transpose()
    }

    fn hear<T: DeserializeOwned>(
        &self,
        mut connection: Connection,
        meter: &Meter,
        sink: &mut dyn Sink,
    ) -> Result<T, Stop> {
        loop {
            match connection.event()? {
                Event::Progress(progress) => meter.show(&progress),
                Event::Phase { text } => meter.next(Printable::of(&text).to_string()),
                Event::Warning { text } => meter.aside(|| warn(&self.environment, &text)),
                Event::Item(item) => sink.item(item)?,
                Event::Data { length } => sink.data(length, &mut connection)?,
                Event::Done { answer } => {
                    return Ok(serde_json::from_value(answer).map_err(|error| Failure::of(Code::Other, &error))?);
                }
                Event::Failed(failure) => return Err(failure.into()),
            }
        }
    }
}

/// The failure for a part of an answer that does not belong to it.
pub(super) fn unexpected() -> Failure {
    Failure::new(Code::Other, "the daemon sent what was not asked for")
        .hint("it may be of another version: end its mounts, so that a new one starts")
}

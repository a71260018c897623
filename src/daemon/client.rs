//! The client's side: reaching the daemon, starting it, and reading its answers. Blocking, for command-line use.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::control::{Event, Request};
use super::socket::{check_runtime_dir, make_runtime_dir, socket_path, unusable};
use super::{Code, Failure};
use crate::oci::Printable;

/// How long a starting daemon may take to say that it is ready.
const START: Duration = Duration::from_secs(20);

/// How long a daemon may take to answer what needs nobody else, and to show that it has heard of anything else.
const ANSWER: Duration = Duration::from_secs(10);

/// How long to wait, at first and at most, before a daemon is looked for again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How a daemon is started.
#[derive(Debug, Clone)]
pub struct Program {
    /// The program to run.
    pub path: PathBuf,
    /// Its arguments; it must end up in [`super::run`] with standard output as `ready`.
    pub arguments: Vec<std::ffi::OsString>,
}

/// Where the daemon of a cache directory is to be found, and how it is started.
#[derive(Debug, Clone)]
pub struct Client {
    /// The cache directory.
    pub cache_dir: PathBuf,
    /// The directory of the control socket.
    pub runtime_dir: PathBuf,
    /// The daemon's program.
    pub program: Program,
}

/// A request that was made; its events are read from here.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<UnixStream>,
    /// The part of a line that has come.
    line: Vec<u8>,
    /// How long the next event is waited for.
    patience: Patience,
    /// Where the daemon writes what it does.
    log: PathBuf,
}

/// How long events of a daemon are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Whoever answers at once is expected to.
    Short,
    /// The first shows that the daemon lives, and what it does then takes its time.
    First,
    /// For ever.
    Endless,
}

impl Client {
    /// Makes a request, starting the daemon if there is none.
    pub fn request(&self, request: &Request) -> Result<Connection, Failure> {
        let (deadline, mut pause) = (Instant::now() + START, AGAIN.0);
        loop {
            if let Some(connection) = self.request_if_running(request)? {
                return Ok(connection);
            }
            match self.start() {
                Ok(()) => {}
                // Another client's daemon won the race, or the last one is still ending: its socket decides.
                Err(failure) if failure.code == Code::Cache && Instant::now() < deadline && is_busy(&failure) => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(AGAIN.1);
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Runs what needs the cache directory for itself. A daemon that has nothing to do gives it up.
    pub fn in_place_of_idle_daemon<T>(&self, run: impl Fn() -> Result<T, Failure>) -> Result<T, Failure> {
        let asked = self.request_if_running(&Request::Retire);
        let gives_way = asked.ok().flatten().is_some_and(|connection| match connection.finish(|_| {}) {
            Ok(is_idle) => is_idle,
            // One that is older than this program says that it does not understand; one that is ending says nothing.
            Err(failure) => failure.code != Code::Usage,
        });
        let deadline = Instant::now() + if gives_way { START } else { Duration::ZERO };
        loop {
            match run() {
                Err(failure) if is_busy(&failure) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                outcome => return outcome,
            }
        }
    }

    /// Makes a request if a daemon is running.
    pub fn request_if_running(&self, request: &Request) -> Result<Option<Connection>, Failure> {
        check_runtime_dir(&self.runtime_dir)?;
        let socket = socket_path(&self.cache_dir, &self.runtime_dir);
        let mut stream = match UnixStream::connect(&socket) {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(unusable("reach the daemon at", &socket, &error)),
        };
        let patience = if request.is_quick() { Patience::Short } else { Patience::First };
        stream.set_read_timeout(Some(ANSWER)).map_err(|error| Failure::io("cannot talk to the daemon", &error))?;
        let mut line = serde_json::to_vec(request).map_err(|error| Failure::of(Code::Other, &error))?;
        line.push(b'\n');
        stream.write_all(&line).map_err(|error| Failure::io("cannot talk to the daemon", &error))?;
        let (stream, log) = (BufReader::new(stream), socket.with_extension("log"));
        Ok(Some(Connection { stream, line: Vec::new(), patience, log }))
    }

    /// Starts a daemon and waits until it is ready or says why it cannot be.
    fn start(&self) -> Result<(), Failure> {
        let dir = &self.runtime_dir;
        make_runtime_dir(dir)?;
        let log_path = socket_path(&self.cache_dir, dir).with_extension("log");
        let log = std::fs::File::options().create(true).append(true).mode(0o600).open(&log_path);
        let log = log.map_err(|error| Failure::io(&format!("cannot write {}", log_path.display()), &error))?;
        let mut command = Command::new(&self.program.path);
        command.args(&self.program.arguments).current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().map_err(|error| Failure::io("cannot start the daemon", &error))?;
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            let read = BufReader::new(stdout.take(1 << 20)).read_line(&mut said);
            read.map_err(|error| Failure::io("cannot hear the daemon", &error))?;
        }
        if said.trim_end() == "ready" {
            return Ok(());
        }
        let ended = child.wait().map_err(|error| Failure::io("cannot wait for the daemon", &error))?;
        Err(serde_json::from_str(&said).unwrap_or_else(|_| {
            Failure::new(Code::Other, format!("the daemon ended at once ({ended})"))
                .hint(format!("its log is {}", log_path.display()))
        }))
    }
}

/// True if the failure is that another process holds the cache.
fn is_busy(failure: &Failure) -> bool {
    failure.error.contains("in use by another process")
}

impl Connection {
    /// Reads the next event. A daemon that is silent although it should have said something gives a warning, unless it had
    /// nothing to do but answer: then that is a failure.
    pub fn event(&mut self) -> Result<Event, Failure> {
        let silent = || format!("the daemon has not answered for {} seconds", ANSWER.as_secs());
        match self.stream.read_until(b'\n', &mut self.line) {
            Ok(0) => {
                return Err(Failure::new(Code::Other, "the daemon ended before it answered").hint(self.see_log()));
            }
            Ok(_) => {}
            Err(error) if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(Failure::io("lost the daemon", &error).hint(self.see_log()));
            }
            Err(_) if self.patience == Patience::Short => {
                let hint = format!("it may have been stopped; {}", self.see_log());
                return Err(Failure::new(Code::Other, silent()).hint(hint));
            }
            Err(_) => {
                self.wait_for_ever()?;
                let text = format!("{}; it may have been stopped, and {}", silent(), self.see_log());
                return Ok(Event::Warning { text });
            }
        }
        if self.patience == Patience::First {
            self.wait_for_ever()?;
        }
        let line = std::mem::take(&mut self.line);
        serde_json::from_slice(&line).map_err(|error| Failure::of(Code::Other, &error))
    }

    fn wait_for_ever(&mut self) -> Result<(), Failure> {
        self.patience = Patience::Endless;
        let set = self.stream.get_ref().set_read_timeout(None);
        set.map_err(|error| Failure::io("cannot talk to the daemon", &error))
    }

    fn see_log(&self) -> String {
        format!("its log is {}", Printable::path(&self.log))
    }

    /// Sends raw bytes that belong to the request.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Says that nothing more is sent.
    pub fn finish_sending(&mut self) {
        if let Err(error) = self.stream.get_ref().shutdown(Shutdown::Write) {
            // Its answer tells whether the daemon has heard enough.
            tracing::debug!(%error, "the daemon has closed its side already");
        }
    }

    /// Copies the raw bytes that a [`Event::Data`] announced.
    pub fn copy(&mut self, length: u64, target: &mut dyn Write) -> io::Result<()> {
        let copied = io::copy(&mut (&mut self.stream).take(length), target)?;
        if copied == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Reads events until the end, giving all but the last to `each`, and returns the answer.
    pub fn finish<T: DeserializeOwned>(mut self, mut each: impl FnMut(Event)) -> Result<T, Failure> {
        loop {
            match self.event()? {
                Event::Done { answer } => {
                    return serde_json::from_value(answer).map_err(|error| Failure::of(Code::Other, &error));
                }
                Event::Failed(failure) => return Err(failure),
                event => each(event),
            }
        }
    }
}

//! Servers as processes that end with their value.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::temp_dir;

/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server on ports of its own.
pub(super) struct Server {
    child: Child,
    ports: Vec<u16>,
    directory: TempDir,
}

impl Server {
    /// Starts nginx with `servers`, blocks of its configuration about these many ports.
    pub(super) fn nginx(ports: usize, servers: impl Fn(&[u16], &Path) -> String) -> Self {
        Self::start(ports, |ports, directory| {
            let place = directory.display();
            let text = format!(
                "daemon off; master_process off; worker_processes 1; pid {place}/pid; error_log {place}/error.log;\n\
                 events {{ worker_connections 200; }}\n\
                 http {{\n\
                   access_log {place}/access.log combined; default_type application/octet-stream;\n\
                   client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/f;\n\
                   uwsgi_temp_path {place}/u; scgi_temp_path {place}/s; client_max_body_size 0;\n\
                   proxy_http_version 1.1; proxy_set_header Host $http_host;\n{}\n}}\n",
                servers(ports, directory)
            );
            let file = directory.join("nginx.conf");
            fs::write(&file, text).expect("a file");
            let mut command = Command::new("nginx");
            command.arg("-e").arg(directory.join("error.log")).arg("-p").arg(directory).arg("-c").arg(file);
            command
        })
    }

    /// Starts tinyproxy with more lines of configuration, by a command made of the plain one.
    pub(super) fn tinyproxy(configuration: &str, run: impl Fn(Command) -> Command) -> Self {
        Self::start(1, |ports, directory| {
            let (file, log) = (directory.join("tinyproxy.conf"), directory.join("access.log"));
            let text = format!(
                "Port {}\nListen 127.0.0.1\nTimeout 60\nLogLevel Connect\nLogFile \"{}\"\n{configuration}\n",
                ports[0],
                log.display()
            );
            fs::write(&file, text).expect("a file");
            let mut command = Command::new("tinyproxy");
            command.arg("-d").arg("-c").arg(file);
            run(command)
        })
    }

    /// Another process may take a free port first; then the server ends at once and others are tried.
    fn start(ports: usize, command: impl Fn(&[u16], &Path) -> Command) -> Self {
        let mut said = String::new();
        for _ in 0..5 {
            let directory = temp_dir();
            let free: Vec<_> = (0..ports).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port is free")).collect();
            let ports: Vec<u16> =
                free.iter().map(|listener| listener.local_addr().expect("it is bound").port()).collect();
            drop(free);
            let mut command = command(&ports, directory.path());
            let log = fs::File::create(directory.path().join("output")).expect("a file");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            let child = command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
            let mut server = Self { child, ports, directory };
            if server.listens() {
                return server;
            }
            said = server.read("output") + &server.read("error.log");
        }
        panic!("the server does not start: {said}");
    }

    fn listens(&mut self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if self.child.try_wait().expect("it is our process").is_some() {
                return false;
            }
            if self.ports.iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok()) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// One of its ports, in the order in which they were asked for.
    pub(super) fn port(&self, number: usize) -> u16 {
        self.ports[number]
    }

    /// What it was asked, as it logs it.
    pub(super) fn log(&self) -> String {
        self.read("access.log")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, and then there is nothing to do.
        self.child.kill().and_then(|()| self.child.wait()).map(drop).unwrap_or_default();
    }
}

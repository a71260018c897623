//! A small HTTP server that does what a test tells it, faults included, and keeps a log of what it was asked.
//!
//! Written on bare TCP, because the faults are those that an HTTP library would prevent.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    /// Names in lower case.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The first and last byte of the `Range` header.
    pub(super) fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// What happens to the body on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It arrives.
    Whole,
    /// Not even the head of the answer is sent.
    Silence,
    /// The connection is closed after so many bytes.
    Cut(usize),
    /// The connection is reset after so many bytes.
    Reset(usize),
    /// Nothing follows after so many bytes, and the connection stays.
    Stall(usize),
    /// It arrives byte by byte with pauses.
    Drip(Duration),
    /// The same bytes again and again.
    Endless,
    /// It is sent by HTTP/1.0 without a length, and ends with the connection after so many bytes.
    Unmeasured(usize),
}

/// An answer.
#[derive(Clone)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) fate: Fate,
    /// Sends the body in chunks, without a length.
    pub(super) chunked: bool,
    /// Nothing is sent before this is over.
    after: Option<Shared<BoxFuture<'static, ()>>>,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { status, headers, body, fate, .. } = self;
        write!(f, "{status} {headers:?}, {} bytes, {fate:?}", body.len())
    }
}

impl Reply {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), fate: Fate::Whole, chunked: false, after: None }
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(super) fn fated(mut self, fate: Fate) -> Self {
        self.fate = fate;
        self
    }

    /// Is sent when `over` is.
    pub(super) fn after(mut self, over: impl Future<Output = ()> + Send + 'static) -> Self {
        self.after = Some(over.boxed().shared());
        self
    }

    pub(super) fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    /// What an honest server answers to a request for `blob` or a part of it.
    pub(super) fn blob(request: &Request, blob: &[u8]) -> Self {
        match request.range() {
            None => Self::new(200, blob),
            Some((first, last)) if first <= last && last < blob.len() => Self::new(206, &blob[first..=last])
                .with("Content-Range", format!("bytes {first}-{last}/{}", blob.len())),
            Some(_) => Self::new(416, "").with("Content-Range", format!("bytes */{}", blob.len())),
        }
    }

    /// An error in the distribution specification's form.
    pub(super) fn error(status: u16, code: &str, message: &str) -> Self {
        Self::new(status, format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#))
    }

    pub(super) fn redirect(to: impl Into<String>) -> Self {
        Self::new(307, "").with("Location", to)
    }

    pub(super) fn bearer(realm: &str, more: &str) -> Self {
        let challenge = format!(r#"Bearer realm="{realm}",service="reg"{more}"#);
        Self::error(401, "UNAUTHORIZED", "authentication required").with("WWW-Authenticate", challenge)
    }
}

/// The server; it ends with the value.
pub(super) struct Server {
    port: u16,
    log: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves `script`, a function of the request and of the number of requests before it.
    pub(super) async fn start(script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (script, entries) = (Arc::new(script), Arc::clone(&log));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, entries) = (Arc::clone(&script), Arc::clone(&entries));
                tokio::spawn(async move {
                    // A client may close or reset at any time; that is its right.
                    drop(serve(stream, &*script, &entries).await);
                });
            }
        });
        Self { port, log, task }
    }

    pub(super) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host())
    }

    pub(super) fn log(&self) -> Vec<Request> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The paths asked for, in order.
    pub(super) fn paths(&self) -> Vec<String> {
        self.log().iter().map(|request| request.path().to_owned()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Script = dyn Fn(&Request, usize) -> Reply + Send + Sync;

async fn serve(stream: TcpStream, script: &Script, log: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = receive(&mut stream).await? {
        let before = {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push(request.clone());
            log.len() - 1
        };
        if !send(stream.get_mut(), script(&request, before)).await? {
            break;
        }
    }
    Ok(())
}

async fn receive(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Ok(None);
        }
        match String::from_utf8_lossy(&line).trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let Some((first, headers)) = lines.split_first() else {
        return Ok(None);
    };
    let mut words = first.split(' ').map(str::to_owned);
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let headers: Vec<_> = headers
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut request = Request { method, target, headers, body: String::new() };
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(request))
}

/// Sends an answer; true if the connection is good for another.
async fn send(stream: &mut TcpStream, mut reply: Reply) -> std::io::Result<bool> {
    if let Some(over) = reply.after.take() {
        over.await;
    }
    if reply.fate == Fate::Silence {
        tokio::time::sleep(Duration::from_secs(60)).await;
        return Ok(false);
    }
    let unmeasured = matches!(reply.fate, Fate::Unmeasured(_));
    let mut head = format!("HTTP/1.{} {} X\r\n", u8::from(!unmeasured), reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if reply.chunked || reply.fate == Fate::Endless {
        head.push_str("Transfer-Encoding: chunked\r\n\r\n");
    } else if unmeasured {
        head.push_str("\r\n");
    } else {
        head.push_str(&format!("Content-Length: {}\r\n\r\n", reply.body.len()));
    }
    stream.write_all(head.as_bytes()).await?;
    let part = |length: usize| &reply.body[..length.min(reply.body.len())];
    match reply.fate {
        Fate::Whole if reply.chunked => {
            for chunk in reply.body.chunks(1000) {
                send_chunk(stream, chunk).await?;
            }
            stream.write_all(b"0\r\n\r\n").await?;
            return Ok(true);
        }
        Fate::Whole => {
            stream.write_all(&reply.body).await?;
            return Ok(true);
        }
        Fate::Silence => {}
        Fate::Cut(length) | Fate::Unmeasured(length) => stream.write_all(part(length)).await?,
        Fate::Reset(length) => {
            stream.write_all(part(length)).await?;
            // The client must have the bytes before the reset throws away what it did not read.
            tokio::time::sleep(Duration::from_millis(50)).await;
            rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO))?;
        }
        Fate::Stall(length) => {
            stream.write_all(part(length)).await?;
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        Fate::Drip(pause) => {
            for byte in &reply.body {
                stream.write_all(std::slice::from_ref(byte)).await?;
                tokio::time::sleep(pause).await;
            }
        }
        Fate::Endless => loop {
            send_chunk(stream, &reply.body).await?;
        },
    }
    Ok(false)
}

async fn send_chunk(stream: &mut TcpStream, chunk: &[u8]) -> std::io::Result<()> {
    stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
    stream.write_all(chunk).await?;
    stream.write_all(b"\r\n").await
}

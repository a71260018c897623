//! Ranged reads from servers that answer late, wrongly, partly or not at all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use ocifs::registry::{Options, Repository, Selector};
use ocifs::source::{BlobReader, ErrorKind, Source};

use super::scripted::{Fate, Reply, Request, Server};
use super::{client, descriptor, noise, quick, read, repository, shown};

/// A server for one blob of 5,000 bytes, with a script for the first answers, and a reader for the blob.
async fn served(script: impl Fn(&Request, &[u8], usize) -> Option<Reply> + Send + Sync + 'static) -> Served {
    served_with(quick(), script).await
}

struct Served {
    bytes: Vec<u8>,
    server: Server,
    repository: Repository,
    blob: Arc<dyn BlobReader>,
}

async fn served_with(
    options: Options,
    script: impl Fn(&Request, &[u8], usize) -> Option<Reply> + Send + Sync + 'static,
) -> Served {
    let bytes = noise(5000);
    let stored = bytes.clone();
    let honest = move |request: &Request, count| {
        script(request, &stored, count).unwrap_or_else(|| Reply::blob(request, &stored))
    };
    let server = Server::start(honest).await;
    let repository = client(options).repository(&server.host(), "team/app", Selector::Tag("v1".to_owned()));
    let blob = repository.blob(&descriptor(&bytes));
    Served { bytes, server, repository, blob }
}

impl Served {
    async fn expect(&self, range: std::ops::Range<usize>) {
        let bytes = read(&self.blob, range.start as u64..range.end as u64).await;
        let bytes = bytes.unwrap_or_else(|error| panic!("{}", shown(&error)));
        assert_eq!(bytes, self.bytes[range]);
    }

    fn ranges(&self) -> Vec<Option<(usize, usize)>> {
        self.server.log().iter().map(Request::range).collect()
    }
}

#[tokio::test]
async fn b_085_a_range_is_asked_for_and_read_exactly() {
    let served = served(|_, _, _| None).await;
    served.expect(100..1100).await;
    served.expect(4999..5000).await;
    served.expect(0..5000).await;
    assert_eq!(served.ranges(), [Some((100, 1099)), Some((4999, 4999)), None]);
    for request in served.server.log() {
        assert_eq!(request.path(), format!("/v2/team/app/blobs/{}", descriptor(&served.bytes).digest));
        assert_eq!(request.header("accept-encoding"), Some("identity"));
        assert_eq!(request.header("authorization"), None);
        assert!(request.header("user-agent").is_some_and(|agent| agent.starts_with("ocifs/")));
    }
    assert!(served.repository.serves_ranges());
    let error = read(&served.blob, 4999..5001).await.expect_err("outside the blob");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn b_086_a_whole_blob_in_place_of_a_range_is_sliced_and_remembered() {
    for chunked in [false, true] {
        let served = served(move |_, blob, _| {
            let reply = Reply::new(200, blob);
            Some(if chunked { reply.chunked() } else { reply })
        })
        .await;
        assert!(served.repository.serves_ranges());
        served.expect(1234..2345).await;
        served.expect(4000..5000).await;
        assert!(!served.repository.serves_ranges());
    }
}

#[tokio::test]
async fn b_087_another_range_than_the_one_asked_for_is_refused() {
    for header in ["bytes 100-198/5000", "bytes 101-199/5000", "bytes 100-199/*", "bytes 100-199/5001", ""] {
        let served =
            served(move |_, blob, _| Some(Reply::new(206, &blob[100..200]).with("Content-Range", header))).await;
        let error = read(&served.blob, 100..200).await.expect_err(header);
        assert!(matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Corrupt), "{header}: {}", shown(&error));
        assert_eq!(served.server.log().len(), 1, "such an answer is not asked for again");
    }
}

#[tokio::test]
async fn b_088_a_blob_shorter_than_described_is_corrupt_and_an_empty_one_needs_no_request() {
    let served = served(|request, blob, _| Some(Reply::blob(request, &blob[..10]))).await;
    for range in [4000..4100, 0..5000] {
        let error = read(&served.blob, range).await.expect_err("there are only ten bytes");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", shown(&error));
    }
    let empty = served.repository.blob(&descriptor(b""));
    assert!(read(&empty, 0..0).await.expect("nothing to read").is_empty());
    assert_eq!(served.server.log().len(), 2);
}

#[tokio::test]
async fn b_089_b_090_b_091_every_request_has_one_range_and_its_answer_one_part() {
    let served = served(|_, blob, _| {
        let part = |range: std::ops::Range<usize>| {
            let head = format!("\r\n--x:y\r\nContent-Range: bytes {}-{}/5000\r\n\r\n", range.start, range.end - 1);
            [head.as_bytes(), &blob[range]].concat()
        };
        let body = [part(10..20), part(30..40), b"\r\n--x:y--\r\n".to_vec()].concat();
        Some(Reply::new(206, body).with("Content-Type", "multipart/byteranges; boundary=x:y"))
    })
    .await;
    for range in [10..20, 30..40, 10..40] {
        let error = read(&served.blob, range).await.expect_err("nobody asked for parts");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{}", shown(&error));
    }
    let ranges: Vec<_> = served.server.log().iter().map(|request| request.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, ["bytes=10-19", "bytes=30-39", "bytes=10-39"].map(|range| Some(range.to_owned())));
}

#[tokio::test]
async fn b_084_places_are_found_by_the_first_useful_request_and_never_by_head() {
    let store = served(|request, _, _| (request.method == "HEAD").then(|| Reply::new(403, ""))).await;
    let (target, bytes) = (store.server.url("/x"), store.bytes.clone());
    let registry = Server::start(move |request, _| match request.method.as_str() {
        "HEAD" => Reply::new(200, bytes.clone()),
        _ => Reply::redirect(target.clone()),
    })
    .await;
    let blob = repository(&registry).blob(&descriptor(&store.bytes));
    for start in [0, 2000] {
        let read = read(&blob, start..start + 100).await.expect("served");
        assert_eq!(read, store.bytes[start as usize..start as usize + 100]);
    }
    let log = [registry.log(), store.server.log()].concat();
    assert!(log.len() == 3 && log.iter().all(|request| request.method == "GET"), "{log:?}");
}

#[tokio::test]
async fn b_092_an_encoded_range_is_refused() {
    for answer in [200, 206] {
        let served = served(move |request, blob, _| {
            let reply = if answer == 206 { Reply::blob(request, blob) } else { Reply::new(200, blob) };
            Some(reply.with("Content-Encoding", "gzip"))
        })
        .await;
        let error = read(&served.blob, 0..10).await.expect_err("compressed on the way");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(shown(&error).contains("is encoded although that was declined"), "{}", shown(&error));
    }
}

#[tokio::test]
async fn b_092_a_whole_blob_that_is_encoded_is_decoded() {
    let gzip = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut gzip, bytes).expect("written to memory");
        gzip.finish().expect("written to memory")
    };
    let served = served(move |_, blob, count| {
        let twice = zstd::encode_all(&gzip(blob)[..], 1).expect("written to memory");
        Some(match count {
            0 => Reply::new(200, gzip(blob)).with("Content-Encoding", "gzip").chunked(),
            1 => Reply::new(200, twice).with("Content-Encoding", "gzip, zstd"),
            2 => Reply::new(200, gzip(&[blob, b"x"].concat())).with("Content-Encoding", "gzip"),
            3 => Reply::new(200, gzip(&blob[1..])).with("Content-Encoding", "gzip"),
            _ => Reply::new(200, blob).with("Content-Encoding", "br"),
        })
    })
    .await;
    served.expect(0..5000).await;
    served.expect(0..5000).await;
    for wrong in ["one byte more", "one byte less", "not known here"] {
        let error = read(&served.blob, 0..5000).await.expect_err(wrong);
        assert!(!error.is_transient(), "{wrong}: {}", shown(&error));
    }
    assert_eq!(served.server.log().len(), 5, "nothing is asked for again");
}

#[tokio::test]
async fn b_093_a_body_without_a_length_must_end_with_the_range() {
    let served = served(|request, blob, count| {
        let mut reply = Reply::blob(request, blob).chunked();
        if count > 0 {
            reply.body.push(0);
        }
        Some(reply)
    })
    .await;
    served.expect(10..3000).await;
    let error = read(&served.blob, 10..3000).await.expect_err("one byte more");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{}", shown(&error));
}

#[tokio::test]
async fn b_094_a_broken_body_is_resumed_at_its_last_byte() {
    for fate in [Fate::Cut(700), Fate::Reset(700)] {
        let served =
            served(move |request, blob, count| (count < 2).then(|| Reply::blob(request, blob).fated(fate))).await;
        served.expect(1000..4000).await;
        assert_eq!(served.ranges(), [Some((1000, 3999)), Some((1700, 3999)), Some((2400, 3999))], "{fate:?}");
    }
}

#[tokio::test]
async fn b_094_a_body_that_always_breaks_is_an_error_after_bounded_attempts() {
    let served = served(|request, blob, _| Some(Reply::blob(request, blob).fated(Fate::Cut(10)))).await;
    let error = read(&served.blob, 0..5000).await.expect_err("it always breaks");
    assert!(error.is_transient(), "{}", shown(&error));
    assert_eq!(served.server.log().len(), 5);
}

#[tokio::test]
async fn b_094_attempts_count_anew_after_much_progress() {
    let bytes = noise(12 << 20);
    let stored = bytes.clone();
    let server = Server::start(move |request, _| Reply::blob(request, &stored).fated(Fate::Cut(3 << 19))).await;
    let blob = repository(&server).blob(&descriptor(&bytes));
    let whole = read(&blob, 0..bytes.len() as u64).await.expect("eight pieces of 1.5 MiB");
    assert!(whole == bytes);
    assert!(server.log().len() > 5);
}

#[tokio::test]
async fn b_095_a_whole_blob_after_a_break_is_skipped_to_the_missing_byte() {
    let served = served(|request, blob, count| {
        Some(if count == 0 { Reply::blob(request, blob).fated(Fate::Cut(700)) } else { Reply::new(200, blob) })
    })
    .await;
    served.expect(1000..4000).await;
}

#[tokio::test]
async fn b_096_a_stalled_body_is_resumed_and_a_silent_server_given_up() {
    let served = served_with(quick(), |request, blob, count| {
        (count == 0).then(|| Reply::blob(request, blob).fated(Fate::Stall(500)))
    })
    .await;
    served.expect(0..4000).await;
    assert_eq!(served.ranges(), [Some((0, 3999)), Some((500, 3999))]);
    let options = Options { stall_timeout: Duration::from_millis(200), attempts: 2, ..quick() };
    let silent = served_with(options, |request, blob, _| Some(Reply::blob(request, blob).fated(Fate::Stall(0)))).await;
    let begun = Instant::now();
    let error = read(&silent.blob, 0..4000).await.expect_err("nothing arrives");
    assert!(error.is_transient() && begun.elapsed() < Duration::from_secs(30), "{}", shown(&error));
}

#[tokio::test]
async fn b_096_d_072_a_body_that_only_drips_is_given_up() {
    let options = Options { stall_timeout: Duration::from_millis(600), attempts: 2, ..quick() };
    let drip = Fate::Drip(Duration::from_millis(150));
    let served = served_with(options, move |request, blob, _| Some(Reply::blob(request, blob).fated(drip))).await;
    let error = read(&served.blob, 0..4000).await.expect_err("this would take ten minutes");
    assert!(error.is_transient(), "{}", shown(&error));
}

#[tokio::test]
async fn b_097_retry_after_is_obeyed_up_to_the_cap() {
    let served = served(|_, _, count| {
        (count == 0).then(|| Reply::error(429, "TOOMANYREQUESTS", "slow down").with("Retry-After", "1"))
    })
    .await;
    let begun = Instant::now();
    served.expect(0..10).await;
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let options = Options { longest_pause: Duration::from_millis(50), ..quick() };
    let absurd = served_with(options, |_, _, count| {
        (count == 0).then(|| Reply::new(429, "").with("Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT"))
    })
    .await;
    let begun = Instant::now();
    absurd.expect(0..10).await;
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn b_098_passing_statuses_are_retried_and_reported_when_they_last() {
    let statuses = [408, 500, 502, 503];
    let served = served(move |_, _, count| statuses.get(count).map(|&status| Reply::new(status, "wait"))).await;
    served.expect(5..500).await;
    assert_eq!(served.server.log().len(), 5);
    let down = self::served(|_, _, _| Some(Reply::error(503, "UNAVAILABLE", "down for maintenance"))).await;
    let error = read(&down.blob, 0..10).await.expect_err("it stays down");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(shown(&error).contains("503 Service Unavailable: UNAVAILABLE: down for maintenance"), "{}", shown(&error));
    assert_eq!(down.server.log().len(), 5);
}

#[tokio::test]
async fn a_missing_blob_is_not_found_at_once() {
    let served = served(|_, _, _| Some(Reply::error(404, "BLOB_UNKNOWN", "blob unknown to registry"))).await;
    let error = read(&served.blob, 0..10).await.expect_err("there is none");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let text = shown(&error);
    assert!(text.contains("team/app@sha256:") && text.contains("blob unknown to registry"), "{text}");
    assert_eq!(served.server.log().len(), 1);
}

#[tokio::test]
async fn b_057_embedded_content_needs_no_request() {
    let served = served(|_, _, _| None).await;
    let mut embedded = descriptor(b"0123456789");
    embedded.data = Some(bytes::Bytes::from_static(b"0123456789"));
    let blob = served.repository.blob(&embedded);
    assert_eq!(read(&blob, 2..5).await.expect("it is here"), &b"234"[..]);
    assert!(served.server.log().is_empty());
}

#[tokio::test]
async fn a_refused_connection_is_reported_quickly_and_clearly() {
    let host = Server::start(|_, _| Reply::new(200, "")).await.host();
    // The server is gone, so its port refuses; give its task the time to drop the listener.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let repository = client(Options::default()).repository(&host, "team/app", Selector::Tag("v1".to_owned()));
    let begun = Instant::now();
    let error = repository.resolve().await.expect_err("nothing listens there");
    assert!(error.is_transient() && begun.elapsed() < Duration::from_secs(20));
    assert!(error.to_string().ends_with(&format!("cannot reach http://{host}: connection refused")), "{error}");
}

#[tokio::test]
async fn b_096_a_server_that_says_nothing_is_asked_twice_and_no_more() {
    let server = Server::start(|_, _| Reply::new(200, "").fated(Fate::Silence)).await;
    let time = Duration::from_secs(1);
    let options = Options { stall_timeout: time, connect_timeout: time, ..quick() };
    assert!(options.attempts > 2);
    let error = client(options)
        .repository(&server.host(), "a", Selector::Tag("v1".to_owned()))
        .resolve()
        .await
        .expect_err("it says nothing");
    assert!(error.is_transient() && (1..=2).contains(&server.log().len()), "{}", shown(&error));
}

#[tokio::test]
async fn what_has_not_been_said_yet_is_told_of_why_a_host_cannot_be_reached() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let refusing = listener.local_addr().expect("a bound socket has an address").to_string();
    drop(listener);
    // A name with a label that is too long is looked for nowhere.
    let nameless = format!("{}.example", "x".repeat(64));
    for (host, said) in [(refusing.as_str(), ""), (nameless.as_str(), "cannot be resolved")] {
        let options = Options { attempts: 1, plain_http: true, ..quick() };
        let selector = Selector::Tag("v1".to_owned());
        let error = client(options).repository(host, "a", selector).resolve().await.expect_err("there is none");
        let mut causes = Vec::new();
        let mut cause = std::error::Error::source(&error);
        while let Some(current) = cause {
            causes.push(current.to_string());
            cause = current.source();
        }
        let text = error.to_string();
        assert!(text.contains(said), "{text}");
        assert!(causes.len() <= usize::from(!said.is_empty()), "{text}: {causes:?}");
        assert!(causes.iter().all(|cause| !cause.contains("client error")), "{causes:?}");
    }
}

#[tokio::test]
async fn b_103_http_1_0_without_a_length_is_read_to_its_end_and_no_less() {
    let served = served(|request, blob, count| {
        let length = if count == 0 { 700 } else { usize::MAX };
        Some(Reply::blob(request, blob).fated(Fate::Unmeasured(length)))
    })
    .await;
    served.expect(1000..4000).await;
    assert_eq!(served.ranges(), [Some((1000, 3999)), Some((1700, 3999))]);
}

#[tokio::test]
async fn b_096_a_slow_consumer_is_not_mistaken_for_a_slow_server() {
    let bytes = noise(8 << 20);
    let stored = bytes.clone();
    let server = Server::start(move |request, _| Reply::blob(request, &stored)).await;
    let options = quick();
    let pause = options.stall_timeout + Duration::from_secs(1);
    let repository = client(options).repository(&server.host(), "a", Selector::Tag("v1".to_owned()));
    let mut stream = repository.blob(&descriptor(&bytes)).read(0..bytes.len() as u64).await.expect("served");
    let mut length = 0;
    while let Some(piece) = stream.next().await {
        if length == 0 {
            tokio::time::sleep(pause).await;
        }
        length += piece.expect("nothing is wrong").len();
    }
    assert_eq!((length, server.log().len()), (bytes.len(), 1));
}

#[tokio::test]
async fn dropping_a_stream_ends_the_transfer() {
    let options = quick();
    let served =
        served_with(options, |request, blob, _| Some(Reply::blob(request, blob).fated(Fate::Stall(100)))).await;
    let stream = served.blob.read(0..4000).await.expect("the first bytes arrive");
    drop(stream);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(served.server.log().len(), 1, "nobody asks on behalf of a dropped stream");
}

#[tokio::test]
async fn many_readers_of_one_blob_read_right_through_faults() {
    let fates = [Fate::Whole, Fate::Cut(50), Fate::Reset(300), Fate::Whole];
    let served = served_with(Options { attempts: 20, ..quick() }, move |request, blob, count| {
        Some(match count % 7 {
            5 => Reply::new(503, ""),
            6 => Reply::new(200, blob),
            other => Reply::blob(request, blob).fated(fates[other % 4]),
        })
    })
    .await;
    let readers = (0..40_usize).map(|number| served.expect(number * 37..number * 37 + 3000));
    futures_util::future::join_all(readers).await;
}

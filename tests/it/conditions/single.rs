//! Sixty-four processes that want the same bytes cause one request.

use std::cmp::Reverse;
use std::ops::Range;
use std::process::{Command, Stdio};
use std::time::Duration;

use ocifs::demo::registry::{Content, Fault, Request};

use crate::support::{Compression, Embedded, Image, Layer, Ocifs, REPEATS_LOG, noise, require_fuse, require_root, run};

/// Length of the file, less than a span.
const LENGTH: usize = 200_000;

#[test]
fn sixty_four_processes_reading_one_missing_span_make_one_request() {
    if !require_fuse() || !require_root() {
        return;
    }
    let alone = || Layer::new().file("file", noise(LENGTH, 1));
    assert_eq!(asked(alone(), "cached").len(), 1);
    assert_eq!(asked(alone(), "passthrough").len(), 1);
    assert_eq!(asked(alone().compressed(Compression::None), "cached").len(), 1);
    assert_eq!(asked(alone().compressed(Compression::ZstdFrames(300_000)), "passthrough").len(), 1);
}

#[test]
fn sixty_four_processes_ask_for_no_byte_twice_when_neighbours_are_fetched_ahead() {
    if !require_fuse() || !require_root() {
        return;
    }
    let around = |layer: Layer| layer.file("file", noise(LENGTH, 1)).file("after", noise(3 << 20, 3));
    for compression in [Compression::Gzip, Compression::None] {
        let layer = around(Layer::new().file("before", noise(3 << 20, 2))).compressed(compression);
        let ranges = asked(layer, "cached");
        // Neighbouring spans of gzip may share a byte.
        assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start + 1), "{compression:?}: {ranges:?}");
    }
}

/// The parts of the layer that are asked for while 64 processes read the first page of `/file`.
fn asked(layer: Layer, io: &'static str) -> Vec<Range<u64>> {
    let (bytes, content) = (noise(LENGTH, 1), Content::new());
    Image::new().layer(layer).to_content(&content, "it", "latest");
    let (ocifs, registry) = (Ocifs::new(), Embedded::start(content));
    let point = ocifs.mount_point("m");
    let mount = || {
        let options = ["mount", "--fill=off", "--profile-until=0", &format!("--io={io}")].map(str::to_owned);
        let places = [registry.name("it:latest"), point.path().display().to_string()];
        run(ocifs.command(options.into_iter().chain(places)).env("OCIFS_LOG", REPEATS_LOG)).ok();
    };
    mount();
    ocifs.umount(&point);
    ocifs.drop_bytes();
    assert!(ocifs.end_daemon(), "it ends when it is told to");
    mount();
    registry.forget_requests();
    // Long enough that all of them wait for the same answer.
    registry.set_faults(|request| request.is_blob().then(|| Fault::Delay(Duration::from_millis(1000))));
    let children: Vec<_> = (0..64)
        .map(|_| {
            // O_DIRECT, so that the kernel does not make one request of all.
            let mut dd = Command::new("dd");
            dd.arg(format!("if={}", point.path().join("file").display())).args(["bs=4096", "count=1", "iflag=direct"]);
            dd.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("dd can be run")
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().expect("dd ends");
        assert!(output.status.success() && output.stdout == bytes[..4096], "{io}");
    }
    let requests = registry.requests();
    let ranges = requests.iter().filter(|record| record.request.is_blob()).map(|record| range(&record.request));
    without_repeats(ranges.collect(), ocifs.repeats())
}

/// The ranges but for as many as `repeats` that others cover.
fn without_repeats(mut ranges: Vec<Range<u64>>, mut repeats: usize) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| (range.start, Reverse(range.end)));
    let mut kept: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        if repeats > 0 && kept.iter().any(|kept| kept.start <= range.start && range.end <= kept.end) {
            repeats -= 1;
        } else {
            kept.push(range);
        }
    }
    kept
}

/// What a request asks for; all there is, if it does not say.
fn range(request: &Request) -> Range<u64> {
    let Some(header) = request.headers.get("range").and_then(|value| value.to_str().ok()) else { return 0..u64::MAX };
    let (first, last) = header.strip_prefix("bytes=").and_then(|range| range.split_once('-')).expect("a range");
    first.parse().expect("a number")..last.parse::<u64>().expect("a number") + 1
}

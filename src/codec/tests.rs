//! Streams of every shape, decoded in pieces of every size.

use flate2::{Compression, Crc, write::GzEncoder};
use proptest::prelude::*;
use std::io::Write;

use super::*;

/// Points with their places in the stream and in the output.
type Points = Vec<(usize, usize, Point)>;

/// Decodes `stream` in pieces of `piece` bytes into room for `room` bytes at a time, and finds the points.
fn decode(stream: &[u8], piece: usize, room: usize) -> Result<(Vec<u8>, Points), Error> {
    let mut decoder = Decoder::new(sniff(stream)?);
    let (mut out, mut points, mut read) = (Vec::new(), Vec::new(), 0);
    let mut buffer = vec![0; room];
    for piece in stream.chunks(piece) {
        let mut rest = piece;
        loop {
            let step = decoder.step(rest, &mut buffer)?;
            if step.is_idle() {
                break;
            }
            rest = &rest[step.read..];
            read += step.read;
            out.extend_from_slice(&buffer[..step.written]);
            points.extend(step.point.map(|point| (read, out.len(), point)));
        }
        assert!(rest.is_empty(), "a step with room takes what there is");
    }
    decoder.finish().map(|()| (out, points))
}

fn decoded(stream: &[u8]) -> Result<Vec<u8>, Error> {
    decode(stream, 7, 1000).map(|(out, _)| out)
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// A member with a header of our own making around `bytes`.
fn member(flags: u8, fields: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut member = [&[0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255], fields].concat();
    let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), Compression::new(6));
    deflate.write_all(bytes).expect("writing to memory");
    member.extend(deflate.finish().expect("writing to memory"));
    member.extend(crc(bytes).to_le_bytes());
    member.extend((bytes.len() as u32).to_le_bytes());
    member
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(bytes).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

#[test]
fn a_180_every_combination_of_header_flags_is_read() {
    for flags in 0..32_u8 {
        let mut fields = Vec::new();
        for (flag, field) in [(4, &b"\x05\0extra"[..]), (8, b"name\0"), (16, b"comment\0")] {
            if flags & flag != 0 {
                fields.extend_from_slice(field);
            }
        }
        if flags & 2 != 0 {
            let header = [&[0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255], &fields[..]].concat();
            fields.extend((crc(&header) as u16).to_le_bytes());
        }
        let stream = member(flags, &fields, b"payload");
        for piece in [1, 2, 3, 1000] {
            assert_eq!(decode(&stream, piece, 3).map(|(out, _)| out), Ok(b"payload".to_vec()), "flags {flags:#b}");
        }
        if flags & 2 != 0 {
            let mut wrong = stream.clone();
            wrong[4] ^= 1;
            assert_eq!(decoded(&wrong), Err(Error::Checksum("gzip header checksum")));
        }
    }
}

#[test]
fn a_182_only_nul_padding_may_follow_the_last_member() {
    let stream = gzip(b"payload");
    for (tail, expected) in [
        (&b""[..], Ok(b"payload".to_vec())),
        (b"\0", Ok(b"payload".to_vec())),
        (&[0; 700], Ok(b"payload".to_vec())),
        (b"x", Err(Error::TrailingGarbage)),
        (b"\0\0x", Err(Error::TrailingGarbage)),
        (b"\x1f", Err(Error::Truncated)),
        (b"\x1f\x8c\x08\0\0\0\0\0\0\0", Err(Error::Corrupt("a gzip member does not begin with a deflate header"))),
    ] {
        assert_eq!(decoded(&[&stream[..], tail].concat()), expected, "{tail:?}");
    }
    // NULs between members are not padding after the last.
    assert_eq!(decoded(&[&stream[..], b"\0", &stream].concat()), Err(Error::TrailingGarbage));
}

#[test]
fn a_183_checksum_and_length_of_every_member_are_checked() {
    let stream = [gzip(b"first"), gzip(b"second")].concat();
    let first = gzip(b"first").len();
    for end in [first, stream.len()] {
        let mut wrong = stream.clone();
        wrong[end - 8] ^= 1;
        assert_eq!(decoded(&wrong), Err(Error::Checksum("gzip CRC32")));
        let mut wrong = stream.clone();
        wrong[end - 1] ^= 1;
        assert_eq!(decoded(&wrong), Err(Error::Checksum("gzip length")));
    }
}

#[test]
fn a_188_dictionaries_are_refused_by_number() {
    // Descriptor 0x23: single segment, four bytes of dictionary number, one of size.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x23, 0x78, 0x56, 0x34, 0x12, 0, 1, 0, 0];
    assert_eq!(decoded(&frame), Err(Error::Dictionary(0x1234_5678)));
}

#[test]
fn d_010_windows_above_the_limit_are_refused_before_they_are_allocated() {
    let frame = |window| [0x28, 0xb5, 0x2f, 0xfd, 0, window, 1, 0, 0];
    assert_eq!(decoded(&frame(17 << 3)), Ok(Vec::new()), "128 MiB");
    assert_eq!(decoded(&frame(17 << 3 | 1)), Err(Error::Window((128 << 20) + (16 << 20))));
    assert_eq!(decoded(&frame(21 << 3)), Err(Error::Window(2 << 30)));
    let single_segment = [0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0];
    assert_eq!(decoded(&single_segment), Err(Error::Window(1 << 32)));
}

#[test]
fn zstd_streams_end_only_between_frames() {
    let frame = zstd_safe_frame(b"payload payload payload");
    let skippable = [0x5f, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
    let stream = [&frame[..], &skippable, &frame].concat();
    let whole: Vec<usize> = (0..=stream.len()).filter(|end| decoded_zstd(&stream[..*end]).is_ok()).collect();
    assert_eq!(whole, [0, frame.len(), frame.len() + skippable.len(), stream.len()]);
    let junk = [&frame[..], b"junk"].concat();
    assert_eq!(decoded_zstd(&junk), Err(Error::Corrupt("there is something else than a zstd frame")));
}

fn zstd_safe_frame(bytes: &[u8]) -> Vec<u8> {
    ::zstd::bulk::compress(bytes, 3).expect("compressing to memory")
}

fn decoded_zstd(stream: &[u8]) -> Result<(), Error> {
    let mut decoder = zstd::Decoder::new();
    let (mut buffer, mut rest) = ([0; 100], stream);
    loop {
        match decoder.step(rest, &mut buffer)? {
            step if step.is_idle() => return decoder.finish(),
            step => rest = &rest[step.read..],
        }
    }
}

#[test]
fn formats_are_told_by_their_first_bytes() {
    for (start, format) in [
        (&b"\x1f\x8b"[..], Ok(Format::Gzip)),
        (b"\x28\xb5\x2f\xfd", Ok(Format::Zstd)),
        (b"\x50\x2a\x4d\x18", Ok(Format::Zstd)),
        (b"\x5f\x2a\x4d\x18", Ok(Format::Zstd)),
        (b"", Ok(Format::Plain)),
        (b"\x1f", Ok(Format::Plain)),
        (b"BZh9.txt\0\0", Ok(Format::Plain)),
        (b"BZh91AY&SY", Err(Error::Unsupported("bzip2"))),
        (b"\xfd7zXZ\0", Err(Error::Unsupported("xz"))),
    ] {
        assert_eq!(sniff(start), format, "{start:?}");
    }
}

/// Text with references over all distances.
fn text(seed: u32, length: usize) -> Vec<u8> {
    let (mut state, mut text) = (seed, b"begin".to_vec());
    while text.len() < length {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let back = 1 + state as usize / 7 % text.len().min(WINDOW);
        let from = text.len() - back;
        match state >> 30 {
            0 => text.extend_from_slice(&state.to_be_bytes()[..3]),
            _ => text.extend_from_within(from..from + back.min(4 + (state >> 8) as usize % 40)),
        }
    }
    text
}

#[test]
fn a_trimmed_window_keeps_exactly_what_is_referred_to() {
    let text = text(5, 1_500_000);
    let stream = gzip(&text);
    let (_, points) = decode(&stream, 4096, 4096).expect("a valid stream");
    let mut trimmed = 0;
    for (read, written, point) in points {
        let Point::Block { bits, byte } = point else { continue };
        if written < WINDOW {
            continue;
        }
        let full: [u8; WINDOW] = text[written - WINDOW..written].try_into().expect("a window");
        let mut window = full;
        sparse::Tracer::new().trim(bits, byte, stream[read..].chunks(999), &mut window).expect("valid data");
        trimmed += usize::from(window != full);
        let mut out = vec![0; text.len() - written];
        let mut decoder = gzip::Decoder::new();
        decoder.resume(bits, byte, &window);
        let step = decoder.step(&stream[read..], &mut out).expect("valid data");
        assert!(step.written == out.len() && out == text[written..], "resumed at {written}");
        // Any byte that was kept and is not zero matters.
        if let Some(at) = window.iter().position(|byte| *byte != 0) {
            window[at] ^= 0x55;
            decoder.resume(bits, byte, &window);
            decoder.step(&stream[read..], &mut out).expect("references stay valid");
            assert!(out != text[written..], "byte {at} of the window at {written}");
        }
        // Too little to know: the window stays whole.
        let mut window = full;
        sparse::Tracer::new()
            .trim(bits, byte, [&stream[read..read + 50]].into_iter(), &mut window)
            .expect("valid data");
        assert!(window == full);
    }
    assert!(trimmed > 1, "{trimmed} windows trimmed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_cutting_into_pieces_gives_the_same(
        parts in prop::collection::vec((any::<u32>(), 0_usize..30_000), 1..4),
        gzipped: bool,
        piece in 1_usize..5000,
        room in 1_usize..9000,
    ) {
        let parts: Vec<_> = parts.iter().map(|(seed, length)| text(*seed, *length)).collect();
        let compress = if gzipped { gzip } else { zstd_safe_frame };
        let stream: Vec<u8> = parts.iter().flat_map(|part| compress(part)).collect();
        let (out, points) = decode(&stream, piece, room).expect("a valid stream");
        prop_assert!(out == parts.concat());
        let fresh = points.iter().filter(|(.., point)| matches!(point, Point::Fresh { .. })).count();
        prop_assert_eq!(fresh, parts.len());
        // Everywhere short of the end of a part, the stream is incomplete.
        let end = stream.len() * 2 / 3;
        let ends = (1..parts.len()).map(|count| parts[..count].iter().map(|part| compress(part).len()).sum::<usize>());
        if !ends.into_iter().any(|whole| whole == end) {
            prop_assert_eq!(decode(&stream[..end], piece, room).err(), Some(Error::Truncated));
        }
    }

    #[test]
    fn any_bytes_decode_or_fail_but_never_panic(magic in 0..3, bytes: Vec<u8>, piece in 1_usize..50) {
        let start: &[u8] = match magic {
            0 => b"\x1f\x8b\x08",
            1 => b"\x28\xb5\x2f\xfd",
            _ => b"",
        };
        let stream = [start, &bytes].concat();
        let once = decode(&stream, piece, 77);
        let again = decode(&stream, 1000, 99);
        prop_assert_eq!(once.map(|(out, _)| out).ok(), again.map(|(out, _)| out).ok());
    }
}

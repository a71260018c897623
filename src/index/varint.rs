//! Variable-length integers and byte strings, as entries and windows are written in.
//!
//! LEB128: seven bits a byte, least significant first. Every reading function answers `None` instead of reading past the
//! end, so that damaged bytes end in an error and never in a panic.

/// Appends `value`.
pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed `value`, small magnitudes first.
pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, (value << 1 ^ value >> 63) as u64);
}

/// Appends `bytes` after their length.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Takes an integer from the front of `input`.
pub(super) fn take(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = input.split_first()?;
        *input = rest;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit only.
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Takes a signed integer from the front of `input`.
pub(super) fn take_signed(input: &mut &[u8]) -> Option<i64> {
    let value = take(input)?;
    Some((value >> 1) as i64 ^ -((value & 1) as i64))
}

/// Takes `length` bytes from the front of `input`.
pub(super) fn take_slice<'a>(input: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (bytes, rest) = input.split_at_checked(usize::try_from(length).ok()?)?;
    *input = rest;
    Some(bytes)
}

/// Takes bytes after their length from the front of `input`.
pub(super) fn take_bytes<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take(input)?;
    take_slice(input, length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_and_bytes_come_back(value: u64, signed: i64, bytes: Vec<u8>) {
            let mut out = Vec::new();
            put(&mut out, value);
            put_signed(&mut out, signed);
            put_bytes(&mut out, &bytes);
            let mut input = &out[..];
            prop_assert_eq!(take(&mut input), Some(value));
            prop_assert_eq!(take_signed(&mut input), Some(signed));
            prop_assert_eq!(take_bytes(&mut input), Some(&bytes[..]));
            prop_assert!(input.is_empty());
            // No prefix reads as the whole.
            for end in 0..out.len() {
                let mut input = &out[..end];
                let parts = (take(&mut input), take_signed(&mut input), take_bytes(&mut input));
                let whole = matches!(parts, (Some(_), Some(_), Some(_)));
                prop_assert!(!whole);
            }
        }
    }

    #[test]
    fn d_060_numbers_beyond_64_bits_are_refused() {
        assert_eq!(take(&mut &[0xff; 10][..]), None);
        assert_eq!(take(&mut &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02][..]), None);
        assert_eq!(take(&mut &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01][..]), Some(u64::MAX));
    }
}

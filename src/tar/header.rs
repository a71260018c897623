//! One header block: 512 bytes of fixed fields, in four dialects (v7, ustar, star, GNU).
//!
//! [`Header::parse`] reads what Go's archive/tar reads, as liberally and no more so: numbers in octal or base-256, padded
//! with spaces or NULs, sums of signed or unsigned bytes. Meaning is given to the fields in `parser`.

use super::Fault;

/// The unit of a tar stream, in bytes.
pub(super) const BLOCK: usize = 512;

/// A block of the stream.
pub(super) type Block = [u8; BLOCK];

/// How the fields after the magic are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// No magic; the fields after the link name mean nothing.
    V7,
    /// POSIX.1-1988 and the pax format.
    Ustar,
    /// Schilling's star: a shorter prefix.
    Star,
    /// GNU before pax: no prefix, but times and a sparse map.
    Gnu,
}

/// The fields of one header.
#[derive(Debug)]
pub(super) struct Header<'a> {
    pub(super) dialect: Dialect,
    pub(super) typeflag: u8,
    /// First half of the name; a slash belongs between the two unless this is empty.
    pub(super) prefix: &'a [u8],
    pub(super) name: &'a [u8],
    pub(super) link: &'a [u8],
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) size: i64,
    pub(super) mtime: i64,
    pub(super) major: i64,
    pub(super) minor: i64,
}

impl<'a> Header<'a> {
    /// Reads a block that is not all zeros.
    pub(super) fn parse(block: &'a Block) -> Result<Self, Fault> {
        check_sum(block)?;
        let dialect = dialect(block);
        let mut header = Self {
            dialect,
            typeflag: block[156],
            prefix: &[],
            name: until_nul(&block[..100]),
            link: until_nul(&block[157..257]),
            mode: number(&block[100..108], "mode")?,
            uid: number(&block[108..116], "uid")?,
            gid: number(&block[116..124], "gid")?,
            size: number(&block[124..136], "size")?,
            mtime: number(&block[136..148], "mtime")?,
            major: 0,
            minor: 0,
        };
        if dialect != Dialect::V7 {
            header.major = number(&block[329..337], "device number")?;
            header.minor = number(&block[337..345], "device number")?;
            header.prefix = prefix(block, dialect)?;
        }
        Ok(header)
    }

    /// The whole name.
    pub(super) fn path(&self) -> Vec<u8> {
        if self.prefix.is_empty() {
            return self.name.to_vec();
        }
        [self.prefix, b"/", self.name].concat()
    }
}

fn dialect(block: &Block) -> Dialect {
    match &block[257..265] {
        [b'u', b's', b't', b'a', b'r', 0, ..] if block[508..] == *b"tar\0" => Dialect::Star,
        [b'u', b's', b't', b'a', b'r', 0, ..] => Dialect::Ustar,
        b"ustar  \0" => Dialect::Gnu,
        _ => Dialect::V7,
    }
}

fn prefix(block: &Block, dialect: Dialect) -> Result<&[u8], Fault> {
    match dialect {
        Dialect::V7 => Ok(&[]),
        Dialect::Ustar => Ok(until_nul(&block[345..500])),
        Dialect::Star => {
            number(&block[476..488], "atime")?;
            number(&block[488..500], "ctime")?;
            Ok(until_nul(&block[345..476]))
        }
        Dialect::Gnu => {
            // Go before 1.8 wrote a ustar prefix over the times. It is believed only where no times can be read.
            let time = |field: &[u8]| field[0] == 0 || number(field, "time").is_ok();
            let prefix = until_nul(&block[345..500]);
            let is_prefix = !(time(&block[345..357]) && time(&block[357..369])) && prefix.is_ascii();
            Ok(if is_prefix { prefix } else { &[] })
        }
    }
}

/// Compares the recorded sum with that of the block, in which the sum itself counts as spaces.
fn check_sum(block: &Block) -> Result<(), Fault> {
    const SPACES: i32 = 8 * b' ' as i32;
    let field = &block[148..156];
    let recorded = octal(field).ok_or(Fault::Checksum)?;
    // Whole slices make vector instructions of the sums; going around the field byte by byte does not.
    let unsigned = |bytes: &[u8]| bytes.iter().map(|&byte| i32::from(byte)).sum::<i32>();
    let signed = |bytes: &[u8]| bytes.iter().map(|&byte| i32::from(byte.cast_signed())).sum::<i32>();
    let is_recorded = |sum| u64::try_from(sum) == Ok(recorded);
    // Some ancient archivers had signed characters.
    if is_recorded(unsigned(block) - unsigned(field) + SPACES) || is_recorded(signed(block) - signed(field) + SPACES) {
        Ok(())
    } else {
        Err(Fault::Checksum)
    }
}

/// The bytes before the first NUL, or all of them.
pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// Reads a number in octal or, with the first bit set, in base-256 (two's complement, big-endian).
pub(super) fn number(field: &[u8], what: &'static str) -> Result<i64, Fault> {
    let value = match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field).and_then(|value| i64::try_from(value).ok()),
    };
    value.ok_or(Fault::Number(what))
}

fn octal(field: &[u8]) -> Option<u64> {
    let padding = |byte: &u8| *byte == b' ' || *byte == 0;
    let Some(start) = field.iter().position(|byte| !padding(byte)) else { return Some(0) };
    let end = field.iter().rposition(|byte| !padding(byte)).map_or(start, |last| last + 1);
    // What follows a NUL inside the field is left over from an earlier use of the buffer.
    until_nul(&field[start..end]).iter().try_fold(0_u64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn base256(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    // The first bit is the marker, the second the sign.
    let negative = first & 0x40 != 0;
    let head = i64::from(first & 0x7f) - if negative { 0x80 } else { 0 };
    rest.iter().try_fold(head, |value, &byte| value.checked_mul(256)?.checked_add(i64::from(byte)))
}

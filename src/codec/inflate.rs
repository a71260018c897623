//! Raw deflate, resumable at any block: the one file that talks to zlib.
//!
//! flate2 hides what seek points need: stopping at block boundaries (`Z_BLOCK`), starting inside a byte
//! (`inflatePrime`) and with a history (`inflateSetDictionary`). `libz-rs-sys` offers the C interface of zlib, written in
//! Rust. [`Inflater`] makes it safe: it owns the stream state and lends it slices only for the time of one call.

use std::fmt;

use libz_rs_sys as z;

use super::{Error, WINDOW};

/// Raw inflate state (RFC 1951).
pub(super) struct Inflater {
    /// Boxed, because C zlib forbids moving it after initialisation and the interface is specified after C zlib.
    stream: Box<z::z_stream>,
}

/// What one call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) read: usize,
    pub(super) written: usize,
    pub(super) stopped: Stopped,
}

/// Why a call came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// Input or room ran out.
    Wanting,
    /// A block that is not the last ended; this many upper bits of the last byte read belong to the next.
    Block { bits: u8 },
    /// The last block ended; what follows in the input is not deflate data.
    End,
}

impl Inflater {
    /// A state at the beginning of a deflate stream.
    pub(super) fn new() -> Self {
        let mut stream = Box::new(z::z_stream::default());
        // SAFETY: the pointer is to a valid, default-initialised stream that stays where it is (boxed) until
        // `inflateEnd`; version and size are those of the library linked.
        let code =
            unsafe { z::inflateInit2_(&raw mut *stream, -15, z::zlibVersion(), size_of::<z::z_stream>() as i32) };
        assert_eq!(code, z::Z_OK, "raw inflate with a 32 KiB window is always available");
        Self { stream }
    }

    /// Returns to the beginning of a deflate stream.
    pub(super) fn reset(&mut self) {
        // SAFETY: the stream was initialised by `inflateInit2_` and not ended.
        let code = unsafe { z::inflateReset(&raw mut *self.stream) };
        assert_eq!(code, z::Z_OK, "an initialised stream can be reset");
    }

    /// Goes to a block that begins with the upper `bits` bits of `byte`, after `window`.
    pub(super) fn resume(&mut self, bits: u8, byte: u8, window: &[u8; WINDOW]) {
        self.reset();
        let bits = bits & 7;
        if bits != 0 {
            // SAFETY: the stream is initialised; fewer than 16 bits are inserted into an empty bit buffer.
            let code =
                unsafe { z::inflatePrime(&raw mut *self.stream, i32::from(bits), i32::from(byte >> (8 - bits))) };
            assert_eq!(code, z::Z_OK, "an empty bit buffer takes seven bits");
        }
        // SAFETY: the stream is initialised; the dictionary is copied from a slice that outlives the call, WINDOW fits u32.
        let code = unsafe { z::inflateSetDictionary(&raw mut *self.stream, window.as_ptr(), WINDOW as u32) };
        assert_eq!(code, z::Z_OK, "a raw stream takes a dictionary at any time");
    }

    /// Inflates from `input` into `out`; stops at block boundaries if `blocks`.
    pub(super) fn inflate(&mut self, input: &[u8], out: &mut [u8], blocks: bool) -> Result<Progress, Error> {
        // Counters of zlib are 32 bits wide; the caller comes again for the rest.
        let avail_in = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let avail_out = u32::try_from(out.len()).unwrap_or(u32::MAX);
        let stream = &mut *self.stream;
        (stream.next_in, stream.avail_in) = (input.as_ptr(), avail_in);
        (stream.next_out, stream.avail_out) = (out.as_mut_ptr(), avail_out);
        let flush = if blocks { z::Z_BLOCK } else { z::Z_NO_FLUSH };
        // SAFETY: the stream is initialised; `next_in` and `next_out` point to `avail_in` readable and `avail_out` writable
        // bytes of slices borrowed for the whole call, and are not used after it: the next call sets them anew.
        let code = unsafe { z::inflate(&raw mut *stream, flush) };
        let progress = |stopped| Progress {
            read: (avail_in - stream.avail_in) as usize,
            written: (avail_out - stream.avail_out) as usize,
            stopped,
        };
        match code {
            z::Z_STREAM_END => Ok(progress(Stopped::End)),
            // 128: stopped right after a block; 64: that block was the last, and the next call ends the stream.
            z::Z_OK if blocks && stream.data_type & (128 | 64) == 128 => {
                Ok(progress(Stopped::Block { bits: (stream.data_type & 7) as u8 }))
            }
            z::Z_OK | z::Z_BUF_ERROR => Ok(progress(Stopped::Wanting)),
            _ => Err(Error::Corrupt("the deflate data is invalid")),
        }
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised by `inflateInit2_` and is ended only here. The code only tells whether the
        // state was consistent, and nothing can be done about it any more.
        let _code: i32 = unsafe { z::inflateEnd(&raw mut *self.stream) };
    }
}

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflater").finish_non_exhaustive()
    }
}

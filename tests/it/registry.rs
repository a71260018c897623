//! The registry client against servers that misbehave by script and against a real one.

mod access;
mod documents;
mod environment;
mod faults;
mod hosts;
mod pace;
mod push;
mod real;
mod redirects;
mod referrers;
mod scripted;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use ocifs::oci::{Descriptor, Digest};
use ocifs::registry::{Client, Options, Repository, Selector};
use ocifs::source::{BlobReader, Error};

use scripted::Server;

/// Options with pauses short enough for tests, and time-outs longer than this machine may stand still.
fn quick() -> Options {
    Options {
        connect_timeout: Duration::from_secs(5),
        stall_timeout: Duration::from_secs(5),
        helper_timeout: Duration::from_secs(60),
        first_pause: Duration::from_millis(2),
        longest_pause: Duration::from_secs(2),
        ..Options::default()
    }
}

fn client(options: Options) -> Client {
    Client::new(options).expect("a client needs nothing from outside")
}

fn repository(server: &Server) -> Repository {
    client(quick()).repository(&server.host(), "team/app", Selector::Tag("v1".to_owned()))
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/octet-stream".to_owned(),
        digest: Digest::sha256(bytes),
        size: bytes.len() as u64,
        urls: Vec::new(),
        data: None,
        annotations: Default::default(),
    }
}

/// Bytes that differ from place to place, so that a wrong offset shows.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

async fn read(blob: &Arc<dyn BlobReader>, range: std::ops::Range<u64>) -> Result<Bytes, Error> {
    let mut stream = blob.read(range).await?;
    let mut whole = Vec::new();
    while let Some(piece) = stream.next().await {
        whole.extend_from_slice(&piece?);
    }
    Ok(whole.into())
}

/// An error as a user sees it: message, causes and hint.
fn shown(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(current) = cause {
        text.push_str(&format!("; {current}"));
        cause = current.source();
    }
    if let Some(hint) = error.advice() {
        text.push_str(&format!("; hint: {hint}"));
    }
    text
}

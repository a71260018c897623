//! Integration tests, one binary; each module says what it shows.

mod cache_size;
mod claims;
mod cli;
mod conditions;
mod daemon;
mod damage;
mod demo_image;
mod fill;
mod formats;
mod images;
mod kill;
mod layering;
mod limits;
mod merge_model;
mod mirrors;
mod mount;
mod outage;
mod parcel;
mod platform;
mod profile;
mod real;
mod registry;
mod round_trips;
mod runtime;
mod secrets;
mod share;
mod source;
#[allow(dead_code, unused_imports, reason = "what the tests of one area do not use, those of another will")]
mod support;
mod tar_oracle;
mod umoci;

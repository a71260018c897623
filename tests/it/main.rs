//! Integration tests, one binary; each module says what it shows.
mod cli;
mod damage;
mod demo_image;
mod kill;
mod layering;
mod limits;
mod merge_model;
#[allow(dead_code, unused_imports, reason = "what the tests of one area do not use, those of another will")]
mod support;
mod tar_oracle;
mod umoci;

mod registry;
mod source;

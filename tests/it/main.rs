//! Integration tests, one binary; each module says what it shows.
mod cli;
mod merge_model;
mod umoci;

mod demo_image;
mod layering;
#[allow(dead_code, unused_imports, reason = "what the tests of one area do not use, those of another will")]
mod support;
mod tar_oracle;

mod source;

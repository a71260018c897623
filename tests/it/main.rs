//! Integration tests, one binary; each module says what it shows.

mod registry;

//! Registries: the distribution specification's pull side as a [`crate::source::Source`].

mod address;
mod challenge;
mod error;
mod host;
mod range;
mod redirect;
mod retry;
mod secret;
mod transport;
mod warning;

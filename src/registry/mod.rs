//! Registries: the distribution specification's pull side as a [`crate::source::Source`].

mod address;
mod challenge;
mod credentials;
mod error;
mod grant;
mod helper;
mod host;
mod range;
mod redirect;
mod retry;
mod secret;
mod token;
mod transport;
mod warning;

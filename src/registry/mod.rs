//! Registries: the distribution specification's pull side as a [`crate::source::Source`].

mod address;
mod challenge;
mod range;
mod secret;

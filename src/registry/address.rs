//! Which hosts outside data may send us to.
//!
//! Redirects, token realms and the `urls` of foreign layers are written by others, yet the request leaves from this
//! machine, inside its network. [`Reach`] says what kind of place a host is as far as its text tells; names are not
//! resolved here, so this stops the plain attempts (cloud metadata services, local daemons), not DNS rebinding.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What kind of place a host text denotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// A name, or an address of the public internet.
    Public,
    /// An address of a private network, a multicast or a reserved address.
    Private,
    /// This machine.
    Loopback,
    /// The local link, where cloud metadata services live.
    LinkLocal,
}

impl Reach {
    /// Classifies `host`, a name or an address literal with or without brackets, without a port.
    pub(super) fn of(host: &str) -> Self {
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => of_v4(address),
            Ok(IpAddr::V6(address)) => of_v6(address),
            Err(_) if is_localhost(host) => Self::Loopback,
            Err(_) => Self::Public,
        }
    }
}

fn is_localhost(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

fn of_v4(address: Ipv4Addr) -> Reach {
    let [a, b, ..] = address.octets();
    match (a, b) {
        // On Linux 0.0.0.0 connects to this machine.
        (127 | 0, _) => Reach::Loopback,
        (169, 254) => Reach::LinkLocal,
        (10, _) | (172, 16..=31) | (192, 168) | (100, 64..=127) | (224..=255, _) => Reach::Private,
        _ => Reach::Public,
    }
}

fn of_v6(address: Ipv6Addr) -> Reach {
    if address.is_loopback() || address.is_unspecified() {
        return Reach::Loopback;
    }
    let parts = address.segments();
    let embedded = matches!(parts[..6], [0, 0, 0, 0, 0, 0 | 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0]);
    if embedded {
        let [.., a, b, c, d] = address.octets();
        return of_v4(Ipv4Addr::new(a, b, c, d));
    }
    match parts[0] {
        0xfe80..=0xfebf => Reach::LinkLocal,
        0xfc00..=0xfdff | 0xff00.. => Reach::Private,
        _ => Reach::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d_030_d_031_internal_addresses_are_told_in_all_their_spellings() {
        for (host, reach) in [
            ("registry.example.com", Reach::Public),
            ("8.8.8.8", Reach::Public),
            ("[2001:4860:4860::8888]", Reach::Public),
            ("localhost", Reach::Loopback),
            ("LOCALHOST.", Reach::Loopback),
            ("a.localhost", Reach::Loopback),
            ("127.9.9.9", Reach::Loopback),
            ("0.0.0.0", Reach::Loopback),
            ("[::1]", Reach::Loopback),
            ("[::]", Reach::Loopback),
            ("[::ffff:127.0.0.1]", Reach::Loopback),
            ("169.254.169.254", Reach::LinkLocal),
            ("[fe80::1]", Reach::LinkLocal),
            ("[64:ff9b::a9fe:a9fe]", Reach::LinkLocal),
            ("10.1.2.3", Reach::Private),
            ("172.31.0.1", Reach::Private),
            ("172.32.0.1", Reach::Public),
            ("192.168.1.1", Reach::Private),
            ("100.100.100.200", Reach::Private),
            ("[fd00:ec2::254]", Reach::Private),
        ] {
            assert_eq!(Reach::of(host), reach, "{host}");
        }
    }

    #[test]
    fn numeric_spellings_are_normalised_by_the_url_parser_before_they_come_here() {
        for text in ["http://0x7f.1/", "http://2130706433/", "http://017700000001/"] {
            let url = reqwest::Url::parse(text).expect("a valid URL");
            assert_eq!(Reach::of(url.host_str().unwrap_or_default()), Reach::Loopback, "{text}");
        }
    }
}

//! TLS for hosts of which the configuration names certificates: whom a connection believes, and what it shows.
//!
//! One kind of registry keeps the HTTP client's own settings from being enough: one whose certificate signed itself and
//! calls itself an authority, which is what `openssl req -x509` makes and what people file as the authority of its own host.
//! Curl, Go and OpenSSL take it; the checks of the Web PKI as the TLS library makes them never take an authority for a
//! server. [`Believed`] adds this one case to them: the very certificate that the user filed, byte for byte, in its time, under
//! its name and, if it says what it is for, for servers.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_platform_verifier::Verifier;
use webpki::{EndEntityCert, KeyUsage};

/// What is shown to a server that wants to know its client.
pub(super) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The certificates in `pem`.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    CertificateDer::pem_slice_iter(pem).collect()
}

/// The certificates and the last key in `pem`; none if one of them is missing or not readable.
pub(super) fn identity(pem: &[u8]) -> Option<Identity> {
    let keys: Vec<_> = PrivateKeyDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
    let chain = certificates(pem).ok().filter(|chain| !chain.is_empty())?;
    Some((chain, keys.into_iter().next_back()?))
}

/// TLS that believes `authorities` beside those of the system, and shows `identity`. Reads the system's from disk.
pub(super) fn config(
    authorities: Vec<CertificateDer<'static>>,
    identity: Option<Identity>,
) -> Result<ClientConfig, Error> {
    let default = || Arc::new(aws_lc_rs::default_provider());
    let provider = CryptoProvider::get_default().map_or_else(default, Arc::clone);
    let usual = Verifier::new_with_extra_roots(authorities.iter().cloned(), Arc::clone(&provider))?;
    let believed = Believed { usual, authorities, provider: Arc::clone(&provider) };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(believed));
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    // All pools speak HTTP/1.1, and some servers choose another protocol if none is asked for.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The checks of the Web PKI, which also let pass what the user filed.
#[derive(Debug)]
struct Believed {
    usual: Verifier,
    authorities: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Believed {
    /// True if the user filed this very certificate, and the first that speaks against it is that it calls itself an
    /// authority.
    fn is_filed(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> bool {
        // Its time is looked at before its kind, so that one that has expired ends with another error. What it may be used
        // for is looked at after that, and so never here.
        let verdict = || {
            let algorithms = self.provider.signature_verification_algorithms.all;
            let server = KeyUsage::server_auth();
            let parsed = EndEntityCert::try_from(certificate)?;
            parsed.verify_for_usage(algorithms, &[], &[], now, server, None, None).map(drop)
        };
        self.authorities.contains(certificate) && verdict() == Err(webpki::Error::CaUsedAsEndEntity)
    }
}

impl ServerCertVerifier for Believed {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.is_filed(certificate, now) {
            return self.usual.verify_server_cert(certificate, intermediates, name, ocsp_response, now);
        }
        if !is_for_servers(certificate) {
            return Err(CertificateError::InvalidPurpose.into());
        }
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Extended key usage, and two purposes that it may name: a server's, and any (RFC 5280, section 4.2.1.12).
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SERVER_AUTHENTICATION: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const ANY_PURPOSE: &[u8] = &[0x55, 0x1d, 0x25, 0];

/// The tag of a certificate's extensions (RFC 5280, section 4.1).
const EXTENSIONS: u8 = 0xa3;

/// True unless a well-formed certificate says what it is for, and no server is among that. The library looks at this only
/// where it has not stumbled over an authority before, and it tells nobody what it has read.
fn is_for_servers(certificate: &[u8]) -> bool {
    let signed = content(content(certificate));
    let extensions = elements(signed).find(|(tag, _)| *tag == EXTENSIONS).map_or(&[][..], |(_, extensions)| extensions);
    let mut usages = elements(content(extensions)).filter(|(_, extension)| content(extension) == EXTENDED_KEY_USAGE);
    usages.all(|(_, extension)| {
        let purposes = elements(extension).last().map_or(&[][..], |(_, value)| content(value));
        elements(purposes).any(|(_, purpose)| [SERVER_AUTHENTICATION, ANY_PURPOSE].contains(&purpose))
    })
}

/// The content of the first element in `der`; nothing if there is none.
fn content(der: &[u8]) -> &[u8] {
    elements(der).next().map_or(&[], |(_, content)| content)
}

/// Tags and contents of the elements that stand one after the other in `der` (X.690, section 8.1), up to one that is cut off.
fn elements(der: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = der;
    std::iter::from_fn(move || {
        let ([tag, first], after) = rest.split_first_chunk()?;
        let (octets, after) = after.split_at_checked(if *first < 0x80 { 0 } else { usize::from(first & 0x7f) })?;
        let length = match octets.len() {
            0 if *first < 0x80 => usize::from(*first),
            1..=4 => octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet)),
            _ => return None,
        };
        let (content, after) = after.split_at_checked(length)?;
        rest = after;
        Some((*tag, content))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An element.
    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len().to_be_bytes();
        [&[tag, 0x84], &length[length.len() - 4..], content].concat()
    }

    #[test]
    fn a_certificate_is_for_servers_unless_it_says_otherwise() {
        let purposes = |purposes: &[&[u8]]| {
            let purposes: Vec<u8> = purposes.iter().flat_map(|purpose| der(6, purpose)).collect();
            let usage = [der(6, EXTENDED_KEY_USAGE), der(1, &[0xff]), der(4, &der(0x30, &purposes))].concat();
            let other = der(0x30, &[der(6, &[0x55, 0x1d, 0x13]), vec![4, 2, 0x30, 0]].concat());
            der(EXTENSIONS, &der(0x30, &[other, der(0x30, &usage)].concat()))
        };
        let certificate = |extensions: &[u8]| der(0x30, &der(0x30, &[&[2, 1, 7, 0x30, 0][..], extensions].concat()));
        let client = [0x2b, 6, 1, 5, 5, 7, 3, 2];
        assert!(is_for_servers(&certificate(&[])));
        assert!(is_for_servers(&certificate(&purposes(&[&client, SERVER_AUTHENTICATION]))));
        assert!(is_for_servers(&certificate(&purposes(&[ANY_PURPOSE]))));
        assert!(!is_for_servers(&certificate(&purposes(&[&client]))));
        assert!(!is_for_servers(&certificate(&purposes(&[]))));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_no_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            is_for_servers(&bytes);
            assert!(elements(&bytes).all(|(_, content)| content.len() < bytes.len()));
        }
    }
}

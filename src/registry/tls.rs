//! TLS for hosts of which the configuration names certificates: whom a connection believes, and what it shows.
//!
//! One kind of registry keeps the HTTP client's own settings from being enough: one whose certificate signed itself and
//! calls itself an authority, which is what `openssl req -x509` makes and what people file as the authority of its own host.
//! Curl, Go and OpenSSL take it; the checks of the Web PKI as the TLS library makes them never take an authority for a
//! server. [`Believed`] adds this one case to them: the very certificate that the user filed, byte for byte, in its time and
//! under its name.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
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
        // for is looked at after that, and so never here: who files a certificate for a host wants it believed there.
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

//! Keys and signatures that OpenSSL made, in the forms that cosign writes: `openssl dgst -sha256 -sign KEY`, and for Ed25519
//! `openssl pkeyutl -sign -rawin -inkey KEY`.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const P256: &str = "\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEn3G6MgMUNeVkZU2o9odHyd0CkOI8
GNOfMiuNwy0t1vudjdhjLRjCGVQ45WqQL3OMdUO0yiKZIMm+t0NjbyZ7uA==
-----END PUBLIC KEY-----";

const ED25519: &str = "\
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAzyDoUuJTz0zoca5AlvWg9eaetYTODrbbup/6+Hy+pWY=
-----END PUBLIC KEY-----";

const RSA: &str = "\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAzF22CSsMFurAq6HIKDaG
Vkf9bockexeUZQEeM0Ln6eWpm7uCd7Y0erqyY4mR1KH7mYNY5rhbaGMEZZ75mhtA
5z2n9wHrs/LYbAz44UI7uEti7BNVwaeknS5RcVEdhaZTOvdOWMsB1Jy6UqQBT8Ch
jptrXGB2rBtOGBgPrDhaXWP1X2C2Zj5I0/U2gnlewWX+UklvOUqlb0nffBSyl4+K
H6VWMDR9YgT392xsJel5Gx5iuTdF1VgZj1boBr6vLHSS37fTrANIimqKnvOgI0Zh
+GxlG2e5uKH1R9Z049PB8TaWo/P8JerzydYelfjFzAkBv19IHAmVv2osnGf2cxoO
PwIDAQAB
-----END PUBLIC KEY-----";

/// Of 1024 bits.
const SHORT_RSA: &str = "\
-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDeFKVrftigIQcLI8mZSch1xpQF
CMLT+8XYM2aujDNOcJO+q7mFEWvTT/xYHe2xy1w3RJnejroOU7sjch3HrCYDi3ME
3c36JhTS1XmAlJX1avt68HdJtkgZkXWoIkxOkg977duV4VqJFnl3KUwNjEJh+899
HDqtSBD28U/8peXksQIDAQAB
-----END PUBLIC KEY-----";

const SIMPLE_P256: &str =
    "MEYCIQDYxN/kifwK0+k+LVRSybHAwj1+3K4fQCpO0glx9CIwDwIhAJbwcKcqPyou9IMl/0DpIP/TIrfhCBhZQLWj/DdKQp3E";

const SIMPLE_ED25519: &str = "jLa6XwMcSDagfGGUiZUpYZizlZVv6glWTK65kv8eguHGrE14dnaCtVDpxbpDF9cvyojaK3ROobSGGO8wRjzsDQ==";

const SIMPLE_RSA: &str = "\
    VfoIhx4Jbw7YnLdLXP2GUGWEx/4rpnG++mrv5u+nhuVff63DHNDc/gxl/2otcwyDQ8uAspMCvp05PUNuEkBXGNbRiBR12mJpzxnb\
    o3W0NGZapAiRp2lAMdsaryosx8y5erLdRE0deXZpsc2cUX2DUITgI9/TnFZNaOP84qabtDF4WeW8sG48EQyEJqDBcxTssgPVdtFy\
    GZC9I4QCMc7Dt1aifh5FWhvCDxeD1z+PPzPWTvBhO0gE3nV+HCej0ehyJ9NUkrXOTubDZFF0BfdYvtEPOV+1o8a0ya/qbZknMBxx\
    cruKYcXxJzFbp1hVLVFuvH4DCU48jumY2qRfTzQoZw==";

const SIGNED_P256: &str =
    "MEUCIQCQZuaoLr/qsJNCzOR9dZq2b9kmPzz6faj3HTbDkSchnQIgP/V9O7nOb9lYVrReCPc3qscEy2VsVyd3hQXOQIj/9r8=";

const SIGNED_ED25519: &str = "tC3vp7+f84XsnW6I+4PDUMkFHXL22SUYvNa6LuZib2MccvQRxdH/JdbSf1V4fuPvtK0lx+HGV0XKBS5PdQVmBw==";

const INGREDIENTS_P256: &str =
    "MEUCIAXUQ3de00gcxxP9m6/bi3NCfAmr+7exurdMa1YcDK8bAiEAozPdmnWrm+dzb4dFucQDDn9fwr0MosL7Q8tTmtfN4RE=";

const OTHER_TYPE_P256: &str =
    "MEYCIQDrHbGjCm7b/tasTVBtpzed87mVXnd3K5DiF5vbjEDNewIhAN1A/XDcFo5gDf9PWbce+3dTfILHT5j4rrNopov+gdip";

fn artifact() -> Digest {
    Digest::sha256(b"artifact")
}

fn keys(pems: &[&str]) -> Keys {
    let key = |(number, pem): (usize, &&str)| Key::parse(&format!("{number}.pub"), pem.as_bytes()).expect("a key");
    pems.iter().enumerate().map(key).collect()
}

/// The payload as cosign writes it.
fn payload() -> String {
    format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"registry.example/name"}},"image":{{"docker-manifest-digest":"{}"}},"type":"cosign container image signature"}},"optional":null}}"#,
        artifact()
    )
}

/// The statement as cosign writes it.
fn statement(predicate: &str) -> String {
    format!(
        r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"digest":{{"sha256":"{}"}},"annotations":{{}}}}],"predicateType":"{predicate}","predicate":{{}}}}"#,
        artifact().hex()
    )
}

/// A bundle with a signature of a payload.
fn bundle(kind: &str, payload: &str, signature: &str) -> Value {
    json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": { "publicKey": { "hint": "3q2+7w==" }, "tlogEntries": [] },
        "dsseEnvelope": { "payload": STANDARD.encode(payload), "payloadType": kind, "signatures": [{ "sig": signature, "keyid": "" }] },
    })
}

fn in_bundle(bundle: &Value) -> Signature {
    Signature::of_bundle(bundle.to_string().as_bytes()).expect("a bundle").expect("a signature")
}

fn simple(signature: &str) -> Signature {
    Signature::simple(payload().as_bytes(), signature).expect("base64")
}

#[test]
fn simple_signing_counts_by_each_kind_of_key() {
    for (pem, signature) in [(P256, SIMPLE_P256), (ED25519, SIMPLE_ED25519), (RSA, SIMPLE_RSA)] {
        assert_eq!(simple(signature).signer(&artifact(), &keys(&[pem])), Some("0.pub"));
    }
    let all = keys(&[ED25519, RSA, P256]);
    assert_eq!(simple(SIMPLE_P256).signer(&artifact(), &all), Some("2.pub"), "any of the keys will do");
    assert_eq!(simple(SIMPLE_P256).signer(&artifact(), &keys(&[ED25519, RSA])), None);
    assert_eq!(simple(SIMPLE_P256).signer(&artifact(), &Keys::default()), None);
    assert_eq!(simple(SIGNED_P256).signer(&artifact(), &all), None, "it is of another text");
    assert_eq!(Signature::simple(payload().as_bytes(), "no base64!"), None);
}

#[test]
fn a_bundle_counts_if_it_says_that_its_subject_is_signed() {
    for (pem, signature) in [(P256, SIGNED_P256), (ED25519, SIGNED_ED25519)] {
        let signed = in_bundle(&bundle(STATEMENT_TYPE, &statement(SIGNED), signature));
        assert_eq!(signed.signer(&artifact(), &keys(&[pem])), Some("0.pub"));
        assert_eq!(signed.signer(&artifact(), &keys(&[RSA])), None);
    }
    // The same key has signed these as well, and they say something else.
    let ingredients = bundle(STATEMENT_TYPE, &statement("https://spdx.dev/Document"), INGREDIENTS_P256);
    assert_eq!(in_bundle(&ingredients).signer(&artifact(), &keys(&[P256])), None);
    let other_type = bundle("text/plain", &statement(SIGNED), OTHER_TYPE_P256);
    assert_eq!(in_bundle(&other_type).signer(&artifact(), &keys(&[P256])), None);
    // The type is part of what is signed.
    let exchanged = bundle("text/plain", &statement(SIGNED), SIGNED_P256);
    assert_eq!(in_bundle(&exchanged).signer(&artifact(), &keys(&[P256])), None);
}

#[test]
fn a_bundle_without_exactly_one_signed_statement_is_none() {
    let read = |bundle: &Value| Signature::of_bundle(bundle.to_string().as_bytes());
    let honest = bundle(STATEMENT_TYPE, &statement(SIGNED), SIGNED_P256);
    let mut other = honest.clone();
    other["mediaType"] = "application/vnd.example+json".into();
    assert_eq!(read(&other).expect("it can be read"), None);
    let mut file = honest.clone();
    file.as_object_mut().expect("an object").remove("dsseEnvelope");
    file["messageSignature"] = json!({ "signature": SIGNED_P256 });
    assert_eq!(read(&file).expect("it can be read"), None, "nothing says of what it is");
    for signatures in [json!([]), json!([{ "sig": SIGNED_P256 }, { "sig": SIGNED_P256 }])] {
        let mut several = honest.clone();
        several["dsseEnvelope"]["signatures"] = signatures;
        assert!(read(&several).is_err());
    }
}

#[test]
fn a_signature_is_of_one_artifact() {
    let keys = keys(&[P256]);
    let signed = in_bundle(&bundle(STATEMENT_TYPE, &statement(SIGNED), SIGNED_P256));
    for signature in [&simple(SIMPLE_P256), &signed] {
        assert_eq!(signature.signer(&artifact(), &keys), Some("0.pub"));
        assert_eq!(signature.signer(&Digest::sha256(b"another"), &keys), None);
        assert_eq!(signature.signer(&Digest::of(crate::oci::Algorithm::Sha512, b"artifact"), &keys), None);
    }
}

#[test]
fn what_is_kept_is_what_was_found() {
    let signed = in_bundle(&bundle(STATEMENT_TYPE, &statement(SIGNED), SIGNED_P256));
    for signature in [&simple(SIMPLE_P256), &signed] {
        let kept = serde_json::to_vec(signature).expect("JSON");
        let again: Signature = serde_json::from_slice(&kept).expect("what was written");
        assert_eq!((&again, again.signer(&artifact(), &keys(&[P256]))), (signature, Some("0.pub")));
    }
}

#[test]
fn a_file_that_is_no_usable_key_is_refused() {
    let parsed = |pem: &str| Key::parse("k", pem.as_bytes());
    let relabelled = |label: &str| P256.replace("PUBLIC KEY", label);
    assert_eq!(parsed(""), Err(KeyError::Pem));
    assert_eq!(parsed("ssh-ed25519 AAAA"), Err(KeyError::Pem));
    assert_eq!(parsed(&relabelled("CERTIFICATE")), Err(KeyError::Pem));
    assert_eq!(parsed(&relabelled("PRIVATE KEY")), Err(KeyError::Private));
    assert_eq!(parsed(&relabelled("ENCRYPTED COSIGN PRIVATE KEY")), Err(KeyError::Private));
    assert_eq!(parsed(SHORT_RSA), Err(KeyError::Kind));
    assert_eq!(parsed(&P256.replace("MFkw", "MFgw")), Err(KeyError::Kind), "it is cut");
    assert_eq!(parsed(&format!("{P256}\n{ED25519}\n")), Err(KeyError::Several));
    assert_eq!(parsed(&format!("{P256}\n{}\n", relabelled("EC PRIVATE KEY"))), Err(KeyError::Private));
    assert!(parsed(&format!("a comment\n\n{P256}\n")).is_ok());
}

proptest! {
    #[test]
    fn one_changed_byte_and_it_is_no_signature(at: prop::sample::Index, bit in 0_u32..8, is_in_bundle: bool) {
        let keys = keys(&[P256]);
        let honest = match is_in_bundle {
            true => in_bundle(&bundle(STATEMENT_TYPE, &statement(SIGNED), SIGNED_P256)),
            false => simple(SIMPLE_P256),
        };
        let mut spoilt = honest.clone();
        let length = spoilt.payload.len();
        match at.index(length + spoilt.bytes.len()) {
            place if place < length => spoilt.payload[place] ^= 1 << bit,
            place => spoilt.bytes[place - length] ^= 1 << bit,
        }
        prop_assert_eq!(spoilt.signer(&artifact(), &keys), None);
        prop_assert!(honest.signer(&artifact(), &keys).is_some());
    }

    #[test]
    fn bundles_of_strangers_do_no_harm(at: prop::sample::Index, bytes in prop::collection::vec(any::<u8>(), 0..24)) {
        let mut text = bundle(STATEMENT_TYPE, &statement(SIGNED), SIGNED_P256).to_string().into_bytes();
        let from = at.index(text.len());
        let to = text.len().min(from + bytes.len());
        text.splice(from..to, bytes);
        // Whatever still counts says the same of the same.
        if let Ok(Some(signature)) = Signature::of_bundle(&text)
            && signature.signer(&artifact(), &keys(&[P256])).is_some()
        {
            prop_assert_eq!(&signature.payload, &statement(SIGNED).into_bytes());
        }
    }
}

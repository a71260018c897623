//! Every bound on bytes that come from outside, each with its reason.
//!
//! A registry, a layer or a cache directory may be hostile or damaged. Nothing read from them sizes an allocation, a
//! loop or a recursion without first being compared with a constant of this module; passing one of these bounds is an
//! error that names the object. The modules below take the constants by name, so that a limit is found and argued
//! about in one place.

/// Longest manifest or image index accepted, in bytes.
///
/// Registries must accept pushes of 4 MiB (distribution-spec, "Pushing manifests"); clients accept 4 to 8 MiB (B-058).
pub const MANIFEST_BYTES: u64 = 8 << 20;

/// Longest image configuration accepted, in bytes (B-058).
pub const CONFIG_BYTES: u64 = 8 << 20;

/// Deepest nesting of image indexes followed before giving up (B-046): two is common, ten is absurd.
pub const INDEX_DEPTH: usize = 8;

/// Most layers in one image. Docker stops at 127; overlayfs at 500.
pub const LAYERS: usize = 1024;

/// Largest blob size a descriptor may state: 2^53, the largest integer JSON carries exactly (B-059).
pub const BLOB_BYTES: u64 = 1 << 53;

// The registry client. Registries, token servers, object stores and credential helpers are outside parties.

/// Longest answer of a token server, in bytes (B-124): tokens with many scopes reach 16 KiB.
pub const TOKEN_BYTES: u64 = 256 << 10;

/// How much of an error answer is read to find the registry's own words (B-102). Longer bodies are error pages.
pub const ERROR_BODY_BYTES: u64 = 64 << 10;

/// Longest text of a registry that is shown to the user, in characters.
pub const SHOWN_CHARACTERS: usize = 400;

/// Longest page of tags read to give a hint, in bytes: tens of thousands of tags.
pub const TAG_LIST_BYTES: u64 = 1 << 20;

/// Most redirects followed for one request (B-080), as many as browsers and other registry clients follow.
pub const REDIRECTS: usize = 10;

/// Most resolved blob locations kept; each is a URL of about 1 KiB.
pub const REDIRECTS_KEPT: usize = 4096;

/// Longest URL accepted from a `Location`, a realm or a descriptor; servers refuse longer ones themselves.
pub const URL_BYTES: usize = 16 << 10;

/// Longest `WWW-Authenticate` value that is parsed; HTTP servers limit whole heads to 8 to 64 KiB.
pub const CHALLENGE_BYTES: usize = 8 << 10;

/// Most challenges and parameters taken from one answer.
pub const CHALLENGE_PARTS: usize = 64;

/// Most scopes asked for at once; one repository needs one or two.
pub const TOKEN_SCOPES: usize = 8;

/// Most times one request is repeated with another authorization: the challenge, a wider scope, changed credentials.
pub const AUTHORIZATION_ROUNDS: usize = 4;

/// Most tokens and logins kept by one client; each stands for a repository and a set of scopes.
pub const GRANTS_KEPT: usize = 1024;

/// Longest credential file read, in bytes. Real ones hold a few hundred bytes per registry.
pub const AUTH_FILE_BYTES: u64 = 1 << 20;

/// Longest answer of a credential helper, in bytes; cloud tokens stay below 8 KiB.
pub const HELPER_BYTES: u64 = 64 << 10;

/// Longest `Warning` header shown (distribution-spec, "Warnings"), in bytes.
pub const WARNING_BYTES: usize = 4096;

/// Most different warnings remembered, and so shown, by one client.
pub const WARNINGS_KEPT: usize = 64;

/// Slowest transfer that is not given up, in bytes per second averaged over the stall time-out (B-096, D-072).
pub const LOW_SPEED: u64 = 100;

/// Bytes that must arrive between two faults for the count of attempts to start again (B-094).
pub const RESUME_PROGRESS: u64 = 1 << 20;

//! Every bound on bytes that come from outside, each with its reason.
//!
//! A registry, a layer or a cache directory may be hostile or damaged. Nothing read from them sizes an allocation, a
//! loop or a recursion without first being compared with a constant of this module; passing one of these bounds is an
//! error that names the object. The modules below take the constants by name, so that a limit is found and argued
//! about in one place.

// Documents of the OCI specifications.

/// Longest manifest or image index accepted, in bytes.
///
/// Registries must accept pushes of 4 MiB (distribution-spec, "Pushing manifests"); clients accept 4 to 8 MiB (B-058).
pub const MANIFEST_BYTES: u64 = 8 << 20;

/// Longest image configuration accepted, in bytes (B-058).
pub const CONFIG_BYTES: u64 = 8 << 20;

/// Deepest nesting of image indexes followed before giving up (B-046): two is common, ten is absurd.
pub const INDEX_DEPTH: usize = 8;

/// Most entries of an image index. Indexes of many platforms have tens; a layout's `index.json` may list a whole mirror.
pub const INDEX_ENTRIES: usize = 10_000;

/// Manifests and indexes read while looking for the one image: an index of entries without platforms costs one each.
pub const DOCUMENTS: usize = 64;

/// Most layers in one image. Docker stops at 127; overlayfs at 500.
pub const LAYERS: usize = 1024;

/// Largest blob size a descriptor may state: 2^53, the largest integer JSON carries exactly (B-059).
pub const BLOB_BYTES: u64 = 1 << 53;

/// Deepest nesting of a JSON document. Manifests and configurations need 5; the parser recurses, so this bounds its stack.
pub const JSON_DEPTH: usize = 32;

/// Most keys in one JSON object. Labels and annotations come in tens; every key is held while its object is read.
pub const JSON_KEYS: usize = 10_000;

/// Longest `oci-layout` file, in bytes; it holds one version number.
pub const LAYOUT_MARKER_BYTES: u64 = 4096;

// Image archives (`source`).

/// Most headers scanned of an archive. An image of [`LAYERS`] layers needs nine per layer, and an archive may hold several.
pub const ARCHIVE_MEMBERS: usize = 200_000;

/// Longest member name of an archive that is remembered, in bytes. Names in image archives have at most 150; with
/// [`ARCHIVE_MEMBERS`] this bounds the list of members.
pub const ARCHIVE_NAME_BYTES: usize = 512;

/// Longest PAX or GNU extended header of an archive member, in bytes (D-011).
pub const ARCHIVE_EXTENSION_BYTES: u64 = 1 << 20;

/// Most bytes that a compressed archive may decompress to: the disk would fill long before, but not every disk is small.
pub const ARCHIVE_UNPACKED_BYTES: u64 = 1 << 40;

// Tar streams (`tar`).

/// Longest extended header (`x`, `g`) or GNU long name (`L`, `K`) in a tar stream, in bytes.
///
/// The bound of Go's archive/tar and of libarchive; what one entry can make a parser keep follows from it.
pub const TAR_SPECIAL_BYTES: u64 = 1 << 20;

/// Most regions in the map of a sparse file (D-012, CVE-2025-58183).
///
/// A region costs an archive a dozen bytes that compress well, and an index 24. A 64 GiB disk image written in 512 KiB
/// pieces stays below.
pub const SPARSE_REGIONS: usize = 1 << 17;

/// Longest name of a file, in bytes: Linux's `NAME_MAX`.
pub const NAME_BYTES: usize = 255;

/// Longest target of a symbolic link, in bytes: `symlink(2)` takes no longer one, and FUSE answers in one page (D-061).
pub const SYMLINK_BYTES: usize = 4095;

/// Longest name of an extended attribute, in bytes: Linux's `XATTR_NAME_MAX`.
pub const XATTR_NAME_BYTES: usize = 255;

/// Longest value of an extended attribute, in bytes: Linux's `XATTR_SIZE_MAX`.
pub const XATTR_VALUE_BYTES: usize = 1 << 16;

/// Longest list of a file's extended attribute names, each with its NUL, in bytes: Linux's `XATTR_LIST_MAX`.
pub const XATTR_LIST_BYTES: usize = 1 << 16;

// Codecs and layer indexes (`codec`, `index`).

/// Largest zstd window accepted, as a power of two: what `zstd --ultra -22` makes; `--long=31` asks for 2 GiB (D-010).
pub const ZSTD_WINDOW_LOG: u32 = 27;

/// Largest zstd window accepted, in bytes.
pub const ZSTD_WINDOW_BYTES: u64 = 1 << ZSTD_WINDOW_LOG;

/// Bytes that any layer may decode to, however small it is; up to here a bomb costs a minute of one core (D-010).
pub const DECODED_FREE_BYTES: u64 = 16 << 30;

/// How many times its compressed bytes a layer larger than [`DECODED_FREE_BYTES`] may decode to. Deflate reaches 1032,
/// layers of programs 2 to 10.
pub const DECODED_RATIO: u64 = 128;

/// Most bytes one span may decode to: 16 GiB, because a zstd layer is commonly one frame and must mount, whatever its size.
/// Readers look at a span's length before they decode it to memory.
pub const SPAN_BYTES: u64 = 16 << 30;

/// Decoded length from which on a span makes a layer that it mostly fills not lazy: below, it is quicker fetched than
/// talked about.
pub const LAZY_SPAN_BYTES: u64 = 8 << 20;

/// Most entries in one layer: eight million, eight times what the largest known images have.
pub const LAYER_ENTRIES: u64 = 8 << 20;

/// Largest encoded layer index. At 2 % of the layer, far above any layer that registries take.
pub const INDEX_BYTES: u64 = 512 << 20;

/// Longest encoded entry inside an index: PAX records (paths, attributes) and sparse maps are bounded to a few MiB each
/// where they are parsed.
pub const INDEX_ENTRY_BYTES: usize = 16 << 20;

/// Shortest file that has a content digest, and so can be in the file store.
///
/// A digest is 32 bytes that do not compress: in a layer of JavaScript packages, half of whose files are shorter than
/// this, all digests would take as much of the index as everything else. A short file costs a file store a whole block
/// and spares its reader one part of a span, which is verified anyway.
pub const CONTENT_DIGEST_BYTES: u64 = 1024;

/// Largest sparse file that is hashed with its holes; larger ones have no content digest. A header of a few hundred
/// bytes can declare exabytes of zeros (D-010).
pub const SPARSE_HASH_BYTES: u64 = 1 << 30;

/// Hole bytes hashed in one layer, after which sparse files have no content digest: ten seconds of one core.
pub const SPARSE_HASH_LAYER_BYTES: u64 = 16 << 30;

// The merged tree (`tree`).

/// Most symbolic links followed on the way to one parent directory or hard link target, as in umoci and
/// containerd. A longer chain is taken for a loop and the layer is rejected.
pub const TREE_LINKS: usize = 255;

/// Most names in one merged tree (D-014). The largest images in use hold one to two million files; merging a million
/// takes 310 MB at its peak and two seconds, and this many in proportion.
pub const TREE_NAMES: usize = 4 << 20;

/// Most bytes of distinct names, link targets and attribute sets that merging one image may keep: four million names of
/// 15 bytes are an eighth of it. Offsets into the stored tree stay below 2^32 because of it.
pub const TREE_BYTES: usize = 512 << 20;

/// Most extents of fragmented (sparse) files in the layers of one image; a file in one piece needs none. At 24 bytes
/// each while merging they stay below 100 MB.
pub const TREE_EXTENTS: usize = 4 << 20;

/// Most path components walked while merging one image, link targets included, and names looked at for whiteouts:
/// under a minute of work. An ordinary image of a million entries needs ten million; only layers made to multiply work
/// (long link chains, one opaque marker after another) come near.
pub const TREE_STEPS: u64 = 1 << 30;

/// Most symbolic links followed when a path is resolved in a finished tree: what Linux allows a process (MAXSYMLINKS).
pub const RESOLVE_LINKS: usize = 40;

// Fetching (`fetch`, `image`).

/// Bytes asked for in one ranged read of a first contact: long enough that a round trip is small beside the transfer,
/// short enough that the pieces held while waiting for the first one stay few MiB.
pub const READ_CHUNK: u64 = 1 << 20;

/// Ranged reads of one layer that run ahead at once during a first contact.
pub const PARALLEL_READS: usize = 4;

/// Ranged reads in flight to one source; half of them may be for spans that no reader waits for. Registries that limit
/// connections at all allow tens.
pub const LINE_READS: usize = 16;

/// Bytes that may be on the way over all lines together, of which half may be for spans that no reader waits for. The lines
/// of one fast and one slow registry hold a fraction of it.
pub const IN_FLIGHT: u64 = 128 << 20;

/// Sources whose line stays measured while nothing is wanted of them.
pub const LINES: usize = 256;

/// Layers of one image that are streamed at once.
pub const PARALLEL_LAYERS: usize = 4;

// The cache directory (`store`): its files are ours, but a disk may rot and a crash may tear.

/// Longest document the cache keeps or reads back: the larger of [`MANIFEST_BYTES`] and [`CONFIG_BYTES`].
pub const STORED_DOCUMENT_BYTES: u64 = 8 << 20;

/// Longest record of what a reference resolved to: a reference and a media type are each far below 4 KiB.
pub const STORED_REFERENCE_BYTES: u64 = 16 << 10;

/// Most separate pieces of one partial blob that are remembered: 8 MiB of memory. A piece beyond is fetched again.
pub const BLOB_PIECES: usize = 1 << 18;

/// Most records in the map of one partial blob: 32 MiB of disk. What comes later is known until the blob is closed.
pub const BLOB_MAP_RECORDS: u64 = 1 << 20;

/// Most descriptors the store keeps open for partial and complete blobs; an image has tens of layers, rarely hundreds.
pub const OPEN_BLOBS: usize = 256;

/// Most decoded files the store itself keeps open, beside those its callers hold.
pub const OPEN_FILES: usize = 256;

/// Most decoded files remembered as verified in this process: 5 MiB of memory. A file forgotten is hashed again.
pub const VERIFIED_FILES: usize = 1 << 16;

/// Most candidates for eviction collected in one walk of the cache, so that a million files cost no more memory.
pub const EVICTION_BATCH: usize = 1 << 14;

// The registry client (`registry`): registries, token servers, object stores and credential helpers.

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

// The embedded registry and the demo image (`demo`): loopback clients and the host's own programs.

/// Most requests the embedded registry remembers; the oldest are forgotten first. A soak of ten minutes fits.
pub const DEMO_REQUESTS: usize = 1 << 16;

/// Most connections the embedded registry serves at once; more wait in the listener's queue.
pub const DEMO_CONNECTIONS: usize = 256;

/// Longest request body the embedded registry reads: a token request is a short form.
pub const DEMO_REQUEST_BODY: usize = 64 << 10;

/// Most tokens the embedded registry keeps valid at once; beyond it the whole set is forgotten, as in a restart.
pub const DEMO_TOKENS: usize = 1 << 12;

/// Most program headers of a host program put into the demo image: real ones have about a dozen.
pub const ELF_PROGRAM_HEADERS: u16 = 256;

/// Longest dynamic section read, in bytes: 4,096 entries, where real programs have about thirty.
pub const ELF_DYNAMIC_BYTES: u64 = 64 << 10;

/// Longest string taken from a program (an interpreter, a library name, a search path): PATH_MAX.
pub const ELF_STRING_BYTES: u64 = 4096;

/// Longest table of strings of a program that is held for its library names, in bytes; LLVM has 9 MiB, but near its beginning.
pub const ELF_STRINGS_BYTES: u64 = 4 << 20;

/// Most names (libraries, search paths) that one program may say: real ones say a hundred at most.
pub const ELF_NAMES: usize = 1024;

/// Most parts of a program that an index may name: what its program headers and tables come to.
pub const ELF_PARTS: usize = 1024;

/// Most libraries the programs of the demo image may need together.
pub const ELF_LIBRARIES: usize = 256;

// Profiles and what is fetched ahead (`profile`, `elf`, `ahead`): recordings of starts may come from anybody.

/// Most accesses in one profile. The start of a large application touches a few thousand files; what runs into this
/// bound is a scan.
pub const PROFILE_ACCESSES: usize = 1 << 16;

/// Longest profile as text, in bytes: [`PROFILE_ACCESSES`] lines with paths of 100 bytes. A recording is cut to it.
pub const PROFILE_TEXT_BYTES: usize = 8 << 20;

/// Longest path in a profile, in bytes: PATH_MAX. A file below it cannot be opened by its path in one call anyway.
pub const PROFILE_PATH_BYTES: usize = 4096;

/// Longest place or end of an access: what a file offset can be (off_t).
pub const PROFILE_OFFSET: u64 = i64::MAX as u64;

/// Longest access that touching reads are joined to, in bytes, so that a file read little by little beside others keeps
/// its place in the order.
pub const PROFILE_JOIN_BYTES: u64 = 4 << 20;

/// Most profiles kept by one cache, typically of 50 KiB each; the least recently used ones go.
pub const PROFILES: usize = 1024;

/// Most extents and spans looked at while one profile is mapped to spans: tens of milliseconds. Starts need thousands.
pub const REPLAY_STEPS: u64 = 1 << 22;

/// Compressed bytes that are always allowed to be fetched ahead, however small the image; more may be up to half of the
/// image. A profile that names everything must not turn a lazy mount into a pull.
pub const AHEAD_BYTES: u64 = 64 << 20;

/// Bytes of the cache that are read ahead of a start because a profile names them: the page cache is everybody's.
pub const WARM_BYTES: u64 = 256 << 20;

/// Most files of an image looked at for what its entry point needs: python needs 10, a desktop program 200.
pub const AHEAD_FILES: usize = 512;

/// Most directories that one program has a library looked for in by one of its lists; those of Nix have some dozens.
pub const AHEAD_SEARCHED: usize = 256;

/// Most components of paths looked up for one start; pandas needs 60,000.
pub const AHEAD_LOOKUPS: u64 = 1 << 22;

/// Longest path looked up for a start, and that what it leads to may have, in bytes: PATH_MAX.
pub const AHEAD_PATH_BYTES: usize = 4096;

/// Most bytes in memory of what the indexes of one image know of dependencies; a layer of Python has 1 MiB.
pub const AHEAD_KNOWN_BYTES: usize = 64 << 20;

/// Longest name of a module with its packages, in bytes; a component of a path has at most 255.
pub const MODULE_NAME_BYTES: usize = 512;

/// Most modules looked for because a script imports them, found or not: pandas imports 700.
pub const AHEAD_MODULES: usize = 8192;

/// Most names in Python modules that are looked up for one start, known or not; pandas has 70,000.
pub const AHEAD_NAMES: usize = 1 << 18;

/// Most names in JavaScript modules that are resolved for one start; a large server has some thousands.
pub const AHEAD_SPECIFIERS: usize = 1 << 16;

/// Longest file of a module that is looked into, in bytes; the longest of pandas has 740 KB.
pub const AHEAD_MODULE_BYTES: u64 = 1 << 20;

/// Bytes of modules that are looked into for one start. Pandas has 30 MB.
pub const AHEAD_PARSED_BYTES: u64 = 256 << 20;

/// Spans that wait to be decoded ahead of their readers: more than any start reads of a gigabyte.
pub const DECODE_AHEAD_SPANS: usize = 1024;

/// Bytes of modules that are held in memory at once while they are looked into.
pub const AHEAD_HELD_BYTES: u64 = 16 << 20;

/// Most directories in which modules are looked for: real environments have less than ten.
pub const AHEAD_DIRECTORIES: usize = 64;

/// Most `.pth` files read. Real environments have a handful.
pub const AHEAD_HOOKS: usize = 64;

/// Longest `.pth` file read, in bytes. Real ones have a few lines.
pub const AHEAD_HOOK_BYTES: u64 = 64 << 10;

/// Deepest chain of imports whose order is told apart; what is further down has the order of that place.
pub const AHEAD_DEPTH: usize = 64;

/// Most words of an image's command line that may name files.
pub const AHEAD_WORDS: usize = 32;

/// Longest `/etc/ld.so.cache` of an image that is read, in bytes; a system of 4,000 libraries has 300 KiB.
pub const LOADER_CACHE_BYTES: u64 = 4 << 20;

/// Longest `#!` line: BINPRM_BUF_SIZE, what Linux reads of it.
pub const SCRIPT_LINE_BYTES: usize = 256;

/// Bytes of a program or library that are held while its layer is indexed, to find out what it leads to. Of a longer one it is
/// found in these too, but for names among its constants.
pub const DEPENDENCIES_PROGRAM_BYTES: u64 = 16 << 20;

/// Longest name among the constants of an extension that is kept as one of a module; those of CPython and pandas have 40.
pub const CONSTANT_NAME_BYTES: usize = 64;

/// Most such names held of one extension.
pub const CONSTANT_NAMES: usize = 1 << 16;

/// Bytes that the names of all extensions of a layer may take while it is indexed; those of pandas, numpy and scipy take 5 MiB.
pub const CONSTANT_WORDS_BYTES: usize = 32 << 20;

/// Most bytes of what a layer's index says of dependencies, decoded; what comes later in the layer is not kept. 10,000 modules
/// of Python take 2 MiB.
pub const DEPENDENCIES_BYTES: usize = 16 << 20;

/// Longest thing that one file says there: a module of Python names some thousands of others at most.
pub const DEPENDENCIES_RECORD_BYTES: usize = 1 << 20;

// Parcels (`parcel`): files for CI caches, written by whoever can write there.

/// Most documents in one parcel: a reference leads through at most [`DOCUMENTS`] of them.
pub const PARCEL_DOCUMENTS: usize = 2 * DOCUMENTS;

/// Longest record of a parcel that holds no document, index or bytes of a layer: names and numbers.
pub const PARCEL_FIELDS_BYTES: u64 = 16 << 10;

/// Most bytes of a layer in one record of a parcel, which is held in memory while its spans are verified.
pub const PARCEL_STRETCH_BYTES: u64 = 64 << 20;

/// Longest span, decoded, that a parcel carries by itself; a layer with longer ones is carried as a whole or without them.
pub const PARCEL_SPAN_BYTES: u64 = 64 << 20;
// Indexes in registries (`share`, `registry`).

/// Bytes of a blob that one request of an upload carries. What a broken connection costs at most, while a round trip
/// stays small beside it.
pub const PUSH_CHUNK: usize = 8 << 20;

/// Longest chunk that a registry may ask for (`OCI-Chunk-Min-Length`); those in use ask for at most 5 MiB.
pub const PUSH_CHUNK_LARGEST: usize = 64 << 20;

/// Most pages of one list of referrers that are asked for. A page holds tens to hundreds, an image has few.
pub const REFERRER_PAGES: usize = 16;

/// Most times a list of referrers is read, changed and written because somebody else wrote it meanwhile.
pub const REFERRER_ROUNDS: usize = 32;

/// Longest manifest of an index artifact: [`LAYERS`] descriptors of one kilobyte each.
pub const ARTIFACT_BYTES: u64 = 2 << 20;

/// Longest manifest of an index artifact that is embedded in the list under a tag: thirty layers.
pub const EMBEDDED_BYTES: u64 = 16 << 10;

/// Most index artifacts of one image that are looked at; the others are passed over.
pub const ARTIFACTS: usize = 64;

/// Manifests of index artifacts that are read at once.
pub const PARALLEL_ARTIFACTS: usize = 16;

/// Most signatures of one artifact that are looked at, of each form; the others are passed over with a warning.
pub const SIGNATURES: usize = 32;

/// Signatures of one artifact that are read and verified at once.
pub const PARALLEL_SIGNATURES: usize = 4;

/// Artifacts whose signatures are looked for at once: usually there is one.
pub const PARALLEL_SIGNED: usize = 4;

/// Longest payload or bundle of a signature: those with certificates and proofs of a log have some ten kilobytes.
pub const SIGNATURE_BYTES: u64 = 256 << 10;

/// Longest file with a public key.
pub const KEY_BYTES: u64 = 64 << 10;

/// Most public keys that are configured at once.
pub const KEYS: usize = 64;

/// Places of pushed blobs that are remembered, to mount them elsewhere in the same registry: a small file each.
pub const PLACES: usize = 4096;

/// Blobs of an artifact that are pushed or fetched at once.
pub const PARALLEL_BLOBS: usize = 8;

/// Longest blob that is uploaded to the embedded registry, in bytes: the indexes of a test's images are far below.
pub const DEMO_UPLOAD_BODY: usize = 256 << 20;

/// Most uploads that the embedded registry has under way; beyond it all are forgotten, as in a restart.
pub const DEMO_UPLOADS: usize = 256;

// Claimed indexes (`index`, `fetch`): what other tools say of a layer.

/// Most decoded bytes that may lie before a claimed span in what has to be decoded for it: eStargz puts small chunks
/// together into members of at most a few MiB (`innerOffset`). Bounds the work that one read can cost.
pub const CLAIM_SKIP_BYTES: u64 = 64 << 20;

// Tables of contents that layers bring along (`index::toc`).

/// Longest table of contents, compressed or not, in bytes: what containers/storage takes. The document has 300 to 500 bytes
/// for each file.
pub const TOC_BYTES: u64 = 150 << 20;

/// Most entries of a table of contents, chunks counted as well; it has no room for more at their usual length. All of them are
/// held at once, and the shortest ones would otherwise take a gigabyte.
pub const TOC_ENTRIES: usize = 1 << 20;

// zTOCs (`index::soci`): SOCI indexes of layers, from registries.

/// Longest zTOC that is read: 33 KiB a span of 4 MiB and 150 bytes a member stay below for layers of 50 GiB.
pub const ZTOC_BYTES: u64 = INDEX_BYTES;

/// Longest span of a zTOC, decoded, that is worth more than a first contact. SOCI's are of 4 MiB unless told otherwise.
pub const ZTOC_SPAN_BYTES: u64 = 64 << 20;

/// Longest gzip layer that may be one span of a zTOC. One block of deflate data decodes to 8 MiB at most, so spans of the
/// usual 4 MiB end before; zTOCs of longer layers with only one are those of a fault of SOCI's (its issue 1834).
pub const ZTOC_ONE_SPAN_BYTES: u64 = 16 << 20;
/// Indexes of one image's layers that are fetched at once: all of nearly any image, so that they cost one round trip.
pub const PARALLEL_INDEXES: usize = 32;

/// Sections of windows that may be arriving, over all images: each takes a mebibyte while it does. What the cache does not take
/// arrives in memory, one section at a time.
pub const WINDOW_SECTIONS: usize = 32;

/// Length up to which a layer's index may be longer than the layer. Beyond it the layer is quicker streamed.
pub const SMALL_LAYER: u64 = 64 << 10;
/// Most spans brought by one ranged read. Ours have hundreds of KiB, but those of a claim may be parts of one member, a
/// thousand small files in it.
pub const READ_SPANS: usize = 4096;

/// Length up to which a shared index is fetched as a whole before the mount: its windows are not worth a request of their own.
pub const SMALL_INDEX: u64 = 4 << 10;

/// How many bytes the spans of a claim may read and drop, when each is decoded alone, for one byte of the layer: files that
/// share a member are decoded from its beginning, and makers put a hundred small files at most into one.
pub const CLAIM_WORK: u64 = 64;

/// So many bytes are free in addition: small layers may be cut as they like.
pub const CLAIM_WORK_FREE: u64 = 16 << 30;

/// TOCs that are read at once, over all images: each may take a gigabyte of memory, while a usual one takes ten megabytes.
pub const PARALLEL_TOCS: usize = 4;

// Host configuration (`registry::hosts`, `registry::link`).

/// Longest file of certificates that is read, in bytes; the system's bundle of all authorities has 220 KiB.
pub const CERTIFICATE_BYTES: u64 = 4 << 20;

/// Longest file that says how hosts are reached, in bytes. Those that people write have a few KiB, Debian's list of aliases 4.
pub const HOSTS_FILE_BYTES: u64 = 1 << 20;

/// Most files of certificates or drop-ins of one directory that are looked at.
pub const HOSTS_FILES: usize = 256;

/// Most endpoints of one repository that are tried; more would only make failures slow.
pub const ENDPOINTS: usize = 16;

/// Most ranges of one blob of which it is remembered which host served them.
pub const SERVED_KEPT: usize = 256;
/// Requests to one host that are under way at once as long as it does not complain: far more than the lines of a few images
/// want, and below what registries and load balancers grant one client.
pub const HOST_REQUESTS: usize = 64;

/// Hosts whose pace is remembered.
pub const PACES_KEPT: usize = 256;
/// Bytes of an image's zTOCs that are held together until its configuration is known, which says what they must be about. An
/// image of many layers may have gigabytes of them; those beyond this are read one after the other.
pub const ZTOCS_HELD: u64 = 64 << 20;

// Bodies that come encoded (`registry::encoded`).

/// Codings that one body may have: caches add one to what a server has done.
pub const BODY_CODINGS: usize = 3;

/// How much longer the encoded form of a body may be than the body: what cannot be compressed grows by a little.
pub const ENCODED_SLACK: u64 = 64 << 10;

/// Largest window of a body in zstd, as a power of two: the 8 MiB that senders may use (RFC 9659).
pub const ZSTD_CODING_WINDOW_LOG: u32 = 23;

/// Longest blob that is decoded if it comes encoded as a whole, in memory: configurations and small layers. Who stores longer
/// ones encoded serves no ranges of them either.
pub const DECODED_BLOB_BYTES: u64 = 8 << 20;

/// Pages of a list of tags that are read for a hint: a registry that gives fifty at a time still shows five hundred.
pub const TAG_PAGES: usize = 10;

//! The image that names SOCI's index, version 2 (soci-snapshotter, docs/soci-index-manifest-v2.md).
//!
//! From 0.10 on SOCI's snapshotter believes no index that somebody put beside an image, only one that the image's manifest
//! names in an annotation. So the image gets another manifest, and with it another digest and a tag of its own; its layers
//! and its configuration stay what they are, and so does the image under its old name. An image index lists the new
//! manifest together with the SOCI index, so that copying one copies the other; an image of one platform gets such an
//! index too. What is written follows from the image alone: converting it again, or what came out of it, writes the same
//! bytes.
//!
//! [`convert`] talks to the registry, [`Conversion`] edits the documents. They are edited and not written anew, so that
//! what their publisher put into them and this program does not know stays there.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::Error;
use super::artifact::MANIFEST_TYPE;
use super::soci::{SOCI_PIN, SOCI_V2_TYPE};
use crate::oci::{Descriptor, Digest, Manifest, Platform};
use crate::registry::{Repository, Selector};
use crate::source::{Document, Source};

/// The type of an image index.
const LIST_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// The type of an image's configuration.
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";

/// Docker's type of a manifest. Registries refuse to have it in one list with artifacts.
const DOCKER_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Annotation of a SOCI index in an image index: the digest of the manifest that names it.
const NAMED_BY: &str = "com.amazon.soci.image-manifest-digest";

/// An image and the SOCI index that it shall name, which is in its repository already.
#[derive(Debug, Clone)]
pub struct Bound {
    /// The image's manifest.
    pub image: Descriptor,
    /// The image's platform, as its configuration has it.
    pub platform: Platform,
    /// The SOCI index.
    pub index: Descriptor,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// The image index under the new tag.
    pub list: Digest,
    /// The new manifests of the bound images, in their order.
    pub images: Vec<Digest>,
}

/// Converts what `original` is of the images that are bound, and puts it under `tag`, in the repository that has it.
///
/// The tag comes last: whatever breaks before, it names what it named. `repository` should be
/// [for pushing](Repository::for_pushing).
pub async fn convert(
    repository: &Repository,
    original: &Document,
    bound: &[Bound],
    tag: &str,
) -> Result<Converted, Error> {
    let mut conversion = Conversion::new(original, bound)?;
    let mut images = Vec::new();
    for Bound { image, platform, index } in bound {
        let manifest = repository.manifest(image).await?;
        images.push(conversion.bind(&manifest, platform, index)?);
    }
    for rest in conversion.of_docker() {
        let manifest = repository.manifest(&rest).await?;
        conversion.rename(&manifest, None)?;
    }
    for manifest in &conversion.manifests {
        let name = Selector::Digest(Digest::sha256(manifest));
        repository.push_manifest(&name, MANIFEST_TYPE, manifest.clone()).await?;
    }
    let list = conversion.to_bytes();
    repository.push_manifest(&Selector::Tag(tag.to_owned()), LIST_TYPE, list.clone()).await?;
    Ok(Converted { list: Digest::sha256(&list), images })
}

/// An image index that is being converted.
struct Conversion {
    /// What the original names, for errors.
    original: Digest,
    /// The rest of the document.
    document: Map<String, Value>,
    /// What it lists.
    entries: Vec<Value>,
    /// The manifests that are new in it.
    manifests: Vec<Bytes>,
}

impl Conversion {
    /// The index `original`, or a new one of the image that it is.
    fn new(original: &Document, bound: &[Bound]) -> Result<Self, Error> {
        let parsed = Manifest::parse(&original.bytes, &original.media_type);
        let parsed = parsed.map_err(|error| Error::Manifest { digest: original.digest, source: Box::new(error) })?;
        let mut conversion =
            Self { original: original.digest, document: Map::new(), entries: Vec::new(), manifests: Vec::new() };
        match (parsed, bound) {
            (Manifest::Index(_), _) => {
                conversion.document = conversion.object(&original.bytes)?;
                if let Some(Value::Array(entries)) = conversion.document.get_mut("manifests").map(Value::take) {
                    conversion.entries = entries;
                }
            }
            (Manifest::Image(_), [Bound { image, platform, .. }]) => conversion.entries.push(json!({
                "mediaType": MANIFEST_TYPE,
                "digest": image.digest.to_string(),
                "size": image.size,
                "platform": written(platform),
            })),
            (Manifest::Image(_), _) => return Err(conversion.refuse("it is one image".to_owned())),
        }
        conversion.document.insert("schemaVersion".to_owned(), 2.into());
        conversion.document.insert("mediaType".to_owned(), LIST_TYPE.into());
        Ok(conversion)
    }

    fn refuse(&self, why: String) -> Error {
        Error::Convert { image: self.original, why }
    }

    /// A document that was parsed before.
    fn object(&self, bytes: &[u8]) -> Result<Map<String, Value>, Error> {
        serde_json::from_slice(bytes).map_err(|error| self.refuse(error.to_string()))
    }

    /// Lets the image `manifest` name `index`, which is listed as well; the digest of its new manifest.
    fn bind(&mut self, manifest: &Document, platform: &Platform, index: &Descriptor) -> Result<Digest, Error> {
        let renamed = self.rename(manifest, Some(&index.digest))?;
        let name = Value::from(renamed.to_string());
        let named = self.entries.iter().find(|entry| entry.get("digest") == Some(&name));
        let stated = named.and_then(|entry| entry.get("platform")).filter(|stated| stated.is_object()).cloned();
        let platform = stated.unwrap_or_else(|| written(platform));
        let entry = json!({
            "mediaType": MANIFEST_TYPE,
            "digest": index.digest.to_string(),
            "size": index.size,
            "annotations": { NAMED_BY: name.clone() },
            "platform": platform,
            "artifactType": SOCI_V2_TYPE,
        });
        // Two images of a list may have the same platform; the index of the other one stays.
        let is_of_other = |listed: &Value| {
            let named = listed.get("annotations").and_then(|annotations| annotations.get(NAMED_BY));
            named.is_some_and(|named| {
                *named != name && self.entries.iter().any(|entry| entry.get("digest") == Some(named))
            })
        };
        let is_older = |listed: &Value| {
            listed.get("artifactType").is_some_and(|found| found == SOCI_V2_TYPE)
                && listed.get("platform") == Some(&platform)
                && !is_of_other(listed)
        };
        match self.entries.iter().position(is_older) {
            Some(older) => self.entries[older] = entry,
            None => self.entries.push(entry),
        }
        Ok(renamed)
    }

    /// Gives an image that is listed a manifest of OCI's type, which names the SOCI index `pin` if there is one; its digest.
    fn rename(&mut self, manifest: &Document, pin: Option<&Digest>) -> Result<Digest, Error> {
        let mut image = self.object(&manifest.bytes)?;
        image.insert("mediaType".to_owned(), MANIFEST_TYPE.into());
        if let Some(config) = image.get_mut("config").and_then(Value::as_object_mut) {
            config.insert("mediaType".to_owned(), CONFIG_TYPE.into());
        }
        if let Some(pin) = pin {
            annotate(&mut image, [(SOCI_PIN.to_owned(), pin.to_string().into())]);
        }
        let bytes = Bytes::from(Value::Object(image.clone()).to_string());
        let (old, new) = (Value::from(manifest.digest.to_string()), Digest::sha256(&bytes));
        let is_of_image = |entry: &&mut Map<String, Value>| entry.get("digest") == Some(&old);
        let mut is_listed = false;
        for entry in self.entries.iter_mut().filter_map(Value::as_object_mut).filter(is_of_image) {
            entry.insert("mediaType".to_owned(), MANIFEST_TYPE.into());
            entry.insert("digest".to_owned(), new.to_string().into());
            entry.insert("size".to_owned(), bytes.len().into());
            if let Some(Value::Object(annotations)) = image.get("annotations") {
                annotate(entry, annotations.clone());
            }
            // Embedded content would be that of the manifest before.
            entry.shift_remove("data");
            is_listed = true;
        }
        if !is_listed {
            let why =
                format!("it does not list {} itself, and SOCI has no form for an index in an index", manifest.digest);
            return Err(self.refuse(why));
        }
        if new != manifest.digest && !self.manifests.contains(&bytes) {
            self.manifests.push(bytes);
        }
        Ok(new)
    }

    /// The images that are listed by Docker's type.
    fn of_docker(&self) -> Vec<Descriptor> {
        let found = self.entries.iter().filter_map(|entry| {
            let text = |name: &str| entry.get(name).and_then(Value::as_str);
            let digest = text("digest")?.parse().ok()?;
            let size = entry.get("size").and_then(Value::as_u64)?;
            (text("mediaType") == Some(DOCKER_TYPE)).then(|| Descriptor::new(DOCKER_TYPE, digest, size))
        });
        found.collect()
    }

    /// The image index.
    fn to_bytes(&self) -> Bytes {
        let mut document = self.document.clone();
        document.insert("manifests".to_owned(), self.entries.clone().into());
        Value::Object(document).to_string().into()
    }
}

/// Adds annotations to a document or a descriptor, in place of those of the same names.
fn annotate(object: &mut Map<String, Value>, added: impl IntoIterator<Item = (String, Value)>) {
    let annotations = object.entry("annotations").or_insert_with(|| json!({}));
    if !annotations.is_object() {
        *annotations = json!({});
    }
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.extend(added);
    }
}

/// A platform as image indexes write it.
fn written(platform: &Platform) -> Value {
    let mut written = json!({ "architecture": platform.architecture(), "os": platform.os() });
    if let Some(version) = platform.os_version() {
        written["os.version"] = version.into();
    }
    if !platform.os_features().is_empty() {
        written["os.features"] = platform.os_features().into();
    }
    if let Some(variant) = platform.variant() {
        written["variant"] = variant.into();
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(value: &Value, media_type: &str) -> Document {
        let bytes = Bytes::from(value.to_string());
        Document { media_type: media_type.to_owned(), digest: Digest::sha256(&bytes), bytes }
    }

    fn image(media_type: &str) -> Document {
        let blob =
            |of: &str| json!({ "mediaType": of, "digest": Digest::sha256(of.as_bytes()).to_string(), "size": 5 });
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": blob("config"), "layers": [blob("layer")],
            "org.example.later": { "kept": [1, 2] }, "annotations": { "a": "b" } });
        document(&manifest, media_type)
    }

    fn entry(of: &Document, platform: &Value) -> Value {
        json!({ "mediaType": of.media_type, "digest": of.digest.to_string(), "size": of.bytes.len(), "platform": platform,
            "annotations": { "c": "d" }, "data": "e30=" })
    }

    fn index(name: &str) -> Descriptor {
        Descriptor::new(MANIFEST_TYPE, Digest::sha256(name.as_bytes()), 7)
    }

    fn platform() -> Platform {
        Platform::new("linux", "arm", Some("v6"))
    }

    fn list(entries: &[Value]) -> Document {
        document(&json!({ "schemaVersion": 2, "mediaType": LIST_TYPE, "manifests": entries, "later": true }), LIST_TYPE)
    }

    fn read(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).expect("JSON")
    }

    #[test]
    fn what_the_publisher_wrote_stays() {
        let image = image(DOCKER_TYPE);
        let stated = json!({ "os": "linux", "architecture": "arm", "variant": "v7" });
        let original = list(&[entry(&image, &stated)]);
        let mut conversion = Conversion::new(&original, &[]).expect("a list");
        let renamed = conversion.bind(&image, &platform(), &index("one")).expect("it is listed");
        let [manifest] = &conversion.manifests[..] else { panic!("one manifest is new") };
        assert_eq!(Digest::sha256(manifest), renamed);
        let manifest = read(manifest);
        assert_eq!(manifest["org.example.later"], json!({ "kept": [1, 2] }));
        assert_eq!(manifest["annotations"], json!({ "a": "b", SOCI_PIN: index("one").digest.to_string() }));
        assert_eq!(
            (&manifest["mediaType"], &manifest["config"]["mediaType"]),
            (&json!(MANIFEST_TYPE), &json!(CONFIG_TYPE))
        );
        let list = read(&conversion.to_bytes());
        assert_eq!(list["later"], true);
        let listed = &list["manifests"][0];
        assert_eq!(listed["annotations"]["c"], "d");
        assert_eq!(listed.get("data"), None, "it would be that of the image before");
        assert_eq!(list["manifests"][1]["platform"], stated, "as the list says it, not as the configuration does");
        Manifest::parse(&conversion.to_bytes(), LIST_TYPE).expect("this program reads it");
        assert!(conversion.of_docker().is_empty());
    }

    #[test]
    fn an_older_index_of_the_platform_is_replaced() {
        let image = image(MANIFEST_TYPE);
        let of_soci = |name: &str, platform: &Value| {
            let Descriptor { digest, size, .. } = index(name);
            json!({ "mediaType": MANIFEST_TYPE, "digest": digest.to_string(), "size": size, "platform": platform,
                "artifactType": SOCI_V2_TYPE })
        };
        let here = written(&platform());
        let elsewhere = of_soci("elsewhere", &json!({ "os": "linux", "architecture": "s390x" }));
        let original = list(&[entry(&image, &here), of_soci("older", &here), elsewhere.clone()]);
        let mut conversion = Conversion::new(&original, &[]).expect("a list");
        conversion.bind(&image, &platform(), &index("newer")).expect("it is listed");
        let [_, newer, other] = &conversion.entries[..] else { panic!("nothing was added") };
        assert_eq!(newer["digest"], index("newer").digest.to_string());
        assert_eq!(*other, elsewhere);
    }

    #[test]
    fn images_of_one_platform_keep_an_index_each_however_often_they_are_converted() {
        let here = written(&platform());
        let (one, other) = (image(MANIFEST_TYPE), image(DOCKER_TYPE));
        let mut original = list(&[entry(&one, &here), entry(&other, &here)]);
        let mut images = [one, other];
        for names in [["a", "b"], ["a", "b"], ["c", "d"], ["c", "e"]] {
            let mut conversion = Conversion::new(&original, &[]).expect("a list");
            let mut expected = Vec::new();
            for (image, name) in images.iter_mut().zip(names) {
                let renamed = conversion.bind(image, &platform(), &index(name)).expect("it is listed");
                expected.push((json!(index(name).digest.to_string()), json!(renamed.to_string())));
                if let Some(bytes) = conversion.manifests.iter().find(|bytes| Digest::sha256(bytes) == renamed) {
                    *image = document(&read(bytes), MANIFEST_TYPE);
                }
                assert_eq!(image.digest, renamed);
            }
            let listed = read(&conversion.to_bytes());
            let indexes = listed["manifests"].as_array().expect("a list")[2..].iter();
            let indexes: Vec<_> =
                indexes.map(|entry| (entry["digest"].clone(), entry["annotations"][NAMED_BY].clone())).collect();
            assert_eq!(indexes, expected, "{names:?}");
            original = document(&listed, LIST_TYPE);
        }
    }

    #[test]
    fn what_cannot_be_listed_is_refused() {
        let image = image(MANIFEST_TYPE);
        let mut conversion = Conversion::new(&list(&[]), &[]).expect("a list");
        let error = conversion.bind(&image, &platform(), &index("one")).expect_err("it is not listed");
        assert!(error.to_string().contains("an index in an index"), "{error}");
        let of_image = || Bound { image: index("image"), platform: platform(), index: index("one") };
        assert!(Conversion::new(&image, &[of_image(), of_image()]).is_err());
        assert!(Conversion::new(&document(&json!({}), ""), &[of_image()]).is_err());
    }
}

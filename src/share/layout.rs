//! Writing an artifact into an image layout (image-spec, image-layout.md), to be carried where no registry can be
//! reached and pushed from there by any tool.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::artifact::MANIFEST_TYPE;
use super::{Bundle, Error};
use crate::limits::MANIFEST_BYTES;
use crate::oci::Digest;

/// The content of the file that marks a layout.
const MARKER: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// Writes the artifact and its blobs into the layout `dir`, which is made if it is not there; what else is in it stays.
///
/// `index.json` lists the artifact, once. Files appear by rename and once they are on the disk, blobs before what names
/// them. Who writes the list at the same time waits, if it is this program. Blocks on files.
pub fn write_layout(dir: &Path, bundle: &Bundle) -> Result<(), Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Layout { path, source }
    };
    fs::create_dir_all(dir.join("blobs/sha256")).map_err(failed(dir))?;
    let lock = File::open(dir).map_err(failed(dir))?;
    lock.lock().map_err(failed(dir))?;
    let manifest = bundle.digest();
    let blobs = bundle.blobs.iter().map(|(digest, bytes)| (digest, bytes));
    for (digest, bytes) in blobs.chain([(&manifest, &bundle.manifest)]) {
        let path = blob_path(dir, digest);
        let is_there = fs::metadata(&path).is_ok_and(|found| found.len() == bytes.len() as u64);
        if !is_there {
            replace(&path, bytes).map_err(failed(&path))?;
        }
    }
    let index = dir.join("index.json");
    let listed = with_artifact(&index, bundle).map_err(failed(&index))?;
    replace(&index, listed.to_string().as_bytes()).map_err(failed(&index))?;
    let marker = dir.join("oci-layout");
    if !marker.exists() {
        replace(&marker, MARKER.as_bytes()).map_err(failed(&marker))?;
    }
    Ok(())
}

fn blob_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs").join(digest.algorithm().name()).join(digest.hex())
}

/// The list of the layout with the artifact in it.
fn with_artifact(index: &Path, bundle: &Bundle) -> io::Result<Value> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut document = match fs::metadata(index) {
        Ok(found) if found.len() > MANIFEST_BYTES => return Err(invalid("its index.json is too long")),
        Ok(_) => serde_json::from_slice(&fs::read(index)?).map_err(io::Error::from)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Map::new(),
        Err(error) => return Err(error),
    };
    document.entry("schemaVersion").or_insert_with(|| json!(2));
    document.entry("mediaType").or_insert_with(|| json!("application/vnd.oci.image.index.v1+json"));
    let entries = document.entry("manifests").or_insert_with(|| json!([]));
    let Some(entries) = entries.as_array_mut() else { return Err(invalid("its index.json lists no manifests")) };
    let digest = Value::from(bundle.digest().to_string());
    if !entries.iter().any(|entry| entry.get("digest") == Some(&digest)) {
        entries.push(json!({
            "mediaType": MANIFEST_TYPE,
            "digest": digest,
            "size": bundle.manifest.len(),
            "artifactType": bundle.format.artifact_type(),
        }));
    }
    Ok(Value::Object(document))
}

/// Writes a file that is there whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = File::create(&beside)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // What stays behind is told by the error that matters.
        fs::remove_file(&beside).ok();
    }
    written
}

//! Fuzz targets for everything that reads bytes from outside. `./run` builds and runs them.
//!
//! One program has all targets: `OCIFS_FUZZ_TARGET` names the one that is meant. With `OCIFS_FUZZ_SEEDS` it writes the
//! seeds of the target into that directory and ends, and without a target it lists them. Seeds are made by the writers
//! of this program and of its tests, so that a change of a format changes them too. A target does with its input what a
//! mount would go on to do with it, and checks what callers rely on; where a digest would keep the fuzzer from getting
//! anywhere, the target puts the right one in.

#![no_main]

mod documents;
mod hosts;
mod indexes;
mod layers;
mod memory;
mod parcels;
mod programs;
mod tables;

use std::sync::OnceLock;

/// Something that reads bytes from outside.
struct Target {
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
}

const TARGETS: [Target; 29] = [
    Target { name: "layer", run: layers::layer, seeds: layers::seeds },
    Target { name: "index", run: indexes::index, seeds: indexes::seeds },
    Target { name: "claim", run: indexes::claim, seeds: indexes::claim_seeds },
    Target { name: "tree", run: indexes::tree, seeds: indexes::tree_seeds },
    Target { name: "estargz", run: tables::estargz, seeds: tables::estargz_seeds },
    Target { name: "toc-archive", run: tables::archive, seeds: tables::archive_seeds },
    Target { name: "zstd-chunked", run: tables::zstd_chunked, seeds: tables::zstd_chunked_seeds },
    Target { name: "toc-place", run: tables::place, seeds: tables::place_seeds },
    Target { name: "ztoc", run: tables::ztoc, seeds: tables::ztoc_seeds },
    Target { name: "soci-index", run: documents::soci_index, seeds: documents::soci_index_seeds },
    Target { name: "artifact", run: documents::artifact, seeds: documents::artifact_seeds },
    Target { name: "signature", run: documents::signature, seeds: documents::signature_seeds },
    Target { name: "key", run: documents::key, seeds: documents::key_seeds },
    Target { name: "manifest", run: documents::manifest, seeds: documents::manifest_seeds },
    Target { name: "config", run: documents::config, seeds: documents::config_seeds },
    Target { name: "reference", run: documents::reference, seeds: documents::reference_seeds },
    Target { name: "profile", run: documents::profile, seeds: documents::profile_seeds },
    Target { name: "hosts-toml", run: hosts::hosts_toml, seeds: hosts::hosts_toml_seeds },
    Target { name: "registries-conf", run: hosts::registries_conf, seeds: hosts::registries_conf_seeds },
    Target { name: "challenge", run: ocifs::fuzzing::challenge, seeds: hosts::challenge_seeds },
    Target { name: "headers", run: hosts::headers, seeds: hosts::headers_seeds },
    Target { name: "parcel", run: parcels::parcel, seeds: parcels::seeds },
    Target { name: "archive", run: parcels::archive, seeds: parcels::archive_seeds },
    Target { name: "elf", run: programs::elf, seeds: programs::elf_seeds },
    Target { name: "loader-cache", run: programs::loader_cache, seeds: programs::loader_cache_seeds },
    Target { name: "python-compiled", run: programs::compiled, seeds: programs::compiled_seeds },
    Target { name: "python-source", run: programs::source, seeds: programs::source_seeds },
    Target { name: "javascript", run: programs::javascript, seeds: programs::javascript_seeds },
    Target { name: "dependencies", run: programs::dependencies, seeds: programs::dependencies_seeds },
];

#[global_allocator]
static MEMORY: memory::Bounded = memory::Bounded;

static CHOSEN: OnceLock<&Target> = OnceLock::new();

/// Finds out what is asked for, and does it if that is not fuzzing.
fn begin() {
    let Ok(name) = std::env::var("OCIFS_FUZZ_TARGET") else {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        std::process::exit(0);
    };
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    if let Some(directory) = std::env::var_os("OCIFS_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            let path = std::path::Path::new(&directory).join(format!("seed-{number}"));
            std::fs::write(path, seed).expect("a seed can be written");
        }
        std::process::exit(0);
    }
    CHOSEN.get_or_init(|| target);
}

libfuzzer_sys::fuzz_target!(init: begin(), |data: &[u8]| {
    let target = CHOSEN.get().expect("chosen at the beginning");
    memory::bounded(|| (target.run)(data));
});

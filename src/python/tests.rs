//! Against the Python of this host, which compiles what it is given, and against anything at all.

use std::process::Command;

use proptest::prelude::*;

use super::*;

/// Every way of importing, and what must not count.
const SOURCE: &str = r#""""import not_this
from nor import this"""
from __future__ import annotations
import os, sys as system; import json.decoder
import a.b.c as d
from . import sibling
from .near import (one,  # import comment
    two as other,
)
from ...far.away import *
from package import \
    name
from importlib import metadata
from importlib.metadata import version as importing
from .importers import(imported)
text = 'import string' + """
import long_string
"""
if TYPE_CHECKING:
    import unseen
    from pathlib import Path
else:
    import seen
try:
    import optional
except ImportError:
    optional = None
if typing.TYPE_CHECKING:
    import unseen_too
def function():
    import later
    if True:
        from later import this
async def coroutine():
    import later_still
class Class:
    def method(self):
        import never
import last
"#;

fn import(level: u32, module: &str, names: &[&str]) -> Import {
    Import { level, module: module.to_owned(), names: names.iter().map(|name| (*name).to_owned()).collect() }
}

fn expected() -> Vec<Import> {
    vec![
        import(0, "__future__", &["annotations"]),
        import(0, "os", &[]),
        import(0, "sys", &[]),
        import(0, "json.decoder", &[]),
        import(0, "a.b.c", &[]),
        import(1, "", &["sibling"]),
        import(1, "near", &["one", "two"]),
        import(3, "far.away", &["*"]),
        import(0, "package", &["name"]),
        import(0, "importlib", &["metadata"]),
        import(0, "importlib.metadata", &["version"]),
        import(1, "importers", &["imported"]),
        import(0, "seen", &[]),
        import(0, "optional", &[]),
        import(0, "last", &[]),
    ]
}

/// The source with another way to say what only a type checker sees, compiled by this host's Python.
fn compile(source: &str, mode: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (path, out) = (dir.path().join("module.py"), dir.path().join("module.pyc"));
    std::fs::write(&path, source).expect("written");
    let program = "import sys, py_compile as p; p.compile(sys.argv[1], sys.argv[2], doraise=True, \
                   invalidation_mode=p.PycInvalidationMode[sys.argv[3]])";
    let status = Command::new("python3").args(["-c", program]).arg(&path).arg(&out).arg(mode).status();
    assert!(status.expect("this host has a Python").success());
    std::fs::read(&out).expect("it was compiled")
}

#[test]
fn source_says_what_it_imports_at_once() {
    let mut expected = expected();
    // The star is no name of a module.
    expected[7].names.clear();
    assert_eq!(imports_of_source(SOURCE.as_bytes()), expected);
}

#[test]
fn compiled_code_says_the_same_as_its_source() {
    let compiled = Compiled::parse(&compile(SOURCE, "TIMESTAMP")).expect("a compiled module");
    assert!(matches!(compiled.stamp, Stamp::Source { size, .. } if size as usize == SOURCE.len()), "{compiled:?}");
    let imports = compiled.imports.expect("a version that is known");
    assert_eq!(imports, expected());
}

#[test]
fn how_a_module_is_checked_is_in_its_header() {
    for (mode, stamp) in [("CHECKED_HASH", Stamp::Hash), ("UNCHECKED_HASH", Stamp::Unchecked)] {
        assert_eq!(Compiled::parse(&compile("import os", mode)).map(|compiled| compiled.stamp), Some(stamp));
    }
    assert_eq!(Compiled::parse(b"\x7fELF"), None);
}

#[test]
fn an_attribute_of_a_module_counts_as_a_module_that_may_be_in_it() {
    let source = "import numpy as np, os.path, json\nx = np.random.Generator\ny = np.random\nz = os.sep\njson = 1\n\
                  q = json.decoder\ndef f():\n    return np.fft\n";
    let compiled = Compiled::parse(&compile(source, "TIMESTAMP")).expect("a compiled module");
    let expected = [
        import(0, "numpy", &[]),
        import(0, "os.path", &[]),
        import(0, "json", &[]),
        import(0, "numpy", &["random"]),
        import(0, "os", &["sep"]),
    ];
    assert_eq!(compiled.imports.expect("a version that is known"), expected);
}

#[test]
fn many_names_and_long_jumps_need_extended_arguments() {
    let mut source = "from typing import TYPE_CHECKING\n".to_owned();
    (0..600).for_each(|number| source.push_str(&format!("x{number} = {number}.5\n")));
    source.push_str("if TYPE_CHECKING:\n");
    (0..300).for_each(|number| source.push_str(&format!("    import unseen{number}\n")));
    source.push_str("import seen\nfrom ..up import here\n");
    let compiled = Compiled::parse(&compile(&source, "TIMESTAMP")).expect("a compiled module");
    let imports = compiled.imports.expect("a version that is known");
    assert_eq!(imports[1..], [import(0, "seen", &[]), import(2, "up", &["here"])]);
    assert_eq!(imports_of_source(source.as_bytes()), imports);
}

#[test]
fn every_module_of_this_host_is_understood() {
    let found = Command::new("python3").args(["-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"]).output();
    let library = String::from_utf8(found.expect("this host has a Python").stdout).expect("a plain path");
    let library = std::path::Path::new(library.trim());
    let (mut files, mut all, mut same) = (0, 0, 0);
    for dir in ["", "asyncio", "concurrent/futures", "email", "json", "logging", "urllib", "xml/etree"] {
        let Ok(entries) = std::fs::read_dir(library.join(dir).join("__pycache__")) else { continue };
        for entry in entries {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("a plain name").to_owned();
            let Some(name) = name.strip_suffix(".pyc").filter(|name| !name.contains(".opt-")) else { continue };
            let stem = name.split('.').next().unwrap_or(name);
            let Ok(source) = std::fs::read(library.join(dir).join(format!("{stem}.py"))) else { continue };
            let compiled = Compiled::parse(&std::fs::read(&path).expect("it can be read"));
            let imports = compiled.and_then(|compiled| compiled.imports).expect(name);
            let from_source = imports_of_source(&source);
            files += 1;
            all += imports.len();
            same += imports.iter().filter(|one| from_source.iter().any(|other| other.module == one.module)).count();
        }
    }
    // The compiler leaves out what can never run, and the reader of lines sees no bodies of classes that are one line.
    assert!(files > 100, "{files} files");
    assert!(same * 100 >= all * 98, "{same} of {all} imports in {files} files");
}

/// A compiled module of 3.11 with these constants, names and bytecode, all as marshal writes them.
fn assembled(constants: &[u8], names: &[u8], bytecode: &[u8]) -> Vec<u8> {
    let bytes = |bytes: &[u8]| [b"s", &(bytes.len() as u32).to_le_bytes()[..], bytes].concat();
    let rest = [bytes(b"").as_slice(), bytes(b"").as_slice(), b"NNN"].concat();
    let code = [&bytes(bytecode)[..], constants, names, &rest, &[0; 4], b"NN"].concat();
    [&3495_u16.to_le_bytes()[..], b"\r\n", &[0; 12], b"c", &[0; 20], &code].concat()
}

#[test]
fn a_small_module_does_not_become_large_by_naming_one_thing_often() {
    // One tuple of one name many times, referred to by as many constants, and imported by as many instructions.
    let name = |kind: u8| [&[kind][..], &400_u32.to_le_bytes(), &[b'a'; 400]].concat();
    let shared = [&[b'(' | 0x80][..], &20_000_u32.to_le_bytes(), &b"r\0\0\0\0".repeat(20_000)].concat();
    let mut constants = [&b"("[..], &20_003_u32.to_le_bytes(), b"i\0\0\0\0", &name(b'A' | 0x80), &shared].concat();
    constants.extend(b"r\x01\0\0\0".repeat(20_000));
    let names = [&b")\x01"[..], &name(b'A')].concat();
    let bytecode = [100, 0, 100, 2, 108, 0].repeat(100_000);
    let module = Compiled::parse(&assembled(&constants, &names, &bytecode)).expect("a compiled module");
    let imports = module.imports.expect("a known version");
    assert!(!imports.is_empty() && imports.len() <= 4096);
    assert!(imports.iter().map(|import| import.module.len() + 400 * import.names.len()).sum::<usize>() < 64 << 20);
    // A name that no file has is none.
    let long = [b"A", &100_000_u32.to_le_bytes()[..], &[b'a'; 100_000]].concat();
    let module = assembled(b")\x02i\0\0\0\0N", &[&b")\x01"[..], &long].concat(), &[100, 0, 100, 1, 108, 0]);
    let imports = Compiled::parse(&module).and_then(|module| module.imports).expect("a known version");
    assert_eq!(imports, [import(0, "", &[])]);
}

proptest! {
    #[test]
    fn nothing_is_too_strange_to_be_looked_at(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        magic in prop::sample::select(vec![3413_u16, 3425, 3439, 3495, 3531, 3571, 3627]),
    ) {
        let file = [&magic.to_le_bytes()[..], b"\r\n", &[0; 12], &bytes].concat();
        Compiled::parse(&file);
        imports_of_source(&bytes);
    }

    #[test]
    fn damaged_modules_have_wrong_imports_or_none(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        end in any::<prop::sample::Index>(),
    ) {
        static MODULE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| compile(SOURCE, "TIMESTAMP"));
        let mut file = MODULE.clone();
        for (place, byte) in places {
            let place = place.index(file.len());
            file[place] = byte;
        }
        file.truncate(end.index(file.len()) + 1);
        Compiled::parse(&file);
    }
}

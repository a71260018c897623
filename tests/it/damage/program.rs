//! Damage as users meet it: exit codes, `EIO`, and what works again afterwards.

use std::fs;

use ocifs::demo::registry::Fault;

use super::{Files, end_daemon, files_below, flip, published, read_all};
use crate::support::{Built, Embedded, Ocifs, require_fuse, require_root};

/// The server of the tests that go through the program, and its image.
fn program() -> (Ocifs, Embedded, Files, Built) {
    let (content, built, files) = published();
    (Ocifs::new(), Embedded::start(content), files, built)
}

#[test]
fn a_mount_from_a_server_that_always_lies_is_exit_code_6_and_works_when_it_is_right_again() {
    if !require_fuse() || !require_root() {
        return;
    }
    let (ocifs, registry, files, built) = program();
    let point = ocifs.mount_point("m");
    let lying = built.layers[0].digest.to_string();
    registry.set_faults(move |asked| asked.path.ends_with(&lying).then_some(Fault::Corrupt { offset: 5000 }));
    let reference = registry.name("team/app:1.0");
    let dir = point.path().to_str().expect("a simple path");
    let ran = ocifs.run(["mount", "--fill=off", &reference, dir]);
    assert_eq!((ran.code(), ran.stdout.as_str()), (6, ""), "{}", ran.stderr);
    let start =
        format!("error: cannot mount {reference}\ncause: layer {} is rejected\ncause: ", built.layers[0].digest);
    assert!(ran.stderr.starts_with(&start), "{}", ran.stderr);
    assert!(!point.is_mounted());
    assert_eq!(ocifs.run(["list", "--json"]).ok().stdout, "[]\n");
    assert!(ocifs.run(["cache", "verify"]).ok().stdout.ends_with(" good, 0 damaged\n"));
    registry.clear_faults();
    ocifs.mount(&reference, &point);
    read_all(point.path(), &files).expect("it is right now");

    ocifs.umount(&point);
    ocifs.drop_bytes();
    // What the daemon has decoded and verified stays in its memory.
    end_daemon(&ocifs);
    ocifs.mount(&reference, &point);
    registry.set_faults(|asked| {
        // Every byte of every range, as far as one can tell from outside.
        asked
            .is_blob()
            .then(|| Fault::Many((0..2_000_000).step_by(50).map(|offset| Fault::Corrupt { offset }).collect()))
    });
    let error = read_all(point.path(), &files).expect_err("all of it is wrong");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    assert!(ocifs.run(["cache", "verify"]).ok().stdout.ends_with(" good, 0 damaged\n"));
    registry.clear_faults();
    read_all(point.path(), &files).expect("the same mount serves what is right now");
}

#[test]
fn a_mount_over_a_damaged_cache_is_right_with_the_registry_and_an_error_without() {
    if !require_fuse() || !require_root() {
        return;
    }
    let (ocifs, registry, files, _) = program();
    let point = ocifs.mount_point("m");
    let reference = registry.name("team/app:1.0");
    ocifs.mount(&reference, &point);
    ocifs.umount(&point);
    let damage = |part: &str| {
        for object in files_below(&ocifs.cache().join(part)) {
            let size = fs::metadata(&object).expect("it is there").len();
            for place in (0..size).step_by(997) {
                flip(&object, place, 0x10);
            }
        }
    };
    damage("blobs");
    let dir = point.path().to_str().expect("a simple path");
    ocifs.run(["mount", "--offline", &reference, dir]).ok();
    let error = read_all(point.path(), &files).expect_err("nothing is right, and nobody may be asked");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    ocifs.umount(&point);
    for part in ["blobs", "indexes", "trees", "refs", "manifests"] {
        damage(part);
    }
    ocifs.mount(&reference, &point);
    read_all(point.path(), &files).expect("the registry has it all");
    ocifs.umount(&point);
    assert!(ocifs.run(["cache", "verify"]).ok().stdout.ends_with(" good, 0 damaged\n"));
    damage("manifests");
    let ran = ocifs.run(["mount", "--offline", &reference, dir]);
    assert_eq!(ran.code(), 5, "{}", ran.stderr);
    assert!(ran.stderr.contains("\nhint: leave out --offline to fetch it\n") && !point.is_mounted(), "{}", ran.stderr);
}

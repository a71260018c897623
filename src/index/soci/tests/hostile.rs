//! zTOCs that lie, and bytes that are none.

use super::writer::{Checkpoint, Member, encode};
use super::*;

/// A layer, what SOCI says of it, and what that is read to.
struct Scene {
    blob: Vec<u8>,
    tar: Vec<u8>,
    ztoc: Ztoc,
}

fn scene() -> Scene {
    let tar = archive(&[300_000, 20], 11);
    let blob = gzip(&tar);
    let ztoc = gzip_ztoc(&blob, &tar, 60_000, true);
    Scene { blob, tar, ztoc }
}

impl Scene {
    fn refused(&self, spoil: impl FnOnce(&mut Ztoc)) -> String {
        let mut ztoc = self.ztoc.clone();
        spoil(&mut ztoc);
        let expected = expected(&self.blob, &self.tar);
        match claim(&expected, &ztoc.bytes()) {
            Err(refused) => refused.fault.to_string(),
            Ok(claim) => LayerIndex::claimed(&expected, claim).map(drop).expect_err("it is refused").to_string(),
        }
    }

    fn refused_member(&self, spoil: impl FnOnce(&mut Member)) -> String {
        self.refused(|ztoc| spoil(&mut ztoc.members[1]))
    }

    fn refused_points(&self, spoil: impl FnOnce(&mut Vec<Checkpoint>)) -> String {
        let mut points = checkpoints(&self.blob, 60_000);
        assert!(points.len() > 3);
        spoil(&mut points);
        self.refused(|ztoc| ztoc.checkpoints = encode(points.len() as i32, 60_000, &points))
    }
}

#[test]
fn d_017_sizes_and_checkpoints_that_are_not_those_of_the_layer_are_refused() {
    let scene = scene();
    assert_eq!(scene.refused(|ztoc| ztoc.version = "0.8".to_owned()), "it has a version other than 0.9");
    let size = "it speaks of a layer of another size";
    assert_eq!(scene.refused(|ztoc| ztoc.compressed += 1), size);
    assert_eq!(scene.refused(|ztoc| ztoc.compressed = -1), size);
    assert_eq!(scene.refused(|ztoc| ztoc.uncompressed = 0), size);
    assert_eq!(scene.refused(|ztoc| ztoc.uncompressed = i64::MIN), size);
    assert_eq!(scene.refused(|ztoc| ztoc.algorithm = 3), "its compression is not known");
    let digests = "it has not as many digests as spans";
    assert_eq!(scene.refused(|ztoc| ztoc.last_span += 1), digests);
    assert_eq!(scene.refused(|ztoc| ztoc.last_span = i32::MAX), digests);
    assert_eq!(scene.refused(|ztoc| ztoc.last_span = i32::MIN), digests);
    assert_eq!(scene.refused(|ztoc| drop(ztoc.digests.pop())), digests);
    let sha = "a span's digest is no SHA-256";
    assert_eq!(scene.refused(|ztoc| ztoc.digests[0] = "sha256:00".to_owned()), sha);
    assert_eq!(scene.refused(|ztoc| ztoc.digests[0] = Digest::of(crate::oci::Algorithm::Sha512, b"").to_string()), sha);
    let count = "it has not as many checkpoints as spans";
    assert_eq!(scene.refused_points(|points| drop(points.pop())), count);
    assert_eq!(scene.refused(|ztoc| ztoc.checkpoints.truncate(11)), "its checkpoints have another length");
    assert_eq!(
        scene.refused(|ztoc| ztoc.checkpoints.truncate(ztoc.checkpoints.len() - 1)),
        "its checkpoints have another length"
    );
    assert_eq!(scene.refused(|ztoc| ztoc.checkpoints.push(0)), "its checkpoints have another length");
    assert_eq!(scene.refused(|ztoc| ztoc.checkpoints[..4].fill(0xff)), count);
    let order = "its checkpoints are not in order";
    assert_eq!(scene.refused_points(|points| points.swap(1, 2)), order);
    assert_eq!(scene.refused_points(|points| points[2].output = points[1].output), order);
    assert_eq!(scene.refused_points(|points| points[2].input = i64::MAX), order);
    assert_eq!(scene.refused_points(|points| points[2].output = i64::MAX), order);
    assert_eq!(scene.refused_points(|points| points[2].bits = 8), order);
    assert_eq!(scene.refused_points(|points| points[2].input = -1), "a checkpoint is negative");
    let first = "its first checkpoint is not at the beginning";
    assert_eq!(scene.refused_points(|points| points[0].input = 9), first);
    assert_eq!(scene.refused_points(|points| points[0].output = 1), first);
    assert_eq!(scene.refused_points(|points| points[0].bits = 3), first);
}

#[test]
fn d_018_members_out_of_order_or_out_of_the_archive_are_refused() {
    let scene = scene();
    let place = |name: &str| format!("\"{name}\": its bytes are not where a member's can be");
    let name = String::from_utf8(scene.ztoc.members[1].name.clone()).expect("text");
    for (offset, size) in [(-1, 1), (0, 1), (512, 1), (1537, 1), (i64::MAX, i64::MAX), (1536, -1), (1536, i64::MAX)] {
        let refused = scene.refused_member(|member| (member.offset, member.size) = (offset, size));
        assert_eq!(refused, place(&name), "{offset} {size}");
    }
    // Longer by the next headers: what a tool that does not know sparse files writes.
    let next = String::from_utf8(scene.ztoc.members[2].name.clone()).expect("text");
    assert_eq!(scene.refused_member(|member| member.size += 1536), place(&next));
    assert_eq!(scene.refused(|ztoc| ztoc.members.swap(1, 2)), place(&name));
    let last = scene.ztoc.members.len() - 1;
    let refused = scene.refused(|ztoc| ztoc.members[last].size = 1 << 20);
    assert!(refused.contains("its bytes are not where"), "{refused}");
}

#[test]
fn d_019_d_020_members_are_held_to_the_rules_of_members() {
    let scene = scene();
    let member = |spoil: fn(&mut Member)| {
        let told = scene.refused_member(spoil);
        told.rsplit_once("\": ").map(|(_, what)| what.to_owned()).unwrap_or(told)
    };
    assert_eq!(member(|member| member.kind = "chunk"), "it has bytes, and is no file");
    assert_eq!(member(|member| (member.kind, member.size) = ("chunk", 0)), "it is of no known type");
    assert_eq!(member(|member| member.time = "yesterday".to_owned()), "its time is malformed");
    assert_eq!(member(|member| member.name = b"a\0b".to_vec()), "NUL byte in a name");
    assert_eq!(member(|member| member.name = vec![b'a'; 256]), "name component longer than 255 bytes");
    assert_eq!(member(|member| member.name = b"..".to_vec()), "the root is not a directory");
    let link = |kind, target: &[u8]| {
        scene.refused_member(|member| (member.kind, member.size, member.link) = (kind, 0, target.to_vec()))
    };
    assert!(link("hardlink", b"../..").ends_with("link without a target"));
    assert!(link("symlink", b"").ends_with("link without a target"));
    let itself = scene.ztoc.members[1].name.clone();
    assert!(link("hardlink", &itself).ends_with("it is a link to itself"));
    let sparse = scene.refused_member(|member| member.xattrs.push((b"GNU.sparse.major".to_vec(), b"1".to_vec())));
    assert!(sparse.ends_with("it is a sparse file, whose holes are not described"), "{sparse}");
    let xattr = |member: &mut Member| member.xattrs.push((b"SCHILY.xattr.user.x".to_vec(), vec![0; 1 << 17]));
    assert!(scene.refused_member(xattr).ends_with("extended attributes exceed the kernel's limits"));
}

#[test]
fn names_that_leave_the_root_stay_in_it() {
    let scene = scene();
    let mut ztoc = scene.ztoc.clone();
    ztoc.members[1].name = b"../../etc//./shadow".to_vec();
    let claim = claim(&expected(&scene.blob, &scene.tar), &ztoc.bytes()).expect("it is cleaned");
    assert_eq!(claim.entries[1].path, b"etc/shadow");
}

#[test]
fn a_layer_of_several_members_that_is_one_span_is_refused() {
    let tar = archive(&[17 << 20], 12);
    let blob = members(&tar, 9 << 20);
    let scene = Scene { ztoc: gzip_ztoc(&blob, &tar, 4 << 20, true), blob, tar };
    let refused = scene.refused(|ztoc| {
        let first = &checkpoints(&scene.blob, 4 << 20)[..1];
        (ztoc.last_span, ztoc.checkpoints) = (0, encode(1, 4 << 20, first));
        ztoc.digests.truncate(1);
    });
    assert_eq!(refused, "it has only one span: its writer did not know several gzip members");
    let tar = archive(&[65 << 20], 13);
    let ztoc = tar_ztoc(&tar, 65 << 20);
    let refused = Scene { blob: tar.clone(), tar, ztoc }.refused(|_| ());
    assert_eq!(refused, "a span is too long to be worth it");
}

#[test]
fn a_short_buffer_that_is_long_on_the_inside_is_refused() {
    let scene = scene();
    let mut ztoc = scene.ztoc.clone();
    // Many members that all have the same extended attributes, which the builder would write each time.
    let bytes = {
        ztoc.members.truncate(1);
        ztoc.bytes()
    };
    let buffer = flat::Buffer::new(&bytes);
    let version = |_| buffer.root().and_then(|root| root.bytes(4)).is_ok();
    assert_eq!((0..bytes.len() * 4).take_while(|number| version(*number)).count(), bytes.len() * 4 / 3);
}

/// Reads whatever it is, and uses it as far as it goes.
fn use_it(scene: &Scene, bytes: &[u8]) -> bool {
    let expected = expected(&scene.blob, &scene.tar);
    let Ok(claim) = claim(&expected, bytes) else { return false };
    let Ok(index) = LayerIndex::claimed(&expected, claim) else { return false };
    assert!(index.entries().all(|entry| entry.is_ok()));
    for span in index.span_ids() {
        let range = index.compressed(span);
        let bytes = &scene.blob[range.start as usize..range.end as usize];
        // Whatever it says, it is an answer.
        index.decode(span, bytes).ok();
    }
    true
}

fn shared() -> &'static (Scene, Vec<u8>) {
    static SCENE: std::sync::OnceLock<(Scene, Vec<u8>)> = std::sync::OnceLock::new();
    SCENE.get_or_init(|| {
        let scene = scene();
        let bytes = scene.ztoc.bytes();
        (scene, bytes)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn changed_and_shortened_ztocs_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        offset in prop::option::of((any::<prop::sample::Index>(), any::<u32>())),
        cut in prop::option::of(any::<prop::sample::Index>()),
        tables: bool,
    ) {
        let (scene, bytes) = shared();
        let mut bytes = bytes.clone();
        // The windows are most of it, and what else there is lies at the ends.
        let windows = 6 * 33_000;
        let place = |index: &prop::sample::Index, length: usize| match index.index(length) {
            at if tables && at > 2000 => length - 1 - at % length.saturating_sub(windows).max(1),
            at => at,
        };
        for (index, byte) in changes {
            let at = place(&index, bytes.len());
            bytes[at] = byte;
        }
        if let Some((index, value)) = offset {
            let at = place(&index, bytes.len() - 4);
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        use_it(scene, &bytes);
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(!use_it(&shared().0, &bytes));
    }
}

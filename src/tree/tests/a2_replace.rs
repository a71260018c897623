//! A2: what takes the place of what.

use super::*;

#[test]
fn a_041_a_042_file_and_directory_replace_each_other() {
    assert_eq!(paths(&merged(&[&[file("d/x", 1)], &[file("d", 2)]])), "d@1.2");
    assert_eq!(paths(&merged(&[&[file("d", 1)], &[dir("d", 0o755), file("d/x", 2)]])), "d/ d/x@1.2");
}

#[test]
fn a_043_a_directory_entry_replaces_a_link_to_a_directory() {
    let below = [file("r/q", 1), symlink("l", "r")];
    assert_eq!(paths(&merged(&[&below, &[dir("l", 0o755)]])), "l/ r/ r/q@0.1");
}

#[test]
fn a_044_a_link_replaces_a_directory() {
    assert_eq!(paths(&merged(&[&[file("l/q", 1), dir("r", 0o755)], &[symlink("l", "r")]])), "l->r r/");
}

#[test]
fn a_045_a_file_replaces_a_link_and_not_its_target() {
    assert_eq!(paths(&merged(&[&[file("t", 1), symlink("l", "t")], &[file("l", 2)]])), "l@1.2 t@0.1");
}

#[test]
fn a_046_every_type_replaces_every_other() {
    let all = || [file("n", 1), symlink("n", "t"), fifo("n"), device("n", 1, 3), dir("n", 0o755)];
    let shown = ["n@1.1", "n->t", "n|", "n#1:3", "n/"];
    for lower in all() {
        for (upper, shown) in all().into_iter().zip(shown) {
            let tree = merged(&[std::slice::from_ref(&lower), &[upper]]);
            assert_eq!((paths(&tree).as_str(), tree.node_count()), (shown, 2));
        }
    }
}

#[test]
fn a_047_directory_over_directory_replaces_all_attributes_and_keeps_children() {
    let below = Entry { uid: 1, ..xattr(dir("d", 0o700), "user.a", "1") };
    let above = Entry { uid: 2, ..xattr(dir("d", 0o755), "user.b", "2") };
    let tree = merged(&[&[below, file("d/x", 1)], &[above]]);
    let d = node(&tree, "d");
    assert_eq!((paths(&tree).as_str(), d.mode(), d.uid()), ("d/ d/x@0.1", 0o755, 2));
    assert_eq!(d.xattrs().collect::<Vec<_>>(), [(b"user.b".as_slice(), b"2".as_slice())]);
}

#[test]
fn a_048_replacing_one_name_leaves_the_other_with_the_old_inode() {
    let tree = merged(&[&[file("a", 1), hard_link("b", "a")], &[Entry { mode: 0o600, ..file("a", 2) }]]);
    assert_eq!(paths(&tree), "a@1.2 b@0.1");
    let (a, b) = (node(&tree, "a"), node(&tree, "b"));
    assert_eq!((a.mode(), a.nlink(), b.mode(), b.nlink()), (0o600, 1, 0o644, 1));
}

#[test]
fn a_049_a_114_the_last_duplicate_wins() {
    assert_eq!(paths(&merged(&[&[file("f", 1), file("f", 2)]])), "f@0.2");
}

#[test]
fn a_050_the_last_attributes_of_a_directory_win() {
    let tree = merged(&[&[dir("d", 0o755), file("d/x", 1), dir("d", 0o700)]]);
    assert_eq!((paths(&tree).as_str(), node(&tree, "d").mode()), ("d/ d/x@0.1", 0o700));
}

#[test]
fn a_051_entries_below_a_link_to_the_root_stay_inside() {
    let layer =
        [file("foo/tmp/b", 1), symlink("foo", "/"), file("foo/tmp/b", 2), dir("foo", 0o755), file("foo/tmp/b", 3)];
    assert_eq!(paths(&merged(&[&layer])), "foo/ foo/tmp/ foo/tmp/b@0.3 tmp/ tmp/b@0.2");
}

#[test]
fn a_052_a_file_that_was_a_directory_has_no_ghosts() {
    let tree = merged(&[&[file("f", 1), dir("f", 0o755), file("f/x", 2), file("f", 3)]]);
    assert_eq!((paths(&tree).as_str(), tree.node_count()), ("f@0.3", 2));
}

#[test]
fn a_053_names_are_compared_as_bytes() {
    let tree = merged(&[&[file("File", 1), file("file", 2), file("\u{e9}", 3), file("e\u{301}", 4)]]);
    assert_eq!(tree.children(NodeId::ROOT, 0).count(), 4);
}

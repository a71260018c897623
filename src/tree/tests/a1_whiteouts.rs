//! A1: whiteouts and opaque markers.

use super::*;

#[test]
fn a_001_a_whiteout_hides_a_file() {
    let tree = merged(&[&[file("f", 1), file("g", 2)], &[whiteout("f")]]);
    assert_eq!(paths(&tree), "g@0.2");
    assert_eq!(tree.lookup(NodeId::ROOT, b"f"), None);
    assert_eq!(tree.lookup(NodeId::ROOT, b".wh.f"), None);
}

#[test]
fn a_002_a_whiteout_hides_a_whole_subtree() {
    let tree = merged(&[&[dir("d", 0o755), file("d/x", 1), file("d/e/y", 2)], &[whiteout("d")]]);
    assert_eq!((paths(&tree).as_str(), tree.node_count()), ("", 1));
}

#[test]
fn a_003_a_whiteout_leaves_its_directory_as_it_was() {
    let below = Entry { uid: 4, mtime: Timestamp { seconds: 50, nanos: 1 }, ..dir("d", 0o700) };
    let tree = merged(&[&[below, file("d/x", 1)], &[whiteout("d/x")]]);
    let d = node(&tree, "d");
    assert_eq!((paths(&tree).as_str(), d.mode(), d.uid(), d.mtime().seconds), ("d/", 0o700, 4, 50));
}

#[test]
fn a_004_a_hidden_file_can_come_back() {
    assert_eq!(paths(&merged(&[&[file("f", 1)], &[whiteout("f")], &[file("f", 3)]])), "f@2.3");
}

#[test]
fn a_005_a_007_a_whiteout_of_nothing_does_nothing() {
    assert_eq!(paths(&merged(&[&[whiteout("x"), file("f", 1)], &[whiteout("zzz")]])), "f@0.1");
}

#[test]
fn a_006_a_whiteout_hides_exactly_its_name() {
    let below = [file("foo", 1), file("foobar", 2), file("foo.d/x", 3)];
    assert_eq!(paths(&merged(&[&below, &[whiteout("foo")]])), "foo.d/ foo.d/x@0.3 foobar@0.2");
}

#[test]
fn a_008_a_026_markers_never_create_directories() {
    let layers: [&[Entry]; 2] = [&[dir("d", 0o755)], &[whiteout("x/y/z"), opaque("n"), opaque("n/m")]];
    assert_eq!(paths(&merged(&layers)), "d/");
}

#[test]
fn a_009_a_010_what_a_layer_adds_survives_its_own_whiteout_in_any_order() {
    assert_eq!(paths(&merged(&[&[file("f", 1)], &[whiteout("f"), file("f", 2)]])), "f@1.2");
    assert_eq!(paths(&merged(&[&[file("f", 1)], &[file("f", 2), whiteout("f")]])), "f@1.2");
}

#[test]
fn a_011_a_whiteout_may_come_twice() {
    assert_eq!(paths(&merged(&[&[file("f", 1)], &[whiteout("f"), whiteout("f")]])), "");
}

#[test]
fn a_012_whiteout_then_directory_hides_lower_children() {
    let upper = [whiteout("d"), dir("d", 0o755), file("d/y", 2)];
    assert_eq!(paths(&merged(&[&[dir("d", 0o755), file("d/x", 1)], &upper])), "d/ d/y@1.2");
}

#[test]
fn a_013_directory_then_whiteout_hides_lower_children() {
    let upper = [dir("d", 0o755), file("d/y", 2), whiteout("d")];
    assert_eq!(paths(&merged(&[&[dir("d", 0o755), file("d/x", 1)], &upper])), "d/ d/y@1.2");
}

#[test]
fn a_014_a_directory_implied_after_its_whiteout_is_new() {
    let tree = merged(&[&[dir("d", 0o700), file("d/x", 1)], &[whiteout("d"), file("d/y", 2)]]);
    assert_eq!((paths(&tree).as_str(), node(&tree, "d").mode()), ("d/ d/y@1.2", 0o755));
}

#[test]
fn a_015_a_016_whiteouts_of_a_directory_and_of_its_child_agree_in_any_order() {
    assert_eq!(paths(&merged(&[&[file("foo/bar", 1)], &[whiteout("foo"), whiteout("foo/bar")]])), "");
    assert_eq!(paths(&merged(&[&[file("foo/bar", 1)], &[whiteout("foo/bar"), whiteout("foo")]])), "");
}

#[test]
fn a_017_a_018_markers_reach_through_links_in_their_parent() {
    let below = [file("etc/x", 1), symlink("loc", "/etc")];
    assert_eq!(paths(&merged(&[&below, &[whiteout("loc/x")]])), "etc/ loc->/etc");
    assert_eq!(paths(&merged(&[&below, &[opaque("loc")]])), "etc/ loc->/etc");
}

#[test]
fn a_019_a_whiteout_of_a_link_hides_only_the_link() {
    assert_eq!(paths(&merged(&[&[file("etc/x", 1), symlink("loc", "/etc")], &[whiteout("loc")]])), "etc/ etc/x@0.1");
}

#[test]
fn a_020_a_whiteout_below_a_dead_link_does_nothing() {
    let below = [file("etc/x", 1), symlink("loc", "/dne")];
    assert_eq!(paths(&merged(&[&below, &[whiteout("loc/etc")]])), "etc/ etc/x@0.1 loc->/dne");
}

#[test]
fn a_022_a_023_an_opaque_marker_hides_lower_children_in_any_order() {
    let below = [file("d/x", 1), file("d/e/y", 2)];
    let first = [dir("d", 0o711), opaque("d"), file("d/n", 3)];
    let tree = merged(&[&below, &first]);
    assert_eq!((paths(&tree).as_str(), node(&tree, "d").mode()), ("d/ d/n@1.3", 0o711));
    let last = [dir("d", 0o711), file("d/n", 3), dir("d/e", 0o700), opaque("d")];
    let tree = merged(&[&below, &last]);
    assert_eq!((paths(&tree).as_str(), node(&tree, "d/e").mode()), ("d/ d/e/ d/n@1.3", 0o700));
}

#[test]
fn a_024_directories_above_what_a_layer_adds_survive_its_opaque_marker() {
    let below = [file("a/old", 1), file("a/b/old", 2)];
    assert_eq!(paths(&merged(&[&below, &[file("a/b/c/foo", 3), opaque("a")]])), "a/ a/b/ a/b/c/ a/b/c/foo@1.3");
}

#[test]
fn a_025_an_opaque_marker_leaves_its_directory_as_it_was() {
    let tree = merged(&[&[dir("d", 0o700), file("d/x", 1)], &[opaque("d")]]);
    assert_eq!((paths(&tree).as_str(), node(&tree, "d").mode()), ("d/", 0o700));
}

#[test]
fn a_027_the_root_can_be_opaque() {
    assert_eq!(paths(&merged(&[&[file("e/f", 1), file("g", 2)], &[opaque(""), file("h", 3)]])), "h@1.3");
}

#[test]
fn a_028_opaque_marker_whiteout_and_new_file_agree() {
    let upper = [opaque("d"), whiteout("d/x"), file("d/x", 2)];
    assert_eq!(paths(&merged(&[&[file("d/x", 1)], &upper])), "d/ d/x@1.2");
}

#[test]
fn a_029_the_layer_above_an_opaque_marker_adds_to_it() {
    let layers: [&[Entry]; 3] = [&[file("d/a", 1)], &[opaque("d"), file("d/b", 2)], &[file("d/c", 3)]];
    assert_eq!(paths(&merged(&layers)), "d/ d/b@1.2 d/c@2.3");
}

#[test]
fn a_030_an_opaque_marker_does_nothing_to_a_file() {
    assert_eq!(paths(&merged(&[&[file("d", 1)], &[opaque("d"), whiteout("d/x")]])), "d@0.1");
}

#[test]
fn a_033_a_whiteout_hides_a_dot_file() {
    assert_eq!(paths(&merged(&[&[file(".baz", 1), file("baz", 2)], &[whiteout(".baz")]])), "baz@0.2");
}

#[test]
fn a_035_aufs_metadata_is_hidden_and_links_from_it_stay() {
    let layer = [file(".wh..wh.plnk/1.2", 1), hard_link("x", ".wh..wh.plnk/1.2"), file("d/.wh..wh.plnk/1", 2)];
    let tree = merged(&[&layer, &[dir("e", 0o755)]]);
    assert_eq!(paths(&tree), "d/ d/.wh..wh.plnk/ d/.wh..wh.plnk/1@0.2 e/ x@0.1");
    assert_eq!(node(&tree, "x").nlink(), 1);
}

#[test]
fn a_036_the_prefix_counts_only_in_the_last_component() {
    let below = [file("etc/some", 1)];
    assert_eq!(paths(&merged(&[&below, &[file(".wh.etc/some", 2)]])), ".wh.etc/ .wh.etc/some@1.2 etc/ etc/some@0.1");
}

#[test]
fn a_038_a_whiteout_of_one_name_leaves_the_others() {
    let tree = merged(&[&[file("a", 1), hard_link("b", "a")], &[whiteout("a")]]);
    assert_eq!((paths(&tree).as_str(), node(&tree, "b").nlink()), ("b@0.1", 1));
}

#[test]
fn a_039_a_file_can_take_the_place_of_a_hidden_directory() {
    let below = [dir("d", 0o755), file("d/x", 1)];
    assert_eq!(paths(&merged(&[&below, &[whiteout("d"), file("d", 2)]])), "d@1.2");
}

#[test]
fn a_040_hiding_a_link_does_not_bring_back_what_it_replaced() {
    let layers: [&[Entry]; 3] = [&[file("d/x", 1)], &[symlink("d", "e")], &[whiteout("d")]];
    assert_eq!(paths(&merged(&layers)), "");
}

#[test]
fn a_whiteout_of_the_root_is_rejected() {
    assert_eq!(rejected(&[&[whiteout("")]]), (String::new(), Reason::RootNotDirectory));
}

//! A4: hard links.

use super::*;

fn same(tree: &Tree, one: &str, other: &str) -> bool {
    find(tree, one) == find(tree, other)
}

#[test]
fn a_080_a_link_to_a_lower_file_shares_its_inode() {
    let tree = merged(&[&[file("a", 1)], &[hard_link("b", "a")]]);
    assert_eq!((paths(&tree).as_str(), node(&tree, "a").nlink()), ("a@0.1 b@0.1", 2));
    assert!(same(&tree, "a", "b"));
}

#[test]
fn a_081_a_link_keeps_the_old_content_when_its_target_is_replaced_later() {
    assert_eq!(paths(&merged(&[&[file("a", 1)], &[hard_link("b", "a"), file("a", 2)]])), "a@1.2 b@0.1");
}

#[test]
fn a_082_a_link_to_a_hidden_file_is_rejected() {
    let layers: [&[Entry]; 2] = [&[file("a", 1)], &[whiteout("a"), hard_link("b", "a")]];
    assert_eq!(rejected(&layers), ("b".to_owned(), Reason::LinkTargetMissing("a".to_owned())));
}

#[test]
fn a_083_a_link_survives_the_whiteout_of_its_target() {
    let tree = merged(&[&[file("a", 1)], &[hard_link("b", "a"), whiteout("a")]]);
    assert_eq!((paths(&tree).as_str(), node(&tree, "b").nlink()), ("b@0.1", 1));
}

#[test]
fn a_084_links_in_the_parent_of_the_target_are_followed() {
    let tree = merged(&[&[file("etc/passwd", 1), symlink("l", "etc"), hard_link("b", "l/passwd")]]);
    assert!(same(&tree, "b", "etc/passwd"));
}

#[test]
fn a_085_a_link_before_its_target_is_rejected() {
    assert!(matches!(rejected(&[&[hard_link("h", "a"), file("a", 1)]]).1, Reason::LinkTargetMissing(_)));
    assert!(matches!(rejected(&[&[hard_link("h", "x/y/a")]]).1, Reason::LinkTargetMissing(_)));
}

#[test]
fn a_086_a_link_to_a_symbolic_link_is_that_link() {
    let tree = merged(&[&[file("a", 1), symlink("s", "a"), hard_link("h", "s")]]);
    assert_eq!(paths(&tree), "a@0.1 h->a s->a");
    assert!(same(&tree, "h", "s") && !same(&tree, "h", "a"));
}

#[test]
fn a_087_the_metadata_of_a_link_header_is_ignored() {
    let link = Entry { mode: 0o600, uid: 9, ..xattr(hard_link("b", "a"), "user.a", "1") };
    let tree = merged(&[&[file("a", 1), link]]);
    let b = node(&tree, "b");
    assert_eq!((b.mode(), b.uid(), b.xattrs().count()), (0o644, 0, 0));
}

#[test]
fn a_088_a_link_to_itself_is_rejected() {
    assert!(matches!(rejected(&[&[file("a", 1), hard_link("a", "a")]]).1, Reason::LinkTargetMissing(_)));
}

#[test]
fn a_088_a_link_in_place_of_its_targets_directory_is_rejected() {
    assert!(matches!(rejected(&[&[file("d/a", 1), hard_link("d", "d/a")]]).1, Reason::LinkTargetMissing(_)));
}

#[test]
fn a_089_a_link_to_a_directory_is_rejected() {
    let reason = rejected(&[&[dir("d", 0o755), hard_link("b", "d")]]).1;
    assert_eq!(reason, Reason::LinkToDirectory("d".to_owned()));
    assert!(matches!(rejected(&[&[hard_link("b", "")]]).1, Reason::LinkToDirectory(_)));
}

#[test]
fn a_091_a_chain_of_links_is_one_inode() {
    let layer = [file("a", 1), hard_link("b", "a"), hard_link("c", "b"), hard_link("d", "c")];
    let tree = merged(&[&layer]);
    assert_eq!((node(&tree, "a").nlink(), tree.node_count()), (4, 2));
}

#[test]
fn a_094_fifos_and_devices_can_be_linked() {
    let tree = merged(&[&[fifo("p"), device("c", 1, 3), hard_link("q", "p"), hard_link("d", "c")]]);
    assert_eq!(paths(&tree), "c#1:3 d#1:3 p| q|");
    assert!(same(&tree, "p", "q") && same(&tree, "c", "d"));
}

#[test]
fn a_095_d_004_a_link_to_a_link_that_leaves_the_root_touches_nothing() {
    let layer = [symlink("ep", "/host/file"), Entry { mode: 0o4777, ..hard_link("x", "ep") }];
    assert_eq!(paths(&merged(&[&layer])), "ep->/host/file x->/host/file");
}

#[test]
fn a_200_nlink_is_the_number_of_names_in_the_merged_tree() {
    let links = [file("a", 1), hard_link("b", "a"), hard_link("d/c", "a")];
    let tree = merged(&[&links, &[whiteout("d")], &[hard_link("e", "b"), file("b", 2)]]);
    assert_eq!((paths(&tree).as_str(), node(&tree, "a").nlink()), ("a@0.1 b@2.2 e@0.1", 2));
}

//! A3: where entries go: implied directories and links in parents.

use super::*;

fn usr_merge() -> [Entry; 2] {
    [dir("usr/bin", 0o711), symlink("bin", "usr/bin")]
}

#[test]
fn a_060_an_entry_below_a_linked_directory_goes_to_its_target() {
    let tree = merged(&[&usr_merge(), &[file("bin/foo", 1)]]);
    assert_eq!(paths(&tree), "bin->usr/bin usr/ usr/bin/ usr/bin/foo@1.1");
    assert_eq!(node(&tree, "usr/bin").mode(), 0o711);
}

#[test]
fn a_061_a_directory_entry_for_the_link_makes_a_directory() {
    let tree = merged(&[&usr_merge(), &[dir("bin", 0o755), file("bin/foo", 1)]]);
    assert_eq!(paths(&tree), "bin/ bin/foo@1.1 usr/ usr/bin/");
}

#[test]
fn a_062_the_missing_target_of_a_linked_parent_is_implied() {
    let tree = merged(&[&[symlink("lib64", "usr/lib64")], &[file("lib64/x", 1)]]);
    assert_eq!(paths(&tree), "lib64->usr/lib64 usr/ usr/lib64/ usr/lib64/x@1.1");
}

#[test]
fn a_063_a_file_that_a_linked_parent_leads_to_becomes_a_directory() {
    let tree = merged(&[&[file("t", 1), symlink("l", "t")], &[file("l/x", 2)]]);
    assert_eq!(paths(&tree), "l->t t/ t/x@1.2");
}

#[test]
fn a_064_a_065_a_file_in_the_way_becomes_a_directory() {
    assert_eq!(paths(&merged(&[&[file("a", 1)], &[file("a/b", 2)]])), "a/ a/b@1.2");
    let tree = merged(&[&[file("nondir", 1), file("nondir/foo/bar/baz", 2)]]);
    assert_eq!(paths(&tree), "nondir/ nondir/foo/ nondir/foo/bar/ nondir/foo/bar/baz@0.2");
}

#[test]
fn a_066_links_count_as_they_are_when_the_entry_comes() {
    let layer = [file("l/x", 1), dir("r", 0o755), symlink("l", "r"), file("l/y", 2)];
    assert_eq!(paths(&merged(&[&layer])), "l->r r/ r/y@0.2");
}

#[test]
fn a_066_a_link_that_appears_beside_the_way_changes_where_the_way_leads() {
    let layer = [
        dir("t", 0o755),
        symlink("l", "n/../t"),
        file("l/x", 1),
        dir("q/r", 0o755),
        symlink("n", "q/r"),
        file("l/y", 2),
    ];
    assert_eq!(paths(&merged(&[&layer])), "l->n/../t n->q/r q/ q/r/ q/t/ q/t/y@0.2 t/ t/x@0.1");
}

#[test]
fn a_067_links_above_the_root_stay_at_the_root() {
    let tree = merged(&[&[dir("etc", 0o755), symlink("l", "/../../../etc")], &[file("l/x", 1)]]);
    assert_eq!(paths(&tree), "etc/ etc/x@1.1 l->/../../../etc");
}

#[test]
fn a_068_chains_of_links_are_followed() {
    let below = [dir("etc", 0o755), symlink("dummy/etc", "/etc"), symlink("loc", "/dummy/etc")];
    let tree = merged(&[&below, &[file("loc/f", 1)]]);
    assert_eq!(paths(&tree), "dummy/ dummy/etc->/etc etc/ etc/f@1.1 loc->/dummy/etc");
}

#[test]
fn a_069_a_loop_of_links_in_a_parent_is_rejected() {
    let layers: [&[Entry]; 2] = [&[symlink("a", "b"), symlink("b", "a")], &[file("a/x", 1)]];
    assert_eq!(rejected(&layers), ("a/x".to_owned(), Reason::TooManyLinks));
}

#[test]
fn a_069_exactly_255_links_are_followed() {
    let chain = |length: usize| -> Vec<Entry> {
        let links = (1..length).map(|i| symlink(&format!("l{i}"), &format!("l{}", i - 1)));
        let mut layer = vec![dir("d", 0o755), symlink("l0", "d")];
        layer.extend(links);
        layer.push(file(&format!("l{}/x", length - 1), 1));
        layer
    };
    assert!(paths(&merged(&[&chain(255)])).starts_with("d/ d/x@0.1 "));
    assert_eq!(rejected(&[&chain(256)]).1, Reason::TooManyLinks);
}

#[test]
fn a_070_targets_are_kept_verbatim() {
    let tree = merged(&[&[symlink("l", "/../..//etc/./x/")]]);
    assert_eq!(node(&tree, "l").target(), b"/../..//etc/./x/");
}

#[test]
fn a_072_a_073_implied_directories_are_0755_root_epoch() {
    let tree = merged(&[&[file("a/b/c/f", 1)]]);
    for path in ["", "a", "a/b", "a/b/c"] {
        let node = node(&tree, path);
        let owner = (node.uid(), node.gid(), node.xattrs().count());
        assert_eq!((node.mode(), owner, node.mtime()), (0o755, (0, 0, 0), Timestamp::default()), "{path}");
    }
}

#[test]
fn a_074_adding_below_a_directory_leaves_it_as_it_was() {
    let below = Entry { uid: 9, mtime: Timestamp { seconds: 50, nanos: 0 }, ..dir("p", 0o700) };
    let tree = merged(&[&[below], &[file("p/x", 1)]]);
    let p = node(&tree, "p");
    assert_eq!((p.mode(), p.uid(), p.mtime().seconds), (0o700, 9, 50));
}

#[test]
fn a_075_an_entry_for_an_implied_directory_gives_it_its_attributes() {
    let tree = merged(&[&[file("p/x", 1), dir("p", 0o700)]]);
    assert_eq!((paths(&tree).as_str(), node(&tree, "p").mode()), ("p/ p/x@0.1", 0o700));
}

#[test]
fn a_076_the_root_takes_the_attributes_of_its_entry() {
    let tree = merged(&[&[file("x", 1)], &[Entry { uid: 5, ..dir("", 0o700) }]]);
    let root = tree.node(NodeId::ROOT);
    assert_eq!((root.mode(), root.uid(), root.mtime().seconds), (0o700, 5, 7));
    assert_eq!((paths(&tree).as_str(), root.parent()), ("x@0.1", NodeId::ROOT));
}

#[test]
fn a_077_d_002_the_root_cannot_become_something_else() {
    for entry in [symlink("", "/etc"), file("", 1), hard_link("", "x"), fifo("")] {
        assert_eq!(rejected(&[&[file("x", 1), entry]]).1, Reason::RootNotDirectory);
    }
}

#[test]
fn d_001_paths_that_are_not_clean_are_rejected() {
    for path in ["../x", "a/../b", "./a", "a//b", "/a", "a/", "a/.", "a\0b"] {
        assert_eq!(rejected(&[&[file(path, 1)]]).1, Reason::Malformed, "{path:?}");
    }
}

#[test]
fn a_110_names_from_link_targets_are_held_to_255_bytes() {
    let name = "n".repeat(255);
    assert!(try_merge(&[&[symlink("l", &name), file("l/x", 1)]]).is_ok());
    assert_eq!(rejected(&[&[symlink("l", &format!("{name}n")), file("l/x", 1)]]).1, Reason::NameTooLong);
}

#[test]
fn d_015_depth_costs_no_stack() {
    let deep = ["d"; 100_000].join("/");
    let below = [dir(&deep, 0o700), file("x", 1)];
    let mut merger = Merger::new();
    merger.layer::<Error>(None, below.clone().into_iter().map(Ok)).expect("depth is no error");
    let tree = Tree::open(merger.finish().into()).expect("just made");
    assert_eq!((tree.node_count(), node(&tree, &deep).mode()), (100_002, 0o700));
    assert_eq!(paths(&merged(&[&below, &[whiteout("d")]])), "x@0.1");
}

#[test]
fn a_171_an_entry_one_deeper_than_the_last_costs_one_step() {
    let mut path = String::new();
    let mut merger = Merger::with_limits(limits::TREE_NAMES, 10_000);
    let entries = (0..2000).map(|_| {
        path.push_str(if path.is_empty() { "d" } else { "/d" });
        Ok::<_, Error>(dir(&path, 0o755))
    });
    merger.layer(None, entries).expect("two million steps would be too many");
    assert_eq!(Tree::open(merger.finish().into()).expect("just made").node_count(), 2001);
}

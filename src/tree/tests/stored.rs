//! The stored form: look-ups, what stat shows, determinism, damage and limits.

use proptest::prelude::*;

use super::*;

/// A tree with something of everything.
fn rich() -> Vec<u8> {
    let segments = vec![
        Segment { file_offset: 0, layer_offset: 512, length: 100 },
        Segment { file_offset: 4096, layer_offset: 612, length: 4 },
    ];
    let sparse = entry("d/sparse", Kind::Regular { size: 10_000, segments, content: None });
    let empty = entry("d/empty", Kind::Regular { size: 0, segments: Vec::new(), content: None });
    let hole = entry("d/hole", Kind::Regular { size: 1 << 62, segments: Vec::new(), content: None });
    let block = entry("dev/sda", Kind::BlockDevice { major: 8, minor: 1 });
    let layer = [
        xattr(dir("d", 0o1750), "user.a", ""),
        xattr(file("d/file", 3), "security.capability", "\u{1}"),
        sparse,
        empty,
        hole,
        block,
        symlink("link", "d/file"),
        symlink("loop", "loop"),
        fifo("p"),
        hard_link("again", "d/file"),
        dir("d/sub/sub", 0o755),
    ];
    let mut merger = Merger::new();
    merger.layer::<Error>(None, layer.into_iter().map(Ok)).expect("the layer is fine");
    merger.finish()
}

#[test]
fn equal_layers_give_equal_bytes_in_any_order_of_their_entries() {
    let layer = [file("b/y", 1), file("a", 2), xattr(file("c", 3), "user.x", "1"), dir("b", 0o755)];
    let mut reversed = layer.to_vec();
    reversed.reverse();
    let bytes = merged(&[&layer]).as_bytes().clone();
    assert_eq!(merged(&[&layer]).as_bytes(), &bytes);
    assert_eq!(merged(&[&reversed]).as_bytes(), &bytes);
    // What was replaced or hidden on the way leaves no trace.
    let busy: [&[Entry]; 3] = [&[file("zz/z", 9), symlink("a", "zz")], &[whiteout("zz")], &layer];
    let tree = merged(&busy);
    assert_eq!((tree.as_bytes().len(), tree.node_count()), (bytes.len(), 5));
}

#[test]
fn a_201_a_202_numbers_are_breadth_first_by_name_and_links_share_one() {
    let tree = merged(&[&[file("b/y", 1), file("a/x", 2), file("c", 3), hard_link("a/z", "c")]]);
    let numbers = ["", "a", "b", "c", "a/x", "a/z", "b/y"].map(|path| find(&tree, path).get());
    assert_eq!(numbers, [0, 1, 2, 3, 4, 3, 5]);
    assert_eq!((tree.id(5).map(NodeId::get), tree.id(6)), (Some(5), None));
}

#[test]
fn a_203_the_nlink_of_a_directory_counts_its_subdirectories() {
    let tree = merged(&[&[dir("a/b", 0o755), dir("a/c", 0o755), file("a/f", 1), symlink("a/l", "b")]]);
    assert_eq!(["", "a", "a/b"].map(|path| node(&tree, path).nlink()), [3, 4, 2]);
}

#[test]
fn a_204_every_attribute_comes_back() {
    let tree = Tree::open(rich().into()).expect("just made");
    let file = node(&tree, "d/file");
    assert_eq!((file.size(), file.nlink(), file.content()), (10, 2, Some(&[3; 32])));
    let capability = (b"security.capability".as_slice(), b"\x01".as_slice());
    assert_eq!(file.xattrs().collect::<Vec<_>>(), [capability]);
    assert_eq!(
        file.extents().next().map(|extent| (extent.layer, extent.layer_offset, extent.length)),
        Some((0, 3, 10))
    );
    assert_eq!(node(&tree, "d").xattrs().collect::<Vec<_>>(), [(b"user.a".as_slice(), b"".as_slice())]);
    let sparse: Vec<_> = node(&tree, "d/sparse").extents().map(|extent| (extent.file_offset, extent.length)).collect();
    assert_eq!(sparse, [(0, 100), (4096, 4)]);
    assert_eq!((node(&tree, "d/empty").extents().count(), node(&tree, "d/hole").extents().count()), (0, 0));
    assert_eq!((node(&tree, "d/hole").size(), tree.total_size()), (1 << 62, (1 << 62) + 10_010));
    assert_eq!((node(&tree, "link").size(), node(&tree, "link").target()), (6, b"d/file".as_slice()));
    assert_eq!((node(&tree, "dev/sda").device(), node(&tree, "p").device()), (Some((8, 1)), None));
    assert_eq!((node(&tree, "d").mode(), node(&tree, "p").kind()), (0o1750, NodeKind::Fifo));
    assert_eq!(node(&tree, "d/sub/sub").parent(), find(&tree, "d/sub"));
    let time = Timestamp { seconds: 9_223_372_036, nanos: 999_999_999 };
    let tree = merged(&[&[Entry { mtime: time, ..fifo("late") }]]);
    assert_eq!(node(&tree, "late").mtime(), time);
}

#[test]
fn a_206_positions_in_a_directory_are_stable() {
    let layer: Vec<_> = (0..1000).rev().map(|i| file(&format!("d/{i:04}"), i + 1)).collect();
    let tree = merged(&[&layer]);
    let d = find(&tree, "d");
    let all: Vec<_> = tree.children(d, 0).map(|child| child.name.to_vec()).collect();
    assert!(all.is_sorted() && all.len() == 1000);
    for start in [0, 1, 499, 999] {
        let child = tree.children(d, start).next().expect("there are more");
        assert_eq!(child.name, all[start as usize]);
        assert_eq!(tree.lookup(d, child.name), Some(child.node));
    }
    assert_eq!(tree.children(d, 1000).count() + tree.children(d, u64::MAX).count(), 0);
    let file = find(&tree, "d/0000");
    assert_eq!((tree.children(file, 0).count(), tree.lookup(file, b"x"), tree.lookup(d, b"")), (0, None, None));
}

#[test]
fn paths_resolve_as_for_a_process_in_the_tree() {
    let layer = [
        file("a/b/f", 1),
        symlink("a/up", "../a/b"),
        symlink("abs", "/a/../../a/b/f"),
        symlink("chain", "a/up/f"),
        symlink("dead", "nowhere"),
        symlink("loop", "loop"),
        symlink("through", "a/b/f/x"),
    ];
    let tree = merged(&[&layer]);
    let file = Some(find(&tree, "a/b/f"));
    for path in ["/a/b/f", "a//b/./f", "../../a/b/f", "a/up/f", "abs", "chain", "a/b/../b/f", "a/up/../b/f"] {
        assert_eq!(tree.resolve(path.as_bytes(), true), file, "{path}");
    }
    for path in ["dead", "loop", "loop/x", "a/b/f/", "a/b/f/.", "a/b/f/..", "through", "nowhere/..", "a/x/../b/f"] {
        assert_eq!(tree.resolve(path.as_bytes(), true), None, "{path}");
    }
    assert_eq!(tree.resolve(b"", true), Some(NodeId::ROOT));
    assert_eq!(tree.resolve(b"/..", true), Some(NodeId::ROOT));
    assert_ne!(tree.resolve(b"a/up", false), tree.resolve(b"a/up", true));
    assert_eq!(tree.resolve(b"a/up/", false), tree.resolve(b"a/b", true));
}

#[test]
fn every_flipped_byte_and_every_truncation_of_a_stored_tree_is_found() {
    let bytes = rich();
    for position in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[position] ^= 1 << (position % 8);
        assert!(matches!(Tree::open(damaged.into()), Err(Error::Damaged(_))), "byte {position}");
        assert!(matches!(Tree::open(bytes[..position].to_vec().into()), Err(Error::Damaged(_))));
    }
    let longer = [bytes.as_slice(), b"\0"].concat();
    assert!(matches!(Tree::open(longer.into()), Err(Error::Damaged(_))));
}

/// Uses every accessor on every node; the sum keeps them from being left out.
fn walk_everything(tree: &Tree) -> u64 {
    let mut sum = tree.total_size();
    for number in 0..tree.node_count() {
        let id = tree.id(number).expect("below the count");
        let node = tree.node(id);
        sum ^= node.size() ^ u64::from(node.nlink()) ^ node.mtime().nanos as u64 ^ u64::from(node.mode());
        sum ^= node.extents().map(|extent| extent.file_offset + extent.length).max().unwrap_or(0);
        sum ^= node.xattrs().map(|(name, value)| name.len() + value.len()).sum::<usize>() as u64;
        sum ^= node.target().len() as u64 ^ node.content().map_or(0, |digest| u64::from(digest[0]));
        sum ^= tree.children(id, 0).map(|child| u64::from(tree.node(child.node).uid())).sum::<u64>();
        sum ^= tree.lookup(id, b"file").map_or(0, |found| u64::from(found.get()));
        let mut up = id;
        for _ in 0..=tree.node_count() {
            up = tree.node(up).parent();
        }
        assert_eq!(up, NodeId::ROOT, "every chain of parents ends at the root");
    }
    sum
}

proptest! {
    /// Whoever can write the cache can also write the right digest; that must not make an accessor panic.
    #[test]
    fn a_forged_tree_is_refused_or_safe(changes in proptest::collection::vec((40usize..2000, any::<u8>()), 1..6)) {
        let mut bytes = rich();
        for (position, value) in changes {
            let position = position % bytes.len();
            bytes[position.max(format::DIGESTED)] = value;
        }
        let digest = blake3::hash(&bytes[format::DIGESTED..]);
        bytes[8..40].copy_from_slice(digest.as_bytes());
        if let Ok(tree) = Tree::open(bytes.into()) {
            walk_everything(&tree);
            for path in ["d/file", "link/../p", "again/x", "loop"] {
                tree.resolve(path.as_bytes(), true);
            }
        }
    }
}

#[test]
fn d_060_segments_that_do_not_fit_their_file_are_rejected() {
    let segment = |file_offset, layer_offset, length| Segment { file_offset, layer_offset, length };
    for (size, segments) in [
        (10, vec![segment(0, 0, 11)]),
        (10, vec![segment(5, 0, 6)]),
        (10, vec![segment(0, 0, 0)]),
        (10, vec![segment(0, 0, 5), segment(4, 5, 1)]),
        (10, vec![segment(5, 0, 5), segment(0, 5, 5)]),
        (10, vec![segment(0, u64::MAX, 10)]),
        (10, vec![segment(u64::MAX, 0, 10)]),
        (u64::MAX, vec![]),
    ] {
        let shown = format!("{segments:?}");
        let reason = rejected(&[&[entry("f", Kind::Regular { size, segments, content: None })]]).1;
        assert_eq!(reason, Reason::Malformed, "{shown}");
    }
}

#[test]
fn d_014_too_many_names_are_a_clean_error() {
    let mut merger = Merger::with_limits(1000, limits::TREE_STEPS);
    let names = |range: std::ops::Range<u32>| range.map(|i| Ok::<_, Error>(fifo(&format!("d/{i}"))));
    merger.layer(None, names(0..999)).expect("with their directory a thousand");
    merger.layer(None, names(0..999)).expect("no more names than before");
    let error = merger.layer(None, names(999..1000)).expect_err("one name too many");
    assert!(matches!(error, Error::Rejected { reason: Reason::TooManyNames, .. }), "{error}");
}

#[test]
fn d_010_a_layer_made_to_multiply_work_is_rejected() {
    let target = format!("{}d", "/".repeat(4000));
    let below = [dir("d", 0o755), symlink("l", &target)];
    let mut merger = Merger::with_limits(limits::TREE_NAMES, 1 << 20);
    merger.layer::<Error>(None, below.into_iter().map(Ok)).expect("the layer is fine");
    let endless = std::iter::repeat_with(|| Ok::<_, Error>(whiteout("l/x")));
    let error = merger.layer(None, endless).expect_err("the layer never ends otherwise");
    assert!(matches!(error, Error::Rejected { reason: Reason::TooMuchWork, .. }), "{error}");
}

#[test]
fn errors_name_the_layer_and_escape_the_path() {
    let digest = Digest::sha256(b"");
    let mut merger = Merger::new();
    merger.layer::<Error>(None, []).expect("empty");
    let error = merger.layer::<Error>(Some(digest), [Ok(hard_link("a\x1b\n\"", "b\t"))]).expect_err("no target");
    let text =
        format!("layer 2 ({digest}) is rejected at \"a\\x1b\\n\\\"\": hard link to \"b\\t\", which does not exist");
    assert_eq!(error.to_string(), format!("{text} at this point of the layer"));
}

#[test]
fn the_id_depends_on_the_layers_and_their_order() {
    let (a, b) = (Digest::sha256(b"a"), Digest::sha256(b"b"));
    let ids = [id(&[]), id(&[a]), id(&[a, b]), id(&[b, a]), id(&[a, b, b])];
    for (i, one) in ids.iter().enumerate() {
        assert!(ids[i + 1..].iter().all(|other| other != one));
    }
}

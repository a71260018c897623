//! Cases of the tree.

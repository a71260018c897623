//! A docker-registry that is a cache of another: it answers the first request for a blob with the whole of it, whatever range
//! was asked for, and with ranges only once it has it.

use super::{NAME, Shown, ready};
use crate::support::{DockerRegistry, Ocifs};

#[test]
fn b_086_a_pull_through_cache_is_read_before_and_after_it_has_the_image() {
    if !ready(&[]) {
        return;
    }
    let shown = Shown::new();
    let origin = shown.registry();
    let cache = DockerRegistry::start_with(&format!("proxy: {{remoteurl: 'http://{}'}}", origin.addr()));
    let cache = cache.expect("the test asked whether it is here");
    let reference = format!("{}/{NAME}", cache.addr());

    let first = Ocifs::new();
    let point = first.mount_point("m");
    first.mount(&reference, &point);
    shown.assert_shown(point.path());
    first.umount(&point);
    first.drop_bytes();
    assert!(first.end_daemon(), "it ends when it is told to");
    first.mount(&reference, &point);
    shown.assert_shown(point.path());

    // What the cache has needs no origin.
    drop(origin);
    let second = Ocifs::new();
    let point = second.mount_point("m");
    second.mount(&reference, &point);
    shown.assert_shown(point.path());
}

#[test]
fn an_image_whose_index_is_known_is_lazy_through_an_empty_pull_through_cache() {
    if !ready(&[]) {
        return;
    }
    let shown = Shown::new();
    let origin = shown.registry();
    let ocifs = Ocifs::new();
    let point = ocifs.mount_point("m");
    ocifs.mount(&format!("{}/{NAME}", origin.addr()), &point);
    ocifs.umount(&point);
    ocifs.drop_bytes();
    assert!(ocifs.end_daemon(), "it ends when it is told to");
    // Every range of this mount is the first that the cache hears of the blob, or comes while it still fetches it.
    let cache = DockerRegistry::start_with(&format!("proxy: {{remoteurl: 'http://{}'}}", origin.addr()));
    let cache = cache.expect("the test asked whether it is here");
    ocifs.mount(&format!("{}/{NAME}", cache.addr()), &point);
    shown.assert_shown(point.path());
}

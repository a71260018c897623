//! Owners, modes, times, devices and extended attributes (A6).

use super::raw::{Raw, pax};
use super::{entry, fault, is_file};
use crate::tar::{Entry, Fault, Kind, Timestamp};

const ODD_SECONDS: usize = 136;

fn with(records: &[(&str, &[u8])]) -> Entry {
    entry(&[pax(records), Raw::file("f", b"").bytes()])
}

fn rejected(records: &[(&str, &[u8])]) -> Fault {
    fault(&[pax(records), Raw::file("f", b"").bytes()])
}

fn at(seconds: i64, nanos: u32) -> Timestamp {
    Timestamp { seconds, nanos }
}

#[test]
fn a_120_fractions_of_seconds_are_kept_to_the_nanosecond() {
    for (text, expected) in [
        ("1.123456789", at(1, 123_456_789)),
        ("1.1234567891", at(1, 123_456_789)),
        ("1.5", at(1, 500_000_000)),
        ("1.", at(1, 0)),
        ("+7", at(7, 0)),
        ("1700000000.000000001", at(1_700_000_000, 1)),
    ] {
        assert_eq!(with(&[("mtime", text.as_bytes())]).mtime, expected, "{text}");
    }
}

#[test]
fn a_121_times_before_the_epoch_become_the_epoch() {
    for text in ["-5.5", "-1", "-0.5", "-9223372036854775808"] {
        assert_eq!(with(&[("mtime", text.as_bytes())]).mtime, at(0, 0), "{text}");
    }
    assert_eq!(entry(&[Raw::file("f", b"").field(ODD_SECONDS, &[0xff; 12]).bytes()]).mtime, at(0, 0));
}

#[test]
fn a_122_times_beyond_2_to_the_63_nanoseconds_become_the_epoch() {
    assert_eq!(with(&[("mtime", b"9223372036.854775807")]).mtime, at(9_223_372_036, 854_775_807));
    assert_eq!(with(&[("mtime", b"9223372036.854775808")]).mtime, at(0, 0));
    assert_eq!(with(&[("mtime", b"9223372036854775807")]).mtime, at(0, 0));
    let late = [&[0x80, 0, 0, 0][..], &i64::MAX.to_be_bytes()].concat();
    assert_eq!(entry(&[Raw::file("f", b"").field(ODD_SECONDS, &late).bytes()]).mtime, at(0, 0));
}

#[test]
fn a_123_a_malformed_time_is_rejected() {
    for key in ["mtime", "atime", "ctime"] {
        for value in ["x", "1.x", ".5", "1.5.5", "1e9", " 1", "-", "9223372036854775808"] {
            assert_eq!(rejected(&[(key, value.as_bytes())]), Fault::Record, "{key}={value}");
        }
    }
}

#[test]
fn a_124_times_of_access_and_change_are_not_content() {
    assert_eq!(with(&[("atime", b"9"), ("ctime", b"8")]), with(&[]));
}

#[test]
fn a_126_the_mode_of_a_symlink_is_0777() {
    let link = Raw::link(b'2', "l", "t").field(100, b"0000600").field(108, b"0000005").field(136, b"00000000007");
    let made = entry(&[link.bytes()]);
    assert_eq!((made.mode, made.uid, made.mtime), (0o777, 5, at(7, 0)));
}

#[test]
fn a_127_owners_have_32_bits() {
    let field = [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe];
    let made = entry(&[Raw::file("f", b"").field(108, &field).field(116, &field).bytes()]);
    assert_eq!((made.uid, made.gid), (u32::MAX - 1, u32::MAX - 1));
    let made = with(&[("uid", b"4294967295"), ("gid", b"2097152")]);
    assert_eq!((made.uid, made.gid), (u32::MAX, 2_097_152));
    assert_eq!(rejected(&[("uid", b"4294967296")]), Fault::Range("uid"));
    assert_eq!(rejected(&[("gid", b"-1")]), Fault::Range("gid"));
    assert_eq!(rejected(&[("uid", b"root")]), Fault::Record);
    assert_eq!(fault(&[Raw::file("f", b"").field(108, &[0xff; 8]).bytes()]), Fault::Range("uid"));
}

#[test]
fn a_128_names_of_owners_are_ignored() {
    let made = entry(&[pax(&[("uname", b"alice")]), Raw::file("f", b"").field(265, b"root").bytes()]);
    assert_eq!((made.uid, made.gid), (0, 0));
}

#[test]
fn a_129_a_130_only_the_permission_bits_of_the_mode_count() {
    let made = entry(&[Raw::file("f", b"").field(100, b"0047755").bytes()]);
    assert_eq!(made.mode, 0o7755);
    assert!(is_file(&made));
}

#[test]
fn a_131_file_capabilities_are_served_verbatim() {
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\n";
    let made = with(&[("SCHILY.xattr.security.capability", capability)]);
    assert_eq!(made.xattrs[0].name, b"security.capability");
    assert_eq!(made.xattrs[0].value, capability);
}

#[test]
fn a_132_user_attributes_are_served_on_files_and_directories_only() {
    let records = pax(&[("SCHILY.xattr.user.b", b"2\0="), ("SCHILY.xattr.user.a", b"1")]);
    for (typeflag, count) in [(b'0', 2), (b'5', 2), (b'2', 0), (b'3', 0), (b'6', 0)] {
        let made = entry(&[records.clone(), Raw::new(typeflag, b"f").field(157, b"t").bytes()]);
        assert_eq!(made.xattrs.len(), count, "{}", char::from(typeflag));
    }
    let made = entry(&[records, Raw::file("f", b"").bytes()]);
    assert_eq!((&made.xattrs[0].name[..], &made.xattrs[1].value[..]), (&b"user.a"[..], &b"2\0="[..]));
}

#[test]
fn a_133_a_135_a_136_d_051_other_attributes_are_dropped() {
    let made = with(&[
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.x", b"y"),
        ("SCHILY.xattr.security.selinux", b"y"),
        ("SCHILY.xattr.security.ima", b"y"),
        ("SCHILY.xattr.system.posix_acl_access", b"y"),
        ("SCHILY.xattr.user.", b"y"),
        ("SCHILY.xattr.", b"y"),
        ("SCHILY.acl.access", b"y"),
        ("LIBARCHIVE.xattr.user.x", b"eQ=="),
        ("RHT.security.selinux", b"y"),
        ("MSWINDOWS.fileattr", b"y"),
    ]);
    assert_eq!(made.xattrs, []);
}

#[test]
fn a_134_attributes_that_would_steer_an_overlay_are_escaped() {
    let made = with(&[("SCHILY.xattr.user.overlay.opaque", b"y"), ("SCHILY.xattr.user.overlayed", b"z")]);
    let names: Vec<_> = made.xattrs.iter().map(|xattr| xattr.name.escape_ascii().to_string()).collect();
    assert_eq!(names, ["user.overlay.overlay.opaque", "user.overlayed"]);
}

#[test]
fn a_137_an_empty_attribute_is_present() {
    let made = with(&[("SCHILY.xattr.user.empty", b"")]);
    assert_eq!((made.xattrs.len(), &made.xattrs[0].value[..]), (1, &b""[..]));
}

#[test]
fn a_138_attributes_stay_within_the_limits_of_the_kernel() {
    let key = |length: usize| format!("SCHILY.xattr.user.{}", "n".repeat(length - 5));
    assert_eq!(with(&[(&key(255), &vec![0; 1 << 16])]).xattrs.len(), 1);
    assert_eq!(rejected(&[(&key(256), b"")]), Fault::Xattr);
    assert_eq!(rejected(&[("SCHILY.xattr.user.x", &vec![0; (1 << 16) + 1])]), Fault::Xattr);
    // The list is bounded as well: 256 names of 255 bytes and a NUL each are just 64 KiB.
    let keys: Vec<_> = (0..=256).map(|index| format!("{}{index:03}", key(252))).collect();
    let records: Vec<_> = keys.iter().map(|key| (key.as_str(), &b""[..])).collect();
    assert_eq!(with(&records[..256]).xattrs.len(), 256);
    assert_eq!(rejected(&records), Fault::Xattr);
    // What is dropped anyway may be of any length.
    assert_eq!(with(&[("SCHILY.xattr.trusted.x", &vec![0; 1 << 17])]).xattrs, []);
}

#[test]
fn of_two_attributes_with_one_name_the_last_is_served() {
    let made = with(&[
        ("SCHILY.xattr.user.x", b"1"),
        ("SCHILY.xattr.user.y", b"2"),
        ("SCHILY.xattr.user.x", b"3"),
        ("SCHILY.xattr.user.x", b"4"),
    ]);
    let values: Vec<_> = made.xattrs.iter().map(|xattr| &xattr.value[..]).collect();
    assert_eq!(values, [b"4", b"2"]);
}

#[test]
fn a_139_a_141_devices_have_their_numbers() {
    let node = |typeflag| Raw::new(typeflag, b"n").field(329, b"0000001\0").field(337, b"0000003\0").bytes();
    assert_eq!(entry(&[node(b'3')]).kind, Kind::CharDevice { major: 1, minor: 3 });
    assert_eq!(entry(&[node(b'4')]).kind, Kind::BlockDevice { major: 1, minor: 3 });
    assert_eq!(entry(&[Raw::new(b'3', b"n").bytes()]).kind, Kind::CharDevice { major: 0, minor: 0 });
    // Without a magic the fields are not there.
    let old = Raw::new(b'3', b"n").v7().field(329, b"0000001\0").bytes();
    assert_eq!(entry(&[old]).kind, Kind::CharDevice { major: 0, minor: 0 });
}

#[test]
fn a_140_device_numbers_out_of_range_are_rejected() {
    let largest = [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    let made = entry(&[Raw::new(b'3', b"n").field(329, &largest).bytes()]);
    assert_eq!(made.kind, Kind::CharDevice { major: u32::MAX, minor: 0 });
    for number in [[0x80, 0, 0, 1, 0, 0, 0, 0], [0xff; 8]] {
        for at in [329, 337] {
            assert_eq!(fault(&[Raw::new(b'4', b"n").field(at, &number).bytes()]), Fault::Range("device number"));
        }
    }
}

#[test]
fn a_142_a_fifo_is_a_fifo() {
    assert_eq!(entry(&[Raw::new(b'6', b"p").bytes()]).kind, Kind::Fifo);
}

#[test]
fn a_143_an_empty_file_has_no_segments() {
    assert_eq!(with(&[]).kind, Kind::Regular { size: 0, segments: Vec::new(), content: None });
}

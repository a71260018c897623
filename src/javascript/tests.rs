use proptest::prelude::*;

use super::*;

#[test]
fn modules_are_named_by_require_import_and_from() {
    let text = br#"
        // require("comment")
        /* import x from "block" */
        'use strict'
        const a = require('a'), b = require ( "b/c.js" )
        import d from "d"; import * as e from 'e'
        import 'f'
        export { g } from "./g"
        const h = await import("h")
        const again = require("a")
        const text = "require('inner')" + `require('template')`
        module.require('member'); const all = [...require("spread")]; requires("other"); const from = 1, x = "value"
        require("es\"caped"); require(variable); require(
          // a comment between
          './last')
    "#;
    assert_eq!(specifiers(text), ["a", "b/c.js", "d", "e", "f", "./g", "h", "spread", "./last"]);
    // A quote in a regular expression is no string beyond its line.
    assert_eq!(specifiers(b"x.replace(/'/g, y)\nrequire('z')"), ["z"]);
    let long = format!("require('{}')", "x".repeat(MODULE_NAME_BYTES + 1));
    assert!(specifiers(long.as_bytes()).is_empty() && specifiers(b"require('')").is_empty());
}

fn package(text: &str) -> Package {
    Package::parse(text.as_bytes()).expect("a package")
}

#[test]
fn a_package_says_which_file_its_name_means() {
    assert_eq!(package(r#"{"main":"lib/a.js"}"#).main.as_deref(), Some("lib/a.js"));
    assert_eq!(package(r#"{"main":7,"exports":null}"#), Package::default());
    assert!(Package::parse(b"[]").is_none() && Package::parse(b"{").is_none());
    let targets = |package: &Package, path: &str| package.targets(path).collect::<Vec<_>>();

    let one = package(r#"{"exports":"./a.js"}"#);
    assert_eq!((targets(&one, "."), targets(&one, "./a.js")), (vec!["./a.js".to_owned()], vec![]));

    let both =
        r#"{"exports":{"types":"./t.d.ts","import":"./m.mjs","require":{"browser":"./b.js","default":"./c.cjs"}}}"#;
    assert_eq!(targets(&package(both), "."), ["./c.cjs", "./m.mjs"]);

    let paths = r#"{"exports":{".":{"node":"./n.js","default":"./d.js"},"./sub":["./s.js"],"./f/*.js":"./src/*.js","./no":null}}"#;
    let paths = package(paths);
    assert_eq!(targets(&paths, "."), ["./n.js"]);
    assert_eq!(targets(&paths, "./sub"), ["./s.js"]);
    assert_eq!(targets(&paths, "./f/x/y.js"), ["./src/x/y.js"]);
    assert!(targets(&paths, "./no").is_empty() && targets(&paths, "./n.js").is_empty());
}

#[test]
fn no_nesting_is_too_deep() {
    let deep = format!(r#"{{"exports":{}"./a"{}}}"#, r#"{"node":"#.repeat(60), "}".repeat(60));
    assert_eq!(package(&deep).exports, Some(Vec::new()));
}

proptest! {
    #[test]
    fn any_text_has_an_end(text: Vec<u8>, code in "[a-z'\"`/*(\\\\ \n]{0,60}") {
        specifiers(&text);
        let code = code.replace('z', "require(");
        prop_assert!(specifiers(code.as_bytes()).iter().all(|name| code.contains(name.as_str())));
        Package::parse(&text);
    }
}

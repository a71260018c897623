//! The source tree keeps to the levels of design.md: a module uses only modules of lower levels, and what belongs to one
//! module (the FUSE crate, the HTTP client, gRPC, the environment) is named in that module only.
//!
//! The sources are read as tokens: comments, strings and what is compiled for tests only do not count. `use crate::{…}`
//! counts like `crate::x`, and so does `super` where it leads out of the module.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// design.md, "Levels". A module that is not here yet needs a level before it can be added.
const LEVELS: [(&str, u32); 26] = [
    ("limits", 0),
    ("oci", 1),
    ("codec", 1),
    ("tar", 1),
    ("elf", 1),
    ("python", 1),
    ("javascript", 1),
    ("source", 2),
    ("profile", 2),
    ("dependencies", 2),
    ("signature", 2),
    ("registry", 3),
    ("index", 3),
    ("store", 3),
    ("tree", 4),
    ("share", 4),
    ("fetch", 4),
    ("image", 5),
    ("ahead", 5),
    ("parcel", 5),
    ("fs", 6),
    ("fuse", 7),
    ("daemon", 8),
    ("snapshotter", 9),
    ("demo", 9),
    ("cli", 10),
];

/// Crates that one module only may name.
const OWNED_CRATES: [(&str, &str); 3] = [("fuser", "fuse"), ("reqwest", "registry"), ("tonic", "snapshotter")];

/// What reads the environment or the home directory, after `env::`.
const ENVIRONMENT: [&str; 6] = ["var", "var_os", "vars", "vars_os", "home_dir", "set_var"];

#[test]
fn modules_use_only_modules_of_lower_levels() {
    let broken: Vec<String> = sources().iter().flat_map(|source| source.violations()).collect();
    assert!(broken.is_empty(), "the levels of design.md are broken:\n{}", broken.join("\n"));
}

/// One file of `src`.
struct Source {
    /// Relative to `src`.
    path: PathBuf,
    /// The modules it lies in, from the crate's root: `["registry", "auth"]`.
    modules: Vec<String>,
    tokens: Vec<String>,
}

/// All sources that are part of the program, the roots of the crates left out: those are above all levels.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut waiting = vec![root.clone()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).expect("src can be read") {
            let path = entry.expect("src can be read").path();
            match path.extension() {
                _ if path.is_dir() => waiting.push(path),
                Some(extension) if extension == "rs" => files.push(path),
                _ => {}
            }
        }
    }
    let mut sources = Vec::new();
    let mut for_tests = BTreeSet::new();
    for file in files {
        let path = file.strip_prefix(&root).expect("it was found there").to_owned();
        let modules = modules_of(&path);
        let (tokens, test_modules) = without_tests(tokens(&fs::read_to_string(&file).expect("a source is text")));
        for_tests.extend(test_modules.into_iter().map(|name| [&modules[..], &[name]].concat()));
        if path != Path::new("lib.rs") && path != Path::new("main.rs") {
            sources.push(Source { path, modules, tokens });
        }
    }
    sources.retain(|source| !for_tests.iter().any(|tests| source.modules.starts_with(tests)));
    assert!(sources.len() > 5, "there are sources");
    sources
}

fn modules_of(path: &Path) -> Vec<String> {
    let mut modules: Vec<String> =
        path.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if modules.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main")) {
        modules.pop();
    }
    modules
}

impl Source {
    fn violations(&self) -> Vec<String> {
        let module = &self.modules[0];
        let mut broken = Vec::new();
        match level(module) {
            Some(own) => {
                for used in self.used_modules().iter().filter(|used| *used != module) {
                    // What is no module is an item of the root (a macro, a re-export), which has no level.
                    if let Some(other) = level(used).filter(|other| *other >= own) {
                        broken.push(format!("{module} (level {own}) uses {used} (level {other})"));
                    }
                }
            }
            None => broken.push(format!("{module} has no level")),
        }
        for (name, owner) in OWNED_CRATES.iter().filter(|(_, owner)| owner != module) {
            if self.names_crate(name) {
                broken.push(format!("only {owner} may name the crate {name}"));
            }
        }
        if module != "cli" && self.reads_environment() {
            broken.push("only cli may read the environment".to_owned());
        }
        broken.into_iter().map(|what| format!("src/{}: {what}", self.path.display())).collect()
    }

    /// The modules of the crate's root that the file names.
    fn used_modules(&self) -> BTreeSet<String> {
        let mut used = BTreeSet::new();
        for at in 0..self.tokens.len() {
            let before = at.checked_sub(1).map(|before| self.tokens[before].as_str());
            let inside_path = before == Some("::");
            match self.tokens[at].as_str() {
                "crate" => used.extend(self.first_names(at + 1)),
                "super" if !inside_path => {
                    let mut end = at + 1;
                    while self.tokens[end..].starts_with(&["::".to_owned(), "super".to_owned()]) {
                        end += 2;
                    }
                    // As many as the file has modules around it lead to the root. Inline modules are not counted:
                    // inside one, the last `super` is taken for a step too far, which at worst asks for `crate`.
                    if (end - at).div_ceil(2) >= self.modules.len() {
                        used.extend(self.first_names(end));
                    }
                }
                _ => {}
            }
        }
        used
    }

    /// The names that stand after `::` at a place: one, or those of a group.
    fn first_names(&self, at: usize) -> Vec<String> {
        let token = |at: usize| self.tokens.get(at).map_or("", String::as_str);
        if token(at) != "::" {
            return Vec::new();
        }
        if token(at + 1) != "{" {
            return vec![token(at + 1).to_owned()];
        }
        let (mut names, mut depth, mut place) = (Vec::new(), 0, at + 1);
        loop {
            match token(place) {
                "{" => depth += 1,
                "}" => depth -= 1,
                "" => return names,
                name if depth == 1 && matches!(token(place - 1), "{" | ",") => names.push(name.to_owned()),
                _ => {}
            }
            if depth == 0 {
                return names;
            }
            place += 1;
        }
    }

    fn names_crate(&self, name: &str) -> bool {
        self.tokens.iter().enumerate().any(|(at, token)| {
            let before = at.checked_sub(1).map_or("", |before| self.tokens[before].as_str());
            let after = self.tokens.get(at + 1).map_or("", String::as_str);
            // A path that starts with it, or a whole `use`; not a part of a longer path and not a field.
            let starts_path = after == "::" && (before != "::" || !self.is_name(at.wrapping_sub(2)));
            token == name && (starts_path || matches!(before, "use" | "crate" | "extern"))
        })
    }

    /// True for a name that a path can go on from; keywords that paths follow are none.
    fn is_name(&self, at: usize) -> bool {
        const KEYWORDS: [&str; 9] = ["use", "as", "in", "dyn", "impl", "for", "mut", "return", "match"];
        self.tokens.get(at).is_some_and(|token| {
            !KEYWORDS.contains(&token.as_str())
                && token.starts_with(|first: char| first.is_alphabetic() || first == '_')
        })
    }

    fn reads_environment(&self) -> bool {
        (0..self.tokens.len())
            .filter(|at| self.tokens[*at] == "env")
            .flat_map(|at| self.first_names(at + 1))
            .any(|name| ENVIRONMENT.contains(&name.as_str()))
    }
}

fn level(module: &str) -> Option<u32> {
    LEVELS.iter().find_map(|(name, level)| (*name == module).then_some(*level))
}

/// Cuts Rust text into names, numbers and signs; `::` is one sign. Comments and literals are left out.
fn tokens(text: &str) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < letters.len() {
        let next = letters.get(at + 1).copied().unwrap_or(' ');
        match letters[at] {
            '/' if next == '/' => at += letters[at..].iter().take_while(|letter| **letter != '\n').count(),
            '/' if next == '*' => at = block_comment_end(&letters, at),
            '"' => at = string_end(&letters, at + 1),
            '\'' => at = quote_end(&letters, at),
            ':' if next == ':' => {
                tokens.push("::".to_owned());
                at += 2;
            }
            letter if is_name(letter) => {
                let end = at + letters[at..].iter().take_while(|letter| is_name(**letter)).count();
                let name: String = letters[at..end].iter().collect();
                match raw_string_end(&letters, &name, end) {
                    Some(after) => at = after,
                    None => {
                        // A raw identifier is the same name.
                        at = if name == "r" && letters.get(end) == Some(&'#') { end + 1 } else { end };
                        if at == end {
                            tokens.push(name);
                        }
                    }
                }
            }
            letter if letter.is_whitespace() => at += 1,
            sign => {
                tokens.push(sign.to_string());
                at += 1;
            }
        }
    }
    tokens
}

fn block_comment_end(letters: &[char], start: usize) -> usize {
    let (mut depth, mut at) = (0, start);
    while at < letters.len() {
        match (letters[at], letters.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The place after the quote that ends a string whose text begins at `at`.
fn string_end(letters: &[char], mut at: usize) -> usize {
    while at < letters.len() {
        match letters[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// The place after a character literal or after the quote of a lifetime.
fn quote_end(letters: &[char], at: usize) -> usize {
    match (letters.get(at + 1), letters.get(at + 2)) {
        (Some('\\'), _) => {
            let rest = letters.get(at + 3..).unwrap_or_default();
            at + 4 + rest.iter().take_while(|letter| **letter != '\'').count()
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at + 1,
    }
}

/// If `name`, which ends at `end`, is the prefix of a raw string: the place after that string.
fn raw_string_end(letters: &[char], name: &str, end: usize) -> Option<usize> {
    if !matches!(name, "r" | "br" | "cr") {
        return None;
    }
    let hashes = letters[end..].iter().take_while(|letter| **letter == '#').count();
    if letters.get(end + hashes) != Some(&'"') {
        return None;
    }
    let closing: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let text = &letters[end + hashes + 1..];
    let length = text.windows(closing.len()).position(|window| window == closing)?;
    Some(end + hashes + 1 + length + closing.len())
}

/// Leaves out items under `#[cfg(test)]`, and returns the names of the modules among them that are files of their own.
fn without_tests(tokens: Vec<String>) -> (Vec<String>, Vec<String>) {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut modules, mut at) = (Vec::new(), Vec::new(), 0);
    while at < tokens.len() {
        if !tokens[at..].iter().take(MARK.len()).eq(MARK) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let start = at + MARK.len();
        at = item_end(&tokens, start);
        let item = &tokens[start..at];
        if let Some(named) = item.iter().position(|token| token == "mod")
            && item.last().is_some_and(|last| last == ";")
        {
            modules.extend(item.get(named + 1).cloned());
        }
    }
    (kept, modules)
}

/// The place after the item at `start`: after its `;`, or after the brace that closes its first one.
fn item_end(tokens: &[String], start: usize) -> usize {
    let mut depth = 0_u32;
    for (place, token) in tokens.iter().enumerate().skip(start) {
        match token.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => {
                depth = depth.saturating_sub(1);
                if depth == 0 && token == "}" {
                    // `use a::{b};` goes on to its semicolon.
                    let more = tokens.get(place + 1).is_some_and(|next| next == ";");
                    return place + 1 + usize::from(more);
                }
            }
            ";" if depth == 0 => return place + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// A file as it would be found at `path`.
fn source(path: &str, text: &str) -> Source {
    let (tokens, _) = without_tests(tokens(text));
    Source { path: path.into(), modules: modules_of(Path::new(path)), tokens }
}

#[test]
fn edges_up_and_sideways_are_found_however_they_are_written() {
    for text in [
        "use crate::store::Store;",
        "use crate::{limits, store::{Blob, evict}};",
        "use crate::{oci::{Digest, descriptor}, limits, tree};",
        "fn f() -> crate::fs::Errno { todo() }",
        "use super::super::store;",
        "pub(in crate::index) use super::super::{limits, fetch::Plan};",
        "#[cfg(test)] use crate::oci; use crate::store;",
        "#[cfg(test)] mod tests { fn f() { g(\"}\") } } use crate::store::X;",
        "#[cfg(test)]\nmod tests;\nuse crate::store::X;",
        "const A: char = '\"'; use crate::store::X; const B: char = '\"';",
        "fn f<'a>(x: &'a str) { let q = '\\''; crate::store::x() }",
        "const A: &str = r#\"\"\"#; use crate::store::X;",
    ] {
        assert_eq!(source("index/build.rs", text).violations().len(), 1, "{text}");
    }
    assert_eq!(source("index/mod.rs", "use super::store;").violations().len(), 1);
    assert_eq!(source("news/mod.rs", "").violations(), ["src/news/mod.rs: news has no level"]);
}

#[test]
fn edges_down_tests_comments_and_strings_are_no_edges() {
    for text in [
        "use crate::{limits, oci::{Digest, store}};",
        "use crate::index::Entry; use super::entry; use super::super::limits;",
        "// use crate::store;\n/* crate::fs /* nested */ crate::store */ fn f() {}",
        "const A: &str = \"crate::store\\\" crate::fs\"; const B: &str = r#\"crate::store \" crate::fs\"#;",
        "#[cfg(test)] mod tests { use crate::store; }",
        "#[cfg(test)]\n#[allow(x)]\nuse crate::{store, fs};\nfn f() {}",
        "use crate::assert_span; fn f(crate_store: u8) { self.store.get() }",
    ] {
        assert_eq!(source("index/build.rs", text).violations(), [""; 0], "{text}");
    }
}

#[test]
fn crates_and_the_environment_belong_to_one_module() {
    for (path, text) in [
        ("fs/mod.rs", "fn f(e: fuser::Errno) {}"),
        ("fs/mod.rs", "use ::fuser::Errno;"),
        ("fs/mod.rs", "use fuser as f;"),
        ("fetch/mod.rs", "use reqwest::{Client, Url};"),
        ("daemon/mod.rs", "fn f() { std::env::var(\"HOME\"); }"),
        ("store/mod.rs", "use std::env::{self, var_os};"),
        ("store/mod.rs", "use std::env; fn f() { env::home_dir(); }"),
    ] {
        assert_eq!(source(path, text).violations().len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("fuse/session.rs", "use fuser::Session;"),
        ("registry/client.rs", "use reqwest::Client;"),
        ("cli/mod.rs", "use std::env; fn f() { env::var(\"HOME\"); }"),
        ("fs/mod.rs", "fn f(fuser: u8) { let x = fuser; super::fuser::x(); }"),
        ("demo/image/mod.rs", "fn f() { std::env::consts::ARCH; env!(\"X\"); std::env::temp_dir(); }"),
    ] {
        assert_eq!(source(path, text).violations(), [""; 0], "{path}: {text}");
    }
}

#[test]
fn test_modules_in_files_of_their_own_are_known() {
    let (_, modules) = without_tests(tokens("mod a; #[cfg(test)] mod tests; #[cfg(test)] mod inline { } mod b;"));
    assert_eq!(modules, ["tests"]);
    assert!(sources().iter().all(|source| !source.path.ends_with("tests.rs")));
}

//! `package.json`: which file a name means that leads into a package.

use serde_json::{Map, Value};

use crate::limits::MODULE_NAME_BYTES;

/// Most entry points taken from one package.
const MOST: usize = 1024;

/// How deep conditions may be nested.
const DEPTH: usize = 8;

/// Conditions that hold for everybody, for who requires, and for who imports (nodejs.org/api/packages.html, "Conditional
/// exports").
const ALWAYS: [&str; 3] = ["node", "module-sync", "default"];
const REQUIRED: &str = "require";
const IMPORTED: &str = "import";

/// What a package says about its files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Package {
    /// `main`: what the name of the package alone means if there are no exports.
    pub main: Option<String>,
    /// `exports`: what the name and a path behind it mean, the path as `.` or `./…`, perhaps with one `*` in both. What is
    /// required and what is imported may be different files: those are two. None means that all files can be named.
    pub exports: Option<Vec<(String, String)>>,
}

impl Package {
    /// Reads a `package.json`; none if it is no JSON object.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let Value::Object(package) = serde_json::from_slice(text).ok()? else { return None };
        let main = package.get("main").and_then(Value::as_str).map(str::to_owned);
        let exports = package.get("exports").filter(|exports| !exports.is_null()).map(exports);
        Some(Self { main, exports })
    }

    /// The files that `path` in the package may mean by its exports: `.` or `./…`.
    pub fn targets<'a>(&'a self, path: &'a str) -> impl Iterator<Item = String> + 'a {
        self.exports.iter().flatten().filter_map(move |(name, target)| match name.split_once('*') {
            None => (name == path).then(|| target.clone()),
            Some((start, end)) => {
                let inner = path.strip_prefix(start)?.strip_suffix(end)?;
                (path.len().max(target.len()) <= MODULE_NAME_BYTES).then(|| target.replacen('*', inner, 2))
            }
        })
    }
}

fn exports(exports: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    match exports {
        Value::Object(map) if map.keys().any(|key| key.starts_with('.')) => {
            map.iter().for_each(|(name, target)| targets(name, target, &mut found));
        }
        target => targets(".", target, &mut found),
    }
    found
}

fn targets(name: &str, target: &Value, found: &mut Vec<(String, String)>) {
    for condition in [REQUIRED, IMPORTED] {
        let Some(target) = chosen(target, condition, DEPTH) else { continue };
        let target = (name.to_owned(), target.to_owned());
        if found.len() < MOST && found.last() != Some(&target) {
            found.push(target);
        }
    }
}

/// What a target is under a condition.
fn chosen<'a>(target: &'a Value, condition: &str, depth: usize) -> Option<&'a str> {
    let depth = depth.checked_sub(1)?;
    match target {
        Value::String(path) => Some(path),
        Value::Array(choices) => choices.iter().find_map(|choice| chosen(choice, condition, depth)),
        Value::Object(conditions) => by_condition(conditions, condition, depth),
        _ => None,
    }
}

fn by_condition<'a>(conditions: &'a Map<String, Value>, condition: &str, depth: usize) -> Option<&'a str> {
    let holds = |key: &String| key == condition || ALWAYS.contains(&key.as_str());
    conditions.iter().filter(|(key, _)| holds(key)).find_map(|(_, target)| chosen(target, condition, depth))
}

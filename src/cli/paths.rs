//! Paths as the daemon needs them: absolute, because it has another working directory, and without symbolic links,
//! because the kernel's mount table has none and the control socket is named after the cache directory.

use std::io;
use std::path::{Path, PathBuf};

/// The absolute form of `path` with all symbolic links of the part that exists resolved.
///
/// The same path before and after it is created, unless it is created as a link. A mount whose daemon is gone cannot be
/// looked at; then its parent is.
pub(super) fn settled(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    for existing in absolute.ancestors() {
        if let Ok(canonical) = existing.canonicalize() {
            let rest = absolute.strip_prefix(existing).unwrap_or(Path::new(""));
            // Joining an empty path would add a slash at the end.
            return Ok(if rest.as_os_str().is_empty() { canonical } else { canonical.join(rest) });
        }
    }
    Ok(absolute)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved_also_above_what_does_not_exist() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let real = dir.path().canonicalize()?.join("real");
        std::fs::create_dir(&real)?;
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("real", &link)?;
        assert_eq!(settled(&link)?, real);
        assert_eq!(settled(&link.join("new/deep/"))?, real.join("new/deep"));
        std::fs::create_dir_all(real.join("new/deep"))?;
        assert_eq!(settled(&link.join("new/deep"))?, real.join("new/deep"));
        Ok(())
    }

    #[test]
    fn relative_paths_start_at_the_working_directory() -> io::Result<()> {
        let here = std::env::current_dir()?.canonicalize()?;
        assert_eq!(settled(Path::new("does-not-exist-here"))?, here.join("does-not-exist-here"));
        assert_eq!(settled(Path::new("."))?, here);
        Ok(())
    }
}

//! Numbers of bytes as users write them: `500M`, `20G`.

/// How sizes are written.
const FORM: &str = "write it as 500M or 20G, in units of 1024";

/// Least size of a cache: one that has no room for the indexes of an image would only be emptied again and again.
const LEAST: u64 = 1 << 20;

/// Least memory for decoded data: two of the longest spans that are held in memory.
const LEAST_MEMORY: u64 = 32 << 20;

/// The size of a cache, in bytes: a whole number with the unit `K`, `M`, `G` or `T`, of 1024 each, or without one.
pub(super) fn cache_size(text: &str) -> Result<u64, String> {
    let bytes = bytes(text).ok_or(FORM)?;
    if bytes < LEAST { Err("a cache has 1M at least".to_owned()) } else { Ok(bytes) }
}

/// The memory for decoded data, in bytes, in the same form.
pub(super) fn memory_size(text: &str) -> Result<u64, String> {
    let bytes = bytes(text).ok_or(FORM)?;
    if bytes < LEAST_MEMORY { Err("decoded data needs 32M at least".to_owned()) } else { Ok(bytes) }
}

fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    // GB would be another number for every second reader.
    let unit = unit.strip_suffix("iB").unwrap_or(unit);
    let power = match unit {
        "" if end == text.len() => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << (10 * power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024_and_a_least() {
        let sizes =
            [("500M", 500 << 20), ("20G", 20 << 30), ("1T", 1 << 40), ("1024KiB", 1 << 20), ("1048576", 1 << 20)];
        for (text, expected) in sizes {
            assert_eq!(cache_size(text), Ok(expected), "{text}");
        }
        for text in ["", "G", "-1G", "1.5G", "2 G", "20GB", "1iB", "20g", "16777216T", "99999999999999999999"] {
            assert_eq!(cache_size(text), Err("write it as 500M or 20G, in units of 1024".to_owned()), "{text}");
        }
        for text in ["0", "1023K", "1048575"] {
            assert_eq!(cache_size(text), Err("a cache has 1M at least".to_owned()), "{text}");
        }
        assert_eq!(memory_size("32M"), Ok(32 << 20));
        assert_eq!(memory_size("31M"), Err("decoded data needs 32M at least".to_owned()));
        assert!(memory_size("64MB").is_err());
    }
}

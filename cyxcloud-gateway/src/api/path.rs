//! Paths outside of S3, read once: what the door verifies is what the router sees.
//!
//! A path is split where slashes were sent, and each part is decoded once. Only object keys, which some routes end with,
//! may hold what has a meaning in paths; anywhere else it is refused rather than guessed at. Pure.

use std::sync::LazyLock;

use super::table;
use crate::auth::Mount;
use crate::auth::query::decode;
use crate::auth::rewrite::plain_path;
use crate::problem::{Kind, Problem};

/// Routes that end with a key.
static KEYED: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| table().iter().map(|route| route.path).filter(|path| path.contains("{*")).collect());

fn refused(detail: &str) -> Problem {
    Problem::new(Kind::InvalidPath, detail)
}

/// The path in one encoding: its letters, digits and slashes as they are, all else percent-encoded.
pub(crate) fn plain(raw: &str) -> Result<String, Problem> {
    let plain = plain_path(raw, Mount::Plain, None).map_err(|error| refused(error.message()))?;
    let parts: Vec<&str> = raw.split('/').collect();
    let key = KEYED.iter().find_map(|route| key_at(&parts, route)).unwrap_or(parts.len());
    let named = parts.get(..key).unwrap_or_default();
    for (at, part) in named.iter().enumerate() {
        // Before the first slash there is nothing; and what a last one is followed by is for the router to know.
        if !part.is_empty() || (at > 0 && at + 1 < named.len()) {
            check(part)?;
        }
    }
    Ok(plain)
}

/// Where the key begins, if these are the parts of an address of this route.
fn key_at(parts: &[&str], route: &str) -> Option<usize> {
    let fixed: Vec<&str> = route.split('/').take_while(|part| !part.starts_with("{*")).collect();
    let is = |(part, wanted): (&&str, &&str)| {
        wanted.starts_with('{') || decode(part).is_ok_and(|part| part == **wanted)
    };
    (parts.len() > fixed.len() && parts.iter().zip(&fixed).all(is)).then_some(fixed.len())
}

/// Refuses what is no name of one thing.
fn check(part: &str) -> Result<(), Problem> {
    let name = decode(part).map_err(|error| refused(error.message()))?;
    Err(refused(match name.as_str() {
        "" => "the path has an empty part; write one slash between names",
        "." | ".." => "the path has a part that is . or ..; write the path that is meant",
        name if name.contains('/') => {
            "a slash is percent-encoded where no object key stands; write it as it is"
        }
        name if name.contains('\\') => "the path has a backslash; parts are separated by slashes",
        name if name.chars().any(char::is_control) => "the path has a control character, which no name has",
        _ => return Ok(()),
    }))
}

#[cfg(test)]
mod tests {
    #[test]
    fn adv_20_a_path_is_read_once_and_in_one_way() {
        for (raw, plain) in [
            ("/api/v1/account", "/api/v1/account"),
            ("/api/v1/%61ccount", "/api/v1/account"),
            ("/api/v1/account/", "/api/v1/account/"),
            ("/api/v1/auth/api-keys/a%2525b%c3%a4", "/api/v1/auth/api-keys/a%2525b%C3%A4"),
            ("/api/v1/buckets/b/objects/a/b", "/api/v1/buckets/b/objects/a/b"),
            ("/api/v1/buckets/b/objects/a%2Fb", "/api/v1/buckets/b/objects/a/b"),
            ("/api/v1/buckets/b/%6fbjects/a%252Fb", "/api/v1/buckets/b/objects/a%252Fb"),
            ("/api/v1/buckets/b/objects/../%2e%2E//..%5c%00", "/api/v1/buckets/b/objects/../..//..%5C%00"),
            ("/api/v1/buckets/b/objects/", "/api/v1/buckets/b/objects/"),
        ] {
            assert_eq!(super::plain(raw).expect(raw), plain, "{raw}");
        }
    }

    #[test]
    fn adv_20_what_means_something_in_paths_is_refused_where_no_key_stands() {
        for raw in [
            "/api/v1/admin%2Fnodes",
            "/api%2fv1/account",
            "/api/v1/auth/api-keys/a%2Fb",
            "/api/v1/auth/api-keys/..",
            "/api/v1/auth/api-keys/%2e%2E/me",
            "/api/v1/./account",
            "/api/v1//account",
            "//api/v1/account",
            "/api/v1/auth/api-keys/a%5cb",
            "/api/v1/auth/api-keys/a\\b",
            "/api/v1/auth/api-keys/%00",
            "/api/v1/auth/api-keys/%0a",
            "/api/v1/auth/api-keys/%7f",
            "/api/v1/auth/api-keys/%ff",
            "/api/v1/auth/api-keys/%c0%ae%c0%ae",
            "/api/v1/auth/api-keys/%",
            "/api/v1/buckets/a%2Fb",
            "/api/v1/buckets/a%2Fb/objects/k",
            "/api/v1/buckets/../objects/k",
            "/api/v1/buckets/b/objects%2Fk",
            "/api/v1/buckets/b/objects/%ff",
        ] {
            assert!(super::plain(raw).is_err(), "{raw}");
        }
    }
}

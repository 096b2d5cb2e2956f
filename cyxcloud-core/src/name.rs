//! Names that people give: buckets and keys, checked once where they come in.

use std::fmt;
use std::str::FromStr;

/// Why a text cannot name a bucket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BucketNameError {
    /// The length rule.
    #[error("a bucket name has 3 to 63 characters, not {0}")]
    Length(usize),
    /// The alphabet rule.
    #[error("a bucket name has lower-case letters, digits, dots and hyphens only, not {0:?}")]
    Character(char),
    /// The ends, or two neighbours.
    #[error(
        "a bucket name starts and ends with a letter or digit and has no two dots, or dot and hyphen, side by side"
    )]
    Shape,
    /// S3's rule against confusion with addresses.
    #[error("a bucket name is not written like an IP address")]
    LooksLikeAddress,
    /// Ours: the root of the HTTP port belongs to S3 clients and to these.
    #[error("{0:?} is reserved")]
    Reserved(String),
}

/// A bucket name by S3's rules, and none of our own routes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketName(String);

impl BucketName {
    /// First path components that belong to the gateway itself.
    pub const RESERVED: [&'static str; 8] =
        ["api", "console", "health", "metrics", "ready", "version", "ws", "s3"];

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BucketName {
    type Err = BucketNameError;

    /// Rules: Amazon S3 User Guide, "General purpose bucket naming rules".
    fn from_str(name: &str) -> Result<Self, BucketNameError> {
        if !(3..=63).contains(&name.len()) {
            // Our shortest routes are reserved, too; the length rule keeps them away already.
            return Err(BucketNameError::Length(name.chars().count()));
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
        if let Some(c) = name.chars().find(|c| !allowed(*c)) {
            return Err(BucketNameError::Character(c));
        }
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        if !ends(name.chars().next()) || !ends(name.chars().next_back()) {
            return Err(BucketNameError::Shape);
        }
        if ["..", ".-", "-."].iter().any(|pair| name.contains(pair)) {
            return Err(BucketNameError::Shape);
        }
        if name.parse::<std::net::Ipv4Addr>().is_ok() {
            return Err(BucketNameError::LooksLikeAddress);
        }
        let reserved = Self::RESERVED.contains(&name)
            || ["xn--", "sthree-", "amzn-s3-demo-"].iter().any(|prefix| name.starts_with(prefix))
            || ["-s3alias", "--ol-s3", ".mrap", "--x-s3"].iter().any(|suffix| name.ends_with(suffix));
        if reserved {
            return Err(BucketNameError::Reserved(name.to_owned()));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Why a text cannot be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectKeyError {
    /// There is nothing.
    #[error("a key has at least one character")]
    Empty,
    /// S3's limit.
    #[error("a key has at most {max} bytes, not {0}", max = ObjectKey::LEN_MAX)]
    TooLong(usize),
}

/// An object's key: 1 to 1,024 bytes of UTF-8, anything in it, compared byte by byte.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// Longest key in bytes.
    pub const LEN_MAX: usize = 1024;

    /// Takes a key, or says what is wrong with it.
    pub fn new(key: impl Into<String>) -> Result<Self, ObjectKeyError> {
        let key = key.into();
        match key.len() {
            0 => Err(ObjectKeyError::Empty),
            1..=Self::LEN_MAX => Ok(Self(key)),
            len => Err(ObjectKeyError::TooLong(len)),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The bytes that keys are sorted by.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// What follows the last slash; the whole key where that is empty.
    pub fn file_name(&self) -> &str {
        self.0.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(&self.0)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names_follow_s3() {
        for good in ["abc", "a.b-c9", "my.bucket.name", "123", &"x".repeat(63)] {
            assert!(good.parse::<BucketName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "ab",
            &"x".repeat(64),
            "Abc",
            "a_b",
            "-abc",
            "abc-",
            "a..b",
            "a.-b",
            "192.168.5.4",
            "api",
            "console",
            "xn--abc",
            "ab/c",
            "äbc",
        ] {
            assert!(bad.parse::<BucketName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_any_text_of_1_to_1024_bytes() {
        assert!(ObjectKey::new("").is_err());
        assert!(ObjectKey::new("x".repeat(1024)).is_ok());
        assert_eq!(ObjectKey::new("x".repeat(1025)), Err(ObjectKeyError::TooLong(1025)));
        assert!(ObjectKey::new("a\0b//../ü").is_ok());
    }

    #[test]
    fn file_names_are_the_last_component() {
        let name = |key: &str| ObjectKey::new(key).expect("valid").file_name().to_owned();
        assert_eq!(name("a/b/c.txt"), "c.txt");
        assert_eq!(name("dir/"), "dir");
        assert_eq!(name("//"), "//");
    }
}

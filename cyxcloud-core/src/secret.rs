//! Where a secret may come from, and which texts are none.
//!
//! A secret is in its variable `NAME`, or in the file that `NAME_FILE` names; in one of both, and nowhere by default.
//! Pure: whoever calls brings what reads a file. Not here: what a key is used for, and whether it is the right one.

use std::path::Path;

use percent_encoding::percent_decode_str;

use crate::seal::MasterKeyError;

/// Shortest secret that is used as a key, in bytes.
pub const KEY_MIN: usize = 32;
/// Different bytes that a key has at least: 32 random hexadecimal digits have fewer once in a billion times.
const KEY_DIFFERENT_MIN: usize = 6;
/// Secrets that stand in printed examples; nobody may run with one.
const EXAMPLES: [&str; 9] = [
    "your-secret-here",
    "your-secret",
    "changeme",
    "change-me",
    "secret",
    "password",
    "minioadmin",
    "sesame",
    // Of the manuals of S3.
    "wjalrxutnfemi/k7mdeng/bpxrficyexamplekey",
];

/// Why a secret cannot be used. None of them repeats it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It is nowhere.
    #[error("{0} is required: set it, or {0}_FILE to the path of a file that holds it ({1})")]
    Missing(&'static str, &'static str),
    /// Two places name it.
    #[error("{0} and {0}_FILE are both set; set one of them")]
    Twice(&'static str),
    /// The file that holds it cannot be read.
    #[error("could not read the file that {0}_FILE names")]
    File(&'static str, #[source] std::io::Error),
    /// It is there and worthless.
    #[error("{0} is not usable: {1}")]
    Weak(&'static str, Weakness),
    /// It is there and no key.
    #[error("{0} is not usable: {1}")]
    NoKey(&'static str, MasterKeyError),
    /// Who learns one of them has both.
    #[error("{0} and {1} are the same; make another, e.g. openssl rand -hex 32")]
    Same(&'static str, &'static str),
}

/// Why a text is no secret. `Display` is the end of a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Weakness {
    /// There is none.
    #[error("it is empty")]
    Empty,
    /// Anybody knows it.
    #[error("it is the one of the examples")]
    Example,
    /// Somebody may guess it.
    #[error("it has fewer than {0} bytes")]
    Short(usize),
    /// The same few characters again and again.
    #[error("it is not random")]
    Repeated,
    /// What was meant is not known.
    #[error("it has more than one line")]
    Lines,
}

/// What a secret must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// Somebody else judges it, such as a database its URL.
    Any,
    /// Not shorter than this, in bytes, and no example.
    AtLeast(usize),
    /// Signs, seals or opens everything: [`KEY_MIN`] bytes that look random.
    Key,
}

impl Strength {
    /// Refuses texts that anybody knows or may guess.
    pub fn check(self, text: &str) -> Result<(), Weakness> {
        if text.trim().is_empty() {
            return Err(Weakness::Empty);
        }
        if text.contains(['\n', '\r', '\0']) {
            return Err(Weakness::Lines);
        }
        let least = match self {
            Self::Any => return Ok(()),
            Self::AtLeast(least) => least,
            Self::Key => KEY_MIN,
        };
        // An example does not become a secret by being repeated.
        let plain = text.trim().to_ascii_lowercase();
        if EXAMPLES.iter().any(|example| plain.replace(example, "").is_empty()) {
            return Err(Weakness::Example);
        }
        if text.len() < least {
            return Err(Weakness::Short(least));
        }
        if self == Self::Key && different_bytes(text) < KEY_DIFFERENT_MIN {
            return Err(Weakness::Repeated);
        }
        Ok(())
    }
}

fn different_bytes(text: &str) -> usize {
    let mut bytes = text.as_bytes().to_vec();
    bytes.sort_unstable();
    bytes.dedup();
    bytes.len()
}

/// The secret `name`: the value, or what `read` finds in the file, without the line's end that editors put there.
/// Nothing where there is neither.
pub fn obtain(
    name: &'static str,
    value: Option<&str>,
    file: Option<&Path>,
    strength: Strength,
    read: impl FnOnce(&Path) -> std::io::Result<String>,
) -> Result<Option<String>, SecretError> {
    let text = match (value, file) {
        (Some(_), Some(_)) => return Err(SecretError::Twice(name)),
        (Some(value), None) => value.to_owned(),
        (None, Some(path)) => {
            let mut text = read(path).map_err(|source| SecretError::File(name, source))?;
            text.truncate(text.trim_end_matches(['\r', '\n']).len());
            text
        }
        (None, None) => return Ok(None),
    };
    strength.check(&text).map_err(|weakness| SecretError::Weak(name, weakness))?;
    Ok(Some(text))
}

/// Refuses secrets of which two are the same: each is for one thing, so that losing one loses one. Hexadecimal digits are
/// the same in either case.
pub fn distinct(secrets: &[(&'static str, &str)]) -> Result<(), SecretError> {
    for (index, (name, secret)) in secrets.iter().enumerate() {
        if let Some((other, _)) =
            secrets[..index].iter().find(|(_, earlier)| earlier.eq_ignore_ascii_case(secret))
        {
            return Err(SecretError::Same(other, name));
        }
    }
    Ok(())
}

/// The password in the URL of a database, as it was before it was written into one.
pub fn url_password(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (user, _) = authority.rsplit_once('@')?;
    let (_, password) = user.split_once(':')?;
    Some(percent_decode_str(password).decode_utf8_lossy().into_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "0123456789abcdef0123456789abcdef";

    fn from_file(text: &str) -> Result<Option<String>, SecretError> {
        let path = Path::new("/run/secrets/x");
        obtain("X", None, Some(path), Strength::Key, |asked| {
            assert_eq!(asked, path);
            Ok(text.to_owned())
        })
    }

    fn nothing_is_read(_: &Path) -> std::io::Result<String> {
        panic!("no file was named")
    }

    #[test]
    fn a_secret_comes_from_one_place() {
        let value = obtain("X", Some(GOOD), None, Strength::Key, nothing_is_read).expect("good");
        assert_eq!(value.as_deref(), Some(GOOD));
        assert_eq!(obtain("X", None, None, Strength::Key, nothing_is_read).expect("allowed"), None);
        let twice = obtain("X", Some(GOOD), Some(Path::new("/x")), Strength::Key, nothing_is_read);
        assert_eq!(twice.expect_err("twice").to_string(), "X and X_FILE are both set; set one of them");
        let absent = obtain("X", None, Some(Path::new("/x")), Strength::Any, |_| {
            Err(std::io::ErrorKind::NotFound.into())
        });
        assert!(matches!(absent, Err(SecretError::File("X", _))));
    }

    #[test]
    fn the_end_of_a_file_s_line_is_no_part_of_it() {
        for end in ["", "\n", "\r\n", "\n\n"] {
            assert_eq!(from_file(&format!("{GOOD}{end}")).expect("good").as_deref(), Some(GOOD), "{end:?}");
        }
        assert!(matches!(from_file(""), Err(SecretError::Weak("X", Weakness::Empty))));
        assert!(matches!(from_file("\n"), Err(SecretError::Weak("X", Weakness::Empty))));
        let two = from_file(&format!("{GOOD}\n{GOOD}\n")).expect_err("which one?").to_string();
        assert!(two.contains("more than one line") && !two.contains(GOOD), "{two}");
    }

    #[test]
    fn what_anybody_knows_or_guesses_is_no_secret() {
        for example in [
            "your-secret-here",
            "changeme",
            "Secret",
            "your-secret-hereyour-secret-here",
            " secret ",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        ] {
            for strength in [Strength::Key, Strength::AtLeast(1)] {
                assert_eq!(strength.check(example), Err(Weakness::Example), "{example}");
            }
        }
        assert_eq!(Strength::Key.check(&GOOD[1..]), Err(Weakness::Short(32)));
        assert_eq!(Strength::Key.check(&"01".repeat(32)), Err(Weakness::Repeated));
        assert_eq!(Strength::Key.check(GOOD), Ok(()));
        assert_eq!(Strength::AtLeast(16).check(&"x".repeat(15)), Err(Weakness::Short(16)));
        assert_eq!(Strength::AtLeast(16).check(&"x".repeat(16)), Ok(()));
        assert_eq!(Strength::Any.check("secret"), Ok(()));
        assert_eq!(Strength::Any.check(" "), Err(Weakness::Empty));
    }

    #[test]
    fn no_two_are_the_same() {
        distinct(&[("A", "x"), ("B", "y"), ("C", "z")]).expect("differ");
        let same = distinct(&[("A", "ab"), ("B", "y"), ("C", "AB")]).expect_err("the same").to_string();
        assert!(same.starts_with("A and C are the same"), "{same}");
    }

    #[test]
    fn passwords_of_urls_are_found() {
        let of = |url| url_password(url);
        assert_eq!(of("postgres://u:pa%40ss@h:5432/d?x=a:b@c").as_deref(), Some("pa@ss"));
        assert_eq!(of("redis://:hush@h").as_deref(), Some("hush"));
        assert_eq!(of("postgres://u:a@b@h/d").as_deref(), Some("a@b"));
        for none in
            ["postgres://u@h/d", "postgres://h/d", "postgres://u:@h/d", "h", "postgres:///d?password=x"]
        {
            assert_eq!(of(none), None, "{none}");
        }
    }
}

//! What must hold for a read to answer with the object: `If-Match` and its relatives.
//!
//! Pure. The order of precedence is RFC 9110's, which is S3's: an ETag condition makes the date condition beside it
//! irrelevant. Times are compared in whole seconds, because that is what `Last-Modified` shows.
//! Conditions of writes are not here: the metadata store judges them under the key's lock.

use cyxcloud_core::Timestamp;

/// The value of `If-Match` or `If-None-Match`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ETags {
    /// `*`.
    Any,
    /// One or more, without quotes; weak ones marked.
    List(Vec<ETag>),
}

/// One ETag of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ETag {
    /// Without quotes.
    pub value: String,
    /// Written with `W/`. Ours never are, so it never matches strongly.
    pub weak: bool,
}

impl ETags {
    /// Reads the header. Quotes may be missing, as some clients leave them out.
    pub fn parse(header: &str) -> Self {
        let header = header.trim();
        if header == "*" {
            return Self::Any;
        }
        let one = |text: &str| {
            let text = text.trim();
            let (weak, text) = text.strip_prefix("W/").map_or((false, text), |rest| (true, rest));
            let value = text.strip_prefix('"').unwrap_or(text);
            ETag { value: value.strip_suffix('"').unwrap_or(value).to_owned(), weak }
        };
        Self::List(header.split(',').map(one).filter(|etag| !etag.value.is_empty()).collect())
    }

    fn matches(&self, etag: &str, weakly: bool) -> bool {
        match self {
            Self::Any => true,
            Self::List(list) => list.iter().any(|one| one.value == etag && (weakly || !one.weak)),
        }
    }
}

/// Conditions of a read, or of the source of a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadConditions {
    /// `If-Match`.
    pub matches: Option<ETags>,
    /// `If-None-Match`.
    pub none_match: Option<ETags>,
    /// `If-Modified-Since`.
    pub modified_since: Option<Timestamp>,
    /// `If-Unmodified-Since`.
    pub unmodified_since: Option<Timestamp>,
}

/// How conditions turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer with the object.
    Proceed,
    /// The reader has it already.
    NotModified,
    /// The condition named does not hold.
    Failed(&'static str),
}

impl ReadConditions {
    /// Whether they hold for an object.
    pub fn judge(&self, etag: &str, modified_at: Timestamp) -> Verdict {
        let seconds = |time: Timestamp| time.unix_millis().div_euclid(1000);
        let modified_after = |time: Timestamp| seconds(modified_at) > seconds(time);
        match (&self.matches, self.unmodified_since) {
            (Some(etags), _) if !etags.matches(etag, false) => return Verdict::Failed("If-Match"),
            (None, Some(since)) if modified_after(since) => return Verdict::Failed("If-Unmodified-Since"),
            _ => {}
        }
        match (&self.none_match, self.modified_since) {
            (Some(etags), _) if etags.matches(etag, true) => Verdict::NotModified,
            (None, Some(since)) if !modified_after(since) => Verdict::NotModified,
            _ => Verdict::Proceed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_with_and_without_quotes() {
        let etag = |value: &str, weak| ETag { value: value.to_owned(), weak };
        assert_eq!(ETags::parse(" * "), ETags::Any);
        assert_eq!(ETags::parse("\"a\""), ETags::List(vec![etag("a", false)]));
        assert_eq!(ETags::parse("a-2"), ETags::List(vec![etag("a-2", false)]));
        assert_eq!(ETags::parse("\"a\", W/\"b\""), ETags::List(vec![etag("a", false), etag("b", true)]));
    }

    /// Every combination of conditions that hold, fail or are absent, against the order of precedence.
    #[test]
    fn precedence_is_that_of_s3() {
        let time = Timestamp::from_unix_millis;
        let (before, same, after) = (time(1_000_000), time(2_000_000), time(3_000_000));
        let modified = time(2_000_700);
        let etags = |holds: bool| ETags::parse(if holds { "\"e\"" } else { "\"other\"" });
        let states = [None, Some(true), Some(false)];
        for matches in states {
            for unmodified in states {
                for none_match in states {
                    for modified_since in states {
                        let conditions = ReadConditions {
                            matches: matches.map(etags),
                            unmodified_since: unmodified.map(|holds| if holds { same } else { before }),
                            none_match: none_match.map(|holds| etags(!holds)),
                            modified_since: modified_since.map(|holds| if holds { before } else { after }),
                        };
                        let want = match (matches, unmodified, none_match, modified_since) {
                            (Some(false), ..) => Verdict::Failed("If-Match"),
                            (None, Some(false), ..) => Verdict::Failed("If-Unmodified-Since"),
                            (_, _, Some(false), _) | (_, _, None, Some(false)) => Verdict::NotModified,
                            _ => Verdict::Proceed,
                        };
                        assert_eq!(conditions.judge("e", modified), want, "{conditions:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_second_is_the_unit() {
        let conditions = |since| ReadConditions {
            modified_since: Some(Timestamp::from_unix_millis(since)),
            ..ReadConditions::default()
        };
        let modified = Timestamp::from_unix_millis(5_900);
        assert_eq!(conditions(5_000).judge("e", modified), Verdict::NotModified);
        assert_eq!(conditions(4_999).judge("e", modified), Verdict::Proceed);
    }

    #[test]
    fn weak_etags_match_only_weakly() {
        let weak = Some(ETags::parse("W/\"e\""));
        let now = Timestamp::default();
        let if_match = ReadConditions { matches: weak.clone(), ..ReadConditions::default() };
        assert_eq!(if_match.judge("e", now), Verdict::Failed("If-Match"));
        let if_none_match = ReadConditions { none_match: weak, ..ReadConditions::default() };
        assert_eq!(if_none_match.judge("e", now), Verdict::NotModified);
    }
}

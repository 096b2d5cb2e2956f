//! What a limited credential may do: the one place where buckets, prefixes and read-only are judged.
//!
//! Whoever opens a bucket says what for ([`Need`]); there is no other way to one (`objects`).

use std::sync::Arc;

use cyxcloud_core::OwnerId;
use cyxcloud_core::name::{BucketName, ObjectKey};

/// Who asks, and within which limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whose rights.
    pub owner: OwnerId,
    /// Less than all of them.
    pub limits: Option<Arc<Limits>>,
}

impl From<OwnerId> for Caller {
    /// With all of the owner's rights.
    fn from(owner: OwnerId) -> Self {
        Self { owner, limits: None }
    }
}

/// What a credential is limited to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Only these buckets; `None` is all.
    pub buckets: Option<Vec<String>>,
    /// Only keys that begin with one of these; `None` is all.
    pub prefixes: Option<Vec<String>>,
    /// Changes nothing.
    pub read_only: bool,
}

/// What a bucket is opened for.
#[derive(Clone, Copy, Debug)]
pub enum Need<'a> {
    /// To see that it is there and how it is set up.
    Look,
    /// To see which keys begin with this.
    List(&'a str),
    /// To read an object, or what is said of it.
    Read(&'a ObjectKey),
    /// To make, change or delete an object or an upload.
    Write(&'a ObjectKey),
    /// To make, change or delete the bucket.
    Manage,
}

impl Caller {
    /// Whether the limits allow it. Whose the bucket is, is another question.
    pub fn may(&self, bucket: &BucketName, need: Need<'_>) -> bool {
        self.limits.as_ref().is_none_or(|limits| limits.allow(bucket, need))
    }
}

impl Limits {
    /// `None` where nothing is limited.
    pub fn of(
        buckets: Option<Vec<String>>,
        prefixes: Option<Vec<String>>,
        read_only: bool,
    ) -> Option<Arc<Self>> {
        let limited = buckets.is_some() || prefixes.is_some() || read_only;
        limited.then(|| Arc::new(Self { buckets, prefixes, read_only }))
    }

    fn allow(&self, bucket: &BucketName, need: Need<'_>) -> bool {
        let named = self.buckets.as_ref().is_none_or(|buckets| buckets.iter().any(|b| b == bucket.as_str()));
        let covers = |text: &str| {
            self.prefixes
                .as_ref()
                .is_none_or(|prefixes| prefixes.iter().any(|prefix| text.starts_with(prefix)))
        };
        named
            && match need {
                Need::Look => true,
                Need::List(prefix) => covers(prefix),
                Need::Read(key) => covers(key.as_str()),
                Need::Write(key) => !self.read_only && covers(key.as_str()),
                Need::Manage => !self.read_only && self.prefixes.is_none(),
            }
    }

    /// Whether everything that `self` allows is allowed by `other`.
    pub fn within(&self, other: &Self) -> bool {
        let buckets = match (&self.buckets, &other.buckets) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(mine), Some(theirs)) => mine.iter().all(|bucket| theirs.contains(bucket)),
        };
        let prefixes = match (&self.prefixes, &other.prefixes) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(mine), Some(theirs)) => {
                mine.iter().all(|prefix| theirs.iter().any(|wider| prefix.starts_with(wider)))
            }
        };
        buckets && prefixes && (self.read_only || !other.read_only)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(buckets: Option<&[&str]>, prefixes: Option<&[&str]>, read_only: bool) -> Limits {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Limits { buckets: buckets.map(own), prefixes: prefixes.map(own), read_only }
    }

    #[test]
    fn each_limit_holds_alone() {
        let (one, two): (BucketName, BucketName) =
            ("one".parse().expect("valid"), "two".parse().expect("valid"));
        let (inside, outside) = (ObjectKey::new("a/k").expect("valid"), ObjectKey::new("ab").expect("valid"));
        let bucket = limits(Some(&["one"]), None, false);
        assert!(bucket.allow(&one, Need::Manage) && !bucket.allow(&two, Need::Look));
        let prefix = limits(None, Some(&["a/", "z"]), false);
        assert!(prefix.allow(&one, Need::Write(&inside)) && prefix.allow(&two, Need::List("a/x")));
        for need in
            [Need::Write(&outside), Need::Read(&outside), Need::List("a"), Need::List(""), Need::Manage]
        {
            assert!(!prefix.allow(&one, need), "{need:?}");
        }
        let reader = limits(None, None, true);
        assert!(reader.allow(&one, Need::Read(&outside)) && reader.allow(&one, Need::List("")));
        assert!(!reader.allow(&one, Need::Write(&inside)) && !reader.allow(&one, Need::Manage));
        let nothing = limits(Some(&[]), None, false);
        assert!(!nothing.allow(&one, Need::Look));
    }

    #[test]
    fn adv_16_a_smaller_limit_lies_within() {
        let wide = limits(Some(&["one", "two"]), Some(&["a/"]), true);
        assert!(wide.within(&wide) && wide.within(&Limits::default()));
        assert!(limits(Some(&["one"]), Some(&["a/b", "a/"]), true).within(&wide));
        for more in [
            limits(None, Some(&["a/"]), true),
            limits(Some(&["three"]), Some(&["a/"]), true),
            limits(Some(&["one"]), None, true),
            limits(Some(&["one"]), Some(&["a/", "a"]), true),
            limits(Some(&["one"]), Some(&["a/"]), false),
        ] {
            assert!(!more.within(&wide), "{more:?}");
        }
    }
}

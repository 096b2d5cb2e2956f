//! The walk against a listing that reads everything.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Key(String);

impl Row for Key {
    fn key(&self) -> &str {
        &self.0
    }

    fn within_key(&self) -> Option<UploadId> {
        None
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Upload(String, UploadId);

impl Row for Upload {
    fn key(&self) -> &str {
        &self.0
    }

    fn within_key(&self) -> Option<UploadId> {
        Some(self.1)
    }
}

/// An index; counts the rows it gives out.
struct Index {
    keys: BTreeMap<Vec<u8>, String>,
    read: usize,
    asked: usize,
}

impl Index {
    fn new<K: Into<String>>(keys: impl IntoIterator<Item = K>) -> Self {
        let keys =
            keys.into_iter().map(Into::into).map(|key: String| (key.clone().into_bytes(), key)).collect();
        Self { keys, read: 0, asked: 0 }
    }

    fn answer(&mut self, ask: &Ask) -> Vec<Key> {
        let rows: Vec<Key> = self
            .keys
            .range(ask.from.clone()..ask.until.clone())
            .take(ask.limit)
            .map(|(_, key)| Key(key.clone()))
            .collect();
        self.read += rows.len();
        self.asked += 1;
        rows
    }

    /// One page, and how to go on.
    fn page(
        &mut self,
        prefix: &str,
        delimiter: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> (Vec<Entry<Key>>, Option<String>) {
        let mut walk = Walk::new(prefix, delimiter, after, None, limit);
        while let Some(ask) = walk.ask() {
            let rows = self.answer(&ask);
            walk.eat(rows);
        }
        let next = walk.more.then(|| name(walk.entries.last().expect("a page with more has entries")));
        (walk.entries, next)
    }

    fn all(&mut self, prefix: &str, delimiter: Option<&str>, limit: usize) -> Vec<Entry<Key>> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let (entries, next) = self.page(prefix, delimiter, after.as_deref(), limit);
            assert!(entries.len() <= limit);
            all.extend(entries);
            after = next;
            if after.is_none() {
                return all;
            }
        }
    }

    /// What S3 means, by reading everything.
    fn naive(&self, prefix: &str, delimiter: Option<&str>, after: Option<&str>) -> Vec<Entry<Key>> {
        let mut entries: Vec<Entry<Key>> = Vec::new();
        for key in self.keys.values().filter(|key| key.starts_with(prefix)) {
            let rest = &key[prefix.len()..];
            let entry = match delimiter
                .filter(|d| !d.is_empty())
                .and_then(|d| rest.split_once(d).map(|(dir, _)| (dir, d)))
            {
                Some((dir, d)) => Entry::Prefix(format!("{prefix}{dir}{d}")),
                None => Entry::Row(Key(key.clone())),
            };
            let visible = after.is_none_or(|after| name(&entry).as_bytes() > after.as_bytes());
            if visible && entries.last() != Some(&entry) {
                entries.push(entry);
            }
        }
        entries
    }
}

fn name(entry: &Entry<Key>) -> String {
    match entry {
        Entry::Row(row) => row.0.clone(),
        Entry::Prefix(prefix) => prefix.clone(),
    }
}

/// Few letters, so that prefixes and delimiters meet; the ends of every length of UTF-8 among them.
fn text(len: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    let letter = prop::sample::select(vec![
        'a',
        'b',
        '/',
        '/',
        '\0',
        '\u{7f}',
        '\u{80}',
        '\u{7ff}',
        '\u{ffff}',
        '\u{10ffff}',
    ]);
    prop::collection::vec(letter, len).prop_map(|letters| letters.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn pages_are_what_reading_everything_gives(
        keys in prop::collection::vec(text(1..7), 0..60),
        prefix in text(0..3),
        delimiter in prop::option::of(text(0..3)),
        after in prop::option::of(text(0..5)),
        limit in 1usize..9,
    ) {
        let mut index = Index::new(keys);
        let want = index.naive(&prefix, delimiter.as_deref(), after.as_deref());
        let (page, next) = index.page(&prefix, delimiter.as_deref(), after.as_deref(), limit);
        prop_assert_eq!(&page[..], &want[..limit.min(want.len())]);
        prop_assert_eq!(next.is_some(), want.len() > limit);
        let whole = index.naive(&prefix, delimiter.as_deref(), None);
        prop_assert_eq!(index.all(&prefix, delimiter.as_deref(), limit), whole);
    }
}

#[test]
fn what_is_folded_is_not_read() {
    let mut index = Index::new((0..20_000).map(|n| format!("dir/{n:05}")).chain(["a".into(), "z".into()]));
    let (page, next) = index.page("", Some("/"), None, 1000);
    assert_eq!(page.iter().map(name).collect::<Vec<_>>(), ["a", "dir/", "z"]);
    assert_eq!(next, None);
    assert!(index.read <= 2 * BATCH_FIRST, "read {} rows", index.read);
}

#[test]
fn many_deep_prefixes_cost_a_small_batch_each() {
    let mut index = Index::new((0..300).flat_map(|dir| (0..200).map(move |n| format!("{dir:03}/{n:03}"))));
    let (page, next) = index.page("", Some("/"), None, 300);
    assert_eq!((page.len(), next), (300, None));
    assert!(index.read <= 300 * BATCH_MIN + 4 * BATCH_FIRST, "read {} rows", index.read);
}

#[test]
fn a_flat_page_is_read_at_once_and_not_beyond() {
    let mut index = Index::new((0..5_000).map(|n| format!("{n:05}")));
    let (page, next) = index.page("", None, None, 1000);
    assert_eq!((page.len(), next.as_deref()), (1000, Some("00999")));
    assert_eq!((index.read, index.asked), (1001, 1));
    let mut index = Index::new((0..5_000).map(|n| format!("{n:05}")));
    index.page("", Some("/"), None, 1000);
    assert!(index.read <= 1001 && index.asked <= 8, "{} rows by {} asks", index.read, index.asked);
}

#[test]
fn an_empty_page_asks_nothing() {
    assert_eq!(Walk::<Key>::new("", None, None, None, 0).ask(), None);
    assert_eq!(Walk::<Key>::new("b", None, Some("c"), None, 10).ask(), None);
}

#[test]
fn uploads_of_one_key_are_paged_one_by_one() {
    let uploads: Vec<Upload> = [("a", 1), ("k", 9), ("k", 3), ("k", 7), ("x/y", 2), ("x/z", 4)]
        .map(|(key, n)| Upload(key.into(), UploadId::from_random([n; 16])))
        .into();
    let (mut seen, mut after) = (Vec::new(), (None, None));
    loop {
        let mut walk = Walk::new("", Some("/"), after.0.as_deref(), after.1, 1);
        while let Some(ask) = walk.ask() {
            let skip = ask.skip.and_then(|id| uploads.iter().position(|upload| upload.1 == id));
            let within = uploads.iter().enumerate().filter(|(at, upload)| {
                upload.0.as_bytes() >= ask.from.as_slice()
                    && upload.0.as_bytes() < ask.until.as_slice()
                    && (upload.0.as_bytes() != ask.from.as_slice() || skip.is_none_or(|skip| *at > skip))
            });
            walk.eat(within.map(|(_, upload)| upload.clone()).take(ask.limit).collect());
        }
        seen.extend(walk.entries.iter().map(|entry| match entry {
            Entry::Row(row) => (row.0.clone(), Some(row.1)),
            Entry::Prefix(prefix) => (prefix.clone(), None),
        }));
        if !walk.more {
            break;
        }
        let last = seen.last().expect("a page with more has entries").clone();
        after = (Some(last.0), last.1);
    }
    let names: Vec<&str> = seen.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a", "k", "k", "k", "x/"]);
}

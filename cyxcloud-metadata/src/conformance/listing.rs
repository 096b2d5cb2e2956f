//! Listings of objects.

use cyxcloud_core::ByteCount;

use super::{Place, place};
use crate::MetadataStore;
use crate::model::{Attributes, CommitObject, Content, ListEntry, ListObjects, ListPage, StoredChecksum};

async fn put_all<K: AsRef<str>>(store: &dyn MetadataStore, place: Place, keys: &[K]) {
    for some in keys.chunks(64) {
        futures::future::join_all(some.iter().map(|key| place.put(store, key.as_ref(), b"x"))).await;
    }
}

fn query(place: Place, prefix: &str, delimiter: Option<&str>) -> ListObjects {
    ListObjects {
        bucket: place.bucket,
        prefix: prefix.to_owned(),
        delimiter: delimiter.map(str::to_owned),
        after: None,
        limit: 1000,
    }
}

fn names(page: &ListPage) -> Vec<String> {
    let name = |entry: &ListEntry| match entry {
        ListEntry::Object(object) => object.key.clone(),
        ListEntry::Prefix(prefix) => format!("{prefix}*"),
    };
    page.entries.iter().map(name).collect()
}

async fn list(store: &dyn MetadataStore, query: &ListObjects) -> Vec<String> {
    let page = store.list_objects(query).await.expect("list");
    assert_eq!(page.next, None);
    names(&page)
}

/// All pages of a listing; no page is too long, and none but the last may be empty.
async fn pages(store: &dyn MetadataStore, mut query: ListObjects) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let page = store.list_objects(&query).await.expect("list");
        assert!(page.entries.len() <= query.limit);
        assert!(page.next.is_none() || page.entries.len() == query.limit);
        all.extend(names(&page));
        query.after = page.next;
        if query.after.is_none() {
            return all;
        }
    }
}

/// Prefixes with a star where they fold; by reading everything.
fn naive(keys: &[String], prefix: &str, delimiter: Option<&str>) -> Vec<String> {
    let mut keys: Vec<&String> = keys.iter().filter(|key| key.starts_with(prefix)).collect();
    keys.sort();
    let entry = |key: &&String| match delimiter.and_then(|d| Some((key[prefix.len()..].find(d)?, d))) {
        Some((at, d)) => format!("{}*", &key[..prefix.len() + at + d.len()]),
        None => (*key).clone(),
    };
    let mut entries: Vec<String> = keys.iter().map(entry).collect();
    entries.dedup();
    entries
}

/// Whatever the page size, the prefix and the delimiter.
pub async fn pages_never_repeat_or_miss(store: &dyn MetadataStore) {
    let (place, other) = (place(store).await, place(store).await);
    let tails = ["", "/", "/x", "/x/y", "//", "-", "\u{10ffff}/"];
    let keys: Vec<String> = (0..30).flat_map(|n| tails.map(|tail| format!("d{}/{n}{tail}", n % 4))).collect();
    put_all(store, place, &keys).await;
    put_all(store, other, &["d0/elsewhere"]).await;
    let delimiters = [None, Some("/"), Some("//"), Some("x"), Some("1"), Some("")];
    for (delimiter, prefix) in
        delimiters.into_iter().flat_map(|d| ["", "d", "d1/", "d1/1", "none"].map(|p| (d, p)))
    {
        let want = naive(&keys, prefix, delimiter.filter(|d| !d.is_empty()));
        for limit in [1, 2, 7, 1000] {
            let found = pages(store, ListObjects { limit, ..query(place, prefix, delimiter) }).await;
            assert_eq!(found, want, "prefix {prefix:?}, delimiter {delimiter:?}, limit {limit}");
        }
    }
    let nothing =
        store.list_objects(&ListObjects { limit: 0, ..query(place, "", None) }).await.expect("list");
    assert_eq!(nothing, ListPage::default());
}

/// Not by code unit, not by locale.
pub async fn keys_are_listed_in_byte_order(store: &dyn MetadataStore) {
    let place = place(store).await;
    let mut keys =
        vec!["a", "B", "é", "z", "Z", "\0", "\u{1}", "a\0", "a\0b", "ab", "a/b", "a-b", "a b", "\u{ffff}"];
    keys.extend(["\u{10000}", "\u{e000}", "\u{7f}", "\u{80}", "\u{10ffff}", "ﬀ", "ss", "ß"]);
    put_all(store, place, &keys).await;
    keys.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    assert_eq!(list(store, &query(place, "", None)).await, keys);
    for (at, key) in keys.iter().enumerate() {
        let after = ListObjects { after: Some((*key).to_owned()), ..query(place, "", None) };
        assert_eq!(list(store, &after).await, keys[at + 1..], "after {key:?}");
    }
}

/// No character of it has a meaning.
pub async fn a_prefix_is_taken_literally(store: &dyn MetadataStore) {
    let place = place(store).await;
    let keys = ["%", "%a", "_", "_a", "\\", "\\%", "a", "*", "[a]", "\0", "\0a", "\u{10ffff}", "\u{10ffff}a"];
    put_all(store, place, &keys).await;
    for (prefix, want) in
        [("%", 2), ("_", 2), ("\\", 2), ("*", 1), ("[", 1), ("\0", 2), ("\u{10ffff}", 2), ("A", 0)]
    {
        let found = list(store, &query(place, prefix, None)).await;
        assert!(found.iter().all(|key| key.starts_with(prefix)));
        assert_eq!(found.len(), want, "{prefix:?}");
    }
}

/// It is listed once, and going on after it or after a key under it leaves out all of it.
pub async fn a_common_prefix_stands_for_all_it_folds(store: &dyn MetadataStore) {
    let place = place(store).await;
    put_all(store, place, &["a", "b/", "b/1", "b/2/3", "b0", "c/x/1", "c/x/2", "c/y"]).await;
    let after = async |prefix: &str, after: &str| {
        let after = Some(after.to_owned());
        list(store, &ListObjects { after, ..query(place, prefix, Some("/")) }).await
    };
    assert_eq!(list(store, &query(place, "", Some("/"))).await, ["a", "b/*", "b0", "c/*"]);
    assert_eq!(list(store, &query(place, "b/", Some("/"))).await, ["b/", "b/1", "b/2/*"]);
    assert_eq!(list(store, &query(place, "c", Some("/"))).await, ["c/*"]);
    assert_eq!(after("", "a").await, ["b/*", "b0", "c/*"]);
    assert_eq!(after("", "b").await, ["b/*", "b0", "c/*"]);
    assert_eq!(after("", "b/").await, ["b0", "c/*"]);
    assert_eq!(after("", "b/1").await, ["b0", "c/*"]);
    assert_eq!(after("", "c/").await, [""; 0]);
    assert_eq!(after("c/", "a").await, ["c/x/*", "c/y"]);
    assert_eq!(after("c/", "c/x/").await, ["c/y"]);
    assert_eq!(after("c/", "d").await, [""; 0]);
}

/// With its neighbours on the same page.
pub async fn a_big_folder_is_one_entry(store: &dyn MetadataStore) {
    let place = place(store).await;
    let keys: Vec<String> =
        (0..1500).map(|n| format!("big/{n:04}")).chain(["a".into(), "z".into()]).collect();
    put_all(store, place, &keys).await;
    assert_eq!(list(store, &query(place, "", Some("/"))).await, ["a", "big/*", "z"]);
    let first = store.list_objects(&query(place, "big/", Some("/"))).await.expect("list");
    assert_eq!((first.entries.len(), first.next.as_deref()), (1000, Some("big/0999")));
    assert_eq!(pages(store, query(place, "big/", Some("/"))).await, keys[..1500]);
}

/// Size, ETag, time, checksum algorithms.
pub async fn listings_show_what_clients_ask_for(store: &dyn MetadataStore) {
    let place = place(store).await;
    let checksum = |algorithm: &str| StoredChecksum {
        algorithm: algorithm.to_owned(),
        value: "AAAA".to_owned(),
        composite: false,
    };
    let attributes =
        Attributes { checksums: vec![checksum("SHA256"), checksum("CRC32")], ..Attributes::default() };
    let commit = CommitObject { attributes, ..place.commit("k", Content::New(place.inline(b"12345"))) };
    let made = store.commit_object(&commit).await.expect("commit");
    let page = store.list_objects(&query(place, "", None)).await.expect("list");
    let [ListEntry::Object(listed)] = &page.entries[..] else { panic!("{page:?}") };
    assert_eq!((listed.key.as_str(), listed.size), ("k", ByteCount::bytes(5)));
    assert_eq!((&listed.etag, listed.modified_at), (&made.etag, made.modified_at));
    assert_eq!(listed.checksum_algorithms, ["SHA256", "CRC32"]);
}

/// As a client does that lists and deletes by turns.
pub async fn a_listing_goes_on_after_what_was_deleted(store: &dyn MetadataStore) {
    let place = place(store).await;
    let keys: Vec<String> = (0..50).map(|n| format!("{n:02}")).collect();
    put_all(store, place, &keys).await;
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = store
            .list_objects(&ListObjects { after, limit: 7, ..query(place, "", None) })
            .await
            .expect("list");
        let found = names(&page);
        place.delete(store, &found.iter().map(String::as_str).collect::<Vec<_>>()).await;
        seen.extend(found);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, keys);
    assert!(list(store, &query(place, "", None)).await.is_empty());
}

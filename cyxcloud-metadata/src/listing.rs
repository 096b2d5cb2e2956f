//! Walks an ordered index page by page, folding keys by a delimiter without reading what it folds.
//!
//! Pure: a [`Walk`] says which range to read next ([`Walk::ask`]) and eats the rows ([`Walk::eat`]) until the page is
//! done. Order is the byte order of UTF-8. A folded prefix costs one seek past it and at most a small batch of its
//! rows, however many there are. Both engines use it, for objects and for multipart uploads.

use cyxcloud_core::UploadId;

use crate::model::{
    ListEntry, ListMultiparts, ListObjects, ListPage, ListedObject, Multipart, MultipartPage,
};

/// Above every key: no UTF-8 has this byte.
const END: u8 = 0xFF;
/// Rows that a range is read by where keys may be folded: first, and at least.
const BATCH_FIRST: usize = 64;
const BATCH_MIN: usize = 8;

/// Rows to be read: `from <= key < until` in order of key (then of time and id), at most `limit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) from: Vec<u8>,
    pub(crate) until: Vec<u8>,
    /// Multipart uploads only: of the rows whose key is `from`, those up to this upload (in order of time, then id;
    /// it included) are left out.
    pub(crate) skip: Option<UploadId>,
    pub(crate) limit: usize,
}

/// A row of the index walked.
pub(crate) trait Row {
    /// Its key.
    fn key(&self) -> &str;
    /// Its identity among rows of the same key, where there can be several.
    fn within_key(&self) -> Option<UploadId>;
}

impl Row for ListedObject {
    fn key(&self) -> &str {
        &self.key
    }

    fn within_key(&self) -> Option<UploadId> {
        None
    }
}

impl Row for Multipart {
    fn key(&self) -> &str {
        self.key.as_str()
    }

    fn within_key(&self) -> Option<UploadId> {
        Some(self.id)
    }
}

/// One entry of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry<R> {
    Row(R),
    Prefix(String),
}

/// A page in the making.
#[derive(Debug)]
pub(crate) struct Walk<R> {
    prefix: String,
    delimiter: Option<String>,
    limit: usize,
    from: Vec<u8>,
    skip: Option<UploadId>,
    until: Vec<u8>,
    batch: usize,
    entries: Vec<Entry<R>>,
    done: bool,
    more: bool,
}

impl Walk<ListedObject> {
    /// A walk for `list_objects`.
    pub(crate) fn of_objects(query: &ListObjects) -> Self {
        Self::new(&query.prefix, query.delimiter.as_deref(), query.after.as_deref(), None, query.limit)
    }

    /// The page, once [`Walk::ask`] has nothing to ask.
    pub(crate) fn into_page(self) -> ListPage {
        let next = self.more.then(|| self.entries.last()).flatten().map(|entry| match entry {
            Entry::Row(row) => row.key.clone(),
            Entry::Prefix(prefix) => prefix.clone(),
        });
        let entry = |entry| match entry {
            Entry::Row(row) => ListEntry::Object(row),
            Entry::Prefix(prefix) => ListEntry::Prefix(prefix),
        };
        ListPage { entries: self.entries.into_iter().map(entry).collect(), next }
    }
}

impl Walk<Multipart> {
    /// A walk for `list_multiparts`.
    pub(crate) fn of_multiparts(query: &ListMultiparts) -> Self {
        let after = query.after_key.as_deref();
        Self::new(&query.prefix, query.delimiter.as_deref(), after, query.after_upload, query.limit)
    }

    /// The page, once [`Walk::ask`] has nothing to ask.
    pub(crate) fn into_page(self) -> MultipartPage {
        let next = self.more.then(|| self.entries.last()).flatten().map(|entry| match entry {
            Entry::Row(row) => (row.key.as_str().to_owned(), Some(row.id)),
            Entry::Prefix(prefix) => (prefix.clone(), None),
        });
        let mut page = MultipartPage { next, ..MultipartPage::default() };
        for entry in self.entries {
            match entry {
                Entry::Row(row) => page.uploads.push(row),
                Entry::Prefix(prefix) => page.prefixes.push(prefix),
            }
        }
        page
    }
}

impl<R: Row> Walk<R> {
    fn new(
        prefix: &str,
        delimiter: Option<&str>,
        after: Option<&str>,
        after_within: Option<UploadId>,
        limit: usize,
    ) -> Self {
        let delimiter = delimiter.filter(|delimiter| !delimiter.is_empty());
        let mut walk = Self {
            prefix: prefix.to_owned(),
            delimiter: delimiter.map(str::to_owned),
            limit,
            from: prefix.as_bytes().to_vec(),
            skip: None,
            until: successor(prefix),
            batch: BATCH_FIRST,
            entries: Vec::new(),
            done: limit == 0,
            more: false,
        };
        if let Some(after) = after.filter(|after| after.as_bytes() >= prefix.as_bytes()) {
            walk.go_after(after, after_within);
        }
        walk
    }

    /// The rows to read next; `None` when the page is done.
    pub(crate) fn ask(&self) -> Option<Ask> {
        if self.done || self.from >= self.until {
            return None;
        }
        // One more than fits tells whether there is another page.
        let fits = (self.limit - self.entries.len()).saturating_add(1);
        let limit = if self.delimiter.is_some() { fits.min(self.batch) } else { fits };
        Some(Ask { from: self.from.clone(), until: self.until.clone(), skip: self.skip, limit })
    }

    /// Takes the rows that answer the last ask, in order; fewer than its limit are the last there are.
    pub(crate) fn eat(&mut self, rows: Vec<R>) {
        let asked = self.ask().map_or(0, |ask| ask.limit);
        let (read, mut folded) = (rows.len(), 0);
        for row in rows {
            if row.key().as_bytes() < self.from.as_slice() {
                folded += 1; // under the prefix that was folded last
                continue;
            }
            if self.entries.len() == self.limit {
                self.more = true;
                self.done = true;
                return;
            }
            self.go_after(row.key(), row.within_key());
            let entry = match self.fold(row.key()) {
                Some(common) => Entry::Prefix(common.to_owned()),
                None => Entry::Row(row),
            };
            self.entries.push(entry);
        }
        self.done = read < asked;
        if folded * 2 > read {
            self.batch = (self.batch / 2).max(BATCH_MIN);
        } else if folded * 4 < read {
            self.batch = self.batch.saturating_mul(2);
        }
    }

    /// Moves on past the entry that a key belongs to: all that folds together with it, or only itself.
    fn go_after(&mut self, key: &str, within: Option<UploadId>) {
        (self.from, self.skip) = match (self.fold(key), within) {
            (Some(common), _) => (successor(common), None),
            (None, Some(id)) => (key.as_bytes().to_vec(), Some(id)),
            (None, None) => ([key.as_bytes(), &[0]].concat(), None),
        };
    }

    /// The common prefix that stands for the key in this listing, if one does.
    fn fold<'k>(&self, key: &'k str) -> Option<&'k str> {
        let delimiter = self.delimiter.as_deref()?;
        let rest = key.strip_prefix(self.prefix.as_str())?;
        let end = self.prefix.len() + rest.find(delimiter)? + delimiter.len();
        Some(&key[..end])
    }
}

/// The least byte string above all that begin with this text.
fn successor(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    match bytes.last_mut() {
        Some(last) => *last += 1, // bytes of UTF-8 end at 0xF4
        None => bytes.push(END),
    }
    bytes
}

#[cfg(test)]
mod tests;

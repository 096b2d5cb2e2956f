//! How the audit log calls what a request does to buckets and objects, and which requests it tells of.
//!
//! Everything that changes something is told of, but for parts of uploads, which nobody sees before they are completed; and
//! everything that somebody was denied.

use std::net::IpAddr;

use http::{HeaderMap, Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use s3s::Body;

use super::request::{Level, level, query_names};
use crate::auth::{ClientAddress, Principal};
use crate::journal::Journal;

/// What a request would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Deed {
    action: &'static str,
    /// Whether it is told of where it went well. What was denied always is.
    tells: bool,
}

/// Keys of a request for several, with what became of each: `ok`, or S3's code. In the extensions of its answer.
#[derive(Clone, Debug)]
pub(super) struct Fates(pub(super) Vec<(String, String)>);

/// Sub-resources that are part of doing something to an object rather than its configuration.
const NO_CONFIGURATION: [&str; 6] = ["attributes", "delete", "restore", "select", "uploads", "torrent"];

fn deed(method: &Method, level: Level, query: &[(String, String)], headers: &HeaderMap) -> Deed {
    let has = |name: &str| query.iter().any(|(other, _)| other == name);
    let configures =
        super::request::SUBRESOURCES.iter().any(|name| has(name) && !NO_CONFIGURATION.contains(name));
    let told = |action| Deed { action, tells: true };
    let untold = |action| Deed { action, tells: false };
    match (level, method) {
        (Level::Object, &Method::PUT | &Method::POST | &Method::DELETE) if configures => {
            told("object.config")
        }
        (Level::Object, &Method::PUT) if has("uploadId") => untold("upload.part"),
        (Level::Object, &Method::PUT) if headers.contains_key("x-amz-copy-source") => told("object.copy"),
        (Level::Object, &Method::PUT) => told("object.put"),
        (Level::Object, &Method::POST) if has("uploads") => untold("upload.begin"),
        (Level::Object, &Method::POST) if has("uploadId") => told("upload.complete"),
        (Level::Object, &Method::DELETE) if has("uploadId") => told("upload.abort"),
        (Level::Object, &Method::DELETE) => told("object.delete"),
        (Level::Object, _) => untold("object.read"),
        (Level::Bucket, &Method::POST) if has("delete") => told("object.delete"),
        (Level::Bucket, &Method::PUT | &Method::DELETE) if configures => told("bucket.config"),
        (Level::Bucket, &Method::PUT) => told("bucket.create"),
        (Level::Bucket, &Method::DELETE) => told("bucket.delete"),
        (Level::Bucket | Level::Root, _) => untold("bucket.read"),
    }
}

/// A request that is being answered. Told of when it is, and also when it is given up: what became of it is not known then.
pub(super) struct Doing {
    journal: Journal,
    who: Principal,
    from: IpAddr,
    deed: Deed,
    target: String,
    ended: bool,
}

impl Doing {
    /// What a verified request is about to do; `None` if it is not known from where it came.
    pub(super) fn of<B>(journal: &Journal, request: &Request<B>) -> Option<Self> {
        let ClientAddress(from) = request.extensions().get::<ClientAddress>().copied()?;
        let who = request.extensions().get::<Principal>()?.clone();
        let (path, headers) = (request.uri().path(), request.headers());
        let query = query_names(request.uri().query().unwrap_or_default());
        let deed = deed(request.method(), level(path), &query, headers);
        let mut target = decoded(path);
        if deed.action == "object.copy"
            && let Some(source) = headers.get("x-amz-copy-source").and_then(|source| source.to_str().ok())
        {
            target = format!("{target} from {}", decoded(source));
        }
        Some(Self { journal: journal.clone(), who, from, deed, target, ended: false })
    }

    /// Tells how it ended.
    pub(super) fn end(mut self, response: &Response<Body>) {
        self.ended = true;
        if response.status() == StatusCode::FORBIDDEN {
            let (who, action) = (&self.who, self.deed.action);
            self.journal.note_denied(who, action, &self.target, self.from, &code(response));
            return;
        }
        if !self.deed.tells {
            return;
        }
        match response.extensions().get::<Fates>() {
            Some(Fates(fates)) => {
                for (key, outcome) in fates {
                    self.tell(&format!("{}/{key}", self.target), outcome);
                }
            }
            None if response.status().is_success() => self.tell(&self.target, "ok"),
            None => self.tell(&self.target, &code(response)),
        }
    }

    fn tell(&self, target: &str, outcome: &str) {
        self.journal.note(&self.who, self.deed.action, target, self.from, outcome);
    }
}

impl Drop for Doing {
    fn drop(&mut self) {
        if !self.ended && self.deed.tells {
            self.tell(&self.target, "cut off");
        }
    }
}

/// `bucket` or `bucket/key`.
fn decoded(path: &str) -> String {
    percent_decode_str(path.trim_start_matches('/')).decode_utf8_lossy().into_owned()
}

/// S3's code in an answer that is an error; its status where there is none.
fn code(response: &Response<Body>) -> String {
    let document = response.body().bytes();
    let text = document.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    code.map_or_else(|| response.status().as_u16().to_string(), |(code, _)| code.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_something_is_told_of_and_what_is_read_is_not() {
        for (method, uri, copies, action, tells) in [
            (Method::PUT, "/b/k", false, "object.put", true),
            (Method::PUT, "/b/k?x-id=PutObject", false, "object.put", true),
            (Method::PUT, "/b/k", true, "object.copy", true),
            (Method::PUT, "/b/k?acl", false, "object.config", true),
            (Method::PUT, "/b/k?partNumber=1&uploadId=u", false, "upload.part", false),
            (Method::PUT, "/b/k?partNumber=1&uploadId=u", true, "upload.part", false),
            (Method::POST, "/b/k?uploads", false, "upload.begin", false),
            (Method::POST, "/b/k?uploadId=u", false, "upload.complete", true),
            (Method::DELETE, "/b/k?uploadId=u", false, "upload.abort", true),
            (Method::DELETE, "/b/k?versionId=null", false, "object.delete", true),
            (Method::DELETE, "/b/k?tagging", false, "object.config", true),
            (Method::GET, "/b/k", false, "object.read", false),
            (Method::HEAD, "/b/k?attributes", false, "object.read", false),
            (Method::POST, "/b?delete", false, "object.delete", true),
            (Method::PUT, "/b", false, "bucket.create", true),
            (Method::PUT, "/b/?policy", false, "bucket.config", true),
            (Method::DELETE, "/b", false, "bucket.delete", true),
            (Method::DELETE, "/b?lifecycle", false, "bucket.config", true),
            (Method::GET, "/b?uploads", false, "bucket.read", false),
            (Method::GET, "/", false, "bucket.read", false),
        ] {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            let mut headers = HeaderMap::new();
            if copies {
                headers.insert("x-amz-copy-source", http::HeaderValue::from_static("/b/other"));
            }
            let found = deed(&method, level(path), &query_names(query), &headers);
            assert_eq!(found, Deed { action, tells }, "{method} {uri}");
        }
    }
}

//! S3 operations that are written down: what was asked, what was answered, and what the checker may conclude from it.
//!
//! Every value is unlike any other (its bytes follow from the run's seed and its name) and travels with its own Blake3 in the
//! object's metadata, so that HEAD says which value it saw, and a GET that mixes two versions is found at once.

pub mod multipart;

use std::sync::Arc;

use bytes::Bytes;
use reqwest::Method;

use crate::check::{Act, Value};
use crate::run::Run;
use crate::s3::{Answer, Refused, Reply, Request, S3};

const VALUE: &str = "x-amz-meta-value";

/// The bytes of a value.
pub fn body_of(seed: u64, name: &str, size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// One client of one bucket, whose every operation is in the run's history.
#[derive(Clone, Debug)]
pub struct Recorder {
    run: Arc<Run>,
    s3: S3,
    bucket: String,
    /// Whether a read that is not answered is a broken promise; otherwise it is counted.
    strict: bool,
}

impl Recorder {
    /// Of this bucket, through this client. Reads must be answered.
    pub fn new(run: &Arc<Run>, s3: S3, bucket: &str) -> Self {
        Self { run: run.clone(), s3, bucket: bucket.to_owned(), strict: true }
    }

    /// The same, for times in which reads may be refused: what they say must be true all the same.
    pub fn lenient(&self) -> Self {
        Self { strict: false, ..self.clone() }
    }

    /// For requests that are not to be written down.
    pub fn s3(&self) -> &S3 {
        &self.s3
    }

    fn name(&self, key: &str) -> String {
        format!("{}/{key}", self.bucket)
    }

    /// Stores a value; whether that was acknowledged.
    pub async fn put(&self, key: &str, value: &str, size: usize) -> bool {
        self.put_or_why(key, value, size).await.is_ok()
    }

    /// The same; or how it was refused.
    pub async fn put_or_why(&self, key: &str, value: &str, size: usize) -> Answer<()> {
        let body = body_of(self.run.seed, value, size);
        self.put_bytes(key, body, false).await
    }

    /// Stores a value if the key holds nothing (`If-None-Match: *`); whether that was acknowledged.
    pub async fn create(&self, key: &str, value: &str, size: usize) -> bool {
        let body = body_of(self.run.seed, value, size);
        self.put_bytes(key, body, true).await.is_ok()
    }

    async fn put_bytes(&self, key: &str, body: Bytes, only_new: bool) -> Answer<()> {
        let value: Value = *blake3::hash(&body).as_bytes();
        let hash = hex::encode(value);
        let (op, act) = match only_new {
            true => ("create", Act::Create(value)),
            false => ("put", Act::Write(Some(value))),
        };
        let begun = self.run.history.begin(op, &self.name(key), (&hash, body.len()));
        let mut request = Request::new(Method::PUT, &self.bucket, key).header(VALUE, hash).body(body);
        if only_new {
            request = request.header("if-none-match", "*");
        }
        let act = match self.s3.send(request).await {
            Ok(_) => Ok(act),
            Err(refused) if refused.status == Some(412) => Err((refused, Some(Act::Exists(true)))),
            // A creation that may have happened explains no more than a write that may have.
            Err(refused) => Err((refused, None)),
        };
        match act {
            Ok(act) => {
                self.run.history.end(&begun, "ok", vec![(self.name(key), act)], false).await;
                self.run.count("PUT", 1);
                Ok(())
            }
            Err((refused, Some(act))) => {
                self.run.history.end(&begun, &refused.to_string(), vec![(self.name(key), act)], false).await;
                self.run.count("PUT precondition", 1);
                Err(refused)
            }
            Err((refused, None)) => {
                let open = refused.may_have_happened();
                let acts = if open { vec![(self.name(key), act_of(value))] } else { Vec::new() };
                self.run.history.end(&begun, &refused.to_string(), acts, open).await;
                self.run.count(if open { "PUT unanswered" } else { "PUT refused" }, 1);
                Err(refused)
            }
        }
    }

    /// Removes an object; whether that was acknowledged.
    pub async fn delete(&self, key: &str) -> bool {
        let begun = self.run.history.begin("delete", &self.name(key), ());
        let act = vec![(self.name(key), Act::Write(None))];
        match self.s3.delete(&self.bucket, key).await {
            Ok(()) => {
                self.run.history.end(&begun, "ok", act, false).await;
                self.run.count("DELETE", 1);
                true
            }
            Err(refused) => {
                let open = refused.may_have_happened();
                let acts = if open { act } else { Vec::new() };
                self.run.history.end(&begun, &refused.to_string(), acts, open).await;
                self.run.count(if open { "DELETE unanswered" } else { "DELETE refused" }, 1);
                false
            }
        }
    }

    /// Reads an object; whether it was answered (absence is an answer). Bytes that nobody put there are a broken promise.
    pub async fn get(&self, key: &str) -> bool {
        self.get_or_why(key).await.is_ok()
    }

    /// The same; or how it was refused.
    pub async fn get_or_why(&self, key: &str) -> Answer<()> {
        let begun = self.run.history.begin("get", &self.name(key), ());
        let answer = self.s3.get(&self.bucket, key).await.and_then(|reply| {
            let value: Value = *blake3::hash(&reply.body).as_bytes();
            match reply.header(VALUE) == hex::encode(value) {
                true => Ok(value),
                false => Err(self.wrong(key, &reply)),
            }
        });
        self.read(&begun, "GET", key, answer).await
    }

    /// Asks about an object; whether it was answered (absence is an answer).
    pub async fn head(&self, key: &str) -> bool {
        let begun = self.run.history.begin("head", &self.name(key), ());
        let answer = self.s3.head(&self.bucket, key).await.and_then(|reply| {
            let mut value: Value = [0; 32];
            match hex::decode_to_slice(reply.header(VALUE), &mut value) {
                Ok(()) => Ok(value),
                Err(_) => Err(self.wrong(key, &reply)),
            }
        });
        self.read(&begun, "HEAD", key, answer).await.is_ok()
    }

    /// A whole good answer that is not true.
    fn wrong(&self, key: &str, reply: &Reply) -> Refused {
        let said = reply.header(VALUE);
        let message = format!("{} bytes, which are not the value {said}", reply.body.len());
        self.run.broken(format!("{} was answered with {message}", self.name(key)));
        Refused { status: Some(200), code: "Wrong".to_owned(), message }
    }

    async fn read(
        &self,
        begun: &crate::history::Begun,
        what: &str,
        key: &str,
        answer: Answer<Value>,
    ) -> Answer<()> {
        let seen = match answer {
            Ok(value) => Ok(Some(value)),
            Err(refused) if refused.is_absence() => Ok(None),
            Err(refused) => Err(refused),
        };
        match seen {
            Ok(value) => {
                let answer = value.map_or("absent".to_owned(), hex::encode);
                let acts = vec![(self.name(key), Act::Read(value))];
                self.run.history.end(begun, &answer, acts, false).await;
                self.run.count(what, 1);
                Ok(())
            }
            Err(refused) => {
                self.run.history.end(begun, &refused.to_string(), Vec::new(), false).await;
                self.run.count(&format!("{what} refused"), 1);
                if self.strict {
                    self.run.broken(format!("{what} {} was not answered: {refused}", self.name(key)));
                }
                Err(refused)
            }
        }
    }

    /// Lists all keys with this prefix in pages of so many, and holds each of `known` against it: there or not. Keys that
    /// are unknown, come twice or out of order are a broken promise.
    pub async fn list(&self, prefix: &str, page: u32, known: &[String]) -> bool {
        let begun = self.run.history.begin("list", &self.name(prefix), page);
        let mut keys: Vec<String> = Vec::new();
        let mut after = None;
        loop {
            match self.s3.page(&self.bucket, prefix, page, after.take()).await {
                Ok((listed, next)) => {
                    keys.extend(listed.into_iter().map(|listed| listed.key));
                    after = next;
                }
                Err(refused) => {
                    self.run.history.end(&begun, &refused.to_string(), Vec::new(), false).await;
                    self.run.count("LIST refused", 1);
                    if self.strict {
                        self.run.broken(format!("LIST {} was not answered: {refused}", self.name(prefix)));
                    }
                    return false;
                }
            }
            if after.is_none() {
                break;
            }
        }
        if !keys.is_sorted_by(|a, b| a.as_bytes() < b.as_bytes()) {
            self.run
                .broken(format!("LIST {} is out of order or repeats itself: {keys:?}", self.name(prefix)));
        }
        if let Some(phantom) = keys.iter().find(|key| !known.contains(key)) {
            self.run.broken(format!("LIST {} names {phantom}, which nobody put", self.name(prefix)));
        }
        let acts = known.iter().map(|key| (self.name(key), Act::Exists(keys.contains(key)))).collect();
        self.run.history.end(&begun, &format!("{} keys", keys.len()), acts, false).await;
        self.run.count("LIST", 1);
        true
    }
}

fn act_of(value: Value) -> Act {
    Act::Write(Some(value))
}

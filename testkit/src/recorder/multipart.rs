//! Multipart uploads of one value: opened and filled without a word in the history, written down when they are completed.

use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;

use super::{Recorder, VALUE};
use crate::check::{Act, Value};
use crate::s3::{Answer, Refused, Request};

/// An upload that is open, as far as we know.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Of the object to be.
    pub key: String,
    /// As S3 calls it.
    pub id: String,
    value: Value,
}

/// A part as it is named at completion: number and ETag.
pub type NamedPart = (u32, String);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Opened {
    upload_id: String,
}

#[derive(Deserialize)]
struct Completed {
    #[serde(rename = "ETag")]
    etag: String,
}

impl Recorder {
    /// Opens an upload whose parts together are `whole`.
    pub async fn open(&self, key: &str, whole: &[u8]) -> Answer<Upload> {
        let value: Value = *blake3::hash(whole).as_bytes();
        let request = Request::new(Method::POST, &self.bucket, key)
            .query("uploads", "")
            .header(VALUE, hex::encode(value));
        let reply = self.s3.send(request).await?;
        let Opened { upload_id } = parsed(&reply.body)?;
        Ok(Upload { key: key.to_owned(), id: upload_id, value })
    }

    /// Stores a part.
    pub async fn part(&self, upload: &Upload, number: u32, bytes: Bytes) -> Answer<NamedPart> {
        let request = Request::new(Method::PUT, &self.bucket, &upload.key)
            .query("partNumber", number.to_string())
            .query("uploadId", &upload.id)
            .body(bytes);
        let reply = self.s3.send(request).await?;
        Ok((number, reply.header("etag").to_owned()))
    }

    /// Makes an object of these parts; its ETag.
    pub async fn complete(&self, upload: &Upload, parts: &[NamedPart]) -> Answer<String> {
        let begun = self.run.history.begin("complete", &self.name(&upload.key), &upload.id);
        let parts: String = parts
            .iter()
            .map(|(number, etag)| {
                format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
            })
            .collect();
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        let request = Request::new(Method::POST, &self.bucket, &upload.key)
            .query("uploadId", &upload.id)
            .body(body.into());
        let answer = match self.s3.send(request).await {
            // An answer that began well may say yet that it failed.
            Ok(reply) => parsed::<Completed>(&reply.body).map(|completed| completed.etag),
            Err(refused) => Err(refused),
        };
        let act = vec![(self.name(&upload.key), Act::Write(Some(upload.value)))];
        match &answer {
            Ok(_) => {
                self.run.history.end(&begun, "ok", act, false).await;
                self.run.count("Complete", 1);
            }
            Err(refused) => {
                let open = refused.may_have_happened();
                let acts = if open { act } else { Vec::new() };
                self.run.history.end(&begun, &refused.to_string(), acts, open).await;
                self.run.count(if open { "Complete unanswered" } else { "Complete refused" }, 1);
            }
        }
        answer
    }

    /// Drops an upload and its parts.
    pub async fn abort(&self, upload: &Upload) -> Answer<()> {
        let request = Request::new(Method::DELETE, &self.bucket, &upload.key).query("uploadId", &upload.id);
        self.s3.send(request).await.map(drop)
    }
}

fn parsed<T: serde::de::DeserializeOwned>(body: &[u8]) -> Answer<T> {
    let text = String::from_utf8_lossy(body);
    quick_xml::de::from_str(&text).map_err(|error| Refused {
        status: None,
        code: "Garbled".to_owned(),
        message: format!("{error}: {text}"),
    })
}

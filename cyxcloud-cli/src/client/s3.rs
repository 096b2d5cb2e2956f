//! The S3 operations that the commands use.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use crc_fast::CrcAlgorithm::Crc64Nvme;
use cyxcloud_core::sigv4::uri_encode;
use md5::{Digest, Md5};
use reqwest::Method;

use super::xml::{self, Bucket, Page};
use super::{Call, Client, Error};
use crate::plan::range_header;
use crate::progress::Meter;

const CHECKSUM: &str = "x-amz-checksum-crc64nvme";

/// What HEAD says of an object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) size: u64,
    /// With its quotes, as it goes into `If-Match`.
    pub(crate) etag: String,
    /// CRC-64/NVME over the whole object, where the gateway knows it.
    pub(crate) crc: Option<u64>,
}

impl Object {
    /// The MD5 of the body, where the ETag is one.
    pub(crate) fn md5(&self) -> Option<[u8; 16]> {
        let mut md5 = [0; 16];
        hex::decode_to_slice(self.etag.trim_matches('"'), &mut md5).ok().map(|()| md5)
    }
}

/// How an object is to be described.
#[derive(Clone, Debug, Default)]
pub(crate) struct PutOptions {
    pub(crate) content_type: Option<String>,
}

/// A part that was uploaded.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) number: u32,
    pub(crate) etag: String,
    pub(crate) len: u64,
    pub(crate) crc: u64,
}

fn bucket_path(bucket: &str) -> String {
    format!("/s3/{}", uri_encode(bucket, true))
}

fn object_path(bucket: &str, key: &str) -> String {
    format!("/s3/{}/{}", uri_encode(bucket, true), uri_encode(key, false))
}

fn base64_of(crc: u64) -> String {
    BASE64.encode(crc.to_be_bytes())
}

/// CRC-64/NVME of these bytes.
pub(crate) fn crc_of(bytes: &[u8]) -> u64 {
    crc_fast::checksum(Crc64Nvme, bytes)
}

/// CRC-64/NVME of one run of bytes followed by another.
pub(crate) fn crc_join(first: u64, second: u64, second_len: u64) -> u64 {
    crc_fast::checksum_combine(Crc64Nvme, first, second, second_len)
}

impl Client {
    /// Makes the bucket unless it exists; says whether it was made.
    pub(crate) async fn ensure_bucket(&self, bucket: &str) -> Result<bool, Error> {
        match self.send(Call::new(Method::HEAD, bucket_path(bucket))).await {
            Ok(_) => return Ok(false),
            Err(Error::Refused { status: 404, .. }) => {}
            Err(error) => return Err(error),
        }
        match self.send(Call::new(Method::PUT, bucket_path(bucket))).await {
            Ok(_) => Ok(true),
            // Somebody else was faster, or an attempt of ours had worked.
            Err(error) if error.is("BucketAlreadyOwnedByYou") => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn delete_bucket(&self, bucket: &str) -> Result<(), Error> {
        self.send(Call::new(Method::DELETE, bucket_path(bucket))).await.map(drop)
    }

    pub(crate) async fn list_buckets(&self) -> Result<Vec<Bucket>, Error> {
        xml::buckets(self.send(Call::new(Method::GET, "/s3/".to_owned())).await?.text()?)
    }

    /// One page of keys that begin with `prefix`; `folders` folds what lies beyond the next slash.
    pub(crate) async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        folders: bool,
        after: Option<&str>,
    ) -> Result<Page, Error> {
        let mut call = Call::new(Method::GET, bucket_path(bucket))
            .query("list-type", "2")
            .query("encoding-type", "url")
            .query("prefix", prefix);
        if folders {
            call = call.query("delimiter", "/");
        }
        if let Some(token) = after {
            call = call.query("continuation-token", token);
        }
        xml::page(self.send(call).await?.text()?)
    }

    pub(crate) async fn head(&self, bucket: &str, key: &str) -> Result<Object, Error> {
        let call = Call::new(Method::HEAD, object_path(bucket, key)).header("x-amz-checksum-mode", "ENABLED");
        let reply = self.send(call).await.map_err(|error| explain_absence(error, bucket, key))?;
        let missing = |what: &str| Error::Garbled(format!("it has no {what}"));
        let size = reply.header("content-length").and_then(|length| length.parse().ok());
        let whole = reply.header("x-amz-checksum-type").is_none_or(|kind| kind == "FULL_OBJECT");
        let crc = reply.header(CHECKSUM).filter(|_| whole).and_then(|text| BASE64.decode(text).ok());
        Ok(Object {
            size: size.ok_or_else(|| missing("content-length"))?,
            etag: reply.header("etag").ok_or_else(|| missing("etag"))?.to_owned(),
            crc: crc.and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes),
        })
    }

    /// A range of exactly this object, whole or not at all.
    pub(crate) async fn get_range(
        &self,
        bucket: &str,
        key: &str,
        object: &Object,
        range: Range<u64>,
        meter: &Meter,
    ) -> Result<Bytes, Error> {
        let call = Call::new(Method::GET, object_path(bucket, key))
            .header("range", range_header(&range))
            .header("if-match", object.etag.clone())
            .meter(meter);
        let reply = self.send(call).await.map_err(|error| explain_absence(error, bucket, key))?;
        let whole = reply.status == 200 && range == (0..object.size);
        if !(whole || reply.status == 206) || reply.body.len() as u64 != range.end - range.start {
            return Err(Error::Garbled(format!("{} bytes and not {range:?}", reply.body.len())));
        }
        Ok(reply.body)
    }

    /// Stores a body as one object.
    pub(crate) async fn put(
        &self,
        bucket: &str,
        key: &str,
        body: Bytes,
        options: &PutOptions,
        meter: &Meter,
    ) -> Result<(), Error> {
        let call =
            Call::new(Method::PUT, object_path(bucket, key)).header(CHECKSUM, base64_of(crc_of(&body)));
        self.send(described(call, options).body(body).meter(meter)).await.map(drop)
    }

    /// Begins a multipart upload and returns its id.
    pub(crate) async fn create_multipart(
        &self,
        bucket: &str,
        key: &str,
        options: &PutOptions,
    ) -> Result<String, Error> {
        let call = Call::new(Method::POST, object_path(bucket, key))
            .query("uploads", "")
            .header("x-amz-checksum-algorithm", "CRC64NVME")
            .header("x-amz-checksum-type", "FULL_OBJECT");
        xml::upload_id(self.send(described(call, options)).await?.text()?)
    }

    pub(crate) async fn put_part(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        number: u32,
        body: Bytes,
        meter: &Meter,
    ) -> Result<Part, Error> {
        let (len, crc) = (body.len() as u64, crc_of(&body));
        let call = Call::new(Method::PUT, object_path(bucket, key))
            .query("partNumber", number.to_string())
            .query("uploadId", upload)
            .header(CHECKSUM, base64_of(crc))
            .body(body)
            .meter(meter);
        let reply = self.send(call).await?;
        let etag = reply.header("etag").ok_or_else(|| Error::Garbled("a part has no etag".to_owned()))?;
        Ok(Part { number, etag: etag.to_owned(), len, crc })
    }

    /// Makes the object of its parts, which are in order. Sent again, it answers the same.
    pub(crate) async fn complete_multipart(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
        parts: &[Part],
    ) -> Result<(), Error> {
        let crc = parts.iter().fold(crc_of(b""), |crc, part| crc_join(crc, part.crc, part.len));
        let named: Vec<(u32, String)> = parts.iter().map(|part| (part.number, part.etag.clone())).collect();
        let call = Call::new(Method::POST, object_path(bucket, key))
            .query("uploadId", upload)
            .header("content-type", "application/xml")
            .header(CHECKSUM, base64_of(crc))
            .header("x-amz-checksum-type", "FULL_OBJECT")
            .body(Bytes::from(xml::complete(&named)))
            .repeatable();
        let reply = self.send(call).await?;
        // S3 may begin its answer before it knows, and then say no in the body of a 200.
        match xml::error(reply.text()?) {
            None => Ok(()),
            Some((code, message)) => Err(Error::Refused { status: 500, code, message, retry_after: None }),
        }
    }

    pub(crate) async fn abort_multipart(&self, bucket: &str, key: &str, upload: &str) -> Result<(), Error> {
        let call = Call::new(Method::DELETE, object_path(bucket, key)).query("uploadId", upload);
        match self.send(call).await {
            Err(error) if !error.is("NoSuchUpload") => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) async fn delete(&self, bucket: &str, key: &str) -> Result<(), Error> {
        self.send(Call::new(Method::DELETE, object_path(bucket, key))).await.map(drop)
    }

    /// Deletes up to 1,000 keys; returns those that failed, each with a reason.
    pub(crate) async fn delete_many(
        &self,
        bucket: &str,
        keys: &[String],
    ) -> Result<Vec<(String, String)>, Error> {
        let (fit, odd): (Vec<String>, Vec<String>) = keys.iter().cloned().partition(|key| xml::carries(key));
        let mut failed = Vec::new();
        if !fit.is_empty() {
            let body = Bytes::from(xml::delete(&fit));
            let call = Call::new(Method::POST, bucket_path(bucket))
                .query("delete", "")
                .header("content-type", "application/xml")
                .header("content-md5", BASE64.encode(Md5::digest(&body)))
                .body(body)
                .repeatable();
            failed = xml::delete_failures(self.send(call).await?.text()?)?;
        }
        for key in odd {
            if let Err(error) = self.delete(bucket, &key).await {
                failed.push((key, error.to_string()));
            }
        }
        Ok(failed)
    }
}

fn described(call: Call, options: &PutOptions) -> Call {
    match &options.content_type {
        Some(content_type) => call.header("content-type", content_type.clone()),
        None => call,
    }
}

/// An answer to HEAD has no body and so no code: say what was not there.
fn explain_absence(error: Error, bucket: &str, key: &str) -> Error {
    match error {
        Error::Refused { status: 404, code, retry_after, .. } if code.is_empty() || code == "NoSuchKey" => {
            let message = format!("{bucket}/{key} does not exist");
            Error::Refused { status: 404, code: "NoSuchKey".to_owned(), message, retry_after }
        }
        error => error,
    }
}

//! Every answer: its request id in headers and errors, error documents completed, no body where HTTP wants none.

use std::fmt;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use s3s::{Body, S3Error};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");
const HOST_ID: HeaderName = HeaderName::from_static("x-amz-id-2");

/// Names one request in answers and logs.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestId {
    id: u64,
    host: [u8; 32],
}

impl RequestId {
    pub(super) fn random() -> Self {
        Self { id: rand::random(), host: rand::random() }
    }

    fn host(&self) -> String {
        base64::engine::general_purpose::STANDARD.encode(self.host)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.id)
    }
}

/// What an answer needs to know of its request.
#[derive(Debug)]
pub(super) struct Answer {
    id: RequestId,
    method: Method,
    resource: String,
}

impl Answer {
    pub(super) fn of<B>(id: RequestId, request: &Request<B>) -> Self {
        Self { id, method: request.method().clone(), resource: request.uri().path().to_owned() }
    }

    pub(super) fn id(&self) -> &RequestId {
        &self.id
    }

    pub(super) fn method(&self) -> &Method {
        &self.method
    }

    /// What everything that is logged on the way is logged within.
    pub(super) fn span(&self) -> tracing::Span {
        tracing::info_span!("gateway.s3.request", request = %self.id, method = %self.method)
    }

    /// Answers with an error.
    pub(super) fn error(&self, error: S3Error) -> Response<Body> {
        match error.to_http_response() {
            Ok(response) => self.finish(response),
            Err(_) => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                self.finish(response)
            }
        }
    }

    /// Completes an answer.
    pub(super) fn finish(&self, mut response: Response<Body>) -> Response<Body> {
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            let document = response.body().bytes().map(|body| self.complete(&body));
            *response.body_mut() = document.map_or_else(Body::empty, Body::from);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        }
        // s3s answers HEAD of a range like HEAD of the whole.
        if status == StatusCode::OK && response.headers().contains_key(http::header::CONTENT_RANGE) {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        if status == StatusCode::NOT_MODIFIED {
            response.headers_mut().remove(CONTENT_TYPE);
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        let bodiless = status == StatusCode::NOT_MODIFIED || status == StatusCode::NO_CONTENT;
        if bodiless || self.method == Method::HEAD {
            *response.body_mut() = Body::empty();
            response.headers_mut().remove(TRANSFER_ENCODING);
        }
        let ids = [(REQUEST_ID, self.id.to_string()), (HOST_ID, self.id.host())];
        for (name, value) in ids {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }

    /// Adds to an error document what is missing from it.
    fn complete(&self, document: &Bytes) -> Bytes {
        let Ok(text) = std::str::from_utf8(document) else { return document.clone() };
        let Some(head) = text.trim_end().strip_suffix("</Error>") else { return document.clone() };
        let mut out = head.to_owned();
        if !head.contains("<Message>") {
            let code = head.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
            let message = code.map_or(UNEXPLAINED, |(code, _)| explain(code));
            out.push_str(&format!("<Message>{message}</Message>"));
        }
        let resource = quick_xml::escape::escape(self.resource.as_str());
        out.push_str(&format!("<Resource>{resource}</Resource>"));
        if !head.contains("<RequestId>") {
            out.push_str(&format!("<RequestId>{}</RequestId>", self.id));
        }
        out.push_str(&format!("<HostId>{}</HostId></Error>", self.id.host()));
        out.into()
    }
}

const UNEXPLAINED: &str = "The request cannot be answered.";

/// For errors that come without words.
fn explain(code: &str) -> &'static str {
    match code {
        "InternalError" => "We encountered an internal error. Please try again.",
        "InvalidBucketName" => "The specified bucket is not valid.",
        "InvalidURI" => "The path of the URI is not valid UTF-8 in percent-encoding.",
        "KeyTooLongError" => "The key has more than 1024 bytes.",
        "MalformedXML" => "The XML is not well-formed, or not what this operation expects, or too long.",
        "MethodNotAllowed" => "The method is not allowed against this resource.",
        "MissingRequestBodyError" => "The request body is empty.",
        "MaxMessageLengthExceeded" => "The request body is too long.",
        "InvalidArgument" => "An argument of the request is not valid.",
        "InvalidRequest" => "The request is not valid.",
        "NotImplemented" => "The request asks for something that is not implemented.",
        _ => UNEXPLAINED,
    }
}

#[cfg(test)]
mod tests {
    use s3s::{S3ErrorCode, s3_error};

    use super::*;

    fn answer(method: Method) -> Answer {
        let request = Request::builder().method(method).uri("/bucket/a&b").body(()).expect("valid");
        Answer::of(RequestId { id: 0xab, host: [0; 32] }, &request)
    }

    #[test]
    fn errors_name_the_request_and_the_resource() {
        let response = answer(Method::GET).error(s3_error!(NoSuchKey, "it is <not> there"));
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()["x-amz-request-id"], "00000000000000AB");
        let body = response.body().bytes().expect("at hand");
        let text = std::str::from_utf8(&body).expect("text");
        assert!(text.starts_with("<?xml"), "{text}");
        for part in [
            "<Code>NoSuchKey</Code>",
            "<Message>it is &lt;not&gt; there</Message>",
            "<Resource>/bucket/a&amp;b</Resource>",
            "<RequestId>00000000000000AB</RequestId>",
            "<HostId>AAAA",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn errors_without_words_get_some() {
        let response = answer(Method::GET).error(S3ErrorCode::InvalidURI.into());
        let body = response.body().bytes().expect("at hand");
        assert!(std::str::from_utf8(&body).expect("text").contains("<Message>The path of the URI"));
    }

    #[test]
    fn head_and_not_modified_have_no_body() {
        let response = answer(Method::HEAD).error(s3_error!(NoSuchKey, "no"));
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert!(response.body().bytes().expect("at hand").is_empty());
        let response = answer(Method::GET).error(s3_error!(NotModified, "no"));
        assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
        assert!(response.body().bytes().expect("at hand").is_empty());
        assert!(!response.headers().contains_key(CONTENT_TYPE));
    }
}

//! S3 over the object service: routing, typed operations and XML by the `s3s` crate, everything that it leaves out here.
//!
//! A request comes in authenticated, at the root path, path-style, with its body deframed. [`request`] prepares it:
//! what `s3s` reads more strictly than S3 does (ranges, conditions, dates) travels beside the request and is read by
//! [`headers`]; what we do not have is refused rather than ignored; XML bodies are limited and checked. [`api`] turns
//! operations into calls of [`crate::objects`]; [`respond`] gives every answer its request id and every error its
//! whole document. Nothing here decides what an operation means.

mod api;
mod buckets;
mod cors;
mod deeds;
mod encoding;
mod error;
mod headers;
mod listing;
mod multipart;
mod read;
mod request;
mod respond;
mod unconfigured;
mod write;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::S3ServiceBuilder;
use s3s::{Body, S3ErrorCode};
use tracing::Instrument as _;

pub use crate::objects::checksums;

use crate::auth::{Authenticator, Mount};
use crate::body::S3Body;
use crate::documents::Documents;
use crate::journal::Journal;
use crate::objects::{BoxError, ObjectService};
use deeds::Doing;
use error::s3_error_of;
use respond::{Answer, RequestId};

/// What can be set about the S3 surface.
#[derive(Clone, Debug)]
pub struct Options {
    /// The region that buckets are said to be in.
    pub region: String,
    /// Let browsers of every origin read and write.
    pub cors_permissive: bool,
    /// Where it is noted who did what; nowhere unless told.
    pub journal: Option<Journal>,
}

impl Default for Options {
    fn default() -> Self {
        Self { region: "us-east-1".to_owned(), cors_permissive: false, journal: None }
    }
}

/// The S3 surface. Cheap to clone.
#[derive(Clone)]
pub struct S3Service {
    inner: s3s::service::S3Service,
    documents: Documents,
    options: Arc<Options>,
}

impl std::fmt::Debug for S3Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Service").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The S3 surface of an object service, with this room for documents.
pub fn service(objects: Arc<ObjectService>, documents: Documents, options: Options) -> S3Service {
    let options = Arc::new(options);
    let mut config = S3Config::default();
    // Bodies are limited in `request`, by operation; this is the outer bound.
    config.xml_max_body_size = request::LONG_XML_MAX;
    let mut builder = S3ServiceBuilder::new(api::Translator { objects, options: Arc::clone(&options) });
    builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
    S3Service { inner: builder.build(), documents, options }
}

impl S3Service {
    /// Answers a request as it came in: preflights at once, everything else once it has proven who sends it.
    pub async fn call_unverified<B>(
        &self,
        request: Request<B>,
        mount: Mount,
        auth: &Authenticator,
    ) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let answer = Answer::of(RequestId::random(), &request);
        let span = answer.span();
        let respond = async {
            if let Some(preflight) = self.preflight(&answer, request.headers()) {
                return preflight;
            }
            let browser = from_browser(request.headers());
            let response = match auth.authenticate(request, mount).await {
                Ok(request) => self.operate(&answer, request).await,
                Err(error) => answer.finish(error.to_xml_response(&answer.id().to_string()).map(Body::from)),
            };
            self.for_browser(browser, response)
        };
        respond.instrument(span).await
    }

    /// Answers a request that was verified: its `Principal` is in its extensions, and without one it is denied.
    pub async fn call(&self, request: Request<S3Body>) -> Response<Body> {
        let answer = Answer::of(RequestId::random(), &request);
        let span = answer.span();
        let respond = async {
            if let Some(preflight) = self.preflight(&answer, request.headers()) {
                return preflight;
            }
            let browser = from_browser(request.headers());
            let response = self.operate(&answer, request).await;
            self.for_browser(browser, response)
        };
        respond.instrument(span).await
    }

    /// Answers a browser's question whether it may ask. Needs no credentials.
    fn preflight(&self, answer: &Answer, headers: &HeaderMap) -> Option<Response<Body>> {
        if *answer.method() != Method::OPTIONS || !headers.contains_key(http::header::ORIGIN) {
            return None;
        }
        if self.options.cors_permissive {
            return Some(answer.finish(cors::preflight(headers)));
        }
        let refusal = "CORSResponse: CORS is not enabled; start the gateway with --cors-permissive";
        Some(answer.error(s3_error_of("AccessForbidden", StatusCode::FORBIDDEN, refusal)))
    }

    async fn operate(&self, answer: &Answer, request: Request<S3Body>) -> Response<Body> {
        let doing = self.options.journal.as_ref().and_then(|journal| Doing::of(journal, &request));
        let response = self.perform(answer, request).await;
        if let Some(doing) = doing {
            doing.end(&response);
        }
        response
    }

    async fn perform(&self, answer: &Answer, request: Request<S3Body>) -> Response<Body> {
        let request = match request::prepare(request, &self.documents).await {
            Ok(request) => request,
            Err(error) => return answer.error(error),
        };
        match self.inner.call(request).await {
            Ok(response) => answer.finish(response),
            Err(error) => {
                tracing::error!(?error, "an answer could not be written");
                answer.error(S3ErrorCode::InternalError.into())
            }
        }
    }

    fn for_browser(&self, asked: Option<HeaderMap>, mut response: Response<Body>) -> Response<Body> {
        if let Some(asked) = asked.filter(|_| self.options.cors_permissive) {
            cors::allow(&asked, response.headers_mut());
        }
        response
    }
}

fn from_browser(headers: &HeaderMap) -> Option<HeaderMap> {
    headers.contains_key(http::header::ORIGIN).then(|| headers.clone())
}

//! Why a request was not let in, in the words that S3 clients know.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

/// Why a request was not let in. `Display` says what to do next and names no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AuthError {
    code: &'static str,
    status: StatusCode,
    message: String,
    /// More elements of the XML answer.
    details: Vec<(&'static str, String)>,
}

impl AuthError {
    pub(crate) fn new(code: &'static str, status: StatusCode, message: impl Into<String>) -> Self {
        Self { code, status, message: message.into(), details: Vec::new() }
    }

    /// Refused whoever asks.
    pub(crate) fn denied(message: impl Into<String>) -> Self {
        Self::new("AccessDenied", StatusCode::FORBIDDEN, message)
    }

    /// The request makes no sense.
    pub(crate) fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(code, StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn malformed_header(message: impl Into<String>) -> Self {
        Self::invalid("AuthorizationHeaderMalformed", message)
    }

    pub(crate) fn malformed_query(message: impl Into<String>) -> Self {
        Self::invalid("AuthorizationQueryParametersError", message)
    }

    pub(crate) fn bad_signature() -> Self {
        Self::new(
            "SignatureDoesNotMatch",
            StatusCode::FORBIDDEN,
            "the signature is not the one that we compute; check the secret key and that nothing between the client \
             and us changes the path, the query or signed headers",
        )
    }

    /// The same refusal, of a token.
    pub(crate) fn into_bad_token(self) -> Self {
        if self.status == StatusCode::FORBIDDEN { Self::bad_token(self.message) } else { self }
    }

    pub(crate) fn bad_token(message: impl Into<String>) -> Self {
        Self::new("InvalidToken", StatusCode::UNAUTHORIZED, message)
    }

    pub(crate) fn invalid_uri(message: &'static str) -> Self {
        Self::invalid("InvalidURI", message)
    }

    /// The metadata store failed: the request may be right.
    pub(crate) fn unavailable() -> Self {
        Self::new(
            "ServiceUnavailable",
            StatusCode::SERVICE_UNAVAILABLE,
            "the credentials cannot be checked just now; try again",
        )
    }

    /// Too much is asked; the request may be right.
    pub(crate) fn slow_down(message: &'static str) -> Self {
        Self::new("SlowDown", StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub(crate) fn internal() -> Self {
        Self::new(
            "InternalError",
            StatusCode::INTERNAL_SERVER_ERROR,
            "the credentials could not be checked; tell the operator the request id",
        )
    }

    /// Adds an element to the XML answer.
    pub(crate) fn with(mut self, element: &'static str, text: impl Into<String>) -> Self {
        self.details.push((element, text.into()));
        self
    }

    /// S3's code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What to do next, for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The answer in S3's form.
    pub fn to_xml_response(&self, request_id: &str) -> Response<Bytes> {
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>");
        let details = self.details.iter().map(|(element, text)| (*element, text.as_str()));
        let known = [("Code", self.code), ("Message", &self.message)].into_iter();
        for (element, text) in known.chain(details).chain([("RequestId", request_id)]) {
            // Control characters have no place in XML, not even escaped.
            let text: String = text.chars().filter(|c| !c.is_control()).collect();
            xml.push_str(&format!("<{element}>{}</{element}>", quick_xml::escape::escape(text.as_str())));
        }
        xml.push_str("</Error>");
        let mut response = Response::new(Bytes::from(xml));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert("x-amz-request-id", id);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer error=\"invalid_token\""));
        }
        response
    }
}

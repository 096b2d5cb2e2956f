//! Problem documents (RFC 9457): what is answered outside of S3 when the answer is no.
//!
//! Every kind of problem is listed here, with its status and its stable `type`; the OpenAPI description is made from the list.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::AuthError;
use crate::objects::Error;

/// Prefix of problem types; they name a problem and need not lead anywhere.
const PREFIX: &str = "urn:cyxcloud:problem:";
/// What somebody is told who asks for what administrators see or do, by HTTP or by gRPC.
pub(crate) const FOR_ADMINISTRATORS: &str =
    "this is for administrators; ask one, or use an administrator's credentials";

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $status:ident $name:literal $title:literal;)*) => {
        /// A kind of problem.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// The status that it is answered with.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$kind => StatusCode::$status,)* }
            }

            /// The stable last part of its type.
            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// The same in words.
            pub fn title(self) -> &'static str {
                match self { $(Self::$kind => $title,)* }
            }
        }
    };
}

kinds! {
    /// Something in a body, a query or a name makes no sense.
    InvalidRequest BAD_REQUEST "invalid-request" "Invalid request";
    /// The path could be read in more than one way.
    InvalidPath BAD_REQUEST "invalid-path" "Invalid path";
    /// What there is of credentials is none; answered with other statuses, too.
    InvalidCredentials BAD_REQUEST "invalid-credentials" "Invalid credentials";
    /// No credentials, or none that hold.
    Unauthenticated UNAUTHORIZED "unauthenticated" "Credentials are needed";
    /// The log-in or the session was refused.
    LoginRefused UNAUTHORIZED "login-refused" "Not let in";
    /// The user may do nothing now.
    Suspended FORBIDDEN "suspended" "Suspended";
    /// Somebody else's, or beyond what the key may do.
    AccessDenied FORBIDDEN "access-denied" "Access denied";
    /// A page of an origin that may not.
    ForeignOrigin FORBIDDEN "foreign-origin" "Foreign origin";
    /// Not for users.
    NotAdmin FORBIDDEN "not-admin" "Administrators only";
    /// Not with less than all of the account's rights.
    LimitedKey FORBIDDEN "limited-key" "Not with a limited key";
    /// A key cannot make another that may do more.
    ExceedsKey FORBIDDEN "exceeds-key" "More than the key allows";
    /// There is nothing at this address.
    NotFound NOT_FOUND "not-found" "Not found";
    /// No bucket of this name.
    NoSuchBucket NOT_FOUND "no-such-bucket" "No such bucket";
    /// No object, or no API key, of this name.
    NoSuchKey NOT_FOUND "no-such-key" "No such key";
    /// No user with this id.
    NoSuchUser NOT_FOUND "no-such-user" "No such user";
    /// No node with this id.
    NoSuchNode NOT_FOUND "no-such-node" "No such node";
    /// The address takes other methods.
    MethodNotAllowed METHOD_NOT_ALLOWED "method-not-allowed" "Method not allowed";
    /// As many API keys as there may be.
    TooManyKeys CONFLICT "too-many-keys" "Too many keys";
    /// The configuration's user stays as it is.
    RootUser CONFLICT "root-user" "Not the root user";
    /// A node or key is in a state in which that cannot be done.
    NotNow CONFLICT "not-now" "Not in this state";
    /// It changed state meanwhile.
    Stale CONFLICT "stale" "Changed meanwhile";
    /// The body is longer than it may be.
    TooLarge PAYLOAD_TOO_LARGE "too-large" "Too large";
    /// The address is for another protocol.
    UpgradeRequired UPGRADE_REQUIRED "upgrade-required" "Upgrade required";
    /// As many sockets as a user may have.
    TooManySockets TOO_MANY_REQUESTS "too-many-sockets" "Too many sockets";
    /// Tried too often.
    TooManyRequests TOO_MANY_REQUESTS "too-many-requests" "Too many requests";
    /// Address and headers are longer than they may be.
    HeadTooLong REQUEST_HEADER_FIELDS_TOO_LARGE "head-too-long" "Head too long";
    /// Our mistake.
    Internal INTERNAL_SERVER_ERROR "internal" "Internal error";
    /// Something that is needed does not answer.
    Unavailable SERVICE_UNAVAILABLE "unavailable" "Not available";
}

impl Kind {
    /// The `type` of such a problem.
    pub fn urn(self) -> String {
        format!("{PREFIX}{}", self.name())
    }
}

/// What was wrong, and what to do next.
#[derive(Debug)]
pub struct Problem {
    kind: Kind,
    status: StatusCode,
    detail: String,
    retry_after: Option<Duration>,
}

/// What was wrong, and what to do next (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody {
    /// Names the kind of problem, and never changes.
    r#type: String,
    /// The kind in words.
    title: String,
    /// The status of the answer once more.
    status: u16,
    /// What was wrong with this request.
    detail: String,
}

impl Problem {
    /// A problem of this kind. `detail` says what to do next.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, status: kind.status(), detail: detail.into(), retry_after: None }
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }

    /// Why credentials open nothing.
    pub fn of_auth(error: &AuthError) -> Self {
        let detail = error.message();
        match error.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Self::new(Kind::Unauthenticated, detail),
            status if status.is_server_error() => Self { status, ..Self::new(Kind::Unavailable, detail) },
            status => Self { status, ..Self::new(Kind::InvalidCredentials, detail) },
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ProblemBody {
            r#type: self.kind.urn(),
            title: self.kind.title().to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
        };
        let mut response = (self.status, Json(body)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(after) = self.retry_after {
            let seconds = HeaderValue::from(after.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let detail = error.to_string();
        match error {
            Error::NoSuchBucket => Self::new(Kind::NoSuchBucket, detail),
            Error::NoSuchKey => Self::new(Kind::NoSuchKey, detail),
            Error::AccessDenied | Error::NotAllowed => Self::new(Kind::AccessDenied, detail),
            Error::Unavailable(_) => {
                tracing::error!(%error, "a rest request failed");
                Self::new(Kind::Unavailable, detail)
            }
            other => {
                tracing::error!(error = ?other, "a rest request failed");
                Self::new(Kind::Internal, "something went wrong on our side; try again")
            }
        }
    }
}

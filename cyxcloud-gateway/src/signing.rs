//! Where administrators look at the keys that tokens for nodes are signed with, and rotate them.
//!
//! Only administrators get here ([`crate::api`]), and who rotated is in the audit log. Not here: what a rotation is
//! (`cyxcloud_core::token_keys`).

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use cyxcloud_core::token::key_id;
use cyxcloud_core::token_keys::{RotationRefused, Wanted};
use cyxcloud_dataplane::{RotateError, SigningKey};
use cyxcloud_metadata::Error as MetadataError;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admin::refused;
use crate::identity::routes::parse;
use crate::objects::ObjectService;
use crate::problem::{Kind, Problem};
use crate::rest::{Raw, rfc3339};

type Objects = State<Arc<ObjectService>>;

/// The keys that nodes believe now or will, oldest first.
#[derive(Serialize, ToSchema)]
pub(crate) struct SigningKeysBody {
    keys: Vec<SigningKeyBody>,
}

/// A key and its place in the schedule.
#[derive(Serialize, ToSchema)]
pub(crate) struct SigningKeyBody {
    number: i64,
    /// How tokens name it.
    kid: String,
    public_key: String,
    /// `announced`, `signing`, `retiring` or `ended`.
    state: &'static str,
    created_at: String,
    /// Tokens are signed with it from then on, until the next key's time has come.
    signs_from: String,
    /// Nodes believe it until then; `null`: nothing replaces it yet.
    accepted_until: Option<String>,
}

impl From<SigningKey> for SigningKeyBody {
    fn from(key: SigningKey) -> Self {
        Self {
            number: key.times.number,
            kid: hex::encode(key_id(&key.public)),
            public_key: hex::encode(key.public),
            state: key.state.as_str(),
            created_at: rfc3339(key.created_at),
            signs_from: rfc3339(key.times.signs_from),
            accepted_until: key.times.accepted_until.map(rfc3339),
        }
    }
}

fn shown(keys: Vec<SigningKey>) -> Json<SigningKeysBody> {
    Json(SigningKeysBody { keys: keys.into_iter().map(SigningKeyBody::from).collect() })
}

pub(crate) async fn list(State(objects): Objects) -> Result<Json<SigningKeysBody>, Problem> {
    objects.plane().signing_keys().await.map(shown).map_err(refused)
}

/// How to go over to a new key; an empty body is the usual way.
#[derive(Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RotateBody {
    /// How long nodes are told of the new key before it signs; 600 where nothing is said. Shorter than the nodes' heartbeats,
    /// and requests fail until they know it.
    overlap_secs: Option<u64>,
    /// Ends the keys there are when the new one signs, and not after the last of their tokens: for one that leaked.
    #[serde(default)]
    revoke: bool,
}

pub(crate) async fn rotate(State(objects): Objects, Raw(body): Raw) -> Result<impl IntoResponse, Problem> {
    let body = if body.is_empty() { RotateBody::default() } else { parse(&body)? };
    let usual = Wanted::default();
    let overlap = body.overlap_secs.map_or(usual.overlap, Duration::from_secs);
    let keys = objects.plane().rotate_signing_key(Wanted { overlap, revoke: body.revoke }).await;
    keys.map(|keys| (StatusCode::ACCEPTED, shown(keys))).map_err(not_rotated)
}

fn not_rotated(error: RotateError) -> Problem {
    match error {
        RotateError::Refused(why @ RotationRefused::TooLong) => {
            Problem::new(Kind::InvalidRequest, why.to_string())
        }
        RotateError::Refused(why) => Problem::new(Kind::NotNow, why.to_string()),
        RotateError::Metadata(MetadataError::Stale { .. }) => {
            Problem::new(Kind::Stale, "somebody else has just rotated the keys; look at them again")
        }
        RotateError::Metadata(error) => refused(error),
    }
}

//! Storage nodes that an account registers. That a node holds its key is proven to the gateway, not here.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use cyxcloud_core::ByteCount;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;
use uuid::Uuid;

use super::{Caller, Id, Json, rfc3339};
use crate::App;
use crate::error::Problem;
use crate::store::{Machine, NewMachine};

/// Longest text of a machine's, in characters.
const TEXT_MAX: usize = 128;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Register {
    name: String,
    peer_id: String,
    storage_bytes: Option<u64>,
    region: Option<String>,
    version: Option<String>,
}

impl Register {
    /// The machine, if what is said of it may be kept.
    pub(super) fn machine(&self) -> Result<NewMachine<'_>, Problem> {
        check("name", &self.name)?;
        check("peer_id", &self.peer_id)?;
        for (name, text) in [("region", &self.region), ("version", &self.version)] {
            text.as_deref().map_or(Ok(()), |text| check(name, text))?;
        }
        let storage = self.storage_bytes.map(|bytes| {
            i64::try_from(bytes)
                .map(ByteCount::from_i64)
                .map_err(|_| Problem::invalid("storage_bytes is too large"))
        });
        Ok(NewMachine {
            name: &self.name,
            peer_id: &self.peer_id,
            storage: storage.transpose()?,
            region: self.region.as_deref(),
            version: self.version.as_deref(),
        })
    }
}

fn shown(machine: &Machine) -> Value {
    json!({
        "id": machine.id.to_string(),
        "name": machine.name,
        "peer_id": machine.peer_id,
        "storage_bytes": machine.storage.map(|bytes| bytes.get()),
        "region": machine.region,
        "version": machine.version,
        "registered_at": rfc3339(machine.registered_at),
        "last_seen_at": rfc3339(machine.last_seen_at),
    })
}

/// Refuses texts that are empty, long, or would spoil a terminal.
fn check(name: &'static str, text: &str) -> Result<(), Problem> {
    if text.is_empty() || text.chars().count() > TEXT_MAX || text.chars().any(char::is_control) {
        return Err(Problem::invalid(format!("{name} has 1 to {TEXT_MAX} printable characters")));
    }
    Ok(())
}

/// 201 for a new machine; 200 for one that registers again, whose id stays.
pub(super) async fn register(
    State(app): State<Arc<App>>,
    Caller(user): Caller,
    Json(body): Json<Register>,
) -> Result<Response, Problem> {
    let machine = app.store.register_machine(user.id, &body.machine()?).await?;
    let machine = machine.ok_or_else(|| {
        Problem::conflict("too-many-machines", "the account has too many machines; remove some first")
    })?;
    info!(user = %user.id, machine = %machine.id, "registered a machine");
    let new = machine.registered_at == machine.last_seen_at;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, axum::Json(shown(&machine))).into_response())
}

pub(super) async fn list(State(app): State<Arc<App>>, Caller(user): Caller) -> Result<Response, Problem> {
    let machines = app.store.machines(user.id).await?;
    let machines: Vec<Value> = machines.iter().map(shown).collect();
    Ok(axum::Json(json!({ "machines": machines })).into_response())
}

pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Caller(user): Caller,
    Id(id): Id,
) -> Result<StatusCode, Problem> {
    // Another account's machine is as little there as one that never was.
    let id = id.parse::<Uuid>().map_err(|_| Problem::not_found())?;
    if !app.store.remove_machine(user.id, id).await? {
        return Err(Problem::not_found());
    }
    info!(user = %user.id, machine = %id, "removed a machine");
    Ok(StatusCode::NO_CONTENT)
}

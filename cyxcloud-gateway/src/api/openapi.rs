//! The OpenAPI description of the table of routes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};
use utoipa::openapi::path::ParameterIn;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::{Access, Route, table};
use crate::problem::{Kind, ProblemBody};

/// What is sent or answered: its name, and all schemas that it needs.
#[derive(Debug)]
pub(super) struct Content {
    media: &'static str,
    name: String,
    schemas: Vec<(String, Value)>,
}

pub(super) fn body<T: ToSchema>() -> Content {
    let name = T::name().into_owned();
    let mut schemas: Vec<(String, RefOr<Schema>)> = vec![(name.clone(), T::schema())];
    T::schemas(&mut schemas);
    let schemas = schemas.into_iter().map(|(name, schema)| (name, json!(schema))).collect();
    Content { media: "application/json", name, schemas }
}

/// The parameters of a query.
pub(super) fn query<T: IntoParams>() -> Vec<Value> {
    T::into_params(|| Some(ParameterIn::Query)).iter().map(|parameter| json!(parameter)).collect()
}

/// What is answered where all is well.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    body: Option<Content>,
}

pub(super) fn ok<T: ToSchema>() -> Answer {
    Answer { status: 200, body: Some(body::<T>()) }
}

pub(super) fn created<T: ToSchema>() -> Answer {
    Answer { status: 201, body: Some(body::<T>()) }
}

pub(super) fn accepted<T: ToSchema>() -> Answer {
    Answer { status: 202, body: Some(body::<T>()) }
}

/// The connection becomes one for such messages.
pub(super) fn messages<T: ToSchema>() -> Answer {
    Answer { status: 101, body: Some(body::<T>()) }
}

pub(super) fn nothing() -> Answer {
    Answer { status: 204, body: None }
}

/// What [`serve`] answers.
pub(super) fn document() -> Answer {
    let schema = json!({ "type": "object", "required": ["openapi", "info", "paths", "components"] });
    described("application/json", "Description", schema)
}

/// Metrics, in Prometheus's text format.
pub(super) fn exposition() -> Answer {
    described("text/plain", "Exposition", json!({ "type": "string" }))
}

fn described(media: &'static str, name: &str, schema: Value) -> Answer {
    let name = name.to_owned();
    Answer { status: 200, body: Some(Content { media, schemas: vec![(name.clone(), schema)], name }) }
}

static DOCUMENT: LazyLock<String> = LazyLock::new(|| describe(&table()).to_string());

/// Answers with the description.
pub(super) async fn serve() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}

fn content(body: &Content) -> Value {
    json!({ body.media: { "schema": { "$ref": format!("#/components/schemas/{}", body.name) } } })
}

/// What varies in the path, then what the query may say.
fn parameters(route: &Route) -> Vec<Value> {
    let named = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameter = |name: &str| match name.strip_prefix('*') {
        Some(name) => json!({
            "name": name, "in": "path", "required": true, "schema": { "type": "string", "maxLength": 1024 },
            "description": "The whole key; slashes in it may be sent as they are",
        }),
        None => json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }),
    };
    named.map(parameter).chain(route.query.iter().cloned()).collect()
}

/// All that such a route may refuse.
fn kinds(route: &Route) -> BTreeSet<Kind> {
    let mut kinds = BTreeSet::from([Kind::HeadTooLong, Kind::Internal, Kind::Unavailable]);
    kinds.extend(route.fails);
    let takes = [
        (route.path.contains('{'), [Kind::InvalidPath].as_slice()),
        (route.asks.is_some() || !route.query.is_empty(), &[Kind::InvalidRequest]),
        (route.asks.is_some(), &[Kind::TooLarge]),
    ];
    kinds.extend(takes.iter().filter(|(takes, _)| *takes).flat_map(|(_, kinds)| *kinds));
    let opened: &[Kind] = match route.access {
        Access::Public => &[],
        Access::Refresh => &[Kind::Unauthenticated, Kind::InvalidCredentials],
        Access::Any => &[Kind::Unauthenticated, Kind::InvalidCredentials],
        Access::Account => &[Kind::Unauthenticated, Kind::InvalidCredentials, Kind::LimitedKey],
        Access::Admin => &[Kind::Unauthenticated, Kind::InvalidCredentials, Kind::NotAdmin],
    };
    kinds.extend(opened);
    kinds
}

/// Refusals with one status.
fn refusal(kinds: &[Kind]) -> Value {
    let titles: Vec<&str> = kinds.iter().map(|kind| kind.title()).collect();
    let types: Vec<String> = kinds.iter().map(|kind| kind.urn()).collect();
    let mut refusal = json!({
        "description": titles.join("; "),
        "content": { "application/problem+json": { "schema": { "allOf": [
            { "$ref": "#/components/schemas/Problem" },
            { "type": "object", "properties": { "type": { "enum": types } } },
        ] } } },
    });
    if kinds.iter().any(|kind| kind.status() == StatusCode::TOO_MANY_REQUESTS) {
        refusal["headers"] = json!({
            "Retry-After": { "description": "Seconds until the next try", "schema": { "type": "integer" } },
        });
    }
    refusal
}

fn responses(route: &Route) -> Value {
    let mut answer = json!({ "description": "Done" });
    if let Some(body) = &route.answers.body {
        answer["content"] = content(body);
    }
    let mut responses = Map::from_iter([
        (route.answers.status.to_string(), answer),
        ("default".to_owned(), json!({ "$ref": "#/components/responses/Problem" })),
    ]);
    let mut by_status: BTreeMap<u16, Vec<Kind>> = BTreeMap::new();
    for kind in kinds(route) {
        by_status.entry(kind.status().as_u16()).or_default().push(kind);
    }
    responses.extend(by_status.iter().map(|(status, kinds)| (status.to_string(), refusal(kinds))));
    Value::Object(responses)
}

fn operation(route: &Route) -> Value {
    let mut operation = json!({
        "summary": route.summary,
        "parameters": parameters(route),
        "responses": responses(route),
        "security": match route.access {
            Access::Public => json!([]),
            Access::Refresh => json!([{ "refresh": [] }]),
            Access::Any | Access::Account | Access::Admin => json!([{ "bearer": [] }, { "sigv4": [] }]),
        },
    });
    if route.access == Access::Admin {
        operation["description"] = "For administrators.".into();
    }
    if let Some(body) = &route.asks {
        operation["requestBody"] = json!({ "required": !route.asks_little, "content": content(body) });
    }
    operation
}

/// The schema of problems, with every kind there is.
fn problem() -> Value {
    let mut schema = json!(ProblemBody::schema());
    let types: Vec<String> = Kind::ALL.iter().map(|kind| kind.urn()).collect();
    schema["properties"]["type"]["enum"] = types.into();
    schema
}

fn describe(routes: &[Route]) -> Value {
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let mut schemas = Map::from_iter([("Problem".to_owned(), problem())]);
    for route in routes {
        let path = route.path.replace("{*", "{");
        let method = route.method.as_str().to_ascii_lowercase();
        paths.entry(path).or_default().insert(method, operation(route));
        let contents = route.asks.iter().chain(&route.answers.body);
        for (name, schema) in contents.flat_map(|body| &body.schemas) {
            schemas.insert(name.clone(), schema.clone());
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "CyxCloud", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": { "Problem": {
                "description": "What was wrong and what to do next (RFC 9457)",
                "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
            } },
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "description": "An access token or the token of an API key" },
                "refresh": { "type": "http", "scheme": "bearer", "description": "A refresh token" },
                "sigv4": {
                    "type": "apiKey", "in": "header", "name": "Authorization",
                    "description": "AWS Signature Version 4, service s3",
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn no_two_shapes_have_one_name() {
        let mut named: BTreeMap<String, Value> = BTreeMap::new();
        for route in table() {
            let contents = route.asks.into_iter().chain(route.answers.body);
            for (name, schema) in contents.flat_map(|body| body.schemas) {
                let first = named.entry(name.clone()).or_insert_with(|| schema.clone());
                assert_eq!(*first, schema, "{name}");
            }
        }
    }

    #[test]
    fn every_answer_and_every_kind_of_refusal_has_a_schema() {
        let document = describe(&table());
        let schema = |reference: &Value| {
            let pointer = reference.as_str().expect("a reference").strip_prefix('#').expect("here");
            document.pointer(pointer).unwrap_or_else(|| panic!("{pointer}")).clone()
        };
        for route in table() {
            let (path, method) = (route.path.replace("{*", "{"), route.method.as_str().to_lowercase());
            let operation = &document["paths"][&path][&method];
            let responses = operation["responses"].as_object().expect("answers");
            let good: Vec<_> =
                responses.iter().filter(|(status, _)| status.starts_with(['1', '2'])).collect();
            let [(status, answer)] = good.as_slice() else { panic!("{method} {path}: {good:?}") };
            let content = answer["content"].as_object().and_then(|content| content.iter().next());
            assert_eq!(content.is_none(), *status == "204", "{method} {path} has no schema for {status}");
            if let Some((media, content)) = content {
                let schema = schema(&content["schema"]["$ref"]);
                let made_of = schema["allOf"].is_array() || schema["oneOf"].is_array();
                let is_text = media == "text/plain" && schema["type"] == "string";
                assert!(is_text || schema["type"] == "object" || made_of, "{method} {path}");
            }
            if matches!(method.as_str(), "patch")
                || (method == "post" && operation["requestBody"].is_object())
            {
                let body = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
                assert_eq!(schema(body)["type"], "object", "{method} {path}");
                // What is not known is refused, and the description says so.
                assert_eq!(schema(body)["additionalProperties"], false, "{method} {path}");
            }
            for (status, answer) in responses.iter().filter(|(status, _)| !status.starts_with(['1', '2'])) {
                let known = answer["content"]["application/problem+json"].is_object();
                assert!(known || status == "default", "{method} {path}: {status}");
                let says_when = answer["headers"]["Retry-After"].is_object();
                assert_eq!(says_when, status == "429", "{method} {path}: {status}");
            }
            assert!(operation["security"].is_array(), "{method} {path}");
        }
        let names: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len(), "each has a name of its own");
    }

    #[test]
    fn every_route_is_described_and_every_reference_leads_somewhere() {
        let document: Value = serde_json::from_str(&DOCUMENT).expect("is json");
        for route in table() {
            let operation =
                &document["paths"][route.path.replace("{*", "{")][route.method.as_str().to_lowercase()];
            assert_eq!(operation["summary"], route.summary, "{}", route.path);
        }
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20);
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("within the document");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }
}

//! The OpenAPI description of the table of routes.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

use super::{Access, Route, table};

/// What is sent or answered: its name, and all schemas that it needs.
#[derive(Debug)]
pub(super) struct Content {
    name: String,
    schemas: Vec<(String, Value)>,
}

pub(super) fn body<T: ToSchema>() -> Content {
    let name = T::name().into_owned();
    let mut schemas: Vec<(String, RefOr<Schema>)> = vec![(name.clone(), T::schema())];
    T::schemas(&mut schemas);
    let schemas = schemas.into_iter().map(|(name, schema)| (name, json!(schema))).collect();
    Content { name, schemas }
}

static DOCUMENT: LazyLock<String> = LazyLock::new(|| describe(&table()).to_string());

/// Answers with the description.
pub(super) async fn serve() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}

fn content(body: &Content) -> Value {
    json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{}", body.name) } } })
}

fn parameters(path: &str) -> Vec<Value> {
    let named = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameter = |name: &str| {
        let name = name.trim_start_matches('*');
        json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
    };
    named.map(parameter).collect()
}

fn operation(route: &Route) -> Value {
    let problem = json!({ "$ref": "#/components/responses/Problem" });
    let mut answer = json!({ "description": "Done" });
    if let Some(body) = &route.answers {
        answer["content"] = content(body);
    }
    let mut operation = json!({
        "summary": route.summary,
        "parameters": parameters(route.path),
        "responses": { "2XX": answer, "4XX": problem, "5XX": problem },
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
        operation["requestBody"] = json!({ "required": true, "content": content(body) });
    }
    operation
}

fn describe(routes: &[Route]) -> Value {
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let mut schemas = Map::new();
    for route in routes {
        let path = route.path.replace("{*", "{");
        let method = route.method.as_str().to_ascii_lowercase();
        paths.entry(path).or_default().insert(method, operation(route));
        for (name, schema) in route.asks.iter().chain(&route.answers).flat_map(|body| &body.schemas) {
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
                "content": { "application/problem+json": { "schema": {
                    "type": "object",
                    "required": ["type", "title", "status", "detail"],
                    "properties": {
                        "type": { "type": "string" }, "title": { "type": "string" },
                        "status": { "type": "integer" }, "detail": { "type": "string" },
                    },
                } } },
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

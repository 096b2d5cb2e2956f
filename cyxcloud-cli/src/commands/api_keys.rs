//! `keys`: what programs get in, and how far.

use std::io::Write;

use cyxcloud_core::sigv4::uri_encode;
use serde_json::{Map, Value, json};

use super::info::{row, text};
use crate::client::Error;
use crate::progress::printable;
use crate::{Context, args};

const PATH: &str = "/api/v1/auth/api-keys";

pub(crate) async fn run(context: &Context, args: args::Keys) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = context.interrupt.cancelled() => Err(Error::Interrupted.into()),
        done = act(context, args) => done,
    }
}

async fn act(context: &Context, args: args::Keys) -> anyhow::Result<()> {
    match args {
        args::Keys::Create(args) => create(context, args).await,
        args::Keys::List { json } => {
            let keys = context.client.get_json(PATH).await?;
            print(&if json { vec![serde_json::to_string_pretty(&keys)?] } else { table(&keys) })
        }
        args::Keys::Revoke { id } => {
            context.client.delete_json(&format!("{PATH}/{}", uri_encode(&id, true))).await?;
            context.output.note(&format!("revoked {id}"));
            Ok(())
        }
    }
}

async fn create(context: &Context, args: args::CreateKey) -> anyhow::Result<()> {
    let made: Value = context.client.post_json(PATH, None, Some(&wanted(&args))).await?;
    if args.json {
        return print(&[serde_json::to_string_pretty(&made)?]);
    }
    let fields = [
        ("Id", "id"),
        ("Name", "name"),
        ("Access key", "access_key_id"),
        ("Secret key", "secret_access_key"),
        ("Token", "token"),
        ("Expires", "expires_at"),
    ];
    print(&fields.map(|(name, field)| row(name, &text(&made, field))))?;
    context.output.note("the secret key and the token are not shown again");
    Ok(())
}

/// What is asked for; what was not said is left to the gateway.
fn wanted(args: &args::CreateKey) -> Value {
    let mut body = Map::from_iter([("name".to_owned(), json!(args.name))]);
    let mut add = |name: &str, said: bool, value: Value| {
        if said {
            body.insert(name.to_owned(), value);
        }
    };
    add("expires_in_days", args.expires_days.is_some(), json!(args.expires_days));
    add("buckets", !args.buckets.is_empty(), json!(args.buckets));
    add("prefixes", !args.prefixes.is_empty(), json!(args.prefixes));
    add("read_only", args.read_only, json!(true));
    Value::Object(body)
}

fn print(lines: &[String]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(out.flush()?)
}

/// Names under each other, or a dash.
fn listed(key: &Value, name: &str) -> String {
    let all = key.get(name).and_then(Value::as_array);
    let all: Vec<String> =
        all.into_iter().flatten().map(|one| printable(one.as_str().unwrap_or_default())).collect();
    if all.is_empty() { "all".to_owned() } else { all.join(",") }
}

fn table(keys: &Value) -> Vec<String> {
    let keys = keys.get("api_keys").and_then(Value::as_array).cloned().unwrap_or_default();
    if keys.is_empty() {
        return vec!["no keys; `cyxcloud-cli keys create NAME` makes one".to_owned()];
    }
    let rows = keys.iter().map(|key| {
        let may =
            if key.get("read_only").and_then(Value::as_bool) == Some(true) { "read" } else { "read, write" };
        [
            text(key, "id"),
            text(key, "name"),
            text(key, "access_key_id"),
            may.to_owned(),
            listed(key, "buckets"),
            listed(key, "prefixes"),
            text(key, "expires_at"),
        ]
    });
    let head = ["ID", "NAME", "ACCESS KEY", "MAY", "BUCKETS", "PREFIXES", "EXPIRES"].map(str::to_owned);
    let rows: Vec<[String; 7]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let line = |row: &[String; 7]| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_said_is_asked_for() {
        let args = |expires_days, read_only, buckets: &[&str]| args::CreateKey {
            name: "n".to_owned(),
            expires_days,
            buckets: buckets.iter().map(|bucket| (*bucket).to_owned()).collect(),
            prefixes: Vec::new(),
            read_only,
            json: false,
        };
        assert_eq!(wanted(&args(None, false, &[])), json!({"name": "n"}));
        let all = json!({"name": "n", "expires_in_days": 30, "read_only": true, "buckets": ["b", "c"]});
        assert_eq!(wanted(&args(Some(30), true, &["b", "c"])), all);
    }

    #[test]
    fn keys_are_a_table() {
        let keys = json!({"api_keys": [
            {"id": "1", "name": "backup", "access_key_id": "CYX", "read_only": true, "buckets": ["b"], "expires_at": "t"},
            {"id": "2", "name": "\n", "access_key_id": "CYZ", "expires_at": null},
        ]});
        assert_eq!(
            table(&keys),
            [
                "ID  NAME    ACCESS KEY  MAY          BUCKETS  PREFIXES  EXPIRES",
                "1   backup  CYX         read         b        all       t",
                "2   \\n      CYZ         read, write  all      all       -",
            ]
        );
        assert!(table(&json!({}))[0].starts_with("no keys"));
    }
}

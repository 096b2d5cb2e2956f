//! What a standalone server prints once it is ready: where it is, and three lines to copy.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;

/// What the banner tells.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) http: SocketAddr,
    /// Whether it is HTTPS that is spoken there.
    pub(crate) tls: bool,
    pub(crate) nodes: u16,
    pub(crate) data_dir: &'a Path,
    pub(crate) region: &'a str,
    pub(crate) access_key: &'a str,
    pub(crate) secret_key: &'a str,
    /// Whether the secret was made here; one that the operator set is not repeated.
    pub(crate) secret_is_ours: bool,
    /// PATH.
    pub(crate) search_path: Option<&'a OsStr>,
    /// Where script/bootstrap keeps clients.
    pub(crate) venv: Option<&'a Path>,
}

/// Prints to standard output.
pub(crate) fn print(facts: &Facts<'_>) {
    println!("{}", text(facts, &cli_program(), &aws_program(facts)));
}

/// `aws`, or where script/bootstrap put it if it is not on the path.
fn aws_program(facts: &Facts<'_>) -> String {
    let on_path =
        facts.search_path.is_some_and(|path| std::env::split_paths(path).any(|dir| dir.join("aws").exists()));
    let own = facts.venv.map(|venv| venv.join("bin/aws")).filter(|aws| aws.exists());
    match own {
        Some(aws) if !on_path => aws.display().to_string(),
        _ => "aws".to_owned(),
    }
}

/// The client that was built beside this program, or its name where it is on the path.
fn cli_program() -> String {
    let beside = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.join("cyxcloud-cli")));
    match beside.filter(|path| path.exists()) {
        Some(path) => path.display().to_string(),
        None => "cyxcloud-cli".to_owned(),
    }
}

fn text(facts: &Facts<'_>, cli: &str, aws: &str) -> String {
    let scheme = if facts.tls { "https" } else { "http" };
    let url = match facts.http.ip().is_unspecified() {
        true => format!("{scheme}://127.0.0.1:{}", facts.http.port()),
        false => format!("{scheme}://{}", facts.http),
    };
    let (id, region) = (facts.access_key, facts.region);
    let secret = if facts.secret_is_ours { facts.secret_key } else { "$CYXCLOUD_ROOT_SECRET_KEY" };
    let plural =
        if facts.nodes == 1 { "1 node (no redundancy)".to_owned() } else { format!("{} nodes", facts.nodes) };
    let examples = [
        format!(
            "AWS_ACCESS_KEY_ID={id} AWS_SECRET_ACCESS_KEY={secret} AWS_DEFAULT_REGION={region} \
             {aws} --endpoint-url {url} s3 mb s3://demo"
        ),
        format!(
            "echo hello | CYXCLOUD_ACCESS_KEY={id} CYXCLOUD_SECRET_KEY={secret} \
             {cli} --gateway {url} upload --bucket demo --key hello.txt -"
        ),
        format!("curl -sSf --aws-sigv4 aws:amz:{region}:s3 --user {id}:{secret} {url}/demo/hello.txt"),
    ];
    format!(
        "CyxCloud is ready: {url}, {plural}, data in {data}\n\
         Access key {id}, secret key {secret}\n\nThree lines to copy:\n  {}\n",
        examples.join("\n  "),
        data = facts.data_dir.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_name_this_server_and_a_set_secret_is_not_repeated() {
        let mut facts = Facts {
            http: "0.0.0.0:9000".parse().expect("an address"),
            tls: false,
            nodes: 6,
            data_dir: Path::new("data"),
            region: "us-east-1",
            access_key: "KEY",
            secret_key: "SECRETSECRET",
            secret_is_ours: true,
            search_path: None,
            venv: None,
        };
        let ours = text(&facts, "cyxcloud-cli", "aws");
        assert_eq!(ours.matches("http://127.0.0.1:9000").count(), 4);
        assert!(ours.contains("SECRETSECRET"));
        facts.secret_is_ours = false;
        assert!(!text(&facts, "cyxcloud-cli", "aws").contains("SECRETSECRET"));
    }
}

//! The command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

/// Store files in CyxCloud and get them back.
#[derive(Debug, Parser)]
#[command(name = "cyxcloud-cli", version, about, max_term_width = 100)]
pub(crate) struct Args {
    /// Gateway URL [default: http://localhost:8080]
    #[arg(long, global = true, value_name = "URL", env = "CYXCLOUD_GATEWAY")]
    pub(crate) gateway: Option<String>,

    /// Certificates (PEM) of the authorities to trust for https, instead of the system's
    #[arg(long, visible_alias = "ca", global = true, value_name = "FILE", env = "TLS_CA")]
    pub(crate) tls_ca: Option<PathBuf>,

    /// Config file path [default: ~/.cyxcloud/config.toml]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,

    /// Enable verbose output
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Authenticate with CyxCloud, by wallet or by email and password
    Login(Login),
    /// Clear stored credentials
    Logout,
    /// Show who is logged in
    Whoami(Whoami),
    /// Create, list and revoke keys for programs
    #[command(subcommand)]
    Keys(Keys),
    /// Upload file to storage
    Upload(Upload),
    /// Download file from storage
    Download(Download),
    /// Delete file from storage
    Delete(Delete),
    /// List files in bucket
    List(List),
    /// Show storage usage info
    Info(Info),
}

#[derive(Debug, ClapArgs)]
#[command(group = clap::ArgGroup::new("who").required(true))]
pub(crate) struct Login {
    /// Solana keypair file of the wallet to log in with (a JSON array of 64 numbers)
    #[arg(long, value_name = "PATH", group = "who")]
    pub(crate) keypair: Option<PathBuf>,

    /// Make a wallet, write it to this file, and log in with it
    #[arg(long, value_name = "PATH", group = "who")]
    pub(crate) new_wallet: Option<PathBuf>,

    /// Log in with this email address and a password, which is asked for unless CYXCLOUD_PASSWORD or
    /// CYXCLOUD_PASSWORD_FILE is set
    #[arg(long, value_name = "EMAIL", group = "who")]
    pub(crate) email: Option<String>,

    /// Read the password from standard input
    #[arg(long, requires = "email", conflicts_with_all = ["keypair", "new_wallet"])]
    pub(crate) password_stdin: bool,

    /// Name that the gateway has in what the wallet signs, if it is not the host of its URL
    #[arg(long, value_name = "DOMAIN", env = "CYXCLOUD_AUTH_DOMAIN")]
    pub(crate) auth_domain: Option<String>,

    /// Identity service that knows the email address
    #[arg(long, value_name = "URL", env = "CYXWIZ_API_URL", default_value = "http://localhost:3002")]
    pub(crate) api_url: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Whoami {
    /// Print the gateway's answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Create a key; its secret is shown once
    Create(CreateKey),
    /// List keys
    List {
        /// Print the gateway's answer as JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key for good
    Revoke {
        /// Id of the key, as `keys list` shows it
        #[arg(value_name = "ID")]
        id: String,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CreateKey {
    /// What the key is for
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

    /// Days until it expires [default: the gateway's, 365]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=365))]
    pub(crate) expires_days: Option<u32>,

    /// Only this bucket; may be repeated [default: all]
    #[arg(short, long = "bucket", value_name = "BUCKET")]
    pub(crate) buckets: Vec<String>,

    /// Only keys that begin with this; may be repeated [default: all]
    #[arg(short, long = "prefix", value_name = "PREFIX")]
    pub(crate) prefixes: Vec<String>,

    /// Only reading
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Print the gateway's answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Upload {
    /// Bucket; made if it does not exist [default: the config file's]
    #[arg(short, long)]
    pub(crate) bucket: Option<String>,

    /// Key to store under; with --recursive, the folder [default: the file's name]
    #[arg(short, long)]
    pub(crate) key: Option<String>,

    /// Upload a directory with all that is in it
    #[arg(short, long)]
    pub(crate) recursive: bool,

    /// Content type [default: by the file's extension]
    #[arg(long, value_name = "TYPE")]
    pub(crate) content_type: Option<String>,

    /// Requests at the same time
    #[arg(short, long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) parallel: u16,

    /// File, directory (with --recursive), or - for standard input
    #[arg(value_name = "FILE|DIR|-")]
    pub(crate) source: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Download {
    /// Bucket [default: the config file's]
    #[arg(short, long)]
    pub(crate) bucket: Option<String>,

    /// Key to read; with --recursive, the folder
    #[arg(short, long)]
    pub(crate) key: Option<String>,

    /// Download everything under the folder
    #[arg(short, long)]
    pub(crate) recursive: bool,

    /// Requests at the same time
    #[arg(short, long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) parallel: u16,

    /// File, directory, or - for standard output
    #[arg(value_name = "OUT|-")]
    pub(crate) target: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Delete {
    /// Bucket [default: the config file's]; without --key, the bucket itself is deleted, if it is empty
    #[arg(short, long)]
    pub(crate) bucket: Option<String>,

    /// Key to delete; with --recursive, the folder ('' is the whole bucket)
    #[arg(short, long)]
    pub(crate) key: Option<String>,

    /// Delete everything under the folder
    #[arg(short, long)]
    pub(crate) recursive: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct List {
    /// Bucket; without it (and without a prefix), buckets are listed
    #[arg(short, long)]
    pub(crate) bucket: Option<String>,

    /// Show what lies between slashes as folders
    #[arg(short, long)]
    pub(crate) folders: bool,

    /// Only keys that begin with this
    #[arg(value_name = "PREFIX")]
    pub(crate) prefix: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Info {
    /// Show this bucket instead of the account
    #[arg(short, long)]
    pub(crate) bucket: Option<String>,

    /// Show this object of the bucket
    #[arg(short, long, requires = "bucket")]
    pub(crate) key: Option<String>,

    /// Print the gateway's answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_specification_s_lines_are_understood() {
        let upload = "cyxcloud-cli upload --bucket test --key myfile.txt ./localfile.txt";
        let args = Args::try_parse_from(upload.split(' ')).expect("appendix A");
        assert!(
            matches!(args.command, Command::Upload(upload) if upload.key.as_deref() == Some("myfile.txt"))
        );
        let download =
            "cyxcloud-cli -v --gateway http://h:1 download --bucket test --key myfile.txt ./output.txt";
        let args = Args::try_parse_from(download.split(' ')).expect("appendix A");
        assert!(args.verbose && args.gateway.as_deref() == Some("http://h:1"));
        // Options go after the command as well.
        let args = Args::try_parse_from("cyxcloud-cli list --gateway http://h:2 --config c".split(' '));
        assert_eq!(args.expect("global options").gateway.as_deref(), Some("http://h:2"));
        assert!(Args::try_parse_from("cyxcloud-cli upload --bucket b -".split(' ')).is_ok());
        assert!(Args::try_parse_from("cyxcloud-cli info --key k".split(' ')).is_err());
    }

    #[test]
    fn one_logs_in_in_one_way() {
        for good in [
            "--keypair id.json",
            "--new-wallet id.json --auth-domain files.example",
            "--email a@b.c --password-stdin --api-url http://h",
        ] {
            let line = format!("cyxcloud-cli login {good}");
            assert!(Args::try_parse_from(line.split(' ')).is_ok(), "{good}");
        }
        for bad in
            ["", " --keypair a --email b@c.d", " --keypair a --password-stdin", " --keypair a --new-wallet b"]
        {
            let line = format!("cyxcloud-cli login{bad}");
            assert!(Args::try_parse_from(line.split(' ')).is_err(), "{bad}");
        }
    }
}

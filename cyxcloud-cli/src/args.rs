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
}

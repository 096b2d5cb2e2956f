//! Of the command line, which is a program and no library: the files that read what a server says.

#[path = "../../cyxcloud-cli/src/challenge.rs"]
pub mod challenge;
#[path = "../../cyxcloud-cli/src/keys.rs"]
pub mod keys;
#[path = "../../cyxcloud-cli/src/client/xml.rs"]
pub mod xml;

/// As the command line's client has it.
#[derive(Debug)]
pub enum Error {
    Garbled(String),
}

/// As the command line has it.
pub mod config {
    use reqwest::Url;

    pub fn url_text(url: &Url) -> &str {
        url.as_str().trim_end_matches('/')
    }
}

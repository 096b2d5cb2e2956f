//! Of the command line, which is a program and no library: the two files that read what a server says.

#[path = "../../cyxcloud-cli/src/keys.rs"]
pub mod keys;
#[path = "../../cyxcloud-cli/src/client/xml.rs"]
pub mod xml;

/// As the command line's client has it.
#[derive(Debug)]
pub enum Error {
    Garbled(String),
}

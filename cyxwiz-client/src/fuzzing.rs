//! What the fuzz targets in `fuzz/` reach of this crate's inside: how answers of the API are read.
//!
//! No interface: nothing else may use it, and it may change at any time.

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde::de::DeserializeOwned;

use crate::{Account, Error, Registered, Tokens, account_of, good, parse, retry_after};

fn read<T: DeserializeOwned>(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<T, Error> {
    parse(&good(status, retry_after(headers), body.to_vec())?)
}

/// The answer to a log-in or a renewal.
pub fn tokens(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<Tokens, Error> {
    read(status, headers, body)
}

/// The id of a machine that was registered.
pub fn machine(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<String, Error> {
    read::<Registered>(status, headers, body).map(|registered| registered.id)
}

/// What an account may do, if there is one.
pub fn account(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<Option<Account>, Error> {
    account_of(read(status, headers, body))
}

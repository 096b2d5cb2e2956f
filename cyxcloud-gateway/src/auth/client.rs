//! Where a request came from: put into its extensions as it comes in, and looked at by the door and by all behind it.

use std::net::IpAddr;

/// Where a request came from, as far as the proxies that we trust tell.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub IpAddr);

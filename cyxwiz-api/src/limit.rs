//! How often things may be tried. The counting is the store's, so that several instances count together.

use std::time::Duration;

/// So many at once, and then one more each time `every` has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// First part of the key that it is counted under.
    pub(crate) name: &'static str,
    pub(crate) burst: u32,
    pub(crate) every: Duration,
}

impl Limit {
    const fn per(name: &'static str, count: u32, period: Duration) -> Self {
        Self { name, burst: count, every: Duration::from_millis(period.as_millis() as u64 / count as u64) }
    }

    /// Registrations from one address.
    pub(crate) const fn registrations(per_hour: u32) -> Self {
        Self::per("register", per_hour, Duration::from_secs(3_600))
    }
}

const MINUTE: Duration = Duration::from_secs(60);
/// Wrong passwords for one account from one address, whether the account exists or not.
pub(crate) const LOGIN_PAIR: Limit = Limit::per("login-pair", 5, MINUTE);
/// Wrong passwords for one account from all addresses from which nobody logged in to it before. Who did is not kept out by
/// what strangers try.
pub(crate) const LOGIN_ACCOUNT: Limit = Limit::per("login-account", 20, MINUTE);
/// Wrong passwords from one address.
pub(crate) const LOGIN_ADDRESS: Limit = Limit::per("login-address", 30, MINUTE);
/// Passwords that are checked for one address, also right ones: who has accounts of its own takes no more of the hashing than that.
pub(crate) const PASSWORDS: Limit = Limit::per("passwords", 60, MINUTE);
/// Refreshes from one address: tokens are checked by a signature first, so this bounds the database's work only.
pub(crate) const REFRESH: Limit = Limit::per("refresh", 120, MINUTE);
/// Challenges for one account.
pub(crate) const CHALLENGE: Limit = Limit::per("challenge", 10, MINUTE);
/// Answers to challenges, for one account.
pub(crate) const WALLET: Limit = Limit::per("wallet", 5, MINUTE);

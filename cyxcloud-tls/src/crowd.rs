//! How many connections one address, sockets one owner, or turns one node holds at a time: so many and no more, so that nobody
//! takes what all need.
//!
//! Not here: what becomes of a connection that finds no place.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;

use crate::client::{address_group, is_in};

/// Counts what is open by whose it is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Crowd {
    most: usize,
    exempt: Arc<[IpNet]>,
    open: Arc<Mutex<HashMap<String, usize>>>,
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub struct Place {
    crowd: Crowd,
    group: String,
}

impl Crowd {
    /// At most so many of each.
    pub fn new(most: usize) -> Self {
        Self::with_exempt(most, [])
    }

    /// Addresses in these networks have no limit: many people come by way of them.
    pub fn with_exempt(most: usize, exempt: impl Into<Arc<[IpNet]>>) -> Self {
        Self { most, exempt: exempt.into(), open: Arc::default() }
    }

    /// A place for a connection from there; `None` if the address has as many as it may have.
    pub fn enter(&self, from: IpAddr) -> Option<Place> {
        self.enter_up_to(if is_in(from, &self.exempt) { usize::MAX } else { self.most }, address_group(from))
    }

    /// A place in this group.
    pub fn enter_as(&self, group: String) -> Option<Place> {
        self.enter_up_to(self.most, group)
    }

    fn enter_up_to(&self, most: usize, group: String) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(group.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { crowd: self.clone(), group })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.crowd.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.group) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn neighbours_share_a_count_and_strangers_do_not() {
        let group = |text: &str| address_group(address(text));
        assert_eq!(group("2001:db8::1"), group("2001:db8::ffff:2"));
        assert_ne!(group("2001:db8:0:1::1"), group("2001:db8::1"));
        assert_eq!(group("::ffff:192.0.2.1"), group("192.0.2.1"));
        assert_ne!(group("192.0.2.1"), group("192.0.2.2"));
    }

    #[test]
    fn adv_30_an_address_has_so_many_places_and_gets_them_back() {
        let crowd = Crowd::new(2);
        let enter = |text: &str| crowd.enter(address(text));
        let (first, second) = (enter("192.0.2.1"), enter("192.0.2.1"));
        assert!(first.is_some() && second.is_some());
        assert!(enter("192.0.2.1").is_none() && enter("::ffff:192.0.2.1").is_none());
        assert!(enter("192.0.2.2").is_some(), "another address has its own");
        drop(first);
        assert!(enter("192.0.2.1").is_some());
        drop(second);
        assert!(crowd.open.lock().expect("not poisoned").is_empty(), "nothing is remembered of who left");
    }

    #[test]
    fn who_brings_many_people_has_no_limit() {
        let crowd = Crowd::with_exempt(1, ["192.0.2.0/24".parse().expect("a network")]);
        let places: Vec<_> = (0..10).map(|_| crowd.enter(address("::ffff:192.0.2.1"))).collect();
        assert!(places.iter().all(Option::is_some));
        let other = crowd.enter(address("198.51.100.1"));
        assert!(other.is_some() && crowd.enter(address("198.51.100.1")).is_none());
    }
}

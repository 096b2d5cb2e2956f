//! What one listener sees of what is told: the topics it asked for, within what its credentials may read.

use std::collections::BTreeSet;

use cyxcloud_core::name::{BucketName, ObjectKey};

use crate::events::{Event, Topic, UnknownTopic};
use crate::limits::{Caller, Need};

/// The topics in a comma-separated list; all where there is no list.
pub(crate) fn topics(list: Option<&str>) -> Result<BTreeSet<Topic>, UnknownTopic> {
    match list {
        None => Ok(Topic::ALL.into()),
        Some(list) => list.split(',').map(|topic| topic.trim().parse()).collect(),
    }
}

/// Whether a caller may know of an event among those told to its owner. A limited key knows of what it may read.
pub(crate) fn may_know(event: &Event, caller: &Caller) -> bool {
    if caller.limits.is_none() {
        return true;
    }
    let bucket = |bucket: &String, need: Need<'_>| {
        bucket.parse::<BucketName>().is_ok_and(|bucket| caller.may(&bucket, need))
    };
    match event {
        Event::FileCreated { bucket: name, key, .. }
        | Event::FileDeleted { bucket: name, key }
        | Event::FileProgress { bucket: name, key, .. } => {
            ObjectKey::new(key.as_str()).is_ok_and(|key| bucket(name, Need::Read(&key)))
        }
        Event::BucketCreated { bucket: name } | Event::BucketDeleted { bucket: name } => {
            bucket(name, Need::Look)
        }
        Event::NodeJoined { .. } | Event::NodeStatus { .. } | Event::NodeLeft { .. } => true,
    }
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::{NodeId, OwnerId};

    use super::*;
    use crate::limits::Limits;

    #[test]
    fn a_list_names_topics_and_nothing_else() {
        let some = |list: &str| topics(Some(list)).map(|topics| topics.into_iter().collect::<Vec<_>>());
        assert_eq!(topics(None).map(|all| all.len()), Ok(3));
        assert_eq!(some("node,file"), Ok(vec![Topic::File, Topic::Node]));
        assert_eq!(some("file, file"), Ok(vec![Topic::File]));
        for bad in ["", "file,", "files", "file;node", "*", "file,cluster"] {
            assert_eq!(some(bad), Err(UnknownTopic), "{bad:?}");
        }
    }

    #[test]
    fn adv_33_a_limited_key_hears_of_what_it_may_read() {
        let created = |bucket: &str, key: &str| Event::FileCreated {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            size: 1,
        };
        let made = |bucket: &str| Event::BucketCreated { bucket: bucket.to_owned() };
        let caller = |limits: Option<Limits>| Caller {
            owner: OwnerId::from_random([1; 16]),
            limits: limits.map(std::sync::Arc::new),
        };
        let whole = caller(None);
        let narrow = caller(Some(Limits {
            buckets: Some(vec!["photos".to_owned()]),
            prefixes: Some(vec!["2024/".to_owned()]),
            read_only: true,
        }));
        assert!(may_know(&created("photos", "2023/a"), &whole) && may_know(&made("other"), &whole));
        assert!(may_know(&created("photos", "2024/a"), &narrow) && may_know(&made("photos"), &narrow));
        assert!(may_know(&Event::NodeLeft { node_id: NodeId::from_random([1; 16]) }, &narrow));
        for hidden in
            [created("photos", "2023/a"), created("other", "2024/a"), created("No Bucket", "2024/a")]
        {
            assert!(!may_know(&hidden, &narrow), "{hidden:?}");
        }
        assert!(!may_know(&made("other"), &narrow));
    }
}

//! What happened to the nodes between two looks at them.
//!
//! Every gateway looks for itself, so each tells its own listeners once, whoever made the change. What came and went
//! between two looks was never seen.

use std::collections::BTreeMap;

use cyxcloud_core::NodeId;
use cyxcloud_core::node::NodeStatus;
use cyxcloud_metadata::model::Node;

use crate::events::Event;

/// The nodes as they were at the last look.
#[derive(Debug, Default)]
pub(super) struct Seen(Option<BTreeMap<NodeId, NodeStatus>>);

impl Seen {
    /// Looks again. The first look finds nothing changed.
    pub(super) fn look(&mut self, nodes: &[Node]) -> Vec<Event> {
        let now = nodes.iter().map(|node| (node.id, node.status)).collect();
        let before = self.0.replace(now);
        before.map_or_else(Vec::new, |before| changes(&before, nodes))
    }
}

fn changes(before: &BTreeMap<NodeId, NodeStatus>, nodes: &[Node]) -> Vec<Event> {
    let mut left: BTreeMap<_, _> = before.clone();
    let mut events = Vec::new();
    for node in nodes {
        let (node_id, status) = (node.id, node.status);
        match left.remove(&node_id) {
            None => {
                let address = Some(node.grpc_address.clone());
                events.push(Event::NodeJoined { node_id, status, address });
            }
            Some(before) if before != status => events.push(Event::NodeStatus { node_id, status }),
            Some(_) => {}
        }
    }
    events.extend(left.into_keys().map(|node_id| Event::NodeLeft { node_id }));
    events
}

#[cfg(test)]
mod tests {
    use cyxcloud_metadata::conformance::samples::node;

    use super::*;

    fn id(seed: u8) -> NodeId {
        NodeId::from_random([seed; 16])
    }

    #[test]
    fn each_change_is_told_once() {
        use NodeStatus::{Offline, Online, Recovering};
        let mut seen = Seen::default();
        assert_eq!(seen.look(&[node(1, Online), node(2, Online)]), [], "who starts to look sees no change");
        assert_eq!(seen.look(&[node(2, Online), node(1, Online)]), []);
        let told = seen.look(&[node(1, Offline), node(3, Recovering)]);
        let joined = Event::NodeJoined {
            node_id: id(3),
            status: Recovering,
            address: Some("http://10.0.0.3:50051".to_owned()),
        };
        let gone = Event::NodeLeft { node_id: id(2) };
        assert_eq!(told, [Event::NodeStatus { node_id: id(1), status: Offline }, joined, gone]);
        assert_eq!(seen.look(&[node(1, Offline), node(3, Recovering)]), []);
        assert_eq!(seen.look(&[]).len(), 2, "and who all left, left");
    }
}

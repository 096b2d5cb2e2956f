//! How many node losses a stripe survives, whatever nodes they are.

use std::collections::HashMap;

use crate::{Geometry, NodeId, ShardIndex};

/// Steps after which the search settles for what it has proven. No layout that placement or repair makes comes near.
const STEPS_MAX: u32 = 200_000;
/// Fractions of a shard are counted in these: divisible by every number up to 16.
const WHOLE: u64 = 720_720;

/// The largest `t` such that losing any `t` nodes leaves at least `data` distinct shards; `None` where not even
/// that many are held now.
///
/// Exact, for shards held on several nodes too. (A layout so entangled that the search would take too long gets an answer
/// that may be too small, never one that is too large.)
pub fn tolerance(geometry: Geometry, held: &[(ShardIndex, NodeId)]) -> Option<u8> {
    let mut shards: Vec<Vec<usize>> = vec![Vec::new(); geometry.shards()];
    let mut nodes: HashMap<NodeId, usize> = HashMap::with_capacity(held.len());
    for (shard, node) in held {
        let next = nodes.len();
        let node = *nodes.entry(*node).or_insert(next);
        if let Some(holders) = shards.get_mut(shard.get())
            && !holders.contains(&node)
        {
            holders.push(node);
        }
    }
    shards.retain(|holders| !holders.is_empty());
    let spare = shards.len().checked_sub(geometry.data())?;
    // Fewest nodes whose loss takes more shards than can be spared.
    let fatal = if shards.iter().all(|holders| holders.len() == 1) {
        fatal_without_copies(&shards, nodes.len(), spare)
    } else if geometry.data() == 1 {
        nodes.len()
    } else {
        Search::new(shards, nodes.len()).fatal(spare)
    };
    Some(u8::try_from(fatal.saturating_sub(1)).unwrap_or(u8::MAX))
}

/// Each shard on one node: the fullest nodes are the worst to lose.
fn fatal_without_copies(shards: &[Vec<usize>], nodes: usize, spare: usize) -> usize {
    let mut loads = vec![0; nodes];
    for holders in shards {
        loads[holders[0]] += 1;
    }
    loads.sort_unstable_by(|a, b| b.cmp(a));
    let mut lost = 0;
    for (count, load) in loads.into_iter().enumerate() {
        lost += load;
        if lost > spare {
            return count + 1;
        }
    }
    nodes
}

/// Branch and bound over the nodes to lose.
struct Search {
    shards: Vec<Vec<usize>>,
    fate: Vec<Fate>,
    steps: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    Lost,
    Kept,
}

impl Search {
    fn new(shards: Vec<Vec<usize>>, nodes: usize) -> Self {
        Self { shards, fate: vec![Fate::Open; nodes], steps: 0 }
    }

    /// Fewest nodes whose loss takes more than `spare` shards.
    fn fatal(&mut self, spare: usize) -> usize {
        let nodes = self.fate.len();
        (1..nodes).find(|&count| self.can_take_more_than(spare, count)).unwrap_or(nodes)
    }

    /// Whether some `count` more nodes, with those lost already, take more than `spare` shards.
    fn can_take_more_than(&mut self, spare: usize, count: usize) -> bool {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return true;
        }
        let (taken, mut shares) = self.shares();
        if taken > spare {
            return true;
        }
        // A shard goes only when all its holders are lost, so each open holder takes an equal share of it; no `count` nodes
        // take more than the `count` largest sums of shares.
        shares.sort_unstable_by(|a, b| b.cmp(a));
        let most: u64 = shares.iter().take(count).map(|(share, _)| share).sum();
        if taken as u64 * WHOLE + most < (spare as u64 + 1) * WHOLE {
            return false;
        }
        let Some(&(_, node)) = shares.first() else { return false };
        self.fate[node] = Fate::Lost;
        let found = self.can_take_more_than(spare, count - 1) || {
            self.fate[node] = Fate::Kept;
            self.can_take_more_than(spare, count)
        };
        self.fate[node] = Fate::Open;
        found
    }

    /// Shards taken already, and for each open node that could take more the sum of its shares, rounded up.
    fn shares(&self) -> (usize, Vec<(u64, usize)>) {
        let mut taken = 0;
        let mut sums = vec![0; self.fate.len()];
        for holders in &self.shards {
            if holders.iter().any(|&node| self.fate[node] == Fate::Kept) {
                continue;
            }
            let open = holders.iter().filter(|&&node| self.fate[node] == Fate::Open).count() as u64;
            if open == 0 {
                taken += 1;
                continue;
            }
            for &node in holders.iter().filter(|&&node| self.fate[node] == Fate::Open) {
                sums[node] += WHOLE.div_ceil(open);
            }
        }
        let open =
            sums.into_iter().enumerate().filter(|(_, sum)| *sum > 0).map(|(node, sum)| (sum, node)).collect();
        (taken, open)
    }
}

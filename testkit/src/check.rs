//! Judges a history: is there, for each key, one order of its operations that explains every answer?
//!
//! Linearizability of one register per key, decided by keeping every state that the key may be in: at each end of an
//! operation, those ways are kept in which it has taken effect between its beginning and now. An operation without an end
//! (nobody knows whether it happened) may take effect at any time after its beginning, or never.
//! Pure. Not here: what bytes are right (`recorder`), what disks hold (`census`).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Blake3 of an object's bytes: which value a key has.
pub type Value = [u8; 32];

/// What an operation says of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// From now on this is its value; `None` is absence.
    Write(Option<Value>),
    /// This was its value.
    Read(Option<Value>),
    /// It was there, or not, with whatever value.
    Exists(bool),
    /// It was not there, and from now on this is its value.
    Create(Value),
}

/// One operation on one key. Times are in any unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Number in the history.
    pub id: u64,
    /// When it was asked.
    pub call: u64,
    /// When it was answered; `None`: it may have happened, or happen yet.
    pub ret: Option<u64>,
    /// What it did or saw.
    pub act: Act,
}

/// An answer that no order explains.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no order explains operation {}: {}", .op.id, describe(.op, .may))]
pub struct Anomaly {
    /// The operation at whose end all orders failed.
    pub op: Op,
    /// What the key may have held then.
    pub may: BTreeSet<Option<Value>>,
}

fn describe(op: &Op, may: &BTreeSet<Option<Value>>) -> String {
    let name = |value: &Option<Value>| match value {
        None => "nothing".to_owned(),
        Some(value) => value.iter().take(4).map(|byte| format!("{byte:02x}")).collect(),
    };
    let act = match op.act {
        Act::Write(value) => format!("write {}", name(&value)),
        Act::Read(value) => format!("read {}", name(&value)),
        Act::Exists(there) => format!("exists: {there}"),
        Act::Create(value) => format!("create {}", name(&Some(value))),
    };
    let may: Vec<String> = may.iter().map(name).collect();
    format!("{act}, while the key may hold {}", may.join(" or "))
}

impl Act {
    /// The value after it, if it can happen where the value is `before`.
    fn on(self, before: Option<Value>) -> Option<Option<Value>> {
        match self {
            Self::Write(value) => Some(value),
            Self::Read(value) => (value == before).then_some(before),
            Self::Exists(there) => (there == before.is_some()).then_some(before),
            Self::Create(value) => before.is_none().then_some(Some(value)),
        }
    }
}

/// What may be: the value, and which of the operations that are under way have taken effect.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct State {
    value: Option<Value>,
    /// Of those that will end: each must have taken effect by then.
    done: BTreeSet<usize>,
    /// Of those that never end: each can take effect only once.
    spent: BTreeSet<usize>,
}

/// Whether one order of these operations (of one key, which was absent at first) explains all of them.
pub fn linearizable(ops: &[Op]) -> Result<(), Anomaly> {
    // At equal times beginnings come first: two operations that touch may have overlapped.
    let mut events: Vec<(u64, u8, usize)> = Vec::with_capacity(2 * ops.len());
    for (index, op) in ops.iter().enumerate() {
        events.push((op.call, 0, index));
        events.extend(op.ret.map(|ret| (ret, 1, index)));
    }
    events.sort_unstable();
    let mut pending: BTreeSet<usize> = BTreeSet::new();
    let mut states = vec![State { value: None, done: BTreeSet::new(), spent: BTreeSet::new() }];
    for (_, kind, index) in events {
        if kind == 0 {
            pending.insert(index);
            continue;
        }
        let after = states_after(index, ops, &pending, &states);
        if after.is_empty() {
            let may = states.iter().map(|state| state.value).collect();
            return Err(Anomaly { op: ops[index], may });
        }
        pending.remove(&index);
        states = after;
    }
    Ok(())
}

/// All states in which operation `ending` has taken effect, reached through any operations under way.
fn states_after(ending: usize, ops: &[Op], pending: &BTreeSet<usize>, before: &[State]) -> Vec<State> {
    let mut seen = Seen::default();
    let mut after = Seen::default();
    let mut queue: VecDeque<State> = VecDeque::new();
    for state in before {
        if seen.is_new(state) {
            queue.push_back(state.clone());
        }
    }
    while let Some(mut state) = queue.pop_front() {
        if state.done.remove(&ending) {
            after.is_new(&state);
            continue;
        }
        for &next in pending {
            if state.done.contains(&next) || state.spent.contains(&next) {
                continue;
            }
            let Some(value) = ops[next].act.on(state.value) else { continue };
            let mut reached = State { value, ..state.clone() };
            if ops[next].ret.is_some() { &mut reached.done } else { &mut reached.spent }.insert(next);
            if seen.is_new(&reached) {
                queue.push_back(reached);
            }
        }
    }
    after.states()
}

/// States, of which those are left out that can do no more than another: the same value and operations done, with more
/// operations spent.
#[derive(Default)]
struct Seen(HashMap<(Option<Value>, Ops), Vec<Ops>>);

/// By their places in the history.
type Ops = BTreeSet<usize>;

impl Seen {
    fn is_new(&mut self, state: &State) -> bool {
        let spent = self.0.entry((state.value, state.done.clone())).or_default();
        if spent.iter().any(|known| known.is_subset(&state.spent)) {
            return false;
        }
        spent.retain(|known| !state.spent.is_subset(known));
        spent.push(state.spent.clone());
        true
    }

    fn states(self) -> Vec<State> {
        let each = self.0.into_iter().flat_map(|((value, done), spents)| {
            spents.into_iter().map(move |spent| State { value, done: done.clone(), spent })
        });
        each.collect()
    }
}

/// All anomalies of a history, one per key at most.
pub fn anomalies(history: &BTreeMap<String, Vec<Op>>) -> Vec<(String, Anomaly)> {
    let each = history.iter().filter_map(|(key, ops)| Some((key.clone(), linearizable(ops).err()?)));
    each.collect()
}

#[cfg(test)]
mod tests;

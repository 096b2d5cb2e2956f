//! Stores one coded stripe: places its shards, sends them out, and waits until what was acknowledged keeps the promise.
//!
//! The promise is computed from verified receipts and not counted. A store that fails, or is late, is planned again over
//! the nodes that are left. Once the promise is kept the rest gets a short grace; what is then still missing is left
//! to repair. Where everybody is silent the client is told so, rather than kept waiting for each node's time to run out.

use std::collections::HashSet;
use std::time::Duration;

use cyxcloud_core::faults;
use cyxcloud_core::placement;
use cyxcloud_core::receipt::Receipt;
use cyxcloud_core::{ByteCount, Geometry, NodeId, ShardIndex, crash_point};
use cyxcloud_metadata::model::{NewLocation, NewShard, NewStripe};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;
use tracing::debug;

use super::code::Coded;
use crate::Plane;
use crate::error::{NodeError, WriteError};
use crate::node::view::View;

/// At least this long does a stripe wait for stragglers: cutting off a node that is merely busy makes work for repair.
const GRACE_LEAST: Duration = Duration::from_millis(100);

/// See [`Config::silence`](crate::Config): so many times as long as a store must take to be late.
const SILENT_FOR: u32 = 2;

type Place = (ShardIndex, NodeId);

/// One stripe being stored.
struct Storing<'a> {
    plane: &'a Plane,
    geometry: Geometry,
    coded: &'a Coded,
    ack: u8,
    acked: Vec<(Place, NewLocation)>,
    /// Sent and not answered, with the time and whether that is too long ago.
    pending: Vec<(Place, Instant, bool)>,
    /// Failed: not to be given anything more of this stripe.
    excluded: HashSet<NodeId>,
    /// Slow to answer: given more only where the others are too few.
    late: HashSet<NodeId>,
    /// Failed once in a way that may pass; likewise.
    second_chance: HashSet<NodeId>,
    last: Option<NodeError>,
}

/// Stores a stripe so that it survives the loss of `ack` nodes.
pub(super) async fn store<E>(
    plane: &Plane,
    stripe: u32,
    geometry: Geometry,
    coded: Coded,
    ack: u8,
) -> Result<NewStripe, WriteError<E>> {
    let mut storing = Storing {
        plane,
        geometry,
        coded: &coded,
        ack,
        acked: Vec::new(),
        pending: Vec::new(),
        excluded: HashSet::new(),
        late: HashSet::new(),
        second_chance: HashSet::new(),
        last: None,
    };
    let candidates = plane.pool.view().candidates(|_| true);
    let shard_len = ByteCount::bytes(coded.shard_len as u64);
    let plan = placement::place(&candidates, geometry, shard_len, &mut rand::rng())?;
    let tolerance = storing.run(plan.assignments).await;
    match tolerance {
        Some(tolerance) => Ok(storing.into_stripe(tolerance)),
        None => Err(WriteError::NotEnoughAcks {
            stripe,
            stored: storing.acked.iter().map(|((shard, _), _)| shard).collect::<HashSet<_>>().len(),
            need: ack,
            last: storing.last,
        }),
    }
}

impl<'a> Storing<'a> {
    /// Sends the shards out; answers with the tolerance reached, or `None` if the promise cannot be kept.
    async fn run(&mut self, plan: Vec<Place>) -> Option<u8> {
        let began = Instant::now();
        let config = &self.plane.config;
        let late_after = self.plane.pool.store_times.of(self.coded.shard_len).late(
            4,
            config.late_store,
            (config.write_timeout / 2).max(config.late_store),
        );
        // As many times what is late as would show that it is not the size of the shards.
        let silence = (late_after * SILENT_FOR).max(config.silence).min(config.write_timeout);
        let mut signed = began;
        let mut stores = FuturesUnordered::new();
        let mut planned = plan;
        let mut next_look = began + late_after;
        let mut grace_ends = None;
        loop {
            for place in planned.drain(..) {
                self.pending.push((place, Instant::now(), false));
                stores.push(self.send(place));
            }
            let tolerance = self.tolerance();
            if faults::switch("ACK_AT_DATA") && tolerance.is_some() {
                // What tests must notice: it can be read, and may not survive what is promised.
                return Some(self.ack);
            }
            let kept = tolerance.is_some_and(|tolerance| tolerance >= self.ack);
            if kept && (stores.is_empty() || grace_ends.is_some_and(|ends| Instant::now() >= ends)) {
                self.give_up_pending();
                return tolerance;
            }
            if stores.is_empty() {
                // All were answered. Who was late may take more by now.
                planned = self.plan_again();
                if planned.is_empty() {
                    return None;
                }
                continue;
            }
            let wake = if kept {
                let grace = began.elapsed().min(config.straggler_grace).max(GRACE_LEAST);
                *grace_ends.get_or_insert(Instant::now() + grace)
            } else {
                next_look.min(signed + silence)
            };
            tokio::select! {
                Some((place, outcome)) = stores.next() => {
                    if outcome.is_ok() {
                        signed = Instant::now();
                    }
                    planned = self.answered(place, outcome);
                }
                () = tokio::time::sleep_until(wake) => if !kept {
                    if signed.elapsed() >= silence {
                        self.give_up_pending();
                        return None;
                    }
                    next_look = Instant::now() + late_after;
                    planned = self.plan_late(late_after);
                },
            }
        }
    }

    fn send(&self, place: Place) -> impl Future<Output = (Place, Result<Receipt, NodeError>)> + use<'a> {
        let (index, node) = place;
        let shard = &self.coded.shards[index.get()];
        let (chunk, data, descriptor) = (shard.chunk, shard.data.clone(), shard.descriptor.clone());
        let plane = self.plane;
        async move { (place, plane.pool.store_chunk(node, chunk, data, descriptor).await) }
    }

    /// Takes note of an answer; a failure is planned again.
    fn answered(&mut self, place: Place, outcome: Result<Receipt, NodeError>) -> Vec<Place> {
        let (shard, node) = place;
        self.pending.retain(|(pending, ..)| *pending != place);
        match outcome {
            Ok(receipt) => {
                self.late.remove(&node);
                let location = NewLocation {
                    node,
                    generation: receipt.generation,
                    receipt_signature: receipt.signature.to_vec(),
                    stored_at: receipt.stored_at,
                };
                self.acked.push((place, location));
                match self.acked.len() {
                    1 => crash_point!("put.stored_1"),
                    9 => crash_point!("put.stored_9"),
                    10 => crash_point!("put.stored_10"),
                    12 => crash_point!("put.stored_12"),
                    _ => {}
                }
                Vec::new()
            }
            Err(error) => {
                debug!(%node, shard = shard.get(), %error, "store failed");
                let may_pass = matches!(error, NodeError::Status { .. });
                if self.excluded.insert(node) && may_pass {
                    self.second_chance.insert(node);
                }
                self.last = Some(error);
                self.plan_again()
            }
        }
    }

    /// Plans what is late again; the late stores go on, in case they are answered after all.
    fn plan_late(&mut self, late_after: Duration) -> Vec<Place> {
        let mut newly_late = 0;
        for ((_, node), sent, late) in &mut self.pending {
            if !*late && sent.elapsed() >= late_after {
                *late = true;
                newly_late += 1;
                if self.late.insert(*node) {
                    self.plane.pool.note_late(*node);
                }
            }
        }
        if newly_late == 0 && self.would_keep(&[]) {
            return Vec::new();
        }
        self.plane.metrics.hedges.with_label_values(&["store"]).inc_by(newly_late);
        self.plan_again()
    }

    /// Places for what is not stored and not on its way in time. Nodes that are late, and then those that failed in
    /// passing, are asked only where the promise cannot be kept without them.
    fn plan_again(&mut self) -> Vec<Place> {
        let view = self.plane.pool.view();
        let none = HashSet::new();
        let plan = self.replace(&view, &self.late, &none);
        if self.would_keep(&plan) {
            return plan;
        }
        let plan = if self.late.is_empty() { plan } else { self.replace(&view, &none, &none) };
        if self.second_chance.is_empty() || self.would_keep(&plan) {
            return plan;
        }
        // No third chance.
        let again = std::mem::take(&mut self.second_chance);
        self.replace(&view, &none, &again)
    }

    fn replace(&self, view: &View, except: &HashSet<NodeId>, again: &HashSet<NodeId>) -> Vec<Place> {
        let candidates = view.candidates(|node| {
            !except.contains(&node) && (!self.excluded.contains(&node) || again.contains(&node))
        });
        let held = self.held();
        let mut missing = Vec::new();
        for shard in self.geometry.indices() {
            let copies = held.iter().filter(|(held, _)| *held == shard).count();
            missing.extend(std::iter::repeat_n(shard, self.geometry.copies().saturating_sub(copies)));
        }
        let shard_len = ByteCount::bytes(self.coded.shard_len as u64);
        let mut plan =
            placement::replace(&candidates, self.geometry, shard_len, &held, &missing, &mut rand::rng());
        // What is late on a node is not sent there twice.
        plan.retain(|place| !self.pending.iter().any(|(pending, ..)| pending == place));
        plan
    }

    /// Where the stripe is, or is on its way to and not late.
    fn held(&self) -> Vec<Place> {
        let sent = self.pending.iter().filter(|(.., late)| !late).map(|(place, ..)| *place);
        self.acked.iter().map(|(place, _)| *place).chain(sent).collect()
    }

    fn would_keep(&self, plan: &[Place]) -> bool {
        let mut held = self.held();
        held.extend_from_slice(plan);
        placement::tolerance(self.geometry, &held).is_some_and(|tolerance| tolerance >= self.ack)
    }

    /// What the acknowledged locations survive.
    fn tolerance(&self) -> Option<u8> {
        if self.acked.len() < self.geometry.data() {
            return None;
        }
        let held: Vec<Place> = self.acked.iter().map(|(place, _)| *place).collect();
        placement::tolerance(self.geometry, &held)
    }

    /// Remembers who kept us waiting; their calls are dropped with the stripe.
    fn give_up_pending(&self) {
        for ((_, node), ..) in &self.pending {
            self.plane.pool.note_late(*node);
        }
    }

    fn into_stripe(self, tolerance: u8) -> NewStripe {
        let mut acked = self.acked;
        let shards = self
            .coded
            .shards
            .iter()
            .map(|shard| NewShard {
                index: shard.index,
                chunk: shard.chunk,
                size: ByteCount::bytes(self.coded.shard_len as u64),
                locations: acked
                    .extract_if(.., |((index, _), _)| *index == shard.index)
                    .map(|(_, location)| location)
                    .collect(),
            })
            .collect();
        NewStripe {
            plain_hash: self.coded.plain_hash,
            plain_len: ByteCount::bytes(self.coded.plain_len as u64),
            shards,
            tolerance,
        }
    }
}

//! Looks at the disks: every chunk that a location names is read from its node and hashed, and nothing else is there.
//!
//! It asks the nodes themselves, past gateways, proxies and caches. Every node that a location names must run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::placement::tolerance;
use cyxcloud_core::receipt::NodeKey;
use cyxcloud_core::token::{LIFETIME_MAX, Operation, Operations, Token};
use cyxcloud_core::{ChunkId, Geometry, NodeId, Timestamp};
use cyxcloud_proto::MESSAGE_BYTES_MAX;
use cyxcloud_proto::node::chunk_service_client::ChunkServiceClient;
use cyxcloud_proto::node::{GetChunkRequest, ListChunksRequest};
use futures::StreamExt;
use sqlx::Row;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::{Cluster, Node};
use crate::error::{Doing, Error, Result};

/// Reads at the same time, of one node.
const READS: usize = 4;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// Chunks that locations name, each read and hashed.
    pub chunks: u64,
    /// Chunks that nodes hold and no location names, as `node: chunk`.
    pub unnamed: Vec<String>,
}

impl Census {
    /// Once everything is settled, disks hold nothing that no location names.
    pub fn nothing_else(&self) -> Result<()> {
        match self.unnamed.first() {
            None => Ok(()),
            Some(first) => {
                let count = self.unnamed.len();
                Err(Error::broken(format!("{count} chunks are held that no location names, such as {first}")))
            }
        }
    }
}

/// A node's chunk service with nothing between, and a token of the cluster's for it.
#[derive(Clone, Debug)]
pub struct Direct {
    service: ChunkServiceClient<Channel>,
    token: Bytes,
}

/// In which context the keys that tokens are signed with are wrapped.
const TOKEN_KEY: &str = "cyxcloud token key";

/// Connects to a node.
pub async fn connect(cluster: &Cluster, node: &Node) -> Result<Direct> {
    let hour = i64::try_from(LIFETIME_MAX.as_secs()).doing("sign a token for a node")?;
    connect_between(cluster, node, (0, hour)).await
}

/// The same, with a token that holds from so many seconds after now until so many after it, by the database's clock.
pub async fn connect_between(cluster: &Cluster, node: &Node, window: (i64, i64)) -> Result<Direct> {
    let endpoint = Endpoint::from_shared(format!("http://{}:{}", node.host, node.grpc_port))
        .doing("use a node's address")?
        .connect_timeout(Duration::from_secs(5))
        .timeout(Duration::from_secs(60));
    let channel = endpoint.connect().await.doing(format!("connect to {}", node.name()))?;
    let service = ChunkServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    Ok(Direct { service, token: token(cluster, node, window).await? })
}

/// As one of the cluster's servers would sign it.
async fn token(cluster: &Cluster, node: &Node, (from, until): (i64, i64)) -> Result<Bytes> {
    let doing = "sign a token for a node";
    let sql =
        "SELECT k.seed, n.public_key, (extract(epoch FROM now()) * 1000)::bigint FROM token_keys k, nodes n
               WHERE n.label = $1 AND k.signs_from <= now() AND coalesce(k.accepted_until > now(), TRUE)
               ORDER BY k.number DESC LIMIT 1";
    let row = sqlx::query(sql).bind(node.name());
    let row = row.fetch_one(cluster.database.pool()).await.doing(doing)?;
    let (wrapped, node): (Vec<u8>, Vec<u8>) = (row.try_get(0).doing(doing)?, row.try_get(1).doing(doing)?);
    let now: i64 = row.try_get(2).doing(doing)?;
    let after = |seconds: i64| Timestamp::from_unix_millis(now + 1_000 * seconds);
    let seed = cluster.master_key()?.unwrap(TOKEN_KEY, &wrapped).doing(doing)?;
    let key = NodeKey::from_seed(seed.as_slice().try_into().doing(doing)?);
    let token = Token {
        id: rand::random(),
        node: node.as_slice().try_into().doing(doing)?,
        operations: Operations::of(&[Operation::Get, Operation::List]),
        holder: None,
        issued: after(from),
        expires: after(until),
        chunk: None,
    };
    Ok(token.sign(&key).into())
}

impl Direct {
    /// Reads one chunk and hashes it; why it is not there, or not right.
    pub async fn read(mut self, id: ChunkId) -> std::result::Result<(), String> {
        let chunk_id = id.as_bytes().to_vec().into();
        let request = GetChunkRequest { chunk_id, token: self.token, ..GetChunkRequest::default() };
        match self.service.get_chunk(request).await {
            Ok(answer) if ChunkId::of(&answer.get_ref().data) == id => Ok(()),
            Ok(_) => Err("the node served other bytes".to_owned()),
            Err(status) => Err(format!("{:?}: {}", status.code(), status.message())),
        }
    }

    /// Whether the node takes our token.
    pub async fn is_let_in(&self) -> Result<bool> {
        let request =
            ListChunksRequest { token: self.token.clone(), limit: 1, ..ListChunksRequest::default() };
        match self.service.clone().list_chunks(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::Unauthenticated => Ok(false),
            Err(status) => Err(Error::failed("show a token to a node", status)),
        }
    }

    /// All chunks that the node says it holds, quarantined ones included.
    pub async fn inventory(&self) -> Result<BTreeSet<ChunkId>> {
        Ok(self.entries().await?.into_keys().collect())
    }

    /// Those of them that it found corrupt and holds back.
    pub async fn quarantined(&self) -> Result<BTreeSet<ChunkId>> {
        let held_back = self.entries().await?.into_iter().filter(|(_, quarantined)| *quarantined);
        Ok(held_back.map(|(id, _)| id).collect())
    }

    async fn entries(&self) -> Result<BTreeMap<ChunkId, bool>> {
        let doing = "list a node's chunks";
        let request = ListChunksRequest { token: self.token.clone(), ..ListChunksRequest::default() };
        let mut pages = self.service.clone().list_chunks(request).await.doing(doing)?.into_inner();
        let mut held = BTreeMap::new();
        while let Some(page) = pages.message().await.doing(doing)? {
            for entry in page.chunks {
                held.insert(ChunkId::try_from(&entry.chunk_id[..]).doing(doing)?, entry.quarantined);
            }
        }
        Ok(held)
    }
}

/// What locations say that each node (by its name) holds.
pub async fn located(cluster: &Cluster) -> Result<BTreeMap<String, BTreeSet<ChunkId>>> {
    let doing = "read the locations";
    let sql = "SELECT DISTINCT n.label, l.chunk_id FROM chunk_locations l JOIN nodes n ON n.id = l.node_id
               WHERE l.status = 'stored'";
    let rows = sqlx::query(sql).fetch_all(cluster.database.pool()).await.doing(doing)?;
    let mut located: BTreeMap<String, BTreeSet<ChunkId>> = BTreeMap::new();
    for row in rows {
        let (name, id): (String, Vec<u8>) = (row.try_get(0).doing(doing)?, row.try_get(1).doing(doing)?);
        located.entry(name).or_default().insert(ChunkId::try_from(&id[..]).doing(doing)?);
    }
    Ok(located)
}

/// Reads every located chunk and lists every inventory; a chunk that is not where it should be, or wrong, is a broken promise.
pub async fn take(cluster: &Cluster) -> Result<Census> {
    spread(cluster).await?;
    let mut located = located(cluster).await?;
    let mut census = Census { unnamed: beyond(cluster, &located).await?, chunks: 0 };
    for node in &cluster.nodes {
        let named = located.remove(node.name()).unwrap_or_default();
        if named.is_empty() {
            continue;
        }
        census.chunks += named.len() as u64;
        let client = connect(cluster, node).await?;
        let mut reads = futures::stream::iter(named)
            .map(|id| {
                let client = client.clone();
                async move { client.read(id).await.map_err(|why| (id, why)) }
            })
            .buffer_unordered(READS);
        while let Some(answer) = reads.next().await {
            if let Err((id, why)) = answer {
                let name = node.name();
                return Err(Error::broken(format!("{name} should hold chunk {id} and does not: {why}")));
            }
        }
    }
    match located.keys().next() {
        None => Ok(census),
        Some(name) => Err(Error::broken(format!("locations name {name}, which is none of ours"))),
    }
}

/// What nodes that run hold and no location names, as `node: chunk`.
pub async fn unnamed(cluster: &Cluster) -> Result<Vec<String>> {
    beyond(cluster, &located(cluster).await?).await
}

async fn beyond(cluster: &Cluster, located: &BTreeMap<String, BTreeSet<ChunkId>>) -> Result<Vec<String>> {
    let mut unnamed = Vec::new();
    for node in cluster.nodes.iter().filter(|node| node.process.running()) {
        let mut held = connect(cluster, node).await?.inventory().await?;
        for named in located.get(node.name()).into_iter().flatten() {
            held.remove(named);
        }
        unnamed.extend(held.into_iter().map(|id| format!("{}: {id}", node.name())));
    }
    Ok(unnamed)
}

/// Every stripe survives, where it is now, the loss of as many nodes as it is recorded to. How many all of them survive; `None`
/// if there are none.
pub async fn spread(cluster: &Cluster) -> Result<Option<u8>> {
    let doing = "read where stripes are";
    let sql = "SELECT s.id::text || '/' || l.stripe_index, s.data_shards, s.parity_shards, s.copies, s.acked_tolerance,
                      array_agg(l.shard_index ORDER BY l.shard_index, l.node_id),
                      array_agg(l.node_id ORDER BY l.shard_index, l.node_id)
               FROM segments s JOIN chunk_locations l ON l.segment_id = s.id AND l.status = 'stored'
               WHERE s.state = 'live'
               GROUP BY s.id, l.stripe_index";
    let rows = sqlx::query(sql).fetch_all(cluster.database.pool()).await.doing(doing)?;
    let mut all: Option<u8> = None;
    for row in rows {
        let stripe: String = row.try_get(0).doing(doing)?;
        let number = |column| -> Result<u8> {
            let value: i16 = row.try_get(column).doing(doing)?;
            u8::try_from(value).doing(doing)
        };
        let geometry = Geometry::new(number(1)?, number(2)?, number(3)?).doing(doing)?;
        let promised = number(4)?;
        let shards: Vec<i16> = row.try_get(5).doing(doing)?;
        let nodes: Vec<uuid::Uuid> = row.try_get(6).doing(doing)?;
        let held: Vec<_> = shards
            .iter()
            .zip(nodes)
            .filter_map(|(&shard, node)| {
                Some((geometry.shard(usize::try_from(shard).ok()?)?, NodeId::from(node)))
            })
            .collect();
        let now = tolerance(geometry, &held);
        let Some(now) = now.filter(|now| *now >= promised) else {
            let (trusted, nodes) = (cluster.trusted().await?.len(), cluster.nodes.len());
            return Err(Error::broken(format!(
                "stripe {stripe} survives the loss of {now:?} nodes where it is; {promised} were promised, and {trusted} of \
                 {nodes} nodes may be given new chunks"
            )));
        };
        all = Some(all.map_or(now, |all| all.min(now)));
    }
    Ok(all)
}

//! What programs count of themselves, read from where operators read it.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::error::{Doing, Error, Result};

const DOING: &str = "read metrics";

/// The sum of all samples of a metric that is served at this address (`host:port`).
pub async fn sum(address: &str, name: &str) -> Result<u64> {
    let served = sum_so_far(address, name).await?;
    served.ok_or_else(|| Error::failed(DOING, format!("{address} serves no {name}")))
}

/// The same of one that begins with its first sample; `None` before it.
pub async fn sum_so_far(address: &str, name: &str) -> Result<Option<u64>> {
    let doing = DOING;
    let http = reqwest::Client::builder().tls_certs_only([]).build().doing(doing)?;
    let url = format!("http://{address}/metrics");
    let answer = http.get(url).timeout(Duration::from_secs(10)).send().await.doing(doing)?;
    let text = answer.text().await.doing(doing)?;
    let mut samples = text.lines().filter_map(|line| line.strip_prefix(name)).peekable();
    if samples.peek().is_none() {
        return Ok(None);
    }
    // A counter is a whole number below 2^53.
    Ok(Some(samples.filter_map(|sample| sample.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64))
}

impl Cluster {
    /// Shards that rebalancers made since they were started.
    pub async fn repaired_shards(&self) -> Result<u64> {
        let mut shards = 0;
        for port in &self.rebalancer_ports {
            let made =
                sum_so_far(&format!("127.0.0.1:{port}"), "cyxcloud_rebalancer_repaired_shards_total").await?;
            shards += made.unwrap_or_default();
        }
        Ok(shards)
    }

    /// Chunk bytes that nodes were given since they were started.
    pub async fn received_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for node in &self.nodes {
            let address = format!("{}:{}", node.host, node.metrics_port);
            bytes += sum(&address, "cyxcloud_node_received_bytes_total").await?;
        }
        Ok(bytes)
    }
}

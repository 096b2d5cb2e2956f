//! What programs count of themselves, read from where operators read it.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::error::{Doing, Error, Result};

/// The sum of all samples of a metric that is served at this address (`host:port`).
pub async fn sum(address: &str, name: &str) -> Result<u64> {
    let doing = "read metrics";
    let http = reqwest::Client::builder().tls_certs_only([]).build().doing(doing)?;
    let url = format!("http://{address}/metrics");
    let answer = http.get(url).timeout(Duration::from_secs(10)).send().await.doing(doing)?;
    let text = answer.text().await.doing(doing)?;
    let mut samples = text.lines().filter_map(|line| line.strip_prefix(name)).peekable();
    if samples.peek().is_none() {
        return Err(Error::failed(doing, format!("{address} serves no {name}")));
    }
    // A counter is a whole number below 2^53.
    Ok(samples.filter_map(|sample| sample.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
}

impl Cluster {
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

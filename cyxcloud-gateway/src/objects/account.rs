//! What an owner has: for accounts' own pages and the command line, beside what S3 tells.

use cyxcloud_core::ByteCount;
use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_core::stripe::stripes_of;
use cyxcloud_metadata::model::{Bucket, Extent, Object, Owner, Usage};

use super::ObjectService;
use super::error::{Error, Result};
use crate::limits::{Caller, Need};

/// An owner with what it stores.
#[derive(Clone, Debug)]
pub struct Account {
    /// The owner.
    pub owner: Owner,
    /// All its buckets together; `None`, here and below, for a caller limited to prefixes, who is not told of the rest.
    pub usage: Option<Usage>,
    /// Each bucket with what it holds, in byte order of name.
    pub buckets: Vec<(Bucket, Option<Usage>)>,
}

/// An object with how it is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The object.
    pub object: Object,
    /// How its segments are coded, such as `10+4`, `3 copies` or `inline`; different ones joined.
    pub geometry: String,
    /// Node losses that all of it survived when it was acknowledged; the fewest of its segments'.
    pub acknowledged: u8,
    /// Node losses that all of it is to survive.
    pub target: u8,
    /// Plain bytes per stripe; the largest of its segments'.
    pub stripe_size: ByteCount,
    /// Distinct segments.
    pub segments: u64,
    /// Distinct chunks of all its segments, copies not counted.
    pub chunks: u64,
}

impl ObjectService {
    /// The caller's account.
    pub async fn account(&self, caller: &Caller) -> Result<Account> {
        let owner = self.metadata.owner(caller.owner).await?;
        let owner = owner.ok_or(Error::OwnerKey { owner: caller.owner, source: None })?;
        let usage = self.metadata.owner_usage(caller.owner).await?;
        let mut buckets = self.metadata.buckets_with_usage(caller.owner).await?;
        buckets.retain(|(bucket, _)| caller.may(&bucket.name, Need::Look));
        let usage = match &caller.limits {
            None => Some(usage),
            // Of a bucket only the whole is counted.
            Some(limits) if limits.prefixes.is_some() => None,
            Some(_) => Some(buckets.iter().fold(Usage::default(), |sum, (_, usage)| Usage {
                bytes: sum.bytes.saturating_add(usage.bytes),
                objects: sum.objects.saturating_add(usage.objects),
            })),
        };
        let told = |held| usage.is_some().then_some(held);
        let buckets = buckets.into_iter().map(|(bucket, held)| (bucket, told(held))).collect();
        Ok(Account { owner, usage, buckets })
    }

    /// How an object is kept.
    pub async fn kept(&self, caller: &Caller, bucket: &BucketName, key: &ObjectKey) -> Result<Kept> {
        let bucket = self.bucket(caller, bucket, Need::Read(key)).await?;
        let layout = self.metadata.object_layout(bucket.id, key, None).await?.ok_or(Error::NoSuchKey)?;
        Ok(summarize(layout.object, &layout.extents))
    }
}

fn summarize(object: Object, extents: &[Extent]) -> Kept {
    let mut segments: Vec<_> = extents.iter().map(|extent| &extent.segment).collect();
    segments.sort_by_key(|segment| segment.id);
    segments.dedup_by_key(|segment| segment.id);
    let mut geometries: Vec<String> = segments
        .iter()
        .map(|segment| match segment.inline {
            Some(_) => "inline".to_owned(),
            None => segment.geometry.to_string(),
        })
        .collect();
    geometries.sort();
    geometries.dedup();
    let on_nodes = segments.iter().filter(|segment| segment.inline.is_none());
    let chunks = on_nodes
        .map(|segment| stripes_of(segment.length, segment.stripe_size) * segment.geometry.shards() as u64);
    Kept {
        geometry: if geometries.is_empty() { "inline".to_owned() } else { geometries.join(", ") },
        acknowledged: segments.iter().map(|segment| segment.acked_tolerance).min().unwrap_or(0),
        target: segments.iter().map(|segment| segment.target_tolerance).min().unwrap_or(0),
        stripe_size: segments.iter().map(|segment| segment.stripe_size).max().unwrap_or_default(),
        segments: segments.len() as u64,
        chunks: chunks.sum(),
        object,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cyxcloud_metadata::model::Precondition;

    use super::*;
    use crate::limits::Limits;
    use crate::objects::testing::service;
    use crate::objects::{Claims, PutObject};

    #[tokio::test]
    async fn adv_16_who_sees_a_part_is_not_told_of_the_rest() {
        let (service, bucket, key) = service().await;
        let other = service.create_bucket(&bucket.owner.into(), "other".parse().expect("valid"), None).await;
        let other = other.expect("makes a bucket").name;
        for name in [&bucket.name, &other] {
            let put = PutObject {
                caller: bucket.owner.into(),
                bucket: name.clone(),
                key: key.clone(),
                attributes: Default::default(),
                precondition: Precondition::None,
                claims: Claims { length: Some(5), ..Claims::default() },
                stripe_size: None,
            };
            let body = futures::stream::iter([Ok(Bytes::from_static(b"hello"))]);
            service.put(put, body).await.expect("stays in the database");
        }
        // What it is told of all, and of each bucket.
        let told = async |buckets: Option<&BucketName>, prefix: Option<&str>| {
            let names = buckets.map(|name| vec![name.to_string()]);
            let limits = Limits::of(names, prefix.map(|prefix| vec![prefix.to_owned()]), false);
            let account = service.account(&Caller { owner: bucket.owner, limits }).await.expect("is there");
            let bytes = |usage: Option<Usage>| usage.map(|usage| usage.bytes.get());
            (bytes(account.usage), account.buckets.iter().map(|(_, usage)| bytes(*usage)).collect::<Vec<_>>())
        };
        assert_eq!(told(None, None).await, (Some(10), vec![Some(5); 2]));
        assert_eq!(told(Some(&other), None).await, (Some(5), vec![Some(5)]));
        assert_eq!(told(None, Some("elsewhere/")).await, (None, vec![None; 2]));
        assert_eq!(told(Some(&other), Some("elsewhere/")).await, (None, vec![None]));
    }
}

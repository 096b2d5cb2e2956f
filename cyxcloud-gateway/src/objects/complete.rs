//! Completing a multipart upload: what the parts make, computed inside the completing transaction.
//!
//! The cost grows with the number of parts, never with their bytes: ETag, content hash and checksum of the object
//! follow from those of the parts.

use std::sync::{Mutex, PoisonError};

use cyxcloud_core::{ByteCount, crash_point};
use cyxcloud_metadata::Error as MetadataError;
use cyxcloud_metadata::error::PartsRefusal;
use cyxcloud_metadata::model::{
    Assembled, CompleteMultipart, Multipart, Object, Part, Precondition, StoredChecksum,
};
use md5::{Digest as _, Md5};

use super::checksums::{Algorithm, combine, composite, encode};
use super::error::{Error, Result};
use super::multipart::FULL_OBJECT;
use super::{OBJECT_MAX, ObjectService, PART_MIN, UploadKey, new_file_id};
use crate::limits::Need;

/// One part as the client names it at completion.
#[derive(Clone, Debug)]
pub struct CompletedPart {
    /// 1 to 10,000.
    pub number: u32,
    /// Without quotes.
    pub etag: String,
    /// Checksums in base64, if the client repeats them.
    pub checksums: Vec<(Algorithm, String)>,
}

/// Completes a multipart upload.
#[derive(Clone, Debug)]
pub struct CompleteUpload {
    /// Which.
    pub upload: UploadKey,
    /// In ascending order.
    pub parts: Vec<CompletedPart>,
    /// What must hold of the key.
    pub precondition: Precondition,
    /// Checksums claimed for the object, in base64; of a composite with or without its `-N`.
    pub checksums: Vec<(Algorithm, String)>,
    /// The type claimed for them.
    pub checksum_type: Option<String>,
    /// Size claimed for the object.
    pub size: Option<u64>,
}

impl ObjectService {
    /// Makes an object of parts. Called again after success, it answers as it did then.
    pub async fn complete_upload(&self, complete: CompleteUpload) -> Result<Object> {
        let bucket = self
            .bucket(&complete.upload.caller, &complete.upload.bucket, Need::Write(&complete.upload.key))
            .await?;
        if !complete.parts.is_sorted_by(|a, b| a.number < b.number) {
            return Err(Error::InvalidPartOrder);
        }
        let request = CompleteMultipart {
            multipart: complete.upload.id,
            bucket: bucket.id,
            key: complete.upload.key.clone(),
            file: new_file_id(),
            precondition: complete.precondition.clone(),
            parts: complete.parts.iter().map(|part| (part.number, part.etag.clone())).collect(),
        };
        // The closure may run several times and can refuse only in the store's words; this is for one more.
        let wrong_part = Mutex::new(None);
        let assemble = |upload: &Multipart, parts: &[Part]| {
            if let Some(number) = differing_part(&complete.parts, parts) {
                *wrong_part.lock().unwrap_or_else(PoisonError::into_inner) = Some(number);
                return Err(PartsRefusal::ChecksumMismatch);
            }
            assemble(&complete, upload, parts)
        };
        let done = self.metadata.complete_multipart(&request, &assemble).await;
        crash_point!("complete.committed");
        let wrong_part = wrong_part.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (done, wrong_part) {
            (Err(MetadataError::PartsRefused { .. }), Some(number)) => Err(Error::InvalidPart { number }),
            (done, _) => {
                let object = done?;
                self.tell_created(&bucket, &object);
                Ok(object)
            }
        }
    }
}

/// The first part whose repeated checksum is not the stored one.
fn differing_part(claimed: &[CompletedPart], stored: &[Part]) -> Option<u32> {
    let differs = |claimed: &CompletedPart, part: &Part| {
        claimed.checksums.iter().any(|(algorithm, value)| {
            part.checksums.iter().any(|have| have.algorithm == algorithm.name() && have.value != *value)
        })
    };
    claimed
        .iter()
        .zip(stored)
        .find(|(claimed, part)| differs(claimed, part))
        .map(|(claimed, _)| claimed.number)
}

/// What the parts make.
fn assemble(
    complete: &CompleteUpload,
    upload: &Multipart,
    parts: &[Part],
) -> Result<Assembled, PartsRefusal> {
    if let Some(small) = parts.iter().rev().skip(1).rev().find(|part| part.size < PART_MIN) {
        return Err(PartsRefusal::TooSmall { number: small.number });
    }
    let size: ByteCount = parts.iter().map(|part| part.size).sum();
    if size > OBJECT_MAX {
        return Err(PartsRefusal::TooLarge);
    }
    if complete.size.is_some_and(|claimed| claimed != size.get()) {
        return Err(PartsRefusal::SizeMismatch);
    }
    let checksum = object_checksum(upload, parts);
    check_claims(complete, checksum.as_ref())?;
    let mut content = Vec::with_capacity(parts.len() * 32);
    parts.iter().for_each(|part| content.extend_from_slice(&part.content_hash));
    Ok(Assembled {
        etag: multipart_etag(parts),
        content_hash: *blake3::hash(&content).as_bytes(),
        checksums: checksum.into_iter().collect(),
    })
}

/// `md5(part md5s)-N`. Parts' ETags are their MD5 in hexadecimal, because we made them.
fn multipart_etag(parts: &[Part]) -> String {
    let mut md5 = Md5::new();
    for part in parts {
        md5.update(hex::decode(&part.etag).unwrap_or_default());
    }
    let md5: [u8; 16] = md5.finalize().into();
    format!("{}-{}", hex::encode(md5), parts.len())
}

/// The checksum of the object, if the upload was created for one. Every part then has one.
fn object_checksum(upload: &Multipart, parts: &[Part]) -> Option<StoredChecksum> {
    let algorithm = Algorithm::by_name(upload.checksum_algorithm.as_deref()?)?;
    let values: Vec<Vec<u8>> =
        parts.iter().map(|part| part_checksum(part, algorithm)).collect::<Option<_>>()?;
    let full = upload.checksum_type.as_deref() == Some(FULL_OBJECT);
    let value = if full {
        let sized = values.iter().zip(parts).map(|(value, part)| (value.as_slice(), part.size.get()));
        encode(&combine(algorithm, sized)?)
    } else {
        format!("{}-{}", encode(&composite(algorithm, values.iter().map(Vec::as_slice))), parts.len())
    };
    Some(StoredChecksum { algorithm: algorithm.name().to_owned(), value, composite: !full })
}

fn part_checksum(part: &Part, algorithm: Algorithm) -> Option<Vec<u8>> {
    let stored = part.checksums.iter().find(|checksum| checksum.algorithm == algorithm.name())?;
    algorithm.parse(&stored.value).ok()
}

/// Whether the object is what the client says it is; a claim that cannot be checked does not hold.
fn check_claims(complete: &CompleteUpload, have: Option<&StoredChecksum>) -> Result<(), PartsRefusal> {
    let bare =
        |value: &str| value.split_once('-').map_or_else(|| value.to_owned(), |(bare, _)| bare.to_owned());
    let holds = complete.checksums.iter().all(|(algorithm, claimed)| {
        have.is_some_and(|have| have.algorithm == algorithm.name() && bare(&have.value) == bare(claimed))
    });
    let kind_holds = match (&complete.checksum_type, have) {
        (Some(kind), Some(have)) => (kind == FULL_OBJECT) != have.composite,
        _ => true,
    };
    if holds && kind_holds { Ok(()) } else { Err(PartsRefusal::ChecksumMismatch) }
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::name::ObjectKey;
    use cyxcloud_core::{BucketId, OwnerId, Timestamp, UploadId};
    use cyxcloud_metadata::model::Attributes;

    use super::super::checksums::{Hasher, stored};
    use super::super::multipart::COMPOSITE;
    use super::*;

    const MIB5: usize = 5 << 20;

    fn part(number: u32, bytes: &[u8]) -> Part {
        let mut hasher = Hasher::new(Algorithm::ALL);
        hasher.update(bytes);
        let digests = hasher.finish();
        Part {
            number,
            size: ByteCount::bytes(digests.length),
            etag: digests.etag(),
            content_hash: *blake3::hash(bytes).as_bytes(),
            checksums: digests.stored(),
            modified_at: Timestamp::default(),
        }
    }

    fn upload(algorithm: Option<Algorithm>, kind: &str) -> Multipart {
        Multipart {
            id: UploadId::from_random([1; 16]),
            bucket: BucketId::from_random([2; 16]),
            key: ObjectKey::new("k").expect("valid"),
            owner: OwnerId::from_random([3; 16]),
            attributes: Attributes::default(),
            checksum_algorithm: algorithm.map(|algorithm| algorithm.name().to_owned()),
            checksum_type: algorithm.map(|_| kind.to_owned()),
            initiated_at: Timestamp::default(),
        }
    }

    fn complete() -> CompleteUpload {
        let upload = UploadKey {
            caller: OwnerId::from_random([3; 16]).into(),
            bucket: "bucket".parse().expect("valid"),
            key: ObjectKey::new("k").expect("valid"),
            id: UploadId::from_random([1; 16]),
        };
        CompleteUpload {
            upload,
            parts: Vec::new(),
            precondition: Precondition::None,
            checksums: Vec::new(),
            checksum_type: None,
            size: None,
        }
    }

    #[test]
    fn the_etag_is_that_of_s3() {
        let parts = [part(1, &vec![0; MIB5]), part(2, b"tail")];
        let made = assemble(&complete(), &upload(None, ""), &parts).expect("assembles");
        let sums =
            [hex::decode(&parts[0].etag).expect("hex"), hex::decode(&parts[1].etag).expect("hex")].concat();
        let mut hasher = Hasher::new([]);
        hasher.update(&sums);
        assert_eq!(made.etag, format!("{}-2", hasher.finish().etag()));
        assert!(made.checksums.is_empty());
    }

    #[test]
    fn full_object_checksums_are_those_of_the_bytes() {
        let (first, second) = (vec![7u8; MIB5], b"tail".to_vec());
        let whole = [first.clone(), second.clone()].concat();
        for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
            let parts = [part(1, &first), part(2, &second)];
            let upload = upload(Some(algorithm), FULL_OBJECT);
            let want = stored(algorithm, &algorithm.of(&whole));
            let mut claims = complete();
            claims.checksums = vec![(algorithm, want.value.clone())];
            let made = assemble(&claims, &upload, &parts).expect("assembles");
            assert_eq!(made.checksums, [want]);
            claims.checksums = vec![(algorithm, encode(&algorithm.of(b"other")))];
            assert_eq!(assemble(&claims, &upload, &parts).err(), Some(PartsRefusal::ChecksumMismatch));
        }
    }

    #[test]
    fn composites_are_over_the_parts_checksums() {
        let parts = [part(1, &vec![7; MIB5]), part(2, b"tail")];
        let sha = Algorithm::Sha256;
        let made = assemble(&complete(), &upload(Some(sha), COMPOSITE), &parts).expect("assembles");
        let concat = [sha.of(&vec![7; MIB5]), sha.of(b"tail")].concat();
        let want = format!("{}-2", encode(&sha.of(&concat)));
        assert_eq!(
            made.checksums.first().map(|sum| (sum.value.as_str(), sum.composite)),
            Some((want.as_str(), true))
        );
    }

    #[test]
    fn small_parts_and_wrong_sizes_are_refused() {
        let parts = [part(1, b"small"), part(2, b"tail")];
        let none = upload(None, "");
        assert_eq!(assemble(&complete(), &none, &parts).err(), Some(PartsRefusal::TooSmall { number: 1 }));
        assert!(assemble(&complete(), &none, &parts[1..]).is_ok());
        let claims = CompleteUpload { size: Some(5), ..complete() };
        assert_eq!(assemble(&claims, &none, &parts[1..]).err(), Some(PartsRefusal::SizeMismatch));
    }

    #[test]
    fn a_repeated_checksum_that_differs_names_its_part() {
        let claimed = |value: String| CompletedPart {
            number: 1,
            etag: String::new(),
            checksums: vec![(Algorithm::Crc32, value)],
        };
        let parts = [part(1, b"tail")];
        assert_eq!(differing_part(&[claimed(encode(&Algorithm::Crc32.of(b"tail")))], &parts), None);
        assert_eq!(differing_part(&[claimed(encode(&Algorithm::Crc32.of(b"head")))], &parts), Some(1));
    }
}

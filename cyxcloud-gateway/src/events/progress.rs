//! How far an upload has come, told now and then and never often.

use std::time::{Duration, Instant};

use cyxcloud_metadata::model::Bucket;

use super::{Event, Events};
use cyxcloud_core::name::ObjectKey;

/// Time from the beginning to the first word, and from one to the next.
const EVERY: Duration = Duration::from_millis(500);

/// Counts a body whose length is known.
#[derive(Debug)]
struct Progress {
    total: u64,
    have: u64,
    told: u64,
    due: Instant,
}

impl Progress {
    fn begin(total: u64, now: Instant) -> Self {
        Self { total, have: 0, told: 0, due: now + EVERY }
    }

    /// More came in; percent, if it is time to tell. All of it is not yet stored: 100 is never among them.
    fn received(&mut self, bytes: u64, now: Instant) -> Option<u8> {
        self.have = self.have.saturating_add(bytes);
        if now < self.due {
            return None;
        }
        let percent = (self.have.saturating_mul(100) / self.total.max(1)).min(99);
        if percent <= self.told {
            return None;
        }
        (self.told, self.due) = (percent, now + EVERY);
        u8::try_from(percent).ok()
    }
}

/// Tells of one upload.
#[derive(Debug)]
pub struct Teller {
    events: Events,
    progress: Progress,
    bucket: Bucket,
    key: ObjectKey,
    part: Option<u32>,
}

impl Teller {
    /// Of a body of `total` bytes that begins now.
    pub fn begin(events: Events, total: u64, bucket: Bucket, key: ObjectKey, part: Option<u32>) -> Self {
        Self { events, progress: Progress::begin(total, Instant::now()), bucket, key, part }
    }

    /// So many bytes more came in.
    pub fn received(&mut self, bytes: usize) {
        if let Some(percent) = self.progress.received(bytes as u64, Instant::now()) {
            self.events.tell(self.bucket.owner, progress(&self.bucket, &self.key, percent, self.part));
        }
    }
}

/// The event that says so.
pub fn progress(bucket: &Bucket, key: &ObjectKey, percent: u8, part: Option<u32>) -> Event {
    let (bucket, key) = (bucket.name.to_string(), key.as_str().to_owned());
    Event::FileProgress { bucket, key, progress: percent, part }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_twice_a_second_and_only_of_progress() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut upload = Progress::begin(1000, start);
        assert_eq!(upload.received(100, at(0)), None, "what is quick is not told of");
        assert_eq!(upload.received(100, at(499)), None);
        assert_eq!(upload.received(100, at(500)), Some(30));
        assert_eq!(upload.received(100, at(999)), None);
        assert_eq!(upload.received(0, at(1000)), Some(40));
        assert_eq!(upload.received(5, at(2000)), None, "nor is what is less than a percent");
        assert_eq!(upload.received(5, at(2001)), Some(41));
        assert_eq!(upload.received(590, at(3000)), Some(99), "all came in, and is not stored yet");
        assert_eq!(upload.received(1, at(4000)), None);
        assert_eq!(Progress::begin(0, start).received(0, at(600)), None);
        assert_eq!(Progress::begin(u64::MAX, start).received(u64::MAX, at(600)), Some(1), "no overflow");
    }
}

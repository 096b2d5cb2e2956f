//! People, sessions, API keys, room under quotas, the audit log.

use std::time::Duration;

use cyxcloud_core::{ByteCount, OwnerId, Timestamp};
use uuid::Uuid;

use super::multipart::{new_part, open};
use super::{MANY, Place, fresh, key, new_owner, place, place_with_quota};
use crate::identity::model::*;
use crate::model::{CommitPart, NewUpload, Owner};
use crate::{Error, MetadataStore};

const GRACE: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(3600);

async fn later(store: &dyn MetadataStore) -> Timestamp {
    store.now().await.expect("tell the time").plus(LONG)
}

fn with_wallet(wallet: &str) -> Owner {
    Owner { wallet_address: Some(wallet.to_owned()), ..new_owner(None) }
}

/// Also when many log in at once.
pub async fn a_wallet_has_one_owner(store: &dyn MetadataStore) {
    let wallet = format!("wallet-{}", Uuid::new_v4().simple());
    assert_eq!(store.wallet_owner(&wallet).await.expect("looked"), None);
    let owners: Vec<Owner> = (0..8).map(|_| with_wallet(&wallet)).collect();
    let asked = owners.iter().map(|owner| store.ensure_wallet(owner));
    let found: Vec<_> =
        futures::future::join_all(asked).await.into_iter().map(|f| f.expect("made")).collect();
    assert_eq!(found.iter().filter(|(_, made)| *made).count(), 1);
    assert!(found.iter().all(|(owner, _)| *owner == found[0].0));
    assert_eq!(store.wallet_owner(&wallet).await.expect("looked").as_ref(), Some(&found[0].0));
    let other = store.ensure_wallet(&with_wallet("another")).await.expect("made");
    assert_ne!(other.0.id, found[0].0.id);
}

/// A quota does not.
pub async fn what_changes_rights_ends_tokens(store: &dyn MetadataStore) {
    let id = store.ensure_owner(&new_owner(None)).await.expect("make an owner").id;
    let person = store.person(id).await.expect("read").expect("is there");
    assert!(!person.suspended && !person.owner.admin);
    assert_eq!(person.token_version, 0);
    let change = async |change: PersonChange| {
        let changed = store.change_person(id, &change).await.expect("change").expect("is there");
        assert_eq!(store.person(id).await.expect("read"), Some(changed.clone()));
        changed
    };
    let quota = Some(Some(ByteCount::gib(1)));
    let changed = change(PersonChange { quota, ..PersonChange::default() }).await;
    assert_eq!((changed.owner.storage_quota, changed.token_version), (Some(ByteCount::gib(1)), 0));
    let changed = change(PersonChange { suspended: Some(true), ..PersonChange::default() }).await;
    assert_eq!((changed.suspended, changed.token_version), (true, 1));
    let changed = change(PersonChange { quota: Some(None), admin: Some(true), suspended: Some(false) }).await;
    assert!(changed.owner.admin && !changed.suspended);
    assert_eq!((changed.owner.storage_quota, changed.token_version), (None, 2));
    let nobody = store.change_person(fresh(), &PersonChange::default()).await.expect("asked");
    assert_eq!(nobody, None);
    let all = store.people(None, 1000).await.expect("list");
    let at = all.iter().position(|person| person.owner.id == id).expect("is listed");
    let rest = store.people(Some(id), 1000).await.expect("list");
    assert_eq!(rest, all[at + 1..]);
}

async fn begun(store: &dyn MetadataStore, expires_at: Timestamp) -> NewSession {
    let owner = store.ensure_owner(&new_owner(None)).await.expect("make an owner").id;
    let session = NewSession { id: Uuid::new_v4(), owner, refresh: "r0".to_owned(), expires_at };
    assert!(store.begin_session(&session).await.expect("begin a session"));
    session
}

fn rotation(session: &NewSession, presented: &str, next: &str) -> Rotation {
    Rotation {
        session: session.id,
        presented: presented.to_owned(),
        next: next.to_owned(),
        expires_at: session.expires_at,
        answer: next.as_bytes().to_vec(),
    }
}

/// By whoever holds its first refresh token, also when it is asked for again; by nobody else, also after it ended.
pub async fn a_session_begins_once(store: &dyn MetadataStore) {
    let session = begun(store, later(store).await).await;
    let other = NewSession { refresh: "other".to_owned(), ..session.clone() };
    assert!(store.begin_session(&session).await.expect("a retry"));
    assert!(!store.begin_session(&other).await.expect("asked"));
    store.end_session(session.id).await.expect("ends");
    assert!(!store.begin_session(&other).await.expect("asked"));
    assert!(store.token_is_revoked("any", Some(session.id)).await.expect("asked"), "it stays ended");
}

/// Asked again within the grace, also at once, it gets what it got.
pub async fn a_refresh_token_is_exchanged_once(store: &dyn MetadataStore) {
    let session = begun(store, later(store).await).await;
    let names: Vec<String> = (0..6).map(|n| format!("n{n}")).collect();
    let rotations: Vec<_> = names.iter().map(|next| rotation(&session, "r0", next)).collect();
    let asked = rotations.iter().map(|rotation| store.rotate_session(rotation, GRACE));
    let answers: Vec<_> =
        futures::future::join_all(asked).await.into_iter().map(|answer| answer.expect("asked")).collect();
    let winner = answers.iter().position(|answer| *answer == Rotated::Fresh).expect("one was first");
    let name = &names[winner];
    for (n, answer) in answers.iter().enumerate().filter(|(n, _)| *n != winner) {
        assert_eq!(*answer, Rotated::Again(name.as_bytes().to_vec()), "{n}");
    }
    let next = store.rotate_session(&rotation(&session, name, "last"), GRACE).await.expect("asked");
    assert_eq!(next, Rotated::Fresh);
    assert!(!store.token_is_revoked("any", Some(session.id)).await.expect("asked"));
}

/// And a session that ended, expired or never was exchanges nothing.
pub async fn a_refresh_token_used_again_later_ends_its_session(store: &dyn MetadataStore) {
    let session = begun(store, later(store).await).await;
    let rotate = async |presented: &str, next: &str, grace| {
        store.rotate_session(&rotation(&session, presented, next), grace).await.expect("asked")
    };
    assert_eq!(rotate("r0", "r1", GRACE).await, Rotated::Fresh);
    assert_eq!(rotate("r1", "r2", GRACE).await, Rotated::Fresh);
    // Two behind: no grace covers it.
    assert_eq!(rotate("r0", "x", GRACE).await, Rotated::Reused);
    assert_eq!(rotate("r2", "r3", GRACE).await, Rotated::Ended);
    assert!(store.token_is_revoked("any", Some(session.id)).await.expect("asked"));

    let session = begun(store, later(store).await).await;
    let rotate = async |presented: &str, next: &str, grace| {
        store.rotate_session(&rotation(&session, presented, next), grace).await.expect("asked")
    };
    assert_eq!(rotate("r0", "r1", GRACE).await, Rotated::Fresh);
    assert_eq!(rotate("r0", "x", Duration::ZERO).await, Rotated::Reused);
    assert_eq!(rotate("r1", "x", GRACE).await, Rotated::Ended);

    let expired = begun(store, Timestamp::from_unix_millis(1_000_000)).await;
    for id in [expired.id, Uuid::new_v4()] {
        let rotation = Rotation { session: id, ..rotation(&expired, "r0", "r1") };
        assert_eq!(store.rotate_session(&rotation, GRACE).await.expect("asked"), Rotated::Ended);
    }
}

/// Tokens by their id, sessions with all their tokens.
pub async fn what_is_revoked_stays_revoked(store: &dyn MetadataStore) {
    let until = later(store).await;
    let session = begun(store, until).await;
    let revoked = async |jti: &str, id| store.token_is_revoked(jti, id).await.expect("asked");
    let (mine, other) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
    assert!(!revoked(&mine, None).await && !revoked(&mine, Some(session.id)).await);
    assert!(revoked(&mine, Some(Uuid::new_v4())).await, "nobody knows that session");
    for _ in 0..2 {
        store.revoke_token(&mine, session.owner, until).await.expect("revoke");
        assert!(revoked(&mine, None).await && revoked(&mine, Some(session.id)).await);
        assert!(!revoked(&other, Some(session.id)).await);
    }
    for _ in 0..2 {
        store.end_session(session.id).await.expect("end");
        assert!(revoked(&other, Some(session.id)).await && !revoked(&other, None).await);
    }
    store.end_session(Uuid::new_v4()).await.expect("nothing to end");
}

fn new_key(owner: OwnerId, maker: Option<&str>) -> ApiKey {
    ApiKey {
        id: format!("CYX{}", Uuid::new_v4().simple()),
        owner,
        name: "backup".to_owned(),
        wrapped_secret: b"wrapped".to_vec(),
        buckets: None,
        prefixes: None,
        read_only: false,
        expires_at: None,
        made_by: maker.map(str::to_owned),
        created_at: Timestamp::default(),
        last_used_at: None,
        revoked_at: None,
    }
}

/// Nobody else revokes it or sees it, and its id is taken once.
pub async fn a_key_keeps_its_limits_and_its_owner(store: &dyn MetadataStore) {
    let owner = store.ensure_owner(&new_owner(None)).await.expect("make an owner").id;
    let other = store.ensure_owner(&new_owner(None)).await.expect("make an owner").id;
    let new = ApiKey {
        buckets: Some(vec!["one".to_owned(), "two".to_owned()]),
        prefixes: Some(vec!["a/ä".to_owned()]),
        read_only: true,
        expires_at: Some(Timestamp::from_unix_millis(1_900_000_000_001)),
        ..new_key(owner, None)
    };
    let made = store.create_api_key(&new, MANY).await.expect("make a key");
    assert_eq!(made, ApiKey { created_at: made.created_at, ..new.clone() });
    let taken = store.create_api_key(&ApiKey { owner: other, ..new.clone() }, MANY).await;
    assert!(matches!(taken, Err(Error::Stale { .. })), "{taken:?}");
    let open = ApiKey { id: format!("CYX{}", Uuid::new_v4().simple()), buckets: None, prefixes: None, ..new };
    let open = store.create_api_key(&open, MANY).await.expect("make a key");
    let listed = store.api_keys(owner, 9).await.expect("list");
    assert!(listed.len() == 2 && listed.contains(&made) && listed.contains(&open), "{listed:?}");
    assert_eq!(store.api_keys(other, 9).await.expect("list"), []);
    store.touch_api_keys(std::slice::from_ref(&made.id)).await.expect("touch");
    let read = async || store.api_key(&made.id).await.expect("read").expect("is there");
    assert!(read().await.last_used_at.is_some() && read().await.revoked_at.is_none());
    assert!(!store.revoke_api_key(other, &made.id).await.expect("asked"));
    assert!(read().await.revoked_at.is_none());
    for _ in 0..2 {
        assert!(store.revoke_api_key(owner, &made.id).await.expect("revoke"));
        assert!(read().await.revoked_at.is_some());
    }
    assert!(!store.revoke_api_key(owner, "none").await.expect("asked"));
    assert_eq!(store.api_key("no\0ne").await.expect("read"), None);
}

/// However many keys lie between, whatever became of them; others live on, and what was revoked makes none.
pub async fn a_key_is_revoked_with_the_one_that_made_it(store: &dyn MetadataStore) {
    let owner = store.ensure_owner(&new_owner(None)).await.expect("make an owner").id;
    let other = store.ensure_owner(&new_owner(None)).await.expect("make an owner").id;
    let make = async |owner, maker: Option<&str>| {
        let made = store.create_api_key(&new_key(owner, maker), MANY).await?;
        assert_eq!(made.made_by.as_deref(), maker);
        Ok::<_, Error>(made.id)
    };
    let first = make(owner, None).await.expect("made");
    let second = make(owner, Some(&first)).await.expect("made");
    let third = make(owner, Some(&second)).await.expect("made");
    let twin = make(owner, Some(&first)).await.expect("made");
    let apart = make(owner, None).await.expect("made");
    let revoked = async |id: &str| store.api_key(id).await.expect("read").expect("is there").revoked_at;
    assert!(store.revoke_api_key(owner, &second).await.expect("revoke"));
    assert!(revoked(&first).await.is_none() && revoked(&twin).await.is_none());
    let at = revoked(&third).await;
    assert!(at.is_some() && revoked(&second).await == at);
    assert!(store.revoke_api_key(owner, &first).await.expect("revoke"));
    assert!(revoked(&first).await.is_some() && revoked(&twin).await.is_some());
    assert_eq!(revoked(&third).await, at, "it was revoked before");
    assert!(revoked(&apart).await.is_none());
    // By a revoked one, one that is not there, and another's.
    for (owner, maker) in [(owner, twin.as_str()), (owner, "none"), (other, &apart)] {
        let refused = make(owner, Some(maker)).await;
        assert!(matches!(refused, Err(Error::Stale { .. })), "{refused:?}");
    }
}

/// In use, and however many ask at once. Those that come of a key are counted apart, however many lie between.
pub async fn an_owner_has_so_many_keys(store: &dyn MetadataStore) {
    let owner = store.ensure_owner(&new_owner(None)).await.expect("make an owner").id;
    let make = async |maker: Option<&str>, most| {
        store.create_api_key(&new_key(owner, maker), most).await.map(|key| key.id)
    };
    let too_many = |answer: Result<String, Error>| matches!(answer, Err(Error::TooManyKeys { .. }));
    let asked = futures::future::join_all((0..8).map(|_| make(None, 3))).await;
    let own: Vec<String> = asked.into_iter().filter_map(Result::ok).collect();
    assert_eq!(own.len(), 3);
    let child = make(Some(&own[0]), 2).await.expect("made");
    let grandchild = make(Some(&child), 2).await.expect("made");
    for maker in [&own[0], &child, &grandchild] {
        assert!(too_many(make(Some(maker), 2).await));
    }
    make(Some(&own[1]), 2).await.expect("another key has its own count");
    // Nobody's room is taken by those, nor by what is over.
    assert!(too_many(make(None, 3).await));
    assert!(store.revoke_api_key(owner, &child).await.expect("revoke"));
    make(Some(&own[0]), 1).await.expect("none that came of it is in use");
    assert!(store.revoke_api_key(owner, &own[2]).await.expect("revoke"));
    let expires_at = Some(Timestamp::from_unix_millis(1_000_000));
    store.create_api_key(&ApiKey { expires_at, ..new_key(owner, None) }, 3).await.expect("there is room");
    make(None, 3).await.expect("the one before is over");
    assert!(too_many(make(None, 3).await));
}

/// Whatever was made and ended since.
pub async fn keys_in_use_are_listed_first(store: &dyn MetadataStore) {
    let owner = store.ensure_owner(&new_owner(None)).await.expect("make an owner").id;
    let oldest = store.create_api_key(&new_key(owner, None), MANY).await.expect("make a key").id;
    let over = ApiKey { expires_at: Some(Timestamp::from_unix_millis(1_000_000)), ..new_key(owner, None) };
    store.create_api_key(&over, MANY).await.expect("make a key");
    for _ in 0..3 {
        let made = store.create_api_key(&new_key(owner, None), MANY).await.expect("make a key").id;
        assert!(store.revoke_api_key(owner, &made).await.expect("revoke"));
    }
    let last = ApiKey { expires_at: Some(later(store).await), ..new_key(owner, None) };
    let last = store.create_api_key(&last, MANY).await.expect("make a key").id;
    let listed = store.api_keys(owner, 2).await.expect("list");
    let mut ids: Vec<_> = listed.iter().map(|key| &key.id).collect();
    ids.sort();
    let mut in_use = [&oldest, &last];
    in_use.sort();
    assert_eq!(ids, in_use);
    assert_eq!(store.api_keys(owner, 9).await.expect("list").len(), 6);
}

fn upload(place: Place, name: &str, reserve: u64) -> NewUpload {
    let reserve = ByteCount::bytes(reserve);
    NewUpload { id: fresh(), owner: place.owner, bucket: place.bucket, key: key(name), lease: LONG, reserve }
}

/// What is stored in parts and reserved counts; a refusal reserves nothing; who has no quota always has room.
pub async fn room_is_reserved_and_given_back(store: &dyn MetadataStore) {
    let free = place(store).await;
    store.begin_upload(&upload(free, "k", 1 << 50)).await.expect("no quota");
    let place = place_with_quota(store, Some(ByteCount::bytes(100))).await;
    let first = upload(place, "a", 60);
    store.begin_upload(&first).await.expect("there is room");
    let refused = store.begin_upload(&upload(place, "b", 41)).await;
    assert!(matches!(refused, Err(Error::QuotaExceeded { quota: 100 })), "{refused:?}");
    store.check_room(place.owner, ByteCount::bytes(40)).await.expect("there is room");
    assert!(store.check_room(place.owner, ByteCount::bytes(41)).await.is_err());
    store.cancel_upload(first.id).await.expect("cancel");
    store.check_room(place.owner, ByteCount::bytes(100)).await.expect("given back");

    let open = open(store, place, "m").await;
    let part = new_part(place, open.id, 1, b"0123456789");
    store.commit_part(&part).await.expect("commit a part");
    assert!(store.check_room(place.owner, ByteCount::bytes(91)).await.is_err());
    let refused = store.begin_upload(&upload(place, "b", 91)).await;
    assert!(matches!(refused, Err(Error::QuotaExceeded { .. })), "{refused:?}");
    store.abort_multipart(place.bucket, &key("m"), open.id).await.expect("abort");
    store.begin_upload(&upload(place, "b", 100)).await.expect("given back");
}

/// However they meet.
pub async fn uploads_at_once_do_not_take_the_same_room(store: &dyn MetadataStore) {
    let place = place_with_quota(store, Some(ByteCount::bytes(100))).await;
    let uploads: Vec<_> = (0..8).map(|n| upload(place, &format!("k{n}"), 30)).collect();
    let begun = futures::future::join_all(uploads.iter().map(|upload| store.begin_upload(upload))).await;
    assert_eq!(begun.iter().filter(|begun| begun.is_ok()).count(), 3, "{begun:?}");
}

/// As much as there is, for a body that nobody knows the length of; and for no more than that.
pub async fn room_is_reserved_as_a_body_grows(store: &dyn MetadataStore) {
    let more = async |upload: &NewUpload, bytes| store.reserve_more(upload.id, ByteCount::bytes(bytes)).await;
    let begin = async |place, name: &str| {
        let upload = upload(place, name, 0);
        store.begin_upload(&upload).await.expect("begin");
        upload
    };
    let free = begin(place(store).await, "k").await;
    assert_eq!(more(&free, 1 << 50).await.expect("no quota"), None);
    let place = place_with_quota(store, Some(ByteCount::bytes(100))).await;
    let (first, second) = (begin(place, "a").await, begin(place, "b").await);
    assert_eq!(more(&first, 60).await.expect("reserve"), Some(ByteCount::bytes(60)));
    assert_eq!(more(&second, 60).await.expect("reserve"), Some(ByteCount::bytes(40)));
    for full in [more(&first, 1).await, more(&second, 1).await] {
        assert!(matches!(full, Err(Error::QuotaExceeded { quota: 100 })), "{full:?}");
    }
    store.cancel_upload(first.id).await.expect("cancel");
    assert_eq!(more(&second, 10).await.expect("given back"), Some(ByteCount::bytes(50)));
    let gone = more(&first, 1).await;
    assert!(matches!(gone, Err(Error::UploadGone)), "{gone:?}");
    store.cancel_upload(second.id).await.expect("cancel");
    // What is replaced counts as free, for the one that replaces it.
    place.put(store, "k", &[0; 100]).await;
    let (over, beside) = (begin(place, "k").await, begin(place, "l").await);
    assert_eq!(more(&over, 70).await.expect("reserve"), Some(ByteCount::bytes(70)));
    assert!(more(&beside, 1).await.is_err());
    store.cancel_upload(over.id).await.expect("cancel");
    place.delete(store, &["k"]).await;
    let many: Vec<_> =
        futures::future::join_all((0..8).map(|n| begin(place, if n < 4 { "m" } else { "n" }))).await;
    let answers = futures::future::join_all(many.iter().map(|upload| more(upload, 30))).await;
    let granted: u64 = answers.iter().flatten().flatten().map(|bytes| bytes.get()).sum();
    assert_eq!(granted, 100, "{answers:?}");
}

/// Unless its intent reserved as much; a part that is replaced counts no more.
pub async fn a_part_is_held_against_the_quota(store: &dyn MetadataStore) {
    let place = place_with_quota(store, Some(ByteCount::bytes(100))).await;
    let first = open(store, place, "m").await;
    store.commit_part(&new_part(place, first.id, 1, &[1; 70])).await.expect("there is room");
    let begun = upload(place, "m", 0);
    store.begin_upload(&begun).await.expect("begin");
    for intent in [None, Some(begun.id)] {
        let refused =
            store.commit_part(&CommitPart { intent, ..new_part(place, first.id, 2, &[2; 31]) }).await;
        assert!(matches!(refused, Err(Error::QuotaExceeded { quota: 100 })), "{refused:?}");
    }
    store.renew_upload(begun.id, LONG).await.expect("it may be tried again");
    assert_eq!(store.list_parts(first.id, 0, 9).await.expect("list").len(), 1);
    store.commit_part(&new_part(place, first.id, 1, &[3; 100])).await.expect("replaces the other");
    store.commit_part(&new_part(place, first.id, 1, &[4; 40])).await.expect("replaces the other");
    let reserved = upload(place, "m", 60);
    store.begin_upload(&reserved).await.expect("there is room");
    let refused = store.commit_part(&new_part(place, first.id, 2, &[2; 1])).await;
    assert!(matches!(refused, Err(Error::QuotaExceeded { .. })), "{refused:?}");
    let part = CommitPart { intent: Some(reserved.id), ..new_part(place, first.id, 2, &[2; 60]) };
    store.commit_part(&part).await.expect("it was reserved");
    store.abort_multipart(place.bucket, &key("m"), first.id).await.expect("abort");

    let open = open(store, place, "n").await;
    let parts: Vec<_> = (1..=8).map(|number| new_part(place, open.id, number, &[5; 30])).collect();
    let made = futures::future::join_all(parts.iter().map(|part| store.commit_part(part))).await;
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 3, "{made:?}");
}

/// Newest first, each line once.
pub async fn the_log_is_read_in_pages_by_whom_it_is_about(store: &dyn MetadataStore) {
    let (mine, other) = (fresh(), fresh());
    let mut written = Vec::new();
    for n in 0..7u8 {
        let entry = NewAuditEntry {
            id: Uuid::new_v4(),
            owner: match n % 3 {
                0 => Some(other),
                _ => Some(mine),
            },
            actor: "somebody".to_owned(),
            action: "test".to_owned(),
            target: format!("t{n}\0"),
            address: "192.0.2.1".to_owned(),
            outcome: "ok".to_owned(),
        };
        written.push(entry);
    }
    let (one, rest) = written.split_at(1);
    for lines in [one, rest, rest, &[]] {
        store.append_audit(lines).await.expect("append");
    }
    let mut seen = Vec::new();
    let mut before = None;
    loop {
        let page = store.audit_log(Some(mine), before, 2).await.expect("read");
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 2);
        before = Some(last.cursor());
        seen.extend(page);
    }
    let ids: Vec<_> = seen.iter().map(|line| line.entry.id).collect();
    let mut sorted = seen.clone();
    sorted.sort_by_key(|line| std::cmp::Reverse((line.at, line.entry.id)));
    assert_eq!(seen, sorted);
    assert_eq!(ids.len(), 4);
    assert!(written.iter().filter(|entry| entry.owner == Some(mine)).all(|entry| ids.contains(&entry.id)));
    let all = store.audit_log(None, None, 1000).await.expect("read");
    assert!(written.iter().all(|entry| all.iter().any(|line| line.entry.id == entry.id)));
}

/// Revocations of tokens that are still good stay.
pub async fn what_has_expired_is_dropped_and_no_other(store: &dyn MetadataStore) {
    let long_ago = Timestamp::from_unix_millis(1_000_000);
    let live = begun(store, later(store).await).await;
    let dead = begun(store, long_ago).await;
    let (old, new) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
    store.revoke_token(&old, live.owner, long_ago).await.expect("revoke");
    store.revoke_token(&new, live.owner, later(store).await).await.expect("revoke");
    let entry = NewAuditEntry {
        id: Uuid::new_v4(),
        owner: None,
        actor: String::new(),
        action: "test".to_owned(),
        target: String::new(),
        address: String::new(),
        outcome: "ok".to_owned(),
    };
    store.append_audit(&[entry]).await.expect("append");
    let gone = store.purge_identity(LONG, 1000).await.expect("purge");
    assert_eq!(gone, 2);
    assert!(!store.token_is_revoked(&old, None).await.expect("asked"));
    assert!(store.token_is_revoked(&new, None).await.expect("asked"));
    assert!(!store.token_is_revoked("x", Some(live.id)).await.expect("asked"));
    assert!(store.token_is_revoked("x", Some(dead.id)).await.expect("asked"));
    assert_eq!(store.audit_log(None, None, 9).await.expect("read").len(), 1);
}

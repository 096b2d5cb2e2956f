//! Commits that meet each other, and commits whose answer is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cyxcloud_core::{Geometry, UploadId};
use cyxcloud_metadata::model::{
    Assembled, Attributes, CommitObject, CommitPart, CompleteMultipart, Content, Multipart, NewSegment,
    Object, Part, Precondition,
};
use cyxcloud_metadata::postgres::PostgresStore;
use cyxcloud_metadata::{Error, MetadataStore};

use crate::database::Database;
use crate::fixture::{Place, fresh, key, nodes, place};
use crate::proxy::{Cut, Proxy};

const CUTS: [Cut; 3] = [Cut::BeforeCommit, Cut::AfterCommit, Cut::DuringCommit];

#[tokio::test]
async fn a_lost_answer_to_commit_is_found_out() {
    let Some(database) = Database::make().await else { return };
    let proxy = Proxy::start(database.address()).await;
    let store = database.store_through(Some(proxy.address)).await;
    let place = place(&store).await;
    for has_intent in [true, false] {
        for cut in CUTS {
            let name = format!("{cut:?}/{has_intent}");
            let segment = place.inline(b"body");
            let commit = match has_intent {
                true => place.commit_with_intent(&store, &name, segment).await,
                false => place.commit(&name, segment),
            };
            proxy.arm(cut);
            let answer = store.commit_object(&commit).await;
            assert!(proxy.has_cut(), "{name}");
            let found = store.object(place.bucket, &key(&name)).await.expect("read");
            // What was answered is what is.
            match answer {
                Ok(object) => assert_eq!(found, Some(object), "{name}"),
                Err(Error::Unavailable { .. }) => assert_eq!(found, None, "{name}"),
                Err(error) => panic!("{name}: {error}"),
            }
            match cut {
                Cut::BeforeCommit => assert_eq!(found, None, "{name}"),
                Cut::AfterCommit => assert!(found.is_some(), "{name}"),
                Cut::DuringCommit | Cut::Never => {}
            }
            let renewed = store.renew_upload(commit.upload, Duration::from_secs(60)).await;
            assert!(matches!(renewed, Err(Error::UploadGone)), "{name}: the intent has ended");
            let again = store.commit_object(&commit).await;
            match (found, has_intent) {
                (Some(object), _) => assert_eq!(again.expect("the same answer"), object),
                (None, true) => assert!(matches!(again, Err(Error::UploadGone)), "{name}"),
                (None, false) => drop(again.expect("a new try")),
            }
        }
    }
}

/// Commits of keys `0..count`, begun at once.
async fn at_once(
    store: &Arc<PostgresStore>,
    commits: Vec<CommitObject>,
) -> Vec<(CommitObject, Result<Object, Error>)> {
    let commit = |commit: CommitObject| {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            let answer = store.commit_object(&commit).await;
            (commit, answer)
        })
    };
    let tasks: Vec<_> = commits.into_iter().map(commit).collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.expect("no panic"));
    }
    answers
}

#[tokio::test]
async fn a_lost_answer_to_many_commits_is_found_out_for_each() {
    let Some(database) = Database::make().await else { return };
    let proxy = Proxy::start(database.address()).await;
    let store = Arc::new(database.store_through(Some(proxy.address)).await);
    let place = place(store.as_ref()).await;
    for cut in CUTS {
        let mut commits = Vec::new();
        for number in 0..40 {
            let name = format!("{cut:?}/{number}");
            commits.push(place.commit_with_intent(store.as_ref(), &name, place.inline(b"body")).await);
        }
        proxy.arm(cut);
        let answers = at_once(&store, commits).await;
        assert!(proxy.has_cut(), "{cut:?}");
        for (commit, answer) in answers {
            let found = store.object(place.bucket, &commit.key).await.expect("read");
            match answer {
                Ok(object) => assert_eq!(found, Some(object), "{cut:?}"),
                Err(Error::Unavailable { .. }) => assert_eq!(found, None, "{cut:?}"),
                Err(error) => panic!("{cut:?}: {error}"),
            }
            let renewed = store.renew_upload(commit.upload, Duration::from_secs(60)).await;
            assert!(matches!(renewed, Err(Error::UploadGone)), "{cut:?}: the intent has ended");
        }
    }
}

#[tokio::test]
async fn who_is_refused_takes_nobody_along() {
    let Some(database) = Database::make().await else { return };
    let store = Arc::new(database.store().await);
    let place = place(store.as_ref()).await;
    let nodes = nodes(store.as_ref(), 3).await;
    let (mut commits, mut gone) = (Vec::new(), Vec::new());
    for number in 0..60 {
        let segment = match number % 2 {
            0 => place.inline(b"12345"),
            _ => NewSegment { target_tolerance: 2, ..place.striped(Geometry::STANDARD_SMALL, 1, &nodes) },
        };
        let commit = place.commit_with_intent(store.as_ref(), &format!("k{number}"), segment).await;
        if number % 7 == 0 {
            store.cancel_upload(commit.upload).await.expect("cancel");
            gone.push(commit.upload);
        }
        commits.push(commit);
    }
    let answers = at_once(&store, commits).await;
    let mut bytes = 0;
    for (commit, answer) in &answers {
        let found = store.object(place.bucket, &commit.key).await.expect("read");
        match answer {
            Ok(object) => assert_eq!(found.as_ref(), Some(object)),
            Err(Error::UploadGone) => assert_eq!(found, None),
            Err(error) => panic!("{}: {error}", commit.key),
        }
        assert_eq!(answer.is_err(), gone.contains(&commit.upload), "{}", commit.key);
        bytes += found.map_or(0, |object| object.size.get());
    }
    let usage = store.bucket_usage(place.bucket).await.expect("usage");
    assert_eq!((usage.objects, usage.bytes.get()), (60 - gone.len() as u64, bytes));
    let mut beside = database.connection().await;
    let left: (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM keys), (SELECT count(*) FROM upload_intents),
            (SELECT count(*) FROM segments s WHERE NOT EXISTS (SELECT 1 FROM file_segments f WHERE f.segment_id = s.id))",
    )
    .fetch_one(&mut beside)
    .await
    .expect("read");
    assert_eq!(left, (60 - gone.len() as i64, 0, 0), "keys, intents, segments that nothing refers to");
    let committed: Vec<_> = answers.iter().filter(|(_, answer)| answer.is_ok()).collect();
    let again = at_once(&store, committed.iter().map(|(commit, _)| commit.clone()).collect()).await;
    for ((_, first), (_, second)) in committed.into_iter().zip(again) {
        assert_eq!(first.as_ref().expect("committed"), &second.expect("the same answer again"));
    }
}

async fn multipart(store: &dyn MetadataStore, place: Place) -> UploadId {
    let upload = Multipart {
        id: fresh(),
        bucket: place.bucket,
        key: key("parts"),
        owner: place.owner,
        attributes: Attributes::default(),
        checksum_algorithm: None,
        checksum_type: None,
        initiated_at: cyxcloud_core::Timestamp::default(),
    };
    store.create_multipart(&upload, 1000).await.expect("create").id
}

fn part(upload: UploadId, number: u32, intent: Option<UploadId>, segment: NewSegment) -> CommitPart {
    CommitPart {
        multipart: upload,
        number,
        intent,
        size: segment.length,
        etag: format!("{number:032x}"),
        content_hash: segment.content_hash,
        checksums: Vec::new(),
        content: Content::New(segment),
    }
}

#[tokio::test]
async fn a_lost_answer_to_a_part_is_found_out() {
    let Some(database) = Database::make().await else { return };
    let proxy = Proxy::start(database.address()).await;
    let store = database.store_through(Some(proxy.address)).await;
    let place = place(&store).await;
    let upload = multipart(&store, place).await;
    for (cut, number) in CUTS.into_iter().zip(1..) {
        let intent = place.commit_with_intent(&store, "parts", place.inline(b"")).await.upload;
        let part = part(upload, number, Some(intent), place.inline(b"part"));
        proxy.arm(cut);
        let answer = store.commit_part(&part).await;
        assert!(proxy.has_cut(), "{cut:?}");
        let parts = store.list_parts(upload, number - 1, 10).await.expect("list");
        match answer {
            Ok(part) => assert_eq!(parts, [part], "{cut:?}"),
            Err(Error::Unavailable { .. }) => assert!(parts.is_empty(), "{cut:?}"),
            Err(error) => panic!("{cut:?}: {error}"),
        }
        assert_eq!(cut == Cut::BeforeCommit, parts.is_empty() && cut != Cut::DuringCommit, "{cut:?}");
        let renewed = store.renew_upload(intent, Duration::from_secs(60)).await;
        assert!(matches!(renewed, Err(Error::UploadGone)), "{cut:?}: the intent has ended");
    }
}

#[tokio::test]
async fn a_lost_answer_to_complete_is_given_again() {
    let Some(database) = Database::make().await else { return };
    let proxy = Proxy::start(database.address()).await;
    let store = database.store_through(Some(proxy.address)).await;
    let place = place(&store).await;
    for cut in CUTS {
        let upload = multipart(&store, place).await;
        let part = part(upload, 1, None, place.inline(b"part"));
        store.commit_part(&part).await.expect("part");
        let complete = CompleteMultipart {
            multipart: upload,
            bucket: place.bucket,
            key: key("parts"),
            file: fresh(),
            precondition: Precondition::None,
            parts: vec![(1, part.etag)],
        };
        let assemble = |_: &Multipart, _: &[Part]| {
            Ok(Assembled { etag: "e-1".to_owned(), content_hash: [1; 32], checksums: Vec::new() })
        };
        proxy.arm(cut);
        let object = store.complete_multipart(&complete, &assemble).await.expect("complete");
        assert!(proxy.has_cut(), "{cut:?}");
        let found = store.object(place.bucket, &key("parts")).await.expect("read");
        assert_eq!(found, Some(object), "{cut:?}");
    }
    let usage = store.bucket_usage(place.bucket).await.expect("usage");
    assert_eq!((usage.objects, usage.bytes.get()), (1, 4));
}

#[tokio::test]
async fn deletes_and_commits_in_any_order_do_not_deadlock() {
    let Some(database) = Database::make().await else { return };
    let store = Arc::new(database.store().await);
    let place = place(store.as_ref()).await;
    let names: Vec<String> = (0..20).map(|number| format!("k{number:02}")).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let (store, names) = (Arc::clone(&store), names.clone());
        tasks.spawn(async move {
            for round in 0..10 {
                let mut keys: Vec<_> = names.iter().map(|name| key(name)).collect();
                if worker % 2 == 0 {
                    keys.reverse();
                }
                let name = &names[(worker * 7 + round) % names.len()];
                store.commit_object(&place.commit(name, place.inline(b"x"))).await.expect("commit");
                store.delete_objects(place.bucket, &keys, &Precondition::None).await.expect("delete");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no task panics");
    }
    let usage = store.bucket_usage(place.bucket).await.expect("usage");
    assert_eq!((usage.objects, usage.bytes.get()), (0, 0));
    let mut beside = database.connection().await;
    let keys: i64 =
        sqlx::query_scalar("SELECT count(*) FROM keys").fetch_one(&mut beside).await.expect("count");
    assert_eq!(keys, 0, "keys without versions leave no rows");
}

#[tokio::test]
async fn commits_of_one_key_at_once_take_turns() {
    let Some(database) = Database::make().await else { return };
    let store = Arc::new(database.store().await);
    let place = place(store.as_ref()).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let store = Arc::clone(&store);
        tasks.spawn(async move { store.commit_object(&place.commit("hot", place.inline(b"12345"))).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic").expect("committed");
    }
    let mut beside = database.connection().await;
    let (sequence, files): (i64, i64) = sqlx::query_as("SELECT max(version_seq), count(*) FROM files")
        .fetch_one(&mut beside)
        .await
        .expect("read");
    assert_eq!((sequence, files), (40, 1), "each commit counts one on, and one version is left");
    let usage = store.bucket_usage(place.bucket).await.expect("usage");
    assert_eq!((usage.objects, usage.bytes.get()), (1, 5));
}

#[tokio::test]
async fn what_a_commit_owes_is_queued_for_repair() {
    let Some(database) = Database::make().await else { return };
    let store = database.store().await;
    let place = place(&store).await;
    let nodes = nodes(&store, 14).await;
    let step = |from, to| cyxcloud_metadata::model::NodeStep { node: nodes[3].id, from, to };
    use cyxcloud_core::node::NodeStatus::{Offline, Online};
    let whole = place.striped(Geometry::STANDARD, 2, &nodes);
    let short = NewSegment { target_tolerance: 4, ..place.striped(Geometry::STANDARD, 2, &nodes) };
    let late = place.striped(Geometry::STANDARD, 1, &nodes);
    let expected = [(whole.id, vec![]), (short.id, vec![(0, 1), (1, 1)]), (late.id, vec![(0, 3)])];
    store.commit_object(&place.commit("whole", whole)).await.expect("commit");
    store.commit_object(&place.commit("short", short)).await.expect("commit");
    store.step_node(&step(Online, Offline)).await.expect("step");
    store.commit_object(&place.commit("late", late)).await.expect("commit");
    let mut beside = database.connection().await;
    for (segment, owed) in expected {
        let jobs: Vec<(i32, i32)> = sqlx::query_as(
            "SELECT stripe_index, priority FROM repair_jobs WHERE segment_id = $1 ORDER BY stripe_index",
        )
        .bind(segment.as_uuid())
        .fetch_all(&mut beside)
        .await
        .expect("read");
        assert_eq!(jobs, owed);
    }
}

/// Not a test: how many small commits a second this machine does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn measure_commits() {
    let Some(database) = Database::make().await else { return };
    let store = Arc::new(database.store().await);
    let place = place(store.as_ref()).await;
    let body = vec![7; 4096];
    let (workers, each) = (32, 200);
    for overwrite in [false, true] {
        let began = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for worker in 0..workers {
            let (store, body) = (Arc::clone(&store), body.clone());
            tasks.spawn(async move {
                for number in 0..each {
                    let commit = place.commit(&format!("{worker}/{number}"), place.inline(&body));
                    store.commit_object(&commit).await.expect("commit");
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("no panic");
        }
        let rate = f64::from(workers * each) / began.elapsed().as_secs_f64();
        eprintln!("{rate:.0} commits of 4 KiB a second at {workers} at once (overwriting: {overwrite})");
    }
    let nodes = nodes(store.as_ref(), 14).await;
    let began = Instant::now();
    let segment = place.striped(Geometry::STANDARD, 256, &nodes);
    store.commit_object(&place.commit("big", segment)).await.expect("commit");
    eprintln!("{:?} for a commit of 256 stripes of 10+4", began.elapsed());
}

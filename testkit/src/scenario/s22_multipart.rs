//! 22: the end of multipart uploads meets another end, an abort, a part that comes late, or its own retry. There is one
//! outcome each time, and it is told alike to all who ask.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;

use super::{Needs, Quick, Running, Scenario};
use crate::error::{Error, Result};
use crate::load::Workers;
use crate::recorder::multipart::Upload;
use crate::recorder::{Recorder, body_of};
use crate::run::Run;
use crate::s3::{Answer, Refused};

pub(super) const SCENARIO: Scenario = Scenario {
    number: 22,
    name: "multipart",
    about: "Complete meets Complete, Abort, a late part or its own retry, through two gateways",
    needs: Needs::Nothing,
    duration: Duration::from_secs(90),
    quick: Quick::For(Duration::from_secs(8)),
    controls: &[],
    run: |run| -> Running { Box::pin(multipart(run)) },
};

const BUCKET: &str = "multipart";
const SIZE: usize = 70_000;

async fn multipart(run: Arc<Run>) -> Result<()> {
    let cluster = run.cluster().gateways(2).start().await?;
    let clients = run.clients(&cluster, BUCKET).await?;
    let mut workers = Workers::new();
    for number in 0..4 {
        let (run, clients) = (run.clone(), clients.clone());
        workers.add(async move {
            let mut chance = run.chance(100 + number);
            while !run.over() {
                if let Err(error) = race(&run, &clients, &mut chance).await {
                    run.broken(error.to_string());
                }
            }
        });
    }
    let began = Instant::now();
    while !run.has_enough(began) && !run.over() {
        run.pause(Duration::from_secs(2)).await;
        run.check_always(&cluster).await?;
    }
    workers.join(&run).await?;
    let open =
        cluster.database.number("SELECT count(*) FROM multipart_uploads WHERE status = 'open'").await?;
    if open > 0 {
        return Err(Error::broken(format!("{open} uploads are open after all of them were ended")));
    }
    run.judge(&cluster, &clients[0], BUCKET).await?;
    cluster.finish().await
}

/// One upload, and one of the ways in which its end can be disputed.
async fn race(run: &Run, clients: &[Recorder], chance: &mut StdRng) -> Result<()> {
    let (one, other) = (&clients[0], &clients[1]);
    let key = format!("k{}", run.fresh());
    let body = body_of(run.seed, &key, SIZE);
    let upload = one.open(&key, &body).await.map_err(|refused| unexpected(&key, "open", &refused))?;
    let part = one.part(&upload, 1, body.clone()).await;
    let part = [part.map_err(|refused| unexpected(&key, "store a part", &refused))?];
    match chance.random_range(0..4) {
        0 => {
            let (a, b) = tokio::join!(one.complete(&upload, &part), other.complete(&upload, &part));
            let a = a.map_err(|refused| unexpected(&key, "complete", &refused))?;
            let b = b.map_err(|refused| unexpected(&key, "complete as well", &refused))?;
            alike(&key, &a, &b)?;
            run.count("Complete met Complete", 1);
        }
        1 => {
            let (completed, aborted) = tokio::join!(one.complete(&upload, &part), other.abort(&upload));
            one_outcome(run, &upload, completed, aborted)?;
        }
        2 => late_part(run, clients, &upload, &part, body).await?,
        _ => {
            // Whoever does not wait for the answer asks again.
            let patience = Duration::from_millis(chance.random_range(0..40));
            let first = tokio::time::timeout(patience, other.complete(&upload, &part)).await;
            let again = one.complete(&upload, &part).await;
            let again = again.map_err(|refused| unexpected(&key, "complete again", &refused))?;
            if let Ok(Ok(first)) = first {
                alike(&key, &first, &again)?;
            }
            run.count("Complete asked again", 1);
        }
    }
    one.get(&key).await;
    other.get(&key).await;
    run.count("upload", 1);
    run.still_whole()
}

/// Either it is completed and nothing was left to abort, or it was aborted and nothing was left to complete.
fn one_outcome(run: &Run, upload: &Upload, completed: Answer<String>, aborted: Answer<()>) -> Result<()> {
    let gone = |refused: &Refused| refused.is_absence();
    match (completed, aborted) {
        (Ok(_), Err(refused)) if gone(&refused) => run.count("Complete won over Abort", 1),
        (Err(refused), Ok(())) if gone(&refused) => run.count("Abort won over Complete", 1),
        (completed, aborted) => {
            return Err(Error::broken(format!(
                "{}: Complete was answered with {completed:?}, Abort with {aborted:?}",
                upload.key
            )));
        }
    }
    Ok(())
}

/// A part is stored anew while the upload is completed with its old ETag: the old bytes, or a refusal that names the part;
/// then the upload is open still, and ends with the bytes it was opened for.
async fn late_part(
    run: &Run,
    clients: &[Recorder],
    upload: &Upload,
    part: &[(u32, String)],
    body: Bytes,
) -> Result<()> {
    let key = &upload.key;
    let late = body_of(run.seed, &format!("{key} late"), SIZE);
    let (completed, stored) =
        tokio::join!(clients[0].complete(upload, part), clients[1].part(upload, 1, late));
    match (completed, stored) {
        (Ok(_), Ok(_)) => {
            // It came first, and Complete would not have found the part it named.
            return Err(Error::broken(format!(
                "{key}: a part was replaced in an upload that was completed without it"
            )));
        }
        (Ok(_), Err(refused)) if refused.is_absence() => run.count("Complete won over a part", 1),
        (Err(refused), Ok(_)) if refused.code == "InvalidPart" => {
            let again = clients[1].part(upload, 1, body).await;
            let again = [again.map_err(|refused| unexpected(key, "store the part again", &refused))?];
            let done = clients[0].complete(upload, &again).await;
            done.map_err(|refused| unexpected(key, "complete with the part stored again", &refused))?;
            run.count("a part won over Complete", 1);
        }
        (completed, stored) => {
            return Err(Error::broken(format!(
                "{key}: Complete was answered with {completed:?}, the part with {stored:?}"
            )));
        }
    }
    Ok(())
}

fn alike(key: &str, a: &str, b: &str) -> Result<()> {
    if a == b { Ok(()) } else { Err(Error::broken(format!("{key} was completed as {a} and as {b}"))) }
}

fn unexpected(key: &str, doing: &str, refused: &Refused) -> Error {
    Error::broken(format!("{key}: could not {doing}: {refused}"))
}

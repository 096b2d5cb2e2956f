//! 26: Redis forgets everything, dies, comes back with what it knew before, and stays away. Nobody gets in by it: no nonce
//! is good twice, and what was ended stays ended, also for a gateway that did not see it end and for one that has just
//! started. Nobody is thrown out by it either: sessions go on, and S3 does not notice.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyxcloud_core::receipt::NodeKey;
use futures::{StreamExt, TryStreamExt, stream};
use rand::RngExt;
use rand::rngs::StdRng;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Needs, Quick, Running, Scenario};
use crate::cluster::Cluster;
use crate::error::{Doing, Error, Result};
use crate::load::{self, Load};
use crate::run::Run;
use crate::s3::{Credentials, Request, S3};

pub(super) const SCENARIO: Scenario = Scenario {
    number: 26,
    name: "redis-lost",
    about: "Redis is emptied, killed, wiped, brought back as it was before, and gone for up to 30 s",
    needs: Needs::Nothing,
    duration: Duration::from_secs(120),
    quick: Quick::For(Duration::from_secs(12)),
    controls: &[],
    run: |run| -> Running { Box::pin(redis_lost(run)) },
};

const BUCKET: &str = "redis";
/// Gateways that the S3 load goes to. The last one is without: it starts anew after each harm, and remembers nothing.
const LOADED: usize = 2;
const GATEWAYS: usize = LOADED + 1;
/// Clients of the log-in at the same time.
const AT_ONCE: usize = 8;
/// How long Redis stays away, at most.
const AWAY_MAX: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(30);
/// What S3 requests may fail: one in a thousand.
const FAILED_MAX: u64 = 1_000;

/// What happens to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// It is told to forget everything, and runs on.
    Flush,
    /// It is killed, and comes back with nothing, having saved nothing.
    Kill,
    /// It is killed, and comes back with what it knew before the nonces were used.
    Rewind,
    /// What it had saved is gone.
    Wipe,
    /// It is killed and stays away; sessions end meanwhile.
    Away,
}

const HARMS: [Harm; 5] = [Harm::Flush, Harm::Kill, Harm::Rewind, Harm::Wipe, Harm::Away];

/// Somebody who has logged in.
#[derive(Clone, Debug)]
struct LoggedIn {
    /// What was sent for it, which must be good for nothing any more.
    said: Value,
    access: String,
}

/// What was good and is no more.
#[derive(Clone, Debug)]
enum Ended {
    Token(String),
    Key(Credentials),
}

async fn redis_lost(run: Arc<Run>) -> Result<()> {
    // No node is harmed here: one that is slow to say that it lives while a gateway starts is not to be missed.
    let cluster = run
        .cluster()
        .own_databases()
        .gateways(GATEWAYS)
        .gateway_env("TRUSTED_PROXIES", "127.0.0.0/8")
        .gateway_env("NODE_OFFLINE_THRESHOLD_SECS", "60")
        .gateway_env("NODE_DRAIN_THRESHOLD_SECS", "120")
        .start()
        .await?;
    let clients = run.clients(&cluster, BUCKET).await?;
    let lenient: Vec<_> = clients[..LOADED].iter().map(crate::Recorder::lenient).collect();
    let load = Load { lists: true, workers: 3, ..Load::default() }.small();
    let door = Door::new(&run, &cluster)?;
    let mut chance = run.chance(1);
    let people = usize::try_from(run.duration.as_secs()).unwrap_or(60).clamp(12, 60);
    let workers = load::start(&run, &lenient, &load);
    let began = Instant::now();
    loop {
        for harm in HARMS {
            harmed(&run, &cluster, &door, harm, people, &mut chance).await?;
            run.count("Redis harmed", 1);
        }
        run.check_always(&cluster).await?;
        if run.has_enough(began) || run.over() {
            break;
        }
    }
    workers.join(&run).await?;
    nearly_all_answered(&run)?;
    run.judge(&cluster, &clients[0], BUCKET).await?;
    cluster.finish().await
}

/// People log in, some of them out again; Redis is harmed; and whoever was out stays out, whoever was in stays in.
async fn harmed(
    run: &Arc<Run>,
    cluster: &Cluster,
    door: &Door,
    harm: Harm,
    people: usize,
    chance: &mut StdRng,
) -> Result<()> {
    let redis = &cluster.redis;
    let signed: Vec<Value> =
        each((0..people).map(|_| door.signed(wallet(chance), chance.random_range(0..GATEWAYS)))).await?;
    if matches!(harm, Harm::Rewind | Harm::Wipe) {
        redis.save()?;
    }
    let logged_in: Vec<LoggedIn> =
        each(signed.into_iter().map(|said| door.log_in(said, chance.random_range(0..GATEWAYS)))).await?;
    let (stay, go) = logged_in.split_at(people / 2);
    let good: Vec<Ended> = each(go.iter().map(|person| door.about_to_end(person))).await?.concat();
    run.history.note("harm", format!("{harm:?}"));
    if harm == Harm::Away {
        redis.kill();
    }
    // Seen everywhere once, so that whoever remembers what was good does.
    door.all(&good, Stands::In, 0..GATEWAYS).await?;
    // Whoever revokes a key looks all keys up anew. While Redis is away nobody else does, unless it knows that it must.
    let enders = if harm == Harm::Away { 1 } else { GATEWAYS };
    each(go.iter().map(|person| door.end(person, chance.random_range(0..enders)))).await?;
    match harm {
        Harm::Flush => redis.flush()?,
        Harm::Away => {}
        Harm::Kill | Harm::Rewind | Harm::Wipe => {
            redis.kill();
            if harm == Harm::Wipe {
                redis.wipe()?;
            }
            redis.start().await?;
        }
    }
    if harm == Harm::Away {
        let gone = Instant::now();
        door.all(&good, Stands::Out, 0..GATEWAYS).await?;
        door.replay(&logged_in, 0..GATEWAYS, &[401, 503]).await?;
        door.stay(stay, 0..GATEWAYS).await?;
        let away = AWAY_MAX.min(run.duration / 4).saturating_sub(gone.elapsed());
        run.pause(away).await;
        redis.start().await?;
    }
    // A gateway finds out by itself that Redis is back.
    for gateway in 0..GATEWAYS {
        door.wait_for_log_ins(gateway, chance).await?;
    }
    door.replay(&logged_in, 0..LOADED, &[401]).await?;
    door.all(&good, Stands::Out, 0..LOADED).await?;
    door.stay(stay, 0..LOADED).await?;
    // And one that has never heard of any of it.
    let fresh = &cluster.gateways[LOADED];
    fresh.process.stop().await?;
    fresh.process.start()?;
    cluster.answers(&fresh.process, &format!("{}/ready", fresh.url)).await?;
    door.replay(&logged_in, LOADED..GATEWAYS, &[401]).await?;
    door.all(&good, Stands::Out, LOADED..GATEWAYS).await?;
    door.stay(stay, LOADED..GATEWAYS).await?;
    redis.wipe()?;
    run.still_whole()
}

/// Runs all of these, some at the same time; their answers in order.
async fn each<T>(all: impl Iterator<Item = impl Future<Output = Result<T>>>) -> Result<Vec<T>> {
    stream::iter(all).buffered(AT_ONCE).try_collect().await
}

fn wallet(chance: &mut StdRng) -> NodeKey {
    NodeKey::from_seed(chance.random())
}

/// "S3 SigV4 traffic >= 99.9 % ok", each request sent once.
fn nearly_all_answered(run: &Run) -> Result<()> {
    let (mut all, mut failed) = (0, 0);
    for (what, count) in run.counts() {
        match what.split_once(' ') {
            None if ["PUT", "GET", "HEAD", "DELETE", "LIST"].contains(&what.as_str()) => all += count,
            Some((_, "refused" | "unanswered")) => failed += count,
            _ => {}
        }
    }
    run.figure("S3 requests", all + failed);
    run.figure("S3 requests that failed", failed);
    match failed * FAILED_MAX > all + failed {
        true => Err(Error::broken(format!("{failed} of {} S3 requests failed", all + failed))),
        false => Ok(()),
    }
}

/// Whether credentials open anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    In,
    Out,
}

/// What people log in by, at each gateway.
struct Door {
    run: Arc<Run>,
    http: reqwest::Client,
    urls: Vec<String>,
}

impl Door {
    fn new(run: &Arc<Run>, cluster: &Cluster) -> Result<Self> {
        let http = reqwest::Client::builder()
            .pool_idle_timeout(Duration::from_secs(5))
            .tls_certs_only([])
            .build()
            .doing("set up a client")?;
        let urls = cluster.gateways.iter().map(|gateway| gateway.url.clone()).collect();
        Ok(Self { run: run.clone(), http, urls })
    }

    /// Asks a gateway for something under `/api/v1/auth/`, each time from another address, as a proxy would say.
    async fn ask(
        &self,
        gateway: usize,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<(u16, Value)> {
        let from = Ipv4Addr::from(0x0a00_0000 + u32::try_from(self.run.fresh()).unwrap_or_default());
        let mut request = self
            .http
            .request(method, format!("{}/api/v1/auth/{path}", self.urls[gateway]))
            .header("x-forwarded-for", from.to_string())
            .timeout(LIMIT);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let silent = |error: reqwest::Error| {
            Error::broken(format!("gateway {} did not answer auth/{path}: {error}", gateway + 1))
        };
        let answer = request.send().await.map_err(silent)?;
        let status = answer.status().as_u16();
        let text = answer.bytes().await.map_err(silent)?;
        Ok((status, serde_json::from_slice(&text).unwrap_or_default()))
    }

    /// The same, where only one answer is right; from what is answered with it.
    async fn must(
        &self,
        gateway: usize,
        (method, path): (Method, &str),
        token: Option<&str>,
        body: Option<&Value>,
        right: u16,
    ) -> Result<Value> {
        let (status, answer) = self.ask(gateway, method, path, token, body).await?;
        match status == right {
            true => Ok(answer),
            false => Err(Error::broken(format!(
                "gateway {} answered auth/{path} with {status}: {answer}",
                gateway + 1
            ))),
        }
    }

    /// What a wallet sends to log in.
    async fn signed(&self, wallet: NodeKey, gateway: usize) -> Result<Value> {
        let address = bs58::encode(wallet.public()).into_string();
        let body = json!({ "wallet_address": address });
        let given = self.must(gateway, (Method::POST, "challenge"), None, Some(&body), 200).await?;
        let signature = bs58::encode(wallet.sign(field(&given, "challenge").as_bytes())).into_string();
        Ok(json!({
            "wallet_address": address,
            "signature": signature,
            "challenge": given["challenge"],
            "nonce": given["nonce"],
        }))
    }

    async fn log_in(&self, said: Value, gateway: usize) -> Result<LoggedIn> {
        let tokens = self.must(gateway, (Method::POST, "wallet"), None, Some(&said), 200).await?;
        self.run.count("log-in", 1);
        Ok(LoggedIn { said, access: field(&tokens, "access_token") })
    }

    /// Makes a key with the session, and names all that ends with [`Self::end`].
    async fn about_to_end(&self, person: &LoggedIn) -> Result<Vec<Ended>> {
        let wanted = json!({ "name": "soon gone" });
        let key = self.must(0, (Method::POST, "api-keys"), Some(&person.access), Some(&wanted), 201).await?;
        let credentials = Credentials {
            access_key: field(&key, "access_key_id"),
            secret_key: field(&key, "secret_access_key"),
        };
        let tokens = [person.access.clone(), field(&key, "token")].map(Ended::Token);
        Ok(tokens.into_iter().chain([Ended::Key(credentials)]).collect())
    }

    /// Revokes the keys of a session and logs out.
    async fn end(&self, person: &LoggedIn, gateway: usize) -> Result<()> {
        let access = Some(person.access.as_str());
        let listed = self.must(gateway, (Method::GET, "api-keys"), access, None, 200).await?;
        for key in listed["api_keys"].as_array().into_iter().flatten() {
            let path = format!("api-keys/{}", field(key, "id"));
            self.must(gateway, (Method::DELETE, &path), access, None, 204).await?;
        }
        self.must(gateway, (Method::POST, "logout"), access, None, 204).await.map(drop)
    }

    /// Tries what people once logged in with. None of it may work.
    async fn replay(
        &self,
        people: &[LoggedIn],
        gateways: std::ops::Range<usize>,
        right: &[u16],
    ) -> Result<()> {
        let tries = gateways.flat_map(|gateway| people.iter().map(move |person| (gateway, person)));
        each(tries.map(|(gateway, person)| async move {
            let (status, answer) =
                self.ask(gateway, Method::POST, "wallet", None, Some(&person.said)).await?;
            self.run.count("nonce tried again", 1);
            match right.contains(&status) {
                true => Ok(()),
                false => Err(Error::broken(format!(
                    "gateway {} answered a used nonce with {status}: {answer}",
                    gateway + 1
                ))),
            }
        }))
        .await
        .map(drop)
    }

    /// Tries credentials, all of which must open the door, or none.
    async fn all(&self, all: &[Ended], stands: Stands, gateways: std::ops::Range<usize>) -> Result<()> {
        let tries = gateways.flat_map(|gateway| all.iter().map(move |one| (gateway, one)));
        each(tries.map(|(gateway, one)| async move {
            let (status, what) = match one {
                Ended::Token(token) => {
                    (self.ask(gateway, Method::GET, "me", Some(token), None).await?.0, "token")
                }
                Ended::Key(key) => (self.buckets(gateway, key).await?, "key"),
            };
            let right: &[u16] = if stands == Stands::In { &[200] } else { &[401, 403] };
            if !right.contains(&status) {
                return Err(Error::broken(format!(
                    "gateway {} answered a {what} that is {stands:?} with {status}",
                    gateway + 1
                )));
            }
            if stands == Stands::Out {
                self.run.count("ended credentials tried", 1);
            }
            Ok(())
        }))
        .await
        .map(drop)
    }

    /// Lists buckets with an access key; the status.
    async fn buckets(&self, gateway: usize, key: &Credentials) -> Result<u16> {
        let s3 = S3::new(&self.urls[gateway], key)?;
        match s3.send(Request::to(Method::GET, "/")).await {
            Ok(_) => Ok(200),
            Err(refused) => refused
                .status
                .ok_or_else(|| Error::broken(format!("gateway {} did not answer: {refused}", gateway + 1))),
        }
    }

    /// Who did not log out is still in.
    async fn stay(&self, people: &[LoggedIn], gateways: std::ops::Range<usize>) -> Result<()> {
        let tokens: Vec<Ended> = people.iter().map(|person| Ended::Token(person.access.clone())).collect();
        self.all(&tokens, Stands::In, gateways).await
    }

    /// Waits until this gateway lets people in again.
    async fn wait_for_log_ins(&self, gateway: usize, chance: &mut StdRng) -> Result<()> {
        let address = bs58::encode(wallet(chance).public()).into_string();
        let body = json!({ "wallet_address": address });
        let asked = Instant::now();
        loop {
            match self.ask(gateway, Method::POST, "challenge", None, Some(&body)).await? {
                (200, _) => return Ok(()),
                (503, _) if asked.elapsed() < LIMIT => tokio::time::sleep(Duration::from_millis(100)).await,
                (status, answer) => {
                    return Err(Error::broken(format!(
                        "gateway {} gives no challenge {} s after Redis came back: {status} {answer}",
                        gateway + 1,
                        asked.elapsed().as_secs()
                    )));
                }
            }
        }
    }
}

/// A text in an answer; empty if there is none.
fn field(answer: &Value, name: &str) -> String {
    answer[name].as_str().unwrap_or_default().to_owned()
}

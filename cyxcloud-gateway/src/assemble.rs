//! Puts a gateway together from its configuration: every part, and what each is given. Nothing here listens or runs, but for
//! the recorder of heartbeats.

use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::address::AddressPolicy;
use cyxcloud_core::seal::{MASTER_KEY_CHECK, MasterKey};
use cyxcloud_dataplane::DataPlane;
use cyxcloud_dataplane::own::{OwnServer, OwnServers};
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::Owner;
use cyxcloud_metadata::postgres;
use cyxcloud_tls::grpc::Guests;
use cyxcloud_tls::{Acceptor, Protocols, ServerCertificate, ServerKey, TlsError};
use prometheus::{IntCounter, Registry};
use secrecy::{ExposeSecret, SecretString};
use tracing::warn;

use crate::api::{self, Api};
use crate::auth::{Authenticator, JwtConfig, RootCredentials};
use crate::config::Config;
use crate::data_service::DataApi;
use crate::documents::Documents;
use crate::ephemeral::{Ephemeral, InProcess, Redis};
use crate::events::Events;
use crate::events::relay::Relay;
use crate::identity::challenge::Binding;
use crate::identity::{self, Identity};
use crate::journal::{Denials, Scribe, journal};
use crate::nodes::callback::Caller;
use crate::nodes::{Heartbeats, Monitor, NodeApi, Operators, Suspensions};
use crate::objects::{self, ObjectService, OwnerSecrets};
use crate::readiness::Lookout;
use crate::run::{Error, Options, ROOT_OWNER};
use crate::serve::{App, Metrics};
use crate::websocket::Sockets;

/// A gateway that does not run yet.
pub(crate) struct Gateway {
    pub(crate) metadata: Arc<dyn MetadataStore>,
    pub(crate) app: Arc<App>,
    pub(crate) grpc: Grpc,
    pub(crate) metrics_refused: IntCounter,
    pub(crate) monitor: Monitor,
    pub(crate) scribe: Scribe,
    pub(crate) chores: Chores,
}

/// What the gRPC port serves, and to whom.
pub(crate) struct Grpc {
    pub(crate) nodes: NodeApi,
    pub(crate) data: DataApi,
    pub(crate) guests: Guests,
    pub(crate) tls: Option<Acceptor>,
}

/// What is done beside all requests. None of it decides whether the gateway may go on: each is late at worst.
pub(crate) struct Chores {
    metadata: Arc<dyn MetadataStore>,
    audit_kept: Duration,
    auth: Arc<Authenticator>,
    identity: Arc<Identity>,
    own: OwnServers,
    secure: Secure,
    suspensions: Option<Suspensions>,
    relay: Option<Relay>,
}

impl Chores {
    pub(crate) async fn run(self) {
        tokio::join!(
            self.auth.record_use(),
            self.identity.listen(),
            self.own.keep_looking(),
            purge(&*self.metadata, self.audit_kept),
            self.secure.keep_fresh(),
            async {
                if let Some(suspensions) = self.suspensions {
                    suspensions.run().await;
                }
            },
            async {
                if let Some(relay) = self.relay {
                    relay.run().await;
                }
            }
        );
    }
}

/// What several parts are made of.
struct Base {
    config: Config,
    registry: Registry,
    metadata: Arc<dyn MetadataStore>,
    ephemeral: Arc<dyn Ephemeral>,
    master: MasterKey,
    /// Which addresses of nodes are dialled.
    policy: AddressPolicy,
    /// What nodes know us by.
    key: ServerKey,
}

impl Gateway {
    /// Opens, checks and connects what is needed.
    pub(crate) async fn assemble(options: Options, registry: &Registry) -> Result<Self, Error> {
        let Options { config, metadata } = options;
        // First, because it is what an operator gets wrong.
        let secure = Secure::load(&config, registry)?;
        let master = open_master(&config, &*metadata).await?;
        let ephemeral = open_ephemeral(config.redis_url.as_ref()).await?;
        let root = ensure_root(&config, &*metadata, &master).await?;
        let own = OwnServers::find(own_servers(&config)?).await;
        let policy = config.address_policy(own.addresses());
        let key = config.server_key.open(config.data_dir.as_deref().filter(|_| !config.memory_only))?;
        let base = Base { config, registry: registry.clone(), metadata, ephemeral, master, policy, key };

        let plane = base.plane();
        let auth = Arc::new(base.authenticator(root)?);
        let identity = Arc::new(base.identity(auth.clone()));
        let (events, relay) = base.events()?;
        let objects = Arc::new(base.objects(plane.clone()).with_events(events.clone()));
        let monitor = base.monitor(plane.clone())?.with_events(events.clone());
        let nodes = base.nodes(plane, auth.clone(), &monitor)?;
        let denials = Denials::default();
        let (journal, scribe) = journal(registry, denials.clone())?;
        let data = DataApi::new(objects.clone(), auth.clone(), journal.clone());
        let documents = Documents::new(registry)?;
        let Base { config, registry, metadata, ephemeral, .. } = base;

        let sockets = Arc::new(Sockets::new(auth.clone(), events, ephemeral.clone(), config.sockets()));
        let suspensions = config
            .wants_operators()
            .then(|| Suspensions::new(metadata.clone(), ephemeral.clone(), auth.clone()));
        let s3 = crate::s3::Options {
            region: config.region.clone(),
            cors_permissive: config.cors_permissive,
            journal: Some(journal),
        };
        let app = App {
            auth: auth.clone(),
            s3: crate::s3::service(objects.clone(), documents.clone(), s3),
            objects: objects.clone(),
            rest: api::router(Api {
                objects,
                metadata: metadata.clone(),
                identity: identity.clone(),
                sockets,
                documents,
                denials,
                ephemeral: ephemeral.clone(),
                registry: registry.clone(),
            }),
            identity: identity.clone(),
            trusted_proxies: config.trusted_proxies.clone(),
            crowd: config.crowd(),
            lookout: Lookout::new(
                metadata.clone(),
                ephemeral,
                if config.allow_no_redundancy { 1 } else { 2 },
            ),
            domains: config.domains.clone(),
            tls: secure.acceptor(Protocols::Http)?,
            metrics: Metrics::new(&registry)?,
        };
        let grpc_refused = counter(
            &registry,
            "cyxcloud_gateway_grpc_connections_refused_total",
            "Connections closed at once because their address had as many as it may have",
        )?;
        let grpc = Grpc {
            nodes,
            data,
            guests: Guests { crowd: config.crowd(), refused: grpc_refused },
            tls: if config.grpc_plaintext { None } else { secure.acceptor(Protocols::Grpc)? },
        };
        let metrics_refused = counter(
            &registry,
            "cyxcloud_gateway_metrics_connections_refused_total",
            "Connections for metrics closed at once because their address had as many as it may have",
        )?;
        let audit_kept = Duration::from_secs(u64::from(config.audit_days) * 24 * 3600);
        let chores = Chores {
            metadata: metadata.clone(),
            audit_kept,
            auth,
            identity,
            own,
            secure,
            suspensions,
            relay,
        };
        Ok(Self { metadata, app: Arc::new(app), grpc, metrics_refused, monitor, scribe, chores })
    }
}

impl Base {
    fn plane(&self) -> DataPlane {
        let config = cyxcloud_dataplane::Config {
            memory: self.config.memory,
            inline_max: self.config.inline_max,
            small_max: self.config.small_max,
            consent_to_no_redundancy: self.config.allow_no_redundancy,
            offline: self.config.timers.lifecycle().offline,
            key: self.key.clone(),
            ..cyxcloud_dataplane::Config::default()
        };
        let (metadata, policy) = (self.metadata.clone(), self.policy.clone());
        DataPlane::new(config, metadata, policy, self.master.clone(), &self.registry)
    }

    fn authenticator(&self, root: Option<RootCredentials>) -> Result<Authenticator, Error> {
        let config = &self.config;
        let jwt = config.jwt_secret.as_ref().map(|secret| JwtConfig {
            secret: secret.clone(),
            previous: config.jwt_secret_previous.clone(),
            issuer: config.jwt_issuer.clone(),
            audience: config.jwt_audience.clone(),
        });
        let (metadata, master) = (self.metadata.clone(), self.master.clone());
        let auth = Authenticator::new(metadata, master, jwt.clone(), config.region.clone(), root)
            .with_domains(config.domains.clone())
            .with_newcomer_quota(config.user_quota);
        let (Some(client), Some(jwt)) = (config.identity_service()?, jwt) else { return Ok(auth) };
        Ok(auth.with_identity_service(client, jwt, Duration::from_secs(config.cyxwiz_cache_secs)))
    }

    fn identity(&self, auth: Arc<Authenticator>) -> Identity {
        let config = &self.config;
        let binding = Binding { domain: config.auth_domain.clone(), chain: config.auth_chain.clone() };
        let config = identity::Config {
            binding,
            quota: Some(config.user_quota),
            signups_per_hour: config.signups_per_hour,
        };
        Identity::new(self.metadata.clone(), self.ephemeral.clone(), auth, self.master.clone(), config)
    }

    fn events(&self) -> Result<(Events, Option<Relay>), Error> {
        if self.config.redis_url.is_none() {
            return Ok((Events::new(&self.registry)?, None));
        }
        let (events, relay) = Events::among_gateways(&self.registry, self.ephemeral.clone())?;
        Ok((events, Some(relay)))
    }

    fn objects(&self, plane: DataPlane) -> ObjectService {
        let config = objects::Config {
            inline_max: self.config.inline_max,
            buckets_max: self.config.buckets_per_owner_max,
            uploads_max: self.config.uploads_per_owner_max,
            offline: self.config.timers.lifecycle().offline,
            ..objects::Config::default()
        };
        let secrets = OwnerSecrets::new(self.metadata.clone(), self.master.clone());
        ObjectService::new(self.metadata.clone(), plane, secrets, config)
    }

    fn monitor(&self, plane: DataPlane) -> Result<Monitor, Error> {
        let (metadata, ephemeral) = (self.metadata.clone(), self.ephemeral.clone());
        Ok(Monitor::new(metadata, plane, ephemeral, self.config.timers.lifecycle(), &self.registry)?)
    }

    fn nodes(&self, plane: DataPlane, auth: Arc<Authenticator>, monitor: &Monitor) -> Result<NodeApi, Error> {
        let config = &self.config;
        let other_identities = counter(
            &self.registry,
            "cyxcloud_gateway_node_identity_mismatches_total",
            "Nodes refused because who answered at their address was somebody else",
        )?;
        let operators = Operators { accounts: auth.clone(), nodes_max: config.nodes_per_operator_max };
        Ok(NodeApi::new(
            self.metadata.clone(),
            self.ephemeral.clone(),
            Caller { policy: self.policy.clone(), key: self.key.clone(), other_identities },
            Heartbeats::start(self.metadata.clone(), monitor.listening()),
            config.timers.heartbeat_interval(),
            config.node_format,
            plane,
            config.requires_node_auth().then_some(auth),
            config.wants_operators().then_some(operators),
        ))
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let counter = IntCounter::new(name, help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

async fn open_ephemeral(url: Option<&SecretString>) -> Result<Arc<dyn Ephemeral>, Error> {
    match url {
        Some(url) => Ok(Arc::new(Redis::connect(url.expose_secret()).await?)),
        None => Ok(Arc::new(InProcess::default())),
    }
}

/// Refuses a master key other than the one the database began with: its seals could not be opened.
async fn open_master(config: &Config, metadata: &dyn MetadataStore) -> Result<MasterKey, Error> {
    let master = config.master_key()?.unwrap_or_else(|| MasterKey::from_bytes(rand::random()));
    let check = master.check_value();
    if metadata.keep_constant(MASTER_KEY_CHECK, &check).await? != check {
        return Err(Error::WrongMasterKey);
    }
    Ok(master)
}

/// The root user, if the configuration names one.
async fn ensure_root(
    config: &Config,
    metadata: &dyn MetadataStore,
    master: &MasterKey,
) -> Result<Option<RootCredentials>, Error> {
    let (Some(access_key), Some(secret)) = (&config.root_access_key, &config.root_secret_key) else {
        warn!("no CYXCLOUD_ROOT_ACCESS_KEY: only access keys in the database and tokens work");
        return Ok(None);
    };
    let wrapped_secret = OwnerSecrets::wrap_new(master, ROOT_OWNER);
    let root = Owner {
        id: ROOT_OWNER,
        username: Some("root".to_owned()),
        email: None,
        wallet_address: None,
        admin: true,
        storage_quota: None,
        wrapped_secret,
        created_at: cyxcloud_core::Timestamp::default(),
    };
    metadata.ensure_owner(&root).await?;
    Ok(Some(RootCredentials { access_key: access_key.clone(), secret: secret.clone(), owner: ROOT_OWNER }))
}

/// Our own servers, which no node may claim to be.
fn own_servers(config: &Config) -> Result<Vec<OwnServer>, Error> {
    let mut own = Vec::new();
    if let Some(url) = &config.database_url
        && let Some((host, port)) = postgres::endpoint(url.expose_secret())?
    {
        own.push(OwnServer { variable: "DATABASE_URL", host, port });
    }
    if let Some(url) = &config.redis_url
        && let Some((host, port)) = Redis::endpoint(url.expose_secret())?
    {
        own.push(OwnServer { variable: "REDIS_URL", host, port });
    }
    Ok(own)
}

/// The certificate of both ports, if there is one.
struct Secure {
    certificate: Option<Arc<ServerCertificate>>,
    metrics: cyxcloud_tls::Metrics,
}

impl Secure {
    fn load(config: &Config, registry: &Registry) -> Result<Self, Error> {
        let metrics = cyxcloud_tls::Metrics::new(registry)?;
        Ok(Self { certificate: config.tls.load(&metrics)?, metrics })
    }

    fn acceptor(&self, protocols: Protocols) -> Result<Option<Acceptor>, TlsError> {
        let acceptor = |certificate: &Arc<ServerCertificate>| {
            Acceptor::new(certificate.clone(), protocols, self.metrics.clone())
        };
        self.certificate.as_ref().map(acceptor).transpose()
    }

    async fn keep_fresh(self) {
        let Some(certificate) = self.certificate else { return };
        if let Err(error) = certificate.keep_fresh().await {
            warn!(
                error = &error as &dyn std::error::Error,
                "a new certificate will be seen at the next start only"
            );
        }
    }
}

/// Drops what has expired, now and then.
async fn purge(metadata: &dyn MetadataStore, audit_kept: Duration) {
    const EVERY: Duration = Duration::from_secs(600);
    const AT_ONCE: usize = 1000;
    loop {
        match metadata.purge_identity(audit_kept, AT_ONCE).await {
            // There may be more.
            Ok(gone) if gone >= AT_ONCE => {}
            Ok(_) => tokio::time::sleep(EVERY).await,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "what has expired could not be dropped");
                tokio::time::sleep(EVERY).await;
            }
        }
    }
}

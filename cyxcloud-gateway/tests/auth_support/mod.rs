//! A gateway's door with a few keys, and clients that knock.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::sync::Arc;

use bytes::Bytes;
use cyxcloud_core::seal::MasterKey;
use cyxcloud_core::sigv4::{RequestToSign, Signer};
use cyxcloud_core::{OwnerId, Timestamp};
use cyxcloud_gateway::auth::{
    AuthError, Authenticator, JwtConfig, Mount, RootCredentials, access_key_context,
};
use cyxcloud_gateway::body::S3Body;
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::identity::model::ApiKey;
use cyxcloud_metadata::model::Owner;
use cyxcloud_metadata::sqlite::{SqliteConfig, SqliteStore};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// Amazon's example key, root's here.
pub(crate) const ROOT_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
pub(crate) const ROOT_SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
/// Ids such as the gateway makes.
pub(crate) const USER_KEY: &str = "CYXUSERUSERUSERUSERU";
pub(crate) const USER_SECRET: &str = "a secret of a user, 32 bytes or so";
pub(crate) const REVOKED_KEY: &str = "CYXREVOKEDREVOKEDREV";
pub(crate) const EXPIRED_KEY: &str = "CYXEXPIREDEXPIREDEXP";
pub(crate) const ORPHAN_KEY: &str = "CYXORPHANORPHANORPHA";
pub(crate) const JWT_SECRET: &str = "0123456789abcdef0123456789abcdef-jwt";
pub(crate) const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

pub(crate) fn root() -> OwnerId {
    OwnerId::from_random([1; 16])
}

pub(crate) fn user() -> OwnerId {
    OwnerId::from_random([2; 16])
}

/// Friday, 24 May 2013, midnight: when Amazon's examples happen.
pub(crate) fn amazon_time() -> Timestamp {
    Timestamp::from_unix_millis(1_369_353_600_000)
}

pub(crate) const AMAZON_DATE: &str = "20130524T000000Z";

pub(crate) struct Door {
    pub(crate) auth: Authenticator,
    pub(crate) metadata: Arc<dyn MetadataStore>,
    pub(crate) master: MasterKey,
    pub(crate) jwt: JwtConfig,
}

pub(crate) type Sent = Request<Full<Bytes>>;

impl Door {
    pub(crate) async fn open() -> Self {
        let metadata: Arc<dyn MetadataStore> =
            Arc::new(SqliteStore::open(&SqliteConfig::Memory).expect("opens in memory"));
        let master = MasterKey::from_bytes([7; 32]);
        for (id, name, admin) in [(root(), "root", true), (user(), "user", false)] {
            let owner = Owner {
                id,
                username: Some(name.to_owned()),
                email: None,
                wallet_address: None,
                admin,
                storage_quota: None,
                wrapped_secret: vec![0; 60],
                created_at: Timestamp::default(),
            };
            metadata.ensure_owner(&owner).await.expect("made");
        }
        let jwt = JwtConfig {
            previous: None,
            secret: JWT_SECRET.into(),
            issuer: "cyxwiz".to_owned(),
            audience: "cyxcloud".to_owned(),
        };
        let credentials =
            RootCredentials { access_key: ROOT_KEY.to_owned(), secret: ROOT_SECRET.into(), owner: root() };
        let auth = Authenticator::new(
            metadata.clone(),
            master.clone(),
            Some(jwt.clone()),
            "us-east-1".to_owned(),
            Some(credentials),
        )
        .with_domains(vec!["s3.amazonaws.com".to_owned(), "localhost".to_owned()]);
        let door = Self { auth, metadata, master, jwt };
        door.make_key(USER_KEY, None).await;
        door.make_key(REVOKED_KEY, None).await;
        door.revoke_key(REVOKED_KEY).await;
        door.make_key(EXPIRED_KEY, Some(Timestamp::from_unix_millis(1_369_353_599_999))).await;
        door
    }

    /// The user's, with the user's secret.
    pub(crate) async fn make_key(&self, id: &str, expires_at: Option<Timestamp>) {
        let key = ApiKey {
            id: id.to_owned(),
            owner: user(),
            name: String::new(),
            wrapped_secret: self.master.wrap(&access_key_context(id), USER_SECRET.as_bytes(), [3; 12]),
            buckets: None,
            prefixes: None,
            read_only: false,
            expires_at,
            made_by: None,
            created_at: Timestamp::default(),
            last_used_at: None,
            revoked_at: None,
        };
        self.metadata.create_api_key(&key, u32::MAX).await.expect("made");
    }

    pub(crate) async fn revoke_key(&self, id: &str) {
        assert!(self.metadata.revoke_api_key(user(), id).await.expect("revoked"));
    }

    /// Knocks at the time of Amazon's examples.
    pub(crate) async fn knock(&self, request: Sent, mount: Mount) -> Result<Request<S3Body>, AuthError> {
        self.auth.authenticate_at(request, mount, amazon_time()).await
    }

    /// The code of the refusal, of the head or of the body; `OK` if there is none.
    pub(crate) async fn verdict(&self, request: Sent, mount: Mount) -> &'static str {
        match self.knock(request, mount).await {
            Err(error) => error.code(),
            Ok(request) => match request.into_body().collect().await {
                Err(error) => error.code(),
                Ok(_) => "OK",
            },
        }
    }

    /// Claims of a token that opens the door at the time of Amazon's examples.
    pub(crate) fn claims(&self) -> Value {
        json!({
            "sub": user().to_string(), "wallet": "5xK4gM", "typ": "access", "iat": 1_369_353_590_u64,
            "exp": 1_369_357_190_u64, "jti": "a1", "iss": "cyxwiz", "aud": "cyxcloud",
        })
    }

    pub(crate) fn header(&self, algorithm: Algorithm) -> Header {
        Header { kid: Some(self.jwt.key_id()), ..Header::new(algorithm) }
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        jsonwebtoken::encode(
            &self.header(Algorithm::HS256),
            claims,
            &EncodingKey::from_secret(JWT_SECRET.as_bytes()),
        )
        .expect("encodes")
    }
}

/// Who signs.
pub(crate) fn signer(access_key: &str, secret_key: &str) -> Signer {
    Signer {
        access_key: access_key.to_owned(),
        secret_key: secret_key.to_owned(),
        region: "us-east-1".to_owned(),
        service: "s3".to_owned(),
    }
}

/// A request being written.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) method: &'static str,
    /// As sent.
    pub(crate) path: String,
    /// As sent, without `?`.
    pub(crate) query: String,
    /// Signed with the request.
    pub(crate) headers: Vec<(String, String)>,
    /// Added after signing.
    pub(crate) unsigned: Vec<(String, String)>,
    pub(crate) payload: String,
    pub(crate) body: Vec<u8>,
}

pub(crate) fn draft(method: &'static str, path: &str) -> Draft {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    Draft {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers: vec![("host".to_owned(), "127.0.0.1:8080".to_owned())],
        unsigned: Vec::new(),
        payload: "UNSIGNED-PAYLOAD".to_owned(),
        body: Vec::new(),
    }
}

impl Draft {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn host(mut self, host: &str) -> Self {
        self.headers[0].1 = host.to_owned();
        self
    }

    pub(crate) fn unsigned(mut self, name: &str, value: &str) -> Self {
        self.unsigned.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn payload(mut self, payload: &str) -> Self {
        payload.clone_into(&mut self.payload);
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    fn pairs(&self) -> Vec<(String, String)> {
        cyxcloud_core::sigv4::query_pairs(&self.query)
            .into_iter()
            .map(|(name, value)| {
                (String::from_utf8(name).expect("text"), String::from_utf8(value).expect("text"))
            })
            .collect()
    }

    /// Without credentials.
    pub(crate) fn bare(&self) -> Sent {
        let uri =
            if self.query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, self.query) };
        let mut builder = Request::builder().method(self.method).uri(uri);
        for (name, value) in self.headers.iter().chain(&self.unsigned) {
            builder = builder.header(name, value);
        }
        builder.body(Full::new(Bytes::from(self.body.clone()))).expect("a request")
    }

    /// With a signature in the header.
    pub(crate) fn sign(&self, signer: &Signer) -> Sent {
        self.sign_at(signer, AMAZON_DATE)
    }

    pub(crate) fn sign_at(&self, signer: &Signer, amz_date: &str) -> Sent {
        let pairs = self.pairs();
        let request = RequestToSign {
            method: self.method,
            raw_path: &self.path,
            query: &pairs,
            headers: &self.headers,
        };
        let added = signer.sign(&request, amz_date, &self.payload);
        let mut signed = self.clone();
        signed.headers.extend(added);
        signed.bare()
    }

    /// With a signature in the query.
    pub(crate) fn presign(&self, signer: &Signer, amz_date: &str, expires_secs: u32) -> Sent {
        let pairs = self.pairs();
        let request = RequestToSign {
            method: self.method,
            raw_path: &self.path,
            query: &pairs,
            headers: &self.headers,
        };
        let mut signed = self.clone();
        signed.query = signer.presign(&request, amz_date, expires_secs);
        signed.bare()
    }
}

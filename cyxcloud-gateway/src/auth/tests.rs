use cyxcloud_core::claims::TokenKind;
use cyxcloud_core::name::BucketName;
use proptest::prelude::*;

use super::query::{decode, parse, render};
use super::rewrite::plain_path;
use super::*;

#[test]
fn queries_are_read_in_one_way() {
    let pairs = parse(Some("a=1&b=x%20y%2Bz&flag&empty=&c=a+b&&d=%c3%a4")).expect("well formed");
    let expected = [("a", "1"), ("b", "x y+z"), ("flag", ""), ("empty", ""), ("c", "a+b"), ("d", "ä")];
    assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(render(pairs.iter()), "a=1&b=x%20y%2Bz&flag&empty&c=a%2Bb&d=%C3%A4");
    for bad in ["a=%", "a=%4", "a=%zz", "%ff=1", "a=%c3%28", "a=%+1"] {
        assert_eq!(parse(Some(bad)).expect_err("malformed").code(), "InvalidURI", "{bad}");
    }
}

#[test]
fn adv_20_paths_have_one_decoded_key() {
    let path = |raw, mount| plain_path(raw, mount, None);
    let s3 = Mount::Prefix("/s3");
    for (raw, mount, plain) in [
        ("/s3", s3, "/"),
        ("/s3/", s3, "/"),
        ("/s3/b/k", s3, "/b/k"),
        ("/b/k", Mount::Root, "/b/k"),
        ("/b/../c/%2e%2e/%2E%2E%2fk", Mount::Root, "/b/../c/../../k"),
        ("/b%2Fk", Mount::Root, "/b/k"),
        ("/b//k//", Mount::Root, "/b//k//"),
        ("/b/..%5Ck", Mount::Root, "/b/..%5Ck"),
        ("/b/%00", Mount::Root, "/b/%00"),
        ("/b/a+b c(1)'!*", Mount::Root, "/b/a%2Bb%20c%281%29%27%21%2A"),
        ("/b/%c3%a4%25", Mount::Root, "/b/%C3%A4%25"),
        ("/s3/../b", s3, "/../b"),
        ("/s3//b", s3, "//b"),
        ("/%73%33%2fb/k", s3, "/b/k"),
        ("/api/v1/x%252f%c3%a4", Mount::Plain, "/api/v1/x%252f%C3%A4"),
    ] {
        assert_eq!(path(raw, mount).as_deref(), Ok(plain), "{raw}");
    }
    // Overlong, surrogate, cut and stray encodings.
    for raw in ["/b/%c0%af", "/b/%ed%a0%80", "/b/%f0%9f", "/b/%", "/b/%2", "/b/%2g"] {
        assert_eq!(path(raw, Mount::Root).expect_err("malformed").code(), "InvalidURI", "{raw}");
    }
    assert!(path("/s3bucket/k", s3).is_err());
    let bucket: BucketName = "my.bucket".parse().expect("valid");
    assert_eq!(plain_path("/k%2F1", Mount::Root, Some(&bucket)).as_deref(), Ok("/my.bucket/k/1"));
    assert_eq!(plain_path("/s3", s3, Some(&bucket)).as_deref(), Ok("/my.bucket/"));
}

#[test]
fn hosts_name_buckets_under_base_domains_only() {
    let domains = ["s3.localhost".to_owned(), "localhost".to_owned(), "Example.COM".to_owned()];
    for (host, bucket) in [
        ("localhost", None),
        ("localhost:8080", None),
        ("s3.localhost:8080", None),
        ("photos.localhost", Some("photos")),
        ("photos.s3.localhost:8080", Some("photos")),
        ("my.photos.localhost:8080", Some("my.photos")),
        ("PHOTOS.example.com.", Some("photos")),
        ("api.example.com", None),
        ("notlocalhost", None),
        (".localhost", None),
        ("a_b.localhost", None),
        ("127.0.0.1:8080", None),
        ("[::1]:8080", None),
        ("", None),
        ("elsewhere.org", None),
    ] {
        let found = virtual_host_bucket(host, &domains);
        assert_eq!(found.as_ref().map(BucketName::as_str), bucket, "{host}");
    }
}

#[test]
fn errors_are_xml_that_cannot_be_broken() {
    let error = AuthError::denied("a <b> & \"c\" \u{1}").with("Region", "<r>");
    let response = error.to_xml_response("id-1");
    assert_eq!(response.status(), 403);
    assert_eq!(response.headers()["x-amz-request-id"], "id-1");
    let text = std::str::from_utf8(response.body()).expect("text");
    assert!(
        text.contains("<Message>a &lt;b&gt; &amp; &quot;c&quot; </Message><Region>&lt;r&gt;</Region>"),
        "{text}"
    );
}

proptest! {
    #[test]
    fn whatever_is_decoded_is_encoded_back_to_the_same_key(raw in "/([a-z/+.~]|%[0-9a-fA-F]{2}){0,40}") {
        if let Ok(plain) = plain_path(&raw, Mount::Root, None) {
            prop_assert_eq!(decode(&plain).expect("ours"), decode(&raw).expect("was decoded"));
            prop_assert_eq!(plain_path(&plain, Mount::Root, None).expect("ours"), plain);
        }
    }
}

/// Makes somebody who has nothing but a secret, and perhaps a name.
async fn ensure_owner(
    metadata: &dyn MetadataStore,
    master: &MasterKey,
    id: OwnerId,
    username: Option<String>,
) {
    let owner = cyxcloud_metadata::model::Owner {
        id,
        username,
        email: None,
        wallet_address: None,
        admin: false,
        storage_quota: None,
        wrapped_secret: crate::objects::OwnerSecrets::wrap_new(master, id),
        created_at: Timestamp::default(),
    };
    metadata.ensure_owner(&owner).await.expect("made");
}

/// With news missing, what was remembered as good is asked for each time; with news again, nothing of before counts.
#[tokio::test]
async fn what_is_ended_elsewhere_is_refused_at_once_while_nobody_tells_us() {
    use cyxcloud_metadata::identity::model::NewSession;
    use cyxcloud_metadata::sqlite::{SqliteConfig, SqliteStore};

    let metadata: Arc<dyn MetadataStore> = Arc::new(SqliteStore::open(&SqliteConfig::Memory).expect("opens"));
    let master = MasterKey::from_bytes([3; 32]);
    let (issuer, audience) = ("i".to_owned(), "a".to_owned());
    let jwt = JwtConfig { secret: "k".repeat(32).into(), previous: None, issuer, audience };
    let auth = Authenticator::new(metadata.clone(), master.clone(), Some(jwt), "us-east-1".to_owned(), None);
    let id = OwnerId::from_random(rand::random());
    ensure_owner(&*metadata, &master, id, Some(id.to_string())).await;
    let expires_at = now().plus(Duration::from_secs(3_600));
    for heard in [false, true] {
        let session = Uuid::new_v4();
        let new = NewSession { id: session, owner: id, refresh: "r".to_owned(), expires_at };
        assert!(metadata.begin_session(&new).await.expect("begun"));
        let token = Token {
            owner: id,
            kind: TokenKind::Access,
            id: Uuid::new_v4().to_string(),
            session: Some(session),
            key: None,
            version: Some(0),
            issued_at: now(),
            expires_at,
        };
        let token = auth.issue(&token, None, now()).expect("issued");
        let holds = async || auth.token(secrecy::ExposeSecret::expose_secret(&token), now()).await.is_ok();
        assert!(holds().await);
        if !heard {
            auth.hears(false);
            assert!(holds().await);
        }
        metadata.end_session(session).await.expect("ended");
        if heard {
            assert!(holds().await, "remembered: without this the test says nothing");
            auth.hears(true);
        }
        assert!(!holds().await, "{heard}");
        auth.hears(true);
    }
}

/// Answers whoever asks with these words.
async fn identity_service(answer: &'static str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (length, head) = (answer.len(), "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(format!("{head}: {length}\r\n\r\n{answer}").as_bytes()).await;
        }
    });
    url
}

/// A gateway that was just started knows nothing of what the identity service has ended, and its user is in the store.
#[tokio::test]
async fn the_first_token_after_a_start_waits_for_what_the_identity_service_says() {
    use cyxcloud_metadata::sqlite::{SqliteConfig, SqliteStore};

    let nobody = "http://127.0.0.1:1".to_owned();
    let active = r#"{"storage_quota":null,"status":"active","tokens_after":5}"#;
    let suspended = r#"{"storage_quota":null,"status":"suspended"}"#;
    for (url, issued_secs, opens) in [
        (identity_service(active).await, 4, false),
        (identity_service(active).await, 5, true),
        (identity_service(suspended).await, 5, false),
        (nobody, 4, true),
    ] {
        let metadata: Arc<dyn MetadataStore> =
            Arc::new(SqliteStore::open(&SqliteConfig::Memory).expect("opens"));
        let master = MasterKey::from_bytes([3; 32]);
        let (issuer, audience) = ("i".to_owned(), "a".to_owned());
        let jwt = JwtConfig { secret: "k".repeat(32).into(), previous: None, issuer, audience };
        let client = cyxwiz_client::Client::new(&url, "test").expect("an address");
        let region = "us-east-1".to_owned();
        let auth = Authenticator::new(metadata.clone(), master.clone(), Some(jwt.clone()), region, None)
            .with_identity_service(client, jwt, Duration::from_secs(60));
        let id = OwnerId::from_random([5; 16]);
        ensure_owner(&*metadata, &master, id, None).await;
        let token = Token {
            owner: id,
            kind: TokenKind::Access,
            id: Uuid::new_v4().to_string(),
            session: None,
            key: None,
            version: None,
            issued_at: Timestamp::from_unix_millis(issued_secs * 1_000),
            expires_at: now().plus(Duration::from_secs(3_600)),
        };
        let answer = auth.holder(token, now()).await;
        assert_eq!(answer.is_ok(), opens, "{url} {issued_secs} {answer:?}");
    }
}

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

fn key(n: u8) -> NodeKey {
    NodeKey::from_seed([n; 32])
}

/// What both ends see of a handshake: the client's error or success, and the key that the server learned.
async fn shake(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
) -> (std::io::Result<()>, Result<Option<PeerKey>, std::io::Error>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepts");
        let mut stream = TlsAcceptor::from(server).accept(stream).await?;
        stream.write_all(b"hello").await?;
        let _ = stream.shutdown().await;
        Ok(stream.get_ref().1.peer_certificates().and_then(PeerKey::of_chain))
    });
    let stream = TcpStream::connect(address).await.expect("connects");
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    let dialled = async {
        let mut stream = TlsConnector::from(client).connect(name, stream).await?;
        // In TLS 1.3 a server refuses a client's certificate after the client thinks that all is well.
        let mut greeting = [0; 5];
        stream.read_exact(&mut greeting).await.map(|_| ())
    };
    let dialled = dialled.await;
    (dialled, serving.await.expect("no panic"))
}

/// A server with a certificate of the caller's making.
fn showing(
    certified: CertifiedKey,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ServerConfig> {
    let config = ServerConfig::builder_with_provider(crate::provider())
        .with_protocol_versions(versions)
        .expect("built in")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    Arc::new(config)
}

fn ecdsa() -> CertifiedKey {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate");
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signer = crate::provider().key_provider.load_private_key(der).expect("a signer");
    CertifiedKey::new(vec![certificate.der().clone()], signer)
}

fn without_identity(pinned: [u8; 32]) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(crate::provider())
        .with_protocol_versions(&[&TLS13])
        .expect("built in")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(PeerKey(pinned))))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

#[tokio::test]
async fn the_pinned_key_is_let_through_and_both_ends_know_each_other() {
    let (client, server) = shake(server_config(&key(1)), client_config(&key(2), key(1).public())).await;
    client.expect("the right key");
    assert_eq!(server.expect("shaken"), Some(PeerKey(key(2).public())));
}

#[tokio::test]
async fn adv_26_another_key_is_refused_by_name() {
    let (client, server) = shake(server_config(&key(3)), client_config(&key(2), key(1).public())).await;
    let error = client.expect_err("another key");
    assert!(is_other_identity(&error), "{error:?}");
    let said = error.to_string();
    assert!(said.contains(&PeerKey(key(3).public()).to_string()), "{said}");
    assert!(said.contains(&PeerKey(key(1).public()).to_string()), "{said}");
    server.expect_err("the client cut it");
}

#[tokio::test]
async fn a_certificate_that_is_not_of_an_ed25519_key_is_refused() {
    let (client, _) = shake(showing(ecdsa(), &[&TLS13]), client_config(&key(2), key(1).public())).await;
    // The server has no signature that we would take, or shows what we would not.
    client.expect_err("not Ed25519");
    assert!(PeerKey::of_chain(&ecdsa().cert).is_none());
}

#[tokio::test]
async fn adv_26_a_stolen_certificate_does_not_help_without_its_key() {
    let stolen = CertifiedKey::new(certified(&key(1)).cert, certified(&key(3)).key);
    let (client, _) = shake(showing(stolen, &[&TLS13]), client_config(&key(2), key(1).public())).await;
    client.expect_err("the signature is another's");
}

#[tokio::test]
async fn dates_and_names_mean_nothing() {
    let mut params = rcgen::CertificateParams::new(vec!["elsewhere.example".to_owned()]).expect("a name");
    params.not_before = rcgen::date_time_ymd(1999, 1, 1);
    params.not_after = rcgen::date_time_ymd(2000, 1, 1);
    params.serial_number = Some(7u64.into());
    let own = key(1);
    let expired = params.self_signed(&Signer { key: &own, public: own.public() }).expect("a certificate");
    let shown = CertifiedKey::new(vec![expired.der().clone()], certified(&own).key);
    let (client, _) = shake(showing(shown, &[&TLS13]), client_config(&key(2), own.public())).await;
    client.expect("the key is the right one");
}

#[tokio::test]
async fn tls_1_2_is_refused_at_both_ends() {
    let old = &[&rustls::version::TLS12];
    let (client, _) = shake(showing(certified(&key(1)), old), client_config(&key(2), key(1).public())).await;
    client.expect_err("the node is too old");
    let mut config = ClientConfig::builder_with_provider(crate::provider())
        .with_protocol_versions(old)
        .expect("built in")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(PeerKey(key(1).public()))))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (client, server) = shake(server_config(&key(1)), Arc::new(config)).await;
    client.expect_err("the client is too old");
    server.expect_err("the client is too old");
}

#[tokio::test]
async fn a_node_accepts_who_shows_nothing_and_knows_that_it_knows_nothing() {
    let (client, server) = shake(server_config(&key(1)), without_identity(key(1).public())).await;
    client.expect("anybody may come");
    assert_eq!(server.expect("shaken"), None);
}

#[tokio::test]
async fn a_node_refuses_a_client_that_shows_what_is_no_identity() {
    let mut config = Arc::unwrap_or_clone(client_config(&key(2), key(1).public()));
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(ecdsa()));
    let (client, server) = shake(server_config(&key(1)), Arc::new(config)).await;
    assert!(client.is_err() || server.is_err() || matches!(server, Ok(None)));
    // And one that shows another's certificate.
    let mut config = Arc::unwrap_or_clone(client_config(&key(2), key(1).public()));
    let stolen = CertifiedKey::new(certified(&key(3)).cert, certified(&key(2)).key);
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(stolen));
    let (client, server) = shake(server_config(&key(1)), Arc::new(config)).await;
    server.expect_err("the signature is another's");
    client.expect_err("cut");
}

#[test]
fn weak_keys_are_nobody() {
    let mut neutral = [0; 32];
    neutral[0] = 1;
    let own = key(1);
    let mut params = rcgen::CertificateParams::default();
    params.serial_number = Some(1u64.into());
    let weak = params.self_signed(&Signer { key: &own, public: neutral }).expect("a certificate");
    assert!(PeerKey::of_chain(&[weak.der().clone()]).is_none());
    assert_eq!(PeerKey::of_chain(&certified(&own).cert), Some(PeerKey(own.public())));
}

//! Wallets: proven by a signature over a text that is used once.

use ed25519_dalek::{Signer, SigningKey};
use serde_json::{Value, json};

use crate::server::{Server, Session};

struct Wallet(SigningKey);

impl Wallet {
    fn new(seed: u8) -> Self {
        Self(SigningKey::from_bytes(&[seed; 32]))
    }

    fn address(&self) -> String {
        bs58::encode(self.0.verifying_key().to_bytes()).into_string()
    }

    fn sign(&self, text: &str) -> String {
        bs58::encode(self.0.sign(text.as_bytes()).to_bytes()).into_string()
    }

    /// The answer to a challenge.
    fn answer(&self, challenge: &Value) -> Value {
        let signature = self.sign(challenge["challenge"].as_str().expect("a text"));
        json!({"wallet_address": self.address(), "signature": signature, "nonce": challenge["nonce"]})
    }
}

async fn challenge(server: &Server, session: &Session, wallet: &Wallet) -> Value {
    let body = json!({"wallet_address": wallet.address()});
    server.post("/api/wallets/challenge", &session.access, body).await.expect(200)
}

async fn verify(server: &Server, session: &Session, answer: Value) -> crate::server::Answer {
    server.post("/api/wallets/verify", &session.access, answer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_is_proven_and_stands_in_the_next_token() {
    let Some(server) = Server::start(&["--public-url", "https://id.example.org"]).await else { return };
    let (ann, wallet) = (server.register("ann").await, Wallet::new(1));
    assert_eq!(server.get("/api/wallets/me", &ann.access).await.expect(200)["verified"], false);
    let given = challenge(&server, &ann, &wallet).await;
    let text = given["challenge"].as_str().expect("a text");
    for line in
        ["CyxWiz wallet verification", "Service: https://id.example.org", &format!("Account: {}", ann.id)]
    {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    let body = verify(&server, &ann, wallet.answer(&given)).await.expect(200);
    assert_eq!((&body["wallet_address"], &body["verified"]), (&json!(wallet.address()), &json!(true)));
    assert_eq!(server.get("/api/wallets/me", &ann.access).await.expect(200), body);
    assert_eq!(
        server.get("/api/users/me", &ann.access).await.expect(200)["wallet_address"],
        wallet.address()
    );
    let next = server.refresh(&ann.refresh).await.expect(200);
    let payload = next["access_token"].as_str().and_then(|token| token.split('.').nth(1)).expect("a token");
    let payload = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, payload);
    let claims: Value = serde_json::from_slice(&payload.expect("base64")).expect("claims");
    assert_eq!(claims["wallet"], wallet.address());
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_23_a_challenge_is_answered_once_in_time_by_its_own() {
    let Some(server) = Server::start(&[]).await else { return };
    let (ann, bob, wallet, other) =
        (server.register("ann").await, server.register("bob").await, Wallet::new(1), Wallet::new(2));
    let given = challenge(&server, &ann, &wallet).await;
    // Another account's challenge is none.
    verify(&server, &bob, wallet.answer(&given)).await.refused(400, "invalid-request");
    // Another wallet's signature proves nothing, and takes the challenge with it.
    let mut forged = other.answer(&given);
    forged["wallet_address"] = json!(wallet.address());
    verify(&server, &ann, forged).await.refused(403, "bad-signature");
    verify(&server, &ann, wallet.answer(&given)).await.refused(400, "invalid-request");
    // For one wallet asked, by another answered.
    let given = challenge(&server, &ann, &wallet).await;
    verify(&server, &ann, other.answer(&given)).await.refused(403, "bad-signature");
    let given = challenge(&server, &ann, &wallet).await;
    server.database.run("UPDATE cyxwiz.wallet_challenges SET expires_at = now() - interval '1 s'").await;
    verify(&server, &ann, wallet.answer(&given)).await.refused(400, "invalid-request");
    // The fifth and last in this minute.
    let given = challenge(&server, &ann, &wallet).await;
    verify(&server, &ann, wallet.answer(&given)).await.expect(200);
    verify(&server, &ann, wallet.answer(&given)).await.refused(429, "too-many-requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_belongs_to_one_account() {
    let Some(server) = Server::start(&[]).await else { return };
    let (ann, bob, wallet) = (server.register("ann").await, server.register("bob").await, Wallet::new(1));
    let given = challenge(&server, &ann, &wallet).await;
    verify(&server, &ann, wallet.answer(&given)).await.expect(200);
    let given = challenge(&server, &bob, &wallet).await;
    verify(&server, &bob, wallet.answer(&given)).await.refused(409, "wallet-taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_24_weak_keys_and_malleable_signatures_prove_nothing() {
    let Some(server) = Server::start(&[]).await else { return };
    let ann = server.register("ann").await;
    for address in ["", "0OIl", &"1".repeat(31), &"1".repeat(45), "abc"] {
        let answer =
            server.post("/api/wallets/challenge", &ann.access, json!({"wallet_address": address})).await;
        answer.refused(400, "invalid-request");
    }
    // The neutral element: everything verifies under it where verification is lax.
    let mut small = [0_u8; 32];
    small[0] = 1;
    let address = bs58::encode(small).into_string();
    let given = server
        .post("/api/wallets/challenge", &ann.access, json!({"wallet_address": address}))
        .await
        .expect(200);
    let signature = bs58::encode([&small[..], &[0; 32]].concat()).into_string();
    let answer = json!({"wallet_address": address, "signature": signature, "nonce": given["nonce"]});
    verify(&server, &ann, answer).await.refused(403, "bad-signature");
    // S + L in place of S.
    let wallet = Wallet::new(3);
    let given = challenge(&server, &ann, &wallet).await;
    let mut answer = wallet.answer(&given);
    let mut bytes = bs58::decode(answer["signature"].as_str().expect("text")).into_vec().expect("base58");
    add_order(&mut bytes[32..]);
    answer["signature"] = json!(bs58::encode(&bytes).into_string());
    verify(&server, &ann, answer).await.refused(403, "bad-signature");
}

/// Adds the order of the group to a little-endian number.
fn add_order(number: &mut [u8]) {
    const ORDER: [u8; 16] =
        [0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14];
    let mut carry = 0_u16;
    for (at, byte) in number.iter_mut().enumerate() {
        let order = ORDER.get(at).copied().unwrap_or(if at == 31 { 0x10 } else { 0 });
        carry += u16::from(*byte) + u16::from(order);
        *byte = carry.to_le_bytes()[0];
        carry >>= 8;
    }
}

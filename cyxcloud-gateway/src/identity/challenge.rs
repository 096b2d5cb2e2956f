//! What a wallet signs to log in, and whether it did.
//!
//! A readable text that names the domain, the wallet, the chain and a nonce: a signature under it is good for nothing
//! else. Ed25519 is verified strictly: no key of small order, no signature with a second form.
//! Not here: that a nonce is used once ([`super`]).

use std::fmt;

use cyxcloud_core::Timestamp;
use ed25519_dalek::{Signature, VerifyingKey};

use crate::rest::rfc3339;

/// A Solana wallet: a point on the curve, written in base58.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wallet {
    address: String,
    key: VerifyingKey,
}

impl fmt::Display for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

impl Wallet {
    /// `None` if it is no address that could sign.
    pub fn parse(address: &str) -> Option<Self> {
        if !(32..=44).contains(&address.len()) {
            return None;
        }
        let bytes: [u8; 32] = bs58::decode(address).into_vec().ok()?.try_into().ok()?;
        let key = VerifyingKey::from_bytes(&bytes).ok().filter(|key| !key.is_weak())?;
        Some(Self { address: address.to_owned(), key })
    }

    /// As it is written.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether the wallet signed this text; the signature is in base58.
    pub fn signed(&self, text: &str, signature: &str) -> bool {
        // 64 bytes are 88 digits at most.
        let bytes = (signature.len() <= 88).then(|| bs58::decode(signature).into_vec().ok()).flatten();
        let bytes: Option<[u8; 64]> = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.is_some_and(|bytes| {
            self.key.verify_strict(text.as_bytes(), &Signature::from_bytes(&bytes)).is_ok()
        })
    }
}

/// What a signature is bound to beside the wallet and the nonce.
#[derive(Clone, Debug)]
pub struct Binding {
    /// The name under which people know this service.
    pub domain: String,
    /// The chain that the wallet belongs to.
    pub chain: String,
}

impl Binding {
    /// The text to sign.
    pub fn challenge(&self, wallet: &Wallet, nonce: &str, issued: Timestamp, expires: Timestamp) -> String {
        let (issued, expires) = (rfc3339(issued), rfc3339(expires));
        let Self { domain, chain } = self;
        format!(
            "CyxCloud Auth\nWallet: {wallet}\nNonce: {nonce}\nTime: {issued}\nExpires: {expires}\n\
             Domain: {domain}\nChain: {chain}"
        )
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};

    use super::*;

    fn wallet(seed: u8) -> (SigningKey, Wallet) {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let address = bs58::encode(key.verifying_key().as_bytes()).into_string();
        (key, Wallet::parse(&address).expect("an address"))
    }

    #[test]
    fn only_the_wallets_own_signature_of_the_very_text_holds() {
        let (key, wallet) = wallet(1);
        let (other, _) = self::wallet(2);
        let sign =
            |key: &SigningKey, text: &str| bs58::encode(key.sign(text.as_bytes()).to_bytes()).into_string();
        assert!(wallet.signed("text", &sign(&key, "text")));
        assert!(!wallet.signed("text", &sign(&key, "text ")));
        assert!(!wallet.signed("text", &sign(&other, "text")));
        for junk in ["", "0OIl", &"1".repeat(64), &"z".repeat(200)] {
            assert!(!wallet.signed("text", junk), "{junk}");
        }
    }

    /// A second form of the same signature, with the group's order added to S.
    #[test]
    fn adv_24_a_malleable_signature_is_refused() {
        const ORDER: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let (key, wallet) = wallet(3);
        let mut bytes = key.sign(b"text").to_bytes();
        let mut carry = 0u16;
        for (byte, more) in bytes[32..].iter_mut().zip(ORDER) {
            let sum = u16::from(*byte) + u16::from(more) + carry;
            *byte = (sum & 0xff) as u8;
            carry = sum >> 8;
        }
        assert!(!wallet.signed("text", &bs58::encode(bytes).into_string()));
    }

    #[test]
    fn adv_24_keys_of_small_order_and_other_texts_are_no_wallets() {
        let mut small = [0u8; 32];
        small[0] = 1;
        for bytes in [small, [0; 32]] {
            assert_eq!(Wallet::parse(&bs58::encode(bytes).into_string()), None, "{bytes:?}");
        }
        for text in ["", "short", &"1".repeat(45), "0OIl0OIl0OIl0OIl0OIl0OIl0OIl0OIl0OIl"] {
            assert_eq!(Wallet::parse(text), None, "{text}");
        }
    }

    #[test]
    fn adv_23_the_text_is_bound_to_domain_wallet_chain_and_nonce() {
        let (_, one) = wallet(1);
        let (_, two) = wallet(2);
        let binding = |domain: &str, chain: &str| Binding { domain: domain.into(), chain: chain.into() };
        let text = |binding: &Binding, wallet: &Wallet, nonce: &str| {
            binding.challenge(wallet, nonce, Timestamp::default(), Timestamp::from_unix_millis(300_000))
        };
        let ours = binding("a.example", "solana:mainnet");
        let first = text(&ours, &one, "n1");
        assert!(
            first.starts_with(&format!("CyxCloud Auth\nWallet: {one}\nNonce: n1\nTime: 1970-01-01T00:00:00"))
        );
        for other in [
            text(&ours, &two, "n1"),
            text(&ours, &one, "n2"),
            text(&binding("b.example", "solana:mainnet"), &one, "n1"),
            text(&binding("a.example", "solana:devnet"), &one, "n1"),
        ] {
            assert_ne!(first, other);
        }
    }
}

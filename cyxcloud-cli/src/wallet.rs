//! Solana wallets as files: a JSON array of 64 numbers, the seed and then the public key.
//!
//! A wallet signs log-ins that were judged ([`crate::challenge`]), and nothing else: what could be a transaction is not
//! signed.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signer, SigningKey};

use crate::challenge::LogIn;
use crate::private;
use crate::progress::Output;

/// Longest keypair file; one has some 230 characters.
const FILE_MAX: u64 = 4 << 10;

/// A file that is no wallet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read the keypair file {}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error(
        "{} is not a Solana keypair file ({reason}); it holds a JSON array of 64 numbers, as `solana-keygen new` writes it",
        path.display()
    )]
    NotAKeypair { path: PathBuf, reason: &'static str },
    #[error("cannot make the wallet {}: {reason}; name a file that does not exist", path.display())]
    Unwritable { path: PathBuf, reason: String },
}

/// A wallet; does not print.
pub(crate) struct Wallet(SigningKey);

impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wallet({})", self.address())
    }
}

impl Wallet {
    /// Reads a keypair file.
    pub(crate) fn read(path: &Path, output: &Output) -> Result<Self, Error> {
        let unreadable =
            |error: std::io::Error| Error::Unreadable { path: path.to_owned(), reason: error.to_string() };
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        if metadata.len() > FILE_MAX {
            return Err(Error::NotAKeypair { path: path.to_owned(), reason: "it is too long" });
        }
        if let Some(warning) = private::warning(path) {
            output.note(&warning);
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text).map_err(|reason| Error::NotAKeypair { path: path.to_owned(), reason })
    }

    /// Makes a wallet from 32 random bytes and writes it to a file that did not exist, for its owner only.
    pub(crate) fn make(path: &Path, seed: [u8; 32]) -> Result<Self, Error> {
        let unwritable =
            |error: std::io::Error| Error::Unwritable { path: path.to_owned(), reason: error.to_string() };
        let wallet = Self(SigningKey::from_bytes(&seed));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(unwritable)?;
        file.write_all(wallet.text().as_bytes()).and_then(|()| file.sync_all()).map_err(unwritable)?;
        Ok(wallet)
    }

    fn text(&self) -> String {
        let numbers: Vec<String> = self.0.to_keypair_bytes().iter().map(u8::to_string).collect();
        format!("[{}]", numbers.join(","))
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let numbers: Vec<u8> =
            serde_json::from_str(text).map_err(|_| "it is not a JSON array of numbers below 256")?;
        let bytes: [u8; 64] = numbers.try_into().map_err(|_| "it has not 64 numbers")?;
        let key = SigningKey::from_keypair_bytes(&bytes);
        key.map(Self).map_err(|_| "its second half is not the public key of its first")
    }

    /// The public key in Base58.
    pub(crate) fn address(&self) -> String {
        bs58::encode(self.0.verifying_key().to_bytes()).into_string()
    }

    /// The signature in Base58.
    pub(crate) fn answer(&self, log_in: &LogIn<'_>) -> String {
        bs58::encode(self.0.sign(log_in.text().as_bytes()).to_bytes()).into_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::challenge::Asked;

    #[test]
    fn a_wallet_is_kept_and_found_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("id.json");
        let made = Wallet::make(&path, [7; 32]).expect("made");
        let text = std::fs::read_to_string(&path).expect("read");
        assert!(text.starts_with("[7,7,7,7") && text.split(',').count() == 64, "{text}");
        assert_eq!(Wallet::read(&path, &Output::new(false)).expect("read").address(), made.address());
        assert!(matches!(Wallet::make(&path, [8; 32]), Err(Error::Unwritable { .. })));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn files_that_are_no_wallets_are_refused() {
        let mut other = [9; 64];
        other[..32].copy_from_slice(&[7; 32]);
        let numbers = |bytes: &[u8]| format!("{bytes:?}");
        for text in ["", "{}", "[1,2,3]", "\"abc\"", &numbers(&[7; 63]), &numbers(&[7; 65]), &numbers(&other)]
        {
            assert!(Wallet::parse(text).is_err(), "{text}");
        }
        assert!(Wallet::parse(&"[1.5]".repeat(64)).is_err());
        let directory = tempfile::tempdir().expect("a directory");
        assert!(Wallet::read(directory.path(), &Output::new(false)).is_err());
    }

    #[test]
    fn a_log_in_is_signed_as_it_is() {
        let wallet = Wallet(SigningKey::from_bytes(&[7; 32]));
        let address = wallet.address();
        let text = format!(
            "CyxCloud Auth\nWallet: {address}\nNonce: abc\nTime: 2030-01-01T00:00:00Z\n\
             Expires: 2030-01-01T00:05:00Z\nDomain: h\nChain: solana:mainnet"
        );
        let gateway = "http://h:8080".parse().expect("a URL");
        let asked = Asked { gateway: &gateway, known_as: None, wallet: &address, nonce: "abc" };
        let log_in = LogIn::accept(&text, &asked).expect("a log-in");
        let signature = bs58::decode(wallet.answer(&log_in)).into_vec().expect("base58");
        let signature = ed25519_dalek::Signature::from_slice(&signature).expect("64 bytes");
        wallet.0.verifying_key().verify_strict(text.as_bytes(), &signature).expect("ours");
    }
}

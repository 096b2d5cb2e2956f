//! Passwords: hashed with Argon2id on threads of their own, as many at a time as there are processors.
//!
//! A check takes as long whether the account exists or not: for nobody, a hash of nothing in particular is checked.
//! Waiting is bounded as well; whoever comes after is told to come back.

use std::fmt;
use std::sync::Arc;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{self, PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;

/// OWASP Password Storage Cheat Sheet, Argon2id: "a minimum configuration of 19 MiB of memory, an iteration count of 2,
/// and 1 degree of parallelism"; <https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html>.
const MEMORY_KIB: u32 = 19 << 10;
const ITERATIONS: u32 = 2;
const LANES: u32 = 1;
/// Checks that may wait for a processor.
const WAITING_MAX: usize = 64;

/// Fewest characters of a new password.
pub(crate) const CHARS_MIN: usize = 12;
/// Most bytes of a password; more says nothing more.
pub(crate) const BYTES_MAX: usize = 1024;

/// Why a password was not hashed.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// Too many wait already.
    #[error("too many passwords wait to be hashed")]
    Busy,
    /// Argon2 refused.
    #[error("argon2")]
    Argon2(#[source] password_hash::Error),
    /// The thread ended without an answer.
    #[error("the hashing thread stopped")]
    Stopped,
}

/// Hashes and checks.
pub(crate) struct Passwords {
    argon2: Argon2<'static>,
    processors: Arc<Semaphore>,
    waiting: Semaphore,
    /// What is checked for accounts that do not exist.
    nobody: String,
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passwords")
    }
}

impl Passwords {
    pub(crate) fn new() -> Result<Self, HashError> {
        let params = Params::new(MEMORY_KIB, ITERATIONS, LANES, None)
            .map_err(|_| HashError::Argon2(password_hash::Error::ParamsInvalid))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let nobody = hash(&argon2, &rand::random::<[u8; 32]>())?;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (processors, waiting) = (Arc::new(Semaphore::new(processors)), Semaphore::new(WAITING_MAX));
        Ok(Self { argon2, processors, waiting, nobody })
    }

    /// A PHC string to keep.
    pub(crate) async fn hash(&self, password: SecretString) -> Result<String, HashError> {
        self.compute(move |argon2| hash(argon2, password.expose_secret().as_bytes())).await?
    }

    /// Whether it is the password; never for nobody, after as long.
    pub(crate) async fn verify(&self, password: SecretString, kept: Option<&str>) -> Result<bool, HashError> {
        let somebody = kept.is_some();
        let kept = kept.unwrap_or(&self.nobody).to_owned();
        let right = self.compute(move |argon2| verify(argon2, &password, &kept)).await??;
        Ok(right && somebody)
    }

    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Argon2<'static>) -> T + Send + 'static,
    ) -> Result<T, HashError> {
        let _place = self.waiting.try_acquire().map_err(|_| HashError::Busy)?;
        let processor = self.processors.clone().acquire_owned().await.map_err(|_| HashError::Stopped)?;
        let argon2 = self.argon2.clone();
        // The thread keeps its permit to the end, also when the request has gone.
        let thread = tokio::task::spawn_blocking(move || {
            let _processor = processor;
            work(&argon2)
        });
        thread.await.map_err(|_| HashError::Stopped)
    }
}

fn hash(argon2: &Argon2<'_>, password: &[u8]) -> Result<String, HashError> {
    let salt: [u8; 16] = rand::random();
    let hash: PasswordHash = argon2.hash_password_with_salt(password, &salt).map_err(HashError::Argon2)?;
    Ok(hash.to_string())
}

/// By the parameters that the kept hash names.
fn verify(argon2: &Argon2<'_>, password: &SecretString, kept: &str) -> Result<bool, HashError> {
    let kept =
        PasswordHash::new(kept).map_err(|_| HashError::Argon2(password_hash::Error::EncodingInvalid))?;
    match argon2.verify_password(password.expose_secret().as_bytes(), &kept) {
        Ok(()) => Ok(true),
        Err(password_hash::Error::PasswordInvalid) => Ok(false),
        Err(error) => Err(HashError::Argon2(error)),
    }
}

/// What is wrong with a new password, if anything.
pub(crate) fn check(password: &SecretString) -> Result<(), String> {
    let text = password.expose_secret();
    if text.chars().count() < CHARS_MIN {
        return Err(format!("the password needs {CHARS_MIN} characters or more"));
    }
    if text.len() > BYTES_MAX {
        return Err(format!("the password has more than {BYTES_MAX} bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_password_is_the_password() {
        let passwords = Passwords::new().expect("parameters");
        let secret = |text: &str| SecretString::from(text);
        let kept = passwords.hash(secret("correct horse")).await.expect("hashes");
        assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{kept}");
        assert!(passwords.verify(secret("correct horse"), Some(&kept)).await.expect("checks"));
        assert!(!passwords.verify(secret("correct horsf"), Some(&kept)).await.expect("checks"));
        assert!(!passwords.verify(secret(""), None).await.expect("checks"));
        assert!(passwords.verify(secret("x"), Some("damaged")).await.is_err());
        let again = passwords.hash(secret("correct horse")).await.expect("hashes");
        assert_ne!(kept, again, "salted");
    }

    #[tokio::test]
    async fn waiting_is_bounded() {
        let passwords = Passwords::new().expect("parameters");
        let all = passwords.waiting.acquire_many(WAITING_MAX as u32).await.expect("open");
        assert!(matches!(passwords.hash(SecretString::from("x")).await, Err(HashError::Busy)));
        drop(all);
        assert!(passwords.hash(SecretString::from("x")).await.is_ok());
    }

    #[test]
    fn short_and_endless_passwords_are_refused() {
        assert!(check(&SecretString::from("elevenchars")).is_err());
        assert!(check(&SecretString::from("twelve chars")).is_ok());
        assert!(check(&SecretString::from("x".repeat(BYTES_MAX + 1))).is_err());
    }
}

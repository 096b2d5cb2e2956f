//! How a scenario ends before its end.

/// What a scenario answers.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a scenario did not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A promise was not kept: what scenarios are there to find.
    #[error("{0}")]
    Broken(String),
    /// This machine does not let us do it; says what it needs.
    #[error("{0}")]
    LeftOut(String),
    /// The test itself could not go on; `doing` completes "could not ...".
    #[error("could not {doing}: {why}")]
    Failed {
        /// What was being done.
        doing: String,
        /// The whole chain of causes.
        why: String,
    },
}

impl Error {
    /// A promise that was not kept.
    pub fn broken(what: impl Into<String>) -> Self {
        Self::Broken(what.into())
    }

    /// The test could not go on.
    pub fn failed(doing: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Failed { doing: doing.into(), why: why.to_string() }
    }
}

/// Says what was being done when something failed.
pub trait Doing<T> {
    /// `doing` completes "could not ...".
    fn doing(self, doing: impl Into<String>) -> Result<T>;
}

impl<T, E: std::error::Error> Doing<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl Into<String>) -> Result<T> {
        self.map_err(|error| {
            let mut why = error.to_string();
            let mut cause = error.source();
            while let Some(next) = cause {
                why = format!("{why}: {next}");
                cause = next.source();
            }
            Error::failed(doing, why)
        })
    }
}

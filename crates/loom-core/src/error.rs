//! What the engine refuses, as data: a code of the closed set, and who must do what.

use std::fmt;

use serde::{Deserialize, Serialize};

pub use crate::spec::codes::Code;

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What kind it is.
    pub code: Code,
    /// What happened, in one sentence.
    pub message: String,
    /// The argument it is about.
    pub field: Option<String>,
    /// The limit that was reached, by its name in `spec/limits.toml`.
    pub limit: Option<&'static str>,
    /// The way out.
    pub hint: Option<String>,
    /// When the same again may help, in milliseconds from now.
    pub retry_after_ms: Option<u64>,
}

/// What the engine's functions return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of a kind, with what happened.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            field: None,
            limit: None,
            hint: None,
            retry_after_ms: None,
        }
    }

    /// `INVALID_PARAMS` about an argument.
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidParams, message).field(field)
    }

    /// `EXHAUSTED`: this limit was reached.
    pub fn exhausted(limit: &'static str, message: impl Into<String>) -> Self {
        Self {
            limit: Some(limit),
            ..Self::new(Code::Exhausted, message)
        }
    }

    /// `FENCED`.
    pub fn fenced(message: impl Into<String>) -> Self {
        Self::new(Code::Fenced, message)
    }

    /// Names the argument.
    #[must_use]
    pub fn field(mut self, field: &str) -> Self {
        self.field = Some(field.to_owned());
        self
    }

    /// Names the limit.
    #[must_use]
    pub fn limit(mut self, limit: &'static str) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Says the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says when the same again may help.
    #[must_use]
    pub fn retry_after(mut self, millis: u64) -> Self {
        self.retry_after_ms = Some(millis);
        self
    }

    /// The parts that cross to the one who waits.
    pub fn detail(&self) -> Detail {
        Detail {
            message: self.message.clone(),
            field: self.field.clone(),
            limit: self.limit.map(str::to_owned),
            hint: self.hint.clone(),
            who: None,
            retry: None,
            retry_after_ms: self.retry_after_ms,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message)
    }
}

impl std::error::Error for Error {}

/// The detail of an error as it crosses languages: JSON, with the absent keys left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Detail {
    /// What happened.
    pub message: String,
    /// The argument it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The limit that was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// The way out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Who failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// Whether the same again may help, where that is not what the code says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<bool>,
    /// When the same again may help, in milliseconds from now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Detail {
    /// Reads what a client sent; what cannot be read, or is over the limit, leaves a plain message.
    pub(crate) fn read(json: &[u8], limit: usize) -> Self {
        if json.len() > limit {
            return Self::message("the detail of this error was over its limit");
        }
        serde_json::from_slice(json)
            .unwrap_or_else(|_| Self::message("the detail of this error could not be read"))
    }

    pub(crate) fn message(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            ..Self::default()
        }
    }

    pub(crate) fn json(&self) -> Vec<u8> {
        to_json(self)
    }
}

pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|_| b"{}".to_vec())
}

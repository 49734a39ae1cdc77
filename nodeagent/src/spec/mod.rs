//! From a pod's spec to what the runtime is asked for.

pub mod container;
pub mod dns;
pub mod env;
pub mod fields;
pub mod pages;
pub mod pod;
pub mod resources;
pub mod sandbox;
pub mod security;

/// Why a container or a volume cannot be made from its spec.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The spec asks for what this agent does not do, or for what does not exist.
    #[error("{0}")]
    Spec(String),
    /// The API did not answer.
    #[error(transparent)]
    Api(#[from] keelson_client::Error),
    /// A file could not be made.
    #[error("{0}")]
    File(#[from] std::io::Error),
}

impl SpecError {
    /// A refusal with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self::Spec(text.into())
    }
}

/// The text, or an empty one.
pub fn text(value: Option<&String>) -> String {
    value.cloned().unwrap_or_default()
}

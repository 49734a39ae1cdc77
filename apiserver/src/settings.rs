//! What an operator may choose of the API server beyond its addresses: files and names, as the command line gives them.

use std::path::PathBuf;

use crate::{audit, authz};

/// The choices; the default is upstream's, with every optional part off.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What is recorded of requests.
    pub audit: audit::Settings,
    /// Who decides what users may do.
    pub authorization: authz::Settings,
    /// Which resources are stored sealed (EncryptionConfiguration).
    pub encryption: Option<PathBuf>,
}

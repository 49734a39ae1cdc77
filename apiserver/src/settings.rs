//! What an operator may choose of the API server beyond its addresses: files and names, as the command line gives them.

use std::path::PathBuf;

use crate::{admission, audit, authn, authz};

/// The choices; the default is upstream's, with every optional part off.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What is recorded of requests.
    pub audit: audit::Settings,
    /// How users prove who they are.
    pub authentication: authn::Settings,
    /// Who decides what users may do.
    pub authorization: authz::Settings,
    /// Which admission plugins are used.
    pub admission: admission::Settings,
    /// Which resources are stored sealed (EncryptionConfiguration).
    pub encryption: Option<PathBuf>,
}

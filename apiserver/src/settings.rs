//! What an operator may choose of the API server beyond its addresses: files and names, as the command line gives them.

use crate::audit;

/// The choices; the default is upstream's, with every optional part off.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What is recorded of requests.
    pub audit: audit::Settings,
}

//! What the scheduler can tell: `GET .../pods/NAME/scheduling` explains where a pod goes, `POST /keelson/v1/what-if` tells what
//! would happen if the cluster were another. The server knows no scheduler; it is given one that answers.
//!
//! Neither is listed by discovery, which is upstream's own.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::Response;
use keelson_client::Body;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::Status;
use serde_json::Value;

use crate::{ApiServer, body};

/// The subresource of pods.
pub const SUBRESOURCE: &str = "scheduling";
/// Where questions are posted.
pub const WHAT_IF: &str = "/keelson/v1/what-if";

/// What is asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// Why a pod goes where it goes.
    Explain {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// What would happen if; the question as JSON.
    WhatIf(Bytes),
}

/// Answers questions about scheduling.
pub type Advisor = Arc<dyn Fn(Question) -> BoxFuture<'static, Result<Value, Status>> + Send + Sync>;

/// Whether this is the subresource that is served here.
pub fn is_served(def: &ResourceDef, subresource: &str) -> bool {
    !def.custom && def.group.is_empty() && def.plural == "pods" && subresource == SUBRESOURCE
}

impl ApiServer {
    /// Names who answers questions about scheduling; only the first call counts.
    pub fn set_advisor(&self, advisor: Advisor) {
        // A second one would be the same.
        let _ = self.advisor.set(advisor);
    }

    /// Answers a question about scheduling.
    pub(crate) async fn advise(&self, question: Question) -> Result<Response<Body>, Status> {
        let Some(advisor) = self.advisor.get() else {
            return Err(Status::unavailable("this server has no scheduler that could be asked"));
        };
        Ok(body::value(200, &advisor(question).await?))
    }
}

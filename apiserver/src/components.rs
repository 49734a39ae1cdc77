//! `componentstatuses`: a deprecated resource that is computed when it is read.

use http::Response;
use keelson_client::Body;
use keelson_machinery::status::Status;
use keelson_machinery::stored::Head;
use serde_json::{Value, json};

use crate::verbs::Call;
use crate::verbs::list::Selectors;
use crate::{ApiServer, respond, table};

/// The components, and the store's key that their leader holds ("": the store itself).
const COMPONENTS: &[(&str, &str)] = &[
    ("scheduler", "/keelson/leader/scheduler"),
    ("controller-manager", "/keelson/leader/controllers"),
    ("etcd-0", ""),
];

/// Whether a row is this resource.
pub fn is_computed(call: &Call<'_>) -> bool {
    call.request.def.plural == "componentstatuses" && call.request.def.group.is_empty()
}

impl ApiServer {
    async fn component(&self, name: &str, key: &str) -> Value {
        let well = self.objects.kv.barrier().await;
        let led = key.is_empty() || self.objects.kv.view().get(key.as_bytes()).is_some();
        let (status, message) = match well {
            Err(error) => ("False", error.to_string()),
            Ok(_) if !led => ("False", "no member leads it".to_owned()),
            Ok(_) => ("True", "ok".to_owned()),
        };
        json!({
            "apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name},
            "conditions": [{"type": "Healthy", "status": status, "message": message}],
        })
    }

    /// Answers a get or list.
    pub(crate) async fn components(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        let request = call.request;
        if request.verb == "get" {
            let found = COMPONENTS.iter().find(|(name, _)| *name == request.name);
            let (name, key) = found.ok_or_else(|| Status::not_found("", "componentstatus", &request.name))?;
            return call.answer(200, &self.component(name, key).await, &[]);
        }
        let selectors = Selectors::of(request)?;
        let mut items = Vec::with_capacity(COMPONENTS.len());
        for (name, key) in COMPONENTS {
            if selectors.matches(&Head { name: (*name).into(), ..Head::default() }) {
                items.push(self.component(name, key).await);
            }
        }
        let accepted = call.accepted()?;
        let list = table::list(request.def, accepted, &items, json!({}), &request.query)?;
        respond::object(200, accepted.media, &list, call.pretty())
    }
}

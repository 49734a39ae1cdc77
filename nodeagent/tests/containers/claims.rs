//! Claimed devices: a driver of the test's own describes each as a variable and a device file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelson_proto::dra::dra_plugin_server::{DraPlugin, DraPluginServer};
use keelson_proto::dra::*;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tonic::{Request, Response, Status};

use crate::api::Api;
use crate::registry::{Entry, Registered, serve};
use crate::{Node, first, pod, ready, shell};

/// The driver's name.
const NAME: &str = "dra.keelson.test";

/// A running driver.
struct Driver {
    /// Each call with the claim's name.
    calls: Arc<Mutex<Vec<String>>>,
    registered: Registered,
}

#[derive(Clone)]
struct Service {
    calls: Arc<Mutex<Vec<String>>>,
    /// Where devices are described.
    descriptions: PathBuf,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl DraPlugin for Service {
    async fn node_prepare_resources(
        &self,
        asked: Request<NodePrepareResourcesRequest>,
    ) -> Answer<NodePrepareResourcesResponse> {
        let mut answer = NodePrepareResourcesResponse::default();
        for claim in asked.into_inner().claims {
            self.calls.lock().push(format!("prepare {}", claim.name));
            let edits = |name: &str| json!({"env": [format!("{name}={}", claim.name)], "deviceNodes": [{"path": format!("/dev/{name}"), "hostPath": "/dev/null"}]});
            let described = json!({"cdiVersion": "0.6.0", "kind": format!("{NAME}/{}", claim.name), "devices": [
                {"name": "fast", "containerEdits": edits("FAST")}, {"name": "large", "containerEdits": edits("LARGE")}]});
            std::fs::create_dir_all(&self.descriptions)?;
            std::fs::write(self.descriptions.join(format!("{}.json", claim.uid)), described.to_string())?;
            let device = |name: &str| Device {
                request_names: vec![name.to_owned()],
                pool_name: "n".into(),
                device_name: name.into(),
                cdi_device_ids: vec![format!("{NAME}/{}={name}", claim.name)],
            };
            let devices = vec![device("fast"), device("large")];
            answer.claims.insert(claim.uid, NodePrepareResourceResponse { devices, error: String::new() });
        }
        Ok(Response::new(answer))
    }

    async fn node_unprepare_resources(
        &self,
        asked: Request<NodeUnprepareResourcesRequest>,
    ) -> Answer<NodeUnprepareResourcesResponse> {
        let mut answer = NodeUnprepareResourcesResponse::default();
        for claim in asked.into_inner().claims {
            self.calls.lock().push(format!("unprepare {}", claim.name));
            let _ = std::fs::remove_file(self.descriptions.join(format!("{}.json", claim.uid)));
            answer.claims.insert(claim.uid, NodeUnprepareResourceResponse::default());
        }
        Ok(Response::new(answer))
    }
}

impl Driver {
    fn start(dir: &Path) -> Self {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let endpoint = dir.join("dra.sock");
        let plugin = DraPluginServer::new(Service { calls: calls.clone(), descriptions: dir.join("cdi") });
        let serving = serve(&endpoint, tonic::transport::Server::builder().add_service(plugin));
        let entry = Entry { kind: "DRAPlugin", name: NAME, endpoint, version: "v1.DRAPlugin" };
        Self { calls, registered: Registered::start(&dir.join("data"), entry, serving) }
    }

    /// How often it was asked this.
    fn count(&self, call: &str) -> usize {
        self.calls.lock().iter().filter(|c| *c == call).count()
    }
}

/// A claim that is allocated, for these pods.
fn claim(api: &Api, name: &str, pods: &[&str]) -> Value {
    let results: Vec<Value> =
        ["fast", "large"].iter().map(|r| json!({"request": r, "driver": NAME, "pool": "n", "device": r})).collect();
    let users: Vec<Value> = pods.iter().map(|p| json!({"resource": "pods", "name": p, "uid": api.uid(p)})).collect();
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")}, "spec": {},
        "status": {"allocation": {"devices": {"results": results}}, "reservedFor": users}})
}

fn claiming(claim: &str, asked: Value) -> Value {
    let script = "echo has $FAST,$LARGE; test -c /dev/FAST && exec /bin/busybox sleep 1000";
    let mut spec = pod("Always", json!({"command": shell(script), "resources": {"claims": [asked]}}));
    spec["resourceClaims"] = json!([{"name": "mine", "resourceClaimName": claim}]);
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn claimed_devices_come_from_a_driver() {
    let Some(mut node) = Node::start().await else { return };
    let dir = node.runtime.dir.path().to_owned();
    let set = |name: &str, pods: &[&str]| {
        node.api.set(&format!("namespaces/default/resourceclaims/{name}"), claim(&node.api, name, pods));
    };
    set("shared", &["claim-one", "claim-two"]);
    set("foreign", &["somebody"]);
    // They wait for their driver.
    node.api.create("claim-one", claiming("shared", json!({"name": "mine", "request": "fast"})));
    node.api.create("claim-two", claiming("shared", json!({"name": "mine"})));
    node.api.create("claim-three", claiming("foreign", json!({"name": "mine"})));
    node.until("claim-one", "waits", |p| p["status"]["phase"] == "Pending").await;
    let driver = Driver::start(&dir);
    for (name, words) in [("claim-one", "has shared,"), ("claim-two", "has shared,shared")] {
        node.until(name, "runs", ready).await;
        node.says(name, words).await;
    }
    assert!(driver.registered.told() == Some(true) && driver.count("prepare shared") >= 1);
    assert!(driver.count("prepare foreign") == 0 && !ready(&node.api.pod("claim-three")));
    // A new agent believes what was written down, with or without the driver.
    drop(driver);
    node.kill_agent().await;
    node.start_agent();
    let own = json!({"command": shell("exec /bin/busybox sleep 1000")});
    node.api.create("plain", pod("Always", own));
    node.until("plain", "runs", ready).await;
    let driver = Driver::start(&dir);
    for name in ["claim-one", "claim-two"] {
        node.until(name, "still runs", ready).await;
        assert_eq!(first(&node.api.pod(name))["restartCount"], 0, "{name}");
    }
    // It is given back with the last pod that has it.
    for (name, times) in [("claim-one", 0), ("claim-two", 1)] {
        node.api.delete(name, 1);
        node.until(name, "is confirmed as deleted", Value::is_null).await;
        assert_eq!(driver.count("unprepare shared"), times, "{name}");
    }
    for name in ["claim-three", "plain"] {
        node.api.delete(name, 1);
    }
    node.is_clean().await;
    assert_eq!(std::fs::read_dir(dir.join("cdi")).unwrap().count(), 0);
    node.kill_agent().await;
}

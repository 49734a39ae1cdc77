//! Keys and certificates in projected volumes: the test is the signer.

use serde_json::{Value, json};

use crate::{LOOKS, Node, pod, ready, shell};

const CHAIN: &str = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n";

fn wanting(name: &str) -> Value {
    let script = "cat /v/bundle; test -s /v/key && test -s /v/chain && exec /bin/busybox sleep 1000";
    let mut spec = pod("Always", json!({"command": shell(script), "volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    let part = json!({"signerName": format!("keelson.test/{name}"), "keyType": "ED25519", "credentialBundlePath": "bundle",
        "keyPath": "key", "certificateChainPath": "chain", "userAnnotations": {"keelson.test/a": "b"}});
    spec["volumes"] = json!([{"name": "v", "projected": {"sources": [{"podCertificate": part}]}}]);
    spec
}

/// Decides on the request of a signer, once it is there; returns its spec.
async fn decide(node: &Node, signer: &str, status: &Value) -> Value {
    for _ in 0..LOOKS {
        let path = node.api.other("last podcertificaterequest").as_str().unwrap_or_default().to_owned();
        let mut request = node.api.other(&path);
        if request["spec"]["signerName"] == signer && request["status"].is_null() {
            let spec = request["spec"].clone();
            request["status"] = status.clone();
            node.api.set(&path, request);
            return spec;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("nobody asked {signer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn signers_give_pods_certificates() {
    let Some(mut node) = Node::start().await else { return };
    let account = json!({"metadata": {"name": "default", "namespace": "default", "uid": "uid-of-account"}});
    node.api.set("namespaces/default/serviceaccounts/default", account);
    let condition = |kind: &str| json!([{"type": kind, "status": "True", "reason": "r", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    let issued =
        json!({"conditions": condition("Issued"), "certificateChain": CHAIN, "beginRefreshAt": "2100-01-01T00:00:00Z"});
    node.api.create("given", wanting("gives"));
    let spec = decide(&node, "keelson.test/gives", &issued).await;
    for (field, wanted) in [
        ("podName", "given"),
        ("podUID", node.api.uid("given").as_str()),
        ("nodeName", "n"),
        ("serviceAccountName", "default"),
        ("serviceAccountUID", "uid-of-account"),
    ] {
        assert_eq!(spec[field], wanted, "{field}");
    }
    assert_eq!(spec["unverifiedUserAnnotations"]["keelson.test/a"], "b");
    assert!(spec["stubPKCS10Request"].as_str().is_some_and(|csr| csr.len() > 100));
    node.until("given", "runs", ready).await;
    node.says("given", "BEGIN PRIVATE KEY").await;
    node.says("given", "QUJD").await;
    node.api.create("denied", wanting("denies"));
    decide(&node, "keelson.test/denies", &json!({"conditions": condition("Denied")})).await;
    node.until("denied", "waits", |p| p["status"]["phase"] == "Pending").await;
    for name in ["given", "denied"] {
        assert!(name == "given" || !ready(&node.api.pod(name)));
        node.api.delete(name, 1);
        node.until(name, "is confirmed as deleted", Value::is_null).await;
    }
    node.is_clean().await;
    node.kill_agent().await;
}

//! Huge pages: nodes report them, and volumes are made of them. Needs some (`sysctl vm.nr_hugepages=8`): they are the
//! machine's, so the test takes none by itself.

use serde_json::{Value, json};

use crate::{Node, pod, shell};

/// Pages of 2 MiB that the machine has.
fn pages() -> u64 {
    let text = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_made_of_huge_pages() {
    if pages() < 2 {
        eprintln!("skipped: the machine has no huge pages (sysctl vm.nr_hugepages=8)");
        return;
    }
    let Some(mut node) = Node::start().await else { return };
    node.api.set("nodes/n", json!({"metadata": {"name": "n", "uid": "uid"}}));
    let using = |medium: &str| {
        let mut spec = pod(
            "Never",
            json!({"command": shell("/bin/busybox grep ' /huge ' /proc/mounts"),
                "resources": {"limits": {"hugepages-2Mi": "4Mi", "memory": "32Mi", "cpu": "100m"}},
                "volumeMounts": [{"name": "huge", "mountPath": "/huge"}]}),
        );
        spec["volumes"] = json!([{"name": "huge", "emptyDir": {"medium": medium}}]);
        spec
    };
    for (name, medium) in [("huge", "HugePages"), ("huge-by-size", "HugePages-2Mi")] {
        node.api.create(name, using(medium));
        node.until(name, "has ended", |p| p["status"]["phase"] == "Succeeded").await;
        node.says(name, "pagesize=2M").await;
    }
    let status = node.api.other("nodes/n")["status"].clone();
    let mebibytes = status["capacity"]["hugepages-2Mi"].as_str().unwrap_or_default().to_owned();
    assert_ne!(mebibytes, "0", "{status:#}");
    for name in ["huge", "huge-by-size"] {
        node.api.delete(name, 1);
        node.until(name, "is confirmed as deleted", Value::is_null).await;
    }
    node.is_clean().await;
    node.kill_agent().await;
}

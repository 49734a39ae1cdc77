//! The chain over a small cluster.

use keelson_machinery::resources::find;
use keelson_store::{Kv, LocalKv};
use serde_json::{Value, json};

use super::*;
use crate::access::{Operation, UserInfo};
use crate::bootstrap;

#[tokio::test]
async fn a_pod_on_its_way_in() {
    let dir = tempfile::tempdir().unwrap();
    let kv: Arc<dyn Kv> = Arc::new(LocalKv::open(dir.path()).unwrap());
    bootstrap::ensure(kv.as_ref(), bootstrap::objects()).await.unwrap();
    let objects = Objects { kv };
    let authorization = Arc::new(Authorization::new(objects.clone()));
    let hooks = Arc::new(Hooks::new(objects.clone()));
    let parts = |on: &[&str]| {
        let parts = Parts {
            objects: objects.clone(),
            authorization: authorization.clone(),
            customs: Arc::default(),
            hooks: hooks.clone(),
            configs: HashMap::new(),
        };
        Chain::new(parts, &Settings { enabled: on.iter().map(|n| (*n).to_owned()).collect(), ..Settings::default() })
    };
    assert!(parts(&["Nonsense"]).err().unwrap().contains("\"Nonsense\" is unknown"));
    assert!(parts(&["EventRateLimit"]).err().unwrap().contains("must not be empty"), "it needs to know its limits");
    let chain = parts(&["AlwaysPullImages", "LimitPodHardAntiAffinityTopology"]).unwrap();
    let admit = async |namespace: &str, pod: &mut Value| {
        let (user, mut warnings) = (UserInfo::default(), Vec::new());
        let mut request = Admission {
            operation: Operation::Create,
            def: find("", "v1", "pods").unwrap(),
            subresource: "",
            namespace,
            name: "p",
            user: &user,
            object: Some(pod),
            old: None,
            dry_run: false,
            warnings: &mut warnings,
        };
        chain.mutate(&mut request).await?;
        chain.validate(&mut request).await
    };
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
    let missing = admit("nowhere", &mut pod.clone()).await.unwrap_err();
    assert_eq!((missing.code, missing.message.as_str()), (404, "namespaces \"nowhere\" not found"));
    let refused = admit("default", &mut pod.clone()).await.unwrap_err();
    assert_eq!(
        refused.message,
        "pods \"p\" is forbidden: error looking up service account default/default: serviceaccount \"default\" not found"
    );
    // A mirror pod has no account, so that the steps after it show.
    let mut mirror = pod;
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    mirror["spec"]["priorityClassName"] = "system-node-critical".into();
    admit("default", &mut mirror).await.unwrap();
    assert_eq!(mirror["spec"]["priority"], 2_000_001_000);
    assert_eq!(mirror["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
    assert_eq!(mirror["spec"]["containers"][0]["imagePullPolicy"], "Always");
    let mut far = mirror.clone();
    far["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
        json!([{"topologyKey": "zone"}]);
    assert_eq!(admit("default", &mut far).await.unwrap_err().code, 403);
    mirror["spec"]["priority"] = 1.into();
    assert_eq!(admit("default", &mut mirror).await.unwrap_err().code, 403);
}

//! Drives the server with kube-rs: typed calls, apply, watcher, reflector, a Controller of a custom resource, a Lease.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, CustomResource, CustomResourceExt, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

type Done = Result<(), Box<dyn std::error::Error>>;

const NAMESPACE: &str = "kube-rs";

#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(group = "clients.example.com", version = "v1", kind = "Greeting", namespaced, status = "GreetingStatus")]
struct GreetingSpec {
    to: String,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
struct GreetingStatus {
    said: Option<String>,
}

#[tokio::main]
async fn main() -> Done {
    let client = Client::try_default().await?;
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    let all = async {
        objects(&client).await?;
        watched(&client).await?;
        reflected(&client).await?;
        controlled(&client).await?;
        leased(&client).await
    };
    tokio::time::timeout(Duration::from_secs(60), all).await??;
    println!("ok");
    Ok(())
}

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"k": "v"}})).expect("a config map")
}

async fn objects(client: &Client) -> Done {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let made = maps.create(&PostParams::default(), &map("m")).await?;
    let mut changed = made.clone();
    changed.data.get_or_insert_default().insert("k".into(), "w".into());
    maps.replace("m", &PostParams::default(), &changed).await?;
    let stale = maps.replace("m", &PostParams::default(), &changed).await;
    assert!(matches!(stale, Err(kube::Error::Api(refused)) if refused.code == 409), "a stale update is refused");
    let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"}});
    let now = maps.patch("m", &PatchParams::apply("kube-rs"), &Patch::Apply(applied)).await?;
    assert_eq!(now.data.as_ref().map(|data| data.len()), Some(2));
    assert!(maps.get_opt("none").await?.is_none());
    for name in ["p0", "p1", "p2"] {
        maps.create(&PostParams::default(), &map(name)).await?;
    }
    let page = maps.list(&ListParams::default().limit(2)).await?;
    assert!(page.items.len() == 2 && page.metadata.continue_.is_some());
    Ok(())
}

/// A watcher that begins with a list, and one that streams it.
async fn watched(client: &Client) -> Done {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let mut events = std::pin::pin!(watcher(maps.clone(), config).applied_objects());
        let mut seen = Vec::new();
        while !["m", "p0", "p1", "p2"].iter().all(|name| seen.iter().any(|s: &String| s == name)) {
            seen.push(events.try_next().await?.ok_or("the watch ended")?.name_any());
        }
        maps.create(&PostParams::default(), &map("w")).await?;
        while events.try_next().await?.ok_or("the watch ended")?.name_any() != "w" {}
        maps.delete("w", &DeleteParams::default()).await?;
    }
    Ok(())
}

/// A store that follows: what is there, and then what is there no longer.
async fn reflected(client: &Client) -> Done {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let (store, writer) = reflector::store();
    let following = reflector(writer, watcher(maps.clone(), watcher::Config::default())).for_each(|_| async {});
    let looking = async {
        let name = reflector::ObjectRef::new("p2").within(NAMESPACE);
        store.wait_until_ready().await?;
        assert!(store.get(&name).is_some());
        maps.delete("p2", &DeleteParams::default()).await?;
        while store.get(&name).is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    };
    tokio::select! {
        () = following => Err("the watch ended".into()),
        done = looking => done,
    }
}

/// A controller that writes what it did into the status.
async fn controlled(client: &Client) -> Done {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.create(&PostParams::default(), &Greeting::crd()).await?;
    await_condition(definitions, "greetings.clients.example.com", conditions::is_crd_established()).await?;
    let greetings: Api<Greeting> = Api::namespaced(client.clone(), NAMESPACE);
    greetings.create(&PostParams::default(), &Greeting::new("g", GreetingSpec { to: "you".into() })).await?;
    let reconcile = |greeting: Arc<Greeting>, greetings: Arc<Api<Greeting>>| async move {
        let said = format!("hello {}", greeting.spec.to);
        let status = json!({"apiVersion": "clients.example.com/v1", "kind": "Greeting", "status": {"said": said}});
        let params = PatchParams::apply("greeter").force();
        greetings.patch_status(&greeting.name_any(), &params, &Patch::Apply(status)).await?;
        Ok::<_, kube::Error>(Action::await_change())
    };
    let again = |_: Arc<Greeting>, _: &kube::Error, _: Arc<Api<Greeting>>| Action::requeue(Duration::from_millis(100));
    let controller = Controller::new(greetings.clone(), watcher::Config::default());
    let running = controller.run(reconcile, again, Arc::new(greetings.clone())).for_each(|_| async {});
    let said = |greeting: Option<&Greeting>| {
        greeting.and_then(|g| g.status.as_ref()).is_some_and(|s| s.said.as_deref() == Some("hello you"))
    };
    tokio::select! {
        () = running => Err("the controller ended".into()),
        done = await_condition(greetings, "g", said) => done.map(drop).map_err(Into::into),
    }
}

/// A Lease that one takes and another does not get.
async fn leased(client: &Client) -> Done {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let held_by = |holder: &str| {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15}})
    };
    leases.patch("l", &PatchParams::apply("one"), &Patch::Apply(held_by("one"))).await?;
    let other = leases.patch("l", &PatchParams::apply("two"), &Patch::Apply(held_by("two"))).await;
    assert!(matches!(other, Err(kube::Error::Api(refused)) if refused.code == 409), "the lease is held");
    let taken = leases.patch("l", &PatchParams::apply("two").force(), &Patch::Apply(held_by("two"))).await?;
    assert_eq!(taken.spec.and_then(|spec| spec.holder_identity).as_deref(), Some("two"));
    Ok(())
}

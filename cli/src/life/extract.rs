//! Single objects out of a snapshot: `keelson snapshot extract` prints them, `keelson snapshot apply` makes them anew in a
//! running cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use keelson_client::discovery::{self, ApiResource};
use keelson_machinery::stored::Stored;
use keelson_raft::etcd::restore::{Restoring, restore};
use keelson_store::{KeyRange, Options, StateMachine};
use serde_json::{Value, json};

use crate::args::Access;

/// What keys of objects begin with.
const REGISTRY: &str = "/registry/";
/// Kinds that a cluster makes by itself: bringing them back would only be in its way.
const MADE: [&str; 9] = [
    "Event",
    "Endpoints",
    "EndpointSlice",
    "Lease",
    "ControllerRevision",
    "CertificateSigningRequest",
    "IPAddress",
    "PodMetrics",
    "Node",
];
/// Kinds that others need, in the order in which they are made; the rest follows.
const FIRST: [&str; 11] = [
    "Namespace",
    "CustomResourceDefinition",
    "StorageClass",
    "PriorityClass",
    "ServiceAccount",
    "ClusterRole",
    "Role",
    "Secret",
    "ConfigMap",
    "PersistentVolumeClaim",
    "Service",
];

/// Which objects.
#[derive(Args, Clone, Debug)]
pub struct Wanted {
    /// The snapshot
    pub file: PathBuf,
    /// Only kinds or KIND/NAME: deployment, configmap/app
    pub objects: Vec<String>,
    /// Only what is in this namespace (may be given several times), and the namespace itself
    #[arg(short, long)]
    pub namespace: Vec<String>,
    /// Take a file without a checksum
    #[arg(long)]
    pub skip_hash_check: bool,
}

/// `keelson snapshot extract ...`
#[derive(Args, Clone, Debug)]
pub struct ExtractArgs {
    /// Which objects.
    #[command(flatten)]
    pub wanted: Wanted,
    /// yaml or json
    #[arg(short, long, value_parser = ["yaml", "json"], default_value = "yaml")]
    pub output: String,
    /// As they were, with status and all that a cluster fills in
    #[arg(long)]
    pub raw: bool,
}

/// `keelson snapshot apply ...`
#[derive(Args, Clone, Debug)]
pub struct ApplyArgs {
    /// Which objects.
    #[command(flatten)]
    pub wanted: Wanted,
    /// How the cluster is reached.
    #[command(flatten)]
    pub access: Access,
    /// Replace objects that are there; without it they are left as they are
    #[arg(long)]
    pub replace: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Runs `extract`.
pub async fn extract(args: ExtractArgs) -> Result<()> {
    let raw = args.raw;
    let mut objects = read(args.wanted).await?;
    if !raw {
        objects.iter_mut().for_each(strip);
    }
    for object in objects {
        match args.output.as_str() {
            "json" => println!("{}", serde_json::to_string(&object)?),
            _ => print!("---\n{}", keelson_machinery::yaml::write(&object).map_err(anyhow::Error::msg)?),
        }
    }
    Ok(())
}

/// Runs `apply`.
pub async fn apply(args: ApplyArgs) -> Result<()> {
    let mut objects = read(args.wanted.clone()).await?;
    objects.retain(is_own);
    objects.sort_by_key(|object| {
        let kind = object["kind"].as_str().unwrap_or_default();
        FIRST.iter().position(|first| *first == kind).unwrap_or(FIRST.len())
    });
    let client = keelson_client::https::from_kubeconfig(&args.access.kubeconfig, "keelson")
        .with_context(|| format!("cannot use {}: name another with --kubeconfig", args.access.kubeconfig.display()))?;
    let mut known = discovery::resources(&client).await?.0;
    let mut failed = 0;
    for mut object in objects {
        strip(&mut object);
        if find(&known, &object).is_none() {
            // A definition that was made just now.
            known = discovery::resources(&client).await?.0;
        }
        let outcome = match find(&known, &object) {
            Some(resource) => put(&client, resource, &object, &args).await,
            None => Err(anyhow::anyhow!("the cluster does not know the kind")),
        };
        match outcome {
            Ok(done) => println!("{} {done}", title(&object)),
            Err(error) => {
                failed += 1;
                eprintln!("{} failed: {error:#}", title(&object));
            }
        }
    }
    if failed > 0 {
        bail!("{failed} objects could not be brought back");
    }
    Ok(())
}

fn title(object: &Value) -> String {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let kind = text("/kind").to_lowercase();
    match text("/metadata/namespace") {
        "" => format!("{kind}/{}", text("/metadata/name")),
        namespace => format!("{namespace}: {kind}/{}", text("/metadata/name")),
    }
}

fn find<'a>(known: &'a [ApiResource], object: &Value) -> Option<&'a ApiResource> {
    let (kind, version) = (object["kind"].as_str()?, object["apiVersion"].as_str()?);
    let group = version.split_once('/').map_or("", |(group, _)| group);
    known.iter().find(|resource| resource.kind == kind && resource.group == group)
}

async fn put(
    client: &keelson_client::Client,
    resource: &ApiResource,
    object: &Value,
    args: &ApplyArgs,
) -> Result<&'static str> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
    let path = resource.path(namespace, name);
    let there: Option<Value> = match client.request(http::Method::GET, &path, None, Bytes::new()).await {
        Ok(there) => Some(there),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error.into()),
    };
    let send = |method, path: String, object: &Value| {
        let bytes = serde_json::to_vec(object);
        async move {
            let sent = client.request(method, &path, Some("application/json"), bytes?.into()).await;
            Ok::<_, anyhow::Error>(sent.map(|_: Value| ()))
        }
    };
    match there {
        None if args.dry_run => Ok("would be created"),
        None => match send(http::Method::POST, resource.path(namespace, ""), object).await? {
            Ok(()) => Ok("created"),
            // A controller made it meanwhile.
            Err(error) if error.is_already_exists() => Ok("is there: left as it is"),
            Err(error) => Err(error.into()),
        },
        Some(_) if !args.replace => Ok("is there: left as it is"),
        Some(_) if args.dry_run => Ok("would be replaced"),
        Some(there) => {
            let mut object = object.clone();
            object["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"].clone();
            send(http::Method::PUT, path, &object).await??;
            Ok("replaced")
        }
    }
}

/// Whether somebody made it: not a controller, and not the cluster itself.
fn is_own(object: &Value) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array();
    let owned = owners.is_some_and(|owners| owners.iter().any(|owner| owner["controller"] == true));
    let (kind, name) =
        (object["kind"].as_str().unwrap_or_default(), object["metadata"]["name"].as_str().unwrap_or_default());
    let token = object["type"] == "kubernetes.io/service-account-token";
    !owned && !token && !MADE.contains(&kind) && (kind, name) != ("ConfigMap", "kube-root-ca.crt")
}

/// Takes away what only the cluster that had it can say.
fn strip(object: &mut Value) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for key in [
            "uid",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "managedFields",
            "selfLink",
            "ownerReferences",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ] {
            metadata.remove(key);
        }
    }
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    let gone: &[&str] = match kind.as_str() {
        // Chosen by the cluster; another one may have given them away.
        "Service" => &["clusterIP", "clusterIPs", "healthCheckNodePort"],
        "PersistentVolumeClaim" => &["volumeName"],
        "Pod" => &["nodeName"],
        "Namespace" => &["finalizers"],
        _ => &[],
    };
    let headless = object["spec"]["clusterIP"] == "None";
    if let Some(spec) = object["spec"].as_object_mut().filter(|_| !headless) {
        for key in gone {
            spec.remove(*key);
        }
    }
}

/// Reads what is wanted out of a snapshot, in the order of keys.
async fn read(wanted: Wanted) -> Result<Vec<Value>> {
    tokio::task::spawn_blocking(move || {
        let dir = tempfile::Builder::new().prefix("keelson-extract-").tempdir()?;
        let how = Restoring { skip_hash_check: wanted.skip_hash_check, ..Restoring::default() };
        restore(&wanted.file, dir.path(), how)?;
        let objects = objects(dir.path())?;
        let filters = filters(&wanted.objects)?;
        let namespace_of = |object: &Value| {
            let own = object["metadata"]["namespace"].as_str();
            let name = (object["kind"] == "Namespace").then(|| object["metadata"]["name"].as_str()).flatten();
            own.or(name).unwrap_or_default().to_owned()
        };
        let is_wanted = |object: &Value| {
            let named = wanted.namespace.is_empty() || wanted.namespace.contains(&namespace_of(object));
            named && (filters.is_empty() || filters.iter().any(|(kind, name)| matches(object, kind, name.as_deref())))
        };
        Ok(objects.into_iter().filter(is_wanted).collect())
    })
    .await?
}

fn objects(dir: &Path) -> Result<Vec<Value>> {
    let machine = StateMachine::open(dir, Options::default())?;
    let view = machine.view();
    let mut objects = Vec::new();
    for entry in view.range(&KeyRange::prefix(REGISTRY)) {
        let key = String::from_utf8_lossy(&entry.key).into_owned();
        let stored = Stored::parse(&entry.value).with_context(|| format!("{key} cannot be read"))?;
        objects.push(stored.to_value(entry.mod_revision).with_context(|| format!("{key} cannot be read"))?);
    }
    Ok(objects)
}

/// `deployment` or `configmap/app`.
fn filters(given: &[String]) -> Result<Vec<(String, Option<String>)>> {
    let filter = |text: &String| match text.split_once('/') {
        Some((kind, name)) if !kind.is_empty() && !name.is_empty() => Ok((kind.to_lowercase(), Some(name.to_owned()))),
        None if !text.is_empty() => Ok((text.to_lowercase(), None)),
        _ => bail!("{text:?} is neither a kind nor KIND/NAME"),
    };
    given.iter().map(filter).collect()
}

fn matches(object: &Value, kind: &str, name: Option<&str>) -> bool {
    let own = object["kind"].as_str().unwrap_or_default().to_lowercase();
    let plurals = BTreeMap::from([(format!("{own}s"), ()), (format!("{own}es"), ()), (own.clone(), ())]);
    plurals.contains_key(kind) && name.is_none_or(|name| object["metadata"]["name"] == json!(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cluster_fills_in_is_left_out() {
        let mut service = json!({"kind": "Service", "metadata": {"name": "a", "uid": "u", "resourceVersion": "5"},
            "spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": []}, "status": {}});
        strip(&mut service);
        assert_eq!(service, json!({"kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": []}}));
        let mut headless = json!({"kind": "Service", "metadata": {}, "spec": {"clusterIP": "None"}});
        strip(&mut headless);
        assert_eq!(headless["spec"]["clusterIP"], "None");
        for (object, own) in [
            (json!({"kind": "Pod", "metadata": {"ownerReferences": [{"controller": true}]}}), false),
            (json!({"kind": "Pod", "metadata": {}}), true),
            (json!({"kind": "Event", "metadata": {}}), false),
            (json!({"kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt"}}), false),
            (json!({"kind": "Secret", "metadata": {}, "type": "kubernetes.io/service-account-token"}), false),
        ] {
            assert_eq!(is_own(&object), own, "{object}");
        }
    }

    #[test]
    fn filters_name_kinds_and_objects() {
        let object = json!({"kind": "NetworkPolicy", "metadata": {"name": "x"}});
        for (kind, name, want) in [
            ("networkpolicy", None, true),
            ("networkpolicys", Some("x"), true),
            ("networkpolicy", Some("y"), false),
            ("policy", None, false),
        ] {
            assert_eq!(matches(&object, kind, name), want, "{kind}");
        }
        assert!(filters(&["/x".into()]).is_err());
    }
}

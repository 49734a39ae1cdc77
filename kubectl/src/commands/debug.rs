//! `debug`: a container beside those of a pod, a copy of a pod, or a pod on a node.

use std::time::Duration;

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, switch, text};
use crate::objects;
use crate::output;
use crate::session::{Session, encode};
use crate::value::Read;

use super::exec;

/// Flags of `debug`.
pub const FLAGS: &[&[Flag]] = &[
    &[objects::FILES[0]],
    &[
        switch(
            "arguments-only",
            "If specified, everything after -- will be passed to the new container as Args instead of Command.",
        ),
        switch(
            "attach",
            "If true, wait for the container to start running, and then attach as if 'kubectl attach ...' were called.",
        ),
        text("container", "", "Container name to use for debug container.").short('c'),
        text("copy-to", "", "Create a copy of the target Pod with this name."),
        text(
            "custom",
            "",
            "Path to a JSON or YAML file containing a partial container spec to customize built-in debug profiles.",
        ),
        repeated("env", "Environment variables to set in the container."),
        text("image", "", "Container image to use for debug container."),
        text("image-pull-policy", "", "The image pull policy for the container."),
        switch("keep-annotations", "If true, keep the original pod annotations."),
        switch("keep-init-containers", "Run the init containers for the pod.").or("true"),
        switch("keep-labels", "If true, keep the original pod labels."),
        switch("keep-liveness", "If true, keep the original pod liveness probes."),
        switch("keep-readiness", "If true, keep the original pod readiness probes."),
        switch("keep-startup", "If true, keep the original startup probes."),
        text(
            "profile",
            "general",
            "Options are \"legacy\", \"general\", \"baseline\", \"netadmin\", \"restricted\" or \"sysadmin\".",
        ),
        switch("quiet", "If true, suppress informational messages.").short('q'),
        switch("replace", "When used with '--copy-to', delete the original Pod."),
        switch("same-node", "When used with '--copy-to', schedule the copy of target Pod on the same node."),
        repeated("set-image", "When used with '--copy-to', a list of name=image pairs for changing container images."),
        switch("share-processes", "When used with '--copy-to', enable process namespace sharing in the copy.")
            .or("true"),
        switch("stdin", "Keep stdin open on the container(s) in the pod, even if nothing is attached.").short('i'),
        text("target", "", "When using an ephemeral container, target processes in this container name."),
        switch("tty", "Allocate a TTY for the debugging container.").short('t'),
    ],
];

/// How long is waited for a container to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked at meanwhile.
const PAUSE: Duration = Duration::from_millis(250);
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Runs `debug`.
pub async fn debug(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if parsed.text("image").is_empty() && parsed.text("set-image").is_empty() {
        if parsed.text("copy-to").is_empty() {
            return Err(Failure::new("you must specify --image when not using --copy-to."));
        }
        if parsed.after_dash.is_none() {
            return Err(Failure::new("you must specify --image, --set-image or command arguments."));
        }
    }
    if parsed.args.is_empty() && !parsed.is_set("filename") {
        return Err(Failure::new("NAME or filename is required for debug"));
    }
    for (image, whose) in std::iter::once((parsed.text("image").to_owned(), String::new())).chain(
        parsed.list("set-image").iter().filter_map(|pair| {
            pair.split_once('=').map(|(name, image)| (image.to_owned(), format!(" for container {name:?}")))
        }),
    ) {
        if !image.is_empty() && !super::run::is_image(&image) {
            return Err(Failure::new(format!("invalid image name {image:?}{whose}: invalid reference format")));
        }
    }
    if parsed.on("tty") && !parsed.on("stdin") {
        return Err(Failure::new("-i/--stdin is required for containers with -t/--tty=true"));
    }
    if !parsed.text("target").is_empty() && !parsed.text("copy-to").is_empty() {
        return Err(Failure::new("--target is incompatible with --copy-to. Use --share-processes instead."));
    }
    for flag in ["set-image", "replace", "same-node"] {
        if parsed.is_set(flag) && parsed.text("copy-to").is_empty() {
            return Err(Failure::new(format!("--{flag} may only be used with --copy-to.")));
        }
    }
    if !matches!(parsed.text("image-pull-policy"), "" | "Always" | "IfNotPresent" | "Never") {
        return Err(Failure::new(format!("invalid image pull policy: {}", parsed.text("image-pull-policy"))));
    }
    const PROFILES: [&str; 7] = ["legacy", "general", "baseline", "restricted", "netadmin", "sysadmin", ""];
    if !PROFILES.contains(&parsed.text("profile")) {
        return Err(Failure::new(format!("unknown profile: {}", parsed.text("profile"))));
    }
    if let Some(bad) = parsed.list("set-image").iter().find(|pair| !pair.contains('=')) {
        let usage = format!("See '{} --help' for usage.", parsed.command);
        return Err(Failure::new(format!(
            "invalid argument {bad:?} for \"--set-image\" flag: {bad} must be formatted as key=value\n{usage}"
        )));
    }
    custom(session)?;
    let mut failed = None;
    for (kind, object) in targets(session).await? {
        let told = match (kind.plural.as_str(), parsed.text("copy-to")) {
            ("nodes", _) => on_node(session, &object).await,
            ("pods", "") => beside(session, &object).await,
            ("pods", copy) => copied(session, &object, copy).await,
            _ => {
                let (group, version) = (&kind.group, &kind.version);
                Err(Failure::new(format!("\"{group}/{version}, Kind={}\" not supported by debug", kind.kind)))
            }
        };
        if let Err(error) = told {
            failed = Some(super::say(failed, error));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// What is to be debugged: pods, where no kind is named.
async fn targets(session: &Session) -> Outcome<Vec<(crate::kinds::Kind, Value)>> {
    if session.parsed.is_set("filename") {
        let local = objects::from_files(session).await?;
        for object in &local {
            let kind = crate::kinds::of_object(session, object).await?;
            if !matches!(kind.plural.as_str(), "pods" | "nodes") {
                let (group, version) = (&kind.group, &kind.version);
                return Err(Failure::new(format!("\"{group}/{version}, Kind={}\" not supported by debug", kind.kind)));
            }
        }
    }
    let of_pods = |name: &String| if name.contains('/') { name.clone() } else { format!("pods/{name}") };
    let named: Vec<String> = session.parsed.args.iter().map(of_pods).collect();
    objects::read(session, &named).await
}

/// What `--custom` adds to the container.
fn custom(session: &Session) -> Outcome<Value> {
    let file = session.parsed.text("custom");
    if file.is_empty() {
        return Ok(Value::Null);
    }
    let text = std::fs::read(file).map_err(|e| {
        let why = crate::failure::opening(file, &e);
        Failure::new(format!("must pass a container spec json file for custom profile: {why}"))
    })?;
    let more = keelson_machinery::decode::yaml(&text).map_err(Failure::new)?.value;
    for refused in ["name", "command", "image", "lifecycle", "volumeDevices"] {
        if more[refused].is_there() {
            return Err(Failure::new(format!("{refused} cannot be set in a custom profile")));
        }
    }
    Ok(more)
}

/// Five letters that no other name ends with, most likely.
pub fn letters() -> String {
    let mut number = jiff::Timestamp::now().as_nanosecond().unsigned_abs() ^ u128::from(std::process::id());
    let mut text = String::new();
    for _ in 0..5 {
        text.push(char::from(LETTERS[usize::try_from(number % LETTERS.len() as u128).unwrap_or(0)]));
        number /= LETTERS.len() as u128;
    }
    text
}

/// The container that debugs.
fn container(session: &Session, name: &str) -> Outcome<Value> {
    let parsed = &session.parsed;
    let mut container =
        json!({"name": name, "image": parsed.text("image"), "terminationMessagePolicy": "File", "resources": {}});
    if let Some(words) = parsed.after_dash.as_ref().filter(|w| !w.is_empty()) {
        container[if parsed.on("arguments-only") { "args" } else { "command" }] = json!(words);
    }
    let env = super::run::variables(&parsed.all("env"))?;
    if !env.is_empty() {
        container["env"] = env.into();
    }
    if !parsed.text("image-pull-policy").is_empty() {
        container["imagePullPolicy"] = parsed.text("image-pull-policy").into();
    }
    for flag in ["stdin", "tty"] {
        if parsed.on(flag) {
            container[flag] = true.into();
        }
    }
    Ok(container)
}

/// Rights of the container, by profile; those of ephemeral ones are smaller.
fn profile(session: &Session, container: &mut Value, ephemeral: bool, node: bool) -> Outcome {
    let add = |names: &[&str]| json!({"capabilities": {"add": names}});
    let context = match session.parsed.text("profile") {
        "legacy" | "baseline" => Value::Null,
        "general" if node => Value::Null,
        "general" => add(&["SYS_PTRACE"]),
        "netadmin" => add(&["NET_ADMIN", "NET_RAW"]),
        "sysadmin" => json!({"privileged": true}),
        "restricted" => {
            json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true,
            "seccompProfile": {"type": "RuntimeDefault"}})
        }
        other => {
            return Err(Failure::new(format!("unknown profile: {other}")));
        }
    };
    if !context.is_null() {
        container["securityContext"] = context;
    }
    let more = custom(session)?;
    if !more.is_null() {
        keelson_machinery::patch::merge(container, &more);
    }
    if ephemeral && let Some(map) = container.as_object_mut() {
        map.remove("resources");
    }
    Ok(())
}

/// Adds a container to a pod that runs.
async fn beside(session: &Session, pod: &Value) -> Outcome {
    let parsed = &session.parsed;
    let name = match parsed.text("container") {
        "" => format!("debugger-{}", letters()),
        given => given.to_owned(),
    };
    let mut own = container(session, &name)?;
    profile(session, &mut own, true, false)?;
    if !parsed.text("target").is_empty() {
        own["targetContainerName"] = parsed.text("target").into();
        if !parsed.on("quiet") {
            targeting(parsed.text("target"));
        }
    }
    if !parsed.on("quiet") && parsed.text("container").is_empty() {
        eprintln!("Defaulting debug container name to {name}.");
    }
    let metadata = &pod["metadata"];
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}/ephemeralcontainers",
        metadata["namespace"].text(),
        encode(metadata["name"].text())
    );
    // In the order in which they came.
    let mut order: Vec<Value> =
        pod["spec"]["ephemeralContainers"].items().iter().map(|c| json!({"name": c["name"]})).collect();
    order.push(json!({"name": name}));
    let patch = json!({"spec": {"$setElementOrder/ephemeralContainers": order, "ephemeralContainers": [own]}});
    let changed = session.patch(&path, "strategic-merge-patch", &patch).await?;
    attach(session, &changed, &name).await
}

fn targeting(container: &str) {
    eprintln!(
        "Targeting container {container:?}. If you don't see processes from this container it may be because the \
         container runtime doesn't support this feature."
    );
}

/// Makes a copy of a pod in which something can be changed.
async fn copied(session: &Session, pod: &Value, name: &str) -> Outcome {
    let parsed = &session.parsed;
    let metadata = &pod["metadata"];
    let mut copy = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": metadata["namespace"]}, "spec": pod["spec"]});
    for (flag, field) in [("keep-labels", "labels"), ("keep-annotations", "annotations")] {
        if parsed.on(flag) && metadata[field].is_there() {
            copy["metadata"][field] = metadata[field].clone();
        }
    }
    let Some(spec) = copy["spec"].as_object_mut() else { return Err(Failure::new("the pod has no spec")) };
    spec.remove("ephemeralContainers");
    if !parsed.on("same-node") {
        spec.remove("nodeName");
    }
    if !parsed.on("keep-init-containers") {
        spec.remove("initContainers");
    }
    if parsed.is_set("share-processes") || parsed.on("share-processes") {
        spec.insert("shareProcessNamespace".into(), parsed.on("share-processes").into());
    }
    let debugged = change(session, &mut copy)?;
    let path = format!("/api/v1/namespaces/{}/pods", metadata["namespace"].text());
    let made = session.post(&path, &copy).await?;
    // Only once its copy is there.
    if parsed.on("replace") {
        session.delete(&format!("{path}/{}", encode(metadata["name"].text())), &json!({})).await?;
    }
    attach(session, &made, &debugged).await
}

/// Changes a copy's containers; returns the name of the one that is debugged.
fn change(session: &Session, copy: &mut Value) -> Outcome<String> {
    let parsed = &session.parsed;
    let images: Vec<(String, String)> = parsed
        .list("set-image")
        .iter()
        .filter_map(|pair| pair.split_once('=').map(|(n, i)| (n.to_owned(), i.to_owned())))
        .collect();
    let wanted = parsed.text("container");
    let mut exists = false;
    for container in copy["spec"]["containers"].as_array_mut().into_iter().flatten() {
        let name = container["name"].text().to_owned();
        for (of, image) in &images {
            if *of == "*" || *of == name {
                container["image"] = image.clone().into();
            }
        }
        if let Some(map) = container.as_object_mut() {
            for (flag, field) in [
                ("keep-liveness", "livenessProbe"),
                ("keep-readiness", "readinessProbe"),
                ("keep-startup", "startupProbe"),
            ] {
                if !parsed.on(flag) {
                    map.remove(field);
                }
            }
        }
        if !wanted.is_empty() && name == wanted {
            exists = true;
            if !parsed.text("image").is_empty() {
                container["image"] = parsed.text("image").into();
            }
            if let Some(words) = &parsed.after_dash {
                container[if parsed.on("arguments-only") { "args" } else { "command" }] = json!(words);
            }
            for flag in ["stdin", "tty"].into_iter().filter(|f| parsed.on(f)) {
                container[flag] = true.into();
            }
        }
    }
    if exists || parsed.text("image").is_empty() {
        return Ok(wanted.to_owned());
    }
    let name = if wanted.is_empty() { format!("debugger-{}", letters()) } else { wanted.to_owned() };
    if wanted.is_empty() && !parsed.on("quiet") {
        eprintln!("Defaulting debug container name to {name}.");
    }
    let mut own = container(session, &name)?;
    profile(session, &mut own, false, false)?;
    if let Some(containers) = copy["spec"]["containers"].as_array_mut() {
        containers.push(own);
    }
    Ok(name)
}

/// Makes a pod on a node, with the node's files and namespaces.
async fn on_node(session: &Session, node: &Value) -> Outcome {
    let parsed = &session.parsed;
    let node = node["metadata"]["name"].text();
    if !parsed.text("target").is_empty() && !parsed.on("quiet") {
        targeting(parsed.text("target"));
    }
    let name = format!("node-debugger-{node}-{}", letters());
    let debugger = if parsed.text("container").is_empty() { "debugger" } else { parsed.text("container") };
    let mut own = container(session, debugger)?;
    profile(session, &mut own, false, true)?;
    let mut spec = json!({"nodeName": node, "restartPolicy": "Never", "tolerations": [{"operator": "Exists"}]});
    if !matches!(parsed.text("profile"), "baseline" | "restricted") {
        own["volumeMounts"] = json!([{"name": "host-root", "mountPath": "/host"}]);
        spec["volumes"] = json!([{"name": "host-root", "hostPath": {"path": "/"}}]);
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            spec[field] = true.into();
        }
    }
    spec["containers"] = json!([own]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
    if !parsed.on("quiet") {
        eprintln!("Creating debugging pod {name} with container {debugger} on node {node}.");
    }
    let made = session.post(&format!("/api/v1/namespaces/{}/pods", session.namespace()?), &pod).await?;
    attach(session, &made, debugger).await
}

/// Waits for a container and joins this terminal to it, if that is asked for.
async fn attach(session: &Session, pod: &Value, name: &str) -> Outcome {
    let parsed = &session.parsed;
    let wanted = if parsed.is_set("attach") { parsed.on("attach") } else { parsed.on("stdin") };
    if !wanted || name.is_empty() {
        return Ok(());
    }
    let pod = started(session, pod, name).await?;
    let tty = parsed.on("tty") && std::io::IsTerminal::is_terminal(&std::io::stdin());
    if tty && !parsed.on("quiet") {
        eprintln!("If you don't see a command prompt, try pressing enter.");
    }
    let path = exec::path_of(session, &pod, "attach", name, parsed.on("stdin"), tty)?;
    exec::joined(session, &path, parsed.on("stdin"), tty).await
}

/// Waits until a container has started.
pub async fn started(session: &Session, pod: &Value, container: &str) -> Outcome<Value> {
    let metadata = &pod["metadata"];
    let path = format!("/api/v1/namespaces/{}/pods/{}", metadata["namespace"].text(), encode(metadata["name"].text()));
    let waiting = async {
        loop {
            let pod = session.get(&path).await?;
            let all = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
            let status = all.iter().flat_map(|l| pod["status"][l].items()).find(|s| s["name"] == container);
            if let Some(status) = status {
                if status["state"]["running"].is_there() || status["state"]["terminated"].is_there() {
                    return Ok(pod);
                }
                let message = status["state"]["waiting"]["message"].text();
                if !message.is_empty() && !session.parsed.on("quiet") {
                    eprintln!("Warning: container {container}: {message}");
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| Err(Failure::new(format!("timed out waiting for {} to start", output::name_of(pod)))))
}

/// Waits until a container has ended.
pub async fn ended(session: &Session, path: &str, container: &str) -> Outcome<Value> {
    let waiting = async {
        loop {
            let pod = session.get(path).await?;
            let own = pod["status"]["containerStatuses"].items().iter().find(|s| s["name"] == container);
            if own.is_some_and(|s| s["state"]["terminated"].is_there()) {
                return Ok(pod);
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let late = |_| Err(Failure::new("timed out waiting for the condition"));
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(late)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_with_letters_that_names_may_have() {
        let text = letters();
        assert_eq!(text.len(), 5);
        assert!(text.bytes().all(|b| LETTERS.contains(&b)));
    }
}

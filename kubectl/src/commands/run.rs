//! `run` and `expose`.

use serde_json::{Map, Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, Parsed, repeated, switch, text};
use crate::kinds::Kind;
use crate::objects::FILES;
use crate::output::{self, changed};
use crate::session::Session;
use crate::value::Read;

use super::create::{SAVE, WRITE, is_client_dry_run, manager, save_typed, write_query};

/// Flags of `run`.
pub const FLAGS: &[&[Flag]] = &[
    output::FLAGS,
    &[
        WRITE[0],
        manager("kubectl-run"),
        text("cascade", "background", "Must be \"background\", \"orphan\", or \"foreground\".").alone("background"),
        FILES[0],
        FILES[1],
        FILES[2],
        switch("force", "If true, immediately remove resources from API and bypass graceful deletion."),
        text("grace-period", "-1", "Period of time in seconds given to the resource to terminate gracefully."),
        switch(
            "leave-stdin-open",
            "If the pod is started in interactive mode or with stdin, leave stdin open after the first attach completes.",
        ),
        text("pod-running-timeout", "1m0s", "The length of time to wait until at least one pod is running"),
        text("timeout", "0s", "The length of time to wait before giving up on a delete."),
        switch("wait", "If true, wait for resources to be gone before returning."),
        repeated("annotations", "Annotations to apply to the pod."),
        switch("attach", "If true, wait for the Pod to start running, and then attach to the Pod."),
        switch("command", "If true and extra arguments are present, use them as the 'command' field in the container."),
        repeated("env", "Environment variables to set in the container."),
        switch("expose", "If true, create a ClusterIP service associated with the pod. Requires `--port`."),
        text("image", "", "The image for the container to run."),
        text("image-pull-policy", "", "The image pull policy for the container."),
        text("labels", "", "Comma separated labels to apply to the pod.").short('l'),
        text("overrides", "", "An inline JSON override for the generated object."),
        text("override-type", "merge", "The method used to override the generated object: json, merge, or strategic."),
        text("port", "", "The port that this container exposes."),
        switch("privileged", "If true, run the container in privileged mode."),
        switch("quiet", "If true, suppress prompt messages.").short('q'),
        text("restart", "Always", "The restart policy for this Pod.  Legal values [Always, OnFailure, Never]."),
        switch("rm", "If true, delete the pod after it exits."),
        crate::flags::RECORD,
        SAVE,
        switch("stdin", "Keep stdin open on the container in the pod, even if nothing is attached.").short('i'),
        switch("tty", "Allocate a TTY for the container in the pod.").short('t'),
    ],
];

/// Flags of `expose`.
pub const EXPOSE: &[&[Flag]] = &[
    output::FLAGS,
    FILES,
    &[
        WRITE[0],
        manager("kubectl-expose"),
        crate::flags::RECORD,
        SAVE,
        text("overrides", "", "An inline JSON override for the generated object."),
        text("override-type", "merge", "The method used to override the generated object: json, merge, or strategic."),
        text("cluster-ip", "", "ClusterIP to be assigned to the service."),
        text(
            "external-ip",
            "",
            "Additional external IP address (not managed by Kubernetes) to accept for the service.",
        ),
        text("labels", "", "Labels to apply to the service created by this call.").short('l'),
        text("load-balancer-ip", "", "IP to assign to the LoadBalancer."),
        text("name", "", "The name for the newly created object."),
        text("port", "", "The port that the service should serve on."),
        text("protocol", "", "The network protocol for the service to be created. Default is 'TCP'."),
        text("selector", "", "A label selector to use for this service."),
        text(
            "session-affinity",
            "",
            "If non-empty, set the session affinity for the service to this; legal values: 'None', 'ClientIP'",
        ),
        text(
            "target-port",
            "",
            "Name or number for the port on the container that the service should direct traffic to.",
        ),
        text("type", "", "Type for this service: ClusterIP, NodePort, LoadBalancer, or ExternalName."),
    ],
];

/// `a=b,c=d` as a map.
pub fn pairs(text: &str) -> Outcome<Map<String, Value>> {
    let pair = |part: &str| {
        let (key, value) =
            part.split_once('=').ok_or_else(|| Failure::new(format!("unexpected label spec: {part}")))?;
        Ok((key.to_owned(), Value::from(value)))
    };
    text.split(',').filter(|p| !p.is_empty()).map(pair).collect()
}

/// `NAME=VALUE` as a container's variables.
pub fn variables(given: &[String]) -> Outcome<Vec<Value>> {
    let variable = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(match value {
            "" => json!({"name": name}),
            value => json!({"name": name, "value": value}),
        }),
        _ => Err(Failure::new(format!("invalid env: {text}"))),
    };
    given.iter().map(variable).collect()
}

/// Checks flags that do not go together.
fn check(parsed: &Parsed, attaches: bool) -> Outcome {
    if parsed.on("tty") && !parsed.on("stdin") {
        return Err(parsed.usage("-i/--stdin is required for containers with -t/--tty=true"));
    }
    if parsed.on("rm") && !attaches {
        return Err(parsed.usage("--rm should only be used for attached containers"));
    }
    if attaches && parsed.text("dry-run") != "none" {
        return Err(parsed.usage(
            "--dry-run=[server|client] can't be used with attached containers options (--attach, --stdin, or --tty)",
        ));
    }
    if parsed.on("expose") && parsed.text("port").is_empty() {
        return Err(parsed.usage("--port must be set when exposing a service"));
    }
    Ok(())
}

/// Checks the values of flags.
fn check_values(parsed: &Parsed, attaches: bool) -> Outcome {
    if attaches && parsed.is_set("pod-running-timeout") && parsed.duration("pod-running-timeout")?.is_zero() {
        return Err(parsed.usage("--pod-running-timeout must be higher than zero"));
    }
    if !matches!(parsed.text("restart"), "Always" | "OnFailure" | "Never") {
        return Err(parsed.usage(format!("invalid restart policy: {}", parsed.text("restart"))));
    }
    if !matches!(parsed.text("image-pull-policy"), "" | "Always" | "IfNotPresent" | "Never") {
        return Err(parsed.usage(format!("invalid image pull policy: {}", parsed.text("image-pull-policy"))));
    }
    Ok(())
}

/// The container that is run.
fn container(parsed: &Parsed, name: &str) -> Outcome<Value> {
    let arguments: Vec<String> = parsed.args[1..].iter().chain(parsed.after_dash.iter().flatten()).cloned().collect();
    let mut container = json!({"name": name, "image": parsed.text("image"), "resources": {}});
    if !arguments.is_empty() {
        container[if parsed.on("command") { "command" } else { "args" }] = json!(arguments);
    }
    let env = variables(&parsed.all("env"))?;
    if !env.is_empty() {
        container["env"] = env.into();
    }
    if !parsed.text("port").is_empty() {
        let port = parsed.text("port");
        let number: i64 =
            port.parse().map_err(|_| Failure::new(format!("strconv.Atoi: parsing {port:?}: invalid syntax")))?;
        container["ports"] = json!([{"containerPort": number}]);
    }
    if !parsed.text("image-pull-policy").is_empty() {
        container["imagePullPolicy"] = parsed.text("image-pull-policy").into();
    }
    for (flag, fields) in [("stdin", &["stdin", "stdinOnce"][..]), ("tty", &["tty"])] {
        if parsed.on(flag) {
            fields.iter().for_each(|field| container[field] = true.into());
        }
    }
    if parsed.on("privileged") {
        container["securityContext"] = json!({"privileged": true});
    }
    Ok(container)
}

/// Changes an object that was made of flags as `--overrides` says.
fn overridden(parsed: &Parsed, object: &mut Value) -> Outcome {
    if parsed.text("overrides").is_empty() {
        return Ok(());
    }
    let overrides: Value =
        serde_json::from_str(parsed.text("overrides")).map_err(|_| Failure::new("Invalid JSON Patch"))?;
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    if parsed.text("override-type") != "json" {
        let (version, other) = (overrides["apiVersion"].as_str(), overrides["kind"].as_str());
        if version.is_some_and(|v| v != "v1") || other.is_some_and(|k| k != kind) {
            return Err(Failure::new(format!(
                "no kind {:?} is registered for version {:?} in scheme \"pkg/scheme/scheme.go:28\"",
                other.unwrap_or(&kind),
                version.unwrap_or("v1")
            )));
        }
        if !overrides.is_object() {
            return Err(Failure::new("couldn't get version/kind; json parse error: the overrides are no object"));
        }
    }
    match parsed.text("override-type") {
        "merge" => keelson_machinery::patch::merge(object, &overrides),
        "json" => keelson_machinery::patch::json(object, &overrides).map_err(|s| Failure::new(s.message.clone()))?,
        "strategic" => {
            let types = keelson_machinery::schema::of_kind("", "v1", &kind);
            keelson_machinery::strategic::apply(types, object, &overrides)
                .map_err(|s| Failure::new(s.message.clone()))?;
        }
        other => return Err(Failure::new(format!("invalid override type: {other}"))),
    }
    // Fields that the type does not have are lost, and containers always say what they need.
    if let Some(definition) = keelson_machinery::schema::of_kind("", "v1", &kind) {
        let status = object["status"].take();
        keelson_machinery::conform::conform_to(definition, object).map_err(Failure::new)?;
        object["status"] = status;
    }
    let containers = object.pointer_mut("/spec/containers").and_then(Value::as_array_mut);
    for container in containers.into_iter().flatten() {
        if container["resources"].is_null() {
            container["resources"] = json!({});
        }
    }
    Ok(())
}

/// Runs `run`.
pub async fn run(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let attaches = if parsed.is_set("attach") { parsed.on("attach") } else { parsed.on("stdin") || parsed.on("tty") };
    if !parsed.is_set("image") {
        return Err(Failure::new("required flag(s) \"image\" not set"));
    }
    let Some(name) = parsed.args.first() else {
        return Err(parsed.usage("NAME is required for run"));
    };
    if parsed.text("image").is_empty() {
        return Err(Failure::new("--image is required"));
    }
    if !is_image(parsed.text("image")) {
        return Err(Failure::new(format!("Invalid image name {:?}: invalid reference format", parsed.text("image"))));
    }
    check(parsed, attaches)?;
    let container = container(parsed, name)?;
    let labels =
        if parsed.text("labels").is_empty() { json!({"run": name}) } else { pairs(parsed.text("labels"))?.into() };
    check_values(parsed, attaches)?;
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [container], "dnsPolicy": "ClusterFirst", "restartPolicy": parsed.text("restart")},
        "status": {},
    });
    for annotation in parsed.all("annotations") {
        let (key, value) = annotation
            .split_once('=')
            .ok_or_else(|| Failure::new(format!("invalid annotations format: {annotation}")))?;
        pod["metadata"]["annotations"][key] = value.into();
    }
    overridden(parsed, &mut pod)?;
    let namespace = session.namespace()?;
    if is_client_dry_run(session)? {
        if parsed.is_set("namespace") {
            pod["metadata"]["namespace"] = namespace.into();
        }
        if parsed.on("expose") {
            changed(parsed, &exposing(parsed, name)?, "created")?;
            if parsed.text("output") == "yaml" {
                // kubectl sets the two apart twice.
                println!("---");
            }
        }
        return changed(parsed, &pod, "created");
    }
    let query = write_query(session, "kubectl-run")?;
    let path = format!("/api/v1/namespaces/{namespace}/pods{query}");
    let made = session.post(&path, &pod).await?;
    if parsed.on("expose") {
        expose_made(session, &made, &format!("/api/v1/namespaces/{namespace}/services{query}")).await?;
    }
    if !attaches {
        return changed(parsed, &made, "created");
    }
    let result = attached(session, &made, name).await;
    if parsed.on("rm") {
        session.delete(&format!("/api/v1/namespaces/{namespace}/pods/{name}"), &json!({})).await?;
        println!("pod \"{name}\" deleted");
    }
    result
}

/// Makes the service of a pod that was made. If it cannot be made, the pod is there all the same, and is told of.
async fn expose_made(session: &Session, pod: &Value, path: &str) -> Outcome {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    match session.post(path, &exposing(&session.parsed, name)?).await {
        Ok(service) => changed(&session.parsed, &service, "created"),
        Err(error) => {
            changed(&session.parsed, pod, "created")?;
            Err(error)
        }
    }
}

/// The service that leads to a pod that is run.
fn exposing(parsed: &Parsed, name: &str) -> Outcome<Value> {
    let port = parsed.number("port")?;
    let selector =
        if parsed.text("labels").is_empty() { json!({"run": name}) } else { pairs(parsed.text("labels"))?.into() };
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"port": port, "protocol": "TCP", "targetPort": port}], "selector": selector},
        "status": {"loadBalancer": {}}});
    if !parsed.text("labels").is_empty() {
        service["metadata"]["labels"] = service["spec"]["selector"].clone();
    }
    Ok(service)
}

/// Joins this terminal to a pod, or shows its log if it has ended already; fails as its container does.
async fn attached(session: &Session, pod: &Value, name: &str) -> Outcome {
    let pod = super::debug::started(session, pod, name).await?;
    let namespace = session.namespace()?;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    let running =
        pod["status"]["containerStatuses"].as_array().into_iter().flatten().any(|s| !s["state"]["running"].is_null());
    let joined = match running {
        true => super::exec::to_pod(session, &pod).await,
        false => Err(Failure::Code(1)),
    };
    match joined {
        // It has ended meanwhile: what it said is in its log.
        Err(Failure::Server(_) | Failure::Code(_)) => {
            print!("{}", session.text(&format!("{path}/log?container={name}")).await?);
        }
        other => other?,
    }
    if session.parsed.text("restart") == "Always" {
        return Ok(());
    }
    let pod = super::debug::ended(session, &path, name).await?;
    let all = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    let code = all.filter_map(|s| s["state"]["terminated"]["exitCode"].as_u64()).find(|code| *code != 0);
    match code {
        None => Ok(()),
        Some(code) => {
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            eprintln!("pod {namespace}/{name} terminated ({phase})");
            Err(Failure::Code(u8::try_from(code).unwrap_or(1)))
        }
    }
}

/// Runs `expose`.
pub async fn expose(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    // `--selector` selects the new service's pods, not what is exposed.
    let found = super::change::named_by_name(session, &parsed.args).await?;
    let mut failed = None;
    for (kind, object) in found {
        if let Err(error) = expose_one(session, &kind, &object).await {
            failed = Some(super::say(failed, error));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// The labels of the pods that a new service for an object leads to.
fn selector_for(parsed: &Parsed, kind: &Kind, object: &Value) -> Outcome<Value> {
    let selector: Value = match (kind.plural.as_str(), parsed.text("selector")) {
        ("pods", "") => object["metadata"]["labels"].clone(),
        ("services" | "replicationcontrollers", "") => object["spec"]["selector"].clone(),
        ("deployments" | "replicasets", "") => {
            let expressions = object["spec"]["selector"]["matchExpressions"].items();
            if !expressions.is_empty() {
                let shown = expressions.iter().map(|e| {
                    format!(
                        "{{Key:{} Operator:{} Values:{}}}",
                        e["key"].shown(),
                        e["operator"].shown(),
                        e["values"].shown()
                    )
                });
                return Err(Failure::new(format!(
                    "couldn't retrieve selectors via --selector flag or introspection: couldn't convert expressions - \"[{}]\" to \
                     map-based selector format",
                    shown.collect::<Vec<_>>().join(" ")
                )));
            }
            object["spec"]["selector"]["matchLabels"].clone()
        }
        ("pods" | "services" | "replicationcontrollers" | "deployments" | "replicasets", given) => pairs(given)?.into(),
        _ => {
            super::known(kind)?;
            let group = if kind.group.is_empty() { String::new() } else { format!(".{}", kind.group) };
            return Err(Failure::new(format!("cannot expose a {}{group}", kind.kind)));
        }
    };
    if selector.as_object().is_none_or(Map::is_empty) {
        return Err(Failure::new(format!(
            "couldn't retrieve selectors via --selector flag or introspection: the {} has no labels and cannot be exposed",
            kind.kind.to_lowercase()
        )));
    }
    Ok(selector)
}

async fn expose_one(session: &Session, kind: &Kind, object: &Value) -> Outcome {
    let parsed = &session.parsed;
    let mut service = service(session, object, selector_for(parsed, kind, object)?)?;
    let affinity = parsed.text("session-affinity");
    if !matches!(affinity, "" | "None" | "ClientIP") {
        return Err(Failure::new(format!("unknown session affinity: {affinity}")));
    }
    overridden(parsed, &mut service)?;
    if is_client_dry_run(session)? {
        return changed(parsed, &service, "exposed");
    }
    if parsed.on("save-config") {
        save_typed(&mut service);
    }
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    let path = format!("/api/v1/namespaces/{namespace}/services{}", write_query(session, "kubectl-expose")?);
    let made = session.post(&path, &service).await?;
    changed(parsed, &made, "exposed")
}

fn service(session: &Session, object: &Value, selector: Value) -> Outcome<Value> {
    let parsed = &session.parsed;
    let name = if parsed.text("name").is_empty() {
        object["metadata"]["name"].as_str().unwrap_or_default()
    } else {
        parsed.text("name")
    };
    let ports = ports(parsed.text("port"), object)?;
    if ports.is_empty() {
        return Err(Failure::new("couldn't find port via --port flag or introspection"));
    }
    let many = ports.len() > 1;
    let target = parsed.text("target-port");
    let port = |(at, (number, protocol)): (usize, &(i64, String))| {
        let protocol = if parsed.text("protocol").is_empty() { protocol.as_str() } else { parsed.text("protocol") };
        let target = match target.parse::<i64>() {
            _ if target.is_empty() => json!(number),
            Ok(number) => json!(number),
            Err(_) => json!(target),
        };
        let mut port = json!({"port": number, "protocol": protocol, "targetPort": target});
        if many {
            port["name"] = format!("port-{}", at + 1).into();
        }
        port
    };
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name},
        "spec": {"ports": ports.iter().enumerate().map(port).collect::<Vec<_>>(), "selector": selector},
        "status": {"loadBalancer": {}},
    });
    let labels = if parsed.text("labels").is_empty() {
        object["metadata"]["labels"].clone()
    } else {
        pairs(parsed.text("labels"))?.into()
    };
    if labels.as_object().is_some_and(|l| !l.is_empty()) {
        service["metadata"]["labels"] = labels;
    }
    for (flag, field) in [
        ("type", "type"),
        ("cluster-ip", "clusterIP"),
        ("session-affinity", "sessionAffinity"),
        ("load-balancer-ip", "loadBalancerIP"),
    ] {
        if !parsed.text(flag).is_empty() {
            service["spec"][field] = parsed.text(flag).into();
        }
    }
    if !parsed.text("external-ip").is_empty() {
        service["spec"]["externalIPs"] = json!([parsed.text("external-ip")]);
    }
    Ok(service)
}

/// The ports that are asked for, or those of the object: number and protocol.
fn ports(given: &str, object: &Value) -> Outcome<Vec<(i64, String)>> {
    let mut ports: Vec<(i64, String)> = Vec::new();
    match given {
        "" => {
            let spec = match object["kind"].as_str() {
                Some("Pod" | "Service") => &object["spec"],
                _ => &object["spec"]["template"]["spec"],
            };
            let of_containers = spec["containers"]
                .as_array()
                .into_iter()
                .flatten()
                .flat_map(|c| c["ports"].as_array().into_iter().flatten());
            for port in of_containers.chain(spec["ports"].as_array().into_iter().flatten()) {
                let number = port["containerPort"].as_i64().or(port["port"].as_i64()).unwrap_or(0);
                ports.push((number, port["protocol"].as_str().unwrap_or("TCP").to_owned()));
            }
        }
        given => {
            for port in given.split(',') {
                let number = port
                    .parse()
                    .map_err(|_| Failure::new(format!("strconv.Atoi: parsing {port:?}: invalid syntax")))?;
                ports.push((number, "TCP".into()));
            }
        }
    }
    Ok(ports)
}

/// Whether a text can name an image: a registry's host, lower-case names, a tag, a digest.
pub fn is_image(text: &str) -> bool {
    const HOST: &str = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?";
    const NAME: &str = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*";
    let pattern = format!(
        r"^(?:(?:{HOST}(?:\.{HOST})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?/)?{NAME}(?:/{NAME})*(?::[\w][\w.-]{{0,127}})?(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{{32,}})?$"
    );
    regex::Regex::new(&pattern).is_ok_and(|pattern| pattern.is_match(text))
}

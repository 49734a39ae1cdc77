//! Pods, their containers, and the pods that workloads are templates of.

use serde_json::Value;

use super::common::{annotations, controller, events, labels, marks, names, selector};
use super::sheet::{Sheet, row};
use super::volumes::volumes;
use crate::value::{Read, ago, amount, date, or, quantity, quoted};

/// Describes a pod.
pub fn pod(w: &mut Sheet, pod: &Value, found: Option<Vec<Value>>) {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    names(w, pod);
    head(w, pod);
    marks(w, pod);
    phase(w, pod);
    row!(w, 0, "IP:\t{}", status["podIP"].text());
    match status["podIPs"].items() {
        [] => row!(w, 0, "IPs:\t<none>"),
        addresses => {
            row!(w, 0, "IPs:");
            addresses.iter().for_each(|ip| row!(w, 1, "IP:\t{}", ip["ip"].text()));
        }
    }
    controller(w, pod);
    for (label, field) in [("NominatedNodeName", "nominatedNodeName")] {
        if !status[field].text().is_empty() {
            row!(w, 0, "{label}:\t{}", status[field].text());
        }
    }
    if spec["resources"].is_there() {
        row!(w, 0, "Resources:");
        resources(w, &spec["resources"], 1);
    }
    let all = [
        ("Init Containers", "initContainers", "initContainerStatuses"),
        ("Containers", "containers", "containerStatuses"),
        ("Ephemeral Containers", "ephemeralContainers", "ephemeralContainerStatuses"),
    ];
    for (label, field, statuses) in all {
        if field == "containers" || !spec[field].items().is_empty() {
            containers(w, label, spec[field].items(), status[statuses].items(), Some(pod), "");
        }
    }
    readiness(w, pod);
    volumes(w, &spec["volumes"], "");
    row!(w, 0, "QoS Class:\t{}", or(status["qosClass"].text(), keelson_machinery::qos::class(pod)));
    labels(w, "Node-Selectors", &spec["nodeSelector"]);
    tolerations(w, "Tolerations", &spec["tolerations"]);
    spread(w, &spec["topologySpreadConstraints"], "");
    events(w, found);
}

fn head(w: &mut Sheet, pod: &Value) {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    if spec["priority"].is_there() {
        row!(w, 0, "Priority:\t{}", spec["priority"].number());
    }
    for (label, field) in [
        ("Priority Class Name", "priorityClassName"),
        ("Runtime Class Name", "runtimeClassName"),
        ("Service Account", "serviceAccountName"),
    ] {
        if !spec[field].text().is_empty() {
            row!(w, 0, "{label}:\t{}", spec[field].text());
        }
    }
    match spec["nodeName"].text() {
        "" => row!(w, 0, "Node:\t<none>"),
        node => row!(w, 0, "Node:\t{node}/{}", status["hostIP"].text()),
    }
    if status["startTime"].is_there() {
        row!(w, 0, "Start Time:\t{}", date(&status["startTime"]));
    }
}

fn phase(w: &mut Sheet, pod: &Value) {
    let (metadata, status) = (&pod["metadata"], &pod["status"]);
    let phase = status["phase"].text();
    if metadata["deletionTimestamp"].is_there() && !matches!(phase, "Failed" | "Succeeded") {
        row!(w, 0, "Status:\tTerminating (lasts {})", ago(&metadata["deletionTimestamp"]));
        row!(w, 0, "Termination Grace Period:\t{}s", metadata["deletionGracePeriodSeconds"].number());
    } else {
        row!(w, 0, "Status:\t{phase}");
    }
    for (label, field) in [("Reason", "reason"), ("Message", "message")] {
        if !status[field].text().is_empty() {
            row!(w, 0, "{label}:\t{}", status[field].text());
        }
    }
    seccomp(w, &pod["spec"]["securityContext"], 0, 0);
}

fn seccomp(w: &mut Sheet, context: &Value, level: usize, inner: usize) {
    let profile = &context["seccompProfile"];
    if profile.is_there() {
        row!(w, level, "SeccompProfile:\t{}", profile["type"].text());
        if profile["type"] == "Localhost" {
            row!(w, inner, "LocalhostProfile:\t{}", profile["localhostProfile"].text());
        }
    }
}

fn readiness(w: &mut Sheet, pod: &Value) {
    let conditions = pod["status"]["conditions"].items();
    let gates = pod["spec"]["readinessGates"].items();
    if !gates.is_empty() {
        w.put("Readiness Gates:\n  Type\tStatus\n");
    }
    for gate in gates {
        let kind = gate["conditionType"].text();
        let status = conditions.iter().find(|c| c["type"] == kind).map_or("<none>", |c| c["status"].text());
        row!(w, 1, "{kind} \t{status} ");
    }
    if !conditions.is_empty() {
        w.put("Conditions:\n  Type\tStatus\n");
    }
    for c in conditions {
        row!(w, 1, "{} \t{} ", c["type"].text(), c["status"].text());
    }
}

/// The template of a workload's pods.
pub fn template(w: &mut Sheet, template: &Value) {
    let (metadata, spec) = (&template["metadata"], &template["spec"]);
    row!(w, 0, "Pod Template:");
    labels(w, "  Labels", &metadata["labels"]);
    if !metadata["annotations"].pairs().is_empty() {
        annotations(w, "  Annotations", &metadata["annotations"]);
    }
    if !spec["serviceAccountName"].text().is_empty() {
        row!(w, 1, "Service Account:\t{}", spec["serviceAccountName"].text());
    }
    if !spec["initContainers"].items().is_empty() {
        containers(w, "Init Containers", spec["initContainers"].items(), &[], None, "  ");
    }
    containers(w, "Containers", spec["containers"].items(), &[], None, "  ");
    volumes(w, &spec["volumes"], "  ");
    spread(w, &spec["topologySpreadConstraints"], "  ");
    if !spec["priorityClassName"].text().is_empty() {
        row!(w, 1, "Priority Class Name:\t{}", spec["priorityClassName"].text());
    }
    labels(w, "  Node-Selectors", &spec["nodeSelector"]);
    tolerations(w, "  Tolerations", &spec["tolerations"]);
}

fn containers(w: &mut Sheet, label: &str, all: &[Value], statuses: &[Value], pod: Option<&Value>, space: &str) {
    row!(w, 0, "{space}{label}:{}", if all.is_empty() { " <none>" } else { "" });
    for container in all {
        let status = statuses.iter().find(|s| s["name"] == container["name"]);
        basics(w, container, status, space);
        words(w, "Command", &container["command"]);
        words(w, "Args", &container["args"]);
        if let Some(status) = status {
            state(w, "State", &status["state"]);
            if status["lastState"]["terminated"].is_there() {
                state(w, "Last State", &status["lastState"]);
            }
            row!(w, 2, "Ready:\t{}", yes(&status["ready"]));
            row!(w, 2, "Restart Count:\t{}", status["restartCount"].number());
        }
        resources(w, &container["resources"], 2);
        for (label, field) in
            [("Liveness", "livenessProbe"), ("Readiness", "readinessProbe"), ("Startup", "startupProbe")]
        {
            if container[field].is_there() {
                row!(w, 2, "{label}:\t{}", probe(&container[field]));
            }
        }
        environment(w, container, pod);
        mounts(w, container);
    }
}

/// `True` or `False`.
pub fn yes(value: &Value) -> &'static str {
    if value.is_true() { "True" } else { "False" }
}

fn basics(w: &mut Sheet, container: &Value, status: Option<&Value>, space: &str) {
    let indent = if space.is_empty() { "" } else { " " };
    row!(w, 1, "{indent}{}:", container["name"].text());
    if let Some(status) = status {
        row!(w, 2, "Container ID:\t{}", status["containerID"].text());
    }
    row!(w, 2, "Image:\t{}", container["image"].text());
    if let Some(status) = status {
        row!(w, 2, "Image ID:\t{}", status["imageID"].text());
    }
    for (label, field) in [("Port", "containerPort"), ("Host Port", "hostPort")] {
        let ports: Vec<String> = container["ports"]
            .items()
            .iter()
            .map(|p| format!("{}/{}", p[field].number(), or(p["protocol"].text(), "TCP")))
            .collect();
        match ports.as_slice() {
            [] => row!(w, 2, "{label}:\t<none>"),
            [one] => row!(w, 2, "{label}:\t{one}"),
            many => row!(w, 2, "{label}s:\t{}", many.join(", ")),
        }
    }
    seccomp(w, &container["securityContext"], 2, 3);
}

fn words(w: &mut Sheet, label: &str, list: &Value) {
    if !list.items().is_empty() {
        row!(w, 2, "{label}:");
    }
    for line in list.texts().into_iter().flat_map(|word| word.split('\n')) {
        row!(w, 3, "{line}");
    }
}

fn state(w: &mut Sheet, label: &str, state: &Value) {
    let (running, terminated) = (&state["running"], &state["terminated"]);
    if running.is_there() {
        row!(w, 2, "{label}:\tRunning");
        row!(w, 3, "Started:\t{}", date(&running["startedAt"]));
    } else if terminated.is_there() {
        row!(w, 2, "{label}:\tTerminated");
        for (label, field) in [("Reason", "reason"), ("Message", "message")] {
            if !terminated[field].text().is_empty() {
                row!(w, 3, "{label}:\t{}", terminated[field].text());
            }
        }
        row!(w, 3, "Exit Code:\t{}", terminated["exitCode"].number());
        if terminated["signal"].number() > 0 {
            row!(w, 3, "Signal:\t{}", terminated["signal"].number());
        }
        row!(w, 3, "Started:\t{}", date(&terminated["startedAt"]));
        row!(w, 3, "Finished:\t{}", date(&terminated["finishedAt"]));
    } else {
        row!(w, 2, "{label}:\tWaiting");
        if !state["waiting"]["reason"].text().is_empty() {
            row!(w, 3, "Reason:\t{}", state["waiting"]["reason"].text());
        }
    }
}

fn resources(w: &mut Sheet, resources: &Value, level: usize) {
    for (label, field) in [("Limits", "limits"), ("Requests", "requests")] {
        let Some(map) = resources[field].as_object().filter(|m| !m.is_empty()) else { continue };
        row!(w, level, "{label}:");
        for (name, value) in map {
            row!(w, level + 1, "{name}:\t{}", amount(value));
        }
    }
}

fn probe(probe: &Value) -> String {
    let number = |field: &str, otherwise: i64| probe[field].as_i64().unwrap_or(otherwise);
    let attributes = format!(
        "delay={}s timeout={}s period={}s #success={} #failure={}",
        number("initialDelaySeconds", 0),
        number("timeoutSeconds", 0),
        number("periodSeconds", 0),
        number("successThreshold", 0),
        number("failureThreshold", 0)
    );
    let (http, tcp, grpc) = (&probe["httpGet"], &probe["tcpSocket"], &probe["grpc"]);
    if probe["exec"].is_there() {
        format!("exec [{}] {attributes}", probe["exec"]["command"].texts().join(" "))
    } else if http.is_there() {
        let host = http["host"].text();
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let path = http["path"].text();
        let slash = if path.is_empty() || path.starts_with('/') { "" } else { "/" };
        let scheme = http["scheme"].text().to_lowercase();
        format!("http-get {scheme}://{host}:{}{slash}{path} {attributes}", http["port"].shown())
    } else if tcp.is_there() {
        format!("tcp-socket {}:{} {attributes}", tcp["host"].text(), tcp["port"].shown())
    } else if grpc.is_there() {
        format!("grpc <pod>:{} {} {attributes}", grpc["port"].number(), grpc["service"].text())
    } else {
        format!("unknown {attributes}")
    }
}

fn environment(w: &mut Sheet, container: &Value, pod: Option<&Value>) {
    let from = container["envFrom"].items();
    if !from.is_empty() {
        row!(w, 2, "Environment Variables from:");
    }
    for e in from {
        let (kind, of) = if e["configMapRef"].is_there() {
            ("ConfigMap", &e["configMapRef"])
        } else {
            (if e["secretRef"].is_there() { "Secret" } else { "" }, &e["secretRef"])
        };
        let prefix = match e["prefix"].text() {
            "" => String::new(),
            prefix => format!(" with prefix '{prefix}'"),
        };
        row!(w, 3, "{}\t{kind}{prefix}\tOptional: {}", of["name"].text(), of["optional"].is_true());
    }
    let own = container["env"].items();
    row!(w, 2, "Environment:{}", if own.is_empty() { "\t<none>" } else { "" });
    own.iter().for_each(|e| variable(w, e, container, pod));
}

fn variable(w: &mut Sheet, e: &Value, container: &Value, pod: Option<&Value>) {
    let (name, from) = (e["name"].text(), &e["valueFrom"]);
    if from.is_null() {
        for (at, line) in e["value"].text().split('\n').enumerate() {
            match at {
                0 => row!(w, 3, "{name}:\t{line}"),
                _ => row!(w, 3, "\t{line}"),
            }
        }
    } else if from["fieldRef"].is_there() {
        let path = from["fieldRef"]["fieldPath"].text();
        let value = pod.map(|pod| field(pod, path)).unwrap_or_default();
        row!(w, 3, "{name}:\t{value} ({}:{path})", or(from["fieldRef"]["apiVersion"].text(), "v1"));
    } else if from["resourceFieldRef"].is_there() {
        let resource = from["resourceFieldRef"]["resource"].text();
        let value = match resource_of(container, resource, &from["resourceFieldRef"]["divisor"]) {
            Some(0) if matches!(resource, "limits.cpu" | "limits.memory") => "node allocatable".into(),
            Some(value) => value.to_string(),
            None => String::new(),
        };
        row!(w, 3, "{name}:\t{value} ({resource})");
    } else {
        for (field, in_, kind) in [("secretKeyRef", "in", "secret"), ("configMapKeyRef", "of", "config map")] {
            let of = &from[field];
            if of.is_there() {
                let (key, object, optional) = (of["key"].text(), of["name"].text(), of["optional"].is_true());
                row!(w, 3, "{name}:\t<set to the key '{key}' {in_} {kind} '{object}'>\tOptional: {optional}");
            }
        }
    }
}

/// What a field of the pod says: only its name and namespace are resolved.
fn field(pod: &Value, path: &str) -> String {
    match path {
        "metadata.name" | "metadata.namespace" => pod["metadata"][&path["metadata.".len()..]].text().to_owned(),
        _ => String::new(),
    }
}

fn resource_of(container: &Value, resource: &str, divisor: &Value) -> Option<i64> {
    let (list, name) = resource.split_once('.')?;
    let value = quantity(&container["resources"][list][name]);
    let divisor = quantity(divisor);
    let up = |value: i64, by: i64| value.div_euclid(by) + i64::from(value.rem_euclid(by) > 0);
    match name {
        "cpu" => Some(up(value.millis(), if divisor.is_zero() { 1000 } else { divisor.millis() })),
        "memory" | "ephemeral-storage" => Some(up(value.units(), if divisor.is_zero() { 1 } else { divisor.units() })),
        name if name.starts_with("hugepages-") => {
            Some(up(value.units(), if divisor.is_zero() { 1 } else { divisor.units() }))
        }
        _ => None,
    }
}

fn mounts(w: &mut Sheet, container: &Value) {
    let none = if container["volumeMounts"].items().is_empty() { "\t<none>" } else { "" };
    row!(w, 2, "Mounts:{none}");
    let mut mounts: Vec<&Value> = container["volumeMounts"].items().iter().collect();
    mounts.sort_by_key(|m| m["mountPath"].text());
    for mount in mounts {
        let mode = if mount["readOnly"].is_true() { "ro" } else { "rw" };
        let sub = match mount["subPath"].text() {
            "" => String::new(),
            path => format!(",path={}", quoted(path)),
        };
        row!(w, 3, "{} from {} ({mode}{sub})", mount["mountPath"].text(), mount["name"].text());
    }
    let mut devices: Vec<&Value> = container["volumeDevices"].items().iter().collect();
    devices.sort_by_key(|d| d["devicePath"].text());
    if !devices.is_empty() {
        row!(w, 2, "Devices:{none}");
    }
    for device in devices {
        row!(w, 3, "{} from {}", device["devicePath"].text(), device["name"].text());
    }
}

fn tolerations(w: &mut Sheet, title: &str, tolerations: &Value) {
    let mut all: Vec<&Value> = tolerations.items().iter().collect();
    all.sort_by_key(|t| t["key"].text());
    w.put(&format!("{title}:\t"));
    if all.is_empty() {
        w.put("<none>\n");
    }
    for (at, t) in all.into_iter().enumerate() {
        if at > 0 {
            w.put("\t");
        }
        let (key, value, effect) = (t["key"].text(), t["value"].text(), t["effect"].text());
        let mut line = key.to_owned();
        for (sign, part) in [("=", value), (":", effect)] {
            if !part.is_empty() {
                line += &format!("{sign}{part}");
            }
        }
        if t["operator"] == "Exists" && value.is_empty() {
            line += if key.is_empty() && effect.is_empty() { "op=Exists" } else { " op=Exists" };
        }
        if t["tolerationSeconds"].is_there() {
            line += &format!(" for {}s", t["tolerationSeconds"].number());
        }
        w.put(&line);
        w.put("\n");
    }
}

fn spread(w: &mut Sheet, constraints: &Value, space: &str) {
    let mut all: Vec<&Value> = constraints.items().iter().collect();
    all.sort_by_key(|c| c["topologyKey"].text());
    for (at, c) in all.into_iter().enumerate() {
        let start = if at == 0 { format!("{space}Topology Spread Constraints:\t") } else { format!("{space}\t") };
        let key = c["topologyKey"].text();
        let (when, skew) = (c["whenUnsatisfiable"].text(), c["maxSkew"].number());
        let of = match c["labelSelector"].is_there() {
            true => format!(" for selector {}", or(&selector(&c["labelSelector"]), "<none>")),
            false => String::new(),
        };
        row!(w, 0, "{start}{key}:{when} when max skew {skew} is exceeded{of}");
    }
}

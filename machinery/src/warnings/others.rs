//! Workloads, Services, storage, networks and accounts.

use serde_json::Value;

use super::{address, claim_amounts, node_selector, node_term, old_label, pair, pod, range};
use crate::base64_text::{self, Form};
use crate::names;
use crate::resource::ResourceDef;
use crate::shown::quoted;
use crate::validation::{entries, has, items, text};

/// Said of the annotation that named a class before there was a field.
const OLD_CLASS: &str = "deprecated since v1.8; use \"storageClassName\" attribute instead";
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";
/// More completions and parallel pods of a Job than its indexes are surely kept of.
const MANY_COMPLETIONS: i64 = 100_000;
const MANY_PODS: i64 = 10_000;
/// Controllers whose endpoints are written well.
const ENDPOINT_CONTROLLERS: &[&str] =
    &["endpoint-controller", "endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"];

/// What makes pods of a template; of one that stayed as it was little is told again.
pub fn workload(plural: &str, new: &Value, is_update: bool, unchanged: bool, out: &mut Vec<String>) {
    let named = !matches!(plural, "statefulsets" | "daemonsets");
    let problems = names::label_problems(text(&new["metadata"], "name"));
    if !is_update && named && !problems.is_empty() {
        out.push(format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label \
             is recommended: [{}]",
            problems.join(" ")
        ));
    }
    if !unchanged {
        match plural {
            "jobs" => job(&new["spec"], "spec", out),
            "cronjobs" => job(&new["spec"]["jobTemplate"]["spec"], "spec.jobTemplate.spec", out),
            _ => pod::template(&new["spec"]["template"], "spec.template", out),
        }
    }
    if plural == "statefulsets" {
        // Told of by these paths.
        let below = if is_update { ".Spec" } else { "" };
        for (index, claim) in items(&new["spec"]["volumeClaimTemplates"]).enumerate() {
            claim_amounts(&claim["spec"], &format!("spec.volumeClaimTemplates[{index}]{below}"), out);
        }
        if new["spec"]["revisionHistoryLimit"].as_i64().is_some_and(|limit| limit < 0) {
            let why = "a negative value retains all historical revisions; a value >= 0 is recommended";
            out.push(format!("spec.revisionHistoryLimit: {why}"));
        }
    }
    if plural == "cronjobs" && is_update && text(&new["spec"], "schedule").contains("TZ") {
        let more = "see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details";
        out.push(format!("cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, {more}"));
    }
}

fn job(spec: &Value, path: &str, out: &mut Vec<String>) {
    let number = |field: &str| spec[field].as_i64().unwrap_or(0);
    let many = number("completions") > MANY_COMPLETIONS && number("parallelism") > MANY_PODS;
    if spec["completionMode"] == "Indexed" && many {
        let why = "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, \
                   Kubernetes might not be able to track completedIndexes when a big number of indexes fail";
        out.push(format!("{path}: {why}"));
    }
    pod::template(&spec["template"], &format!("{path}.template"), out);
}

/// Any other kind.
pub fn of(def: &ResourceDef, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
    let (metadata, spec) = (&new["metadata"], &new["spec"]);
    match (def.group, def.plural) {
        ("", "services") => service(metadata, spec, out),
        ("", "persistentvolumes") => volume(metadata, spec, out),
        ("", "persistentvolumeclaims") => {
            annotation(metadata, CLASS, OLD_CLASS, out);
            claim_amounts(spec, "spec", out);
        }
        ("", "secrets") => certificate(new, out),
        ("", "serviceaccounts") => account(metadata, old, out),
        ("", "nodes") => {
            if has(spec, "configSource") {
                out.push("spec.configSource: the feature is removed".into());
            }
            if !text(spec, "externalID").is_empty() {
                out.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".into());
            }
        }
        ("", "endpoints") if !is_controlled(metadata) => endpoints(new, out),
        ("discovery.k8s.io", "endpointslices") => endpoint_slice(new, old.is_none(), out),
        ("networking.k8s.io", "networkpolicies") => network_policy(spec, out),
        ("networking.k8s.io", "ingresses") if old.is_none() => ingress(metadata, spec, out),
        ("storage.k8s.io", "csidrivers") if old.is_none() => driver(spec, out),
        ("resource.k8s.io", "resourceslices") => upper_case_driver(spec, out),
        ("storage.k8s.io", "storageclasses") => storage_class(new, out),
        ("storage.k8s.io", "csistoragecapacities") => node_selector(&new["nodeTopology"], "nodeTopology", out),
        ("node.k8s.io", "runtimeclasses") => {
            for (key, _) in entries(&new["scheduling"]["nodeSelector"]) {
                out.extend(old_label(key).map(|why| format!("scheduling.nodeSelector: {why}")));
            }
        }
        _ => {}
    }
}

/// A change through a subresource.
pub fn status(def: &ResourceDef, subresource: &str, new: &Value, out: &mut Vec<String>) {
    if subresource != "status" {
        return;
    }
    match (def.group, def.plural) {
        ("", "pods") => pod::addresses(&new["status"], out),
        ("", "services") => {
            for (index, entry) in items(&new["status"]["loadBalancer"]["ingress"]).enumerate() {
                address(text(entry, "ip"), &format!("status.loadBalancer.ingress[{index}]"), out);
            }
        }
        _ => {}
    }
}

fn annotation(metadata: &Value, key: &str, why: &str, out: &mut Vec<String>) {
    if has(&metadata["annotations"], key) {
        out.push(format!("metadata.annotations[{key}]: {why}"));
    }
}

/// Whether endpoints are a controller's.
fn is_controlled(metadata: &Value) -> bool {
    let labels = &metadata["labels"];
    ["endpoints.kubernetes.io/managed-by", "endpointslice.kubernetes.io/managed-by"]
        .iter()
        .any(|key| labels[*key].as_str().is_some_and(|by| ENDPOINT_CONTROLLERS.contains(&by)))
}

fn endpoints(new: &Value, out: &mut Vec<String>) {
    for (index, subset) in items(&new["subsets"]).enumerate() {
        for list in ["addresses", "notReadyAddresses"] {
            for (i, entry) in items(&subset[list]).enumerate() {
                address(text(entry, "ip"), &format!("subsets[{index}].{list}[{i}].ip"), out);
            }
        }
    }
}

fn endpoint_slice(new: &Value, is_new: bool, out: &mut Vec<String>) {
    let names = new["addressType"] == "FQDN";
    if names && is_new {
        out.push("spec.addressType: FQDN endpoints are deprecated".into());
    }
    if names || is_controlled(&new["metadata"]) {
        return;
    }
    for (index, endpoint) in items(&new["endpoints"]).enumerate() {
        for (i, ip) in items(&endpoint["addresses"]).enumerate() {
            address(ip.as_str().unwrap_or_default(), &format!("endpoints[{index}].addresses[{i}]"), out);
        }
    }
}

fn network_policy(spec: &Value, out: &mut Vec<String>) {
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in items(&spec[rules]).enumerate() {
            for (i, peer) in items(&rule[peers]).enumerate() {
                let at = format!("spec.{rules}[{index}].{peers}[{i}].ipBlock");
                range(text(&peer["ipBlock"], "cidr"), &format!("{at}.cidr"), out);
                for (k, except) in items(&peer["ipBlock"]["except"]).enumerate() {
                    range(except.as_str().unwrap_or_default(), &format!("{at}.except[{k}]"), out);
                }
            }
        }
    }
}

fn ingress(metadata: &Value, spec: &Value, out: &mut Vec<String>) {
    if !has(spec, "ingressClassName") && has(&metadata["annotations"], "kubernetes.io/ingress.class") {
        let why = "is deprecated, please use 'spec.ingressClassName' instead";
        out.push(format!("annotation \"kubernetes.io/ingress.class\" {why}"));
    }
}

/// The annotation that limits an account's pods to its own secrets has had its time.
fn account(metadata: &Value, old: Option<&Value>, out: &mut Vec<String>) {
    const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";
    let before = old.map(|old| &old["metadata"]["annotations"][ENFORCE]);
    if before != Some(&metadata["annotations"][ENFORCE]) {
        let why = "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets";
        annotation(metadata, ENFORCE, why, out);
    }
}

fn service(metadata: &Value, spec: &Value, out: &mut Vec<String>) {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    const MODE: &str = "service.kubernetes.io/topology-mode";
    if has(&metadata["annotations"], HINTS) {
        out.push(format!("annotation {HINTS} is deprecated, please use {MODE} instead"));
    }
    for (index, ip) in items(&spec["clusterIPs"]).enumerate() {
        address(ip.as_str().unwrap_or_default(), &format!("spec.clusterIPs[{index}]"), out);
    }
    let (kind, external) = (text(spec, "type"), items(&spec["externalIPs"]).next().is_some());
    let headless = kind == "ClusterIP" && spec["clusterIP"] == "None";
    if headless {
        let said = [
            ("loadBalancerIP", !text(spec, "loadBalancerIP").is_empty()),
            ("externalIPs", external),
            ("SessionAffinity", text(spec, "sessionAffinity") != "None"),
        ];
        for (field, _) in said.iter().filter(|(_, said)| *said) {
            out.push(format!("spec.{field} is ignored for headless services"));
        }
    }
    for (index, ip) in items(&spec["externalIPs"]).enumerate() {
        address(ip.as_str().unwrap_or_default(), &format!("spec.externalIPs[{index}]"), out);
    }
    if external && !headless && kind != "ExternalName" {
        out.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".into());
    }
    address(text(spec, "loadBalancerIP"), "spec.loadBalancerIP", out);
    for (index, cidr) in items(&spec["loadBalancerSourceRanges"]).enumerate() {
        range(cidr.as_str().unwrap_or_default(), &format!("spec.loadBalancerSourceRanges[{index}]"), out);
    }
    if kind == "ExternalName" && external {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".into());
    }
    if kind != "ExternalName" && !text(spec, "externalName").is_empty() {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    if spec["trafficDistribution"] == "PreferClose" {
        out.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".into());
    }
}

fn volume(metadata: &Value, spec: &Value, out: &mut Vec<String>) {
    const GONE: &[(&str, &str, &str)] = &[
        ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ];
    annotation(metadata, CLASS, OLD_CLASS, out);
    annotation(metadata, MOUNT_OPTIONS, "deprecated since v1.31; use \"mountOptions\" attribute instead", out);
    if spec["persistentVolumeReclaimPolicy"] == "Recycle" {
        out.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is \
             to use dynamic provisioning."
                .into(),
        );
    }
    for (index, term) in items(&spec["nodeAffinity"]["required"]["nodeSelectorTerms"]).enumerate() {
        node_term(term, false, &format!("spec.nodeAffinity.required.nodeSelectorTerms[{index}]"), out);
    }
    for (_, shown, why) in GONE.iter().filter(|(source, ..)| has(spec, source)) {
        out.push(format!("spec.{shown}: {why}"));
    }
}

/// Drivers of devices are compared to the letter, but their names are names of domains.
fn upper_case_driver(spec: &Value, out: &mut Vec<String>) {
    let driver = text(spec, "driver");
    if driver != driver.to_lowercase() {
        let driver = quoted(driver);
        out.push(format!("spec.driver: driver names should be lowercase; {driver} contains uppercase characters"));
    }
}

fn storage_class(new: &Value, out: &mut Vec<String>) {
    for (index, topology) in items(&new["allowedTopologies"]).enumerate() {
        for (i, expression) in items(&topology["matchLabelExpressions"]).enumerate() {
            let at = format!("allowedTopologies[{index}].matchLabelExpressions[{i}].key");
            out.extend(old_label(text(expression, "key")).map(|why| format!("{at}: {why}")));
        }
    }
}

/// A certificate and a key that are no pair are of no use, but they are stored.
fn certificate(new: &Value, out: &mut Vec<String>) {
    if new["type"] != "kubernetes.io/tls" {
        return;
    }
    let part = |key: &str| {
        base64_text::decode(Form::Standard, new["data"][key].as_str().unwrap_or_default().as_bytes())
            .unwrap_or_default()
    };
    out.extend(pair::problem(&part("tls.crt"), &part("tls.key")));
}

fn driver(spec: &Value, out: &mut Vec<String>) {
    if items(&spec["tokenRequests"]).next().is_some() && !has(spec, "serviceAccountTokenInSecrets") {
        out.push(
            "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible \
             logging of tokens in volume attributes"
                .into(),
        );
    }
}

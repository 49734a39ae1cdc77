//! CertificateSigningRequests: who asks is the server's to say, what may be asked, and what approval and signing may change.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::names;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::Cause;
use serde_json::{Value, json};

use crate::access::UserInfo;
use crate::strategy;

/// Shortest life that may be asked for, seconds.
const MIN_SECONDS: i64 = 600;
/// Every usage that the API knows.
pub(crate) const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// Whether a row is that of the requests.
pub fn is_request(def: &ResourceDef) -> bool {
    (def.group, def.plural) == ("certificates.k8s.io", "certificatesigningrequests")
}

/// Writes into a request who made it: approval depends on it, so what the client says does not count.
pub fn record_requester(object: &mut Value, user: &UserInfo) {
    let Some(spec) = object["spec"].as_object_mut() else { return };
    spec.insert("username".into(), user.name.as_str().into());
    spec.insert("groups".into(), json!(user.groups));
    spec.remove("uid");
    spec.remove("extra");
    if !user.uid.is_empty() {
        spec.insert("uid".into(), user.uid.as_str().into());
    }
    if !user.extra.is_empty() {
        spec.insert("extra".into(), json!(user.extra));
    }
}

/// Keeps what an update may not change, and stamps new conditions.
pub fn prepare_update(subresource: &str, old: &Value, new: &mut Value) {
    new["spec"] = old["spec"].clone();
    match subresource {
        "approval" => {
            // Approval decides; it does not issue.
            let conditions = new["status"]["conditions"].clone();
            new["status"] = old["status"].clone();
            set_or_remove(&mut new["status"], "conditions", conditions);
        }
        "status" => {
            for kind in ["Approved", "Denied"] {
                preserve(kind, old, new);
            }
        }
        _ => {
            new["status"] = old["status"].clone();
            return;
        }
    }
    let before = old["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let conditions = new.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        let known = before.iter().find(|b| b["type"] == condition["type"]);
        if condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = strategy::now().into();
        }
        if condition["lastTransitionTime"].is_null() {
            let same = known.filter(|known| known["status"] == condition["status"]);
            condition["lastTransitionTime"] =
                same.map_or_else(|| strategy::now().into(), |known| known["lastTransitionTime"].clone());
        }
    }
}

/// Keeps the conditions of a kind as they were. Where some came or went there is no telling which is which: that is left to
/// validation.
fn preserve(kind: &str, old: &Value, new: &mut Value) {
    let is_it = |condition: &&Value| condition["type"] == kind;
    let before: Vec<Value> =
        old["status"]["conditions"].as_array().into_iter().flatten().filter(is_it).cloned().collect();
    let list = new["status"].get_mut("conditions").and_then(Value::as_array_mut);
    let now: Vec<&mut Value> = list.into_iter().flatten().filter(|condition| condition["type"] == kind).collect();
    if now.len() == before.len() {
        now.into_iter().zip(before).for_each(|(now, before)| *now = before);
    }
}

fn set_or_remove(of: &mut Value, key: &str, value: Value) {
    let Some(map) = of.as_object_mut() else { return };
    match value {
        Value::Null => map.remove(key),
        value => map.insert(key.into(), value),
    };
}

fn pem_of(value: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok()
}

/// What is wrong with a request.
pub fn problems(subresource: &str, new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    if old.is_none() {
        spec(&new["spec"], &mut causes);
    }
    conditions(subresource, new, old, &mut causes);
    if let Some(old) = old {
        certificate(&new["status"], &old["status"], &mut causes);
    }
    causes
}

fn spec(spec: &Value, causes: &mut Vec<Cause>) {
    let pem = pem_of(&spec["request"]);
    if !pem.as_deref().is_some_and(|pem| pem.contains("-----BEGIN CERTIFICATE REQUEST-----")) {
        causes.push(Cause::invalid("spec.request", &spec["request"], "PEM block type must be CERTIFICATE REQUEST"));
    } else if let Some(Err(why)) = pem.as_deref().map(keelson_pki::read_csr) {
        causes.push(Cause::invalid("spec.request", &spec["request"], &why.to_string()));
    }
    let usages = spec["usages"].as_array().cloned().unwrap_or_default();
    if usages.is_empty() {
        causes.push(Cause::required("spec.usages", ""));
    }
    for (index, usage) in usages.iter().enumerate() {
        let at = format!("spec.usages[{index}]");
        if !usage.as_str().is_some_and(|usage| USAGES.contains(&usage)) {
            causes.push(Cause::not_supported(at.clone(), usage, &USAGES));
        }
        if usages[..index].contains(usage) {
            causes.push(Cause::duplicate(at, usage));
        }
    }
    signer(&spec["signerName"], causes);
    if let Some(seconds) = spec["expirationSeconds"].as_i64().filter(|s| *s < MIN_SECONDS) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        causes.push(Cause::invalid("spec.expirationSeconds", &seconds.into(), why));
    }
}

fn signer(value: &Value, causes: &mut Vec<Cause>) {
    let name = value.as_str().unwrap_or_default();
    let at = "spec.signerName";
    if name.is_empty() {
        causes.push(Cause::required(at, ""));
        return;
    }
    if name == "kubernetes.io/legacy-unknown" {
        causes.push(Cause::invalid(at, value, "the legacy signerName is not allowed via this API version"));
        return;
    }
    let Some((domain, path)) = name.split_once('/').filter(|(_, path)| !path.contains('/')) else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        causes.push(Cause::invalid(at, value, why));
        return;
    };
    if domain.len() > names::SUBDOMAIN_MAX {
        causes.push(Cause::too_long(at, names::SUBDOMAIN_MAX));
    }
    // Of each part the first bad label is told.
    let mut told = |part: &str, problems: fn(&str) -> Vec<String>| {
        let bad = part.split('.').map(|label| (label, problems(label))).find(|(_, found)| !found.is_empty());
        let Some((label, found)) = bad else { return };
        for problem in found {
            let why = format!("validating label {label:?}: {problem}");
            causes.push(Cause::invalid(at, &Value::from(part), &why));
        }
    };
    told(domain, names::label_problems);
    told(path, names::subdomain_problems);
    if !domain.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        causes.push(Cause::invalid(at, &Value::from(domain), why));
    }
}

fn kinds(object: Option<&Value>) -> Vec<String> {
    let list = object.and_then(|o| o["status"]["conditions"].as_array());
    list.into_iter().flatten().filter_map(|c| c["type"].as_str()).map(str::to_owned).collect()
}

fn conditions(subresource: &str, new: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let (now, before) = (kinds(Some(new)), kinds(old));
    for (index, condition) in new["status"]["conditions"].as_array().into_iter().flatten().enumerate() {
        let at = format!("status.conditions[{index}]");
        let kind = condition["type"].as_str().unwrap_or_default();
        if kind.is_empty() {
            causes.push(Cause::required(format!("{at}.type"), ""));
        }
        if now[..index.min(now.len())].iter().any(|k| k == kind) {
            causes.push(Cause::duplicate(format!("{at}.type"), &condition["type"]));
        }
        match (kind, condition["status"].as_str().unwrap_or_default()) {
            (_, "") => causes.push(Cause::required(format!("{at}.status"), "")),
            ("Approved" | "Denied" | "Failed", status) if status != "True" => {
                causes.push(Cause::not_supported(format!("{at}.status"), &condition["status"], &["True"]));
            }
            (_, "True" | "False" | "Unknown") => {}
            _ => {
                let known = ["False", "True", "Unknown"];
                causes.push(Cause::not_supported(format!("{at}.status"), &condition["status"], &known));
            }
        }
    }
    let has = |list: &[String], kind: &str| list.iter().any(|k| k == kind);
    let both = |list: &[String]| has(list, "Approved") && has(list, "Denied");
    if both(&now) && !both(&before) {
        // The later one is told.
        let later = now.iter().rev().find(|kind| matches!(kind.as_str(), "Approved" | "Denied"));
        let why = "Approved and Denied conditions are mutually exclusive";
        causes.push(Cause::invalid("status.conditions", &json!(later), why));
    }
    decisions(subresource, new, old, causes);
}

/// Decisions stay; only the approval subresource makes them.
fn decisions(subresource: &str, new: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let Some(old) = old else { return };
    let (now, before) = (kinds(Some(new)), kinds(Some(old)));
    let count = |list: &[String], kind: &str| list.iter().filter(|k| *k == kind).count();
    let mut forbidden = |why: &str, kind: &str| {
        causes.push(Cause::forbidden(
            "status.conditions",
            &format!("updates may not {why} a condition of type {kind:?}"),
        ));
    };
    for kind in ["Approved", "Denied", "Failed"] {
        if count(&now, kind) < count(&before, kind) {
            forbidden("remove", kind);
        }
    }
    for kind in ["Approved", "Denied"] {
        if subresource != "approval" && count(&now, kind) > count(&before, kind) {
            forbidden("add", kind);
        }
    }
}

fn certificate(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let before = old["certificate"].as_str().unwrap_or_default();
    let now = new["certificate"].as_str().unwrap_or_default();
    if now == before {
        return;
    }
    // Certificates that were let in badly formed may go on being so.
    let wrong = |status: &Value| pem_of(&status["certificate"]).and_then(|pem| certificate_problem(&pem));
    if let Some(why) = wrong(new).filter(|_| !now.is_empty() && (before.is_empty() || wrong(old).is_none())) {
        causes.push(Cause::invalid("status.certificate", &Value::from("<certificate data>"), &why));
    }
    if !before.is_empty() {
        causes.push(Cause::forbidden("status.certificate", "updates may not modify existing certificate content"));
    }
}

/// What is wrong with the blocks of an issued certificate.
fn certificate_problem(pem: &str) -> Option<String> {
    let mut blocks = 0;
    let mut rest = pem;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let Some((kind, body)) = after.split_once("-----") else { break };
        let Some((body, next)) = body.split_once(&format!("-----END {kind}-----")) else { break };
        rest = next;
        if kind != "CERTIFICATE" {
            return Some(format!("only CERTIFICATE PEM blocks are allowed, found {kind:?}"));
        }
        if body.contains(':') {
            return Some("no PEM block headers are permitted".into());
        }
        let text: String = body.split_ascii_whitespace().collect();
        let Ok(der) = STANDARD.decode(text) else { continue };
        // Whatever is no sequence at all is not parsed further upstream either.
        if der.first() != Some(&0x30) {
            return Some("x509: malformed certificate".into());
        }
        blocks += 1;
    }
    (blocks == 0).then(|| "must contain at least one CERTIFICATE PEM block".into())
}

/// Whom a request asks a certificate for.
pub fn subject(object: &Value) -> Result<keelson_pki::CsrSubject, String> {
    let pem = pem_of(&object["spec"]["request"]).ok_or("PEM block type must be CERTIFICATE REQUEST")?;
    keelson_pki::read_csr(&pem).map_err(|why| why.to_string())
}

/// The groups that a request asks a certificate for.
pub fn organizations(object: &Value) -> Vec<String> {
    subject(object).map(|subject| subject.organizations).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_approval_decides_and_nothing_is_taken_back() {
        let with = |kinds: &[&str]| {
            let list: Vec<Value> = kinds.iter().map(|k| json!({"type": k, "status": "True"})).collect();
            json!({"spec": {}, "status": {"conditions": list}})
        };
        for (subresource, old, new, expected) in [
            ("approval", vec![], vec!["Approved"], vec![]),
            ("status", vec![], vec!["Approved"], vec!["updates may not add a condition of type \"Approved\""]),
            ("approval", vec!["Approved"], vec![], vec!["updates may not remove a condition of type \"Approved\""]),
            (
                "approval",
                vec!["Approved"],
                vec!["Approved", "Denied"],
                vec!["\"Denied\": Approved and Denied conditions are mutually exclusive"],
            ),
            ("status", vec!["Approved"], vec!["Approved", "Failed"], vec![]),
            (
                "status",
                vec!["Denied"],
                vec!["Approved"],
                vec![
                    "updates may not remove a condition of type \"Denied\"",
                    "updates may not add a condition of type \"Approved\"",
                ],
            ),
        ] {
            let causes = problems(subresource, &with(&new), Some(&with(&old)));
            assert_eq!(causes.len(), expected.len(), "{causes:?}");
            for (cause, expected) in causes.iter().zip(expected) {
                assert!(cause.message.ends_with(expected), "{}", cause.message);
            }
        }
    }

    #[test]
    fn the_status_leaves_decisions_as_they_are() {
        let told = |kind: &str, why: &str| json!({"type": kind, "status": "True", "message": why, "lastUpdateTime": "t", "lastTransitionTime": "t"});
        let request = |list: Value| json!({"spec": {}, "status": {"conditions": list}});
        let old = request(json!([told("Approved", "old"), told("Failed", "old")]));
        let mut new = request(json!([told("Failed", "new"), told("Approved", "new")]));
        prepare_update("status", &old, &mut new);
        assert_eq!(new, request(json!([told("Failed", "new"), told("Approved", "old")])));
        let mut more = request(json!([told("Approved", "new"), told("Approved", "other")]));
        prepare_update("status", &old, &mut more);
        assert_eq!(more["status"]["conditions"][0]["message"], "new");
        let issued = |pem: &str| json!({"spec": {}, "status": {"certificate": STANDARD.encode(pem)}});
        let good = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        for (before, now, expected) in
            [(good, good, 0), ("", good, 0), ("", "text", 1), (good, "", 1), (good, "text", 2), ("text", "other", 1)]
        {
            let causes = problems("status", &issued(now), Some(&issued(before)));
            assert_eq!(causes.len(), expected, "{before} {now} {causes:?}");
        }
        for subresource in ["approval", "status"] {
            let mut bare = json!({"spec": {}, "status": {}});
            prepare_update(subresource, &json!({"spec": {}, "status": {}}), &mut bare);
            assert_eq!(bare["status"], json!({}), "{subresource}: no list of conditions where there are none");
        }
    }

    #[test]
    fn signers_have_a_domain_and_a_path() {
        for (name, good) in [
            ("example.com/x", true),
            ("noslash", false),
            ("UPPER.example/x", false),
            ("kubernetes.io/legacy-unknown", false),
        ] {
            let mut causes = Vec::new();
            signer(&name.into(), &mut causes);
            assert_eq!(causes.is_empty(), good, "{name}: {causes:?}");
        }
    }
}

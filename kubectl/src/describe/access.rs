//! Roles, bindings, service accounts, secrets, config maps and requests for certificates.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::common::{events, marks, names, on_a_line};
use super::sheet::{Sheet, row};
use crate::failure::{Failure, Outcome};
use crate::value::{Read, date, human};

/// A rule for one resource, or one path, with its verbs.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rule {
    verbs: Vec<String>,
    group: Option<String>,
    resource: Option<String>,
    name: Option<String>,
    path: Option<String>,
}

impl Rule {
    /// The text by which rules are sorted.
    fn key(&self) -> String {
        let one = |of: &Option<String>| of.clone().unwrap_or_default();
        format!(
            "Verbs:[{}],APIGroups:[{}],Resources:[{}],ResourceNames:[{}],NonResourceURLs:[{}],",
            self.verbs.join(" "),
            one(&self.group),
            one(&self.resource),
            one(&self.name),
            one(&self.path)
        )
    }

    fn resource_and_group(&self) -> String {
        let Some(resource) = &self.resource else { return String::new() };
        let (resource, sub) = resource.split_once('/').map_or((resource.as_str(), None), |(r, s)| (r, Some(s)));
        let mut text = resource.to_owned();
        if let Some(group) = self.group.as_ref().filter(|g| !g.is_empty()) {
            text += &format!(".{group}");
        }
        sub.map_or(text.clone(), |sub| format!("{text}/{sub}"))
    }
}

/// Takes rules apart to single resources, then joins the verbs of the same one.
fn compact(rules: &Value) -> Vec<Rule> {
    let mut all: Vec<Rule> = Vec::new();
    for rule in rules.items() {
        let verbs = rule["verbs"].texts();
        let names = rule["resourceNames"].texts();
        let names: Vec<Option<&str>> =
            if names.is_empty() { vec![None] } else { names.into_iter().map(Some).collect() };
        for group in rule["apiGroups"].texts() {
            for resource in rule["resources"].texts() {
                for verb in &verbs {
                    for name in &names {
                        all.push(Rule {
                            verbs: vec![(*verb).into()],
                            group: Some(group.into()),
                            resource: Some(resource.into()),
                            name: name.map(str::to_owned),
                            path: None,
                        });
                    }
                }
            }
        }
        for path in rule["nonResourceURLs"].texts() {
            for verb in &verbs {
                all.push(Rule { verbs: vec![(*verb).into()], path: Some(path.into()), ..Rule::default() });
            }
        }
    }
    let mut joined: Vec<Rule> = Vec::new();
    for rule in all {
        let same = |have: &&mut Rule| {
            rule.resource.is_some()
                && (&have.group, &have.resource, &have.name) == (&rule.group, &rule.resource, &rule.name)
        };
        match joined.iter_mut().find(same) {
            Some(have) if have.verbs.contains(&rule.verbs[0]) => {}
            Some(have) => have.verbs.extend(rule.verbs),
            None => joined.push(rule),
        }
    }
    joined.sort_by_key(Rule::key);
    joined
}

/// Describes a role of a namespace or of the cluster.
pub fn role(w: &mut Sheet, object: &Value) {
    row!(w, 0, "Name:\t{}", object["metadata"]["name"].text());
    marks(w, object);
    row!(w, 0, "PolicyRule:");
    row!(w, 1, "Resources\tNon-Resource URLs\tResource Names\tVerbs");
    row!(w, 1, "---------\t-----------------\t--------------\t-----");
    for rule in compact(&object["rules"]) {
        let (path, name) = (rule.path.as_deref().unwrap_or(""), rule.name.as_deref().unwrap_or(""));
        row!(w, 1, "{}\t[{path}]\t[{name}]\t[{}]", rule.resource_and_group(), rule.verbs.join(" "));
    }
}

/// Describes a binding of a role.
pub fn binding(w: &mut Sheet, object: &Value) {
    row!(w, 0, "Name:\t{}", object["metadata"]["name"].text());
    marks(w, object);
    row!(w, 0, "Role:");
    row!(w, 1, "Kind:\t{}", object["roleRef"]["kind"].text());
    row!(w, 1, "Name:\t{}", object["roleRef"]["name"].text());
    row!(w, 0, "Subjects:");
    row!(w, 1, "Kind\tName\tNamespace");
    row!(w, 1, "----\t----\t---------");
    for s in object["subjects"].items() {
        row!(w, 1, "{}\t{}\t{}", s["kind"].text(), s["name"].text(), s["namespace"].text());
    }
}

/// Describes a service account; `secrets` are those of its namespace, if they can be read.
pub fn service_account(w: &mut Sheet, object: &Value, secrets: Option<Vec<Value>>, found: Option<Vec<Value>>) {
    names(w, object);
    marks(w, object);
    let name_of = |list: &Value| list.items().iter().map(|s| s["name"].text().to_owned()).collect::<Vec<_>>();
    let all = secrets.unwrap_or_default();
    let existing: BTreeSet<&str> = all.iter().map(|s| s["metadata"]["name"].text()).collect();
    let is_own = |secret: &&Value| {
        let annotations = &secret["metadata"]["annotations"];
        secret["type"] == "kubernetes.io/service-account-token"
            && annotations["kubernetes.io/service-account.name"] == object["metadata"]["name"]
            && annotations["kubernetes.io/service-account.uid"] == object["metadata"]["uid"]
    };
    let tokens = all.iter().filter(is_own).map(|s| s["metadata"]["name"].text().to_owned()).collect();
    for (header, names) in [
        ("Image pull secrets:", name_of(&object["imagePullSecrets"])),
        ("Mountable secrets: ", name_of(&object["secrets"])),
        ("Tokens:            ", tokens),
    ] {
        if names.is_empty() {
            row!(w, 0, "{header}\t<none>");
        }
        for (at, name) in names.iter().enumerate() {
            let header = if at == 0 { header } else { "                   " };
            let missing = if existing.contains(name.as_str()) { "" } else { " (not found)" };
            row!(w, 0, "{header}\t{name}{missing}");
        }
    }
    events(w, found);
}

fn decoded(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.text()).unwrap_or_default()
}

/// Describes a secret: what it has, not what is in it.
pub fn secret(w: &mut Sheet, object: &Value) {
    names(w, object);
    marks(w, object);
    let kind = object["type"].text();
    row!(w, 0, "\nType:\t{kind}");
    w.put("\nData\n====\n");
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        let bytes = decoded(value);
        match key == "token" && kind == "kubernetes.io/service-account-token" {
            true => row!(w, 0, "{key}:\t{}", String::from_utf8_lossy(&bytes)),
            false => row!(w, 0, "{key}:\t{} bytes", bytes.len()),
        }
    }
}

/// Describes a config map.
pub fn config_map(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    names(w, object);
    marks(w, object);
    w.put("\nData\n====\n");
    for (key, value) in object["data"].pairs() {
        row!(w, 0, "{key}:\n----\n{value}\n");
    }
    w.put("\nBinaryData\n====\n");
    for (key, value) in object["binaryData"].as_object().into_iter().flatten() {
        row!(w, 0, "{key}: {} bytes", decoded(value).len());
    }
    w.put("\n");
    events(w, found);
}

fn status_of(object: &Value) -> String {
    let has = |kind: &str| object["status"]["conditions"].items().iter().any(|c| c["type"] == kind);
    let mut status = if has("Denied") {
        "Denied".to_owned()
    } else if has("Approved") {
        "Approved".into()
    } else {
        "Pending".into()
    };
    if has("Failed") {
        status += ",Failed";
    }
    if !object["status"]["certificate"].text().is_empty() {
        status += ",Issued";
    }
    status
}

/// Describes a request for a certificate.
pub fn certificate_request(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) -> Outcome {
    use x509_parser::prelude::{FromDer, X509CertificationRequest};
    let wrong = |why: String| Failure::new(format!("Error parsing CSR: {why}"));
    let (metadata, spec) = (&object["metadata"], &object["spec"]);
    let pem = decoded(&spec["request"]);
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).map_err(|e| wrong(e.to_string()))?;
    let (_, asked) = X509CertificationRequest::from_der(&pem.contents).map_err(|e| wrong(e.to_string()))?;
    row!(w, 0, "Name:\t{}", metadata["name"].text());
    row!(w, 0, "Labels:\t{}", on_a_line(&metadata["labels"]));
    row!(w, 0, "Annotations:\t{}", on_a_line(&metadata["annotations"]));
    row!(w, 0, "CreationTimestamp:\t{}", date(&metadata["creationTimestamp"]));
    row!(w, 0, "Requesting User:\t{}", spec["username"].text());
    if !spec["signerName"].text().is_empty() {
        row!(w, 0, "Signer:\t{}", spec["signerName"].text());
    }
    if spec["expirationSeconds"].is_there() {
        row!(w, 0, "Requested Duration:\t{}", human(spec["expirationSeconds"].number()));
    }
    row!(w, 0, "Status:\t{}", status_of(object));
    subject(w, &asked);
    alternatives(w, &asked);
    events(w, found);
    Ok(())
}

fn several(w: &mut Sheet, label: &str, values: &[String]) {
    if !values.is_empty() {
        row!(w, 0, "\t{label}:\t{}", values.join("\n\t\t"));
    }
}

fn subject(w: &mut Sheet, asked: &x509_parser::prelude::X509CertificationRequest<'_>) {
    let subject = &asked.certification_request_info.subject;
    let of = |oid: &str| {
        let all = subject.iter_attributes().filter(|a| a.attr_type().to_id_string() == oid);
        all.filter_map(|a| a.as_str().ok().map(str::to_owned)).collect::<Vec<_>>()
    };
    row!(w, 0, "Subject:");
    row!(w, 0, "\tCommon Name:\t{}", of("2.5.4.3").join(""));
    row!(w, 0, "\tSerial Number:\t{}", of("2.5.4.5").join(""));
    for (label, oid) in [
        ("Organization", "2.5.4.10"),
        ("Organizational Unit", "2.5.4.11"),
        ("Country", "2.5.4.6"),
        ("Locality", "2.5.4.7"),
        ("Province", "2.5.4.8"),
        ("StreetAddress", "2.5.4.9"),
        ("PostalCode", "2.5.4.17"),
    ] {
        several(w, label, &of(oid));
    }
}

fn alternatives(w: &mut Sheet, asked: &x509_parser::prelude::X509CertificationRequest<'_>) {
    use x509_parser::prelude::{GeneralName, ParsedExtension};
    let (mut dns, mut mail, mut uris, mut ips) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for extension in asked.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                GeneralName::RFC822Name(name) => mail.push((*name).to_owned()),
                GeneralName::URI(name) => uris.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
                    Ok(four) => ips.push(std::net::Ipv4Addr::from(four).to_string()),
                    Err(_) => ips.extend(<[u8; 16]>::try_from(*bytes).map(|b| std::net::Ipv6Addr::from(b).to_string())),
                },
                _ => {}
            }
        }
    }
    if [&dns, &mail, &uris, &ips].iter().any(|l| !l.is_empty()) {
        row!(w, 0, "Subject Alternative Names:");
    }
    for (label, values) in [("DNS Names", dns), ("Email Addresses", mail), ("URIs", uris), ("IP Addresses", ips)] {
        several(w, label, &values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_are_joined_by_resource() {
        let rules = json!([
            {"apiGroups": ["", "apps"], "resources": ["pods", "deployments/scale"], "verbs": ["get", "list"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "watch"]},
            {"apiGroups": [""], "resources": ["pods"], "resourceNames": ["x"], "verbs": ["delete"]},
            {"nonResourceURLs": ["/healthz"], "verbs": ["get"]},
        ]);
        let shown: Vec<String> = compact(&rules)
            .iter()
            .map(|r| format!("{} {:?} {:?} {}", r.resource_and_group(), r.path, r.name, r.verbs.join(",")))
            .collect();
        assert_eq!(
            shown,
            [
                "pods None Some(\"x\") delete",
                "pods None None get,list,watch",
                "deployments/scale None None get,list",
                "deployments.apps/scale None None get,list",
                "pods.apps None None get,list",
                " Some(\"/healthz\") None get",
            ]
            .map(str::to_owned)
        );
    }
}

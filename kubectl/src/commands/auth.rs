//! `auth`, `certificate` and `create token`.

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, switch, text};
use crate::kinds;
use crate::objects::{self, FILES};
use crate::output::{self, Format, changed, table};
use crate::session::{Session, encode};

/// Flags of `auth can-i`.
pub const CAN_I: &[&[Flag]] = &[&[
    switch("all-namespaces", "If true, check the specified action in all namespaces.").short('A'),
    switch("list", "If true, prints all allowed actions."),
    switch("no-headers", "If true, prints allowed actions without headers"),
    switch("quiet", "If true, suppress output and just return the exit code.").short('q'),
    text("subresource", "", "SubResource such as pod/log or deployment/scale"),
]];
/// Flags of `auth whoami`.
pub const WHOAMI: &[&[Flag]] = &[output::FLAGS];
/// Flags of `certificate approve` and `deny`.
pub const CERTIFICATE: &[&[Flag]] =
    &[output::FLAGS, FILES, &[switch("force", "Update the CSR even if it is already approved.")]];
/// Flags of `create token`.
pub const TOKEN: &[&[Flag]] = &[
    output::FLAGS,
    &[
        repeated("audience", "Audience of the requested token. Repeat flag for multiple audiences."),
        text("bound-object-kind", "", "Kind of an object to bind the token to."),
        text("bound-object-name", "", "Name of an object to bind the token to."),
        text("bound-object-uid", "", "UID of an object to bind the token to."),
        text("duration", "0s", "Requested lifetime of the issued token."),
    ],
];

/// Verbs that `auth can-i` does not wonder about.
const KNOWN_VERBS: [&str; 16] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "use",
    "bind",
    "impersonate",
    "*",
    "approve",
    "sign",
    "escalate",
    "attest",
];

/// What is asked of the server, with warnings about what it may not know.
async fn asked(session: &Session, verb: &str, resource: &str) -> Outcome<Value> {
    let parsed = &session.parsed;
    Ok(if resource.starts_with('/') {
        json!({"nonResourceAttributes": {"path": resource, "verb": verb}})
    } else {
        let (text, name) = resource.split_once('/').unwrap_or((resource, ""));
        if !KNOWN_VERBS.contains(&verb) {
            eprintln!("Warning: verb '{verb}' is not a known verb\n");
        }
        let mut attributes = json!({"verb": verb, "name": name, "subresource": parsed.text("subresource")});
        match kinds::resolve(session, text).await {
            Ok(kind) => {
                attributes["group"] = kind.group.clone().into();
                attributes["resource"] = kind.plural.clone().into();
                if !kind.namespaced && !parsed.on("all-namespaces") && parsed.is_set("namespace") {
                    eprintln!("Warning: resource '{}' is not namespace scoped\n", kind.plural);
                }
                if !kind.namespaced && !parsed.is_set("namespace") && !parsed.on("all-namespaces") {
                    eprintln!(
                        "Warning: resource '{}' is not namespace scoped{}\n",
                        kind.plural,
                        if kind.group.is_empty() { String::new() } else { format!(" in group '{}'", kind.group) }
                    );
                }
            }
            Err(_) => {
                match text.split_once('.') {
                    Some((name, group)) => {
                        eprintln!("Warning: the server doesn't have a resource type '{name}' in group '{group}'\n");
                    }
                    None if text != "*" => eprintln!("Warning: the server doesn't have a resource type '{text}'\n"),
                    None => {}
                }
                attributes["resource"] = text.into();
            }
        }
        if !parsed.on("all-namespaces") {
            attributes["namespace"] = session.namespace()?.into();
        }
        json!({"resourceAttributes": attributes})
    })
}

/// Runs `auth can-i`.
pub async fn can_i(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if parsed.on("list") {
        if parsed.on("quiet") || parsed.on("all-namespaces") || !parsed.text("subresource").is_empty() {
            return Err(Failure::new(
                "list option can't be specified with neither quiet, all-namespaces nor subresource options",
            ));
        }
        return match parsed.args.as_slice() {
            [] => list(session).await,
            _ => Err(Failure::new("list option must be specified with no arguments")),
        };
    }
    let (verb, resource) = match parsed.args.as_slice() {
        [verb, resource] => (verb, resource.clone()),
        _ => {
            return Err(Failure::new(
                "you must specify two arguments: verb resource or verb resource/resourceName.\nSee 'kubectl auth can-i -h' for help and examples.",
            ));
        }
    };
    if parsed.on("no-headers") {
        return Err(Failure::new("--no-headers cannot be set without --list specified"));
    }
    if resource.starts_with('/') && !parsed.text("subresource").is_empty() {
        return Err(Failure::new("--subresource can not be used with NonResourceURL"));
    }
    let spec = asked(session, verb, &resource).await?;
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec});
    let answer = session.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await?;
    let status = &answer["status"];
    let allowed = status["allowed"] == true;
    if !parsed.on("quiet") {
        let mut text = String::from(if allowed { "yes" } else { "no" });
        if !allowed {
            for (key, form) in [("reason", " - "), ("evaluationError", " - ")] {
                match status[key].as_str() {
                    Some(why) if !why.is_empty() => text += &format!("{form}{why}"),
                    _ => {}
                }
            }
        }
        println!("{text}");
    }
    if allowed { Ok(()) } else { Err(Failure::Code(1)) }
}

async fn list(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let spec = json!({"namespace": session.namespace()?});
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": spec});
    let answer = session.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &review).await?;
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    // Each with what it is sorted by: Go's text of the rule.
    let mut rules: Vec<(String, Vec<String>)> = Vec::new();
    let mut add = |verbs: &[String], group: &str, resource: &str, name: &str, url: &str| {
        let verbs = verbs.join(" ");
        let key = format!(
            "{{Verbs:[{verbs}],APIGroups:[{group}],Resources:[{resource}],ResourceNames:[{name}],NonResourceURLs:[{url}],}}"
        );
        let shown = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
        rules.push((key, vec![shown, format!("[{url}]"), format!("[{name}]"), format!("[{verbs}]")]));
    };
    for rule in answer["status"]["resourceRules"].as_array().into_iter().flatten() {
        let mut names = texts(&rule["resourceNames"]);
        if names.is_empty() {
            names.push(String::new());
        }
        for (group, resource) in texts(&rule["apiGroups"])
            .iter()
            .flat_map(|g| texts(&rule["resources"]).into_iter().map(move |r| (g.clone(), r)))
        {
            names.iter().for_each(|name| add(&texts(&rule["verbs"]), &group, &resource, name, ""));
        }
    }
    for rule in answer["status"]["nonResourceRules"].as_array().into_iter().flatten() {
        texts(&rule["nonResourceURLs"]).iter().for_each(|url| add(&texts(&rule["verbs"]), "", "", "", url));
    }
    rules.sort_by(|a, b| a.0.cmp(&b.0));
    let mut rows = Vec::new();
    if !parsed.on("no-headers") {
        rows.push(["Resources", "Non-Resource URLs", "Resource Names", "Verbs"].map(str::to_owned).to_vec());
    }
    rows.extend(rules.into_iter().map(|(_, cells)| cells));
    print!("{}", table::align(&rows));
    Ok(())
}

/// Runs `auth whoami`.
pub async fn whoami(session: &Session) -> Outcome {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = session.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &review).await?;
    let format = Format::of(&session.parsed)?;
    if format.is_object() {
        return changed(&session.parsed, &answer, "");
    }
    let user = &answer["status"]["userInfo"];
    let list = |value: &Value| {
        format!("[{}]", value.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(" "))
    };
    let mut rows = vec![["ATTRIBUTE", "VALUE"].map(str::to_owned).to_vec()];
    for (title, key) in [("Username", "username"), ("UID", "uid")] {
        if let Some(text) = user[key].as_str().filter(|t| !t.is_empty()) {
            rows.push(vec![title.to_owned(), text.to_owned()]);
        }
    }
    if user["groups"].is_array() {
        rows.push(vec!["Groups".into(), list(&user["groups"])]);
    }
    for (key, values) in user["extra"].as_object().into_iter().flatten() {
        rows.push(vec![format!("Extra: {key}"), list(values)]);
    }
    // This table is set with spaces up to the widest title.
    let widest = rows.iter().map(|r| r[0].len()).max().unwrap_or(0);
    for row in rows {
        println!("{:<widest$}   {}", row[0], row[1]);
    }
    Ok(())
}

async fn decide(session: &Session, kind: &str, reason: &str, done: &str) -> Outcome {
    let parsed = &session.parsed;
    let mut names = parsed.args.clone();
    for object in objects::from_files(session).await? {
        names.push(object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
    }
    if names.is_empty() {
        return Err(Failure::new("one or more CSRs must be specified as <name> or -f <filename>"));
    }
    for name in names {
        let name = name.rsplit('/').next().unwrap_or_default();
        let path = format!("/apis/certificates.k8s.io/v1/certificatesigningrequests/{}", encode(name));
        let mut request = session.get(&path).await?;
        let conditions = request["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let other = if kind == "Approved" { "Denied" } else { "Approved" };
        if conditions.iter().any(|c| c["type"] == other) {
            return Err(Failure::new(format!("certificate signing request {name:?} is already {other}")));
        }
        if !conditions.iter().any(|c| c["type"] == kind) || parsed.on("force") {
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let message = format!(
                "This CSR was {done} by kubectl certificate {}.",
                kind.to_lowercase().replace("approved", "approve").replace("denied", "deny")
            );
            let condition =
                json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastUpdateTime": now});
            let mut all = conditions;
            all.retain(|c| c["type"] != kind);
            all.push(condition);
            request["status"]["conditions"] = all.into();
            request = session.put(&format!("{path}/approval"), &request).await?;
        }
        request["apiVersion"] = "certificates.k8s.io/v1".into();
        request["kind"] = "CertificateSigningRequest".into();
        changed(parsed, &request, done)?;
    }
    Ok(())
}

/// Runs `certificate approve`.
pub async fn approve(session: &Session) -> Outcome {
    decide(session, "Approved", "KubectlApprove", "approved").await
}

/// Runs `certificate deny`.
pub async fn deny(session: &Session) -> Outcome {
    decide(session, "Denied", "KubectlDeny", "denied").await
}

/// Runs `create token`.
pub async fn token(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let [name] = parsed.args.as_slice() else {
        return Err(parsed.usage(format!("exactly one NAME is required, got {}", parsed.args.len())));
    };
    let kind = parsed.text("bound-object-kind");
    for flag in ["bound-object-name", "bound-object-uid"] {
        if kind.is_empty() && parsed.is_set(flag) {
            return Err(Failure::new(format!("--{flag} can only be set if --bound-object-kind is provided")));
        }
    }
    if !matches!(kind, "" | "Node" | "Pod" | "Secret") {
        return Err(Failure::new("supported --bound-object-kind values are Node, Pod, Secret"));
    }
    if !kind.is_empty() && parsed.text("bound-object-name").is_empty() {
        return Err(Failure::new("--bound-object-name is required if --bound-object-kind is provided"));
    }
    let mut spec = json!({"audiences": parsed.list("audience")});
    if spec["audiences"].as_array().is_some_and(Vec::is_empty) {
        spec = json!({});
    }
    if parsed.is_negative("duration") {
        return Err(Failure::new("--duration must be greater than or equal to 0"));
    }
    let duration = parsed.duration("duration")?.as_secs();
    if duration > 0 {
        spec["expirationSeconds"] = duration.into();
    }
    if !parsed.text("bound-object-kind").is_empty() {
        spec["boundObjectRef"] = json!({"kind": parsed.text("bound-object-kind"), "apiVersion": "v1",
            "name": parsed.text("bound-object-name"), "uid": parsed.text("bound-object-uid")});
    }
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/{}/token", session.namespace()?, encode(name));
    let answer = session.post(&path, &request).await.map_err(|error| error.because("failed to create token: "))?;
    match Format::of(parsed)? {
        Format::Default => println!("{}", answer["status"]["token"].as_str().unwrap_or_default()),
        format => print!("{}", format.print(&answer, parsed.on("show-managed-fields"))?),
    }
    Ok(())
}

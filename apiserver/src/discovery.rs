//! Discovery, derived from the resource table: the legacy documents, the aggregated one, and the version.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Response, header};
use keelson_client::Body;
use keelson_machinery::protobuf;
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::status::Status;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::aggregation::Remote;
use crate::aggregation::merged::{self, Group, Listed};
use crate::negotiate::Media;
use crate::wire::Message;
use crate::{body, crd, health, negotiate, respond};

/// The version whose API is served.
pub const SERVED_VERSION: &str = "v1.36.2";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const AGGREGATED_YAML: &str = "application/yaml;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const AGGREGATED_PROTOBUF: &str =
    "application/vnd.kubernetes.protobuf;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// What a client accepts of discovery.
struct Accepted {
    media: Media,
    /// The aggregated document where there is one.
    aggregated: bool,
}

/// Serves a discovery path; `None` if it is none. `computed` are the rows whose objects are not stored.
pub fn serve(
    path: &str,
    headers: &HeaderMap,
    computed: &'static [ResourceDef],
    customs: &crd::Table,
    remotes: &[Arc<Remote>],
) -> Option<Result<Response<Body>, Status>> {
    let all = Rows::of(computed, customs);
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    if let Err(status) = accepted_by_name(&all, &parts, headers) {
        return Some(Err(status));
    }
    let accepted = accepted(headers, matches!(parts[..], ["api"] | ["apis"]));
    let aggregated = accepted.as_ref().is_ok_and(|accepted| accepted.aggregated);
    // What is not there is not there in any form, so what the client accepts is asked last.
    let media = match &accepted {
        _ if matches!(parts[..], ["version"] | []) => Ok(Media::Json),
        Ok(accepted) => Ok(accepted.media),
        Err(status) => Err(status.clone()),
    };
    let value = match parts[..] {
        ["version"] => version(),
        [] => json!({"paths": all.paths(remotes)}),
        ["api"] if aggregated => {
            let core = Group { name: "", versions: all.versions("").into_iter().map(Listed::Own).collect() };
            return Some(media.and_then(|media| all.aggregated_answer(headers, media, &[core])));
        }
        ["apis"] if aggregated => {
            return Some(media.and_then(|media| all.aggregated_answer(headers, media, &all.merged(remotes))));
        }
        ["api"] => {
            let address = headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let addresses = json!([{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]);
            json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses})
        }
        ["apis"] => {
            let groups: Vec<Value> = all.merged(remotes).iter().map(Group::document).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["apis", name] => {
            let groups = all.merged(remotes);
            let mut document = groups.iter().find(|group| group.name == name)?.document();
            document["kind"] = "APIGroup".into();
            document["apiVersion"] = "v1".into();
            document
        }
        ["api", version] => all.resource_list(customs, "", version)?,
        // A group that is there is told from a version that is not.
        ["apis", group, _] if !all.groups().contains(&group) => return None,
        ["apis", group, version] => match all.resource_list(customs, group, version) {
            Some(list) => list,
            None => return Some(Err(Status::no_such_path())),
        },
        _ => return None,
    };
    let pretty = matches!(parts[..], ["version"] | []) || negotiate::is_pretty(headers, None);
    Some(media.and_then(|media| respond::object(200, media, &value, pretty)))
}

/// Refuses a client by the names of what it accepts alone, where upstream has a layer that does so: before built-in versions and
/// the lists of versions, but not before groups and what definitions made.
fn accepted_by_name(all: &Rows, parts: &[&str], headers: &HeaderMap) -> Result<(), Status> {
    match parts {
        ["version"] => negotiate::exactly(headers, "application/json"),
        ["api"] | ["api", "v1"] => negotiate::by_name(headers),
        ["apis", group, version] if all.rows(group, version).first().is_some_and(|row| !row.custom) => {
            negotiate::by_name(headers)
        }
        _ => Ok(()),
    }
}

/// Chooses among the forms: each media type, plain or, where there is that, aggregated.
fn accepted(headers: &HeaderMap, aggregated: bool) -> Result<Accepted, Status> {
    let all = negotiate::choices(negotiate::accept(headers));
    let found = all.into_iter().find_map(|(name, parameters)| {
        let parameter = |key: &str| parameters.iter().find(|(k, _)| *k == key).map_or("", |(_, v)| *v);
        let media = Media::matching(name)?;
        match (parameter("as"), parameter("g"), parameter("v")) {
            ("", ..) => Some(Accepted { media, aggregated: false }),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") if aggregated => {
                Some(Accepted { media, aggregated: true })
            }
            _ => None,
        }
    });
    found.ok_or_else(|| {
        let refusal = Status::not_acceptable(negotiate::MEDIA_TYPES);
        Status { details: None, ..refusal }
    })
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35", "gitVersion": SERVED_VERSION, "gitCommit": concat!("keelson-", env!("CARGO_PKG_VERSION")),
        "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }),
    })
}

/// What names the version in which objects of a row are stored, as upstream computes it: clients migrate when it changes.
fn storage_version(row: &ResourceDef, customs: &crd::Table) -> Option<String> {
    if !row.verbs.contains(&"update") {
        return None;
    }
    let (group, version) = match (row.group, row.plural) {
        ("autoscaling", _) => ("autoscaling", "v2"),
        ("events.k8s.io", _) => ("", "v1"),
        (group, "customresourcedefinitions" | "mutatingadmissionpolicies" | "mutatingadmissionpolicybindings") => {
            (group, "v1beta1")
        }
        (group, _) => (group, row.version),
    };
    let custom = customs.find(row.group, row.version, row.plural);
    let version = custom.as_ref().map_or(version, |custom| custom.definition.storage.as_str());
    let digest = Sha256::digest(format!("{group}/{version}/{}", row.kind));
    Some(STANDARD.encode(&digest[..8]))
}

/// All rows: the table's, then those of definitions, groups by name and versions by priority.
struct Rows(Vec<&'static ResourceDef>);

impl Rows {
    fn of(computed: &'static [ResourceDef], customs: &crd::Table) -> Self {
        let mut rows: Vec<&'static ResourceDef> = customs.offered().rows().chain(computed).collect();
        for (_, definitions) in customs.groups() {
            let versions = definitions.iter().flat_map(|d| d.versions.iter().filter(|v| v.served).map(|v| v.def));
            let mut of_group: Vec<&'static ResourceDef> = versions.collect();
            of_group.sort_by(|a, b| crd::by_priority(a.version, b.version).then(a.plural.cmp(b.plural)));
            rows.extend(of_group);
        }
        Self(rows)
    }

    /// All groups, other servers' among them.
    fn merged<'a>(&self, remotes: &'a [Arc<Remote>]) -> Vec<Group<'a>> {
        let own = self.groups().into_iter().map(|group| (group, self.versions(group)));
        merged::groups(own.collect(), remotes)
    }

    fn paths(&self, remotes: &[Arc<Remote>]) -> Vec<String> {
        let mut paths = vec!["/api".to_owned(), "/api/v1".into(), "/apis".into()];
        for group in self.groups() {
            paths.push(format!("/apis/{group}"));
            paths.extend(self.versions(group).iter().map(|v| format!("/apis/{group}/{v}")));
        }
        for row in remotes {
            paths.push(format!("/apis/{}", row.group));
            paths.push(format!("/apis/{}/{}", row.group, row.version));
        }
        let others = [
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/openid/v1/jwks",
            "/version",
            "/.well-known/openid-configuration",
        ];
        paths.extend(others.map(str::to_owned));
        paths.extend(health::paths());
        paths.sort();
        paths.dedup();
        paths
    }

    /// Named groups in the table's order.
    fn groups(&self) -> Vec<&'static str> {
        let mut groups: Vec<&str> = Vec::new();
        for row in self.0.iter().filter(|r| !r.group.is_empty()) {
            if !groups.contains(&row.group) {
                groups.push(row.group);
            }
        }
        groups
    }

    fn versions(&self, group: &str) -> Vec<&'static str> {
        let mut versions: Vec<&str> = Vec::new();
        for row in self.0.iter().filter(|r| r.group == group) {
            if !versions.contains(&row.version) {
                versions.push(row.version);
            }
        }
        versions
    }

    fn rows(&self, group: &str, version: &str) -> Vec<&'static ResourceDef> {
        self.0.iter().copied().filter(|r| r.group == group && r.version == version).collect()
    }

    fn resource_list(&self, customs: &crd::Table, group: &str, version: &str) -> Option<Value> {
        let rows = self.rows(group, version);
        let first = rows.first()?;
        let mut resources = Vec::new();
        for row in &rows {
            let namespaced = row.scope == Scope::Namespaced;
            let mut resource = json!({
                "name": row.plural, "singularName": row.singular, "namespaced": namespaced, "kind": row.kind, "verbs": row.verbs
            });
            if !row.short_names.is_empty() {
                resource["shortNames"] = json!(row.short_names);
            }
            if !row.categories.is_empty() {
                resource["categories"] = json!(row.categories);
            }
            if let Some(hash) = storage_version(row, customs) {
                resource["storageVersionHash"] = hash.into();
            }
            resources.push(resource);
            for sub in row.subresources {
                let (g, v, kind) = sub.kind;
                let kind = if kind.is_empty() { row.kind } else { kind };
                let mut resource = json!({
                    "name": format!("{}/{}", row.plural, sub.name), "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": sub.verbs
                });
                if !v.is_empty() {
                    resource["group"] = g.into();
                    resource["version"] = v.into();
                }
                resources.push(resource);
            }
        }
        let mut list = json!({"kind": "APIResourceList", "groupVersion": first.api_version(), "resources": resources});
        if !group.is_empty() {
            list["apiVersion"] = "v1".into();
        }
        Some(list)
    }

    fn aggregated_answer(
        &self,
        headers: &HeaderMap,
        media: Media,
        groups: &[Group<'_>],
    ) -> Result<Response<Body>, Status> {
        let items: Vec<Value> = groups.iter().map(|group| self.aggregated_group(group)).collect();
        let document = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
        let (kind, bytes) = match media {
            // Discovery has no CBOR, and nobody gets that far who asks for it alone.
            Media::Json | Media::Cbor => (AGGREGATED, document.to_string().into_bytes()),
            Media::Yaml => {
                let text = keelson_machinery::yaml::write(&document).map_err(|why| Status::internal(&why))?;
                (AGGREGATED_YAML, text.into_bytes())
            }
            Media::Protobuf => (AGGREGATED_PROTOBUF, aggregated_protobuf(&document)),
        };
        let digest = Sha256::digest(&bytes);
        let tag: String = digest.iter().map(|byte| format!("{byte:02X}")).collect();
        let tag = format!("\"{tag}\"");
        let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let mut response = if known.split(',').any(|part| part.trim() == tag) {
            let mut response = Response::new(body::full(Bytes::new()));
            *response.status_mut() = http::StatusCode::NOT_MODIFIED;
            response
        } else {
            respond::bytes(200, kind, bytes)
        };
        if let Ok(tag) = tag.parse() {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response.headers_mut().insert(header::VARY, header::HeaderValue::from_static("Accept"));
        Ok(response)
    }

    fn aggregated_group(&self, group: &Group<'_>) -> Value {
        let name = group.name;
        let one = |listed: &Listed<'_>| {
            listed.document().unwrap_or_else(|| {
                let version = listed.version();
                let rows = self.rows(name, version);
                let resources: Vec<Value> = rows.iter().map(|row| aggregated_resource(row)).collect();
                json!({"version": version, "resources": resources, "freshness": "Current"})
            })
        };
        let versions: Vec<Value> = group.versions.iter().map(one).collect();
        let metadata = if name.is_empty() { json!({}) } else { json!({"name": name}) };
        json!({"metadata": metadata, "versions": versions})
    }
}

fn aggregated_resource(row: &ResourceDef) -> Value {
    // What is of the row's own group and version says neither.
    let own = |kind: &str| match row.custom {
        true => json!({"group": row.group, "version": row.version, "kind": kind}),
        false => json!({"group": "", "version": "", "kind": kind}),
    };
    let mut resource = json!({
        "resource": row.plural,
        "responseKind": own(row.kind),
        "scope": if row.scope == Scope::Namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": row.verbs,
    });
    if !row.short_names.is_empty() {
        resource["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        resource["categories"] = json!(row.categories);
    }
    if !row.subresources.is_empty() {
        let subs: Vec<Value> = row
            .subresources
            .iter()
            .map(|sub| {
                let (g, v, kind) = sub.kind;
                let kind = if kind.is_empty() { row.kind } else { kind };
                let response = if v.is_empty() { own(kind) } else { json!({"group": g, "version": v, "kind": kind}) };
                json!({"subresource": sub.name, "responseKind": response, "verbs": sub.verbs})
            })
            .collect();
        resource["subresources"] = subs.into();
    }
    resource
}

/// The aggregated document in protobuf; the schema of the API does not have its types.
fn aggregated_protobuf(document: &Value) -> Vec<u8> {
    let kind = |value: &Value| {
        let mut out = Message::default();
        out.text(1, &value["group"]);
        out.text(2, &value["version"]);
        out.text(3, &value["kind"]);
        out
    };
    let items = |value: &Value, make: &dyn Fn(&Value) -> Message, number: u32, out: &mut Message| {
        value.as_array().into_iter().flatten().for_each(|item| out.message(number, make(item)));
    };
    let subresource = |value: &Value| {
        let mut out = Message::default();
        out.text(1, &value["subresource"]);
        out.message(2, kind(&value["responseKind"]));
        out.texts(4, &value["verbs"]);
        out
    };
    let resource = |value: &Value| {
        let mut out = Message::default();
        out.text(1, &value["resource"]);
        out.message(2, kind(&value["responseKind"]));
        out.text(3, &value["scope"]);
        out.text(4, &value["singularResource"]);
        out.texts(5, &value["verbs"]);
        out.texts(6, &value["shortNames"]);
        out.texts(7, &value["categories"]);
        items(&value["subresources"], &subresource, 8, &mut out);
        out
    };
    let version = |value: &Value| {
        let mut out = Message::default();
        out.text(1, &value["version"]);
        items(&value["resources"], &resource, 2, &mut out);
        out.text(3, &value["freshness"]);
        out
    };
    let group = |value: &Value| {
        let (mut out, mut metadata) = (Message::default(), Message::default());
        metadata.text(1, &value["metadata"]["name"]);
        out.message(1, metadata);
        items(&value["versions"], &version, 2, &mut out);
        out
    };
    let mut out = Message::default();
    out.message(1, Message::default());
    items(&document["items"], &group, 2, &mut out);
    protobuf::envelope("apidiscovery.k8s.io/v2", "APIGroupDiscoveryList", &out.0)
}

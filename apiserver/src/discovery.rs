//! Discovery, derived from the resource table: the legacy documents, the aggregated one, and the version.

use http::{HeaderMap, Response, header};
use keelson_client::Body;
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::resources::RESOURCES;
use serde_json::{Value, json};

use crate::{body, crd};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Serves a discovery path; `None` if it is none.
pub fn serve(path: &str, headers: &HeaderMap, customs: &crd::Table) -> Option<Response<Body>> {
    let all = Rows::of(customs);
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let aggregated = accept.split(',').any(|part| part.replace(' ', "").starts_with(AGGREGATED));
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let value = match parts[..] {
        ["version"] => version(),
        [] => json!({"paths": all.paths()}),
        ["api"] if aggregated => return Some(all.aggregated_answer(|group| group.is_empty())),
        ["apis"] if aggregated => return Some(all.aggregated_answer(|group| !group.is_empty())),
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        ["apis"] => {
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": all.groups().iter().map(|g| all.group(g)).collect::<Vec<_>>()})
        }
        ["apis", name] if all.groups().contains(&name) => {
            let mut document = all.group(name);
            document["kind"] = "APIGroup".into();
            document["apiVersion"] = "v1".into();
            document
        }
        ["api", version] => all.resource_list("", version)?,
        ["apis", group, version] => all.resource_list(group, version)?,
        _ => return None,
    };
    Some(body::value(200, &value))
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35", "gitVersion": concat!("v1.36.2+keelson", env!("CARGO_PKG_VERSION")), "gitCommit": "",
        "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }),
    })
}

/// All rows: the table's, then those of definitions, groups by name and versions by priority.
struct Rows(Vec<&'static ResourceDef>);

impl Rows {
    fn of(customs: &crd::Table) -> Self {
        let mut rows: Vec<&'static ResourceDef> = RESOURCES.iter().collect();
        for (group, definitions) in customs.groups() {
            if RESOURCES.iter().any(|row| row.group == group) {
                continue;
            }
            let versions = definitions.iter().flat_map(|d| d.versions.iter().filter(|v| v.served).map(|v| v.def));
            let mut of_group: Vec<&'static ResourceDef> = versions.collect();
            of_group.sort_by(|a, b| crd::by_priority(a.version, b.version).then(a.plural.cmp(b.plural)));
            rows.extend(of_group);
        }
        Self(rows)
    }

    fn paths(&self) -> Vec<String> {
        let mut paths = vec!["/api".to_owned(), "/api/v1".into(), "/apis".into()];
        for group in self.groups() {
            paths.push(format!("/apis/{group}"));
            paths.extend(self.versions(group).iter().map(|v| format!("/apis/{group}/{v}")));
        }
        paths.extend(["/healthz", "/livez", "/openid/v1/jwks", "/readyz", "/version"].map(str::to_owned));
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

    fn group(&self, name: &str) -> Value {
        let versions: Vec<Value> =
            self.versions(name).iter().map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v})).collect();
        json!({"name": name, "versions": versions, "preferredVersion": versions[0]})
    }

    fn rows(&self, group: &str, version: &str) -> Vec<&'static ResourceDef> {
        self.0.iter().copied().filter(|r| r.group == group && r.version == version).collect()
    }

    fn resource_list(&self, group: &str, version: &str) -> Option<Value> {
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
        Some(
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": first.api_version(), "resources": resources}),
        )
    }

    fn aggregated_answer(&self, choose: impl Fn(&str) -> bool) -> Response<Body> {
        let mut names = vec![""];
        names.extend(self.groups());
        let items: Vec<Value> = names.into_iter().filter(|g| choose(g)).map(|g| self.aggregated_group(g)).collect();
        let document = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
        let mut response = body::value(200, &document);
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(AGGREGATED));
        response
    }

    fn aggregated_group(&self, group: &str) -> Value {
        let versions: Vec<Value> = self
            .versions(group)
            .iter()
            .map(|version| {
                let resources: Vec<Value> =
                    self.rows(group, version).iter().map(|row| aggregated_resource(row)).collect();
                json!({"version": version, "resources": resources, "freshness": "Current"})
            })
            .collect();
        let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
        json!({"metadata": metadata, "versions": versions})
    }
}

fn aggregated_resource(row: &ResourceDef) -> Value {
    let own = |kind: &str| json!({"group": row.group, "version": row.version, "kind": kind});
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

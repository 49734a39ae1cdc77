//! Whole documents: one of version 3 for each group and version, one of version 2 for all.

use std::io;

use keelson_machinery::docs::Docs;
use keelson_machinery::resources::RESOURCES;

use super::operations::{self, group_name, tag, title};
use super::render::Renderer;
use super::schema::{Flavour, META};
use super::sink::Sink;
use crate::offered::Offered;

const OBJECTS: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// The documents of version 3 that do not come from definitions: their paths below `/openapi/v3/`.
pub fn names(offered: &Offered) -> Vec<String> {
    let mut names: Vec<String> =
        [".well-known/openid-configuration", "api", "api/v1", "apis", "openid/v1/jwks", "version"]
            .map(str::to_owned)
            .into();
    for (group, version) in versions(offered) {
        if !group.is_empty() {
            names.extend([format!("apis/{group}"), format!("apis/{group}/{version}")]);
        }
    }
    names.sort();
    names.dedup();
    names
}

/// Groups and versions beside those of the table whose types upstream's server knows, though it serves none of them: options
/// and events are of these, too.
const UNSERVED: &[(&str, &[&str])] = &[
    ("admission.k8s.io", &["v1", "v1beta1"]),
    ("admissionregistration.k8s.io", &["v1alpha1", "v1beta1"]),
    ("apiextensions.k8s.io", &["v1beta1"]),
    ("apiregistration.k8s.io", &["v1beta1"]),
    ("apps", &["v1beta1", "v1beta2"]),
    ("authentication.k8s.io", &["v1alpha1", "v1beta1"]),
    ("authorization.k8s.io", &["v1beta1"]),
    ("batch", &["v1beta1"]),
    ("certificates.k8s.io", &["v1alpha1", "v1beta1"]),
    ("coordination.k8s.io", &["v1alpha2", "v1beta1"]),
    ("discovery.k8s.io", &["v1beta1"]),
    ("events.k8s.io", &["v1beta1"]),
    ("extensions", &["v1beta1"]),
    ("flowcontrol.apiserver.k8s.io", &["v1beta1", "v1beta2", "v1beta3"]),
    ("imagepolicy.k8s.io", &["v1alpha1"]),
    ("internal.apiserver.k8s.io", &["v1alpha1"]),
    ("networking.k8s.io", &["v1beta1"]),
    ("node.k8s.io", &["v1alpha1", "v1beta1"]),
    ("policy", &["v1beta1"]),
    ("rbac.authorization.k8s.io", &["v1alpha1", "v1beta1"]),
    ("resource.k8s.io", &["v1alpha3", "v1beta1", "v1beta2"]),
    ("scheduling.k8s.io", &["v1alpha2", "v1beta1"]),
    ("storage.k8s.io", &["v1alpha1", "v1beta1"]),
    ("storagemigration.k8s.io", &["v1beta1"]),
];

/// All groups and versions that upstream's server has types of.
fn known_versions(offered: &Offered) -> Vec<(&'static str, &'static str)> {
    let unserved = UNSERVED.iter().flat_map(|(group, versions)| versions.iter().map(move |version| (*group, *version)));
    let mut all: Vec<_> = versions(offered).into_iter().chain(unserved).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Groups and versions of the table that are served.
fn versions(offered: &Offered) -> Vec<(&'static str, &'static str)> {
    let mut all: Vec<_> = offered.rows().map(|row| (row.group, row.version)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Writes the document of version 3 of this name; `false` if there is none.
pub fn version_3(name: &str, offered: &Offered, sink: &mut dyn Sink) -> io::Result<bool> {
    let docs = Docs::unpack();
    let parts: Vec<&str> = name.split('/').collect();
    let versions = match parts[..] {
        ["apis", group, version] => vec![("", "v1"), (group, version)],
        _ => vec![("", "v1")],
    };
    let mut renderer = Renderer::new(Flavour::V3, &docs, versions, sink);
    match parts[..] {
        ["api", version] => group_version(&mut renderer, offered, ("", version))?,
        ["apis", group, version] => group_version(&mut renderer, offered, (group, version))?,
        _ => about(&mut renderer, name)?,
    }
    renderer.finish()
}

/// Writes the document of version 2.
pub fn version_2(offered: &Offered, sink: &mut dyn Sink) -> io::Result<bool> {
    let docs = Docs::unpack();
    let mut renderer = Renderer::new(Flavour::V2, &docs, known_versions(offered), sink);
    for of in versions(offered) {
        group_version(&mut renderer, offered, of)?;
    }
    for name in names(offered) {
        about(&mut renderer, &name)?;
    }
    renderer.finish()
}

/// The paths of a group's version.
fn group_version(renderer: &mut Renderer<'_>, offered: &Offered, (group, version): (&str, &str)) -> io::Result<()> {
    let rows: Vec<_> = offered.rows().filter(|row| row.group == group && row.version == version).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let root = if group.is_empty() { format!("/api/{version}/") } else { format!("/apis/{group}/{version}/") };
    let id = format!("get{}{}APIResources", group_name(group), title(version));
    let answer = format!("{META}APIResourceList");
    renderer.plain(&root, &tag(group, version), &id, "get available resources", OBJECTS, Some(&answer))?;
    for row in rows {
        for path in operations::paths(row) {
            renderer.path(&path)?;
        }
    }
    Ok(())
}

/// Paths about the API itself.
fn about(renderer: &mut Renderer<'_>, name: &str) -> io::Result<()> {
    let versions = format!("{META}APIVersions");
    let path = format!("/{name}/");
    match name.split('/').collect::<Vec<_>>()[..] {
        ["api"] => {
            renderer.plain(&path, "core", "getCoreAPIVersions", "get available API versions", OBJECTS, Some(&versions))
        }
        ["apis"] => {
            let answer = format!("{META}APIGroupList");
            renderer.plain(&path, "apis", "getAPIVersions", "get available API versions", OBJECTS, Some(&answer))
        }
        ["apis", group] if RESOURCES.iter().any(|row| row.group == group) => {
            let (id, answer) = (format!("get{}APIGroup", group_name(group)), format!("{META}APIGroup"));
            renderer.plain(&path, &tag(group, ""), &id, "get information of a group", OBJECTS, Some(&answer))
        }
        ["version"] => {
            let (text, answer) = ("get the version information for this server", "apimachinery.pkg.version.Info");
            renderer.plain(&path, "version", "getCodeVersion", text, &OBJECTS[..1], Some(answer))
        }
        ["openid", "v1", "jwks"] => {
            let text = "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)";
            let media = &["application/jwk-set+json"];
            renderer.plain(&path, "openid", "getServiceAccountIssuerOpenIDKeyset", text, media, None)
        }
        [".well-known", "openid-configuration"] => {
            let text = "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'";
            let id = "getServiceAccountIssuerOpenIDConfiguration";
            renderer.plain(&path, "WellKnown", id, text, &OBJECTS[..1], None)
        }
        _ => Ok(()),
    }
}

//! What resources a server has: each once, in the version that its group prefers. For what works on every kind there is.

use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResourceList, ObjectMeta};
use serde::Deserialize;

use crate::api::{Client, Error};

/// Accept header of an answer with nothing but metadata.
pub const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// Accept header of a list with nothing but metadata.
pub const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApiResource {
    /// API group, "" for core.
    pub group: String,
    /// The version.
    pub version: String,
    /// The kind of its objects.
    pub kind: String,
    /// Path segment.
    pub plural: String,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
    /// What can be done with them.
    pub verbs: Vec<String>,
}

impl ApiResource {
    /// Whether a verb is served.
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// Path of its objects, in a namespace if one is named, or of one of them if a name is given.
    pub fn path(&self, namespace: &str, name: &str) -> String {
        let mut path = match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        if self.namespaced && !namespace.is_empty() {
            path += &format!("/namespaces/{namespace}");
        }
        path += &format!("/{}", self.plural);
        if !name.is_empty() {
            path += &format!("/{name}");
        }
        path
    }

    /// `plural.group`, as messages write it; core's group is empty.
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }
}

/// An object of which only the metadata is known.
#[derive(Clone, Debug, Deserialize)]
pub struct PartialObject {
    /// The metadata.
    pub metadata: ObjectMeta,
}

/// All resources; groups that cannot be asked are in the second list, with why.
pub async fn resources(client: &Client) -> Result<(Vec<ApiResource>, Vec<(String, Error)>), Error> {
    let groups: APIGroupList = client.request(Method::GET, "/apis", None, Default::default()).await?;
    let mut found = of_version(client, "", "v1").await?;
    let mut failed = Vec::new();
    for group in groups.groups {
        let preferred = group.preferred_version.map(|v| v.version);
        let rest = group.versions.into_iter().map(|v| v.version).filter(|v| Some(v) != preferred.as_ref());
        let versions: Vec<String> = preferred.clone().into_iter().chain(rest).collect();
        for version in versions {
            match of_version(client, &group.name, &version).await {
                Ok(resources) => {
                    for resource in resources {
                        // A kind that the preferred version lacks is taken from another.
                        if !found.iter().any(|r| r.group == resource.group && r.plural == resource.plural) {
                            found.push(resource);
                        }
                    }
                }
                Err(error) => failed.push((format!("{}/{version}", group.name), error)),
            }
        }
    }
    Ok((found, failed))
}

async fn of_version(client: &Client, group: &str, version: &str) -> Result<Vec<ApiResource>, Error> {
    let path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    let list: APIResourceList = client.request(Method::GET, &path, None, Default::default()).await?;
    let top = list.resources.into_iter().filter(|r| !r.name.contains('/'));
    Ok(top
        .map(|r| ApiResource {
            group: group.into(),
            version: version.into(),
            kind: r.kind,
            plural: r.name,
            namespaced: r.namespaced,
            verbs: r.verbs,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let mut resource = ApiResource {
            group: "apps".into(),
            version: "v1".into(),
            kind: "Deployment".into(),
            plural: "deployments".into(),
            namespaced: true,
            verbs: vec!["get".into()],
        };
        assert_eq!(resource.path("d", "x"), "/apis/apps/v1/namespaces/d/deployments/x");
        assert_eq!(resource.path("", ""), "/apis/apps/v1/deployments");
        (resource.group, resource.namespaced) = (String::new(), false);
        assert_eq!(resource.path("d", "x"), "/api/v1/deployments/x");
        assert!(resource.can("get") && !resource.can("list"));
    }
}

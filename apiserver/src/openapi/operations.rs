//! The operations of each path, derived from the resource table.

use keelson_machinery::resource::{ResourceDef, Scope, Subresource};
use keelson_machinery::schema;

use super::parameters::{CONNECT, CREATE, DELETE, DELETE_COLLECTION, LIST, LOG, PATCH};

/// Kinds whose deletion answers with the object, not with a Status.
const ANSWER_DELETED: &[(&str, &str)] = &[
    ("", "PersistentVolumeClaim"),
    ("", "Pod"),
    ("", "PodTemplate"),
    ("", "ResourceQuota"),
    ("", "ServiceAccount"),
    ("", "Service"),
    ("", "PersistentVolume"),
    ("resource.k8s.io", "DeviceClass"),
    ("resource.k8s.io", "ResourceClaim"),
    ("resource.k8s.io", "ResourceClaimTemplate"),
    ("resource.k8s.io", "ResourceSlice"),
    ("storage.k8s.io", "CSIDriver"),
    ("storage.k8s.io", "CSINode"),
    ("storage.k8s.io", "StorageClass"),
    ("storage.k8s.io", "VolumeAttachment"),
    ("storage.k8s.io", "VolumeAttributesClass"),
];

/// What a request's body is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestBody {
    /// None.
    None,
    /// An object of the type of this path.
    Object(String),
    /// A patch.
    Patch,
    /// Options of deletion, which may be left out.
    DeleteOptions,
}

/// What an answer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponseBody {
    /// An object of the type of this path, in all media types for objects.
    Object(String),
    /// The same, or a stream of events.
    Stream(String),
    /// Text (of a log) in the media types for objects.
    Text,
    /// Whatever the other side sends.
    Anything,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Operation {
    /// HTTP method in lower case.
    pub method: &'static str,
    /// Its name, unique among all.
    pub id: String,
    /// What it does.
    pub description: String,
    /// What the extension of the API calls it.
    pub action: &'static str,
    /// Group, version and kind that it is about.
    pub kind: (&'static str, &'static str, &'static str),
    /// Names of the parameters in the query, without those of all.
    pub parameters: &'static [&'static str],
    /// Body.
    pub body: RequestBody,
    /// Answer.
    pub answer: ResponseBody,
    /// Codes of the answer.
    pub codes: &'static [u16],
    /// Whether `pretty` is a parameter.
    pub pretty: bool,
}

/// A path with its operations.
#[derive(Clone, Debug)]
pub struct Path {
    /// The path, with its parameters in braces.
    pub path: String,
    /// Names of the parameters in the path.
    pub parameters: Vec<&'static str>,
    /// Operations.
    pub operations: Vec<Operation>,
}

/// `Core`, `RbacAuthorization`, ...
pub fn group_name(group: &str) -> String {
    if group.is_empty() {
        return "Core".into();
    }
    let group = group.trim_end_matches(".k8s.io");
    group.split('.').map(title).collect()
}

/// A word with a capital.
pub fn title(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

/// The tag of a group's version: `core_v1`.
pub fn tag(group: &str, version: &str) -> String {
    let name = group_name(group);
    let mut letters = name.chars();
    let lower: String = letters.next().into_iter().flat_map(char::to_lowercase).chain(letters).collect();
    if version.is_empty() { lower } else { format!("{lower}_{version}") }
}

/// The article before a kind, with a space.
fn article(kind: &str) -> &'static str {
    if kind.ends_with('s') && !kind.ends_with("ss") && !kind.ends_with("us") {
        ""
    } else if kind.starts_with(['A', 'E', 'I', 'O', 'U']) {
        "an "
    } else {
        "a "
    }
}

/// Path of a type by its kind; for kinds that are options of requests the row's group is the place.
fn type_path(group: &str, version: &str, kind: &str) -> String {
    schema::path_of_kind(group, version, kind).map_or_else(|| format!("api.{group}.{version}.{kind}"), str::to_owned)
}

/// What the operations of a row have in common.
struct Row<'a> {
    def: &'a ResourceDef,
    /// Group and version as names of operations have them.
    group_version: String,
    own: String,
    /// `/apis/apps/v1`
    root: String,
}

impl Row<'_> {
    fn operation(&self, method: &'static str, verb: &str, middle: &str, description: String) -> Operation {
        let def = self.def;
        Operation {
            method,
            id: format!("{verb}{}{middle}", self.group_version),
            description,
            action: method,
            kind: (def.group, def.version, def.kind),
            parameters: &[],
            body: RequestBody::None,
            answer: ResponseBody::Object(self.own.clone()),
            codes: &[200],
            pretty: true,
        }
    }

    fn has(&self, verb: &str) -> bool {
        self.def.verbs.contains(&verb)
    }

    /// `Namespaced` or nothing, then the kind.
    fn place(&self) -> String {
        let namespaced = if self.def.scope == Scope::Namespaced { "Namespaced" } else { "" };
        format!("{namespaced}{}", self.def.kind)
    }

    fn list(&self, middle: &str) -> Operation {
        let kind = self.def.kind;
        let watch = if self.has("watch") { "list or watch" } else { "list" };
        Operation {
            action: "list",
            parameters: LIST,
            answer: ResponseBody::Stream(format!("{}List", self.own)),
            ..self.operation("get", "list", middle, format!("{watch} objects of kind {kind}"))
        }
    }

    fn watch(&self, middle: &str, list: bool) -> Operation {
        let kind = self.def.kind;
        let (action, description) = if list {
            (
                "watchlist",
                format!(
                    "watch individual changes to a list of {kind}. deprecated: use the 'watch' parameter with a list operation instead."
                ),
            )
        } else {
            (
                "watch",
                format!(
                    "watch changes to an object of kind {kind}. deprecated: use the 'watch' parameter with a list operation instead, \
                 filtered to a single item with the 'fieldSelector' parameter."
                ),
            )
        };
        Operation {
            action,
            parameters: LIST,
            answer: ResponseBody::Stream("apimachinery.pkg.apis.meta.v1.WatchEvent".into()),
            ..self.operation("get", "watch", middle, description)
        }
    }

    fn collection(&self) -> Vec<Operation> {
        let (place, kind) = (self.place(), self.def.kind);
        let mut operations = Vec::new();
        if self.has("list") {
            operations.push(self.list(&place));
        }
        if self.has("create") {
            operations.push(Operation {
                parameters: CREATE,
                body: RequestBody::Object(self.own.clone()),
                codes: &[200, 201, 202],
                ..self.operation("post", "create", &place, format!("create {}{kind}", article(kind)))
            });
        }
        if self.has("deletecollection") {
            let id = format!("Collection{place}");
            operations.push(Operation {
                action: "deletecollection",
                parameters: DELETE_COLLECTION,
                body: RequestBody::DeleteOptions,
                answer: ResponseBody::Object("apimachinery.pkg.apis.meta.v1.Status".into()),
                ..self.operation("delete", "delete", &id, format!("delete collection of {kind}"))
            });
        }
        operations
    }

    fn one(&self) -> Vec<Operation> {
        let (place, kind) = (self.place(), self.def.kind);
        let mut operations = Vec::new();
        if self.has("get") {
            operations.push(self.operation("get", "read", &place, format!("read the specified {kind}")));
        }
        if self.has("update") {
            operations.push(self.put(&place, format!("replace the specified {kind}")));
        }
        if self.has("delete") {
            let answers = ANSWER_DELETED.contains(&(self.def.group, kind));
            let status = "apimachinery.pkg.apis.meta.v1.Status".to_owned();
            operations.push(Operation {
                parameters: DELETE,
                body: RequestBody::DeleteOptions,
                answer: ResponseBody::Object(if answers { self.own.clone() } else { status }),
                codes: &[200, 202],
                ..self.operation("delete", "delete", &place, format!("delete {}{kind}", article(kind)))
            });
        }
        if self.has("patch") {
            operations.push(self.patch(&place, format!("partially update the specified {kind}")));
        }
        operations
    }

    fn put(&self, middle: &str, description: String) -> Operation {
        Operation {
            parameters: CREATE,
            body: RequestBody::Object(self.own.clone()),
            codes: &[200, 201],
            ..self.operation("put", "replace", middle, description)
        }
    }

    fn patch(&self, middle: &str, description: String) -> Operation {
        Operation {
            parameters: PATCH,
            body: RequestBody::Patch,
            codes: &[200, 201],
            ..self.operation("patch", "patch", middle, description)
        }
    }

    fn subresource(&self, sub: &Subresource) -> Vec<Operation> {
        let (group, version, kind) = sub.kind;
        let (group, version) = if version.is_empty() { (self.def.group, self.def.version) } else { (group, version) };
        let kind = if kind.is_empty() { self.def.kind } else { kind };
        let middle = format!("{}{}", self.place(), title(sub.name));
        let own = type_path(group, version, kind);
        let (name, of) = (sub.name, self.def.kind);
        if let Some((_, parameters)) = CONNECT.iter().find(|(options, _)| *options == kind) {
            return self.connect(sub, parameters, (group, version, kind));
        }
        let mut operations = Vec::new();
        for verb in ["get", "create", "update", "patch"].iter().filter(|verb| sub.verbs.contains(verb)) {
            let operation = match *verb {
                "get" => {
                    let read = self.operation("get", "read", &middle, format!("read {name} of the specified {of}"));
                    match name {
                        "log" => Operation { parameters: LOG, answer: ResponseBody::Text, ..read },
                        _ => read,
                    }
                }
                "create" => Operation {
                    parameters: CREATE,
                    body: RequestBody::Object(own.clone()),
                    codes: &[200, 201, 202],
                    ..self.operation("post", "create", &middle, format!("create {name} of {}{of}", article(of)))
                },
                "update" => self.put(&middle, format!("replace {name} of the specified {of}")),
                _ => self.patch(&middle, format!("partially update {name} of the specified {of}")),
            };
            let body = match operation.body {
                RequestBody::Object(_) => RequestBody::Object(own.clone()),
                other => other,
            };
            let answer = match operation.answer {
                ResponseBody::Object(_) => ResponseBody::Object(own.clone()),
                other => other,
            };
            operations.push(Operation { kind: (group, version, kind), body, answer, ..operation });
        }
        operations
    }

    fn connect(
        &self,
        sub: &Subresource,
        parameters: &'static [&'static str],
        kind: (&'static str, &'static str, &'static str),
    ) -> Vec<Operation> {
        let methods: &[&'static str] = match sub.name {
            "proxy" => &["get", "put", "post", "delete", "options", "head", "patch"],
            _ => &["get", "post"],
        };
        let describe =
            |method: &str| format!("connect {} requests to {} of {}", method.to_uppercase(), sub.name, self.def.kind);
        methods
            .iter()
            .map(|method| Operation {
                id: format!("connect{}{}{}{}", self.group_version, title(method), self.place(), title(sub.name)),
                action: "connect",
                kind,
                parameters,
                answer: ResponseBody::Anything,
                pretty: false,
                ..self.operation(method, "", "", describe(method))
            })
            .collect()
    }
}

/// The paths of a row.
pub fn paths(def: &ResourceDef) -> Vec<Path> {
    let root = if def.group.is_empty() {
        format!("/api/{}", def.version)
    } else {
        format!("/apis/{}/{}", def.group, def.version)
    };
    let group_version = format!("{}{}", group_name(def.group), title(def.version));
    let row = Row { def, group_version, own: type_path(def.group, def.version, def.kind), root };
    let namespaced = def.scope == Scope::Namespaced;
    let (place, mut at) = if namespaced { ("/namespaces/{namespace}", vec!["namespace"]) } else { ("", vec![]) };
    let collection = format!("{}{place}/{}", row.root, def.plural);
    let mut paths = Vec::new();
    let mut add = |path: String, parameters: &[&'static str], operations: Vec<Operation>| {
        if !operations.is_empty() {
            paths.push(Path { path, parameters: parameters.to_vec(), operations });
        }
    };
    add(collection.clone(), &at, row.collection());
    let watch = |suffix: &str| format!("{}/watch{place}/{}{suffix}", row.root, def.plural);
    if row.has("watch") {
        add(watch(""), &at, vec![row.watch(&format!("{}List", row.place()), true)]);
    }
    if namespaced && row.has("list") {
        let everywhere = format!("{}ForAllNamespaces", def.kind);
        add(format!("{}/{}", row.root, def.plural), &[], vec![row.list(&everywhere)]);
        if row.has("watch") {
            let everywhere = format!("{}ListForAllNamespaces", def.kind);
            add(format!("{}/watch/{}", row.root, def.plural), &[], vec![row.watch(&everywhere, true)]);
        }
    }
    at.insert(0, "name");
    add(format!("{collection}/{{name}}"), &at, row.one());
    if row.has("watch") && row.has("get") {
        add(watch("/{name}"), &at, vec![row.watch(&row.place(), false)]);
    }
    for sub in def.subresources {
        let path = format!("{collection}/{{name}}/{}", sub.name);
        let operations = row.subresource(sub);
        if sub.name == "proxy" {
            let with_path =
                |operation: &Operation| Operation { id: format!("{}WithPath", operation.id), ..operation.clone() };
            let mut at = at.clone();
            at.push("path");
            add(format!("{path}/{{path}}"), &at, operations.iter().map(with_path).collect());
        }
        add(path, &at, operations);
    }
    paths
}

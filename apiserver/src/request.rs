//! What a request asks for: path and query taken apart once, before anything else looks at it.

use std::collections::BTreeMap;
use std::num::{IntErrorKind, ParseIntError};
use std::time::Duration;

use http::Method;
use keelson_machinery::conversion;
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::resources;
use keelson_machinery::status::Status;
use keelson_machinery::stored::{self, Stored, Text};
use keelson_machinery::validation::span_problem;
use keelson_store::KeyValue;
use serde_json::Value;

use crate::access::Attributes;
use crate::crd;
use crate::objects::parse;
use crate::settings::duration;
use crate::{scheduling, usage};

/// Query parameters, decoded; of repeated ones all values.
#[derive(Clone, Debug, Default)]
pub struct Query(BTreeMap<String, Vec<String>>);

impl Query {
    /// Takes a query string apart.
    pub fn parse(query: Option<&str>) -> Self {
        let mut map: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in query.unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            map.entry(decode(key, true)).or_default().push(decode(value, true));
        }
        Self(map)
    }

    /// The first value of a parameter; `None` if absent or empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|v| v.first()).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// Whether a parameter is there, with or without value.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// All values of a parameter.
    pub fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// A boolean as Kubernetes reads it: absent, `0` and `false` are false, all else is true.
    pub fn flag(&self, key: &str) -> bool {
        self.0.get(key).and_then(|v| v.first()).is_some_and(|v| v != "0" && !v.eq_ignore_ascii_case("false"))
    }

    /// A number; text that is none, or no text, is a 400.
    pub fn number(&self, key: &str) -> Result<Option<i64>, Status> {
        self.all(key).first().map(|text| integer(text)).transpose()
    }
}

/// A number of a query; text that is none is refused in the words of Go's `strconv`.
pub fn integer<T: std::str::FromStr<Err = ParseIntError>>(text: &str) -> Result<T, Status> {
    text.parse().map_err(|error: ParseIntError| {
        let why = match error.kind() {
            IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: {why}"))
    })
}

/// Most time that a request may ask for; one that asks for more or for nothing gets no other limit.
const MAX_REQUESTED: Duration = Duration::from_secs(60);

/// The time that a request gives itself (`timeout`), if it is less than [`MAX_REQUESTED`]. What is no span of time is refused,
/// whatever else a request asks for (upstream's `WithRequestDeadline`).
pub(crate) fn deadline(query: Option<&str>) -> Result<Option<Duration>, Status> {
    let Some(query) = query.filter(|query| query.contains("timeout=")) else { return Ok(None) };
    let query = Query::parse(Some(query));
    let Some(text) = query.get("timeout") else { return Ok(None) };
    match span_problem(text) {
        Some(why) => Err(Status::bad_request(format!("invalid timeout specified in the request URL - {why}"))),
        None => Ok(duration(text).filter(|asked| (Duration::from_nanos(1)..MAX_REQUESTED).contains(asked))),
    }
}

/// Text with its percent escapes decoded.
pub fn percent_decoded(text: &str) -> String {
    decode(text, false)
}

/// Percent-decodes; `+` is a space in queries only.
fn decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                i += 3;
                continue;
            }
            (b'+', ..) if plus => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A request for a resource.
#[derive(Clone, Debug)]
pub struct ResourceRequest {
    /// The row.
    pub def: &'static ResourceDef,
    /// What the row says beyond names, if it is a custom resource's.
    pub custom: Option<crd::Custom>,
    /// get, list, watch, create, update, patch, delete, deletecollection.
    pub verb: &'static str,
    /// Namespace; "" for cluster-scoped requests and those across namespaces.
    pub namespace: String,
    /// Name or "".
    pub name: String,
    /// Subresource or "".
    pub subresource: String,
    /// What follows the subresource in the path (proxy).
    pub rest: String,
    /// Query.
    pub query: Query,
}

impl ResourceRequest {
    /// A request of the server itself about an object of a built-in kind.
    pub(crate) fn about(def: &'static ResourceDef, object: &Value) -> Self {
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        Self {
            def,
            custom: None,
            verb: "update",
            namespace: text("namespace"),
            name: text("name"),
            subresource: String::new(),
            rest: String::new(),
            query: Query::default(),
        }
    }

    /// A stored object with its head, in the version that is asked for.
    pub(crate) fn stored(&self, kv: &KeyValue) -> Result<Stored, Status> {
        match &self.custom {
            Some(custom) => custom.stored(kv),
            None if conversion::stored_row(self.def).is_some() => {
                let encoded = stored::encode(self.def, &self.value(kv)?);
                let parsed = encoded.and_then(|bytes| Stored::parse(&bytes));
                parsed.map_err(|e| Status::internal(&e.to_string()))
            }
            None => crate::encryption::stored(kv),
        }
    }

    /// The JSON of a stored object where it lies, if that is as it is asked for.
    pub(crate) fn text<'a>(&self, kv: &'a KeyValue) -> Result<Option<Text<'a>>, Status> {
        if self.custom.is_some() || conversion::stored_row(self.def).is_some() {
            return Ok(None);
        }
        crate::encryption::text(kv)
    }

    /// An object of this version as it goes to the store.
    pub(crate) fn to_store<'a>(&self, object: &'a Value) -> Result<std::borrow::Cow<'a, Value>, Status> {
        Ok(match &self.custom {
            Some(custom) => std::borrow::Cow::Owned(custom.to_storage(object)?),
            None => std::borrow::Cow::Borrowed(object),
        })
    }

    /// A stored object, parsed, in the version that is asked for.
    pub(crate) fn value(&self, kv: &KeyValue) -> Result<Value, Status> {
        match &self.custom {
            Some(custom) => custom.read(kv),
            None => parse(kv).map(|object| conversion::from_stored(self.def, object)),
        }
    }

    /// As authorizers see it.
    pub fn attributes(&self) -> Attributes {
        let r = self;
        Attributes {
            verb: r.verb.into(),
            group: r.def.group.into(),
            version: r.def.version.into(),
            resource: r.def.plural.into(),
            subresource: r.subresource.clone(),
            // A namespace's own namespace is itself, so that roles in it may name it.
            namespace: if r.def.plural == "namespaces" && r.def.group.is_empty() {
                r.name.clone()
            } else {
                r.namespace.clone()
            },
            name: if r.name.is_empty() { named_by_field(&r.query) } else { r.name.clone() },
            path: String::new(),
            fields: equal_fields(r.query.get("fieldSelector").unwrap_or_default()),
        }
    }
}

/// The requirements of a field selector that ask for equality.
pub(crate) fn equal_fields(selector: &str) -> Vec<(String, String)> {
    let parts = selector.split(',').filter(|part| !part.contains("!="));
    let pairs = parts.filter_map(|part| part.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.trim_start_matches('=').to_owned())).collect()
}

/// What a request asks for.
#[derive(Clone, Debug)]
pub enum Target {
    /// A resource.
    Resource(ResourceRequest),
    /// Any other path.
    Path(String),
}

/// The parts of a path. A slash counts as one however it is written, and between two of them is an empty part.
fn segments(decoded: &str) -> Vec<&str> {
    decoded.trim_matches('/').split('/').collect()
}

/// Takes a request's line apart; rows that are not built in are looked up in `customs`.
pub(crate) fn target(method: &Method, uri: &http::Uri, customs: &crd::Table) -> Result<Target, Status> {
    let path = uri.path();
    let decoded = decode(path, false);
    let parts = segments(&decoded);
    let (group, version, rest) = match parts[..] {
        ["api", version, ref rest @ ..] if !rest.is_empty() => ("", version, rest),
        ["apis", group, version, ref rest @ ..] if !rest.is_empty() => (group, version, rest),
        _ => return Ok(Target::Path(path.to_owned())),
    };
    let query = Query::parse(uri.query());
    // The old way to watch: `/api/v1/watch/...`.
    let (watch, rest) = match rest {
        ["watch", inner @ ..] if !inner.is_empty() => (true, inner),
        _ => (false, rest),
    };
    let (mut namespace, mut rest) = ("", rest);
    if let ["namespaces", ns, inner @ ..] = rest {
        // `/namespaces/x`, `/namespaces/x/status` and `/namespaces/x/finalize` are about the namespace itself.
        if !(inner.is_empty() || matches!(inner, ["status" | "finalize"])) {
            (namespace, rest) = (ns, inner);
        }
    }
    let computed = |plural: &str| usage::find(group, version, plural);
    let offered = customs.offered();
    let built_in = || offered.rows().any(|row| row.group == group);
    let in_table = |plural: &str| resources::find(group, version, plural).filter(|row| offered.has(row));
    let find = |plural: &str| match in_table(plural).or_else(|| computed(plural)) {
        Some(def) => Ok((def, None)),
        None => match customs.find(group, version, plural) {
            Some(custom) => Ok((custom.def(), Some(custom))),
            None if built_in() => Err(Status::no_such_path()),
            None => Err(Status::no_such_page()),
        },
    };
    let ((def, custom), name, subresource, tail) = match *rest {
        [plural] => (find(plural)?, "", "", String::new()),
        [plural, ""] | [plural, "", ..] if find(plural).is_ok() => return Err(Status::no_such_path()),
        [plural, name] => (find(plural)?, name, "", String::new()),
        [plural, name, sub, ref tail @ ..] => (find(plural)?, name, sub, tail.join("/")),
        [] => return Err(Status::no_such_path()),
    };
    if def.scope == Scope::Cluster && !namespace.is_empty() {
        return Err(if def.custom { Status::no_such_page() } else { Status::no_such_path() });
    }
    let served = subresource.is_empty()
        || def.subresources.iter().any(|s| s.name == subresource)
        || scheduling::is_served(def, subresource);
    // Only what is passed on has a path behind it.
    if !served || !(tail.is_empty() || def.custom || subresource == "proxy") {
        return Err(match def.custom {
            true => Status::not_found(def.group, def.plural, name),
            false => Status::no_such_path(),
        });
    }
    let verb = match verb(method, name, &query).ok_or_else(Status::method_not_allowed)? {
        "get" | "list" if watch => "watch",
        verb => verb,
    };
    Ok(Target::Resource(ResourceRequest {
        def,
        custom,
        verb,
        namespace: namespace.into(),
        name: name.into(),
        subresource: subresource.into(),
        rest: tail,
        query,
    }))
}

fn verb(method: &Method, name: &str, query: &Query) -> Option<&'static str> {
    Some(match *method {
        Method::GET if name.is_empty() => {
            if query.flag("watch") {
                "watch"
            } else {
                "list"
            }
        }
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if name.is_empty() => "deletecollection",
        Method::DELETE => "delete",
        _ => return None,
    })
}

/// The name that a list or watch asks for with a field selector: it counts as a name for authorization.
fn named_by_field(query: &Query) -> String {
    let fields = equal_fields(query.get("fieldSelector").unwrap_or_default());
    fields.into_iter().find(|(key, _)| key == "metadata.name").map(|(_, name)| name).unwrap_or_default()
}

/// A request line as authorizers see it, whether or not there is such a resource: who may not ask is not told.
pub(crate) fn attributes_of(method: &Method, uri: &http::Uri) -> Attributes {
    let path = uri.path();
    let decoded = decode(path, false);
    let parts = segments(&decoded);
    let (group, version, rest) = match parts[..] {
        ["api", version, ref rest @ ..] if !rest.is_empty() => ("", version, rest),
        ["apis", group, version, ref rest @ ..] if !rest.is_empty() => (group, version, rest),
        _ => {
            let verb = method.as_str().to_ascii_lowercase();
            return Attributes { verb, path: path.to_owned(), ..Attributes::default() };
        }
    };
    let query = Query::parse(uri.query());
    let (watch, rest) = match rest {
        ["watch", inner @ ..] if !inner.is_empty() => (true, inner),
        _ => (false, rest),
    };
    let (namespace, rest) = match rest {
        ["namespaces", ns, inner @ ..] if !(inner.is_empty() || matches!(inner, ["status" | "finalize"])) => {
            (*ns, inner)
        }
        _ => ("", rest),
    };
    let at = |index: usize| rest.get(index).copied().unwrap_or_default();
    let verb = verb(method, at(1), &query).unwrap_or_default();
    Attributes {
        verb: if watch { "watch" } else { verb }.into(),
        group: group.into(),
        version: version.into(),
        resource: at(0).into(),
        subresource: at(2).into(),
        namespace: namespace.into(),
        name: at(1).into(),
        ..Attributes::default()
    }
}

impl Target {
    /// As authorizers see it.
    pub fn attributes(&self, method: &Method) -> Attributes {
        match self {
            Self::Resource(r) => r.attributes(),
            Self::Path(path) => {
                Attributes { verb: method.as_str().to_ascii_lowercase(), path: path.clone(), ..Attributes::default() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        for (query, expected) in [
            ("limit=5", Ok(Some(5))),
            ("limit=5&limit=x", Ok(Some(5))),
            ("other=5", Ok(None)),
            ("limit=", Err(r#"strconv.ParseInt: parsing "": invalid syntax"#)),
            ("limit", Err(r#"strconv.ParseInt: parsing "": invalid syntax"#)),
            ("limit=1.5", Err(r#"strconv.ParseInt: parsing "1.5": invalid syntax"#)),
            (
                "limit=9223372036854775808",
                Err(r#"strconv.ParseInt: parsing "9223372036854775808": value out of range"#),
            ),
        ] {
            let read = Query::parse(Some(query)).number("limit").map_err(|status| status.message);
            assert_eq!(read, expected.map_err(str::to_owned), "{query}");
        }
        for (query, expected) in
            [("w", true), ("w=", true), ("w=no", true), ("w=fAlse", false), ("w=0", false), ("", false)]
        {
            assert_eq!(Query::parse(Some(query)).flag("w"), expected, "{query}");
        }
        for (query, expected) in [
            ("timeout=1m30s", None),
            ("timeout=0", None),
            ("timeoutSeconds=x", None),
            ("timeout=", None),
            ("timeout=abc", Some(r#"time: invalid duration "abc""#)),
            ("a=b&timeout=5", Some(r#"time: missing unit in duration "5""#)),
            ("timeout=5d", Some(r#"time: unknown unit "d" in duration "5d""#)),
        ] {
            let refused = deadline(Some(query)).err().map(|status| status.message);
            let expected = expected.map(|why| format!("invalid timeout specified in the request URL - {why}"));
            assert_eq!(refused, expected, "{query}");
        }
        for (query, expected) in [
            ("timeout=1500ms", Some(1500)),
            ("timeout=59s", Some(59_000)),
            ("timeout=60s", None),
            ("timeout=-1s", None),
            ("timeout=0s", None),
            ("a=b", None),
        ] {
            let asked = deadline(Some(query)).unwrap();
            assert_eq!(asked, expected.map(Duration::from_millis), "{query}");
        }
    }

    #[test]
    fn paths() {
        for (method, uri, expected) in [
            ("GET", "/api/v1/pods", "pods list   "),
            ("GET", "/api/v1/pods?watch=1", "pods watch   "),
            ("GET", "/api/v1/namespaces//pods/", "pods list   "),
            ("GET", "/api/v1/namespaces/x", "namespaces get  x "),
            ("PUT", "/api/v1/namespaces/x/finalize", "namespaces update  x finalize"),
            ("POST", "/api/v1/namespaces/x/pods", "pods create x  "),
            ("POST", "/api/v1/namespaces/x/pods/a/binding", "pods create x a binding"),
            ("DELETE", "/apis/apps/v1/namespaces/x/deployments", "deployments deletecollection x  "),
            ("PATCH", "/apis/apps/v1/namespaces/x/deployments/a%2Db/status", "deployments patch x a-b status"),
        ] {
            let method: Method = method.parse().unwrap();
            let Target::Resource(r) = target(&method, &uri.parse().unwrap(), &crd::Table::default()).unwrap() else {
                panic!("{uri}")
            };
            assert_eq!(
                format!("{} {} {} {} {}", r.def.plural, r.verb, r.namespace, r.name, r.subresource),
                expected,
                "{uri}"
            );
        }
        for (uri, code) in [
            ("/api/v1/nope", 404),
            ("/apis/apps/v1/pods", 404),
            ("/api/v1/namespaces/x/nodes", 404),
            ("/api/v1/pods/a/nope", 404),
            ("/api/v1/namespaces/x/pods/a/status/more", 404),
            ("/api/v1//pods", 404),
            ("/api/v1/pods//status", 404),
            ("/api/v1/namespaces/x/configmaps/a%2Fb", 404),
        ] {
            assert_eq!(
                target(&Method::GET, &uri.parse().unwrap(), &crd::Table::default()).unwrap_err().code,
                code,
                "{uri}"
            );
        }
        assert!(matches!(
            target(&Method::GET, &"/version".parse().unwrap(), &crd::Table::default()),
            Ok(Target::Path(_))
        ));
    }
}

//! The shape of kubeconfig files: which fields kubectl's types have, and how it writes them.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::failure::{Failure, Outcome};

/// The lists, with the key under which each keeps what it names.
pub const LISTS: [(&str, &str); 3] = [("clusters", "cluster"), ("contexts", "context"), ("users", "user")];
/// Fields that name files; they are relative to the file that they are in.
const PATHS: [&str; 4] = ["certificate-authority", "client-certificate", "client-key", "tokenFile"];

/// What a field of an entry takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// A text.
    Text,
    /// `true` or `false`.
    Bool,
    /// Bytes, in base64.
    Bytes,
}

/// The fields of a list's entries that `config set` knows.
pub fn fields(list: &str) -> &'static [(&'static str, Holds)] {
    use Holds::{Bool, Bytes, Text};
    match list {
        "clusters" => &[
            ("server", Text),
            ("tls-server-name", Text),
            ("insecure-skip-tls-verify", Bool),
            ("certificate-authority", Text),
            ("certificate-authority-data", Bytes),
            ("proxy-url", Text),
            ("disable-compression", Bool),
        ],
        "contexts" => &[("cluster", Text), ("user", Text), ("namespace", Text)],
        "users" => &[
            ("client-certificate", Text),
            ("client-certificate-data", Bytes),
            ("client-key", Text),
            ("client-key-data", Bytes),
            ("token", Text),
            ("tokenFile", Text),
            ("as", Text),
            ("as-uid", Text),
            ("username", Text),
            ("password", Text),
        ],
        _ => &[],
    }
}

/// A configuration with nothing in it.
pub fn empty() -> Value {
    json!({"apiVersion": "v1", "kind": "Config", "clusters": [], "contexts": [], "users": [], "preferences": {},
        "current-context": ""})
}

/// Reads a file's text.
pub fn parse(text: &str, file: &Path) -> Outcome<Value> {
    let wrong = |why: String| Failure::new(format!("error loading config file \"{}\": {why}", file.display()));
    // What is after the first document does not count.
    let first = text.trim_start_matches("---\n").split("\n---").next().unwrap_or_default();
    if first.trim().is_empty() {
        return Ok(empty());
    }
    let config = keelson_machinery::decode::yaml(first.as_bytes()).map_err(|e| wrong(e.to_string()))?.value;
    if !config.is_object() {
        let what = if config.is_string() { "string" } else { "value" };
        return Err(wrong(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {what} into Go value of type struct {{ \
             APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
        )));
    }
    let kind = config["kind"].as_str().unwrap_or("Config");
    if !matches!(kind, "Config" | "") {
        let version = config["apiVersion"].as_str().unwrap_or("v1");
        return Err(wrong(format!(
            "no kind {kind:?} is registered for version {version:?} in scheme \
             \"k8s.io/client-go/tools/clientcmd/api/latest/latest.go:50\""
        )));
    }
    Ok(shaped(&config))
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// A map without empty fields, with those that are always written.
fn filled(value: &Value, always: &[(&str, Value)]) -> Value {
    let mut map: Map<String, Value> = value.as_object().cloned().unwrap_or_default();
    map.retain(|_, value| !is_nothing(value));
    for (key, default) in always {
        map.entry(*key).or_insert_with(|| default.clone());
    }
    Value::Object(map)
}

fn entry(list: &str, value: &Value) -> Value {
    match list {
        "clusters" => filled(value, &[("server", "".into())]),
        "contexts" => filled(value, &[("cluster", "".into()), ("user", "".into())]),
        _ => {
            let mut user = filled(value, &[]);
            if user.get("exec").is_some() {
                let always = [
                    ("args", Value::Null),
                    ("command", "".into()),
                    ("env", Value::Null),
                    ("provideClusterInfo", false.into()),
                ];
                user["exec"] = filled(&user["exec"], &always);
            }
            if user.get("auth-provider").is_some() {
                user["auth-provider"] = filled(&user["auth-provider"], &[("config", Value::Null), ("name", "".into())]);
            }
            user
        }
    }
}

/// As kubectl's types hold it: entries in the order of their names, with the fields that they always have.
pub fn shaped(config: &Value) -> Value {
    let mut shaped = empty();
    for (list, key) in LISTS {
        let mut entries: Vec<Value> = Vec::new();
        for one in config[list].as_array().into_iter().flatten() {
            if !entries.iter().any(|have| have["name"] == one["name"]) {
                entries.push(json!({"name": one["name"].as_str().unwrap_or_default(), key: entry(list, &one[key])}));
            }
        }
        entries.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
        shaped[list] = entries.into();
    }
    for (key, empty) in [("preferences", json!({})), ("extensions", Value::Null), ("current-context", "".into())] {
        let value = &config[key];
        if !is_nothing(value) || !is_nothing(&empty) {
            shaped[key] = if is_nothing(value) { empty } else { value.clone() };
        } else if key == "extensions" {
            shaped.as_object_mut().and_then(|map| map.remove(key));
        }
    }
    if let Some(preferences) = shaped["preferences"].as_object_mut() {
        preferences.retain(|_, value| !is_nothing(value));
    }
    shaped
}

/// As it is written and shown: a list with nothing in it is `null`.
pub fn written(config: &Value) -> Value {
    let mut config = shaped(config);
    for (list, _) in LISTS {
        if config[list].as_array().is_some_and(Vec::is_empty) {
            config[list] = Value::Null;
        }
    }
    config
}

/// Changes the paths in it.
pub fn with_paths(config: &mut Value, change: impl Fn(&str) -> Option<String>) {
    for (list, key) in LISTS {
        for one in config[list].as_array_mut().into_iter().flatten() {
            for path in PATHS {
                if let Some(changed) = one[key][path].as_str().filter(|text| !text.is_empty()).and_then(&change) {
                    one[key][path] = changed.into();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_its_types_are() {
        let config = json!({"clusters": [{"name": "b", "cluster": {}}, {"name": "a", "cluster": {"server": "s", "tls-server-name": ""}}],
            "contexts": [{"name": "x", "context": {"namespace": ""}}], "more": 1,
            "users": [{"name": "u", "user": {"token": "", "exec": {"command": "c"}}}]});
        let written = written(&config);
        assert_eq!(written["clusters"][0], json!({"name": "a", "cluster": {"server": "s"}}));
        assert_eq!(written["clusters"][1]["cluster"], json!({"server": ""}));
        assert_eq!(written["contexts"][0]["context"], json!({"cluster": "", "user": ""}));
        let exec = json!({"args": null, "command": "c", "env": null, "provideClusterInfo": false});
        assert_eq!(written["users"][0]["user"], json!({"exec": exec}));
        assert!(written.get("more").is_none());
        assert_eq!(super::written(&json!({}))["users"], Value::Null);
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for (text, why) in
            [("a: [", "yaml"), ("just text", "cannot unmarshal string"), ("kind: ConfigMap", "no kind \"ConfigMap\"")]
        {
            let said = parse(text, Path::new("f")).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
        assert_eq!(parse("---\n", Path::new("f")).unwrap(), empty());
    }
}

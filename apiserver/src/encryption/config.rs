//! The EncryptionConfiguration: which resources are sealed, with which keys, in which order (`apiserver.config.k8s.io/v1`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use keelson_machinery::{decode, resources};
use serde_json::Value;

use super::SEALED;
use super::kms::Kms;
use super::providers::Key;
use crate::settings::duration;

/// A way to store a value.
enum Provider {
    /// As it is.
    Identity,
    /// Sealed; the first key writes, all read.
    Keys(Vec<Key>),
}

/// Resources and how they are stored; the first provider writes, all read.
struct Entry {
    resources: Vec<String>,
    providers: Vec<Provider>,
}

/// A configuration.
pub struct Config {
    entries: Vec<Entry>,
    strict: bool,
}

fn list(of: &Value) -> impl Iterator<Item = (usize, &Value)> {
    of.as_array().into_iter().flatten().enumerate()
}

impl Config {
    /// Reads a configuration. Errors never show key material.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let config = decode::yaml(bytes).map_err(|_| "it is not YAML".to_owned())?.value;
        if config["kind"] != "EncryptionConfiguration" || config["apiVersion"] != "apiserver.config.k8s.io/v1" {
            return Err("must be an EncryptionConfiguration of apiserver.config.k8s.io/v1".into());
        }
        let entries =
            list(&config["resources"]).map(|(index, entry)| Entry::parse(entry, &format!("resources[{index}]")));
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        if entries.is_empty() {
            return Err("resources: Required value: at least one resource is required".into());
        }
        let plain = |entry: &Entry| entry.providers.iter().any(|p| matches!(p, Provider::Identity));
        let strict = !entries.iter().all(plain);
        Ok(Self { entries, strict })
    }

    /// Whether there are resources that must not be found in plain.
    pub fn has_strict(&self) -> bool {
        self.strict
    }

    /// The plugins that hold keys.
    pub fn plugins(&self) -> impl Iterator<Item = &Kms> {
        let keys = self.entries.iter().flat_map(|entry| &entry.providers).filter_map(|provider| match provider {
            Provider::Keys(keys) => Some(keys),
            Provider::Identity => None,
        });
        keys.flatten().filter_map(Key::plugin)
    }

    fn entry(&self, group: &str, plural: &str) -> Option<&Entry> {
        let exact = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let wanted = [exact, format!("*.{group}"), "*.*".to_owned()];
        wanted.iter().find_map(|name| self.entries.iter().find(|entry| entry.resources.contains(name)))
    }

    /// The key with which values of a resource are sealed; `None`: they are not.
    pub fn writing(&self, group: &str, plural: &str) -> Option<&Key> {
        match self.entry(group, plural)?.providers.first()? {
            Provider::Identity => None,
            Provider::Keys(keys) => keys.first(),
        }
    }

    /// A stored value in plain.
    pub fn open(&self, place: &[u8], value: &Bytes) -> Result<Bytes, String> {
        let (group, plural) = resource_of(place);
        let entry = self.entry(group, plural);
        if !value.starts_with(SEALED) {
            let plain = entry.is_none_or(|entry| entry.providers.iter().any(|p| matches!(p, Provider::Identity)));
            let why = "no matching prefix found: the value is not encrypted, and no identity provider is configured";
            return if plain { Ok(value.clone()) } else { Err(why.into()) };
        }
        // A resource that is no longer listed is still read with the keys that there are.
        let own = entry.into_iter().chain(&self.entries).flat_map(|entry| &entry.providers);
        let mut keys = own.filter_map(|p| if let Provider::Keys(keys) = p { Some(keys) } else { None }).flatten();
        let fitting = keys.find(|key| value.starts_with(key.prefix()));
        let key = fitting.ok_or("no matching key was found for the provided encryption transformer")?;
        key.open(place, value).map(Bytes::from)
    }
}

/// Group and plural of a store key.
fn resource_of(place: &[u8]) -> (&str, &str) {
    let place = std::str::from_utf8(place).unwrap_or_default();
    let found = resources::RESOURCES.iter().find(|row| place.starts_with(&row.prefix()));
    // What has no row of its own is a custom resource, which has group and plural in its key.
    let custom = || {
        let mut parts = place.trim_start_matches("/registry/").split('/');
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
    };
    found.map_or_else(custom, |row| (row.group, row.plural))
}

impl Entry {
    fn parse(entry: &Value, at: &str) -> Result<Self, String> {
        let texts = list(&entry["resources"]).filter_map(|(_, v)| v.as_str());
        let resources: Vec<String> = texts.map(str::to_owned).collect();
        if resources.is_empty() {
            return Err(format!("{at}.resources: Required value: at least one resource must be specified"));
        }
        if resources.iter().any(|name| name == "*") {
            let why = "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources";
            return Err(format!("{at}.resources: Invalid value: \"*\": {why}"));
        }
        let providers = list(&entry["providers"])
            .map(|(index, provider)| Provider::parse(provider, &format!("{at}.providers[{index}]")));
        let providers = providers.collect::<Result<Vec<_>, _>>()?;
        if providers.is_empty() {
            return Err(format!("{at}.providers: Required value: at least one provider is required"));
        }
        Ok(Self { resources, providers })
    }
}

impl Provider {
    fn parse(provider: &Value, at: &str) -> Result<Self, String> {
        let map = provider.as_object().filter(|map| map.len() == 1);
        let map = map.ok_or_else(|| format!("{at}: Invalid value: exactly one provider must be specified"))?;
        let Some((kind, given)) = map.iter().next() else { return Err(format!("{at}: Required value")) };
        match kind.as_str() {
            "identity" => Ok(Self::Identity),
            "aesgcm" | "aescbc" | "secretbox" => Self::keys(kind, given, &format!("{at}.{kind}")),
            "kms" => Self::plugin(given, &format!("{at}.kms")),
            other => Err(format!("{at}: unknown provider {other:?}")),
        }
    }

    fn plugin(given: &Value, at: &str) -> Result<Self, String> {
        let text = |key: &str| given[key].as_str().unwrap_or_default();
        let name = text("name");
        match text("apiVersion") {
            "v2" => {}
            "" | "v1" => {
                return Err(format!("{at}.apiVersion: Forbidden: KMSv1 is deprecated and not served: use v2 instead"));
            }
            other => {
                return Err(format!(
                    "{at}.apiVersion: Invalid value: {other:?}: unsupported apiVersion {other} for KMS provider, only v2 is supported"
                ));
            }
        }
        if name.is_empty() {
            return Err(format!("{at}.name: Required value: mandatory field kms name is a required"));
        }
        if name.contains(':') {
            return Err(format!(
                "{at}.name: Invalid value: {name:?}: invalid KMS provider name {name}, must not contain ':'"
            ));
        }
        if !given["cachesize"].is_null() {
            return Err(format!(
                "{at}.cachesize: Invalid value: {}: cachesize is not supported in v2",
                given["cachesize"]
            ));
        }
        let endpoint = text("endpoint");
        if endpoint.is_empty() {
            return Err(format!("{at}.endpoint: Invalid value: \"\": endpoint is a required field"));
        }
        let socket = endpoint.strip_prefix("unix://").ok_or_else(|| {
            format!(
                "{at}.endpoint: Invalid value: {endpoint:?}: unsupported scheme for KMS provider, only unix supported"
            )
        })?;
        let timeout = match given["timeout"].as_str() {
            None => super::kms::TIMEOUT,
            Some(text) => duration(text)
                .filter(|span| !span.is_zero())
                .ok_or_else(|| format!("{at}.timeout: Invalid value: {text:?}: should be a positive value"))?,
        };
        let kms = Kms::new(name, socket.into(), timeout)?;
        Ok(Self::Keys(vec![Key::of_plugin(name, kms)]))
    }

    fn keys(kind: &str, given: &Value, at: &str) -> Result<Self, String> {
        let sizes: &[usize] = if kind == "secretbox" { &[32] } else { &[16, 24, 32] };
        let mut names = Vec::new();
        let keys = list(&given["keys"]).map(|(index, key)| {
            let at = format!("{at}.keys[{index}]");
            let name = key["name"].as_str().unwrap_or_default();
            if name.is_empty() {
                return Err(format!("{at}.name: Required value: key name must be provided"));
            }
            if name.contains(':') {
                return Err(format!("{at}.name: Invalid value: {name:?}: must not contain a colon"));
            }
            if names.contains(&name) {
                return Err(format!("{at}.name: Invalid value: {name:?}: duplicate key name"));
            }
            names.push(name);
            let secret = key["secret"].as_str().filter(|s| !s.is_empty());
            let secret = secret.ok_or_else(|| format!("{at}.secret: Required value: secret must be provided"))?;
            let secret = STANDARD.decode(secret).map_err(|_| {
                format!("{at}.secret: Invalid value: \"REDACTED\": secret must be base64 encoded")
            })?;
            if !sizes.contains(&secret.len()) {
                return Err(format!(
                    "{at}.secret: Invalid value: \"REDACTED\": secret is not of the expected length, got {}, expected one of {sizes:?}",
                    secret.len()
                ));
            }
            Key::new(kind, name, &secret).map_err(|why| format!("{at}: {why}"))
        });
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        match keys.is_empty() {
            true => Err(format!("{at}.keys: Required value: at least one key is required")),
            false => Ok(Self::Keys(keys)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(resources: &str) -> Result<Config, String> {
        let text =
            format!("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n{resources}");
        Config::parse(text.as_bytes())
    }

    const KEY: &str = "c2VjcmV0IGlzIHNlY3VyZQ=="; // 16 bytes

    #[test]
    fn any_document_is_read_or_refused() {
        use proptest::prelude::*;
        use proptest::sample::select;
        use proptest::test_runner::{Config as Cases, RngAlgorithm, TestRng, TestRunner};
        const KEYS: &[&str] = &[
            "resources",
            "providers",
            "aesgcm",
            "secretbox",
            "kms",
            "identity",
            "keys",
            "name",
            "secret",
            "endpoint",
            "apiVersion",
        ];
        const WORDS: &[&str] =
            &["secrets", "*.*", "*.apps", "v2", "v1", "unix:///x", "c2VjcmV0IGlzIHNlY3VyZQ==", "?", "1s", "-1", ""];
        let leaf =
            prop_oneof![select(WORDS).prop_map(Value::from), any::<i64>().prop_map(Value::from), Just(Value::Null)];
        let document = leaf.prop_recursive(5, 32, 4, |inner| {
            let fields = prop::collection::btree_map(select(KEYS).prop_map(str::to_owned), inner.clone(), 0..4);
            prop_oneof![
                prop::collection::vec(inner, 0..3).prop_map(Value::from),
                fields.prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        });
        let cases = Cases { cases: 500, failure_persistence: None, ..Cases::default() };
        let mut runner = TestRunner::new_with_rng(cases, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let read = |resources: Value| {
            let config = serde_json::json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration", "resources": resources});
            let read = Config::parse(config.to_string().as_bytes());
            // Without a provider nothing can be written.
            prop_assert!(
                read.is_err()
                    || config.to_string().contains("providers")
                    || config["resources"] == serde_json::json!([]),
                "{}",
                config
            );
            Ok(())
        };
        runner.run(&document, read).unwrap();
    }

    #[test]
    fn keys_are_turned_by_their_order() {
        let old = config(&format!("- resources: [secrets]\n  providers: [{{aesgcm: {{keys: [{{name: a, secret: {KEY}}}]}}}}, {{identity: {{}}}}]")).unwrap();
        let secrets = resources::find("", "v1", "secrets").unwrap();
        let place = &secrets.key("default", "s").into_bytes()[..];
        let sealed = Bytes::from(old.writing("", "secrets").unwrap().seal(place, b"hidden").unwrap());
        assert!(old.writing("", "configmaps").is_none());
        assert_eq!(&old.open(place, &Bytes::from_static(b"plain")).unwrap()[..], b"plain");
        let keys =
            format!("{{name: b, secret: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}}, {{name: a, secret: {KEY}}}");
        let new = config(&format!("- resources: [secrets]\n  providers: [{{aesgcm: {{keys: [{keys}]}}}}]")).unwrap();
        assert_eq!(&new.open(place, &sealed).unwrap()[..], b"hidden");
        assert!(new.writing("", "secrets").unwrap().prefix().ends_with(b":b:"));
        assert!(new.open(place, &Bytes::from_static(b"plain")).unwrap_err().contains("identity"));
        assert!(new.has_strict() && !old.has_strict());
        let none = config("- resources: [secrets]\n  providers: [{identity: {}}]").unwrap();
        assert!(none.open(place, &sealed).unwrap_err().contains("no matching key"));
    }

    #[test]
    fn the_narrowest_name_counts() {
        let all = config(&format!(
            "- resources: [\"*.apps\"]\n  providers: [{{identity: {{}}}}]\n- resources: [\"*.*\"]\n  providers: [{{aescbc: {{keys: [{{name: a, secret: {KEY}}}]}}}}]"
        ))
        .unwrap();
        assert!(all.writing("", "secrets").is_some());
        assert!(all.writing("apps", "deployments").is_none());
        assert!(all.writing("example.com", "things").is_some());
    }

    #[test]
    fn configurations_that_cannot_be_meant_are_refused() {
        for (text, why) in [
            ("", "at least one resource"),
            ("- resources: [secrets]\n  providers: []", "providers: Required value"),
            ("- resources: [secrets]\n  providers: [{aesgcm: {keys: []}}]", "at least one key"),
            (
                "- resources: [secrets]\n  providers: [{aesgcm: {keys: [{name: a, secret: AAAA}]}}]",
                "expected length, got 3",
            ),
            ("- resources: [secrets]\n  providers: [{secretbox: {keys: [{name: \"a:b\", secret: AAAA}]}}]", "colon"),
            ("- resources: [\"*\"]\n  providers: [{identity: {}}]", "use '*.'"),
            ("- resources: [secrets]\n  providers: [{kms: {name: x}}]", "KMSv1 is deprecated"),
            ("- resources: [secrets]\n  providers: [{kms: {apiVersion: v3, name: x}}]", "unsupported apiVersion v3"),
            ("- resources: [secrets]\n  providers: [{kms: {apiVersion: v2, name: 'a:b'}}]", "must not contain ':'"),
            ("- resources: [secrets]\n  providers: [{kms: {apiVersion: v2, name: x}}]", "endpoint is a required field"),
            (
                "- resources: [secrets]\n  providers: [{kms: {apiVersion: v2, name: x, endpoint: 'http://h'}}]",
                "only unix supported",
            ),
            (
                "- resources: [secrets]\n  providers: [{kms: {apiVersion: v2, name: x, endpoint: 'unix:///s', timeout: 0s}}]",
                "should be a positive value",
            ),
        ] {
            let error = config(text).err().unwrap();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

//! Environment variables of a container, and the expansion of `$(NAME)`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, Pod, Service};
use keelson_proto::cri::KeyValue;

use super::fields::{self, Facts};
use super::{SpecError, text};
use crate::objects::{Data, Objects};

/// Replaces `$(NAME)` by what `known` says; `$$(NAME)` stays as `$(NAME)`.
pub fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        if let Some(tail) = tail.strip_prefix('$') {
            out.push('$');
            rest = tail;
            continue;
        }
        let name = tail.strip_prefix('(').and_then(|t| t.split_once(')'));
        match name.map(|(name, after)| (known.get(name), name, after)) {
            Some((Some(found), _, after)) => {
                out.push_str(found);
                rest = after;
            }
            Some((None, name, after)) => {
                out.push_str(&format!("$({name})"));
                rest = after;
            }
            None => {
                out.push('$');
                rest = tail;
            }
        }
    }
    out + rest
}

/// The variables by which containers find Services: those of the pod's namespace, and always the API's own.
pub fn of_services<'a>(
    services: impl Iterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for service in services {
        let (Some(name), Some(of)) = (&service.metadata.name, &service.metadata.namespace) else { continue };
        let api = of == "default" && name == "kubernetes";
        if !(api || links && of == namespace) {
            continue;
        }
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { continue };
        let upper = name.to_uppercase().replace('-', "_");
        let mut set = |key: String, value: String| variables.insert(format!("{upper}_{key}"), value);
        set("SERVICE_HOST".into(), ip.into());
        for (i, port) in spec.ports.iter().flatten().enumerate() {
            let number = port.port.to_string();
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{ip}:{number}", protocol.to_lowercase());
            if i == 0 {
                set("SERVICE_PORT".into(), number.clone());
                set("PORT".into(), url.clone());
            }
            if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                set(format!("SERVICE_PORT_{}", name.to_uppercase().replace('-', "_")), number.clone());
            }
            let prefix = format!("PORT_{number}_{protocol}");
            set(prefix.clone(), url);
            set(format!("{prefix}_PROTO"), protocol.to_lowercase());
            set(format!("{prefix}_PORT"), number);
            set(format!("{prefix}_ADDR"), ip.into());
        }
    }
    variables
}

/// What variables are made from.
pub struct Sources<'a> {
    /// Config maps and secrets.
    pub objects: &'a Objects,
    /// Where the pod runs.
    pub facts: &'a Facts,
    /// Variables of Services.
    pub services: BTreeMap<String, String>,
}

/// The variables of a container, in their order; later ones win.
pub async fn variables(pod: &Pod, container: &Container, sources: &Sources<'_>) -> Result<Vec<KeyValue>, SpecError> {
    let mut known: BTreeMap<String, String> = sources.services.clone();
    from_whole_objects(pod, container, sources, &mut known).await?;
    for wanted in container.env.iter().flatten() {
        let Some(value) = value(pod, container, wanted, sources).await? else { continue };
        let value = if wanted.value_from.is_none() { expand(&value, &known) } else { value };
        known.insert(wanted.name.clone(), value);
    }
    Ok(known.into_iter().map(|(key, value)| KeyValue { key, value }).collect())
}

async fn from_whole_objects(
    pod: &Pod,
    container: &Container,
    sources: &Sources<'_>,
    known: &mut BTreeMap<String, String>,
) -> Result<(), SpecError> {
    let namespace = text(pod.metadata.namespace.as_ref());
    for source in container.env_from.iter().flatten() {
        let (kind, name, optional, data) = if let Some(r) = &source.config_map_ref {
            ("configmap", &r.name, r.optional, sources.objects.config_maps.get(&namespace, &r.name).await?)
        } else if let Some(r) = &source.secret_ref {
            ("secret", &r.name, r.optional, sources.objects.secrets.get(&namespace, &r.name).await?)
        } else {
            continue;
        };
        if data.is_none() && optional != Some(true) {
            return Err(SpecError::new(format!("{kind} \"{name}\" not found")));
        }
        for (key, value) in data.iter().flat_map(|d| d.iter()) {
            let key = text(source.prefix.as_ref()) + key;
            known.insert(key, String::from_utf8_lossy(value).into_owned());
        }
    }
    Ok(())
}

async fn value(
    pod: &Pod,
    container: &Container,
    wanted: &EnvVar,
    sources: &Sources<'_>,
) -> Result<Option<String>, SpecError> {
    let Some(source) = &wanted.value_from else { return Ok(Some(wanted.value.clone().unwrap_or_default())) };
    if let Some(field) = &source.field_ref {
        return fields::field(pod, field, sources.facts).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return fields::resource(pod, Some(container), resource, sources.facts).map(Some);
    }
    of_key(pod, &wanted.name, source, sources.objects).await
}

async fn of_key(
    pod: &Pod,
    variable: &str,
    source: &EnvVarSource,
    objects: &Objects,
) -> Result<Option<String>, SpecError> {
    let namespace = text(pod.metadata.namespace.as_ref());
    let (kind, name, key, optional, data) = if let Some(r) = &source.config_map_key_ref {
        ("configmap", &r.name, &r.key, r.optional, objects.config_maps.get(&namespace, &r.name).await?)
    } else if let Some(r) = &source.secret_key_ref {
        ("secret", &r.name, &r.key, r.optional, objects.secrets.get(&namespace, &r.name).await?)
    } else {
        return Err(SpecError::new(format!("the source of environment variable {variable} is not supported")));
    };
    let of = |data: &Data| data.get(key).map(|v| String::from_utf8_lossy(v).into_owned());
    match (data, optional) {
        (Some(data), _) if data.contains_key(key) => Ok(of(&data)),
        (_, Some(true)) => Ok(None),
        (None, _) => Err(SpecError::new(format!("{kind} \"{name}\" not found"))),
        (Some(_), _) => {
            let kind = if kind == "secret" { "Secret" } else { "ConfigMap" };
            Err(SpecError::new(format!("couldn't find key {key} in {kind} {namespace}/{name}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn variables_expand() {
        let known = [("A".to_owned(), "1".to_owned())].into();
        for (text, wanted) in
            [("x$(A)y", "x1y"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$A", "$A"), ("$(A", "$(A"), ("é$", "é$")]
        {
            assert_eq!(expand(text, &known), wanted);
        }
    }

    #[test]
    fn services_are_named() {
        let service = |namespace: &str, name: &str, ip: &str| -> Service {
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": namespace},
                "spec": {"clusterIP": ip, "ports": [{"name": "web-x", "port": 80}]}}))
            .unwrap()
        };
        let all = [
            service("default", "kubernetes", "10.96.0.1"),
            service("n", "my-db", "10.96.0.2"),
            service("n", "headless", "None"),
            service("other", "x", "10.96.0.3"),
        ];
        let got = of_services(all.iter(), "n", true);
        assert_eq!(got["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
        assert_eq!(got["MY_DB_SERVICE_PORT_WEB_X"], "80");
        assert_eq!(got["MY_DB_PORT_80_TCP"], "tcp://10.96.0.2:80");
        assert!(!got.contains_key("X_SERVICE_HOST") && !got.contains_key("HEADLESS_SERVICE_HOST"));
        assert!(!of_services(all.iter(), "n", false).contains_key("MY_DB_SERVICE_HOST"));
    }
}

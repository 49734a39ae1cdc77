//! The files of config maps, secrets, projected volumes and the downward API.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, ServiceAccount,
    ServiceAccountTokenProjection, Volume,
};
use keelson_client::{Client, ListParams};
use keelson_machinery::selector;
use parking_lot::Mutex;
use serde_json::json;

use super::atomic::{Content, Files};
use super::certificates::{self, Certificates};
use crate::csi::Drivers;
use crate::csi::volume::Publisher;
use crate::objects::{Data, Objects};
use crate::spec::fields::{self, Facts};
use crate::spec::{SpecError, pod, text};

/// Mode of files whose volume does not say theirs.
const DEFAULT_MODE: i32 = 0o644;
/// Life of a token that does not say its own, seconds.
const TOKEN_SECONDS: i64 = 3600;
/// A token is replaced after this part of its life, in hundredths.
const RENEW_AT: i64 = 80;
/// And at the latest after this time, seconds.
const RENEW_AFTER: i64 = 24 * 3600;

/// A token with the time when it is to be replaced.
struct Token {
    text: String,
    renew: Timestamp,
}

/// Tokens of one pod by audience and wanted life.
#[derive(Default)]
pub struct Tokens(Mutex<HashMap<(String, i64), Token>>);

/// What files are made from.
#[derive(Clone)]
pub struct Sources {
    /// The node's client.
    pub client: Client,
    /// Config maps and secrets.
    pub objects: Arc<Objects>,
    /// Where the pod runs.
    pub facts: Facts,
    /// The pod's tokens.
    pub tokens: Arc<Tokens>,
    /// The pod's keys and certificates.
    pub certificates: Arc<Certificates>,
    /// The Node object's uid.
    pub node_uid: String,
    /// Storage drivers.
    pub csi: Arc<Drivers>,
}

impl Sources {
    /// Who gets volumes from drivers.
    pub fn publisher(&self) -> Publisher<'_> {
        Publisher { drivers: &self.csi, client: &self.client, node: &self.facts.node }
    }
}

/// The files of a volume made of files; `None` for other kinds.
pub async fn files(of: &Pod, volume: &Volume, sources: &Sources) -> Result<Option<Files>, SpecError> {
    let namespace = text(of.metadata.namespace.as_ref());
    let mut files = Files::new();
    if let Some(source) = &volume.config_map {
        let data = sources.objects.config_maps.get(&namespace, &source.name).await?;
        let what = Reference { kind: "configmap", name: &source.name, optional: source.optional };
        pick(&mut files, data, &what, source.items.as_deref(), source.default_mode)?;
    } else if let Some(source) = &volume.secret {
        let name = text(source.secret_name.as_ref());
        let data = sources.objects.secrets.get(&namespace, &name).await?;
        let what = Reference { kind: "secret", name: &name, optional: source.optional };
        pick(&mut files, data, &what, source.items.as_deref(), source.default_mode)?;
    } else if let Some(source) = &volume.downward_api {
        downward(&mut files, of, source.items.as_deref(), source.default_mode, &sources.facts)?;
    } else if let Some(source) = &volume.projected {
        projected(&mut files, of, source, sources).await?;
    } else {
        return Ok(None);
    }
    Ok(Some(files))
}

struct Reference<'a> {
    kind: &'static str,
    name: &'a str,
    optional: Option<bool>,
}

fn mode(own: Option<i32>, default: Option<i32>) -> u32 {
    own.or(default).unwrap_or(DEFAULT_MODE).unsigned_abs() & 0o7777
}

fn file(bytes: Vec<u8>, mode: u32) -> Content {
    Content { bytes, mode, user: None, group: None }
}

fn pick(
    files: &mut Files,
    data: Option<Arc<Data>>,
    what: &Reference<'_>,
    items: Option<&[KeyToPath]>,
    default: Option<i32>,
) -> Result<(), SpecError> {
    let Some(data) = data else {
        if what.optional == Some(true) {
            return Ok(());
        }
        return Err(SpecError::new(format!("{} \"{}\" not found", what.kind, what.name)));
    };
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        files.extend(data.iter().map(|(key, value)| (key.clone(), file(value.clone(), mode(None, default)))));
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                files.insert(item.path.clone(), file(value.clone(), mode(item.mode, default)));
            }
            None if what.optional == Some(true) => {}
            None => return Err(SpecError::new(format!("references non-existent {} key: {}", what.kind, item.key))),
        }
    }
    Ok(())
}

fn downward(
    files: &mut Files,
    of: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    default: Option<i32>,
    facts: &Facts,
) -> Result<(), SpecError> {
    for item in items.unwrap_or_default() {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => fields::field(of, field, facts)?,
            (None, Some(resource)) => fields::resource(of, None, resource, facts)?,
            (None, None) => return Err(SpecError::new(format!("{}: neither a field nor a resource", item.path))),
        };
        files.insert(item.path.clone(), file(value.into_bytes(), mode(item.mode, default)));
    }
    Ok(())
}

async fn projected(
    files: &mut Files,
    of: &Pod,
    source: &ProjectedVolumeSource,
    sources: &Sources,
) -> Result<(), SpecError> {
    let namespace = text(of.metadata.namespace.as_ref());
    let default = source.default_mode;
    for part in source.sources.iter().flatten() {
        if let Some(part) = &part.config_map {
            let data = sources.objects.config_maps.get(&namespace, &part.name).await?;
            let what = Reference { kind: "configmap", name: &part.name, optional: part.optional };
            pick(files, data, &what, part.items.as_deref(), default)?;
        } else if let Some(part) = &part.secret {
            let data = sources.objects.secrets.get(&namespace, &part.name).await?;
            let what = Reference { kind: "secret", name: &part.name, optional: part.optional };
            pick(files, data, &what, part.items.as_deref(), default)?;
        } else if let Some(part) = &part.downward_api {
            downward(files, of, part.items.as_deref(), default, &sources.facts)?;
        } else if let Some(part) = &part.service_account_token {
            let token = token(of, part, sources).await?;
            files.insert(part.path.clone(), file(token.into_bytes(), token_mode(of, mode(None, default))));
        } else if let Some(part) = &part.cluster_trust_bundle {
            if let Some(text) = trust_bundle(part, sources).await? {
                files.insert(part.path.clone(), file(text.into_bytes(), mode(None, default)));
            }
        } else if let Some(part) = &part.pod_certificate {
            let (key, chain) = certificates::credentials(of, part, sources).await?;
            let bundle = format!("{key}{chain}");
            let mode = token_mode(of, mode(None, default));
            for (path, content) in
                [(&part.credential_bundle_path, bundle), (&part.key_path, key), (&part.certificate_chain_path, chain)]
            {
                if let Some(path) = path.as_ref().filter(|path| !path.is_empty()) {
                    let content = Content { user: token_owner(of), ..file(content.into_bytes(), mode) };
                    files.insert(path.clone(), content);
                }
            }
        } else {
            return Err(SpecError::new("a source of a projected volume is not supported by this node"));
        }
    }
    let owner = token_owner(of);
    for part in source.sources.iter().flatten().filter_map(|s| s.service_account_token.as_ref()) {
        if let Some(content) = files.get_mut(&part.path) {
            content.user = owner;
        }
    }
    Ok(())
}

/// The certificates of one bundle of authorities, or of all of a signer that are selected: each once, in an order that says
/// nothing.
async fn trust_bundle(part: &ClusterTrustBundleProjection, sources: &Sources) -> Result<Option<String>, SpecError> {
    let api = sources.client.cluster::<ClusterTrustBundle>();
    let (bundles, what) = match (&part.name, &part.signer_name) {
        (Some(name), _) => (api.get_opt(name).await?.into_iter().collect::<Vec<_>>(), format!("\"{name}\"")),
        (None, Some(signer)) => {
            let params =
                ListParams { field_selector: Some(format!("spec.signerName={signer}")), ..ListParams::default() };
            let all = api.list(&params).await?.items;
            // No selector at all selects nothing, as upstream has it.
            let fits = |bundle: &ClusterTrustBundle| {
                let labels = bundle.metadata.labels.as_ref();
                let value = part.label_selector.as_ref().and_then(|s| serde_json::to_value(s).ok());
                let parsed = value.and_then(|value| selector::LabelSelector::from_object(&value).ok());
                parsed.is_some_and(|s| s.matches(|key| labels.and_then(|l| l.get(key)).map(String::as_str)))
            };
            (all.into_iter().filter(fits).collect(), format!("of signer \"{signer}\""))
        }
        (None, None) => return Err(SpecError::new("clusterTrustBundle names neither a bundle nor a signer")),
    };
    let certificates: BTreeSet<String> = bundles.iter().flat_map(|b| blocks(&b.spec.trust_bundle)).collect();
    match (certificates.is_empty(), part.optional) {
        (true, Some(true)) => Ok(Some(String::new())),
        (true, _) => Err(SpecError::new(format!("clustertrustbundle {what} not found"))),
        (false, _) => Ok(Some(certificates.into_iter().collect())),
    }
}

/// The certificates of a text, each with its frame and without what is around them.
pub fn blocks(text: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let parts = text.split_inclusive(END);
    parts.filter_map(|part| Some(format!("{}\n", &part[part.find("-----BEGIN CERTIFICATE-----")?..]))).collect()
}

/// The one user that all containers run as, if there is one: it alone may read the token.
fn token_owner(of: &Pod) -> Option<u32> {
    let shared = of.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let user_of = |c: &k8s_openapi::api::core::v1::Container| {
        c.security_context.as_ref().and_then(|s| s.run_as_user).or(shared.and_then(|s| s.run_as_user))
    };
    let mut users = pod::all(of).map(|(_, c)| user_of(c));
    let first = users.next().flatten()?;
    users.all(|u| u == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

fn token_mode(of: &Pod, default: u32) -> u32 {
    let group = of.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|s| s.fs_group);
    match (token_owner(of), group) {
        (Some(_), _) | (None, Some(_)) => 0o600,
        (None, None) => default,
    }
}

/// A token of the pod's service account, bound to the pod.
async fn token(of: &Pod, part: &ServiceAccountTokenProjection, sources: &Sources) -> Result<String, SpecError> {
    let audience = text(part.audience.as_ref());
    let seconds = part.expiration_seconds.unwrap_or(TOKEN_SECONDS);
    let key = (audience.clone(), seconds);
    let now = Timestamp::now();
    if let Some(token) = sources.tokens.0.lock().get(&key).filter(|t| now < t.renew) {
        return Ok(token.text.clone());
    }
    let account = of.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_else(|| "default".into());
    let api = sources.client.namespaced::<ServiceAccount>(&text(of.metadata.namespace.as_ref()));
    let audiences: Vec<&str> = [audience.as_str()].into_iter().filter(|a| !a.is_empty()).collect();
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": {
            "apiVersion": "v1", "kind": "Pod", "name": of.metadata.name, "uid": of.metadata.uid}},
    });
    let answer: serde_json::Value = api.create_subresource(&account, "token", &request).await?;
    let given = answer["status"]["token"].as_str();
    let text = given.ok_or_else(|| SpecError::new("the answer to the token request has no token"))?.to_owned();
    let expires = answer["status"]["expirationTimestamp"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
    let life = expires.map_or(seconds, |e| e.as_second() - now.as_second());
    let renew = now + jiff::SignedDuration::from_secs((life * RENEW_AT / 100).clamp(1, RENEW_AFTER));
    sources.tokens.0.lock().insert(key, Token { text: text.clone(), renew });
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_files() {
        let data = Some(Arc::new(Data::from([("a".into(), b"1".to_vec()), ("b".into(), b"2".to_vec())])));
        let what = |optional| Reference { kind: "configmap", name: "m", optional };
        let items: Vec<KeyToPath> =
            serde_json::from_value(json!([{"key": "a", "path": "x/y", "mode": 0o400}])).unwrap();
        let missing: Vec<KeyToPath> = serde_json::from_value(json!([{"key": "z", "path": "z"}])).unwrap();
        let mut files = Files::new();
        pick(&mut files, data.clone(), &what(None), None, None).unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(files["a"].mode, 0o644);
        files.clear();
        pick(&mut files, data.clone(), &what(None), Some(&items), None).unwrap();
        assert_eq!((files.len(), files["x/y"].mode), (1, 0o400));
        assert!(pick(&mut files, data.clone(), &what(None), Some(&missing), None).is_err());
        assert!(pick(&mut files, data, &what(Some(true)), Some(&missing), None).is_ok());
        assert!(pick(&mut files, None, &what(None), None, None).is_err());
        assert!(pick(&mut files, None, &what(Some(true)), None, None).is_ok());
    }

    #[test]
    fn certificates_are_taken_out_of_a_text() {
        let one = |n: u8| format!("-----BEGIN CERTIFICATE-----\n{n}\n-----END CERTIFICATE-----");
        let text = format!("a comment\n{}\nanother\n{}\n", one(1), one(2));
        assert_eq!(blocks(&text), [one(1) + "\n", one(2) + "\n"]);
        assert!(blocks("nothing").is_empty());
    }

    #[test]
    fn tokens_belong_to_the_one_user() {
        let of = |a: Option<i64>, b: Option<i64>| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [
                {"name": "a", "securityContext": {"runAsUser": a}}, {"name": "b", "securityContext": {"runAsUser": b}}]}}))
            .unwrap()
        };
        assert_eq!(token_owner(&of(Some(5), Some(5))), Some(5));
        assert_eq!(token_owner(&of(Some(5), Some(6))), None);
        assert_eq!(token_owner(&of(None, Some(6))), None);
    }
}

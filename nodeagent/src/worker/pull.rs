//! Images: whether they must be fetched, and with which credentials.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_proto::cri::{AuthConfig, Image};
use serde_json::Value;

use super::Worker;
use crate::cri::ImageVolumes;
use crate::spec::text;

/// How often it is looked whether the pod is still wanted while an image comes.
const STILL_WANTED: Duration = Duration::from_secs(1);
/// The registry of images that name none.
const DEFAULT_REGISTRY: &str = "docker.io";

/// Reason and message of a container that waits.
type Refusal = (&'static str, String);

/// The registry of an image's name.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => DEFAULT_REGISTRY,
    }
}

/// The image's name with a tag: `:latest` when there is neither tag nor digest.
fn tagged(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

/// Whether runtimes can read an image's name: `[HOST[:PORT]/]PATH[:TAG][@ALGORITHM:HEX]`.
fn is_valid(image: &str) -> bool {
    let (rest, digest) = image.split_once('@').map_or((image, None), |(rest, digest)| (rest, Some(digest)));
    let good_digest = |digest: &str| {
        let hex = |text: &str| text.len() >= 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        digest.split_once(':').is_some_and(|(algorithm, text)| !algorithm.is_empty() && hex(text))
    };
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let colon = rest[slash..].find(':').map(|at| slash + at);
    let (name, tag) = colon.map_or((rest, None), |at| (&rest[..at], Some(&rest[at + 1..])));
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let good_tag = |tag: &str| {
        tag.len() <= 128
            && tag.bytes().next().is_some_and(word)
            && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
    };
    let host = registry(name);
    let path = name.strip_prefix(host).map_or(name, |path| path.trim_start_matches('/'));
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let good_part = |part: &str| {
        let (first, last) = (part.bytes().next(), part.bytes().last());
        first.is_some_and(plain) && last.is_some_and(plain) && part.bytes().all(|b| plain(b) || b"._-".contains(&b))
    };
    let good_host = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]_".contains(&b));
    good_host && path.split('/').all(good_part) && tag.is_none_or(good_tag) && digest.is_none_or(good_digest)
}

/// A duration in thousandths of a second, as Go prints it.
fn lasted(time: Duration) -> String {
    let millis = time.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, seconds) = (millis / 60_000, millis % 60_000);
    let seconds = format!("{}.{:03}", seconds / 1000, seconds % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// Host and path of a key of a pull secret.
fn place(key: &str) -> (&str, &str) {
    let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    match host {
        // Their paths are versions of the protocol, not of images.
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => (DEFAULT_REGISTRY, ""),
        _ if matches!(path, "v1" | "v2") => (host, ""),
        _ => (host, path),
    }
}

/// Whether a key of a pull secret is for an image: a `*` in its host stands for one part of a name, a path for all below it.
fn is_for(key: &str, image: &str) -> bool {
    let ((host, path), wanted) = (place(key), registry(image));
    let split = |host: &str| -> (Vec<String>, Option<String>) {
        let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port.to_owned())));
        (name.split('.').map(str::to_owned).collect(), port)
    };
    let ((pattern, port), (name, wanted_port)) = (split(host), split(wanted));
    let part = |(pattern, part): (&String, &String)| match pattern.split_once('*') {
        Some((start, end)) => part.len() + 1 >= pattern.len() && part.starts_with(start) && part.ends_with(end),
        None => pattern == part,
    };
    let hosts = port == wanted_port && pattern.len() == name.len() && pattern.iter().zip(&name).all(part);
    let rest = image.strip_prefix(wanted).map_or(image, |rest| rest.trim_start_matches('/'));
    let below = rest
        .strip_prefix(path)
        .is_some_and(|rest| path.is_empty() || rest.is_empty() || rest.starts_with(['/', ':', '@']));
    hosts && below
}

/// The credentials in the text of a pull secret that fit the image.
fn credentials(config: &str, image: &str) -> Option<AuthConfig> {
    let config: Value = serde_json::from_str(config).ok()?;
    let entries = config.get("auths").unwrap_or(&config).as_object()?;
    let fitting = entries.iter().filter(|(key, _)| is_for(key, image));
    // The longest says most exactly for what it is.
    let (key, entry) = fitting.max_by_key(|(key, _)| place(key).1.len())?;
    let field = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    let mut auth = AuthConfig {
        username: field("username"),
        password: field("password"),
        identity_token: field("identitytoken"),
        registry_token: field("registrytoken"),
        server_address: key.clone(),
        ..AuthConfig::default()
    };
    let decoded = STANDARD.decode(field("auth")).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    if let Some((user, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) {
        (auth.username, auth.password) = (user.into(), password.trim_end_matches('\0').into());
    }
    Some(auth)
}

impl Worker {
    /// Makes sure that the container's image is here.
    pub(super) async fn image(&self, of: &Pod, container: &Container) -> Result<Image, Refusal> {
        let wanted = text(container.image.as_ref());
        if wanted.is_empty() {
            return Err(("InvalidImageName", "the container names no image".into()));
        }
        if !is_valid(&wanted) {
            let message = format!(
                "Failed to apply default image tag \"{wanted}\": couldn't parse image name \"{wanted}\": invalid \
                 reference format"
            );
            self.agent.events.warning(of, Some(&container.name), "InspectFailed", message.clone());
            self.agent.events.warning(of, Some(&container.name), "Failed", "Error: InvalidImageName");
            return Err(("InvalidImageName", message));
        }
        let found = self.inspect(&wanted).await?;
        let events = &self.agent.events;
        let always = match container.image_pull_policy.as_deref() {
            Some(policy) => policy == "Always",
            None => tagged(&wanted).ends_with(":latest"),
        };
        match (found, container.image_pull_policy.as_deref()) {
            (None, Some("Never")) => {
                let message = format!("Container image \"{wanted}\" is not present with pull policy of Never");
                events.warning(of, Some(&container.name), "ErrImageNeverPull", message.clone());
                Err(("ErrImageNeverPull", message))
            }
            (Some(image), _) if !always => {
                let message =
                    format!("Container image \"{wanted}\" already present on machine and can be accessed by the pod");
                events.normal(of, Some(&container.name), "Pulled", message);
                Ok(image)
            }
            _ => self.pull(of, container, &wanted).await,
        }
    }

    /// Makes sure that the images which a container mounts are here. Returns what the runtime calls them, by volume.
    pub(super) async fn volume_images(
        &self,
        of: &Pod,
        container: &Container,
    ) -> Result<HashMap<String, String>, Refusal> {
        let mut found = HashMap::new();
        let volumes = of.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        for (volume, source) in volumes.filter_map(|v| Some((v, v.image.as_ref()?))) {
            let mounts = || container.volume_mounts.iter().flatten().filter(|mount| mount.name == volume.name);
            if mounts().next().is_none() {
                continue;
            }
            let named = |path: &Option<String>| path.as_ref().is_some_and(|path| !path.is_empty());
            let parts = mounts().any(|mount| named(&mount.sub_path) || named(&mount.sub_path_expr));
            let can = self.agent.features.lock().image_volumes;
            let needed = if parts { ImageVolumes::Parts } else { ImageVolumes::Whole };
            if can < needed {
                let what = if can == ImageVolumes::None { "images" } else { "parts of images" };
                let name = &volume.name;
                let message = format!("volume \"{name}\": this node's container runtime does not mount {what}");
                self.agent.events.warning(of, Some(&container.name), "Failed", format!("Error: {message}"));
                return Err(("CreateContainerError", message));
            }
            let as_container = Container {
                name: container.name.clone(),
                image: source.reference.clone(),
                image_pull_policy: source.pull_policy.clone(),
                ..Container::default()
            };
            let image = self.image(of, &as_container).await?;
            found.insert(volume.name.clone(), image.id);
        }
        Ok(found)
    }

    async fn inspect(&self, image: &str) -> Result<Option<Image>, Refusal> {
        let found = self.agent.runtime.image(&tagged(image)).await;
        found.map_err(|e| ("ImageInspectError", format!("Failed to inspect image \"{image}\": {}", e.message())))
    }

    async fn pull(&self, of: &Pod, container: &Container, image: &str) -> Result<Image, Refusal> {
        let (events, name) = (&self.agent.events, Some(container.name.as_str()));
        events.normal(of, name, "Pulling", format!("Pulling image \"{image}\""));
        let began = Instant::now();
        let mut candidates: Vec<Option<AuthConfig>> = self.secrets(of, image).await.into_iter().map(Some).collect();
        candidates.push(None);
        let mut failure = String::new();
        let full = tagged(image);
        for auth in candidates {
            let pulling = Instant::now();
            let pulled = tokio::select! {
                pulled = self.agent.runtime.pull(&full, auth) => pulled,
                () = self.unwanted() => return Err(("ErrImagePull", "the pod is being deleted".into())),
            };
            match pulled {
                Ok(()) => {
                    let found = self.inspect(image).await?;
                    let found = found.ok_or(("ErrImagePull", format!("image \"{image}\" is gone after its pull")))?;
                    events.normal(
                        of,
                        name,
                        "Pulled",
                        format!(
                            "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {} bytes.",
                            lasted(pulling.elapsed()),
                            lasted(began.elapsed()),
                            found.size
                        ),
                    );
                    return Ok(found);
                }
                Err(status) => failure = status.message().to_owned(),
            }
        }
        let message = format!("Failed to pull image \"{image}\": {failure}");
        events.warning(of, name, "Failed", message);
        events.warning(of, name, "Failed", "Error: ErrImagePull");
        Err(("ErrImagePull", failure))
    }

    /// Returns once the pod is gone or about to go.
    async fn unwanted(&self) {
        loop {
            tokio::time::sleep(STILL_WANTED).await;
            if self.agent.pods.get(&self.uid).is_none_or(|p| p.metadata.deletion_timestamp.is_some()) {
                return;
            }
        }
    }

    async fn secrets(&self, of: &Pod, image: &str) -> Vec<AuthConfig> {
        let namespace = text(of.metadata.namespace.as_ref());
        let named = of.spec.as_ref().and_then(|s| s.image_pull_secrets.as_deref()).unwrap_or_default();
        let mut found = Vec::new();
        for reference in named {
            match self.agent.objects.secrets.get(&namespace, &reference.name).await {
                Ok(Some(data)) => {
                    let config = data.get(".dockerconfigjson").or_else(|| data.get(".dockercfg"));
                    let config = config.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
                    found.extend(config.and_then(|config| credentials(&config, image)));
                }
                Ok(None) => {
                    let message = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        reference.name
                    );
                    self.agent.events.warning(of, None, "FailedToRetrieveImagePullSecret", message);
                }
                Err(error) => tracing::warn!(secret = reference.name, %error, "a pull secret could not be read"),
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_and_tags() {
        for (image, host, full) in [
            ("nginx", "docker.io", "nginx:latest"),
            ("library/nginx:1", "docker.io", "library/nginx:1"),
            ("quay.io/a/b", "quay.io", "quay.io/a/b:latest"),
            ("localhost:5000/x@sha256:00", "localhost:5000", "localhost:5000/x@sha256:00"),
        ] {
            assert_eq!((registry(image), tagged(image).as_str()), (host, full), "{image}");
        }
    }

    #[test]
    fn durations() {
        for (millis, text) in
            [(7, "7ms"), (1000, "1s"), (1250, "1.25s"), (61_001, "1m1.001s"), (3_600_000, "1h0m0s"), (0, "0ms")]
        {
            assert_eq!(lasted(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn names_of_images() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (image, good) in [
            ("nginx", true),
            ("nginx:1.2_x", true),
            ("library/nginx", true),
            ("quay.io/a/b__c:v1", true),
            ("localhost:5000/x", true),
            ("LOCALHOST.example.com/x", true),
            (&format!("quay.io/a@{digest}"), true),
            (&format!("quay.io/a:v1@{digest}"), true),
            ("INVALID:::x", false),
            ("quay.io/A", false),
            ("a//b", false),
            ("a:", false),
            ("a:.x", false),
            ("a@sha256:xyz", false),
            ("-a", false),
            ("a b", false),
        ] {
            assert_eq!(is_valid(image), good, "{image}");
        }
    }

    #[test]
    fn keys_and_their_images() {
        for (key, image, fits) in [
            ("https://index.docker.io/v1/", "nginx", true),
            ("docker.io", "library/nginx:1", true),
            ("quay.io", "quay.io/a/b", true),
            ("quay.io/a", "quay.io/a/b:1", true),
            ("quay.io/a", "quay.io/ab/c", false),
            ("quay.io/a/b", "quay.io/a/b@sha256:00", true),
            ("*.example.com", "r.example.com/x", true),
            ("*.example.com", "a.r.example.com/x", false),
            ("r*.example.com", "r1.example.com/x", true),
            ("*.example.com", "example.com/x", false),
            ("example.com:5000", "example.com:5000/x", true),
            ("example.com", "example.com:5000/x", false),
            ("https://r.example.com/v2/", "r.example.com/x", true),
        ] {
            assert_eq!(is_for(key, image), fits, "{key} {image}");
        }
        let config = r#"{"auths": {"quay.io": {"username": "all"}, "quay.io/a": {"username": "a"}}}"#;
        assert_eq!(credentials(config, "quay.io/a/b").unwrap().username, "a");
        assert_eq!(credentials(config, "quay.io/b").unwrap().username, "all");
    }

    #[test]
    fn credentials_by_registry() {
        let config = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpwOnE="},
            "quay.io": {"username": "a", "password": "b"}}}"#;
        let hub = credentials(config, "nginx").unwrap();
        assert_eq!((hub.username.as_str(), hub.password.as_str()), ("u", "p:q"));
        assert_eq!(credentials(config, "quay.io/x/y").unwrap().username, "a");
        assert!(credentials(config, "ghcr.io/x").is_none());
        assert!(credentials("not json", "x").is_none());
    }
}

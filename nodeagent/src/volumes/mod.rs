//! A pod's volumes: each kind becomes a directory or file of the node that containers get mounted.

mod atomic;
pub mod certificates;
mod mounts;
pub mod sources;
mod subpath;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, HostPathVolumeSource, NFSVolumeSource, PersistentVolume, PersistentVolumeClaim,
    Pod, Volume, VolumeDevice, VolumeMount,
};
use keelson_proto::cri::{Device, ImageSpec, Mount, MountPropagation};

use crate::spec::resources::millis;
use crate::spec::{SpecError, env, pages, pod, text};
use sources::Sources;

pub use mounts::remove;

/// Mode of the directories of volumes that any user may write to.
const OPEN: u32 = 0o777;

/// Where each volume of a pod is on the node.
pub type Places = HashMap<String, PathBuf>;

/// A volume's directory below its pod's, as kubelets lay it out.
fn directory(pod_dir: &Path, kind: &str, name: &str) -> PathBuf {
    pod_dir.join("volumes").join(format!("kubernetes.io~{kind}")).join(name)
}

/// Where an emptyDir of a pod is.
pub fn empty_dir_path(pod_dir: &Path, name: &str) -> PathBuf {
    directory(pod_dir, "empty-dir", name)
}

/// Makes all volumes of a pod, or brings their files up to date. Doing it again changes nothing that is right.
pub async fn set_up(of: &Pod, dir: &Path, sources: &Sources) -> Result<Places, SpecError> {
    let mut places = Places::new();
    let volumes = of.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    for volume in volumes {
        let place = one(of, volume, dir, sources).await;
        let place = place
            .map_err(|e| SpecError::new(format!("MountVolume.SetUp failed for volume \"{}\" : {e}", volume.name)))?;
        places.insert(volume.name.clone(), place);
    }
    Ok(places)
}

async fn one(of: &Pod, volume: &Volume, dir: &Path, sources: &Sources) -> Result<PathBuf, SpecError> {
    let group = of.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|s| s.fs_group);
    let group = group.and_then(|g| u32::try_from(g).ok());
    if let Some(source) = &volume.empty_dir {
        return empty_dir(of, &empty_dir_path(dir, &volume.name), source, group);
    }
    if let Some(source) = &volume.host_path {
        return host_path(source);
    }
    if let Some(source) = &volume.persistent_volume_claim {
        return claim(of, &source.claim_name, dir, sources, source.read_only == Some(true)).await;
    }
    if volume.ephemeral.is_some() {
        // The claim is made by a controller and named after the pod and the volume.
        let name = format!("{}-{}", text(of.metadata.name.as_ref()), volume.name);
        return claim(of, &name, dir, sources, false).await;
    }
    if volume.image.is_some() {
        // The runtime mounts it: nothing of it is on the node's own paths.
        return Ok(PathBuf::new());
    }
    if let Some(source) = &volume.csi {
        return sources.publisher().inline(of, &volume.name, source).await;
    }
    if let Some(source) = &volume.nfs {
        let at = directory(dir, "nfs", &volume.name);
        return nfs(&at, source, &[]).await;
    }
    let kind = if volume.config_map.is_some() {
        "configmap"
    } else if volume.secret.is_some() {
        "secret"
    } else if volume.downward_api.is_some() {
        "downward-api"
    } else {
        "projected"
    };
    let Some(mut files) = sources::files(of, volume, sources).await? else {
        return Err(SpecError::new("this kind of volume is not supported by this node"));
    };
    for content in files.values_mut().filter(|_| group.is_some()) {
        content.group = group;
        content.mode |= (content.mode & 0o400) >> 3;
    }
    let at = directory(dir, kind, &volume.name);
    if kind != "configmap" {
        mounts::memory(&at, None, OPEN)?;
    }
    atomic::write(&at, &files)?;
    std::fs::set_permissions(&at, PermissionsExt::from_mode(OPEN))?;
    Ok(at)
}

fn empty_dir(of: &Pod, at: &Path, source: &EmptyDirVolumeSource, group: Option<u32>) -> Result<PathBuf, SpecError> {
    match source.medium.as_deref().unwrap_or_default() {
        "" => std::fs::create_dir_all(at)?,
        "Memory" => {
            let limit = source.size_limit.as_ref().and_then(|q| millis(&q.0)).map(|m| m / 1000).filter(|b| *b > 0);
            mounts::memory(at, limit, OPEN)?;
        }
        other => match pages::of_medium(of, other) {
            Some(size) => mounts::huge_pages(at, size?, OPEN)?,
            None => return Err(SpecError::new(format!("medium {other:?} of an emptyDir is not known"))),
        },
    }
    let mode = if group.is_some() { OPEN | 0o2000 } else { OPEN };
    let present = std::fs::metadata(at)?;
    if present.permissions().mode() & 0o7777 != mode {
        std::fs::set_permissions(at, PermissionsExt::from_mode(mode))?;
    }
    if group.is_some_and(|g| g != present.gid()) {
        std::os::unix::fs::chown(at, None, group)?;
        std::fs::set_permissions(at, PermissionsExt::from_mode(mode))?;
    }
    Ok(at.to_owned())
}

fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, SpecError> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let found = std::fs::metadata(&path);
    let file = |check: fn(&std::fs::FileType) -> bool| found.as_ref().is_ok_and(|m| check(&m.file_type()));
    let good = match kind {
        "" => true,
        "DirectoryOrCreate" if found.is_err() => {
            std::fs::create_dir_all(&path)?;
            true
        }
        "FileOrCreate" if found.is_err() => {
            std::fs::File::create(&path)?;
            true
        }
        "Directory" | "DirectoryOrCreate" => file(std::fs::FileType::is_dir),
        "File" | "FileOrCreate" => file(std::fs::FileType::is_file),
        "Socket" => file(FileTypeExt::is_socket),
        "CharDevice" => file(FileTypeExt::is_char_device),
        "BlockDevice" => file(FileTypeExt::is_block_device),
        other => return Err(SpecError::new(format!("hostPath type {other:?} is not known"))),
    };
    if !good {
        return Err(SpecError::new(format!("hostPath type check failed: {} is not a {kind}", source.path)));
    }
    Ok(path)
}

/// A claim's volume.
async fn claim(of: &Pod, name: &str, dir: &Path, sources: &Sources, read_only: bool) -> Result<PathBuf, SpecError> {
    let namespace = text(of.metadata.namespace.as_ref());
    let claims = sources.client.namespaced::<PersistentVolumeClaim>(&namespace);
    let claim = claims.get(name).await?;
    let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let volume = claim.spec.and_then(|s| s.volume_name).filter(|v| bound && !v.is_empty());
    let volume = volume.ok_or_else(|| SpecError::new(format!("claim {name:?} is not bound yet")))?;
    let found = sources.client.cluster::<PersistentVolume>().get(&volume).await?;
    let spec = found.spec.clone().unwrap_or_default();
    if let Some(source) = &spec.csi {
        return sources.publisher().claim(of, &found, source, read_only).await;
    }
    if let Some(source) = &spec.host_path {
        return host_path(source);
    }
    if let Some(source) = &spec.local {
        let path = PathBuf::from(&source.path);
        if !path.exists() {
            return Err(SpecError::new(format!("path {:?} of the local volume does not exist", source.path)));
        }
        return Ok(path);
    }
    if let Some(source) = &spec.nfs {
        let at = directory(dir, "nfs", &volume);
        return nfs(&at, source, spec.mount_options.as_deref().unwrap_or_default()).await;
    }
    let message = format!("volume {volume} is of a kind that this node does not have");
    Err(SpecError::new(message))
}

/// Mounts with the system's own helper, which speaks to the server.
async fn nfs(at: &Path, source: &NFSVolumeSource, more: &[String]) -> Result<PathBuf, SpecError> {
    std::fs::create_dir_all(at)?;
    if mounts::is_mounted(at)? {
        return Ok(at.to_owned());
    }
    let mut command = tokio::process::Command::new("mount");
    let first = if source.read_only == Some(true) { "ro" } else { "rw" };
    let options: Vec<&str> = std::iter::once(first).chain(more.iter().map(String::as_str)).collect();
    let server = &source.server;
    // Addresses of IPv6 have colons of their own.
    let server = if server.contains(':') && !server.starts_with('[') { format!("[{server}]") } else { server.clone() };
    command.args(["-t", "nfs", "-o", &options.join(",")]).arg(format!("{server}:{}", source.path)).arg(at);
    let done = command.output().await?;
    if !done.status.success() {
        return Err(SpecError::new(format!("mount: {}", String::from_utf8_lossy(&done.stderr).trim())));
    }
    Ok(at.to_owned())
}

fn propagation(mount: &VolumeMount) -> MountPropagation {
    match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        _ => MountPropagation::PropagationPrivate,
    }
}

/// What a container's mounts depend on beside its volumes.
pub struct Mounting<'a> {
    /// The pod's directory.
    pub dir: &'a Path,
    /// The container's environment, for subPathExpr.
    pub variables: &'a BTreeMap<String, String>,
    /// What the runtime calls the images of volumes that are images, by the volumes' names.
    pub images: &'a HashMap<String, String>,
    /// Whether the runtime can make mounts read-only with all that is mounted below them.
    pub recursive: bool,
}

/// Whether a mount is to be read-only with all that is mounted below it.
fn recursive_read_only(mount: &VolumeMount, can: bool) -> Result<bool, SpecError> {
    match mount.recursive_read_only.as_deref() {
        Some("Enabled") if !can => {
            Err(SpecError::new("recursiveReadOnly is not supported by this node's container runtime"))
        }
        Some("Enabled") => Ok(true),
        Some("IfPossible") => Ok(can && propagation(mount) == MountPropagation::PropagationPrivate),
        _ => Ok(false),
    }
}

/// The mounts of a container.
pub fn mounts_of(
    of: &Pod,
    container: &Container,
    places: &Places,
    with: &Mounting<'_>,
) -> Result<Vec<Mount>, SpecError> {
    let Mounting { dir, variables, .. } = *with;
    let mut result = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let place = places.get(&mount.name);
        let place = place.ok_or_else(|| SpecError::new(format!("no volume is named {:?}", mount.name)))?;
        let sub = match (&mount.sub_path, &mount.sub_path_expr) {
            (_, Some(expression)) if !expression.is_empty() => Some(env::expand(expression, variables)),
            (Some(path), _) if !path.is_empty() => Some(path.clone()),
            _ => None,
        };
        if let Some(image) = with.images.get(&mount.name) {
            let image = ImageSpec { image: image.clone(), ..ImageSpec::default() };
            result.push(Mount {
                container_path: absolute(&mount.mount_path),
                readonly: true,
                image: Some(image),
                image_sub_path: sub.unwrap_or_default(),
                ..Mount::default()
            });
            continue;
        }
        let mut path = place.clone();
        if let Some(sub) = sub {
            let sub = Path::new(&sub);
            if !subpath::is_plain(sub) {
                return Err(SpecError::new(format!("subPath {} leaves its volume", sub.display())));
            }
            path = dir.join("volume-subpaths").join(&mount.name).join(&container.name).join(index.to_string());
            let failed = |e: std::io::Error| {
                SpecError::new(format!(
                    "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {e}",
                    mount.name, container.name
                ))
            };
            subpath::bind(place, sub, &path).map_err(failed)?;
        }
        result.push(Mount {
            container_path: absolute(&mount.mount_path),
            host_path: path.to_string_lossy().into_owned(),
            readonly: mount.read_only == Some(true) || always_read_only(of, &mount.name),
            propagation: propagation(mount).into(),
            recursive_read_only: recursive_read_only(mount, with.recursive)?,
            ..Mount::default()
        });
    }
    Ok(result)
}

/// The devices of a container: volumes that it gets as they are.
pub fn devices_of(container: &Container, places: &Places) -> Result<Vec<Device>, SpecError> {
    let device = |device: &VolumeDevice| {
        let place = places.get(&device.name);
        let place = place.ok_or_else(|| SpecError::new(format!("no volume is named {:?}", device.name)))?;
        // A driver may publish a link to the device.
        let path = std::fs::canonicalize(place)?;
        Ok(Device {
            container_path: device.device_path.clone(),
            host_path: path.to_string_lossy().into_owned(),
            permissions: "mrw".into(),
        })
    };
    container.volume_devices.iter().flatten().map(device).collect()
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// Volumes whose files are the agent's to write are never written by containers.
fn always_read_only(of: &Pod, name: &str) -> bool {
    let spec = pod::spec(of);
    let volume = spec.volumes.into_iter().flatten().find(|v| v.name == name);
    volume.is_some_and(|v| {
        v.config_map.is_some() || v.secret.is_some() || v.projected.is_some() || v.downward_api.is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kinds_of_host_paths() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        for (path, kind, good) in [
            (at("none"), "", true),
            (at("none"), "Directory", false),
            (at("new"), "DirectoryOrCreate", true),
            (at("new"), "File", false),
            (at("f"), "File", true),
            (at("f"), "DirectoryOrCreate", false),
            (at("f2"), "FileOrCreate", true),
            ("/dev/null".into(), "CharDevice", true),
            ("/dev/null".into(), "Socket", false),
            (at("f"), "Nonsense", false),
        ] {
            let source = HostPathVolumeSource { path: path.clone(), type_: Some(kind.into()) };
            assert_eq!(host_path(&source).is_ok(), good, "{path} {kind}");
        }
    }

    #[test]
    fn mounts_know_their_volumes() {
        let of: Pod = serde_json::from_value(json!({"spec": {"volumes": [{"name": "s", "secret": {"secretName": "x"}}, {"name": "e", "emptyDir": {}}],
            "containers": [{"name": "c", "volumeMounts": [{"name": "s", "mountPath": "/s"}, {"name": "e", "mountPath": "e", "mountPropagation": "Bidirectional"}]}]}}))
        .unwrap();
        let places: Places = [("s".into(), "/p/s".into()), ("e".into(), "/p/e".into())].into();
        let container = &pod::containers(&of)[0];
        let (variables, images) = (BTreeMap::new(), HashMap::from([("i".to_owned(), "sha256:1".to_owned())]));
        let with = |recursive| Mounting { dir: Path::new("/p"), variables: &variables, images: &images, recursive };
        let mounts = mounts_of(&of, container, &places, &with(false)).unwrap();
        assert!(mounts[0].readonly && !mounts[1].readonly);
        assert_eq!((mounts[1].container_path.as_str(), mounts[1].propagation), ("/e", 2));
        assert!(mounts_of(&of, container, &Places::new(), &with(false)).is_err());
        let more = |mount: serde_json::Value| -> Container {
            serde_json::from_value(json!({"name": "c", "volumeMounts": [mount]})).unwrap()
        };
        let image = more(json!({"name": "i", "mountPath": "/i", "subPath": "bin"}));
        let places: Places = [("i".into(), PathBuf::new()), ("e".into(), "/p/e".into())].into();
        let mount = mounts_of(&of, &image, &places, &with(false)).unwrap().remove(0);
        assert_eq!((mount.image.unwrap().image.as_str(), mount.image_sub_path.as_str()), ("sha256:1", "bin"));
        let deep =
            |how: &str| more(json!({"name": "e", "mountPath": "/e", "readOnly": true, "recursiveReadOnly": how}));
        for (how, can, wanted) in [
            ("Enabled", true, Some(true)),
            ("Enabled", false, None),
            ("IfPossible", false, Some(false)),
            ("IfPossible", true, Some(true)),
            ("Disabled", true, Some(false)),
        ] {
            let got = mounts_of(&of, &deep(how), &places, &with(can)).ok().map(|mounts| mounts[0].recursive_read_only);
            assert_eq!(got, wanted, "{how} {can}");
        }
    }
}

//! A driver's volumes for pods: staged once for the node where the driver wants that, published for each pod, and given
//! back in the reverse order.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, CSIVolumeSource, PersistentVolume, Pod, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec, VolumeAttachment};
use keelson_client::Client;
use keelson_proto::csi::{
    AccessMode, BlockVolume, MountVolume, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability, volume_capability,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Driver, Drivers};
use crate::spec::{SpecError, pod, text};

/// The name of records.
const RECORD: &str = "vol_data.json";
/// The directory of a pod's volumes of drivers.
const VOLUMES: &str = "volumes/kubernetes.io~csi";

/// What is written down of a published volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    /// The driver's name.
    #[serde(rename = "driverName")]
    pub driver: String,
    /// The driver's name of the volume.
    #[serde(rename = "volumeHandle")]
    pub handle: String,
    /// The PersistentVolume's name, or the volume's within the pod.
    #[serde(rename = "specVolID")]
    pub name: String,
    /// Where it is published.
    pub target: PathBuf,
    /// Where it is staged, if it is.
    pub staging: Option<PathBuf>,
    /// Whether it is a part of the pod alone.
    pub ephemeral: bool,
}

/// What a pod wants of a driver.
struct Wanted {
    driver: String,
    handle: String,
    name: String,
    block: bool,
    read_only: bool,
    fs_type: String,
    flags: Vec<String>,
    mode: i32,
    attributes: BTreeMap<String, String>,
    stage_secret: Option<(String, String)>,
    publish_secret: Option<(String, String)>,
    ephemeral: bool,
}

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The number of an access mode.
fn access(modes: &[String]) -> i32 {
    let has = |mode: &str| modes.iter().any(|m| m == mode);
    if has("ReadWriteMany") {
        5
    } else if has("ReadOnlyMany") && !has("ReadWriteOnce") {
        3
    } else {
        1
    }
}

impl Wanted {
    fn of_claim(volume: &PersistentVolume, source: &CSIPersistentVolumeSource, read_only: bool) -> Self {
        let spec = volume.spec.clone().unwrap_or_default();
        let secret = |r: &Option<k8s_openapi::api::core::v1::SecretReference>| {
            r.as_ref().map(|r| (text(r.namespace.as_ref()), text(r.name.as_ref())))
        };
        Self {
            driver: source.driver.clone(),
            handle: source.volume_handle.clone(),
            name: text(volume.metadata.name.as_ref()),
            block: spec.volume_mode.as_deref() == Some("Block"),
            read_only: read_only || source.read_only == Some(true),
            fs_type: text(source.fs_type.as_ref()),
            flags: spec.mount_options.unwrap_or_default(),
            mode: access(spec.access_modes.as_deref().unwrap_or_default()),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            stage_secret: secret(&source.node_stage_secret_ref),
            publish_secret: secret(&source.node_publish_secret_ref),
            ephemeral: false,
        }
    }

    fn inline(of: &Pod, name: &str, source: &CSIVolumeSource) -> Self {
        let namespace = text(of.metadata.namespace.as_ref());
        Self {
            driver: source.driver.clone(),
            handle: format!("csi-{}", hash(&format!("{}{name}", pod::uid(of)))),
            name: name.into(),
            block: false,
            read_only: source.read_only == Some(true),
            fs_type: text(source.fs_type.as_ref()),
            flags: Vec::new(),
            mode: 1,
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            stage_secret: None,
            publish_secret: source.node_publish_secret_ref.as_ref().map(|r| (namespace, r.name.clone())),
            ephemeral: true,
        }
    }

    /// The group that the volume's files are given to, as the pod and the driver want it.
    fn group(&self, of: &Pod, about: &CSIDriverSpec) -> Option<u32> {
        let group = of.spec.as_ref()?.security_context.as_ref()?.fs_group?;
        let owned = match about.fs_group_policy.as_deref() {
            Some("File") => true,
            Some("None") => false,
            _ => !self.fs_type.is_empty() && self.mode == 1,
        };
        u32::try_from(group).ok().filter(|_| owned && !self.block && !self.read_only)
    }

    fn capability(&self) -> VolumeCapability {
        let access_type = if self.block {
            volume_capability::AccessType::Block(BlockVolume {})
        } else {
            volume_capability::AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags: self.flags.clone(),
                volume_mount_group: String::new(),
            })
        };
        VolumeCapability { access_type: Some(access_type), access_mode: Some(AccessMode { mode: self.mode }) }
    }
}

/// The records below a directory of pods (of one pod, if its uid is given) with their paths.
pub fn records(pods: &Path, uid: Option<&str>) -> Vec<(PathBuf, Record)> {
    let dirs: Vec<PathBuf> = match uid {
        Some(uid) => vec![pods.join(uid)],
        None => std::fs::read_dir(pods).into_iter().flatten().flatten().map(|e| e.path()).collect(),
    };
    let volumes = dirs.iter().filter_map(|dir| std::fs::read_dir(dir.join(VOLUMES)).ok()).flatten().flatten();
    let record = |entry: std::fs::DirEntry| {
        let path = entry.path().join(RECORD);
        let text = std::fs::read(&path).ok()?;
        match serde_json::from_slice(&text) {
            Ok(record) => Some((path, record)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the record of a published volume cannot be read");
                None
            }
        }
    };
    volumes.filter_map(record).collect()
}

/// Writes a record, whole or not at all.
fn write(path: &Path, record: &Record) -> Result<(), SpecError> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let part = path.with_extension("part");
    std::fs::write(&part, serde_json::to_vec(record).map_err(|e| SpecError::new(e.to_string()))?)?;
    Ok(std::fs::rename(&part, path)?)
}

async fn secret(client: &Client, of: Option<&(String, String)>) -> Result<HashMap<String, String>, SpecError> {
    let Some((namespace, name)) = of else { return Ok(HashMap::new()) };
    let secret = client.namespaced::<Secret>(namespace).get(name).await?;
    let text = |bytes: k8s_openapi::ByteString| String::from_utf8_lossy(&bytes.0).into_owned();
    Ok(secret.data.into_iter().flatten().map(|(key, bytes)| (key, text(bytes))).collect())
}

/// What a driver is told of the pod, if it wants to know.
fn pod_info(of: &Pod, ephemeral: bool) -> impl Iterator<Item = (String, String)> {
    let account = of.spec.as_ref().and_then(|s| s.service_account_name.as_ref());
    let info = [
        ("pod.name", text(of.metadata.name.as_ref())),
        ("pod.namespace", text(of.metadata.namespace.as_ref())),
        ("pod.uid", pod::uid(of)),
        ("serviceAccount.name", text(account)),
        ("ephemeral", ephemeral.to_string()),
    ];
    info.into_iter().map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value))
}

fn refused(driver: &str, what: &str, status: &tonic::Status) -> SpecError {
    SpecError::new(format!(
        "{what} of driver {driver}: rpc error: code = {:?} desc = {}",
        status.code(),
        status.message()
    ))
}

/// Who publishes: the node's drivers, its name and its client.
pub struct Publisher<'a> {
    /// The drivers.
    pub drivers: &'a Drivers,
    /// The API.
    pub client: &'a Client,
    /// The node.
    pub node: &'a str,
}

impl Publisher<'_> {
    /// The volume of a claim for a pod. Returns where it is.
    pub async fn claim(
        &self,
        of: &Pod,
        volume: &PersistentVolume,
        source: &CSIPersistentVolumeSource,
        read_only: bool,
    ) -> Result<PathBuf, SpecError> {
        self.publish(of, &Wanted::of_claim(volume, source, read_only)).await
    }

    /// A volume that is a part of the pod.
    pub async fn inline(&self, of: &Pod, name: &str, source: &CSIVolumeSource) -> Result<PathBuf, SpecError> {
        self.publish(of, &Wanted::inline(of, name, source)).await
    }

    async fn publish(&self, of: &Pod, wanted: &Wanted) -> Result<PathBuf, SpecError> {
        let dir = self.drivers.root.join("pods").join(pod::uid(of)).join(VOLUMES).join(&wanted.name);
        let target = self.target(of, wanted, &dir);
        let done = dir.join("published");
        // Mounts do not outlive the kernel.
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id")?;
        if std::fs::read(&done).is_ok_and(|published| published == boot) {
            return Ok(target);
        }
        let missing = || {
            let name = &wanted.driver;
            SpecError::new(format!(
                "kubernetes.io/csi: driver name {name} not found in the list of registered CSI drivers"
            ))
        };
        let driver = self.drivers.get(&wanted.driver).ok_or_else(missing)?;
        let about = self.client.cluster::<CSIDriver>().get_opt(&wanted.driver).await?.map(|d| d.spec);
        let about = about.unwrap_or_default();
        if wanted.ephemeral && !about.volume_lifecycle_modes.iter().flatten().any(|m| m == "Ephemeral") {
            return Err(SpecError::new(format!("volume mode \"Ephemeral\" not supported by driver {}", wanted.driver)));
        }
        let attached = match wanted.ephemeral || about.attach_required == Some(false) {
            true => HashMap::new(),
            false => self.attachment(wanted).await?,
        };
        let staging = (driver.stages && !wanted.ephemeral).then(|| self.staging(wanted));
        let record = Record {
            driver: wanted.driver.clone(),
            handle: wanted.handle.clone(),
            name: wanted.name.clone(),
            target: target.clone(),
            staging: staging.clone(),
            ephemeral: wanted.ephemeral,
        };
        write(&dir.join(RECORD), &record)?;
        let mut context: HashMap<String, String> = wanted.attributes.clone().into_iter().collect();
        if about.pod_info_on_mount == Some(true) {
            context.extend(pod_info(of, wanted.ephemeral));
        }
        let _turn = driver.turn.lock().await;
        if let Some(staging) = &staging {
            self.stage(&driver, wanted, staging, &attached).await?;
        }
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let request = NodePublishVolumeRequest {
            volume_id: wanted.handle.clone(),
            publish_context: attached,
            staging_target_path: staging.map(|s| s.display().to_string()).unwrap_or_default(),
            target_path: target.display().to_string(),
            volume_capability: Some(wanted.capability()),
            readonly: wanted.read_only,
            secrets: secret(self.client, wanted.publish_secret.as_ref()).await?,
            volume_context: context,
        };
        let asked = driver.client.clone().node_publish_volume(request).await;
        asked.map_err(|e| refused(&driver.name, "NodePublishVolume", &e))?;
        if let Some(group) = wanted.group(of, &about) {
            let target = target.clone();
            let given = tokio::task::spawn_blocking(move || give(&target, group));
            given.await.map_err(|e| SpecError::new(e.to_string()))??;
        }
        std::fs::write(done, boot)?;
        Ok(target)
    }

    /// Where devices are published and staged.
    fn devices(&self) -> PathBuf {
        self.drivers.root.join("plugins/kubernetes.io/csi/volumeDevices")
    }

    fn target(&self, of: &Pod, wanted: &Wanted, dir: &Path) -> PathBuf {
        match wanted.block {
            true => self.devices().join("publish").join(&wanted.name).join(pod::uid(of)),
            false => dir.join("mount"),
        }
    }

    fn staging(&self, wanted: &Wanted) -> PathBuf {
        let plugins = self.drivers.root.join("plugins/kubernetes.io/csi");
        match wanted.block {
            true => self.devices().join("staging").join(&wanted.name),
            false => plugins.join(&wanted.driver).join(hash(&wanted.handle)).join("globalmount"),
        }
    }

    async fn stage(
        &self,
        driver: &Driver,
        wanted: &Wanted,
        staging: &Path,
        attached: &HashMap<String, String>,
    ) -> Result<(), SpecError> {
        std::fs::create_dir_all(staging)?;
        let request = NodeStageVolumeRequest {
            volume_id: wanted.handle.clone(),
            publish_context: attached.clone(),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(wanted.capability()),
            secrets: secret(self.client, wanted.stage_secret.as_ref()).await?,
            volume_context: wanted.attributes.clone().into_iter().collect(),
        };
        // Drivers answer well to what is done already.
        let asked = driver.client.clone().node_stage_volume(request).await;
        asked.map(drop).map_err(|e| refused(&driver.name, "NodeStageVolume", &e))
    }

    /// What the attachment of the volume to this node says, once there is one.
    async fn attachment(&self, wanted: &Wanted) -> Result<HashMap<String, String>, SpecError> {
        let name = format!("csi-{}", hash(&format!("{}{}{}", wanted.handle, wanted.driver, self.node)));
        let found = self.client.cluster::<VolumeAttachment>().get_opt(&name).await?;
        let status = found.and_then(|a| a.status).unwrap_or_default();
        if !status.attached {
            let why = status.attach_error.and_then(|e| e.message).unwrap_or_else(|| "it is not attached yet".into());
            return Err(SpecError::new(format!("volume {} is waited for: {why}", wanted.name)));
        }
        Ok(status.attachment_metadata.into_iter().flatten().collect())
    }
}

/// Gives a volume's files to a group, as `fsGroup` wants it.
fn give(path: &Path, group: u32) -> std::io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let found = std::fs::symlink_metadata(path)?;
    if found.is_symlink() {
        return std::os::unix::fs::lchown(path, None, Some(group));
    }
    if found.gid() != group {
        std::os::unix::fs::chown(path, None, Some(group))?;
    }
    let mode = found.permissions().mode() & 0o7777;
    let more = if found.is_dir() { 0o2070 } else { (mode & 0o600) >> 3 };
    if mode | more != mode {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode | more))?;
    }
    if found.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give(&entry?.path(), group)?;
        }
    }
    Ok(())
}

impl Drivers {
    /// Gives back all that was published for a pod, and what was staged for it alone.
    pub async fn give_back(&self, uid: &str) -> Result<(), SpecError> {
        let pods = self.root.join("pods");
        for (path, record) in records(&pods, Some(uid)) {
            let missing = || {
                SpecError::new(format!(
                    "driver {} is not registered, and has to take volume {} back",
                    record.driver, record.name
                ))
            };
            let driver = self.get(&record.driver).ok_or_else(missing)?;
            let _turn = driver.turn.lock().await;
            let mut client = driver.client.clone();
            let request = NodeUnpublishVolumeRequest {
                volume_id: record.handle.clone(),
                target_path: record.target.display().to_string(),
            };
            let asked = client.node_unpublish_volume(request).await;
            asked.map_err(|e| refused(&driver.name, "NodeUnpublishVolume", &e))?;
            for left in [&record.target, &path.with_file_name("published")] {
                remove(left)?;
            }
            let used = |other: &(PathBuf, Record)| {
                other.0 != path && (&other.1.driver, &other.1.handle) == (&record.driver, &record.handle)
            };
            if let Some(staging) = record.staging.as_ref().filter(|_| !records(&pods, None).iter().any(used)) {
                let request = NodeUnstageVolumeRequest {
                    volume_id: record.handle.clone(),
                    staging_target_path: staging.display().to_string(),
                };
                let asked = client.node_unstage_volume(request).await;
                asked.map_err(|e| refused(&driver.name, "NodeUnstageVolume", &e))?;
                remove(staging)?;
            }
            std::fs::remove_file(&path)?;
        }
        Ok(())
    }
}

/// Removes an empty directory or a file; drivers may have done so.
fn remove(path: &Path) -> std::io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_modes() {
        for (modes, wanted) in [
            (&["ReadWriteOnce"][..], 1),
            (&["ReadWriteOncePod"], 1),
            (&["ReadOnlyMany"], 3),
            (&["ReadOnlyMany", "ReadWriteOnce"], 1),
            (&["ReadWriteMany", "ReadOnlyMany"], 5),
            (&[], 1),
        ] {
            let modes: Vec<String> = modes.iter().map(|m| (*m).to_owned()).collect();
            assert_eq!(access(&modes), wanted, "{modes:?}");
        }
    }

    #[test]
    fn records_are_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let pods = dir.path().join("pods");
        let record = |name: &str| Record { name: name.into(), driver: "d".into(), ..Record::default() };
        for (uid, name) in [("1", "a"), ("1", "b"), ("2", "a")] {
            write(&pods.join(uid).join(VOLUMES).join(name).join(RECORD), &record(name)).unwrap();
        }
        std::fs::write(pods.join("2").join(VOLUMES).join("a").join(RECORD), "{").unwrap();
        let mut names: Vec<String> = records(&pods, None).into_iter().map(|(_, r)| r.name).collect();
        names.sort();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(records(&pods, Some("1")).len(), 2);
        assert!(records(&pods, Some("2")).is_empty() && records(&pods, Some("3")).is_empty());
    }
}

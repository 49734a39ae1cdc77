//! Volumes that pods name themselves, of plugins that moved to CSI drivers: as the drivers' attachments have them.

use std::collections::BTreeMap;

use crate::kept::Pod;
use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, PersistentVolumeSpec, Volume};
use keelson_machinery::csi_migration::InTree;

/// What a pod's volume is to its driver, and the name by which events call it; none if it is of no plugin that moved, or of
/// one that attaches nothing.
pub fn translated(volume: &Volume) -> Option<(String, PersistentVolumeSpec)> {
    let partition = |number: Option<i32>| {
        number.filter(|n| *n != 0).map(|n| BTreeMap::from([("partition".to_owned(), n.to_string())]))
    };
    let (old, id, fs_type, read_only, attributes) = if let Some(disk) = &volume.aws_elastic_block_store {
        let attributes = partition(disk.partition);
        (InTree::Ebs(&disk.volume_id), &disk.volume_id, disk.fs_type.clone(), disk.read_only, attributes)
    } else if let Some(disk) = &volume.gce_persistent_disk {
        let attributes = partition(disk.partition);
        (InTree::GcePd(&disk.pd_name, ""), &disk.pd_name, disk.fs_type.clone(), disk.read_only, attributes)
    } else if let Some(disk) = &volume.azure_disk {
        let mut attributes = BTreeMap::from([("kind".to_owned(), "Managed".to_owned())]);
        attributes.extend(disk.caching_mode.clone().map(|mode| ("cachingMode".to_owned(), mode)));
        attributes.extend(disk.fs_type.clone().map(|kind| ("fsType".to_owned(), kind)));
        (InTree::AzureDisk(&disk.disk_uri), &disk.disk_name, disk.fs_type.clone(), disk.read_only, Some(attributes))
    } else if let Some(disk) = &volume.cinder {
        (InTree::Cinder(&disk.volume_id), &disk.volume_id, disk.fs_type.clone(), disk.read_only, None)
    } else if let Some(disk) = &volume.vsphere_volume {
        (InTree::Vsphere(&disk.volume_path), &disk.volume_path, disk.fs_type.clone(), None, None)
    } else if let Some(disk) = &volume.portworx_volume {
        (InTree::Portworx(&disk.volume_id), &disk.volume_id, disk.fs_type.clone(), disk.read_only, None)
    } else {
        return None;
    };
    let (driver, handle) = old.csi()?;
    let many = volume.gce_persistent_disk.as_ref().is_some_and(|disk| disk.read_only == Some(true));
    let csi = CSIPersistentVolumeSource {
        driver: driver.to_owned(),
        volume_handle: handle,
        fs_type: fs_type.filter(|kind| !kind.is_empty()),
        read_only: read_only.filter(|only| *only),
        volume_attributes: attributes,
        ..CSIPersistentVolumeSource::default()
    };
    let mode = if many { "ReadOnlyMany" } else { "ReadWriteOnce" };
    let spec = PersistentVolumeSpec {
        access_modes: Some(vec![mode.to_owned()]),
        csi: Some(csi),
        ..PersistentVolumeSpec::default()
    };
    Some((format!("{driver}-{id}"), spec))
}

/// All such volumes of a pod.
pub fn volumes_of(pod: &Pod) -> impl Iterator<Item = (String, PersistentVolumeSpec)> + '_ {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter_map(translated)
}

/// What finds pods and attachments by such a volume: no claim or PersistentVolume is called so.
pub fn key(spec: &PersistentVolumeSpec) -> Option<String> {
    spec.csi.as_ref().map(|csi| format!("^{}^{}", csi.driver, csi.volume_handle))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn volumes_become_their_drivers() {
        let of = |source: Value| {
            let mut volume = json!({"name": "v"});
            keelson_machinery::patch::merge(&mut volume, &source);
            translated(&serde_json::from_value(volume).unwrap())
        };
        for (source, name, expected) in [
            (
                json!({"awsElasticBlockStore": {"volumeID": "aws://z/vol-1", "fsType": "ext4", "partition": 2}}),
                "ebs.csi.aws.com-aws://z/vol-1",
                json!({"accessModes": ["ReadWriteOnce"], "csi": {"driver": "ebs.csi.aws.com", "volumeHandle": "vol-1",
                    "fsType": "ext4", "volumeAttributes": {"partition": "2"}}}),
            ),
            (
                json!({"gcePersistentDisk": {"pdName": "d", "readOnly": true}}),
                "pd.csi.storage.gke.io-d",
                json!({"accessModes": ["ReadOnlyMany"], "csi": {"driver": "pd.csi.storage.gke.io",
                    "volumeHandle": "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d", "readOnly": true}}),
            ),
            (
                json!({"azureDisk": {"diskName": "n", "diskURI": "/u", "cachingMode": "ReadOnly"}}),
                "disk.csi.azure.com-n",
                json!({"accessModes": ["ReadWriteOnce"], "csi": {"driver": "disk.csi.azure.com", "volumeHandle": "/u",
                    "volumeAttributes": {"kind": "Managed", "cachingMode": "ReadOnly"}}}),
            ),
            (
                json!({"cinder": {"volumeID": "c"}}),
                "cinder.csi.openstack.org-c",
                json!({"accessModes": ["ReadWriteOnce"], "csi": {"driver": "cinder.csi.openstack.org", "volumeHandle": "c"}}),
            ),
            (
                json!({"vsphereVolume": {"volumePath": "p"}}),
                "csi.vsphere.vmware.com-p",
                json!({"accessModes": ["ReadWriteOnce"], "csi": {"driver": "csi.vsphere.vmware.com", "volumeHandle": "p"}}),
            ),
            (
                json!({"portworxVolume": {"volumeID": "x"}}),
                "pxd.portworx.com-x",
                json!({"accessModes": ["ReadWriteOnce"], "csi": {"driver": "pxd.portworx.com", "volumeHandle": "x"}}),
            ),
        ] {
            let (called, spec) = of(source).unwrap();
            assert_eq!((called.as_str(), serde_json::to_value(&spec).unwrap()), (name, expected));
            assert!(key(&spec).is_some_and(|key| key.starts_with('^')));
        }
        // A file share is attached nowhere, and what names no disk is no disk.
        for source in [
            json!({"emptyDir": {}}),
            json!({"azureFile": {"secretName": "s", "shareName": "f"}}),
            json!({"awsElasticBlockStore": {"volumeID": "aws://"}}),
        ] {
            assert!(of(source.clone()).is_none(), "{source}");
        }
    }
}

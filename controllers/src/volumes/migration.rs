//! Volumes of plugins that moved to CSI drivers: who the driver is, what it calls the volume, and the annotation that tells
//! the driver's sidecars that the volume is theirs.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PersistentVolume;
use keelson_machinery::csi_migration::{InTree, driver_of};

/// Annotation of claims and volumes: the driver that took the place of the plugin which they name.
const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";
/// Labels with a volume's zones: the old name and today's.
const ZONES: [&str; 2] = ["failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"];
const RESOURCE_GROUP: &str = "kubernetes.io/azure-file-resource-group";

fn given<'a>(map: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    map?.get(key).map(String::as_str).filter(|v| !v.is_empty())
}

/// Driver and handle of a volume: its own, or those that its plugin's volumes have now.
pub fn csi(volume: &PersistentVolume) -> Option<(String, String)> {
    let spec = volume.spec.as_ref()?;
    if let Some(csi) = &spec.csi {
        return Some((csi.driver.clone(), csi.volume_handle.clone()));
    }
    let (labels, annotations) = (volume.metadata.labels.as_ref(), volume.metadata.annotations.as_ref());
    let old = if let Some(disk) = &spec.aws_elastic_block_store {
        InTree::Ebs(&disk.volume_id)
    } else if let Some(disk) = &spec.gce_persistent_disk {
        InTree::GcePd(&disk.pd_name, ZONES.iter().find_map(|key| given(labels, key)).unwrap_or_default())
    } else if let Some(disk) = &spec.azure_disk {
        InTree::AzureDisk(&disk.disk_uri)
    } else if let Some(file) = &spec.azure_file {
        let group = given(annotations, RESOURCE_GROUP).unwrap_or_default();
        InTree::AzureFile { share: &file.share_name, secret: &file.secret_name, group }
    } else if let Some(volume) = &spec.cinder {
        InTree::Cinder(&volume.volume_id)
    } else if let Some(disk) = &spec.vsphere_volume {
        InTree::Vsphere(&disk.volume_path)
    } else {
        InTree::Portworx(&spec.portworx_volume.as_ref()?.volume_id)
    };
    old.csi().map(|(driver, handle)| (driver.to_owned(), handle))
}

/// Brings the annotation in line with the plugin that one of `keys` names; tells whether that changed anything.
pub fn annotate(annotations: &mut Option<BTreeMap<String, String>>, keys: &[&str]) -> bool {
    let Some(all) = annotations else { return false };
    let Some(plugin) = keys.iter().find_map(|key| all.get(*key)) else { return false };
    let driver = driver_of(plugin);
    if all.get(MIGRATED_TO).map(String::as_str) == driver {
        return false;
    }
    match driver {
        Some(driver) => all.insert(MIGRATED_TO.into(), driver.into()),
        None => all.remove(MIGRATED_TO),
    };
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn volumes_of_plugins_are_their_drivers() {
        for (what, spec, expected) in [
            ("a driver's own", json!({"csi": {"driver": "d", "volumeHandle": "h"}}), Some(("d", "h"))),
            ("EBS", json!({"awsElasticBlockStore": {"volumeID": "aws://z/vol-1"}}), Some(("ebs.csi.aws.com", "vol-1"))),
            (
                "a GCE disk",
                json!({"gcePersistentDisk": {"pdName": "p"}}),
                Some(("pd.csi.storage.gke.io", "projects/UNSPECIFIED/zones/us-east1-a/disks/p")),
            ),
            (
                "an Azure disk",
                json!({"azureDisk": {"diskName": "n", "diskURI": "/u"}}),
                Some(("disk.csi.azure.com", "/u")),
            ),
            (
                "an Azure file",
                json!({"azureFile": {"secretName": "k", "shareName": "s"}}),
                Some(("file.csi.azure.com", "rg#k#s#")),
            ),
            ("Cinder", json!({"cinder": {"volumeID": "c"}}), Some(("cinder.csi.openstack.org", "c"))),
            ("vSphere", json!({"vsphereVolume": {"volumePath": "p"}}), Some(("csi.vsphere.vmware.com", "p"))),
            ("Portworx", json!({"portworxVolume": {"volumeID": "x"}}), Some(("pxd.portworx.com", "x"))),
            ("NFS", json!({"nfs": {"server": "s", "path": "/"}}), None),
        ] {
            let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "v",
                "labels": {"topology.kubernetes.io/zone": "us-east1-a"}, "annotations": {RESOURCE_GROUP: "rg"}},
                "spec": spec}))
            .unwrap();
            assert_eq!(csi(&volume), expected.map(|(d, h)| (d.to_owned(), h.to_owned())), "{what}");
        }
    }

    #[test]
    fn the_driver_is_named_beside_the_plugin() {
        const BY: &str = "pv.kubernetes.io/provisioned-by";
        let ebs = "ebs.csi.aws.com";
        for (what, before, changed, driver) in [
            ("a plugin that moved", json!({BY: "kubernetes.io/aws-ebs"}), true, Some(ebs)),
            ("it is named", json!({BY: "kubernetes.io/aws-ebs", MIGRATED_TO: ebs}), false, Some(ebs)),
            ("wrongly", json!({BY: "kubernetes.io/aws-ebs", MIGRATED_TO: "x"}), true, Some(ebs)),
            ("a driver", json!({BY: "example.com/d"}), false, None),
            ("a driver, wrongly", json!({BY: "example.com/d", MIGRATED_TO: ebs}), true, None),
            ("nobody", json!({}), false, None),
        ] {
            let mut annotations = serde_json::from_value(before).unwrap();
            assert_eq!(annotate(&mut annotations, &[BY]), changed, "{what}");
            assert_eq!(given(annotations.as_ref(), MIGRATED_TO), driver, "{what}");
        }
        assert!(!annotate(&mut None, &[BY]));
    }
}

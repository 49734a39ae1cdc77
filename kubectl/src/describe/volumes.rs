//! Volumes of pods and sources of persistent volumes: one table of kinds and their fields.

use serde_json::Value;

use super::common::{LONGEST_ANNOTATION, cut};
use super::sheet::{Sheet, row};
use crate::value::{Read, or, quantity};

/// How a field is shown.
#[derive(Clone, Copy)]
enum Show {
    /// As it is.
    Plain,
    /// A number, 0 if absent.
    Number,
    /// `true` or `false`.
    Bool,
    /// As it is, or this if absent.
    Or(&'static str),
    /// A list with commas.
    Joined,
    /// A reference to a secret, as Go prints a pointer to a struct with a name.
    Reference,
    /// A map as Go prints it.
    Map,
    /// A limit of size.
    Size,
}

/// A kind of volume: its field, what it is, and labels with the fields that they show.
type Source = (&'static str, &'static str, &'static [(&'static str, &'static str, Show)]);

use Show::{Bool, Joined, Map, Number, Or, Plain, Reference, Size};

const SOURCES: &[Source] = &[
    (
        "hostPath",
        "HostPath (bare host directory volume)",
        &[("Path:", "path", Plain), ("HostPathType:", "type", Or("<none>"))],
    ),
    (
        "emptyDir",
        "EmptyDir (a temporary directory that shares a pod's lifetime)",
        &[("Medium:", "medium", Plain), ("SizeLimit:", "sizeLimit", Size)],
    ),
    (
        "gcePersistentDisk",
        "GCEPersistentDisk (a Persistent Disk resource in Google Compute Engine)",
        &[
            ("PDName:", "pdName", Plain),
            ("FSType:", "fsType", Plain),
            ("Partition:", "partition", Number),
            ("ReadOnly:", "readOnly", Bool),
        ],
    ),
    (
        "awsElasticBlockStore",
        "AWSElasticBlockStore (a Persistent Disk resource in AWS)",
        &[
            ("VolumeID:", "volumeID", Plain),
            ("FSType:", "fsType", Plain),
            ("Partition:", "partition", Number),
            ("ReadOnly:", "readOnly", Bool),
        ],
    ),
    (
        "gitRepo",
        "GitRepo (a volume that is pulled from git when the pod is created)",
        &[("Repository:", "repository", Plain), ("Revision:", "revision", Plain)],
    ),
    (
        "secret",
        "Secret (a volume populated by a Secret)",
        &[("SecretName:", "secretName", Plain), ("Optional:", "optional", Bool)],
    ),
    (
        "configMap",
        "ConfigMap (a volume populated by a ConfigMap)",
        &[("Name:", "name", Plain), ("Optional:", "optional", Bool)],
    ),
    (
        "nfs",
        "NFS (an NFS mount that lasts the lifetime of a pod)",
        &[("Server:", "server", Plain), ("Path:", "path", Plain), ("ReadOnly:", "readOnly", Bool)],
    ),
    (
        "iscsi",
        "ISCSI (an ISCSI Disk resource that is attached to a kubelet's host machine and then exposed to the pod)",
        &[
            ("TargetPortal:", "targetPortal", Plain),
            ("IQN:", "iqn", Plain),
            ("Lun:", "lun", Number),
            // Without a colon in the original too.
            ("ISCSIInterface", "iscsiInterface", Plain),
            ("FSType:", "fsType", Plain),
            ("ReadOnly:", "readOnly", Bool),
            ("Portals:", "portals", Or("[]")),
            ("DiscoveryCHAPAuth:", "chapAuthDiscovery", Bool),
            ("SessionCHAPAuth:", "chapAuthSession", Bool),
            ("SecretRef:", "secretRef", Reference),
            ("InitiatorName:", "initiatorName", Or("<none>")),
        ],
    ),
    (
        "glusterfs",
        "Glusterfs (a Glusterfs mount on the host that shares a pod's lifetime)",
        &[("EndpointsName:", "endpoints", Plain), ("Path:", "path", Plain), ("ReadOnly:", "readOnly", Bool)],
    ),
    (
        "persistentVolumeClaim",
        "PersistentVolumeClaim (a reference to a PersistentVolumeClaim in the same namespace)",
        &[("ClaimName:", "claimName", Plain), ("ReadOnly:", "readOnly", Bool)],
    ),
    (
        "rbd",
        "RBD (a Rados Block Device mount on the host that shares a pod's lifetime)",
        &[
            ("CephMonitors:", "monitors", Or("[]")),
            ("RBDImage:", "image", Plain),
            ("FSType:", "fsType", Plain),
            ("RBDPool:", "pool", Plain),
            ("RadosUser:", "user", Plain),
            ("Keyring:", "keyring", Plain),
            ("SecretRef:", "secretRef", Reference),
            ("ReadOnly:", "readOnly", Bool),
        ],
    ),
    (
        "quobyte",
        "Quobyte (a Quobyte mount on the host that shares a pod's lifetime)",
        &[("Registry:", "registry", Plain), ("Volume:", "volume", Plain), ("ReadOnly:", "readOnly", Bool)],
    ),
    (
        "azureDisk",
        "AzureDisk (an Azure Data Disk mount on the host and bind mount to the pod)",
        &[
            ("DiskName:", "diskName", Plain),
            ("DiskURI:", "diskURI", Plain),
            ("Kind: ", "kind", Plain),
            ("FSType:", "fsType", Plain),
            ("CachingMode:", "cachingMode", Plain),
            ("ReadOnly:", "readOnly", Bool),
        ],
    ),
    (
        "vsphereVolume",
        "vSphereVolume (a Persistent Disk resource in vSphere)",
        &[
            ("VolumePath:", "volumePath", Plain),
            ("FSType:", "fsType", Plain),
            ("StoragePolicyName:", "storagePolicyName", Plain),
        ],
    ),
    (
        "cinder",
        "Cinder (a Persistent Disk resource in OpenStack)",
        &[
            ("VolumeID:", "volumeID", Plain),
            ("FSType:", "fsType", Plain),
            ("ReadOnly:", "readOnly", Bool),
            ("SecretRef:", "secretRef", Reference),
        ],
    ),
    (
        "photonPersistentDisk",
        "PhotonPersistentDisk (a Persistent Disk resource in photon platform)",
        &[("PdID:", "pdID", Plain), ("FSType:", "fsType", Plain)],
    ),
    ("portworxVolume", "PortworxVolume (a Portworx Volume resource)", &[("VolumeID:", "volumeID", Plain)]),
    (
        "scaleIO",
        "ScaleIO (a persistent volume backed by a block device in ScaleIO)",
        &[
            ("Gateway:", "gateway", Plain),
            ("System:", "system", Plain),
            ("Protection Domain:", "protectionDomain", Plain),
            ("Storage Pool:", "storagePool", Plain),
            ("Storage Mode:", "storageMode", Plain),
            ("VolumeName:", "volumeName", Plain),
            ("FSType:", "fsType", Plain),
            ("ReadOnly:", "readOnly", Bool),
        ],
    ),
    ("local", "LocalVolume (a persistent volume backed by local storage on a node)", &[("Path:", "path", Plain)]),
    (
        "cephfs",
        "CephFS (a CephFS mount on the host that shares a pod's lifetime)",
        &[
            ("Monitors:", "monitors", Or("[]")),
            ("Path:", "path", Plain),
            ("User:", "user", Plain),
            ("SecretFile:", "secretFile", Plain),
            ("SecretRef:", "secretRef", Reference),
            ("ReadOnly:", "readOnly", Bool),
        ],
    ),
    (
        "storageos",
        "StorageOS (a StorageOS Persistent Disk resource)",
        &[
            ("VolumeName:", "volumeName", Plain),
            ("VolumeNamespace:", "volumeNamespace", Plain),
            ("FSType:", "fsType", Plain),
            ("ReadOnly:", "readOnly", Bool),
        ],
    ),
    (
        "fc",
        "FC (a Fibre Channel disk)",
        &[
            ("TargetWWNs:", "targetWWNs", Joined),
            ("LUN:", "lun", Or("<none>")),
            ("FSType:", "fsType", Plain),
            ("ReadOnly:", "readOnly", Bool),
        ],
    ),
    (
        "azureFile",
        "AzureFile (an Azure File Service mount on the host and bind mount to the pod)",
        &[("SecretName:", "secretName", Plain), ("ShareName:", "shareName", Plain), ("ReadOnly:", "readOnly", Bool)],
    ),
    (
        "flexVolume",
        "FlexVolume (a generic volume resource that is provisioned/attached using an exec based plugin)",
        &[
            ("Driver:", "driver", Plain),
            ("FSType:", "fsType", Plain),
            ("SecretRef:", "secretRef", Reference),
            ("ReadOnly:", "readOnly", Bool),
            ("Options:", "options", Map),
        ],
    ),
    (
        "flocker",
        "Flocker (a Flocker volume mounted by the Flocker agent)",
        &[("DatasetName:", "datasetName", Plain), ("DatasetUUID:", "datasetUUID", Plain)],
    ),
    (
        "image",
        "Image (a container image or OCI artifact)",
        &[("Reference:", "reference", Plain), ("PullPolicy:", "pullPolicy", Plain)],
    ),
];

fn shown(value: &Value, how: Show) -> String {
    match how {
        Plain => value.shown(),
        Number => value.number().to_string(),
        Bool => value.is_true().to_string(),
        Or(otherwise) if value.is_null() => otherwise.to_owned(),
        Or(_) => value.shown(),
        Joined => value.texts().join(", "),
        Reference if value.is_null() => "nil".into(),
        Reference => match value["namespace"].text() {
            "" => format!("&LocalObjectReference{{Name:{},}}", value["name"].text()),
            space => format!("&SecretReference{{Name:{},Namespace:{space},}}", value["name"].text()),
        },
        Map => {
            let pairs: Vec<String> = value.pairs().into_iter().map(|(k, v)| format!("{k}:{v}")).collect();
            format!("map[{}]", pairs.join(" "))
        }
        Size if quantity(value).millis() > 0 => quantity(value).to_string(),
        Size => "<unset>".into(),
    }
}

/// Shows a volume's source; `persistent` tells those of persistent volumes, which say more.
pub fn source(w: &mut Sheet, of: &Value, persistent: bool) {
    if let Some((field, what, fields)) = SOURCES.iter().find(|(field, ..)| of[field].is_there()) {
        row!(w, 2, "Type:\t{what}");
        for (label, name, how) in *fields {
            if *field == "glusterfs" && persistent && *name == "path" {
                let namespace = shown(&of[field]["endpointsNamespace"], Or("<unset>"));
                row!(w, 2, "EndpointsNamespace:\t{namespace}");
            }
            if *field == "scaleIO" && persistent && *name == "fsType" {
                row!(w, 2, "SecretName:\t{}", of[field]["secretRef"]["name"].text());
                row!(w, 2, "SecretNamespace:\t{}", of[field]["secretRef"]["namespace"].text());
            }
            if *field == "azureFile" && persistent && *name == "shareName" {
                row!(w, 2, "SecretNamespace:\t{}", of[field]["secretNamespace"].text());
            }
            row!(w, 2, "{label}\t{}", shown(&of[field][name], *how));
        }
    } else if of["projected"].is_there() {
        projected(w, &of["projected"]);
    } else if of["ephemeral"].is_there() {
        row!(
            w,
            2,
            "Type:\tEphemeralVolume (an inline specification for a volume that gets created and deleted with the pod)"
        );
        super::storage::template(w, &of["ephemeral"]["volumeClaimTemplate"]);
    } else if of["downwardAPI"].is_there() {
        row!(w, 2, "Type:\tDownwardAPI (a volume populated by information about the pod)");
        row!(w, 2, "Items:");
        for item in of["downwardAPI"]["items"].items() {
            let path = item["path"].text();
            for from in [&item["fieldRef"]["fieldPath"], &item["resourceFieldRef"]["resource"]] {
                if from.is_there() {
                    row!(w, 3, "{} -> {path}", from.text());
                }
            }
        }
    } else if of["csi"].is_there() {
        csi(w, &of["csi"], persistent);
    } else {
        row!(w, 1, "<unknown>");
    }
}

fn csi(w: &mut Sheet, csi: &Value, persistent: bool) {
    row!(w, 2, "Type:\tCSI (a Container Storage Interface (CSI) volume source)");
    row!(w, 2, "Driver:\t{}", csi["driver"].text());
    row!(w, 2, "FSType:\t{}", csi["fsType"].text());
    if persistent {
        row!(w, 2, "VolumeHandle:\t{}", csi["volumeHandle"].text());
    }
    row!(w, 2, "ReadOnly:\t{}", csi["readOnly"].is_true());
    let attributes = csi["volumeAttributes"].pairs();
    w.put("    VolumeAttributes:\t");
    if attributes.is_empty() {
        w.put("<none>\n");
    }
    for (at, (key, value)) in attributes.into_iter().enumerate() {
        if at > 0 {
            w.put("        \t");
        }
        let line = format!("{key}={value}");
        // Indented once more, as the original does.
        row!(w, 2, "{}", cut(&line, LONGEST_ANNOTATION));
    }
}

fn projected(w: &mut Sheet, projected: &Value) {
    row!(w, 2, "Type:\tProjected (a volume that contains injected data from multiple sources)");
    for from in projected["sources"].items() {
        if from["secret"].is_there() {
            row!(w, 2, "SecretName:\t{}", from["secret"]["name"].text());
            row!(w, 2, "Optional:\t{}", from["secret"]["optional"].is_true());
        } else if from["downwardAPI"].is_there() {
            row!(w, 2, "DownwardAPI:\ttrue");
        } else if from["configMap"].is_there() {
            row!(w, 2, "ConfigMapName:\t{}", from["configMap"]["name"].text());
            row!(w, 2, "Optional:\t{}", from["configMap"]["optional"].is_true());
        } else if from["serviceAccountToken"].is_there() {
            row!(w, 2, "TokenExpirationSeconds:\t{}", from["serviceAccountToken"]["expirationSeconds"].number());
        }
    }
}

/// The volumes of a pod or, with `space` before them, of a template.
pub fn volumes(w: &mut Sheet, volumes: &Value, space: &str) {
    if volumes.items().is_empty() {
        row!(w, 0, "{space}Volumes:\t<none>");
        return;
    }
    row!(w, 0, "{space}Volumes:");
    let indent = if space.is_empty() { "" } else { " " };
    for volume in volumes.items() {
        row!(w, 1, "{indent}{}:", or(volume["name"].text(), ""));
        source(w, volume, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sources_and_their_fields() {
        for (of, expected) in [
            (
                json!({"emptyDir": {"sizeLimit": "1Gi"}}),
                "    Type:       EmptyDir (a temporary directory that shares a pod's lifetime)\n    Medium:     \n    SizeLimit:  1Gi\n",
            ),
            (
                json!({"hostPath": {"path": "/x"}}),
                "    Type:          HostPath (bare host directory volume)\n    Path:          /x\n    HostPathType:  <none>\n",
            ),
            (
                json!({"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}}),
                "    Type:  DownwardAPI (a volume populated by information about the pod)\n    Items:\n      metadata.labels -> l\n",
            ),
            (json!({"name": "x"}), "  <unknown>\n"),
        ] {
            let mut w = Sheet::default();
            source(&mut w, &of, false);
            assert_eq!(w.finish(), expected);
        }
    }
}

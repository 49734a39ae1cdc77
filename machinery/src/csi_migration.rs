//! Volumes of plugins that were once part of Kubernetes, as the CSI drivers that took their place know them.

/// Plugins that moved, and their drivers.
const DRIVERS: [(&str, &str); 7] = [
    ("kubernetes.io/aws-ebs", EBS),
    ("kubernetes.io/gce-pd", GCE_PD),
    ("kubernetes.io/azure-disk", AZURE_DISK),
    ("kubernetes.io/azure-file", AZURE_FILE),
    ("kubernetes.io/cinder", CINDER),
    ("kubernetes.io/vsphere-volume", VSPHERE),
    ("kubernetes.io/portworx-volume", PORTWORX),
];
const EBS: &str = "ebs.csi.aws.com";
const GCE_PD: &str = "pd.csi.storage.gke.io";
const AZURE_DISK: &str = "disk.csi.azure.com";
const AZURE_FILE: &str = "file.csi.azure.com";
const CINDER: &str = "cinder.csi.openstack.org";
const VSPHERE: &str = "csi.vsphere.vmware.com";
const PORTWORX: &str = "pxd.portworx.com";
/// What a GCE disk's handle says of what is not known.
const UNSPECIFIED: &str = "UNSPECIFIED";
/// Between the zones of a regional disk.
const ZONES: &str = "__";

/// The driver that took the place of a plugin.
pub fn driver_of(plugin: &str) -> Option<&'static str> {
    DRIVERS.iter().find(|(old, _)| *old == plugin).map(|(_, driver)| *driver)
}

/// A volume of such a plugin.
#[derive(Clone, Copy, Debug)]
pub enum InTree<'a> {
    /// AWS EBS: `vol-x` or `aws://zone/vol-x`.
    Ebs(&'a str),
    /// GCE's persistent disk: its name, and the zones in the volume's label.
    GcePd(&'a str, &'a str),
    /// Azure disk: its URI.
    AzureDisk(&'a str),
    /// Azure file.
    AzureFile {
        /// The share.
        share: &'a str,
        /// The Secret with the account.
        secret: &'a str,
        /// The resource group, "" if none is given.
        group: &'a str,
    },
    /// OpenStack's Cinder: the volume's id.
    Cinder(&'a str),
    /// vSphere: the path.
    Vsphere(&'a str),
    /// Portworx: the volume's id.
    Portworx(&'a str),
}

impl InTree<'_> {
    /// Driver and handle; none if the volume cannot be told by them.
    pub fn csi(self) -> Option<(&'static str, String)> {
        Some(match self {
            Self::Ebs(id) => (EBS, ebs(id)?),
            Self::GcePd(name, zones) => (GCE_PD, gce(name, zones)?),
            Self::AzureDisk(uri) => (AZURE_DISK, uri.to_owned()),
            Self::AzureFile { share, secret, group } => {
                let account = secret.strip_prefix("azure-storage-account-").and_then(|s| s.strip_suffix("-secret"));
                let account = account.filter(|a| !a.is_empty()).unwrap_or(secret);
                (AZURE_FILE, format!("{group}#{account}#{share}#"))
            }
            Self::Cinder(id) => (CINDER, id.to_owned()),
            Self::Vsphere(path) => (VSPHERE, path.to_owned()),
            Self::Portworx(id) => (PORTWORX, id.to_owned()),
        })
    }
}

fn ebs(id: &str) -> Option<String> {
    let Some(rest) = id.strip_prefix("aws://") else { return Some(id.to_owned()) };
    let (_, name) = rest.split_once('/')?;
    let name = name.trim_matches('/');
    (name.starts_with("vol-") && !name.contains('/')).then(|| name.to_owned())
}

fn gce(name: &str, zones: &str) -> Option<String> {
    let place = match zones.split(ZONES).collect::<Vec<_>>().as_slice() {
        [""] | [] => format!("zones/{UNSPECIFIED}"),
        [zone] => format!("zones/{zone}"),
        several => {
            // A zone is LOCALE-REGION-ZONE; all must be of one region.
            let region = |zone: &str| {
                let (region, _) = zone.rsplit_once('-')?;
                (zone.split('-').count() == 3).then(|| region.to_owned())
            };
            let first = region(several.first()?)?;
            if !several.iter().all(|zone| region(zone).as_deref() == Some(&first)) {
                return None;
            }
            format!("regions/{first}")
        }
    };
    Some(format!("projects/{UNSPECIFIED}/{place}/disks/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_have_the_handles_of_their_drivers() {
        let file = |secret, group| InTree::AzureFile { share: "s", secret, group };
        for (volume, expected) in [
            (InTree::Ebs("vol-1"), Some((EBS, "vol-1"))),
            (InTree::Ebs("aws://us-east-1a/vol-1"), Some((EBS, "vol-1"))),
            (InTree::Ebs("aws:///vol-1"), Some((EBS, "vol-1"))),
            (InTree::Ebs("aws://us-east-1a/disk"), None),
            (InTree::Ebs("aws://"), None),
            (InTree::GcePd("d", ""), Some((GCE_PD, "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d"))),
            (InTree::GcePd("d", "us-east1-a"), Some((GCE_PD, "projects/UNSPECIFIED/zones/us-east1-a/disks/d"))),
            (
                InTree::GcePd("d", "us-east1-a__us-east1-b"),
                Some((GCE_PD, "projects/UNSPECIFIED/regions/us-east1/disks/d")),
            ),
            (InTree::GcePd("d", "us-east1-a__us-west1-b"), None),
            (InTree::GcePd("d", "a__b"), None),
            (InTree::AzureDisk("/subscriptions/x"), Some((AZURE_DISK, "/subscriptions/x"))),
            (file("azure-storage-account-a-secret", ""), Some((AZURE_FILE, "#a#s#"))),
            (file("mine", "g"), Some((AZURE_FILE, "g#mine#s#"))),
            (InTree::Cinder("id"), Some((CINDER, "id"))),
            (InTree::Vsphere("[d] x.vmdk"), Some((VSPHERE, "[d] x.vmdk"))),
            (InTree::Portworx("id"), Some((PORTWORX, "id"))),
        ] {
            assert_eq!(volume.csi(), expected.map(|(d, h)| (d, h.to_owned())), "{volume:?}");
        }
        assert_eq!(driver_of("kubernetes.io/gce-pd"), Some(GCE_PD));
        assert_eq!(driver_of("kubernetes.io/nfs"), None);
    }
}

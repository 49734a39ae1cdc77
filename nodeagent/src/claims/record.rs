//! What is written down of a pod's claims, one file for each in the pod's directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Ready;
use crate::spec::SpecError;

/// The directory of a pod's records.
const DIRECTORY: &str = "claims";

/// A device that a driver made ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// The requests of the claim that it is for; none stands for all.
    pub requests: Vec<String>,
    /// What runtimes know it by.
    pub ids: Vec<String>,
}

impl Device {
    /// Whether it is for a request; alternatives of one are written `request/alternative`.
    pub fn serves(&self, request: &str) -> bool {
        let base = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
        self.requests.is_empty() || self.requests.iter().any(|own| own == request || base(own) == request)
    }
}

/// A claim of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The claim's namespace, name and uid.
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// What the pod calls it.
    pub own_names: Vec<String>,
    /// The drivers with what they made ready; `None` until they have.
    pub drivers: BTreeMap<String, Option<Vec<Device>>>,
}

/// The claims of one pod by its own names, if all of them are ready.
pub fn ready(records: Vec<Record>) -> Option<Ready> {
    let mut ready = Ready::new();
    for record in records {
        let devices = record.drivers.into_values().collect::<Option<Vec<_>>>()?.concat();
        for own in record.own_names {
            ready.insert(own, devices.clone());
        }
    }
    Some(ready)
}

/// The records of one pod.
pub fn of_pod(pods: &Path, pod: &str) -> Vec<Record> {
    let entries = std::fs::read_dir(pods.join(pod).join(DIRECTORY)).into_iter().flatten().flatten();
    let records = entries.map(|e| e.path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
    let read = |path: PathBuf| match serde_json::from_slice(&std::fs::read(&path).ok()?) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the record of a claim cannot be read");
            None
        }
    };
    records.filter_map(read).collect()
}

/// Whether another pod of the node has the claim.
pub fn others_have(pods: &Path, pod: &str, claim: &str) -> bool {
    let others = std::fs::read_dir(pods).into_iter().flatten().flatten().filter(|e| e.file_name() != pod);
    others.map(|e| path(pods, &e.file_name().to_string_lossy(), claim)).any(|path| path.exists())
}

fn path(pods: &Path, pod: &str, claim: &str) -> PathBuf {
    pods.join(pod).join(DIRECTORY).join(format!("{claim}.json"))
}

impl Record {
    /// Writes it, whole or not at all.
    pub fn write(&self, pods: &Path, pod: &str) -> Result<(), SpecError> {
        let path = path(pods, pod, &self.uid);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let part = path.with_extension("part");
        std::fs::write(&part, serde_json::to_vec(self).map_err(|e| SpecError::new(e.to_string()))?)?;
        Ok(std::fs::rename(&part, path)?)
    }

    /// Removes it.
    pub fn remove(&self, pods: &Path, pod: &str) -> Result<(), SpecError> {
        match std::fs::remove_file(path(pods, pod, &self.uid)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_kept_until_they_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let pods = dir.path();
        let device = Device { requests: vec!["r".into()], ids: vec!["v/c=1".into()] };
        let mut record = Record { uid: "1".into(), own_names: vec!["a".into(), "b".into()], ..Record::default() };
        record.drivers.insert("d".into(), None);
        record.write(pods, "p").unwrap();
        assert_eq!(ready(of_pod(pods, "p")), None);
        record.drivers.insert("d".into(), Some(vec![device.clone()]));
        record.write(pods, "p").unwrap();
        assert_eq!(of_pod(pods, "p"), [record.clone()]);
        let known = ready(of_pod(pods, "p")).unwrap();
        assert_eq!((&known["a"], &known["b"]), (&vec![device.clone()], &vec![device]));
        assert!(!others_have(pods, "p", "1"));
        record.write(pods, "q").unwrap();
        assert!(others_have(pods, "p", "1") && !others_have(pods, "p", "2"));
        record.remove(pods, "q").unwrap();
        record.remove(pods, "q").unwrap();
        assert!(!others_have(pods, "p", "1"));
        std::fs::write(pods.join("p/claims/bad.json"), "no json").unwrap();
        assert_eq!(of_pod(pods, "p").len(), 1);
    }
}

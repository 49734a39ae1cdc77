//! Ids of the node that pods with a user namespace of their own get: a range each, kept in a file of the pod's directory as
//! kubelets keep it, so that a pod has the same range whoever asks and whenever.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

/// The file in a pod's directory.
const FILE: &str = "userns";
/// Ids of one pod. The first range is left to the node's own users.
pub const LENGTH: u32 = 65_536;
/// Pods that can have a range: ids are 32 bits long, and the highest are special.
const RANGES: u32 = 65_000;

fn read(pod_dir: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(pod_dir.join(FILE)).ok()?;
    let value: Value = serde_json::from_str(&text).ok()?;
    u32::try_from(value["uidMappings"][0]["hostId"].as_u64()?).ok()
}

/// The first id of a pod's range; it gets one if it has none. Calls must come one after another.
pub fn range(pods: &Path, uid: &str) -> io::Result<u32> {
    let dir = pods.join(uid);
    if let Some(first) = read(&dir) {
        return Ok(first);
    }
    let others = std::fs::read_dir(pods).into_iter().flatten().flatten();
    let taken: BTreeSet<u32> = others.filter_map(|entry| read(&entry.path())).collect();
    let mut free = (1..RANGES).map(|n| n * LENGTH).filter(|first| !taken.contains(first));
    let first = free.next().ok_or_else(|| io::Error::other("all ranges of ids are taken"))?;
    let mapping = json!([{"hostId": first, "containerId": 0, "length": LENGTH}]);
    std::fs::create_dir_all(&dir)?;
    let new = dir.join(".userns.new");
    std::fs::write(&new, json!({"uidMappings": mapping, "gidMappings": mapping}).to_string())?;
    std::fs::rename(new, dir.join(FILE))?;
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pod_has_its_own_range() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(range(dir.path(), "a").unwrap(), LENGTH);
        assert_eq!(range(dir.path(), "b").unwrap(), 2 * LENGTH);
        assert_eq!(range(dir.path(), "a").unwrap(), LENGTH);
        std::fs::remove_dir_all(dir.path().join("a")).unwrap();
        assert_eq!(range(dir.path(), "c").unwrap(), LENGTH);
    }
}

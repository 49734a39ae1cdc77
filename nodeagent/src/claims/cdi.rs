//! Descriptions of devices (Container Device Interface): what a container needs to use a device that is known by a name such
//! as `vendor.com/class=name`. Runtimes that know them are given the names; for the others the agent reads the descriptions
//! and adds what they say by itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use keelson_proto::cri;
use serde::Deserialize;

use crate::cri::Devices;

/// The largest description that is read, bytes.
const MAX_SIZE: u64 = 1 << 20;
/// Descriptions of a directory at most.
const MAX_FILES: usize = 1000;

/// A file with descriptions of devices of one vendor and class.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Description {
    kind: String,
    container_edits: Edits,
    devices: Vec<Described>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Described {
    name: String,
    container_edits: Edits,
}

/// What is to be changed in a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Mount>,
    #[serde(rename = "additionalGids")]
    groups: Vec<u32>,
    hooks: Vec<serde::de::IgnoredAny>,
    intel_rdt: Option<serde::de::IgnoredAny>,
    net_devices: Vec<serde::de::IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Node {
    path: String,
    host_path: String,
    permissions: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mount {
    host_path: String,
    container_path: String,
    options: Vec<String>,
}

fn read(path: &Path) -> Result<Description, String> {
    use std::io::Read;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(MAX_SIZE).read_to_string(&mut text).map_err(|e| e.to_string())?;
    if path.extension().is_some_and(|e| e == "json") {
        serde_json::from_str(&text).map_err(|e| e.to_string())
    } else {
        serde_saphyr::from_str(&text).map_err(|e| e.to_string())
    }
}

/// The description of a kind of devices that has this one; of several the one of the last directory counts.
fn find(dirs: &[PathBuf], kind: &str, name: &str) -> Result<Description, String> {
    let mut broken = None;
    for dir in dirs.iter().rev() {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().take(MAX_FILES);
        let known = |path: &PathBuf| path.extension().is_some_and(|e| e == "json" || e == "yaml" || e == "yml");
        let mut paths: Vec<PathBuf> = entries.map(|e| e.path()).filter(known).collect();
        paths.sort();
        for path in paths {
            match read(&path) {
                Ok(found) if found.kind == kind && found.devices.iter().any(|d| d.name == name) => return Ok(found),
                Ok(_) => {}
                Err(why) => broken = Some(format!("; {} cannot be read: {why}", path.display())),
            }
        }
    }
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    Err(format!("unresolvable CDI device {kind}={name}: not in {}{}", dirs.join(", "), broken.unwrap_or_default()))
}

/// What only a runtime can do.
fn beyond(edits: &Edits) -> Option<&'static str> {
    if !edits.hooks.is_empty() {
        Some("hooks")
    } else if edits.intel_rdt.is_some() {
        Some("intelRdt")
    } else if !edits.net_devices.is_empty() {
        Some("netDevices")
    } else {
        None
    }
}

fn edit(config: &mut cri::ContainerConfig, edits: Edits) {
    for variable in &edits.env {
        let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
        config.envs.retain(|known| known.key != key);
        config.envs.push(cri::KeyValue { key: key.into(), value: value.into() });
    }
    config.devices.extend(edits.device_nodes.into_iter().map(|node| cri::Device {
        host_path: if node.host_path.is_empty() { node.path.clone() } else { node.host_path },
        container_path: node.path,
        permissions: if node.permissions.is_empty() { "rwm".into() } else { node.permissions },
    }));
    config.mounts.extend(edits.mounts.into_iter().map(|mount| cri::Mount {
        container_path: mount.container_path,
        host_path: mount.host_path,
        readonly: mount.options.iter().any(|option| option == "ro"),
        ..cri::Mount::default()
    }));
    if let Some(context) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        context.supplemental_groups.extend(edits.groups.into_iter().map(i64::from));
    }
}

/// Adds the devices that the configuration names, unless the runtime does.
pub fn inject(config: &mut cri::ContainerConfig, runtime: Devices, dirs: &[PathBuf]) -> Result<(), String> {
    if config.cdi_devices.is_empty() || runtime == Devices::Taken {
        return Ok(());
    }
    // What all devices of one description need is added once.
    let mut found: BTreeMap<String, (Edits, Vec<Edits>)> = BTreeMap::new();
    for device in &config.cdi_devices {
        let id = &device.name;
        let Some((kind, name)) = id.split_once('=') else {
            return Err(format!("{id:?} is not the name of a CDI device, such as vendor.com/class=name"));
        };
        let mut description = find(dirs, kind, name)?;
        let at = description.devices.iter().position(|d| d.name == name).unwrap_or_default();
        let own = description.devices.swap_remove(at).container_edits;
        if let Some(what) = beyond(&description.container_edits).or_else(|| beyond(&own)) {
            if runtime == Devices::Perhaps {
                return Ok(());
            }
            return Err(format!(
                "CDI device {id} needs {what}, which this container runtime does not support: containerd 1.7 does"
            ));
        }
        let entry = found.entry(kind.to_owned()).or_insert_with(|| (description.container_edits, Vec::new()));
        entry.1.push(own);
    }
    config.cdi_devices.clear();
    for (shared, own) in found.into_values() {
        own.into_iter().for_each(|edits| edit(config, edits));
        edit(config, shared);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(ids: &[&str]) -> cri::ContainerConfig {
        let linux = cri::LinuxContainerConfig { security_context: Some(Default::default()), ..Default::default() };
        cri::ContainerConfig {
            cdi_devices: ids.iter().map(|id| cri::CdiDevice { name: (*id).to_owned() }).collect(),
            envs: vec![cri::KeyValue { key: "A".into(), value: "own".into() }],
            linux: Some(linux),
            ..Default::default()
        }
    }

    fn dirs() -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("etc"), dir.path().join("run"));
        std::fs::create_dir_all(&first).unwrap();
        std::fs::create_dir_all(&second).unwrap();
        let edits = json!({"env": ["A=1", "B=2"], "deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null"}],
            "mounts": [{"hostPath": "/h", "containerPath": "/c", "options": ["ro", "bind"]}], "additionalGids": [5]});
        let spec = json!({"cdiVersion": "0.6.0", "kind": "v.com/c", "containerEdits": {"env": ["SHARED=1"]},
            "devices": [{"name": "one", "containerEdits": edits}, {"name": "two", "containerEdits": {"env": ["TWO=1"]}}]});
        std::fs::write(first.join("v.json"), spec.to_string()).unwrap();
        std::fs::write(first.join("broken.json"), "{").unwrap();
        std::fs::write(
            second.join("v.yaml"),
            "cdiVersion: 0.6.0\nkind: v.com/c\ndevices:\n- name: two\n  containerEdits:\n    env: [TWO=later]\n\
             - name: hooked\n  containerEdits:\n    hooks: [{hookName: createContainer, path: /bin/true}]\n",
        )
        .unwrap();
        (dir, vec![first, second])
    }

    #[test]
    fn devices_are_added_as_described() {
        let (_dir, dirs) = dirs();
        let mut got = config(&["v.com/c=one", "v.com/c=two"]);
        inject(&mut got, Devices::Unknown, &dirs).unwrap();
        let mut variables: Vec<_> = got.envs.iter().map(|v| format!("{}={}", v.key, v.value)).collect();
        variables.sort();
        assert_eq!(variables, ["A=1", "B=2", "SHARED=1", "TWO=later"]);
        assert_eq!((got.devices[0].host_path.as_str(), got.devices[0].permissions.as_str()), ("/dev/null", "rwm"));
        assert!(got.mounts[0].readonly && got.mounts[0].host_path == "/h" && got.cdi_devices.is_empty());
        assert_eq!(got.linux.unwrap().security_context.unwrap().supplemental_groups, [5]);
    }

    #[test]
    fn what_cannot_be_added() {
        let (_dir, dirs) = dirs();
        for (id, runtime, why) in [
            ("v.com/c=one", Devices::Taken, None),
            ("v.com/c=hooked", Devices::Perhaps, None),
            ("v.com/c=hooked", Devices::Unknown, Some("needs hooks")),
            ("v.com/c=none", Devices::Unknown, Some("unresolvable CDI device v.com/c=none")),
            ("other", Devices::Unknown, Some("is not the name of a CDI device")),
        ] {
            let mut got = config(&[id]);
            let result = inject(&mut got, runtime, &dirs);
            match why {
                Some(why) => assert!(result.as_ref().unwrap_err().contains(why), "{result:?}"),
                // The runtime does it.
                None => assert!(result.is_ok() && got.cdi_devices.len() == 1, "{id} {result:?}"),
            }
        }
    }
}

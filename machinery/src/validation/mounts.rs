//! Where a container sees its volumes.

use serde_json::Value;

use super::check::{Problems, or_empty};
use super::{has, items, text};

/// Volumes that are mounted. What is wrong with a path or with a mode of mounting is told of by the path of the list.
pub fn mounts(container: &Value, at: &str, volumes: &[(&str, &Value)], p: &mut Problems) {
    let path = format!("{at}.volumeMounts");
    let mut seen: Vec<&str> = Vec::new();
    for (index, mount) in items(&container["volumeMounts"]).enumerate() {
        let at = format!("{path}[{index}]");
        p.present(mount, "name", &at);
        if !volumes.iter().any(|(name, _)| *name == text(mount, "name")) {
            p.not_found(format!("{at}.name"), &or_empty(&mount["name"]));
        }
        let mount_path = text(mount, "mountPath");
        p.present(mount, "mountPath", &at);
        if seen.contains(&mount_path) {
            p.invalid(format!("{at}.mountPath"), &or_empty(&mount["mountPath"]), "must be unique");
        }
        seen.push(mount_path);
        let devices = || items(&container["volumeDevices"]);
        if devices().any(|device| text(device, "name") == text(mount, "name")) {
            p.invalid(format!("{at}.name"), &or_empty(&mount["name"]), "must not already exist in volumeDevices");
        }
        if devices().any(|device| text(device, "devicePath") == mount_path) {
            let why = "must not already exist as a path in volumeDevices";
            p.invalid(format!("{at}.mountPath"), &or_empty(&mount["mountPath"]), why);
        }
        if !text(mount, "subPath").is_empty() {
            p.local_path(&format!("{path}.subPath"), &mount["subPath"]);
        }
        if !text(mount, "subPathExpr").is_empty() {
            if !text(mount, "subPath").is_empty() {
                let why = "subPathExpr and subPath are mutually exclusive";
                p.invalid(format!("{at}.subPathExpr"), &mount["subPathExpr"], why);
            }
            p.local_path(&format!("{path}.subPathExpr"), &mount["subPathExpr"]);
        }
        propagation(container, mount, &path, p);
    }
}

fn propagation(container: &Value, mount: &Value, path: &str, p: &mut Problems) {
    let field = format!("{path}.mountPropagation");
    p.one_of_if_set(&field, &mount["mountPropagation"], &["Bidirectional", "HostToContainer", "None"]);
    if mount["mountPropagation"] == "Bidirectional" && container["securityContext"]["privileged"] != true {
        p.forbidden(field, "Bidirectional mount propagation is available only to privileged containers");
    }
    let field = format!("{path}.recursiveReadOnly");
    match mount["recursiveReadOnly"].as_str() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if mount["readOnly"] != true {
                p.forbidden(&field, "may only be specified when readOnly is true");
            }
            if !matches!(mount["mountPropagation"].as_str(), None | Some("None")) {
                p.forbidden(&field, "may only be specified when mountPropagation is None or not specified");
            }
        }
        Some(_) => {
            let modes = ["Disabled", "Enabled", "IfPossible"];
            p.not_supported(field, &mount["recursiveReadOnly"], &modes);
        }
    }
}

/// Volumes that are seen as devices.
pub fn devices(container: &Value, at: &str, volumes: &[(&str, &Value)], p: &mut Problems) {
    let (mut paths, mut seen): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for (index, device) in items(&container["volumeDevices"]).enumerate() {
        let at = format!("{at}.volumeDevices[{index}]");
        let (name, path) = (text(device, "name"), text(device, "devicePath"));
        let (name_field, path_field) = (format!("{at}.name"), format!("{at}.devicePath"));
        p.present(device, "name", &at);
        if seen.contains(&name) {
            p.invalid(&name_field, &device["name"], "must be unique");
        }
        match volumes.iter().find(|(volume, _)| *volume == name) {
            Some((_, volume)) if has(volume, "persistentVolumeClaim") || has(volume, "ephemeral") => {}
            Some(_) => {
                let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                p.invalid(&name_field, &device["name"], why);
            }
            None => p.not_found(&name_field, &or_empty(&device["name"])),
        }
        p.present(device, "devicePath", &at);
        if paths.contains(&path) {
            p.invalid(&path_field, &or_empty(&device["devicePath"]), "must be unique");
        }
        if path.split('/').any(|part| part == "..") {
            p.invalid(&path_field, &device["devicePath"], "can not contain backsteps ('..')");
        } else {
            paths.push(path);
        }
        if items(&container["volumeMounts"]).any(|mount| text(mount, "name") == name) {
            p.invalid(&name_field, &or_empty(&device["name"]), "must not already exist in volumeMounts");
        }
        if items(&container["volumeMounts"]).any(|mount| text(mount, "mountPath") == path) {
            let why = "must not already exist as a path in volumeMounts";
            p.invalid(&path_field, &or_empty(&device["devicePath"]), why);
        }
        if !name.is_empty() {
            seen.push(name);
        }
    }
}

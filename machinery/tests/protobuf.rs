//! Protobuf against the golden objects of Kubernetes: both directions give the recorded bytes. They are in a directory named
//! by `KEELSON_ROUNDTRIP` or in an archive beside the checkout; without either the test says that it skips.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use keelson_machinery::protobuf::{self, Error};
use keelson_machinery::resources::RESOURCES;
use serde_json::Value;

const ARCHIVE: &str = "../../shared/reference/data/roundtrip.tar.gz";

fn golden() -> Option<PathBuf> {
    if let Ok(directory) = env::var("KEELSON_ROUNDTRIP") {
        return Some(directory.into());
    }
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(ARCHIVE);
    if !archive.exists() {
        eprintln!("skipped: no golden objects (neither KEELSON_ROUNDTRIP nor {})", archive.display());
        return None;
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let unpacked = Command::new("tar").arg("xzf").arg(&archive).arg("-C").arg(target).status().expect("tar runs");
    assert!(unpacked.success());
    Some(target.join("roundtrip"))
}

#[test]
fn golden_objects_round_trip() {
    let Some(directory) = golden() else { return };
    let (mut same, mut unknown, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    for entry in fs::read_dir(directory).expect("the directory is readable") {
        let file = entry.expect("an entry").path();
        if file.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let json: Value = serde_json::from_slice(&fs::read(&file).expect("a file")).expect("JSON");
        let bytes = fs::read(file.with_extension("pb")).expect("every golden object has both forms");
        match compare(&json, &bytes) {
            Ok(()) => same.push(name),
            Err(why) if why == Error::UnknownKind.to_string() => unknown.push(name),
            Err(why) => wrong.push(format!("{name}: {why}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), same.len() + wrong.len(), wrong.join("\n"));
    assert!(same.len() > 90, "only {} round-tripped; unknown: {unknown:?}", same.len());
    for row in RESOURCES {
        let group = if row.group.is_empty() { "core" } else { row.group };
        let name = format!("{group}.{}.{}", row.version, row.kind);
        assert!(!unknown.contains(&name), "{name} is served but has no message");
    }
}

fn compare(json: &Value, bytes: &[u8]) -> Result<(), String> {
    let encoded = protobuf::encode(json).map_err(|e| e.to_string())?;
    if encoded != bytes {
        let at = encoded.iter().zip(bytes).position(|(a, b)| a != b).unwrap_or(encoded.len().min(bytes.len()));
        let around = |b: &[u8]| String::from_utf8_lossy(&b[at.saturating_sub(30)..(at + 30).min(b.len())]).into_owned();
        return Err(format!("encoded differs at {at}: {:?} instead of {:?}", around(&encoded), around(bytes)));
    }
    let decoded = protobuf::decode(bytes, ("", "")).map_err(|e| e.to_string())?;
    if decoded != *json {
        return Err(format!("decoded differs at {}", difference(&decoded, json, "")));
    }
    Ok(())
}

fn difference(got: &Value, expected: &Value, path: &str) -> String {
    match (got, expected) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys());
            let key = keys.into_iter().find(|k| a.get(*k) != b.get(*k)).cloned().unwrap_or_default();
            difference(&got[&key], &expected[&key], &format!("{path}.{key}"))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let index = (0..a.len()).find(|i| a[*i] != b[*i]).unwrap_or(0);
            difference(&a[index], &b[index], &format!("{path}[{index}]"))
        }
        _ => format!("{path}: {got} instead of {expected}"),
    }
}

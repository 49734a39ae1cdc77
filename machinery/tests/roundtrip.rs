//! Conforms the golden objects of Kubernetes (every field of every kind set), when a directory of them is named by
//! `KEELSON_ROUNDTRIP`: nothing may be unknown or refused.

use std::{env, fs, path::Path};

use keelson_machinery::conform::conform;
use keelson_machinery::resources::RESOURCES;

#[test]
fn golden_objects_conform() {
    let Ok(directory) = env::var("KEELSON_ROUNDTRIP") else {
        eprintln!("skipped: KEELSON_ROUNDTRIP names no directory of golden objects");
        return;
    };
    let mut seen = 0;
    for row in RESOURCES {
        let group = if row.group.is_empty() { "core" } else { row.group };
        let file = Path::new(&directory).join(format!("{group}.{}.{}.json", row.version, row.kind));
        let Ok(text) = fs::read(&file) else { continue };
        let golden: serde_json::Value = serde_json::from_slice(&text).expect("golden objects are JSON");
        let mut object = golden.clone();
        let unknown = conform(row, &mut object).unwrap_or_else(|why| panic!("{}: {why}", row.qualified()));
        assert!(unknown.is_empty(), "{}: {unknown:?}", row.qualified());
        let mut again = object.clone();
        assert_eq!(conform(row, &mut again), Ok(Vec::new()), "{}", row.qualified());
        assert_eq!(again, object, "{} is conformed once", row.qualified());
        seen += 1;
    }
    assert!(seen > 50, "only {seen} golden objects were found");
}

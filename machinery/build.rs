//! Derives the schema table from the sources of the `k8s-openapi` crate (per type its fields and their types) and of
//! `k8s-pb` (how they are merged; for protobuf field numbers see `build/numbers.rs`). The sources are generated and
//! regular, so they are read line by line; what is not understood fails the build.
//!
//! Output, one item per line: `T <type> [atomic]`, `K <group> <version> <kind>` (of the type before), and
//! `F <json name> <type expression> <list type> <list keys> <patch key> [atomic] [retainKeys]` (`!` before the type of a
//! required field; `-` for none); the expressions are explained in `src/schema.rs`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

#[path = "build/docs.rs"]
mod docs;
#[path = "build/markers.rs"]
mod markers;
#[path = "build/newer.rs"]
mod newer;
#[path = "build/numbers.rs"]
mod numbers;

/// Directory in the crate: the Kubernetes version that is served.
const VERSION_DIR: &str = "src/v1_36";

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=Cargo.toml");
    let packages = packages()?;
    let root = source_of(&packages, "k8s-openapi")?.join(VERSION_DIR);
    let mut markers = markers::Markers::default();
    let messages = source_of(&packages, "k8s-pb")?.join("src");
    println!("cargo::rerun-if-changed={}", messages.display());
    markers.collect(&messages, "")?;
    println!("cargo::rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    files.sort();
    let (mut out, mut texts) = (String::new(), String::new());
    for file in &files {
        let relative = file.strip_prefix(&root)?;
        let module: Vec<&str> =
            relative.parent().into_iter().flat_map(Path::iter).filter_map(|part| part.to_str()).collect();
        describe(&module.join("."), &fs::read_to_string(file)?, &markers, &mut out, &mut texts)
            .map_err(|why| format!("{}: {why}", file.display()))?;
    }
    let directory = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(directory.join("numbers.txt"), numbers::derive(&out, &messages)?)?;
    fs::write(directory.join("schema.txt"), out)?;
    docs::describe_messages(&messages, "", &mut texts)?;
    fs::write(directory.join("docs.bin"), docs::compress(&texts)?)?;
    Ok(())
}

/// The workspace's dependencies, optional ones included.
fn packages() -> Outcome<serde_json::Value> {
    let cargo = env::var("CARGO")?;
    let target = env::var("TARGET")?;
    // All features: `k8s-pb` is an optional dependency, whose sources are read but which is never compiled.
    let arguments = ["metadata", "--format-version", "1", "--locked", "--all-features", "--filter-platform", &target];
    let output = Command::new(cargo).args(arguments).current_dir(env::var("CARGO_MANIFEST_DIR")?).output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Where cargo keeps the sources of a dependency of the workspace.
fn source_of(metadata: &serde_json::Value, package: &str) -> Outcome<PathBuf> {
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let manifest = packages.iter().find(|p| p["name"] == package).and_then(|p| p["manifest_path"].as_str());
    let manifest = Path::new(manifest.ok_or_else(|| format!("{package} is not a dependency of the workspace"))?);
    Ok(manifest.parent().ok_or("a manifest without a directory")?.to_owned())
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Outcome<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") && path.file_name().is_some_and(|n| n != "mod.rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// One field: its name in Rust, its name in JSON, its type.
struct Field<'a> {
    rust: &'a str,
    json: Option<&'a str>,
    kind: String,
    /// Path of the type, if it is taken as anything.
    any: Option<String>,
    required: bool,
}

/// Writes what one source file says of its type.
fn describe(
    module: &str,
    source: &str,
    markers: &markers::Markers,
    out: &mut String,
    texts: &mut String,
) -> Outcome<()> {
    let lines: Vec<&str> = source.lines().collect();
    let Some(start) = lines.iter().position(|l| l.starts_with("pub struct ") && l.ends_with(" {") && !l.contains('<'))
    else {
        // Enums and wrappers of one value are known by name to `expression`.
        let declared = |l: &&str| l.starts_with("pub enum ") || l.starts_with("pub struct ") && l.contains('(');
        if let Some(start) = lines.iter().position(declared) {
            let name = lines[start].split(['(', ' ', '{']).nth(2).unwrap_or_default();
            docs::describe(&format!("{module}.{name}"), &lines[..=start], start, &[], texts)?;
        }
        return Ok(());
    };
    let name = lines[start].trim_start_matches("pub struct ").trim_end_matches(" {");
    let mut fields = Vec::new();
    for line in lines[start + 1..].iter().take_while(|l| **l != "}") {
        let Some((rust, kind)) = line.trim().strip_prefix("pub ").and_then(|f| f.split_once(": ")) else { continue };
        let required = !kind.starts_with("Option<");
        let source = kind.trim_end_matches(',');
        let kind = expression(source)?;
        let any = kind.ends_with("any").then(|| source.rsplit("crate::").next().unwrap_or_default());
        let any = any.map(|path| path.trim_end_matches('>').replace("::", "."));
        fields.push(Field { rust, json: None, kind, any, required });
    }
    for line in lines.iter().map(|line| line.trim()) {
        if let Some((json, rust)) = line.split_once(" => Field::Key_") {
            let rust = rust.trim_end_matches(',');
            if let Some(field) = fields.iter_mut().find(|f| f.rust == rust) {
                field.json = Some(json.trim_matches('"'));
            }
        }
    }
    let named = |f: &Field<'_>| Some((f.rust.to_owned(), f.json?.to_owned()));
    docs::describe(
        &format!("{module}.{name}"),
        &lines,
        start,
        &fields.iter().filter_map(named).collect::<Vec<_>>(),
        texts,
    )?;
    let kind_path = format!("{module}.{name}");
    writeln!(out, "T {kind_path}{}", if markers.is_atomic(&kind_path) { " atomic" } else { "" })?;
    let constant = |key: &str| {
        let prefix = format!("const {key}: &'static str = \"");
        lines.iter().find_map(|l| l.trim().strip_prefix(prefix.as_str())).map(|v| v.trim_end_matches("\";"))
    };
    if let (Some(group), Some(version), Some(kind)) = (constant("GROUP"), constant("VERSION"), constant("KIND")) {
        writeln!(out, "K {} {version} {kind}", if group.is_empty() { "-" } else { group })?;
    }
    for Field { rust, json, kind, any, required } in fields {
        let json = json.ok_or_else(|| format!("no JSON name for {rust}"))?;
        let mark = if required { "!" } else { "" };
        let marks = markers.field(&kind_path, json);
        let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        let keys = or_none(&marks.keys.join(","));
        // `-` as a merge key merges plain values, which the table writes as `.`.
        let patch = if marks.merge_key == "-" { ".".to_owned() } else { or_none(&marks.merge_key) };
        let atomic = if marks.atomic { " atomic" } else { "" };
        let retain = if marks.retain_keys { " retainKeys" } else { "" };
        let replaced = if marks.replaced { " replaced" } else { "" };
        let any = any.map(|path| format!(" is={path}")).unwrap_or_default();
        writeln!(out, "F {json} {mark}{kind} {} {keys} {patch}{atomic}{retain}{replaced}{any}", or_none(&marks.list))?;
    }
    Ok(())
}

/// A Rust type as an expression of the table.
fn expression(kind: &str) -> Outcome<String> {
    let inner = |prefix: &str| kind.strip_prefix(prefix).and_then(|k| k.strip_suffix('>'));
    if let Some(some) = inner("Option<").or_else(|| inner("std::boxed::Box<")) {
        return expression(some);
    }
    if let Some(item) = inner("std::vec::Vec<") {
        return Ok(format!("[{}", expression(item)?));
    }
    if let Some(value) = inner("std::collections::BTreeMap<std::string::String, ") {
        return Ok(format!("{{{}", expression(value)?));
    }
    Ok(match kind {
        "std::string::String" => "string".into(),
        "i32" => "int32".into(),
        "i64" => "int64".into(),
        "f64" => "float64".into(),
        "bool" => "bool".into(),
        "crate::ByteString" => "bytes".into(),
        "crate::serde_json::Value" => "any".into(),
        _ => {
            let path = kind.strip_prefix("crate::").ok_or_else(|| format!("unknown type {kind}"))?.replace("::", ".");
            match path.rsplit('.').next().unwrap_or_default() {
                "Quantity" => "quantity".into(),
                "IntOrString" => "intorstring".into(),
                "Time" => "time".into(),
                "MicroTime" => "microtime".into(),
                "RawExtension"
                | "FieldsV1"
                | "JSON"
                | "JSONSchemaPropsOrStringArray"
                | "JSONSchemaPropsOrBool"
                | "JSONSchemaPropsOrArray"
                | "CustomResourceSubresourceStatus"
                | "BasicSchedulingPolicy"
                | "StorageVersionSpec"
                | "Patch" => "any".into(),
                _ => path,
            }
        }
    })
}

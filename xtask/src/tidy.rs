//! `cargo xtask tidy`: rules that the compiler does not know: crate arrows, file headers, function lengths.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use syn::spanned::Spanned;
use syn::visit::Visit;

use crate::shell::{self, command, output};

/// Who may depend on whom (all kinds of dependencies except dev). A crate that is not named may depend on none of ours.
const ARROWS: &[(&str, &[&str])] = &[
    ("keelson-raft", &["keelson-store", "keelson-proto", "keelson-pki", "keelson-metrics"]),
    ("keelson-client", &["keelson-machinery", "keelson-pki"]),
    (
        "keelson-apiserver",
        &["keelson-store", "keelson-machinery", "keelson-client", "keelson-pki", "keelson-proto", "keelson-metrics"],
    ),
    ("keelson-controllers", &["keelson-client", "keelson-machinery", "keelson-pki", "keelson-metrics"]),
    ("keelson-scheduler", &["keelson-client", "keelson-machinery", "keelson-metrics"]),
    ("keelson-nodeagent", &["keelson-client", "keelson-machinery", "keelson-proto", "keelson-pki"]),
    ("keelson-kubectl", &["keelson-client", "keelson-machinery", "keelson-pki"]),
    ("xtask", &["keelson-testbed"]),
    ("keelson-chaos", &["keelson-client", "keelson-proto", "keelson-testbed", "keelson-raft", "keelson-store"]),
    ("keelson-sim", &["keelson-chaos", "keelson-raft", "keelson-store", "keelson-proto"]),
    ("keelson-bench", &["keelson-client", "keelson-proto", "keelson-testbed"]),
    (
        "keelson",
        &[
            "keelson-store",
            "keelson-raft",
            "keelson-apiserver",
            "keelson-client",
            "keelson-controllers",
            "keelson-scheduler",
            "keelson-nodeagent",
            "keelson-kubectl",
            "keelson-status",
            "keelson-machinery",
            "keelson-pki",
            "keelson-proto",
            "keelson-chaos",
        ],
    ),
];
/// Crates that stay free of runtimes and HTTP.
const PURE: &[&str] = &["keelson-machinery", "keelson-store"];
/// What those may not name.
const IMPURE: &[&str] = &["tokio", "hyper", "axum", "tonic", "openraft"];
/// Lines that a function may have without being listed.
const MAX_FUNCTION_LINES: usize = 70;
/// Functions that are longer, with their length: the list only shrinks.
const LONG_FUNCTIONS: &str = "xtask/long-functions.txt";

/// Checks everything and prints every finding.
pub fn run() -> Result<()> {
    let metadata: Value =
        serde_json::from_str(&output(&mut command("cargo", &["metadata", "--format-version", "1", "--no-deps"]))?)?;
    let mut findings = arrows(&metadata);
    let files = sources()?;
    findings.extend(headers(&files)?);
    findings.extend(lengths(&files)?);
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    if findings.is_empty() {
        println!("tidy: {} files in order", files.len());
        return Ok(());
    }
    bail!("{} findings", findings.len())
}

fn arrows(metadata: &Value) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let packages: Vec<&Value> = metadata["packages"].as_array().into_iter().flatten().collect();
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            if dependency["kind"] == "dev" {
                continue;
            }
            if ours.contains(to) && !allowed.get(name).is_some_and(|list| list.contains(&to)) {
                findings.push(format!("{name} -> {to} is not an arrow of ARCHITECTURE.md"));
            }
            if PURE.contains(&name) && IMPURE.contains(&to) {
                findings.push(format!("{name} stays free of {to}"));
            }
        }
    }
    findings
}

/// All Rust files that git tracks.
fn sources() -> Result<Vec<PathBuf>> {
    let listed = output(&mut command("git", &["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"]))?;
    Ok(listed.lines().map(PathBuf::from).filter(|p| shell::repository().join(p).exists()).collect())
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(shell::repository().join(file)).with_context(|| file.display().to_string())
}

fn headers(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in files {
        if !read(file)?.starts_with("//! ") {
            findings.push(format!("{}: the first line says the file's subject with `//! `", file.display()));
        }
    }
    Ok(findings)
}

/// Collects the lengths of all functions of a file.
#[derive(Default)]
struct Functions(Vec<(String, usize)>);

impl Functions {
    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let lines = block.span().end().line - signature.span().start().line + 1;
        self.0.push((signature.ident.to_string(), lines));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.add(&function.sig, &function.block);
        syn::visit::visit_item_fn(self, function);
    }
    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add(&function.sig, &function.block);
        syn::visit::visit_impl_item_fn(self, function);
    }
}

fn lengths(files: &[PathBuf]) -> Result<Vec<String>> {
    let listed = fs::read_to_string(shell::repository().join(LONG_FUNCTIONS)).unwrap_or_default();
    let mut allowed: BTreeMap<&str, usize> =
        listed.lines().filter_map(|l| l.rsplit_once(' ').and_then(|(k, n)| Some((k, n.parse().ok()?)))).collect();
    let mut findings = Vec::new();
    for file in files {
        let parsed = syn::parse_file(&read(file)?).with_context(|| file.display().to_string())?;
        let mut functions = Functions::default();
        functions.visit_file(&parsed);
        for (name, lines) in functions.0.into_iter().filter(|(_, lines)| *lines > MAX_FUNCTION_LINES) {
            let key = format!("{}::{name}", file.display());
            if allowed.remove(key.as_str()).is_none_or(|limit| lines > limit) {
                findings.push(format!(
                    "{key} has {lines} lines: split it ({MAX_FUNCTION_LINES}, or as {LONG_FUNCTIONS} says)"
                ));
            }
        }
    }
    findings.extend(allowed.keys().map(|key| format!("{LONG_FUNCTIONS}: {key} is short now: take it out")));
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn a_forbidden_arrow_is_found() {
        let metadata = json!({"packages": [
            {"name": "keelson-store", "dependencies": [{"name": "keelson-raft", "kind": null}, {"name": "tokio", "kind": null}]},
            {"name": "keelson-raft", "dependencies": [{"name": "keelson-store", "kind": null}]},
        ]});
        assert_eq!(super::arrows(&metadata).len(), 2);
    }
}

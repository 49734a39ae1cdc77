//! Kustomizations: objects from files, changed as `kustomization.yaml` says.

pub use generate::digest;

mod fields;
mod generate;
mod patches;
mod references;
mod replace;
mod transform;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::value::Read;

/// Kustomizations in kustomizations, at most.
const DEEPEST: usize = 32;
/// Names of the file.
const NAMES: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];
/// Fields that are understood.
const KNOWN: [&str; 24] = [
    "apiVersion",
    "kind",
    "metadata",
    "resources",
    "bases",
    "components",
    "patches",
    "patchesStrategicMerge",
    "patchesJson6902",
    "namePrefix",
    "nameSuffix",
    "namespace",
    "labels",
    "commonLabels",
    "commonAnnotations",
    "images",
    "replicas",
    "configMapGenerator",
    "secretGenerator",
    "generatorOptions",
    "replacements",
    "sortOptions",
    "buildMetadata",
    "openapi",
];

/// An object on its way.
#[derive(Clone, Debug)]
struct Resource {
    object: Value,
    /// The names and namespaces that it has had, the first first: others refer to it by one of them.
    before: Vec<(String, String)>,
    /// Whether its name gets a digest of its content.
    hashed: bool,
}

impl Resource {
    fn new(object: Value) -> Self {
        Self { object, before: Vec::new(), hashed: false }
    }

    fn kind(&self) -> &str {
        self.object["kind"].text()
    }

    fn group(&self) -> &str {
        self.object["apiVersion"].text().split_once('/').map_or("", |(group, _)| group)
    }

    fn name(&self) -> &str {
        self.object["metadata"]["name"].text()
    }

    fn namespace(&self) -> &str {
        self.object["metadata"]["namespace"].text()
    }

    /// Keeps the name that it has now, before it gets another.
    fn remember(&mut self) {
        let now = (self.name().to_owned(), self.namespace().to_owned());
        if !self.before.contains(&now) {
            self.before.push(now);
        }
    }

    /// Whether it has or had this name.
    fn was_called(&self, name: &str) -> bool {
        self.name() == name || self.before.iter().any(|(had, _)| had == name)
    }
}

/// The objects that the kustomization in a directory comes to.
pub fn build(directory: &str) -> Outcome<Vec<Value>> {
    let path = Path::new(directory);
    if directory.contains("://") {
        return Err(Failure::new(format!("kustomizations are read from directories here, not from {directory}")));
    }
    if !path.exists() {
        return Err(Failure::new(format!(
            "must build at directory: not a valid directory: evalsymlink failure on '{directory}' : lstat {}: no such file \
             or directory",
            std::path::absolute(path).unwrap_or_default().display()
        )));
    }
    let mut resources = Vec::new();
    let sort = accumulate(path, &mut resources, 0)?;
    generate::add_digests(&mut resources);
    references::fix(&mut resources);
    if sort {
        resources.sort_by_cached_key(transform::order);
    }
    Ok(resources.into_iter().map(|r| r.object).collect())
}

/// The objects as documents.
pub fn text(objects: &[Value]) -> Outcome<String> {
    let documents = objects.iter().map(keelson_machinery::yaml::write).collect::<Result<Vec<_>, _>>()?;
    Ok(documents.join("---\n"))
}

fn file_of(directory: &Path) -> Outcome<PathBuf> {
    let found: Vec<PathBuf> = NAMES.iter().map(|name| directory.join(name)).filter(|f| f.is_file()).collect();
    let absolute = || std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Failure::new(format!(
            "unable to find one of 'kustomization.yaml', 'kustomization.yml' or 'Kustomization' in directory '{}'",
            absolute().display()
        ))),
        _ => Err(Failure::new(format!("Found multiple kustomization files under: {}\n", absolute().display()))),
    }
}

/// Reads a file below the directory.
fn read(directory: &Path, name: &str) -> Outcome<Vec<u8>> {
    let path = directory.join(name);
    std::fs::read(&path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))
}

fn documents(source: &str, bytes: &[u8]) -> Outcome<Vec<Value>> {
    let text = String::from_utf8_lossy(bytes);
    let mut objects = Vec::new();
    crate::objects::documents(source, &text, &mut objects)?;
    Ok(objects)
}

/// Adds the objects of a directory to those that are there, and changes what it says; returns whether the whole is to be
/// sorted.
fn accumulate(directory: &Path, into: &mut Vec<Resource>, depth: usize) -> Outcome<bool> {
    if depth > DEEPEST {
        return Err(Failure::new(format!("kustomizations are nested too deeply at {}", directory.display())));
    }
    let file = file_of(directory)?;
    let bytes = std::fs::read(&file)?;
    let config = keelson_machinery::decode::yaml(&bytes)
        .map_err(|why| Failure::new(format!("invalid Kustomization: {why}")))?
        .value;
    let unknown =
        config.as_object().into_iter().flatten().map(|(key, _)| key).find(|key| !KNOWN.contains(&key.as_str()));
    if let Some(field) = unknown {
        return Err(Failure::new(format!(
            "invalid Kustomization: {}: the field {field:?} is not supported",
            file.display()
        )));
    }
    for (old, new) in [
        ("bases", "resources"),
        ("commonLabels", "labels"),
        ("patchesJson6902", "patches"),
        ("patchesStrategicMerge", "patches"),
    ] {
        if config[old].is_there() && depth == 0 {
            eprintln!(
                "# Warning: '{old}' is deprecated. Please use '{new}' instead. Run 'kustomize edit fix' to update your Kustomization automatically."
            );
        }
    }
    let is_component = config["kind"] == "Component";
    let mut own = if is_component { std::mem::take(into) } else { Vec::new() };
    for name in config["resources"].texts().into_iter().chain(config["bases"].texts()) {
        let path = directory.join(name);
        if path.is_dir() {
            accumulate(&path, &mut own, depth + 1)?;
        } else if name.contains("://") {
            return Err(Failure::new(format!(
                "accumulating resources from '{name}': URLs are not supported; fetch it first"
            )));
        } else {
            let bytes = read(directory, name).map_err(|e| {
                Failure::new(format!(
                    "accumulating resources: accumulation err='accumulating resources from '{name}': {}'",
                    e.to_string().trim_start_matches("error: ")
                ))
            })?;
            own.extend(documents(name, &bytes)?.into_iter().map(Resource::new));
        }
    }
    for name in config["components"].texts() {
        accumulate(&directory.join(name), &mut own, depth + 1)?;
    }
    generate::run(directory, &config, &mut own)?;
    unique(&own)?;
    patches::merge(directory, &config, &mut own)?;
    transform::run(&config, &mut own);
    patches::operations(directory, &config, &mut own)?;
    transform::counts_and_images(&config, &mut own)?;
    replace::run(directory, &config, &mut own)?;
    into.extend(own);
    let sorted = config["sortOptions"]["order"].text();
    Ok(sorted.is_empty() || sorted == "legacy")
}

fn unique(resources: &[Resource]) -> Outcome {
    for (at, one) in resources.iter().enumerate() {
        let same = |other: &&Resource| {
            (other.group(), other.kind(), other.name(), other.namespace())
                == (one.group(), one.kind(), one.name(), one.namespace())
        };
        if let Some(other) = resources[at + 1..].iter().find(same) {
            return Err(Failure::new(format!(
                "may not add resource with an already registered id: {}.[noVer].{}/{}.{}",
                other.kind(),
                if other.group().is_empty() { "[noGrp]" } else { other.group() },
                other.name(),
                if other.namespace().is_empty() { "[noNs]" } else { other.namespace() }
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

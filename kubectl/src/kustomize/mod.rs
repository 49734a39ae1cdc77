//! Kustomizations: objects from files, changed as `kustomization.yaml` says.

pub use generate::digest;

mod fields;
mod generate;
mod patches;
mod references;
mod replace;
mod transform;
mod vars;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::value::Read;

/// Kustomizations in kustomizations, at most.
const DEEPEST: usize = 32;
/// Names of the file.
const NAMES: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];
/// Fields that are understood.
const KNOWN: [&str; 25] = [
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
    "vars",
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
    /// Where it is from, in the words of its annotation.
    origin: String,
}

/// The directory of a kustomization, and what it may read.
struct Place {
    directory: PathBuf,
    /// Seen from the first one.
    relative: PathBuf,
    options: Options,
}

/// How kustomizations are read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Files may be outside of the directory whose kustomization names them.
    pub anywhere: bool,
    /// All objects get the label that says what made them.
    pub managed_by: bool,
}

impl Resource {
    fn new(object: Value) -> Self {
        Self { object, before: Vec::new(), hashed: false, origin: String::new() }
    }

    /// Kind, version, group, name and namespace, as messages name it.
    fn id(&self) -> String {
        let or = |text: &str, none: &str| if text.is_empty() { none.to_owned() } else { text.to_owned() };
        let version = self.object["apiVersion"].text();
        let version = version.rsplit('/').next().unwrap_or(version);
        format!(
            "{}.{version}.{}/{}.{}",
            self.kind(),
            or(self.group(), "[noGrp]"),
            self.name(),
            or(self.namespace(), "[noNs]")
        )
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
    build_with(directory, Options::default())
}

/// The same, with options.
pub fn build_with(directory: &str, options: Options) -> Outcome<Vec<Value>> {
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
    if !path.is_dir() {
        return Err(Failure::new(format!("must build at directory: '{}': file is not directory", shown(path))));
    }
    let (mut resources, mut vars) = (Vec::new(), Vec::new());
    let place = Place { directory: path.to_owned(), relative: PathBuf::new(), options };
    let sort = accumulate(&place, &mut resources, &mut vars, 0)?;
    generate::add_digests(&mut resources);
    references::fix(&mut resources);
    vars::replace(&vars, &mut resources)?;
    if options.managed_by {
        transform::build_metadata(&serde_json::json!({"buildMetadata": ["managedByLabel"]}), &mut resources)?;
    }
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
        _ => Err(Failure::new(format!("Found multiple kustomization files under: {}", absolute().display()))),
    }
}

fn shown(path: &Path) -> String {
    let plain = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    std::fs::canonicalize(&plain).unwrap_or(plain).display().to_string()
}

/// Reads a file that a kustomization names. It must be in its directory or below, so that one that somebody else wrote cannot
/// take files of this machine along.
fn read(place: &Place, name: &str) -> Outcome<Vec<u8>> {
    let path = place.directory.join(name);
    let real = std::fs::canonicalize(&path).map_err(|e| {
        let path = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
        let (path, why) = (path.display(), crate::failure::reason(&e));
        Failure::new(format!("evalsymlink failure on '{path}' : lstat {path}: {why}"))
    })?;
    let root = std::fs::canonicalize(&place.directory)?;
    if !place.options.anywhere && !real.starts_with(&root) {
        let (file, root) = (real.display(), root.display());
        return Err(Failure::new(format!("security; file '{file}' is not in or below '{root}'")));
    }
    std::fs::read(&real).map_err(|e| Failure::new(crate::failure::opening(&real.to_string_lossy(), &e)))
}

/// Texts where kustomizations have them; anything else is refused, as `y` without quotes is, which is no text.
fn check_types(config: &Value) -> Outcome {
    let wrong = |value: &Value, field: &str| {
        let what = match value {
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::Array(_) => "array",
            _ => "object",
        };
        let why = format!("json: cannot unmarshal {what} into Go struct field {field} of type string");
        Err(Failure::new(format!("invalid Kustomization: {why}")))
    };
    for field in ["namePrefix", "nameSuffix", "namespace"] {
        if config[field].is_there() && !config[field].is_string() {
            return wrong(&config[field], &format!("Kustomization.{field}"));
        }
    }
    let maps = [("commonLabels", &config["commonLabels"]), ("commonAnnotations", &config["commonAnnotations"])];
    for (field, map) in maps {
        if let Some(bad) = map.as_object().into_iter().flatten().map(|(_, v)| v).find(|v| !v.is_string()) {
            return wrong(bad, &format!("Kustomization.{field}"));
        }
    }
    for entry in config["labels"].items() {
        if let Some(bad) = entry["pairs"].as_object().into_iter().flatten().map(|(_, v)| v).find(|v| !v.is_string()) {
            return wrong(bad, "Label.labels.pairs");
        }
    }
    Ok(())
}

/// Reads what a directory's kustomization says.
fn configuration(place: &Place) -> Outcome<Value> {
    let file = file_of(&place.directory)?;
    let bytes = std::fs::read(&file)?;
    if bytes.trim_ascii().is_empty() {
        return Err(Failure::new("kustomization.yaml is empty"));
    }
    let config = keelson_machinery::decode::yaml(&bytes)
        .map_err(|why| Failure::new(format!("invalid Kustomization: {why}")))?
        .value;
    if !matches!(config["kind"].text(), "" | "Kustomization" | "Component") {
        return Err(Failure::new(format!(
            "Failed to read kustomization file under {}:\nkind should be Kustomization or Component",
            shown(&place.directory)
        )));
    }
    let unknown =
        config.as_object().into_iter().flatten().map(|(key, _)| key).find(|key| !KNOWN.contains(&key.as_str()));
    if let Some(field) = unknown {
        const NOT_HERE: [&str; 8] = [
            "helmCharts",
            "helmChartInflationGenerator",
            "helmGlobals",
            "configurations",
            "crds",
            "generators",
            "transformers",
            "validators",
        ];
        return Err(Failure::new(match NOT_HERE.contains(&field.as_str()) {
            true => format!("invalid Kustomization: {}: the field {field:?} is not supported", file.display()),
            false => format!("invalid Kustomization: json: unknown field {field:?}"),
        }));
    }
    check_types(&config)?;
    Ok(config)
}

fn documents(source: &str, bytes: &[u8]) -> Outcome<Vec<Value>> {
    let text = String::from_utf8_lossy(bytes);
    let mut objects = Vec::new();
    crate::objects::documents(source, &text, &mut objects)?;
    Ok(objects)
}

/// Adds the objects of a directory to those that are there, and changes what it says; returns whether the whole is to be
/// sorted.
fn accumulate(place: &Place, into: &mut Vec<Resource>, variables: &mut Vec<vars::Var>, depth: usize) -> Outcome<bool> {
    if depth > DEEPEST {
        return Err(Failure::new(format!("kustomizations are nested too deeply at {}", place.directory.display())));
    }
    let config = configuration(place)?;
    for (old, new) in [
        ("bases", "resources"),
        ("commonLabels", "labels"),
        ("patchesJson6902", "patches"),
        ("patchesStrategicMerge", "patches"),
        ("vars", "replacements"),
    ] {
        if config[old].is_there() && depth == 0 {
            let how = if old == "vars" { "[EXPERIMENTAL] Run" } else { "Run" };
            eprintln!(
                "# Warning: '{old}' is deprecated. Please use '{new}' instead. {how} 'kustomize edit fix' to update your Kustomization automatically."
            );
        }
    }
    let is_component = config["kind"] == "Component";
    let mut own = if is_component { std::mem::take(into) } else { Vec::new() };
    let below = |name: &str| Place {
        directory: place.directory.join(name),
        relative: place.relative.join(name),
        options: place.options,
    };
    for name in config["resources"].texts().into_iter().chain(config["bases"].texts()) {
        if place.directory.join(name).is_dir() {
            accumulate(&below(name), &mut own, variables, depth + 1)?;
        } else if name.contains("://") {
            return Err(Failure::new(format!(
                "accumulating resources from '{name}': URLs are not supported; fetch it first"
            )));
        } else {
            own.extend(from_file(place, name, &own)?);
        }
    }
    for name in config["components"].texts() {
        accumulate(&below(name), &mut own, variables, depth + 1)?;
    }
    vars::collect(&config, variables)?;
    generate::run(place, &config, &mut own)?;
    unique(&own)?;
    patches::merge(place, &config, &mut own)?;
    transform::run(&config, &mut own);
    patches::operations(place, &config, &mut own)?;
    transform::counts_and_images(&config, &mut own)?;
    replace::run(place, &config, &mut own)?;
    transform::build_metadata(&config, &mut own)?;
    into.extend(own);
    let sorted = config["sortOptions"]["order"].text();
    Ok(sorted.is_empty() || sorted == "legacy")
}

/// The objects of a file that a kustomization names.
fn from_file(place: &Place, name: &str, have: &[Resource]) -> Outcome<Vec<Resource>> {
    let path = place.directory.join(name);
    let wrong = |why: String, doing: &str| {
        let file = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
        let then = match path.exists() {
            true => format!("'{}': file is not directory", shown(&path)),
            false => format!(
                "not a valid directory: evalsymlink failure on '{0}' : lstat {0}: no such file or directory",
                file.display()
            ),
        };
        Failure::new(format!(
            "accumulating resources: accumulation err='{doing} resources from '{name}': {why}': must build at directory: {then}"
        ))
    };
    let bytes = read(place, name)
        .map_err(|error| wrong(error.to_string().trim_start_matches("error: ").to_owned(), "accumulating"))?;
    let mut found: Vec<Resource> = Vec::new();
    for object in documents(name, &bytes)? {
        let mut resource = Resource::new(object);
        resource.origin = format!("path: {}\n", place.relative.join(name).display());
        if have.iter().chain(&found).any(|other| other.id() == resource.id()) {
            let why = format!("may not add resource with an already registered id: {}", resource.id());
            return Err(wrong(why, "merging"));
        }
        found.push(resource);
    }
    Ok(found)
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

//! How objects are printed.

pub mod columns;
pub mod json;
pub mod jsonpath;
pub mod sort;
pub mod table;
pub mod template;

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, Parsed, switch, text};
use crate::kinds::Kind;

/// Flags of commands that print objects.
pub const FLAGS: &[Flag] = &[
    text("output", "", "Output format.").short('o'),
    switch("allow-missing-template-keys", "If true, ignore any errors in templates when a field is missing.")
        .or("true"),
    switch("show-managed-fields", "If true, keep the managedFields when printing objects in JSON or YAML format."),
    text("template", "", "Template string or path to template file to use when -o=go-template is set."),
];

/// A form of output.
#[derive(Clone, Debug)]
pub enum Format {
    /// Whatever the command prints on its own.
    Default,
    /// The table with more columns.
    Wide,
    /// `kind/name`
    Name,
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// A JSONPath template.
    JsonPath(jsonpath::Template),
    /// A Go template.
    Template(template::Template),
    /// Columns of one's own, and whether they have titles.
    Columns(Vec<columns::Column>),
}

/// Whether a command prints tables, which may have more columns or columns of one's own.
fn has_tables(command: &str) -> bool {
    command.ends_with(" get")
}

fn unknown_format(parsed: &Parsed, output: &str) -> Failure {
    let (first, last) = match has_tables(&parsed.command) {
        true => ("custom-columns,custom-columns-file,", ",wide"),
        false => ("", ""),
    };
    Failure::new(format!(
        "unable to match a printer suitable for the output format {output:?}, allowed formats are: {first}go-template,\
         go-template-file,json,jsonpath,jsonpath-as-json,jsonpath-file,name,template,templatefile{last},yaml"
    ))
}

impl Format {
    /// What the flags ask for.
    pub fn of(parsed: &Parsed) -> Outcome<Self> {
        let output = match parsed.text("output") {
            "" if !parsed.text("template").is_empty() => "go-template",
            output => output,
        };
        let (form, argument) = output.split_once('=').map_or((output, None), |(f, a)| (f, Some(a)));
        let argument = argument.or(Some(parsed.text("template"))).filter(|t| !t.is_empty());
        let needs = |what: &str| {
            argument
                .ok_or_else(|| Failure::new(format!("{} format specified but no {what} given", what.replace(' ', "-"))))
        };
        let strict = !parsed.on("allow-missing-template-keys");
        let file = |flag: &str, path: &str| {
            std::fs::read_to_string(path).map_err(|e| {
                Failure::new(format!("error reading {flag} {path}, {}", crate::failure::opening(path, &e)))
            })
        };
        let plain = form.to_lowercase();
        let form = if matches!(plain.as_str(), "json" | "yaml" | "name") { plain.as_str() } else { form };
        Ok(match form {
            "" => Self::Default,
            "wide" | "custom-columns" | "custom-columns-file" if !has_tables(&parsed.command) => {
                return Err(unknown_format(parsed, output));
            }
            "wide" => Self::Wide,
            "name" => Self::Name,
            "json" => Self::Json,
            "yaml" => Self::Yaml,
            "jsonpath" | "jsonpath-as-json" => {
                let text = argument.ok_or_else(|| Failure::new("template format specified but no template given"))?;
                Self::JsonPath(jsonpath::Template::parse(text, form == "jsonpath-as-json")?.strict(strict))
            }
            "jsonpath-file" => {
                let text = argument.ok_or_else(|| Failure::new("template format specified but no template given"))?;
                Self::JsonPath(jsonpath::Template::parse(&file("--template", text)?, false)?.strict(strict))
            }
            "custom-columns" => Self::Columns(columns::parse(argument.unwrap_or_default(), parsed.on("no-headers"))?),
            "custom-columns-file" => Self::Columns(columns::parse_file(
                &file("template", needs("custom columns")?)?,
                parsed.on("no-headers"),
            )?),
            "go-template" | "go-template-file" | "template" | "templatefile" => {
                let text = argument.ok_or_else(|| Failure::new("template format specified but no template given"))?;
                let text = if form.ends_with("file") { file("--template", text)? } else { text.to_owned() };
                Self::Template(template::Template::parse(&text, strict)?)
            }
            _ => return Err(unknown_format(parsed, output)),
        })
    }

    /// Whether whole objects are printed rather than a table.
    pub fn is_object(&self) -> bool {
        !matches!(self, Self::Default | Self::Wide)
    }

    /// Prints an object, or a list as one.
    pub fn print(&self, object: &Value, show_managed: bool) -> Outcome<String> {
        let mut object = object.clone();
        if !show_managed && matches!(self, Self::Json | Self::Yaml) {
            strip_managed(&mut object);
        }
        Ok(match self {
            Self::Json => json::pretty(&object) + "\n",
            Self::Yaml => keelson_machinery::yaml::write(&object)?,
            Self::JsonPath(template) => template.execute(&object)?,
            Self::Template(template) => template.execute(&object)?,
            Self::Columns(columns) => columns::print(columns, &object)?,
            Self::Name | Self::Default | Self::Wide => {
                let items = object["items"].as_array().cloned().unwrap_or_else(|| vec![object.clone()]);
                items.iter().map(|item| name_of(item) + "\n").collect()
            }
        })
    }
}

/// `pod/x` or `deployment.apps/x`, from the object alone.
pub fn name_of(object: &Value) -> String {
    let group = object["apiVersion"].as_str().and_then(|v| v.split_once('/')).map_or("", |(group, _)| group);
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    let name = object["metadata"]["name"].as_str().unwrap_or("<unknown>");
    if group.is_empty() { format!("{kind}/{name}") } else { format!("{kind}.{group}/{name}") }
}

/// Removes managedFields of an object or of a list's items.
pub fn strip_managed(object: &mut Value) {
    let strip = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    strip(object);
    for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        strip(item);
    }
}

/// Several objects as one List.
pub fn list(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})
}

/// Gives the items of a typed list their kind, which lists leave out.
pub fn items_of(kind: &Kind, list: &mut Value) -> Vec<Value> {
    let Some(Value::Array(mut items)) = list.get_mut("items").map(Value::take) else { return Vec::new() };
    for item in &mut items {
        item["apiVersion"] = kind.api_version().into();
        item["kind"] = kind.kind.clone().into();
    }
    items
}

/// Whether a command prints JSON in the order of its objects' types: those that make objects of flags do.
pub fn is_typed(command: &str) -> bool {
    const TYPED: [&str; 5] =
        ["kubectl run", "kubectl expose", "kubectl autoscale", "kubectl rollout history", "kubectl auth whoami"];
    TYPED.contains(&command) || command.starts_with("kubectl create ")
}

/// Whether a document of YAML was printed already.
static YAML_BEGAN: AtomicBool = AtomicBool::new(false);

/// What a changing command prints: the object as asked, or that it is `done`.
pub fn changed(parsed: &Parsed, object: &Value, done: &str) -> Outcome {
    let suffix = match parsed.text("dry-run") {
        "client" | "unchanged" | "true" => " (dry run)",
        "server" => " (server dry run)",
        _ => "",
    };
    let format = Format::of(parsed)?;
    match format {
        Format::Default => println!("{} {done}{suffix}", name_of(object)),
        _ => {
            // Further documents of a stream of YAML are set apart, but not by every command.
            const JOINED: [&str; 7] = ["label", "patch", "taint", "scale", "autoscale", "rollout", "certificate"];
            let command = parsed.command.split(' ').nth(1).unwrap_or_default();
            let apart = !JOINED.contains(&command);
            if apart && matches!(format, Format::Yaml) && YAML_BEGAN.swap(true, Ordering::Relaxed) {
                println!("---");
            }
            let managed = parsed.on("show-managed-fields");
            match format {
                Format::Json if is_typed(&parsed.command) => {
                    let mut object = object.clone();
                    if !managed {
                        strip_managed(&mut object);
                    }
                    println!("{}", json::spread(&json::typed(&object)));
                }
                _ => print!("{}", format.print(object, managed)?),
            }
        }
    }
    Ok(())
}

//! `get`: tables, objects, watches.

use bytes::Bytes;
use futures::StreamExt;
use http::Method;
use http_body_util::BodyStream;
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, switch, text};
use crate::kinds::Kind;
use crate::objects::{self, FILES, SELECT, Target};
use crate::output::table::{self, View};
use crate::output::{self, Format, items_of, list, sort, strip_managed};
use crate::session::{Session, encode, query};

use super::{history, say};

const TABLE: &str =
    "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

/// Width of the column of events: that of the longest, and the space behind it.
const EVENT_WIDTH: usize = "MODIFIED".len() + 3;

/// Flags of `get`.
pub const FLAGS: &[&[Flag]] = &[
    output::FLAGS,
    FILES,
    &[
        SELECT[0],
        SELECT[1],
        SELECT[2],
        text("chunk-size", "500", "Return large lists in chunks rather than all at once. Pass 0 to disable."),
        text("at", "", "Show things as they were at a revision, a time (2006-01-02T15:04:05Z) or so long ago (5m)."),
        switch("ignore-not-found", "If set to true, suppresses NotFound error for specific objects that do not exist."),
        repeated(
            "label-columns",
            "Accepts a comma separated list of labels that are going to be presented as columns.",
        )
        .short('L'),
        switch("no-headers", "When using the default or custom-column output format, don't print headers."),
        switch("output-watch-events", "Output watch event objects when --watch or --watch-only is used."),
        text("raw", "", "Raw URI to request from the server. Uses the transport specified by the kubeconfig file."),
        switch("server-print", "If true, have the server return the appropriate table output.").or("true"),
        switch("show-kind", "If present, list the resource type for the requested object(s)."),
        switch("show-labels", "When printing, show all labels as the last column."),
        text("sort-by", "", "If non-empty, sort list types using this field specification."),
        text("subresource", "", "If specified, gets the subresource of the requested object."),
        switch("watch", "After listing/getting the requested object, watch for changes.").short('w'),
        switch("watch-only", "Watch for changes to the requested object(s), without listing/getting first."),
    ],
];

/// Runs `get`.
pub async fn get(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if !parsed.text("raw").is_empty() {
        return raw(session).await;
    }
    let watches = parsed.on("watch") || parsed.on("watch-only");
    if parsed.on("output-watch-events") && !watches {
        return Err(Failure::new("--output-watch-events option can only be used with --watch or --watch-only"));
    }
    let format = Format::of(parsed)?;
    let files = objects::from_files(session).await?;
    let mut targets = objects::targets(session, &parsed.args).await?;
    let mut wanted = Vec::new();
    for target in &targets {
        wanted.push(Wanted { kind: target.kind.clone(), paths: paths(session, target)? });
    }
    for object in files {
        let kind = crate::kinds::of_object(session, &object).await?;
        let (namespace, name) = objects::place(session, &object)?;
        let path = kind.object(&namespace, &encode(&name));
        match wanted.last_mut().filter(|w| w.kind == kind) {
            Some(group) => group.paths.push((Some(name.clone()), path)),
            None => wanted.push(Wanted { kind: kind.clone(), paths: vec![(Some(name.clone()), path)] }),
        }
        targets.push(Target { kind, names: vec![name] });
    }
    if targets.is_empty() {
        eprintln!(
            "You must specify the type of resource to get. Use \"kubectl api-resources\" for a complete list of supported \
             resources.\n"
        );
        return Err(Failure::Plain(
            "error: Required resource not specified.\nUse \"kubectl explain <resource>\" for a detailed description of that \
             resource (e.g. kubectl explain pods).\nSee 'kubectl get -h' for help and examples"
                .into(),
        ));
    }
    let named = targets.iter().any(|t| !t.names.is_empty());
    if targets.iter().any(|t| !t.names.is_empty() && t.kind.namespaced) && parsed.on("all-namespaces") {
        return Err(Failure::new("a resource cannot be retrieved by name across all namespaces"));
    }
    if named && (parsed.is_set("selector") || parsed.is_set("field-selector")) {
        return Err(Failure::new("name cannot be provided when a selector is specified"));
    }
    if parsed.is_set("subresource") && targets.iter().any(|t| t.names.is_empty()) {
        return Err(Failure::new("subresource cannot be used when bulk resources are specified"));
    }
    if !parsed.text("at").is_empty() {
        return at(session, &targets, &format).await;
    }
    if watches {
        return watch(session, &targets, &format).await;
    }
    match format.is_object() {
        true => print_objects(session, &wanted, &format).await,
        false => print_tables(session, &wanted, &format).await,
    }
}

/// Objects of a kind, each by its path and the name that it is for.
struct Wanted {
    kind: Kind,
    paths: Vec<(Option<String>, String)>,
}

/// Prints what is at a path.
async fn raw(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let path = parsed.text("raw");
    if !parsed.args.is_empty() {
        return Err(Failure::new("arguments may not be passed when --raw is specified"));
    }
    let filters = ["watch", "watch-only", "selector", "field-selector", "filename", "kustomize", "label-columns"];
    if filters.iter().any(|flag| parsed.is_set(flag)) || parsed.on("show-labels") {
        return Err(Failure::new(
            "--raw may not be specified with other flags that filter the server request or alter the output",
        ));
    }
    if parsed.is_set("output") {
        return Err(Failure::new("--raw and --output are mutually exclusive"));
    }
    if !path.starts_with('/') {
        let given = crate::value::quoted(path);
        return Err(Failure::new(format!("--raw must be a valid URL path: parse {given}: invalid URI for request")));
    }
    print!("{}", session.text(path).await?);
    Ok(())
}

/// The refusal of a list, with what was asked for.
fn of_list(session: &Session, kind: &Kind, error: Failure) -> Failure {
    let parsed = &session.parsed;
    let (labels, fields) = (parsed.text("selector"), parsed.text("field-selector"));
    match error {
        Failure::Server(mut status) if status["code"] == 400 && !(labels.is_empty() && fields.is_empty()) => {
            let said = status["message"].as_str().unwrap_or_default();
            let (labels, fields) = (crate::value::quoted(labels), crate::value::quoted(fields));
            status["message"] = format!(
                "Unable to find \"{}/{}, Resource={}\" that match label selector {labels}, field selector {fields}: {said}",
                kind.group, kind.version, kind.plural
            )
            .into();
            Failure::Server(status)
        }
        other => other,
    }
}

/// The paths of a target, each with the name that it is for.
fn paths(session: &Session, target: &Target) -> Outcome<Vec<(Option<String>, String)>> {
    let parsed = &session.parsed;
    let namespace = session.namespace()?;
    let within = (!parsed.on("all-namespaces")).then_some(namespace.as_str());
    if target.names.is_empty() {
        return Ok(vec![(None, target.kind.path(within))]);
    }
    let subresource = match parsed.text("subresource") {
        "" => String::new(),
        name => format!("/{name}"),
    };
    let path = |name: &String| format!("{}{subresource}", target.kind.object(&namespace, &encode(name)));
    Ok(target.names.iter().map(|name| (Some(name.clone()), path(name))).collect())
}

/// Leaves of the objects in a table's rows what is printed, so that long tables do not hold the rest until their end.
fn slim(table: &mut Value) {
    const SHOWN: [&str; 4] = ["name", "namespace", "labels", "creationTimestamp"];
    for row in table["rows"].as_array_mut().into_iter().flatten() {
        let mut kept = serde_json::Map::new();
        if let Some(metadata) = row.pointer_mut("/object/metadata").and_then(Value::as_object_mut) {
            kept.extend(SHOWN.iter().filter_map(|key| metadata.remove_entry(*key)));
        }
        row["object"] = json!({"metadata": kept});
        if let Some(row) = row.as_object_mut() {
            row.remove("conditions");
        }
    }
}

/// Reads a list in chunks; `join` is the field in which chunks are put together.
async fn chunks(session: &Session, path: &str, accept: &str, join: &str) -> Outcome<Value> {
    let parsed = &session.parsed;
    let limit = parsed.text("chunk-size");
    let mut pairs = vec![("labelSelector", parsed.text("selector")), ("fieldSelector", parsed.text("field-selector"))];
    if !parsed.text("sort-by").is_empty() {
        pairs.push(("includeObject", "Object"));
    }
    let mut whole = Value::Null;
    let mut next = String::new();
    loop {
        let mut all = pairs.clone();
        all.extend([("limit", if limit == "0" { "" } else { limit }), ("continue", next.as_str())]);
        let mut page = session.get_as(&format!("{path}{}", query(&all)), accept).await?;
        if join == "rows" && parsed.text("sort-by").is_empty() {
            slim(&mut page);
        }
        next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        match whole.is_null() {
            true => whole = page,
            false => {
                let more = page[join].as_array_mut().map(std::mem::take).unwrap_or_default();
                if let Some(rows) = whole[join].as_array_mut() {
                    rows.extend(more);
                }
            }
        }
        if next.is_empty() {
            return Ok(whole);
        }
    }
}

async fn print_objects(session: &Session, wanted: &[Wanted], format: &Format) -> Outcome {
    let parsed = &session.parsed;
    let (mut objects, mut failed, mut single) = (Vec::new(), None, None);
    let named: usize = wanted.iter().map(|w| w.paths.len()).sum();
    for target in wanted {
        for (name, path) in &target.paths {
            let read = match name {
                Some(_) => session.get(path).await,
                None => chunks(session, path, "application/json", "items")
                    .await
                    .map_err(|error| of_list(session, &target.kind, error)),
            };
            match read {
                Ok(mut list) if name.is_none() => objects.extend(items_of(&target.kind, &mut list)),
                Ok(object) => {
                    single = Some(named == 1);
                    objects.push(object);
                }
                Err(error) if error.is_not_found() && parsed.on("ignore-not-found") => {}
                Err(error) => failed = Some(say(failed, error)),
            }
        }
    }
    if !parsed.text("sort-by").is_empty() && objects.len() > 1 {
        sort::by_path(&mut objects, parsed.text("sort-by"), |object| object)?;
    }
    let managed = parsed.on("show-managed-fields");
    if objects.is_empty() && (failed.is_some() || wanted.iter().flat_map(|w| &w.paths).all(|(name, _)| name.is_some()))
    {
        return failed.map_or(Ok(()), Err);
    }
    let text = match single {
        Some(true) => format.print(&objects[0], managed)?,
        _ => format.print(&list(objects), managed)?,
    };
    print!("{text}");
    failed.map_or(Ok(()), Err)
}

fn view(session: &Session, format: &Format, kind: &Kind, many: bool) -> View {
    let parsed = &session.parsed;
    View {
        wide: matches!(format, Format::Wide),
        namespace: parsed.on("all-namespaces") && kind.namespaced,
        kind: (many || parsed.on("show-kind")).then(|| kind.clone()),
        labels: parsed.list("label-columns"),
        all_labels: parsed.on("show-labels"),
        no_headers: parsed.on("no-headers"),
        events: parsed.on("output-watch-events"),
    }
}

/// The table that says of each object its name and its age, whatever its kind.
fn plain(mut table: Value) -> Value {
    let ages: Vec<Value> = table["rows"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| crate::value::ago(&row["object"]["metadata"]["creationTimestamp"]).into())
        .collect();
    for (row, age) in table["rows"].as_array_mut().into_iter().flatten().zip(ages) {
        row["cells"] = json!([row["object"]["metadata"]["name"], age]);
    }
    table["columnDefinitions"] =
        json!([{"name": "Name", "format": "name", "priority": 0}, {"name": "Age", "priority": 0}]);
    table
}

async fn print_tables(session: &Session, wanted: &[Wanted], format: &Format) -> Outcome {
    let parsed = &session.parsed;
    let many = wanted.iter().any(|w| w.kind != wanted[0].kind);
    let (mut printed, mut failed) = (false, None);
    for target in wanted {
        let mut table = Value::Null;
        for (name, path) in &target.paths {
            let read = match name {
                Some(_) => session.get_as(path, TABLE).await,
                None => {
                    chunks(session, path, TABLE, "rows").await.map_err(|error| of_list(session, &target.kind, error))
                }
            };
            match read {
                Ok(mut next) if !table.is_null() => {
                    let rows = next["rows"].as_array_mut().map(std::mem::take).unwrap_or_default();
                    if let Some(have) = table["rows"].as_array_mut() {
                        have.extend(rows);
                    }
                }
                Ok(next) => table = next,
                Err(error) if error.is_not_found() && name.is_some() && parsed.on("ignore-not-found") => {}
                Err(error) => failed = Some(say(failed, error)),
            }
        }
        let mut rows = table["rows"].as_array_mut().map(std::mem::take).unwrap_or_default();
        if rows.is_empty() {
            continue;
        }
        let path = parsed.text("sort-by");
        let listed = target.paths.iter().any(|(name, _)| name.is_none()) || target.paths.len() > 1;
        if !path.is_empty() && listed {
            match sort::by_path(&mut rows, path, |row| &row["object"]) {
                Err(error) if error.to_string().contains("unsortable type") => return Err(error),
                // kubectl keeps to itself why else rows cannot be sorted.
                Err(_) => continue,
                Ok(()) => {}
            }
        }
        table["rows"] = rows.into();
        if !parsed.on("server-print") {
            table = plain(table);
        }
        if printed && !parsed.on("no-headers") {
            println!();
        }
        print!("{}", table::align(&view(session, format, &target.kind, many).rows(&table)));
        printed = true;
    }
    if !printed && failed.is_none() && !parsed.on("ignore-not-found") {
        let scoped = !parsed.on("all-namespaces") && wanted.iter().any(|t| t.kind.namespaced);
        match scoped {
            true => eprintln!("No resources found in {} namespace.", session.namespace()?),
            false => eprintln!("No resources found"),
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Things as they were.
async fn at(session: &Session, targets: &[Target], format: &Format) -> Outcome {
    let parsed = &session.parsed;
    if parsed.on("watch") || parsed.on("watch-only") {
        return Err(Failure::new("what was cannot be watched: --at goes without --watch"));
    }
    let revision = history::revision(session, parsed.text("at")).await?;
    let namespace = session.namespace()?;
    let within = (!parsed.on("all-namespaces")).then_some(namespace.as_str());
    let (many, mut objects, mut printed) = (targets.len() > 1, Vec::new(), false);
    for target in targets {
        let names: Vec<Option<&str>> = match target.names.is_empty() {
            true => vec![None],
            false => target.names.iter().map(|n| Some(n.as_str())).collect(),
        };
        for name in names {
            let missing = || {
                let kind = target.kind.qualified_plural();
                let name = name.unwrap_or_default();
                Failure::new(format!("{kind} {name:?} was not there at revision {revision}"))
            };
            if format.is_object() {
                let found = history::read(session, &target.kind, within, name, &revision).await?;
                if name.is_some() && found.is_empty() {
                    return Err(missing());
                }
                objects.extend(found);
                continue;
            }
            let path = history::path(&target.kind, within, name, &revision);
            let selector = query(&[("labelSelector", parsed.text("selector"))]).replace('?', "&");
            let table = session
                .get_as(&format!("{path}{selector}"), TABLE)
                .await
                .map_err(|error| history::too_old(error, &revision))?;
            if table["rows"].as_array().is_none_or(Vec::is_empty) {
                match name {
                    Some(_) => return Err(missing()),
                    None => continue,
                }
            }
            print!(
                "{}{}",
                if printed { "\n" } else { "" },
                table::align(&view(session, format, &target.kind, many).rows(&table))
            );
            printed = true;
        }
    }
    if format.is_object() {
        let single = targets.len() == 1 && targets[0].names.len() == 1;
        let whole = if single { objects.remove(0) } else { list(objects) };
        print!("{}", format.print(&whole, parsed.on("show-managed-fields"))?);
    } else if !printed {
        eprintln!("No resources found at revision {revision}.");
    }
    Ok(())
}

/// The lines of a watch.
pub async fn lines(
    session: &Session,
    path: &str,
    accept: &str,
    mut each: impl FnMut(Value) -> Outcome<bool>,
) -> Outcome {
    let timeout = session.request_timeout()?;
    let deadline = (!timeout.is_zero()).then(|| tokio::time::Instant::now() + timeout);
    let response = session.send(Method::GET, path, accept, None, Bytes::new()).await?;
    let mut frames = BodyStream::new(response.into_body());
    let mut buffer = Vec::new();
    loop {
        let next = frames.next();
        let frame = match deadline {
            // A watch that lasted as long as it may is no failure.
            Some(deadline) => tokio::time::timeout_at(deadline, next).await.ok().flatten(),
            None => next.await,
        };
        let Some(frame) = frame else { break };
        let Ok(data) = frame?.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let event =
                serde_json::from_slice(&line).map_err(|e| Failure::new(format!("a watch event is no JSON: {e}")))?;
            if !each(event)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The one kind of objects, or the one object, that is watched.
async fn watched<'a>(session: &Session, targets: &'a [Target], format: &Format) -> Outcome<&'a Target> {
    let parsed = &session.parsed;
    let [target] = targets else {
        return Err(Failure::new(match parsed.is_set("filename") || parsed.is_set("kustomize") {
            true => {
                "watch is only supported on individual resources and resource collections - more than 1 resource was found"
            }
            false => "you may only specify a single resource type",
        }));
    };
    if target.names.len() > 1 {
        let wanted = [Wanted { kind: target.kind.clone(), paths: paths(session, target)? }];
        match format.is_object() {
            true => print_objects(session, &wanted, format).await?,
            false => print_tables(session, &wanted, format).await?,
        }
        return Err(Failure::new("you may only watch a single resource or type of resource at a time"));
    }
    if !parsed.text("sort-by").is_empty() {
        eprintln!("warning: --watch requested, --sort-by will be ignored for watch events received");
    }
    Ok(target)
}

async fn watch(session: &Session, targets: &[Target], format: &Format) -> Outcome {
    let parsed = &session.parsed;
    let target = watched(session, targets, format).await?;
    let accept = if format.is_object() { "application/json" } else { TABLE };
    let namespace = session.namespace()?;
    let within = (!parsed.on("all-namespaces")).then_some(namespace.as_str());
    let path = target.kind.path(within);
    let named = target.names.first().map(|n| format!("metadata.name={n}"));
    let fields = named.as_deref().unwrap_or(parsed.text("field-selector"));
    let selectors = [("labelSelector", parsed.text("selector")), ("fieldSelector", fields)];
    let mut first = selectors.to_vec();
    if !parsed.text("sort-by").is_empty() {
        first.push(("includeObject", "Object"));
    }
    let mut list = session.get_as(&format!("{path}{}", query(&first)), accept).await?;
    let items = if format.is_object() { "items" } else { "rows" };
    if let Some(rows) = list[items].as_array_mut().filter(|_| !parsed.text("sort-by").is_empty()) {
        sort::by_path(rows, parsed.text("sort-by"), |row| if row["object"].is_null() { row } else { &row["object"] })?;
    }
    if let Some(name) = target.names.first()
        && list[items].as_array().is_none_or(Vec::is_empty)
    {
        // The refusal of the object itself is what kubectl says.
        session.get(&target.kind.object(&namespace, &encode(name))).await?;
    }
    let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    let view = view(session, format, &target.kind, false);
    let mut printer = Printer {
        view,
        widths: Vec::new(),
        columns: Value::Null,
        format: format.clone(),
        events: parsed.on("output-watch-events"),
        managed: parsed.on("show-managed-fields"),
        printed: false,
    };
    if !parsed.on("watch-only") {
        if format.is_object() {
            for item in items_of(&target.kind, &mut list) {
                printer.object("ADDED", item)?;
            }
        } else {
            printer.rows("ADDED", &list);
        }
    } else {
        printer.columns = json!({"columnDefinitions": list["columnDefinitions"]});
    }
    let mut all = selectors.to_vec();
    all.extend([("watch", "true"), ("resourceVersion", version.as_str())]);
    lines(session, &format!("{path}{}", query(&all)), accept, |event| {
        let kind = event["type"].as_str().unwrap_or_default().to_owned();
        if kind == "ERROR" {
            return Err(Failure::Server(event["object"].clone()));
        }
        if kind != "BOOKMARK" {
            match printer.format.is_object() {
                true => printer.object(&kind, event["object"].clone())?,
                false => printer.rows(&kind, &event["object"]),
            }
        }
        Ok(true)
    })
    .await
}

/// Prints what a watch brings, in columns that stay where they are.
struct Printer {
    view: View,
    widths: Vec<usize>,
    columns: Value,
    format: Format,
    events: bool,
    managed: bool,
    printed: bool,
}

impl Printer {
    fn rows(&mut self, event: &str, table: &Value) {
        let mut rows = Vec::new();
        let first = self.widths.is_empty();
        if table["columnDefinitions"].as_array().is_some_and(|c| !c.is_empty()) {
            self.columns = json!({"columnDefinitions": table["columnDefinitions"]});
        }
        let data = table["rows"].as_array().map_or(&[][..], Vec::as_slice);
        if first && !self.view.no_headers && !data.is_empty() {
            rows.push(self.view.titles(&self.columns));
        }
        rows.extend(data.iter().map(|row| self.view.row(&self.columns, row, event)));
        table::measure(&rows, &mut self.widths);
        if let Some(width) = self.widths.first_mut().filter(|_| self.events) {
            // Room for every event, whichever comes first.
            *width = (*width).max(EVENT_WIDTH);
        }
        for row in &rows {
            print!("{}", table::line(row, &self.widths));
        }
    }

    fn object(&mut self, event: &str, mut object: Value) -> Outcome {
        if !self.managed {
            strip_managed(&mut object);
        }
        if self.events && matches!(self.format, Format::Json) {
            let object = output::json::compact(&object);
            println!("{{\"type\":{},\"object\":{object}}}", Value::from(event));
            return Ok(());
        }
        if self.events {
            object = json!({"type": event, "object": object});
        }
        if std::mem::replace(&mut self.printed, true) && matches!(self.format, Format::Yaml) {
            println!("---");
        }
        print!("{}", self.format.print(&object, self.managed)?);
        Ok(())
    }
}

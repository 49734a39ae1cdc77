//! What the descriptions of many kinds share: labels, annotations, selectors, owners, events.

use serde_json::Value;

use super::sheet::{Sheet, row};
use crate::failure::Outcome;
use crate::session::{Session, query};
use crate::value::{Read, ago, or};

/// The annotation that is not shown.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Annotations are shown up to this length.
pub const LONGEST_ANNOTATION: usize = 140;

/// Labels and annotations.
pub fn marks(w: &mut Sheet, object: &Value) {
    labels(w, "Labels", &object["metadata"]["labels"]);
    annotations(w, "Annotations", &object["metadata"]["annotations"]);
}

/// Name and namespace.
pub fn names(w: &mut Sheet, object: &Value) {
    row!(w, 0, "Name:\t{}", object["metadata"]["name"].text());
    row!(w, 0, "Namespace:\t{}", object["metadata"]["namespace"].text());
}

/// A map, an entry to a line.
pub fn labels(w: &mut Sheet, title: &str, map: &Value) {
    labels_at(w, "", title, map);
}

/// A map whose lines begin with `indent`.
pub fn labels_at(w: &mut Sheet, indent: &str, title: &str, map: &Value) {
    let entries: Vec<String> = map.pairs().into_iter().map(|(k, v)| format!("{k}={v}")).collect();
    below(w, indent, title, &entries);
}

/// Lines below each other in the second column, the first beside the title.
pub fn below(w: &mut Sheet, indent: &str, title: &str, lines: &[String]) {
    w.put(&format!("{indent}{title}:\t"));
    if lines.is_empty() {
        w.put("<none>\n");
    }
    for (at, line) in lines.iter().enumerate() {
        if at > 0 {
            w.put(&format!("{indent}\t"));
        }
        w.put(line);
        w.put("\n");
    }
}

/// Annotations; long ones are cut.
pub fn annotations(w: &mut Sheet, title: &str, map: &Value) {
    let shown: Vec<(&str, &str)> = map.pairs().into_iter().filter(|(k, _)| *k != LAST_APPLIED).collect();
    w.put(&format!("{title}:\t"));
    if shown.is_empty() {
        w.put("<none>\n");
    }
    for (at, (key, value)) in shown.into_iter().enumerate() {
        if at > 0 {
            w.put("\t");
        }
        let value = value.strip_suffix('\n').unwrap_or(value);
        if value.len() + key.len() + 2 > LONGEST_ANNOTATION || value.contains('\n') {
            w.put(&format!("{key}:\n"));
            for line in value.split('\n') {
                w.put(&format!("\t  {}\n", cut(line, LONGEST_ANNOTATION - 2)));
            }
        } else {
            w.put(&format!("{key}: {value}\n"));
        }
    }
}

/// At most so many bytes of a text, and `...` if there are more.
pub fn cut(text: &str, longest: usize) -> String {
    if text.len() <= longest {
        return text.to_owned();
    }
    let mut end = longest;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &text[..end])
}

/// `a=b,c=d`, or `<none>`.
pub fn on_a_line(map: &Value) -> String {
    let pairs: Vec<String> = map.pairs().into_iter().map(|(k, v)| format!("{k}={v}")).collect();
    or(&pairs.join(","), "<none>").to_owned()
}

/// A label selector as text, its requirements by key; "" if it has none.
pub fn selector(selector: &Value) -> String {
    let mut parts: Vec<(String, String)> = Vec::new();
    for (key, value) in selector["matchLabels"].pairs() {
        parts.push((key.into(), format!("{key}={value}")));
    }
    for rule in selector["matchExpressions"].items() {
        let key = rule["key"].text();
        let mut values = rule["values"].texts();
        values.sort_unstable();
        let values = values.join(",");
        let text = match rule["operator"].text() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        parts.push((key.into(), text));
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    parts.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

/// A label selector as text, `<none>` if it is empty.
pub fn selector_or_none(of: &Value) -> String {
    or(&selector(of), "<none>").to_owned()
}

/// Kind and name of the controller that owns an object.
pub fn controller(w: &mut Sheet, object: &Value) {
    if let Some(owner) = owner(object) {
        row!(w, 0, "Controlled By:\t{}/{}", owner["kind"].text(), owner["name"].text());
    }
}

/// The reference to the controller of an object.
pub fn owner(object: &Value) -> Option<&Value> {
    object["metadata"]["ownerReferences"].items().iter().find(|o| o["controller"].is_true())
}

/// A table of conditions with reasons, as workloads have it.
pub fn conditions(w: &mut Sheet, object: &Value) {
    let all = object["status"]["conditions"].items();
    if all.is_empty() {
        return;
    }
    w.put("Conditions:\n  Type\tStatus\tReason\n");
    row!(w, 1, "----\t------\t------");
    for c in all {
        row!(w, 1, "{} \t{}\t{}", c["type"].text(), c["status"].text(), c["reason"].text());
    }
}

/// A table of conditions with their times.
pub fn dated_conditions(w: &mut Sheet, object: &Value) {
    row!(w, 0, "Conditions:");
    row!(w, 1, "Type\tStatus\tLastTransitionTime\tReason\tMessage");
    row!(w, 1, "----\t------\t------------------\t------\t-------");
    for c in object["status"]["conditions"].items() {
        let time = crate::value::date(&c["lastTransitionTime"]);
        let text = |key: &str| c[key].text().to_owned();
        row!(w, 1, "{}\t{}\t{time}\t{}\t{}", text("type"), text("status"), text("reason"), text("message"));
    }
}

/// The events about an object; `None` if they cannot be read. `kind` and `uid` are left out where they are "".
pub async fn events_of(session: &Session, object: &Value, kind: &str, uid: &str) -> Option<Vec<Value>> {
    let (namespace, name) = (object["metadata"]["namespace"].text(), object["metadata"]["name"].text());
    let mut fields = vec![format!("involvedObject.name={name}"), format!("involvedObject.namespace={namespace}")];
    if !kind.is_empty() {
        fields.push(format!("involvedObject.kind={kind}"));
    }
    if !uid.is_empty() {
        fields.push(format!("involvedObject.uid={uid}"));
    }
    let path = match namespace {
        "" => "/api/v1/events".to_owned(),
        namespace => format!("/api/v1/namespaces/{namespace}/events"),
    };
    list(session, &path, &[("fieldSelector", &fields.join(","))]).await.ok()
}

/// All items of a list, read in chunks.
pub async fn list(session: &Session, path: &str, pairs: &[(&str, &str)]) -> Outcome<Vec<Value>> {
    let (mut all, mut next) = (Vec::new(), String::new());
    let limit = session.parsed.text("chunk-size");
    let limit = if limit == "0" { "" } else { or(limit, "500") };
    loop {
        let mut pairs = pairs.to_vec();
        pairs.extend([("limit", limit), ("continue", next.as_str())]);
        let mut page = session.get(&format!("{path}{}", query(&pairs))).await?;
        if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
            all.extend(items);
        }
        match page["metadata"]["continue"].text() {
            "" => return Ok(all),
            token => next = token.to_owned(),
        }
    }
}

/// The table of events at a description's end.
pub fn events(w: &mut Sheet, found: Option<Vec<Value>>) {
    let Some(mut found) = found else { return };
    if found.is_empty() {
        row!(w, 0, "Events:\t<none>");
        return;
    }
    w.flush();
    found.sort_by(|a, b| a["lastTimestamp"].text().cmp(b["lastTimestamp"].text()));
    w.put("Events:\n  Type\tReason\tAge\tFrom\tMessage\n");
    row!(w, 1, "----\t------\t----\t----\t-------");
    for event in &found {
        let first = if event["eventTime"].is_there() { &event["eventTime"] } else { &event["firstTimestamp"] };
        let first = ago(first);
        let count = event["count"].number();
        let series = &event["series"];
        let seen = if series.is_there() {
            format!("{} (x{} over {first})", ago(&series["lastObservedTime"]), series["count"].number())
        } else if count > 1 {
            format!("{} (x{count} over {first})", ago(&event["lastTimestamp"]))
        } else {
            first
        };
        let source = or(event["source"]["component"].text(), event["reportingComponent"].text());
        let (kind, reason) = (event["type"].text(), event["reason"].text());
        row!(w, 1, "{kind}\t{reason}\t{seen}\t{source}\t{}", event["message"].text().trim());
    }
}

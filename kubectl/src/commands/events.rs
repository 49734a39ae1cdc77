//! `events`.

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, switch, text};
use crate::kinds;
use crate::objects::SELECT;
use crate::output::{self, Format, list, table};
use crate::session::{Session, query};

/// Flags of `events`.
pub const FLAGS: &[&[Flag]] = &[
    output::FLAGS,
    &[
        SELECT[2],
        text("chunk-size", "500", "Return large lists in chunks rather than all at once."),
        text("for", "", "Filter events to only those pertaining to the specified resource."),
        switch("no-headers", "When using the default output format, don't print headers."),
        repeated("types", "Output only events of given types."),
        switch("watch", "After listing the requested events, watch for more events.").short('w'),
    ],
];

/// A span of time as tables print it.
pub fn age(since: &str) -> String {
    crate::value::ago(&Value::from(since))
}

fn last_seen(event: &Value) -> &str {
    let text = |value: &'static str| event[value].as_str().filter(|t| !t.is_empty());
    event["series"]["lastObservedTime"].as_str().or(text("lastTimestamp")).or(text("eventTime")).unwrap_or_default()
}

/// A time as a number; what is none comes first.
fn moment(time: &str) -> Value {
    time.parse::<jiff::Timestamp>().map_or(i64::MIN, |time| time.as_microsecond()).into()
}

/// Runs `events`.
pub async fn events(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let mut fields = Vec::new();
    if !parsed.text("for").is_empty() {
        let Some((kind, name)) = parsed.text("for").split_once('/') else {
            return Err(Failure::new("--for must be in resource/name form"));
        };
        let kind = kinds::resolve(session, kind).await?;
        fields.push(format!("involvedObject.kind={}", kind.kind));
        fields.push(format!("involvedObject.name={name}"));
    }
    let fields = fields.join(",");
    let namespace = session.namespace()?;
    let path = if parsed.on("all-namespaces") {
        "/api/v1/events".into()
    } else {
        format!("/api/v1/namespaces/{namespace}/events")
    };
    let answer = session.get(&format!("{path}{}", query(&[("fieldSelector", &fields)]))).await?;
    let mut events = answer["items"].as_array().cloned().unwrap_or_default();
    let types = parsed.list("types");
    if types.iter().any(|t| !t.eq_ignore_ascii_case("Normal") && !t.eq_ignore_ascii_case("Warning")) {
        return Err(Failure::new("valid --types are Normal or Warning"));
    }
    events.retain(|e| {
        types.is_empty() || types.iter().any(|t| e["type"].as_str().is_some_and(|own| own.eq_ignore_ascii_case(t)))
    });
    let seen: Vec<_> = events.iter().map(|event| Some(moment(last_seen(event)))).collect();
    crate::output::sort::by_keys(&mut events, &seen);
    for event in &mut events {
        event["apiVersion"] = "v1".into();
        event["kind"] = "Event".into();
    }
    let format = Format::of(parsed)?;
    if format.is_object() {
        print!("{}", format.print(&list(events), parsed.on("show-managed-fields"))?);
        return Ok(());
    }
    if events.is_empty() && !parsed.on("watch") {
        match parsed.on("all-namespaces") {
            true => eprintln!("No events found."),
            false => eprintln!("No events found in {namespace} namespace."),
        }
        return Ok(());
    }
    let mut rows = Vec::new();
    let all = parsed.on("all-namespaces");
    if !parsed.on("no-headers") {
        let titles = ["NAMESPACE", "LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"].map(str::to_owned);
        rows.push(titles[usize::from(!all)..].to_vec());
    }
    rows.extend(events.iter().map(|event| row(event)[usize::from(!all)..].to_vec()));
    print!("{}", table::align(&rows));
    if !parsed.on("watch") {
        return Ok(());
    }
    let version = answer["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let pairs = [("fieldSelector", fields.as_str()), ("watch", "true"), ("resourceVersion", version)];
    let mut widths = Vec::new();
    table::measure(&rows, &mut widths);
    follow(session, &format!("{path}{}", query(&pairs)), &types, widths).await
}

/// Prints events as they come.
async fn follow(session: &Session, path: &str, types: &[String], mut widths: Vec<usize>) -> Outcome {
    let first = usize::from(!session.parsed.on("all-namespaces"));
    super::get::lines(session, path, "application/json", |change| {
        let event = &change["object"];
        let wanted = types.is_empty()
            || types.iter().any(|t| event["type"].as_str().is_some_and(|own| own.eq_ignore_ascii_case(t)));
        match change["type"].as_str() {
            Some("ERROR") => return Err(Failure::Server(event.clone())),
            Some("ADDED" | "MODIFIED") if wanted => {
                let cells = row(event)[first..].to_vec();
                table::measure(std::slice::from_ref(&cells), &mut widths);
                print!("{}", table::line(&cells, &widths));
            }
            _ => {}
        }
        Ok(true)
    })
    .await
}

/// An event's cells, the namespace first.
fn row(event: &Value) -> [String; 6] {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let count = event["series"]["count"].as_i64().or(event["count"].as_i64()).unwrap_or(0);
    let first = event["firstTimestamp"].as_str().or(event["eventTime"].as_str()).unwrap_or_default();
    let seen = match count {
        n if n > 1 => format!("{} (x{n} over {})", age(last_seen(event)), age(first)),
        _ => age(last_seen(event)),
    };
    let about = &event["involvedObject"];
    [
        text(&event["metadata"]["namespace"]),
        seen,
        text(&event["type"]),
        text(&event["reason"]),
        format!("{}/{}", text(&about["kind"]), text(&about["name"])),
        text(&event["message"]).trim().to_owned(),
    ]
}

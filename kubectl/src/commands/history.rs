//! Objects as they were: `--at` and `--since` take a revision, a time, or how long ago that was.
//!
//! The API knows revisions only. Leases are renewed every few seconds, and each renewal has a time and a revision, so that
//! their history tells which revision belongs to a time.

use jiff::Timestamp;
use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::flags::duration;
use crate::kinds::Kind;
use crate::session::{Session, encode, query};
use crate::value::Read;

use super::get::lines;

const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";

/// The time that a text means: a timestamp, or a span before now.
fn time_of(text: &str) -> Outcome<Timestamp> {
    if let Some(span) = duration(text) {
        let span = jiff::SignedDuration::try_from(span).map_err(|e| Failure::new(e.to_string()))?;
        return Timestamp::now().checked_sub(span).map_err(|e| Failure::new(e.to_string()));
    }
    text.parse().map_err(|_| {
        Failure::new(format!("{text:?} is no revision, no time (2006-01-02T15:04:05Z) and no span (5m) before now"))
    })
}

/// The revision that a text means.
pub async fn revision(session: &Session, text: &str) -> Outcome<String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(text.to_owned());
    }
    let wanted = time_of(text)?;
    let start = oldest(session).await?;
    let (mut found, mut first) = (None, None);
    let path = format!("{LEASES}{}", query(&[("watch", "true"), ("resourceVersion", &start), ("timeoutSeconds", "1")]));
    lines(session, &path, "application/json", |event| {
        let object = &event["object"];
        if event["type"] == "ERROR" {
            return Err(Failure::Server(object.clone()));
        }
        let Ok(time) = object["spec"]["renewTime"].text().parse::<Timestamp>() else { return Ok(true) };
        first.get_or_insert(time);
        if time > wanted {
            return Ok(false);
        }
        found = Some(object["metadata"]["resourceVersion"].text().to_owned());
        Ok(true)
    })
    .await?;
    found.ok_or_else(|| {
        let begins = first.map_or("now".to_owned(), |t| t.to_string());
        Failure::new(format!("the history that is kept begins at {begins}, after {wanted}"))
    })
}

/// The oldest revision from which the server can still tell what happened.
async fn oldest(session: &Session) -> Outcome<String> {
    let mut start = "1".to_owned();
    let path = format!("{LEASES}?watch=true&resourceVersion=1&timeoutSeconds=1");
    let asked = lines(session, &path, "application/json", |event| {
        let message = event["object"]["message"].text();
        if event["type"] == "ERROR"
            && let Some(revision) = message.rsplit_once('(').and_then(|(_, rest)| rest.strip_suffix(')'))
        {
            start = revision.to_owned();
        }
        Ok(false)
    })
    .await;
    match asked {
        Err(Failure::Server(status)) if status["code"] == 410 => {
            let message = status["message"].text().to_owned();
            let revision = message.rsplit_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
            Ok(revision.unwrap_or("1").to_owned())
        }
        Err(error) => Err(error),
        Ok(()) => Ok(start),
    }
}

/// The path of a kind's objects as they were at a revision; of one name only, if it is given.
pub fn path(kind: &Kind, namespace: Option<&str>, name: Option<&str>, revision: &str) -> String {
    let field = name.map(|name| format!("metadata.name={name}")).unwrap_or_default();
    let pairs = [("fieldSelector", field.as_str()), ("resourceVersion", revision), ("resourceVersionMatch", "Exact")];
    format!("{}{}", kind.path(namespace), query(&pairs))
}

/// Objects as they were, with their kind.
pub async fn read(
    session: &Session,
    kind: &Kind,
    namespace: Option<&str>,
    name: Option<&str>,
    revision: &str,
) -> Outcome<Vec<Value>> {
    let mut list = session.get(&path(kind, namespace, name, revision)).await.map_err(|e| too_old(e, revision))?;
    Ok(crate::output::items_of(kind, &mut list))
}

/// The refusal of what was compacted, with what can be done about it.
pub fn too_old(error: Failure, revision: &str) -> Failure {
    match error.status() {
        410 => Failure::new(format!(
            "revision {revision} is older than the history that is kept; `keelson server --compaction-interval` says how long \
             that is (5m without it), and `keelson snapshot` looks into copies"
        )),
        _ => error,
    }
}

/// An object as it is, if it is.
pub async fn now(session: &Session, kind: &Kind, namespace: &str, name: &str) -> Outcome<Option<Value>> {
    match session.get(&kind.object(namespace, &encode(name))).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_spans() {
        assert_eq!(time_of("2026-01-02T03:04:05Z").unwrap().to_string(), "2026-01-02T03:04:05Z");
        // Not more than the span before a moment that was earlier.
        let before = Timestamp::now();
        assert!(before.duration_since(time_of("5m").unwrap()).as_secs() <= 300);
        assert!(time_of("yesterday").is_err());
    }

    #[test]
    fn paths_of_what_was() {
        let kind = crate::kinds::all_built_in().into_iter().find(|k| k.plural == "pods").unwrap();
        assert_eq!(
            path(&kind, Some("d"), Some("p"), "7"),
            "/api/v1/namespaces/d/pods?fieldSelector=metadata.name%3Dp&resourceVersion=7&resourceVersionMatch=Exact"
        );
        assert_eq!(path(&kind, None, None, "7"), "/api/v1/pods?resourceVersion=7&resourceVersionMatch=Exact");
    }
}

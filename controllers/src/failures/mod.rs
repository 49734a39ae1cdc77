//! What each controller does when the API refuses, when its cache is behind, and when an object was deleted and made anew.

mod cases;
mod loops;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use keelson_client::{Body, Client, Transport};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::CONTROLLERS;
use crate::context::Context;
use crate::runtime::{Outcome, Work};
use cases::cases;

/// A request that the API was sent.
#[derive(Clone, Debug)]
struct Asked {
    method: http::Method,
    path: String,
    body: Value,
}

/// An API that answers every request with the same refusal, but for some questions, and remembers it.
struct Refusing {
    code: u16,
    reason: &'static str,
    /// What is read at some paths; nothing: it is not there.
    answers: Vec<(&'static str, Option<Value>)>,
    asked: Mutex<Vec<Asked>>,
}

impl Transport for Refusing {
    fn call(&self, request: http::Request<bytes::Bytes>) -> BoxFuture<'_, std::io::Result<http::Response<Body>>> {
        let body = serde_json::from_slice(request.body()).unwrap_or_default();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let watches = request.uri().query().is_some_and(|query| query.contains("watch="));
        let known = self.answers.iter().find(|(known, _)| method == http::Method::GET && !watches && *known == path);
        let refused = |code: u16, reason: &str| {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "refused",
                "reason": reason, "code": code});
            (code, status)
        };
        let (code, answer) = match known {
            Some((_, Some(answer))) => (200, answer.clone()),
            Some((_, None)) => refused(404, "NotFound"),
            None => refused(self.code, self.reason),
        };
        self.asked.lock().push(Asked { method, path, body });
        let body = Full::new(bytes::Bytes::from(answer.to_string())).map_err(|never| match never {}).boxed_unsync();
        let answer = http::Response::builder().status(code).header("content-type", "application/json").body(body);
        Box::pin(async move { answer.map_err(std::io::Error::other) })
    }
}

fn refusing(code: u16, reason: &'static str) -> Arc<Refusing> {
    Arc::new(Refusing { code, reason, answers: Vec::new(), asked: Mutex::default() })
}

impl Refusing {
    /// What was asked since the last time, events left out: they are best effort and may come whenever.
    fn take(&self) -> Vec<Asked> {
        let mut asked = std::mem::take(&mut *self.asked.lock());
        asked.retain(|a| !a.path.ends_with("/events"));
        asked
    }
}

/// Controllers that write nothing but events.
const TELLING: &[&str] = &["persistentvolume-expander-controller"];
/// Their questions, when refused, answer themselves: nothing is known, and the next look comes with time.
const PATIENT: &[&str] = &["legacy-serviceaccount-token-cleaner-controller"];

async fn look(name: &str, context: Arc<Context>, key: (&str, &str)) -> Outcome {
    let controller = CONTROLLERS.iter().find(|c| c.name == name).unwrap();
    let Work::Keyed { reconcile, .. } = controller.work else { panic!("{name} looks at no keys") };
    reconcile(context, (key.0.to_owned(), key.1.to_owned())).await
}

#[test]
fn every_controller_is_here() {
    let api = refusing(500, "InternalError");
    let here: BTreeSet<&str> = cases(&api).into_iter().map(|(name, ..)| name).chain(TELLING.iter().copied()).collect();
    let keyed = CONTROLLERS.iter().filter(|c| matches!(c.work, Work::Keyed { .. }));
    let loops: BTreeSet<&str> = loops::cases(&api).into_iter().map(|(name, _)| name).collect();
    let looping = CONTROLLERS.iter().filter(|c| matches!(c.work, Work::Loop(_)) && !loops.contains(c.name));
    let missing: Vec<&str> = keyed.filter(|c| !here.contains(c.name)).chain(looping).map(|c| c.name).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[tokio::test]
async fn what_the_api_refuses_is_tried_again() {
    let mut wrong = Vec::new();
    for (code, reason) in
        [(409, "Conflict"), (500, "InternalError"), (503, "ServiceUnavailable"), (429, "TooManyRequests")]
    {
        let api = refusing(code, reason);
        for (name, context, key) in cases(&api) {
            api.take();
            let outcome = look(name, context, key).await;
            if api.take().is_empty() {
                wrong.push(format!("{name} had nothing to ask for"));
            }
            if outcome.is_ok() {
                wrong.push(format!("{name} is content with {code}: {outcome:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What a cache shows may be gone: at most the look is repeated until the cache shows it too.
#[tokio::test]
async fn what_is_gone_without_the_cache_knowing_does_no_harm() {
    let api = refusing(404, "NotFound");
    for (name, context, key) in cases(&api) {
        api.take();
        match look(name, context, key).await {
            Ok(_) => {}
            Err(error) => assert!(error.is_not_found(), "{name}: {error}"),
        }
        // Whoever asks for something that is gone does not make it anew under the same name.
        let puts = api.take().into_iter().filter(|a| a.method == http::Method::PUT);
        for put in puts {
            assert!(is_bound(&put), "{name} would write over another object: {put:?}");
        }
    }
}

/// Whether a write can only hit the object that was looked at, not another one that has its name now.
fn is_bound(asked: &Asked) -> bool {
    let metadata = &asked.body["metadata"];
    match asked.method {
        http::Method::DELETE => asked.body["preconditions"]["uid"].is_string(),
        http::Method::PUT | http::Method::PATCH => {
            metadata["uid"].is_string() || metadata["resourceVersion"].is_string()
        }
        _ => true,
    }
}

#[tokio::test]
async fn an_object_made_anew_is_not_taken_for_the_one_that_was() {
    let api = refusing(409, "Conflict");
    let mut writes = 0;
    for (name, context, key) in cases(&api) {
        api.take();
        let _ = look(name, context, key).await;
        for asked in api.take() {
            assert!(is_bound(&asked), "{name}: {asked:?}");
            writes += usize::from(!asked.method.is_safe());
        }
    }
    assert!(writes >= cases(&api).len() / 2, "hardly anything was written: {writes}");
}

#[tokio::test]
async fn nothing_is_written_for_what_is_gone() {
    let api = refusing(500, "InternalError");
    for (name, _, key) in cases(&api) {
        if PATIENT.contains(&name) {
            continue;
        }
        let context = Arc::new(Context::of_client(Client::new(api.clone(), "test")));
        let outcome = look(name, context, key).await;
        assert!(matches!(outcome, Ok(None)), "{name}: {outcome:?}");
    }
    assert!(api.take().is_empty());
}

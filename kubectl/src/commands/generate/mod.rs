//! `create KIND`: objects made from flags.

mod access;
mod data;
mod network;
mod policies;
mod workloads;

pub use access::*;
pub use data::*;
pub use network::*;
pub use policies::*;
pub use workloads::*;

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::Flag;
use crate::output;
use crate::session::Session;

use super::create::{SAVE, WRITE, generate};

/// Flags of commands that take a name alone.
pub const PLAIN: &[&[Flag]] = &[output::FLAGS, WRITE, &[SAVE]];

fn name(session: &Session) -> Outcome<&str> {
    match session.parsed.args.as_slice() {
        [name] => Ok(name),
        args => Err(Failure::Plain(format!(
            "error: exactly one NAME is required, got {}\nSee '{} -h' for help and examples",
            args.len(),
            session.parsed.command
        ))),
    }
}

fn object(api_version: &str, kind: &str, name: &str) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}})
}

/// Checks the flags that a command cannot do without; this comes before anything else is looked at.
fn all_set(session: &Session, flags: &[&str]) -> Outcome {
    let missing: Vec<String> =
        flags.iter().filter(|flag| !session.parsed.is_set(flag)).map(|flag| format!("{flag:?}")).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(format!("required flag(s) {} not set", missing.join(", ")))),
    }
}

fn required(session: &Session, flag: &str) -> Outcome<String> {
    match session.parsed.text(flag) {
        "" => Err(Failure::new(format!("required flag(s) {flag:?} not set"))),
        given => Ok(given.to_owned()),
    }
}

fn command(session: &Session) -> Option<Value> {
    session.parsed.after_dash.as_ref().filter(|c| !c.is_empty()).map(|c| json!(c))
}

/// Runs `create namespace`.
pub async fn namespace(session: &Session) -> Outcome {
    let mut object = object("v1", "Namespace", name(session)?);
    object["spec"] = json!({});
    object["status"] = json!({});
    generate(session, object).await
}

/// Runs `create serviceaccount`.
pub async fn service_account(session: &Session) -> Outcome {
    generate(session, object("v1", "ServiceAccount", name(session)?)).await
}

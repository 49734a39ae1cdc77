//! Storage version migrations: every object of a resource is written again, in the version and the encryption of today.
//!
//! One migration of a resource runs at a time, the oldest first, and while it does the definition of a custom resource says so.
//! Once it has succeeded the definition names the storage version alone, if nobody changed the definition meanwhile.
//!
//! Keys are the group and the plural of a resource.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use k8s_openapi::api::storagemigration::v1beta1::{StorageVersionMigration, StorageVersionMigrationStatus};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ListMeta, Time};
use keelson_client::discovery::{self, ApiResource, METADATA_LIST, PartialObject};
use keelson_client::{Change, Error, Key};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::context::Context;
use crate::runtime::{Keys, Outcome, watch_with};

const RUNNING: &str = "Running";
const SUCCEEDED: &str = "Succeeded";
const FAILED: &str = "Failed";
/// The condition of a definition.
const MIGRATING: &str = "StorageMigrating";
/// Who applies the condition, and who writes the objects.
const RUNNER: &str = "migration-runner-controller";
const MIGRATOR: &str = "storage-version-migrator-controller";
/// Objects of one page.
const PAGE_OBJECTS: usize = 500;
/// How long a resource that is not served may still come, and how often it is looked for.
const UNKNOWN: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(5));

type Migration = StorageVersionMigration;

fn status_of(migration: &Migration) -> StorageVersionMigrationStatus {
    migration.status.clone().unwrap_or_default()
}

fn is_true(migration: &Migration, kind: &str) -> bool {
    let conditions = migration.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == kind && c.status == "True")
}

fn has_ended(migration: &Migration) -> bool {
    is_true(migration, SUCCEEDED) || is_true(migration, FAILED)
}

/// What is to be done with the migrations of a resource.
#[derive(Debug, PartialEq)]
enum Step {
    /// This one has ended: the definition is told, then it no longer runs.
    End(Arc<Migration>),
    /// It is this one's turn.
    Begin(Arc<Migration>),
    /// This one runs.
    Go(Arc<Migration>),
}

/// The next step with the migrations of one resource.
fn plan(mut migrations: Vec<Arc<Migration>>) -> Option<Step> {
    let runs =
        |m: &Arc<Migration>| m.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == RUNNING);
    if let Some(ended) = migrations.iter().find(|m| has_ended(m) && runs(m)) {
        return Some(Step::End(ended.clone()));
    }
    migrations.retain(|m| !has_ended(m));
    if let Some(running) = migrations.iter().find(|m| is_true(m, RUNNING)) {
        return Some(Step::Go(running.clone()));
    }
    let age = |m: &Arc<Migration>| (m.metadata.creation_timestamp.clone().map(|t| t.0), m.metadata.name.clone());
    migrations.into_iter().min_by_key(age).map(Step::Begin)
}

/// The status of a migration with a condition that is true.
fn with(
    migration: &Migration,
    kind: &str,
    (reason, message): (&str, &str),
    now: &Time,
) -> StorageVersionMigrationStatus {
    let mut status = status_of(migration);
    let conditions = status.conditions.get_or_insert_default();
    if kind != RUNNING {
        conditions.iter_mut().filter(|c| c.type_ == RUNNING).for_each(|c| c.status = "False".into());
    }
    conditions.retain(|c| c.type_ != kind);
    conditions.push(Condition {
        type_: kind.into(),
        status: "True".into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: now.clone(),
        observed_generation: None,
    });
    status
}

/// What is applied to the status of a definition: that a migration runs (its name), or (`None`) whether it succeeded.
fn applied(definition: &CustomResourceDefinition, running: Option<&str>, succeeded: bool, now: &Time) -> Value {
    let generation = definition.metadata.generation;
    let conditions =
        definition.status.iter().flat_map(|s: &CustomResourceDefinitionStatus| s.conditions.iter().flatten());
    let begun = conditions.into_iter().find(|c| c.type_ == MIGRATING).and_then(|c| c.observed_generation);
    let same = generation.is_some() && begun == generation;
    let (reason, message) = match running {
        Some(name) => ("MigrationRunning", format!("Migration {name} is running")),
        None if !succeeded => ("MigrationFailed", "The migration has failed".to_owned()),
        None => {
            let stored = if same {
                "and the stored versions have been updated"
            } else {
                "but the stored versions have not been updated due to a generation mismatch"
            };
            ("MigrationSucceeded", format!("The migration has succeeded {stored}"))
        }
    };
    // What was applied before and is left out now would be taken away; so the versions are always there, and a definition
    // that has changed since it was read is a conflict.
    let stored = match running.is_none() && succeeded && same {
        true => definition.spec.versions.iter().filter(|version| version.storage).map(|v| v.name.clone()).collect(),
        false => definition.status.as_ref().and_then(|s| s.stored_versions.clone()).unwrap_or_default(),
    };
    let condition = json!({"type": MIGRATING, "status": if running.is_some() { "True" } else { "False" },
        "reason": reason, "message": message, "lastTransitionTime": now, "observedGeneration": generation});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": definition.metadata.name, "resourceVersion": definition.metadata.resource_version},
        "status": {"conditions": [condition], "storedVersions": stored}})
}

/// Applies `body` as `manager`.
async fn apply(context: &Context, path: &str, manager: &str, body: &Value) -> Result<(), Error> {
    let path = format!("{path}?fieldManager={manager}&force={}", manager == RUNNER);
    let body = serde_json::to_vec(body)?.into();
    let _: IgnoredAny =
        context.client.request(Method::PATCH, &path, Some("application/apply-patch+yaml"), body).await?;
    Ok(())
}

/// Tells the resource's definition, if it has one.
async fn tell_definition(context: &Context, key: &Key, running: Option<&str>, succeeded: bool) -> Result<(), Error> {
    // The core group has none.
    if key.0.is_empty() {
        return Ok(());
    }
    let name = format!("{}.{}", key.1, key.0);
    let Some(definition) = context.client.cluster::<CustomResourceDefinition>().get_opt(&name).await? else {
        return Ok(());
    };
    let body = applied(&definition, running, succeeded, &context.now());
    let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}/status");
    match apply(context, &path, RUNNER, &body).await {
        Err(error) if error.is_not_found() => Ok(()),
        result => result,
    }
}

/// Writes a status; the change of the object brings the next step.
async fn write(context: &Context, migration: &Migration, status: StorageVersionMigrationStatus) -> Outcome {
    let name = migration.metadata.name.clone().unwrap_or_default();
    let new = Migration { status: Some(status), ..migration.clone() };
    match context.client.cluster::<Migration>().replace_status(&name, &new).await {
        Ok(written) => {
            if let Some(informer) = &context.storage_migrations {
                context.settle(informer, &written).await;
            }
            Ok(None)
        }
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

async fn fail(context: &Context, migration: &Migration, why: &str) -> Outcome {
    let message = format!("migration encountered unhandled error: {why}");
    let status = with(migration, FAILED, ("StorageVersionMigrationFailed", &message), &context.now());
    write(context, migration, status).await
}

/// One look at a migration that runs: notes how far it goes, or does it all.
async fn go(context: &Context, key: &Key, migration: &Migration) -> Outcome {
    let (resources, _) = discovery::resources(&context.client).await?;
    let Some(resource) = resources.into_iter().find(|r| (r.group.as_str(), r.plural.as_str()) == (&key.0, &key.1))
    else {
        let made = migration.metadata.creation_timestamp.as_ref().map_or(context.now().0, |t| t.0);
        let age = Duration::try_from(context.now().0.duration_since(made)).unwrap_or_default();
        if age < UNKNOWN.0 {
            return Ok(Some(UNKNOWN.1));
        }
        return fail(context, migration, "unable to obtain GVR from discovery").await;
    };
    let until = migration.status.as_ref().and_then(|s| s.resource_version.clone()).unwrap_or_default();
    if until.is_empty() {
        let path = format!("{}?limit=1", resource.path("", ""));
        let page: Page = context.client.read(&path, METADATA_LIST).await?;
        let status =
            StorageVersionMigrationStatus { resource_version: page.metadata.resource_version, ..status_of(migration) };
        return write(context, migration, status).await;
    }
    match migrate(context, &resource, until.parse().unwrap_or(u64::MAX)).await {
        Ok(()) => {
            let status = with(migration, SUCCEEDED, ("StorageVersionMigrationSucceeded", ""), &context.now());
            write(context, migration, status).await
        }
        Err(error) if matches!(&error, Error::Status(_)) && !matches!(error.code(), 429 | 500 | 503 | 504) => {
            fail(context, migration, &error.to_string()).await
        }
        Err(error) => Err(error),
    }
}

#[derive(Deserialize)]
struct Page {
    metadata: ListMeta,
    items: Option<Vec<PartialObject>>,
}

/// Writes all objects again that were last written at `until` or before.
async fn migrate(context: &Context, resource: &ApiResource, until: u64) -> Result<(), Error> {
    let api_version = if resource.group.is_empty() {
        resource.version.clone()
    } else {
        format!("{}/{}", resource.group, resource.version)
    };
    let mut token = String::new();
    loop {
        let path = format!("{}?limit={PAGE_OBJECTS}&continue={token}", resource.path("", ""));
        let page: Page = context.client.read(&path, METADATA_LIST).await?;
        for PartialObject { metadata } in page.items.unwrap_or_default() {
            let version = metadata.resource_version.as_deref().unwrap_or_default();
            if version.parse::<u64>().is_ok_and(|version| version > until) {
                continue;
            }
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let path = resource.path(&text(&metadata.namespace), &text(&metadata.name));
            // With both, one that changed, went or was made anew is a conflict: then there is nothing left to do.
            let body = json!({"apiVersion": api_version, "kind": resource.kind,
                "metadata": {"uid": metadata.uid, "resourceVersion": version}});
            match apply(context, &path, MIGRATOR, &body).await {
                Err(error) if !error.is_conflict() => return Err(error),
                _ => {}
            }
        }
        token = page.metadata.continue_.unwrap_or_default();
        if token.is_empty() {
            return Ok(());
        }
    }
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    let Some(migrations) = &context.storage_migrations else { return };
    watch_with(migrations, queue, |change: &Change<Migration>| {
        let resource = change.object().and_then(|migration| migration.spec.as_ref()).map(|spec| &spec.resource);
        resource.map(|r| (r.group.clone(), r.resource.clone())).into_iter().collect()
    });
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(migrations) = &context.storage_migrations else { return Ok(None) };
    let is_its = |m: &Arc<Migration>| {
        m.spec.as_ref().is_some_and(|s| (s.resource.group.as_str(), s.resource.resource.as_str()) == (&key.0, &key.1))
    };
    match plan(migrations.list_all().into_iter().filter(is_its).collect()) {
        None => Ok(None),
        Some(Step::Go(migration)) => go(&context, &key, &migration).await,
        Some(Step::Begin(migration)) => {
            tell_definition(&context, &key, migration.metadata.name.as_deref(), false).await?;
            let words = ("MigrationRunning", "The migration is running");
            write(&context, &migration, with(&migration, RUNNING, words, &context.now())).await
        }
        Some(Step::End(migration)) => {
            tell_definition(&context, &key, None, is_true(&migration, SUCCEEDED)).await?;
            let mut status = status_of(&migration);
            status.conditions.iter_mut().for_each(|conditions| conditions.retain(|c| c.type_ != RUNNING));
            write(&context, &migration, status).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A migration by its name, its age in seconds, and its conditions as `Type=Status`.
    fn migration(name: &str, age: i64, conditions: &[&str]) -> Arc<Migration> {
        let conditions: Vec<Value> = conditions.iter().map(|condition| {
            let (kind, status) = condition.split_once('=').unwrap();
            json!({"type": kind, "status": status, "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"})
        }).collect();
        let made = k8s_openapi::jiff::Timestamp::from_second(2_000_000_000 - age).unwrap();
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "creationTimestamp": made.to_string()},
            "status": {"conditions": conditions}}))
            .unwrap(),
        )
    }

    #[test]
    fn one_runs_at_a_time_the_oldest_first() {
        let (old, new) = (migration("z", 9, &[]), migration("a", 1, &[]));
        let twin = migration("b", 9, &[]);
        let (running, second) = (migration("r", 5, &["Running=True"]), migration("s", 6, &["Running=True"]));
        let ended = migration("e", 20, &["Running=False", "Succeeded=True"]);
        let told = migration("t", 20, &["Failed=True"]);
        for (given, expected) in [
            (vec![], None),
            (vec![&new, &old], Some(Step::Begin(old.clone()))),
            (vec![&new, &old, &twin], Some(Step::Begin(twin.clone()))),
            (vec![&old, &running], Some(Step::Go(running.clone()))),
            (vec![&running, &second], Some(Step::Go(running.clone()))),
            (vec![&old, &running, &ended], Some(Step::End(ended.clone()))),
            (vec![&told], None),
            (vec![&told, &new], Some(Step::Begin(new.clone()))),
        ] {
            assert_eq!(plan(given.into_iter().cloned().collect()), expected);
        }
    }

    #[test]
    fn an_end_is_the_end_of_running() {
        let now = Time("2026-02-02T00:00:00Z".parse().unwrap());
        let running = migration("r", 5, &["Running=True"]);
        let status = with(&running, SUCCEEDED, ("StorageVersionMigrationSucceeded", ""), &now);
        let shown: Vec<(String, String)> =
            status.conditions.unwrap().into_iter().map(|c| (c.type_, c.status)).collect();
        assert_eq!(shown, [(RUNNING.into(), "False".into()), (SUCCEEDED.into(), "True".to_owned())]);
    }

    #[test]
    fn a_definition_is_told_what_happens() {
        let now = Time("2026-02-02T00:00:00Z".parse().unwrap());
        let definition = |generation: i64, begun: Option<i64>| -> CustomResourceDefinition {
            let conditions: Vec<Value> = begun
                .iter()
                .map(|begun| {
                    json!({"type": MIGRATING, "status": "True",
                "reason": "", "message": "", "lastTransitionTime": now, "observedGeneration": begun})
                })
                .collect();
            serde_json::from_value(json!({"metadata": {"name": "xs.g", "generation": generation},
                "spec": {"group": "g", "names": {"kind": "X", "plural": "xs"}, "scope": "Cluster", "versions": [
                    {"name": "v1", "served": true, "storage": false}, {"name": "v2", "served": true, "storage": true}]},
                "status": {"conditions": conditions, "storedVersions": ["v1", "v2"]}}))
            .unwrap()
        };
        let both = json!(["v1", "v2"]);
        let updated = "The migration has succeeded and the stored versions have been updated";
        let not =
            "The migration has succeeded but the stored versions have not been updated due to a generation mismatch";
        for (given, running, succeeded, expected) in [
            (
                definition(3, None),
                Some("m"),
                false,
                ("True", "MigrationRunning", "Migration m is running", both.clone()),
            ),
            (definition(3, Some(3)), None, true, ("False", "MigrationSucceeded", updated, json!(["v2"]))),
            (definition(4, Some(3)), None, true, ("False", "MigrationSucceeded", not, both.clone())),
            (definition(4, None), None, true, ("False", "MigrationSucceeded", not, both.clone())),
            (definition(3, Some(3)), None, false, ("False", "MigrationFailed", "The migration has failed", both)),
        ] {
            let body = applied(&given, running, succeeded, &now);
            let condition = &body["status"]["conditions"][0];
            let got = ["status", "reason", "message"].map(|key| condition[key].as_str().unwrap());
            assert_eq!((got, &body["status"]["storedVersions"]), ([expected.0, expected.1, expected.2], &expected.3));
            assert_eq!(condition["observedGeneration"], given.metadata.generation.unwrap());
        }
    }
}

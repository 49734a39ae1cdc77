//! EventRateLimit: events beyond a rate are refused, for the server, a namespace, a user, or a source and its object.

use std::collections::HashMap;
use std::time::Instant;

use keelson_machinery::status::Status;
use parking_lot::Mutex;
use serde_json::Value;

use crate::access::{Admission, AdmissionPlugin};

/// Keys that a limit remembers unless told otherwise.
const DEFAULT_KEYS: usize = 4096;

struct Limit {
    kind: String,
    per_second: f64,
    burst: f64,
    keys: usize,
    /// What each key may still do, and since when it has grown.
    buckets: Mutex<HashMap<String, (f64, Instant)>>,
}

/// The plugin.
pub(super) struct EventRateLimit(Vec<Limit>);

impl EventRateLimit {
    /// From the plugin's configuration (`eventratelimit.admission.k8s.io/v1alpha1`).
    pub fn new(config: &Value) -> Result<Self, String> {
        let limits = config["limits"].as_array().filter(|list| !list.is_empty());
        let limits = limits.ok_or("EventRateLimit: limits: Invalid value: must not be empty")?;
        let limits = limits.iter().map(|limit| {
            let number = |key: &str| limit[key].as_u64().filter(|n| *n > 0);
            let kind = limit["type"].as_str().unwrap_or_default().to_owned();
            if !matches!(kind.as_str(), "Server" | "Namespace" | "User" | "SourceAndObject") {
                return Err(format!("EventRateLimit: limits.type: Unsupported value: {kind:?}"));
            }
            let positive =
                |key: &str| number(key).ok_or_else(|| format!("EventRateLimit: limits.{key}: must be positive"));
            Ok(Limit {
                per_second: positive("qps")? as f64,
                burst: positive("burst")? as f64,
                keys: number("cacheSize").and_then(|n| usize::try_from(n).ok()).unwrap_or(DEFAULT_KEYS),
                kind,
                buckets: Mutex::default(),
            })
        });
        limits.collect::<Result<_, _>>().map(Self)
    }
}

impl Limit {
    fn key(&self, request: &Admission<'_>) -> String {
        match self.kind.as_str() {
            "Namespace" => request.namespace.to_owned(),
            "User" => request.user.name.clone(),
            "SourceAndObject" => request
                .object
                .as_deref()
                .map_or_else(String::new, |event| format!("{}{}", event["source"], event["involvedObject"])),
            _ => String::new(),
        }
    }

    fn takes(&self, key: String, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        if buckets.len() >= self.keys && !buckets.contains_key(&key) {
            // The one that was used least recently has most likely filled up again.
            if let Some(oldest) = buckets.iter().min_by_key(|(_, (_, at))| *at).map(|(key, _)| key.clone()) {
                buckets.remove(&oldest);
            }
        }
        let (left, at) = buckets.entry(key).or_insert((self.burst, now));
        *left = (*left + now.duration_since(*at).as_secs_f64() * self.per_second).min(self.burst);
        *at = now;
        if *left < 1.0 {
            return false;
        }
        *left -= 1.0;
        true
    }
}

#[async_trait::async_trait]
impl AdmissionPlugin for EventRateLimit {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        if request.def.plural != "events" || request.dry_run || request.object.is_none() {
            return Ok(());
        }
        let now = Instant::now();
        for limit in &self.0 {
            let key = limit.key(request);
            if !limit.takes(key.clone(), now) {
                let why = format!("limit reached on type {} for key {key}", limit.kind);
                return Err(Status::too_many_requests(&why, 1));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn a_bucket_empties_and_fills() {
        let plugin =
            EventRateLimit::new(&json!({"limits": [{"type": "User", "qps": 1, "burst": 2, "cacheSize": 2}]})).unwrap();
        let (limit, start) = (&plugin.0[0], Instant::now());
        let takes = |key: &str, seconds: u64| limit.takes(key.into(), start + Duration::from_secs(seconds));
        assert!(takes("a", 0) && takes("a", 0) && !takes("a", 0));
        assert!(takes("b", 0), "another has its own");
        assert!(takes("a", 1) && !takes("a", 1), "one a second");
        assert!(takes("c", 2) && limit.buckets.lock().len() == 2, "no more are remembered than may be");
        assert!(EventRateLimit::new(&json!({})).is_err());
    }
}

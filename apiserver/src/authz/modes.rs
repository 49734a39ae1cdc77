//! The order of authorizers: by name (`--authorization-mode`), or as an AuthorizationConfiguration says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keelson_machinery::decode;
use serde_json::Value;

use super::abac::Abac;
use super::config_check;
use super::webhook::{self, Webhook};
use crate::settings::duration;
use crate::strict;

/// An authorizer.
#[derive(Debug)]
pub enum Mode {
    /// Says yes to all.
    AlwaysAllow,
    /// Says no to all.
    AlwaysDeny,
    /// The policy file.
    Abac(Abac),
    /// Roles and bindings.
    Rbac,
    /// What kubelets may.
    Node,
    /// A service.
    Webhook(Box<Webhook>),
}

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Names of authorizers, in order; none: Node, RBAC.
    pub modes: Vec<String>,
    /// The policy file of ABAC.
    pub abac_file: Option<PathBuf>,
    /// kubeconfig of the webhook.
    pub webhook: Option<PathBuf>,
    /// `v1` or `v1beta1`.
    pub webhook_version: String,
    /// For how long the webhook's yes is remembered.
    pub webhook_allowed_ttl: Duration,
    /// For how long the webhook's no is remembered.
    pub webhook_denied_ttl: Duration,
    /// An AuthorizationConfiguration instead of all these.
    pub config: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            modes: Vec::new(),
            abac_file: None,
            webhook: None,
            webhook_version: "v1beta1".into(),
            webhook_allowed_ttl: ALLOWED_TTL,
            webhook_denied_ttl: DENIED_TTL,
            config: None,
        }
    }
}

/// For how long a webhook's yes is remembered unless told otherwise.
pub const ALLOWED_TTL: Duration = Duration::from_secs(5 * 60);
/// For how long a webhook's no is remembered unless told otherwise.
pub const DENIED_TTL: Duration = Duration::from_secs(30);
/// Longest that a webhook of the flags may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Names of authorizers.
const NAMES: [&str; 6] = ["AlwaysAllow", "AlwaysDeny", "ABAC", "Webhook", "RBAC", "Node"];

impl Settings {
    /// The authorizers in their order.
    pub fn load(&self) -> Result<Vec<Mode>, String> {
        if let Some(path) = &self.config {
            if !self.modes.is_empty() || self.webhook.is_some() {
                return Err("--authorization-config can not be specified when --authorization-mode or \
                            --authorization-webhook-* flags are defined"
                    .into());
            }
            return configured(path).map_err(|why| format!("--authorization-config {}: {why}", path.display()));
        }
        if self.modes.is_empty() {
            return Ok(vec![Mode::Node, Mode::Rbac]);
        }
        let has = |name: &str| self.modes.iter().any(|mode| mode == name);
        if self.abac_file.is_some() && !has("ABAC") {
            return Err("cannot specify --authorization-policy-file without mode ABAC".into());
        }
        if self.webhook.is_some() && !has("Webhook") {
            return Err("cannot specify --authorization-webhook-config-file without mode Webhook".into());
        }
        self.modes.iter().map(|name| self.mode(name)).collect()
    }

    fn mode(&self, name: &str) -> Result<Mode, String> {
        Ok(match name {
            "AlwaysAllow" => Mode::AlwaysAllow,
            "AlwaysDeny" => Mode::AlwaysDeny,
            "RBAC" => Mode::Rbac,
            "Node" => Mode::Node,
            "ABAC" => {
                let path = self.abac_file.as_ref();
                Mode::Abac(Abac::load(path.ok_or("authorization-mode ABAC's authorization policy file not passed")?)?)
            }
            "Webhook" => {
                let path = self.webhook.clone();
                Mode::Webhook(Box::new(Webhook::load(webhook::Settings {
                    name: "default".into(),
                    kubeconfig: path.ok_or("authorization-mode Webhook's authorization config file not passed")?,
                    version: version(&self.webhook_version)?,
                    allowed_ttl: self.webhook_allowed_ttl,
                    denied_ttl: self.webhook_denied_ttl,
                    timeout: TIMEOUT,
                    failure_denies: false,
                    conditions: Vec::new(),
                })?))
            }
            other => return Err(format!("authorization-mode {other:?} is not a valid mode: use {}", NAMES.join(", "))),
        })
    }
}

fn version(text: &str) -> Result<String, String> {
    match text {
        "v1" | "v1beta1" => Ok(text.to_owned()),
        other => Err(format!("unsupported SubjectAccessReview version {other:?}: use v1 or v1beta1")),
    }
}

fn configured(path: &Path) -> Result<Vec<Mode>, String> {
    let config = decode::yaml(&std::fs::read(path).map_err(|e| e.to_string())?)?.value;
    let known = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];
    if config["kind"] != "AuthorizationConfiguration" || !known.iter().any(|v| config["apiVersion"] == *v) {
        return Err("must be an AuthorizationConfiguration of apiserver.config.k8s.io/v1".into());
    }
    strict::known(&config, &config_check::FIELDS)?;
    let causes = config_check::problems(&config);
    if !causes.is_empty() {
        let told: Vec<String> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        return Err(told.join(", "));
    }
    let list = config["authorizers"].as_array().into_iter().flatten().enumerate();
    let modes = list.map(|(index, authorizer)| {
        let name = authorizer["name"].as_str().unwrap_or_default();
        match authorizer["type"].as_str().unwrap_or_default() {
            "Webhook" => webhook_of(name, &authorizer["webhook"]).map_err(|why| format!("authorizers[{index}].{why}")),
            // What needs further flags is not for the file.
            "RBAC" => Ok(Mode::Rbac),
            "Node" => Ok(Mode::Node),
            "AlwaysAllow" => Ok(Mode::AlwaysAllow),
            "AlwaysDeny" => Ok(Mode::AlwaysDeny),
            other => Err(format!("authorizers[{index}].type: Unsupported value: {other:?}")),
        }
    });
    modes.collect()
}

fn webhook_of(name: &str, of: &Value) -> Result<Mode, String> {
    let text = |key: &str| of[key].as_str().unwrap_or_default();
    let seconds = |key: &str, default: Option<Duration>| match (text(key), default) {
        ("", Some(default)) => Ok(default),
        ("", None) => Err(format!("webhook.{key}: Required value")),
        (given, _) => duration(given).ok_or_else(|| format!("webhook.{key}: Invalid value: {given:?}")),
    };
    let conditions = of["matchConditions"].as_array().into_iter().flatten();
    if of["connectionInfo"]["type"] != "KubeConfigFile" {
        let why = "there is no service account of the server's own: use KubeConfigFile";
        return Err(format!("webhook.connectionInfo.type: Invalid value: \"InClusterConfig\": {why}"));
    }
    let file = of["connectionInfo"]["kubeConfigFile"].as_str();
    let failure_denies = text("failurePolicy") == "Deny";
    Ok(Mode::Webhook(Box::new(Webhook::load(webhook::Settings {
        name: name.to_owned(),
        kubeconfig: file.ok_or("webhook.connectionInfo.kubeConfigFile: Required value")?.into(),
        version: version(text("subjectAccessReviewVersion"))
            .map_err(|why| format!("webhook.subjectAccessReviewVersion: {why}"))?,
        allowed_ttl: seconds("authorizedTTL", Some(ALLOWED_TTL))?,
        denied_ttl: seconds("unauthorizedTTL", Some(DENIED_TTL))?,
        timeout: seconds("timeout", None)?,
        failure_denies,
        conditions: conditions.filter_map(|c| c["expression"].as_str()).map(str::to_owned).collect(),
    })?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_named_and_need_their_files() {
        let load = |modes: &[&str]| {
            Settings { modes: modes.iter().map(|m| (*m).to_owned()).collect(), ..Settings::default() }.load()
        };
        assert!(matches!(load(&[]).unwrap()[..], [Mode::Node, Mode::Rbac]));
        assert!(matches!(load(&["RBAC", "AlwaysDeny"]).unwrap()[..], [Mode::Rbac, Mode::AlwaysDeny]));
        for (mode, why) in
            [("Role", "is not a valid mode"), ("ABAC", "policy file not passed"), ("Webhook", "config file not passed")]
        {
            assert!(load(&[mode]).unwrap_err().contains(why), "{mode}");
        }
    }

    #[test]
    fn configurations_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let load = |text: &str| {
            std::fs::write(
                &path,
                format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n{text}"),
            )
            .unwrap();
            Settings { config: Some(path.clone()), ..Settings::default() }.load()
        };
        let good = load("authorizers: [{type: Node, name: node}, {type: RBAC, name: rbac}]").unwrap();
        assert!(matches!(good[..], [Mode::Node, Mode::Rbac]));
        for (text, why) in [
            ("", "authorizers: Required value: at least one authorization mode must be defined"),
            ("authorizers: [{name: a}]", "authorizers[0].type: Required value"),
            ("authorizers: [{type: RBAC}]", "authorizers[0].name: Required value"),
            (
                "authorizers: [{type: RBAC, name: A_b}]",
                "authorizers[0].name: Invalid value: \"A_b\": authorizer name is invalid",
            ),
            (
                "authorizers: [{type: RBAC, name: a}, {type: RBAC, name: b}]",
                "authorizers[1].type: Duplicate value: \"RBAC\"",
            ),
            ("authorizers: [{type: RBAC, name: a, webhook: {timeout: 1s}}]", "may only be specified when type=Webhook"),
            ("authorizers: [{type: RBAC, name: a, bogus: 1}]", "unknown field \"authorizers[0].bogus\""),
            (
                "authorizers: [{type: Webhook, name: a}]",
                "authorizers[0].webhook: Required value: required when type=Webhook",
            ),
            (
                "authorizers: [{type: Webhook, name: a, webhook: {timeout: 1m}}]",
                "authorizers[0].timeout: Invalid value: \"1m0s\": must be > 0s and <= 30s",
            ),
            (
                "authorizers: [{type: Webhook, name: a, webhook: {matchConditions: [{expression: a}]}}]",
                "matchConditionSubjectAccessReviewVersion: Required value: required if match conditions are specified",
            ),
            (
                "authorizers: [{type: Webhook, name: a, webhook: {connectionInfo: {type: KubeConfigFile, kubeConfigFile: x}}}]",
                "must be an absolute path",
            ),
            ("authorizers: [{type: X, name: a}]", "authorizers[0].type: Unsupported value"),
            ("authorizers: [{type: RBAC, name: a}, {type: Node, name: a}]", "Duplicate value"),
            (
                "authorizers: [{type: Webhook, name: a, webhook: {failurePolicy: Deny}}]",
                "authorizers[0].connectionInfo.type: Required value",
            ),
        ] {
            assert!(load(text).unwrap_err().contains(why), "{text}");
        }
    }
}

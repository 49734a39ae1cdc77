//! Profiles that confine containers: seccomp, AppArmor, and what Windows has instead.

use serde_json::{Value, json};

use super::check::Problems;
use super::{entries, has, items, text};
use crate::{names, shown};

const KINDS: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
/// Longest path of an AppArmor profile, bytes.
const MAX_PROFILE_PATH: usize = 4095;
/// Longest GMSA credential, KiB.
const MAX_CREDENTIAL_KIB: usize = 64;
/// Longest parts of a Windows user's name.
const MAX_DOMAIN: usize = 256;
const MAX_USER: usize = 104;
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const TYPES_DIFFER: &str = "type in annotation and field must match";
const PROFILES_DIFFER: &str = "profile in annotation and field must match";

/// A seccomp profile.
pub fn seccomp(profile: &Value, at: &str, p: &mut Problems) {
    if !profile.is_object() {
        return;
    }
    match text(profile, "type") {
        "" => p.required(format!("{at}.type"), "type is required when seccompProfile is set"),
        _ => p.one_of(format!("{at}.type"), &profile["type"], KINDS),
    }
    let field = format!("{at}.localhostProfile");
    match (text(profile, "type") == "Localhost", has(profile, "localhostProfile")) {
        (true, false) => p.required(field, "must be set when seccomp type is Localhost"),
        (true, true) => p.local_path(&field, &profile["localhostProfile"]),
        (false, true) => {
            let shown = shown::compact("Profile", profile);
            p.invalid_shown(field, &shown, "can only be set when seccomp type is Localhost");
        }
        (false, false) => {}
    }
}

/// An AppArmor profile.
pub fn app_armor(profile: &Value, at: &str, p: &mut Problems) {
    if !profile.is_object() {
        return;
    }
    let field = format!("{at}.localhostProfile");
    let needed = "must be set when AppArmor type is Localhost";
    match text(profile, "type") {
        "" => p.required(format!("{at}.type"), "type is required when appArmorProfile is set"),
        "Localhost" => match profile["localhostProfile"].as_str() {
            None => p.required(field, needed),
            Some(path) => {
                if path.trim() != path {
                    p.invalid(&field, &profile["localhostProfile"], "must not be padded with whitespace");
                } else if path.is_empty() {
                    p.required(&field, needed);
                }
                if path.len() > MAX_PROFILE_PATH {
                    p.too_long(field, MAX_PROFILE_PATH);
                }
            }
        },
        "RuntimeDefault" | "Unconfined" => {
            if has(profile, "localhostProfile") {
                let why = "can only be set when AppArmor type is Localhost";
                p.invalid(field, &profile["localhostProfile"], why);
            }
        }
        _ => p.one_of(format!("{at}.type"), &profile["type"], KINDS),
    }
}

/// What a Windows container runs as.
pub fn windows(options: &Value, at: &str, p: &mut Problems) {
    if has(options, "gmsaCredentialSpecName") {
        p.subdomain(format!("{at}.gmsaCredentialSpecName"), &options["gmsaCredentialSpecName"]);
    }
    if let Some(credential) = options["gmsaCredentialSpec"].as_str() {
        let field = format!("{at}.gmsaCredentialSpec");
        if credential.is_empty() {
            p.invalid(field, &json!(""), "gmsaCredentialSpec cannot be an empty string");
        } else if credential.len() > MAX_CREDENTIAL_KIB << 10 {
            let why = format!("gmsaCredentialSpec size must be under {MAX_CREDENTIAL_KIB} KiB");
            p.invalid(field, &options["gmsaCredentialSpec"], &why);
        }
    }
    if let Some(name) = options["runAsUserName"].as_str() {
        for why in user_name_problems(name) {
            p.invalid(format!("{at}.runAsUserName"), &options["runAsUserName"], &why);
        }
    }
}

fn user_name_problems(name: &str) -> Vec<String> {
    if name.is_empty() {
        return vec!["runAsUserName cannot be an empty string".into()];
    }
    if name.contains(|c: char| c.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters".into()];
    }
    let parts: Vec<&str> = name.split('\\').collect();
    let (domain, user) = match parts[..] {
        [user] => (None, user),
        [domain, user] => (Some(domain), user),
        _ => return vec!["runAsUserName cannot contain more than one backslash".into()],
    };
    let mut out = Vec::new();
    if domain.is_some_and(|d| d.len() >= MAX_DOMAIN) {
        out.push(format!("runAsUserName's Domain length must be under {MAX_DOMAIN} characters"));
    }
    if domain.is_some_and(|d| !is_net_bios(d) && !is_windows_domain(d)) {
        out.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format".into());
    }
    if user.is_empty() {
        out.push("runAsUserName's User cannot be empty".into());
    } else if user.len() > MAX_USER {
        out.push(format!("runAsUserName's User length must not be longer than {MAX_USER} characters"));
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        out.push("runAsUserName's User cannot contain only periods or spaces".into());
    }
    if user.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        out.push("runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]".into());
    }
    out
}

fn is_net_bios(domain: &str) -> bool {
    let bad = ['\\', '/', ':', '*', '?', '"', '<', '>', '|'];
    !domain.is_empty() && domain.chars().count() <= 15 && !domain.contains(bad) && !domain.starts_with('.')
}

fn is_windows_domain(domain: &str) -> bool {
    domain.split('.').all(|label| names::label_problems(&label.to_ascii_lowercase()).is_empty())
}

/// All containers of a pod with their paths.
pub fn containers<'a>(spec: &'a Value, path: &'a str) -> impl Iterator<Item = (&'a Value, String)> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(move |list| {
        items(&spec[list]).enumerate().map(move |(index, container)| (container, format!("{path}.{list}[{index}]")))
    })
}

/// Whether all containers of a Windows pod are host processes, or none.
pub fn host_processes(spec: &Value, path: &str, p: &mut Problems) {
    let of_pod = spec["securityContext"]["windowsOptions"]["hostProcess"].as_bool();
    let (mut count, mut host) = (0, 0);
    for (container, at) in containers(spec, path) {
        count += 1;
        let own = container["securityContext"]["windowsOptions"]["hostProcess"].as_bool();
        if let (Some(pod), Some(own)) = (of_pod, own)
            && pod != own
        {
            let why = format!("pod hostProcess value must be identical if both are specified, was {pod}");
            p.invalid(format!("{at}.securityContext.windowsOptions.hostProcess"), &json!(own), &why);
        }
        host += usize::from(own.or(of_pod) == Some(true));
    }
    if host == 0 {
        return;
    }
    if host != count {
        let why = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        p.invalid(path, &json!(""), why);
    }
    if spec["hostNetwork"] != true {
        let why = "hostNetwork must be true if pod contains any hostProcess containers";
        p.invalid(format!("{path}.hostNetwork"), &json!(false), why);
    }
}

/// Annotations that were profiles before there were fields: their forms.
pub fn annotations(annotations: &Value, spec: &Value, at: &str, p: &mut Problems) {
    for (key, value) in entries(annotations) {
        if key == SECCOMP_POD || key.starts_with(SECCOMP_CONTAINER) {
            let profile = value.as_str().unwrap_or_default();
            let known = matches!(profile, "runtime/default" | "docker/default" | "unconfined");
            match profile.strip_prefix("localhost/") {
                _ if known => {}
                Some(path) => p.local_path(&format!("{at}.{key}"), &json!(path)),
                None => p.invalid(format!("{at}.{key}"), value, "must be a valid seccomp profile"),
            }
        }
        if let Some(name) = key.strip_prefix(APP_ARMOR) {
            if !containers(spec, "spec").any(|(c, _)| text(c, "name") == name) {
                p.invalid(format!("{at}[{key}]"), &json!(name), "container not found");
            }
            let profile = value.as_str().unwrap_or_default();
            if !matches!(profile, "" | "runtime/default" | "unconfined") && !profile.starts_with("localhost/") {
                p.invalid(format!("{at}[{key}]"), value, &format!("invalid AppArmor profile name: {profile:?}"));
            }
        }
    }
}

/// What the annotations say of the profiles and what the fields say must be the same.
pub fn agree(annotations: &Value, spec: &Value, path: &str, p: &mut Problems) {
    let of_pod = &spec["securityContext"];
    same("seccomp", &annotations[SECCOMP_POD], &of_pod["seccompProfile"], &format!("{path}.securityContext"), p);
    for (container, at) in containers(spec, path) {
        let name = text(container, "name");
        let (own, at) = (&container["securityContext"], format!("{at}.securityContext"));
        same("seccomp", &annotations[format!("{SECCOMP_CONTAINER}{name}")], &own["seccompProfile"], &at, p);
        if spec["os"]["name"] != "windows" {
            let profile =
                if own["appArmorProfile"].is_object() { &own["appArmorProfile"] } else { &of_pod["appArmorProfile"] };
            same("apparmor", &annotations[format!("{APP_ARMOR}{name}")], profile, &at, p);
        }
    }
}

fn same(what: &str, annotation: &Value, profile: &Value, at: &str, p: &mut Problems) {
    let Some(said) = annotation.as_str().filter(|_| profile.is_object()) else { return };
    let at = format!("{at}.{}", if what == "seccomp" { "seccompProfile" } else { "appArmorProfile" });
    let fits = match text(profile, "type") {
        "Unconfined" => said == "unconfined",
        "RuntimeDefault" => said == "runtime/default" || what == "seccomp" && said == "docker/default",
        "Localhost" => match said.strip_prefix("localhost/") {
            Some(path) if profile["localhostProfile"] != path => {
                return p.forbidden(format!("{at}.localhostProfile"), &format!("{what} {PROFILES_DIFFER}"));
            }
            Some(_) => true,
            None => false,
        },
        _ => true,
    };
    if !fits {
        p.forbidden(format!("{at}.type"), &format!("{what} {TYPES_DIFFER}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_held_to_their_rules() {
        type Rule = fn(&Value, &str, &mut Problems);
        for (rule, profile, expected) in [
            (seccomp as Rule, json!({"type": "Localhost", "localhostProfile": "a.json"}), vec![]),
            (
                seccomp,
                json!({"type": "Unconfined", "localhostProfile": "x"}),
                vec![
                    "s.localhostProfile: Invalid value: {\"Type\":\"Unconfined\",\"LocalhostProfile\":\"x\"}: can only be set \
                     when seccomp type is Localhost",
                ],
            ),
            (
                seccomp,
                json!({"type": "Odd"}),
                vec![
                    "s.type: Unsupported value: \"Odd\": supported values: \"Localhost\", \"RuntimeDefault\", \"Unconfined\"",
                ],
            ),
            (
                app_armor,
                json!({"type": ""}),
                vec!["s.type: Required value: type is required when appArmorProfile is set"],
            ),
            (
                app_armor,
                json!({"type": "Localhost", "localhostProfile": " a"}),
                vec!["s.localhostProfile: Invalid value: \" a\": must not be padded with whitespace"],
            ),
            (
                windows,
                json!({"runAsUserName": "a\\b\\c"}),
                vec![
                    "s.runAsUserName: Invalid value: \"a\\\\b\\\\c\": runAsUserName cannot contain more than one backslash",
                ],
            ),
            (
                windows,
                json!({"runAsUserName": ".. ", "gmsaCredentialSpec": ""}),
                vec![
                    "s.gmsaCredentialSpec: Invalid value: \"\": gmsaCredentialSpec cannot be an empty string",
                    "s.runAsUserName: Invalid value: \".. \": runAsUserName's User cannot contain only periods or spaces",
                ],
            ),
        ] {
            let mut p = Problems::default();
            rule(&profile, "s", &mut p);
            let found: Vec<String> = p.0.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
            assert_eq!(found, expected, "{profile}");
        }
    }
}

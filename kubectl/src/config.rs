//! Kubeconfig files: found, merged and changed as kubectl does.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::Parsed;
use crate::shape::{self, empty};

/// The kubeconfig files of a command line and what they come to.
pub struct Config {
    /// The files, in the order in which they count.
    pub files: Vec<PathBuf>,
    /// All of them as one.
    pub merged: Value,
}

/// Finds an entry of `clusters`, `contexts` or `users`.
pub fn entry<'a>(config: &'a Value, list: &str, name: &str) -> Option<&'a Value> {
    config[list].as_array()?.iter().find(|e| e["name"] == name).map(|e| &e[&list[..list.len() - 1]])
}

/// Finds or makes an entry.
pub fn entry_mut<'a>(config: &'a mut Value, list: &str, name: &str) -> Option<&'a mut Value> {
    if !config[list].is_array() {
        config[list] = json!([]);
    }
    let key = &list[..list.len() - 1];
    let entries = config[list].as_array_mut()?;
    let at = match entries.iter().position(|e| e["name"] == name) {
        Some(at) => at,
        None => {
            entries.push(json!({"name": name, key: {}}));
            entries.len() - 1
        }
    };
    Some(&mut entries[at][key])
}

impl Config {
    /// Reads the files that `--kubeconfig`, `KUBECONFIG` or the home directory name. A missing file counts as empty.
    pub fn load(parsed: &Parsed) -> Outcome<Self> {
        let given = parsed.text("kubeconfig");
        let (files, required): (Vec<PathBuf>, bool) = match (given, std::env::var("KUBECONFIG")) {
            ("", Ok(list)) if !list.is_empty() => {
                (list.split(':').filter(|f| !f.is_empty()).map(PathBuf::from).collect(), false)
            }
            ("", _) => {
                let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
                (vec![home.join(".kube/config")], false)
            }
            (given, _) => (vec![given.into()], true),
        };
        let mut merged = empty();
        for file in &files {
            match read(file) {
                Ok(Some(config)) => merge(&mut merged, config),
                // What changes or shows configurations takes a file that is not there for an empty one.
                Ok(None) if required && !parsed.command.starts_with("kubectl config ") => {
                    return Err(Failure::new(format!("stat {}: no such file or directory", file.display())));
                }
                Ok(None) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { files, merged: shape::shaped(&merged) })
    }

    /// The context that counts: `--context` or the current one.
    pub fn context_name(&self, parsed: &Parsed) -> String {
        match parsed.text("context") {
            "" => self.merged["current-context"].as_str().unwrap_or_default().to_owned(),
            name => name.to_owned(),
        }
    }

    /// The name of the user that counts.
    pub fn user_name(&self, parsed: &Parsed) -> String {
        match parsed.text("user") {
            "" => entry(&self.merged, "contexts", &self.context_name(parsed))
                .and_then(|c| c["user"].as_str())
                .unwrap_or_default()
                .to_owned(),
            given => given.to_owned(),
        }
    }

    /// The file that something new goes to: the first that there is, or the last of them.
    pub fn new_file(&self) -> PathBuf {
        self.files.iter().find(|file| file.exists()).or(self.files.last()).cloned().unwrap_or_default()
    }

    /// The file that says which context is the current one.
    pub fn file_with_current(&self) -> PathBuf {
        let says = |file: &&PathBuf| read(file).ok().flatten().is_some_and(|config| config["current-context"] != "");
        self.files.iter().find(says).cloned().unwrap_or_else(|| self.new_file())
    }

    /// The file that a change goes to: the one that has the entry, or that of new ones.
    pub fn file_with(&self, list: &str, name: &str) -> PathBuf {
        let has =
            |file: &&PathBuf| read(file).ok().flatten().is_some_and(|config| entry(&config, list, name).is_some());
        self.files.iter().find(has).cloned().unwrap_or_else(|| self.new_file())
    }

    /// Changes one file.
    pub fn change(file: &Path, change: impl FnOnce(&mut Value) -> Outcome) -> Outcome {
        let mut config = read(file)?.unwrap_or_else(empty);
        change(&mut config)?;
        let base = std::path::absolute(file)?;
        // What is beside the file or below it is named as seen from it.
        shape::with_paths(&mut config, |path| {
            let below = Path::new(path).strip_prefix(base.parent()?).ok()?;
            Some(below.to_string_lossy().into_owned())
        });
        let text = keelson_machinery::yaml::write(&shape::written(&config))?;
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent)?;
        }
        write_private(file, text.as_bytes())?;
        Ok(())
    }
}

fn write_private(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let part = file.with_extension("part");
    let mut out = std::fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
    out.write_all(bytes)?;
    std::fs::rename(part, file)
}

/// Reads one file; paths in it become absolute.
fn read(file: &Path) -> Outcome<Option<Value>> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::new(format!("open {}: {error}", file.display()))),
    };
    let mut config = shape::parse(&text, file)?;
    let base = std::path::absolute(file)?;
    let base = base.parent().unwrap_or(Path::new("."));
    shape::with_paths(&mut config, |path| {
        (!Path::new(path).is_absolute()).then(|| base.join(path).to_string_lossy().into_owned())
    });
    Ok(Some(config))
}

/// What an earlier file says wins.
fn merge(into: &mut Value, from: Value) {
    for list in ["clusters", "contexts", "users"] {
        for entry in from[list].as_array().into_iter().flatten() {
            let Some(have) = into[list].as_array_mut() else { continue };
            if !have.iter().any(|e| e["name"] == entry["name"]) {
                have.push(entry.clone());
            }
        }
    }
    if into["preferences"].as_object().is_none_or(Map::is_empty) && from["preferences"].is_object() {
        into["preferences"] = from["preferences"].clone();
    }
    if into["current-context"].as_str().is_none_or(str::is_empty)
        && let Some(current) = from["current-context"].as_str()
    {
        into["current-context"] = current.into();
    }
}

/// Where to send requests and as whom.
pub struct Access {
    /// `https://host:port`
    pub server: String,
    /// The default namespace.
    pub namespace: String,
    /// The name that the server's certificate must have, if it is not its host.
    pub server_name: Option<String>,
    /// Trust and identity.
    pub tls: rustls::ClientConfig,
    /// The bearer token.
    pub token: Option<String>,
    /// Headers of impersonation.
    pub impersonate: Vec<(String, String)>,
}

/// What the configuration and the flags come to.
pub fn access(config: &Config, parsed: &Parsed) -> Outcome<Access> {
    let name = config.context_name(parsed);
    let nothing = Value::Null;
    let context = match entry(&config.merged, "contexts", &name) {
        Some(context) => context,
        None if name.is_empty() || parsed.text("context").is_empty() => &nothing,
        None => {
            return Err(Failure::Plain(format!(
                "Error in configuration: context was not found for specified context: {name}"
            )));
        }
    };
    // `create rolebinding --user` and `set subject --user` name subjects.
    let is_subject = parsed.command.ends_with("binding") || parsed.command.ends_with("set subject");
    let own = |flag: &str| if flag == "user" && is_subject { "" } else { parsed.text(flag) };
    let chosen = |flag: &str, key: &str| match own(flag) {
        "" => context[key].as_str().unwrap_or_default().to_owned(),
        given => given.to_owned(),
    };
    let find = |list: &str, name: &str| match entry(&config.merged, list, name) {
        Some(found) => {
            // Messages about what it says name it.
            let mut found = found.clone();
            found["name"] = name.into();
            Ok(found)
        }
        None if name.is_empty() => Ok(Value::Object(Map::new())),
        None => Err(Failure::new(format!("no server found for {} \"{name}\"", &list[..list.len() - 1]))),
    };
    let cluster = find("clusters", &chosen("cluster", "cluster"))?;
    let user = match find("users", &chosen("user", "user")) {
        Ok(user) => user,
        Err(_) if own("user").is_empty() => Value::Object(Map::new()),
        Err(_) => return Err(Failure::new(format!("auth info \"{}\" does not exist", parsed.text("user")))),
    };
    let server = match (parsed.text("server"), cluster["server"].as_str()) {
        ("", Some(server)) if !server.is_empty() => server.to_owned(),
        ("", _) => "http://localhost:8080".into(),
        (given, _) => given.to_owned(),
    };
    let server = if server.contains("://") { server } else { format!("https://{server}") };
    let namespace = match chosen("namespace", "namespace") {
        empty if empty.is_empty() => "default".into(),
        namespace => namespace,
    };
    let tls = tls(parsed, &cluster, &user)?;
    let token = match (parsed.text("token"), user["token"].as_str(), user["tokenFile"].as_str()) {
        ("", Some(token), _) => Some(token.to_owned()),
        ("", None, Some(file)) => Some(std::fs::read_to_string(file)?.trim().to_owned()),
        ("", None, None) => crate::credential::from_exec(&user)?,
        (given, ..) => Some(given.to_owned()),
    };
    let server_name = match parsed.text("tls-server-name") {
        "" => cluster["tls-server-name"].as_str().filter(|n| !n.is_empty()).map(str::to_owned),
        given => Some(given.to_owned()),
    };
    Ok(Access { server, namespace, server_name, tls, token, impersonate: impersonation(parsed, &user) })
}

fn impersonation(parsed: &Parsed, user: &Value) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    let name = match parsed.text("as") {
        "" => user["as"].as_str().unwrap_or_default(),
        given => given,
    };
    if !name.is_empty() {
        headers.push(("Impersonate-User".into(), name.to_owned()));
    }
    headers.extend(parsed.all("as-group").into_iter().map(|g| ("Impersonate-Group".into(), g)));
    if !parsed.text("as-uid").is_empty() {
        headers.push(("Impersonate-Uid".into(), parsed.text("as-uid").to_owned()));
    }
    headers
}

fn pem(of: &Value, key: &str, flag: &str) -> Outcome<Option<String>> {
    if flag.is_empty()
        && let Some(encoded) = of[format!("{key}-data")].as_str()
    {
        let bytes = STANDARD.decode(encoded.trim()).map_err(|e| Failure::new(format!("{key}-data: {e}")))?;
        return String::from_utf8(bytes).map(Some).map_err(|e| Failure::new(format!("{key}-data: {e}")));
    }
    let path = if flag.is_empty() { of[key].as_str() } else { Some(flag) };
    let read = |path: &str| {
        std::fs::read_to_string(path).map_err(|e| {
            let (whose, why) = (of["name"].as_str().unwrap_or_default(), crate::failure::opening(path, &e));
            match key.starts_with("client-") {
                true => Failure::Plain(format!(
                    "Error in configuration: \n* unable to read {} {path} for {whose} due to {why}",
                    key.replace("ificate", "")
                )),
                false => Failure::new(format!("unable to read {key} {path} for {whose} due to {why}")),
            }
        })
    };
    path.filter(|p| !p.is_empty()).map(read).transpose()
}

/// The certificates that this host trusts.
fn host_roots() -> Outcome<String> {
    const BUNDLES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
    let found = BUNDLES.iter().find_map(|file| std::fs::read_to_string(file).ok());
    found.ok_or_else(|| {
        Failure::new("the kubeconfig names no certificate authority, and this host has no bundle of trusted ones")
    })
}

fn tls(parsed: &Parsed, cluster: &Value, user: &Value) -> Outcome<rustls::ClientConfig> {
    let ca = pem(cluster, "certificate-authority", parsed.text("certificate-authority"))?;
    let certificate = pem(user, "client-certificate", parsed.text("client-certificate"))?;
    let key = pem(user, "client-key", parsed.text("client-key"))?;
    let issued = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(keelson_pki::Issued { certificate, key }),
        _ => None,
    };
    let identity = issued.as_ref().map_or(keelson_pki::Identity::None, keelson_pki::Identity::Certificate);
    let insecure = parsed.on("insecure-skip-tls-verify") || cluster["insecure-skip-tls-verify"] == true;
    let built = match (insecure, ca) {
        (true, _) => keelson_pki::client_config_unverified(identity),
        (false, Some(ca)) => keelson_pki::client_config(&ca, identity),
        (false, None) => keelson_pki::client_config(&host_roots()?, identity),
    };
    built.map_err(|error| Failure::new(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_wins() {
        let mut merged = empty();
        let file = |server: &str, current: &str| json!({"clusters": [{"name": "a", "cluster": {"server": server}}], "current-context": current});
        merge(&mut merged, file("https://one", ""));
        merge(&mut merged, file("https://two", "ctx"));
        assert_eq!(entry(&merged, "clusters", "a").unwrap()["server"], "https://one");
        assert_eq!(merged["current-context"], "ctx");
    }

    #[test]
    fn a_change_keeps_the_rest_and_the_mode() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sub/config");
        Config::change(&file, |config| {
            *entry_mut(config, "clusters", "a").unwrap() = json!({"server": "https://x"});
            Ok(())
        })
        .unwrap();
        Config::change(&file, |config| {
            config["current-context"] = "c".into();
            Ok(())
        })
        .unwrap();
        let config = read(&file).unwrap().unwrap();
        assert_eq!(
            (&config["current-context"], &config["clusters"][0]["cluster"]["server"]),
            (&json!("c"), &json!("https://x"))
        );
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

//! `keelson install`: makes this machine a server or an agent for good: checks it, writes its flags and a systemd unit,
//! starts it. A receipt of all that was made is kept, by which `keelson uninstall` leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::place::{self, Place, Role};
use super::{preflight, unit};
use crate::args::{AgentArgs, ServerArgs};

/// Where the receipt is.
const RECEIPT: &str = "/etc/keelson/installed.json";
/// Where the program is put if it is not where a package put it.
const BINARY: &str = "/usr/local/bin/keelson";
/// Where a package puts it: it stays the package's.
const PACKAGED: &str = "/usr/bin/keelson";

/// `keelson install ...`
#[derive(Args, Clone, Debug)]
pub struct InstallArgs {
    /// Install below this directory instead of on this machine; nothing is started
    #[arg(long, global = true, default_value = "/", value_name = "DIR")]
    pub root: PathBuf,
    /// Write everything, but start nothing now
    #[arg(long, global = true)]
    pub no_start: bool,
    /// Go on though a check failed
    #[arg(long, global = true)]
    pub ignore_checks: bool,
    /// What this machine becomes.
    #[command(subcommand)]
    pub role: InstallRole,
}

/// What a machine can become.
#[derive(Subcommand, Clone, Debug)]
pub enum InstallRole {
    /// A server, with these flags of `keelson server`
    Server(Box<ServerArgs>),
    /// A node, with these flags of `keelson agent`
    Agent(Box<AgentArgs>),
}

impl InstallRole {
    fn role(&self) -> Role {
        match self {
            Self::Server(_) => Role::Server,
            Self::Agent(_) => Role::Agent,
        }
    }

    fn data_dir(&self) -> &Path {
        match self {
            Self::Server(args) => &args.data_dir,
            Self::Agent(args) => &args.data_dir,
        }
    }
}

/// What was made, so that it can be taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Receipt {
    /// Files and links.
    pub files: Vec<PathBuf>,
    /// Directories that were not there before, the outermost first.
    pub directories: Vec<PathBuf>,
    /// What the services write, by role.
    pub data: Vec<(String, PathBuf)>,
}

impl Receipt {
    /// The receipt of an installation; empty if there is none.
    pub fn read(place: &Place) -> Result<Self> {
        let file = place.at(RECEIPT);
        match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", file.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| file.display().to_string()),
        }
    }

    /// Records it; before what it names is made, so that a crash in between leaves nothing unknown.
    pub fn write(&self, place: &Place) -> Result<()> {
        place::write(&place.at(RECEIPT), &serde_json::to_vec_pretty(self)?, 0o600)
    }

    /// Removes it.
    pub fn remove(place: &Place) -> Result<()> {
        let file = place.at(RECEIPT);
        place::remove_file(&file).map(drop).with_context(|| file.display().to_string())
    }

    /// Notes a file that is about to be made; its missing parents are made.
    fn note(&mut self, place: &Place, file: &Path) -> Result<()> {
        for made in place::make_parents(&place.at(file))? {
            let inside = Path::new("/").join(made.strip_prefix(place.at("/")).unwrap_or(&made));
            if !self.directories.contains(&inside) {
                self.directories.push(inside);
            }
        }
        if !self.files.iter().any(|known| known == file) {
            self.files.push(file.to_owned());
        }
        Ok(())
    }
}

/// Runs the command; `matches` are its own.
pub fn run(args: &InstallArgs, matches: &ArgMatches) -> Result<()> {
    let (role, place) = (args.role.role(), Place::new(&args.root));
    let given = matches.subcommand().map(|(_, given)| given).context("no role is named")?;
    let data_dir = args.role.data_dir();
    if !data_dir.is_absolute() {
        bail!("--data-dir {} must begin with /: a service has no other directory to start from", data_dir.display());
    }
    let checks = preflight::check(&args.role, &place);
    preflight::print(&checks);
    if preflight::failed(&checks) && !args.ignore_checks {
        bail!("nothing was installed: do what the checks say, or go on regardless with --ignore-checks");
    }
    let flags = merged(&place, role, settings(role, given)?)?;
    let mut receipt = Receipt::read(&place)?;
    receipt.note(&place, Path::new(RECEIPT))?;
    receipt.files.retain(|file| file != Path::new(RECEIPT));
    let binary = binary(&place, &mut receipt)?;
    let unit_path = Path::new("/etc/systemd/system").join(role.unit());
    let enabled = Path::new("/etc/systemd/system/multi-user.target.wants").join(role.unit());
    for file in [&place::config_path(role), &unit_path, &enabled] {
        receipt.note(&place, file)?;
    }
    receipt.data.retain(|(name, _)| name != role.name());
    receipt.data.push((role.name().to_owned(), data_dir.to_owned()));
    receipt.write(&place)?;
    place::write(&place.config(role), yaml(&flags)?.as_bytes(), 0o600)?;
    place::write(&place.unit(role), unit::text(role, &binary).as_bytes(), 0o644)?;
    enable(&place.enabled(role), &unit_path)?;
    println!("installed {} with {}", role.unit(), place.config(role).display());
    start(args, role, &place, &binary)
}

/// The link by which systemd starts the unit with the machine, as `systemctl enable` makes it.
fn enable(link: &Path, unit: &Path) -> Result<()> {
    place::remove_file(link)?;
    std::os::unix::fs::symlink(unit, link).with_context(|| format!("cannot link {}", link.display()))
}

/// Where the program will be, and puts it there unless a package did.
fn binary(place: &Place, receipt: &mut Receipt) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    if place.is_live() && [Path::new(PACKAGED), Path::new(BINARY)].contains(&own.as_path()) {
        return Ok(own);
    }
    receipt.note(place, Path::new(BINARY))?;
    receipt.write(place)?;
    let (target, part) = (place.at(BINARY), place.at(BINARY).with_extension("keelson-part"));
    fs::copy(&own, &part).with_context(|| format!("cannot copy the program to {}", part.display()))?;
    fs::rename(&part, &target).with_context(|| target.display().to_string())?;
    Ok(BINARY.into())
}

fn start(args: &InstallArgs, role: Role, place: &Place, binary: &Path) -> Result<()> {
    if args.no_start || !place.is_live() {
        return Ok(());
    }
    if !systemd_runs() {
        println!(
            "systemd does not run here; start it by hand: {} {} --config {}",
            binary.display(),
            role.name(),
            place::config_path(role).display()
        );
        return Ok(());
    }
    systemctl(&["daemon-reload"])?;
    systemctl(&["restart", "--no-block", &role.unit()])?;
    println!("started; follow it with: journalctl -fu {}", role.unit());
    Ok(())
}

/// Whether systemd is this machine's first process.
pub fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// Runs systemctl.
pub fn systemctl(arguments: &[&str]) -> Result<()> {
    let output = Command::new("systemctl").args(arguments).output().context("run systemctl")?;
    if !output.status.success() {
        bail!("systemctl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The flags that were given, by the command line, the environment or a file, as keys of the config file.
fn settings(role: Role, given: &ArgMatches) -> Result<Map<String, Value>> {
    let command = crate::args::Args::command();
    let command = command.find_subcommand(role.name()).context("the role has no command")?;
    let mut settings = Map::new();
    for argument in command.get_arguments() {
        let id = argument.get_id().as_str();
        let Some(name) = argument.get_long().filter(|name| *name != "config") else { continue };
        let known = given.try_contains_id(id).unwrap_or(false);
        if !known || !matches!(given.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
            continue;
        }
        let value = if argument.get_action().takes_values() {
            let raw = given.get_raw(id).into_iter().flatten();
            let mut values: Vec<Value> = raw.map(|value| value.to_string_lossy().into_owned().into()).collect();
            match values.len() {
                1 => values.remove(0),
                _ => Value::Array(values),
            }
        } else {
            Value::Bool(given.get_flag(id))
        };
        settings.insert(name.to_owned(), value);
    }
    Ok(settings)
}

/// What is installed already stays, where nothing else was given.
fn merged(place: &Place, role: Role, given: Map<String, Value>) -> Result<Map<String, Value>> {
    let file = place.config(role);
    let mut flags = match fs::read_to_string(&file) {
        Ok(text) => serde_saphyr::from_str(&text).with_context(|| format!("{} is not YAML", file.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
        Err(error) => return Err(error).with_context(|| file.display().to_string()),
    };
    flags.extend(given);
    Ok(flags)
}

/// One line for each key; JSON's values are YAML's.
fn yaml(flags: &Map<String, Value>) -> Result<String> {
    let mut text = String::from("# Flags of the service: names as on the command line. Restart it after a change.\n");
    for (key, value) in flags {
        text += &format!("{key}: {}\n", serde_json::to_string(value)?);
    }
    if flags.is_empty() {
        text += "{}\n";
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(arguments: &[&str]) -> Map<String, Value> {
        let argv = ["keelson", "install", "server"].iter().chain(arguments);
        let matches = crate::args::Args::command().args_override_self(true).try_get_matches_from(argv).unwrap();
        let install = matches.subcommand_matches("install").unwrap();
        settings(Role::Server, install.subcommand().unwrap().1).unwrap()
    }

    #[test]
    fn flags_become_keys() {
        let flags = given(&["--hollow", "3", "--cluster-init", "--tls-san", "a.example,b.example", "--name=x: y"]);
        let text = yaml(&flags).unwrap();
        assert!(
            text.ends_with(
                "cluster-init: true\nhollow: \"3\"\nname: \"x: y\"\ntls-san: [\"a.example\",\"b.example\"]\n"
            ),
            "{text}"
        );
        let read: Map<String, Value> = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(read["name"], "x: y");
        assert_eq!(yaml(&Map::new()).unwrap().lines().last(), Some("{}"));
    }
}

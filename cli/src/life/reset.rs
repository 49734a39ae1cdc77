//! `keelson reset` takes a machine out of its cluster and `keelson uninstall` takes Keelson off the machine: what the
//! receipt names is removed, and nothing else.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::install::{Receipt, systemctl, systemd_runs};
use super::place::{self, Place, Role};
use crate::identity::DataDir;

/// `keelson reset ...`
#[derive(Args, Clone, Debug)]
pub struct ResetArgs {
    /// Act below this directory instead of on this machine
    #[arg(long, default_value = "/", value_name = "DIR")]
    pub root: PathBuf,
    /// Do not ask: this machine's part of the cluster's state goes away for good
    #[arg(long)]
    pub yes: bool,
    /// Only what this role left
    #[arg(long, value_enum)]
    pub role: Option<Role>,
    /// Where it kept its state, if it was not installed with `keelson install`
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Socket of the container runtime, whose pods are ended
    #[arg(long, default_value = "unix:///run/containerd/containerd.sock")]
    pub runtime_endpoint: String,
    /// Keep the state, and make this stopped server the only one of its cluster: the way out when a majority of the
    /// servers is lost for good. Start it afterwards, then let the others join anew
    #[arg(long, conflicts_with_all = ["role", "yes"])]
    pub recover_quorum: bool,
}

/// `keelson uninstall ...`
#[derive(Args, Clone, Debug)]
pub struct UninstallArgs {
    /// Uninstall below this directory instead of on this machine
    #[arg(long, default_value = "/", value_name = "DIR")]
    pub root: PathBuf,
    /// Do not ask: this machine's part of the cluster's state goes away for good
    #[arg(long)]
    pub yes: bool,
    /// Leave what the services stored where it is
    #[arg(long)]
    pub keep_data: bool,
}

/// Runs `keelson reset`.
pub async fn reset(args: ResetArgs) -> Result<()> {
    let place = Place::new(&args.root);
    let receipt = Receipt::read(&place)?;
    if args.recover_quorum {
        return super::recover::run(&data_of(&args, &receipt, Role::Server)).await;
    }
    agreed(args.yes, "this machine leaves its cluster and its part of the state is removed")?;
    let roles: Vec<Role> = Role::ALL.into_iter().filter(|role| args.role.is_none_or(|only| only == *role)).collect();
    for role in &roles {
        stop(&place, *role)?;
    }
    if roles.contains(&Role::Agent) && place.is_live() {
        leave(&args, &receipt).await;
    }
    for role in &roles {
        let data = data_of(&args, &receipt, *role);
        if remove_data(&place, &data)? {
            println!("removed {}", place.at(&data).display());
        }
    }
    println!("reset; it can join again: keelson install server|agent ...");
    Ok(())
}

/// Runs `keelson uninstall`.
pub async fn uninstall(args: UninstallArgs) -> Result<()> {
    let place = Place::new(&args.root);
    let receipt = Receipt::read(&place)?;
    if receipt == Receipt::default() {
        bail!("nothing that `keelson install` made is here");
    }
    if !args.keep_data {
        agreed(args.yes, "Keelson and what it stored on this machine are removed")?;
    }
    for role in Role::ALL {
        stop(&place, role)?;
    }
    if place.is_live() && receipt.data.iter().any(|(name, _)| name == Role::Agent.name()) && !args.keep_data {
        let reset = ResetArgs {
            root: args.root.clone(),
            yes: true,
            role: None,
            data_dir: None,
            runtime_endpoint: "unix:///run/containerd/containerd.sock".into(),
            recover_quorum: false,
        };
        leave(&reset, &receipt).await;
    }
    for (_, data) in receipt.data.iter().filter(|_| !args.keep_data) {
        remove_data(&place, data)?;
    }
    for file in &receipt.files {
        let path = place.at(file);
        place::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Receipt::remove(&place)?;
    for directory in receipt.directories.iter().rev() {
        let path = place.at(directory);
        place::remove_empty(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    if place.is_live() && systemd_runs() {
        systemctl(&["daemon-reload"])?;
    }
    println!("uninstalled");
    Ok(())
}

/// Asks on a terminal; without one, `--yes` has to be given.
fn agreed(yes: bool, what: &str) -> Result<()> {
    use std::io::{BufRead, IsTerminal, Write};
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        bail!("{what}: say so with --yes");
    }
    print!("{what}. Go on? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!("nothing was done"),
    }
}

fn data_of(args: &ResetArgs, receipt: &Receipt, role: Role) -> PathBuf {
    let installed = receipt.data.iter().find(|(name, _)| name == role.name()).map(|(_, data)| data.clone());
    let given = args.data_dir.as_ref().map(|given| std::path::absolute(given).unwrap_or_else(|_| given.clone()));
    given.or(installed).unwrap_or_else(|| match role {
        Role::Server => crate::args::default_data_dir(),
        Role::Agent => crate::args::default_data_dir().join("agent"),
    })
}

fn stop(place: &Place, role: Role) -> Result<()> {
    if !place.is_live() || !systemd_runs() || !place.unit(role).exists() {
        return Ok(());
    }
    systemctl(&["stop", &role.unit()])
}

/// Ends pods, takes back what the agent changed in the kernel. What fails is told and does not hold the rest up.
async fn leave(args: &ResetArgs, receipt: &Receipt) {
    let data_dir = data_of(args, receipt, Role::Agent);
    if !data_dir.exists() {
        return;
    }
    let socket = args.runtime_endpoint.trim_start_matches("unix://").into();
    for failed in keelson_nodeagent::leave::run(&keelson_nodeagent::leave::Traces { socket, data_dir }).await {
        eprintln!("keelson: {failed}");
    }
}

/// Removes a data directory unless somebody uses it, and its parent if it was made for it.
fn remove_data(place: &Place, data: &Path) -> Result<bool> {
    let path = place.at(data);
    if !path.exists() {
        return Ok(false);
    }
    let lock = DataDir::open(&path)?;
    place::remove_tree(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    drop(lock);
    let parent = data.parent().filter(|parent| *parent == Path::new("/var/lib/keelson"));
    if let Some(parent) = parent {
        place::remove_empty(&place.at(parent))?;
    }
    Ok(true)
}

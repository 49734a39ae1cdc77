//! `keelson upgrade`: puts another version in this one's place on this machine, restarts the services, and goes back by
//! itself when they do not become well. Containers run on meanwhile.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use keelson_client::https::Https;
use keelson_status::{Report, Severity};

use super::install::{systemctl, systemd_runs};
use super::place::{Place, Role};
use super::{status, version};
use crate::args::Access;

/// How often it is looked whether the new version is well.
const LOOK: Duration = Duration::from_millis(500);

/// `keelson upgrade ...`
#[derive(Args, Clone, Debug)]
pub struct UpgradeArgs {
    /// The new program
    pub program: PathBuf,
    /// The program in use, which is replaced
    #[arg(long, default_value = "/usr/local/bin/keelson")]
    pub binary: PathBuf,
    /// How the cluster is reached.
    #[command(flatten)]
    pub access: Access,
    /// Restarts the services, where they are not systemd's (run by sh)
    #[arg(long)]
    pub restart_command: Option<String>,
    /// How long the new version may take to become well
    #[arg(long, default_value = "2m", value_parser = crate::args::config_duration)]
    pub patience: Duration,
    /// Go on though the cluster is not well
    #[arg(long)]
    pub ignore_checks: bool,
}

/// Runs the command.
pub async fn run(args: UpgradeArgs) -> Result<()> {
    let (old, new) = (version_of(&args.binary)?, version_of(&args.program)?);
    version::step(&old, &new)?;
    // The kubeconfig is read anew each time: a server writes it when it starts.
    let server = args.access.kubeconfig.exists().then(|| args.access.kubeconfig.clone());
    if let Some(kubeconfig) = &server {
        // A report may be a little old: what is decided on is what was seen after this began.
        tokio::time::sleep(status::FRESH).await;
        let report = ask(&status::transport(kubeconfig)?).await?;
        ready_for(&report, &new, args.ignore_checks)?;
    }
    let previous = args.binary.with_extension("previous");
    replace(&args.binary, &previous)?;
    replace(&args.program, &args.binary)?;
    println!("{}: {old} -> {new}", args.binary.display());
    let outcome = match restart(&args) {
        Ok(()) => well(&args, server.as_deref(), &new).await,
        Err(error) => Err(error),
    };
    let Err(error) = outcome else {
        println!("well at {new}; {} is kept", previous.display());
        return Ok(());
    };
    eprintln!("keelson: not well at {new}: {error:#}; going back to {old}");
    replace(&previous, &args.binary)?;
    restart(&args)?;
    well(&args, server.as_deref(), &old).await.with_context(|| format!("{old} is not well either"))?;
    bail!("the upgrade to {new} was taken back: {error:#}")
}

/// Asks a program for its version; one that does not run on this machine is found here.
fn version_of(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.with_context(|| format!("{} cannot be run", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match text.trim().strip_prefix("keelson ") {
        Some(version) if output.status.success() => Ok(version.to_owned()),
        _ => bail!("{} is not keelson: it says {:?}", program.display(), text.trim()),
    }
}

/// Copies a program so that it is there whole or not at all; what runs is not disturbed.
fn replace(from: &Path, to: &Path) -> Result<()> {
    let part = to.with_extension("part");
    super::place::remove_file(&part)?;
    std::fs::copy(from, &part).with_context(|| format!("cannot write {}", part.display()))?;
    std::fs::File::open(&part)?.sync_all()?;
    std::fs::rename(&part, to).with_context(|| to.display().to_string())
}

/// Refuses a step that could stop the cluster.
fn ready_for(report: &Report, new: &str, regardless: bool) -> Result<()> {
    for member in report.members.iter().filter(|member| member.error.is_none()) {
        let theirs = &member.figures.version;
        if !theirs.is_empty() {
            version::step(theirs, new).with_context(|| format!("server {} runs {theirs}", member.name))?;
        }
    }
    if regardless {
        return Ok(());
    }
    if let Some(down) = report.members.iter().find(|member| member.error.is_some()) {
        bail!(
            "server {} does not answer: while this one restarts, one more would be missing; bring it back first, or go on \
             with --ignore-checks",
            down.name
        );
    }
    if let Some(learner) = report.members.iter().find(|member| member.role == "learner") {
        bail!("server {} does not vote yet: wait until it does, or go on with --ignore-checks", learner.name);
    }
    match report.findings.iter().find(|finding| finding.severity == Severity::Critical) {
        Some(finding) => bail!("{}: {} first, or go on with --ignore-checks", finding.what, finding.advice),
        None => Ok(()),
    }
}

fn restart(args: &UpgradeArgs) -> Result<()> {
    if let Some(command) = &args.restart_command {
        let status = Command::new("sh").args(["-c", command]).status().context("run --restart-command")?;
        if !status.success() {
            bail!("--restart-command ended with {status}");
        }
        return Ok(());
    }
    if !systemd_runs() {
        bail!("systemd does not run here: say with --restart-command how the services are restarted");
    }
    let place = Place::new(Path::new("/"));
    let units: Vec<String> = Role::ALL.into_iter().filter(|role| place.unit(*role).exists()).map(Role::unit).collect();
    if units.is_empty() {
        bail!("no service is installed here: keelson install server|agent");
    }
    units.iter().try_for_each(|unit| systemctl(&["restart", "--no-block", unit]))
}

async fn ask(transport: &Https) -> Result<Report> {
    let body = status::call(transport, http::Request::get(status::REPORT_PATH).body(Bytes::new())?).await?;
    serde_json::from_slice(&body).context("the server is no keelson server")
}

/// Waits until this machine's services run at a version: a server says so itself, an agent's unit stays up.
async fn well(args: &UpgradeArgs, kubeconfig: Option<&Path>, version: &str) -> Result<()> {
    let deadline = Instant::now() + args.patience;
    loop {
        let found = match kubeconfig {
            Some(kubeconfig) => serves(kubeconfig, version).await,
            None => units_are_up(),
        };
        let Err(why) = found else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(why);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn serves(kubeconfig: &Path, version: &str) -> Result<()> {
    let transport = status::transport(kubeconfig)?;
    let report = tokio::time::timeout(LOOK * 10, ask(&transport)).await.context("no answer in time")??;
    if report.version != version {
        bail!("the server still runs {}", report.version);
    }
    let own = report.members.iter().find(|member| member.name == report.server);
    match own {
        Some(own) if own.lag_entries < 100 && report.members.iter().any(|member| member.role == "leader") => Ok(()),
        Some(own) => bail!("the server is {} entries behind, or nobody leads", own.lag_entries),
        None => bail!("the server is no member of its cluster"),
    }
}

fn units_are_up() -> Result<()> {
    let place = Place::new(Path::new("/"));
    for role in Role::ALL.into_iter().filter(|role| place.unit(*role).exists()) {
        systemctl(&["is-active", "--quiet", &role.unit()])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_status::{Finding, Member};

    #[test]
    fn unsafe_steps_are_refused() {
        let member = |name: &str, version: &str| {
            let mut member = Member { name: name.into(), role: "follower".into(), ..Member::default() };
            member.figures.version = version.into();
            member
        };
        let whole = Report { members: vec![member("a", "0.1.0"), member("b", "0.2.0")], ..Report::default() };
        assert!(ready_for(&whole, "0.2.0", false).is_ok());
        assert!(ready_for(&whole, "0.3.0", true).unwrap_err().to_string().contains("server a runs 0.1.0"));
        let mut down = whole.clone();
        down.members[1].error = Some("refused".into());
        assert!(ready_for(&down, "0.2.0", false).unwrap_err().to_string().contains("server b does not answer"));
        assert!(ready_for(&down, "0.2.0", true).is_ok());
        let mut learner = whole.clone();
        learner.members[0].role = "learner".into();
        assert!(ready_for(&learner, "0.2.0", false).is_err());
        let mut broken = whole;
        broken.findings.push(Finding { severity: Severity::Critical, ..Finding::default() });
        assert!(ready_for(&broken, "0.2.0", false).is_err());
    }
}

//! Brings a cluster up: `up BINARY DIRECTORY NAME SERVERS AGENTS`. Run again, it goes on where it was cut off.

use std::path::Path;

use anyhow::{Context, Result, bail};
use keelson_testbed::{Plan, Start, Testbed};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [binary, dir, name, servers, agents] = arguments.as_slice() else {
        bail!("usage: up BINARY DIRECTORY NAME SERVERS AGENTS");
    };
    let plan = Plan {
        name: name.clone(),
        servers: servers.parse().context("SERVERS is a number")?,
        agents: agents.parse().context("AGENTS is a number")?,
    };
    let testbed = Testbed::create(Path::new(dir), plan)?;
    testbed.install(Path::new(binary))?;
    testbed.bring_up(&Start::default(), &|step| println!("==> {step}"))?;
    Ok(())
}

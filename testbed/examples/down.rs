//! Removes a cluster that `up` brought up: `down DIRECTORY`.

use std::path::Path;

use anyhow::{Context, Result};
use keelson_testbed::Testbed;

fn main() -> Result<()> {
    let dir = std::env::args().nth(1).context("usage: down DIRECTORY")?;
    Testbed::remove(Path::new(&dir)).map(drop)
}

//! The hosts' network: a bridge of the machine with an address for it, and a /24 that nothing else uses.

use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::journal::{Journal, Made};
use crate::run::ip;
use crate::{Testbed, until};

/// How long another testbed may take to choose its network.
const TURN: Duration = Duration::from_secs(10);

/// `10.89.N.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet(u8);

impl Subnet {
    /// Chooses a network that no interface has, and takes it by making the bridge.
    pub(crate) fn reserve(name: &str, journal: &Journal) -> Result<Self> {
        // Held while choosing, so that two testbeds do not choose the same; it leaves no file behind.
        let turn = SocketAddr::from_abstract_name("keelson-testbed")?;
        let _turn =
            until("another testbed is choosing its network", TURN, || Ok(Some(UnixListener::bind_addr(&turn)?)))?;
        let used = ip("-4 -o address")? + &ip("-4 -o route show table all")?;
        let free = (0..=u8::MAX).find(|n| !used.contains(&format!("10.89.{n}.")));
        let subnet = Self(free.context("all networks 10.89.N.0/24 are in use")?);
        make_bridge(name, subnet, journal)?;
        Ok(subnet)
    }

    /// The address of the machine itself.
    pub fn gateway(self) -> Ipv4Addr {
        self.address(1)
    }

    /// The `n`th address.
    pub fn address(self, n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 89, self.0, n)
    }
}

/// Whether an interface of this name exists.
pub fn link_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn bridge_name(testbed: &str) -> String {
    format!("{testbed}-br")
}

/// The bridge of a testbed: created again when it is gone, as after a restart of the machine.
pub fn bridge(testbed: &Testbed) -> Result<String> {
    make_bridge(&testbed.plan.name, testbed.subnet, &testbed.journal)
}

fn make_bridge(testbed: &str, subnet: Subnet, journal: &Journal) -> Result<String> {
    let name = bridge_name(testbed);
    if journal.intend(Made::Link(name.clone()), link_exists(&name))? {
        ip(&format!("link add {name} type bridge"))?;
    }
    ip(&format!("address replace {}/24 dev {name}", subnet.gateway()))?;
    ip(&format!("link set {name} up"))?;
    Ok(name)
}

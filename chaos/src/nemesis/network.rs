//! Faults of the network between members, made with nftables and queues inside their hosts. Clients are not members and get
//! through.

use std::time::Duration;

use anyhow::Result;
use keelson_testbed::Host;
use rand::RngExt;
use rand::rngs::StdRng;

use super::{Victims, leader, names, others, random, shuffled};

/// Share of packets that are lost, in percent.
const LOSS: u32 = 20;
/// Share of packets that come twice, in percent.
const TWICE: u32 = 33;
/// How long a member lags before it is back for a moment, in milliseconds.
const LAG_MILLIS: std::ops::Range<u64> = 8_000..12_000;

/// Has a host drop what comes from others, all of it or a share in percent. Clients are not members and get through.
pub(super) fn deafen(host: &Host<'_>, to: &[&Host<'_>], percent: u32) -> Result<()> {
    if to.is_empty() {
        return Ok(());
    }
    let from: Vec<_> = to.iter().map(|host| host.address().to_string()).collect();
    let share = if percent == 100 { String::new() } else { format!("numgen random mod 100 < {percent}") };
    let rules = format!(
        "add table inet chaos; add chain inet chaos input {{ type filter hook input priority 0; }}; \
         add rule inet chaos input ip saddr {{ {} }} {share} drop",
        from.join(", ")
    );
    host.run("nft", &[&rules]).map(drop)
}

/// Keeps two groups from hearing each other.
pub(super) fn part(victims: &Victims<'_>, one: &[usize], other: &[usize]) -> Result<String> {
    let hosts = |members: &[usize]| members.iter().map(|m| &victims.hosts[*m]).collect::<Vec<_>>();
    for host in hosts(one) {
        deafen(host, &hosts(other), 100)?;
    }
    for host in hosts(other) {
        deafen(host, &hosts(one), 100)?;
    }
    Ok(format!("{} | {}", names(victims, one), names(victims, other)))
}

pub(super) fn isolate_one(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let member = random(victims, rng);
    part(victims, &[member], &others(victims, member))
}

pub(super) fn isolate_leader(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let member = leader(victims, rng);
    part(victims, &[member], &others(victims, member))
}

pub(super) fn split(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let order = shuffled(victims, rng);
    let (one, other) = order.split_at(order.len() / 2 + 1);
    part(victims, one, other)
}

pub(super) fn one_way(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let order = shuffled(victims, rng);
    let (Some(deaf), Some(heard)) = (order.first(), order.get(1)) else { return Ok("there is one member".into()) };
    deafen(&victims.hosts[*deaf], &[&victims.hosts[*heard]], 100)?;
    Ok(format!("{} does not hear {}", victims.hosts[*deaf].name(), victims.hosts[*heard].name()))
}

pub(super) fn bridge(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let order = shuffled(victims, rng);
    let Some((between, rest)) = order.split_first() else { return Ok("there is no member".into()) };
    let (one, other) = rest.split_at(rest.len() / 2);
    let parted = part(victims, one, other)?;
    Ok(format!("{parted}, both hear {}", victims.hosts[*between].name()))
}

pub(super) fn flap(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let member = random(victims, rng);
    let rest = others(victims, member);
    for _ in 0..rng.random_range(3..8) {
        part(victims, &[member], &rest)?;
        std::thread::sleep(Duration::from_millis(rng.random_range(50..900)));
        heal(victims)?;
        std::thread::sleep(Duration::from_millis(rng.random_range(50..900)));
    }
    Ok(format!("{} came and went", victims.hosts[member].name()))
}

pub(super) fn loss(victims: &Victims<'_>, _: &mut StdRng) -> Result<String> {
    for (i, host) in victims.hosts.iter().enumerate() {
        let rest: Vec<&Host<'_>> = others(victims, i).into_iter().map(|other| &victims.hosts[other]).collect();
        deafen(host, &rest, LOSS)?;
    }
    Ok(format!("{LOSS} % of the packets between members are lost"))
}

pub(super) fn deaf_leader(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let member = leader(victims, rng);
    let rest: Vec<&Host<'_>> = others(victims, member).into_iter().map(|other| &victims.hosts[other]).collect();
    deafen(&victims.hosts[member], &rest, 100)?;
    Ok(format!("{} hears nobody", victims.hosts[member].name()))
}

/// Cut off for long, back for a moment, and cut off again: the second snapshot comes right after the first.
pub(super) fn lag_twice(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let member = random(victims, rng);
    let rest = others(victims, member);
    part(victims, &[member], &rest)?;
    std::thread::sleep(Duration::from_millis(rng.random_range(LAG_MILLIS)));
    heal(victims)?;
    std::thread::sleep(Duration::from_millis(rng.random_range(100..1500)));
    part(victims, &[member], &rest)
}

/// A queue before a narrow link: what is sent waits for what was sent before it.
pub(super) fn delay(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let host = &victims.hosts[random(victims, rng)];
    let (kilobits, millis) = (rng.random_range(500..4000), rng.random_range(50..400));
    let queue = format!("qdisc replace dev eth0 root tbf rate {kilobits}kbit burst 4kb latency {millis}ms");
    host.run("tc", &queue.split(' ').collect::<Vec<_>>())?;
    Ok(format!("{} sends {kilobits} kbit/s, {millis} ms late at most", host.name()))
}

pub(super) fn duplicate(victims: &Victims<'_>, _: &mut StdRng) -> Result<String> {
    for (i, host) in victims.hosts.iter().enumerate() {
        for other in others(victims, i) {
            let to = victims.hosts[other].address();
            let rules = format!(
                "add table ip chaos; add chain ip chaos output {{ type filter hook output priority 0; }}; \
                 add rule ip chaos output ip daddr {to} numgen random mod 100 < {TWICE} dup to {to} device eth0"
            );
            host.run("nft", &[&rules])?;
        }
    }
    Ok(format!("{TWICE} % of the packets between members come twice"))
}

pub(super) fn heal(victims: &Victims<'_>) -> Result<()> {
    for host in victims.hosts.iter().chain(victims.agents) {
        // Two commands each: deleting a table that is not there is an error.
        let nothing = "add table inet chaos; delete table inet chaos; add table ip chaos; delete table ip chaos";
        host.run("nft", &[nothing])?;
        // Fails where there is none.
        host.run("sh", &["-c", "tc qdisc del dev eth0 root 2>/dev/null; true"])?;
    }
    Ok(())
}

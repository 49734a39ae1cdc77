//! The virtual address of the API goes to another server when the one that holds it dies or is cut off, and a client that
//! knows only this address goes on. `--nocapture` prints how long it could not write.

mod common;

use common::load::Load;
use common::{Cluster, PATIENCE};
use keelson_testbed::{Host, ServerOptions, Start, until};

/// The last address but one of a testbed's network, which no host has.
const LAST: u8 = 253;
/// How long a request to the address may take, in seconds.
const ATTEMPT_SECONDS: u32 = 1;

/// Whether the server's interface has the address.
fn shows(host: &Host<'_>, vip: std::net::Ipv4Addr) -> bool {
    host.run("ip", &["-o", "address", "show", "dev", "eth0"]).is_ok_and(|text| text.contains(&format!("{vip}/")))
}

/// Where the address is when one server has it.
fn holder(hosts: &[Host<'_>], vip: std::net::Ipv4Addr) -> usize {
    until("one server holds the address", PATIENCE, || {
        let holders: Vec<usize> = (0..hosts.len()).filter(|at| shows(&hosts[*at], vip)).collect();
        Ok((holders.len() == 1).then(|| holders[0]))
    })
    .unwrap()
}

/// Takes the holder away, and waits until another server is the only one that has the address.
fn moves(hosts: &[Host<'_>], vip: std::net::Ipv4Addr, take_away: impl FnOnce(&Host<'_>)) -> usize {
    let before = holder(hosts, vip);
    take_away(&hosts[before]);
    // Nothing gives it back where the server was killed or is cut off: the kernel does, by its own clock.
    until("another server has it alone", PATIENCE, || {
        let now = holder(hosts, vip);
        Ok((now != before).then_some(()))
    })
    .unwrap();
    before
}

#[test]
fn the_address_moves_with_the_leader() {
    // The network is known only with the testbed, so servers get the address when they start again.
    let Some(cluster) = Cluster::start("vip", 3, 0, &Start::default()) else { return };
    let hosts = cluster.testbed.hosts().unwrap();
    let vip = cluster.testbed.subnet().address(LAST);
    let flags = vec![format!("--vip={vip}/32"), "--vip-interface=eth0".to_owned()];
    let start = |host: &Host<'_>| {
        host.start_server(&ServerOptions { join: None, flags: flags.clone() }).unwrap();
    };
    hosts.iter().for_each(|host| host.kill("keelson").unwrap());
    hosts.iter().for_each(start);
    hosts.iter().for_each(|host| host.wait_ready().unwrap());
    holder(&hosts, vip);
    let (kubeconfig, files) = (hosts[0].kubeconfig(), cluster.testbed.dir().join("client"));
    let url = format!("https://{vip}:6443");
    let load = Load::start(move || Ok(keelson_testbed::Api::new(&kubeconfig, &files)?.at(&url, ATTEMPT_SECONDS)));
    println!("| step | longest time without an acknowledged write |\n|---|---|");
    let mut killed = 0;
    load.during("the holder of the virtual address is killed", || {
        killed = moves(&hosts, vip, |host| host.kill("keelson").unwrap());
    });
    load.during("it comes back", || {
        start(&hosts[killed]);
        hosts[killed].wait_ready().unwrap();
    });
    // Out of the bridge, not by its interface: what is cut off does not know it.
    let link = |host: &Host<'_>, words: &[&str]| {
        let own = format!("vip-s{}", host.index());
        let done = std::process::Command::new("ip").args(["link", "set", "dev", &own]).args(words).status();
        assert!(done.is_ok_and(|status| status.success()), "{own}: {words:?}");
    };
    let mut cut = 0;
    load.during("the holder of the virtual address is cut off from all others", || {
        cut = moves(&hosts, vip, |host| link(host, &["nomaster"]));
    });
    load.during("it is there again", || {
        link(&hosts[cut], &["master", "vip-br"]);
        hosts[cut].wait_ready().unwrap();
    });
    assert!(load.end() > 0);
}

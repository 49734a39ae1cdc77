//! The virtual address of the API moves to another server when the one that holds it dies, and requests go on.

mod common;

use std::time::{Duration, Instant};

use common::{Cluster, PATIENCE};
use keelson_testbed::{Start, until};

/// The last address but one of a testbed's network, which no host has.
const LAST: u8 = 253;

#[test]
fn the_address_moves_with_the_leader() {
    // The network is known only with the testbed, so servers get the address when they start again.
    let Some(cluster) = Cluster::start("vip", 3, 0, &Start::default()) else { return };
    let hosts = cluster.testbed.hosts().unwrap();
    let vip = cluster.testbed.subnet().address(LAST);
    let flags = vec![format!("--vip={vip}/32"), "--vip-interface=eth0".to_owned()];
    for host in &hosts {
        host.kill("keelson").unwrap();
    }
    for host in &hosts {
        host.start_server(&keelson_testbed::ServerOptions { join: None, flags: flags.clone() }).unwrap();
    }
    for host in &hosts {
        host.wait_ready().unwrap();
    }
    let shows = |host: &keelson_testbed::Host<'_>| {
        host.run("ip", &["-o", "address", "show", "dev", "eth0"]).is_ok_and(|text| text.contains(&format!("{vip}/")))
    };
    let holders = || hosts.iter().enumerate().filter(|(_, host)| shows(host)).map(|(at, _)| at).collect::<Vec<_>>();
    let answers = || {
        let url = format!("https://{vip}:6443/readyz");
        let output = std::process::Command::new("curl").args(["-sk", "--max-time", "1", &url]).output();
        output.is_ok_and(|output| output.stdout == b"ok")
    };
    let holder = until("one server holds the address", PATIENCE, || {
        let holders = holders();
        Ok((holders.len() == 1 && answers()).then(|| holders[0]))
    })
    .unwrap();
    hosts[holder].kill("keelson").unwrap();
    let died = Instant::now();
    until("requests go on", PATIENCE, || Ok(answers().then_some(()))).unwrap();
    eprintln!("the address answered again after {:?}", died.elapsed());
    // What was killed could not give it back: the kernel does.
    until("only one server has it", PATIENCE, || {
        let holders = holders();
        std::thread::sleep(Duration::from_millis(100));
        Ok((holders.len() == 1 && holders[0] != holder).then_some(()))
    })
    .unwrap();
}

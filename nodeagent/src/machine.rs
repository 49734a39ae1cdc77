//! What the kernel says about this machine.

use std::collections::BTreeMap;

use crate::node::Machine;
use crate::spec::pages;

fn file(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The value of `key` in lines of `key<separator>value`.
fn value<'a>(text: &'a str, key: &str, separator: char) -> Option<&'a str> {
    text.lines().find_map(|l| l.split_once(separator).filter(|(k, _)| *k == key)).map(|(_, v)| v.trim())
}

/// Reads the facts. What cannot be read stays empty.
pub fn read(ip: &str, port: u16) -> Machine {
    let memory = file("/proc/meminfo");
    let kibibytes = value(&memory, "MemTotal", ':').and_then(|v| v.strip_suffix(" kB")).unwrap_or("0");
    let swap = value(&memory, "SwapTotal", ':').and_then(|v| v.strip_suffix(" kB")).and_then(|v| v.parse().ok());
    let swap: i64 = swap.unwrap_or(0);
    let release = file("/etc/os-release");
    let storage = nix::sys::statvfs::statvfs("/").map_or(0, |s| s.blocks() as u128 * s.fragment_size() as u128);
    Machine {
        ip: ip.into(),
        other_ip: None,
        port: port.into(),
        cpu: std::thread::available_parallelism().map_or(1, std::num::NonZero::get).to_string(),
        memory: format!("{kibibytes}Ki"),
        storage: storage.to_string(),
        runtime: "unknown://".into(),
        kernel: file("/proc/sys/kernel/osrelease"),
        os_image: value(&release, "PRETTY_NAME", '=').unwrap_or("Linux").trim_matches('"').into(),
        machine_id: file("/etc/machine-id"),
        boot_id: file("/proc/sys/kernel/random/boot_id"),
        labels: BTreeMap::new(),
        huge_pages: pages::of_machine(),
        swap: swap.saturating_mul(1024),
    }
}

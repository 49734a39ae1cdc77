//! What goes through network interfaces, as the kernel counts it (`/proc/PID/net/dev`).

use serde_json::{Value, json};

/// One interface's counts: bytes, packets, errors and what was dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Received.
    pub received: [u64; 4],
    /// Sent.
    pub sent: [u64; 4],
}

/// The interfaces that a process sees, the loopback one and those of no use left out; the first in the list leads outside.
pub fn of_process(pid: i32) -> Vec<Interface> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let mut all = parse(&text);
    all.sort_by_key(|i| (i.name != "eth0", i.name.clone()));
    all
}

fn parse(text: &str) -> Vec<Interface> {
    let line = |line: &str| -> Option<Interface> {
        let (name, counts) = line.split_once(':')?;
        let counts: Vec<u64> = counts.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let four = |from: usize| -> Option<[u64; 4]> { counts.get(from..from + 4)?.try_into().ok() };
        // A line has eight numbers of each direction, these four first.
        Some(Interface { name: name.trim().to_owned(), received: four(0)?, sent: four(8)? })
    };
    let all = text.lines().skip(2).filter_map(line);
    all.filter(|i| i.name != "lo" && !i.name.starts_with("veth")).collect()
}

/// The `network` of a summary; `None` if there is no interface.
pub fn json(interfaces: &[Interface], now: &str) -> Option<Value> {
    let of = |i: &Interface| {
        json!({"name": i.name, "rxBytes": i.received[0], "rxErrors": i.received[2], "txBytes": i.sent[0],
            "txErrors": i.sent[2]})
    };
    let mut network = of(interfaces.first()?);
    network["time"] = now.into();
    network["interfaces"] = interfaces.iter().map(of).collect();
    Some(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_interfaces() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
             lo:       9       9    0    0    0     0          0         0        9       9    0    0    0     0       0          0\n  \
             eth0:    1000      10    1    2    0     0          0         0      500       5    3    4    0     0       0          0\n";
        let all = parse(text);
        let wanted = Interface { name: "eth0".into(), received: [1000, 10, 1, 2], sent: [500, 5, 3, 4] };
        assert_eq!(all, [wanted]);
        let network = json(&all, "now").unwrap();
        assert_eq!(
            (&network["rxBytes"], &network["txErrors"], &network["name"]),
            (&1000.into(), &3.into(), &"eth0".into())
        );
        assert_eq!(network["interfaces"][0]["rxErrors"], 1);
        assert!(json(&[], "now").is_none() && parse("").is_empty());
    }
}

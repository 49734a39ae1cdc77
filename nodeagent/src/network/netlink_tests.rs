//! The kernel takes changes of elements as it takes `nft`'s: in a network namespace of its own, which needs root.

use serde_json::{Value, json};

use super::netlink::{Batch, Filter};
use super::nft;
use super::proxy::{Step, TABLE, Table, carry_out};
use super::service::{Family, Site, contribution};
use super::sets::{Change, Elements, Wanted};

fn able() -> bool {
    let able = nix::unistd::geteuid().is_root() && std::path::Path::new("/usr/sbin/nft").exists();
    if !able {
        eprintln!("skipped: not root, or no nft");
    }
    able
}

/// Runs in a network namespace of its own.
fn alone<T: Send>(work: impl AsyncFnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work())
        });
        thread.join().unwrap()
    })
}

/// All elements of the packet filter, in order.
fn listed() -> Vec<String> {
    let output = std::process::Command::new("nft").args(["-n", "list", "ruleset"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<String> = text.split(['\n', ',', '{', '}', '=']).map(|l| l.trim().to_owned()).collect();
    lines.sort_unstable();
    lines
}

fn service(family: Family, spec: &Value, endpoints: &[(&str, &str)]) -> super::service::Contribution {
    let service = serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec})).unwrap();
    let endpoints: Vec<Value> =
        endpoints.iter().map(|(ip, node)| json!({"addresses": [ip], "nodeName": node})).collect();
    let slice = serde_json::from_value(json!({"addressType": "any",
        "ports": [{"name": "", "port": 8080}, {"name": "u", "port": 53}, {"name": "s", "port": 99}], "endpoints": endpoints}))
    .unwrap();
    contribution(family, &service, &[&slice], &Site { node: "a".into(), ..Site::default() })
}

/// What the Service wants as it goes from state to state.
fn states(family: Family) -> Vec<super::service::Contribution> {
    let (ip, one, two) = match family {
        Family::V4 => ("10.96.0.5", "10.1.0.2", "10.1.1.2"),
        Family::V6 => ("fd00::5", "fd01::2", "fd01:1::2"),
    };
    let spec = |policy: &str| {
        json!({"type": "NodePort", "clusterIP": ip, "externalIPs": [ip], "externalTrafficPolicy": policy,
            "ports": [{"port": 80, "nodePort": 30080}, {"name": "u", "port": 53, "nodePort": 30053, "protocol": "UDP"},
                {"name": "s", "port": 99, "nodePort": 30099, "protocol": "SCTP"}]})
    };
    vec![
        service(family, &spec("Cluster"), &[(one, "a")]),
        service(family, &spec("Cluster"), &[(one, "a"), (two, "b")]),
        service(family, &spec("Local"), &[(two, "b")]),
        service(family, &spec("Cluster"), &[]),
        service(family, &spec("Cluster"), &[(two, "b")]),
    ]
}

/// The states' elements in the kernel, one list for each state.
async fn walk(family: Family, over_netlink: bool) -> Vec<Vec<String>> {
    let mut table = Table::default();
    nft::apply(&table.whole(family, &["10.1.0.0/16".into(), "fd01::/48".into()])).await.unwrap();
    let filter = over_netlink.then(|| Filter::open().unwrap());
    let mut all = Vec::new();
    for wanted in states(family) {
        let (mut change, mut chains) = (Change::default(), String::new());
        table.take(family, &("n".into(), "s".into()), wanted, &mut change, &mut chains);
        let step = Step { family, change, chains, removed: table.unused(family), whole: None };
        carry_out(&[step], filter.as_ref()).await.unwrap();
        all.push(listed());
    }
    all
}

#[test]
fn the_kernel_has_what_nft_would_have_given_it() {
    if !able() {
        return;
    }
    for family in Family::ALL {
        let (by_nft, by_netlink) =
            (alone(async || walk(family, false).await), alone(async || walk(family, true).await));
        assert_eq!(by_netlink, by_nft, "{family:?}");
        assert!(by_nft.windows(2).all(|pair| pair[0] != pair[1]), "every state differs from the one before");
    }
}

#[test]
fn what_is_refused_leaves_nothing_behind() {
    if !able() {
        return;
    }
    let (before, after, error) = alone(async || {
        nft::apply(&Table::default().whole(Family::V4, &[])).await.unwrap();
        let before = listed();
        let change = |old: &Wanted, new: &Wanted| {
            let (mut change, mut elements) = (Change::default(), Elements::default());
            elements.replace(&Wanted::new(), old, &mut Change::default());
            elements.replace(old, new, &mut change);
            change
        };
        let wanted = |ip: &str| Wanted::from([(("cluster_ips", ip.to_owned()), String::new())]);
        let mut batch = Batch::default();
        batch.add(Family::V4, TABLE, &change(&Wanted::new(), &wanted("1.1.1.1"))).unwrap();
        // Nobody has put this one there, so it cannot be taken away.
        batch.add(Family::V4, TABLE, &change(&wanted("2.2.2.2"), &Wanted::new())).unwrap();
        let error = Filter::open().unwrap().apply(batch).await.unwrap_err();
        (before, listed(), error)
    });
    assert_eq!(before, after);
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
}

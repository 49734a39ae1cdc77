//! What a report means: findings, each with what to do. A kind of finding is a function in [`RULES`].

use crate::model::{Finding, Member, Report, Severity};
use crate::words::{bytes, micros, span};

/// Entries that a follower may be behind.
const LAG_ENTRIES: u64 = 1000;
/// A write to disk that takes longer is slow.
const SLOW_SYNC_MICROS: u32 = 25_000;
/// Room that a server's disk should have.
const DISK_BYTES: u64 = 1 << 30;
/// Clocks that differ by more confuse certificates and people.
const CLOCK_MILLIS: i64 = 2000;
/// A CA's certificate that ends sooner should be replaced now.
const CA_SECONDS: i64 = 90 * 86_400;
/// A certificate of which less than this part of its life is left should have been replaced.
const RENEWAL_PART: i64 = 10;
/// Workloads that are named one by one.
const NAMED: usize = 5;

type Rule = fn(&Report, &mut Vec<Finding>);

/// All that is looked at.
const RULES: &[Rule] = &[
    quorum,
    members,
    lag,
    disks,
    clocks,
    versions,
    certificates,
    backups,
    webhooks,
    nodes,
    workloads,
    pending,
    nothing_to_run,
];

/// Looks at a report; the gravest finding comes first.
pub fn judge(report: &Report) -> Vec<Finding> {
    let mut findings = Vec::new();
    for rule in RULES {
        rule(report, &mut findings);
    }
    findings.sort_by_key(|finding| finding.severity);
    findings
}

fn add(findings: &mut Vec<Finding>, severity: Severity, what: String, advice: impl Into<String>) {
    findings.push(Finding { severity, what, advice: advice.into() });
}

fn answering(report: &Report) -> impl Iterator<Item = &Member> {
    report.members.iter().filter(|member| member.error.is_none())
}

fn quorum(report: &Report, findings: &mut Vec<Finding>) {
    let voters = report.members.iter().filter(|member| member.role != "learner");
    let (all, up) = (voters.clone().count(), voters.filter(|member| member.error.is_none()).count());
    let needed = all / 2 + 1;
    if all > 0 && up < needed {
        let what =
            format!("no quorum: {up} of {all} voting servers answer, {needed} are needed; nothing can be written");
        let advice = "start the others. If their disks are lost for good: stop this server, `keelson reset \
                      --recover-quorum`, start it, and let the others join anew (docs/operations.md)";
        add(findings, Severity::Critical, what, advice);
    } else if all > 1 && up == needed && up < all {
        let what =
            format!("one more failure stops the cluster: {up} of {all} voting servers answer, {needed} are needed");
        add(findings, Severity::Warning, what, "bring the missing server back, or replace it");
    } else if all == 2 {
        let what = "two servers survive no failure: each of them is needed".to_owned();
        add(findings, Severity::Warning, what, "add a third: `keelson token create --server --print-join-command`");
    }
    if all > 0 && up >= needed && !report.members.iter().any(|member| member.role == "leader") {
        let what = "no server leads at the moment".to_owned();
        add(
            findings,
            Severity::Critical,
            what,
            "an election takes about a second; if this stays, look at the servers' logs",
        );
    }
}

fn members(report: &Report, findings: &mut Vec<Finding>) {
    for member in report.members.iter().filter(|member| member.error.is_some()) {
        let why = member.error.as_deref().unwrap_or_default();
        let what = format!("server {} does not answer: {why}", member.name);
        let advice = format!(
            "start it (journalctl -u keelson-server there says more); if its disk is lost, let a machine join under the \
             name {}: it takes its place; if it never comes back: keelson member remove {}",
            member.name, member.name
        );
        add(findings, Severity::Warning, what, advice);
    }
    for member in answering(report).filter(|member| member.role == "learner") {
        let what = format!("server {} does not vote yet: it takes over the others' log", member.name);
        add(findings, Severity::Info, what, "it gets its vote by itself once it has caught up");
    }
}

fn lag(report: &Report, findings: &mut Vec<Finding>) {
    for member in answering(report).filter(|member| member.lag_entries > LAG_ENTRIES && member.role != "learner") {
        let what = format!("server {} is {} entries behind", member.name, member.lag_entries);
        add(findings, Severity::Warning, what, "look at its disk, its processor and the network to it");
    }
}

fn disks(report: &Report, findings: &mut Vec<Finding>) {
    for member in answering(report) {
        let figures = &member.figures;
        if figures.sync_slow_micros > SLOW_SYNC_MICROS {
            let what =
                format!("the disk of server {} is slow: {} for a write", member.name, micros(figures.sync_slow_micros));
            add(
                findings,
                Severity::Warning,
                what,
                "put --data-dir on an SSD of its own; every write waits for a majority's disks",
            );
        }
        if figures.disk_free_bytes > 0 && figures.disk_free_bytes < DISK_BYTES {
            let what = format!("the disk of server {} has {} left", member.name, bytes(figures.disk_free_bytes));
            add(findings, Severity::Critical, what, "make room: a server whose disk is full stops");
        }
    }
}

fn clocks(report: &Report, findings: &mut Vec<Finding>) {
    let told = || answering(report).map(|member| member.figures.clock_millis).filter(|clock| *clock > 0);
    if let (Some(first), Some(last)) = (told().min(), told().max())
        && last - first > CLOCK_MILLIS
    {
        let what = format!("the servers' clocks differ by {:.1} s", (last - first) as f64 / 1000.0);
        add(findings, Severity::Warning, what, "synchronise them: chrony or systemd-timesyncd on each server");
    }
}

fn versions(report: &Report, findings: &mut Vec<Finding>) {
    let mut versions: Vec<&str> = answering(report).map(|member| member.figures.version.as_str()).collect();
    versions.retain(|version| !version.is_empty());
    versions.sort_unstable();
    versions.dedup();
    if versions.len() > 1 {
        let what = format!("servers of several versions run together: {}", versions.join(", "));
        add(findings, Severity::Info, what, "go on with the upgrade: keelson upgrade on each server");
    }
}

fn certificates(report: &Report, findings: &mut Vec<Finding>) {
    for member in answering(report) {
        for certificate in &member.figures.certificates {
            let left = certificate.not_after - report.time;
            let life = certificate.not_after - certificate.not_before;
            let (name, whose) = (&certificate.name, &member.name);
            if left <= 0 {
                let what = format!("the certificate {name} of server {whose} has expired");
                add(findings, Severity::Critical, what, "keelson certs rotate");
            } else if certificate.renews && life > 0 && left < life / RENEWAL_PART {
                let what =
                    format!("the certificate {name} of server {whose} ends in {} and was not replaced", span(left));
                add(findings, Severity::Warning, what, "keelson certs rotate, and look at that server's log");
            } else if !certificate.renews && left < CA_SECONDS {
                let what = format!("the CA {name} ends in {}", span(left));
                add(findings, Severity::Warning, what, "keelson certs rotate --ca");
            }
        }
    }
    // The same CA is on every server.
    let mut seen = std::collections::HashSet::new();
    findings.retain(|finding| seen.insert(finding.what.clone()));
}

fn webhooks(report: &Report, findings: &mut Vec<Finding>) {
    for member in answering(report) {
        for webhook in &member.figures.webhooks {
            let calls = if webhook.failures == 1 { "call" } else { "calls in a row" };
            let what = format!(
                "server {} cannot reach the webhook {}: {} {calls} failed: {}",
                member.name, webhook.place, webhook.failures, webhook.error
            );
            let advice = "requests that it is to judge are refused where its failurePolicy is Fail. Start what serves it, or take \
                          its configuration away, which no webhook is asked about: kubectl delete \
                          validatingwebhookconfiguration (or mutatingwebhookconfiguration) NAME";
            add(findings, Severity::Warning, what, advice);
        }
    }
}

fn backups(report: &Report, findings: &mut Vec<Finding>) {
    for member in answering(report) {
        let Some(backup) = &member.figures.backup else { continue };
        if let Some(error) = &backup.error {
            let what = format!("server {} could not save a snapshot to {}: {error}", member.name, backup.place);
            add(findings, Severity::Warning, what, "make the place writable, or name another with --snapshot-dir");
            continue;
        }
        let late = i64::try_from(backup.interval_seconds.saturating_mul(2)).unwrap_or(i64::MAX);
        let uptime = i64::try_from(member.figures.uptime_seconds).unwrap_or(i64::MAX);
        if late > 0 && uptime > late && report.time.saturating_sub(backup.latest) > late {
            let what = format!("the latest snapshot of server {} is too old", member.name);
            add(findings, Severity::Warning, what, "look at that server's log");
        }
    }
}

fn nodes(report: &Report, findings: &mut Vec<Finding>) {
    for node in &report.nodes {
        if node.ready != "True" {
            let what = format!("node {} is not ready: {}", node.name, node.message);
            let advice = format!(
                "look at it: journalctl -u keelson-agent there; its pods move by themselves. If it is gone for good: \
                 kubectl delete node {}",
                node.name
            );
            add(findings, Severity::Warning, what, advice);
        }
        for pressure in &node.pressures {
            let what = format!("node {} has {pressure}", node.name);
            add(findings, Severity::Warning, what, "it evicts pods: give it more room, or fewer pods");
        }
        if node.cordoned {
            let what = format!("node {} is cordoned: no new pods go there", node.name);
            add(findings, Severity::Info, what, format!("kubectl uncordon {} when you are done", node.name));
        }
    }
}

fn workloads(report: &Report, findings: &mut Vec<Finding>) {
    let broken: Vec<_> = report.workloads.iter().filter(|workload| !workload.is_whole()).collect();
    for workload in broken.iter().take(NAMED) {
        let (kind, namespace, name) = (workload.kind.to_lowercase(), &workload.namespace, &workload.name);
        let why = if workload.message.is_empty() { String::new() } else { format!(": {}", workload.message) };
        let what = format!("{kind} {namespace}/{name} has {} of {} pods ready{why}", workload.ready, workload.desired);
        add(findings, Severity::Warning, what, format!("kubectl -n {namespace} describe {kind} {name}"));
    }
    if broken.len() > NAMED {
        let what = format!("{} further workloads are not whole", broken.len() - NAMED);
        add(findings, Severity::Warning, what, "kubectl get deployments,statefulsets,daemonsets -A");
    }
}

fn pending(report: &Report, findings: &mut Vec<Finding>) {
    if report.pods.pending > 0 {
        let what = format!("{} pods wait to be started", report.pods.pending);
        let advice =
            "kubectl get pods -A --field-selector status.phase=Pending; keelson explain-scheduling POD says why";
        add(findings, Severity::Info, what, advice);
    }
}

fn nothing_to_run(report: &Report, findings: &mut Vec<Finding>) {
    if report.nodes.is_empty() {
        let what = "the cluster has no node: pods cannot run".to_owned();
        add(findings, Severity::Info, what, "keelson token create --print-join-command says what to type on a machine");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Backup, Certificate, Figures, Node, Pods, Webhook, Workload};

    fn member(name: &str, role: &str) -> Member {
        Member { name: name.into(), role: role.into(), ..Member::default() }
    }

    fn whole() -> Report {
        let node = Node { name: "n".into(), ready: "True".into(), ..Node::default() };
        let members = vec![member("a", "leader"), member("b", "follower"), member("c", "follower")];
        Report { time: 1_000_000, members, nodes: vec![node], ..Report::default() }
    }

    fn changed(change: impl Fn(&mut Report)) -> Vec<Finding> {
        let mut report = whole();
        change(&mut report);
        judge(&report)
    }

    #[test]
    fn a_whole_cluster_has_no_findings() {
        assert_eq!(judge(&whole()), []);
    }

    type Change = Box<dyn Fn(&mut Report)>;
    type Case = (Change, Severity, &'static str);

    fn faults_of_servers() -> Vec<Case> {
        let dead = |report: &mut Report, at: usize| report.members[at].error = Some("refused".into());
        let leaf = |left: i64, renews: bool| Certificate {
            name: "api".into(),
            not_before: 1_000_000 + left - 1000 * 86_400,
            not_after: 1_000_000 + left,
            renews,
            ..Certificate::default()
        };
        vec![
            (
                Box::new(move |r| {
                    dead(r, 1);
                    dead(r, 2)
                }),
                Severity::Critical,
                "no quorum: 1 of 3",
            ),
            (Box::new(move |r| dead(r, 2)), Severity::Warning, "one more failure"),
            (Box::new(move |r| dead(r, 2)), Severity::Warning, "server c does not answer: refused"),
            (Box::new(|r| r.members.truncate(2)), Severity::Warning, "two servers"),
            (Box::new(|r| r.members[0].role = "follower".into()), Severity::Critical, "no server leads"),
            (Box::new(|r| r.members[1].role = "learner".into()), Severity::Info, "does not vote yet"),
            (Box::new(|r| r.members[1].lag_entries = 5000), Severity::Warning, "5000 entries behind"),
            (Box::new(|r| r.members[1].figures.sync_slow_micros = 90_000), Severity::Warning, "90 ms for a write"),
            (Box::new(|r| r.members[1].figures.disk_free_bytes = 1 << 20), Severity::Critical, "1.0 MiB left"),
            (
                Box::new(|r| {
                    r.members[0].figures.clock_millis = 1000;
                    r.members[1].figures.clock_millis = 4500;
                }),
                Severity::Warning,
                "differ by 3.5 s",
            ),
            (
                Box::new(|r| {
                    r.members[0].figures.version = "1".into();
                    r.members[1].figures.version = "2".into();
                }),
                Severity::Info,
                "several versions",
            ),
            (
                Box::new(move |r| r.members[0].figures.certificates = vec![leaf(-1, true)]),
                Severity::Critical,
                "expired",
            ),
            (
                Box::new(move |r| r.members[0].figures.certificates = vec![leaf(86_400, true)]),
                Severity::Warning,
                "was not replaced",
            ),
            (
                Box::new(move |r| r.members[0].figures.certificates = vec![leaf(86_400, false)]),
                Severity::Warning,
                "the CA api",
            ),
        ]
    }

    fn further_faults() -> Vec<Case> {
        vec![
            (
                Box::new(|r| {
                    r.members[0].figures.backup = Some(Backup { error: Some("full".into()), ..Backup::default() })
                }),
                Severity::Warning,
                "could not save a snapshot",
            ),
            (
                Box::new(|r| {
                    let backup = Backup { interval_seconds: 60, latest: 5, ..Backup::default() };
                    r.members[0].figures = Figures { uptime_seconds: 9999, backup: Some(backup), ..Figures::default() };
                }),
                Severity::Warning,
                "too old",
            ),
            (
                Box::new(|r| {
                    r.members[0].figures.webhooks =
                        vec![Webhook { place: "h:443".into(), failures: 3, error: "refused".into() }];
                }),
                Severity::Warning,
                "cannot reach the webhook h:443: 3 calls in a row failed: refused",
            ),
            (Box::new(|r| r.nodes[0].ready = "Unknown".into()), Severity::Warning, "node n is not ready"),
            (Box::new(|r| r.nodes[0].pressures = vec!["DiskPressure".into()]), Severity::Warning, "has DiskPressure"),
            (Box::new(|r| r.nodes[0].cordoned = true), Severity::Info, "cordoned"),
            (Box::new(|r| r.nodes.clear()), Severity::Info, "has no node"),
            (Box::new(|r| r.pods = Pods { pending: 3, ..Pods::default() }), Severity::Info, "3 pods wait"),
            (
                Box::new(|r| {
                    let workload = Workload {
                        kind: "Deployment".into(),
                        namespace: "d".into(),
                        name: "w".into(),
                        desired: 2,
                        ..Workload::default()
                    };
                    r.workloads = vec![workload; 7];
                }),
                Severity::Warning,
                "deployment d/w has 0 of 2 pods ready",
            ),
        ]
    }

    #[test]
    fn each_fault_is_found() {
        for (change, severity, part) in faults_of_servers().into_iter().chain(further_faults()) {
            let found = changed(change);
            let right = found.iter().find(|finding| finding.what.contains(part));
            let right = right.unwrap_or_else(|| panic!("{part}: {found:?}"));
            assert_eq!(right.severity, severity, "{part}");
            assert!(!right.advice.is_empty(), "{part}");
            assert!(found.is_sorted_by_key(|finding| finding.severity));
        }
    }
}

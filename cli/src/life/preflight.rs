//! What a machine must have before it becomes a server or a node; each finding says what to do.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use super::install::InstallRole;
use super::place::Place;

/// Writes by which the disk is measured, and the longest that they may take together.
const DISK_WRITES: usize = 100;
const DISK_TIME: Duration = Duration::from_secs(3);
/// Bytes of one of them: an entry of the log.
const DISK_WRITE_BYTES: usize = 2048;
/// A write to disk that takes longer slows the cluster; one that takes much longer costs elections.
const DISK_SLOW: Duration = Duration::from_millis(10);
const DISK_TOO_SLOW: Duration = Duration::from_millis(200);
/// Room that the state should have, in bytes.
const DISK_FREE_BYTES: u64 = 2 << 30;
/// Memory that a server or an agent should find, in kilobytes.
const MEMORY_KIB: u64 = 500 << 10;

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Good,
    /// It will work, but not well.
    Warning,
    /// It will not work.
    Failure,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub subject: &'static str,
    /// How it is.
    pub grade: Grade,
    /// What was found.
    pub found: String,
    /// What to do; empty if nothing.
    pub advice: String,
}

impl Check {
    fn good(subject: &'static str, found: impl Into<String>) -> Self {
        Self { subject, grade: Grade::Good, found: found.into(), advice: String::new() }
    }

    fn warning(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { subject, grade: Grade::Warning, found: found.into(), advice: advice.into() }
    }

    fn failure(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { subject, grade: Grade::Failure, found: found.into(), advice: advice.into() }
    }
}

/// Looks at this machine. Below another root only the disk is looked at: the machine that will run it is another one.
pub fn check(role: &InstallRole, place: &Place) -> Vec<Check> {
    let (data_dir, name) = match role {
        InstallRole::Server(args) => (&args.data_dir, &args.name),
        InstallRole::Agent(args) => (&args.data_dir, &args.name),
    };
    let mut checks = vec![disk_speed(&place.at(data_dir)), disk_room(&place.at(data_dir))];
    if !place.is_live() {
        return checks;
    }
    let name = name.clone().map_or_else(crate::server::hostname, Ok).unwrap_or_default();
    checks.extend([root(), host_name(&name), clock(), memory(&read("/proc/meminfo"))]);
    match role {
        InstallRole::Server(args) => {
            let peer = args.peer_address.unwrap_or(SocketAddr::new(args.bind_address, 2380));
            checks.push(port(SocketAddr::new(args.bind_address, args.secure_port), "--secure-port"));
            checks.push(port(peer, "--peer-address"));
        }
        InstallRole::Agent(args) => {
            let any = if args.node_ip.first().is_some_and(std::net::IpAddr::is_ipv6) { "[::]" } else { "0.0.0.0" };
            if let Ok(address) = format!("{any}:{}", args.port).parse() {
                checks.push(port(address, "--port"));
            }
            checks.extend([
                swap(&read("/proc/swaps")),
                cgroups(Path::new("/sys/fs/cgroup")),
                file_systems(&read("/proc/filesystems")),
                packet_filter(),
                runtime(&args.runtime_endpoint),
                plugins(Path::new("/opt/cni/bin")),
            ]);
        }
    }
    checks
}

/// Whether one of them stands in the way.
pub fn failed(checks: &[Check]) -> bool {
    checks.iter().any(|check| check.grade == Grade::Failure)
}

/// Shows them, the worst last.
pub fn print(checks: &[Check]) {
    for (grade, mark) in [(Grade::Good, "ok  "), (Grade::Warning, "WARN"), (Grade::Failure, "FAIL")] {
        for check in checks.iter().filter(|check| check.grade == grade) {
            println!("{mark} {:<14}{}", check.subject, check.found);
            if !check.advice.is_empty() {
                println!("     {:<14}-> {}", "", check.advice);
            }
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn root() -> Check {
    if nix::unistd::geteuid().is_root() {
        return Check::good("root", "this is root");
    }
    Check::failure("root", "this is not root", "run it with sudo")
}

fn host_name(name: &str) -> Check {
    let label = |part: &str| {
        let inner = part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        inner && !part.is_empty() && part.len() <= 63 && !part.starts_with('-') && !part.ends_with('-')
    };
    if name.len() <= 253 && name.split('.').all(label) && name != "localhost" {
        return Check::good("host name", name);
    }
    let advice = "choose one with --name (lower-case letters, digits, hyphens), different on each machine";
    Check::failure("host name", format!("{name:?} cannot be a node's or member's name"), advice)
}

fn port(address: SocketAddr, flag: &str) -> Check {
    match TcpListener::bind(address) {
        Ok(_) => Check::good("port", format!("{address} is free")),
        Err(error) => Check::failure(
            "port",
            format!("{address}: {error}"),
            format!(
                "see who has it with `ss -ltnp 'sport = :{}'` and stop that, or choose another with {flag}",
                address.port()
            ),
        ),
    }
}

fn swap(swaps: &str) -> Check {
    let areas: Vec<&str> = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if areas.is_empty() {
        return Check::good("swap", "none");
    }
    let advice = "memory limits of pods do not hold with swap: `swapoff -a`, and take it out of /etc/fstab";
    Check::warning("swap", format!("in use: {}", areas.join(", ")), advice)
}

fn cgroups(root: &Path) -> Check {
    let wanted = ["cpu", "memory", "pids"];
    if let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) {
        let has: Vec<&str> = controllers.split_whitespace().collect();
        let missing: Vec<&str> = wanted.into_iter().filter(|name| !has.contains(name)).collect();
        if missing.is_empty() {
            return Check::good("cgroups", "version 2");
        }
        let advice = "boot with cgroup_enable=memory (Raspberry Pi), or enable them in the kernel";
        return Check::failure("cgroups", format!("no controller for {}", missing.join(", ")), advice);
    }
    if wanted.iter().all(|name| root.join(name).exists()) {
        let advice = "boot with systemd.unified_cgroup_hierarchy=1 for version 2, which Kubernetes will require";
        return Check::warning("cgroups", "version 1", advice);
    }
    Check::failure("cgroups", format!("{} has no cpu, memory and pids", root.display()), "mount cgroup2 there")
}

fn file_systems(known: &str) -> Check {
    if known.lines().any(|line| line.split_whitespace().last() == Some("overlay")) {
        return Check::good("kernel", "overlay file systems");
    }
    let advice = "`modprobe overlay`, and write overlay into /etc/modules-load.d/keelson.conf";
    Check::failure("kernel", "no overlay file systems, which images need", advice)
}

fn packet_filter() -> Check {
    match std::process::Command::new("nft").args(["list", "tables"]).output() {
        Ok(output) if output.status.success() => Check::good("packet filter", "nftables"),
        Ok(output) => Check::failure(
            "packet filter",
            format!("nft: {}", String::from_utf8_lossy(&output.stderr).trim()),
            "`modprobe nf_tables`; Services and policies need it",
        ),
        Err(error) => Check::failure("packet filter", format!("nft: {error}"), "apt-get install nftables"),
    }
}

fn runtime(endpoint: &str) -> Check {
    let path = endpoint.trim_start_matches("unix://");
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Check::good("runtime", format!("answers at {path}")),
        Err(error) => Check::failure(
            "runtime",
            format!("{path}: {error}"),
            "apt-get install containerd, then `systemctl start containerd`; or name another with --runtime-endpoint",
        ),
    }
}

fn plugins(dir: &Path) -> Check {
    let missing: Vec<&str> =
        ["ptp", "host-local", "portmap"].into_iter().filter(|name| !dir.join(name).exists()).collect();
    if missing.is_empty() {
        return Check::good("CNI plugins", dir.display().to_string());
    }
    let advice = format!("apt-get install containernetworking-plugins, and link what it brings into {}", dir.display());
    Check::warning("CNI plugins", format!("{} has no {}", dir.display(), missing.join(", ")), advice)
}

fn clock() -> Check {
    // SAFETY: all zero is a timex that asks and changes nothing; the kernel writes only into it.
    let state = unsafe {
        let mut timex: nix::libc::timex = std::mem::zeroed();
        nix::libc::adjtimex(&mut timex)
    };
    match state {
        nix::libc::TIME_ERROR => {
            let advice =
                "install chrony or enable systemd-timesyncd; certificates of other machines may seem not valid yet";
            Check::warning("clock", "not synchronised", advice)
        }
        -1 => Check::warning("clock", "its state cannot be read", "make sure that it is synchronised"),
        _ => Check::good("clock", "synchronised"),
    }
}

fn memory(meminfo: &str) -> Check {
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = available.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    match kib {
        Some(kib) if kib < MEMORY_KIB => {
            Check::warning("memory", format!("{} MiB available", kib >> 10), "give the machine 1 GiB or more")
        }
        Some(kib) => Check::good("memory", format!("{} MiB available", kib >> 10)),
        None => Check::warning("memory", "/proc/meminfo cannot be read", "mount /proc"),
    }
}

/// The nearest directory that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|dir| dir.is_dir()).unwrap_or(path)
}

fn disk_room(data_dir: &Path) -> Check {
    let dir = existing(data_dir);
    match nix::sys::statvfs::statvfs(dir) {
        Ok(stat) => {
            let free = stat.blocks_available().saturating_mul(stat.fragment_size());
            let found = format!("{} MiB free in {}", free >> 20, dir.display());
            if free < DISK_FREE_BYTES {
                return Check::warning("disk room", found, "make room, or choose another disk with --data-dir");
            }
            Check::good("disk room", found)
        }
        Err(error) => Check::warning("disk room", format!("{}: {error}", dir.display()), "choose another --data-dir"),
    }
}

/// Writes as the log does, and looks at the slow ones.
fn disk_speed(data_dir: &Path) -> Check {
    let dir = existing(data_dir);
    match times_of_writes(dir) {
        Err(error) => Check::failure(
            "disk speed",
            format!("{}: {error}", dir.display()),
            "make it writable, or choose another directory with --data-dir",
        ),
        Ok(mut times) => {
            times.sort_unstable();
            let slow = times.get(times.len() * 99 / 100).or(times.last()).copied().unwrap_or_default();
            graded(slow, times.get(times.len() / 2).copied().unwrap_or_default())
        }
    }
}

/// What a median and a nearly slowest write to disk mean.
fn graded(slow: Duration, median: Duration) -> Check {
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    let found = format!("fdatasync takes {:.1} ms, the slowest of a hundred {:.1} ms", millis(median), millis(slow));
    if slow > DISK_TOO_SLOW {
        return Check::warning("disk speed", found, "put --data-dir on an SSD: servers will lose their leader often");
    }
    if slow > DISK_SLOW {
        return Check::warning(
            "disk speed",
            found,
            "each write waits for this: put --data-dir on a faster disk (under 10 ms)",
        );
    }
    Check::good("disk speed", found)
}

fn times_of_writes(dir: &Path) -> std::io::Result<Vec<Duration>> {
    let path = dir.join(format!(".keelson-preflight-{}", std::process::id()));
    let mut file = fs::OpenOptions::new().create_new(true).write(true).open(&path)?;
    // Nobody else needs its name, and a crash leaves nothing.
    fs::remove_file(&path)?;
    let (block, began) = (vec![7_u8; DISK_WRITE_BYTES], Instant::now());
    let mut times = Vec::with_capacity(DISK_WRITES);
    while times.len() < DISK_WRITES && began.elapsed() < DISK_TIME {
        let before = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        times.push(before.elapsed());
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_has_its_grade() {
        let header = "Filename Type Size Used Priority\n";
        let dir = tempfile::tempdir().unwrap();
        let (v2, poor) = (dir.path().join("v2"), dir.path().join("poor"));
        for (root, controllers) in [(&v2, "cpuset cpu io memory pids"), (&poor, "cpu pids")] {
            fs::create_dir(root).unwrap();
            fs::write(root.join("cgroup.controllers"), controllers).unwrap();
        }
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let millis = Duration::from_millis;
        for (check, grade, part) in [
            (swap(header), Grade::Good, "none"),
            (swap(&format!("{header}/dev/sda2 partition 1 0 -2\n")), Grade::Warning, "/dev/sda2"),
            (cgroups(&v2), Grade::Good, "2"),
            (cgroups(&poor), Grade::Failure, "memory"),
            (cgroups(dir.path()), Grade::Failure, "no cpu"),
            (file_systems("nodev\tproc\nnodev\toverlay\n"), Grade::Good, "overlay"),
            (file_systems("nodev\tproc\n"), Grade::Failure, "overlay"),
            (memory("MemTotal: 1 kB\nMemAvailable: 204800 kB\n"), Grade::Warning, "200 MiB"),
            (memory("MemAvailable: 2048000 kB\n"), Grade::Good, "2000 MiB"),
            (memory(""), Grade::Warning, "cannot be read"),
            (host_name("a-1.example"), Grade::Good, "a-1"),
            (host_name("A_1"), Grade::Failure, "A_1"),
            (host_name("localhost"), Grade::Failure, "localhost"),
            (port(taken.local_addr().unwrap(), "--secure-port"), Grade::Failure, "in use"),
            (runtime("unix:///nowhere/at.all"), Grade::Failure, "/nowhere/at.all"),
            (plugins(dir.path()), Grade::Warning, "ptp"),
            (graded(millis(2), millis(1)), Grade::Good, "1.0 ms"),
            (graded(millis(20), millis(1)), Grade::Warning, "20.0 ms"),
            (graded(millis(300), millis(1)), Grade::Warning, "300.0 ms"),
            (disk_room(&dir.path().join("not/yet/there")), disk_room(dir.path()).grade, "free"),
        ] {
            assert_eq!(check.grade, grade, "{check:?}");
            assert!(check.found.contains(part), "{check:?}");
            assert_eq!(check.advice.is_empty(), grade == Grade::Good, "{check:?}");
        }
        assert!(disk_speed(dir.path()).found.contains("fdatasync"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "measuring leaves nothing");
    }
}

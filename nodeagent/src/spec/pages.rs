//! Memory that is not given page by page on demand: huge pages that a container asked for, and how much of it may be swapped
//! out.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_proto::cri::{HugepageLimit, LinuxContainerResources};

use super::resources::{Qos, amount, qos};
use super::{SpecError, pod};

/// What resources of huge pages begin with; the size follows.
const RESOURCE: &str = "hugepages-";
/// What media of emptyDirs in huge pages begin with, with or without a size.
const MEDIUM: &str = "HugePages";
/// Where the kernel tells of the sizes that it has.
const SIZES: &str = "/sys/kernel/mm/hugepages";
/// Of pods that are never swapped: their priority.
const CRITICAL: i32 = 2_000_000_000;
/// The file of a control group of version 2 that limits swapping.
const SWAP_FILE: &str = "memory.swap.max";

/// Whether containers may be swapped out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SwapBehavior {
    /// Never.
    #[default]
    NoSwap,
    /// Burstable pods in proportion to the memory that they asked for.
    LimitedSwap,
}

impl std::str::FromStr for SwapBehavior {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "NoSwap" => Ok(Self::NoSwap),
            "LimitedSwap" => Ok(Self::LimitedSwap),
            other => Err(format!("{other:?} is neither NoSwap nor LimitedSwap")),
        }
    }
}

/// What the machine has.
#[derive(Clone, Debug, Default)]
pub struct Site {
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes that can be swapped out.
    pub swap: i64,
    /// Whether containers' shares of it can be limited: in control groups of version 2.
    pub limits_swap: bool,
    /// Who may swap.
    pub behavior: SwapBehavior,
    /// Sizes of huge pages, bytes.
    pub sizes: Vec<i64>,
}

/// A number of bytes with the largest unit that divides it.
fn with_unit(bytes: i64, units: &[&str]) -> String {
    let mut bytes = bytes;
    let mut at = 0;
    while at + 1 < units.len() && bytes != 0 && bytes % 1024 == 0 {
        bytes /= 1024;
        at += 1;
    }
    format!("{bytes}{}", units[at])
}

/// Bytes as quantities have them.
fn quantity(bytes: i64) -> String {
    with_unit(bytes, &["", "Ki", "Mi", "Gi", "Ti", "Pi"])
}

/// The machine's huge pages: bytes by size.
pub fn of_machine() -> BTreeMap<i64, i64> {
    let entries = std::fs::read_dir(SIZES).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name.strip_prefix(RESOURCE)?.strip_suffix("kB")?.parse::<i64>().ok()? * 1024;
        let count = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok()?;
        Some((size, size.saturating_mul(count.trim().parse().ok()?)))
    });
    sizes.collect()
}

/// The resource of huge pages of a size and the amount of them, as a node reports both.
pub fn resource(size: i64, bytes: i64) -> (String, String) {
    (format!("{RESOURCE}{}", quantity(size)), quantity(bytes))
}

/// The size of the pages of an emptyDir's medium, if it is in huge pages: without one in its name, of those that the pod
/// asks for.
pub fn of_medium(of: &Pod, medium: &str) -> Option<Result<i64, SpecError>> {
    let rest = medium.strip_prefix(MEDIUM)?;
    let bytes = |size: &str| super::resources::millis(size).map(|m| m / 1000).filter(|b| *b > 0);
    if let Some(size) = rest.strip_prefix('-') {
        return Some(bytes(size).ok_or_else(|| SpecError::new(format!("medium {medium:?} has no size of pages"))));
    }
    let wanted = pod::all(of).filter_map(|(_, c)| c.resources.as_ref());
    let names = wanted.flat_map(|r| r.requests.iter().chain(&r.limits).flatten().map(|(name, _)| name.clone()));
    let mut sizes: Vec<i64> = names.filter_map(|name| bytes(name.strip_prefix(RESOURCE)?)).collect();
    sizes.sort_unstable();
    sizes.dedup();
    Some(match (rest, sizes.as_slice()) {
        ("", [size]) => Ok(*size),
        ("", []) => Err(SpecError::new("medium HugePages: the pod asks for no huge pages")),
        ("", _) => Err(SpecError::new("medium HugePages: the pod asks for pages of several sizes: name one")),
        _ => Err(SpecError::new(format!("medium {medium:?} is not known"))),
    })
}

/// Adds a container's limits of huge pages and of swapping to its other ones.
pub fn limit(of: &Pod, container: &Container, site: &Site, linux: &mut LinuxContainerResources) {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    // Who did not ask for any gets none.
    linux.hugepage_limits = (site.sizes.iter())
        .map(|size| {
            let bytes = amount(limits, &resource(*size, 0).0).map_or(0, |m| m / 1000);
            let page_size = with_unit(*size, &["B", "KB", "MB", "GB", "TB", "PB"]);
            HugepageLimit { page_size, limit: u64::try_from(bytes).unwrap_or(0) }
        })
        .collect();
    if site.limits_swap {
        linux.memory_swap_limit_in_bytes = linux.memory_limit_in_bytes;
        linux.unified.insert(SWAP_FILE.into(), swap(of, container, site).to_string());
    }
}

/// Bytes of a container that may be swapped out.
fn swap(of: &Pod, container: &Container, site: &Site) -> i64 {
    let wanted = container.resources.as_ref();
    let [request, limit] =
        [wanted.and_then(|r| r.requests.as_ref()), wanted.and_then(|r| r.limits.as_ref())].map(|m| amount(m, "memory"));
    let request = request.or(limit).unwrap_or(0);
    let critical = of.spec.as_ref().and_then(|s| s.priority).unwrap_or(0) >= CRITICAL;
    let never = site.behavior == SwapBehavior::NoSwap
        || critical
        || qos(of) != Qos::Burstable
        || request == 0
        || Some(request) == limit;
    if never || site.memory <= 0 {
        return 0;
    }
    let share = i128::from(request / 1000) * i128::from(site.swap) / i128::from(site.memory);
    i64::try_from(share).unwrap_or(i64::MAX)
}

/// Whether control groups tell how much of them may be swapped out.
pub fn limits_swap(root: &Path) -> bool {
    root.join("cgroup.controllers").exists() && root.join("kubepods").join(SWAP_FILE).exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(resources: &Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "resources": resources}]}})).unwrap()
    }

    #[test]
    fn sizes_have_their_names() {
        assert_eq!(resource(2 << 20, 64 << 21), ("hugepages-2Mi".into(), "128Mi".into()));
        assert_eq!(resource(1 << 30, 0), ("hugepages-1Gi".into(), "0".into()));
        assert_eq!(resource(64 << 10, 3 << 16).0, "hugepages-64Ki");
    }

    #[test]
    fn media_and_their_pages() {
        let one = of(&json!({"limits": {"hugepages-2Mi": "4Mi"}}));
        let two = of(&json!({"limits": {"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi"}}));
        for (pod, medium, size) in [
            (&one, "HugePages", Some(2 << 20)),
            (&one, "HugePages-1Gi", Some(1 << 30)),
            (&two, "HugePages", None),
            (&of(&json!({})), "HugePages", None),
            (&one, "HugePages-x", None),
            (&one, "HugePagesX", None),
        ] {
            assert_eq!(of_medium(pod, medium).unwrap().ok(), size, "{medium}");
        }
        assert!(of_medium(&one, "Memory").is_none());
    }

    #[test]
    fn who_asked_for_none_gets_none() {
        let site = Site { sizes: vec![2 << 20, 1 << 30], ..Site::default() };
        let pod = of(&json!({"limits": {"hugepages-2Mi": "4Mi"}}));
        let mut linux = LinuxContainerResources::default();
        limit(&pod, &pod::containers(&pod)[0], &site, &mut linux);
        let got: Vec<_> = linux.hugepage_limits.iter().map(|l| (l.page_size.as_str(), l.limit)).collect();
        assert_eq!(got, [("2MB", 4 << 20), ("1GB", 0)]);
        assert!(linux.unified.is_empty());
    }

    #[test]
    fn burstable_pods_swap_their_share() {
        let site = Site {
            memory: 1 << 30,
            swap: 1 << 29,
            limits_swap: true,
            behavior: SwapBehavior::LimitedSwap,
            sizes: vec![],
        };
        let none = Site { behavior: SwapBehavior::NoSwap, ..site.clone() };
        let burstable = json!({"requests": {"memory": "256Mi"}});
        let mut critical = of(&burstable);
        critical.spec.as_mut().unwrap().priority = Some(CRITICAL);
        for (pod, site, wanted) in [
            (of(&burstable), &site, 128 << 20),
            (of(&burstable), &none, 0),
            (critical, &site, 0),
            (of(&json!({})), &site, 0),
            (of(&json!({"requests": {"memory": "256Mi", "cpu": "1"}, "limits": {"memory": "256Mi"}})), &site, 0),
        ] {
            let mut linux = LinuxContainerResources { memory_limit_in_bytes: 7, ..Default::default() };
            limit(&pod, &pod::containers(&pod)[0], site, &mut linux);
            assert_eq!(
                (linux.unified[SWAP_FILE].as_str(), linux.memory_swap_limit_in_bytes),
                (&*wanted.to_string(), 7)
            );
        }
    }
}

//! Decides how many replicas metrics ask for, and how fast the size may follow.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerSpec};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use keelson_machinery::quantity::Quantity;

use crate::kept::Pod;
use crate::pods;

/// A difference from the target of this share is none.
const TOLERANCE: f64 = 0.1;
/// CPU of a pod counts only once it has been running for so long, unless it is ready.
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_secs(300);
/// A pod that was never ready after this long is not starting any more.
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);
/// Without rules a size falls only after it was too large for so long.
const DOWN_WINDOW_SECONDS: i32 = 300;
/// Policies without rules count changes within so long.
const POLICY_SECONDS: i32 = 15;

/// Without rules a size may rise to this at once.
const SIMPLE_CEILING: i32 = 4;

const READY: Why = ("ReadyForNewScale", "recommended size matches current size");
const UP_STABILIZED: Why = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STABILIZED: Why = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_LIMIT: Why = ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: Why =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const TOO_MANY: Why = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: Why = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const WITHIN: Why = ("DesiredWithinRange", "the desired count is within the acceptable range");

/// One pod's value, in thousandths.
pub type Values = BTreeMap<String, i64>;
/// Since when one pod's value was measured.
pub type Moments = BTreeMap<String, Timestamp>;

/// How pods count.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Groups {
    pub ready: usize,
    pub unready: Vec<String>,
    pub missing: Vec<String>,
}

/// Sorts pods by whether their values count; those that do not are taken out of `values`. `cpu` has the moments from which
/// values of processor time were measured: what a pod uses while it starts says nothing.
pub fn group(pods: &[Arc<Pod>], values: &mut Values, cpu: Option<&Moments>, now: Timestamp) -> Groups {
    let mut groups = Groups::default();
    for pod in pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        if pods::is_going(pod) || pods::phase(pod) == "Failed" {
            values.remove(&name);
        } else if pods::phase(pod) == "Pending" {
            values.remove(&name);
            groups.unready.push(name);
        } else if !values.contains_key(&name) {
            groups.missing.push(name);
        } else if cpu.is_some_and(|since| is_starting(pod, since.get(&name), now)) {
            values.remove(&name);
            groups.unready.push(name);
        } else {
            groups.ready += 1;
        }
    }
    groups
}

fn is_starting(pod: &Pod, since: Option<&Timestamp>, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
    let (Some(started), Some(ready)) = (started, pods::condition(pod, "Ready")) else { return true };
    let within = |span: SignedDuration, at: Timestamp| started.checked_add(span).is_ok_and(|end| end > at);
    let changed = ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    if within(CPU_INITIALIZATION, now) {
        return ready.status == "False" || since.is_some_and(|since| *since < changed);
    }
    ready.status == "False" && within(INITIAL_READINESS, changed)
}

fn ceil(value: f64) -> i32 {
    value.ceil().clamp(0.0, f64::from(i32::MAX)) as i32
}

/// The values beside their target: ratio, percentage of the requests, average. `None` if no pod with a request has one.
fn share(values: &Values, requests: Option<&Values>, target: i64) -> Option<(f64, i64, i64)> {
    let target = target.max(1) as f64;
    let Some(requests) = requests else {
        let average = values.values().sum::<i64>() / values.len().max(1) as i64;
        return Some((average as f64 / target, 0, average));
    };
    let known = values.iter().filter_map(|(name, value)| Some((*value, *requests.get(name)?)));
    let (total, wanted, count) = known.fold((0, 0, 0), |(t, w, n), (value, request)| (t + value, w + request, n + 1));
    let percent = total.checked_mul(100)?.checked_div(wanted)?;
    Some((percent as f64 / target, percent, total / count))
}

/// The size for values of pods. `target` is each pod's in thousandths, or a percentage of `requests`. Gives also the
/// present value: an average, or a percentage.
pub fn by_pods(
    current: i32,
    values: &Values,
    groups: &Groups,
    requests: Option<&Values>,
    target: i64,
    tolerance: Tolerance,
) -> Result<(i32, i64, i64), String> {
    let share = |values: &Values| share(values, requests, target);
    if values.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".into());
    }
    let (ratio, percent, average) = share(values).ok_or("no metrics returned matched known pods")?;
    let growing = ratio > 1.0;
    let rebalance = !groups.unready.is_empty() && growing;
    if groups.missing.is_empty() && !rebalance {
        let size = if tolerance.allows(ratio) { current } else { ceil(ratio * groups.ready as f64) };
        return Ok((size, percent, average));
    }
    // What is not known is assumed so that the size changes less.
    let mut all = values.clone();
    for name in &groups.missing {
        let full = match requests {
            Some(requests) => requests.get(name).copied().unwrap_or(0) * target.max(100) / 100,
            None => target,
        };
        // Exactly at the target, unknown pods count as idle only where there are no requests, as upstream has it.
        if ratio != 1.0 || requests.is_none() {
            all.insert(name.clone(), if ratio < 1.0 { full } else { 0 });
        }
    }
    if rebalance {
        all.extend(groups.unready.iter().map(|name| (name.clone(), 0)));
    }
    let (second, ..) = share(&all).ok_or("no metrics returned matched known pods")?;
    let reversed = (ratio < 1.0 && second > 1.0) || (growing && second < 1.0);
    if tolerance.allows(second) || reversed {
        return Ok((current, percent, average));
    }
    let size = ceil(second * all.len() as f64);
    let against = (second < 1.0 && size > current) || (second > 1.0 && size < current);
    Ok((if against { current } else { size }, percent, average))
}

/// The size for one value of something else, for `wanted` replicas of which `ready` are.
pub fn by_value(wanted: i32, ready: usize, usage: i64, target: i64, tolerance: Tolerance) -> i32 {
    let ratio = usage as f64 / target.max(1) as f64;
    match wanted {
        0 => ceil(ratio),
        _ if tolerance.allows(ratio) => wanted,
        _ => ceil(ratio * ready as f64),
    }
}

/// The size for a value that is shared by the `present` replicas, and the share of each.
pub fn by_share(present: i32, usage: i64, target: i64, tolerance: Tolerance) -> (i32, i64) {
    let (target, replicas) = (target.max(1) as f64, f64::from(present));
    let size = if tolerance.allows(usage as f64 / (target * replicas)) { present } else { ceil(usage as f64 / target) };
    (size, if present > 0 { (usage as f64 / replicas).ceil() as i64 } else { usage })
}

/// How far from the target is near enough, upwards and downwards.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    up: f64,
    down: f64,
}

impl Tolerance {
    pub fn of(spec: &HorizontalPodAutoscalerSpec) -> Self {
        let behavior = spec.behavior.as_ref();
        let read = |rules: Option<&HPAScalingRules>| {
            let text = rules.and_then(|r| r.tolerance.as_ref());
            text.and_then(|t| Quantity::parse(&t.0).ok()).map_or(TOLERANCE, |q| q.millis() as f64 / 1000.0)
        };
        Self {
            up: read(behavior.and_then(|b| b.scale_up.as_ref())),
            down: read(behavior.and_then(|b| b.scale_down.as_ref())),
        }
    }

    fn allows(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What an autoscaler remembers.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// The selector of its target's pods.
    pub selector: String,
    /// Sizes that metrics asked for.
    recommended: Vec<(Timestamp, i32)>,
    /// By how much it changed the size.
    changed: Vec<(Timestamp, i32)>,
}

/// What limits a size: reason and message of conditions.
pub type Why = (&'static str, &'static str);

/// The size that is set.
#[derive(Debug, PartialEq, Eq)]
pub struct Limited {
    pub size: i32,
    pub able: Why,
    /// True if something limits it.
    pub limited: (bool, Why),
}

impl Memory {
    /// Notes a change that was made.
    pub fn note(&mut self, by: i32, now: Timestamp) {
        self.changed.push((now, by));
    }

    fn since<'a>(list: &'a [(Timestamp, i32)], seconds: i32, now: Timestamp) -> impl Iterator<Item = i32> + 'a {
        let start = now.checked_sub(SignedDuration::from_secs(seconds.into())).unwrap_or(now);
        list.iter().filter(move |(at, _)| *at > start).map(|(_, n)| *n)
    }

    /// The size that is found first counts as one that was asked for: nothing is taken away at first sight.
    pub fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommended.is_empty() {
            self.recommended.push((now, current));
        }
    }

    fn recommend(&mut self, wanted: i32, now: Timestamp) {
        self.recommended.push((now, wanted));
        let hour = now.checked_sub(SignedDuration::from_hours(1)).unwrap_or(now);
        self.recommended.retain(|(at, _)| *at >= hour);
        self.changed.retain(|(at, _)| *at >= hour);
    }

    /// The same for autoscalers without rules: at most twice as many or four, and no fewer than was asked for lately.
    fn limit_simply(
        &mut self,
        spec: &HorizontalPodAutoscalerSpec,
        current: i32,
        wanted: i32,
        now: Timestamp,
    ) -> Limited {
        let stable = Self::since(&self.recommended, DOWN_WINDOW_SECONDS, now).fold(wanted, i32::max);
        self.recommend(wanted, now);
        let able = if stable == wanted { READY } else { DOWN_STABILIZED };
        let ceiling = current.saturating_mul(2).max(SIMPLE_CEILING);
        let minimum = spec.min_replicas.unwrap_or(1);
        let (maximum, high) =
            if spec.max_replicas > ceiling { (ceiling, UP_LIMIT) } else { (spec.max_replicas, TOO_MANY) };
        let (size, why) = match stable {
            few if few < minimum => (minimum, TOO_FEW),
            many if many > maximum => (maximum, high),
            good => (good, WITHIN),
        };
        Limited { size, able, limited: (size != stable, why) }
    }

    /// The size that may be set now, for one that metrics ask for.
    pub fn limit(&mut self, spec: &HorizontalPodAutoscalerSpec, current: i32, wanted: i32, now: Timestamp) -> Limited {
        let Some(behavior) = spec.behavior.clone() else { return self.limit_simply(spec, current, wanted, now) };
        let (up, down) = (behavior.scale_up.unwrap_or_default(), behavior.scale_down.unwrap_or_default());
        let down_window = down.stabilization_window_seconds.unwrap_or(DOWN_WINDOW_SECONDS);
        let up_window = up.stabilization_window_seconds.unwrap_or(0);
        let most = Self::since(&self.recommended, down_window, now).fold(wanted, i32::max);
        let least = Self::since(&self.recommended, up_window, now).fold(wanted, i32::min);
        self.recommend(wanted, now);
        let stable = current.max(least).min(most);
        let able = match stable == wanted {
            true => READY,
            false if wanted >= current => UP_STABILIZED,
            false => DOWN_STABILIZED,
        };
        let (minimum, maximum) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
        // Changes that were made lately may be more than the rules allow now: that is no reason to undo them.
        let (ceiling, floor) =
            (self.ceiling(&up, current, now).max(current), self.floor(&down, current, now).min(current));
        let (size, why) = if stable > current && stable > ceiling.min(maximum) {
            if ceiling < maximum { (ceiling, UP_LIMIT) } else { (maximum, TOO_MANY) }
        } else if stable < current && stable < floor.max(minimum) {
            if floor > minimum { (floor, DOWN_LIMIT) } else { (minimum, TOO_FEW) }
        } else {
            (stable.clamp(minimum.min(maximum), maximum), WITHIN)
        };
        Limited { size, able, limited: (why != WITHIN, why) }
    }

    /// The policies of rules as type, value and period, or those without rules.
    fn policies(rules: &HPAScalingRules, default: &[(&str, i32)]) -> Vec<(String, i32, i32)> {
        match &rules.policies {
            Some(list) => list.iter().map(|p| (p.type_.clone(), p.value, p.period_seconds)).collect(),
            None => default.iter().map(|(kind, value)| ((*kind).to_owned(), *value, POLICY_SECONDS)).collect(),
        }
    }

    fn ceiling(&self, rules: &HPAScalingRules, current: i32, now: Timestamp) -> i32 {
        let limits =
            Self::policies(rules, &[("Pods", 4), ("Percent", 100)]).into_iter().map(|(kind, value, period)| {
                let start = current - Self::since(&self.changed, period, now).sum::<i32>();
                match kind.as_str() {
                    "Percent" => ceil(f64::from(start) * (1.0 + f64::from(value) / 100.0)),
                    _ => start.saturating_add(value),
                }
            });
        match rules.select_policy.as_deref() {
            Some("Disabled") => current,
            Some("Min") => limits.min().unwrap_or(current),
            _ => limits.max().unwrap_or(current),
        }
    }

    fn floor(&self, rules: &HPAScalingRules, current: i32, now: Timestamp) -> i32 {
        let limits = Self::policies(rules, &[("Percent", 100)]).into_iter().map(|(kind, value, period)| {
            let start = current - Self::since(&self.changed, period, now).sum::<i32>();
            match kind.as_str() {
                "Percent" => (f64::from(start) * (1.0 - f64::from(value) / 100.0)).floor().max(0.0) as i32,
                _ => (start - value).max(0),
            }
        });
        match rules.select_policy.as_deref() {
            Some("Disabled") => current,
            Some("Min") => limits.max().unwrap_or(current),
            _ => limits.min().unwrap_or(current),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn values(list: &[(&str, i64)]) -> Values {
        list.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    fn spec(rest: Value) -> HorizontalPodAutoscalerSpec {
        let mut whole = json!({"scaleTargetRef": {"kind": "D", "name": "d"}, "minReplicas": 2, "maxReplicas": 10});
        keelson_machinery::patch::merge(&mut whole, &rest);
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn sizes_follow_the_values() {
        let tolerance = Tolerance::of(&spec(json!({})));
        let requests = values(&[("a", 1000), ("b", 1000), ("c", 1000)]);
        let unready = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        for (what, used, unready_pods, missing, expected) in [
            ("at the target", &[("a", 500), ("b", 500)][..], &[][..], &[][..], (2, 50)),
            ("within the tolerance", &[("a", 540), ("b", 540)], &[], &[], (2, 54)),
            ("twice the target", &[("a", 1000), ("b", 1000)], &[], &[], (4, 100)),
            ("half the target", &[("a", 250), ("b", 250)], &[], &[], (1, 25)),
            ("new ones count as idle", &[("a", 1000), ("b", 1000)], &["c"], &[], (4, 100)),
            ("unknown ones count as busy", &[("a", 100)], &[], &["b"], (2, 10)),
            ("unknown ones beside one at the target", &[("a", 500)], &[], &["b"], (2, 50)),
            ("values of strangers do not count", &[("a", 500), ("x", 9000)], &[], &[], (2, 50)),
        ] {
            let used = values(used);
            let groups = Groups { ready: used.len(), unready: unready(unready_pods), missing: unready(missing) };
            let (size, percent, _) = by_pods(2, &used, &groups, Some(&requests), 50, tolerance).unwrap();
            assert_eq!((size, percent), expected, "{what}");
        }
        assert!(by_pods(2, &Values::new(), &Groups::default(), None, 50, tolerance).is_err());
        assert!(by_pods(2, &values(&[("x", 1)]), &Groups::default(), Some(&requests), 50, tolerance).is_err());
        for (wanted, ready, usage, expected) in
            [(2, 2, 30_000, 6), (2, 1, 30_000, 3), (3, 1, 10_500, 3), (0, 0, 25_000, 3)]
        {
            assert_eq!(by_value(wanted, ready, usage, 10_000, tolerance), expected, "{wanted} {ready} {usage}");
        }
        for (present, usage, expected) in
            [(2, 30_000, (3, 15_000)), (3, 30_000, (3, 10_000)), (3, 30_001, (3, 10_001)), (0, 15_000, (2, 15_000))]
        {
            assert_eq!(by_share(present, usage, 10_000, tolerance), expected, "{present} {usage}");
        }
    }

    #[test]
    fn changes_have_a_pace() {
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        let limited = |memory: &mut Memory, spec: &HorizontalPodAutoscalerSpec, current, wanted, second| {
            let found = memory.limit(spec, current, wanted, at(second));
            (found.size, found.limited.1.0)
        };
        let plain = spec(json!({"behavior": {}}));
        let mut memory = Memory::default();
        assert_eq!(limited(&mut memory, &plain, 3, 9, 0), (7, "ScaleUpLimit"));
        memory.note(4, at(0));
        assert_eq!(limited(&mut memory, &plain, 7, 9, 5), (7, "ScaleUpLimit"));
        assert_eq!(limited(&mut memory, &plain, 7, 20, 30), (10, "TooManyReplicas"));
        assert_eq!(limited(&mut memory, &plain, 10, 1, 60), (10, "DesiredWithinRange"));
        assert_eq!(memory.limit(&plain, 10, 1, at(61)).able.0, "ScaleDownStabilized");
        assert_eq!(limited(&mut memory, &plain, 10, 1, 400), (2, "TooFewReplicas"));
        let slow = spec(json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}, "scaleUp": {"selectPolicy": "Disabled"}}}));
        let mut memory = Memory::default();
        assert_eq!(limited(&mut memory, &slow, 5, 2, 0), (4, "ScaleDownLimit"));
        memory.note(-1, at(0));
        assert_eq!(limited(&mut memory, &slow, 4, 2, 30), (4, "ScaleDownLimit"));
        assert_eq!(limited(&mut memory, &slow, 4, 9, 31), (4, "ScaleUpLimit"));
        let steps =
            spec(json!({"behavior": {"scaleUp": {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]},
            "scaleDown": {"stabilizationWindowSeconds": 0}}}));
        let mut memory = Memory::default();
        memory.note(4, at(0));
        assert_eq!(limited(&mut memory, &steps, 8, 9, 10), (8, "ScaleUpLimit"), "what was done is not undone");
        memory.note(-2, at(20));
        assert_eq!(
            limited(&mut memory, &steps, 6, 9, 30),
            (6, "ScaleUpLimit"),
            "what went counts as well as what came"
        );
    }

    #[test]
    fn nothing_is_taken_away_at_first_sight() {
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        for rules in [json!({}), json!({"behavior": {}})] {
            let (mut memory, spec) = (Memory::default(), spec(rules));
            memory.begin(6, at(0));
            let first = memory.limit(&spec, 6, 3, at(0));
            assert_eq!((first.size, first.able), (6, DOWN_STABILIZED));
            memory.begin(9, at(15));
            assert_eq!(memory.limit(&spec, 6, 3, at(301)).size, 3);
        }
    }

    #[test]
    fn without_rules_sizes_double_at_most() {
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        let plain = spec(json!({"maxReplicas": 20}));
        let mut memory = Memory::default();
        for (what, second, current, wanted, size, able, limited) in [
            ("four at once", 0, 1, 9, 4, READY, UP_LIMIT),
            ("twice as many", 400, 4, 9, 8, READY, UP_LIMIT),
            ("no more than allowed", 800, 15, 30, 20, READY, TOO_MANY),
            ("as many as were asked for lately", 1000, 20, 3, 20, DOWN_STABILIZED, TOO_MANY),
            ("fewer", 1600, 20, 3, 3, READY, WITHIN),
            ("no fewer than allowed", 2000, 3, 1, 2, READY, TOO_FEW),
            ("as it is", 2400, 5, 5, 5, READY, WITHIN),
        ] {
            let found = memory.limit(&plain, current, wanted, at(second));
            assert_eq!(found, Limited { size, able, limited: (limited != WITHIN, limited) }, "{what}");
        }
    }

    #[test]
    fn pods_count_once_they_have_started() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let pod = |name: &str, phase: &str, start: &str, ready: &str, changed: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"containers": []}, "status": {"phase": phase,
                    "startTime": start, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": changed}]}}))
                .unwrap(),
            )
        };
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-01T00:09:00Z");
        let pods = [
            pod("ready", "Running", new, "True", new),
            pod("starting", "Running", new, "False", new),
            pod("never", "Running", old, "False", old),
            pod("broken", "Running", old, "False", new),
            pod("pending", "Pending", new, "False", new),
            pod("failed", "Failed", new, "False", new),
            pod("silent", "Running", old, "True", old),
        ];
        let used = values(&[("ready", 1), ("starting", 1), ("never", 1), ("broken", 1), ("failed", 1)]);
        let since = |at: &str| Moments::from([("ready".to_owned(), at.parse().unwrap())]);
        for (measured, unready, left) in [
            (Some(since(new)), "starting never pending", "broken ready"),
            (Some(since("2026-01-01T00:08:59Z")), "ready starting never pending", "broken"),
            (None, "pending", "broken never ready starting"),
        ] {
            let mut used = used.clone();
            let groups = group(&pods, &mut used, measured.as_ref(), now);
            assert_eq!((groups.ready, groups.missing.join(" ")), (used.len(), "silent".to_owned()));
            assert_eq!(groups.unready.join(" "), unready);
            assert_eq!(used.into_keys().collect::<Vec<_>>().join(" "), left);
        }
    }
}

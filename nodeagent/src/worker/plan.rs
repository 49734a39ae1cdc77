//! Which containers of a pod are to be started or stopped now. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_proto::cri::ContainerState;

use crate::cri::{CONTAINER_HASH, Run, Running};
use crate::spec::container;
use crate::spec::pod::{self, Sort};

/// Why containers wait: reason and message by name.
pub type Waiting = BTreeMap<String, (String, String)>;

/// What the worker remembers of runs.
pub trait Memory {
    /// Whether the run has come through its startup probe and hook.
    fn started(&self, run: &Run) -> bool;
    /// Which probe wants the run ended.
    fn hopeless(&self, run: &Run) -> Option<&'static str>;
    /// Seconds until a container that ended with this run may start again, and the whole pause; `None` for now.
    fn pause(&self, run: &Run) -> Option<(i64, i64)>;
}

/// A container that is to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its sort.
    pub sort: Sort,
    /// Its name.
    pub name: String,
    /// How many runs there were.
    pub attempt: u32,
    /// A run that was made and never started, which goes first.
    pub remove: Option<String>,
}

/// A run that is to be stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Its id.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// Why, for the event.
    pub why: String,
    /// The probe that wants it, if one does.
    pub probe: Option<&'static str>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order, one after another.
    pub start: Vec<Start>,
    /// All at once.
    pub stop: Vec<Stop>,
    /// Why containers wait.
    pub waiting: Waiting,
    /// Whether the pod has ended for good.
    pub over: bool,
    /// Seconds until there is something to do again, if that is known.
    pub again: Option<i64>,
}

/// A container's runs, newest first.
pub fn runs<'a>(name: &str, seen: &'a Running) -> impl Iterator<Item = &'a Run> + use<'a> {
    let name = name.to_owned();
    seen.containers.iter().filter(move |r| r.metadata.as_ref().is_some_and(|m| m.name == name))
}

fn attempt(run: &Run) -> u32 {
    run.metadata.as_ref().map_or(0, |m| m.attempt)
}

struct Planner<'a> {
    pod: &'a Pod,
    seen: &'a Running,
    sandbox: &'a str,
    memory: &'a dyn Memory,
    plan: Plan,
}

/// How far a container is.
enum Stage {
    /// It is to start, starts or waits for its next start.
    Coming,
    /// It runs.
    Up,
    /// It ended well and for good.
    Done,
    /// It ended badly and for good.
    Failed,
}

/// The plan for the containers of a pod whose sandbox is up.
pub fn plan(pod: &Pod, seen: &Running, sandbox: &str, memory: &dyn Memory) -> Plan {
    let mut planner = Planner { pod, seen, sandbox, memory, plan: Plan::default() };
    planner.all();
    planner.plan
}

impl Planner<'_> {
    fn current(&self, name: &str) -> Option<&Run> {
        runs(name, self.seen).find(|r| r.sandbox == self.sandbox)
    }

    fn all(&mut self) {
        for extra in pod::ephemeral_containers(self.pod) {
            if runs(&extra.name, self.seen).next().is_none() {
                self.start(Sort::Ephemeral, &extra.name, None);
            }
        }
        let mains = pod::containers(self.pod);
        let initialized = mains.iter().any(|c| self.current(&c.name).is_some());
        if !self.init(initialized) {
            return;
        }
        let stages: Vec<Stage> = mains.iter().map(|c| self.stage(Sort::Main, c)).collect();
        self.plan.over = stages.iter().all(|s| matches!(s, Stage::Done | Stage::Failed));
    }

    /// The init containers. Returns whether the main ones may run.
    fn init(&mut self, initialized: bool) -> bool {
        for container in pod::init_containers(self.pod) {
            let sort = if pod::is_sidecar(container) { Sort::Sidecar } else { Sort::Init };
            if initialized {
                if sort == Sort::Sidecar {
                    self.stage(sort, container);
                }
                continue;
            }
            match (sort, self.stage(sort, container)) {
                (_, Stage::Done) => {}
                (Sort::Sidecar, Stage::Up)
                    if self.current(&container.name).is_some_and(|run| self.memory.started(run)) => {}
                (_, Stage::Failed) => {
                    self.plan.over = true;
                    return false;
                }
                _ => return false,
            }
        }
        true
    }

    fn stage(&mut self, sort: Sort, container: &Container) -> Stage {
        let name = container.name.as_str();
        let Some(run) = self.current(name).cloned() else {
            let last = runs(name, self.seen).next();
            // What ended for good in an earlier sandbox does not run again; init containers do.
            let ended = last.filter(|r| sort == Sort::Main && r.state() == ContainerState::ContainerExited);
            if let Some(run) = ended.filter(|r| !pod::restarts(self.pod, sort, container, r.exit_code)) {
                return if run.exit_code == 0 { Stage::Done } else { Stage::Failed };
            }
            let last = last.map(|r| attempt(r) + 1);
            self.start(sort, name, last);
            return Stage::Coming;
        };
        match run.state() {
            ContainerState::ContainerRunning => {
                self.watch(container, &run);
                Stage::Up
            }
            ContainerState::ContainerCreated => {
                let start = Start { sort, name: name.into(), attempt: attempt(&run), remove: Some(run.id.clone()) };
                self.plan.start.push(start);
                Stage::Coming
            }
            ContainerState::ContainerExited if !pod::restarts(self.pod, sort, container, run.exit_code) => {
                if run.exit_code == 0 { Stage::Done } else { Stage::Failed }
            }
            // Exited, or the runtime has lost it.
            _ => {
                match self.memory.pause(&run) {
                    Some((left, whole)) => self.wait(name, left, whole),
                    None => self.start(sort, name, Some(attempt(&run) + 1)),
                }
                Stage::Coming
            }
        }
    }

    fn start(&mut self, sort: Sort, name: &str, attempt: Option<u32>) {
        // After the loss of the runtime's state the API still knows how often the container started.
        let known = self.pod.status.as_ref().and_then(|s| {
            let lists = [&s.container_statuses, &s.init_container_statuses];
            let status = lists.into_iter().flatten().flatten().find(|c| c.name == name)?;
            let began = status.container_id.is_some();
            began.then(|| u32::try_from(status.restart_count).unwrap_or(0) + 1)
        });
        let attempt = attempt.or(known).unwrap_or(0);
        self.plan.start.push(Start { sort, name: name.into(), attempt, remove: None });
    }

    fn wait(&mut self, name: &str, left: i64, whole: i64) {
        let (pod, uid) = (self.pod.metadata.name.as_deref().unwrap_or_default(), pod::uid(self.pod));
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or_default();
        let message =
            format!("back-off {} restarting failed container={name} pod={pod}_{namespace}({uid})", span(whole));
        self.plan.waiting.insert(name.into(), ("CrashLoopBackOff".into(), message));
        self.plan.again = Some(self.plan.again.map_or(left, |a| a.min(left)));
    }

    fn watch(&mut self, container: &Container, run: &Run) {
        let name = &container.name;
        let probe = self.memory.hopeless(run);
        let why = if let Some(probe) = probe {
            format!("Container {name} failed {probe} probe, will be restarted")
        } else if run.annotations.get(CONTAINER_HASH).is_some_and(|h| *h != container::hash(container)) {
            format!("Container {name} definition changed, will be restarted")
        } else {
            return;
        };
        self.plan.stop.push(Stop { id: run.id.clone(), name: name.clone(), why, probe });
    }
}

/// Seconds as Go prints durations.
pub fn span(seconds: i64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_proto::cri::{ContainerMetadata, ContainerStatus};
    use serde_json::{Value, json};

    #[derive(Default)]
    struct Known {
        started: bool,
        hopeless: Option<&'static str>,
        pause: Option<(i64, i64)>,
    }

    impl Memory for Known {
        fn started(&self, _: &Run) -> bool {
            self.started
        }
        fn hopeless(&self, _: &Run) -> Option<&'static str> {
            self.hopeless
        }
        fn pause(&self, _: &Run) -> Option<(i64, i64)> {
            self.pause
        }
    }

    use ContainerState::{ContainerCreated as Made, ContainerExited as Ended, ContainerRunning as Up};

    fn run(name: &str, state: ContainerState, exit_code: i32, attempt: u32) -> Run {
        let metadata = Some(ContainerMetadata { name: name.into(), attempt });
        let status = ContainerStatus {
            id: format!("{name}{attempt}"),
            metadata,
            state: state.into(),
            exit_code,
            ..Default::default()
        };
        Run { sandbox: "s".into(), status }
    }

    fn pod(policy: &str, init: Value, main: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "restartPolicy": policy, "initContainers": init, "containers": main}}))
        .unwrap()
    }

    /// What starts, as `name/attempt`, and whether the pod is over.
    fn outcome(pod: &Pod, runs: Vec<Run>, known: &Known) -> (String, bool) {
        let seen = Running { sandboxes: vec![], containers: runs };
        let plan = plan(pod, &seen, "s", known);
        let starts: Vec<String> = plan.start.iter().map(|s| format!("{}/{}", s.name, s.attempt)).collect();
        (starts.join(" "), plan.over)
    }

    #[test]
    fn main_containers() {
        let waits = Known { pause: Some((3, 10)), ..Known::default() };
        let now = Known::default();
        let mut elsewhere = run("a", Ended, 1, 4);
        elsewhere.sandbox = "old".into();
        for (policy, runs, known, starts, over) in [
            ("Always", vec![], &now, "a/0 b/0", false),
            ("Always", vec![run("a", Up, 0, 0), run("b", Up, 0, 0)], &now, "", false),
            ("Always", vec![run("a", Ended, 0, 0), run("b", Up, 0, 0)], &now, "a/1", false),
            ("Always", vec![run("a", Ended, 0, 1), run("b", Up, 0, 0)], &waits, "", false),
            ("Always", vec![run("a", Made, 0, 1), run("b", Up, 0, 0)], &now, "a/1", false),
            ("OnFailure", vec![run("a", Ended, 0, 0), run("b", Ended, 1, 0)], &now, "b/1", false),
            ("OnFailure", vec![run("a", Ended, 0, 0), run("b", Ended, 0, 0)], &now, "", true),
            ("Never", vec![run("a", Ended, 1, 0), run("b", Ended, 0, 0)], &now, "", true),
            ("Never", vec![run("a", Ended, 1, 0), run("b", Up, 0, 0)], &now, "", false),
            ("Always", vec![elsewhere], &now, "a/5 b/0", false),
        ] {
            let pod = pod(policy, json!([]), json!([{"name": "a"}, {"name": "b"}]));
            let what = format!("{policy} {runs:?}");
            assert_eq!(outcome(&pod, runs, known), (starts.into(), over), "{what}");
        }
    }

    #[test]
    fn init_containers_and_sidecars() {
        let (not_yet, started) = (Known::default(), Known { started: true, ..Known::default() });
        let init = json!([{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]);
        for (policy, runs, known, starts, over) in [
            ("Always", vec![], &not_yet, "i/0", false),
            ("Always", vec![run("i", Up, 0, 0)], &not_yet, "", false),
            ("Always", vec![run("i", Ended, 1, 0)], &not_yet, "i/1", false),
            ("Never", vec![run("i", Ended, 1, 0)], &not_yet, "", true),
            ("Always", vec![run("i", Ended, 0, 0)], &not_yet, "s/0", false),
            ("Always", vec![run("i", Ended, 0, 0), run("s", Up, 0, 0)], &not_yet, "", false),
            ("Always", vec![run("i", Ended, 0, 0), run("s", Up, 0, 0)], &started, "a/0", false),
            ("Never", vec![run("i", Ended, 0, 0), run("s", Ended, 0, 0), run("a", Up, 0, 0)], &started, "s/1", false),
            ("Never", vec![run("s", Up, 0, 0), run("a", Ended, 0, 0)], &started, "", true),
        ] {
            let pod = pod(policy, init.clone(), json!([{"name": "a"}]));
            let what = format!("{policy} {runs:?}");
            assert_eq!(outcome(&pod, runs, known), (starts.into(), over), "{what}");
        }
    }

    #[test]
    fn what_is_stopped() {
        let pod = pod("Always", json!([]), json!([{"name": "a", "image": "new"}]));
        let plan_of =
            |runs: Vec<Run>, known: &Known| plan(&pod, &Running { sandboxes: vec![], containers: runs }, "s", known);
        assert_eq!(plan_of(vec![run("a", Up, 0, 0)], &Known::default()).stop, []);
        let hopeless = Known { hopeless: Some("liveness"), ..Known::default() };
        assert_eq!(plan_of(vec![run("a", Up, 0, 0)], &hopeless).stop[0].probe, Some("liveness"));
        let mut old = run("a", Up, 0, 0);
        old.status.annotations.insert(CONTAINER_HASH.into(), "other".into());
        assert!(plan_of(vec![old], &Known::default()).stop[0].why.contains("definition changed"));
    }

    #[test]
    fn debuggers_start_at_any_time_and_only_once() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"initContainers": [{"name": "i"}],
            "containers": [{"name": "a"}], "ephemeralContainers": [{"name": "d"}]}}))
        .unwrap();
        assert_eq!(outcome(&pod, vec![run("i", Up, 0, 0)], &Known::default()).0, "d/0");
        assert_eq!(outcome(&pod, vec![run("i", Up, 0, 0), run("d", Ended, 1, 0)], &Known::default()).0, "");
    }

    #[test]
    fn spans() {
        assert_eq!([10, 60, 300, 80].map(span), ["10s", "1m0s", "5m0s", "1m20s"]);
    }
}

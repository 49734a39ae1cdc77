//! Carries out resizes: the pod's control group and its containers', in the order in which neither is ever too small.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use keelson_proto::cri::UpdateContainerResourcesRequest;

use super::plan::runs;
use super::{Worker, is_running};
use crate::cri::Running;
use crate::resize::{self, Amounts, Verdict};
use crate::spec::{pod, resources};
use crate::{cgroup, stats};

impl Worker {
    /// What the other pods of this node were promised.
    fn promised_to_others(&self) -> Amounts {
        let pods = self.agent.pods.list();
        let others = pods.iter().filter(|other| pod::uid(other) != self.uid && !pod::is_finished(other));
        others
            .map(|other| resize::promised(other))
            .fold(Amounts::default(), |sum, one| Amounts { cpu: sum.cpu + one.cpu, memory: sum.memory + one.memory })
    }

    /// Judges what is asked for. Returns the pod with the resources that the node agrees to.
    pub(super) fn judge_resize(&mut self, of: &Arc<Pod>) -> Arc<Pod> {
        if !resize::is_wanted(of) {
            self.resizing = None;
            return of.clone();
        }
        let verdict = if self.agent.pods.is_static(&self.uid) {
            Verdict::Infeasible("In-place resize of static-pods is not supported".into())
        } else {
            resize::judge(resize::requests(of), self.promised_to_others(), self.agent.capacity())
        };
        self.tell(of, &verdict);
        let agreed = if verdict.is_pending() { Arc::new(resize::agreed(of)) } else { of.clone() };
        self.resizing = Some(verdict);
        agreed
    }

    /// Events for what is new.
    fn tell(&self, of: &Pod, verdict: &Verdict) {
        if self.resizing.as_ref() == Some(verdict) {
            return;
        }
        match verdict {
            Verdict::Deferred(why) => self.agent.events.warning(of, None, "ResizeDeferred", why.clone()),
            Verdict::Infeasible(why) => self.agent.events.warning(of, None, "ResizeInfeasible", why.clone()),
            Verdict::Failed(why) => self.agent.events.warning(of, None, "ResizeError", why.clone()),
            Verdict::Feasible => {}
        }
    }

    /// Gives running containers what the node has agreed to. Returns whether anything changed in the runtime.
    pub(super) async fn carry_out_resize(&mut self, of: &Pod, seen: &Running) -> bool {
        if self.resizing != Some(Verdict::Feasible) {
            return false;
        }
        match self.resize_all(of, seen).await {
            Ok(()) => {
                self.agent.events.normal(of, None, "ResizeCompleted", "Pod resize completed");
                self.resizing = None;
            }
            Err(why) => {
                let verdict = Verdict::Failed(why);
                self.tell(of, &verdict);
                self.resizing = Some(verdict);
            }
        }
        true
    }

    async fn resize_all(&self, of: &Pod, seen: &Running) -> Result<(), String> {
        let before = resources::pod_limits(&resize::agreed(of));
        let after = resources::pod_limits(of);
        let path = cgroup::path(of);
        if let (Some(limit), Some(usage)) = (after.memory, cgroup::usage(&path)) {
            let used = i64::try_from(usage.memory).unwrap_or(i64::MAX);
            if used > limit && before.memory.is_none_or(|before| limit < before) {
                return Err(format!("attempting to set pod memory limit ({limit}) below current usage ({used})"));
            }
        }
        let set = |limits| cgroup::set(&path, &limits).map_err(|e| format!("the pod's control group: {e}"));
        set(before.larger(after))?;
        let node_memory = stats::memory().map_or(0, |(all, _)| i64::try_from(all).unwrap_or(i64::MAX));
        for container in resize::resizable(of) {
            let changed = resize::changed(of, container);
            let Some(run) = runs(&container.name, seen).find(|run| is_running(run)) else { continue };
            if changed.is_empty() {
                continue;
            }
            if resize::needs_restart(container, &changed) {
                let why = format!("Container {} resize requires restart", container.name);
                self.stop_one(Some(of), run, pod::grace(of), &why).await.map_err(|e| e.message().to_owned())?;
                continue;
            }
            let mut linux = resources::container(of, container, node_memory);
            // The score was set when the container began; without a limit of its own it is told so.
            linux.oom_score_adj = 0;
            if linux.cpu_quota == 0 {
                linux.cpu_quota = -1;
            }
            if linux.memory_limit_in_bytes == 0 {
                linux.memory_limit_in_bytes = -1;
            }
            let request = UpdateContainerResourcesRequest { container_id: run.id.clone(), linux: Some(linux) };
            let done = self.agent.runtime.pods.clone().update_container_resources(request).await;
            done.map_err(|e| format!("container {}: {}", container.name, e.message()))?;
        }
        set(after)
    }
}

//! What the controllers keep of a pod: 150,000 of them are in memory at a time.
//!
//! Invariant: nothing is taken off that a controller reads; metadata and status are whole, since both are written back with the
//! status. Who writes more of a pod reads it anew.

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, Volume};

use crate::volumes::inline;

/// Takes off what no controller reads, and the room that decoding left in lists.
pub fn pod(pod: &mut Pod) {
    shrink(&mut pod.metadata.owner_references);
    shrink(&mut pod.metadata.finalizers);
    if let Some(spec) = &mut pod.spec {
        spec.dns_config = None;
        spec.host_aliases = None;
        spec.security_context = None;
        spec.containers.iter_mut().for_each(container);
        spec.containers.shrink_to_fit();
        spec.init_containers.iter_mut().flatten().for_each(container);
        shrink(&mut spec.init_containers);
        shrink(&mut spec.tolerations);
        if let Some(volumes) = &mut spec.volumes {
            volumes.retain_mut(is_read);
        }
        spec.volumes = spec.volumes.take().filter(|volumes| !volumes.is_empty());
        shrink(&mut spec.volumes);
    }
    if let Some(status) = &mut pod.status {
        shrink(&mut status.conditions);
        shrink(&mut status.container_statuses);
        shrink(&mut status.init_container_statuses);
        shrink(&mut status.host_ips);
        shrink(&mut status.pod_ips);
    }
}

fn shrink<T>(list: &mut Option<Vec<T>>) {
    if let Some(list) = list {
        list.shrink_to_fit();
    }
}

/// Names, images, ports, resources and restart policies are read, and which Secrets a container gets.
fn container(container: &mut Container) {
    let whole = std::mem::take(container);
    let secret = |e: &EnvVar| e.value_from.as_ref().is_some_and(|from| from.secret_key_ref.is_some());
    let env: Option<Vec<EnvVar>> = whole.env.map(|all| all.into_iter().filter(secret).collect());
    *container = Container {
        name: whole.name,
        image: whole.image,
        env: env.filter(|env| !env.is_empty()),
        env_from: whole.env_from,
        ports: whole.ports,
        resources: whole.resources,
        restart_policy: whole.restart_policy,
        ..Container::default()
    };
    shrink(&mut container.ports);
}

/// Whether a volume is looked at: claims, disks that are attached, and Secrets.
fn is_read(volume: &mut Volume) -> bool {
    if let Some(projected) = &mut volume.projected {
        projected.sources.iter_mut().for_each(|sources| sources.retain(|s| s.secret.is_some()));
        return projected.sources.as_ref().is_some_and(|sources| !sources.is_empty());
    }
    volume.persistent_volume_claim.is_some()
        || volume.ephemeral.is_some()
        || volume.secret.is_some()
        || inline::translated(volume).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_read_stays() {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "annotations": {"a": "b"}},
            "spec": {
                "nodeName": "n", "securityContext": {}, "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "c", "image": "i", "args": ["x"], "command": ["y"], "ports": [{"containerPort": 80}],
                    "resources": {"requests": {"cpu": "1"}}, "livenessProbe": {"periodSeconds": 1},
                    "volumeMounts": [{"name": "v", "mountPath": "/"}], "envFrom": [{"secretRef": {"name": "s"}}],
                    "env": [{"name": "A", "value": "b"},
                        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}],
                "initContainers": [{"name": "side", "restartPolicy": "Always", "env": [{"name": "A", "value": "b"}]}],
                "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
                    {"name": "both", "projected": {"sources": [{"configMap": {"name": "m"}}, {"secret": {"name": "s"}}]}},
                    {"name": "empty", "emptyDir": {}}, {"name": "secret", "secret": {"secretName": "s"}},
                    {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "disk", "cinder": {"volumeID": "d"}}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        }))
        .unwrap();
        super::pod(&mut pod);
        let kept: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "annotations": {"a": "b"}},
            "spec": {
                "nodeName": "n", "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
                    "resources": {"requests": {"cpu": "1"}}, "envFrom": [{"secretRef": {"name": "s"}}],
                    "env": [{"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}],
                "initContainers": [{"name": "side", "restartPolicy": "Always"}],
                "volumes": [
                    {"name": "both", "projected": {"sources": [{"secret": {"name": "s"}}]}},
                    {"name": "secret", "secret": {"secretName": "s"}},
                    {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "disk", "cinder": {"volumeID": "d"}}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        }))
        .unwrap();
        assert_eq!(pod, kept);
    }
}

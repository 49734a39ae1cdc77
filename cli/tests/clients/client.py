"""Drives the server with the official client: typed calls, lists in pages, watches, patches, the dynamic client."""
import os
import queue
import sys
import threading
from kubernetes import client, config, dynamic, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import stream

config.load_kube_config(config_file=sys.argv[1])
core, apps = client.CoreV1Api(), client.AppsV1Api()

# Typed objects, there and back.
meta = client.V1ObjectMeta(name="m", labels={"a": "b"})
made = core.create_namespaced_config_map("default", client.V1ConfigMap(metadata=meta, data={"k": "v"}))
assert made.metadata.uid and made.data == {"k": "v"}, made
read = core.read_namespaced_config_map("m", "default")
assert read.metadata.resource_version == made.metadata.resource_version
read.data["k"] = "w"
replaced = core.replace_namespaced_config_map("m", "default", read)
assert replaced.data == {"k": "w"}
read.metadata.resource_version = made.metadata.resource_version
try:
    core.replace_namespaced_config_map("m", "default", read)
    raise SystemExit("a stale update was taken")
except ApiException as refused:
    assert refused.status == 409, refused
patched = core.patch_namespaced_config_map("m", "default", {"data": {"x": "y"}})
assert patched.data == {"k": "w", "x": "y"}, patched
assert core.list_namespaced_config_map("default", label_selector="a=b").items[0].metadata.name == "m"

# Watches, from the list on.
version = core.list_namespaced_config_map("default").metadata.resource_version
seen = []
def follow():
    events = watch.Watch()
    for event in events.stream(core.list_namespaced_config_map, "default", resource_version=version, timeout_seconds=20):
        seen.append((event["type"], event["object"].metadata.name))
        if event["type"] == "DELETED":
            events.stop()
thread = threading.Thread(target=follow)
thread.start()
for name in ["p0", "p1", "p2"]:
    core.create_namespaced_config_map("default", client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name)))
core.delete_namespaced_config_map("p1", "default")
thread.join()
assert seen == [("ADDED", "p0"), ("ADDED", "p1"), ("ADDED", "p2"), ("DELETED", "p1")], seen

# Pages.
names, token = [], None
while True:
    page = core.list_namespaced_config_map("default", limit=1, _continue=token)
    names += [item.metadata.name for item in page.items]
    token = page.metadata._continue
    if not token:
        break
assert {"m", "p0", "p2"} <= set(names), names

# A workload and its scale.
labels = {"app": "web"}
pod = client.V1PodTemplateSpec(
    metadata=client.V1ObjectMeta(labels=labels),
    spec=client.V1PodSpec(containers=[client.V1Container(name="c", image="nginx", resources=client.V1ResourceRequirements(
        requests={"cpu": "100m"}))]))
spec = client.V1DeploymentSpec(replicas=1, selector=client.V1LabelSelector(match_labels=labels), template=pod)
apps.create_namespaced_deployment("default", client.V1Deployment(metadata=client.V1ObjectMeta(name="web"), spec=spec))
apps.patch_namespaced_deployment_scale("web", "default", {"spec": {"replicas": 2}})
assert apps.read_namespaced_deployment_scale("web", "default").spec.replicas == 2
apps.delete_namespaced_deployment("web", "default", propagation_policy="Foreground")

# The dynamic client, which lives from discovery; server-side apply through it.
anything = dynamic.DynamicClient(client.ApiClient())
maps = anything.resources.get(api_version="v1", kind="ConfigMap")
body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied", "namespace": "default"}, "data": {"a": "1"}}
applied = maps.server_side_apply(body=body, name="applied", namespace="default", field_manager="py")
assert applied.data.a == "1" and applied.metadata.managedFields[0].manager == "py", applied
assert "applied" in [item.metadata.name for item in maps.get(namespace="default").items]
maps.delete(name="applied", namespace="default")
crds = anything.resources.get(api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition")
assert crds.get().items == []

# Leases, by which leaders are elected.
coordination = client.CoordinationV1Api()
lease = client.V1Lease(metadata=client.V1ObjectMeta(name="l"), spec=client.V1LeaseSpec(holder_identity="me", lease_duration_seconds=15))
assert coordination.create_namespaced_lease("default", lease).spec.holder_identity == "me"
assert client.VersionApi().get_code().major == "1"

# The library's own leader election.
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock
led = queue.Queue()
times = {"lease_duration": 6, "renew_deadline": 4, "retry_period": 1.1}
election = electionconfig.Config(LeaseLock("leader", "default", "one"), onstarted_leading=lambda: led.put("one"),
                                 onstopped_leading=lambda: None, **times)
threading.Thread(target=leaderelection.LeaderElection(election).run, daemon=True).start()
assert led.get(timeout=30) == "one"
assert coordination.read_namespaced_lease("leader", "default").spec.holder_identity == "one"

# Streams: the pod's node only pretends, and says so.
core.create_namespaced_pod("default", client.V1Pod(metadata=client.V1ObjectMeta(name="p"), spec=client.V1PodSpec(
    node_name="hollow-0", containers=[client.V1Container(name="c", image="nginx")])))
try:
    stream(core.connect_get_namespaced_pod_exec, "p", "default", command=["ls"], stdout=True, stdin=False)
    raise SystemExit("a node without containers ran a command")
except ApiException as refused:
    assert "only pretends to run pods" in str(refused), refused
print("ok", flush=True)
os._exit(0)

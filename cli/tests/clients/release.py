"""Does what package managers do: installs many objects, notes the release in a secret, waits, upgrades by a merge of three
sides, rolls back, uninstalls."""
import base64
import copy
import gzip
import json
import os
import random
import sys
import time
from kubernetes import client, config, dynamic
from kubernetes.client.rest import ApiException

config.load_kube_config(config_file=sys.argv[1])
SPACE, NAME = "default", "web"
LABELS = {"app.kubernetes.io/instance": NAME, "app.kubernetes.io/managed-by": "Helm"}
PATIENCE_SECONDS = 60
api = dynamic.DynamicClient(client.ApiClient())
core = client.CoreV1Api()


def obj(api_version, kind, name, **rest):
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "labels": dict(LABELS)}, **rest}


def definition():
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer", "minimum": 1}, "hosts": {"type": "array", "items": {"type": "string"}}}}}}
    return obj("apiextensions.k8s.io/v1", "CustomResourceDefinition", "caches.example.com", spec={
        "group": "example.com", "scope": "Namespaced", "names": {"kind": "Cache", "plural": "caches"},
        "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}]})


def chart(image, env, keys, size):
    """The objects of a version, in the order in which they are installed."""
    pods = {"app": NAME}
    container = {"name": "web", "image": image, "ports": [{"name": "http", "containerPort": 8080}],
                 "env": [{"name": name, "value": value} for name, value in env.items()],
                 "readinessProbe": {"httpGet": {"path": "/", "port": "http"}}}
    side = {"name": "side", "image": "side:1", "args": ["--quiet"]}
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME}
    return [
        obj("networking.k8s.io/v1", "NetworkPolicy", NAME, spec={"podSelector": {"matchLabels": pods}, "policyTypes": ["Ingress"]}),
        obj("policy/v1", "PodDisruptionBudget", NAME, spec={"maxUnavailable": 1, "selector": {"matchLabels": pods}}),
        obj("v1", "ServiceAccount", NAME),
        obj("v1", "Secret", NAME, type="Opaque", stringData={"password": "hidden"}),
        *[obj("v1", "ConfigMap", f"{NAME}-{i}", data={key: f"{key} {i}" for key in keys}) for i in range(25)],
        obj("rbac.authorization.k8s.io/v1", "Role", NAME, rules=[{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]),
        obj("rbac.authorization.k8s.io/v1", "RoleBinding", NAME,
            roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": NAME},
            subjects=[{"kind": "ServiceAccount", "name": NAME, "namespace": SPACE}]),
        obj("v1", "Service", NAME, spec={"selector": pods, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}),
        obj("apps/v1", "Deployment", NAME, spec={"replicas": 2, "selector": {"matchLabels": pods}, "template": {
            "metadata": {"labels": pods}, "spec": {"serviceAccountName": NAME, "containers": [container, side]}}}),
        obj("autoscaling/v2", "HorizontalPodAutoscaler", NAME, spec={"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 4}),
        obj("networking.k8s.io/v1", "Ingress", NAME, spec={"defaultBackend": {"service": {"name": NAME, "port": {"name": "http"}}}}),
        obj("example.com/v1", "Cache", NAME, spec={"size": size, "hosts": ["a", "b"]}),
    ]


def kind_of(body):
    return api.resources.get(api_version=body["apiVersion"], kind=body["kind"])


def get(body):
    return kind_of(body).get(name=body["metadata"]["name"], namespace=SPACE).to_dict()


def until(what, check):
    end = time.monotonic() + PATIENCE_SECONDS
    while not check():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.1)


def merge(old, new, live):
    """What makes `new` of `live`, and takes away what only `old` says: what others set stays."""
    patch = {}
    for key in old:
        if key not in new:
            patch[key] = None
    for key, wanted in new.items():
        there = live.get(key) if isinstance(live, dict) else None
        if isinstance(wanted, dict) and isinstance(there, dict):
            inner = merge(old.get(key) or {}, wanted, there)
            if inner:
                patch[key] = inner
        elif isinstance(wanted, list) and wanted and isinstance(wanted[0], dict) and "name" in wanted[0] and there:
            inner = merge_named(old.get(key) or [], wanted, there)
            if inner:
                patch[key] = inner
        elif wanted != there:
            patch[key] = wanted
    return patch


def merge_named(old, new, live):
    patch = []
    named = lambda items: {item["name"]: item for item in items}
    for name, item in named(new).items():
        inner = merge(named(old).get(name, {}), item, named(live).get(name, {}))
        if inner:
            patch.append({"name": name, **inner})
    return patch + [{"name": name, "$patch": "delete"} for name in named(old) if name not in named(new)]


def note(version, objects, status="deployed", filler=700_000):
    """The release as it is kept: its objects, packed, in a secret of its own type."""
    noise = base64.b64encode(random.Random(version).randbytes(filler)).decode()
    packed = gzip.compress(json.dumps({"name": NAME, "version": version, "manifest": objects, "noise": noise}).encode())
    labels = {"owner": "helm", "name": NAME, "version": str(version), "status": status}
    data = {"release": base64.b64encode(base64.b64encode(packed)).decode()}
    return client.V1Secret(metadata=client.V1ObjectMeta(name=f"sh.helm.release.v1.{NAME}.v{version}", labels=labels),
                           type="helm.sh/release.v1", data=data)


def supersede(version):
    name = f"sh.helm.release.v1.{NAME}.v{version}"
    secret = core.read_namespaced_secret(name, SPACE)
    secret.metadata.labels["status"] = "superseded"
    core.replace_namespaced_secret(name, SPACE, secret)


def manifest(version):
    secret = core.read_namespaced_secret(f"sh.helm.release.v1.{NAME}.v{version}", SPACE)
    packed = base64.b64decode(base64.b64decode(secret.data["release"]))
    return json.loads(gzip.decompress(packed))["manifest"]


def ready():
    deployment = client.AppsV1Api().read_namespaced_deployment(NAME, SPACE)
    status, wanted = deployment.status, deployment.spec.replicas
    return (status.observed_generation == deployment.metadata.generation and status.updated_replicas == wanted
            and status.available_replicas == wanted and not status.unavailable_replicas and status.replicas == wanted)


def upgrade(before, after):
    for old, new in zip(before, after):
        custom = new["apiVersion"].startswith("example.com/")
        live = get(new)
        wanted = copy.deepcopy(new)
        wanted.pop("stringData", None)
        patch = merge({k: v for k, v in old.items() if k != "stringData"}, wanted, live)
        if not patch:
            continue
        form = "application/merge-patch+json" if custom else "application/strategic-merge-patch+json"
        kind_of(new).patch(body=patch, name=new["metadata"]["name"], namespace=SPACE, content_type=form)


# Installed: the definition first, and what uses it when it is served.
kind_of(definition()).create(body=definition())
conditions = lambda: get(definition())["status"]["conditions"] or []
established = lambda: any(c["type"] == "Established" and c["status"] == "True" for c in conditions())
until("the definition is served", established)
api.resources.invalidate_cache()
first = chart("web:1", {"MODE": "one", "GONE": "soon"}, ["a", "b"], 1)
core.create_namespaced_secret(SPACE, note(1, first, "pending-install"))
for body in first:
    kind_of(body).create(body=body, namespace=SPACE)
until("the first version is ready", ready)
assert core.read_namespaced_service(NAME, SPACE).spec.cluster_ip
secret = core.read_namespaced_secret(f"sh.helm.release.v1.{NAME}.v1", SPACE)
secret.metadata.labels["status"] = "deployed"
core.replace_namespaced_secret(secret.metadata.name, SPACE, secret)

# A second install is refused, and does no harm.
try:
    core.create_namespaced_secret(SPACE, note(1, first))
    raise SystemExit("a release was noted twice")
except ApiException as refused:
    assert refused.status == 409, refused

# Others change what is installed: a label, an annotation of the pods and a number of replicas.
client.AppsV1Api().patch_namespaced_deployment(NAME, SPACE, {"metadata": {"labels": {"by": "hand"}}, "spec": {
    "replicas": 3, "template": {"metadata": {"annotations": {"restarted": "yes"}}}}})
core.patch_namespaced_config_map(f"{NAME}-3", SPACE, {"data": {"other": "stays"}})

# Upgraded: what changed is changed, what the chart lost is gone, what others added stays.
second = chart("web:2", {"MODE": "two", "NEW": "yes"}, ["a", "c"], 2)
supersede(1)
core.create_namespaced_secret(SPACE, note(2, second))
upgrade(manifest(1), second)
until("the second version is ready", ready)
deployment = get(obj("apps/v1", "Deployment", NAME))
containers = deployment["spec"]["template"]["spec"]["containers"]
assert [c["image"] for c in containers] == ["web:2", "side:1"], containers
assert {e["name"]: e["value"] for e in containers[0]["env"]} == {"MODE": "two", "NEW": "yes"}, containers
assert deployment["metadata"]["labels"]["by"] == "hand"
assert deployment["spec"]["template"]["metadata"]["annotations"] == {"restarted": "yes"}
assert deployment["spec"]["replicas"] == 2, "the chart's number counts again"
assert core.read_namespaced_config_map(f"{NAME}-3", SPACE).data == {"a": "a 3", "c": "c 3", "other": "stays"}
assert get(second[-1])["spec"] == {"size": 2, "hosts": ["a", "b"]}

# An upgrade to the same changes nothing.
versions = [get(body)["metadata"]["resourceVersion"] for body in second if body["kind"] != "Deployment"]
upgrade(second, second)
assert versions == [get(body)["metadata"]["resourceVersion"] for body in second if body["kind"] != "Deployment"]

# What is found of the releases, and a note that is too large.
releases = core.list_namespaced_secret(SPACE, label_selector=f"owner=helm,name={NAME}", field_selector="type=helm.sh/release.v1")
assert {s.metadata.labels["version"]: s.metadata.labels["status"] for s in releases.items} == {"1": "superseded", "2": "deployed"}
try:
    core.create_namespaced_secret(SPACE, note(9, second, filler=900_000))
    raise SystemExit("a secret of more than 1 MiB was taken")
except ApiException as refused:
    assert refused.status == 422 and "1048576 bytes" in refused.body, refused

# Rolled back, then uninstalled: nothing of it stays.
upgrade(second, manifest(1))
until("the first version is ready again", ready)
containers = get(obj("apps/v1", "Deployment", NAME))["spec"]["template"]["spec"]["containers"]
assert containers[0]["image"] == "web:1" and {e["name"] for e in containers[0]["env"]} == {"MODE", "GONE"}, containers
for body in reversed(first):
    kind_of(body).delete(name=body["metadata"]["name"], namespace=SPACE, body={"propagationPolicy": "Background"})
core.delete_collection_namespaced_secret(SPACE, label_selector="owner=helm")
kind_of(definition()).delete(name=definition()["metadata"]["name"])
until("the definition is gone", lambda: not kind_of(definition()).get(label_selector="app.kubernetes.io/managed-by=Helm").items)
until("its pods are gone", lambda: not core.list_namespaced_pod(SPACE, label_selector=f"app={NAME}").items)
assert not core.list_namespaced_config_map(SPACE, label_selector="app.kubernetes.io/managed-by=Helm").items
assert not core.list_namespaced_secret(SPACE, label_selector="owner=helm").items
print("ok", flush=True)
os._exit(0)

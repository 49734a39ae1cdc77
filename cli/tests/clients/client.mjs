// Drives the server with the official JavaScript client: typed calls, patches, watches, an informer, generic objects.
import * as k8s from '@kubernetes/client-node';
import assert from 'node:assert/strict';

const config = new k8s.KubeConfig();
config.loadFromFile(process.argv[2]);
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);
const namespace = 'js';
await core.createNamespace({ body: { metadata: { name: namespace } } });

// Typed objects, there and back; a stale update is refused.
const made = await core.createNamespacedConfigMap({
  namespace, body: { metadata: { name: 'm', labels: { a: 'b' } }, data: { k: 'v' } },
});
assert.equal(made.data.k, 'v');
assert.ok(made.metadata.creationTimestamp instanceof Date);
const read = await core.readNamespacedConfigMap({ name: 'm', namespace });
read.data.k = 'w';
assert.equal((await core.replaceNamespacedConfigMap({ name: 'm', namespace, body: read })).data.k, 'w');
await assert.rejects(core.replaceNamespacedConfigMap({ name: 'm', namespace, body: read }), (error) => error.code === 409);
await assert.rejects(core.readNamespacedConfigMap({ name: 'none', namespace }), (error) => error.code === 404);

// Patches of each type.
const patch = (type, body) => core.patchNamespacedConfigMap(
  { name: 'm', namespace, body, fieldManager: 'js', force: type === k8s.PatchStrategy.ServerSideApply || undefined },
  k8s.setHeaderOptions('Content-Type', type),
);
assert.equal((await patch(k8s.PatchStrategy.JsonPatch, [{ op: 'add', path: '/data/j', value: '1' }])).data.j, '1');
assert.equal((await patch(k8s.PatchStrategy.MergePatch, { data: { j: null, n: '2' } })).data.j, undefined);
assert.equal((await patch(k8s.PatchStrategy.StrategicMergePatch, { data: { s: '3' } })).data.s, '3');
const applied = await patch(k8s.PatchStrategy.ServerSideApply, {
  apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'm', namespace }, data: { a: '4' },
});
assert.deepEqual(applied.data, { a: '4', k: 'w', n: '2', s: '3' });
assert.ok(applied.metadata.managedFields.some((entry) => entry.manager === 'js' && entry.operation === 'Apply'));

// Pages.
for (const name of ['p0', 'p1', 'p2']) {
  await core.createNamespacedConfigMap({ namespace, body: { metadata: { name } } });
}
const names = [];
let next;
do {
  const page = await core.listNamespacedConfigMap({ namespace, limit: 2, _continue: next });
  names.push(...page.items.map((item) => item.metadata.name));
  next = page.metadata._continue;
} while (next);
for (const name of ['m', 'p0', 'p1', 'p2']) assert.ok(names.includes(name), names.join());

// A watch from a list on.
const path = `/api/v1/namespaces/${namespace}/configmaps`;
const { metadata } = await core.listNamespacedConfigMap({ namespace });
const seen = [];
await new Promise((resolve, reject) => {
  let abort;
  new k8s.Watch(config).watch(path, { resourceVersion: metadata.resourceVersion }, (type, object) => {
    seen.push(`${type} ${object.metadata.name}`);
    if (type === 'DELETED') { abort?.abort(); resolve(); }
  }, (error) => (error && error.name !== 'AbortError' ? reject(error) : resolve())).then(async (controller) => {
    abort = controller;
    await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: 'w' } } });
    await core.deleteNamespacedConfigMap({ name: 'w', namespace });
  }).catch(reject);
});
assert.deepEqual(seen, ['ADDED w', 'DELETED w']);

// An informer: what is there, then what comes.
const told = [];
const informer = k8s.makeInformer(config, path, () => core.listNamespacedConfigMap({ namespace }));
const has = (what) => new Promise((resolve) => {
  const look = () => (told.includes(what) ? resolve() : setTimeout(look, 10));
  look();
});
for (const event of ['add', 'update', 'delete']) {
  informer.on(event, (object) => told.push(`${event} ${object.metadata.name}`));
}
await informer.start();
await has('add m');
await core.patchNamespacedConfigMap({ name: 'p0', namespace, body: { data: { x: 'y' } } },
  k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.MergePatch));
await has('update p0');
await core.deleteNamespacedConfigMap({ name: 'p1', namespace });
await has('delete p1');
await informer.stop();

// A workload and its scale.
const labels = { app: 'web' };
await apps.createNamespacedDeployment({ namespace, body: {
  metadata: { name: 'web' },
  spec: { replicas: 1, selector: { matchLabels: labels }, template: {
    metadata: { labels }, spec: { containers: [{ name: 'c', image: 'nginx', resources: { requests: { cpu: '100m' } } }] },
  } },
} });
await apps.patchNamespacedDeploymentScale({ name: 'web', namespace, body: { spec: { replicas: 2 } } },
  k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.MergePatch));
assert.equal((await apps.readNamespacedDeploymentScale({ name: 'web', namespace })).spec.replicas, 2);

// Objects of any kind, found by discovery.
const any = k8s.KubernetesObjectApi.makeApiClient(config);
const secret = { apiVersion: 'v1', kind: 'Secret', metadata: { name: 's', namespace }, stringData: { k: 'v' } };
assert.equal((await any.create(secret)).data.k, 'dg==');
assert.equal((await any.read(secret)).metadata.name, 's');
await any.delete(secret);
await assert.rejects(any.read(secret), (error) => error.code === 404);
console.log('ok');

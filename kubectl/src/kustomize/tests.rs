//! Kustomizations of a few files.

use super::*;

fn built(files: &[(&str, &str)]) -> String {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    match build(&dir.path().to_string_lossy()).and_then(|objects| text(&objects)) {
        Ok(text) => text,
        Err(error) => error.to_string(),
    }
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: \"a:1\", envFrom: [{configMapRef: {name: cm}}]}]}\n";

#[test]
fn generated_names_carry_digests_and_references_follow() {
    let text = built(&[
        ("kustomization.yaml", "resources: [pod.yaml]\nconfigMapGenerator:\n- name: cm\n  literals: [a=1]\n"),
        ("pod.yaml", POD),
    ]);
    assert!(text.contains("kind: ConfigMap\nmetadata:\n  name: cm-"), "{text}");
    let name = text.split("  name: cm-").nth(1).unwrap().lines().next().unwrap();
    assert_eq!(name.len(), 10);
    assert!(text.contains(&format!("name: cm-{name}\n    image: a:1")), "{text}");
}

#[test]
fn names_namespaces_labels_and_images() {
    let text = built(&[
        (
            "kustomization.yaml",
            "resources: [base]\nnamePrefix: x-\nnamespace: ns1\ncommonLabels: {l: m}\nimages: [{name: a, newTag: \"2\"}]\n",
        ),
        ("base/kustomization.yaml", "resources: [pod.yaml]\nnameSuffix: -y\n"),
        ("base/pod.yaml", POD),
    ]);
    let expected = "apiVersion: v1\nkind: Pod\nmetadata:\n  labels:\n    l: m\n  name: x-p-y\n  namespace: ns1\nspec:\n  containers:\n  - \
                    envFrom:\n    - configMapRef:\n        name: cm\n    image: a:2\n    name: c\n";
    assert_eq!(text, expected);
}

#[test]
fn patches_of_both_forms() {
    let text = built(&[
        (
            "kustomization.yaml",
            "resources: [pod.yaml]\npatches:\n- patch: |-\n    apiVersion: v1\n    kind: Pod\n    metadata: {name: p}\n    spec: {containers: [{name: c, env: [{name: E, value: \"1\"}]}]}\n- target: {kind: Pod, name: p.*}\n  patch: '[{\"op\": \"replace\", \"path\": \"/spec/containers/0/image\", \"value\": \"b\"}]'\n",
        ),
        ("pod.yaml", POD),
    ]);
    assert!(text.contains("env:\n    - name: E\n      value: \"1\"") && text.contains("image: b"), "{text}");
}

#[test]
fn values_are_put_into_others() {
    let text = built(&[
        (
            "kustomization.yaml",
            "resources: [pod.yaml, cm.yaml]\nreplacements:\n- source: {kind: ConfigMap, name: cm, fieldPath: data.tag}\n  targets:\n  - select: {kind: Pod}\n    fieldPaths: [\"spec.containers.[name=c].image\"]\n    options: {delimiter: \":\", index: 1}\n",
        ),
        ("pod.yaml", POD),
        ("cm.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cm}\ndata: {tag: v7}\n"),
    ]);
    assert!(text.contains("image: a:v7"), "{text}");
}

#[test]
fn files_outside_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let (own, pod) = (dir.path().join("own"), dir.path().join("pod.yaml"));
    std::fs::create_dir(&own).unwrap();
    std::fs::write(pod, POD).unwrap();
    std::fs::write(own.join("kustomization.yaml"), "resources: [../pod.yaml]\n").unwrap();
    let directory = own.to_string_lossy();
    let refused = build(&directory).unwrap_err().to_string();
    assert!(refused.contains("security; file"), "{refused}");
    assert_eq!(build_with(&directory, Options { anywhere: true, ..Options::default() }).unwrap().len(), 1);
}

#[test]
fn variables_are_replaced_and_origins_kept() {
    let text = built(&[
        (
            "kustomization.yaml",
            "resources: [pod.yaml]\nnameSuffix: -x\nbuildMetadata: [originAnnotations]\nvars:\n- name: P\n  objref: {kind: Pod, \
             name: p, apiVersion: v1}\n",
        ),
        ("pod.yaml", &POD.replace("image:", "command: [\"$(P)\"], image:")),
    ]);
    assert!(text.contains("- p-x\n") && text.contains("path: pod.yaml"), "{text}");
}

#[test]
fn wrong_kustomizations() {
    for (files, expected) in [
        (&[("other", "")][..], "unable to find one of 'kustomization.yaml'"),
        (&[("kustomization.yaml", "resources: [gone.yaml]\n")], "gone.yaml"),
        (&[("kustomization.yaml", "nothing: 1\n")], "unknown field \"nothing\""),
        (&[("kustomization.yaml", "helmCharts: []\n")], "the field \"helmCharts\" is not supported"),
        (&[("kustomization.yaml", "")], "kustomization.yaml is empty"),
        (&[("kustomization.yaml", "commonLabels: {a: yes}\n")], "cannot unmarshal bool"),
        (&[("kustomization.yaml", "resources: [../../etc/hostname]\n")], "accumulation err"),
        (&[("kustomization.yaml", "resources: [pod.yaml, pod.yaml]\n"), ("pod.yaml", POD)], "already registered id"),
        (&[("kustomization.yaml", "replicas: [{name: x, count: 1}]\n")], "resource with name x does not match"),
    ] {
        let said = built(files);
        assert!(said.contains(expected), "{said}");
    }
}

//! Long lists: the same in pieces as whole, in every form; and many at once, which wait for seats and hold a piece each.

mod support;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{Request, Response, header};
use http_body_util::BodyExt;
use keelson_apiserver::access::UserInfo;
use keelson_client::Body;
use serde_json::{Value, json};
use support::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Bytes of one object.
const OBJECT_BYTES: usize = 1 << 10;
/// Most that a piece may have: its size and one object.
const MAX_PIECE_BYTES: usize = (128 << 10) + 2 * OBJECT_BYTES;
/// Most that the first piece of a list in protobuf may have: what is kept while its length is counted, and a piece.
const MAX_FIRST_BYTES: usize = (1 << 20) + 2 * MAX_PIECE_BYTES;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const METADATA: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const PROTOBUF_METADATA: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";

async fn with_maps(count: usize) -> Cluster {
    let cluster = Cluster::new().await;
    let text = "x".repeat(OBJECT_BYTES);
    for index in 0..count {
        let labels = json!({"even": (index % 2 == 0).to_string()});
        let map = json!({"metadata": {"name": format!("m-{index:05}"), "labels": labels}, "data": {"k": text}});
        assert_eq!(cluster.json("POST", MAPS, &map).await.0, 201);
    }
    cluster
}

async fn get(cluster: &Cluster, path: &str, accept: &str) -> Response<Body> {
    cluster.send(Request::get(path).header(header::ACCEPT, accept).body(Bytes::new()).unwrap()).await
}

/// The pieces of an answer.
async fn pieces(response: Response<Body>) -> Vec<Bytes> {
    assert_eq!(response.status(), 200);
    response.into_body().into_data_stream().map(Result::unwrap).collect().await
}

fn names(list: &Value) -> Vec<String> {
    let of = |item: &Value| item.pointer("/metadata/name").or(item.pointer("/cells/0")).cloned().unwrap_or_default();
    let items = list.get("items").or(list.get("rows")).and_then(Value::as_array).unwrap();
    items.iter().map(|item| of(item).as_str().unwrap_or_default().to_owned()).collect()
}

/// Most that a piece of a watch's first events may have: its size and one event.
const MAX_FIRST_EVENTS_BYTES: usize = (32 << 10) + 2 * OBJECT_BYTES;

#[tokio::test]
async fn a_watch_begins_with_what_there_is_in_pieces() {
    let cluster = with_maps(200).await;
    const SAID: &str = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    for (selector, expected, said) in [
        ("", 200, SAID),
        ("&labelSelector=even%3Dtrue", 100, SAID),
        ("&labelSelector=even%3Dperhaps", 0, SAID),
        // Who does not say where it begins gets all, and is told of the end.
        ("", 200, ""),
        ("", 200, "&resourceVersion=0"),
    ] {
        let path = format!("{MAPS}?watch=true&allowWatchBookmarks=true{said}{selector}");
        let response = get(&cluster, &path, "application/json").await;
        assert_eq!(response.status(), 200);
        let mut frames = response.into_body().into_data_stream();
        let (mut names, mut sizes) = (Vec::new(), Vec::new());
        'first: loop {
            let frame = frames.next().await.unwrap().unwrap();
            sizes.push(frame.len());
            for line in frame.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let event: Value = serde_json::from_slice(line).unwrap();
                if event["type"] == "BOOKMARK" {
                    assert_eq!(event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
                    break 'first;
                }
                assert_eq!(event["type"], "ADDED");
                names.push(event["object"]["metadata"]["name"].as_str().unwrap().to_owned());
            }
        }
        assert!(names.len() == expected && names.is_sorted(), "{selector}: {names:?}");
        assert!(sizes.iter().all(|size| *size <= MAX_FIRST_EVENTS_BYTES), "{selector}: {sizes:?}");
        assert_eq!(sizes.len() > 3, expected > 0, "{selector}: {sizes:?}");
        // What comes after that follows.
        let name = format!("later-{expected}");
        let map = json!({"metadata": {"name": name, "labels": {"even": "true"}}});
        assert_eq!(cluster.json("POST", MAPS, &map).await.0, 201);
        if expected > 0 {
            let frame = frames.next().await.unwrap().unwrap();
            let event: Value = serde_json::from_slice(&frame).unwrap();
            assert_eq!(event["object"]["metadata"]["name"], name.as_str());
        }
        assert_eq!(cluster.json("DELETE", &format!("{MAPS}/{name}"), json!({})).await.0, 200);
    }
}

#[tokio::test]
async fn what_waits_for_a_watcher_comes_in_pieces() {
    let cluster = with_maps(100).await;
    let path = format!("{MAPS}?watch=true&resourceVersion=1&labelSelector=even%3Dtrue");
    let mut frames = get(&cluster, &path, "application/json").await.into_body().into_data_stream();
    let (mut names, mut sizes) = (Vec::new(), Vec::new());
    while names.len() < 50 {
        let frame = frames.next().await.unwrap().unwrap();
        sizes.push(frame.len());
        assert_eq!(frame.last(), Some(&b'\n'), "an event is in one piece");
        for line in frame.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let event: Value = serde_json::from_slice(line).unwrap();
            names.push(event["object"]["metadata"]["name"].as_str().unwrap().to_owned());
        }
    }
    assert!(names.iter().eq(&(0..50).map(|index| format!("m-{:05}", 2 * index)).collect::<Vec<_>>()), "{names:?}");
    let most = (16 << 10) + 2 * OBJECT_BYTES;
    assert!((4..10).contains(&sizes.len()) && sizes.iter().all(|size| *size <= most), "{sizes:?}");
}

#[tokio::test]
async fn a_list_in_pieces_is_the_whole_list() {
    // More than what is kept of a list in protobuf.
    let cluster = with_maps(1_400).await;
    for accept in ["application/json", TABLE, METADATA, PROTOBUF, PROTOBUF_METADATA] {
        for selector in ["", "labelSelector=even%3Dtrue"] {
            let written = pieces(get(&cluster, &format!("{MAPS}?{selector}"), accept).await).await;
            let whole = get(&cluster, &format!("{MAPS}?limit=100000&{selector}"), accept).await;
            assert_eq!(whole.headers()[header::CONTENT_TYPE], accept.split(';').next().unwrap());
            let whole = whole.into_body().collect().await.unwrap().to_bytes();
            let joined: Vec<u8> = written.concat();
            if accept.starts_with(PROTOBUF) {
                assert!(joined == whole, "{accept} {selector}: {} and {} bytes", joined.len(), whole.len());
            } else {
                let (list, expected): (Value, Value) =
                    (serde_json::from_slice(&joined).unwrap(), serde_json::from_slice(&whole).unwrap());
                assert_eq!(names(&list), names(&expected), "{accept} {selector}");
                let head =
                    |list: &Value| ["kind", "apiVersion", "metadata", "columnDefinitions"].map(|key| list[key].clone());
                assert_eq!(head(&list), head(&expected), "{accept} {selector}");
            }
            let most = if accept.starts_with(PROTOBUF) { MAX_FIRST_BYTES } else { MAX_PIECE_BYTES };
            let sizes: Vec<usize> = written.iter().map(Bytes::len).collect();
            assert!(sizes[0] <= most && (sizes.len() > 1) == (joined.len() > most), "{accept} {selector}: {sizes:?}");
            assert!(sizes[1..].iter().all(|size| *size <= MAX_PIECE_BYTES), "{accept} {selector}: {sizes:?}");
        }
    }
}

/// Hundreds of lists at once that nobody reads: some are begun, of which one piece each is held; of the others so many wait for
/// seats as a flow's queues have places, and the rest is refused at once.
#[tokio::test]
async fn a_table_of_something_that_rows_do_not_show_is_refused_before_a_watch_begins() {
    let cluster = with_maps(1).await;
    for (path, code) in [
        (format!("{MAPS}?includeObject=All"), 400),
        (format!("{MAPS}?watch=1&timeoutSeconds=1&includeObject=All"), 400),
        (format!("{MAPS}?watch=1&timeoutSeconds=1&includeObject=None"), 200),
    ] {
        assert_eq!(get(&cluster, &path, TABLE).await.status(), code, "{path}");
    }
}

#[tokio::test]
async fn a_storm_of_lists_is_held_off() {
    const STORM: usize = 500;
    // All seats by the width of such a list, and the places in the queues of one user.
    const MOST_BEGUN: usize = 60;
    const MOST_WAITING: usize = 300;
    const OBJECTS: usize = 2_000;
    let cluster = with_maps(OBJECTS).await;
    let reader = json!({"metadata": {"name": "reader"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole", "name": "view"}, "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "u"}]});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    assert_eq!(cluster.json("POST", bindings, &reader).await.0, 201);
    let user = UserInfo { name: "u".into(), groups: vec!["system:authenticated".into()], ..UserInfo::default() };
    let ask = || cluster.server.call(user.clone(), Request::get(MAPS).body(Bytes::new()).unwrap());
    let mut asked: FuturesUnordered<_> = (0..STORM).map(|_| ask()).collect();
    let (mut begun, mut refused) = (Vec::new(), 0);
    while refused < STORM - MOST_BEGUN - MOST_WAITING {
        let response = asked.next().await.unwrap();
        match response.status().as_u16() {
            200 => begun.push(response),
            429 => {
                assert!(response.headers().contains_key(header::RETRY_AFTER));
                refused += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert!((1..=MOST_BEGUN).contains(&begun.len()), "{} begun", begun.len());
    // What is begun is whole, whenever it is read.
    let written = pieces(begun.pop().unwrap()).await;
    assert!(written.len() > 1 && written.iter().all(|piece| piece.len() <= MAX_PIECE_BYTES));
    let list: Value = serde_json::from_slice(&written.concat()).unwrap();
    assert!(names(&list).iter().filter(|name| name.starts_with("m-")).count() == OBJECTS);
    // Seats that are given back let in those that wait.
    drop(begun);
    let mut answered = 0;
    while let Some(response) = asked.next().await {
        answered += usize::from(response.status() == 200);
    }
    assert!(answered > 0, "those that waited got seats");
}

/// Everything that a watch says until it ends: kinds of events and names.
async fn said(cluster: &Cluster, path: &str) -> Vec<(String, String)> {
    let mut said = Vec::new();
    for piece in pieces(get(cluster, path, "application/json").await).await {
        for line in piece.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let event: Value = serde_json::from_slice(line).unwrap();
            let text = |at: &str| event.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
            said.push((text("/type"), text("/object/metadata/name")));
        }
    }
    said
}

#[tokio::test]
async fn watches_of_a_name_or_a_field_say_what_all_would() {
    let cluster = Cluster::new().await;
    let pod = |name: &str, node: &str| json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}});
    let pods = "/api/v1/namespaces/default/pods";
    cluster.make("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let start = cluster.make(pods, pod("first", "")).await["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let watch = |path: &str, selector: &str| {
        let path = format!("{path}?watch=1&timeoutSeconds=2&resourceVersion={start}&fieldSelector={selector}");
        let cluster = &cluster;
        async move { said(cluster, &path).await }
    };
    let changes = async {
        tokio::task::yield_now().await;
        cluster.make(pods, pod("other", "n2")).await;
        cluster.make(pods, pod("second", "n1")).await;
        let binding = json!({"metadata": {"name": "first"}, "target": {"kind": "Node", "name": "n1"}});
        assert_eq!(cluster.json("POST", &format!("{pods}/first/binding"), binding).await.0, 201);
        for name in ["first", "other", "second"] {
            let now = json!({"gracePeriodSeconds": 0});
            assert_eq!(cluster.json("DELETE", &format!("{pods}/{name}"), now).await.0, 200);
        }
    };
    let all = "/api/v1/pods";
    let (of_node, of_none, not, named, everywhere, both, ()) = tokio::join!(
        watch(all, "spec.nodeName%3Dn1"),
        watch(pods, "spec.nodeName%3D"),
        watch(all, "spec.nodeName!%3Dn1"),
        watch(pods, "metadata.name%3Dfirst"),
        watch(all, "metadata.name%3Dfirst"),
        watch(pods, "metadata.name%3Dfirst,metadata.name%3Dother"),
        changes
    );
    let of = |said: &[(&str, &str)]| -> Vec<(String, String)> {
        said.iter().map(|(kind, name)| (kind.to_string(), name.to_string())).collect()
    };
    // Who is deleted is told so before it is gone.
    let (first, second) =
        ([("MODIFIED", "first"), ("DELETED", "first")], [("MODIFIED", "second"), ("DELETED", "second")]);
    let bound = [("ADDED", "second"), ("ADDED", "first"), first[0], first[1], second[0], second[1]];
    assert_eq!(of_node, of(&bound));
    assert_eq!(of_none, of(&[("DELETED", "first")]));
    assert_eq!(not, of(&[("ADDED", "other"), ("DELETED", "first"), ("MODIFIED", "other"), ("DELETED", "other")]));
    assert_eq!(named, of(&[("MODIFIED", "first"), first[0], first[1]]));
    assert_eq!(everywhere, named);
    assert_eq!(both, []);
    let (code, list) =
        cluster.json("GET", "/api/v1/namespaces?fieldSelector=metadata.name%3Ddefault", Value::Null).await;
    assert_eq!((code, names(&list)), (200, vec!["default".to_owned()]));
}

#[tokio::test]
async fn bookmarks_pass_what_is_for_others() {
    let cluster = with_maps(1).await;
    let path =
        format!("{MAPS}?watch=1&timeoutSeconds=3&allowWatchBookmarks=true&fieldSelector=metadata.name%3Dm-00000");
    let changes = async {
        tokio::task::yield_now().await;
        let other = cluster.make(MAPS, json!({"metadata": {"name": "other"}})).await;
        other["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap()
    };
    let (watch, other) = tokio::join!(async { pieces(get(&cluster, &path, "application/json").await).await }, changes);
    // What there was comes first.
    let last = watch.last().unwrap();
    let bookmark: Value = serde_json::from_slice(last).unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    let revision: u64 = bookmark["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert!(revision >= other, "{revision} of {other}");
}

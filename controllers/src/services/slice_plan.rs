//! Spreads endpoints over EndpointSlices: endpoints stay where they are, slices are filled before new ones are made, and
//! as few slices as possible are written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use keelson_client::{Client, Error};

/// Endpoints of one slice.
pub const MAX_ENDPOINTS: usize = 100;
/// Slices that are written at a time.
const PARALLEL_WRITES: usize = 8;

/// Ports and address type: slices with the same hold the same kind of endpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    pub address_type: String,
    /// Name, number, protocol, application protocol; sorted.
    pub ports: Vec<(String, Option<i32>, String, Option<String>)>,
}

impl Shape {
    pub fn of(slice: &EndpointSlice) -> Self {
        let ports = slice.ports.iter().flatten().map(|p| {
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
            (p.name.clone().unwrap_or_default(), p.port, protocol, p.app_protocol.clone())
        });
        let mut ports: Vec<_> = ports.collect();
        ports.sort();
        Self { address_type: slice.address_type.clone(), ports }
    }

    pub fn ports(&self) -> Option<Vec<EndpointPort>> {
        let port = |(name, port, protocol, app): &(String, Option<i32>, String, Option<String>)| EndpointPort {
            name: Some(name.clone()),
            port: *port,
            protocol: Some(protocol.clone()),
            app_protocol: app.clone(),
        };
        (!self.ports.is_empty()).then(|| self.ports.iter().map(port).collect())
    }
}

/// What is to be written.
#[derive(Debug, Default)]
pub struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
}

/// Who an endpoint is, however its conditions change.
pub fn identity(endpoint: &Endpoint) -> (Vec<String>, Option<String>) {
    (endpoint.addresses.clone(), endpoint.target_ref.as_ref().and_then(|t| t.uid.clone()))
}

/// Decides. `blank` makes an empty slice of a shape with the right metadata; slices whose metadata differs are written
/// too. With nothing wanted at all, `placeholder` says which address type's empty slice stays.
pub fn plan(
    wanted: BTreeMap<Shape, Vec<Endpoint>>,
    existing: &[Arc<EndpointSlice>],
    blank: impl Fn(&Shape) -> EndpointSlice,
    placeholder: &[String],
) -> Plan {
    let mut plan = Plan::default();
    let mut wanted = wanted;
    for address_type in placeholder {
        if !wanted.keys().any(|s| s.address_type == *address_type) {
            wanted.insert(Shape { address_type: address_type.clone(), ports: Vec::new() }, Vec::new());
        }
    }
    let mut there: BTreeMap<Shape, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing {
        let shape = Shape::of(slice);
        if wanted.contains_key(&shape) && slice.metadata.deletion_timestamp.is_none() {
            there.entry(shape).or_default().push(slice);
        } else {
            plan.delete.push(slice.clone());
        }
    }
    for (shape, endpoints) in wanted {
        let mut slices = there.remove(&shape).unwrap_or_default();
        slices.sort_by_key(|s| s.metadata.name.clone());
        spread(&mut plan, &shape, endpoints, &slices, &blank);
    }
    plan
}

fn spread(
    plan: &mut Plan,
    shape: &Shape,
    endpoints: Vec<Endpoint>,
    slices: &[&Arc<EndpointSlice>],
    blank: &impl Fn(&Shape) -> EndpointSlice,
) {
    let keep_empty = endpoints.is_empty();
    let mut left: BTreeMap<(Vec<String>, Option<String>), Endpoint> =
        endpoints.into_iter().map(|e| (identity(&e), e)).collect();
    let mut kept: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let stay = slice.endpoints.iter().flatten().filter_map(|e| left.remove(&identity(e))).collect();
        kept.push((slice, stay));
    }
    let mut left: Vec<Endpoint> = left.into_values().collect();
    // The fullest slice with room is filled first, so that others may become empty.
    let mut order: Vec<usize> = (0..kept.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(kept[*i].1.len()));
    for i in order {
        let room = MAX_ENDPOINTS.saturating_sub(kept[i].1.len());
        let take = room.min(left.len());
        kept[i].1.extend(left.drain(..take));
    }
    let mut placeholder = keep_empty;
    for (slice, endpoints) in kept {
        if endpoints.is_empty() && !std::mem::take(&mut placeholder) {
            plan.delete.push(slice.clone());
            continue;
        }
        let mut new = EndpointSlice { endpoints: Some(endpoints), ..(**slice).clone() };
        let model = blank(shape);
        let before = slice.metadata.annotations.clone().unwrap_or_default();
        new.metadata.labels = model.metadata.labels;
        new.metadata.owner_references = model.metadata.owner_references;
        let changed = new.endpoints.as_deref() != Some(slice.endpoints.as_deref().unwrap_or_default())
            || new.metadata.labels != slice.metadata.labels
            || new.metadata.owner_references != slice.metadata.owner_references;
        if changed {
            let mut annotations = before;
            annotations.remove(super::TRIGGER_TIME);
            annotations.extend(model.metadata.annotations.unwrap_or_default());
            new.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
            plan.update.push(new);
        }
    }
    for chunk in left.chunks(MAX_ENDPOINTS) {
        plan.create.push(EndpointSlice { endpoints: Some(chunk.to_vec()), ..blank(shape) });
    }
    if placeholder {
        plan.create.push(blank(shape));
    }
}

/// Carries out a plan: first what adds, then what removes. Returns the newest object written.
pub async fn act(client: &Client, namespace: &str, plan: Plan) -> Result<Option<EndpointSlice>, Error> {
    let api = client.namespaced::<EndpointSlice>(namespace);
    let creates = plan.create.into_iter().map(|s| (true, s));
    let writes = creates.chain(plan.update.into_iter().map(|s| (false, s)));
    let results: Vec<Result<EndpointSlice, Error>> = futures::stream::iter(writes)
        .map(|(create, slice)| {
            let api = &api;
            async move {
                if create {
                    return api.create(&slice).await;
                }
                api.replace(slice.metadata.name.as_deref().unwrap_or_default(), &slice).await
            }
        })
        .buffer_unordered(PARALLEL_WRITES)
        .collect()
        .await;
    let mut newest: Option<EndpointSlice> = None;
    let version = |s: &EndpointSlice| s.metadata.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok());
    for result in results {
        let written = result?;
        if newest.as_ref().is_none_or(|n| version(n) < version(&written)) {
            newest = Some(written);
        }
    }
    for slice in plan.delete {
        let options = serde_json::json!({"preconditions": {"uid": slice.metadata.uid}});
        match api.delete(slice.metadata.name.as_deref().unwrap_or_default(), &options).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    Ok(newest)
}

/// Groups endpoints by shape.
#[derive(Default)]
pub struct Groups(HashMap<Shape, Vec<Endpoint>>, BTreeSet<Shape>);

impl std::hash::Hash for Shape {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.address_type.hash(state);
        self.ports.hash(state);
    }
}

impl Groups {
    pub fn add(&mut self, shape: Shape, endpoint: Endpoint) {
        self.1.insert(shape.clone());
        self.0.entry(shape).or_default().push(endpoint);
    }

    pub fn into_map(self) -> BTreeMap<Shape, Vec<Endpoint>> {
        self.0.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn endpoint(n: usize) -> Endpoint {
        Endpoint { addresses: vec![format!("10.0.{}.{}", n / 250, n % 250)], ..Endpoint::default() }
    }

    fn shape(port: i32) -> Shape {
        Shape { address_type: "IPv4".into(), ports: vec![("p".into(), Some(port), "TCP".into(), None)] }
    }

    fn blank(shape: &Shape) -> EndpointSlice {
        EndpointSlice { address_type: shape.address_type.clone(), ports: shape.ports(), ..EndpointSlice::default() }
    }

    fn slice(name: &str, port: i32, endpoints: std::ops::Range<usize>) -> Arc<EndpointSlice> {
        Arc::new(EndpointSlice {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            endpoints: Some(endpoints.map(endpoint).collect()),
            ..blank(&shape(port))
        })
    }

    fn sizes(plan: &Plan) -> (Vec<usize>, Vec<usize>, usize) {
        let count = |slices: &[EndpointSlice]| slices.iter().map(|s| s.endpoints.iter().flatten().count()).collect();
        (count(&plan.create), count(&plan.update), plan.delete.len())
    }

    #[test]
    fn few_slices_are_written() {
        let none = vec!["IPv4".to_owned()];
        for (what, wanted, existing, expected) in [
            ("first", 0..250, vec![], (vec![100, 100, 50], vec![], 0)),
            ("same", 0..50, vec![slice("a", 1, 0..50)], (vec![], vec![], 0)),
            ("one more", 0..51, vec![slice("a", 1, 0..50)], (vec![], vec![51], 0)),
            ("one less", 1..50, vec![slice("a", 1, 0..50)], (vec![], vec![49], 0)),
            (
                "the fullest is filled",
                0..160,
                vec![slice("a", 1, 0..10), slice("b", 1, 10..100)],
                (vec![], vec![60, 100], 0),
            ),
            ("an emptied one goes", 0..10, vec![slice("a", 1, 0..10), slice("b", 1, 10..20)], (vec![], vec![], 1)),
            ("other ports", 0..10, vec![slice("a", 2, 0..10)], (vec![10], vec![], 1)),
        ] {
            let wanted = BTreeMap::from([(shape(1), wanted.map(endpoint).collect())]);
            assert_eq!(sizes(&plan(wanted, &existing, blank, &none)), expected, "{what}");
        }
    }

    #[test]
    fn with_no_endpoint_one_empty_slice_stays() {
        let none = vec!["IPv4".to_owned()];
        let first = plan(BTreeMap::new(), &[], blank, &none);
        assert_eq!(sizes(&first), (vec![0], vec![], 0));
        let there = [Arc::new(first.create[0].clone())];
        assert_eq!(sizes(&plan(BTreeMap::new(), &there, blank, &none)), (vec![], vec![], 0));
        assert_eq!(sizes(&plan(BTreeMap::new(), &[slice("a", 1, 0..3)], blank, &none)), (vec![0], vec![], 1));
        assert_eq!(sizes(&plan(BTreeMap::new(), &there, blank, &[])), (vec![], vec![], 1));
    }
}

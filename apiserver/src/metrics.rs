//! `/metrics`: counts and times under upstream's names, as text for Prometheus.
//!
//! What a request adds is a few atomic numbers; the lock around the table of series is taken for reading, except when a
//! series is new.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::Hash;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use keelson_machinery::resource::ResourceDef;
use keelson_metrics::{Histogram, family};
use keelson_store::View;
use parking_lot::RwLock;

use crate::discovery::SERVED_VERSION;
use crate::objects::Objects;
use crate::request::ResourceRequest;

/// The content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// Upper bounds of the buckets of requests, seconds.
const REQUEST_BOUNDS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    60.0,
];
/// Upper bounds of the buckets of answers, bytes.
const SIZE_BOUNDS: &[f64] = &[1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];

/// Times of writes to the store, from the proposal until they are applied.
pub static STORE_WRITES: LazyLock<Histogram> = LazyLock::new(|| Histogram::new(REQUEST_BOUNDS));

/// What a series is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    verb: &'static str,
    scope: &'static str,
    dry_run: bool,
}

impl Key {
    fn of(request: &ResourceRequest, method_patch_apply: bool) -> Self {
        let def = request.def;
        let sub = def.subresources.iter().find(|s| s.name == request.subresource);
        let connects = sub.is_some_and(|s| matches!(s.name, "exec" | "attach" | "portforward" | "proxy"));
        let verb = match request.verb {
            _ if connects => "CONNECT",
            "get" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" => "POST",
            "update" => "PUT",
            "patch" if method_patch_apply => "APPLY",
            "patch" => "PATCH",
            "delete" => "DELETE",
            _ => "DELETECOLLECTION",
        };
        let scope = match (request.name.is_empty(), request.namespace.is_empty()) {
            (false, _) => "resource",
            (true, false) => "namespace",
            (true, true) => "cluster",
        };
        Self {
            group: def.group,
            version: def.version,
            resource: def.plural,
            subresource: sub.map_or("", |s| s.name),
            verb,
            scope,
            dry_run: !request.query.all("dryRun").is_empty(),
        }
    }

    fn labels(&self) -> String {
        let dry_run = if self.dry_run { "All" } else { "" };
        format!("dry_run=\"{dry_run}\",{}", self.labels_of_size())
    }

    /// Sizes do not tell whether it was tried only.
    fn labels_of_size(&self) -> String {
        format!(
            "component=\"apiserver\",group=\"{}\",resource=\"{}\",scope=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"",
            self.group, self.resource, self.scope, self.subresource, self.verb, self.version
        )
    }
}

/// Series by what they are about.
type Series<K, V> = RwLock<HashMap<K, Arc<V>>>;

fn series<K: Eq + Hash, V>(all: &Series<K, V>, key: K, make: impl FnOnce() -> V) -> Arc<V> {
    if let Some(found) = all.read().get(&key) {
        return found.clone();
    }
    all.write().entry(key).or_insert_with(|| Arc::new(make())).clone()
}

/// The same for who only counts: a number that all requests share is best touched seldom.
fn counted<K: Eq + Hash, V>(all: &Series<K, V>, key: K, make: impl FnOnce() -> V, count: impl FnOnce(&V)) {
    if let Some(found) = all.read().get(&key) {
        return count(found);
    }
    count(&series(all, key, make));
}

/// A number that is one higher while this lives.
pub struct Held(Arc<AtomicI64>);

impl Held {
    fn new(number: Arc<AtomicI64>) -> Self {
        number.fetch_add(1, Relaxed);
        Self(number)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Sums over all that is counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Since when it is counted.
    pub uptime: Duration,
    /// Requests that were answered.
    pub requests: u64,
    /// Of them, those that the server failed to serve.
    pub errors: u64,
    /// Requests under way.
    pub in_flight: u64,
}

/// The numbers of one server.
pub struct Metrics {
    started: Instant,
    requests: Series<(Key, u16), AtomicU64>,
    durations: Series<Key, Histogram>,
    sizes: Series<Key, Histogram>,
    /// Resources in versions that will go, by group, version, resource and subresource.
    deprecated: Series<[&'static str; 4], ()>,
    long: Series<Key, AtomicI64>,
    reading: Arc<AtomicI64>,
    writing: Arc<AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            requests: Series::default(),
            durations: Series::default(),
            sizes: Series::default(),
            deprecated: Series::default(),
            long: Series::default(),
            reading: Arc::default(),
            writing: Arc::default(),
        }
    }
}

impl Metrics {
    /// Counts a request that is under way.
    pub fn under_way(&self, request: &ResourceRequest) -> Held {
        let reads = matches!(request.verb, "get" | "list" | "watch");
        Held::new(if reads { self.reading.clone() } else { self.writing.clone() })
    }

    /// Counts a watch or stream that is open.
    pub fn long_running(&self, request: &ResourceRequest) -> Held {
        Held::new(series(&self.long, Key::of(request, false), AtomicI64::default))
    }

    /// Counts a request that was answered, and the bytes of the answer if it has an end.
    pub fn answered(&self, request: &ResourceRequest, apply: bool, code: u16, elapsed: Duration, bytes: Option<u64>) {
        let key = Key::of(request, apply);
        counted(&self.requests, (key, code), AtomicU64::default, |number| {
            number.fetch_add(1, Relaxed);
        });
        counted(&self.durations, key, || Histogram::new(REQUEST_BOUNDS), |times| times.took(elapsed));
        if let Some(bytes) = bytes.filter(|_| matches!(key.verb, "GET" | "LIST")) {
            let key = Key { dry_run: false, ..key };
            counted(&self.sizes, key, || Histogram::new(SIZE_BOUNDS), |sizes| sizes.observe(bytes as f64));
        }
    }

    /// Notes that somebody uses what will go.
    pub fn deprecated(&self, request: &ResourceRequest) {
        let key = Key::of(request, false);
        series(&self.deprecated, [key.group, key.version, key.resource, key.subresource], || ());
    }

    /// Forgets what was counted so far; what is under way stays.
    pub fn reset(&self) {
        self.requests.write().clear();
        self.durations.write().clear();
        self.sizes.write().clear();
        STORE_WRITES.reset();
    }

    /// The sums that people look at.
    pub fn figures(&self) -> Figures {
        let requests = self.requests.read();
        let sum = |of: fn(u16) -> bool| {
            let wanted = requests.iter().filter(|((_, code), _)| of(*code));
            wanted.map(|(_, number)| number.load(Relaxed)).sum()
        };
        let count = |number: &AtomicI64| u64::try_from(number.load(Relaxed)).unwrap_or(0);
        Figures {
            uptime: self.started.elapsed(),
            requests: sum(|_| true),
            errors: sum(|code| code >= 500),
            in_flight: count(&self.reading) + count(&self.writing),
        }
    }

    /// The text.
    pub fn text(&self, view: &View, rows: impl Iterator<Item = &'static ResourceDef>) -> String {
        let mut out = String::with_capacity(64 << 10);
        let help = "Requests by what they are about and the code of the answer.";
        family(&mut out, "apiserver_request_total", "counter", help);
        for ((key, code), number) in self.requests.read().iter() {
            let _ =
                writeln!(out, "apiserver_request_total{{code=\"{code}\",{}}} {}", key.labels(), number.load(Relaxed));
        }
        let name = "apiserver_request_duration_seconds";
        family(&mut out, name, "histogram", "Time until a request is answered.");
        for (key, histogram) in self.durations.read().iter() {
            histogram.write(name, &key.labels(), &mut out);
        }
        family(&mut out, "apiserver_response_sizes", "histogram", "Bytes of answers.");
        for (key, histogram) in self.sizes.read().iter() {
            histogram.write("apiserver_response_sizes", &key.labels_of_size(), &mut out);
        }
        self.under_way_text(&mut out);
        family(&mut out, "apiserver_requested_deprecated_apis", "gauge", "Versions that will go and are asked for.");
        for [group, version, resource, subresource] in self.deprecated.read().keys() {
            let _ = writeln!(
                out,
                "apiserver_requested_deprecated_apis{{group=\"{group}\",removed_release=\"\",resource=\"{resource}\",\
                 subresource=\"{subresource}\",version=\"{version}\"}} 1"
            );
        }
        objects(view, rows, &mut out);
        family(&mut out, "etcd_request_duration_seconds", "histogram", "Time until a write to the store is applied.");
        STORE_WRITES.write("etcd_request_duration_seconds", "operation=\"txn\",type=\"\"", &mut out);
        process(self.started, &mut out);
        out
    }

    fn under_way_text(&self, out: &mut String) {
        family(out, "apiserver_current_inflight_requests", "gauge", "Requests under way.");
        for (kind, number) in [("mutating", &self.writing), ("readOnly", &self.reading)] {
            let number = number.load(Relaxed);
            let _ = writeln!(out, "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {number}");
        }
        family(out, "apiserver_longrunning_requests", "gauge", "Watches and streams that are open.");
        for (key, number) in self.long.read().iter() {
            let _ =
                writeln!(out, "apiserver_longrunning_requests{{{}}} {}", key.labels_of_size(), number.load(Relaxed));
        }
    }
}

/// How many objects there are of each resource.
fn objects(view: &View, rows: impl Iterator<Item = &'static ResourceDef>, out: &mut String) {
    let mut rows: Vec<&'static ResourceDef> = rows.filter(|row| row.verbs.contains(&"update")).collect();
    rows.sort_by_key(|row| (row.group, row.plural));
    // Versions of a resource share their objects.
    rows.dedup_by_key(|row| (row.group, row.plural));
    let counts: Vec<_> = rows.iter().map(|row| (row, view.range(&Objects::range(row, "")).count())).collect();
    family(out, "apiserver_storage_objects", "gauge", "Objects in the store.");
    for (row, count) in &counts {
        let _ = writeln!(out, "apiserver_storage_objects{{resource=\"{}\"}} {count}", row.qualified());
    }
    family(out, "apiserver_resource_objects", "gauge", "Objects in the store.");
    for (row, count) in &counts {
        let _ =
            writeln!(out, "apiserver_resource_objects{{group=\"{}\",resource=\"{}\"}} {count}", row.group, row.plural);
    }
}

/// What the operating system says of the process.
fn process(started: Instant, out: &mut String) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let stat = read("/proc/self/stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok()).unwrap_or_default();
    // Linux counts times in hundredths of a second and resident memory in pages of 4 KiB on the platforms that are built for.
    let cpu = (field(11) + field(12)) / 100.0;
    let resident = field(21) * 4096.0;
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as f64;
    let since = jiff::Timestamp::now().as_second() as f64 - started.elapsed().as_secs_f64();
    for (name, kind, help, value) in [
        ("process_cpu_seconds_total", "counter", "Time of the processors spent.", cpu),
        ("process_resident_memory_bytes", "gauge", "Resident memory.", resident),
        ("process_open_fds", "gauge", "Open file descriptors.", descriptors),
        ("process_start_time_seconds", "gauge", "When the process started, since 1970.", since.round()),
    ] {
        family(out, name, kind, help);
        let _ = writeln!(out, "{name} {value}");
    }
    family(out, "kubernetes_build_info", "gauge", "The version whose API is served, and the program's own.");
    let _ = writeln!(
        out,
        "kubernetes_build_info{{git_commit=\"keelson-{}\",git_version=\"{SERVED_VERSION}\",major=\"1\",minor=\"36\",\
         platform=\"linux\"}} 1",
        env!("CARGO_PKG_VERSION")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted() {
        let number = Arc::new(AtomicI64::default());
        let held = Held::new(number.clone());
        assert_eq!(number.load(Relaxed), 1);
        drop(held);
        assert_eq!(number.load(Relaxed), 0);
    }
}

//! `/metrics`: counts and times under upstream's names, as text for Prometheus.
//!
//! What a request adds is a few atomic numbers; the lock around the table of series is taken for reading, except when a
//! series is new.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use keelson_machinery::resource::ResourceDef;
use keelson_machinery::resources::RESOURCES;
use keelson_store::View;
use parking_lot::RwLock;

use crate::objects::Objects;
use crate::request::ResourceRequest;

/// The content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// Upper bounds of the buckets of requests, milliseconds.
const REQUEST_BOUNDS: [u64; 22] = [
    5, 25, 50, 100, 200, 400, 600, 800, 1000, 1250, 1500, 2000, 3000, 4000, 5000, 6000, 8000, 10_000, 15_000, 20_000,
    30_000, 60_000,
];

/// How many took how long.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; REQUEST_BOUNDS.len()],
    count: AtomicU64,
    sum_micros: AtomicU64,
}

impl Histogram {
    const fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; REQUEST_BOUNDS.len()],
            count: AtomicU64::new(0),
            sum_micros: AtomicU64::new(0),
        }
    }

    /// Counts one.
    pub fn observe(&self, elapsed: Duration) {
        let micros = elapsed.as_micros() as u64;
        if let Some(bucket) = REQUEST_BOUNDS.iter().position(|bound| micros <= bound * 1000) {
            self.buckets[bucket].fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.sum_micros.fetch_add(micros, Relaxed);
    }

    fn reset(&self) {
        self.buckets.iter().chain([&self.count, &self.sum_micros]).for_each(|number| number.store(0, Relaxed));
    }

    fn write(&self, name: &str, labels: &str, out: &mut String) {
        let mut total = 0;
        for (bound, bucket) in REQUEST_BOUNDS.iter().zip(&self.buckets) {
            total += bucket.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{}\"}} {total}", *bound as f64 / 1000.0);
        }
        let count = self.count.load(Relaxed);
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.sum_micros.load(Relaxed) as f64 / 1e6);
        let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
    }
}

/// Times of writes to the store, from the proposal until they are applied.
pub static STORE_WRITES: Histogram = Histogram::new();

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
        format!(
            "component=\"apiserver\",dry_run=\"{dry_run}\",group=\"{}\",resource=\"{}\",scope=\"{}\",subresource=\"{}\",\
             verb=\"{}\",version=\"{}\"",
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

    /// Counts a request that was answered.
    pub fn answered(&self, request: &ResourceRequest, apply: bool, code: u16, elapsed: Duration) {
        let key = Key::of(request, apply);
        series(&self.requests, (key, code), AtomicU64::default).fetch_add(1, Relaxed);
        series(&self.durations, key, Histogram::new).observe(elapsed);
    }

    /// Forgets what was counted so far; what is under way stays.
    pub fn reset(&self) {
        self.requests.write().clear();
        self.durations.write().clear();
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
    pub fn text(&self, view: &View, customs: impl Iterator<Item = &'static ResourceDef>) -> String {
        let mut out = String::with_capacity(64 << 10);
        let mut head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        };
        head(
            &mut out,
            "apiserver_request_total",
            "counter",
            "Requests by what they are about and the code of the answer.",
        );
        for ((key, code), number) in self.requests.read().iter() {
            let _ =
                writeln!(out, "apiserver_request_total{{code=\"{code}\",{}}} {}", key.labels(), number.load(Relaxed));
        }
        let name = "apiserver_request_duration_seconds";
        head(&mut out, name, "histogram", "Time until a request is answered.");
        for (key, histogram) in self.durations.read().iter() {
            histogram.write(name, &key.labels(), &mut out);
        }
        head(&mut out, "apiserver_current_inflight_requests", "gauge", "Requests under way.");
        for (kind, number) in [("mutating", &self.writing), ("readOnly", &self.reading)] {
            let number = number.load(Relaxed);
            let _ = writeln!(out, "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {number}");
        }
        head(&mut out, "apiserver_longrunning_requests", "gauge", "Watches and streams that are open.");
        for (key, number) in self.long.read().iter() {
            let _ = writeln!(out, "apiserver_longrunning_requests{{{}}} {}", key.labels(), number.load(Relaxed));
        }
        objects(view, customs, &mut head, &mut out);
        head(&mut out, "etcd_request_duration_seconds", "histogram", "Time until a write to the store is applied.");
        STORE_WRITES.write("etcd_request_duration_seconds", "operation=\"txn\",type=\"\"", &mut out);
        process(self.started, &mut head, &mut out);
        out
    }
}

type Head<'a> = &'a mut dyn FnMut(&mut String, &str, &str, &str);

/// How many objects there are of each resource.
fn objects(view: &View, customs: impl Iterator<Item = &'static ResourceDef>, head: Head<'_>, out: &mut String) {
    let mut rows: Vec<&'static ResourceDef> = RESOURCES.iter().filter(|row| row.verbs.contains(&"update")).collect();
    rows.extend(customs);
    rows.sort_by_key(|row| (row.group, row.plural));
    // Versions of a resource share their objects.
    rows.dedup_by_key(|row| (row.group, row.plural));
    let counts: Vec<_> = rows.iter().map(|row| (row, view.range(&Objects::range(row, "")).count())).collect();
    head(out, "apiserver_storage_objects", "gauge", "Objects in the store.");
    for (row, count) in &counts {
        let _ = writeln!(out, "apiserver_storage_objects{{resource=\"{}\"}} {count}", row.qualified());
    }
    head(out, "apiserver_resource_objects", "gauge", "Objects in the store.");
    for (row, count) in &counts {
        let _ =
            writeln!(out, "apiserver_resource_objects{{group=\"{}\",resource=\"{}\"}} {count}", row.group, row.plural);
    }
}

/// What the operating system says of the process.
fn process(started: Instant, head: Head<'_>, out: &mut String) {
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
        head(out, name, kind, help);
        let _ = writeln!(out, "{name} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let histogram = Histogram::new();
        for millis in [1, 4, 30, 100_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut out = String::new();
        histogram.write("x", "a=\"b\"", &mut out);
        for line in [
            "x_bucket{a=\"b\",le=\"0.005\"} 2",
            "x_bucket{a=\"b\",le=\"0.05\"} 3",
            "x_bucket{a=\"b\",le=\"60\"} 3",
            "x_bucket{a=\"b\",le=\"+Inf\"} 4",
            "x_sum{a=\"b\"} 100.035",
            "x_count{a=\"b\"} 4",
        ] {
            assert!(out.lines().any(|l| l == line), "{line}\n{out}");
        }
        histogram.reset();
        out.clear();
        histogram.write("x", "a=\"b\"", &mut out);
        assert!(out.lines().all(|line| line.ends_with(" 0")), "{out}");
    }

    #[test]
    fn what_is_held_is_counted() {
        let number = Arc::new(AtomicI64::default());
        let held = Held::new(number.clone());
        assert_eq!(number.load(Relaxed), 1);
        drop(held);
        assert_eq!(number.load(Relaxed), 0);
    }
}

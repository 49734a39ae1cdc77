//! A client that writes without pause, and the longest time in which it could not.

// Each test file uses a part of it.
#![allow(dead_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keelson_testbed::{Api, until};
use serde_json::json;

use super::PATIENCE;

const OBJECTS: &str = "/api/v1/namespaces/default/configmaps";
/// Pause after a write that failed.
const AGAIN: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Seen {
    acknowledged: u64,
    last: Option<Instant>,
    longest: Duration,
}

/// The client, which goes on until this is dropped.
pub struct Load {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Load {
    /// Starts it. `api` is asked before each write, since its certificate may be renewed meanwhile.
    pub fn start(api: impl Fn() -> anyhow::Result<Api> + Send + 'static) -> Self {
        let (seen, stop): (Arc<Mutex<Seen>>, Arc<AtomicBool>) = Default::default();
        let (kept, ends) = (seen.clone(), stop.clone());
        let run = move || {
            let object = |number: u64| {
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "load"},
                    "data": {"number": number.to_string()}})
            };
            let write = |number: u64| -> anyhow::Result<()> {
                let api = api()?;
                if number == 1 {
                    api.create(OBJECTS, &object(0))?;
                }
                api.call("PUT", &format!("{OBJECTS}/load"), Some(&object(number))).map(drop)
            };
            while !ends.load(Ordering::Relaxed) {
                let number = kept.lock().unwrap().acknowledged + 1;
                if write(number).is_err() {
                    std::thread::sleep(AGAIN);
                    continue;
                }
                let mut seen = kept.lock().unwrap();
                let now = Instant::now();
                let gap = seen.last.map_or(Duration::ZERO, |last| now - last);
                *seen = Seen { acknowledged: number, last: Some(now), longest: seen.longest.max(gap) };
            }
        };
        Self { seen, stop, thread: Some(std::thread::spawn(run)) }
    }

    fn goes_on(&self) {
        let before = self.seen.lock().unwrap().acknowledged;
        until("writes go on", PATIENCE, || Ok((self.seen.lock().unwrap().acknowledged > before + 1).then_some(())))
            .unwrap();
    }

    /// Takes a step and prints the longest time without an acknowledged write, until writes go on after it.
    pub fn during(&self, what: &str, step: impl FnOnce()) {
        self.goes_on();
        self.seen.lock().unwrap().longest = Duration::ZERO;
        step();
        self.goes_on();
        println!("| {what} | {} ms |", self.seen.lock().unwrap().longest.as_millis());
    }

    /// Ends it; how many writes were acknowledged.
    pub fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(std::thread::JoinHandle::join);
        self.seen.lock().unwrap().acknowledged
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

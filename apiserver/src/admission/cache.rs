//! What is made of stored configurations, kept until one of them changes.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use keelson_machinery::resources::find;
use keelson_store::{KeyRange, View};
use serde_json::Value;

use crate::objects::{Objects, parse};

const GROUP: &str = "admissionregistration.k8s.io";

/// Something made of all objects of some resources of the group `admissionregistration.k8s.io`.
pub(super) struct Cache<T> {
    objects: Objects,
    plurals: &'static [&'static str],
    current: ArcSwapOption<Cached<T>>,
}

/// What was made, and of which objects.
pub(super) type Cached<T> = (Mark, T);

/// Number and highest revision of the objects: together they tell every change.
pub(super) type Mark = (usize, i64);

impl<T> Cache<T> {
    pub fn new(objects: Objects, plurals: &'static [&'static str]) -> Self {
        Self { objects, plurals, current: ArcSwapOption::empty() }
    }

    fn ranges(&self) -> impl Iterator<Item = KeyRange> {
        self.plurals.iter().filter_map(|plural| find(GROUP, "v1", plural)).map(|def| KeyRange::prefix(def.prefix()))
    }

    fn mark(&self, view: &View) -> Mark {
        let mut mark = (0, 0);
        for range in self.ranges() {
            for kv in view.range(&range) {
                mark = (mark.0 + 1, mark.1.max(kv.mod_revision));
            }
        }
        mark
    }

    /// What `make` makes of the objects (one list for each resource); `None` if there are none of the first resource.
    pub fn get(&self, make: impl FnOnce(Vec<Vec<Value>>) -> T) -> Option<Arc<Cached<T>>> {
        let view = self.objects.kv.view();
        let first = self.ranges().next()?;
        view.range(&first).next()?;
        let mark = self.mark(&view);
        if let Some(current) = self.current.load_full().filter(|current| current.0 == mark) {
            return Some(current);
        }
        let lists = self.ranges().map(|range| view.range(&range).filter_map(|kv| parse(kv).ok()).collect()).collect();
        let fresh = Arc::new((mark, make(lists)));
        self.current.store(Some(fresh.clone()));
        Some(fresh)
    }
}

//! How many devices of a class a node can use, and how many of these somebody has: what scores count for extended resources
//! that a class stands behind.

use std::sync::Arc;

use super::allocate::{Node, chosen_by};
use super::{Class, Devices};

/// The number of the class's devices that a node can use and of those among them that somebody has. As upstream, nothing if an
/// expression of the class cannot be evaluated.
pub fn totals(devices: &Devices, class: &Class, node: &Node<'_>) -> (i64, i64) {
    let (mut all, mut used) = (0, 0);
    for (_, pool) in devices.pools(node.name) {
        for device in pool.devices.iter().filter(|device| node.reaches(&device.place)) {
            match chosen_by(&class.selectors, &device.facts, "class") {
                Ok(true) => {
                    all += 1;
                    used += i64::from(devices.is_used(&device.id));
                }
                Ok(false) => {}
                Err(_) => return (0, 0),
            }
        }
    }
    (all, used)
}

impl Devices {
    /// The class behind a resource of this name's symbol.
    pub fn class_behind(&self, resource: crate::intern::Sym) -> Option<&Arc<Class>> {
        self.classes.get(self.backed.class(resource)?)
    }
}

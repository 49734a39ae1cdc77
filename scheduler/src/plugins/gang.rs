//! GangScheduling: pods of a gang wait until their group is there and complete, and are bound together or not at all. Its part
//! before the queue is [`crate::pod_groups::PodGroups::blocked`], the cycle of a group is `crate::core`'s.

use crate::queue::Happening;
use crate::view::{PodInfo, View};

/// Its name.
pub const NAME: &str = "GangScheduling";
/// What a pod says that has a node while others of its gang have none.
pub const WAITS_FOR_OTHERS: &str = "waiting for minCount pods from a gang to be scheduled";

/// Another pod of the group has a node now.
pub fn hint(_: &View, pod: &PodInfo, what: &Happening) -> bool {
    let Happening::Came { pod: other } = what else { return false };
    let (class, others) = (&pod.class, &other.class);
    class.group.is_some() && (&class.group, &class.namespace) == (&others.group, &others.namespace)
}

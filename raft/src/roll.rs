//! Who belongs to a cluster, asked from outside; and how a member notices that it was removed.

use std::time::Duration;

use bytes::Bytes;
use keelson_store::KvError;

use crate::limits::{REMOVAL_ASK_LOOKS, REMOVAL_LOOK_MILLIS};
use crate::message::{Answer, Ask, Roll};
use crate::network::Network;
use crate::peer_tls::PeerTls;
use crate::replica::{Replica, odd_answer};

/// Asks the members at these addresses, one after the other, who belongs to their cluster.
pub async fn ask_roll(addresses: &[String], tls: Option<PeerTls>) -> Result<Roll, KvError> {
    let network = Network::new(tls);
    let mut why = String::from("no address of a member is known");
    for address in addresses {
        match network.ask(0, address, &Ask::Members, Bytes::new()).await {
            Ok(Answer::Members(roll)) if !roll.members.is_empty() => return Ok(roll),
            Ok(Answer::Members(_)) => why = format!("{address}: the member there belongs to no cluster yet"),
            Ok(_) => return Err(odd_answer()),
            Err(error) => why = format!("{address}: {error}"),
        }
    }
    Err(KvError::Unavailable(why))
}

impl Replica {
    /// Resolves when this member was removed from its cluster for good. It hears of its removal from the log only if
    /// it is quick, so it asks the others when it is without a leader. It asks now and then in any case: the last leader
    /// that it heard may go on leading the others in the same term, and whoever knows that gives it no vote.
    pub async fn removed(&self) {
        let mut suspicious = 0;
        for look in 1_u64.. {
            tokio::time::sleep(Duration::from_millis(REMOVAL_LOOK_MILLIS)).await;
            let nodes = self.nodes();
            let listed = nodes.iter().any(|(id, ..)| *id == self.0.id);
            let lost = !nodes.is_empty() && (!listed || self.0.peer_status().leader_id == 0);
            suspicious = if lost { suspicious + 1 } else { 0 };
            if suspicious < 2 && !look.is_multiple_of(REMOVAL_ASK_LOOKS) {
                continue;
            }
            for (id, ..) in nodes {
                if id != self.0.id && self.removed_says(id).await {
                    return;
                }
            }
        }
    }

    /// Whether a member that has applied at least as much does not count this one among the members.
    async fn removed_says(&self, id: u64) -> bool {
        let Ok(Answer::Members(roll)) = self.0.ask_member(id, &Ask::Members).await else { return false };
        let knows = !roll.members.is_empty() && roll.applied_index >= self.0.store.applied().0;
        knows && roll.cluster_id == self.0.cluster_id && !roll.members.iter().any(|(id, ..)| *id == self.0.id)
    }
}

//! A member whose state or log is damaged, or whose history is not that of the others, begins anew from its peers, without
//! an operator.
//!
//! A sentence, kept in the member's directory, says that it must. At its next start the member asks the others to put
//! another member of its name, with a fresh id, in its place. Only when that is committed is the old data removed.
//!
//! Invariants: an id whose log is lost never votes again, since it belongs to no cluster any more before its log goes; as
//! that takes a majority of the others, as many members may be damaged at once as may fail, and the last good copy is
//! never thrown away.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keelson_store::Fatal;
use openraft::async_runtime::WatchReceiver;
use rand::RngExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::message::{Answer, Ask, Change, Refusal, Roll};
use crate::network::{AskError, Network};
use crate::peer_tls::PeerTls;
use crate::replica::Inner;
use crate::setup::OpenError;
use crate::task;
use crate::types::Node;
use crate::wal::Damaged;
use crate::wire::World;

/// The sentence, in a member's directory.
const SENTENCE: &str = "begin-anew";
/// Who belonged to the cluster when this member last knew.
const ROSTER: &str = "members";
/// What is removed.
const DATA: [&str; 3] = ["log", "state", "snapshots"];
/// Fewer members than this cannot replace one of them without its vote. Whether enough of them vote is for them to say: this
/// member may have missed that one was promoted.
const LEAST_MEMBERS: usize = 3;
/// Pause between rounds of questions to the others.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// That a member must begin anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sentence {
    /// Why, for an operator.
    pub why: String,
    /// Whom it concerns.
    pub former: u64,
    /// The id under which the member goes on.
    pub fresh: u64,
    /// A leader may have been asked for the change: it may have got half way, so that neither id is a member's.
    #[serde(default)]
    pub asked: bool,
}

/// Who belonged to the cluster when a member last knew.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Roster {
    /// The member whose directory it is.
    pub own: u64,
    /// Each member, and whether it votes.
    pub members: Vec<(u64, Node, bool)>,
}

impl Roster {
    /// Addresses of the other members.
    pub fn others(&self) -> Vec<String> {
        self.members.iter().filter(|(id, ..)| *id != self.own).map(|(_, node, _)| node.peer_address.clone()).collect()
    }

    /// This member.
    pub fn node(&self) -> Option<&Node> {
        self.members.iter().find(|(id, ..)| *id == self.own).map(|(_, node, _)| node)
    }
}

fn read<T: DeserializeOwned>(file: &Path) -> io::Result<Option<T>> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(codec::decode(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file so that it is there whole or not at all.
fn write<T: Serialize>(dir: &Path, name: &str, value: &T) -> io::Result<()> {
    let part = dir.join(format!("{name}.part"));
    let mut file = File::create(&part)?;
    file.write_all(&codec::encode(value)?)?;
    file.sync_all()?;
    fs::rename(&part, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// The sentence in a member's directory, if there is one.
pub fn sentence(dir: &Path) -> io::Result<Option<Sentence>> {
    read(&dir.join(SENTENCE))
}

/// Who belonged to the cluster when the member of this directory last knew.
pub fn roster(dir: &Path) -> io::Result<Option<Roster>> {
    read(&dir.join(ROSTER))
}

/// Has the member of a directory begin anew at its next start; `false` if the others could not replace it, because they
/// are too few or it has no name.
pub fn pronounce(dir: &Path, why: &str) -> io::Result<bool> {
    if sentence(dir)?.is_some() {
        return Ok(true);
    }
    let Some(roster) = roster(dir)? else { return Ok(false) };
    let named = roster.node().is_some_and(|node| !node.name.is_empty());
    if roster.members.len() < LEAST_MEMBERS || !named {
        return Ok(false);
    }
    let fresh = task::dice().random_range(1..u64::MAX / 2);
    write(dir, SENTENCE, &Sentence { why: why.to_owned(), former: roster.own, fresh, asked: false })?;
    tracing::error!(why, member = format!("{:x}", roster.own), "this member begins anew at its next start");
    Ok(true)
}

/// [`pronounce`] where only a log can tell that it failed: the member stops all the same.
pub(crate) fn pronounce_or_tell(dir: &Path, why: &str) {
    match pronounce(dir, why) {
        Ok(true) => {}
        Ok(false) => tracing::error!(why, "the other members are too few to replace this one by themselves"),
        Err(error) => tracing::error!(why, %error, "that this member must begin anew could not be written down"),
    }
}

/// Whether a member cannot be opened because of what is in its files.
pub(crate) fn is_damage(error: &OpenError) -> bool {
    match error {
        OpenError::Store(fatal) => matches!(fatal, Fatal::Corrupt(_)),
        OpenError::Log(error) => error.get_ref().is_some_and(|inner| inner.is::<Damaged>()),
        OpenError::Raft(_) => false,
    }
}

/// Entries leave the log once the tables on disk hold what they did: tables that end before them have lost their own end, as
/// those whose catalogue was cut short have.
pub(crate) fn whole(applied: u64, purged: u64) -> Result<(), OpenError> {
    if applied >= purged {
        return Ok(());
    }
    let why =
        format!("the tables end at entry {applied}, but the log begins after entry {purged}: tables have been lost");
    Err(OpenError::Store(Fatal::Corrupt(why)))
}

/// Why a sentenced member cannot begin anew.
#[derive(Debug, thiserror::Error)]
pub enum HealError {
    /// Its directory cannot be read or changed.
    #[error("cannot begin anew: {0}")]
    Io(#[from] io::Error),
    /// It belongs to no cluster any more.
    #[error(
        "this member was removed from its cluster: to let the machine take part again, remove its data directory and \
         add it as a new member"
    )]
    Removed,
}

/// What is left of a member that begins anew.
#[derive(Debug)]
pub struct Anew {
    /// The id under which it goes on.
    pub id: u64,
    /// Addresses of the others.
    pub peers: Vec<String>,
}

/// Before a member is opened: if it was sentenced, has the others put a fresh id in its place, for as long as that takes,
/// and removes its data. The caller writes down the id, calls [`done`], and only then opens the member.
pub async fn prepare(dir: &Path, tls: Option<PeerTls>, world: &World) -> Result<Option<Anew>, HealError> {
    let Some(mut sentence) = sentence(dir)? else { return Ok(None) };
    let Some(roster) = roster(dir)? else {
        return Err(HealError::Io(io::Error::other("nobody knows any more who the other members are")));
    };
    tracing::warn!(why = sentence.why, "this member asks the others to let it begin anew");
    let network = Network::new(tls).over(world.wire.clone());
    let mut rounds = 0_u64;
    while let Err(why) = exchange(dir, &network, &mut sentence, &roster).await? {
        if rounds.is_multiple_of(10) {
            tracing::warn!(why, "the others have not replaced this member yet");
        }
        rounds += 1;
        tokio::time::sleep(ASK_EVERY).await;
    }
    for name in DATA {
        match fs::remove_dir_all(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    File::open(dir)?.sync_all()?;
    tracing::warn!(member = format!("{:x}", sentence.fresh), "this member begins anew from its peers");
    Ok(Some(Anew { id: sentence.fresh, peers: roster.others() }))
}

/// The sentence is served: the member's fresh id is written down.
pub fn done(dir: &Path) -> io::Result<()> {
    for name in [ROSTER, SENTENCE] {
        match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    File::open(dir)?.sync_all()
}

/// Notes whether a leader may have been asked, so that it is known also when this process dies before the answer.
fn note_asked(dir: &Path, sentence: &mut Sentence, asked: bool) -> io::Result<()> {
    if sentence.asked != asked {
        sentence.asked = asked;
        write(dir, SENTENCE, sentence)?;
    }
    Ok(())
}

/// One round of questions; the inner error says why it has to be tried again.
async fn exchange(
    dir: &Path,
    network: &Network,
    sentence: &mut Sentence,
    roster: &Roster,
) -> Result<Result<(), String>, HealError> {
    let Some(node) = roster.node() else { return Err(HealError::Removed) };
    let mut why = String::from("no other member is known");
    for address in roster.others() {
        match network.ask(0, &address, &Ask::Members, Bytes::new()).await {
            Ok(Answer::Members(Roll { members, .. })) if !members.is_empty() => {
                let has = |id: u64| members.iter().any(|(found, ..)| *found == id);
                match (has(sentence.former), has(sentence.fresh)) {
                    (false, true) => return Ok(Ok(())),
                    (false, false) if !sentence.asked => return Err(HealError::Removed),
                    _ => {}
                }
            }
            Ok(_) => {
                why = format!("{address}: the member there belongs to no cluster yet");
                continue;
            }
            Err(error) => {
                why = format!("{address}: {error}");
                continue;
            }
        }
        let asked_before = sentence.asked;
        note_asked(dir, sentence, true)?;
        let change = Ask::Change(Change::Join(sentence.fresh, node.clone()));
        let answer = network.ask(0, &address, &change, Bytes::new()).await;
        if matches!(answer, Ok(Answer::Changed(Err(Refusal::NotLeader(_)))) | Err(AskError::NotSent(_))) {
            note_asked(dir, sentence, asked_before)?;
        }
        match answer {
            Ok(Answer::Changed(Ok(_))) => return Ok(Ok(())),
            Ok(Answer::Changed(Err(refusal))) => why = format!("{address}: {refusal}"),
            Ok(_) => why = format!("{address} gave an answer to another question"),
            Err(error) => why = format!("{address}: {error}"),
        }
    }
    Ok(Err(why))
}

/// Keeps the roster for as long as the member runs.
pub(crate) async fn remember(inner: Arc<Inner>, dir: PathBuf) {
    // Not all metrics: those change with every write.
    let mut metrics = inner.raft.server_metrics();
    let mut known = None;
    loop {
        let at = metrics.borrow_and_update().membership_config.log_id().to_owned();
        let members = inner.members();
        if at != known && !members.is_empty() {
            let (dir, roster) = (dir.clone(), Roster { own: inner.id, members });
            match task::blocking(move || write(&dir, ROSTER, &roster)).await {
                Ok(Ok(())) => known = at,
                Ok(Err(error)) => tracing::warn!(%error, "the list of members could not be written down"),
                Err(_) => return,
            }
        }
        tokio::select! {
            () = inner.stopping().cancelled() => return,
            changed = metrics.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first `voters` of `all` members vote.
    fn roster(all: u64, voters: u64, name: &str) -> Roster {
        let node = |id: u64| Node { name: format!("{name}{id}"), peer_address: format!("m{id}:1"), ..Node::default() };
        let node = |id: u64| if name.is_empty() { Node::default() } else { node(id) };
        Roster { own: 1, members: (1..=all).map(|id| (id, node(id), id <= voters)).collect() }
    }

    #[test]
    fn only_a_member_that_others_can_replace_is_sentenced() {
        for (all, voters, name, want) in [
            (1, 1, "m", false),
            (2, 2, "m", false),
            (3, 3, "m", true),
            (3, 2, "m", true),
            (5, 5, "m", true),
            (3, 3, "", false),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            assert!(!pronounce(dir.path(), "damaged").expect("readable"), "nobody is known");
            write(dir.path(), ROSTER, &roster(all, voters, name)).expect("written");
            let told = format!("{voters} of {all} vote, name {name:?}");
            assert_eq!(pronounce(dir.path(), "damaged").expect("written"), want, "{told}");
            assert_eq!(sentence(dir.path()).expect("readable").is_some(), want);
        }
    }

    #[test]
    fn a_sentence_stays_as_it_is_until_it_is_served() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), ROSTER, &roster(3, 3, "m")).expect("written");
        assert!(pronounce(dir.path(), "damaged").expect("written"));
        let first = sentence(dir.path()).expect("readable").expect("there");
        assert!(first.former == 1 && first.fresh > 0 && first.fresh != 1);
        assert!(pronounce(dir.path(), "damaged again").expect("written"));
        assert_eq!(sentence(dir.path()).expect("readable"), Some(first), "its id does not change between starts");
        done(dir.path()).expect("removed");
        assert_eq!(sentence(dir.path()).expect("readable"), None);
        done(dir.path()).expect("nothing to do");
    }

    #[test]
    fn tables_without_their_end_are_damaged() {
        for (applied, purged, sound) in [(0, 0, true), (7, 0, true), (7, 7, true), (6, 7, false), (0, 299, false)] {
            let found = whole(applied, purged);
            assert_eq!(found.as_ref().err().is_none_or(|error| !is_damage(error)), sound, "{applied} and {purged}");
        }
    }

    #[test]
    fn only_damage_is_healed() {
        for (error, want) in [
            (OpenError::Store(Fatal::Corrupt("a table".into())), true),
            (OpenError::Store(Fatal::Io("no space".into())), false),
            (OpenError::Log(io::Error::new(io::ErrorKind::InvalidData, Damaged("a frame".into()))), true),
            (OpenError::Log(io::Error::new(io::ErrorKind::InvalidData, "a later version")), false),
            (OpenError::Log(io::ErrorKind::StorageFull.into()), false),
            (OpenError::Raft("stopped".into()), false),
        ] {
            assert_eq!(is_damage(&error), want, "{error}");
        }
    }
}

//! The members of a simulated cluster: processes that are started, killed, paused and replaced, each with its disk and
//! clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use keelson_chaos::etcd::Client;
use keelson_raft::etcd::{self, Front};
use keelson_raft::task::Scope;
use keelson_raft::wire::{Failure, Line, World as Seams};
use keelson_raft::{Node, Replica, Setup, Tuning, heal};
use keelson_store::Kv;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;
use tonic::body::Body;
use tower::ServiceExt;

use crate::clock::Drifting;
use crate::disk::Disk;
use crate::net::{CLIENTS, Net, Port, Process};
use crate::trace::Trace;

/// How long after its end a process is started again.
const RESTART: Duration = Duration::from_secs(1);
/// How many kinds of things that must not happen are told.
const MAX_WRONG: usize = 5;
/// The cluster's id.
const CLUSTER: u64 = 0xc1;
/// Usual pace of a clock.
const PACE: u64 = 1000;

/// One member.
pub struct Member {
    /// Its id; another one when it was replaced.
    pub id: u64,
    /// What it writes to.
    pub disk: Disk,
    /// What it tells the time by.
    pub clock: Arc<Drifting>,
    /// What runs in it, if it runs.
    scope: Option<Scope>,
    replica: Option<Replica>,
    /// How many directories it has had.
    lives: u32,
    /// A fault keeps it from being started again.
    down: bool,
    /// It asks to be added when it starts.
    joins: bool,
    /// Its disk was damaged or failed on purpose: it may end, and even refuse to start.
    excused: bool,
    /// Its state was damaged, which may show at any time.
    rotten: bool,
}

/// All members.
pub struct World {
    /// What connects them.
    pub net: Net,
    /// What happened.
    pub trace: Trace,
    members: Mutex<Vec<Member>>,
    dice: Mutex<StdRng>,
    root: PathBuf,
    tuning: Tuning,
    healed: AtomicU64,
    /// When clocks jumped, and by how many milliseconds.
    jumps: Mutex<Vec<(Instant, u64)>>,
    /// What must not have happened, in words.
    wrong: Mutex<BTreeSet<String>>,
}

fn node(member: usize) -> Node {
    Node { name: format!("member-{member}"), peer_address: Net::address(member), ..Node::default() }
}

impl World {
    /// Members that were not started yet, with their data below `root`.
    pub fn new(seed: u64, count: usize, root: &Path, tuning: Tuning, net: Net, trace: Trace) -> Arc<Self> {
        let mut dice = StdRng::seed_from_u64(seed);
        let members = (0..count).map(|member| Member {
            id: member as u64 + 1,
            disk: Disk::new(dice.random(), member, trace.clone()),
            clock: Arc::new(Drifting::new(PACE)),
            scope: None,
            replica: None,
            lives: 0,
            down: false,
            joins: false,
            excused: false,
            rotten: false,
        });
        let members = Mutex::new(members.collect());
        let (dice, root, jumps) = (Mutex::new(dice), root.to_path_buf(), Mutex::default());
        Arc::new(Self {
            net,
            trace,
            members,
            dice,
            root,
            tuning,
            healed: AtomicU64::new(0),
            jumps,
            wrong: Mutex::default(),
        })
    }

    /// How many members there are.
    pub fn count(&self) -> usize {
        self.members.lock().len()
    }

    /// What must not have happened.
    pub fn wrong(&self) -> Vec<String> {
        self.wrong.lock().iter().take(MAX_WRONG).cloned().collect()
    }

    /// Notes that a clock has jumped.
    pub fn jumped(&self, millis: u64) {
        self.jumps.lock().push((Instant::now(), millis));
    }

    /// By how many nanoseconds clocks have jumped, and when, as nanoseconds from a moment on.
    pub fn jumps(&self, from: Instant) -> Vec<(u64, u64)> {
        let since = |at: Instant| u64::try_from(at.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX);
        self.jumps.lock().iter().map(|(at, millis)| (since(*at), millis * 1_000_000)).collect()
    }

    /// Looks at a member, or changes it.
    pub fn with<T>(&self, member: usize, look: impl FnOnce(&mut Member) -> T) -> T {
        look(&mut self.members.lock()[member])
    }

    /// Clients of all members.
    pub fn clients(&self) -> Vec<Client> {
        let seat = self.net.seat(CLIENTS);
        (0..self.count()).map(|member| Client::over(seat.to(member, Port::Client))).collect()
    }

    /// The member that leads in the highest term.
    pub fn leader(&self) -> Option<usize> {
        let members = self.members.lock();
        let leads = |(at, member): (usize, &Member)| {
            let status = member.replica.as_ref()?.status();
            status.is_leader.then_some((status.term, at))
        };
        members.iter().enumerate().filter_map(leads).max().map(|(_, at)| at)
    }

    /// Members that run, with their replicas.
    pub fn replicas(&self) -> Vec<(usize, Replica)> {
        let members = self.members.lock();
        members.iter().enumerate().filter_map(|(at, member)| Some((at, member.replica.clone()?))).collect()
    }

    /// Whether every member runs and votes, so that the disk of one may be lost.
    pub fn is_whole(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let members = self.members.lock();
        let Some(replica) = members[leader].replica.as_ref().filter(|replica| replica.is_settled()) else {
            return false;
        };
        let nodes = replica.nodes();
        let votes = |member: &Member| nodes.iter().any(|(id, _, votes)| *id == member.id && *votes);
        nodes.len() == members.len() && members.iter().all(|member| member.replica.is_some() && votes(member))
    }

    fn dir(&self, member: usize, life: u32) -> PathBuf {
        self.root.join(format!("{member}-{life}"))
    }

    /// Starts a member that does not run.
    pub fn start(self: &Arc<Self>, at: usize) {
        let seed = self.dice.lock().random();
        let (scope, setup, seams, joins) = {
            let mut members = self.members.lock();
            let member = &mut members[at];
            member.down = false;
            if member.scope.is_some() {
                return;
            }
            let scope = Scope::new(seed);
            member.scope = Some(scope.clone());
            let setup = Setup {
                cluster_id: CLUSTER,
                id: member.id,
                dir: self.dir(at, member.lives),
                version: "simulated".into(),
                clock: member.clock.clone(),
                listeners: Vec::new(),
                tls: None,
                tuning: self.tuning.clone(),
            };
            let wire = Arc::new(self.net.seat(at));
            let seams = Seams { wire: Some(wire), files: Some(Arc::new(member.disk.clone())) };
            (scope, setup, seams, member.joins)
        };
        self.trace.note(format_args!("member {at} starts"));
        let world = self.clone();
        let (running, ended) = (scope.clone(), scope.clone());
        scope.spawn(async move {
            let why = match world.run(at, running, setup, seams, joins).await {
                Ok(why) => why,
                Err(error) => format!("{error:#}"),
            };
            // A disk whose power went has killed it already.
            if !ended.is_killed() {
                world.ended(at, &why);
            }
        });
    }

    /// What a member's process does, until it ends by itself.
    async fn run(
        &self,
        at: usize,
        scope: Scope,
        mut setup: Setup,
        mut seams: Seams,
        mut joins: bool,
    ) -> anyhow::Result<String> {
        if let Some(anew) = heal::prepare(&setup.dir, None, &seams).await? {
            self.heals(at, anew.id);
            heal::done(&setup.dir)?;
            setup.id = anew.id;
            seams.files = Some(Arc::new(self.with(at, |member| member.disk.clone())));
            joins = true;
        }
        let (id, spool_dir) = (setup.id, setup.dir.clone());
        let replica = Replica::open_in(setup, seams).await.context("it does not start")?;
        let (peer, nobody) = (replica.peer_service(), None);
        self.net.listen(at, Some(Process { scope: scope.clone(), peer: peer.clone(), client: nobody }));
        if joins && !replica.is_initialized().await? {
            let others = (0..self.count()).filter(|other| *other != at).map(Net::address);
            replica.join(node(at), &others.collect::<Vec<_>>()).await?;
        } else if id <= self.count() as u64 {
            let founders: BTreeMap<u64, Node> =
                (0..self.count()).map(|member| (member as u64 + 1, node(member))).collect();
            replica.form(founders).await?;
        }
        // What was wrong with its disk is over, unless it can show at any time.
        self.with(at, |member| member.excused &= member.rotten || member.disk.is_ill());
        let (kv, cluster) = (Arc::new(replica.clone()), Arc::new(replica.clone()));
        let front = Front::new(kv, cluster, etcd::Options { spool_dir, ..etcd::Options::default() });
        let client = Some(client_line(&front));
        self.net.listen(at, Some(Process { scope, peer, client }));
        self.with(at, |member| member.replica = Some(replica.clone()));
        tokio::select! {
            biased;
            why = replica.failed() => Ok(why),
            () = replica.removed() => Ok("it was removed".into()),
        }
    }

    /// A process has ended by itself: it is started again after a while.
    fn ended(self: &Arc<Self>, at: usize, why: &str) {
        self.trace.note_beside(format_args!("member {at} ends"), why);
        let (excused, removed) = (self.with(at, |member| member.excused), why == "it was removed");
        let cannot_join = self.with(at, |member| member.joins) && why.starts_with("no leader");
        if !excused && !removed && !cannot_join {
            self.wrong.lock().insert(format!("member {at} ended: {why}"));
        }
        self.stop(at);
        let dir = self.with(at, |member| self.dir(at, member.lives));
        let heals = heal::sentence(&dir).is_ok_and(|sentence| sentence.is_some());
        // What was damaged for good and cannot heal is replaced, as the message says.
        if removed || (excused && !heals && why.contains("damaged")) {
            self.wipe(at);
        }
        let world = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(RESTART).await;
            if !world.with(at, |member| member.down) {
                world.start(at);
            }
        });
    }

    /// Kills a member; it stays down until somebody starts it.
    pub fn kill(&self, at: usize) {
        self.with(at, |member| member.down = true);
        self.stop(at);
    }

    /// Ends a process in the middle of whatever it does.
    fn stop(&self, at: usize) {
        let Some((scope, replica)) = self.with(at, |member| Some((member.scope.take()?, member.replica.take()))) else {
            return;
        };
        scope.kill();
        self.net.listen(at, None);
        let (lost, from, to) = self.with(at, |member| {
            let (disk, lost) = member.disk.crash();
            member.disk = disk;
            member.lives += 1;
            (lost, self.dir(at, member.lives - 1), self.dir(at, member.lives))
        });
        // The old process' database goes on into a directory that nobody looks at.
        if let Err(error) = copy(&from.join("state"), &to.join("state")).and_then(|()| copy_files(&from, &to)) {
            self.wrong.lock().insert(format!("the simulation cannot copy {}: {error}", from.display()));
        }
        drop(replica);
        self.trace.note(format_args!("member {at} is gone: {lost:?}"));
        for (other, replica) in self.replicas() {
            let heard = !self.net.is_cut(at, other) && !self.net.is_cut(other, at);
            let scope = self.with(other, |member| member.scope.clone());
            if let Some(scope) = scope.filter(|_| heard) {
                scope.spawn(async move { replica.connection_ended().await });
            }
        }
    }

    /// A member's disk is lost; another one takes its place when it starts.
    pub fn wipe(&self, at: usize) {
        let (seed, id) = (self.dice.lock().random(), self.members.lock().iter().map(|member| member.id).max());
        self.with(at, |member| {
            member.disk = Disk::new(seed, at, self.trace.clone());
            member.id = id.unwrap_or(0) + 1;
            member.lives += 1;
            member.joins = true;
            (member.excused, member.rotten) = (false, false);
        });
        self.trace.note(format_args!("member {at} has lost its disk"));
    }

    /// A member goes on under another id, with an empty disk.
    fn heals(&self, at: usize, id: u64) {
        let seed = self.dice.lock().random();
        self.with(at, |member| {
            member.disk = Disk::new(seed, at, self.trace.clone());
            member.id = id;
            member.joins = true;
            (member.excused, member.rotten) = (false, false);
        });
        self.healed.fetch_add(1, Ordering::SeqCst);
        self.trace.note(format_args!("member {at} begins anew"));
    }

    /// How often a member began anew from its peers.
    pub fn healed(&self) -> u64 {
        self.healed.load(Ordering::SeqCst)
    }

    /// Damages what a member that does not run has on disk; says what was done.
    pub fn damage(&self, at: usize, how: impl FnOnce(&Path) -> io::Result<String>) -> String {
        let dir = self.with(at, |member| {
            (member.excused, member.rotten) = (true, true);
            self.dir(at, member.lives)
        });
        how(&dir.join("state")).unwrap_or_else(|error| format!("nothing to damage: {error}"))
    }

    /// From now on a member may end by itself: something is done to its disk.
    pub fn excuse(&self, at: usize) {
        self.with(at, |member| member.excused = true);
    }

    /// Whether any member's disk was damaged.
    pub fn any_excused(&self) -> bool {
        self.members.lock().iter().any(|member| member.excused)
    }

    /// Stops a member in its tracks.
    pub fn pause(&self, at: usize) {
        if let Some(scope) = self.with(at, |member| member.scope.clone()) {
            scope.pause();
        }
    }

    /// Ends every fault.
    pub fn restore(self: &Arc<Self>) {
        self.net.heal();
        for at in 0..self.count() {
            let scope = self.with(at, |member| {
                member.disk.keep_power();
                member.disk.set_full(false);
                member.disk.set_broken(false);
                member.disk.set_unsyncable(false);
                member.disk.set_slow(Duration::ZERO);
                member.clock.set_pace(PACE);
                member.scope.clone()
            });
            match scope {
                Some(scope) => scope.resume(),
                None => self.start(at),
            }
        }
    }

    /// Has a member end in order.
    pub async fn shut_down(&self, at: usize) {
        let Some((scope, replica)) = self.with(at, |member| {
            member.down = true;
            Some((member.scope.clone()?, member.replica.clone()?))
        }) else {
            return;
        };
        let ending = scope.spawn(async move { replica.shutdown().await });
        // It may be killed meanwhile, or take too long.
        let _ = tokio::time::timeout(RESTART * 5, ending).await;
        self.stop(at);
    }
}

/// The etcd API of a member.
fn client_line(front: &Arc<Front>) -> Line {
    let router = etcd::serve::routes(front).router;
    let service = ServiceExt::<http::Request<axum::body::Body>>::map_err(router, |never| match never {});
    let service = service.map_request(|request: http::Request<Body>| request.map(axum::body::Body::new));
    let service = service.map_response(|response: http::Response<axum::body::Body>| response.map(Body::new));
    Line::new(service.map_err(|failure: Failure| failure))
}

/// The files of a directory, without what lies in directories in it.
fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// What a crash leaves of a directory: all that is in files now. Tables do not change, so they are linked.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let entries = match fs::read_dir(from) {
        // It died before it had written anything.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let target = to.join(&name);
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            copy(&path, &target)?;
        } else if name.ends_with(".sst") {
            fs::hard_link(&path, &target)?;
        } else if !name.starts_with("LOG") && name != "LOCK" {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

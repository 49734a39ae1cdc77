//! What discovery lists: this server's groups and those of others in one order, and the versions of a group that both serve.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{GROUP, Remote, local};
use crate::crd;

/// A version of a group.
pub enum Listed<'a> {
    /// Served here.
    Own(&'static str),
    /// Served by another server.
    Other(&'a Remote),
}

/// A group with its versions, those that count most first.
pub struct Group<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its versions.
    pub versions: Vec<Listed<'a>>,
}

impl Listed<'_> {
    /// Its name.
    pub fn version(&self) -> &str {
        match self {
            Self::Own(version) => version,
            Self::Other(row) => &row.version,
        }
    }

    fn priority(&self, group: &str) -> i64 {
        match self {
            Self::Own(version) => local::priorities(group, version).1,
            Self::Other(row) => row.version_priority,
        }
    }

    /// What aggregated discovery says of it, if another server serves it.
    pub fn document(&self) -> Option<Value> {
        let Self::Other(row) = self else { return None };
        let freshness = if row.available { "Current" } else { "Stale" };
        Some(json!({"version": row.version, "resources": **row.resources.load(), "freshness": freshness}))
    }
}

impl Group<'_> {
    /// The group in the old form of discovery.
    pub fn document(&self) -> Value {
        let name = self.name;
        let one = |listed: &Listed<'_>| {
            let version = listed.version();
            json!({"groupVersion": format!("{name}/{version}"), "version": version})
        };
        let versions: Vec<Value> = self.versions.iter().map(one).collect();
        json!({"name": name, "versions": versions, "preferredVersion": versions.first()})
    }
}

/// Puts other servers' versions among this server's own groups, which keep their order. A version that an APIService gives
/// to another server is that server's.
pub fn groups<'a>(own: Vec<(&'static str, Vec<&'static str>)>, rows: &'a [Arc<Remote>]) -> Vec<Group<'a>> {
    let mut out: Vec<Group<'a>> = own
        .into_iter()
        .map(|(name, versions)| Group { name, versions: versions.into_iter().map(Listed::Own).collect() })
        .collect();
    let mut rest: Vec<Group<'a>> = Vec::new();
    for row in rows {
        let listed = Listed::Other(row);
        if let Some(group) = out.iter_mut().chain(&mut rest).find(|group| group.name == row.group) {
            group.versions.retain(|known| known.version() != row.version);
            group.versions.push(listed);
            let name = group.name;
            group.versions.sort_by(|a, b| {
                b.priority(name).cmp(&a.priority(name)).then_with(|| crd::by_priority(a.version(), b.version()))
            });
        } else {
            rest.push(Group { name: &row.group, versions: vec![listed] });
        }
    }
    for group in rest {
        let wanted = rows.iter().filter(|row| row.group == group.name).map(|row| row.group_priority).max();
        let after = |known: &Group<'_>| {
            let rank = rank(known, rows);
            Some(rank) < wanted || (Some(rank) == wanted && known.name > group.name)
        };
        let place = out.iter().position(after).unwrap_or(out.len());
        out.insert(place, group);
    }
    out
}

/// How a group ranks among others.
fn rank(group: &Group<'_>, rows: &[Arc<Remote>]) -> i64 {
    let others = rows.iter().filter(|row| row.group == group.name).map(|row| row.group_priority);
    let own = group.versions.iter().any(|listed| matches!(listed, Listed::Own(_)));
    let own = own.then(|| if group.name == GROUP { i64::MAX } else { local::priorities(group.name, "").0 });
    others.chain(own).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::tests::remote;
    use super::*;

    #[test]
    fn others_versions_are_listed_where_their_priorities_put_them() {
        let own = || vec![(GROUP, vec!["v1"]), ("apps", vec!["v1"]), ("batch", vec!["v1"]), ("z.example", vec!["v1"])];
        let shown = |rows: &[Arc<Remote>]| -> Vec<String> {
            let shown = |group: &Group<'_>| {
                let versions: Vec<&str> = group.versions.iter().map(Listed::version).collect();
                format!("{}:{}", group.name, versions.join(","))
            };
            groups(own(), rows).iter().map(shown).collect()
        };
        let same = ["apiregistration.k8s.io:v1", "apps:v1", "batch:v1", "z.example:v1"];
        assert_eq!(shown(&[]), same);
        for (rows, at, expected) in [
            (vec![remote("apps", "v2", 1, 20)], 1, "apps:v2,v1"),
            (vec![remote("apps", "v1beta9", 1, 3)], 1, "apps:v1,v1beta9"),
            (vec![remote("apps", "v1", 1, 3)], 1, "apps:v1"),
            (vec![remote("mid.example", "v1", 17_600, 3)], 2, "mid.example:v1"),
            (vec![remote("a.example", "v1", 1000, 3)], 3, "a.example:v1"),
            (vec![remote("last.example", "v1", 100, 3)], 4, "last.example:v1"),
            (vec![remote("two.example", "v1", 100, 3), remote("two.example", "v2", 100, 9)], 4, "two.example:v2,v1"),
        ] {
            assert_eq!(shown(&rows)[at], expected);
        }
    }
}

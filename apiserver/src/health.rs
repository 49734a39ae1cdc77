//! `/livez`, `/readyz` and `/healthz`: whether the server lives and may be asked, as a whole and check by check.

use http::Response;
use keelson_client::Body;

use crate::body;
use crate::encryption;
use crate::request::Query;

/// One check.
struct Check {
    name: &'static str,
    /// Which of the paths it belongs to: livez, readyz, healthz.
    of: [bool; 3],
    needs: Need,
}

/// What a check waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// That the process answers.
    Process,
    /// That the store answers.
    Store,
    /// That the first objects are written: namespaces, roles, priority classes, flow schemas.
    Bootstrap,
    /// That the plugins which hold keys of stored values are well.
    Plugins,
    /// That the server is not ending.
    Running,
}

const fn check(name: &'static str, of: [bool; 3], needs: Need) -> Check {
    Check { name, of, needs }
}

/// How the server is, as far as checks ask.
#[derive(Clone, Copy)]
pub struct State {
    /// Whether the first objects are written.
    pub bootstrapped: bool,
    /// Whether the server ends.
    pub stopping: bool,
}

const ALL: [bool; 3] = [true, true, true];
const READY: [bool; 3] = [false, true, false];

/// The checks under upstream's names. Of what upstream starts after it listens, only the first objects are written late here;
/// the rest is there when the process answers.
const CHECKS: &[Check] = &[
    check("ping", ALL, Need::Process),
    check("log", ALL, Need::Process),
    check("etcd", [true, false, true], Need::Store),
    check("etcd-readiness", READY, Need::Store),
    check("kms-providers", [false, true, true], Need::Plugins),
    check("informer-sync", READY, Need::Process),
    check("poststarthook/start-apiserver-admission-initializer", ALL, Need::Process),
    check("poststarthook/generic-apiserver-start-informers", ALL, Need::Process),
    check("poststarthook/start-apiextensions-informers", ALL, Need::Process),
    check("poststarthook/start-apiextensions-controllers", ALL, Need::Process),
    check("poststarthook/crd-informer-synced", ALL, Need::Process),
    check("poststarthook/bootstrap-controller", ALL, Need::Bootstrap),
    check("poststarthook/rbac/bootstrap-roles", ALL, Need::Bootstrap),
    check("poststarthook/scheduling/bootstrap-system-priority-classes", ALL, Need::Bootstrap),
    check("poststarthook/priority-and-fairness-config-producer", ALL, Need::Bootstrap),
    check("shutdown", READY, Need::Running),
];

/// Whether a check is made: one of plugins only where values are encrypted.
fn is_made(check: &Check) -> bool {
    check.needs != Need::Plugins || encryption::is_on()
}

/// The paths that there are.
pub fn paths() -> impl Iterator<Item = String> {
    ["livez", "readyz", "healthz"].into_iter().enumerate().flat_map(|(index, place)| {
        let checks =
            CHECKS.iter().filter(move |c| c.of[index] && is_made(c)).map(move |c| format!("/{place}/{}", c.name));
        std::iter::once(format!("/{place}")).chain(checks)
    })
}

/// Answers a path; `None` if it is none of these. `well` says whether the store answers.
pub async fn serve(
    path: &str,
    query: &Query,
    well: impl Future<Output = bool>,
    state: State,
) -> Option<Response<Body>> {
    let (place, one) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    let index = ["livez", "readyz", "healthz"].iter().position(|p| *p == place)?;
    let wanted = |c: &&Check| c.of[index] && is_made(c) && (one.is_empty() || c.name == one);
    let checks = CHECKS.iter().filter(wanted).collect::<Vec<_>>();
    if checks.is_empty() {
        return None;
    }
    let store = if checks.iter().any(|c| matches!(c.needs, Need::Store | Need::Bootstrap)) { well.await } else { true };
    let excluded = query.all("exclude");
    let (mut text, mut failed) = (String::new(), false);
    for check in checks {
        let ok = match check.needs {
            Need::Process => true,
            Need::Store => store,
            Need::Bootstrap => store && state.bootstrapped,
            Need::Plugins => encryption::plugins_are_well(),
            Need::Running => !state.stopping,
        };
        if excluded.iter().any(|name| name == check.name) {
            text += &format!("[+]{} excluded: ok\n", check.name);
        } else if ok {
            text += &format!("[+]{} ok\n", check.name);
        } else {
            failed = true;
            text += &format!("[-]{} failed: reason withheld\n", check.name);
        }
    }
    let unknown: Vec<String> = excluded
        .iter()
        .filter(|name| CHECKS.iter().all(|c| c.name != **name))
        .map(|name| format!("{name:?}"))
        .collect();
    if !unknown.is_empty() {
        text += &format!("warn: some health checks cannot be excluded: no matches for {}\n", unknown.join(","));
    }
    if failed {
        return Some(body::text(500, format!("{text}{place} check failed\n")));
    }
    if one.is_empty() && query.has("verbose") {
        return Some(body::text(200, format!("{text}{place} check passed\n")));
    }
    Some(body::text(200, "ok"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn ask(path: &str, query: &str, well: bool) -> Option<(u16, String)> {
        in_state(path, query, well, State { bootstrapped: true, stopping: false }).await
    }

    async fn in_state(path: &str, query: &str, well: bool, state: State) -> Option<(u16, String)> {
        let answer = serve(path, &Query::parse(Some(query)), std::future::ready(well), state).await?;
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        Some((status, String::from_utf8_lossy(&bytes).into_owned()))
    }

    #[tokio::test]
    async fn checks_are_told_one_by_one() {
        assert_eq!(ask("/healthz", "", true).await.unwrap(), (200, "ok".into()));
        assert_eq!(ask("/livez/ping", "", false).await.unwrap(), (200, "ok".into()));
        let (code, text) = ask("/readyz", "verbose", true).await.unwrap();
        assert!(
            code == 200 && text.contains("[+]etcd-readiness ok\n") && text.ends_with("readyz check passed\n"),
            "{text}"
        );
        let (code, text) = ask("/readyz", "", false).await.unwrap();
        assert!(code == 500 && text.contains("[-]etcd-readiness failed: reason withheld\n"), "{text}");
        let (code, text) = ask("/livez", "verbose&exclude=x&exclude=ping", true).await.unwrap();
        assert!(
            code == 200 && text.contains("[+]ping excluded: ok\n") && text.contains("no matches for \"x\"\n"),
            "{text}"
        );
        for (state, name) in [
            (State { bootstrapped: false, stopping: false }, "poststarthook/rbac/bootstrap-roles"),
            (State { bootstrapped: true, stopping: true }, "shutdown"),
        ] {
            let (code, text) = in_state("/readyz", "", true, state).await.unwrap();
            assert!(code == 500 && text.contains(&format!("[-]{name} failed: reason withheld\n")), "{text}");
        }
        assert!(ask("/readyz/nope", "", true).await.is_none());
        assert!(ask("/other", "", true).await.is_none());
    }
}

//! What priority levels, their queues and those that wait in them look like now: `/debug/api_priority_and_fairness/...`, tables
//! with upstream's columns, as far as there is something here that they are about. A request that found a seat at once was
//! in no queue.

use keelson_metrics::{family, sample};

use super::Flow;
use super::level::{Level, Waiter, Waiting};
use crate::request::Query;

/// Where the tables are.
pub const PREFIX: &str = "/debug/api_priority_and_fairness/";
const NONE: &str = "<none>";

/// The table of a path; `None` if there is none.
pub fn serve(flow: &Flow, path: &str, query: &Query) -> Option<String> {
    let policy = flow.policy();
    let mut levels: Vec<(&String, &Level)> = policy.levels.iter().map(|(name, level)| (name, &**level)).collect();
    levels.sort_by_key(|(name, _)| name.as_str());
    let details = query.get("includeRequestDetails").is_some_and(|value| !matches!(value, "0" | "false"));
    let rows = match path.strip_prefix(PREFIX)? {
        "dump_priority_levels" => levels_table(&levels),
        "dump_queues" => queues_table(&levels),
        "dump_requests" => requests_table(&levels, details),
        _ => return None,
    };
    Some(aligned(&rows))
}

/// The same levels in numbers, for `/metrics`.
pub fn figures(flow: &Flow, out: &mut String) {
    let policy = flow.policy();
    let mut levels: Vec<(&String, &Level)> = policy.levels.iter().map(|(name, level)| (name, &**level)).collect();
    levels.sort_by_key(|(name, _)| name.as_str());
    let limited = || levels.iter().filter(|(_, level)| !level.shape.exempt);
    let mut one = |name: &str, kind: &str, help: &str, number: fn(&Level) -> usize| {
        let name = format!("apiserver_flowcontrol_{name}");
        family(out, &name, kind, help);
        for (level_name, level) in limited() {
            sample(out, &name, &format!("priority_level=\"{level_name}\""), number(level) as f64);
        }
    };
    let help = "Seats that are a level's own.";
    one("nominal_limit_seats", "gauge", help, |level| level.shape.seats);
    one("current_limit_seats", "gauge", "Seats of a level at the moment.", |level| level.state.lock().limit);
    one("current_executing_seats", "gauge", "Seats that are taken.", |level| level.state.lock().busy);
    one("current_executing_requests", "gauge", "Requests under way.", |level| {
        usize::try_from(level.state.lock().counts.executing).unwrap_or(usize::MAX)
    });
    one("current_inqueue_requests", "gauge", "Requests that wait.", |level| {
        level.state.lock().queues.iter().flatten().filter(|waiter| !waiter.door.is_closed()).count()
    });
    one("dispatched_requests_total", "counter", "Requests that were let in.", |level| {
        usize::try_from(level.state.lock().counts.dispatched).unwrap_or(usize::MAX)
    });
    let name = "apiserver_flowcontrol_rejected_requests_total";
    family(out, name, "counter", "Requests that were turned away.");
    for (level_name, level) in limited() {
        let counts = &level.state.lock().counts;
        for (reason, number) in [("queue-full", counts.rejected), ("time-out", counts.timed_out)] {
            sample(out, name, &format!("priority_level=\"{level_name}\",reason=\"{reason}\""), number as f64);
        }
    }
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).into()
}

fn levels_table(levels: &[(&String, &Level)]) -> Vec<Vec<String>> {
    let mut rows = vec![row([
        "PriorityLevelName",
        "ActiveQueues",
        "IsIdle",
        "IsQuiescing",
        "WaitingRequests",
        "ExecutingRequests",
        "DispatchedRequests",
        "RejectedRequests",
        "TimedoutRequests",
        "CancelledRequests",
    ])];
    for (name, level) in levels {
        if level.shape.exempt {
            rows.push(std::iter::once((*name).clone()).chain((1..10).map(|_| NONE.to_owned())).collect());
            continue;
        }
        let state = level.state.lock();
        let queue =
            |queue: &std::collections::VecDeque<Waiter>| queue.iter().filter(|waiter| !waiter.door.is_closed()).count();
        let waiting: usize = state.queues.iter().map(queue).sum();
        let active = state.queues.iter().filter(|one| queue(one) > 0).count();
        let counts = &state.counts;
        let idle = waiting == 0 && counts.executing == 0;
        let cells = [active.to_string(), idle.to_string(), false.to_string(), waiting.to_string()];
        let cancelled = counts.gone.saturating_sub(counts.timed_out);
        let counted = [counts.executing, counts.dispatched, counts.rejected, counts.timed_out, cancelled];
        rows.push(
            std::iter::once((*name).clone()).chain(cells).chain(counted.iter().map(ToString::to_string)).collect(),
        );
    }
    rows
}

fn queues_table(levels: &[(&String, &Level)]) -> Vec<Vec<String>> {
    let mut rows = vec![row(["PriorityLevelName", "Index", "PendingRequests", "PendingSeats"])];
    for (name, level) in levels {
        for (index, queue) in level.state.lock().queues.iter().enumerate() {
            let waiting = || queue.iter().filter(|waiter| !waiter.door.is_closed());
            let seats: usize = waiting().map(|waiter| waiter.width).sum();
            rows.push(vec![(*name).clone(), index.to_string(), waiting().count().to_string(), seats.to_string()]);
        }
    }
    rows
}

fn requests_table(levels: &[(&String, &Level)], details: bool) -> Vec<Vec<String>> {
    let mut head = row([
        "PriorityLevelName",
        "FlowSchemaName",
        "QueueIndex",
        "RequestIndexInQueue",
        "FlowDistingsher",
        "ArriveTime",
        "InitialSeats",
    ]);
    if details {
        let more = ["UserName", "Verb", "APIPath", "Namespace", "Name", "APIVersion", "Resource", "SubResource"];
        head.extend(row(more));
    }
    let mut rows = vec![head];
    for (name, level) in levels {
        for (index, queue) in level.state.lock().queues.iter().enumerate() {
            let waiting = queue.iter().filter(|waiter| !waiter.door.is_closed()).enumerate();
            for (place, waiter) in waiting {
                let Waiting { schema, flow, arrived, user, asked } = &*waiter.what;
                let mut cells = vec![(*name).clone(), schema.clone(), index.to_string(), place.to_string()];
                cells.extend([flow.clone(), arrived.to_string(), waiter.width.to_string()]);
                if details {
                    let version = match asked.group.as_str() {
                        "" => asked.version.clone(),
                        group => format!("{group}/{}", asked.version),
                    };
                    cells.extend([user.clone(), asked.verb.clone(), asked.path.clone(), asked.namespace.clone()]);
                    cells.extend([asked.name.clone(), version, asked.resource.clone(), asked.subresource.clone()]);
                }
                rows.push(cells);
            }
        }
    }
    rows
}

/// Columns under each other, with commas between them.
fn aligned(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        for (index, cell) in row.iter().enumerate() {
            let last = index + 1 == row.len();
            let text = if last { cell.clone() } else { format!("{cell},") };
            let width = if last { 0 } else { widths[index] + 2 };
            out += &format!("{text:width$}");
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_under_each_other() {
        let rows = [row(["A", "Bee", "C"]), row(["long", "x", "y"])];
        assert_eq!(aligned(&rows), "A,    Bee, C\nlong, x,   y\n");
    }
}

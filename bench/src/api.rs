//! `bench api`: objects of 1 KiB created, read, changed and deleted over TLS, and lists of 5,000.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use serde_json::json;

use crate::Options;
use crate::load::{Load, Request, Target, drive, milliseconds};
use crate::process::{Server, Usage};
use crate::report::Report;

/// How long the server rests before it is looked at for the last time.
const REST: Duration = Duration::from_secs(12);
/// Objects of the load over many connections.
const OBJECTS: usize = 20_000;
/// Connections that work at once.
const CONNECTIONS: usize = 64;
/// Gets of the same objects again and again: long enough that opening connections does not count.
const GETS: usize = 400_000;
/// Objects that these read.
const READ: usize = 1_000;
/// Objects of the load over one connection.
const OBJECTS_ALONE: usize = 2_000;
/// Objects in a list.
const LISTED: usize = 5_000;
/// Lists that are read.
const LISTS: usize = 50;
/// Size of an object's data in bytes.
const DATA_BYTES: usize = 1024;

const PATH: &str = "/api/v1/namespaces/default/configmaps";

/// Measures one server.
pub async fn run(options: Options) -> Result<Report> {
    let server = Server::start(&options.keelson, &[]).await?;
    let target = server.target()?;
    let mut report = Report::default();
    if options.wants("many") {
        crud(&mut report, &server, &target, CONNECTIONS, options.amount(OBJECTS)).await?;
    }
    if options.wants("alone") {
        crud(&mut report, &server, &target, 1, options.amount(OBJECTS_ALONE)).await?;
    }
    if options.wants("gets") {
        gets(&mut report, &server, &target, options.amount(GETS)).await?;
    }
    if options.wants("lists") {
        lists(&mut report, &server, &target, options.amount(LISTED), options.amount(LISTS)).await?;
    }
    let resident = || anyhow::Ok(format!("{} MiB", server.usage()?.rss_kib / 1024));
    let right_after = resident()?;
    // What only work keeps resident is given back when there is none.
    tokio::time::sleep(REST).await;
    report.add("server after all of it", vec![("RSS", right_after), ("RSS 12 s later", resident()?)]);
    Ok(report)
}

/// A ConfigMap of [`DATA_BYTES`].
pub fn config_map(name: &str, letter: &str) -> Bytes {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"payload": letter.repeat(DATA_BYTES)}});
    object.to_string().into()
}

async fn crud(report: &mut Report, server: &Server, target: &Target, connections: usize, count: usize) -> Result<()> {
    let one = |i: usize| format!("{PATH}/load-{i}");
    let create = |i: usize| Request { method: "POST", path: PATH.into(), body: config_map(&format!("load-{i}"), "a") };
    let get = move |i: usize| Request { method: "GET", path: one(i), body: Bytes::new() };
    let put = move |i: usize| Request { method: "PUT", path: one(i), body: config_map(&format!("load-{i}"), "b") };
    let delete = move |i: usize| Request { method: "DELETE", path: one(i), body: Bytes::new() };
    let before = server.usage()?;
    let load = drive(target, connections, count, create).await?;
    add(report, &format!("create, {connections} connections"), &load, before, server.usage()?);
    let before = server.usage()?;
    let load = drive(target, connections, count, get).await?;
    add(report, &format!("get, {connections} connections"), &load, before, server.usage()?);
    let before = server.usage()?;
    let load = drive(target, connections, count, put).await?;
    add(report, &format!("update, {connections} connections"), &load, before, server.usage()?);
    let before = server.usage()?;
    let load = drive(target, connections, count, delete).await?;
    add(report, &format!("delete, {connections} connections"), &load, before, server.usage()?);
    Ok(())
}

async fn gets(report: &mut Report, server: &Server, target: &Target, count: usize) -> Result<()> {
    let create = |i: usize| Request { method: "POST", path: PATH.into(), body: config_map(&format!("read-{i}"), "a") };
    drive(target, CONNECTIONS, READ, create).await?;
    let before = server.usage()?;
    let get = |i: usize| Request { method: "GET", path: format!("{PATH}/read-{}", i % READ), body: Bytes::new() };
    let load = drive(target, CONNECTIONS, count, get).await?;
    add(
        report,
        &format!("get of {READ} objects again and again, {CONNECTIONS} connections"),
        &load,
        before,
        server.usage()?,
    );
    Ok(())
}

async fn lists(report: &mut Report, server: &Server, target: &Target, objects: usize, lists: usize) -> Result<()> {
    let create = |i: usize| Request { method: "POST", path: PATH.into(), body: config_map(&format!("list-{i}"), "a") };
    drive(target, CONNECTIONS, objects, create).await?;
    for (name, query) in [("", ""), (" from the cache (resourceVersion=0)", "?resourceVersion=0")] {
        let before = server.usage()?;
        let get = move |_| Request { method: "GET", path: format!("{PATH}{query}"), body: Bytes::new() };
        let load = drive(target, 1, lists, get).await?;
        add(report, &format!("list of {objects}{name}, 1 connection"), &load, before, server.usage()?);
    }
    Ok(())
}

fn add(report: &mut Report, what: &str, load: &Load, before: Usage, after: Usage) {
    let cpu = (after.cpu - before.cpu).as_secs_f64() * 1000.0 / load.latencies.len().max(1) as f64;
    report.add(
        what,
        vec![
            ("rate", format!("{:.0}/s", load.rate())),
            ("p50", milliseconds(load.percentile(50.0))),
            ("p99", milliseconds(load.percentile(99.0))),
            ("server CPU each", format!("{cpu:.3} ms")),
            ("received", format!("{:.1} MiB", load.received as f64 / 1_048_576.0)),
        ],
    );
}

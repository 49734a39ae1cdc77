//! `keelson member`, and what the server answers it: the servers of the cluster.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::FutureExt;
use http_body_util::BodyExt;
use keelson_apiserver::Extension;
use keelson_client::Transport;
use keelson_machinery::status::Status;
use keelson_raft::{Change, Cluster, ClusterError, Replica};
use serde::{Deserialize, Serialize};

use crate::args::{MemberArgs, MemberCommand};

const PATH: &str = "/keelson/v1/members";

/// A member as people see it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: String,
    name: String,
    role: String,
    peer_urls: Vec<String>,
    client_urls: Vec<String>,
    /// Why it does not answer; the figures are then absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    standing: Option<Figures>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    term: u64,
    applied_index: u64,
    revision: i64,
    db_size_bytes: u64,
    version: String,
}

/// What can be asked.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Request {
    Remove(String),
    Promote(String),
    TransferLeader(String),
}

/// Answers `keelson member`.
pub fn extension(replica: Replica) -> (&'static str, Extension) {
    let answer = move |method: http::Method, body: Bytes| {
        let replica = replica.clone();
        async move {
            let answer = match method {
                http::Method::GET => serde_json::to_vec(&list(&replica).await.map_err(refused)?),
                http::Method::POST => {
                    let request = serde_json::from_slice(&body)
                        .map_err(|error| Status::bad_request(format!("not a change of members: {error}")))?;
                    change(&replica, request).await.map_err(refused)?;
                    Ok(b"{}".to_vec())
                }
                _ => return Err(Status::method_not_allowed()),
            };
            let bytes = answer.map_err(|error| Status::internal(&error.to_string()))?;
            Ok(keelson_apiserver::body::json(200, bytes))
        }
        .boxed()
    };
    (PATH, Arc::new(answer))
}

fn refused(error: ClusterError) -> Status {
    match error {
        ClusterError::Kv(error) => Status::unavailable(error.to_string()),
        other => Status::bad_request(other.to_string()),
    }
}

async fn list(replica: &Replica) -> Result<Vec<Row>, ClusterError> {
    let leader = replica.standing().leader;
    let members = replica.members(false).await?;
    let rows = members.into_iter().map(|member| async move {
        let status = replica.status_of(member.id).await;
        let role = match member.is_learner {
            _ if member.id == leader => "leader",
            true => "learner",
            false => "follower",
        };
        let (error, standing) = match status {
            Ok(status) => {
                let figures = Figures {
                    term: status.term,
                    applied_index: status.applied_index,
                    revision: status.revision,
                    db_size_bytes: status.db_size,
                    version: status.version,
                };
                (None, Some(figures))
            }
            Err(error) => (Some(error.to_string()), None),
        };
        Row {
            id: format!("{:x}", member.id),
            name: member.name,
            role: role.into(),
            peer_urls: member.peer_urls,
            client_urls: member.client_urls,
            error,
            standing,
        }
    });
    Ok(futures::future::join_all(rows).await)
}

async fn change(replica: &Replica, request: Request) -> Result<(), ClusterError> {
    let nodes = replica.nodes();
    let find = |text: &str| {
        let matches = |(id, node, _): &&(u64, keelson_raft::Node, bool)| node.name == text || format!("{id:x}") == text;
        nodes.iter().find(matches).map(|(id, ..)| *id).ok_or(ClusterError::MemberNotFound)
    };
    let change = match request {
        Request::Remove(member) => Change::Remove(find(&member)?),
        Request::Promote(member) => Change::Promote(find(&member)?),
        Request::TransferLeader(member) => Change::Transfer(find(&member)?),
    };
    replica.change(change).await
}

/// Runs the command.
pub async fn run(args: MemberArgs) -> Result<()> {
    let path = args.access.kubeconfig;
    let transport = keelson_client::https::transport_of(&path)
        .with_context(|| format!("cannot use {}: name another with --kubeconfig", path.display()))?;
    let transport = &transport;
    let send = &|request: http::Request<Bytes>| async move {
        let response = transport.call(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            bail!("{}", said["message"].as_str().unwrap_or("the server refused without saying why"));
        }
        Ok(body)
    };
    let post = |request: Request| {
        let bytes = serde_json::to_vec(&request);
        async move {
            let request =
                http::Request::post(PATH).header(http::header::CONTENT_TYPE, "application/json").body(bytes?.into())?;
            send(request).await
        }
    };
    match args.command {
        MemberCommand::List { output } => {
            let body = send(http::Request::get(PATH).body(Bytes::new())?).await?;
            let rows: Vec<Row> = serde_json::from_slice(&body).context("the server is no keelson server")?;
            match output {
                Some(_) => println!("{}", serde_json::to_string_pretty(&rows)?),
                None => print(&rows),
            }
        }
        MemberCommand::Remove { member } => {
            post(Request::Remove(member.clone())).await?;
            println!("member {member} removed; what it stored stays on its disk until you remove it");
        }
        MemberCommand::Promote { member } => {
            post(Request::Promote(member.clone())).await?;
            println!("member {member} promoted");
        }
        MemberCommand::TransferLeader { member } => {
            post(Request::TransferLeader(member.clone())).await?;
            println!("leadership goes to {member}");
        }
    }
    Ok(())
}

fn print(rows: &[Row]) {
    println!("{:<18}{:<20}{:<10}{:<26}{:<12}{:<12}STATUS", "ID", "NAME", "ROLE", "PEER", "APPLIED", "REVISION");
    for row in rows {
        let peer = row.peer_urls.first().map_or("", |url| url.trim_start_matches("https://"));
        let figure = |of: fn(&Figures) -> String| row.standing.as_ref().map_or_else(|| "-".to_owned(), of);
        println!(
            "{:<18}{:<20}{:<10}{:<26}{:<12}{:<12}{}",
            row.id,
            row.name,
            row.role,
            peer,
            figure(|figures| figures.applied_index.to_string()),
            figure(|figures| figures.revision.to_string()),
            row.error.as_deref().unwrap_or("ok"),
        );
    }
}

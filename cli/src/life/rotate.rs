//! `keelson certs`: lists certificates and replaces them on all servers, CAs included.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::{Args, Subcommand};
use futures::FutureExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use keelson_apiserver::Extension;
use keelson_client::{Client, ListParams};
use keelson_machinery::status::Status;
use keelson_pki::ClusterPki;
use keelson_status::words;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tracing::info;

use super::care::{Care, Question};
use super::certs::Order;
use super::status;
use crate::args::Access;

/// Where it is asked for.
const PATH: &str = "/keelson/v1/certificates";
/// The object in each namespace that has the CAs for pods.
const ROOTS: &str = "kube-root-ca.crt";

/// `keelson certs ...`
#[derive(Args, Clone, Debug)]
pub struct CertsArgs {
    /// How the cluster is reached.
    #[command(flatten)]
    pub access: Access,
    /// What to do.
    #[command(subcommand)]
    pub command: CertsCommand,
}

/// What can be done with certificates.
#[derive(Subcommand, Clone, Debug)]
pub enum CertsCommand {
    /// List the servers' certificates and CAs
    List {
        /// json, for machines
        #[arg(short, long, value_parser = ["text", "json"], default_value = "text")]
        output: String,
    },
    /// Replace certificates on all servers now; connections go on
    Rotate {
        /// The CAs too: new ones sign from now on, the present ones stay trusted until `keelson certs retire`
        #[arg(long)]
        ca: bool,
    },
    /// Trust only the newest CAs: certificates of the former ones are refused from then on
    Retire,
}

/// What can be asked of a server.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Request {
    Renew,
    RotateCa,
    RetireCa,
}

/// Answers `keelson certs`.
pub fn extension(care: Arc<Care>) -> (&'static str, Extension) {
    let answer = move |method: http::Method, body: Bytes| {
        let care = care.clone();
        async move {
            if method != http::Method::POST {
                return Err(Status::method_not_allowed());
            }
            let request = serde_json::from_slice(&body)
                .map_err(|error| Status::bad_request(format!("not a change of certificates: {error}")))?;
            carry_out(&care, request).await.map_err(|error| Status::bad_request(format!("{error:#}")))?;
            Ok(keelson_apiserver::body::json(200, &b"{}"[..]))
        }
        .boxed()
    };
    (PATH, Arc::new(answer))
}

async fn carry_out(care: &Care, request: Request) -> Result<()> {
    // Servers that are not there would not know the new CAs, and nobody theirs.
    everyone(care, || Ok(Question::Figures)).await.context("all servers must answer first")?;
    match request {
        Request::Renew => everyone(care, || Ok(Question::Certificates(Order::Renew))).await?,
        Request::RotateCa => {
            let next = care.keeper.pki().successor()?;
            everyone(care, || Ok(Question::Certificates(Order::Trust(raw(&next)?)))).await?;
            everyone(care, || Ok(Question::Certificates(Order::Sign(raw(&next)?)))).await?;
        }
        Request::RetireCa => {
            let own = ClusterPki::from_bundle(&care.keeper.pki().to_bundle()?)?;
            everyone(care, || Ok(Question::Certificates(Order::Retire(raw(&own)?)))).await?;
        }
    }
    if let Some(client) = care.client() {
        publish(&client, &care.keeper.pki().cluster.trusted()).await?;
    }
    info!("certificates were replaced on all servers");
    Ok(())
}

fn raw(pki: &ClusterPki) -> Result<Box<RawValue>> {
    Ok(RawValue::from_string(String::from_utf8(pki.to_bundle()?)?)?)
}

/// Asks all servers at once; the first that fails is named.
async fn everyone(care: &Care, question: impl Fn() -> Result<Question>) -> Result<()> {
    let mut asked = Vec::new();
    for (id, node, _) in care.replica.nodes() {
        let question = question()?;
        asked.push(async move {
            let answer = care.ask(id, &question).await;
            answer.map(drop).map_err(|why| anyhow::anyhow!("server {}: {why}", node.name))
        });
    }
    futures::future::try_join_all(asked).await.map(drop)
}

/// Tells pods, and machines that join, which CAs there are. The controllers do the same for what they make later.
async fn publish(client: &Client, roots: &str) -> Result<()> {
    for namespace in client.cluster::<Namespace>().list(&ListParams::default()).await?.items {
        let api = client.namespaced::<ConfigMap>(namespace.metadata.name.as_deref().unwrap_or_default());
        let Some(mut map) = api.get_opt(ROOTS).await? else { continue };
        map.data.get_or_insert_default().insert("ca.crt".into(), roots.to_owned());
        match api.replace(ROOTS, &map).await {
            // A controller was faster, or the namespace ends.
            Err(error) if !(error.is_conflict() || error.is_not_found()) => return Err(error.into()),
            _ => {}
        }
    }
    let api = client.namespaced::<ConfigMap>("kube-public");
    let Some(mut map) = api.get_opt("cluster-info").await? else { return Ok(()) };
    let data = map.data.get_or_insert_default();
    let text = data.get("kubeconfig").cloned().unwrap_or_default();
    let config: serde_json::Value = serde_saphyr::from_str(&text).context("cluster-info")?;
    let url = config["clusters"][0]["cluster"]["server"].as_str().unwrap_or_default().to_owned();
    let config = keelson_pki::kubeconfig("", &url, roots, "", keelson_pki::Credential::None);
    data.insert("kubeconfig".into(), config);
    match api.replace("cluster-info", &map).await {
        Err(error) if !error.is_conflict() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Runs the command.
pub async fn run(args: CertsArgs) -> Result<()> {
    let transport = status::transport(&args.access.kubeconfig)?;
    let request = match args.command {
        CertsCommand::List { output } => return list(&transport, &output).await,
        CertsCommand::Rotate { ca: false } => Request::Renew,
        CertsCommand::Rotate { ca: true } => Request::RotateCa,
        CertsCommand::Retire => Request::RetireCa,
    };
    let body = serde_json::to_vec(&request)?;
    let sent = http::Request::post(PATH).header(http::header::CONTENT_TYPE, "application/json").body(body.into())?;
    status::call(&transport, sent).await?;
    println!(
        "{}",
        match request {
            Request::Renew => "all servers use new certificates",
            Request::RotateCa => {
                "new CAs sign; the former ones stay trusted. Agents change by themselves within an hour; give people new \
             kubeconfigs, then: keelson certs retire"
            }
            Request::RetireCa => "only the newest CAs are trusted",
        }
    );
    Ok(())
}

/// What `list` prints of a server's certificate.
#[derive(Serialize)]
struct Row {
    server: String,
    #[serde(flatten)]
    certificate: keelson_status::Certificate,
}

async fn list(transport: &keelson_client::https::Https, output: &str) -> Result<()> {
    let body = status::call(transport, http::Request::get(status::REPORT_PATH).body(Bytes::new())?).await?;
    let report: keelson_status::Report = serde_json::from_slice(&body).context("the server is no keelson server")?;
    let rows: Vec<Row> = report
        .members
        .iter()
        .flat_map(|member| {
            let certificates = member.figures.certificates.iter().cloned();
            certificates.map(|certificate| Row { server: member.name.clone(), certificate })
        })
        .collect();
    if output == "json" {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!("{:<20}{:<10}{:<32}{:<10}RENEWS", "SERVER", "NAME", "SUBJECT", "ENDS IN");
    for Row { server, certificate } in rows {
        let left = words::span(certificate.not_after - report.time);
        let renews = if certificate.renews { "by itself" } else { "keelson certs rotate --ca" };
        println!("{server:<20}{:<10}{:<32}{left:<10}{renews}", certificate.name, certificate.subject);
    }
    Ok(())
}

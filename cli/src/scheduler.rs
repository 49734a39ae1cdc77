//! What `keelson server` needs for its scheduler, and the commands that ask it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use futures::FutureExt;
use keelson_apiserver::scheduling::{Advisor, Question, SUBRESOURCE, WHAT_IF};
use keelson_client::Client;
use keelson_machinery::status::Status;
use keelson_scheduler::Config;
use keelson_scheduler::explain::{Unanswered, explain, what_if};
use serde_json::{Value, json};

use crate::args::{ExplainArgs, WhatIfArgs};
use crate::outlook;

/// Reads a KubeSchedulerConfiguration and checks it, so that a mistake is told at the start. None: upstream's defaults.
pub fn config(file: Option<&Path>) -> Result<Option<Value>> {
    let Some(file) = file else { return Ok(None) };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file:?}"))?;
    let value: Value = serde_saphyr::from_str(&text).with_context(|| format!("{file:?} is not YAML"))?;
    Config::parse(value.clone(), &mut Default::default()).with_context(|| format!("{file:?}"))?;
    Ok(Some(value))
}

/// Answers the API server's questions about scheduling, from the cluster as it is when asked.
pub fn advisor(client: Client, config: Option<Value>) -> Advisor {
    let config = Arc::new(config);
    Arc::new(move |question| {
        let (client, config) = (client.clone(), config.clone());
        async move {
            let config = (*config).as_ref();
            let answer = match question {
                Question::Explain { namespace, name } => explain(&client, config, &namespace, &name).await,
                Question::WhatIf(bytes) => what_if(&client, config, &bytes).await,
            };
            answer.map_err(|error| match error {
                Unanswered::NotFound(what) => {
                    Status { code: 404, reason: "NotFound".into(), ..Status::bad_request(format!("{what} not found")) }
                }
                Unanswered::Invalid(why) => Status::bad_request(why),
                other => Status::internal(&other.to_string()),
            })
        }
        .boxed()
    })
}

fn client(kubeconfig: &Path) -> Result<Client> {
    keelson_client::https::from_kubeconfig(kubeconfig, "keelson")
        .with_context(|| format!("cannot use {}: name another with --kubeconfig", kubeconfig.display()))
}

/// `keelson explain-scheduling`
pub async fn explain_scheduling(args: ExplainArgs) -> Result<()> {
    let name = args.pod.strip_prefix("pod/").unwrap_or(&args.pod);
    let path = format!("/api/v1/namespaces/{}/pods/{name}/{SUBRESOURCE}", args.namespace);
    let answer: Value = client(&args.access.kubeconfig)?.read(&path, "application/json").await?;
    match args.output.as_deref() {
        Some("json") => println!("{answer:#}"),
        None => print!("{}", keelson_kubectl::explained(&answer)),
        Some(other) => bail!("-o {other}: only json is known"),
    }
    Ok(())
}

/// `keelson what-if`
pub async fn ask_what_if(args: WhatIfArgs) -> Result<()> {
    let mut question = json!({"drain": args.drain, "lose": args.lose, "replicas": args.replicas});
    if let Some(file) = &args.filename {
        let content = match file.as_os_str() == "-" {
            true => std::io::read_to_string(std::io::stdin()),
            false => std::fs::read_to_string(file),
        };
        let content = content.with_context(|| format!("cannot read {file:?}"))?;
        let pods: Vec<Value> =
            serde_saphyr::from_multiple(&content).with_context(|| format!("{file:?} is not YAML"))?;
        question["pods"] = pods.into();
    }
    match (args.add_nodes, args.like) {
        (0, None) => {}
        (count, Some(like)) if count > 0 => question["addNodes"] = json!({"count": count, "like": like}),
        _ => bail!("--add-nodes COUNT and --like NODE go together"),
    }
    let body = question.to_string().into();
    let client = client(&args.access.kubeconfig)?;
    let answer: Value = client.request(http::Method::POST, WHAT_IF, Some("application/json"), body).await?;
    match args.output.as_deref() {
        Some("json") => println!("{answer:#}"),
        None => print!("{}", outlook::table(&answer)),
        Some(other) => bail!("-o {other}: only json is known"),
    }
    Ok(())
}

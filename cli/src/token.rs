//! `keelson token`: bootstrap tokens, kept as Secrets of the form that kubeadm uses.

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use keelson_apiserver::bootstrap::SERVER_JOIN_GROUP;
use keelson_client::{Client, ListParams};
use keelson_pki::token;
use serde_json::json;

use crate::args::{Access, TokenArgs, TokenCommand};

const TYPE: &str = "bootstrap.kubernetes.io/token";
/// The group as which nodes join; upstream's default roles know it.
const NODE_JOIN_GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";

/// Runs the command.
pub async fn run(args: TokenArgs) -> Result<()> {
    let access = match &args.command {
        TokenCommand::Create { access, .. } | TokenCommand::List { access } | TokenCommand::Delete { access, .. } => {
            access
        }
    };
    let client = keelson_client::https::from_kubeconfig(&access.kubeconfig, "keelson")
        .with_context(|| format!("cannot use {}: name another with --kubeconfig", access.kubeconfig.display()))?;
    match args.command {
        TokenCommand::Create { access, ttl, print_join_command } => {
            let token = create(&client, ttl).await?;
            match print_join_command {
                true => println!("{}", join_command(&access, &token)?),
                false => println!("{token}"),
            }
            Ok(())
        }
        TokenCommand::List { .. } => list(&client).await,
        TokenCommand::Delete { token, .. } => delete(&client, &token).await,
    }
}

/// What makes a machine a node; `keelson server --join URL` takes the same token and hash.
fn join_command(access: &Access, token: &str) -> Result<String> {
    let cluster = keelson_client::https::access(&access.kubeconfig)?;
    let hash = keelson_pki::public_key_hash(&cluster.ca)?;
    Ok(format!("keelson agent --server {} --token {token} --ca-hash {hash}", cluster.server))
}

async fn create(client: &Client, ttl: std::time::Duration) -> Result<String> {
    let made = token::generate();
    let (id, secret) = token::parse(&made).context("a generated token is not of its form")?;
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::try_from(ttl)?;
    let object: Secret = serde_json::from_value(json!({
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "type": TYPE,
        "data": {
            "token-id": STANDARD.encode(id),
            "token-secret": STANDARD.encode(secret),
            "expiration": STANDARD.encode(expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            "usage-bootstrap-authentication": STANDARD.encode("true"),
            "usage-bootstrap-signing": STANDARD.encode("true"),
            "auth-extra-groups": STANDARD.encode(groups),
        },
    }))?;
    client.namespaced::<Secret>("kube-system").create(&object).await?;
    Ok(made)
}

async fn list(client: &Client) -> Result<()> {
    let params = ListParams { field_selector: Some(format!("type={TYPE}")), ..ListParams::default() };
    println!("{:<8}{:<22}DESCRIPTION", "ID", "EXPIRES");
    for secret in client.namespaced::<Secret>("kube-system").list(&params).await?.items {
        let data = secret.data.unwrap_or_default();
        let text = |key: &str| data.get(key).map(|v| String::from_utf8_lossy(&v.0).into_owned()).unwrap_or_default();
        println!("{:<8}{:<22}{}", text("token-id"), text("expiration"), text("description"));
    }
    Ok(())
}

async fn delete(client: &Client, given: &str) -> Result<()> {
    let id = given.split('.').next().unwrap_or_default();
    if id.len() != token::ID_LENGTH {
        bail!("{id:?} is not a token id: it has {} characters", token::ID_LENGTH);
    }
    client
        .namespaced::<Secret>("kube-system")
        .delete(&format!("bootstrap-token-{id}"), &serde_json::Value::Null)
        .await?;
    println!("token {id} deleted");
    Ok(())
}

//! `keelson token`: bootstrap tokens, kept as Secrets of the form that kubeadm uses.

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use keelson_client::{Client, ListParams};
use keelson_pki::token;
use serde_json::json;

use crate::args::{Access, TokenArgs, TokenCommand};
use crate::join;

const TYPE: &str = "bootstrap.kubernetes.io/token";
/// The group as which servers join.
const SERVER_JOIN_GROUP: &str = "system:bootstrappers:keelson:server";
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
        TokenCommand::Create { access, ttl, server, print_join_command } => {
            let role = if server { Joins::Server } else { Joins::Node };
            let token = create(&client, ttl, role).await?;
            match print_join_command {
                true => println!("{}", join_command(&access, &token, role)?),
                false => println!("{token}"),
            }
            Ok(())
        }
        TokenCommand::List { .. } => list(&client).await,
        TokenCommand::Delete { token, .. } => delete(&client, &token).await,
    }
}

/// What joins with a token.
#[derive(Clone, Copy)]
enum Joins {
    Node,
    Server,
}

impl Joins {
    fn group(self) -> &'static str {
        match self {
            Self::Node => NODE_JOIN_GROUP,
            Self::Server => SERVER_JOIN_GROUP,
        }
    }
}

/// What to type on the machine that joins.
fn join_command(access: &Access, token: &str, role: Joins) -> Result<String> {
    let cluster = keelson_client::https::access(&access.kubeconfig)?;
    let hash = keelson_pki::public_key_hash(&cluster.ca)?;
    let command = match role {
        Joins::Node => "agent --server",
        Joins::Server => "server --join",
    };
    Ok(format!("keelson {command} {} --token {token} --ca-hash {hash}", cluster.server))
}

async fn create(client: &Client, ttl: std::time::Duration, role: Joins) -> Result<String> {
    if matches!(role, Joins::Server) {
        allow_servers(client).await?;
    }
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
            "auth-extra-groups": STANDARD.encode(role.group()),
        },
    }))?;
    client.namespaced::<Secret>("kube-system").create(&object).await?;
    Ok(made)
}

/// The role by which a server token gives access to the cluster's keys. Made with the first such token, so that a
/// cluster that never grows has no way in through it.
async fn allow_servers(client: &Client) -> Result<()> {
    const NAME: &str = "keelson:server-join";
    let role: ClusterRole = serde_json::from_value(json!({
        "metadata": {"name": NAME},
        "rules": [{"nonResourceURLs": [join::PATH], "verbs": ["post"]}],
    }))?;
    let group = "rbac.authorization.k8s.io";
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": NAME},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": NAME},
        "subjects": [{"apiGroup": group, "kind": "Group", "name": SERVER_JOIN_GROUP}],
    }))?;
    for made in [
        client.cluster::<ClusterRole>().create(&role).await.map(drop),
        client.cluster::<ClusterRoleBinding>().create(&binding).await.map(drop),
    ] {
        match made {
            Err(error) if !error.is_already_exists() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
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

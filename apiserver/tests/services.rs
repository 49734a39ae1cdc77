//! Services that the API server asks: an issuer of tokens, one that knows tokens, one that authorizes. All are one small TLS
//! server of the test's own.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use keelson_apiserver::access::UserInfo;
use keelson_apiserver::{ApiServer, Config, Settings, authn, authz, bootstrap};
use keelson_pki::service_account::{Claims, SigningKey};
use keelson_pki::{Authority, CertificateSlot, ClusterPki, Credential};
use keelson_store::{Kv, LocalKv};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the service answers.
fn answer(url: &str, keys: &Value, path: &str, asked: &Value) -> Value {
    match path {
        "/.well-known/openid-configuration" => json!({"issuer": url, "jwks_uri": format!("{url}/keys")}),
        "/keys" => keys.clone(),
        "/authenticate" => {
            let known = asked["spec"]["token"] == "known-elsewhere";
            json!({"status": {"authenticated": known, "user": {"username": "walter", "groups": ["hooked"]}}})
        }
        "/authorize" => {
            let resource = &asked["spec"]["resourceAttributes"]["resource"];
            let user = &asked["spec"]["user"];
            json!({"status": {"allowed": user == "walter" && resource == "configmaps", "denied": user == "mallory",
                "reason": "so says the service"}})
        }
        _ => Value::Null,
    }
}

async fn serve(listener: TcpListener, tls: Arc<rustls::ServerConfig>, url: String, keys: Value) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, url, keys) = (acceptor.clone(), url.clone(), keys.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request: Request<Incoming>| {
                let (url, keys) = (url.clone(), keys.clone());
                async move {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let asked = serde_json::from_slice(&body).unwrap_or_default();
                    let told = answer(&url, &keys, &path, &asked).to_string();
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(told))))
                }
            });
            let http = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

struct Service {
    url: String,
    issuer: SigningKey,
    ca: Authority,
}

impl Service {
    async fn start(pki: &ClusterPki) -> Self {
        let (ca, issuer) = (Authority::create("services").unwrap(), SigningKey::create().unwrap());
        let issued = ca.issue_server("services", &["localhost".into()]).unwrap();
        let slot = CertificateSlot::new(&issued).unwrap();
        let tls = keelson_pki::server_config(slot, &pki.cluster.certificate()).unwrap();
        let listener = TcpListener::bind("localhost:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        tokio::spawn(serve(listener, tls, url.clone(), issuer.jwks()));
        Self { url, issuer, ca }
    }

    fn kubeconfig(&self, dir: &Path, path: &str) -> PathBuf {
        let file = dir.join(path.trim_start_matches('/'));
        let url = format!("{}{path}", self.url);
        let text = keelson_pki::kubeconfig("services", &url, &self.ca.certificate(), "me", Credential::None);
        std::fs::write(&file, text).unwrap();
        file
    }

    fn token(&self, audience: &str, lifetime: i64) -> String {
        let now = jiff::Timestamp::now().as_second();
        let claims = Claims {
            aud: vec![audience.into()],
            iss: self.url.clone(),
            sub: "jane".into(),
            exp: now + lifetime,
            iat: now - 7200,
            nbf: now - 7200,
            ..Claims::default()
        };
        self.issuer.sign(&claims).unwrap()
    }
}

async fn server(dir: &Path, settings: Settings) -> (Arc<ApiServer>, CancellationToken) {
    let kv: Arc<dyn Kv> = Arc::new(LocalKv::open(&dir.join("store")).unwrap());
    bootstrap::ensure(kv.as_ref(), bootstrap::objects()).await.unwrap();
    let stop = CancellationToken::new();
    let config = Config {
        kv,
        pki: Arc::new(ClusterPki::create().unwrap()),
        service_cidr: "10.96.0.0/16".into(),
        extensions: Vec::new(),
        settings,
        stop: stop.clone(),
    };
    (ApiServer::new(config).unwrap(), stop)
}

fn user(name: &str, groups: &[&str]) -> UserInfo {
    UserInfo { name: name.into(), groups: groups.iter().map(|g| (*g).to_owned()).collect(), ..UserInfo::default() }
}

async fn call(server: &ApiServer, who: UserInfo, method: &str, path: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let response = server.call(who, request.body(body).unwrap()).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

async fn review(server: &ApiServer, token: &str) -> Value {
    let review = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": {"token": token}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    call(server, user("admin", &["system:masters"]), "POST", path, review).await.1["status"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_others_are_checked_with_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(&ClusterPki::create().unwrap()).await;
    let ca_file = dir.path().join("ca.crt");
    std::fs::write(&ca_file, service.ca.certificate().as_bytes()).unwrap();
    let authentication = authn::Settings {
        oidc: authn::OidcSettings {
            issuer_url: service.url.clone(),
            client_id: "me".into(),
            username_prefix: "oidc:".into(),
            ca_file: Some(ca_file),
            ..Default::default()
        },
        webhook: Some(authn::WebhookSettings {
            kubeconfig: service.kubeconfig(dir.path(), "/authenticate"),
            version: "v1".into(),
            ttl: Duration::ZERO,
        }),
        ..Default::default()
    };
    let (server, stop) = server(dir.path(), Settings { authentication, ..Settings::default() }).await;
    let good = review(&server, &service.token("me", 600)).await;
    assert_eq!(good["user"]["username"], "oidc:jane", "{good}");
    for (what, token) in [
        ("expired", service.token("me", -3600)),
        ("another audience", service.token("you", 600)),
        ("another key", Service { issuer: SigningKey::create().unwrap(), ..service_copy(&service) }.token("me", 600)),
    ] {
        assert_ne!(review(&server, &token).await["authenticated"], true, "{what}");
    }
    let known = review(&server, "known-elsewhere").await;
    assert_eq!(known["user"]["username"], "walter", "{known}");
    assert_ne!(review(&server, "known-nowhere").await["authenticated"], true);
    stop.cancel();
}

fn service_copy(of: &Service) -> Service {
    Service {
        url: of.url.clone(),
        issuer: SigningKey::load(of.issuer.pem()).unwrap(),
        ca: Authority::load(&of.ca.certificate(), &of.ca.key()).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_authorizes_where_others_have_no_say() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(&ClusterPki::create().unwrap()).await;
    let kubeconfig = service.kubeconfig(dir.path(), "/authorize");
    let config = dir.path().join("authz.yaml");
    let text = format!(
        r#"
apiVersion: apiserver.config.k8s.io/v1
kind: AuthorizationConfiguration
authorizers:
- {{type: RBAC, name: rbac}}
- type: Webhook
  name: service
  webhook:
    timeout: 10s
    subjectAccessReviewVersion: v1
    matchConditionSubjectAccessReviewVersion: v1
    failurePolicy: Deny
    connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {}}}
    matchConditions:
    - expression: has(request.resourceAttributes)
    - expression: request.user != 'nobody'
"#,
        kubeconfig.display()
    );
    std::fs::write(&config, text).unwrap();
    let authorization = authz::Settings { config: Some(config), ..Default::default() };
    let (server, stop) = server(dir.path(), Settings { authorization, ..Settings::default() }).await;
    let list = |name: &'static str, plural: &str| {
        let (server, path) = (server.clone(), format!("/api/v1/namespaces/default/{plural}"));
        async move { call(&server, user(name, &["system:authenticated"]), "GET", &path, Value::Null).await }
    };
    assert_eq!(list("walter", "configmaps").await.0, 200);
    let (code, refused) = list("walter", "secrets").await;
    assert_eq!(
        (code, refused["message"].as_str().unwrap().ends_with(": so says the service")),
        (403, true),
        "{refused}"
    );
    assert_eq!(list("mallory", "configmaps").await.0, 403);
    assert!(!list("nobody", "configmaps").await.1["message"].as_str().unwrap().contains("service"), "it was not asked");
    stop.cancel();
}

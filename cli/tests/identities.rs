//! Proves in every way who asks, to one real server with the real kubectl: static tokens, tokens of an issuer, a service that
//! knows tokens, a proxy's headers, bootstrap tokens, tokens of service accounts; then asks what the file and the service
//! that authorize allow.

#[path = "../../apiserver/tests/support/hook.rs"]
#[allow(dead_code)]
mod hook;
mod support;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hook::{Answer, Asked, Hook, told};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use keelson_pki::service_account::SigningKey;
use keelson_pki::{Authority, Identity, Issued};
use serde_json::{Value, json};
use support::{Server, free_port, kubectl_is_there};

const WHO: [&str; 4] = ["auth", "whoami", "-o", "json"];

/// Issuer, knower of tokens and authorizer: one server at several paths.
struct Service {
    hook: Hook,
    issuer: SigningKey,
    url: String,
}

impl Service {
    async fn start() -> Self {
        let issuer = SigningKey::create().unwrap();
        let (keys, url) = (issuer.jwks(), Arc::<OnceLock<String>>::default());
        let known = url.clone();
        let answers = move |_: &mut Request<Incoming>, asked: &Asked, _: &str| -> Answer {
            let url = known.get().map(String::as_str).unwrap_or_default();
            told(&answer(url, &keys, asked))
        };
        let hook = Hook::start(&["127.0.0.1"], "", answers).await;
        let own = format!("https://127.0.0.1:{}", hook.port);
        url.set(own.clone()).unwrap();
        Self { hook, issuer, url: own }
    }

    /// A token of the issuer; what `change` names is otherwise.
    fn token(&self, change: Value) -> String {
        let now = jiff::Timestamp::now().as_second();
        let mut claims = json!({"iss": self.url, "aud": "keelson", "sub": "jane", "org": "acme", "roles": ["dev", "ops"],
            "id": "u-1", "iat": now - 60, "nbf": now - 60, "exp": now + 600});
        for (key, value) in change.as_object().into_iter().flatten() {
            claims[key] = value.clone();
        }
        self.issuer.sign_any(&claims).unwrap()
    }

    /// How often it was asked at a path.
    fn asked_at(&self, path: &str) -> usize {
        self.hook.asked().iter().filter(|asked| asked.path.starts_with(path)).count()
    }
}

fn answer(url: &str, keys: &Value, asked: &Asked) -> Value {
    let spec = &asked.body["spec"];
    let review = |group: &str, kind: &str, status: Value| json!({"apiVersion": format!("{group}/v1"), "kind": kind, "status": status});
    match asked.path.split('?').next().unwrap_or_default() {
        "/.well-known/openid-configuration" => {
            json!({"issuer": url, "jwks_uri": format!("{url}/keys"), "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["RS256"]})
        }
        "/keys" => keys.clone(),
        "/authenticate" => {
            let known = spec["token"] == "known-elsewhere";
            let user = json!({"username": "walter", "uid": "w", "groups": ["hooked"], "extra": {"floor": ["3"]}});
            let status =
                if known { json!({"authenticated": true, "user": user}) } else { json!({"authenticated": false}) };
            review("authentication.k8s.io", "TokenReview", status)
        }
        "/authorize" => {
            let attributes = &spec["resourceAttributes"];
            let allowed =
                spec["user"] == "walter" && attributes["resource"] == "configmaps" && attributes["verb"] != "delete";
            let denied = spec["user"] == "walter" && attributes["resource"] == "secrets";
            let status = json!({"allowed": allowed, "denied": denied, "reason": "so says the service"});
            review("authorization.k8s.io", "SubjectAccessReview", status)
        }
        _ => Value::Null,
    }
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

/// Who is believed of the issuer's tokens, and who may come without any.
fn authentication(service: &Service) -> String {
    let authority = service.hook.authority.certificate();
    let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
    "anonymous": {"enabled": true, "conditions": [{"path": "/readyz"}]},
    "jwt": [{
        "issuer": {"url": service.url, "audiences": ["keelson", "other"], "audienceMatchPolicy": "MatchAny", "certificateAuthority": &*authority},
        "claimValidationRules": [{"expression": "claims.org == 'acme'", "message": "another organization"}],
        "claimMappings": {
            "username": {"expression": "claims.sub + '@' + claims.org"},
            "groups": {"expression": "claims.roles.map(role, 'team:' + role)"},
            "uid": {"claim": "id"},
            "extra": [{"key": "example.com/org", "valueExpression": "claims.org"}],
        },
        "userValidationRules": [{"expression": "!user.username.startsWith('system:')", "message": "reserved"}],
    }]});
    config.to_string()
}

const POLICY: &str = r#"{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"ann","namespace":"default","resource":"configmaps","readonly":true}}
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"group":"system:authenticated","nonResourcePath":"/version","readonly":true}}
"#;

/// A server that knows all of these, and how it is asked.
struct World {
    server: Server,
    service: Service,
    proxies: Authority,
    nobody: String,
    address: std::net::SocketAddr,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl World {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let service = runtime.block_on(Service::start());
        let proxies = Authority::create("proxies").unwrap();
        let file = |name: &str, text: &str| write(dir.path(), name, text);
        let kubeconfig = |name: &str| {
            let path = dir.path().join(name);
            service.hook.kubeconfig(&path, &format!("/{name}"));
            path.to_string_lossy().into_owned()
        };
        let mut flags = vec!["--no-controllers".to_owned(), "--no-scheduler".into()];
        for (flag, value) in [
            ("--token-auth-file", file("tokens.csv", "token-of-ann,ann,1,\"readers,writers\"\n")),
            ("--authentication-config", file("authentication.json", &authentication(&service))),
            ("--authentication-token-webhook-config-file", kubeconfig("authenticate")),
            ("--authentication-token-webhook-version", "v1".into()),
            ("--requestheader-client-ca-file", file("proxies.crt", &proxies.certificate())),
            ("--requestheader-allowed-names", "front".into()),
            ("--authorization-mode", "Node,RBAC,ABAC,Webhook".into()),
            ("--authorization-policy-file", file("policy.jsonl", POLICY)),
            ("--authorization-webhook-config-file", kubeconfig("authorize")),
            ("--authorization-webhook-version", "v1".into()),
        ] {
            flags.extend([flag.to_owned(), value]);
        }
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let port = free_port();
        let server = Server::start(&dir.path().join("data"), port, &flags);
        // The admin's kubeconfig without its certificate, so that others can say who they are.
        let mut config: Value = serde_json::from_slice(&std::fs::read(server.kubeconfig()).unwrap()).unwrap();
        config["users"][0]["user"] = json!({});
        let nobody = file("nobody.kubeconfig", &config.to_string());
        let address = ([127, 0, 0, 1], port).into();
        Self { server, service, proxies, nobody, address, runtime, _dir: dir }
    }

    /// Runs kubectl with a token: what it printed, or how it failed.
    fn with_token(&self, token: &str, args: &[&str]) -> Result<String, String> {
        let output = self.server.kubectl(&[&["--kubeconfig", &self.nobody, "--token", token], args].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Whom the server takes the bearer of a token for.
    fn who(&self, token: &str) -> Value {
        let said = self.with_token(token, &WHO).unwrap();
        serde_json::from_str::<Value>(&said).unwrap()["status"]["userInfo"].clone()
    }

    fn is_nobody(&self, token: &str) -> bool {
        self.with_token(token, &WHO).is_err_and(|why| why.contains("You must be logged in to the server"))
    }

    /// A request over TLS with this certificate and these headers.
    fn ask(&self, certificate: Option<&Issued>, path: &str, headers: &[(&str, &str)], body: Value) -> (u16, Value) {
        self.runtime.block_on(async {
            let authority = std::fs::read_to_string(self._dir.path().join("nobody.kubeconfig")).unwrap();
            let config: Value = serde_json::from_str(&authority).unwrap();
            let authority = config["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap();
            use base64::Engine;
            let authority = base64::engine::general_purpose::STANDARD.decode(authority).unwrap();
            let identity = certificate.map_or(Identity::None, Identity::Certificate);
            let mut tls = keelson_pki::client_config(std::str::from_utf8(&authority).unwrap(), identity).unwrap();
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            let tcp = tokio::net::TcpStream::connect(self.address).await.unwrap();
            let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
            let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap();
            let io = hyper_util::rt::TokioIo::new(stream);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            let method = if body.is_null() { "GET" } else { "POST" };
            let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
            request = request.header("content-type", "application/json");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
            let response = sender.send_request(request.body(Full::new(bytes)).unwrap()).await.unwrap();
            let code = response.status().as_u16();
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            (code, serde_json::from_slice(&bytes).unwrap_or_default())
        })
    }
}

fn groups(user: &Value) -> Vec<&str> {
    user["groups"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn everybody_who_can_prove_it_is_somebody() {
    if !kubectl_is_there() {
        return;
    }
    let world = World::start();
    static_tokens(&world);
    issued_tokens(&world);
    known_tokens(&world);
    headers_of_a_proxy(&world);
    bootstrap_tokens(&world);
    account_tokens(&world);
    what_they_may(&world);
}

fn static_tokens(world: &World) {
    let ann = world.who("token-of-ann");
    assert_eq!((&ann["username"], &ann["uid"]), (&json!("ann"), &json!("1")));
    assert_eq!(groups(&ann), ["readers", "writers", "system:authenticated"]);
    assert!(world.is_nobody("token-of-nobody"));
    let (code, _) = world.ask(None, "/readyz", &[], Value::Null);
    assert_eq!(code, 200, "nobody in particular may ask here");
    let (code, answer) = world.ask(None, "/version", &[], Value::Null);
    assert_eq!((code, &answer["reason"]), (401, &json!("Unauthorized")), "and nowhere else");
}

fn issued_tokens(world: &World) {
    let jane = world.who(&world.service.token(json!({})));
    assert_eq!((&jane["username"], &jane["uid"]), (&json!("jane@acme"), &json!("u-1")));
    assert_eq!(groups(&jane), ["team:dev", "team:ops", "system:authenticated"]);
    assert_eq!(jane["extra"]["example.com/org"], json!(["acme"]));
    assert_eq!(world.who(&world.service.token(json!({"aud": ["x", "other"]})))["username"], "jane@acme");
    let now = jiff::Timestamp::now().as_second();
    let foreign = SigningKey::create().unwrap();
    let forged = foreign
        .sign_any(&json!({"iss": world.service.url, "aud": "keelson", "sub": "jane", "org": "acme", "exp": now + 600}));
    for (what, token) in [
        ("another audience", world.service.token(json!({"aud": "elsewhere"}))),
        ("another issuer", world.service.token(json!({"iss": "https://127.0.0.1:1"}))),
        ("expired", world.service.token(json!({"exp": now - 600}))),
        ("not valid yet", world.service.token(json!({"nbf": now + 600}))),
        ("another organization", world.service.token(json!({"org": "evil"}))),
        ("a name of the system's", world.service.token(json!({"sub": "system:admin"}))),
        ("without a claim that is mapped", world.service.token(json!({"roles": null}))),
        ("another key", forged.unwrap()),
    ] {
        assert!(world.is_nobody(&token), "{what}");
    }
}

fn known_tokens(world: &World) {
    let before = world.service.asked_at("/authenticate");
    let walter = world.who("known-elsewhere");
    assert_eq!(
        (&walter["username"], &walter["uid"], &walter["extra"]["floor"]),
        (&json!("walter"), &json!("w"), &json!(["3"]))
    );
    assert_eq!(groups(&walter), ["hooked", "system:authenticated"]);
    assert_eq!(world.who("known-elsewhere")["username"], "walter");
    assert_eq!(world.service.asked_at("/authenticate"), before + 1, "an answer is remembered");
    let asked = world.service.hook.asked();
    let asked = asked.iter().rfind(|asked| asked.path.starts_with("/authenticate")).unwrap();
    assert_eq!(
        (&asked.body["kind"], &asked.body["apiVersion"]),
        (&json!("TokenReview"), &json!("authentication.k8s.io/v1"))
    );
    assert!(world.is_nobody("known-nowhere"));
}

fn headers_of_a_proxy(world: &World) {
    let review = || json!({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let front = world.proxies.issue_client("front", &[]).unwrap();
    let other = world.proxies.issue_client("other", &[]).unwrap();
    let headers = [
        ("X-Remote-User", "eve"),
        ("X-Remote-Group", "a"),
        ("X-Remote-Group", "b"),
        ("X-Remote-Extra-Example.com%2fx", "y"),
    ];
    let (code, answer) = world.ask(Some(&front), path, &headers, review());
    let eve = &answer["status"]["userInfo"];
    assert_eq!((code, &eve["username"]), (201, &json!("eve")), "{answer}");
    assert_eq!(groups(eve), ["a", "b", "system:authenticated"]);
    assert_eq!(eve["extra"]["example.com/x"], json!(["y"]));
    assert_eq!(world.ask(Some(&other), path, &headers, review()).0, 401, "a name that is not allowed");
    assert_eq!(world.ask(Some(&front), path, &[], review()).0, 401, "a proxy that names nobody");
    assert_eq!(world.ask(None, path, &headers, review()).0, 401, "headers alone");
}

fn bootstrap_tokens(world: &World) {
    let secret = |id: &str, change: &str| {
        world.server.apply(&format!(
            "apiVersion: v1\nkind: Secret\ntype: bootstrap.kubernetes.io/token\nmetadata: {{name: bootstrap-token-{id}, namespace: kube-system}}\n\
             stringData: {{token-id: {id}, token-secret: 0123456789abcdef, usage-bootstrap-authentication: \"true\", {change}}}\n"
        ));
    };
    secret("aaaaaa", "auth-extra-groups: \"system:bootstrappers:worker\"");
    let token = "aaaaaa.0123456789abcdef";
    let who = world.who(token);
    assert_eq!(who["username"], "system:bootstrap:aaaaaa");
    assert_eq!(groups(&who), ["system:bootstrappers", "system:bootstrappers:worker", "system:authenticated"]);
    secret("bbbbbb", "expiration: \"2020-01-01T00:00:00Z\"");
    secret("cccccc", "usage-bootstrap-authentication: \"false\"");
    secret("dddddd", "auth-extra-groups: \"system:masters\"");
    for token in
        ["bbbbbb.0123456789abcdef", "cccccc.0123456789abcdef", "dddddd.0123456789abcdef", "aaaaaa.0123456789abcdeX"]
    {
        assert!(world.is_nobody(token), "{token}");
    }
    world.server.run(&["delete", "secret", "-n", "kube-system", "bootstrap-token-aaaaaa"]);
    assert!(world.is_nobody(token), "deleted");
}

fn account_tokens(world: &World) {
    let server = &world.server;
    server.run(&["create", "serviceaccount", "robot"]);
    server.apply(
        "apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeName: node-1, serviceAccountName: robot, containers: [{name: c, image: i}]}\n",
    );
    let token = |args: &[&str]| server.run(&[&["create", "token", "robot"], args].concat()).trim().to_owned();
    let robot = world.who(&token(&[]));
    assert_eq!(robot["username"], "system:serviceaccount:default:robot");
    assert_eq!(groups(&robot), ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]);
    assert!(world.is_nobody(&token(&["--audience", "vault"])), "for somebody else");
    for (kind, name, resource) in [("Pod", "p", "pod"), ("Secret", "s", "secret"), ("Node", "node-1", "node")] {
        let bound = token(&["--bound-object-kind", kind, "--bound-object-name", name]);
        let robot = world.who(&bound);
        assert_eq!(robot["username"], "system:serviceaccount:default:robot", "{kind}");
        if kind == "Pod" {
            assert_eq!(robot["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
            assert_eq!(robot["extra"]["authentication.kubernetes.io/node-name"], json!(["node-1"]));
        }
        server.run(&["delete", resource, name, "--force", "--grace-period=0"]);
        assert!(world.is_nobody(&bound), "the {kind} that it is bound to is gone");
    }
    let last = token(&[]);
    server.run(&["delete", "serviceaccount", "robot"]);
    assert!(world.is_nobody(&last), "the account is gone");
}

fn what_they_may(world: &World) {
    let refused = |token: &str, args: &[&str]| world.with_token(token, args).unwrap_err();
    world.server.run(&["create", "configmap", "c"]);
    // The file: reading in one namespace.
    assert!(world.with_token("token-of-ann", &["get", "configmap", "c"]).is_ok());
    assert!(world.with_token("token-of-ann", &["get", "--raw", "/version"]).is_ok());
    for args in [&["delete", "configmap", "c"][..], &["get", "configmaps", "-n", "kube-system"], &["get", "secrets"]] {
        let why = refused("token-of-ann", args);
        assert!(
            why.contains("Error from server (Forbidden)") && why.contains("User \"ann\" cannot"),
            "{args:?}: {why}"
        );
    }
    // The service, and that its word is remembered.
    assert!(world.with_token("known-elsewhere", &["get", "configmap", "c"]).is_ok());
    let asked = world.service.asked_at("/authorize");
    assert!(world.with_token("known-elsewhere", &["get", "configmap", "c"]).is_ok());
    assert_eq!(world.service.asked_at("/authorize"), asked, "asked once");
    let why = refused("known-elsewhere", &["get", "secrets"]);
    assert!(
        why.ends_with(
            "cannot list resource \"secrets\" in API group \"\" in the namespace \"default\": so says the service"
        ),
        "{why}"
    );
    let why = refused("known-elsewhere", &["delete", "configmap", "c"]);
    assert!(why.contains("User \"walter\" cannot delete resource \"configmaps\""), "{why}");
}

//! Tokens that are good, and all the ways in which they are not.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use keelson_store::{Kv, LocalKv};
use rustls::pki_types::CertificateDer;

use super::*;
use crate::bootstrap::{BootstrapTokenSecret, ensure};

const TOKEN: &str = "abcdef.0123456789abcdef";

#[tokio::test]
async fn bootstrap_tokens_and_others() {
    let dir = tempfile::tempdir().unwrap();
    let kv: Arc<dyn Kv> = Arc::new(LocalKv::open(dir.path()).unwrap());
    let end = Timestamp::now() + SignedDuration::from_hours(1);
    let secret = BootstrapTokenSecret { token: TOKEN.into(), expiration: Some(end), description: String::new() };
    ensure(kv.as_ref(), vec![secret.to_value().unwrap()]).await.unwrap();
    let authentication = Authentication::new(Objects { kv }, Arc::new(ClusterPki::create().unwrap()));
    let ask = async |header: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, header.parse().unwrap());
        authentication.authenticate(&headers, "/api", &Certificates::default()).await
    };
    let user = ask(&format!("Bearer {TOKEN}")).await.unwrap();
    assert_eq!(user.name, "system:bootstrap:abcdef");
    assert_eq!(user.groups, ["system:bootstrappers", AUTHENTICATED]);
    for bad in ["abcdef.0123456789abcdeX", "abcdef.0123456789abcde0", "zbcdef.0123456789abcdef", "nonsense"] {
        assert!(ask(&format!("Bearer {bad}")).await.is_err(), "{bad}");
    }
    assert!(authentication.bootstrap_token("abcdef", "0123456789abcdef", end).is_err(), "expired");
    assert_eq!(
        authentication.authenticate(&HeaderMap::new(), "/api", &Certificates::default()).await.unwrap().name,
        ANONYMOUS
    );
    let foreign = ClusterPki::create().unwrap().service_account.sign(&Default::default()).unwrap();
    assert!(ask(&format!("Bearer {foreign}")).await.is_err(), "a foreign key");
}

#[tokio::test]
async fn what_an_operator_chose_counts() {
    let dir = tempfile::tempdir().unwrap();
    let kv: Arc<dyn Kv> = Arc::new(LocalKv::open(&dir.path().join("store")).unwrap());
    let pki = Arc::new(ClusterPki::create().unwrap());
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let proxies = keelson_pki::Authority::create("proxies").unwrap();
    let settings = Settings {
        token_file: Some(file("tokens", "secret,alice,u1,\"a,b\"")),
        config: Some(file(
            "authn.yaml",
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {enabled: true, conditions: [{path: /livez}]}\n",
        )),
        front_proxy: FrontProxySettings {
            ca_file: Some(file("proxies.crt", &proxies.certificate())),
            allowed_names: vec!["front".into()],
            username_headers: vec!["X-Remote-User".into()],
            group_headers: vec!["X-Remote-Group".into()],
            ..Default::default()
        },
        ..Settings::default()
    };
    let authentication = Authentication::load(Objects { kv }, pki.clone(), &settings).unwrap();
    let der = |issued: keelson_pki::Issued| {
        use rustls::pki_types::pem::PemObject;
        CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()
    };
    let shown = |certificate: &CertificateDer<'static>| Certificates::new(std::slice::from_ref(certificate));
    let front = der(proxies.issue_client("front", &[]).unwrap());
    let other = der(proxies.issue_client("other", &[]).unwrap());
    let own = der(pki.cluster.issue_user("bob", "u2", &["c"]).unwrap());
    let mut named = HeaderMap::new();
    named.insert("x-remote-user", "eve".parse().unwrap());
    named.insert("x-remote-group", "d".parse().unwrap());
    let user = authentication.authenticate(&named, "/api", &shown(&front)).await.unwrap();
    assert_eq!((user.name.as_str(), user.groups[0].as_str()), ("eve", "d"));
    assert!(authentication.authenticate(&named, "/api", &shown(&other)).await.is_err(), "not an allowed name");
    let user = authentication.authenticate(&named, "/api", &shown(&own)).await.unwrap();
    assert_eq!((user.name.as_str(), user.uid.as_str()), ("bob", "u2"), "a user is no proxy");
    let id = &user.extra[CREDENTIAL_ID][0];
    assert_eq!(id.strip_prefix("X509SHA256=").map(str::len), Some(64), "{id}");
    let bare = HeaderMap::new();
    assert!(
        authentication.authenticate(&bare, "/api", &shown(&other)).await.is_err(),
        "a proxy's certificate makes no user"
    );
    assert!(
        authentication.authenticate(&bare, "/api", &Certificates::default()).await.is_err(),
        "anonymous, but not here"
    );
    assert_eq!(authentication.authenticate(&bare, "/livez", &Certificates::default()).await.unwrap().name, ANONYMOUS);
    let (user, _) = authentication.token_for("secret", &["any"]).await.unwrap();
    assert_eq!((user.name.as_str(), user.uid.as_str()), ("alice", "u1"));
}

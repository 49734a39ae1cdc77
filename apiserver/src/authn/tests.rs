//! Tokens that are good, and all the ways in which they are not.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use keelson_store::{Kv, LocalKv};

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
    let ask = |header: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, header.parse().unwrap());
        authentication.authenticate(&headers, &[])
    };
    let user = ask(&format!("Bearer {TOKEN}")).unwrap();
    assert_eq!(user.name, "system:bootstrap:abcdef");
    assert_eq!(user.groups, ["system:bootstrappers", AUTHENTICATED]);
    for bad in ["abcdef.0123456789abcdeX", "abcdef.0123456789abcde0", "zbcdef.0123456789abcdef", "nonsense"] {
        assert!(ask(&format!("Bearer {bad}")).is_err(), "{bad}");
    }
    assert!(authentication.bootstrap_token("abcdef", "0123456789abcdef", end).is_err(), "expired");
    assert_eq!(authentication.authenticate(&HeaderMap::new(), &[]).unwrap().name, ANONYMOUS);
    let foreign = ClusterPki::create().unwrap().service_account.sign(&Default::default()).unwrap();
    assert!(ask(&format!("Bearer {foreign}")).is_err(), "a foreign key");
}

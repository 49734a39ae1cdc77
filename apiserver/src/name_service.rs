//! The `kube-dns` Service: the address at which pods ask for names. The agents that serve it are its endpoints, which a
//! controller keeps; who installs another name server gives the Service a selector.

use k8s_openapi::api::core::v1::Service;
use keelson_client::{Client, Error};
use serde_json::{Value, json};

use crate::service_ranges;

/// Where the Service is.
const NAMESPACE: &str = "kube-system";
/// Its name, which tools look for.
const NAME: &str = "kube-dns";
/// The port of name servers.
const PORT: u16 = 53;

fn service(address: &str) -> Value {
    let port =
        |name: &str, protocol: &str| json!({"name": name, "port": PORT, "protocol": protocol, "targetPort": PORT});
    json!({
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {
            "k8s-app": NAME, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "KubeDNS"}},
        "spec": {"type": "ClusterIP", "clusterIP": address, "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")]},
    })
}

/// Creates the Service if there is none.
pub async fn ensure(client: &Client, service_cidr: &str) -> Result<(), Error> {
    let Some(address) = service_ranges::names_address(service_cidr) else { return Ok(()) };
    let services = client.namespaced::<Service>(NAMESPACE);
    if services.get_opt(NAME).await?.is_some() {
        return Ok(());
    }
    let wanted = serde_json::from_value(service(&address.to_string()))?;
    match services.create(&wanted).await {
        // Another server was faster.
        Err(error) if error.is_already_exists() => Ok(()),
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tenth_address_is_the_name_servers() {
        for (cidr, wanted) in [("10.96.0.0/16", Some("10.96.0.10")), ("10.43.0.0/16", Some("10.43.0.10")), ("x", None)]
        {
            assert_eq!(service_ranges::names_address(cidr).map(|ip| ip.to_string()).as_deref(), wanted, "{cidr}");
        }
        let service: Service = serde_json::from_value(service("10.96.0.10")).unwrap();
        assert_eq!(service.spec.unwrap().ports.unwrap().len(), 2);
    }
}

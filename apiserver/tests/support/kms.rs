//! A plugin that holds keys (KMS version 2), for tests: each key is a number that is added to every byte.

#![allow(dead_code)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use keelson_proto::kms::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use keelson_proto::kms::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use tonic::{Request, Response, Status};

/// An annotation that has to come back as it was given.
const NOTE: (&str, [u8; 1]) = ("plugin.example.com/note", [1]);

/// The plugin; clones are the same one.
#[derive(Clone, Default)]
pub struct Plugin {
    /// The number of the key that seals now; all numbers open.
    pub key: Arc<AtomicU8>,
    /// How often something was sealed.
    pub seals: Arc<AtomicUsize>,
    /// How often something was opened.
    pub opens: Arc<AtomicUsize>,
}

impl Plugin {
    /// Serves at a socket, which must not be there yet, on the runtime that this is called in, until that ends.
    pub fn serve(&self, socket: &Path) {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let incoming = futures::stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let server = tonic::transport::Server::builder().add_service(KeyManagementServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(Box::pin(incoming)));
    }
}

#[tonic::async_trait]
impl KeyManagementService for Plugin {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let key_id = self.key.load(Ordering::SeqCst).to_string();
        Ok(Response::new(StatusResponse { version: "v2".into(), healthz: "ok".into(), key_id }))
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        self.seals.fetch_add(1, Ordering::SeqCst);
        let key = self.key.load(Ordering::SeqCst);
        let ciphertext = request.into_inner().plaintext.iter().map(|byte| byte.wrapping_add(key)).collect();
        let annotations = [(NOTE.0.to_owned(), NOTE.1.to_vec())].into();
        Ok(Response::new(EncryptResponse { ciphertext, key_id: key.to_string(), annotations }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        self.opens.fetch_add(1, Ordering::SeqCst);
        let asked = request.into_inner();
        if asked.annotations.get(NOTE.0).is_none_or(|note| *note != NOTE.1) {
            return Err(Status::invalid_argument("the annotations did not come back"));
        }
        let key: u8 = asked.key_id.parse().map_err(|_| Status::invalid_argument("no such key"))?;
        let plaintext = asked.ciphertext.iter().map(|byte| byte.wrapping_sub(key)).collect();
        Ok(Response::new(DecryptResponse { plaintext }))
    }
}

//! gRPC's reflection, in both of its versions: which services there are, and the files that describe them.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::OnceLock;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use keelson_proto::etcd::{DESCRIPTORS, reflection as v1, reflection_v1alpha as v1alpha};
use prost::Message;
use tonic::{Request, Response, Status, Streaming};

/// The service.
pub struct ReflectionService;

/// A set of files, unread.
#[derive(Clone, PartialEq, prost::Message)]
struct Files {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    file: Vec<Bytes>,
}

/// What is looked at in a file.
#[derive(Clone, PartialEq, prost::Message)]
struct Described {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    package: String,
    #[prost(string, repeated, tag = "3")]
    dependency: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    message_type: Vec<Named>,
    #[prost(message, repeated, tag = "5")]
    enum_type: Vec<Named>,
    #[prost(message, repeated, tag = "6")]
    service: Vec<Service>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    method: Vec<Named>,
}

/// The files by name, and where each symbol is described.
#[derive(Default)]
struct Index {
    files: BTreeMap<String, (Described, Bytes)>,
    symbols: BTreeMap<String, String>,
    services: Vec<String>,
}

fn index() -> &'static Index {
    static INDEX: OnceLock<Index> = OnceLock::new();
    INDEX.get_or_init(|| {
        let mut index = Index::default();
        // Made by the build: whole by construction.
        let files = Files::decode(DESCRIPTORS).unwrap_or_default();
        for bytes in files.file {
            let file = Described::decode(bytes.clone()).unwrap_or_default();
            let full = |name: &str| format!("{}.{name}", file.package);
            for named in file.message_type.iter().chain(&file.enum_type) {
                index.symbols.insert(full(&named.name), file.name.clone());
            }
            for service in &file.service {
                index.services.push(full(&service.name));
                index.symbols.insert(full(&service.name), file.name.clone());
                for method in &service.method {
                    index.symbols.insert(format!("{}.{}", full(&service.name), method.name), file.name.clone());
                }
            }
            index.files.insert(file.name.clone(), (file, bytes));
        }
        index
    })
}

/// A file and all that it needs.
fn with_dependencies(name: &str) -> Option<Vec<Bytes>> {
    let index = index();
    let mut names = vec![name.to_owned()];
    let mut found: Vec<Bytes> = Vec::new();
    let mut at = 0;
    while let Some(name) = names.get(at).cloned() {
        let (file, bytes) = index.files.get(&name)?;
        found.push(bytes.clone());
        let new: Vec<_> = file.dependency.iter().filter(|name| !names.contains(name)).cloned().collect();
        names.extend(new);
        at += 1;
    }
    Some(found)
}

/// The file that describes a symbol: itself, or what it is nested in.
fn file_of(symbol: &str) -> Option<&'static String> {
    let mut symbol = symbol;
    loop {
        if let Some(file) = index().symbols.get(symbol) {
            return Some(file);
        }
        symbol = symbol.rsplit_once('.')?.0;
    }
}

macro_rules! serve {
    ($version:ident) => {
        #[tonic::async_trait]
        impl $version::server_reflection_server::ServerReflection for ReflectionService {
            type ServerReflectionInfoStream =
                Pin<Box<dyn Stream<Item = Result<$version::ServerReflectionResponse, Status>> + Send>>;

            async fn server_reflection_info(
                &self,
                request: Request<Streaming<$version::ServerReflectionRequest>>,
            ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
                use $version::server_reflection_request::MessageRequest;
                use $version::server_reflection_response::MessageResponse;
                let refused = |message: &str| {
                    let (error_code, error_message) = (tonic::Code::NotFound as i32, message.to_owned());
                    MessageResponse::ErrorResponse($version::ErrorResponse { error_code, error_message })
                };
                let files = move |name: Option<&str>| match name.and_then(with_dependencies) {
                    Some(found) => {
                        let file_descriptor_proto = found.iter().map(|file| file.to_vec()).collect();
                        MessageResponse::FileDescriptorResponse($version::FileDescriptorResponse {
                            file_descriptor_proto,
                        })
                    }
                    None => refused("not found"),
                };
                let answers = request.into_inner().map(move |request| {
                    let request = request?;
                    let answer = match &request.message_request {
                        Some(MessageRequest::ListServices(_)) => {
                            let service =
                                index().services.iter().map(|name| $version::ServiceResponse { name: name.clone() });
                            let service = service.collect();
                            MessageResponse::ListServicesResponse($version::ListServiceResponse { service })
                        }
                        Some(MessageRequest::FileByFilename(name)) => files(Some(name)),
                        Some(MessageRequest::FileContainingSymbol(symbol)) => {
                            files(file_of(symbol).map(String::as_str))
                        }
                        _ => refused("there are no extensions"),
                    };
                    Ok($version::ServerReflectionResponse {
                        valid_host: request.host.clone(),
                        original_request: Some(request),
                        message_response: Some(answer),
                    })
                });
                Ok(Response::new(Box::pin(answers)))
            }
        }
    };
}

serve!(v1);
serve!(v1alpha);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_and_their_files_are_found() {
        let services = &index().services;
        for name in ["etcdserverpb.KV", "etcdserverpb.Auth", "v3lockpb.Lock", "grpc.health.v1.Health"] {
            assert!(services.iter().any(|known| known == name), "{name} of {services:?}");
        }
        for symbol in ["etcdserverpb.KV.Range", "etcdserverpb.Compare.CompareResult", "mvccpb.Event"] {
            let file = file_of(symbol).unwrap_or_else(|| panic!("{symbol}"));
            assert!(with_dependencies(file).is_some_and(|files| !files.is_empty()), "{symbol}");
        }
        assert_eq!(file_of("other.Thing"), None);
    }
}

//! `keelson dashboard`: the page in a browser of this machine. The browser has no certificate, so this passes its
//! questions on with the kubeconfig's identity: only those two, only to who knows the address with its secret part.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use keelson_client::https::Https;
use rand::RngExt;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::status::{self, DashboardArgs, PAGE_HEADERS, PAGE_PATH, REPORT_PATH};

/// Connections of browsers at once.
const CONNECTIONS: usize = 32;

/// Serves until it is told to stop.
pub async fn run(args: DashboardArgs) -> Result<()> {
    let transport = Arc::new(status::transport(&args.access.kubeconfig)?);
    // Asked once now, so that what is wrong with the kubeconfig is told here and not in the browser.
    status::call(&transport, Request::get(REPORT_PATH).body(Bytes::new())?).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port))
        .await
        .with_context(|| format!("cannot listen on port {}: choose another with --port", args.port))?;
    let secret = format!("{:032x}", rand::rng().random::<u128>());
    println!("http://{}/{secret}/dashboard\nopen it in a browser; Ctrl-C ends it", listener.local_addr()?);
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let secret: Arc<str> = secret.into();
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            ended = crate::server::terminated() => return ended,
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
        let (transport, secret) = (transport.clone(), secret.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (transport, secret) = (transport.clone(), secret.clone());
                async move { Ok::<_, Infallible>(answer(&transport, &secret, &request).await) }
            });
            if let Err(error) =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
            {
                tracing::debug!(%error, "a browser's connection ended");
            }
            drop(permit);
        });
    }
}

async fn answer(transport: &Https, secret: &str, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(secret));
    let wanted = match (request.method(), path) {
        (&http::Method::GET, Some("/dashboard")) => PAGE_PATH,
        (&http::Method::GET, Some("/status")) => REPORT_PATH,
        _ => return said(StatusCode::NOT_FOUND, Bytes::from_static(b"not found\n")),
    };
    let asked = match Request::get(wanted).body(Bytes::new()) {
        Ok(asked) => status::call(transport, asked).await,
        Err(error) => Err(error.into()),
    };
    match asked {
        Ok(bytes) if wanted == PAGE_PATH => {
            let mut response = said(StatusCode::OK, bytes);
            for (name, value) in PAGE_HEADERS {
                response.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            response
        }
        Ok(bytes) => {
            let mut response = said(StatusCode::OK, bytes);
            response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => said(StatusCode::BAD_GATEWAY, format!("{error:#}\n").into()),
    }
}

fn said(code: StatusCode, bytes: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(bytes));
    *response.status_mut() = code;
    response
}

//! `keelson status`: how the cluster is, once or on a page that follows it; and the same for browsers.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use futures::FutureExt;
use http_body_util::{BodyExt, Limited};
use keelson_apiserver::Extension;
use keelson_client::Transport;
use keelson_client::https::Https;
use keelson_machinery::status::Status;
use keelson_status::terminal::Page;
use keelson_status::{Report, page, plain};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::Mutex;

use super::care::Care;
use super::gather;
use crate::args::Access;

/// Where the report is.
pub const REPORT_PATH: &str = "/keelson/v1/status";
/// Where the page for browsers is; it asks for `status` beside itself.
pub const PAGE_PATH: &str = "/keelson/v1/dashboard";
/// Largest report that is read.
const REPORT_BYTES: usize = 64 << 20;
/// A report that is not older is given again: many who look cost no more than one.
pub const FRESH: Duration = Duration::from_millis(900);
/// How often the page asks.
const INTERVAL: Duration = Duration::from_secs(2);

/// `keelson status ...`
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// How the cluster is reached.
    #[command(flatten)]
    pub access: Access,
    /// A page that follows the cluster until q is typed
    #[arg(short, long, conflicts_with = "output")]
    pub watch: bool,
    /// json, for machines
    #[arg(short, long, value_parser = ["text", "json"], default_value = "text")]
    pub output: String,
}

/// `keelson dashboard ...`
#[derive(Args, Clone, Debug)]
pub struct DashboardArgs {
    /// How the cluster is reached.
    #[command(flatten)]
    pub access: Access,
    /// Port of this machine for the browser (default: a free one)
    #[arg(long, default_value_t = 0)]
    pub port: u16,
}

/// Answers with the report, and with the page that shows it. Who may ask is RBAC's matter, as with any path.
pub fn extensions(care: &Arc<Care>) -> [(&'static str, Extension); 2] {
    let latest: Arc<Mutex<Option<(Instant, Bytes)>>> = Arc::default();
    let care = care.clone();
    let report = move |method: http::Method, _: Bytes| {
        let (care, latest) = (care.clone(), latest.clone());
        async move {
            only_get(&method)?;
            let mut latest = latest.lock().await;
            if let Some((at, bytes)) = latest.as_ref()
                && at.elapsed() < FRESH
            {
                return Ok(keelson_apiserver::body::json(200, bytes.clone()));
            }
            let report = gather::report(&care).await;
            let bytes = serde_json::to_vec(&report).map_err(|error| Status::internal(&error.to_string()))?;
            let bytes = Bytes::from(bytes);
            *latest = Some((Instant::now(), bytes.clone()));
            Ok(keelson_apiserver::body::json(200, bytes))
        }
        .boxed()
    };
    let page = |method: http::Method, _: Bytes| {
        async move {
            only_get(&method)?;
            let mut response = keelson_apiserver::body::text(200, page::HTML);
            for (name, value) in PAGE_HEADERS {
                response.headers_mut().insert(name, http::HeaderValue::from_static(value));
            }
            Ok(response)
        }
        .boxed()
    };
    [(REPORT_PATH, Arc::new(report)), (PAGE_PATH, Arc::new(page))]
}

/// Headers of the page.
pub const PAGE_HEADERS: [(http::HeaderName, &str); 4] = [
    (http::header::CONTENT_TYPE, "text/html; charset=utf-8"),
    (http::header::CONTENT_SECURITY_POLICY, page::POLICY),
    (http::header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (http::header::CACHE_CONTROL, "no-store"),
];

fn only_get(method: &http::Method) -> Result<(), Status> {
    if *method == http::Method::GET { Ok(()) } else { Err(Status::method_not_allowed()) }
}

/// The transport of the admin's kubeconfig.
pub fn transport(kubeconfig: &Path) -> Result<Https> {
    keelson_client::https::transport_of(kubeconfig)
        .with_context(|| format!("cannot use {}: name another with --kubeconfig", kubeconfig.display()))
}

/// Sends a request and reads its answer; a refusal is an error with the server's words.
pub async fn call(transport: &Https, request: http::Request<Bytes>) -> Result<Bytes> {
    let response = transport.call(request).await.context("no server answers")?;
    let status = response.status();
    let body = Limited::new(response.into_body(), REPORT_BYTES).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("the server broke off: {error}"))?.to_bytes();
    if !status.is_success() {
        let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        bail!("{}", said["message"].as_str().unwrap_or("the server refused without saying why"));
    }
    Ok(body)
}

async fn ask(transport: &Https) -> Result<Report> {
    let body = call(transport, http::Request::get(REPORT_PATH).body(Bytes::new())?).await?;
    serde_json::from_slice(&body).context("the server is no keelson server")
}

/// Runs `keelson status`.
pub async fn run(args: StatusArgs) -> Result<()> {
    let transport = transport(&args.access.kubeconfig)?;
    if args.watch {
        return watch(&transport).await;
    }
    let report = ask(&transport).await?;
    match args.output.as_str() {
        "json" => println!("{}", serde_json::to_string_pretty(&report)?),
        _ => print!("{}", plain::text(&report)),
    }
    Ok(())
}

/// Draws the page until it is told to end.
async fn watch(transport: &Https) -> Result<()> {
    let mut terminal = ratatui::try_init().context("no terminal: `keelson status` prints once")?;
    let result = follow(transport, &mut terminal).await;
    ratatui::restore();
    result
}

async fn follow(transport: &Https, terminal: &mut ratatui::DefaultTerminal) -> Result<()> {
    let (mut page, mut asked) = (Page::default(), None::<Instant>);
    loop {
        if asked.is_none_or(|at| at.elapsed() >= INTERVAL) {
            let now = Instant::now();
            let seconds = asked.map_or(0.0, |at| (now - at).as_secs_f64());
            match tokio::time::timeout(INTERVAL * 5, ask(transport)).await {
                Ok(Ok(report)) => page.answered(report, seconds),
                Ok(Err(error)) => page.failed(format!("{error:#}")),
                Err(_) => page.failed("it takes too long".into()),
            }
            asked = Some(now);
        }
        terminal.draw(|frame| page.draw(frame))?;
        let key = tokio::task::spawn_blocking(|| match event::poll(Duration::from_millis(250)) {
            Ok(true) => event::read().map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        });
        let Some(Event::Key(key)) = key.await?? else { continue };
        if key.kind != KeyEventKind::Press {
            continue;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
            KeyCode::Down | KeyCode::Char('j') => page.scroll(1),
            KeyCode::Up | KeyCode::Char('k') => page.scroll(-1),
            _ => {}
        }
    }
}

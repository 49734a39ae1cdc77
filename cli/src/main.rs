//! The `keelson` binary: composes the crates into a server, an agent and the tools around them.

mod access;
mod agent;
mod args;
mod chaos;
mod component;
mod config;
mod etcd;
mod heal;
mod identity;
mod join;
mod leader;
mod life;
mod logging;
mod member;
mod outlook;
mod ranges;
mod replica;
mod resident;
mod scheduler;
mod server;
mod store;
mod token;

use anyhow::Context;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches};

/// Threads that run an agent's tasks.
const AGENT_THREADS: usize = 2;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // The allocator asks for huge pages, of which a small server touches many and fills few: they made a third of an idle
    // server's memory. A kernel that does not know the request changes nothing.
    let _ = nix::sys::prctl::set_thp_disable(true);
    if let Some(args) = kubectl_arguments() {
        end_with_the_reader();
        return kubectl(args);
    }
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keelson: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// The arguments after `keelson kubectl`, or all of them if the program is called through a link named `kubectl`.
fn kubectl_arguments() -> Option<Vec<String>> {
    let mut args = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned());
    let program = args.next()?;
    if program.rsplit('/').next() == Some("kubectl") {
        return Some(args.collect());
    }
    (args.next()? == "kubectl").then(|| args.collect())
}

/// Lets a command end quietly when nobody reads on, as in `kubectl get pods | head -1`. Sockets are not concerned: what is
/// written to them never raises the signal.
fn end_with_the_reader() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: no handler is installed; the signal gets back what the kernel does with it by itself.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

/// Runs kubectl's twin; one thread is enough for one command and starts sooner.
fn kubectl(args: Vec<String>) -> std::process::ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(keelson_kubectl::run(args));
            // A thread that still waits for standard input must not hold the process up.
            runtime.shutdown_background();
            code.into()
        }
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let argv = store::without_others(config::with_file(std::env::args_os().collect())?)?;
    if argv.len() < 2 {
        args::Args::command().print_help()?;
        return Ok(());
    }
    let matches = args::Args::command().args_override_self(true).get_matches_from(argv);
    let args = args::Args::from_arg_matches(&matches)?;
    if matches!(
        args.command,
        args::Command::Status(_) | args::Command::Certs(_) | args::Command::Token(_) | args::Command::Snapshot(_)
    ) {
        end_with_the_reader();
    }
    // A level that was asked for in Keelson's own way comes first.
    let asked = matches.value_source("log_level").is_some_and(|from| from != ValueSource::DefaultValue);
    let etcds = matches!(args.command, args::Command::Store(_)).then(store::log_level).flatten().filter(|_| !asked);
    logging::init(args.log_format, etcds.as_ref().unwrap_or(&args.log_level))?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if matches!(args.command, args::Command::Agent(_)) {
        // It waits for others nearly all the time, and every thread has memory of its own.
        runtime.worker_threads(AGENT_THREADS);
    }
    let runtime = runtime.enable_all().thread_name("keelson").build()?;
    runtime.block_on(async {
        match args.command {
            args::Command::Server(args) => server::run(*args).await,
            args::Command::Member(args) => member::run(args).await,
            args::Command::Store(args) => store::run(*args).await,
            args::Command::Snapshot(args) => store::snapshot::run(args).await,
            args::Command::Agent(args) => agent::run(*args).await,
            args::Command::Controllers(args) => component::controllers(*args).await,
            args::Command::Scheduler(args) => component::scheduler(args).await,
            args::Command::Kubectl { args } => std::process::exit(keelson_kubectl::run(args).await.into()),
            args::Command::ExplainScheduling(args) => scheduler::explain_scheduling(args).await,
            args::Command::WhatIf(args) => scheduler::ask_what_if(args).await,
            args::Command::Token(args) => token::run(args).await,
            args::Command::Chaos(args) => chaos::run(*args).await,
            args::Command::Install(args) => {
                let own = matches.subcommand_matches("install").context("the command has no arguments")?;
                life::install::run(&args, own)
            }
            args::Command::Status(args) => life::status::run(args).await,
            args::Command::Dashboard(args) => life::dashboard::run(args).await,
            args::Command::Certs(args) => life::rotate::run(args).await,
            args::Command::Upgrade(args) => life::upgrade::run(args).await,
            args::Command::Uninstall(args) => life::reset::uninstall(args).await,
            args::Command::Reset(args) => life::reset::reset(args).await,
        }
    })
}

//! kubectl's twin: its verbs, flags, output and exit codes over this project's client, printers and patches.
//!
//! Invariant: a flag that is not understood is an error, never ignored. Commands are one table, from which dispatch and
//! help derive.

mod commands;
mod config;
mod credential;
mod describe;
mod failure;
mod flags;
mod kinds;
mod kustomize;
mod objects;
mod output;
mod session;
mod socket;
mod value;
mod why;

use commands::{COMMANDS, Command};
use failure::{Failure, Outcome};
use flags::Parsed;
use session::{GLOBAL, Session};

/// Runs a command line (without the program's name); returns the exit code.
pub async fn run(args: Vec<String>) -> u8 {
    match dispatch(&args).await {
        Ok(()) => 0,
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                eprintln!("{text}");
            }
            failure.code()
        }
    }
}

async fn dispatch(args: &[String]) -> Outcome {
    if let Some((word @ ("__complete" | "__completeNoDesc"), rest)) = args.split_first().map(|(w, r)| (w.as_str(), r)) {
        commands::completion::complete(rest, word == "__complete").await;
        return Ok(());
    }
    // Global flags may stand before the command.
    let mut at = 0;
    while at < args.len() && args[at].starts_with('-') && !matches!(args[at].as_str(), "-h" | "--help") {
        let name = args[at].trim_start_matches('-');
        let takes_next = GLOBAL.iter().any(|f| {
            let named = f.name == name || f.short.is_some_and(|s| name == s.to_string());
            named && f.takes == flags::Takes::Text
        });
        at += if takes_next { 2 } else { 1 };
    }
    let at = at.min(args.len());
    let (before, rest) = args.split_at(at);
    let words: Vec<&str> = rest.iter().map(String::as_str).take_while(|w| !w.starts_with('-')).collect();
    let fits = |command: &&Command| words.starts_with(&command.path.split(' ').collect::<Vec<_>>());
    let Some(command) = COMMANDS.iter().filter(fits).max_by_key(|c| c.path.len()) else {
        return without_command(&words, rest);
    };
    let length = command.path.split(' ').count();
    let asks = |a: &String| a == "--help" || a == "-h";
    let own: Vec<String> = before.iter().chain(&rest[length..]).cloned().collect();
    if own.iter().take_while(|a| *a != "--").any(asks) {
        print!("{}", command.help());
        return Ok(());
    }
    let tables: Vec<&[flags::Flag]> = command.flags.iter().copied().chain([GLOBAL]).collect();
    let parsed = Parsed::of(&format!("kubectl {}", command.path), &own, &tables, command.interspersed)?;
    let session = Session::open(parsed)?;
    (command.run)(&session).await
}

/// Commands of kubectl that are not here yet.
const NOT_YET: &[&str] = &["alpha"];

fn without_command(words: &[&str], rest: &[String]) -> Outcome {
    let group: Vec<&Command> = match words.first() {
        Some(word) => COMMANDS.iter().filter(|c| c.path.split(' ').next() == Some(word)).collect(),
        None => COMMANDS.iter().collect(),
    };
    if group.is_empty() {
        if let Some(done) = commands::plugin::run(rest) {
            return done;
        }
        let word = words.first().copied().unwrap_or_default();
        if NOT_YET.contains(&word) {
            return Err(Failure::new(format!("{word} is not supported yet: use upstream's kubectl for it")));
        }
        return Err(Failure::Error(format!("unknown command {word:?} for \"kubectl\"")));
    }
    if let [_, unknown, ..] = words {
        return Err(Failure::Error(format!("unknown command {unknown:?} for \"kubectl {}\"", words[0])));
    }
    if rest.iter().any(|a| a.starts_with('-') && !matches!(a.as_str(), "-h" | "--help")) {
        return Err(Failure::Error(format!("unknown flag: {}", rest[0])));
    }
    println!("Commands:");
    for command in group {
        println!("  {:<28}{}", command.path, command.about);
    }
    println!("\nUse \"kubectl <command> --help\" for more information about a given command.");
    Ok(())
}

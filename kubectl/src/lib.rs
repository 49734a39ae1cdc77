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
mod help;
mod kinds;
mod kustomize;
mod objects;
mod output;
mod session;
mod shape;
mod socket;
mod value;
mod why;

use commands::COMMANDS;
use failure::{Failure, Outcome};
use flags::Parsed;
use session::{GLOBAL, Session};
pub use why::explained;

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
    let known = |arg: &&String| {
        let name = arg.trim_start_matches('-').split('=').next().unwrap_or_default();
        GLOBAL.iter().any(|f| f.name == name || f.short.is_some_and(|s| name.starts_with(s)))
    };
    if at == args.len()
        && let Some(flag) = args.iter().filter(|a| a.starts_with('-')).find(|a| !known(a))
    {
        return Err(Failure::Error(format!("unknown flag: {flag}\nSee 'kubectl --help' for usage.")));
    }
    let preferences = commands::kuberc::preferences()?;
    let (before, rest) = args.split_at(at);
    let rest = commands::kuberc::expanded(&preferences, rest.to_vec());
    let typed: Vec<&str> = rest.iter().map(String::as_str).take_while(|w| !w.starts_with('-')).collect();
    let words = help::canonical(&typed);
    // An alias may have another number of words than what it stands for.
    let shift = typed.len().abs_diff(words.len());
    let fits = |path: &str| words.starts_with(&path.split(' ').map(str::to_owned).collect::<Vec<_>>());
    let command = COMMANDS.iter().filter(|c| fits(c.path)).max_by_key(|c| c.path.len());
    let group = help::GROUPS.iter().filter(|g| fits(g.path)).max_by_key(|g| g.path.len());
    let command = match (command, group) {
        (Some(command), Some(group)) if group.path.len() > command.path.len() => {
            return under(group, &words);
        }
        (None, Some(group)) => return under(group, &words),
        (None, None) => return without_command(&words, &rest),
        (Some(command), _) => command,
    };
    let length = command.path.split(' ').count() - shift;
    let asks = |a: &String| a == "--help" || a == "-h";
    let own: Vec<String> = before.iter().chain(&rest[length..]).cloned().collect();
    if own.iter().take_while(|a| *a != "--").any(asks) {
        print!("{}", help::of_command(command));
        return Ok(());
    }
    let own = commands::kuberc::defaulted(&preferences, command.path, own);
    let tables: Vec<&[flags::Flag]> = command.flags.iter().copied().chain([GLOBAL]).collect();
    let parsed = Parsed::of(&format!("kubectl {}", command.path), &own, &tables, command.interspersed)?;
    let session = Session::open(parsed)?;
    (command.run)(&session).await
}

/// A group says what is under it, or that a word is nothing of that.
fn under(group: &help::Group, words: &[String]) -> Outcome {
    // `certificate` is the one group that does not mind.
    match words.get(group.path.split(' ').count()).filter(|_| group.path != "certificate") {
        Some(word) => Err(Failure::Error(format!(
            "unknown command {word:?}\nSee 'kubectl {} -h' for help and examples",
            group.path
        ))),
        None if group.path == "certificate" => {
            print!("{}", help::of_group(group));
            Ok(())
        }
        // A group alone is a mistake: it says what there is, and fails.
        None => {
            match group.path {
                "rollout" => print!("{}", help::of_group(group)),
                _ => eprint!("{}", help::of_group(group)),
            }
            Err(Failure::Code(1))
        }
    }
}

fn without_command(words: &[String], rest: &[String]) -> Outcome {
    // `help get` is `get --help`.
    if let Some((first, topic)) = words.split_first()
        && first == "help"
        && !topic.is_empty()
    {
        let fits = |path: &str| topic.starts_with(&path.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let command = COMMANDS.iter().filter(|c| fits(c.path)).max_by_key(|c| c.path.len()).map(help::of_command);
        let group = help::GROUPS.iter().find(|g| fits(g.path)).map(help::of_group);
        match group.or(command) {
            Some(text) => print!("{text}"),
            None => println!("Unknown help topic [`{}`]\n\n{}", topic.join("` `"), help::overview()),
        }
        return Ok(());
    }
    if let Some(word) = words.first().filter(|word| *word != "help") {
        if let Some(done) = commands::plugin::run(rest) {
            return done;
        }
        return Err(help::unknown(word));
    }
    if let Some(flag) = rest.iter().find(|a| a.starts_with('-') && !matches!(a.as_str(), "-h" | "--help")) {
        return Err(Failure::Error(format!("unknown flag: {flag}\nSee 'kubectl --help' for usage.")));
    }
    print!("{}", help::overview());
    Ok(())
}

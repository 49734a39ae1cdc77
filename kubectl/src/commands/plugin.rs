//! `plugin list`, and programs called `kubectl-NAME`, which are commands too.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, switch};
use crate::session::Session;

/// Flags of `plugin list`.
pub const FLAGS: &[&[Flag]] =
    &[&[switch("name-only", "If true, display only the binary name of each plugin, rather than its full path")]];

fn directories() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all: Vec<PathBuf> = Vec::new();
    for directory in std::env::split_paths(&path).filter(|d| !d.as_os_str().is_empty()) {
        if !all.contains(&directory) {
            all.push(directory);
        }
    }
    all
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Runs `plugin list`.
pub async fn list(session: &Session) -> Outcome {
    let mut found: Vec<PathBuf> = Vec::new();
    for directory in directories() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        let mut own: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        own.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("kubectl-")));
        own.sort();
        found.extend(own);
    }
    if found.is_empty() {
        return Err(Failure::new("unable to find any kubectl plugins in your PATH"));
    }
    println!("The following compatible plugins are available:\n");
    let mut wrong = 0;
    for path in &found {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!("{}", if session.parsed.on("name-only") { name } else { path.display().to_string() });
        if !is_executable(path) {
            eprintln!("  - warning: {} identified as a kubectl plugin, but it is not executable", path.display());
            wrong += 1;
        }
    }
    match wrong {
        0 => Ok(()),
        1 => Err(Failure::new("one plugin warning was found")),
        many => Err(Failure::new(format!("{many} plugin warnings were found"))),
    }
}

/// Runs the plugin that the words name, the longest name first; `None` if there is none. Dashes in a word are underscores
/// in the program's name.
pub fn run(args: &[String]) -> Option<Outcome> {
    let words: Vec<String> = args.iter().take_while(|a| !a.starts_with('-')).map(|a| a.replace('-', "_")).collect();
    for length in (1..=words.len()).rev() {
        let name = format!("kubectl-{}", words[..length].join("-"));
        let Some(path) = directories().into_iter().map(|d| d.join(&name)).find(|p| is_executable(p)) else { continue };
        let status = std::process::Command::new(&path).args(&args[length..]).status();
        return Some(match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Failure::Code(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))),
            Err(error) => Err(Failure::new(format!("{}: {error}", path.display()))),
        });
    }
    None
}

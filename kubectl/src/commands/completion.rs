//! `completion`: scripts for shells, and the words that they offer.

use crate::failure::Outcome;
use crate::flags::{Flag, Parsed, Takes};
use crate::kinds;
use crate::session::{GLOBAL, Session, encode};
use crate::value::Read;

use super::{COMMANDS, Command};

const BASH: &str = r#"# bash completion for kubectl: source <(kubectl completion bash)
__kubectl_words() {
    local current="${COMP_WORDS[$COMP_CWORD]}"
    local offered
    offered="$("${COMP_WORDS[0]}" __completeNoDesc "${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null | sed '/^:[0-9]*$/d')"
    local IFS=$'\n'
    COMPREPLY=($(compgen -W "$offered" -- "$current"))
}
complete -o default -F __kubectl_words kubectl
"#;

const ZSH: &str = r##"#compdef kubectl
# zsh completion for kubectl: source <(kubectl completion zsh)
_kubectl() {
    local -a offered
    local line
    while IFS= read -r line; do
        [[ "$line" == :[0-9]* ]] && continue
        line="${line//:/\\:}"
        offered+=("${line/$'\t'/:}")
    done < <("${words[1]}" __complete "${(@)words[2,$CURRENT]}" 2>/dev/null)
    _describe 'kubectl' offered || _files
}
if [ "$funcstack[1]" = "_kubectl" ]; then
    _kubectl
else
    compdef _kubectl kubectl
fi
"##;

const FISH: &str = r#"# fish completion for kubectl: kubectl completion fish | source
function __kubectl_words
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    $before[1] __complete $before[2..-1] "$current" 2>/dev/null | string match -v -r '^:[0-9]+$'
end
complete -c kubectl -e
complete -c kubectl -f -a '(__kubectl_words)'
"#;

const POWERSHELL: &str = r#"# PowerShell completion for kubectl: kubectl completion powershell | Out-String | Invoke-Expression
Register-ArgumentCompleter -Native -CommandName kubectl -ScriptBlock {
    param($word, $line, $cursor)
    $words = @($line.CommandElements | Select-Object -Skip 1 | ForEach-Object { "$_" })
    if ($word -eq '') { $words += '""' }
    & kubectl __complete @words 2>$null | Where-Object { $_ -notmatch '^:\d+$' } | ForEach-Object {
        $name, $about = $_ -split "`t", 2
        if (-not $about) { $about = $name }
        [System.Management.Automation.CompletionResult]::new($name, $name, 'ParameterValue', $about)
    }
}
"#;

/// Runs `completion`.
pub async fn completion(session: &Session) -> Outcome {
    let script = match session.parsed.args.as_slice() {
        [] => return Err(session.parsed.usage("Shell not specified.")),
        [shell] => match shell.as_str() {
            "bash" => BASH,
            "zsh" => ZSH,
            "fish" => FISH,
            "powershell" => POWERSHELL,
            other => return Err(session.parsed.usage(format!("Unsupported shell type {other:?}."))),
        },
        _ => return Err(session.parsed.usage("Too many arguments. Expected only the shell type.")),
    };
    print!("{script}");
    Ok(())
}

/// Commands whose first argument is a kind and whose others are names.
const BY_KIND: [&str; 21] = [
    "annotate",
    "apply edit-last-applied",
    "apply view-last-applied",
    "autoscale",
    "delete",
    "describe",
    "edit",
    "expose",
    "get",
    "label",
    "patch",
    "rollout history",
    "rollout pause",
    "rollout restart",
    "rollout resume",
    "rollout status",
    "rollout undo",
    "scale",
    "set env",
    "wait",
    "why",
];
/// Commands whose first argument is a pod.
const BY_POD: [&str; 6] = ["attach", "cp", "debug", "exec", "logs", "port-forward"];
/// Commands whose arguments are nodes.
const BY_NODE: [&str; 5] = ["cordon", "drain", "taint", "top node", "uncordon"];
/// Forms of output.
const FORMATS: [&str; 12] = [
    "custom-columns",
    "custom-columns-file",
    "go-template",
    "go-template-file",
    "json",
    "jsonpath",
    "jsonpath-as-json",
    "jsonpath-file",
    "name",
    "wide",
    "yaml",
    "template",
];

/// Prints the words that may stand where the last of `words` is, with what they mean.
pub async fn complete(words: &[String], described: bool) {
    let (last, before) = words.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let mut offered = offers(last, before).await;
    offered.retain(|(word, _)| word.starts_with(last));
    for (word, about) in offered {
        match described && !about.is_empty() {
            true => println!("{word}\t{about}"),
            false => println!("{word}"),
        }
    }
    // No file names, as the protocol of other command lines says it.
    println!(":4");
}

type Offers = Vec<(String, String)>;

fn plain<S: Into<String>>(words: impl IntoIterator<Item = S>) -> Offers {
    words.into_iter().map(|word| (word.into(), String::new())).collect()
}

async fn offers(last: &str, before: &[String]) -> Offers {
    let named: Vec<&str> = before.iter().map(String::as_str).take_while(|w| !w.starts_with('-')).collect();
    let fits = |c: &&Command| named.starts_with(&c.path.split(' ').collect::<Vec<_>>());
    let command = COMMANDS.iter().filter(fits).max_by_key(|c| c.path.len());
    let depth = command.map_or(0, |c| c.path.split(' ').count());
    if named.len() == depth || command.is_none() {
        let below = subcommands(&named);
        if !below.is_empty() && !last.starts_with('-') {
            return below;
        }
    }
    let Some(command) = command else { return Offers::new() };
    let tables: Vec<&[Flag]> = command.flags.iter().copied().chain([GLOBAL]).collect();
    let flags: Vec<&Flag> = tables.iter().flat_map(|t| t.iter()).collect();
    if last.starts_with('-') {
        let mut all: Offers = flags.iter().map(|f| (format!("--{}", f.name), f.help.to_owned())).collect();
        all.sort();
        return all;
    }
    let own = &before[depth..];
    let taking = own.last().and_then(|word| {
        let long = |f: &&&Flag| word.strip_prefix("--") == Some(f.name);
        let short = |f: &&&Flag| f.short.is_some_and(|s| *word == format!("-{s}"));
        flags.iter().find(|f| f.takes == Takes::Text && (long(f) || short(f)))
    });
    // A flag that waits for its value is no mistake here.
    let whole = if taking.is_some() { &own[..own.len() - 1] } else { own };
    let Ok(parsed) = Parsed::of(command.path, whole, &tables, true) else { return Offers::new() };
    let Ok(session) = Session::open(parsed) else { return Offers::new() };
    match taking {
        Some(flag) => of_flag(&session, flag.name).await,
        None => of_arguments(&session, command, last).await,
    }
}

/// The commands that may follow.
fn subcommands(named: &[&str]) -> Offers {
    let mut all = Offers::new();
    for command in COMMANDS {
        let path: Vec<&str> = command.path.split(' ').collect();
        if path.len() > named.len() && path.starts_with(named) {
            let word = path[named.len()].to_owned();
            let about = if path.len() == named.len() + 1 { command.about.to_owned() } else { String::new() };
            match all.iter_mut().find(|(have, _)| *have == word) {
                Some(have) if have.1.is_empty() => have.1 = about,
                Some(_) => {}
                None => all.push((word, about)),
            }
        }
    }
    all.sort();
    all
}

async fn of_flag(session: &Session, flag: &str) -> Offers {
    let entries = |list: &str| plain(session.config.merged[list].items().iter().map(|e| e["name"].text().to_owned()));
    match flag {
        "namespace" => names(session, "namespaces").await,
        "context" => entries("contexts"),
        "cluster" => entries("clusters"),
        "user" => entries("users"),
        "output" => plain(FORMATS),
        "dry-run" => plain(["none", "server", "client"]),
        _ => Offers::new(),
    }
}

async fn of_arguments(session: &Session, command: &Command, last: &str) -> Offers {
    let given = &session.parsed.args;
    let entries = |list: &str| plain(session.config.merged[list].items().iter().map(|e| e["name"].text().to_owned()));
    match command.path {
        "config use-context" | "config delete-context" | "config rename-context" => entries("contexts"),
        "config delete-cluster" | "config set-cluster" => entries("clusters"),
        "config delete-user" | "config set-credentials" => entries("users"),
        "completion" => plain(["bash", "zsh", "fish", "powershell"]),
        "explain" => kind_names(session).await,
        path if BY_NODE.contains(&path) => names(session, "nodes").await,
        "top pod" => names(session, "pods").await,
        path if BY_POD.contains(&path) && given.is_empty() => match last.split_once('/') {
            Some((kind, _)) => with_kind(kind, names(session, kind).await),
            None => names(session, "pods").await,
        },
        path if BY_KIND.contains(&path) => match (last.split_once('/'), given.first()) {
            (Some((kind, _)), _) => with_kind(kind, names(session, kind).await),
            (None, None) => kind_names(session).await,
            (None, Some(kind)) => {
                let mut all = names(session, kind).await;
                all.retain(|(name, _)| !given[1..].contains(name));
                all
            }
        },
        _ => Offers::new(),
    }
}

fn with_kind(kind: &str, names: Offers) -> Offers {
    names.into_iter().map(|(name, about)| (format!("{kind}/{name}"), about)).collect()
}

async fn kind_names(session: &Session) -> Offers {
    let kinds = kinds::discover(session).await.unwrap_or_else(|_| kinds::all_built_in());
    let mut names: Vec<String> =
        kinds.iter().filter(|k| k.verbs.iter().any(|v| v == "get")).map(|k| k.qualified_plural()).collect();
    names.sort();
    names.dedup();
    plain(names)
}

async fn names(session: &Session, kind: &str) -> Offers {
    let Ok(kind) = kinds::resolve(session, kind).await else { return Offers::new() };
    let namespace = session.namespace().unwrap_or_default();
    let accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json";
    let path = format!("{}?limit=500", kind.path(Some(&encode(&namespace))));
    let list = session.get_as(&path, accept).await.unwrap_or_default();
    plain(list["items"].items().iter().map(|o| o["metadata"]["name"].text().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_what_follows_them() {
        let words = |named: &[&str]| subcommands(named).into_iter().map(|(word, _)| word).collect::<Vec<_>>();
        assert!(words(&[]).contains(&"get".to_owned()) && words(&[]).contains(&"rollout".to_owned()));
        assert!(words(&["rollout"]).contains(&"status".to_owned()));
        assert_eq!(words(&["rollout", "status"]), Vec::<String>::new());
        for by in BY_KIND.iter().chain(&BY_POD).chain(&BY_NODE) {
            assert!(!by.is_empty());
        }
    }
}

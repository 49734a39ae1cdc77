//! What `--help` prints, and what is said of commands that are none: all of it derives from the tables of commands.

use crate::commands::{COMMANDS, Command};
use crate::failure::Failure;
use crate::flags::help as flags;

/// A command that only has commands under it.
pub struct Group {
    /// The words that name it.
    pub path: &'static str,
    about: &'static str,
    usage: &'static str,
}

const fn group(path: &'static str, usage: &'static str, about: &'static str) -> Group {
    Group { path, about, usage }
}

/// Commands that only have commands under them.
pub const GROUPS: &[Group] = &[
    group("auth", "[flags]", "Inspect authorization"),
    group("certificate", "SUBCOMMAND", "Modify certificate resources"),
    group("config", "SUBCOMMAND", "Modify kubeconfig files"),
    group("create secret", "(docker-registry | generic | tls)", "Create a secret using a specified subcommand"),
    group("create service", "[flags]", "Create a service using a specified subcommand"),
    group("kuberc", "SUBCOMMAND", "Manage kuberc configuration files"),
    group("plugin", "[flags]", "Provides utilities for interacting with plugins"),
    group("rollout", "SUBCOMMAND", "Manage the rollout of a resource"),
    group("set", "SUBCOMMAND", "Set specific features on objects"),
    group("top", "[flags]", "Display resource (CPU/memory) usage"),
];

/// Other names of commands.
const ALIASES: &[(&str, &str)] = &[
    ("clusterinfo", "cluster-info"),
    ("config use", "config use-context"),
    ("create cm", "create configmap"),
    ("create cj", "create cronjob"),
    ("create dep", "create deployment"),
    ("create deploy", "create deployment"),
    ("create ing", "create ingress"),
    ("create ns", "create namespace"),
    ("create pc", "create priorityclass"),
    ("create pdb", "create poddisruptionbudget"),
    ("create resourcequota", "create quota"),
    ("create sa", "create serviceaccount"),
    ("create svc", "create service"),
    ("set sa", "set serviceaccount"),
    ("top no", "top node"),
    ("top nodes", "top node"),
    ("top po", "top pod"),
    ("top pods", "top pod"),
];

/// The commands of the first level, as the overview has them.
const SECTIONS: &[(&str, &[&str])] = &[
    ("Basic Commands (Beginner)", &["create", "expose", "run", "set"]),
    ("Basic Commands (Intermediate)", &["explain", "get", "edit", "delete"]),
    ("Deploy Commands", &["rollout", "scale", "autoscale"]),
    ("Cluster Management Commands", &["certificate", "cluster-info", "top", "cordon", "uncordon", "drain", "taint"]),
    (
        "Troubleshooting and Debugging Commands",
        &[
            "describe",
            "logs",
            "attach",
            "exec",
            "port-forward",
            "proxy",
            "cp",
            "auth",
            "debug",
            "events",
            "why",
            "explain-scheduling",
        ],
    ),
    ("Advanced Commands", &["diff", "apply", "patch", "replace", "wait", "kustomize"]),
    ("Settings Commands", &["label", "annotate", "completion"]),
    ("Other Commands", &["config", "kuberc", "plugin", "version", "api-versions", "api-resources", "options"]),
];

/// Examples: the command, what for, and the line.
const EXAMPLES: &[(&str, &str, &str)] = &[
    ("annotate", "Note on a pod why it is there", "annotate pods web-0 description='the first one'"),
    ("apply", "Apply the objects of a file", "apply -f objects.yaml"),
    (
        "apply",
        "Apply a directory, and delete what was applied before and is gone from it",
        "apply --prune -f dir/ --all",
    ),
    ("apply", "Apply what a kustomization comes to", "apply -k overlays/prod/"),
    ("attach", "See what a running container prints", "attach web-0"),
    ("auth can-i", "Ask whether you may create pods anywhere", "auth can-i create pods --all-namespaces"),
    ("auth reconcile", "Make roles and bindings allow what a file says", "auth reconcile -f access.yaml"),
    ("autoscale", "Let a deployment have two to ten pods", "autoscale deployment web --min=2 --max=10"),
    ("cluster-info dump", "Write the state of the cluster into files", "cluster-info dump --output-directory=state"),
    ("config use-context", "Work with another cluster from now on", "config use-context other"),
    ("cordon", "Keep new pods off a node", "cordon node-1"),
    ("cp", "Copy a directory out of a pod", "cp web-0:/var/log ./log"),
    ("create", "Make the objects of a file", "create -f objects.yaml"),
    (
        "create configmap",
        "Make a config map of two values",
        "create configmap limits --from-literal=low=1 --from-literal=high=9",
    ),
    ("create deployment", "Run three pods of an image", "create deployment web --image=nginx --replicas=3"),
    ("create job", "Run a cron job's work now", "create job now --from=cronjob/nightly"),
    ("create role", "Allow reading pods", "create role reader --verb=get,list,watch --resource=pods"),
    ("create secret generic", "Keep a file as a secret", "create secret generic key --from-file=id=./id_ed25519"),
    ("create token", "Ask for a service account's token", "create token builder --duration=10m"),
    ("debug", "Look into a running pod with tools of another image", "debug -it web-0 --image=busybox --target=web"),
    ("debug", "Look at a node's files", "debug node/node-1 -it --image=busybox"),
    ("delete", "Delete a pod", "delete pod web-0"),
    ("delete", "Delete the pods and services that a label selects", "delete pods,services -l app=web"),
    ("describe", "Tell all about a node", "describe node node-1"),
    ("diff", "Show what applying a file would change", "diff -f objects.yaml"),
    ("diff", "Show what has changed in a quarter of an hour", "diff --since=15m"),
    ("drain", "Empty a node for maintenance", "drain node-1 --ignore-daemonsets"),
    ("edit", "Change a service in an editor", "edit service web"),
    ("events", "Follow the warnings of all namespaces", "events -A --types=Warning --watch"),
    ("exec", "Get a shell in a pod", "exec -it web-0 -- sh"),
    ("explain", "Tell what the fields of a container are", "explain pods.spec.containers"),
    ("expose", "Put a service in front of a deployment", "expose deployment web --port=80 --target-port=8080"),
    ("get", "List the pods of this namespace", "get pods"),
    ("get", "List services and deployments, with more columns", "get services,deployments -o wide"),
    ("get", "Print one field of an object", "get pod web-0 -o jsonpath='{.status.podIP}'"),
    ("get", "List the pods as they were ten minutes ago", "get pods --at=10m"),
    ("kustomize", "Print what a kustomization comes to", "kustomize overlays/prod"),
    ("label", "Label a pod", "label pods web-0 tier=front"),
    ("logs", "Follow the logs of all pods of an app", "logs -f -l app=web --prefix"),
    ("patch", "Change one field", "patch deployment web -p '{\"spec\":{\"replicas\":3}}'"),
    ("port-forward", "Reach a service's port 80 on 8080 here", "port-forward service/web 8080:80"),
    ("proxy", "Reach the API without credentials from here", "proxy --port=8001"),
    ("replace", "Put a file's objects in the place of what is there", "replace -f objects.yaml"),
    ("rollout restart", "Start all pods of a deployment anew", "rollout restart deployment/web"),
    ("rollout status", "Wait until a rollout is done", "rollout status deployment/web"),
    ("rollout undo", "Go back to the version before", "rollout undo deployment/web"),
    ("run", "Run a pod and stay in it until its end", "run -it --rm shell --image=busybox --restart=Never -- sh"),
    ("scale", "Let a deployment have three pods", "scale --replicas=3 deployment/web"),
    ("set env", "Set a variable of a deployment's containers", "set env deployment/web MODE=fast"),
    ("set image", "Use another image", "set image deployment/web web=nginx:1.27"),
    ("taint", "Keep pods off a node that do not tolerate it", "taint nodes node-1 dedicated=batch:NoSchedule"),
    ("top pod", "Show what the containers of all pods use", "top pod -A --containers"),
    ("uncordon", "Let pods onto a node again", "uncordon node-1"),
    ("wait", "Wait until a pod is ready", "wait --for=condition=Ready pod/web-0 --timeout=60s"),
    ("why", "Find out why a pod does not run", "why pod/web-0"),
];

const SHORTEST: usize = 11;
const OPTIONS: &str = "Use \"kubectl options\" for a list of global command-line options (applies to all commands).";

/// The words with aliases replaced by what they stand for.
pub fn canonical(words: &[&str]) -> Vec<String> {
    let mut words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
    for length in (1..=2).rev() {
        let said = words.iter().take(length).map(String::as_str).collect::<Vec<_>>().join(" ");
        if let Some((_, stands_for)) = ALIASES.iter().find(|(alias, _)| *alias == said) {
            words.splice(..length, stands_for.split(' ').map(str::to_owned));
            break;
        }
    }
    words
}

/// What the command or group of a path does.
fn about(path: &str) -> Option<&'static str> {
    let command = COMMANDS.iter().find(|c| c.path == path).map(|c| c.about);
    command.or_else(|| GROUPS.iter().find(|g| g.path == path).map(|g| g.about))
}

/// The commands and groups right under a path.
fn children(path: &str) -> Vec<(&'static str, &'static str)> {
    let under = |full: &'static str| full.strip_prefix(path)?.strip_prefix(' ').filter(|rest| !rest.contains(' '));
    let commands = COMMANDS.iter().filter_map(|c| Some((under(c.path)?, c.about)));
    let groups = GROUPS.iter().filter_map(|g| Some((under(g.path)?, g.about)));
    let mut all: Vec<_> = commands.chain(groups).collect();
    all.sort_unstable();
    all
}

fn listed(children: &[(&str, &str)]) -> String {
    let width = children.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(SHORTEST) + 3;
    children.iter().map(|(name, about)| format!("  {name:<width$}{about}\n")).collect()
}

fn page(path: &str, about: &str, options: &str, usage: &str) -> String {
    let mut text = format!("{about}.\n\n");
    let aliases: Vec<&str> = ALIASES.iter().filter(|(_, of)| *of == path).map(|(alias, _)| *alias).collect();
    if !aliases.is_empty() {
        let last = |path: &str| path.rsplit(' ').next().unwrap_or_default().to_owned();
        let names: Vec<String> = std::iter::once(path).chain(aliases).map(last).collect();
        text += &format!("Aliases:\n{}\n\n", names.join(", "));
    }
    let examples: Vec<String> = EXAMPLES
        .iter()
        .filter(|(of, ..)| *of == path)
        .map(|(_, what, line)| format!("  # {what}\n  kubectl {line}\n"))
        .collect();
    if !examples.is_empty() {
        text += &format!("Examples:\n{}\n", examples.join("  \n"));
    }
    let children = children(path);
    if !children.is_empty() {
        text += &format!("Available Commands:\n{}\n", listed(&children));
    }
    if !options.is_empty() {
        text += &format!("Options:\n{options}");
    }
    let usage = if usage.is_empty() { String::new() } else { format!(" {usage}") };
    text += &format!("Usage:\n  kubectl {path}{usage} [options]\n\n");
    if !children.is_empty() {
        text += &format!("Use \"kubectl {path} <command> --help\" for more information about a given command.\n");
    }
    text + OPTIONS + "\n"
}

/// What `--help` prints of a command.
pub fn of_command(command: &Command) -> String {
    page(command.path, command.about, &flags(command.flags), command.usage)
}

/// What a group prints when nothing under it is named.
pub fn of_group(group: &Group) -> String {
    page(group.path, group.about, "", group.usage)
}

/// The overview.
pub fn overview() -> String {
    let mut text = "kubectl controls the Kubernetes cluster manager; this one is Keelson's.\n\n".to_owned();
    for (title, names) in SECTIONS {
        let rows: Vec<(&str, &str)> = names.iter().filter_map(|name| Some((*name, about(name)?))).collect();
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(SHORTEST + 2) + 3;
        let lines: String = rows.iter().map(|(name, about)| format!("  {name:<width$}{about}\n")).collect();
        text += &format!("{title}:\n{lines}\n");
    }
    text + "Usage:\n  kubectl [flags] [options]\n\nUse \"kubectl <command> --help\" for more information about a given command.\n"
        + OPTIONS
        + "\n"
}

/// How many letters have to be changed, added or left out to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let changed = before + usize::from(x != y);
            before = row[j + 1];
            row[j + 1] = changed.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.chars().count()]
}

/// The refusal of a word that is no command, with those that it may have meant.
pub fn unknown(word: &str) -> Failure {
    /// Words that differ in more letters are not meant.
    const FARTHEST: usize = 2;
    let near = |name: &&str| name.starts_with(word) || distance(word, name) <= FARTHEST;
    let names: Vec<&str> = SECTIONS.iter().flat_map(|(_, names)| names.iter().copied()).filter(near).collect();
    let meant = match names.is_empty() {
        true => String::new(),
        false => format!("\n\nDid you mean this?\n\t{}\n", names.join("\n\t")),
    };
    Failure::Error(format!("unknown command {word:?} for \"kubectl\"{meant}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_name_commands_that_exist() {
        let exists = |path: &str| about(path).is_some();
        assert!(ALIASES.iter().all(|(alias, of)| exists(of) && !exists(alias)));
        for (path, ..) in EXAMPLES {
            assert!(exists(path), "{path}");
        }
        for (_, names) in SECTIONS {
            assert!(names.iter().all(|name| exists(name)), "{names:?}");
        }
        let first = COMMANDS.iter().filter_map(|c| c.path.split(' ').next());
        let shown: Vec<&str> = SECTIONS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        first.for_each(|name| assert!(shown.contains(&name), "{name}"));
    }

    #[test]
    fn aliases_and_near_words() {
        assert_eq!(canonical(&["create", "svc", "clusterip", "x"]), ["create", "service", "clusterip", "x"]);
        assert_eq!(canonical(&["top", "po"]), ["top", "pod"]);
        assert_eq!((distance("ge", "get"), distance("", "ab"), distance("kitten", "sitting")), (1, 2, 3));
        assert!(unknown("gett").to_string().contains("\tget\n"));
    }
}

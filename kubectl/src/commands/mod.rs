//! The table of commands.

mod api;
mod applied;
mod apply;
mod applyset;
mod auth;
mod change;
pub mod completion;
mod config;
mod copy;
mod create;
mod debug;
mod delete;
mod diff;
mod dump;
mod edit;
mod events;
mod exec;
mod explain;
mod forward;
mod generate;
mod get;
mod history;
pub mod kuberc;
mod kustomize;
mod logs;
mod metadata;
mod node;
pub mod plugin;
mod proxy;
mod prune;
mod reconcile;
mod rollout;
mod run;
mod scale;
mod set;
mod settings;
mod top;
mod wait;

use futures::future::BoxFuture;

use crate::failure::{Failure, Outcome};
use crate::flags::Flag;
use crate::session::Session;

/// One command.
pub struct Command {
    /// The words that call it.
    pub path: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Its arguments, for help.
    pub usage: &'static str,
    /// Its flags, besides those of every command.
    pub flags: &'static [&'static [Flag]],
    /// Whether flags may stand between arguments.
    pub interspersed: bool,
    /// Does it.
    pub run: for<'a> fn(&'a Session) -> BoxFuture<'a, Outcome>,
}

/// What failed before, and what failed now.
pub fn say(before: Option<Failure>, now: Failure) -> Failure {
    now.after(before)
}

macro_rules! command {
    ($path:literal, $run:path, $flags:expr, $usage:literal, $about:literal) => {
        Command {
            path: $path,
            about: $about,
            usage: $usage,
            flags: $flags,
            interspersed: true,
            run: |session| Box::pin($run(session)),
        }
    };
}

/// All commands.
pub static COMMANDS: &[Command] = &[
    command!(
        "annotate",
        metadata::annotate,
        metadata::ANNOTATE,
        "[--overwrite] (-f FILENAME | TYPE NAME) KEY_1=VAL_1 ... KEY_N=VAL_N",
        "Update the annotations on a resource"
    ),
    command!(
        "api-resources",
        api::resources,
        api::RESOURCES,
        "[flags]",
        "Print the supported API resources on the server"
    ),
    command!(
        "api-versions",
        api::versions,
        &[],
        "",
        "Print the supported API versions on the server, in the form of \"group/version\""
    ),
    command!(
        "apply",
        apply::apply,
        apply::FLAGS,
        "(-f FILENAME | -k DIRECTORY)",
        "Apply a configuration to a resource by file name or stdin"
    ),
    command!(
        "apply edit-last-applied",
        applied::edit,
        applied::EDIT,
        "(RESOURCE/NAME | -f FILENAME)",
        "Edit latest last-applied-configuration annotations of a resource/object"
    ),
    command!(
        "apply set-last-applied",
        applied::set,
        applied::SET,
        "-f FILENAME",
        "Set the last-applied-configuration annotation on a live object to match the contents of a file"
    ),
    command!(
        "apply view-last-applied",
        applied::view,
        applied::VIEW,
        "(TYPE [NAME | -l label] | TYPE/NAME | -f FILENAME)",
        "View the latest last-applied-configuration annotations of a resource/object"
    ),
    command!("attach", exec::attach, exec::ATTACH, "(POD | TYPE/NAME) -c CONTAINER", "Attach to a running container"),
    command!(
        "auth can-i",
        auth::can_i,
        auth::CAN_I,
        "VERB [TYPE | TYPE/NAME | NONRESOURCEURL]",
        "Check whether an action is allowed"
    ),
    command!(
        "auth reconcile",
        reconcile::reconcile,
        reconcile::FLAGS,
        "-f FILENAME",
        "Reconciles rules for RBAC role, role binding, cluster role, and cluster role binding objects"
    ),
    command!("auth whoami", auth::whoami, auth::WHOAMI, "", "Experimental: Check self subject attributes"),
    command!(
        "autoscale",
        scale::autoscale,
        scale::AUTOSCALE,
        "(-f FILENAME | TYPE NAME | TYPE/NAME) [--min=MINPODS] --max=MAXPODS [--cpu=CPU]",
        "Auto-scale a deployment, replica set, stateful set, or replication controller"
    ),
    command!(
        "certificate approve",
        auth::approve,
        auth::CERTIFICATE,
        "(-f FILENAME | NAME)",
        "Approve a certificate signing request"
    ),
    command!(
        "certificate deny",
        auth::deny,
        auth::CERTIFICATE,
        "(-f FILENAME | NAME)",
        "Deny a certificate signing request"
    ),
    command!("cluster-info", api::cluster_info, &[], "", "Display cluster information"),
    command!("cluster-info dump", dump::dump, dump::FLAGS, "", "Dump relevant information for debugging and diagnosis"),
    command!(
        "completion",
        completion::completion,
        &[],
        "SHELL",
        "Output shell completion code for the specified shell (bash, zsh, fish, or powershell)"
    ),
    command!("config current-context", config::current_context, &[], "", "Display the current-context"),
    command!(
        "config delete-cluster",
        settings::delete_cluster,
        &[],
        "NAME",
        "Delete the specified cluster from the kubeconfig"
    ),
    command!(
        "config delete-context",
        settings::delete_context,
        &[],
        "NAME",
        "Delete the specified context from the kubeconfig"
    ),
    command!("config delete-user", settings::delete_user, &[], "NAME", "Delete the specified user from the kubeconfig"),
    command!("config get-clusters", config::get_clusters, &[], "", "Display clusters defined in the kubeconfig"),
    command!(
        "config get-contexts",
        config::get_contexts,
        config::GET_CONTEXTS,
        "[(-o|--output=)name)]",
        "Describe one or many contexts"
    ),
    command!("config get-users", config::get_users, &[], "", "Display users defined in the kubeconfig"),
    command!(
        "config rename-context",
        settings::rename_context,
        &[],
        "CONTEXT_NAME NEW_NAME",
        "Rename a context from the kubeconfig file"
    ),
    command!(
        "config set",
        settings::set_property,
        settings::SET,
        "PROPERTY_NAME PROPERTY_VALUE",
        "Set an individual value in a kubeconfig file"
    ),
    command!("config unset", settings::unset, &[], "PROPERTY_NAME", "Unset an individual value in a kubeconfig file"),
    command!(
        "config set-cluster",
        settings::set_cluster,
        settings::SET_CLUSTER,
        "NAME [--server=server] [--certificate-authority=path/to/certificate/authority] [--insecure-skip-tls-verify=true] [--tls-server-name=example.com]",
        "Set a cluster entry in kubeconfig"
    ),
    command!(
        "config set-context",
        settings::set_context,
        settings::SET_CONTEXT,
        "[NAME | --current] [--cluster=cluster_nickname] [--user=user_nickname] [--namespace=namespace]",
        "Set a context entry in kubeconfig"
    ),
    command!(
        "config set-credentials",
        settings::set_credentials,
        settings::SET_CREDENTIALS,
        "NAME [--client-certificate=path/to/certfile] [--client-key=path/to/keyfile] [--token=bearer_token] [--username=basic_user] [--password=basic_password] [--auth-provider=provider_name] [--auth-provider-arg=key=value] [--exec-command=exec_command] [--exec-api-version=exec_api_version] [--exec-arg=arg] [--exec-env=key=value]",
        "Set a user entry in kubeconfig"
    ),
    command!(
        "config use-context",
        settings::use_context,
        &[],
        "CONTEXT_NAME",
        "Set the current-context in a kubeconfig file"
    ),
    command!(
        "config view",
        config::view,
        config::VIEW,
        "[flags]",
        "Display merged kubeconfig settings or a specified kubeconfig file"
    ),
    command!("cordon", node::cordon, node::CORDON, "NODE", "Mark node as unschedulable"),
    command!(
        "cp",
        copy::copy,
        copy::FLAGS,
        "<file-spec-src> <file-spec-dest>",
        "Copy files and directories to and from containers"
    ),
    command!(
        "create",
        create::create_files,
        create::FLAGS,
        "-f FILENAME",
        "Create a resource from a file or from stdin"
    ),
    command!(
        "create clusterrole",
        generate::cluster_role,
        generate::CLUSTER_ROLE,
        "NAME --verb=verb --resource=resource.group",
        "Create a cluster role"
    ),
    command!(
        "create clusterrolebinding",
        generate::cluster_role_binding,
        generate::CLUSTER_BINDING,
        "NAME --clusterrole=NAME [--user=username] [--group=groupname]",
        "Create a cluster role binding for a particular cluster role"
    ),
    command!(
        "create configmap",
        generate::config_map,
        generate::DATA,
        "NAME [--from-file=[key=]source] [--from-literal=key1=value1]",
        "Create a config map from a local file, directory or literal value"
    ),
    command!(
        "create cronjob",
        generate::cron_job,
        generate::CRON_JOB,
        "NAME --image=image --schedule='0/5 * * * ?' -- [COMMAND] [args...]",
        "Create a cron job with the specified name"
    ),
    command!(
        "create deployment",
        generate::deployment,
        generate::DEPLOYMENT,
        "NAME --image=image -- [COMMAND] [args...]",
        "Create a deployment with the specified name"
    ),
    command!(
        "create ingress",
        generate::ingress,
        generate::INGRESS,
        "NAME --rule=host/path=service:port[,tls[=secret]]",
        "Create an ingress with the specified name"
    ),
    command!(
        "create job",
        generate::job,
        generate::JOB,
        "NAME --image=image [--from=cronjob/name] -- [COMMAND] [args...]",
        "Create a job with the specified name"
    ),
    command!(
        "create namespace",
        generate::namespace,
        generate::PLAIN,
        "NAME",
        "Create a namespace with the specified name"
    ),
    command!(
        "create poddisruptionbudget",
        generate::disruption_budget,
        generate::DISRUPTION_BUDGET,
        "NAME --selector=SELECTOR --min-available=N",
        "Create a pod disruption budget with the specified name"
    ),
    command!(
        "create priorityclass",
        generate::priority_class,
        generate::PRIORITY_CLASS,
        "NAME --value=VALUE",
        "Create a priority class with the specified name"
    ),
    command!(
        "create quota",
        generate::quota,
        generate::QUOTA,
        "NAME [--hard=key1=value1,key2=value2]",
        "Create a quota with the specified name"
    ),
    command!(
        "create role",
        generate::role,
        generate::ROLE,
        "NAME --verb=verb --resource=resource.group/subresource",
        "Create a role with single rule"
    ),
    command!(
        "create rolebinding",
        generate::role_binding,
        generate::BINDING,
        "NAME --clusterrole=NAME|--role=NAME",
        "Create a role binding for a particular role or cluster role"
    ),
    command!(
        "create secret docker-registry",
        generate::registry_secret,
        generate::REGISTRY,
        "NAME --docker-username=user --docker-password=password",
        "Create a secret for use with a Docker registry"
    ),
    command!(
        "create secret generic",
        generate::secret,
        generate::SECRET,
        "NAME [--type=string] [--from-file=[key=]source]",
        "Create a secret from a local file, directory, or literal value"
    ),
    command!(
        "create secret tls",
        generate::tls_secret,
        generate::TLS,
        "NAME --cert=path/to/cert/file --key=path/to/key/file",
        "Create a TLS secret"
    ),
    command!(
        "create service clusterip",
        generate::cluster_ip,
        generate::CLUSTER_IP,
        "NAME [--tcp=<port>:<targetPort>]",
        "Create a ClusterIP service"
    ),
    command!(
        "create service externalname",
        generate::external_name,
        generate::EXTERNAL_NAME,
        "NAME --external-name external.name",
        "Create an ExternalName service"
    ),
    command!(
        "create service loadbalancer",
        generate::load_balancer,
        generate::LOAD_BALANCER,
        "NAME [--tcp=port:targetPort]",
        "Create a LoadBalancer service"
    ),
    command!(
        "create service nodeport",
        generate::node_port,
        generate::NODE_PORT,
        "NAME [--tcp=port:targetPort]",
        "Create a NodePort service"
    ),
    command!(
        "create serviceaccount",
        generate::service_account,
        generate::PLAIN,
        "NAME",
        "Create a service account with the specified name"
    ),
    command!("create token", auth::token, auth::TOKEN, "SERVICE_ACCOUNT_NAME", "Request a service account token"),
    command!(
        "debug",
        debug::debug,
        debug::FLAGS,
        "(POD | TYPE[[.VERSION].GROUP]/NAME) [ -- COMMAND [args...] ]",
        "Create debugging sessions for troubleshooting workloads and nodes"
    ),
    command!(
        "delete",
        delete::delete,
        delete::FLAGS,
        "([-f FILENAME] | [-k DIRECTORY] | TYPE [(NAME | -l label | --all)])",
        "Delete resources by file names, stdin, resources and names, or by resources and label selector"
    ),
    command!(
        "describe",
        crate::describe::describe,
        crate::describe::FLAGS,
        "(-f FILENAME | TYPE [NAME_PREFIX | -l label] | TYPE/NAME)",
        "Show details of a specific resource or group of resources"
    ),
    command!(
        "diff",
        diff::diff,
        diff::FLAGS,
        "-f FILENAME",
        "Diff the live version against a would-be applied version"
    ),
    command!("drain", node::drain, node::DRAIN, "NODE", "Drain node in preparation for maintenance"),
    command!("edit", edit::edit, edit::FLAGS, "(RESOURCE/NAME | -f FILENAME)", "Edit a resource on the server"),
    command!(
        "events",
        events::events,
        events::FLAGS,
        "[(-o|--output=)json|yaml] [--for TYPE/NAME] [--types=Normal,Warning]",
        "List events"
    ),
    command!(
        "exec",
        exec::exec,
        exec::FLAGS,
        "(POD | TYPE/NAME) [-c CONTAINER] [flags] -- COMMAND [args...]",
        "Execute a command in a container"
    ),
    command!(
        "explain-scheduling",
        crate::why::explain_scheduling,
        &[],
        "POD",
        "Say of each node what speaks against it for a pod"
    ),
    command!(
        "explain",
        explain::explain,
        explain::FLAGS,
        "TYPE [--recursive=FALSE|TRUE] [--api-version=api-version-group] [-o|--output=plaintext|plaintext-openapiv2]",
        "Get documentation for a resource"
    ),
    command!(
        "expose",
        run::expose,
        run::EXPOSE,
        "(-f FILENAME | TYPE NAME) [--port=port]",
        "Expose a resource as a new Kubernetes service"
    ),
    command!(
        "get",
        get::get,
        get::FLAGS,
        "(TYPE[.VERSION][.GROUP] [NAME | -l label] | TYPE[.VERSION][.GROUP]/NAME ...) [flags]",
        "Display one or many resources"
    ),
    command!(
        "kuberc set",
        kuberc::set,
        kuberc::SET,
        "--section=SECTION --command=COMMAND",
        "Set values in the kuberc configuration"
    ),
    command!("kuberc view", kuberc::view, kuberc::VIEW, "", "Display the contents of the kuberc file"),
    command!(
        "kustomize",
        kustomize::kustomize,
        kustomize::FLAGS,
        "DIR",
        "Build a kustomization target from a directory or URL"
    ),
    command!(
        "label",
        metadata::label,
        metadata::LABEL,
        "[--overwrite] (-f FILENAME | TYPE NAME) KEY_1=VAL_1 ... KEY_N=VAL_N",
        "Update the labels on a resource"
    ),
    command!(
        "logs",
        logs::logs,
        logs::FLAGS,
        "[-f] [-p] (POD | TYPE/NAME) [-c CONTAINER]",
        "Print the logs for a container in a pod"
    ),
    command!("options", api::options, &[], "", "Print the list of flags inherited by all commands"),
    command!(
        "patch",
        change::patch,
        change::PATCH,
        "(-f FILENAME | TYPE NAME) [-p PATCH|--patch-file FILE]",
        "Update fields of a resource"
    ),
    command!("plugin list", plugin::list, plugin::FLAGS, "", "List all visible plugin executables on a user's PATH"),
    command!(
        "port-forward",
        forward::forward,
        forward::FLAGS,
        "TYPE/NAME [options] [LOCAL_PORT:]REMOTE_PORT [...[LOCAL_PORT_N:]REMOTE_PORT_N]",
        "Forward one or more local ports to a pod"
    ),
    command!(
        "proxy",
        proxy::proxy,
        proxy::FLAGS,
        "[--port=PORT] [--www=static-dir] [--www-prefix=prefix] [--api-prefix=prefix]",
        "Run a proxy to the Kubernetes API server"
    ),
    command!("replace", create::replace, create::REPLACE, "-f FILENAME", "Replace a resource by file name or stdin"),
    command!(
        "rollout history",
        rollout::history,
        rollout::HISTORY,
        "(TYPE NAME | TYPE/NAME) [flags]",
        "View rollout history"
    ),
    command!("rollout pause", rollout::pause, rollout::FLAGS, "RESOURCE", "Mark the provided resource as paused"),
    command!("rollout restart", rollout::restart, rollout::FLAGS, "RESOURCE", "Restart a resource"),
    command!("rollout resume", rollout::resume, rollout::FLAGS, "RESOURCE", "Resume a paused resource"),
    command!(
        "rollout status",
        rollout::status,
        rollout::STATUS,
        "(TYPE NAME | TYPE/NAME) [flags]",
        "Show the status of the rollout"
    ),
    command!(
        "rollout undo",
        rollout::undo,
        rollout::UNDO,
        "(TYPE NAME | TYPE/NAME) [flags]",
        "Undo a previous rollout"
    ),
    command!(
        "run",
        run::run,
        run::FLAGS,
        "NAME --image=image [--env=\"key=value\"] [--port=port] -- [COMMAND] [args...]",
        "Run a particular image on the cluster"
    ),
    command!(
        "scale",
        scale::scale,
        scale::FLAGS,
        "[--resource-version=version] [--current-replicas=count] --replicas=COUNT (-f FILENAME | TYPE NAME)",
        "Set a new size for a deployment, replica set, or replication controller"
    ),
    command!(
        "set env",
        set::env,
        set::ENV,
        "RESOURCE/NAME KEY_1=VAL_1 ... KEY_N=VAL_N",
        "Update environment variables on a pod template"
    ),
    command!(
        "set image",
        set::image,
        set::FLAGS,
        "(-f FILENAME | TYPE NAME) CONTAINER_NAME_1=CONTAINER_IMAGE_1",
        "Update the image of a pod template"
    ),
    command!(
        "set resources",
        set::resources,
        set::RESOURCES,
        "(-f FILENAME | TYPE NAME) ([--limits=LIMITS & --requests=REQUESTS]",
        "Update resource requests/limits on objects with pod templates"
    ),
    command!(
        "set selector",
        set::selector,
        set::SELECTOR,
        "(-f FILENAME | TYPE NAME) EXPRESSIONS [--resource-version=version]",
        "Set the selector on a resource"
    ),
    command!(
        "set subject",
        set::subject,
        set::SUBJECT,
        "(-f FILENAME | TYPE NAME) [--user=username] [--group=groupname] [--serviceaccount=namespace:serviceaccountname]",
        "Update the user, group, or service account in a role binding or cluster role binding"
    ),
    command!(
        "set serviceaccount",
        set::service_account,
        set::ACCOUNT,
        "(-f FILENAME | TYPE NAME) SERVICE_ACCOUNT",
        "Update the service account of a resource"
    ),
    command!(
        "taint",
        node::taint,
        node::TAINT,
        "NODE NAME KEY_1=VAL_1:TAINT_EFFECT_1",
        "Update the taints on one or more nodes"
    ),
    command!("top node", top::node, top::NODE, "[NAME | -l label]", "Display resource (CPU/memory) usage of nodes"),
    command!("top pod", top::pod, top::POD, "[NAME | -l label]", "Display resource (CPU/memory) usage of pods"),
    command!("uncordon", node::uncordon, node::CORDON, "NODE", "Mark node as schedulable"),
    command!("version", api::version, api::VERSION, "", "Print the client and server version information"),
    command!(
        "wait",
        wait::wait,
        wait::FLAGS,
        "([-f FILENAME] | resource.group/resource.name) [--for=create|--for=delete|--for condition=available]",
        "Wait for a specific condition on one or many resources"
    ),
    command!(
        "why",
        crate::why::why,
        crate::why::FLAGS,
        "(POD | KIND/NAME)",
        "Explain why an object is not as it should be"
    ),
];

/// The refusal of a kind that some commands only know from their own types.
fn known(kind: &crate::kinds::Kind) -> Outcome {
    match keelson_machinery::schema::of_kind(&kind.group, &kind.version, &kind.kind) {
        Some(_) => Ok(()),
        None => Err(Failure::new(format!(
            "no kind {:?} is registered for version {:?} in scheme \"pkg/scheme/scheme.go:28\"",
            kind.kind,
            kind.api_version()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Flags of every command that commands with a meaning of their own for them hide.
    const SHADOWED: [&str; 13] = [
        "profile",
        "user",
        "server",
        "certificate-authority",
        "insecure-skip-tls-verify",
        "tls-server-name",
        "cluster",
        "namespace",
        "client-certificate",
        "client-key",
        "password",
        "token",
        "username",
    ];

    #[test]
    fn commands_and_their_flags_are_there_once() {
        for (at, command) in COMMANDS.iter().enumerate() {
            assert!(COMMANDS[at + 1..].iter().all(|c| c.path != command.path), "{}", command.path);
            let hides = |f: &&Flag| {
                SHADOWED.contains(&f.name) && command.flags.iter().flat_map(|t| *t).any(|o| o.name == f.name)
            };
            let global = crate::session::GLOBAL.iter().filter(|f| !hides(f));
            let flags: Vec<&Flag> = command.flags.iter().copied().flatten().chain(global).collect();
            for (at, flag) in flags.iter().enumerate() {
                let twice = |f: &&Flag| f.name == flag.name || (f.short.is_some() && f.short == flag.short);
                assert!(!flags[at + 1..].iter().any(twice), "{} --{}", command.path, flag.name);
            }
        }
    }
}

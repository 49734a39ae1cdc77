//! `kustomize`: prints what a kustomization comes to.

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, switch, text};
use crate::session::Session;

/// Flags of `kustomize`.
pub const FLAGS: &[&[Flag]] = &[&[
    switch("as-current-user", "use the uid and gid of the command executor to run the function in the container"),
    switch("enable-alpha-plugins", "enable kustomize plugins"),
    switch("enable-managedby-label", "enable adding app.kubernetes.io/managed-by"),
    switch("enable-helm", "Enable use of the Helm chart inflator generator."),
    repeated("env", "a list of environment variables to be used by functions").short('e'),
    repeated("helm-api-versions", "Kubernetes api versions used by Helm for Capabilities.APIVersions"),
    switch("helm-debug", "Enable debug output from the Helm chart inflator generator."),
    text("helm-kube-version", "", "Kubernetes version used by Helm for Capabilities.KubeVersion"),
    repeated("mount", "a list of storage options read from the filesystem"),
    switch("network", "enable network access for functions that declare it"),
    text("network-name", "bridge", "the docker network to run the container in"),
    text("helm-command", "helm", "helm command (path to executable)"),
    text(
        "load-restrictor",
        "LoadRestrictionsRootOnly",
        "if set to 'LoadRestrictionsNone', local kustomizations may load files from outside their root.",
    ),
    text("output", "", "If specified, write output to this path.").short('o'),
]];

/// Runs `kustomize`.
pub async fn kustomize(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    for refused in ["enable-alpha-plugins", "enable-helm"] {
        if parsed.on(refused) {
            return Err(Failure::new(format!("--{refused} is not supported")));
        }
    }
    let directory = match parsed.args.as_slice() {
        [] => ".",
        [one] => one,
        _ => return Err(Failure::new("specify one path to kustomization.yaml")),
    };
    let anywhere = match parsed.text("load-restrictor") {
        "LoadRestrictionsRootOnly" => false,
        "LoadRestrictionsNone" => true,
        other => {
            return Err(Failure::new(format!(
                "illegal flag value --load-restrictor {other}; legal values: [LoadRestrictionsRootOnly LoadRestrictionsNone]"
            )));
        }
    };
    let options = crate::kustomize::Options { anywhere, managed_by: parsed.on("enable-managedby-label") };
    if parsed.is_set("enable-managedby-label") {
        eprintln!(
            "Flag --enable-managedby-label has been deprecated, The flag `enable-managedby-label` has been deprecated. Use \
             the `managedByLabel` option in the `buildMetadata` field instead."
        );
    }
    let text = crate::kustomize::text(&crate::kustomize::build_with(directory, options)?)?;
    match parsed.text("output") {
        "" => print!("{text}"),
        file => std::fs::write(file, text)
            .map_err(|e| Failure::new(format!("open {file}: {}", crate::failure::reason(&e))))?,
    }
    Ok(())
}

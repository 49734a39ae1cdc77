//! Flags of `keelson server` that say who may ask, what is refused and what is recorded: kube-apiserver's own names.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args as Flags;
use keelson_apiserver::audit::{self, Mode, Rotation, WebhookSettings};
use keelson_apiserver::{Settings, admission, authn, authz};

use crate::args::config_duration as duration;

/// The flags.
#[derive(Flags, Clone, Debug)]
pub struct AccessArgs {
    /// What is recorded of which request (audit.k8s.io/v1 Policy)
    #[arg(long, env = "KEELSON_AUDIT_POLICY_FILE", help_heading = "Audit")]
    pub audit_policy_file: Option<PathBuf>,
    /// File that audit events are written to; - is standard output
    #[arg(long, env = "KEELSON_AUDIT_LOG_PATH", help_heading = "Audit")]
    pub audit_log_path: Option<PathBuf>,
    /// Form of the file's lines: json or legacy
    #[arg(long, env = "KEELSON_AUDIT_LOG_FORMAT", default_value = "json", value_parser = ["json", "legacy"], help_heading = "Audit")]
    pub audit_log_format: String,
    /// Days for which old files are kept; 0: for ever
    #[arg(long, env = "KEELSON_AUDIT_LOG_MAXAGE", default_value_t = 0, help_heading = "Audit")]
    pub audit_log_maxage: i64,
    /// Old files that are kept; 0: all
    #[arg(long, env = "KEELSON_AUDIT_LOG_MAXBACKUP", default_value_t = 0, help_heading = "Audit")]
    pub audit_log_maxbackup: usize,
    /// Megabytes after which a new file is begun; 0: 100
    #[arg(long, env = "KEELSON_AUDIT_LOG_MAXSIZE", default_value_t = 0, help_heading = "Audit")]
    pub audit_log_maxsize: u64,
    /// Compress old files
    #[arg(long, env = "KEELSON_AUDIT_LOG_COMPRESS", help_heading = "Audit")]
    pub audit_log_compress: bool,
    /// Whether requests wait for the file: batch, blocking or blocking-strict
    #[arg(long, env = "KEELSON_AUDIT_LOG_MODE", default_value = "blocking", value_parser = Mode::parse, help_heading = "Audit")]
    pub audit_log_mode: Mode,
    /// kubeconfig of a service that audit events are posted to
    #[arg(long, env = "KEELSON_AUDIT_WEBHOOK_CONFIG_FILE", help_heading = "Audit")]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// Whether requests wait for the service: batch, blocking or blocking-strict
    #[arg(long, env = "KEELSON_AUDIT_WEBHOOK_MODE", default_value = "batch", value_parser = Mode::parse, help_heading = "Audit")]
    pub audit_webhook_mode: Mode,
    /// Pause before a post that failed is tried again
    #[arg(long, env = "KEELSON_AUDIT_WEBHOOK_INITIAL_BACKOFF", default_value = "10s", value_parser = duration, help_heading = "Audit")]
    pub audit_webhook_initial_backoff: Duration,
    /// Most events of one post
    #[arg(long, env = "KEELSON_AUDIT_WEBHOOK_BATCH_MAX_SIZE", default_value_t = 400, help_heading = "Audit")]
    pub audit_webhook_batch_max_size: usize,
    /// Longest that an event waits for others
    #[arg(long, env = "KEELSON_AUDIT_WEBHOOK_BATCH_MAX_WAIT", default_value = "30s", value_parser = duration, help_heading = "Audit")]
    pub audit_webhook_batch_max_wait: Duration,
    /// Which resources are stored encrypted, with which keys (apiserver.config.k8s.io/v1 EncryptionConfiguration); the same on all servers
    #[arg(long, env = "KEELSON_ENCRYPTION_PROVIDER_CONFIG", help_heading = "Encryption at rest")]
    pub encryption_provider_config: Option<PathBuf>,
    /// Authorizers in their order: AlwaysAllow, AlwaysDeny, ABAC, Webhook, RBAC, Node (default: Node,RBAC)
    #[arg(long, env = "KEELSON_AUTHORIZATION_MODE", value_delimiter = ',', help_heading = "Authorization")]
    pub authorization_mode: Vec<String>,
    /// Authorizers as a file says (apiserver.config.k8s.io/v1 AuthorizationConfiguration)
    #[arg(long, env = "KEELSON_AUTHORIZATION_CONFIG", help_heading = "Authorization")]
    pub authorization_config: Option<PathBuf>,
    /// Policies of the authorizer ABAC
    #[arg(long, env = "KEELSON_AUTHORIZATION_POLICY_FILE", help_heading = "Authorization")]
    pub authorization_policy_file: Option<PathBuf>,
    /// kubeconfig of the service that the authorizer Webhook asks
    #[arg(long, env = "KEELSON_AUTHORIZATION_WEBHOOK_CONFIG_FILE", help_heading = "Authorization")]
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// Version of the SubjectAccessReviews that it is sent: v1 or v1beta1
    #[arg(
        long,
        env = "KEELSON_AUTHORIZATION_WEBHOOK_VERSION",
        default_value = "v1beta1",
        help_heading = "Authorization"
    )]
    pub authorization_webhook_version: String,
    /// For how long its yes is remembered
    #[arg(long, env = "KEELSON_AUTHORIZATION_WEBHOOK_CACHE_AUTHORIZED_TTL", default_value = "5m", value_parser = duration, help_heading = "Authorization")]
    pub authorization_webhook_cache_authorized_ttl: Duration,
    /// For how long its no is remembered
    #[arg(long, env = "KEELSON_AUTHORIZATION_WEBHOOK_CACHE_UNAUTHORIZED_TTL", default_value = "30s", value_parser = duration, help_heading = "Authorization")]
    pub authorization_webhook_cache_unauthorized_ttl: Duration,
    /// Users by token: lines of token,name,uid,"group1,group2"
    #[arg(long, env = "KEELSON_TOKEN_AUTH_FILE", help_heading = "Authentication")]
    pub token_auth_file: Option<PathBuf>,
    /// Further certificate authorities whose certificates prove who a user is
    #[arg(long, env = "KEELSON_CLIENT_CA_FILE", help_heading = "Authentication")]
    pub client_ca_file: Option<PathBuf>,
    /// Whether nobody in particular may ask (default: true)
    #[arg(long, env = "KEELSON_ANONYMOUS_AUTH", num_args = 0..=1, default_missing_value = "true", help_heading = "Authentication")]
    pub anonymous_auth: Option<bool>,
    /// Issuers of tokens, and who may ask without proof (apiserver.config.k8s.io/v1 AuthenticationConfiguration)
    #[arg(long, env = "KEELSON_AUTHENTICATION_CONFIG", help_heading = "Authentication")]
    pub authentication_config: Option<PathBuf>,
    /// kubeconfig of a service that knows tokens
    #[arg(long, env = "KEELSON_AUTHENTICATION_TOKEN_WEBHOOK_CONFIG_FILE", help_heading = "Authentication")]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// Version of the TokenReviews that it is sent: v1 or v1beta1
    #[arg(
        long,
        env = "KEELSON_AUTHENTICATION_TOKEN_WEBHOOK_VERSION",
        default_value = "v1beta1",
        help_heading = "Authentication"
    )]
    pub authentication_token_webhook_version: String,
    /// For how long its answers are remembered
    #[arg(long, env = "KEELSON_AUTHENTICATION_TOKEN_WEBHOOK_CACHE_TTL", default_value = "2m", value_parser = duration, help_heading = "Authentication")]
    pub authentication_token_webhook_cache_ttl: Duration,
    /// URL of an OpenID Connect issuer
    #[arg(long, env = "KEELSON_OIDC_ISSUER_URL", default_value = "", help_heading = "Authentication")]
    pub oidc_issuer_url: String,
    /// Audience that its tokens must be for
    #[arg(long, env = "KEELSON_OIDC_CLIENT_ID", default_value = "", help_heading = "Authentication")]
    pub oidc_client_id: String,
    /// The issuer's certificate authority (default: the host's)
    #[arg(long, env = "KEELSON_OIDC_CA_FILE", help_heading = "Authentication")]
    pub oidc_ca_file: Option<PathBuf>,
    /// Claim with the user's name
    #[arg(long, env = "KEELSON_OIDC_USERNAME_CLAIM", default_value = "sub", help_heading = "Authentication")]
    pub oidc_username_claim: String,
    /// What is put before the name; - is nothing (default: the issuer's URL and #, nothing for the claim email)
    #[arg(
        long,
        env = "KEELSON_OIDC_USERNAME_PREFIX",
        default_value = "",
        allow_hyphen_values = true,
        help_heading = "Authentication"
    )]
    pub oidc_username_prefix: String,
    /// Claim with the user's groups
    #[arg(long, env = "KEELSON_OIDC_GROUPS_CLAIM", default_value = "", help_heading = "Authentication")]
    pub oidc_groups_claim: String,
    /// What is put before each group
    #[arg(long, env = "KEELSON_OIDC_GROUPS_PREFIX", default_value = "", help_heading = "Authentication")]
    pub oidc_groups_prefix: String,
    /// key=value of a claim that tokens must have; may be repeated
    #[arg(long, env = "KEELSON_OIDC_REQUIRED_CLAIM", value_delimiter = ',', help_heading = "Authentication")]
    pub oidc_required_claim: Vec<String>,
    /// Algorithms that may sign (default: RS256)
    #[arg(long, env = "KEELSON_OIDC_SIGNING_ALGS", value_delimiter = ',', help_heading = "Authentication")]
    pub oidc_signing_algs: Vec<String>,
    /// Certificate authority of a proxy that says who asks
    #[arg(long, env = "KEELSON_REQUESTHEADER_CLIENT_CA_FILE", help_heading = "Authentication")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of the proxy's certificate (default: any)
    #[arg(long, env = "KEELSON_REQUESTHEADER_ALLOWED_NAMES", value_delimiter = ',', help_heading = "Authentication")]
    pub requestheader_allowed_names: Vec<String>,
    /// Headers with the user's name
    #[arg(
        long,
        env = "KEELSON_REQUESTHEADER_USERNAME_HEADERS",
        value_delimiter = ',',
        default_value = "X-Remote-User",
        help_heading = "Authentication"
    )]
    pub requestheader_username_headers: Vec<String>,
    /// Headers with the user's uid
    #[arg(
        long,
        env = "KEELSON_REQUESTHEADER_UID_HEADERS",
        value_delimiter = ',',
        default_value = "X-Remote-Uid",
        help_heading = "Authentication"
    )]
    pub requestheader_uid_headers: Vec<String>,
    /// Headers with groups
    #[arg(
        long,
        env = "KEELSON_REQUESTHEADER_GROUP_HEADERS",
        value_delimiter = ',',
        default_value = "X-Remote-Group",
        help_heading = "Authentication"
    )]
    pub requestheader_group_headers: Vec<String>,
    /// What headers with further attributes begin with
    #[arg(
        long,
        env = "KEELSON_REQUESTHEADER_EXTRA_HEADERS_PREFIX",
        value_delimiter = ',',
        default_value = "X-Remote-Extra-",
        help_heading = "Authentication"
    )]
    pub requestheader_extra_headers_prefix: Vec<String>,
    /// Admission plugins beside those that are on by default
    #[arg(long, env = "KEELSON_ENABLE_ADMISSION_PLUGINS", value_delimiter = ',', help_heading = "Admission")]
    pub enable_admission_plugins: Vec<String>,
    /// Admission plugins that are off
    #[arg(long, env = "KEELSON_DISABLE_ADMISSION_PLUGINS", value_delimiter = ',', help_heading = "Admission")]
    pub disable_admission_plugins: Vec<String>,
    /// What admission plugins need to know (apiserver.config.k8s.io/v1 AdmissionConfiguration)
    #[arg(long, env = "KEELSON_ADMISSION_CONTROL_CONFIG_FILE", help_heading = "Admission")]
    pub admission_control_config_file: Option<PathBuf>,
    /// APIs that are served or not, as key=true or key=false: apps/v1, apps/v1/deployments, /v1, api/beta, api/all; those of earlier releases are policy/v1beta1 and settings.k8s.io/v1alpha1; alpha and beta ones are off otherwise: scheduling.k8s.io/v1alpha2, storagemigration.k8s.io/v1beta1
    #[arg(long, env = "KEELSON_RUNTIME_CONFIG", value_delimiter = ',', help_heading = "Admission")]
    pub runtime_config: Vec<String>,
    /// Features that are open, as Name=true: CBORServingAndStorage, GenericWorkload, GangScheduling, StorageVersionMigrator
    #[arg(long, env = "KEELSON_FEATURE_GATES", value_delimiter = ',', help_heading = "Admission")]
    pub feature_gates: Vec<String>,
}

impl AccessArgs {
    /// The choices as the API server takes them.
    pub fn settings(&self) -> Result<Settings> {
        Ok(Settings {
            audit: self.audit(),
            authentication: self.authentication(),
            authorization: self.authorization(),
            admission: admission::Settings {
                enabled: self.enable_admission_plugins.clone(),
                disabled: self.disable_admission_plugins.clone(),
                config: self.admission_control_config_file.clone(),
            },
            encryption: self.encryption_provider_config.clone(),
            runtime_config: self.runtime_config.clone(),
            feature_gates: self.feature_gates.clone(),
        })
    }

    fn authentication(&self) -> authn::Settings {
        authn::Settings {
            token_file: self.token_auth_file.clone(),
            webhook: self.authentication_token_webhook_config_file.clone().map(|kubeconfig| authn::WebhookSettings {
                kubeconfig,
                version: self.authentication_token_webhook_version.clone(),
                ttl: self.authentication_token_webhook_cache_ttl,
            }),
            oidc: authn::OidcSettings {
                issuer_url: self.oidc_issuer_url.clone(),
                client_id: self.oidc_client_id.clone(),
                username_claim: self.oidc_username_claim.clone(),
                username_prefix: self.oidc_username_prefix.clone(),
                groups_claim: self.oidc_groups_claim.clone(),
                groups_prefix: self.oidc_groups_prefix.clone(),
                required_claims: self.oidc_required_claim.clone(),
                signing_algs: self.oidc_signing_algs.clone(),
                ca_file: self.oidc_ca_file.clone(),
            },
            config: self.authentication_config.clone(),
            anonymous: self.anonymous_auth,
            front_proxy: authn::FrontProxySettings {
                ca_file: self.requestheader_client_ca_file.clone(),
                allowed_names: self.requestheader_allowed_names.clone(),
                username_headers: self.requestheader_username_headers.clone(),
                uid_headers: self.requestheader_uid_headers.clone(),
                group_headers: self.requestheader_group_headers.clone(),
                extra_prefixes: self.requestheader_extra_headers_prefix.clone(),
            },
            client_ca_file: self.client_ca_file.clone(),
        }
    }

    fn authorization(&self) -> authz::Settings {
        authz::Settings {
            modes: self.authorization_mode.clone(),
            abac_file: self.authorization_policy_file.clone(),
            webhook: self.authorization_webhook_config_file.clone(),
            webhook_version: self.authorization_webhook_version.clone(),
            webhook_allowed_ttl: self.authorization_webhook_cache_authorized_ttl,
            webhook_denied_ttl: self.authorization_webhook_cache_unauthorized_ttl,
            config: self.authorization_config.clone(),
        }
    }

    fn audit(&self) -> audit::Settings {
        audit::Settings {
            policy: self.audit_policy_file.clone(),
            log: self.audit_log_path.clone(),
            legacy: self.audit_log_format == "legacy",
            rotation: Rotation {
                max_megabytes: self.audit_log_maxsize,
                max_backups: self.audit_log_maxbackup,
                max_days: self.audit_log_maxage,
                compress: self.audit_log_compress,
            },
            log_mode: self.audit_log_mode,
            webhook: self.audit_webhook_config_file.clone().map(|kubeconfig| WebhookSettings {
                kubeconfig,
                mode: self.audit_webhook_mode,
                backoff: self.audit_webhook_initial_backoff,
                max_batch: self.audit_webhook_batch_max_size.max(1),
                max_wait: self.audit_webhook_batch_max_wait,
            }),
        }
    }
}

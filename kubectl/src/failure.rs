//! Why a command failed, in kubectl's words.

use std::fmt;

use serde_json::Value;

/// What ends a command before its work is done.
#[derive(Debug)]
pub enum Failure {
    /// A message for people; `error: ` is put before it.
    Error(String),
    /// A message for people that stands as it is.
    Plain(String),
    /// Wrong flags or arguments of the named command.
    Usage(String, String),
    /// The server refused; its Status.
    Server(Value),
    /// Several things failed.
    Many(Vec<Failure>),
    /// Everything is said; only the exit code is left.
    Code(u8),
}

/// What a command comes to.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// An error with a message.
    pub fn new(message: impl Into<String>) -> Self {
        Self::Error(message.into())
    }

    /// The server's refusal with what was done when it refused.
    pub fn when(self, what: &str) -> Self {
        match self {
            Self::Server(mut status) => {
                let message = status["message"].as_str().unwrap_or_default();
                status["message"] = format!("{what}: {message}").into();
                Self::Server(status)
            }
            other => other,
        }
    }

    /// The server's refusal as the reason of another failure.
    pub fn because(self, what: &str) -> Self {
        match self {
            Self::Server(status) => Self::Error(format!("{what}{}", status["message"].as_str().unwrap_or_default())),
            other => other,
        }
    }

    /// The message among others: without the word that says that it is one.
    fn bare(&self) -> String {
        match self {
            Self::Error(message) => message.clone(),
            other => other.to_string(),
        }
    }

    /// This failure after what failed before.
    pub fn after(self, before: Option<Self>) -> Self {
        match before {
            None => self,
            Some(Self::Many(mut all)) => {
                all.push(self);
                Self::Many(all)
            }
            Some(first) => Self::Many(vec![first, self]),
        }
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Code(code) => *code,
            _ => 1,
        }
    }

    /// The HTTP status, if a server said it.
    pub fn status(&self) -> i64 {
        match self {
            Self::Server(status) => status["code"].as_i64().unwrap_or(0),
            _ => 0,
        }
    }

    /// Whether the server knows no such object.
    pub fn is_not_found(&self) -> bool {
        self.status() == 404
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(message) => write!(f, "error: {message}"),
            Self::Plain(message) => f.write_str(message),
            Self::Usage(message, command) => write!(f, "error: {message}\nSee '{command} -h' for help and examples"),
            Self::Server(status) => f.write_str(&server(status)),
            Self::Many(all) => f.write_str(&all.iter().map(Self::bare).collect::<Vec<_>>().join("\n")),
            Self::Code(_) => Ok(()),
        }
    }
}

fn server(status: &Value) -> String {
    let message = status["message"].as_str().unwrap_or_default();
    match status["reason"].as_str().unwrap_or_default() {
        "" => format!("Error from server: {message}"),
        "Unauthorized" => "error: You must be logged in to the server (Unauthorized)".into(),
        "Invalid" => {
            let details = &status["details"];
            let of = match details["name"].as_str().unwrap_or_default() {
                "" if details["kind"].as_str().unwrap_or_default().is_empty()
                    || message.starts_with(" \"\" is invalid: ") =>
                {
                    return match message.trim_start_matches(" \"\" is invalid: ") {
                        "" => "The request is invalid".into(),
                        message => format!("The request is invalid: {message}"),
                    };
                }
                "" => format!("The {} \"\" is invalid", details["kind"].as_str().unwrap_or_default()),
                name => format!("The {} \"{name}\" is invalid", details["kind"].as_str().unwrap_or_default()),
            };
            let causes = details["causes"].as_array().map_or(&[][..], Vec::as_slice);
            // What was found in several places is said once.
            let mut lines: Vec<String> = Vec::new();
            for line in causes.iter().map(cause) {
                if !lines.contains(&line) {
                    lines.push(line);
                }
            }
            match lines.len() {
                0 => of,
                1 => format!("{of}: {}", lines[0]),
                _ => format!("{of}: \n{}", lines.iter().map(|l| format!("* {l}")).collect::<Vec<_>>().join("\n")),
            }
        }
        reason => format!("Error from server ({reason}): {message}"),
    }
}

fn cause(cause: &Value) -> String {
    let (field, message) = (cause["field"].as_str().unwrap_or_default(), cause["message"].as_str().unwrap_or_default());
    if field.is_empty() { message.to_owned() } else { format!("{field}: {message}") }
}

/// Why a file could not be used, in Go's words.
pub fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// Why a file cannot be opened, in Go's words.
pub fn opening(path: &str, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::IsADirectory => format!("read {path}: is a directory"),
        _ => format!("open {path}: {}", reason(error)),
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Error(error.to_string())
    }
}

impl From<String> for Failure {
    fn from(error: String) -> Self {
        Self::Error(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn refusals_read_as_kubectl_words_them() {
        let one = json!({"field": "spec.replicas", "message": "must be 1"});
        let two = json!({"field": "spec.x", "message": "must not"});
        for (status, expected) in [
            (
                json!({"reason": "NotFound", "message": "pods \"x\" not found"}),
                "Error from server (NotFound): pods \"x\" not found",
            ),
            (json!({"message": "odd"}), "Error from server: odd"),
            (
                json!({"reason": "Invalid", "details": {"kind": "Pod", "name": "x", "causes": [one]}}),
                "The Pod \"x\" is invalid: spec.replicas: must be 1",
            ),
            (
                json!({"reason": "Invalid", "details": {"kind": "Pod", "name": "x", "causes": [one, one, two]}}),
                "The Pod \"x\" is invalid: \n* spec.replicas: must be 1\n* spec.x: must not",
            ),
        ] {
            assert_eq!(Failure::Server(status).to_string(), expected);
        }
    }
}

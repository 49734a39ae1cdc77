//! The forms of names, labels and annotations, with the messages that the API gives (apimachinery's validation rules).

use std::sync::LazyLock;

use regex::Regex;

/// Longest DNS label.
const LABEL_MAX: usize = 63;
/// Longest DNS subdomain.
pub const SUBDOMAIN_MAX: usize = 253;
/// Longest name of a port.
const PORT_NAME_MAX: usize = 15;

fn is_dns_label(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.iter().all(|&b| alphanumeric(b) || b == b'-')
        && alphanumeric(bytes[0])
        && alphanumeric(bytes[bytes.len() - 1])
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.iter().all(|&b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && bytes[0].is_ascii_alphanumeric()
        && bytes[bytes.len() - 1].is_ascii_alphanumeric()
}

/// What is wrong with a DNS-1123 label, if anything is.
pub fn dns_label(text: &str) -> Option<String> {
    label_problems(text).into_iter().next()
}

/// All that is wrong with a DNS-1123 label.
pub fn label_problems(text: &str) -> Vec<String> {
    let mut problems = too_long(text, LABEL_MAX);
    if !is_dns_label(text) {
        problems.push(if text.split('.').all(is_dns_label) {
            "must not contain dots".into()
        } else {
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with \
             an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
                .into()
        });
    }
    problems
}

/// What is wrong with a DNS-1123 subdomain, if anything is.
pub fn dns_subdomain(text: &str) -> Option<String> {
    subdomain_problems(text).into_iter().next()
}

/// All that is wrong with a DNS-1123 subdomain.
pub fn subdomain_problems(text: &str) -> Vec<String> {
    let mut problems = too_long(text, SUBDOMAIN_MAX);
    if !text.split('.').all(is_dns_label) {
        problems.push(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and \
             end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                .into(),
        );
    }
    problems
}

/// All that is wrong with a subdomain whose labels may have underscores.
pub fn underscore_subdomain_problems(text: &str) -> Vec<String> {
    let mut problems = too_long(text, SUBDOMAIN_MAX);
    let label = |label: &str| {
        let end = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = label.strip_prefix('_').unwrap_or(label).as_bytes();
        bytes.first().is_some_and(|b| end(*b))
            && bytes.last().is_some_and(|b| end(*b))
            && bytes.iter().all(|b| end(*b) || matches!(b, b'-' | b'_'))
    };
    if !text.split('.').all(label) {
        problems.push(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start \
             and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')"
                .into(),
        );
    }
    problems
}

/// What is wrong with a subdomain whose first label is `*`, if anything is.
pub fn wildcard_subdomain(text: &str) -> Option<String> {
    if text.len() > SUBDOMAIN_MAX {
        return Some(format!("must be no more than {SUBDOMAIN_MAX} characters"));
    }
    let good = text.strip_prefix("*.").is_some_and(|rest| rest.split('.').all(is_dns_label));
    (!good).then(|| {
        "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case \
         alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for \
         validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            .into()
    })
}

/// Whether a character is printed, as Go's `unicode` has it: letters, marks, numbers, punctuation, symbols and the space.
pub fn is_printable(c: char) -> bool {
    static PRINTABLE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^[\p{L}\p{M}\p{N}\p{P}\p{S} ]$").ok());
    c.is_ascii_graphic() || PRINTABLE.as_ref().is_some_and(|form| form.is_match(c.encode_utf8(&mut [0; 4])))
}

fn too_long(text: &str, most: usize) -> Vec<String> {
    if text.len() > most { vec![format!("must be no more than {most} characters")] } else { Vec::new() }
}

/// All that is wrong with the name of a port.
pub fn port_name_problems(text: &str) -> Vec<String> {
    let mut problems = too_long(text, PORT_NAME_MAX);
    let mut note = |wrong: bool, why: &str| {
        if wrong {
            problems.push(why.to_owned());
        }
    };
    let charset = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    note(
        text.is_empty() || !text.bytes().all(charset),
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    );
    note(!text.bytes().any(|b| b.is_ascii_lowercase()), "must contain at least one letter (a-z)");
    note(text.contains("--"), "must not contain consecutive hyphens");
    note(text.starts_with('-') || text.ends_with('-'), "must not begin or end with a hyphen");
    problems
}

/// All that is wrong with a key of a ConfigMap or Secret.
pub fn config_key_problems(text: &str) -> Vec<String> {
    let mut problems = too_long(text, SUBDOMAIN_MAX);
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.is_empty() || !text.bytes().all(good) {
        problems.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or \
             'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .into(),
        );
    }
    problems.extend(match text {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        _ if text.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    });
    problems
}

/// What is wrong with an identifier of C, if anything is.
pub fn c_identifier(text: &str) -> Option<String> {
    let good = |(i, b): (usize, u8)| b.is_ascii_alphabetic() || b == b'_' || i > 0 && b.is_ascii_digit();
    (text.is_empty() || !text.bytes().enumerate().all(good)).then(|| {
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' \
         (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')"
            .into()
    })
}

/// What is wrong with a DNS-1035 label (it starts with a letter), if anything is.
pub fn dns_label_1035(text: &str) -> Option<String> {
    if text.len() > LABEL_MAX {
        return Some(format!("must be no more than {LABEL_MAX} bytes"));
    }
    (!is_dns_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase())).then(|| {
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end \
         with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
         '[a-z]([-a-z0-9]*[a-z0-9])?')"
            .into()
    })
}

/// What is wrong with a name as a path segment (RBAC kinds), if anything is.
pub fn path_segment(text: &str) -> Option<String> {
    match text {
        "." => Some("may not be '.'".into()),
        ".." => Some("may not be '..'".into()),
        _ if text.contains('/') => Some("may not contain '/'".into()),
        _ if text.contains('%') => Some("may not contain '%'".into()),
        _ => None,
    }
}

/// What is wrong with a qualified name (a label's or annotation's key), if anything is.
pub fn qualified_name(text: &str) -> Option<String> {
    qualified_name_problems(text).into_iter().next()
}

/// All that is wrong with a qualified name.
pub fn qualified_name_problems(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) if !name.contains('/') => (Some(prefix), name),
        Some(_) => {
            return vec![
                "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                 alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                 '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. \
                 'example.com/MyName')"
                    .into(),
            ];
        }
        None => (None, text),
    };
    match prefix {
        Some("") => problems.push("prefix part must be non-empty".into()),
        Some(prefix) => {
            problems.extend(subdomain_problems(prefix).iter().map(|problem| format!("prefix part {problem}")))
        }
        None => {}
    }
    if name.is_empty() {
        problems.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX {
        problems.push(format!("name part must be no more than {LABEL_MAX} bytes"));
    }
    if !is_name_part(name) {
        problems.push(
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
             character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
             '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
                .into(),
        );
    }
    problems
}

/// What is wrong with a label's value, if anything is.
pub fn label_value(text: &str) -> Option<String> {
    label_value_problems(text).into_iter().next()
}

/// All that is wrong with a label's value.
pub fn label_value_problems(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if text.len() > LABEL_MAX {
        problems.push(format!("must be no more than {LABEL_MAX} bytes"));
    }
    if !text.is_empty() && !is_name_part(text) {
        problems.push(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and \
             end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
             '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                .into(),
        );
    }
    problems
}

/// What is wrong with a path behind a domain, such as `acme.io/foo`: which part of it, and why.
pub fn domain_path_problems(text: &str) -> Vec<(&str, String)> {
    let Some((domain, path)) = text.split_once('/').filter(|(domain, path)| !domain.is_empty() && !path.is_empty())
    else {
        return vec![(text, "must be a domain-prefixed path (such as \"acme.io/foo\")".into())];
    };
    let mut out: Vec<(&str, String)> = subdomain_problems(domain).into_iter().map(|why| (domain, why)).collect();
    if !path.chars().all(|c| c.is_ascii_alphanumeric() || "/-._~%!$&'()*+,;=:".contains(c)) {
        let why = r"Invalid path (regex used for validation is '[A-Za-z0-9/\-._~%!$&'()*+,;=:]+')";
        out.push((path, why.into()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_and_controls_are_not_printed() {
        for (c, printed) in [('a', true), (' ', true), ('é', true), ('\u{301}', true), ('\u{a0}', false), ('\n', false)]
        {
            assert_eq!(is_printable(c), printed, "{c:?}");
        }
    }

    #[test]
    fn names() {
        for good in ["a", "a-b", "0"] {
            assert_eq!(dns_label(good), None, "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a.b", "a_b"] {
            assert!(dns_label(bad).is_some(), "{bad}");
        }
        assert_eq!(dns_subdomain("a.b-c.d"), None);
        assert!(dns_subdomain("a..b").is_some());
        assert_eq!(qualified_name("example.com/My_Name"), None);
        for bad in ["/a", "a/", "a/b/c", "_a", "A.com/b"] {
            assert!(qualified_name(bad).is_some(), "{bad}");
        }
        assert_eq!(label_value(""), None);
        assert!(label_value("a b").is_some());
    }

    #[test]
    fn paths_behind_domains() {
        for (text, expected) in [
            ("acme.io/foo", None),
            ("acme.io/foo/~bar%20", None),
            ("acme.io", Some(("acme.io", "must be a domain-prefixed path"))),
            ("/foo", Some(("/foo", "must be a domain-prefixed path"))),
            ("acme.io/", Some(("acme.io/", "must be a domain-prefixed path"))),
            ("Acme.io/foo", Some(("Acme.io", "a lowercase RFC 1123 subdomain"))),
            (
                "acme.io/a b",
                Some(("a b", "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')")),
            ),
        ] {
            let found = domain_path_problems(text);
            assert_eq!(found.len(), usize::from(expected.is_some()), "{text}");
            for ((part, why), (of, begins)) in found.into_iter().zip(expected) {
                assert!(part == of && why.starts_with(begins), "{text}: {part}: {why}");
            }
        }
    }
}

//! Tokens of a file (`--token-auth-file`): lines of token, name, uid and, quoted, groups.

use std::collections::HashMap;
use std::path::Path;

use super::with_groups;
use crate::access::UserInfo;

/// Reads a file.
pub fn load(path: &Path) -> Result<HashMap<String, UserInfo>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("--token-auth-file {}: {e}", path.display()))?;
    parse(&text).map_err(|why| format!("token file {:?} {why}", path.display().to_string()))
}

fn parse(text: &str) -> Result<HashMap<String, UserInfo>, String> {
    let mut users = HashMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let columns = columns(line);
        let [token, name, uid, rest @ ..] = &columns[..] else {
            let found = columns.len();
            return Err(format!("must have at least 3 columns (token, user name, user uid), found {found}"));
        };
        if token.is_empty() {
            tracing::warn!(user = name, "a line of the token file has no token; it is left out");
            continue;
        }
        let groups = rest.first().map(String::as_str).unwrap_or_default().split(',').map(str::trim);
        let groups = groups.filter(|group| !group.is_empty()).map(str::to_owned).collect();
        let user = UserInfo { uid: uid.clone(), ..with_groups(name.clone(), groups) };
        if users.insert(token.clone(), user).is_some() {
            tracing::warn!(user = name, "a token is in the token file twice; the last line counts");
        }
    }
    Ok(users)
}

/// The columns of a line; one in quotes may have commas.
fn columns(line: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match (c, quoted) {
            ('"', _) => quoted = !quoted,
            (',', false) => out.push(String::new()),
            (c, _) => out.last_mut().into_iter().for_each(|column| column.push(c)),
        }
    }
    out.iter_mut().for_each(|column| *column = column.trim().to_owned());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_users() {
        let users = parse("t1,alice,u1,\"a,b\"\nt2,bob,u2\n,nobody,u3\n# comment\nt3, eve, u4, one\n").unwrap();
        assert_eq!(users.len(), 3);
        assert_eq!(users["t1"].groups, ["a", "b", "system:authenticated"]);
        assert_eq!((users["t2"].name.as_str(), users["t2"].uid.as_str()), ("bob", "u2"));
        assert_eq!(users["t3"].groups, ["one", "system:authenticated"]);
        assert!(parse("t1,alice").unwrap_err().contains("found 2"));
    }
}

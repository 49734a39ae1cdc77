//! Bootstrap tokens: `id.secret`, six and sixteen of `[a-z0-9]`, as kubeadm makes them.

use rand::RngExt;

const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
/// Length of the public part.
pub const ID_LENGTH: usize = 6;
/// Length of the secret part.
pub const SECRET_LENGTH: usize = 16;

/// Makes a new token.
pub fn generate() -> String {
    format!("{}.{}", random(ID_LENGTH), random(SECRET_LENGTH))
}

fn random(length: usize) -> String {
    let mut rng = rand::rng();
    (0..length).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

/// Splits a token into id and secret; `None` if it is not of the form.
pub fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let good = |part: &str, length| part.len() == length && part.bytes().all(|b| ALPHABET.contains(&b));
    (good(id, ID_LENGTH) && good(secret, SECRET_LENGTH)).then_some((id, secret))
}

/// Compares secrets in a time that does not depend on where they differ.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (x, y)| differs | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let token = generate();
        assert!(parse(&token).is_some(), "{token}");
        for bad in [
            "",
            "abcdef",
            "abcdef.0123",
            "ABCDEF.0123456789abcdef",
            "abcdef.0123456789abcdeF",
            "abcdefg.0123456789abcdef",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert!(equal(b"abc", b"abc") && !equal(b"abc", b"abd") && !equal(b"abc", b"ab"));
    }
}

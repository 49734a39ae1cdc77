//! The page for browsers: one file without anything from elsewhere, which asks for the report again and again.

/// The page. It asks for `status` beside itself.
pub const HTML: &str = include_str!("page.html");
/// What it may do: its own script and styles, questions to its own server, and nothing else.
pub const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                          img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_comes_from_elsewhere() {
        for word in ["http://", "https://", "src=", "@import", "url("] {
            let elsewhere = super::HTML.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains(word), "{word}");
        }
        // What comes from the cluster is shown as text, never read as markup.
        assert!(!super::HTML.contains("innerHTML") && !super::HTML.contains("document.write"));
    }
}

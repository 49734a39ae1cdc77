//! Derives the texts that describe types and fields from the comments of the `k8s-openapi` crate.
//!
//! Output, one item per line, compressed: `T <type> <text>` and `F <json name> <text>` (fields of the type before); in
//! texts a line feed is `\n` and a backslash is doubled.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::Outcome;

/// Writes the texts of one source file: `path` is the type's, `names` gives the JSON name of a field.
pub fn describe(path: &str, lines: &[&str], start: usize, names: &[(String, String)], out: &mut String) -> Outcome<()> {
    writeln!(out, "T {path} {}", comment(&lines[..start]))?;
    for (index, line) in lines.iter().enumerate().skip(start + 1).take_while(|(_, l)| **l != "}") {
        let Some((rust, _)) = line.trim().strip_prefix("pub ").and_then(|f| f.split_once(": ")) else { continue };
        let name = names.iter().find(|(r, _)| r == rust).map(|(_, json)| json.as_str());
        let name = name.ok_or_else(|| format!("no JSON name for {rust}"))?;
        writeln!(out, "F {name} {}", comment(&lines[..index]))?;
    }
    Ok(())
}

/// The comment that ends right before a declaration, attributes between them not counted.
fn comment(before: &[&str]) -> String {
    let mut lines: Vec<&str> = before
        .iter()
        .rev()
        .map(|l| l.trim())
        .skip_while(|l| l.starts_with("#["))
        .map_while(|l| l.strip_prefix("///"))
        .map(|l| l.strip_prefix(' ').unwrap_or(l))
        .collect();
    lines.reverse();
    let (mut text, joined) = (String::new(), lines.join("\n"));
    let mut letters = joined.chars().peekable();
    while let Some(letter) = letters.next() {
        // The generator guards with a backslash what rustdoc would take for markup.
        let guard = letter == '\\' && letters.peek().is_some_and(char::is_ascii_punctuation);
        text.push(if guard { letters.next().unwrap_or(letter) } else { letter });
    }
    text.replace('\\', "\\\\").replace('\n', "\\n")
}

/// Compresses a table.
pub fn compress(text: &str) -> Outcome<Vec<u8>> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text.as_bytes())?;
    Ok(encoder.finish()?)
}

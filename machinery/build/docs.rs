//! Derives the texts that describe types and fields from the comments of the `k8s-openapi` crate, and for what that lacks of
//! the `k8s-pb` crate.
//!
//! Output, one item per line, compressed: `T <type> <text>` and `F <json name> <text>` (fields of the type before); in
//! texts a line feed is `\n` and a backslash is doubled.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

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

/// Writes the texts of the messages below a directory that are no types of the schema: lists, options of requests and what
/// the API's machinery adds.
pub fn describe_messages(directory: &Path, module: &str, out: &mut String) -> Outcome<()> {
    let mut entries: Vec<_> = std::fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            let inner = if module.is_empty() { name } else { format!("{module}.{name}") };
            describe_messages(&entry.path(), &inner, out)?;
        } else if name == "mod.rs" {
            messages(module, &std::fs::read_to_string(entry.path())?, out)?;
        }
    }
    Ok(())
}

fn messages(module: &str, source: &str, out: &mut String) -> Outcome<()> {
    let lines: Vec<&str> = source.lines().collect();
    let mut wanted = false;
    for (index, line) in lines.iter().enumerate() {
        if let Some(name) = line.strip_prefix("pub struct ") {
            let name = name.split([' ', '{', ';']).next().unwrap_or_default();
            // Some lists are a type of the schema under another name only; a text too many does no harm.
            wanted = name.ends_with("List") || name.ends_with("Options") || matches!(name, "TypeMeta" | "WatchEvent");
            wanted &= name != "DeleteOptions";
            if wanted {
                writeln!(out, "T {module}.{name} {}", escape(&prose(&lines[..index])))?;
            }
        } else if let (true, Some((name, _))) =
            (wanted, line.trim().strip_prefix("pub ").and_then(|l| l.split_once(':')))
        {
            writeln!(out, "F {} {}", camel(name.trim_start_matches("r#")), escape(&prose(&lines[..index])))?;
        }
    }
    Ok(())
}

/// The JSON name of a message's field.
fn camel(snake: &str) -> String {
    if snake == "insecure_skip_tls_verify_backend" {
        return "insecureSkipTLSVerifyBackend".into();
    }
    let mut words = snake.split('_');
    let mut out = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        out.extend(letters.next().into_iter().flat_map(char::to_uppercase).chain(letters));
    }
    out
}

/// The comment of a message as the API's documents have it: lines joined to paragraphs, without markers.
fn prose(before: &[&str]) -> String {
    let mut end = before.len();
    while end > 0 && !before[end - 1].trim().starts_with("///") {
        let line = before[end - 1].trim();
        if !(line.starts_with("#[") || line.ends_with(")]") || line.starts_with("tag =") || line.ends_with("prost(")) {
            return String::new();
        }
        end -= 1;
    }
    let comment = before[..end].iter().rev().map_while(|l| l.trim().strip_prefix("///")).collect::<Vec<_>>();
    let (mut text, mut after_indented) = (String::new(), false);
    for line in comment.into_iter().rev() {
        let line = line.strip_prefix(' ').unwrap_or(line);
        if line.trim_start().starts_with('+') || line.starts_with("TODO") {
            continue;
        }
        let line = line.replace("<http", "http").replace('>', "");
        let apart = text.is_empty() || text.ends_with('\n');
        let indented = line.starts_with([' ', '\t']);
        if line.trim().is_empty() {
            text.push_str(if apart { "" } else { "\n\n" });
        } else {
            text.push_str(match (apart, indented || after_indented) {
                (true, _) => "",
                (false, true) => "\n",
                (false, false) => " ",
            });
            text.push_str(if indented { &line[1..] } else { line.trim() });
        }
        after_indented = indented;
    }
    text.trim().to_owned()
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
    escape(&text)
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n")
}

/// Compresses a table.
pub fn compress(text: &str) -> Outcome<Vec<u8>> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text.as_bytes())?;
    Ok(encoder.finish()?)
}

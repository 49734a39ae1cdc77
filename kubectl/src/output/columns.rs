//! `-o custom-columns`.

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::output::jsonpath::{Template, go_value, relaxed};
use crate::output::table;

/// A column: its title, if titles are shown, and where its cells come from.
#[derive(Clone, Debug)]
pub struct Column {
    title: Option<String>,
    path: Result<Template, String>,
}

/// Parses `TITLE:.path,...`.
pub fn parse(text: &str, no_headers: bool) -> Outcome<Vec<Column>> {
    let column = |part: &str| {
        let (title, path) = part.split_once(':').ok_or_else(|| {
            Failure::new(format!("unexpected custom-columns spec: {part}, expected <header>:<json-path-expr>"))
        })?;
        let path = Template::bare(&relaxed(path)?);
        Ok(Column { title: (!no_headers).then(|| title.to_owned()), path })
    };
    if text.is_empty() {
        return Err(Failure::new("custom-columns format specified but no custom columns given"));
    }
    text.split(',').map(column).collect()
}

/// Parses a file of two lines: titles, and paths below them.
pub fn parse_file(text: &str, no_headers: bool) -> Outcome<Vec<Column>> {
    let mut lines = text.lines();
    let (titles, paths) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let (titles, paths): (Vec<&str>, Vec<&str>) =
        (titles.split_whitespace().collect(), paths.split_whitespace().collect());
    if titles.len() != paths.len() || titles.is_empty() {
        return Err(Failure::new(format!(
            "number of headers ({}) and field specifications ({}) don't match",
            titles.len(),
            paths.len()
        )));
    }
    let joined: Vec<String> = titles.iter().zip(paths).map(|(t, p)| format!("{t}:{p}")).collect();
    parse(&joined.join(","), no_headers)
}

/// Prints an object, or a list with a line for each item. What was filled in before an error is printed as well.
pub fn print(columns: &[Column], object: &Value) -> Outcome<String> {
    let one = std::slice::from_ref(object);
    let items = object["items"].as_array().map_or(one, Vec::as_slice);
    let mut rows: Vec<Vec<String>> = Vec::new();
    if columns.iter().any(|c| c.title.is_some()) {
        rows.push(columns.iter().map(|c| c.title.clone().unwrap_or_default()).collect());
    }
    for item in items {
        match columns.iter().map(|column| cell(column, item)).collect() {
            Ok(row) => rows.push(row),
            Err(why) => {
                print!("{}", table::align(&rows));
                return Err(Failure::new(why));
            }
        }
    }
    Ok(table::align(&rows))
}

fn cell(column: &Column, item: &Value) -> Result<String, String> {
    let found = column.path.as_ref().map_err(Clone::clone)?.find(item)?;
    if found.first().is_none_or(Vec::is_empty) {
        return Ok("<none>".into());
    }
    Ok(found.iter().flatten().map(|value| go_value(value)).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn cells() {
        let columns = parse("NAME:.metadata.name,X:.x,L:l[*]", false).unwrap();
        let list = json!({"items": [{"metadata": {"name": "a"}, "x": {"k": [1, "b"]}, "l": [1, 2]}, {"metadata": {"name": "bb"}}]});
        assert_eq!(
            print(&columns, &list).unwrap(),
            "NAME   X            L\na      map[k:[1 b]]   1,2\nbb     <none>       <none>\n"
                .replace("X            L", "X              L")
                .replace("<none>       <none>", "<none>         <none>")
        );
    }
}

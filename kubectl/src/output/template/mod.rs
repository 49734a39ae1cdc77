//! `-o go-template`: Go's text/template on JSON values, with the functions that kubectl adds.

mod functions;
mod parse;
mod run;

use serde_json::Value;

use crate::failure::{Failure, Outcome};

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    source: String,
    nodes: std::sync::Arc<parse::Parsed>,
    strict: bool,
}

impl Template {
    /// Parses a template; `strict` refuses fields that are missing.
    pub fn parse(source: &str, strict: bool) -> Outcome<Self> {
        let nodes = parse::parse(source).map_err(|(line, why)| {
            Failure::new(format!("error parsing template {source}, template: output:{line}: {why}"))
        })?;
        Ok(Self { source: source.to_owned(), nodes: std::sync::Arc::new(nodes), strict })
    }

    /// Fills the template in. What was written before an error is part of the output.
    pub fn execute(&self, object: &Value) -> Outcome<String> {
        let data = object;
        let mut out = String::new();
        match run::run(&self.nodes, data, self.strict, &mut out) {
            Ok(()) => Ok(out),
            Err(why) => {
                let why = format!("template: output:{why}");
                print!(
                    "{out}Error executing template: {why}. Printing more information for debugging the template:\n\
                     \ttemplate was:\n\t\t{}\n\traw data was:\n\t\t{}\n\tobject given to template engine was:\n\t\t{}\n\n",
                    self.source,
                    crate::output::json::compact(object),
                    functions::shown(data)
                );
                Err(Failure::new(format!("error executing template {}: {why}", crate::value::quoted(&self.source))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filled(template: &str) -> String {
        let object = json!({"kind": "Pod", "metadata": {"name": "a", "labels": {"x.y/z": "1", "b": "2"}},
            "spec": {"n": 2, "big": 1048576, "f": 1.5, "on": true, "ports": [80, 443], "none": null,
                "containers": [{"name": "c1", "image": "i:1"}, {"name": "c2"}]}, "data": {"p": "aGk="}});
        match Template::parse(template, false).and_then(|t| t.execute(&object)) {
            Ok(text) => text,
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn templates() {
        for (template, expected) in [
            ("{{.metadata.name}}", "a"),
            ("{{ .spec.n }} {{.spec.big}} {{.spec.f}} {{.spec.on}}", "2 1048576 1.5 true"),
            ("{{.nothing}}|{{.nothing.at.all}}", "<no value>|<no value>"),
            ("{{range .spec.containers}}{{.name}}={{.image}};{{end}}", "c1=i:1;c2=<no value>;"),
            ("{{range $i, $c := .spec.containers}}{{$i}}{{$c.name}} {{end}}", "0c1 1c2 "),
            ("{{range $k, $v := .metadata.labels}}{{$k}}:{{$v}} {{end}}", "b:2 x.y/z:1 "),
            ("{{range .nothing}}x{{else}}empty{{end}}", "empty"),
            ("{{if eq .kind \"Pod\"}}yes{{else}}no{{end}}", "yes"),
            ("{{if .nothing}}a{{else if .spec.on}}b{{else}}c{{end}}", "b"),
            ("{{with .spec.none}}a{{else}}b{{end}}", "b"),
            ("{{with $x := .metadata}}{{$x.name}}{{$.kind}}{{end}}", "aPod"),
            ("{{index .metadata.labels \"x.y/z\"}}", "1"),
            ("{{index .spec.ports 1}} {{len .spec.ports}}", "443 2"),
            ("{{.data.p | base64decode}}", "hi"),
            ("{{exists .metadata.labels \"b\"}} {{exists .metadata.labels \"c\"}}", "true false"),
            (
                "{{printf \"%s-%05.1f %q %-4s|%v\" .kind .spec.f .kind \"a\" .spec.ports}}",
                "Pod-001.5 \"Pod\" a   |[80 443]",
            ),
            ("{{print 1 2 \"a\" \"b\" 3}} {{println .kind}}", "1 2ab3 Pod\n"),
            ("a {{- /* c */ -}} b", "ab"),
            ("x  {{- .kind -}}  y", "xPody"),
            ("{{$x := 1}}{{range .spec.ports}}{{$x = .}}{{end}}{{$x}}", "443"),
            ("{{define \"t\"}}<{{.}}>{{end}}{{template \"t\" .kind}}", "<Pod>"),
            ("{{and .spec.on .kind}} {{or .nothing .kind}} {{not .spec.on}}", "Pod Pod false"),
            (
                "{{eq 1 1 }} {{lt 1 2}} {{ge \"b\" \"a\"}} {{ne .kind \"x\"}} {{eq .kind \"a\" \"Pod\"}}",
                "true true true true true",
            ),
            ("{{range .spec.ports}}{{if eq . 443}}{{break}}{{end}}{{.}}{{end}}", "80"),
            ("{{.metadata.labels}} {{.spec.ports}}", "map[b:2 x.y/z:1] [80 443]"),
            (
                "{{(index .spec.containers 0).name}} {{`raw`}} {{'a'}} {{html \"<a>\"}} {{urlquery \"a b\"}}",
                "c1 raw 97 &lt;a&gt; a+b",
            ),
            ("{{slice .kind 1 2}}{{\"x\" | printf \"%s%s\" \"y\"}}", "oyx"),
        ] {
            assert_eq!(filled(template), expected, "{template}");
        }
    }

    #[test]
    fn wrong_templates() {
        for (template, expected) in [
            ("{{.a", "unclosed action"),
            ("{{if .a}}x", "unexpected EOF"),
            ("{{end}}", "unexpected {{end}}"),
            ("{{nothing .a}}", "function \"nothing\" not defined"),
            ("{{$x}}", "undefined variable \"$x\""),
            ("{{index .spec.ports 7}}", "index out of range: 7"),
            ("{{eq .spec.n \"2\"}}", "incompatible types for comparison"),
            ("{{.kind.name}}", "can't evaluate field name in type interface {}"),
            ("{{range .kind}}{{end}}", "range can't iterate over Pod"),
        ] {
            let said = filled(template);
            assert!(said.contains(expected), "{template}: {said}");
        }
        let strict = Template::parse("{{.nothing}}", true).unwrap().execute(&json!({})).unwrap_err().to_string();
        assert!(strict.contains("map has no entry for key \"nothing\""), "{strict}");
    }
}

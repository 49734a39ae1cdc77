//! Objects as YAML.

use serde_json::Value;

/// Writes an object, its keys in order.
pub fn write(object: &Value) -> Result<String, String> {
    let mut text = serde_saphyr::to_string(object).map_err(|e| e.to_string())?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_is_read_again() {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"k": "line1\nline2\n", "n": "1", "e": "", "b": "true",
            "t": "2001-01-01", "s": " x ", "y": "no", "c": "a: b #c", "long": "word ".repeat(60), "d": "---", "u": "ä\u{7}"},
            "list": [1, 1.5, true, null, {}, [], [[1]], {"a": {"b": "c"}}], "metadata": {"name": "x"}});
        let text = write(&object).unwrap();
        assert!(text.contains("\nmetadata:\n  name: x\n"), "{text}");
        assert!(text.contains("k: |\n    line1\n    line2\n"), "{text}");
        assert_eq!(crate::decode::yaml(text.as_bytes()).unwrap().value, object, "{text}");
    }
}

//! Reads objects without what some field holds, wherever it stands: what is left out is passed over, not taken into memory.

use std::fmt;

use keelson_machinery::status::Status;
use keelson_store::KeyValue;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// A stored object without the fields of a name, with its resource version.
pub fn without(kv: &KeyValue, field: &str) -> Result<Value, Status> {
    let stored = crate::encryption::stored(kv)?;
    let refused = |why: serde_json::Error| Status::internal(&format!("{}: {why}", String::from_utf8_lossy(&kv.key)));
    let mut reader = serde_json::Deserializer::from_slice(&stored.json);
    let mut object = Without(field).deserialize(&mut reader).map_err(refused)?;
    reader.end().map_err(refused)?;
    object["metadata"]["resourceVersion"] = kv.mod_revision.to_string().into();
    Ok(object)
}

/// A value without the fields of this name.
#[derive(Clone, Copy)]
struct Without<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for Without<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Without<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            out.push(value);
        }
        Ok(out.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
                map.next_value::<IgnoredAny>()?;
            } else {
                out.insert(key, map.next_value_seed(self)?);
            }
        }
        Ok(out.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_machinery::resources::find;
    use keelson_machinery::stored;
    use serde_json::json;

    #[test]
    fn a_field_is_left_out_wherever_it_stands() {
        let def = find("", "v1", "configmaps").unwrap();
        let object = |big: &Value| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "n", "big": big},
                "numbers": [1, -1, 1.5, true, null, "big"], "list": [{"big": big, "a": 1}, [{"big": big}]]})
        };
        for big in [json!({"deep": [{"big": 1}]}), json!("text"), json!(null), json!(-0.5)] {
            let value = stored::encode(def, &object(&big)).unwrap();
            let kv = KeyValue { key: "k".into(), value, create_revision: 1, mod_revision: 7, version: 1, lease: 0 };
            let mut expected = object(&big);
            expected["metadata"] = json!({"name": "n", "resourceVersion": "7"});
            expected["list"] = json!([{"a": 1}, [{}]]);
            assert_eq!(without(&kv, "big").unwrap(), expected);
        }
    }
}

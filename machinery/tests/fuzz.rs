//! What clients send, made at random out of the schema and odd values: objects of every kind go the whole way from the decoder to
//! every encoding, and each small language is read or refused. Nothing panics, and nothing is lost on the way.
//!
//! The same cases each time; `KEELSON_FUZZ_SEEDS` says how many (for minutes of them, some hundred thousand).

use bytes::Bytes;
use keelson_machinery::fields::{FieldSet, Managed};
use keelson_machinery::jsonpath::JsonPath;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::resources::RESOURCES;
use keelson_machinery::schema::{self, Definition, Type};
use keelson_machinery::selector::{FieldSelector, LabelSelector};
use keelson_machinery::stored::{self, Stored};
use keelson_machinery::{
    cbor, conform, decode, defaults, patch, prepare, protobuf, strategic, validation, warnings, yaml,
};
use serde_json::{Map, Value, json};

/// Seeds unless told otherwise.
const SEEDS: u64 = 400;
/// Deepest object.
const DEPTH: usize = 7;

/// Texts that some rule looks at.
const TEXTS: &[&str] = &[
    "",
    "a",
    "A b",
    "a/b",
    "/",
    "..",
    "/a/../b",
    "a.b.c",
    "*",
    "*.a",
    "-",
    "v1",
    "apps/v1",
    "a/b/c",
    "10%",
    "101%",
    "-1",
    "1Gi",
    "1500m",
    "-5",
    "1e99",
    "0.1u",
    "10.0.0.1",
    "010.1.1.1",
    "10.0.0.0/24",
    "::1",
    "fd00::/64",
    "1.2.3.4/99",
    "None",
    "Always",
    "ClusterIP",
    "LoadBalancer",
    "ExternalName",
    "Indexed",
    "RollingUpdate",
    "Recreate",
    "In",
    "NotIn",
    "Exists",
    "Equal",
    "Limited",
    "Exempt",
    "Queue",
    "User",
    "Resource",
    "Pods",
    "Utilization",
    "storage",
    "cpu",
    "memory",
    "hugepages-2Mi",
    "pods",
    "x.io/y",
    "requests.cpu",
    "* * * * *",
    "@every 1h",
    "Europe/Zurich",
    "0-3,5",
    "5-1",
    "e30=",
    "bm90IGEgY3Ny",
    "self.x",
    "object.metadata",
    "device.driver == 'a'",
    "2026-01-01T00:00:00Z",
    "2026-01-01T00:00:00.000001Z",
    "ä\u{0301}\u{1F600}",
    "\u{0}",
    "a\nb",
    "TCP",
    "Prefix",
    "Namespace",
    "Container",
    "PersistentVolumeClaim",
    "BestEffort",
    "Terminating",
    "windows",
    "linux",
    "localhost/p",
    "unconfined",
    "kubernetes.io/tls",
    "kubernetes.io/dockerconfigjson",
    "kubernetes.io/basic-auth",
    "system-node-critical",
    "1.2.3-rc.1+b",
];
const NUMBERS: &[i64] = &[
    0,
    1,
    -1,
    2,
    5,
    53,
    80,
    443,
    511,
    512,
    600,
    1000,
    10_001,
    30_000,
    65_535,
    65_536,
    100_001,
    2_147_483_647,
    -2_147_483_648,
    4_294_967_297,
    i64::MAX,
    i64::MIN,
];

/// Numbers that look random (xorshift).
struct Random(u64);

impl Random {
    fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(end).unwrap()).unwrap()
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Anything at all.
    fn any(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 5 } else { 7 }) {
            0 => Value::Null,
            1 => json!(self.below(2) == 0),
            2 => json!(self.one(NUMBERS)),
            3 => json!(0.5),
            4 => json!(self.one(TEXTS)),
            5 => (0..self.below(3)).map(|_| self.any(depth - 1)).collect::<Vec<_>>().into(),
            _ => {
                let count = self.below(3);
                Value::Object((0..count).map(|_| (self.one(TEXTS).to_owned(), self.any(depth - 1))).collect())
            }
        }
    }

    /// A value of a type, now and then one of another or none.
    fn value(&mut self, kind: &Type, depth: usize) -> Value {
        match self.below(60) {
            0 => return self.any(1),
            1 => return Value::Null,
            _ => {}
        }
        match kind {
            Type::Object(path) => schema::definition(path).map_or(Value::Null, |of| self.object(of, depth)),
            Type::List(item) => {
                let count = if depth == 0 { 0 } else { self.below(4) };
                (0..count).map(|_| self.value(item, depth - 1)).collect::<Vec<_>>().into()
            }
            Type::Map(item) => {
                let count = if depth == 0 { 0 } else { self.below(3) };
                Value::Object((0..count).map(|_| (self.one(TEXTS).to_owned(), self.value(item, depth - 1))).collect())
            }
            Type::Bool => json!(self.below(2) == 0),
            Type::Int32 => json!(self.one(&NUMBERS[..NUMBERS.len() - 3])),
            Type::Int64 => json!(self.one(NUMBERS)),
            Type::Float64 => json!(self.one(&[0.0, 0.5, -1.0, 7.25])),
            Type::IntOrString if self.below(2) == 0 => json!(self.one(&NUMBERS[..8])),
            Type::Any => self.any(2),
            Type::Quantity => json!(self.one(&["1", "0", "-1", "500m", "1Gi", "1e3", "0.5", "12E", "1n"])),
            Type::Time => json!("2026-01-01T00:00:00Z"),
            Type::MicroTime => json!("2026-01-01T00:00:00.000001Z"),
            Type::Bytes => json!(self.one(&["", "e30=", "bm90IGEgY3Ny", "AA=="])),
            _ => json!(self.one(TEXTS)),
        }
    }

    fn object(&mut self, of: &Definition, depth: usize) -> Value {
        let mut fields: Vec<_> = of.fields.iter().collect();
        fields.sort_by_key(|(name, _)| **name);
        let mut map = Map::new();
        // Few of many fields, so that most that are there are looked at.
        let one_in = 1 + fields.len() / 6;
        for (name, field) in fields {
            if depth > 0 && (self.below(one_in) == 0 || field.required && self.below(4) > 0) {
                map.insert((*name).to_owned(), self.value(&field.kind, depth - 1));
            }
        }
        map.into()
    }

    /// An object of a row that has a name.
    fn of_row(&mut self, def: &ResourceDef) -> Option<Value> {
        let mut object = self.object(schema::of_kind(def.group, def.version, def.kind)?, DEPTH);
        object["apiVersion"] = def.api_version().into();
        object["kind"] = def.kind.into();
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        object["metadata"]["name"] = self.one(TEXTS).into();
        Some(object)
    }
}

fn seeds() -> std::ops::Range<u64> {
    let asked = std::env::var("KEELSON_FUZZ_SEEDS").ok().and_then(|text| text.parse().ok());
    0..asked.unwrap_or(SEEDS)
}

fn rows() -> impl Iterator<Item = &'static ResourceDef> {
    RESOURCES.iter().filter(|def| schema::of_kind(def.group, def.version, def.kind).is_some())
}

/// As the server does with what it is sent; `None` if the decoder refuses it.
fn complete(def: &ResourceDef, mut object: Value) -> Option<Value> {
    conform::conform(def, &mut object).ok()?;
    defaults::set(def, &mut object);
    Some(object)
}

#[test]
fn objects_of_every_kind_go_the_whole_way() {
    let rows: Vec<_> = rows().collect();
    let (mut whole, mut faultless) = (0_u32, 0_u32);
    for seed in seeds() {
        let mut random = Random::of(seed);
        for def in rows.iter().skip(seed as usize % 7).step_by(7) {
            let (Some(first), Some(second)) = (random.of_row(def), random.of_row(def)) else { continue };
            let (Some(mut new), Some(mut old)) = (complete(def, first), complete(def, second)) else { continue };
            whole += 1;
            prepare::create(def, &mut old, "2026-01-01T00:00:00Z");
            let _ = prepare::app_armor(&mut old);
            faultless += u32::from(validation::validate(def, "", &old, None).is_empty());
            for subresource in ["", "status"] {
                let mut new = new.clone();
                prepare::update(def, subresource, &old, &mut new, "2026-01-02T00:00:00Z");
                let _ = validation::validate(def, subresource, &new, Some(&old));
                let _ = warnings::of(def, subresource, &new, Some(&old));
            }
            prepare::create(def, &mut new, "2026-01-01T00:00:00Z");
            encodings(def, &new);
        }
    }
    assert!(whole > 1000 && faultless > 10, "{whole} objects were read, {faultless} are without fault");
}

/// What is written is read as the same again.
fn encodings(def: &ResourceDef, object: &Value) {
    let text = yaml::write(object).expect("an object can be written");
    assert_eq!(&decode::yaml(text.as_bytes()).expect("what was written is read").value, object, "{text}");
    if let Ok(bytes) = stored::encode(def, object) {
        let read = Stored::parse(&bytes).and_then(|stored| stored.to_value(7)).expect("what is stored is read");
        assert_eq!(read["kind"], object["kind"]);
    }
    let (version, kind) = (def.api_version(), def.kind);
    let raw = cbor::encode(object);
    assert_eq!(cbor::decode(&raw).as_ref(), Ok(object), "what was written is read");
    let typed = schema::of_kind(def.group, def.version, kind).map(|definition| cbor::decode_typed(&raw, definition));
    assert_eq!(typed, Some(Ok(cbor::Typed { value: object.clone(), unknown: None })), "by its schema, too");
    assert_eq!(cbor::interpret(&raw), Ok((version.clone(), kind.to_owned())));
    if !protobuf::is_known(&version, kind) {
        return;
    }
    let Ok(bytes) = protobuf::encode(object) else { return };
    let read = protobuf::decode(&bytes, (&version, kind)).expect("what was written is read");
    let again = protobuf::encode(&read).expect("what was read is written");
    assert_eq!(protobuf::decode(&again, (&version, kind)).expect("twice"), read, "{object}");
}

#[test]
fn patches_fit_or_are_refused() {
    let rows: Vec<_> = rows().collect();
    for seed in seeds() {
        let mut random = Random::of(seed);
        let def = rows[random.below(rows.len())];
        let (Some(object), Some(mut change)) = (random.of_row(def), random.of_row(def)) else { continue };
        let Some(object) = complete(def, object) else { continue };
        for (key, value) in [
            ("$patch", random.one(&["replace", "delete", "merge", "x"]).into()),
            ("$retainKeys", random.any(1)),
            ("$setElementOrder/finalizers", random.any(1)),
            ("$deleteFromPrimitiveList/finalizers", random.any(1)),
        ] {
            if random.below(3) == 0 {
                let place = if random.below(2) == 0 { "metadata" } else { "spec" };
                if let Some(map) = change[place].as_object_mut() {
                    map.insert(key.into(), value);
                }
            }
        }
        let kind = schema::of_kind(def.group, def.version, def.kind);
        let mut target = object.clone();
        let _ = strategic::apply(kind, &mut target, &change);
        let mut target = object.clone();
        patch::merge(&mut target, &change);
        patch::merge(&mut target, &change);
        let operations: Vec<Value> = (0..random.below(4))
            .map(|_| {
                let (from, path) = (
                    random.one(TEXTS),
                    random.one(&["/metadata/name", "/spec", "/spec/-", "/spec/0/x", "", "a", "/~2"]),
                );
                json!({"op": random.one(&["add", "remove", "replace", "move", "copy", "test", "x"]), "path": path,
                    "from": from, "value": random.any(2)})
            })
            .collect();
        let mut target = object;
        let _ = patch::json(&mut target, &operations.into());
    }
}

/// A text of parts that mean something in one of the small languages.
fn program(random: &mut Random, parts: &[&str]) -> String {
    (0..random.below(12)).map(|_| if random.below(8) == 0 { random.one(TEXTS) } else { random.one(parts) }).collect()
}

#[test]
fn small_languages_are_read_or_refused() {
    const PATHS: &[&str] = &[
        "{", "}", ".", "..", "[", "]", "*", "@", "$", "?(", ")", "==", "<", "'a'", "\"b\"", "0", "-1", ":", ",",
        "metadata", "items", "range ", "end", "\\", "\n",
    ];
    const SELECTORS: &[&str] = &[
        "a",
        "b/c",
        "=",
        "==",
        "!=",
        "!",
        " in ",
        " notin ",
        "(",
        ")",
        ",",
        "metadata.name",
        "spec.nodeName",
        "\\",
        "x,y",
        " ",
    ];
    let object =
        json!({"metadata": {"name": "n", "labels": {"a": "b"}}, "items": [{"a": 1}, {"a": "x", "metadata": {}}]});
    let def = rows().find(|def| def.plural == "pods").unwrap();
    for seed in seeds().map(|seed| seed * 10).flat_map(|seed| seed..seed + 10) {
        let mut random = Random::of(seed);
        let text = program(&mut random, PATHS);
        if let Ok(path) = JsonPath::parse(&text) {
            let _ = (
                path.find(&object),
                path.walk(&object, &object["items"]),
                path.missing(&object, &object),
                path.fields(),
            );
        }
        let text = program(&mut random, SELECTORS);
        if let Ok(selector) = LabelSelector::parse(&text) {
            let _ = selector.matches(|key| object["metadata"]["labels"][key].as_str());
        }
        let _ = FieldSelector::parse(def, &text);
    }
}

/// What one manager owns, as a client says it.
fn owned(random: &mut Random, depth: usize) -> Value {
    const KEYS: &[&str] = &[
        "f:a",
        "f:b",
        "k:{\"name\":\"x\"}",
        "k:{}",
        "k:[",
        "v:1",
        "v:\"a\"",
        "v:",
        "i:0",
        "i:-1",
        "i:x",
        ".",
        "f:",
        "x",
        "",
    ];
    let count = random.below(4);
    let mut map = Map::new();
    for _ in 0..count {
        let below = if depth == 0 || random.below(3) == 0 { json!({}) } else { owned(random, depth - 1) };
        map.insert(random.one(KEYS).into(), if random.below(30) == 0 { random.any(1) } else { below });
    }
    map.into()
}

#[test]
fn owned_fields_are_read_or_refused() {
    for seed in seeds() {
        let mut random = Random::of(seed);
        let value = owned(&mut random, 4);
        if let Ok(set) = FieldSet::from_v1(&value) {
            let written = set.to_v1();
            assert_eq!(FieldSet::from_v1(&written).map(|set| set.to_v1()), Ok(written), "{value}");
        }
        let list = json!([{"manager": random.one(TEXTS), "operation": random.one(&["Apply", "Update", ""]), "apiVersion": "v1",
            "fieldsType": "FieldsV1", "fieldsV1": value, "time": random.any(0)}, random.any(2)]);
        if let Ok(managed) = Managed::decode(Some(&list)) {
            let written = managed.encode();
            let again = Managed::decode(written.as_ref()).expect("what was written is read").encode();
            assert_eq!(again, written);
        }
        let bytes = Bytes::from(value.to_string());
        let _ = Stored::parse(&bytes);
    }
}

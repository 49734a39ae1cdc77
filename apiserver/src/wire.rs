//! Protobuf messages written field by field, for the few that no table describes.

use serde_json::Value;

/// A message under construction.
#[derive(Default)]
pub struct Message(pub Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Bytes.
    pub fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.varint(u64::from(number) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A text, if there is one.
    pub fn text(&mut self, number: u32, value: &Value) {
        if let Some(text) = value.as_str().filter(|t| !t.is_empty()) {
            self.bytes(number, text.as_bytes());
        }
    }

    /// Texts of a list.
    pub fn texts(&mut self, number: u32, value: &Value) {
        for text in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.bytes(number, text.as_bytes());
        }
    }

    /// A truth value, if it is true.
    pub fn flag(&mut self, number: u32, value: &Value) {
        if value == true {
            self.varint(u64::from(number) << 3);
            self.varint(1);
        }
    }

    /// A message.
    pub fn message(&mut self, number: u32, message: Self) {
        self.bytes(number, &message.0);
    }

    /// Pairs of name and value.
    pub fn named(&mut self, number: u32, of: &Value, make: impl Fn(&Value) -> Self) {
        for (name, value) in of.as_object().into_iter().flatten() {
            let mut pair = Self::default();
            pair.bytes(1, name.as_bytes());
            pair.message(2, make(value));
            self.message(number, pair);
        }
    }
}

//! YAML as Kubernetes reads and writes it: version 1.1 of the language, in which `yes` is a truth value and `0644` octal.

mod emitter;
mod reader;
mod scalar;

pub use emitter::write;
pub use reader::{Document, read};

//! Field ownership: sets of field paths, the schema's view of how values merge, and the bookkeeping of
//! `metadata.managedFields` behind server-side apply.

mod managers;
mod path;
mod reconcile;
mod set;
mod shape;
mod typed;

pub use managers::{ApplyError, Conflict, Convert, Kind, Managed, Writer, renewed};
pub use path::PathElement;
pub use set::FieldSet;
pub use shape::Node;
pub use typed::{Comparison, compare, field_set, go_type, merge, remove, validate, validate_stored};

#[cfg(test)]
mod tests;

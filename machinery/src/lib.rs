//! What a Kubernetes object is: kinds, the resource table, schema engine, selectors, patches, Status errors.
//! No I/O, no async; knows nothing of HTTP or the store.

pub mod base64_text;
pub mod cbor;
pub mod cel;
pub mod conform;
pub mod conversion;
pub mod csi_migration;
pub mod go_time;
pub mod jsonpath;
pub mod kind_defaults;
pub mod prepare;
pub mod qos;
pub mod quantity;
pub mod quota;
pub mod rules;
pub mod scaling;
pub mod schema;
pub mod structural;

pub mod decode;
pub mod defaults;
pub mod docs;
pub mod events;
pub mod features;
pub mod fields;
pub mod gates;
pub mod goscan;
pub mod labels;
mod named;
pub mod names;
pub mod operations;
pub mod patch;
pub mod presence;
pub mod protobuf;
mod regexp;
pub mod resource;
pub mod resources;
pub mod selector;
pub mod shown;
pub mod status;
pub mod stored;
pub mod strategic;
pub mod type_check;
pub mod validation;
pub mod warnings;
pub mod yaml;

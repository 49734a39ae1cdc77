//! What a Kubernetes object is: kinds, the resource table, schema engine, selectors, patches, Status errors.
//! No I/O, no async; knows nothing of HTTP or the store.

pub mod cel;
pub mod conform;
pub mod conversion;
pub mod jsonpath;
pub mod kind_defaults;
pub mod quantity;
pub mod quota;
pub mod schema;
pub mod structural;

pub mod decode;
pub mod defaults;
pub mod docs;
pub mod fields;
pub mod names;
pub mod patch;
pub mod presence;
pub mod protobuf;
pub mod qos;
pub mod resource;
pub mod resources;
pub mod selector;
pub mod status;
pub mod stored;
pub mod validate;
pub mod yaml;

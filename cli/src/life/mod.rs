//! A cluster's life from first to last day: installing, looking after certificates and copies, repairing, leaving.

pub mod address;
pub mod backup;
pub mod care;
pub mod certs;
pub mod dashboard;
pub mod extract;
pub mod gather;
pub mod install;
pub mod notify;
pub mod place;
pub mod preflight;
pub mod recover;
pub mod reset;
pub mod rotate;
pub mod status;
pub mod unit;
pub mod upgrade;
pub mod version;

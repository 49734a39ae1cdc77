//! What was given to a claim: its status.

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::devices::{self, MAX_ITEMS, list, references, set};
use super::volumes::csi_driver_name as driver;
use super::{device_slices, has, items, meta, networking, selectors, text};
use crate::shown;

/// Most users of a claim.
const MAX_USERS: usize = 256;
/// Most conditions of a device.
const MAX_CONDITIONS: usize = 8;
/// Longest name of a network interface.
const MAX_INTERFACE_BYTES: usize = 256;
/// Longest hardware address.
const MAX_HARDWARE_BYTES: usize = 128;
/// Most addresses of a device.
const MAX_ADDRESSES: usize = 16;

/// A change of a claim's status.
pub fn update(new: &Value, old: &Value, p: &mut Problems) {
    let (status, before, requests) = (&new["status"], &old["status"], &new["spec"]["devices"]);
    let by_uid = |user: &Value| or_empty(&user["uid"]);
    set(&status["reservedFor"], MAX_USERS, "status.reservedFor", p, by_uid, |user, at, p| {
        for field in ["resource", "name", "uid"] {
            p.present(user, field, at);
        }
    });
    let given: Vec<String> = items(&status["allocation"]["devices"]["results"]).map(identity).collect();
    given_devices(&status["devices"], &given, p);
    reservations(new, old, p);
    match (before["allocation"].is_object(), status["allocation"].is_object()) {
        (true, true) if before["allocation"] != status["allocation"] => {
            let shown = shown::compact("AllocationResult", &status["allocation"]);
            p.invalid_shown("status.allocation", &shown, "field is immutable");
        }
        (false, true) => allocation(&status["allocation"], requests, p),
        _ => {}
    }
}

fn reservations(new: &Value, old: &Value, p: &mut Problems) {
    let (users, before) = (&new["status"]["reservedFor"], &old["status"]["reservedFor"]);
    if items(users).next().is_none() {
        return;
    }
    if !new["status"]["allocation"].is_object() {
        p.forbidden("status.reservedFor", "may not be specified when `allocated` is not set");
    } else if has(&new["metadata"], "deletionTimestamp") && items(users).any(|u| !items(before).any(|other| other == u))
    {
        let why = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
        p.forbidden("status.reservedFor", why);
    }
}

/// By what a device that was given is known: its driver, its pool and its name, and its share.
fn identity(device: &Value) -> String {
    let whole = format!("{}/{}/{}", text(device, "driver"), text(device, "pool"), text(device, "device"));
    if has(device, "shareID") { format!("{whole}/{}", text(device, "shareID")) } else { whole }
}

fn given_devices(devices: &Value, given: &[String], p: &mut Problems) {
    let mut seen: Vec<String> = Vec::new();
    for (index, device) in items(devices).enumerate() {
        let at = format!("status.devices[{index}]");
        driver(&device["driver"], &format!("{at}.driver"), p);
        devices::pool_name(&device["pool"], &format!("{at}.pool"), p);
        p.label(format!("{at}.device"), &device["device"]);
        share(device, &at, p);
        let identity = identity(device);
        if !given.contains(&identity) {
            p.invalid_shown(&at, &identity, "must be an allocated device in the claim");
        }
        let count = items(&device["conditions"]).count();
        if count > MAX_CONDITIONS {
            p.too_many(format!("{at}.conditions"), count, MAX_CONDITIONS);
        }
        meta::conditions(&device["conditions"], &format!("{at}.conditions"), p);
        if !device["data"].is_null() {
            devices::parameters(&device["data"], &format!("{at}.data"), p);
        }
        network(&device["networkData"], &format!("{at}.networkData"), p);
        if seen.contains(&identity) {
            p.duplicate_shown(&at, &identity);
        }
        seen.push(identity);
    }
}

fn share(device: &Value, at: &str, p: &mut Problems) {
    const FORM: &str = "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase \
                        hexadecimal characters";
    if !has(device, "shareID") {
        return;
    }
    let (field, id) = (format!("{at}.shareID"), text(device, "shareID"));
    let bare = id.len() == 32 || id.len() == 36;
    if !bare {
        let why = format!("error validating uid: invalid UUID length: {}", id.len());
        return p.invalid(field, &device["shareID"], &why);
    }
    let dash = |at: usize| id.len() == 36 && [8, 13, 18, 23].contains(&at);
    if !id.bytes().enumerate().all(|(at, b)| if dash(at) { b == b'-' } else { b.is_ascii_hexdigit() }) {
        p.invalid(field, &device["shareID"], "error validating uid: invalid UUID format");
    } else if id.len() != 36 || id.bytes().any(|b| b.is_ascii_uppercase()) {
        p.invalid(field, &device["shareID"], FORM);
    }
}

fn network(data: &Value, at: &str, p: &mut Problems) {
    for (field, most) in [("interfaceName", MAX_INTERFACE_BYTES), ("hardwareAddress", MAX_HARDWARE_BYTES)] {
        if text(data, field).len() > most {
            p.too_long(format!("{at}.{field}"), most);
        }
    }
    set(&data["ips"], MAX_ADDRESSES, &format!("{at}.ips"), p, Value::clone, |address, at, p| {
        let whole = address.as_str().unwrap_or_default();
        let Some((ip, bits)) = networking::parse_cidr(whole) else {
            let why = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
            return p.invalid(at, address, why);
        };
        let canonical = format!("{ip}/{bits}");
        if canonical != whole {
            p.invalid(at, address, &format!("must be in canonical form (\"{canonical}\")"));
        }
    });
}

fn allocation(allocation: &Value, requests: &Value, p: &mut Problems) {
    let (devices, at) = (&allocation["devices"], "status.allocation.devices");
    list(&devices["results"], MAX_ITEMS, &format!("{at}.results"), p, |result, at, p| {
        devices::reference(&result["request"], requests, &format!("{at}.request"), p);
        driver(&result["driver"], &format!("{at}.driver"), p);
        devices::pool_name(&result["pool"], &format!("{at}.pool"), p);
        p.label(format!("{at}.device"), &result["device"]);
        device_slices::binding(result, at, p);
        share(result, at, p);
    });
    // The class's and the claim's own.
    list(&devices["config"], 2 * MAX_ITEMS, &format!("{at}.config"), p, |config, at, p| {
        if p.present(config, "source", at) {
            p.one_of(format!("{at}.source"), &json!(text(config, "source")), &["FromClaim", "FromClass"]);
        }
        references(&config["requests"], requests, &format!("{at}.requests"), p);
        devices::configuration(config, at, p);
    });
    if allocation["nodeSelector"].is_object() {
        selectors::node_selector(&allocation["nodeSelector"], "status.allocation.nodeSelector", p);
    }
}

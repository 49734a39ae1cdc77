//! Ports for servers that a test starts.

use std::fs::File;
use std::net::TcpListener;
use std::sync::Mutex;

/// Below the ports that the system gives to connections: nobody takes one between its choice and its use.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Locks of the ports that this process was given: they end with it.
static CLAIMED: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A port that nobody listens on, and that no test of this machine is given again while this process lives.
pub fn free_port() -> u16 {
    let claims = std::env::temp_dir().join("keelson-test-ports");
    std::fs::create_dir_all(&claims).expect("a directory for claims");
    let mut claimed = CLAIMED.lock().expect("nobody panics with the claims");
    // Tests of one time start at different places, so that they seldom meet.
    let room = u32::from(PORTS.end - PORTS.start);
    let first = std::process::id().wrapping_mul(31) % room;
    for step in 0..room {
        let port = PORTS.start + u16::try_from((first + step) % room).expect("less than the room");
        let claim = File::options().create(true).append(true).open(claims.join(port.to_string())).expect("a claim");
        // A lock of this process counts too: each opened file is an owner of its own.
        if claim.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            claimed.push(claim);
            return port;
        }
    }
    panic!("none of the ports {PORTS:?} is free");
}

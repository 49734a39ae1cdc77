//! Tells systemd that a service is ready, stops, or what it waits for (the sd_notify protocol).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The service is ready.
pub const READY: &str = "READY=1";
/// The service ends in order.
pub const STOPPING: &str = "STOPPING=1";

/// Sends a state to the supervisor, if there is one. That it cannot be told is no reason to fail.
pub fn tell(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&name.to_string_lossy(), state) {
        tracing::debug!(%error, "the supervisor cannot be told");
    }
}

fn send(name: &str, state: &str) -> std::io::Result<()> {
    // A leading @ is an abstract name.
    let address = match name.strip_prefix('@') {
        Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisor_hears_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        send(&path.to_string_lossy(), READY).unwrap();
        let mut heard = [0; 64];
        let length = socket.recv(&mut heard).unwrap();
        assert_eq!(&heard[..length], READY.as_bytes());
        assert!(send("/nowhere/at/all", READY).is_err());
    }
}

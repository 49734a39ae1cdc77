//! The virtual address of the API: the server that leads holds it, and tells the network so.
//!
//! Invariant: a server has the address only while it leads a majority. The kernel takes it away by itself soon after a
//! server that was killed can no longer give it back.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use keelson_store::Kv;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::care::Care;

/// Announcements when the address is taken: some are lost, and some switches are slow.
const ANNOUNCEMENTS: u32 = 3;
const ANNOUNCEMENT_PAUSE: Duration = Duration::from_millis(200);
/// The kernel keeps the address for so long, unless it is told again that it is held.
const KEPT_SECONDS: u32 = 6;
const RENEWAL: Duration = Duration::from_secs(2);
/// Renewals after which it is announced again, for what was not on the network before.
const REMINDER: u32 = 10;
/// The length of a frame that announces: Ethernet's head and ARP's body.
const FRAME_BYTES: usize = 42;

/// An address with its prefix, on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    ip: IpAddr,
    length: u8,
    interface: String,
}

impl Address {
    /// What `--vip` and `--vip-interface` say; without an interface, the one that leads to others.
    pub fn parse(text: &str, interface: Option<&str>) -> Result<Self> {
        let (ip, length) = text.split_once('/').map_or((text, None), |(ip, length)| (ip, Some(length)));
        let ip: IpAddr = ip.parse().with_context(|| format!("--vip {text} is not an address"))?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Ok(most), str::parse).with_context(|| format!("--vip {text}: not a prefix"))?;
        if length > most || ip.is_unspecified() || ip.is_loopback() {
            bail!("--vip {text} cannot be held by a server");
        }
        let interface = match interface {
            Some(given) => given.to_owned(),
            None => {
                let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
                outward(&routes).context("no interface leads to others: name one with --vip-interface")?
            }
        };
        Ok(Self { ip, length, interface })
    }

    /// Its address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    async fn change(&self, verb: &str) -> Result<()> {
        let address = format!("{}/{}", self.ip, self.length);
        let mut arguments = vec!["address", verb, &address, "dev", &self.interface];
        let kept = KEPT_SECONDS.to_string();
        if verb == "replace" {
            arguments.extend(["valid_lft", &kept, "preferred_lft", &kept]);
            // Without it IPv6 would wait until nobody else was heard to have the address.
            arguments.extend(self.ip.is_ipv6().then_some("nodad"));
        }
        let output = Command::new("ip").args(&arguments).output().await.context("ip (package iproute2)")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let absent = verb == "del" && said.contains("Cannot assign");
        if !output.status.success() && !absent {
            bail!("ip {}: {}", arguments.join(" "), said.trim());
        }
        Ok(())
    }

    /// Tells all on the network where the address is now, so that they do not ask the former holder.
    fn announce(&self) -> Result<()> {
        let IpAddr::V4(ip) = self.ip else { return Ok(()) };
        let file = format!("/sys/class/net/{}/address", self.interface);
        let text = std::fs::read_to_string(&file).with_context(|| file.clone())?;
        let own = hardware(text.trim()).with_context(|| format!("{file}: {text:?}"))?;
        send(&self.interface, &frame(own, ip)).context("send an announcement")
    }
}

/// The interface of the default route.
fn outward(routes: &str) -> Option<String> {
    routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (interface, destination) = (fields.next()?, fields.next()?);
        (destination == "00000000").then(|| interface.to_owned())
    })
}

fn hardware(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

/// A gratuitous ARP request: "who has this address? tell its owner", sent to all by the owner.
fn frame(own: [u8; 6], ip: Ipv4Addr) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&own);
    // ARP, Ethernet and IPv4 with their lengths, a request.
    frame[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&own);
    frame[28..32].copy_from_slice(&ip.octets());
    frame[38..42].copy_from_slice(&ip.octets());
    frame
}

/// Sends a frame on an interface.
fn send(interface: &str, frame: &[u8]) -> std::io::Result<()> {
    use nix::libc;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let index = nix::net::if_::if_nametoindex(interface)?;
    // SAFETY: a system call without pointers; its result is checked before it is used.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all zero is a valid sockaddr_ll.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = i32::try_from(index).map_err(std::io::Error::other)?;
    to.sll_halen = 6;
    to.sll_addr[..6].fill(0xff);
    // SAFETY: both pointers are to values that live through the call, with their own lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Holds the address while this server leads, until `stop`.
pub async fn run(care: Arc<Care>, address: Address, stop: CancellationToken) {
    // A server that was killed may have left it behind.
    give_back(&address).await;
    let mut leadership = care.replica.leadership();
    let mut leads = false;
    while !stop.is_cancelled() {
        tokio::select! {
            next = leadership.next() => match next { Some(now) => leads = now, None => break },
            () = hold(&care, &address), if leads => leads = false,
            () = stop.cancelled() => break,
        }
        let held = !std::mem::take(&mut *care.virtual_address.write()).is_empty();
        if held {
            give_back(&address).await;
            info!(address = %address.ip, "the virtual address is given back");
        }
        // Cut off from the others for a while, it may still lead afterwards: then it takes the address again.
        if held && !leads {
            tokio::time::sleep(RENEWAL).await;
            leads = care.replica.status().is_leader;
        }
    }
    if !care.virtual_address.read().is_empty() {
        give_back(&address).await;
    }
}

async fn give_back(address: &Address) {
    if let Err(error) = address.change("del").await {
        warn!(error = format!("{error:#}"), "the virtual address cannot be given back");
    }
}

/// Takes the address and keeps it; returns when this server can no longer be sure that it leads.
async fn hold(care: &Care, address: &Address) {
    for round in 0_u32.. {
        match tokio::time::timeout(RENEWAL, care.replica.barrier()).await {
            Ok(Ok(_)) => {}
            _ => return,
        }
        if let Err(error) = address.change("replace").await {
            error!(error = format!("{error:#}"), "the virtual address cannot be taken");
        } else if round == 0 {
            info!(address = %address.ip, interface = address.interface, "this server holds the virtual address");
            *care.virtual_address.write() = address.ip.to_string();
        }
        let pause = if round < ANNOUNCEMENTS { ANNOUNCEMENT_PAUSE } else { RENEWAL };
        if (round < ANNOUNCEMENTS || round % REMINDER == 0)
            && let Err(error) = address.announce()
        {
            warn!(error = format!("{error:#}"), "the virtual address cannot be announced");
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_frames() {
        let address = Address::parse("10.0.0.9/24", Some("eth0")).unwrap();
        assert_eq!((address.length, address.interface.as_str()), (24, "eth0"));
        assert_eq!(Address::parse("fd00::9", Some("x")).unwrap().length, 128);
        for wrong in ["10.0.0.9/33", "x", "10.0.0.9/x", "0.0.0.0", "127.0.0.1"] {
            assert!(Address::parse(wrong, Some("eth0")).is_err(), "{wrong}");
        }
        let own = hardware("02:00:00:aa:bb:cc").unwrap();
        let frame = frame(own, Ipv4Addr::new(10, 0, 0, 9));
        assert_eq!(frame[..14], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0xaa, 0xbb, 0xcc, 8, 6]);
        assert_eq!(
            (&frame[28..32], &frame[32..38], &frame[38..]),
            (&[10, 0, 0, 9][..], &[0; 6][..], &[10, 0, 0, 9][..])
        );
        assert_eq!((hardware("02:00"), hardware("x:y")), (None, None));
        let routes = "Iface Destination Gateway\neth1 0000A8C0 0\neth0 00000000 0102A8C0\n";
        assert_eq!(outward(routes).as_deref(), Some("eth0"));
        assert_eq!(outward(""), None);
    }
}

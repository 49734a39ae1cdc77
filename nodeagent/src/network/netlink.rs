//! Changes of elements handed to the kernel's packet filter itself, as one transaction: all of them or none.
//!
//! `nft` reads the whole table's description before each change, and the kernel makes whoever closes the socket wait until
//! what was removed is out of use. One socket that stays open waits for neither. Tables, chains and rules stay `nft`'s.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use parking_lot::Mutex;

use super::service::Family;
use super::sets::Change;

/// Bytes of a transaction at most: what a socket sends without being given more room. Larger changes are for `nft`.
const MAX_BATCH: usize = 96 * 1024;
/// Elements of one message: the list of them must stay below 64 KiB.
const PER_MESSAGE: usize = 200;
/// The packet filter's number among netfilter's subsystems.
const SUBSYSTEM: u16 = 10;
/// Kinds of messages.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const ADD_ELEMENTS: u16 = (SUBSYSTEM << 8) | 12;
const REMOVE_ELEMENTS: u16 = (SUBSYSTEM << 8) | 14;
const ERROR: u16 = 2;
/// Flags of messages: a request, one to be confirmed, one that makes something.
const REQUEST: u16 = 1;
const CONFIRM: u16 = 4;
const CREATE: u16 = 0x400;
/// Marks an attribute that is made of attributes.
const NESTED: u16 = 0x8000;
/// The verdict `goto`.
const GOTO: i32 = -4;
/// Bytes of a message's header, and of netfilter's behind it.
const HEADER: usize = 16;
const FILTER_HEADER: usize = 4;
/// Answers are no longer than this, bytes.
const ANSWER: usize = 16 * 1024;

/// A part of a key or of an element's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Address,
    Protocol,
    Port,
    /// The place of an endpoint among its Service's.
    Index,
    /// A chain to go to.
    Verdict,
}

/// What the keys and the data of a set are made of.
fn layout(set: &str) -> Option<(&'static [Part], &'static [Part])> {
    use Part::{Address, Index, Port, Protocol, Verdict};
    Some(match set {
        "services" => (&[Address, Protocol, Port], &[Verdict]),
        "endpoints" => (&[Address, Protocol, Port, Index], &[Address, Port]),
        "node_ports" => (&[Protocol, Port], &[Verdict]),
        "node_port_endpoints" => (&[Protocol, Port, Index], &[Address, Port]),
        "refused" | "dropped" => (&[Address, Protocol, Port], &[]),
        "node_ports_refused" => (&[Protocol, Port], &[]),
        "hairpins" => (&[Address, Address], &[]),
        "cluster_ips" | "masqueraded" => (&[Address], &[]),
        "masqueraded_tcp" | "masqueraded_udp" | "masqueraded_sctp" => (&[Port], &[]),
        _ => return None,
    })
}

/// Bytes of one part.
fn bytes(part: Part, text: &str) -> Option<Vec<u8>> {
    Some(match part {
        Part::Address => match text.parse().ok()? {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        },
        Part::Protocol => vec![match text {
            "tcp" => 6,
            "udp" => 17,
            "sctp" => 132,
            _ => return None,
        }],
        Part::Port => text.parse::<u16>().ok()?.to_be_bytes().to_vec(),
        Part::Index => text.parse::<u32>().ok()?.to_ne_bytes().to_vec(),
        Part::Verdict => return None,
    })
}

/// Bytes of several parts; each takes whole words of four when there is more than one.
fn joined(parts: &[Part], text: &str) -> Option<Vec<u8>> {
    let mut words = text.split(" . ");
    let mut out = Vec::new();
    for part in parts {
        out.extend(bytes(*part, words.next()?)?);
        if parts.len() > 1 {
            out.resize(out.len().next_multiple_of(4), 0);
        }
    }
    words.next().is_none().then_some(out)
}

fn attribute(out: &mut Vec<u8>, kind: u16, content: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 4]);
    content(out);
    // Longer than that is nothing: keys and names are short, lists are cut.
    let length = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    out[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
    out.resize(out.len().next_multiple_of(4), 0);
}

fn string(out: &mut Vec<u8>, kind: u16, text: &str) {
    attribute(out, kind, |out| {
        out.extend(text.as_bytes());
        out.push(0);
    });
}

/// One element, from its text; `None` if it is of no known form.
fn element(out: &mut Vec<u8>, set: &str, text: &str, with_data: bool) -> Option<()> {
    let (key, data) = layout(set)?;
    let (key_text, data_text) = text.split_once(" : ").unwrap_or((text, ""));
    let key = joined(key, key_text)?;
    let verdict = (data == [Part::Verdict]).then(|| data_text.strip_prefix("goto "));
    let value = match verdict {
        Some(chain) => chain?.as_bytes().to_vec(),
        None => joined(data, data_text).or(data.is_empty().then(Vec::new))?,
    };
    attribute(out, NESTED | 1, |out| {
        attribute(out, NESTED | 1, |out| attribute(out, 1, |out| out.extend(key)));
        if !with_data || data.is_empty() {
            return;
        }
        attribute(out, NESTED | 2, |out| match verdict.flatten() {
            Some(chain) => attribute(out, NESTED | 2, |out| {
                attribute(out, 1, |out| out.extend(GOTO.to_be_bytes()));
                string(out, 2, chain);
            }),
            None => attribute(out, 1, |out| out.extend(value)),
        });
    });
    Some(())
}

/// A transaction.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    last: Option<usize>,
}

impl Batch {
    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, content: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend([0; HEADER]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        content(&mut self.bytes);
        let length = (self.bytes.len() - start) as u32; // far below: batches have a limit
        let header = &mut self.bytes[start..start + HEADER];
        header[0..4].copy_from_slice(&length.to_ne_bytes());
        header[4..6].copy_from_slice(&kind.to_ne_bytes());
        header[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        header[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        self.sequence += 1;
        self.last = Some(start);
    }

    /// Adds what is to be done in one family's table. `None` if that is too much or not of a known form.
    pub fn add(&mut self, family: Family, table: &str, change: &Change) -> Option<()> {
        let number = match family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        if self.bytes.is_empty() {
            self.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, |_| {});
        }
        for (adds, set, elements) in change.parts() {
            for some in elements.chunks(PER_MESSAGE) {
                let (kind, flags) = if adds { (ADD_ELEMENTS, CREATE) } else { (REMOVE_ELEMENTS, 0) };
                let mut known = Some(());
                self.message(kind, flags, number, 0, |out| {
                    string(out, 1, table);
                    string(out, 2, set);
                    attribute(out, NESTED | 3, |out| {
                        known = some.iter().try_for_each(|text| element(out, set, text, adds));
                    });
                });
                known?;
                if self.bytes.len() > MAX_BATCH {
                    return None;
                }
            }
        }
        Some(())
    }

    /// The bytes; the last message but one is to be confirmed.
    fn finish(mut self) -> Vec<u8> {
        if let Some(start) = self.last {
            let flags = u16::from_ne_bytes([self.bytes[start + 6], self.bytes[start + 7]]) | CONFIRM;
            self.bytes[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
        }
        self.message(BATCH_END, 0, 0, SUBSYSTEM, |_| {});
        self.bytes
    }
}

/// Whether the kernel's answers say that all was done; what they say otherwise.
fn verdict(answer: &[u8], confirmed: &mut bool) -> io::Result<()> {
    let mut rest = answer;
    let number = |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    while rest.len() >= HEADER + FILTER_HEADER {
        let length = number(rest, 0).unwrap_or(0) as usize;
        let kind = u16::from_ne_bytes([rest[4], rest[5]]);
        if length < HEADER + FILTER_HEADER || length > rest.len() {
            return Err(io::Error::other("the packet filter's answer is cut off"));
        }
        if kind == ERROR {
            match number(rest, HEADER).map(u32::cast_signed) {
                Some(0) => *confirmed = true,
                Some(code) => return Err(io::Error::from_raw_os_error(-code)),
                None => {}
            }
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

/// The kernel's packet filter.
#[derive(Clone)]
pub struct Filter(Arc<Mutex<OwnedFd>>);

impl Filter {
    /// Opens it, in the network namespace that the process is in.
    pub fn open() -> io::Result<Self> {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let fd = socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkNetFilter)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self(Arc::new(Mutex::new(fd))))
    }

    /// Does all of it or nothing.
    pub async fn apply(&self, batch: Batch) -> io::Result<()> {
        let (socket, bytes) = (self.0.clone(), batch.finish());
        // The kernel works while the call lasts, and waits for others' transactions.
        let done = tokio::task::spawn_blocking(move || exchange(&socket.lock(), &bytes)).await;
        done.unwrap_or_else(|e| Err(io::Error::other(e)))
    }
}

fn exchange(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let mut answer = vec![0; ANSWER];
    // What an earlier call that failed may have left.
    while recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT).is_ok() {}
    send(socket.as_raw_fd(), bytes, MsgFlags::empty())?;
    let (mut confirmed, mut result) = (false, Ok(()));
    // All answers are there when the call is over.
    loop {
        match recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => result = result.and(verdict(&answer[..length], &mut confirmed)),
            Err(Errno::EAGAIN) => break,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    result?;
    if confirmed { Ok(()) } else { Err(io::Error::other("the packet filter did not confirm")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_laid_out_as_the_kernel_has_them() {
        let table: &[(&str, &str, &[u8])] = &[
            ("endpoints", "20.0.0.5 . tcp . 80 . 9", &[20, 0, 0, 5, 6, 0, 0, 0, 0, 80, 0, 0, 9, 0, 0, 0]),
            ("masqueraded_tcp", "30001", &[0x75, 0x31]),
            ("hairpins", "1.2.3.4 . 1.2.3.4", &[1, 2, 3, 4, 1, 2, 3, 4]),
        ];
        for (set, text, wanted) in table {
            let (key, _) = layout(set).unwrap();
            // The index is a number of the machine's own order.
            if cfg!(target_endian = "little") {
                assert_eq!(joined(key, text).unwrap(), *wanted, "{set}");
            }
        }
        for (set, text) in [
            ("endpoints", "20.0.0.5 . tcp . 80"),
            ("endpoints", "20.0.0.5 . tcp . 80 . 1 . 2"),
            ("masqueraded_tcp", "70000"),
            ("cluster_ips", "a"),
            ("none", "1"),
            ("refused", "1.1.1.1 . icmp . 80"),
        ] {
            assert_eq!(element(&mut Vec::new(), set, text, true), None, "{set} {text}");
        }
        assert_eq!(element(&mut Vec::new(), "services", "1.1.1.1 . tcp . 80 : jump x", true), None);
        assert_eq!(element(&mut Vec::new(), "services", "1.1.1.1 . tcp . 80 : goto x", true), Some(()));
    }

    #[test]
    fn answers_are_read() {
        let message = |code: i32| {
            let mut bytes = [&36_u32.to_ne_bytes()[..], &ERROR.to_ne_bytes(), &[0; 10], &code.to_ne_bytes()].concat();
            bytes.resize(36, 0);
            bytes
        };
        let mut confirmed = false;
        assert!(verdict(&[], &mut confirmed).is_ok() && !confirmed);
        assert!(verdict(&message(0), &mut confirmed).is_ok() && confirmed);
        let two = [message(-2), message(0)].concat();
        assert_eq!(verdict(&two, &mut confirmed).unwrap_err().raw_os_error(), Some(2));
        assert!(verdict(&message(0)[..30], &mut confirmed).is_err(), "cut off");
    }
}

//! Code and constants that are not needed, given back to the system.
//!
//! A start goes through most of the program once: keys, schemas, RocksDB, each controller's first list. What a server
//! runs from then on is a small part, but the kernel counts all pages that were ever mapped as resident, and around each
//! that is used it maps those that it has at hand: sixteen at a time, which of a large program is most of it. So all of them
//! are given back every few seconds, and those that are used come again from the page cache: some hundred soft faults, about a
//! millisecond. (Thousands of mappings of 16 KiB each, beyond whose ends the kernel does not go, kept more: docs/benchmarks.md.)

use std::convert::Infallible;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use nix::libc;

/// How often code is given back.
const INTERVAL: Duration = Duration::from_secs(5);
/// Resident pages of files that are not worth giving back: about what an idle server runs all the time.
const WORTH_BYTES: usize = 8 * 1024 * 1024;

/// Gives code back now and then, as long as it is worth it.
pub async fn give_back() -> Infallible {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if file_bytes().is_none_or(|bytes| bytes < WORTH_BYTES) {
            continue;
        }
        match release_code() {
            Ok(bytes) => tracing::debug!(bytes, "code is given back"),
            Err(why) => tracing::debug!(%why, "code stays resident"),
        }
    }
}

/// Resident bytes of pages that belong to files.
fn file_bytes() -> Option<usize> {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = statm.split_whitespace().nth(2)?.parse().ok()?;
    pages.checked_mul(usize::try_from(page).ok()?)
}

/// Unmaps the pages of a range.
fn release(range: &Range<usize>) -> io::Result<()> {
    // SAFETY: the range is of a private mapping of a file which cannot be written and of which no page was ever written
    // (`of_files` takes only those: code, and constants that were not relocated), so that its pages are those of the
    // file: after MADV_DONTNEED an access finds the same bytes again. The mappings are those of the program and its
    // libraries, which are loaded at its start and never unloaded, so the range is still there.
    match unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Unmaps the pages of code and constants; the kernel maps those that are used again from its page cache. Returns their
/// bytes.
fn release_code() -> io::Result<usize> {
    let mut released = 0;
    for range in loaded()? {
        release(range)?;
        released += range.len();
    }
    Ok(released)
}

/// What of the program and its libraries is given back. It is the same for the life of the program: to look at all of its
/// pages each time would cost more than it gives.
fn loaded() -> io::Result<&'static [Range<usize>]> {
    static FOUND: OnceLock<Vec<Range<usize>>> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found);
    }
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    Ok(FOUND.get_or_init(|| of_files(&smaps)))
}

/// The mappings of the program and its libraries in `/proc/self/smaps` that cannot be written and have no page that was.
fn of_files(smaps: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let number = |text: &str| usize::from_str_radix(text, 16).ok();
            let range = number(start).zip(number(end)).map(|(start, end)| start..end);
            let private = matches!(words.next(), Some("r-xp" | "r--p"));
            let program = words.nth(3).is_some_and(is_loaded);
            current = range.filter(|_| private && program);
        } else if first == "Anonymous:" {
            current = current.filter(|_| words.next() == Some("0"));
        } else if first == "Swap:" {
            // Written pages may also be on the disk only.
            found.extend(current.take().filter(|_| words.next() == Some("0")));
        }
    }
    found
}

/// Whether a file is the program or a library, and not data that somebody mapped and may unmap.
fn is_loaded(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let library = name.ends_with(".so") || name.contains(".so.");
    path.starts_with('/') && (library || std::fs::read_link("/proc/self/exe").is_ok_and(|exe| exe == Path::new(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_never_written_is_meant() {
        let own = std::fs::read_link("/proc/self/exe").unwrap();
        let own = own.display();
        let one = |range: &str, permissions: &str, path: &str, written: u32| {
            let (here, swapped) = (written / 10, written % 10);
            format!(
                "{range} {permissions} 00000000 fe:00 7 {path}\nRss: 8 kB\nAnonymous: {here} kB\nSwap: {swapped} kB\n"
            )
        };
        let smaps = [
            one("1000-3000", "r--p", &own.to_string(), 0),
            one("3000-9000", "r-xp", &own.to_string(), 0),
            // Constants with addresses in them: they were written when the program was loaded.
            one("9000-a000", "r--p", &own.to_string(), 40),
            one("9000-a000", "r--p", &own.to_string(), 4),
            one("a000-b000", "rw-p", &own.to_string(), 0),
            one("b000-c000", "rwxp", &own.to_string(), 0),
            one("d000-e000", "r-xp", "/lib/libc.so.6", 0),
            one("e000-f000", "r--p", "/data/table", 0),
            one("f000-ff00", "r-xp", "[vdso]", 0),
            one("10000-11000", "r--p", "", 0),
        ];
        assert_eq!(of_files(&smaps.concat()), [0x1000..0x3000, 0x3000..0x9000, 0xd000..0xe000]);
    }

    #[test]
    fn a_program_goes_on_without_its_pages() {
        assert!(file_bytes().unwrap() > 0);
        assert!(release_code().unwrap() > 0);
        // Code that certainly ran before, and code that did not.
        assert!(release_code().unwrap() > 0);
        assert_eq!(format!("{:?}", vec![1.5, 2.5]), "[1.5, 2.5]");
    }
}

//! Code that only a start runs, given back to the system.
//!
//! A start goes through most of the program once: keys, schemas, RocksDB, each controller's first list. What an idle server
//! runs from then on is a small part, but the kernel counts all pages that were ever mapped as resident.

use std::io;
use std::ops::Range;
use std::time::Duration;

use nix::libc;

/// How long after it is ready a server gives its code back: its controllers have seen everything once by then.
pub const AFTER_START: Duration = Duration::from_secs(30);

/// Unmaps the pages of the program's code; the kernel maps those that run again from its page cache. Returns their bytes.
pub fn release_code() -> io::Result<usize> {
    let program = std::fs::read_link("/proc/self/exe")?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mut released = 0;
    for range in code(&maps, &program.to_string_lossy()) {
        // SAFETY: the range is one mapping of the program's file which cannot be written, so that its pages are those of
        // the file: after MADV_DONTNEED an access finds the same bytes again. A mapping that was written privately would
        // lose what was written: relocations are in other mappings (`code` takes executable ones only), and nothing here
        // writes into code. The program never unmaps its own code, so the range is still there.
        let failed = unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) } != 0;
        if failed {
            return Err(io::Error::last_os_error());
        }
        released += range.len();
    }
    Ok(released)
}

/// The mappings of the program that are run and never written, of `/proc/self/maps`.
fn code(maps: &str, program: &str) -> Vec<Range<usize>> {
    let range = |line: &str| {
        let mut words = line.split_whitespace();
        let (addresses, permissions, path) = (words.next()?, words.next()?, words.nth(3)?);
        let (start, end) = addresses.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        (permissions == "r-xp" && path == program).then_some(start..end)
    };
    maps.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_own_code_is_meant() {
        let maps = "\
            1000-3000 r--p 00000000 fe:00 7 /bin/keelson\n\
            3000-9000 r-xp 00002000 fe:00 7 /bin/keelson\n\
            9000-a000 rw-p 00008000 fe:00 7 /bin/keelson\n\
            b000-c000 rwxp 00000000 fe:00 7 /bin/keelson\n\
            d000-e000 r-xp 00000000 fe:00 8 /lib/libc.so.6\n\
            f000-ff00 r-xp 00000000 00:00 0 [vdso]\n\
            10000-11000 rw-p 00000000 00:00 0 \n";
        let found: Vec<_> = code(maps, "/bin/keelson").into_iter().map(|range| (range.start, range.end)).collect();
        assert_eq!(found, [(0x3000, 0x9000)]);
        assert!(code(maps, "/bin/other").is_empty());
    }

    #[test]
    fn a_program_goes_on_without_its_pages() {
        assert!(release_code().unwrap() > 0);
        // Code that certainly ran before, and code that did not.
        assert!(release_code().unwrap() > 0);
        assert_eq!(format!("{:?}", vec![1.5, 2.5]), "[1.5, 2.5]");
    }
}

//! The seed takes the place of the kernel's randomness in this program: the order of hash maps and tokio's choices
//! follow from it.
//!
//! Invariant: only this program has this function, never the server. The standard library asks the C library's
//! `getrandom` through a weak symbol so that programs can put their own in its place.

use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc;

/// 0: the kernel is asked.
static STATE: AtomicU64 = AtomicU64::new(0);

/// From here on randomness follows from the seed, on all threads.
pub fn seed(seed: u64) {
    STATE.store(seed | 1 << 63, Ordering::SeqCst);
}

/// One step of SplitMix64.
pub fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// # Safety
/// As for the C library's function: `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    if STATE.load(Ordering::SeqCst) == 0 {
        // SAFETY: the caller's promise is the kernel's requirement.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize };
    }
    // SAFETY: the caller promises room for `length` bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    fill(&STATE, bytes);
    length as isize
}

fn fill(state: &AtomicU64, bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        let state = state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
        chunk.copy_from_slice(&mix(state).to_le_bytes()[..chunk.len()]);
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    /// Each thread has its own keys, made at its first use.
    fn hash() -> u64 {
        std::thread::spawn(|| RandomState::new().hash_one(7)).join().expect("a thread")
    }

    /// Only a run sets the seed, and in a process of its own: `tests/seeds.rs` looks at that.
    #[test]
    fn without_a_seed_the_kernel_is_asked() {
        assert_ne!(hash(), hash());
    }

    #[test]
    fn bytes_follow_the_state() {
        let bytes = |seed: u64| {
            let mut bytes = [0; 19];
            super::fill(&seed.into(), &mut bytes);
            bytes
        };
        assert_eq!(bytes(1), bytes(1));
        assert_ne!(bytes(1), bytes(2));
        assert_ne!(bytes(1)[..8], bytes(1)[8..16]);
    }
}

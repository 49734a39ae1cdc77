//! The file format of etcd's database (bbolt, version 2), so that snapshots go both ways between etcd and us.

mod reader;
mod writer;

pub use reader::{Bolt, Bucket};
pub use writer::Writer;

/// Size of the pages that are written.
pub(super) const PAGE_BYTES: usize = 4096;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const PAGE_HEADER_BYTES: usize = 16;
const ELEMENT_BYTES: usize = 16;
const BUCKET_BYTES: usize = 16;
/// The meta record without its checksum.
const META_BYTES: usize = 56;
const FLAG_BRANCH: u16 = 0x01;
const FLAG_LEAF: u16 = 0x02;
const FLAG_META: u16 = 0x04;
const FLAG_FREELIST: u16 = 0x10;
/// On a leaf's element: the value is a bucket.
const FLAG_BUCKET: u32 = 0x01;

/// FNV-1a of 64 bits, the checksum of a meta page.
fn fnv64a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::new(tempfile::tempfile().expect("a file")).expect("begins");
        let key = |number: u32| format!("key-{number:08}").into_bytes();
        let value = |number: u32| vec![number as u8; (number % 700) as usize];
        writer.begin(b"alpha");
        for number in 0..5000 {
            writer.put(&key(number), &value(number)).expect("written");
        }
        writer.put(b"zz-large", &vec![7; 100_000]).expect("written");
        writer.end().expect("ends");
        writer.begin(b"beta");
        writer.end().expect("ends");
        let file = writer.finish().expect("finishes");
        let bolt = Bolt::open(file).expect("opens");
        let mut next = 0;
        let bucket = bolt.bucket(b"alpha").expect("reads").expect("is there");
        bolt.visit(&bucket, &mut |found: &[u8], content: &[u8]| {
            if next < 5000 {
                assert_eq!((found, content), (&key(next)[..], &value(next)[..]));
            } else {
                assert_eq!((found, content.len()), (&b"zz-large"[..], 100_000));
            }
            next += 1;
            Ok(())
        })
        .expect("visits");
        assert_eq!(next, 5001);
        let bucket = bolt.bucket(b"beta").expect("reads").expect("is there");
        bolt.visit(&bucket, &mut |_: &[u8], _: &[u8]| panic!("it is empty")).expect("visits");
        assert!(bolt.bucket(b"gamma").expect("reads").is_none());
    }

    #[test]
    fn keys_out_of_order_are_refused() {
        let mut writer = Writer::new(tempfile::tempfile().expect("a file")).expect("begins");
        writer.begin(b"a");
        writer.put(b"2", b"").expect("written");
        assert!(writer.put(b"1", b"").is_err());
    }

    #[test]
    fn a_damaged_head_is_refused() {
        use std::os::unix::fs::FileExt;
        let file = Writer::new(tempfile::tempfile().expect("a file")).expect("begins").finish().expect("finishes");
        for page in 0..2 {
            file.write_all_at(&[0xff], page * PAGE_BYTES as u64 + 40).expect("written");
        }
        assert!(Bolt::open(file).is_err());
    }
}

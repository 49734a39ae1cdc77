//! Reads a database: buckets of the root and their keys in order. Everything read is checked against its page.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileExt;

use super::{
    BUCKET_BYTES, ELEMENT_BYTES, FLAG_BRANCH, FLAG_BUCKET, FLAG_LEAF, MAGIC, META_BYTES, PAGE_HEADER_BYTES, VERSION,
    fnv64a,
};

/// Deepest tree that is followed: more than any real one has.
const MAX_DEPTH: usize = 32;
/// Largest run of pages that is read as one.
const MAX_PAGE_RUN_BYTES: u64 = 1 << 30;
/// Page sizes that are believed.
const PAGE_SIZES: std::ops::RangeInclusive<u64> = 512..=65_536;

/// An open database.
pub struct Bolt {
    file: File,
    page_bytes: u64,
    root: u64,
    /// Number of pages in use.
    end: u64,
}

/// A bucket of the root.
pub enum Bucket {
    /// Its root page.
    Page(u64),
    /// Its only page itself, kept in the root.
    Inline(Vec<u8>),
}

/// What is done with the flags, key and value of each element.
type Element<'a> = dyn FnMut(u32, &[u8], &[u8]) -> Result<()> + 'a;
/// What is visited in a bucket.
type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'a;

fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("the database is damaged: {what}"))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let found = bytes.get(at..at + 2).and_then(|raw| raw.try_into().ok());
    found.map(u16::from_le_bytes).ok_or_else(|| damaged("a page is cut off"))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let found = bytes.get(at..at + 4).and_then(|raw| raw.try_into().ok());
    found.map(u32::from_le_bytes).ok_or_else(|| damaged("a page is cut off"))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    let found = bytes.get(at..at + 8).and_then(|raw| raw.try_into().ok());
    found.map(u64::from_le_bytes).ok_or_else(|| damaged("a page is cut off"))
}

fn slice(bytes: &[u8], at: usize, len: usize) -> Result<&[u8]> {
    let end = at.checked_add(len).ok_or_else(|| damaged("a position overflows"))?;
    bytes.get(at..end).ok_or_else(|| damaged("an element lies outside its page"))
}

/// A meta record that passes its checks.
struct Meta {
    page_bytes: u64,
    root: u64,
    end: u64,
    transaction: u64,
}

fn meta(file: &File, at: u64) -> Result<Meta> {
    let mut page = [0; PAGE_HEADER_BYTES + META_BYTES + 8];
    file.read_exact_at(&mut page, at)?;
    let body = &page[PAGE_HEADER_BYTES..];
    if u32_at(body, 0)? != MAGIC
        || u32_at(body, 4)? != VERSION
        || u64_at(body, META_BYTES)? != fnv64a(&body[..META_BYTES])
    {
        return Err(damaged("its head has a wrong mark or checksum"));
    }
    let page_bytes = u64::from(u32_at(body, 8)?);
    if !PAGE_SIZES.contains(&page_bytes) {
        return Err(damaged("its page size is not possible"));
    }
    Ok(Meta { page_bytes, root: u64_at(body, 16)?, end: u64_at(body, 40)?, transaction: u64_at(body, 48)? })
}

impl Bolt {
    /// Opens a database file: the newer of its two heads that is whole.
    pub fn open(file: File) -> Result<Self> {
        let first = meta(&file, 0);
        // Where the second head lies follows from the page size, which the first may no longer tell.
        let candidates = match &first {
            Ok(first) => vec![first.page_bytes],
            Err(_) => vec![4096, 8192, 16_384, 32_768, 65_536],
        };
        let second = candidates.into_iter().find_map(|at| meta(&file, at).ok());
        let newest = match (first, second) {
            (Ok(first), Some(second)) if second.transaction > first.transaction => second,
            (Ok(first), _) => first,
            (Err(_), Some(second)) => second,
            (Err(error), None) => return Err(error),
        };
        Ok(Self { file, page_bytes: newest.page_bytes, root: newest.root, end: newest.end })
    }

    fn page(&self, id: u64) -> Result<Vec<u8>> {
        if id >= self.end {
            return Err(damaged("a page lies beyond the end"));
        }
        let at = id * self.page_bytes;
        let mut head = [0; PAGE_HEADER_BYTES];
        self.file.read_exact_at(&mut head, at)?;
        if u64_at(&head, 0)? != id {
            return Err(damaged("a page has another page's number"));
        }
        let bytes = (u64::from(u32_at(&head, 12)?) + 1) * self.page_bytes;
        if bytes > MAX_PAGE_RUN_BYTES {
            return Err(damaged("a page is too large"));
        }
        let mut page = vec![0; bytes as usize];
        self.file.read_exact_at(&mut page, at)?;
        Ok(page)
    }

    /// A bucket of the root by its name.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket>> {
        let mut found = None;
        self.walk(&self.page(self.root)?, 0, &mut |flags, key, value| {
            if key == name && flags & FLAG_BUCKET != 0 {
                let root = u64_at(value, 0)?;
                let inline = value.get(BUCKET_BYTES..).unwrap_or_default();
                found = Some(if root == 0 { Bucket::Inline(inline.to_vec()) } else { Bucket::Page(root) });
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Visits a bucket's keys and values in order.
    pub fn visit(&self, bucket: &Bucket, visit: &mut Visit<'_>) -> Result<()> {
        let mut each = |_: u32, key: &[u8], value: &[u8]| visit(key, value);
        match bucket {
            Bucket::Page(root) => self.walk(&self.page(*root)?, 0, &mut each),
            Bucket::Inline(page) => self.walk(page, 0, &mut each),
        }
    }

    fn walk(&self, page: &[u8], depth: usize, each: &mut Element<'_>) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(damaged("its tree is too deep"));
        }
        let (flags, count) = (u16_at(page, 8)?, usize::from(u16_at(page, 10)?));
        for index in 0..count {
            let at = PAGE_HEADER_BYTES + index * ELEMENT_BYTES;
            match flags {
                FLAG_BRANCH => self.walk(&self.page(u64_at(page, at + 8)?)?, depth + 1, each)?,
                FLAG_LEAF => {
                    let (position, key_len) = (u32_at(page, at + 4)? as usize, u32_at(page, at + 8)? as usize);
                    let key = slice(page, at + position, key_len)?;
                    let value = slice(page, at + position + key_len, u32_at(page, at + 12)? as usize)?;
                    each(u32_at(page, at)?, key, value)?;
                }
                _ => return Err(damaged("a page is neither branch nor leaf")),
            }
        }
        Ok(())
    }
}

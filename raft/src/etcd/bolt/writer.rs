//! Writes a database once, bucket by bucket, keys in order: leaves as they fill, branches above them at the end.

use std::fs::File;
use std::io::{BufWriter, Error, ErrorKind, Result, Seek, SeekFrom, Write};

use super::{
    BUCKET_BYTES, ELEMENT_BYTES, FLAG_BRANCH, FLAG_BUCKET, FLAG_FREELIST, FLAG_LEAF, FLAG_META, MAGIC, META_BYTES,
    PAGE_BYTES, PAGE_HEADER_BYTES, VERSION, fnv64a,
};

/// A page's first key and its number.
type Child = (Vec<u8>, u64);

/// Writes one database to a file.
pub struct Writer {
    out: BufWriter<File>,
    /// Number of the next page.
    next: u64,
    /// Elements of the leaf that is being filled.
    leaf: Vec<(Vec<u8>, Vec<u8>)>,
    leaf_bytes: usize,
    last: Vec<u8>,
    leaves: Vec<Child>,
    open: Vec<u8>,
    /// The root's content: names and root pages of the buckets.
    buckets: Vec<(Vec<u8>, u64)>,
}

fn header(id: u64, flags: u16, count: usize, pages: usize) -> Result<Vec<u8>> {
    let count = u16::try_from(count).map_err(|_| Error::new(ErrorKind::InvalidData, "too many elements in a page"))?;
    let mut page = Vec::with_capacity(pages * PAGE_BYTES);
    page.extend_from_slice(&id.to_le_bytes());
    page.extend_from_slice(&flags.to_le_bytes());
    page.extend_from_slice(&count.to_le_bytes());
    page.extend_from_slice(&((pages - 1) as u32).to_le_bytes());
    Ok(page)
}

fn pages(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_BYTES).max(1)
}

impl Writer {
    /// Begins a database in an empty file.
    pub fn new(file: File) -> Result<Self> {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        // Two meta pages, written last, and an empty list of free pages.
        out.write_all(&[0; 2 * PAGE_BYTES])?;
        let mut free = header(2, FLAG_FREELIST, 0, 1)?;
        free.resize(PAGE_BYTES, 0);
        out.write_all(&free)?;
        let (leaf, leaves, buckets) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { out, next: 3, leaf, leaf_bytes: 0, last: Vec::new(), leaves, open: Vec::new(), buckets })
    }

    /// Begins a bucket; buckets come in the order of their names.
    pub fn begin(&mut self, name: &[u8]) {
        self.open = name.to_vec();
        self.last.clear();
    }

    /// Adds a key; keys come in order.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if !self.last.is_empty() && *key <= *self.last {
            return Err(Error::new(ErrorKind::InvalidInput, "keys of a bucket must rise"));
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        let bytes = ELEMENT_BYTES + key.len() + value.len();
        if !self.leaf.is_empty() && PAGE_HEADER_BYTES + self.leaf_bytes + bytes > PAGE_BYTES {
            self.write_leaf()?;
        }
        self.leaf_bytes += bytes;
        self.leaf.push((key.to_vec(), value.to_vec()));
        Ok(())
    }

    /// Ends the bucket.
    pub fn end(&mut self) -> Result<()> {
        self.write_leaf()?;
        let root = self.write_branches()?;
        self.buckets.push((std::mem::take(&mut self.open), root));
        Ok(())
    }

    fn write(&mut self, mut page: Vec<u8>) -> Result<u64> {
        let (id, count) = (self.next, pages(page.len()));
        page.resize(count * PAGE_BYTES, 0);
        self.out.write_all(&page)?;
        self.next += count as u64;
        Ok(id)
    }

    fn write_leaf(&mut self) -> Result<()> {
        if self.leaf.is_empty() && !self.leaves.is_empty() {
            return Ok(());
        }
        let leaf = std::mem::take(&mut self.leaf);
        let elements: Vec<_> = leaf.iter().map(|(key, value)| (0, &key[..], &value[..])).collect();
        let page = self.leaf_page(&elements)?;
        let id = self.write(page)?;
        self.leaf_bytes = 0;
        self.leaves.push((leaf.into_iter().next().map(|(key, _)| key).unwrap_or_default(), id));
        Ok(())
    }

    fn leaf_page(&self, elements: &[(u32, &[u8], &[u8])]) -> Result<Vec<u8>> {
        let heads = PAGE_HEADER_BYTES + elements.len() * ELEMENT_BYTES;
        let bytes = heads + elements.iter().map(|(_, key, value)| key.len() + value.len()).sum::<usize>();
        let mut page = header(self.next, FLAG_LEAF, elements.len(), pages(bytes))?;
        let mut at = heads;
        for (index, (flags, key, value)) in elements.iter().enumerate() {
            // Positions count from the element itself.
            let position = at - PAGE_HEADER_BYTES - index * ELEMENT_BYTES;
            for number in [*flags, position as u32, key.len() as u32, value.len() as u32] {
                page.extend_from_slice(&number.to_le_bytes());
            }
            at += key.len() + value.len();
        }
        for (_, key, value) in elements {
            page.extend_from_slice(key);
            page.extend_from_slice(value);
        }
        Ok(page)
    }

    /// Writes branches above the leaves, level by level; returns the root's number.
    fn write_branches(&mut self) -> Result<u64> {
        let mut level = std::mem::take(&mut self.leaves);
        while level.len() > 1 {
            let mut above = Vec::new();
            let mut rest = level.as_slice();
            while !rest.is_empty() {
                let mut bytes = PAGE_HEADER_BYTES;
                let fits = rest.iter().take_while(|(key, _)| {
                    bytes += ELEMENT_BYTES + key.len();
                    bytes <= PAGE_BYTES
                });
                // A branch has at least two children, even if their keys are long.
                let count = fits.count().max(2).min(rest.len());
                let (children, others) = rest.split_at(count);
                let page = self.branch_page(children)?;
                above.push((children[0].0.clone(), self.write(page)?));
                rest = others;
            }
            level = above;
        }
        level.first().map(|(_, id)| *id).ok_or_else(|| Error::other("a bucket has no page"))
    }

    fn branch_page(&self, children: &[Child]) -> Result<Vec<u8>> {
        let heads = PAGE_HEADER_BYTES + children.len() * ELEMENT_BYTES;
        let bytes = heads + children.iter().map(|(key, _)| key.len()).sum::<usize>();
        let mut page = header(self.next, FLAG_BRANCH, children.len(), pages(bytes))?;
        let mut at = heads;
        for (index, (key, id)) in children.iter().enumerate() {
            let position = at - PAGE_HEADER_BYTES - index * ELEMENT_BYTES;
            page.extend_from_slice(&(position as u32).to_le_bytes());
            page.extend_from_slice(&(key.len() as u32).to_le_bytes());
            page.extend_from_slice(&id.to_le_bytes());
            at += key.len();
        }
        children.iter().for_each(|(key, _)| page.extend_from_slice(key));
        Ok(page)
    }

    /// Writes the root and the heads; the file is complete then, but not synced.
    pub fn finish(mut self) -> Result<File> {
        let buckets = std::mem::take(&mut self.buckets);
        let values: Vec<[u8; BUCKET_BYTES]> = buckets
            .iter()
            .map(|(_, root)| {
                let mut value = [0; BUCKET_BYTES];
                value[..8].copy_from_slice(&root.to_le_bytes());
                value
            })
            .collect();
        let elements: Vec<_> =
            buckets.iter().zip(&values).map(|((name, _), value)| (FLAG_BUCKET, &name[..], &value[..])).collect();
        let page = self.leaf_page(&elements)?;
        let root = self.write(page)?;
        let mut file = self.out.into_inner().map_err(|error| error.into_error())?;
        file.seek(SeekFrom::Start(0))?;
        for id in 0..2 {
            file.write_all(&meta(id, root, self.next)?)?;
        }
        Ok(file)
    }
}

fn meta(id: u64, root: u64, next: u64) -> Result<Vec<u8>> {
    let mut page = header(id, FLAG_META, 0, 1)?;
    for number in [MAGIC, VERSION, PAGE_BYTES as u32, 0] {
        page.extend_from_slice(&number.to_le_bytes());
    }
    // Root and its sequence, the list of free pages, the end, the transaction.
    for number in [root, 0, 2, next, id] {
        page.extend_from_slice(&number.to_le_bytes());
    }
    let sum = fnv64a(&page[PAGE_HEADER_BYTES..PAGE_HEADER_BYTES + META_BYTES]);
    page.extend_from_slice(&sum.to_le_bytes());
    page.resize(PAGE_BYTES, 0);
    Ok(page)
}

//! Parquet files in a bucket, read by ranges: blocks of them are kept in memory, so that pages that follow each other are not asked for one by one.

use super::prefix::{Listed, Prefix};
use bytes::{Bytes, BytesMut};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One object, for readers of Parquet.
#[derive(Debug, Clone)]
pub struct Object {
    prefix: Arc<Prefix>,
    listed: Arc<Listed>,
}

/// Reads an object from a place on.
#[derive(Debug)]
pub struct ObjectRead {
    object: Object,
    at: u64,
}

/// The blocks that were read last.
#[derive(Debug, Default)]
pub(super) struct Blocks(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    /// By object and number of the block; each with when it was used.
    blocks: HashMap<(Arc<Listed>, u64), (u64, Bytes)>,
    /// By when they were used.
    order: BTreeMap<u64, (Arc<Listed>, u64)>,
    uses: u64,
}

/// The bytes of one request. Large enough that a request's latency matters little, small enough that the footer of a file is not a large part of it.
const BLOCK: u64 = 2 << 20;
/// The most blocks in memory: 128 MiB, more than the columns that are read side by side need.
const MAX_BLOCKS: usize = 64;

impl Object {
    #[must_use]
    pub fn new(prefix: &Arc<Prefix>, listed: Listed) -> Object {
        Object { prefix: Arc::clone(prefix), listed: Arc::new(listed) }
    }

    /// Its address, for messages.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.prefix, self.listed.name)
    }

    fn block(&self, number: u64) -> io::Result<Bytes> {
        let key = (Arc::clone(&self.listed), number);
        if let Some(bytes) = self.prefix.blocks.lock().get(&key) {
            return Ok(bytes);
        }
        let from = number * BLOCK;
        let bytes = self.prefix.read(&self.listed, from, BLOCK.min(self.listed.bytes.saturating_sub(from)))?;
        self.prefix.blocks.lock().put(key, bytes.clone());
        Ok(bytes)
    }
}

impl Blocks {
    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    fn get(&mut self, key: &(Arc<Listed>, u64)) -> Option<Bytes> {
        self.uses += 1;
        let (used, bytes) = self.blocks.get_mut(key)?;
        self.order.remove(used);
        *used = self.uses;
        self.order.insert(self.uses, key.clone());
        Some(bytes.clone())
    }

    fn put(&mut self, key: (Arc<Listed>, u64), bytes: Bytes) {
        self.uses += 1;
        if let Some((used, _)) = self.blocks.insert(key.clone(), (self.uses, bytes)) {
            self.order.remove(&used);
        }
        self.order.insert(self.uses, key);
        while self.blocks.len() > MAX_BLOCKS {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.blocks.remove(&oldest);
        }
    }
}

impl Length for Object {
    fn len(&self) -> u64 {
        self.listed.bytes
    }
}

impl ChunkReader for Object {
    type T = ObjectRead;

    fn get_read(&self, start: u64) -> Result<ObjectRead, ParquetError> {
        Ok(ObjectRead { object: self.clone(), at: start })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let end = start.checked_add(length as u64).filter(|end| *end <= self.listed.bytes);
        let Some(end) = end else {
            return Err(ParquetError::EOF(format!("{length} bytes from {start} on are not in {}", self.name())));
        };
        let mut all = BytesMut::new();
        let mut at = start;
        while at < end {
            let block = self.block(at / BLOCK).map_err(|e| ParquetError::External(Box::new(e)))?;
            let from = usize::try_from(at % BLOCK).unwrap_or(usize::MAX);
            let n = (block.len() - from).min(usize::try_from(end - at).unwrap_or(usize::MAX));
            if n == length {
                return Ok(block.slice(from..from + n));
            }
            all.extend_from_slice(&block[from..from + n]);
            at += n as u64;
        }
        Ok(all.freeze())
    }
}

impl Read for ObjectRead {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.object.listed.bytes || to.is_empty() {
            return Ok(0);
        }
        let block = self.object.block(self.at / BLOCK)?;
        let from = usize::try_from(self.at % BLOCK).unwrap_or(usize::MAX);
        let n = (block.len() - from).min(to.len());
        to[..n].copy_from_slice(&block[from..from + n]);
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_that_were_used_last_are_kept() {
        let listed = Arc::new(Listed { name: "a".to_owned(), bytes: 1, tag: None });
        let mut recent = Recent::default();
        let key = |n: u64| (Arc::clone(&listed), n);
        for n in 0..MAX_BLOCKS as u64 {
            recent.put(key(n), Bytes::from(vec![0]));
        }
        assert!(recent.get(&key(0)).is_some());
        recent.put(key(1000), Bytes::from(vec![1]));
        assert!(recent.get(&key(0)).is_some() && recent.get(&key(1000)).is_some());
        assert!(recent.get(&key(1)).is_none(), "the block that was not used for longest is gone");
        assert_eq!((recent.blocks.len(), recent.order.len()), (MAX_BLOCKS, MAX_BLOCKS));
    }
}

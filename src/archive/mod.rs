//! archive: the files of a version as one stream, in the tar format; strict.
//!
//! - [`pack`](fn@pack) reads the files of a directory as a stream (POSIX.1-1988 ustar, with pax headers for long names and large files).
//! - [`unpack`](fn@unpack) writes the files of such a stream into a directory. It takes what tar programs write (ustar, pax and GNU headers), and regular
//!   files and directories alone: a link, a device, a path that leaves the directory, and a name that is there twice are refused by name.
//! - [`unpack_below`] takes the files below one directory, and leaves out everything else: layers of images have links and devices too.
//! - Nothing is reserved because a header says so, and the number of entries is bounded. The caller bounds the bytes.
//! - A stream that ends early is refused, also where it ends between two files: the end of an archive is marked.
//!
//! Uses: nothing.
//!
//! Invariant: nothing here knows models or sockets, and nothing is written outside of the given directory.
//!
//! To take another kind of header: a branch in `unpack.rs`, with its hostile forms in `tests.rs`.

mod pack;
#[cfg(test)]
mod tests;
mod unpack;

pub(crate) use pack::pack;
pub(crate) use unpack::{Refused, unpack, unpack_below};

/// The size of a block. Headers are one block, and contents are filled up to whole blocks.
const BLOCK: usize = 512;

/// The most entries of an archive, directories among them.
pub(crate) const MAX_ENTRIES: usize = 10_000;
/// The most entries of a layer of an image, most of which are left out.
pub(crate) const MAX_LAYER_ENTRIES: usize = 1_000_000;
/// The deepest path: as deep as the models directory is read.
pub(crate) const MAX_DEPTH: usize = 8;
/// The most bytes of an extended header.
const MAX_EXTENDED: u64 = 64 << 10;

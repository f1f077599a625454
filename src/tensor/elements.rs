//! Elements of one numeric type: owned, or a view into received bytes.

use bytemuck::Pod;
use bytes::Bytes;
use std::marker::PhantomData;
use std::ops::Deref;

/// A numeric type a tensor can hold as plain memory.
pub trait Element: Pod + PartialEq + std::fmt::Debug + Send + Sync {}
impl<T: Pod + PartialEq + std::fmt::Debug + Send + Sync> Element for T {}

/// `[T]`, either owned or viewed in bytes that came off the socket (the binary tensor extension, without a copy).
#[derive(Clone)]
pub struct Elements<T: Element>(Store<T>);

#[derive(Clone)]
enum Store<T: Element> {
    Owned(Vec<T>),
    /// Length a multiple of `size_of::<T>()`, start aligned for `T`: checked by [`Elements::view`], the only maker.
    View(Bytes, PhantomData<T>),
}

impl<T: Element> Elements<T> {
    /// Views little-endian bytes as elements, without a copy where they are aligned for `T` and with one copy where not.
    ///
    /// Returns `None` when the length is not a whole number of elements.
    ///
    /// The wire is little-endian; so are all targets this is built for (a compile-time check below holds that).
    #[must_use]
    pub fn view(bytes: Bytes) -> Option<Elements<T>> {
        const { assert!(cfg!(target_endian = "little"), "the wire is little-endian, and views are not swapped") };
        if !bytes.len().is_multiple_of(size_of::<T>()) {
            return None;
        }
        if bytemuck::try_cast_slice::<u8, T>(&bytes).is_ok() {
            return Some(Elements(Store::View(bytes, PhantomData)));
        }
        let mut owned = vec![T::zeroed(); bytes.len() / size_of::<T>()];
        bytemuck::cast_slice_mut::<T, u8>(&mut owned).copy_from_slice(&bytes);
        Some(Elements(Store::Owned(owned)))
    }

    /// The elements as little-endian bytes, as the binary tensor extension sends them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self)
    }

    /// Whether this is a view into received bytes rather than memory of its own.
    #[must_use]
    pub fn is_view(&self) -> bool {
        matches!(self.0, Store::View(..))
    }
}

impl<T: Element> Deref for Elements<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Store::Owned(owned) => owned,
            Store::View(bytes, _) => bytemuck::cast_slice(bytes),
        }
    }
}

impl<T: Element> From<Vec<T>> for Elements<T> {
    fn from(owned: Vec<T>) -> Self {
        Elements(Store::Owned(owned))
    }
}

impl<T: Element> PartialEq for Elements<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Element> std::fmt::Debug for Elements<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

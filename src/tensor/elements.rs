//! The elements of a numeric tensor: owned memory, or a view into received bytes.

use bytemuck::Pod;
use bytes::Bytes;
use std::marker::PhantomData;
use std::ops::Deref;

/// A numeric type that can be viewed as plain bytes.
pub trait Element: Pod + PartialEq + std::fmt::Debug + Send + Sync {}
impl<T: Pod + PartialEq + std::fmt::Debug + Send + Sync> Element for T {}

/// A slice of `T`, either owned or a view into received bytes. A view avoids a copy for binary tensors.
#[derive(Clone)]
pub struct Elements<T: Element>(Store<T>);

#[derive(Clone)]
enum Store<T: Element> {
    Owned(Vec<T>),
    /// The length is a multiple of `size_of::<T>()` and the start is aligned for `T`. [`Elements::view`] checks both.
    View(Bytes, PhantomData<T>),
}

impl<T: Element> Elements<T> {
    /// Interprets little-endian bytes as elements. Copies them only if they are not aligned for `T`.
    ///
    /// Returns `None` if the length is not a whole number of elements, or if there is no memory for a copy.
    ///
    /// The wire format is little-endian. A compile-time check rejects big-endian targets.
    #[must_use]
    pub fn view(bytes: Bytes) -> Option<Elements<T>> {
        const { assert!(cfg!(target_endian = "little"), "the wire format is little-endian, and views do not swap bytes") };
        if !bytes.len().is_multiple_of(size_of::<T>()) {
            return None;
        }
        if bytemuck::try_cast_slice::<u8, T>(&bytes).is_ok() {
            return Some(Elements(Store::View(bytes, PhantomData)));
        }
        let n = bytes.len() / size_of::<T>();
        let mut owned = Vec::new();
        owned.try_reserve_exact(n).ok()?;
        owned.resize(n, T::zeroed());
        bytemuck::cast_slice_mut::<T, u8>(&mut owned).copy_from_slice(&bytes);
        Some(Elements(Store::Owned(owned)))
    }

    /// The elements as little-endian bytes, as the binary tensor extension sends them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self)
    }

    /// Whether this is a view into received bytes and not owned memory.
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

//! What one request holds.

use super::{Account, Budget, Full};
use crate::model::Failure;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What one request holds of the budget. Given back when it is dropped.
///
/// It is moved with the request: one thread at a time changes it, so its own counts need no order.
#[derive(Debug)]
pub struct Hold {
    /// `None`: nothing is counted, for files and for requests that the server makes itself.
    of: Option<Owner>,
    /// Bytes that are in use.
    used: AtomicUsize,
    /// Bytes taken from the budget: at least `used`, in steps.
    taken: AtomicUsize,
}

#[derive(Debug)]
struct Owner {
    budget: Budget,
    account: Account,
}

/// Bytes are taken in steps of this size, so that most requests take once. It also stands for what a request needs beside its body.
const STEP: usize = 16 << 10;

impl Hold {
    /// What a new request holds: one step.
    ///
    /// # Errors
    /// `OVERLOADED` when the memory for requests is full.
    pub fn open(budget: &Budget, account: &Account) -> Result<Hold, Failure> {
        budget.take(STEP, STEP).map_err(|full| budget.refuse(full))?;
        let of = Some(Owner { budget: budget.clone(), account: account.clone() });
        Ok(Hold { of, used: AtomicUsize::new(0), taken: AtomicUsize::new(STEP) })
    }

    /// A hold that counts nothing.
    #[must_use]
    pub const fn uncounted() -> Hold {
        Hold { of: None, used: AtomicUsize::new(0), taken: AtomicUsize::new(0) }
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Counts bytes that are about to be allocated.
    ///
    /// # Errors
    /// `OVERLOADED` or `TOO_MANY_REQUESTS` when others hold too much, `BODY_TOO_LARGE` when no request may hold as much. What was held
    /// before is still held.
    pub fn grow(&self, bytes: usize) -> Result<(), Failure> {
        let used = self.used().saturating_add(bytes);
        let taken = self.taken.load(Ordering::Relaxed);
        if used > taken
            && let Some(of) = &self.of
        {
            self.take(of, taken, used).map_err(|full| of.budget.refuse(full))?;
        }
        self.used.store(used, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back what is held beyond `bytes`.
    pub fn shrink_to(&self, bytes: usize) {
        let used = self.used().min(bytes);
        self.used.store(used, Ordering::Relaxed);
        let Some(of) = &self.of else { return };
        let (before, taken) = (self.taken.load(Ordering::Relaxed), steps(used));
        if taken < before {
            self.taken.store(taken, Ordering::Relaxed);
            of.budget.give_back(before - taken);
            let counted = counted(before) - counted(taken);
            if counted > 0 {
                of.account.give_back(counted);
            }
        }
    }

    /// Gives back `bytes` of what is held.
    pub fn shrink_by(&self, bytes: usize) {
        self.shrink_to(self.used().saturating_sub(bytes));
    }

    /// Makes room for `additional` more elements, and counts it. The capacity doubles, up to room for `most` elements where that is enough.
    ///
    /// # Errors
    /// As [`Hold::grow`], and `OVERLOADED` when the system has no memory.
    #[inline]
    pub fn room<T>(&self, vec: &mut Vec<T>, additional: usize, most: usize) -> Result<(), Failure> {
        if vec.capacity() - vec.len() >= additional { Ok(()) } else { self.more_room(vec, additional, most) }
    }

    #[cold]
    fn more_room<T>(&self, vec: &mut Vec<T>, additional: usize, most: usize) -> Result<(), Failure> {
        let (length, capacity) = (vec.len(), vec.capacity());
        let needed = length.saturating_add(additional);
        let target = capacity.saturating_mul(2).min(most).max(needed);
        let bytes = (target - capacity).saturating_mul(size_of::<T>());
        self.grow(bytes)?;
        vec.try_reserve_exact(target - length).map_err(|_| {
            self.shrink_by(bytes);
            let full = Full::System { wants: bytes };
            self.of.as_ref().map_or_else(|| full.failure(), |of| of.budget.refuse(full))
        })
    }

    /// Takes what is missing for `used` bytes.
    fn take(&self, of: &Owner, before: usize, used: usize) -> Result<(), Full> {
        let taken = steps(used);
        if taken > of.account.most() {
            return Err(Full::Never { wants: used, most: of.account.most() });
        }
        let counted = counted(taken) - counted(before);
        if counted > 0 {
            of.account.take(counted)?;
        }
        of.budget.take(taken - before, taken).inspect_err(|_| {
            if counted > 0 {
                of.account.give_back(counted);
            }
        })?;
        self.taken.store(taken, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(of) = &self.of else { return };
        let taken = *self.taken.get_mut();
        of.budget.give_back(taken);
        if counted(taken) > 0 {
            of.account.give_back(counted(taken));
        }
    }
}

/// `bytes` in whole steps, at least one.
fn steps(bytes: usize) -> usize {
    bytes.div_ceil(STEP).max(1).saturating_mul(STEP)
}

/// What an account counts of a request that has taken `taken` bytes: all but its first step, which costs no more than the request itself.
fn counted(taken: usize) -> usize {
    taken.saturating_sub(STEP)
}

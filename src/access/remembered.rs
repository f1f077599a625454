//! The credentials that a connection sent last. Most connections send the same ones with each request, and need not have them hashed, or
//! their signature verified, each time.

use super::identity::Identity;
use super::tokens::Token;
use http::HeaderValue;
use jiff::Timestamp;
use std::sync::{Arc, Mutex, PoisonError};
use subtle::ConstantTimeEq as _;

/// What one connection proved last. It holds the credentials themselves, as long as the connection is open, and never shows them.
#[derive(Default)]
pub struct Remembered(Mutex<Option<(HeaderValue, Proof)>>);

/// What was proved, and as long as what it holds.
#[derive(Debug, Clone)]
pub(super) enum Proof {
    /// Until the tokens change: `generation` is that of [`super::tokens::Tokens`].
    Token { token: Arc<Token>, generation: u64 },
    /// Until it expires or the keys of the provider are read again: `generation` is that of [`super::oidc::Oidc`].
    Jwt { identity: Arc<Identity>, expires_at: Timestamp, generation: u64 },
}

impl Remembered {
    /// What these credentials proved, if they are the last ones. Compared in constant time: a proxy may send the requests of several
    /// callers on one connection, and none of them may find out the credentials of another by trying.
    pub(super) fn proof_of(&self, value: &HeaderValue) -> Option<Proof> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, proof) = last.as_ref()?;
        bool::from(known.as_bytes().ct_eq(value.as_bytes())).then(|| proof.clone())
    }

    pub(super) fn keep(&self, value: &HeaderValue, proof: Proof) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((value.clone(), proof));
    }
}

impl std::fmt::Debug for Remembered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Remembered")
    }
}

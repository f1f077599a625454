//! The wire format of Protocol Buffers: a message as a list of fields, and values in it.

use crate::model::{Code, Failure};
use bytes::Bytes;
use prost::encoding::{WireType, decode_varint};

/// The fields of a message, in the order in which they stand there.
#[derive(Debug)]
pub(super) struct Fields {
    rest: Bytes,
    length: usize,
}

/// The value of a field, before its type is known.
#[derive(Debug)]
pub(super) enum Value {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    /// A string, bytes, a message, or numbers one after another.
    Bytes(Bytes),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Varint(_) => "a varint",
            Value::Fixed64(_) => "64 bits",
            Value::Fixed32(_) => "32 bits",
            Value::Bytes(_) => "bytes",
        }
    }

    /// The bytes of a string, bytes or a message.
    ///
    /// # Errors
    /// For another wire type.
    pub(super) fn bytes(self, field: &str) -> Result<Bytes, Failure> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            other => Err(malformed(format!("{field} is expected to be bytes, got {}", other.kind()))),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// For another wire type, and for bytes that are not UTF-8.
    pub(super) fn string(self, field: &str) -> Result<String, Failure> {
        let bytes = self.bytes(field)?;
        String::from_utf8(bytes.into()).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            malformed(format!("{field} is not UTF-8 text: byte {at} is invalid"))
        })
    }

    /// An integer.
    ///
    /// # Errors
    /// For another wire type.
    pub(super) fn varint(&self, field: &str) -> Result<u64, Failure> {
        match self {
            Value::Varint(n) => Ok(*n),
            other => Err(malformed(format!("{field} is expected to be an integer, got {}", other.kind()))),
        }
    }
}

impl Fields {
    pub(super) fn new(message: Bytes) -> Fields {
        Fields { length: message.len(), rest: message }
    }

    /// The next field: its number and its value.
    ///
    /// # Errors
    /// `INVALID_REQUEST` where the bytes are not fields. What follows cannot be read then.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Value)>, Failure> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let at = self.length - self.rest.len();
        let broken = |problem: String| malformed(format!("the message is not Protocol Buffers: byte {at}: {problem}"));
        let key = self.varint().ok_or_else(|| broken("the field's key is cut off or too long".into()))?;
        let number = u32::try_from(key >> 3).ok().filter(|number| *number > 0);
        let number = number.ok_or_else(|| broken(format!("{} is not the number of a field", key >> 3)))?;
        let cut_off = || broken(format!("field {number} is cut off"));
        let value = match WireType::try_from(key & 7) {
            Ok(WireType::Varint) => Value::Varint(self.varint().ok_or_else(cut_off)?),
            Ok(WireType::SixtyFourBit) => Value::Fixed64(u64::from_le_bytes(self.array().ok_or_else(cut_off)?)),
            Ok(WireType::ThirtyTwoBit) => Value::Fixed32(u32::from_le_bytes(self.array().ok_or_else(cut_off)?)),
            Ok(WireType::LengthDelimited) => {
                let length = self.varint().ok_or_else(cut_off)?;
                let left = self.rest.len();
                let fits = usize::try_from(length).ok().filter(|length| *length <= left);
                let announces = || broken(format!("field {number} announces {length} bytes, but only {left} are left"));
                Value::Bytes(self.rest.split_to(fits.ok_or_else(announces)?))
            }
            Ok(WireType::StartGroup | WireType::EndGroup) | Err(_) => {
                return Err(broken(format!(
                    "field {number} has wire type {}, which these services do not use",
                    key & 7
                )));
            }
        };
        Ok(Some((number, value)))
    }

    fn varint(&mut self) -> Option<u64> {
        varint(&mut self.rest)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        array(&mut self.rest)
    }
}

/// Takes an integer from the beginning. `None` where it is cut off or has more than 64 bits.
pub(super) fn varint(bytes: &mut Bytes) -> Option<u64> {
    match bytes.first() {
        Some(byte) if *byte < 0x80 => {
            let n = u64::from(*byte);
            bytes::Buf::advance(bytes, 1);
            Some(n)
        }
        _ => decode_varint(bytes).ok(),
    }
}

fn array<const N: usize>(bytes: &mut Bytes) -> Option<[u8; N]> {
    if bytes.len() < N {
        return None;
    }
    bytes.split_to(N)[..].try_into().ok()
}

/// The message contradicts the protocol.
#[cold]
pub(super) fn malformed(message: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidRequest, message)
}

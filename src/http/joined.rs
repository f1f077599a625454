//! A body that arrives in several frames, joined by one copy.

use crate::budget::Hold;
use crate::codec::grpc::frame;
use crate::codec::oip::header_length;
use crate::model::Failure;
use bytes::{Buf, Bytes};
use http::HeaderValue;

/// What the allocator aligns memory to, at least, and no element is larger.
const ALIGNMENT: usize = 16;

/// The frames so far. A body of one frame is used as it is.
#[derive(Debug)]
pub(super) struct Joined {
    /// The only frame, if there is one.
    first: Option<Bytes>,
    /// Several frames, after `skipped` bytes.
    bytes: Vec<u8>,
    /// So many bytes stand before the body that its binary tensors are aligned. Otherwise decoding would copy them once more.
    skipped: usize,
    /// The body is one frame of gRPC, whose tensors stand at its end.
    is_frame: bool,
    /// The most bytes that the body may have.
    most: usize,
}

impl Joined {
    /// `most`: bytes of the body. `length`: its header `Inference-Header-Content-Length`, where it has one.
    pub(super) fn new(most: usize, length: Option<&HeaderValue>) -> Joined {
        // A length that makes no sense is reported when the body is decoded.
        let tensors_at = length.and_then(|length| header_length(length.as_bytes(), usize::MAX).ok()).unwrap_or(0);
        let skipped = (ALIGNMENT - tensors_at % ALIGNMENT) % ALIGNMENT;
        Joined { first: None, bytes: Vec::new(), skipped, is_frame: false, most }
    }

    /// For a body that is one frame of gRPC.
    pub(super) fn of_frame(most: usize) -> Joined {
        Joined { first: None, bytes: Vec::new(), skipped: 0, is_frame: true, most }
    }

    pub(super) fn len(&self) -> usize {
        self.first.as_ref().map_or(self.bytes.len().saturating_sub(self.skipped), Bytes::len)
    }

    /// Adds a part, whose bytes are counted in `hold`.
    ///
    /// # Errors
    /// Those of [`Hold::room`].
    pub(super) fn push(&mut self, part: Bytes, hold: &Hold) -> Result<(), Failure> {
        if self.first.is_none() && self.bytes.is_empty() {
            hold.grow(part.len())?;
            self.first = Some(part);
            return Ok(());
        }
        let first = self.first.take();
        if let Some(first) = first.as_ref().filter(|_| self.is_frame)
            && let Ok(Some(head)) = frame::head(first)
        {
            let whole = head.length.saturating_add(frame::HEAD);
            self.skipped = (ALIGNMENT - whole % ALIGNMENT) % ALIGNMENT;
            self.most = self.most.min(whole);
        }
        let skipped = if first.is_some() { self.skipped } else { 0 };
        let first = first.unwrap_or_default();
        let more = skipped + first.len() + part.len();
        hold.room(&mut self.bytes, more, self.most.saturating_add(self.skipped))?;
        hold.shrink_by(first.len());
        self.bytes.resize(self.bytes.len() + skipped, 0);
        self.bytes.extend_from_slice(&first);
        self.bytes.extend_from_slice(&part);
        Ok(())
    }

    pub(super) fn finish(self) -> Bytes {
        self.first.unwrap_or_else(|| {
            let mut whole = Bytes::from(self.bytes);
            whole.advance(self.skipped.min(whole.len()));
            whole
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::oip;
    use crate::tensor::Data;
    use proptest::prelude::*;

    fn join(frames: &[&[u8]], length: Option<&str>) -> (Bytes, usize) {
        let length = length.map(|length| HeaderValue::from_str(length).unwrap());
        let (hold, total) = (Hold::uncounted(), frames.iter().map(|frame| frame.len()).sum());
        let mut joined = Joined::new(total, length.as_ref());
        for (i, frame) in frames.iter().enumerate() {
            joined.push(Bytes::copy_from_slice(frame), &hold).unwrap();
            assert_eq!(joined.len(), frames[..=i].concat().len());
        }
        let capacity = joined.bytes.capacity();
        (joined.finish(), capacity)
    }

    #[test]
    fn a_body_of_one_frame_is_not_copied() {
        let (hold, frame) = (Hold::uncounted(), Bytes::from_static(b"a body"));
        let mut joined = Joined::new(6, None);
        joined.push(frame.clone(), &hold).unwrap();
        assert_eq!(joined.finish().as_ptr(), frame.as_ptr());
        assert!(Joined::new(6, None).finish().is_empty(), "no frame at all");
    }

    #[test]
    fn a_length_without_sense_is_no_reason_to_fail() {
        for length in ["", "x", "-1", "18446744073709551615", "18446744073709551616"] {
            assert_eq!(join(&[b"ab", b"c"], Some(length)).0, "abc");
        }
    }

    #[test]
    fn a_tensor_of_a_body_in_frames_is_not_copied_again_wherever_it_begins() {
        for spaces in 0..ALIGNMENT {
            let input = r#"{"name":"x","shape":[1,6],"datatype":"FP64","parameters":{"binary_data_size":48}}"#;
            let json = format!("{{\"inputs\":[{input}]}}{}", " ".repeat(spaces));
            let numbers: Vec<u8> = (0..6).flat_map(|i| f64::from(i).to_le_bytes()).collect();
            let (body, _) = join(
                &[&json.as_bytes()[..9], &json.as_bytes()[9..], &numbers[..5], &numbers[5..]],
                Some(&json.len().to_string()),
            );
            let request = oip::decode(&body, Some(json.len())).unwrap().request;
            let Data::Fp64(x) = request.inputs[0].tensor.data() else { panic!("{request:?}") };
            assert!(x.is_view(), "{spaces} spaces");
            assert_eq!(**x, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        }
    }

    #[test]
    fn the_end_of_a_frame_of_grpc_is_aligned_so_that_raw_tensors_are_views() {
        for before in 0..40 {
            // Anything, and then the bytes of a raw tensor at the end.
            let message = [vec![9; before], vec![0; 64]].concat();
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            let frame = [&[0][..], &length, &message].concat();
            let mut joined = Joined::of_frame(1 << 20);
            for part in frame.chunks(30) {
                joined.push(Bytes::copy_from_slice(part), &Hold::uncounted()).unwrap();
            }
            let whole = joined.finish();
            assert_eq!(whole[..], frame);
            let tensor = whole.slice(whole.len() - 64..);
            assert!(crate::tensor::Elements::<f64>::view(tensor).unwrap().is_view(), "{before} bytes before");
        }
    }

    proptest! {
        #[test]
        fn frames_in_a_row_are_the_body(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 1..20),
            length in proptest::option::of(0usize..5000),
        ) {
            let slices: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            let length = length.map(|length| length.to_string());
            let (whole, capacity) = join(&slices, length.as_deref());
            prop_assert_eq!(&whole[..], frames.concat());
            prop_assert!(capacity < whole.len() + ALIGNMENT, "{} bytes of memory for {}", capacity, whole.len());
        }
    }
}

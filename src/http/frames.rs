//! Follows the frames that a client sends over HTTP/2, as far as limits need it: the time limit for headers, and the number of frames that
//! carry no request (RFC 9113, sections 4, 6 and 10.5).

use std::time::Instant;

/// "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".
const PREFACE: usize = 24;
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Frames that carry no request which a client may send at once, and per second: PING, SETTINGS, PRIORITY, and resets, each of which counts twice.
/// A frame with headers or data pays for one of them, but data of a few bytes counts like them: h2 ignores what arrives for a stream that has
/// ended. A client with requests may so reset every second one, and measure its bandwidth with pings.
const BURST: u32 = 1000;
const PER_SECOND: u32 = 100;
/// Frames of data with fewer bytes count, unless they end a request.
const SMALL: usize = 64;

/// Where the bytes received so far end. The protocol itself is checked elsewhere.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes of the preface that are missing.
    preface: usize,
    /// The head of the current frame, and how many of its bytes have arrived.
    head: [u8; HEAD],
    have: usize,
    /// Bytes of the current frame's payload that are missing.
    left: usize,
    /// A header block has begun, and the frame that ends it has not.
    in_headers: bool,
    /// Complete frames, where the frames of one header block count as one.
    complete: u64,
    /// Frames that have begun since [`Frames::take_begun`] was called.
    begun: u32,
    /// How many frames without a request the client may send, since this time.
    credit: u32,
    since: Instant,
    is_flood: bool,
}

impl Frames {
    pub(super) fn new() -> Frames {
        Frames {
            preface: PREFACE,
            head: [0; HEAD],
            have: 0,
            left: 0,
            in_headers: false,
            complete: 0,
            begun: 0,
            credit: BURST,
            since: Instant::now(),
            is_flood: false,
        }
    }

    /// Reads the next bytes. Returns 0, or the number of a frame or header block that is not complete after them. Frames with data
    /// do not count: bodies have a time limit of their own.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> u64 {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            if self.have < HEAD {
                let taken = (HEAD - self.have).min(bytes.len());
                self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
                self.have += taken;
                bytes = &bytes[taken..];
                if self.have < HEAD {
                    break;
                }
                self.left =
                    usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2]);
                self.in_headers |= self.head[3] == HEADERS;
                self.count();
            }
            let taken = self.left.min(bytes.len());
            self.left -= taken;
            bytes = &bytes[taken..];
            if self.left == 0 {
                self.end_frame();
            }
        }
        let in_frame = self.have > 0 && !(self.have == HEAD && self.head[3] == DATA);
        if self.preface > 0 || in_frame || self.in_headers { self.complete + 1 } else { 0 }
    }

    /// How many frames have begun since the last call.
    pub(super) fn take_begun(&mut self) -> u32 {
        std::mem::take(&mut self.begun)
    }

    /// Whether the client has sent more frames without a request than it may.
    pub(super) fn is_flood(&self) -> bool {
        self.is_flood
    }

    /// Counts the frame whose head is complete.
    fn count(&mut self) {
        self.begun = self.begun.saturating_add(1);
        let cost = match self.head[3] {
            DATA if self.left < SMALL && self.head[4] & END_STREAM == 0 => 1,
            DATA | HEADERS => {
                self.credit = (self.credit + 1).min(BURST);
                return;
            }
            // Large answers need many of the one; the number of the others is limited with their headers.
            WINDOW_UPDATE | CONTINUATION => return,
            RST_STREAM => 2,
            _ => 1,
        };
        if self.credit < cost {
            let now = Instant::now();
            let earned = now.duration_since(self.since).as_millis() * u128::from(PER_SECOND) / 1000;
            let earned = u32::try_from(earned).unwrap_or(BURST).min(BURST);
            if earned > 0 {
                (self.credit, self.since) = ((self.credit + earned).min(BURST), now);
            }
        }
        match self.credit.checked_sub(cost) {
            Some(left) => self.credit = left,
            None => self.is_flood = true,
        }
    }

    fn end_frame(&mut self) {
        self.have = 0;
        if matches!(self.head[3], HEADERS | CONTINUATION) && self.head[4] & END_HEADERS != 0 {
            self.in_headers = false;
        }
        self.complete += u64::from(!self.in_headers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let length_bytes = u32::try_from(length).unwrap().to_be_bytes();
        let mut frame = vec![length_bytes[1], length_bytes[2], length_bytes[3], kind, flags, 0, 0, 0, 1];
        frame.resize(HEAD + length, 7);
        frame
    }

    #[test]
    fn incomplete_frames_and_header_blocks_have_a_number() {
        let mut frames = Frames::new();
        assert_eq!(frames.read(b"PRI * HTTP/2.0\r\n"), 1, "the preface is incomplete");
        assert_eq!(frames.read(b"\r\nSM\r\n\r\n"), 0);
        assert_eq!(frames.read(&frame(4, 0, 18)), 0, "a complete frame");
        let headers = frame(HEADERS, END_HEADERS, 40);
        assert_eq!(frames.read(&headers[..3]), 2, "a part of a frame's head");
        assert_eq!(frames.read(&headers[3..20]), 2);
        assert_eq!(frames.read(&headers[20..]), 0);
        assert_eq!(frames.read(&frame(HEADERS, 0, 5)), 3, "the block goes on");
        assert_eq!(frames.read(&frame(CONTINUATION, 0, 0)), 3, "an empty continuation is no progress");
        assert_eq!(frames.read(&frame(CONTINUATION, 0, 900)), 3, "nor is a long one");
        assert_eq!(frames.read(&frame(CONTINUATION, END_HEADERS, 1)), 0);
        let data = frame(DATA, 0, 100);
        assert_eq!(frames.read(&data[..50]), 0, "half a frame of data");
        assert_eq!(frames.read(&data[50..]), 0);
        assert_ne!(frames.read(&[0]), 0);
    }

    #[test]
    fn frames_without_a_request_are_limited_and_requests_pay_for_them() {
        let (ping, reset) = (frame(6, 0, 8), frame(RST_STREAM, 0, 4));
        let request = frame(HEADERS, END_HEADERS, 10);
        let preface = [0; PREFACE];
        let flooded_after = |unit: &[u8], most: usize| {
            let mut frames = Frames::new();
            frames.read(&preface);
            (0..most).find(|_| {
                frames.read(unit);
                frames.is_flood()
            })
        };
        // The test itself takes time, in which a little more is allowed.
        assert!(flooded_after(&ping, 3000).is_some_and(|n| (1000..2000).contains(&n)));
        assert!(flooded_after(&reset, 3000).is_some_and(|n| (500..1000).contains(&n)));
        let rapid_reset = [&request[..], &reset].concat();
        assert!(flooded_after(&rapid_reset, 3000).is_some_and(|n| (999..2000).contains(&n)));
        let hedged = [&request[..], &request, &reset].concat();
        assert_eq!(flooded_after(&hedged, 3000), None, "every second request is taken back");
        assert_eq!(flooded_after(&frame(WINDOW_UPDATE, 0, 4), 3000), None);
        assert!(flooded_after(&frame(DATA, 0, 1), 3000).is_some_and(|n| (1000..2000).contains(&n)));
        assert_eq!(flooded_after(&frame(DATA, 0, SMALL), 3000), None, "a body in many parts");
        assert_eq!(flooded_after(&[&request[..], &frame(DATA, END_STREAM, 1)].concat(), 3000), None, "small requests");
        let mut frames = Frames::new();
        frames.read(&preface);
        frames.read(&rapid_reset);
        assert_eq!((frames.take_begun(), frames.take_begun()), (2, 0));
    }

    #[test]
    fn the_result_does_not_depend_on_how_the_bytes_arrive() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        for (kind, flags, length) in
            [(4, 0, 0), (1, 0, 17), (9, 4, 70_000), (0, 1, 12), (6, 0, 8), (1, 4, 3), (1, 0, 2)]
        {
            bytes.extend(frame(kind, flags, length));
        }
        let whole = Frames::new().read(&bytes);
        for step in [1, 2, 8, 9, 10, 1000] {
            let mut frames = Frames::new();
            let last = bytes.chunks(step).map(|part| frames.read(part)).last();
            assert_eq!(last, Some(whole), "in parts of {step} bytes");
        }
        assert_eq!(whole, 6, "the last header block is incomplete");
    }
}

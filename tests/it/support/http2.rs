//! HTTP/2 by hand, for frames that a client library does not send (RFC 9113).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const ACK: u8 = 1;

/// A connection, plain or with TLS.
pub struct Http2<S = TcpStream> {
    pub stream: S,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Http2 {
    /// Connects. `window` is the number of bytes that the server may send on each stream without being asked for more.
    pub fn connect(address: SocketAddr, window: u32) -> Http2 {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Http2::over(stream, window)
    }
}

impl<S: Read + Write> Http2<S> {
    /// Begins HTTP/2 on a connection.
    pub fn over(mut stream: S, window: u32) -> Http2<S> {
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        let mut connection = Http2 { stream };
        connection.set_window(window);
        connection
    }

    /// Changes the number of bytes that the server may send on each stream without being asked for more.
    pub fn set_window(&mut self, window: u32) {
        let mut settings = vec![0, 4];
        settings.extend(window.to_be_bytes());
        self.send(SETTINGS, 0, 0, &settings);
    }

    /// Errors are ignored: the server may have closed the connection.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        let _ = self.stream.write_all(&frame);
    }

    /// The headers of a request.
    pub fn request(&mut self, stream: u32, is_post: bool, path: &str, end_stream: bool) {
        let flags = END_HEADERS | if end_stream { END_STREAM } else { 0 };
        self.send(HEADERS, flags, stream, &head(is_post, path));
    }

    /// The next frame. Settings and pings are acknowledged. `None` when the connection is closed.
    pub fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        if matches!(frame.kind, SETTINGS | PING) && frame.flags & ACK == 0 {
            let payload: &[u8] = if frame.kind == PING { &frame.payload } else { &[] };
            self.send(frame.kind, ACK, 0, payload);
        }
        Some(frame)
    }

    /// The next frame of this kind.
    pub fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }
}

/// The header block of a request, without compression (RFC 7541, appendix A has the numbers).
pub fn head(is_post: bool, path: &str) -> Vec<u8> {
    let mut block = vec![if is_post { 0x83 } else { 0x82 }, 0x86];
    for (index, value) in [(4, path), (1, "localhost")] {
        block.push(index);
        block.push(u8::try_from(value.len()).unwrap());
        block.extend(value.as_bytes());
    }
    block
}

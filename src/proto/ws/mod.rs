//! RFC 6455 frames, both roles, without tungstenite: the engine writes shared bytes, the generator reads at line rate.

mod decode;

pub use decode::{Decoder, Event};

use bytes::Bytes;

/// What a frame is (RFC 6455 §5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment.
    Continuation = 0x0,
    /// UTF-8 text.
    Text = 0x1,
    /// Bytes.
    Binary = 0x2,
    /// The closing handshake.
    Close = 0x8,
    /// Are you there?
    Ping = 0x9,
    /// I am.
    Pong = 0xA,
}

/// Which side of the connection the decoder is on: a server wants masked frames, a client unmasked ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads what clients send.
    Server,
    /// Reads what a server sends.
    Client,
}

/// What a decoder accepts; beyond it the connection ends with close code 1009 (1008 for too many fragments).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest payload of one frame, in bytes.
    pub frame: usize,
    /// Largest message over all its fragments, in bytes.
    pub message: usize,
    /// Most frames of one message.
    pub fragments: u32,
}

impl Default for Limits {
    /// 64 KiB per frame and message, 64 fragments.
    fn default() -> Self {
        Self { frame: 64 * 1024, message: 64 * 1024, fragments: 64 }
    }
}

/// Close codes that are sent (RFC 6455 §7.4.1 and the IANA registry).
pub mod close {
    /// Done.
    pub const NORMAL: u16 = 1000;
    /// The endpoint goes away.
    pub const GOING_AWAY: u16 = 1001;
    /// The peer broke the protocol.
    pub const PROTOCOL: u16 = 1002;
    /// Data of a kind that is not accepted.
    pub const UNSUPPORTED: u16 = 1003;
    /// Text that is not UTF-8.
    pub const INVALID_DATA: u16 = 1007;
    /// A policy was broken.
    pub const POLICY: u16 = 1008;
    /// Too big.
    pub const TOO_BIG: u16 = 1009;
    /// The service restarts: come back.
    pub const RESTART: u16 = 1012;
    /// Overloaded: come back later.
    pub const TRY_LATER: u16 = 1013;
}

/// The peer broke a rule: send a close frame with this code, flush, and end the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (close code {code})")]
pub struct Error {
    /// The close code to send.
    pub code: u16,
    /// The reason to send; ASCII, under 123 bytes.
    pub reason: &'static str,
}

/// An unmasked frame, final: what a server sends.
#[must_use]
pub fn server_frame(opcode: Opcode, payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(payload.len() + 10);
    push_header(&mut out, opcode, payload.len(), 0);
    out.extend_from_slice(payload);
    out.into()
}

/// A masked frame, final: what a client sends. `mask` should be unpredictable (RFC 6455 §10.3).
#[must_use]
pub fn client_frame(opcode: Opcode, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 14);
    push_header(&mut out, opcode, payload.len(), 0x80);
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[start..], mask, 0);
    out
}

/// The payload of a close frame: the code and as much of `reason` as fits into 123 bytes.
#[must_use]
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    [&code.to_be_bytes(), &reason.as_bytes()[..end]].concat()
}

/// The close frame a server answers with: the peer's code back (RFC 6455 §5.5.1), empty if it gave none.
#[must_use]
pub fn close_answer(code: Option<u16>) -> Bytes {
    let payload = code.map_or_else(Vec::new, |code| close_payload(code, ""));
    server_frame(Opcode::Close, &payload)
}

fn push_header(out: &mut Vec<u8>, opcode: Opcode, len: usize, mask_bit: u8) {
    debug_assert!((opcode as u8) < 8 || len <= 125, "control frames hold at most 125 bytes");
    out.push(0x80 | opcode as u8);
    #[expect(clippy::cast_possible_truncation, reason = "each arm's range fits")]
    match len {
        0..=125 => out.push(mask_bit | len as u8),
        126..=0xffff => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

/// Masks or unmasks; `offset` is how many bytes of the payload came before.
pub(crate) fn apply_mask(data: &mut [u8], mask: [u8; 4], offset: usize) {
    let mut rotated = mask;
    rotated.rotate_left(offset % 4);
    let word = u32::from_ne_bytes(rotated);
    let mut chunks = data.chunks_exact_mut(4);
    for chunk in &mut chunks {
        let value = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]) ^ word;
        chunk.copy_from_slice(&value.to_ne_bytes());
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(rotated) {
        *byte ^= key;
    }
}

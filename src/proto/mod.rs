//! SSE, WebSocket frames and STOMP without sockets: bytes in, meaning out. No runtime, no clock, no IO.
//!
//! Three layers per protocol: bytes (`sse`, `ws`, `stomp::frame`), meaning (`stomp::session`), and the socket, which is
//! not here. Invariant: a decoder that holds no half-received frame holds no heap memory.

/// Server-Sent Events and the HTTP/1.1 chunks they travel in.
pub mod sse;
/// STOMP 1.0, 1.1 and 1.2.
pub mod stomp;
/// RFC 6455 frames, both roles.
pub mod ws;

/// Makes room for `more` bytes: twice the capacity for amortised growth, but never beyond `limit` while that suffices.
pub(crate) fn reserve(buffer: &mut Vec<u8>, more: usize, limit: usize) {
    let need = buffer.len() + more;
    if need > buffer.capacity() {
        let target = (buffer.capacity() * 2).min(limit).max(need);
        buffer.reserve_exact(target - buffer.len());
    }
}

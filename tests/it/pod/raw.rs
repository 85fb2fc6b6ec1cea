//! Clients on bare sockets, for what well-behaved libraries do not do: odd handshakes, odd frames, silence.

use std::collections::VecDeque;
use std::net::SocketAddr;

use pushlab::proto::ws::{Decoder, Event, Limits, Opcode, Role, client_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::PATIENCE;

/// The headers of a correct handshake.
pub(super) const HANDSHAKE: [(&str, &str); 4] = [
    ("connection", "upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// Sends a request (`GET /path`) with `rest` right behind its head, and reads the head of the answer; what follows it.
pub(super) async fn request(
    address: SocketAddr,
    line: &str,
    headers: &[(&str, &str)],
    rest: &[u8],
) -> (TcpStream, String, Vec<u8>) {
    let socket = TcpSocket::new_v4().unwrap();
    // Small, so that a pod that is not read from notices soon.
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    socket.set_send_buffer_size(32 * 1024).unwrap();
    let mut socket = socket.connect(address).await.unwrap();
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut bytes = format!("{line} HTTP/1.1\r\nhost: test\r\n{lines}\r\n").into_bytes();
    bytes.extend_from_slice(rest);
    socket.write_all(&bytes).await.unwrap();
    let mut read = Vec::new();
    loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let after = read.split_off(end + 4);
            return (socket, String::from_utf8(read).unwrap(), after);
        }
        let n = timeout(PATIENCE, socket.read_buf(&mut read)).await.expect("a head in time").unwrap();
        assert!(n > 0, "the connection ended after {:?}", String::from_utf8_lossy(&read));
    }
}

/// The status of an answer's head.
pub(super) fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

/// A WebSocket after its handshake.
pub(super) struct Raw {
    pub(super) socket: TcpStream,
    decoder: Decoder,
    events: VecDeque<Event<'static>>,
}

impl Raw {
    /// Over `GET path`, with `rest` sent before the 101 has come.
    pub(super) async fn open(address: SocketAddr, path: &str, rest: &[u8]) -> Self {
        let (socket, head, after) = request(address, &format!("GET {path}"), &HANDSHAKE, rest).await;
        assert_eq!(status(&head), 101, "{head}");
        let limits = Limits { frame: 1 << 24, message: 1 << 24, fragments: u32::MAX };
        let mut raw = Self { socket, decoder: Decoder::new(Role::Client, limits), events: VecDeque::new() };
        raw.take(&after);
        raw
    }

    fn take(&mut self, bytes: &[u8]) {
        let mut events = Vec::new();
        self.decoder.feed(bytes, &mut events).expect("the pod's frames are right");
        self.events.extend(events);
    }

    pub(super) async fn send(&mut self, opcode: Opcode, payload: &[u8]) {
        self.socket.write_all(&client_frame(opcode, payload, [1, 2, 3, 4])).await.unwrap();
    }

    /// The next event; `None` at the end of the connection, be it a reset.
    pub(super) async fn next(&mut self) -> Option<Event<'static>> {
        while self.events.is_empty() {
            let mut bytes = vec![0; 64 * 1024];
            let n = timeout(PATIENCE, self.socket.read(&mut bytes)).await.expect("something in time").unwrap_or(0);
            if n == 0 {
                return None;
            }
            self.take(&bytes[..n]);
        }
        self.events.pop_front()
    }

    /// The next message as text.
    pub(super) async fn text(&mut self) -> String {
        match self.next().await {
            Some(Event::Message { data, .. }) => String::from_utf8(data.into_owned()).unwrap(),
            other => panic!("no message: {other:?}"),
        }
    }

    /// The close code, after whatever came before it.
    pub(super) async fn closed(&mut self) -> Option<u16> {
        loop {
            match self.next().await {
                Some(Event::Close { code, .. }) => return code,
                Some(_) => {}
                None => panic!("the connection ended without a close frame"),
            }
        }
    }
}

/// STOMP over TCP, frames as text.
pub(super) struct Tcp {
    socket: TcpStream,
    read: Vec<u8>,
}

impl Tcp {
    pub(super) async fn open(address: SocketAddr) -> Self {
        Self { socket: TcpStream::connect(address).await.unwrap(), read: Vec::new() }
    }

    pub(super) async fn send(&mut self, frame: impl AsRef<[u8]>) {
        self.socket.write_all(frame.as_ref()).await.unwrap();
    }

    /// The next frame up to its NUL (bodies here hold none); `None` at the end.
    pub(super) async fn frame(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == 0) {
                let rest = self.read.split_off(end + 1);
                let frame = std::mem::replace(&mut self.read, rest);
                return Some(String::from_utf8(frame[..end].to_vec()).unwrap().trim_start_matches('\n').to_owned());
            }
            if timeout(PATIENCE, self.socket.read_buf(&mut self.read)).await.expect("a frame in time").unwrap() == 0 {
                return None;
            }
        }
    }
}

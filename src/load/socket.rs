//! Non-blocking TCP with kernel receive stamps (`SO_TIMESTAMPNS`, software; works on loopback), through safe interfaces.

use std::io::{ErrorKind, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use mio::net::TcpStream;
use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimestampns;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, Socket, Type};

/// Begins to connect. `receive_buffer` bytes are set before, so that they count for the TCP window.
pub(super) fn connect(addr: SocketAddr, receive_buffer: Option<usize>) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    // Stamps are asked for before the first byte can arrive. Where the kernel refuses, reads are stamped by us.
    let _ = setsockopt(&socket, ReceiveTimestampns, &true);
    match socket.connect(&addr.into()) {
        Err(e) if e.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(e),
        _ => {}
    }
    Ok(TcpStream::from_std(socket.into()))
}

/// Reads with stamps.
pub(super) struct StampedReader {
    buffer: Vec<u8>,
    control: Vec<u8>,
}

/// One read.
pub(super) struct Read {
    /// Bytes in the reader's buffer; zero: the peer ended the connection.
    pub(super) len: usize,
    /// The kernel's stamp of the last segment read.
    pub(super) stamp: Option<TimeSpec>,
}

impl StampedReader {
    /// With a buffer of 16 KiB: what lies within it is read, and stamped, at once.
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; 16 * 1024], control: nix::cmsg_space!(TimeSpec, TimeSpec) }
    }

    /// Reads once; `None` when nothing is there.
    pub(super) fn read(&mut self, stream: &TcpStream) -> std::io::Result<Option<Read>> {
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let capacity = self.control.capacity();
        self.control.resize(capacity, 0);
        let message = loop {
            match recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut self.control), MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(e) => return Err(e.into()),
                Ok(message) => break message,
            }
        };
        let stamp = message.cmsgs().ok().and_then(|mut all| {
            all.find_map(|one| match one {
                ControlMessageOwned::ScmTimestampns(stamp) => Some(stamp),
                _ => None,
            })
        });
        Ok(Some(Read { len: message.bytes, stamp }))
    }

    /// The first `len` bytes of the last read.
    pub(super) fn bytes(&self, len: usize) -> &[u8] {
        &self.buffer[..len]
    }

    /// Whether a read of `len` bytes may have left some behind.
    pub(super) fn was_full(&self, len: usize) -> bool {
        len == self.buffer.len()
    }
}

/// Writes what the socket takes off the front of `out`.
pub(super) fn write_some(mut stream: &TcpStream, out: &mut Vec<u8>) -> std::io::Result<()> {
    use std::io::Write;
    while !out.is_empty() {
        match stream.write(out) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => drop(out.drain(..written)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The word for an error in a session's reason.
pub(super) fn word(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused".into(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "reset".into(),
        _ => format!("error: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::clock::Clock;
    use std::io::Write;

    #[test]
    fn the_kernel_stamps_what_arrives_over_loopback() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let clock = Clock::start();
        let stream = connect(listener.local_addr().unwrap(), None).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let mut reader = StampedReader::new();
        assert!(reader.read(&stream).unwrap().is_none());
        // The kernel begins to stamp a moment after it was first asked to.
        for last in [false; 99].into_iter().chain([true]) {
            let before = clock.now();
            peer.write_all(b"hello").unwrap();
            let after = clock.now();
            // Lets the stamp and the read differ by something.
            clock.sleep_until(after + 20_000);
            let read = reader.read(&stream).unwrap().unwrap();
            assert_eq!(reader.bytes(read.len), b"hello");
            assert!(read.stamp.is_some() || !last, "never a stamp");
            let Some(stamp) = read.stamp.map(|stamp| clock.of_stamp(stamp)) else { continue };
            assert!(stamp >= before && stamp <= after + 10_000, "{before} {stamp} {after}");
            break;
        }
        drop(peer);
        clock.sleep_until(clock.now() + 1_000);
        assert_eq!(reader.read(&stream).unwrap().unwrap().len, 0);
    }
}

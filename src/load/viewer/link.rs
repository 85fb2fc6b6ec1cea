//! The connection of one viewer: socket and wire together.

use mio::net::TcpStream;

use crate::load::socket::{self, StampedReader};
use crate::load::wire::{Ended, Wire};

/// An open, or opening, connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stream: TcpStream,
    pub(super) wire: Wire,
    /// Its session, by the recorder's index.
    pub(super) session: usize,
    /// The TCP handshake is done.
    pub(super) connected: bool,
    /// A slow reader that stalls.
    pub(super) stalled: bool,
    /// Times of the last sign of life that its client can see, and of the last heart-beat out.
    pub(super) last_life_us: u32,
    pub(super) last_beat_us: u32,
    /// What could not be written yet.
    pub(super) outbox: Vec<u8>,
}

impl Link {
    /// After a writable event, or when there is something to send.
    pub(super) fn flush(&mut self) -> Result<(), Ended> {
        if !self.connected {
            if let Ok(Some(error)) | Err(error) = self.stream.take_error() {
                return Err(Ended::new(socket::word(&error)));
            }
            match self.stream.peer_addr() {
                Ok(_) => self.connected = true,
                // Still connecting.
                Err(_) => return Ok(()),
            }
        }
        socket::write_some(&self.stream, &mut self.outbox).map_err(|e| Ended::new(socket::word(&e)))
    }

    /// Reads once. None: nothing there.
    pub(super) fn read(&mut self, reader: &mut StampedReader) -> Result<Option<socket::Read>, Ended> {
        match reader.read(&self.stream) {
            Ok(Some(read)) if read.len == 0 => Err(self.wire.eof()),
            Ok(read) => Ok(read),
            Err(e) => Err(Ended::new(socket::word(&e))),
        }
    }
}

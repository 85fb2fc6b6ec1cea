//! `/ws/echo` of the conformance mode: sends every message back, through the framing and the engine of `/stomp`.

use super::super::limits::Seat;
use super::framing::{Framing, Got};
use crate::hub::Flow;
use crate::proto::ws::{self, Opcode, server_frame};

/// One connection.
#[derive(Debug)]
pub struct Echo {
    framing: Framing,
    _seat: Seat,
}

impl Echo {
    /// After the handshake.
    pub(in super::super) fn new(limits: ws::Limits, seat: Seat) -> Self {
        Self { framing: Framing::web_socket(limits), _seat: seat }
    }

    pub(super) fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Flow {
        while let Some(got) = self.framing.next(&mut input) {
            match got {
                Got::Data { text, data } => {
                    let opcode = if text { Opcode::Text } else { Opcode::Binary };
                    out.extend_from_slice(&server_frame(opcode, &data));
                }
                Got::Answer(frame) => out.extend_from_slice(&frame),
                Got::Close(frame, reason) => {
                    out.extend_from_slice(&frame);
                    return Flow::Close(reason);
                }
            }
        }
        Flow::Continue
    }

    /// "Come back, to another pod."
    pub(super) fn end(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.framing.close(ws::close::RESTART, "the pod leaves; come back"));
    }
}

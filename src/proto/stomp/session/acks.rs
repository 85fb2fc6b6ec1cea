//! What a subscription that acknowledges has been sent and not acknowledged: bounded, as nothing is redelivered.

use std::collections::VecDeque;

use crate::domain::Version;

/// Most messages remembered per subscription; beyond it the oldest counts as acknowledged.
pub(super) const MAX_UNACKED: usize = 64;

#[derive(Debug)]
pub(super) struct Acks {
    /// `client`: an ACK covers all before it. Else `client-individual`.
    cumulative: bool,
    unacked: VecDeque<Version>,
    /// The newest version that was forgotten unacknowledged: an ACK up to here is late, not wrong.
    forgotten: Option<Version>,
}

impl Acks {
    pub(super) fn new(cumulative: bool) -> Self {
        Self { cumulative, unacked: VecDeque::new(), forgotten: None }
    }

    pub(super) fn sent(&mut self, version: Version) {
        if self.unacked.len() == MAX_UNACKED {
            self.forgotten = self.unacked.pop_front();
        }
        self.unacked.push_back(version);
    }

    /// Whether [`Acks::settle`] would accept it.
    pub(super) fn knows(&self, version: Version) -> bool {
        self.unacked.contains(&version) || self.forgotten.is_some_and(|forgotten| version <= forgotten)
    }

    /// Takes an ACK or NACK; false when no such message is waiting for one.
    pub(super) fn settle(&mut self, version: Version) -> bool {
        match self.unacked.iter().position(|v| *v == version) {
            Some(at) if self.cumulative => drop(self.unacked.drain(..=at)),
            Some(at) => drop(self.unacked.remove(at)),
            None => return self.knows(version),
        }
        if self.unacked.is_empty() {
            self.unacked = VecDeque::new();
        }
        true
    }
}

//! Mailboxes that keep more than the newest update: a ring per post, shared by its viewers, each with its place in it.
//!
//! Invariant: a slow viewer costs no memory of its own but what the socket and one cut frame hold.

use std::collections::VecDeque;

use super::Engine;
use super::conn::Wrote;
use crate::domain::{Update, Version, unix_micros};
use crate::hub::{CloseReason, Mailbox, Protocol};

/// One update that waits.
#[derive(Debug)]
struct Kept {
    update: Update,
    /// Its number on the topic.
    serial: u64,
    /// The topic's `skipped` at that time.
    skipped: u64,
}

/// The newest updates of a topic, ascending.
#[derive(Debug, Default)]
pub(super) struct Ring {
    kept: VecDeque<Kept>,
    /// The newest version that is not here any more.
    lost: Version,
}

impl Ring {
    /// Takes the newest update; the oldest goes when there are `depth`.
    pub(super) fn push(&mut self, update: Update, serial: u64, skipped: u64, depth: usize) {
        while self.kept.len() >= depth
            && let Some(oldest) = self.kept.pop_front()
        {
            self.lost = oldest.update.version();
        }
        self.kept.push_back(Kept { update, serial, skipped });
    }

    /// The first update after `cursor`.
    fn after(&self, cursor: Version) -> Option<&Kept> {
        self.kept.get(self.kept.partition_point(|kept| kept.update.version() <= cursor))
    }
}

impl<P: Protocol> Engine<P> {
    /// Writes all that waits for one viewer, as far as its socket takes it. Idempotent.
    pub(super) fn deliver_queued(&mut self, id: u32, position: usize) {
        let topic = &mut self.topics[id as usize];
        let viewer = &mut topic.viewers[position];
        let conn = &mut self.conns[viewer.conn as usize];
        if conn.closing.is_some() || conn.doomed {
            return;
        }
        if viewer.cursor < topic.ring.lost && matches!(self.options.mailbox, Mailbox::Disconnect(_)) {
            self.leaving.push((viewer.conn, CloseReason::MailboxFull));
            return;
        }
        let oldest = topic.ring.kept.front().map_or(0, |kept| kept.serial);
        while conn.is_ready()
            && let Some(kept) = topic.ring.after(viewer.cursor)
        {
            let at = unix_micros();
            // As in `deliver`: private bytes, once made, must go out.
            let private = conn.protocol.encode_private(&kept.update, viewer.slot);
            let wrote = match &private {
                Some(bytes) => conn.write(bytes, true, self.tick),
                None => {
                    let bytes = topic.encoded.get_kept(viewer.format, kept.serial, oldest, &kept.update);
                    conn.write(bytes, false, self.tick)
                }
            };
            let written = match wrote {
                Wrote::Some(written) => written,
                Wrote::Nothing => return,
                Wrote::Failed(reason) => {
                    let key = viewer.conn;
                    return self.doom(key, reason);
                }
            };
            let counters = self.counters.of_mut(conn.protocol.transport());
            counters.socket_writes += u64::from(written > 0);
            counters.written_bytes += written as u64;
            counters.deliveries += 1;
            if let Update::Changed(event) = kept.update {
                self.wrote_at = at;
                if kept.serial == topic.serial {
                    topic.traced.wrote(conn.protocol.transport(), at);
                }
                counters.latency(at.saturating_sub(event.committed_at));
                let not_sent = event.prev.0.saturating_sub(viewer.cursor.0);
                let superseded = not_sent.min(kept.skipped.saturating_sub(viewer.skipped));
                counters.superseded += superseded;
                counters.dropped += not_sent - superseded;
            }
            viewer.cursor = kept.update.version();
            viewer.skipped = viewer.skipped.max(kept.skipped);
        }
    }
}

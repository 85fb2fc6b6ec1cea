//! From a new version to the sockets: topics, their viewers, and rounds over them in slices.

use super::Engine;
use super::conn::{Link, Wrote};
use crate::domain::{PostId, Update, Version, unix_micros};
use crate::hub::encoded::Encoded;
use crate::hub::{Protocol, Subscription};

/// One subscription, as its topic sees it.
#[derive(Debug)]
struct Viewer<G> {
    conn: u32,
    slot: u32,
    format: u32,
    /// The newest version written to this viewer.
    cursor: Version,
    /// The topic's `skipped` at that time.
    skipped: u64,
    _guard: G,
}

/// One post with its viewers on this engine.
#[derive(Debug)]
pub(super) struct Topic<P: Protocol> {
    post: PostId,
    latest: Option<Update>,
    /// Number of `latest`, for the encodings; from 1.
    serial: u64,
    /// Versions skipped so far because events had not arrived when a newer one was accepted.
    skipped: u64,
    viewers: Vec<Viewer<P::Guard>>,
    encoded: Encoded<P>,
    /// The round under way: next position, and how many are left.
    at: usize,
    left: usize,
    /// In the engine's list of active topics.
    active: bool,
    /// In the engine's list of topics that wait for the flush window to end.
    pub(super) waiting: bool,
}

impl<P: Protocol> Engine<P> {
    fn topic(&mut self, post: PostId) -> u32 {
        let topics = &mut self.topics;
        *self.by_post.entry(post).or_insert_with(|| {
            let topic = Topic {
                post,
                latest: None,
                serial: 0,
                skipped: 0,
                viewers: Vec::new(),
                encoded: Encoded::default(),
                at: 0,
                left: 0,
                active: false,
                waiting: false,
            };
            u32::try_from(topics.insert(topic)).expect("fewer than 2^32 topics")
        })
    }

    /// Keeps the newest state, also of a post without viewers here (one may be on its way), and starts its round.
    pub(super) fn publish(&mut self, update: Update, gap: u64) {
        let id = self.topic(update.post_id());
        let topic = &mut self.topics[id as usize];
        topic.skipped += gap;
        if topic.latest.is_some_and(|latest| latest.version() >= update.version()) {
            return;
        }
        topic.latest = Some(update);
        topic.serial += 1;
        if topic.viewers.is_empty() || topic.waiting {
            return;
        }
        if self.options.flush.is_zero() {
            self.start_round(id);
        } else {
            topic.waiting = true;
            self.windows.push_back((self.now + self.options.flush, id));
        }
    }

    /// A round over all viewers. One under way goes on from its position over the whole list: fair, and the newest wins.
    pub(super) fn start_round(&mut self, id: u32) {
        let topic = &mut self.topics[id as usize];
        topic.left = topic.viewers.len();
        if !topic.active && topic.left > 0 {
            topic.active = true;
            // Another first viewer each time, so that being late is not always the same viewer's lot.
            topic.at = (topic.serial.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as usize % topic.left;
            self.active.push_back(id);
        }
    }

    /// Visits at most a slice of viewers; true when rounds are left.
    pub(super) fn run_slice(&mut self) -> bool {
        let mut budget = self.options.slice;
        while budget > 0 {
            let Some(id) = self.active.pop_front() else { return false };
            loop {
                let topic = &mut self.topics[id as usize];
                if topic.left == 0 {
                    topic.active = false;
                    break;
                }
                if budget == 0 {
                    self.active.push_back(id);
                    break;
                }
                let position = topic.at;
                topic.at = if position + 1 < topic.viewers.len() { position + 1 } else { 0 };
                topic.left -= 1;
                budget -= 1;
                self.deliver(id, position);
            }
        }
        !self.active.is_empty()
    }

    /// Writes the newest update to one viewer, if it lacks it and its socket takes it. Idempotent.
    pub(super) fn deliver(&mut self, id: u32, position: usize) {
        let topic = &mut self.topics[id as usize];
        let Some(update) = topic.latest else { return };
        let viewer = &mut topic.viewers[position];
        let conn = &mut self.conns[viewer.conn as usize];
        if viewer.cursor >= update.version() || !conn.is_ready() {
            return;
        }
        // Private bytes may carry state (positions of several posts): once made they must go out.
        let private = conn.protocol.encode_private(&update, viewer.slot);
        let wrote = match &private {
            Some(bytes) => conn.write(bytes, true, self.tick),
            None => conn.write(topic.encoded.get(viewer.format, topic.serial, &update), false, self.tick),
        };
        let counters = self.counters.of_mut(conn.protocol.transport());
        match wrote {
            Wrote::Some(written) => {
                if written > 0 {
                    counters.socket_writes += 1;
                    counters.written_bytes += written as u64;
                }
                counters.deliveries += 1;
                if let Update::Changed(event) = update {
                    counters.latency(unix_micros().saturating_sub(event.committed_at));
                    let not_sent = event.prev.0.saturating_sub(viewer.cursor.0);
                    let superseded = not_sent.min(topic.skipped - viewer.skipped);
                    counters.superseded += superseded;
                    counters.conflated += not_sent - superseded;
                }
                viewer.cursor = update.version();
                viewer.skipped = topic.skipped;
            }
            Wrote::Nothing => {}
            Wrote::Failed(reason) => {
                let key = viewer.conn;
                self.doom(key, reason);
            }
        }
    }

    /// Everything a connection lacks, after its socket took all that was pending.
    pub(super) fn deliver_links(&mut self, key: u32) {
        let count = self.conns[key as usize].links.as_slice().len();
        // Not always the same post first, or a slow viewer of many would never see the last ones.
        let first = self.tick as usize;
        for i in 0..count {
            let conn = &self.conns[key as usize];
            if !conn.is_ready() {
                break;
            }
            let link = conn.links.as_slice()[(first + i) % count];
            self.deliver(link.topic, link.position as usize);
        }
    }

    /// Adds a viewer; its `first` bytes have been written by the caller.
    pub(super) fn subscribe(&mut self, key: u32, subscription: Subscription<P>) {
        let id = self.topic(subscription.post);
        let topic = &mut self.topics[id as usize];
        let position = topic.viewers.len();
        topic.viewers.push(Viewer {
            conn: key,
            slot: subscription.slot,
            format: topic.encoded.acquire(subscription.format),
            cursor: subscription.cursor,
            skipped: topic.skipped,
            _guard: subscription.guard,
        });
        if topic.active {
            topic.left += 1;
        }
        let link = Link { topic: id, position: u32::try_from(position).expect("fewer than 2^32 viewers") };
        self.conns[key as usize].links.push(link);
        if !self.topics[id as usize].waiting {
            self.deliver(id, position);
        }
    }

    /// Ends the subscription with this slot, if there is one.
    pub(super) fn unsubscribe(&mut self, key: u32, slot: u32) {
        let links = self.conns[key as usize].links.as_slice();
        let topics = &self.topics;
        let found = links.iter().find(|l| topics[l.topic as usize].viewers[l.position as usize].slot == slot);
        if let Some(link) = found.copied() {
            self.unlink(key, link);
        }
    }

    /// Ends all subscriptions of a connection.
    pub(super) fn unlink_all(&mut self, key: u32) {
        while let Some(link) = self.conns[key as usize].links.as_slice().last().copied() {
            self.unlink(key, link);
        }
    }

    fn unlink(&mut self, key: u32, link: Link) {
        self.conns[key as usize].links.remove(link);
        let topic = &mut self.topics[link.topic as usize];
        let position = link.position as usize;
        let gone = topic.viewers.swap_remove(position);
        topic.encoded.release(gone.format);
        let len = topic.viewers.len();
        topic.left = topic.left.min(len);
        if topic.at >= len {
            topic.at = 0;
        }
        if position < len {
            // The last viewer moved here, maybe from ahead of the round to behind it: serve it now.
            let moved = topic.viewers[position].conn;
            let from = u32::try_from(len).expect("fewer than 2^32 viewers");
            let waiting = topic.waiting;
            self.conns[moved as usize].links.moved(link.topic, from, link.position);
            if !waiting {
                self.deliver(link.topic, position);
            }
        }
    }

    /// Drops a post's state unless it has viewers here.
    pub(super) fn forget(&mut self, post: PostId) {
        let Some(&id) = self.by_post.get(&post) else { return };
        if self.topics[id as usize].viewers.is_empty() {
            self.by_post.remove(&post);
            self.active.retain(|other| *other != id);
            self.windows.retain(|(_, other)| *other != id);
            let topic = self.topics.remove(id as usize);
            debug_assert_eq!(topic.post, post);
        }
    }
}

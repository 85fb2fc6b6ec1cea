//! From a new version to the sockets: topics, their viewers, and rounds over them in slices.

use super::Engine;
use super::conn::{Link, Wrote};
use super::queued::Ring;
use crate::domain::{PostId, Transport, Update, Version, unix_micros};
use crate::hub::encoded::Encoded;
use crate::hub::{CloseReason, ConnKey, Protocol, Subscription};
use crate::telemetry::FanOut;

/// One subscription, as its topic sees it.
#[derive(Debug)]
pub(super) struct Viewer<G> {
    pub(super) conn: u32,
    pub(super) slot: u32,
    pub(super) format: u32,
    /// The newest version written to this viewer.
    pub(super) cursor: Version,
    /// The topic's `skipped` at that time.
    pub(super) skipped: u64,
    _guard: G,
}

/// One post with its viewers on this engine.
#[derive(Debug)]
pub(super) struct Topic<P: Protocol> {
    post: PostId,
    /// Of one subscription only, with which it ends.
    alone: bool,
    latest: Option<Update>,
    /// Number of `latest`, for the encodings; from 1.
    pub(super) serial: u64,
    /// Versions skipped so far because events had not arrived when a newer one was accepted.
    skipped: u64,
    /// The newest updates, for mailboxes that keep more than one.
    pub(super) ring: Ring,
    pub(super) viewers: Vec<Viewer<P::Guard>>,
    pub(super) encoded: Encoded<P>,
    /// The round under way: next position, and how many are left.
    at: usize,
    left: usize,
    /// When the newest event came, Unix µs; within a flush window, its first.
    came_at: u64,
    /// The event whose fan-out is being timed came then, and has been tried everywhere once `left` is down to `mark`: a newer
    /// one makes the round go on beyond it.
    timed_from: u64,
    mark: usize,
    /// Viewers by transport.
    by_transport: [u32; Transport::ALL.len()],
    /// In the engine's list of active topics.
    active: bool,
    /// In the engine's list of topics that wait for the flush window to end.
    pub(super) waiting: bool,
    /// The newest update's, until its round is over.
    pub(super) traced: FanOut,
}

impl<P: Protocol> Topic<P> {
    fn new(post: PostId, alone: bool) -> Self {
        Self {
            post,
            alone,
            latest: None,
            serial: 0,
            skipped: 0,
            ring: Ring::default(),
            viewers: Vec::new(),
            encoded: Encoded::default(),
            at: 0,
            left: 0,
            came_at: 0,
            timed_from: 0,
            mark: 0,
            by_transport: [0; Transport::ALL.len()],
            active: false,
            waiting: false,
            traced: FanOut::none(),
        }
    }
}

fn insert<P: Protocol>(topics: &mut slab::Slab<Topic<P>>, topic: Topic<P>) -> u32 {
    u32::try_from(topics.insert(topic)).expect("fewer than 2^32 topics")
}

impl<P: Protocol> Engine<P> {
    fn topic(&mut self, post: PostId) -> u32 {
        let topics = &mut self.topics;
        *self.by_post.entry(post).or_insert_with(|| insert(topics, Topic::new(post, false)))
    }

    /// Keeps the newest state, also of a post without viewers here (one may be on its way), and starts its round.
    pub(super) fn publish_traced(&mut self, update: Update, gap: u64, at: u64, traced: FanOut) {
        let id = self.topic(update.post_id());
        self.publish_on(id, update, gap, at, traced);
    }

    #[cfg(test)]
    pub(super) fn publish(&mut self, update: Update, gap: u64, at: u64) {
        self.publish_traced(update, gap, at, FanOut::none());
    }

    /// The same for one subscription, if it is still there.
    pub(super) fn publish_to(&mut self, name: ConnKey, slot: u32, update: Update, gap: u64, at: u64) {
        let conn = self.conns.get(name.index as usize).filter(|conn| conn.generation == name.generation);
        let link = conn.and_then(|conn| self.link(conn.links.as_slice(), slot));
        if let Some(link) = link.filter(|link| self.topics[link.topic as usize].alone) {
            self.publish_on(link.topic, update, gap, at, FanOut::none());
        }
    }

    fn publish_on(&mut self, id: u32, update: Update, gap: u64, at: u64, traced: FanOut) {
        let topic = &mut self.topics[id as usize];
        topic.skipped += gap;
        if topic.latest.is_some_and(|latest| latest.version() >= update.version()) {
            return;
        }
        topic.latest = Some(update);
        topic.serial += 1;
        std::mem::replace(&mut topic.traced, traced).overtaken();
        if self.depth > 0 {
            topic.ring.push(update, topic.serial, topic.skipped, self.depth);
        }
        if topic.viewers.is_empty() {
            topic.traced = FanOut::none();
            return;
        }
        if topic.waiting {
            return;
        }
        topic.came_at = at;
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
        let untimed = if topic.active { topic.left.saturating_sub(topic.mark) } else { 0 };
        topic.left = topic.viewers.len();
        topic.mark = if untimed > 0 { topic.left.saturating_sub(untimed) } else { 0 };
        if untimed == 0 {
            topic.timed_from = topic.came_at;
        }
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
                    topic.traced = FanOut::none();
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
                let tried_everywhere = topic.left == topic.mark;
                self.deliver(id, position);
                if tried_everywhere {
                    self.fanned_out(id);
                }
            }
        }
        !self.active.is_empty()
    }

    /// Every viewer has been tried since the timed event came. When a newer one came meanwhile, that one is timed now. The end
    /// is the last write's stamp, which is there already: no clock is read.
    fn fanned_out(&mut self, id: u32) {
        let topic = &mut self.topics[id as usize];
        // A stamp from before: nobody lacked it, or no socket took it.
        if self.wrote_at >= topic.timed_from && !topic.alone {
            let took = self.wrote_at - topic.timed_from;
            for transport in Transport::ALL {
                if topic.by_transport[transport as usize] > 0 {
                    self.counters.of_mut(transport).fanout(took);
                }
            }
        }
        (topic.mark, topic.timed_from) = (0, topic.came_at);
    }

    /// Writes the newest update to one viewer, if it lacks it and its socket takes it. Idempotent.
    pub(super) fn deliver(&mut self, id: u32, position: usize) {
        if self.depth > 0 {
            return self.deliver_queued(id, position);
        }
        let topic = &mut self.topics[id as usize];
        let Some(update) = topic.latest else { return };
        let viewer = &mut topic.viewers[position];
        let conn = &mut self.conns[viewer.conn as usize];
        if viewer.cursor >= update.version() || !conn.is_ready() {
            return;
        }
        // Before the write, so that no arrival is earlier; it also ends the fan-out's time.
        let at = if self.measuring { unix_micros() } else { 0 };
        // Private bytes may carry state (positions of several posts): once made they must go out.
        let private = conn.protocol.encode_private(&update, viewer.slot);
        let wrote = match &private {
            Some(bytes) => conn.write(bytes, true, self.tick),
            None => {
                let bytes = topic.encoded.get(viewer.format, topic.serial, &update);
                if let Some(die) = self.options.half_written {
                    conn.write(&bytes.slice(..bytes.len() / 2), false, self.tick);
                    die();
                }
                conn.write(bytes, false, self.tick)
            }
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
                    if self.measuring {
                        self.wrote_at = at;
                        topic.traced.wrote(conn.protocol.transport(), at);
                        counters.latency(at.saturating_sub(event.committed_at));
                    }
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
        if subscription.epoch != self.epoch {
            // It joined while the epoch changed.
            self.leaving.push((key, CloseReason::NewEpoch));
            return;
        }
        let post = subscription.post;
        let id = if subscription.alone { insert(&mut self.topics, Topic::new(post, true)) } else { self.topic(post) };
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
        topic.by_transport[self.conns[key as usize].protocol.transport() as usize] += 1;
        let link = Link { topic: id, position: u32::try_from(position).expect("fewer than 2^32 viewers") };
        self.conns[key as usize].links.push(link);
        if !self.topics[id as usize].waiting {
            self.deliver(id, position);
        }
    }

    /// Ends the subscription with this slot, if there is one.
    pub(super) fn unsubscribe(&mut self, key: u32, slot: u32) {
        if let Some(link) = self.link(self.conns[key as usize].links.as_slice(), slot) {
            self.unlink(key, link);
        }
    }

    fn link(&self, links: &[Link], slot: u32) -> Option<Link> {
        let of = |link: &&Link| self.topics[link.topic as usize].viewers[link.position as usize].slot == slot;
        links.iter().find(of).copied()
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
        topic.by_transport[self.conns[key as usize].protocol.transport() as usize] -= 1;
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
        } else if topic.alone {
            self.drop_topic(link.topic);
        }
    }

    fn drop_topic(&mut self, id: u32) {
        self.active.retain(|other| *other != id);
        self.windows.retain(|(_, other)| *other != id);
        self.topics.remove(id as usize);
    }

    /// Drops all states and ends all subscriptions; the connections stay.
    pub(super) fn forget_all(&mut self) {
        for (_, topic) in &mut self.topics {
            // Nothing is sent to viewers that move up meanwhile.
            topic.latest = None;
            topic.ring = Ring::default();
        }
        for key in 0..self.conns.capacity() {
            if self.conns.contains(key) {
                self.unlink_all(u32::try_from(key).expect("fewer than 2^32 connections"));
            }
        }
        self.by_post.clear();
        self.active.clear();
        self.windows.clear();
        self.topics.clear();
    }

    /// Drops a post's state unless it has viewers here.
    pub(super) fn forget(&mut self, post: PostId) {
        let Some(&id) = self.by_post.get(&post) else { return };
        if self.topics[id as usize].viewers.is_empty() {
            self.by_post.remove(&post);
            debug_assert_eq!(self.topics[id as usize].post, post);
            self.drop_topic(id);
        }
    }
}

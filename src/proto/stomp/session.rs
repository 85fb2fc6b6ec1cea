//! The server's side of a STOMP connection: bytes in, actions out. Holds no socket, no clock and no data of others.
//!
//! Decisions where the specification leaves some: repeated headers: the first counts; a `host` of any name is accepted,
//! and over WebSocket also none ([`Options::require_host`]); NACK counts as processed, as nothing is redelivered (the
//! newest state is all there is); a transaction holds at most one like, as likes of several posts do not commit together;
//! frames of a transaction get their RECEIPTs when it is committed; after an ERROR nothing that was still waiting is done.

mod acks;
mod frames;
mod relay;
mod types;

pub use types::{AckMode, Action, End, HeartBeat, Like, LikeOp, Options, Outcome, Relayed, Subscribe, Token};

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::acks::Acks;
use super::frame::{Decoder, Format, Item, Limits, Writer, message_with_ack};
use crate::domain::{PostId, Update, Version};

/// Most SENDs of a session that wait for their outcome; then its socket is not read.
pub const MAX_PENDING: usize = 16;
/// Most transactions of a session at a time.
pub const MAX_TRANSACTIONS: usize = 4;
/// Most frames of a transaction.
pub const MAX_TRANSACTION_FRAMES: usize = 16;

/// One client's session. Idle, with one subscription, it holds about 100 bytes on the heap.
#[derive(Debug)]
pub struct Session {
    options: Arc<Options>,
    decoder: Decoder,
    state: State,
    version: super::Version,
    /// The newest version that may be agreed on.
    newest: super::Version,
    send_ms: u32,
    expect_ms: u32,
    /// Numbers slots, tokens and replies.
    next: u64,
    topics: Vec<Topic>,
    /// The id of its subscription to [`super::REPLIES`].
    replies: Option<Arc<str>>,
    /// Likes and transactions on their way; none most of the time.
    work: Option<Box<Work>>,
    /// Conformance mode only.
    relays: Option<Box<relay::Relays>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before CONNECT.
    Fresh,
    /// After CONNECT, until its token is known to be good. What follows waits.
    Greeting,
    Open,
    /// After DISCONNECT, while likes are still on their way.
    Leaving,
    Ended,
}

/// A subscription to a post's likes.
#[derive(Debug)]
struct Topic {
    id: Option<Arc<str>>,
    slot: u32,
    post: PostId,
    /// The RECEIPT to send once it is in force.
    receipt: Option<Box<str>>,
    joining: bool,
    /// What is not acknowledged; `None` for [`AckMode::Auto`].
    acks: Option<Box<Acks>>,
}

#[derive(Debug, Default)]
struct Work {
    /// The like that is out, and those that wait for it.
    out: Option<Pending>,
    queue: VecDeque<Pending>,
    transactions: Vec<Transaction>,
    /// Input that waits while paused.
    held: Vec<u8>,
    paused: bool,
    /// The RECEIPT of the DISCONNECT.
    farewell: Option<Box<str>>,
}

/// A like that was received, with what to send when its outcome is known.
#[derive(Debug)]
struct Pending {
    like: Like,
    correlation: Option<Box<str>>,
    receipts: Vec<Box<str>>,
}

#[derive(Debug)]
struct Transaction {
    id: Box<str>,
    frames: usize,
    like: Option<Pending>,
    relayed: Vec<Arc<Relayed>>,
    /// Slot and version of each ACK or NACK.
    acks: Vec<(u32, Version)>,
    receipts: Vec<Box<str>>,
}

/// Why an ERROR is sent.
#[derive(Debug)]
struct Fault {
    message: String,
    receipt: Option<String>,
    /// Supported versions, when none was common.
    versions: bool,
}

impl Fault {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), receipt: None, versions: false }
    }
}

impl Session {
    /// Before CONNECT.
    #[must_use]
    pub fn new(options: Arc<Options>) -> Self {
        Self {
            options,
            decoder: Decoder::new(),
            state: State::Fresh,
            version: super::Version::V12,
            newest: super::Version::V12,
            send_ms: 0,
            expect_ms: 0,
            next: 0,
            topics: Vec::new(),
            replies: None,
            work: None,
            relays: None,
        }
    }

    /// Bounds the version, as a WebSocket subprotocol does that was agreed on.
    #[must_use]
    pub fn up_to(self, newest: super::Version) -> Self {
        Self { newest, ..self }
    }

    /// Takes the payload of a WebSocket message (or any piece of the byte stream).
    #[must_use]
    pub fn feed(&mut self, input: &[u8]) -> Vec<Action> {
        let mut actions = Vec::new();
        match &mut self.work {
            Some(work) if work.paused => work.held.extend_from_slice(input),
            _ => self.run(input, &mut actions),
        }
        self.tidy();
        actions
    }

    fn run(&mut self, mut input: &[u8], actions: &mut Vec<Action>) {
        while matches!(self.state, State::Fresh | State::Greeting | State::Open) {
            if self.state == State::Greeting || self.pending() >= MAX_PENDING {
                let work = self.work.get_or_insert_default();
                work.held = input.to_vec();
                if !std::mem::replace(&mut work.paused, true) {
                    actions.push(Action::Pause);
                }
                return;
            }
            let limits = self.limits();
            match self.decoder.next(&mut input, self.version, &limits) {
                Ok(None) => return,
                Ok(Some(Item::HeartBeat)) => {}
                Ok(Some(Item::Frame(frame))) => {
                    if let Err(fault) = self.on_frame(&frame, actions) {
                        let receipt = fault.receipt.clone().or_else(|| frame.header("receipt").map(str::to_owned));
                        self.fail(&Fault { receipt, ..fault }, actions);
                    }
                }
                Err(error) => {
                    let fault = Fault { receipt: error.receipt.clone(), ..Fault::new(error.to_string()) };
                    self.fail(&fault, actions);
                }
            }
        }
    }

    /// Before CONNECT a stranger gets 4 KiB and no body.
    fn limits(&self) -> Limits {
        match self.state {
            State::Fresh => Limits { head: 4096, body: 0, ..Limits::default() },
            _ => Limits { body: self.options.body, ..Limits::default() },
        }
    }

    /// Whether the token of [`Action::Authenticate`] is good. If not: ERROR, which does not say why, then close.
    #[must_use]
    pub fn authenticated(&mut self, good: bool) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.state != State::Greeting {
            return actions;
        }
        if good {
            self.state = State::Open;
            actions.push(Action::Send(self.connected()));
            self.go_on(&mut actions);
        } else {
            self.fail(&Fault::new("authentication failed"), &mut actions);
        }
        actions
    }

    fn pending(&self) -> usize {
        self.work.as_ref().map_or(0, |w| w.queue.len() + usize::from(w.out.is_some()))
    }

    /// The subscription is in force and its snapshot on its way. `None` when the client has unsubscribed meanwhile: then
    /// leave again and send nothing.
    #[must_use]
    pub fn subscribed(&mut self, slot: u32) -> Option<Vec<Action>> {
        let topic = self.topics.iter_mut().find(|t| t.slot == slot && t.joining)?;
        topic.joining = false;
        let receipt = topic.receipt.take();
        Some(receipt.map(|id| Action::Send(self.receipt(&id))).into_iter().collect())
    }

    /// The subscription cannot be had: ERROR, then close.
    #[must_use]
    pub fn refused(&mut self, slot: u32, outcome: &Outcome) -> Vec<Action> {
        let Some(topic) = self.topics.iter_mut().find(|t| t.slot == slot && t.joining) else { return Vec::new() };
        let receipt = topic.receipt.take();
        let mut actions = Vec::new();
        let message = format!("cannot subscribe ({})", outcome.status);
        self.fail_with(&message, receipt.as_deref(), Some(&outcome.body), &mut actions);
        actions
    }

    /// What became of the like with this token.
    #[must_use]
    pub fn outcome(&mut self, token: u64, outcome: &Outcome) -> Vec<Action> {
        let mut actions = Vec::new();
        let work = self.work.as_mut();
        let Some(done) = work.and_then(|w| w.out.take_if(|p| p.like.token == token)) else { return actions };
        let success = (200..300).contains(&outcome.status);
        if let Some(subscription) = &self.replies {
            actions.push(Action::Send(self.reply(subscription, &done, outcome)));
            self.next += 1;
        } else if !success {
            let message = format!("the like was refused ({})", outcome.status);
            let receipt = done.receipts.last().map(|r| &**r);
            self.fail_with(&message, receipt, Some(&outcome.body), &mut actions);
            return actions;
        }
        if success {
            actions.extend(done.receipts.iter().map(|id| Action::Send(self.receipt(id))));
        }
        self.go_on(&mut actions);
        actions
    }

    /// After an outcome: the next like, the input that waited, the farewell.
    fn go_on(&mut self, actions: &mut Vec<Action>) {
        self.send_next(actions);
        let Some(work) = &mut self.work else { return };
        if work.paused {
            let held = std::mem::take(&mut work.held);
            self.run(&held, actions);
            // Still full: `run` kept the rest and the pause goes on.
            if self.pending() < MAX_PENDING && self.state != State::Ended {
                if let Some(work) = &mut self.work {
                    work.paused = false;
                }
                actions.push(Action::Resume);
            }
        }
        if self.state == State::Leaving && self.pending() == 0 {
            let farewell = self.work.as_mut().and_then(|w| w.farewell.take());
            actions.extend(farewell.map(|id| Action::Send(self.receipt(&id))));
            self.end(End::Disconnected, actions);
        }
        self.tidy();
    }

    /// Frees what an idle session does not need.
    fn tidy(&mut self) {
        self.work.take_if(|w| w.out.is_none() && w.queue.is_empty() && w.transactions.is_empty() && !w.paused);
    }

    fn send_next(&mut self, actions: &mut Vec<Action>) {
        let Some(work) = &mut self.work else { return };
        if work.out.is_none() {
            work.out = work.queue.pop_front();
            actions.extend(work.out.as_ref().map(|pending| Action::Like(pending.like.clone())));
        }
    }

    /// The MESSAGE for a subscription that is not [`AckMode::Auto`], remembered until acknowledged; `None` for the
    /// others, whose bytes are shared ([`super::frame::message`]).
    #[must_use]
    pub fn message(&mut self, update: &Update, slot: u32) -> Option<Bytes> {
        let topic = self.topics.iter_mut().find(|t| t.slot == slot)?;
        topic.acks.as_mut()?.sent(update.version());
        let format = Format { epoch: self.options.epoch, version: self.version, subscription: topic.id.clone() };
        let ack = format!("{slot}.{}.{}.{}", format.epoch, update.post_id(), update.version());
        Some(message_with_ack(update, &format, (self.version == super::Version::V12).then_some(&*ack)))
    }

    /// Whether CONNECT was answered and nothing has ended it since.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// What time asks for: a heart-beat, or an ERROR when the client has been silent for twice its promise or has not
    /// sent CONNECT in time. `age` is since the connection opened, the others since the last read and write.
    #[must_use]
    pub fn tick(&mut self, age: Duration, since_read: Duration, since_write: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        let HeartBeat { send_every, expect_every } = self.heartbeat();
        match self.state {
            State::Fresh | State::Greeting if age >= self.options.connect_timeout => {
                self.fail(&Fault::new("no CONNECT arrived in time"), &mut actions);
            }
            // While paused nothing is read, so silence means nothing.
            State::Open if !expect_every.is_zero() && since_read > expect_every * 2 && !self.is_paused() => {
                self.fail(&Fault::new("no heart-beat arrived in time"), &mut actions);
            }
            State::Open | State::Leaving if !send_every.is_zero() && since_write + self.options.tick >= send_every => {
                actions.push(Action::Send(Bytes::from_static(b"\n")));
            }
            _ => {}
        }
        actions
    }

    /// Whether the socket is not to be read.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.work.as_ref().is_some_and(|w| w.paused)
    }

    /// The periods agreed on; zero before CONNECT.
    #[must_use]
    pub fn heartbeat(&self) -> HeartBeat {
        let period = |ms| Duration::from_millis(u64::from(ms));
        HeartBeat { send_every: period(self.send_ms), expect_every: period(self.expect_ms) }
    }

    /// The likes that were received and not yet handed out, for when the peer vanishes: they are still to be done, after
    /// the one that is out. Includes those in input that waited; the session is of no further use.
    #[must_use]
    pub fn take_pending(&mut self) -> Vec<Like> {
        let (mut likes, mut ignored) = (Vec::new(), Vec::new());
        if self.state == State::Greeting {
            return likes;
        }
        while let Some(work) = self.work.as_mut().filter(|w| !w.queue.is_empty() || !w.held.is_empty()) {
            likes.extend(work.queue.drain(..).map(|pending| pending.like));
            let held = std::mem::take(&mut work.held);
            self.run(&held, &mut ignored);
        }
        likes
    }

    fn receipt(&self, id: &str) -> Bytes {
        Writer::new("RECEIPT", self.version).header("receipt-id", id).end().into()
    }

    fn reply(&self, subscription: &str, done: &Pending, outcome: &Outcome) -> Bytes {
        Writer::new("MESSAGE", self.version)
            .header("destination", super::REPLIES)
            .header("subscription", subscription)
            .header("message-id", &format!("reply-{}", self.next))
            .maybe("correlation-id", done.correlation.as_deref())
            .header("status", &outcome.status.to_string())
            .header("content-type", outcome.content_type())
            .body(outcome.body.as_bytes())
            .into()
    }

    fn fail(&mut self, fault: &Fault, actions: &mut Vec<Action>) {
        if fault.versions {
            let supported = self.newest.and_older().map(super::Version::label).collect::<Vec<_>>().join(",");
            let writer = Writer::new("ERROR", self.version).header("version", &supported);
            let writer = writer.header("message", &fault.message).header("content-type", "text/plain");
            let body = format!("supported versions are {supported}\n");
            actions.push(Action::Send(writer.body(body.as_bytes()).into()));
            self.end(End::Error, actions);
        } else {
            self.fail_with(&fault.message, fault.receipt.as_deref(), None, actions);
        }
    }

    /// ERROR, then close; what was waiting is dropped.
    fn fail_with(&mut self, message: &str, receipt: Option<&str>, problem: Option<&str>, actions: &mut Vec<Action>) {
        let content_type = if problem.is_some() { "application/problem+json" } else { "text/plain" };
        let error = Writer::new("ERROR", self.version)
            .header("message", message)
            .maybe("receipt-id", receipt)
            .header("content-type", content_type)
            .body(problem.unwrap_or(message).as_bytes());
        actions.push(Action::Send(error.into()));
        self.end(End::Error, actions);
    }

    fn end(&mut self, end: End, actions: &mut Vec<Action>) {
        self.state = State::Ended;
        self.work = None;
        self.topics = Vec::new();
        self.replies = None;
        self.relays = None;
        self.decoder = Decoder::new();
        actions.push(Action::Close(end));
    }
}

#[cfg(test)]
mod greeting;
#[cfg(test)]
mod tests;

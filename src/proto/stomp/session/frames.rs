//! What each command of a client does.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::acks::Acks;
use super::{
    AckMode, Action, End, Fault, Like, LikeOp, MAX_TRANSACTION_FRAMES, MAX_TRANSACTIONS, Pending, Relayed, Session,
    State, Subscribe, Token, Topic, Transaction,
};
use crate::domain::{Epoch, PostId, Version};
use crate::proto::sse;
use crate::proto::stomp::frame::{Format, Frame, Writer};
use crate::proto::stomp::{self, APP_PREFIX, REPLIES};

type Done = Result<(), Fault>;

/// A header that must be there.
fn required<'a>(frame: &'a Frame, name: &str) -> Result<&'a str, Fault> {
    frame.header(name).ok_or_else(|| Fault::new(format!("{} needs the header {name}", frame.command)))
}

fn boxed(text: Option<&str>) -> Option<Box<str>> {
    text.map(Box::from)
}

impl Session {
    pub(super) fn on_frame(&mut self, frame: &Frame, actions: &mut Vec<Action>) -> Done {
        match (frame.command.as_str(), self.state) {
            ("CONNECT" | "STOMP", State::Fresh) => return self.on_connect(frame, actions),
            ("CONNECT" | "STOMP", _) => return Err(Fault::new("already connected")),
            (_, State::Fresh) => return Err(Fault::new("the first frame must be CONNECT or STOMP")),
            ("SEND", _) => return self.on_send(frame, actions),
            ("SUBSCRIBE", _) => return self.on_subscribe(frame, actions),
            ("UNSUBSCRIBE", _) => return self.on_unsubscribe(frame, actions),
            ("COMMIT", _) => return self.on_commit(frame, actions),
            ("DISCONNECT", _) => {
                self.on_disconnect(frame, actions);
                return Ok(());
            }
            // The others are done at once, so their RECEIPT follows at once.
            ("ACK" | "NACK", _) => {
                if self.on_ack(frame)? {
                    return Ok(());
                }
            }
            ("BEGIN", _) => self.on_begin(frame)?,
            ("ABORT", _) => drop(self.take_transaction(frame)?),
            _ => return Err(Fault::new("unknown command")),
        }
        self.acknowledge(frame.header("receipt"), actions);
        Ok(())
    }

    fn acknowledge(&self, receipt: Option<&str>, actions: &mut Vec<Action>) {
        actions.extend(receipt.map(|id| Action::Send(self.receipt(id))));
    }

    fn on_connect(&mut self, frame: &Frame, actions: &mut Vec<Action>) -> Done {
        let Some(version) = stomp::Version::negotiate(frame.header("accept-version"), self.newest) else {
            return Err(Fault { versions: true, ..Fault::new("no common version") });
        };
        if version == stomp::Version::V12 && self.options.require_host {
            required(frame, "host")?;
        }
        let guest = |name| frame.header(name).is_none_or(|value| value == "guest");
        if self.options.relay && !(guest("login") && guest("passcode")) {
            return Err(Fault::new("access refused"));
        }
        let (can_send, wants) = heart_beat(frame.header("heart-beat"))?;
        let (ours, our_want) = (millis(self.options.heartbeat_send), millis(self.options.heartbeat_want));
        let agree = |sender: u32, receiver: u32| if sender == 0 || receiver == 0 { 0 } else { sender.max(receiver) };
        (self.send_ms, self.expect_ms) = (agree(ours, wants), agree(can_send, our_want));
        (self.version, self.state) = (version, State::Open);
        if self.options.authenticate {
            self.state = State::Greeting;
            let bearer = frame.header("Authorization").or_else(|| frame.header("authorization"));
            let bearer = bearer.and_then(|value| value.split_once(' '));
            let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token);
            let token = bearer.or_else(|| frame.header("passcode"));
            actions.push(Action::Authenticate(token.map(|token| Token(token.trim().into()))));
        } else {
            actions.push(Action::Send(self.connected()));
        }
        Ok(())
    }

    pub(super) fn connected(&self) -> Bytes {
        let (ours, our_want) = (millis(self.options.heartbeat_send), millis(self.options.heartbeat_want));
        let connected = Writer::new("CONNECTED", self.version)
            .header("version", self.version.label())
            .header("heart-beat", &format!("{ours},{our_want}"))
            .header("server", &self.options.server);
        connected.end().into()
    }

    fn on_send(&mut self, frame: &Frame, actions: &mut Vec<Action>) -> Done {
        let destination = required(frame, "destination")?;
        let receipt = frame.header("receipt");
        if self.is_relayed(destination) {
            let relayed = Arc::new(Relayed::from(frame));
            if let Some(transaction) = self.transaction(frame)? {
                transaction.relayed.push(relayed);
                transaction.receipts.extend(boxed(receipt));
            } else {
                actions.push(Action::Relay(relayed));
                self.acknowledge(receipt, actions);
            }
            return Ok(());
        }
        let (post, op) = like_destination(destination)?;
        let text = |name| frame.header(name).map(str::to_owned);
        let trace = text("traceparent").map(|parent| Box::new((parent, text("tracestate"))));
        let like = Like { token: self.number(), post, op, key: boxed(frame.header("idempotency-key")), trace };
        let correlation = boxed(frame.header("correlation-id").or(receipt));
        let mut pending = Pending { like, correlation, receipts: Vec::new() };
        if let Some(transaction) = self.transaction(frame)? {
            if transaction.like.is_some() {
                return Err(Fault::new("a transaction holds at most one like, as likes do not commit together"));
            }
            transaction.like = Some(pending);
            transaction.receipts.extend(boxed(receipt));
            return Ok(());
        }
        pending.receipts.extend(boxed(receipt));
        self.enqueue(pending, actions);
        Ok(())
    }

    fn enqueue(&mut self, pending: Pending, actions: &mut Vec<Action>) {
        self.work.get_or_insert_default().queue.push_back(pending);
        self.send_next(actions);
    }

    fn on_subscribe(&mut self, frame: &Frame, actions: &mut Vec<Action>) -> Done {
        let destination = required(frame, "destination")?;
        let id = match frame.header("id") {
            None if self.version > stomp::Version::V10 => return required(frame, "id").map(drop),
            id => id,
        };
        let ack = match frame.header("ack") {
            None | Some("auto") => AckMode::Auto,
            Some("client") => AckMode::Client,
            Some("client-individual") if self.version > stomp::Version::V10 => AckMode::ClientIndividual,
            Some(_) => return Err(Fault::new("ack must be auto, client or client-individual")),
        };
        let taken = match id {
            Some(id) => self.find(id).is_some() || self.replies.as_deref() == Some(id),
            None => self.topics.iter().any(|t| t.id.is_none() && t.post.topic() == destination),
        };
        if taken || self.has_relay(id, destination) {
            return Err(Fault::new("this subscription id is in use"));
        }
        let subscriptions = self.topics.len() + usize::from(self.replies.is_some()) + self.relays();
        if subscriptions >= self.options.subscriptions {
            return Err(Fault::new(format!("at most {} subscriptions per session", self.options.subscriptions)));
        }
        if destination == REPLIES {
            if ack != AckMode::Auto || self.replies.is_some() {
                return Err(Fault::new(format!("{REPLIES} can be subscribed to once, with ack auto")));
            }
            self.replies = Some(Arc::from(id.unwrap_or(REPLIES)));
            self.acknowledge(frame.header("receipt"), actions);
            return Ok(());
        }
        let id: Option<Arc<str>> = id.map(Arc::from);
        if self.is_relayed(destination) {
            self.add_relay(id, destination, ack, actions);
            self.acknowledge(frame.header("receipt"), actions);
            return Ok(());
        }
        let post = PostId::from_topic(destination).map_err(|_| Fault::new("no such destination"))?;
        let slot = self.slot();
        let acks = (ack != AckMode::Auto).then(|| Box::new(Acks::new(ack == AckMode::Client)));
        self.topics.reserve_exact(1);
        let receipt = boxed(frame.header("receipt"));
        self.topics.push(Topic { id: id.clone(), slot, post, receipt, joining: true, acks });
        let format = Format { epoch: self.options.epoch, version: self.version, subscription: id };
        let last = frame.header("last-version").and_then(last_version);
        actions.push(Action::Subscribe(Subscribe { slot, post, format, ack, last }));
        Ok(())
    }

    fn on_unsubscribe(&mut self, frame: &Frame, actions: &mut Vec<Action>) -> Done {
        let receipt = frame.header("receipt");
        if self.remove_relay(frame.header("id"), frame.header("destination")) {
            self.acknowledge(receipt, actions);
            return Ok(());
        }
        let found = match (frame.header("id"), frame.header("destination")) {
            (None, Some(destination)) if self.version == stomp::Version::V10 => {
                if self.replies.as_deref() == Some(destination) {
                    self.replies = None;
                    self.acknowledge(receipt, actions);
                    return Ok(());
                }
                // Also one that was given an id, as stomp.py does.
                self.topics.iter().position(|t| t.post.topic() == destination)
            }
            _ => {
                let id = required(frame, "id")?;
                if self.replies.as_deref() == Some(id) {
                    self.replies = None;
                    self.acknowledge(receipt, actions);
                    return Ok(());
                }
                self.find(id)
            }
        };
        let topic = self.topics.swap_remove(found.ok_or_else(|| Fault::new("no such subscription"))?);
        if self.topics.is_empty() {
            self.topics = Vec::new();
        }
        self.acknowledge(topic.receipt.as_deref(), actions);
        actions.push(Action::Unsubscribe { slot: topic.slot, then: receipt.map(|id| self.receipt(id)) });
        Ok(())
    }

    /// Takes an ACK or NACK; whether it waits in a transaction.
    fn on_ack(&mut self, frame: &Frame) -> Result<bool, Fault> {
        let unknown = || Fault::new("no such message waits to be acknowledged");
        let (slot, version) = self.acked(frame)?.ok_or_else(unknown)?;
        if let Some(transaction) = self.transaction(frame)? {
            transaction.acks.push((slot, version));
            transaction.receipts.extend(boxed(frame.header("receipt")));
            return Ok(true);
        }
        if self.settle(slot, version) { Ok(false) } else { Err(unknown()) }
    }

    fn settle(&mut self, slot: u32, version: Version) -> bool {
        if let Some(acks) = self.relay_acks(slot) {
            return acks.settle(version);
        }
        let topic = self.topics.iter_mut().find(|t| t.slot == slot);
        topic.and_then(|t| t.acks.as_mut()).is_some_and(|acks| acks.settle(version))
    }

    /// Which message an ACK names: in 1.2 by `id`, before by `message-id` (and in 1.1 `subscription`).
    fn acked(&self, frame: &Frame) -> Result<Option<(u32, Version)>, Fault> {
        let name = if self.version == stomp::Version::V12 { "id" } else { "message-id" };
        if let Some(relayed) = self.acked_relay(required(frame, name)?) {
            return Ok(Some(relayed));
        }
        let (slot, message_id, subscription) = match self.version {
            stomp::Version::V12 => match required(frame, "id")?.split_once('.') {
                Some((slot, message_id)) => (slot.parse::<u32>().ok(), message_id, None),
                None => return Ok(None),
            },
            stomp::Version::V11 => (None, required(frame, "message-id")?, Some(required(frame, "subscription")?)),
            stomp::Version::V10 => (None, required(frame, "message-id")?, frame.header("subscription")),
        };
        let Some((epoch, post, version)) = parse_message_id(message_id) else { return Ok(None) };
        let named = |topic: &&Topic| {
            topic.post == post
                && epoch == self.options.epoch
                && topic.acks.as_ref().is_some_and(|acks| acks.knows(version))
                && slot.is_none_or(|slot| slot == topic.slot)
                && subscription.is_none_or(|id| topic.id.as_deref() == Some(id))
        };
        Ok((slot.is_some() || self.version != stomp::Version::V12)
            .then(|| self.topics.iter().find(named).map(|t| (t.slot, version)))
            .flatten())
    }

    fn on_begin(&mut self, frame: &Frame) -> Done {
        let id = required(frame, "transaction")?;
        let transactions = &mut self.work.get_or_insert_default().transactions;
        if transactions.iter().any(|t| *t.id == *id) {
            return Err(Fault::new("this transaction has already begun"));
        }
        if transactions.len() == MAX_TRANSACTIONS {
            return Err(Fault::new(format!("at most {MAX_TRANSACTIONS} transactions at a time")));
        }
        let (acks, receipts) = (Vec::new(), Vec::new());
        transactions.push(Transaction { id: id.into(), frames: 0, like: None, relayed: Vec::new(), acks, receipts });
        Ok(())
    }

    fn take_transaction(&mut self, frame: &Frame) -> Result<Transaction, Fault> {
        let id = required(frame, "transaction")?;
        let transactions = self.work.as_mut().map(|w| &mut w.transactions);
        let taken = transactions.and_then(|t| Some(t.swap_remove(t.iter().position(|t| *t.id == *id)?)));
        taken.ok_or_else(|| Fault::new("no such transaction"))
    }

    /// The transaction a frame names, if it names one; counts the frame.
    fn transaction(&mut self, frame: &Frame) -> Result<Option<&mut Transaction>, Fault> {
        let Some(id) = frame.header("transaction") else { return Ok(None) };
        let found = self.work.as_mut().and_then(|w| w.transactions.iter_mut().find(|t| *t.id == *id));
        let transaction = found.ok_or_else(|| Fault::new("no such transaction"))?;
        transaction.frames += 1;
        if transaction.frames > MAX_TRANSACTION_FRAMES {
            return Err(Fault::new(format!("at most {MAX_TRANSACTION_FRAMES} frames in a transaction")));
        }
        Ok(Some(transaction))
    }

    fn on_commit(&mut self, frame: &Frame, actions: &mut Vec<Action>) -> Done {
        let mut transaction = self.take_transaction(frame)?;
        transaction.receipts.extend(boxed(frame.header("receipt")));
        for (slot, version) in transaction.acks {
            if !self.settle(slot, version) {
                return Err(Fault::new("no such message waits to be acknowledged"));
            }
        }
        actions.extend(transaction.relayed.into_iter().map(Action::Relay));
        if let Some(mut pending) = transaction.like {
            pending.receipts = transaction.receipts;
            self.enqueue(pending, actions);
        } else {
            transaction.receipts.iter().for_each(|id| self.acknowledge(Some(id), actions));
        }
        Ok(())
    }

    fn on_disconnect(&mut self, frame: &Frame, actions: &mut Vec<Action>) {
        if self.pending() > 0 {
            self.state = State::Leaving;
            self.work.get_or_insert_default().farewell = boxed(frame.header("receipt"));
        } else {
            self.acknowledge(frame.header("receipt"), actions);
            self.end(End::Disconnected, actions);
        }
    }

    fn find(&self, id: &str) -> Option<usize> {
        self.topics.iter().position(|t| t.id.as_deref() == Some(id))
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The number of a subscription.
    #[expect(clippy::cast_possible_truncation, reason = "a session does not live through 2^32 numbers")]
    pub(super) fn slot(&mut self) -> u32 {
        self.number() as u32
    }
}

/// `/app/posts.{id}.like` and `/app/posts.{id}.unlike`.
fn like_destination(destination: &str) -> Result<(PostId, LikeOp), Fault> {
    let parts = destination.strip_prefix(APP_PREFIX).and_then(|rest| rest.split_once('.'));
    let (post, op) = match parts {
        Some((post, "like")) => (post, LikeOp::Like),
        Some((post, "unlike")) => (post, LikeOp::Unlike),
        _ => return Err(Fault::new("no such destination")),
    };
    Ok((post.parse().map_err(|_| Fault::new("no such destination"))?, op))
}

/// `<epoch>.<post>.<version>`.
fn parse_message_id(text: &str) -> Option<(Epoch, PostId, Version)> {
    let (epoch, rest) = text.split_once('.')?;
    let (post, version) = rest.split_once('.')?;
    Some((epoch.parse().ok()?, post.parse().ok()?, sse::parse_version(version)?))
}

/// `<epoch>.<version>`, or a whole message-id. Anything else counts as absent: the client then gets a snapshot.
fn last_version(text: &str) -> Option<(Epoch, Version)> {
    match sse::parse_last_event_id(text) {
        Some(sse::Resume::One { epoch, version }) => Some((epoch, version)),
        _ => parse_message_id(text).map(|(epoch, _, version)| (epoch, version)),
    }
}

/// `heart-beat: <can send>,<wants>` in milliseconds; absent means neither.
fn heart_beat(header: Option<&str>) -> Result<(u32, u32), Fault> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u32::MAX))
    };
    let Some(text) = header else { return Ok((0, 0)) };
    let parsed = text.split_once(',').and_then(|(send, want)| Some((number(send)?, number(want)?)));
    parsed.ok_or_else(|| Fault::new("heart-beat must be two non-negative integers"))
}

fn millis(period: Duration) -> u32 {
    u32::try_from(period.as_millis()).unwrap_or(u32::MAX)
}

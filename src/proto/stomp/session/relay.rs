//! The conformance mode: `/topic/…`, `/queue/…` and `/exchange/…` are plain broadcast topics for the suites of others.

use std::sync::Arc;

use bytes::Bytes;

use super::acks::Acks;
use super::types::Relayed;
use super::{AckMode, Action, Session, State};
use crate::domain::{PostId, Version};
use crate::proto::stomp::frame::Writer;

/// The relayed topics a session has subscribed to; none in production.
#[derive(Debug, Default)]
pub(super) struct Relays(Vec<Relay>);

#[derive(Debug)]
struct Relay {
    id: Option<Arc<str>>,
    /// From the same sequence as slots.
    number: u32,
    destination: Box<str>,
    /// What is not acknowledged, by the number of the relayed SEND; `None` for [`AckMode::Auto`].
    acks: Option<Acks>,
}

impl Session {
    /// Whether a destination is one to be relayed.
    pub(super) fn is_relayed(&self, destination: &str) -> bool {
        self.options.relay
            && ["/topic/", "/queue/", "/exchange/"].iter().any(|prefix| destination.starts_with(prefix))
            && PostId::from_topic(destination).is_err()
    }

    /// How many of the session's subscriptions are relayed topics.
    pub(super) fn relays(&self) -> usize {
        self.relays.as_ref().map_or(0, |relays| relays.0.len())
    }

    /// Whether there is such a subscription; one without id is known by its destination.
    pub(super) fn has_relay(&self, id: Option<&str>, destination: &str) -> bool {
        let same = |relay: &Relay| relay.id.as_deref() == id && (id.is_some() || *relay.destination == *destination);
        self.relays.as_ref().is_some_and(|relays| relays.0.iter().any(same))
    }

    /// Subscribes; what is sent from now on arrives.
    pub(super) fn add_relay(&mut self, id: Option<Arc<str>>, destination: &str, ack: AckMode, to: &mut Vec<Action>) {
        let number = self.slot();
        let acks = (ack != AckMode::Auto).then(|| Acks::new(ack == AckMode::Client));
        if self.relays.is_none() {
            to.push(Action::Listen);
        }
        let relays = self.relays.get_or_insert_default();
        relays.0.push(Relay { id, number, destination: destination.into(), acks });
    }

    /// Unsubscribes by id, or in 1.0 by destination; whether there was such a subscription.
    pub(super) fn remove_relay(&mut self, id: Option<&str>, destination: Option<&str>) -> bool {
        let by_destination = self.version == super::super::Version::V10 && id.is_none();
        let Some(relays) = &mut self.relays else { return false };
        let named = |relay: &Relay| match by_destination {
            true => Some(&*relay.destination) == destination,
            false => id.is_some() && relay.id.as_deref() == id,
        };
        let found = relays.0.iter().position(named);
        found.map(|at| relays.0.remove(at)).is_some()
    }

    /// The subscription and the number that an `ack` value names, if that message waits to be acknowledged.
    pub(super) fn acked_relay(&self, name: &str) -> Option<(u32, Version)> {
        let (number, sent) = name.strip_prefix("relay.")?.split_once('.')?;
        let (number, sent) = (number.parse().ok()?, Version(sent.parse().ok()?));
        let relay = self.relays.as_ref()?.0.iter().find(|relay| relay.number == number)?;
        relay.acks.as_ref()?.knows(sent).then_some((number, sent))
    }

    /// What the relayed subscription with this number has not acknowledged.
    pub(super) fn relay_acks(&mut self, number: u32) -> Option<&mut Acks> {
        self.relays.as_mut()?.0.iter_mut().find(|relay| relay.number == number)?.acks.as_mut()
    }

    /// The MESSAGEs of a relayed SEND, one per subscription to its destination. `sent` numbers SENDs within the pod.
    #[must_use]
    pub fn relayed(&mut self, sent: u64, relayed: &Relayed) -> Vec<Bytes> {
        let version = self.version;
        if self.state != State::Open {
            return Vec::new();
        }
        let relays = self.relays.iter_mut().flat_map(|relays| &mut relays.0);
        let wanted = relays.filter(|relay| *relay.destination == *relayed.destination);
        let message = |relay: &mut Relay| {
            let name = format!("relay.{}.{sent}", relay.number);
            let mut writer = Writer::new("MESSAGE", version)
                .header("destination", &relayed.destination)
                .maybe("subscription", relay.id.as_deref())
                .header("message-id", &name);
            if let Some(acks) = &mut relay.acks {
                acks.sent(Version(sent));
                writer = writer.maybe("ack", (version == super::super::Version::V12).then_some(&*name));
            }
            for (name, value) in &relayed.headers {
                writer = writer.header(name, value);
            }
            Bytes::from(if relayed.body.is_empty() { writer.end() } else { writer.body(&relayed.body) })
        };
        wanted.map(message).collect()
    }
}

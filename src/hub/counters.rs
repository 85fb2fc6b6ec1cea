//! What the engines count: plain numbers per engine, published by relaxed stores once per turn.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::Transport;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The peer closed in good order.
    Peer,
    /// The peer reset, or the socket failed.
    Reset,
    /// The socket took nothing for the write time-out.
    WriteTimeout,
    /// The peer was silent for longer than agreed.
    ReadTimeout,
    /// Answers to the peer piled up beyond the bound because it does not read.
    SlowConsumer,
    /// More updates waited than the mailbox holds (policy `disconnect`).
    MailboxFull,
    /// The peer broke the protocol.
    Violation,
    /// What the peer asked for cannot be served now, and its protocol knows no other answer than the end.
    Refused,
    /// The connection reached its maximum age.
    MaxAge,
    /// The database has a new epoch.
    NewEpoch,
    /// What its user had shown at its begin has expired.
    Expired,
    /// The pod drains.
    Drain,
    /// The engine was stopped.
    Stopped,
}

impl CloseReason {
    /// All, in the order of metric slots.
    pub const ALL: [Self; 13] = [
        Self::Peer,
        Self::Reset,
        Self::WriteTimeout,
        Self::ReadTimeout,
        Self::SlowConsumer,
        Self::MailboxFull,
        Self::Violation,
        Self::Refused,
        Self::MaxAge,
        Self::NewEpoch,
        Self::Expired,
        Self::Drain,
        Self::Stopped,
    ];

    /// The metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Reset => "reset",
            Self::WriteTimeout => "write_timeout",
            Self::ReadTimeout => "read_timeout",
            Self::SlowConsumer => "slow_consumer",
            Self::MailboxFull => "mailbox_full",
            Self::Violation => "violation",
            Self::Refused => "refused",
            Self::MaxAge => "max_age",
            Self::NewEpoch => "new_epoch",
            Self::Expired => "expired",
            Self::Drain => "drain",
            Self::Stopped => "stopped",
        }
    }
}

/// Upper bounds of the commit → write histogram in µs; the last bucket of the counts is +Inf.
pub const LATENCY_BUCKETS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

fn bucket(micros: u64) -> usize {
    LATENCY_BUCKETS_US.iter().position(|&bound| micros <= bound).unwrap_or(LATENCY_BUCKETS_US.len())
}

/// One transport's counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TransportCounters {
    /// Connections taken over by the engine.
    pub accepted: u64,
    /// Of these, connections served through a body of hyper's because a take-over was not possible.
    pub fallback: u64,
    /// Ended, by reason in the order of [`CloseReason::ALL`].
    pub closed: [u64; CloseReason::ALL.len()],
    /// Updates written to a viewer.
    pub deliveries: u64,
    /// Successful `send(2)` calls.
    pub socket_writes: u64,
    /// Bytes these took.
    pub written_bytes: u64,
    /// Versions × viewers not sent because a newer one was there.
    pub conflated: u64,
    /// Versions × viewers not sent because they had arrived after a newer one, or not at all.
    pub superseded: u64,
    /// Versions × viewers dropped by a mailbox policy.
    pub dropped: u64,
    /// Commit → write, deliveries per bucket of [`LATENCY_BUCKETS_US`] (not cumulative), the last one above all.
    pub latency_counts: [u64; LATENCY_BUCKETS_US.len() + 1],
    /// Sum of these latencies, µs.
    pub latency_sum_us: u64,
    /// Streams that ended without a word after at least [`super::EngineOptions::idle_cut`] of silence.
    pub idle_cuts: u64,
    /// Event → last local socket tried, rounds per bucket of [`LATENCY_BUCKETS_US`] (not cumulative), the last one above all.
    pub fanout_counts: [u64; LATENCY_BUCKETS_US.len() + 1],
    /// Sum of these times, µs.
    pub fanout_sum_us: u64,
}

const FIELDS: usize = 11 + CloseReason::ALL.len() + 2 * (LATENCY_BUCKETS_US.len() + 1);

impl TransportCounters {
    fn values(&mut self) -> [&mut u64; FIELDS] {
        let scalars = [
            &mut self.accepted,
            &mut self.fallback,
            &mut self.deliveries,
            &mut self.socket_writes,
            &mut self.written_bytes,
            &mut self.conflated,
            &mut self.superseded,
            &mut self.dropped,
            &mut self.latency_sum_us,
            &mut self.idle_cuts,
            &mut self.fanout_sum_us,
        ];
        let histograms = self.latency_counts.iter_mut().chain(&mut self.fanout_counts);
        let mut all = scalars.into_iter().chain(&mut self.closed).chain(histograms);
        std::array::from_fn(|_| all.next().expect("FIELDS counts them all"))
    }

    pub(super) fn closed(&mut self, reason: CloseReason) {
        self.closed[reason as usize] += 1;
    }

    pub(super) fn latency(&mut self, micros: u64) {
        self.latency_counts[bucket(micros)] += 1;
        self.latency_sum_us += micros;
    }

    pub(super) fn fanout(&mut self, micros: u64) {
        self.fanout_counts[bucket(micros)] += 1;
        self.fanout_sum_us += micros;
    }

    /// Sum of [`TransportCounters::closed`].
    #[must_use]
    pub fn closed_total(&self) -> u64 {
        self.closed.iter().sum()
    }
}

/// An engine's counts, or a sum of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineCounters {
    /// In the order of [`Transport::ALL`].
    pub transports: [TransportCounters; Transport::ALL.len()],
    /// Time the thread was not waiting for sockets, µs.
    pub busy_us: u64,
}

impl EngineCounters {
    /// One transport's counts.
    #[must_use]
    pub fn of(&self, transport: Transport) -> &TransportCounters {
        &self.transports[transport as usize]
    }

    pub(super) fn of_mut(&mut self, transport: Transport) -> &mut TransportCounters {
        &mut self.transports[transport as usize]
    }

    /// Adds another engine's counts.
    pub fn add(&mut self, other: &Self) {
        let mut other = *other;
        self.busy_us += other.busy_us;
        for (mine, theirs) in self.transports.iter_mut().zip(&mut other.transports) {
            mine.values().into_iter().zip(theirs.values()).for_each(|(a, b)| *a += *b);
        }
    }
}

/// Where the engine's thread leaves its counts for others; each value is right, together they may be a turn apart.
#[derive(Debug)]
pub(super) struct Published([[AtomicU64; FIELDS]; Transport::ALL.len()], AtomicU64);

impl Default for Published {
    fn default() -> Self {
        Self(std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))), AtomicU64::new(0))
    }
}

impl Published {
    pub(super) fn store(&self, counters: &mut EngineCounters) {
        for (slots, values) in self.0.iter().zip(&mut counters.transports) {
            slots.iter().zip(values.values()).for_each(|(slot, value)| slot.store(*value, Ordering::Relaxed));
        }
        self.1.store(counters.busy_us, Ordering::Relaxed);
    }

    pub(super) fn load(&self) -> EngineCounters {
        let mut counters = EngineCounters { busy_us: self.1.load(Ordering::Relaxed), ..EngineCounters::default() };
        for (slots, values) in self.0.iter().zip(&mut counters.transports) {
            slots.iter().zip(values.values()).for_each(|(slot, value)| *value = slot.load(Ordering::Relaxed));
        }
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_counts_come_back_whole() {
        let mut counters = EngineCounters { busy_us: 7, ..EngineCounters::default() };
        for (i, value) in counters.transports.iter_mut().flat_map(TransportCounters::values).enumerate() {
            *value = i as u64 + 1;
        }
        let published = Published::default();
        published.store(&mut counters.clone());
        assert_eq!(published.load(), counters);
        let mut twice = counters;
        twice.add(&counters);
        assert_eq!(twice.of(Transport::Stomp).latency_sum_us, 2 * counters.of(Transport::Stomp).latency_sum_us);
    }

    #[test]
    fn latencies_fall_into_the_bucket_whose_bound_holds_them() {
        let mut counters = TransportCounters::default();
        [0, 100, 101, 10_000_000, 10_000_001].into_iter().for_each(|us| counters.latency(us));
        assert_eq!((counters.latency_counts[0], counters.latency_counts[1]), (2, 1));
        assert_eq!((counters.latency_counts[15], counters.latency_counts[16]), (1, 1));
    }

    #[test]
    fn reasons_are_in_their_slots() {
        for (slot, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, slot, "{reason:?}");
        }
    }
}

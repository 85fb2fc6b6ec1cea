//! One span per pod and event, however many viewers: begun when the event has come, ended by whoever lets go of it last.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry::KeyValue;
use opentelemetry::trace::Span as _;
use opentelemetry_sdk::trace::Span;

use super::time;
use crate::domain::Transport;

/// A sampled event on its way to this pod's viewers; nothing for all others. The engines share it: each lets go of it when
/// it has tried its viewers, and the last one's letting go ends the span.
#[derive(Clone, Default)]
pub struct FanOut(Option<Arc<Shared>>);

struct Shared {
    span: Span,
    /// Unix µs of the first and the last write, and how many, by transport.
    first: [AtomicU64; Transport::ALL.len()],
    last: AtomicU64,
    writes: [AtomicU64; Transport::ALL.len()],
    /// A newer event came before all viewers were tried.
    overtaken: AtomicU64,
}

impl fmt::Debug for FanOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FanOut").field(&self.0.is_some()).finish()
    }
}

impl FanOut {
    /// Not traced.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    pub(super) fn of(span: Span) -> Self {
        let shared = Shared {
            span,
            first: Default::default(),
            last: AtomicU64::new(0),
            writes: Default::default(),
            overtaken: AtomicU64::new(0),
        };
        Self(Some(Arc::new(shared)))
    }

    /// Whether it is traced.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.0.is_some()
    }

    /// A viewer's socket took the event at `at`, Unix µs.
    pub fn wrote(&self, transport: Transport, at: u64) {
        let Some(shared) = &self.0 else { return };
        let slot = transport as usize;
        if shared.writes[slot].fetch_add(1, Ordering::Relaxed) == 0 {
            shared.first[slot].store(at, Ordering::Relaxed);
        }
        shared.last.fetch_max(at, Ordering::Relaxed);
    }

    /// A newer event takes its place.
    pub fn overtaken(&self) {
        if let Some(shared) = &self.0 {
            shared.overtaken.store(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let span = &mut self.span;
        for transport in Transport::ALL {
            let writes = *self.writes[transport as usize].get_mut();
            if writes > 0 {
                let first = time(*self.first[transport as usize].get_mut());
                let label = KeyValue::new("pushlab.transport", transport.label());
                span.add_event_with_timestamp("first write", first, vec![label]);
                let key = match transport {
                    Transport::Sse => "pushlab.writes.sse",
                    Transport::Stomp => "pushlab.writes.stomp",
                };
                span.set_attribute(KeyValue::new(key, i64::try_from(writes).unwrap_or(i64::MAX)));
            }
        }
        if *self.overtaken.get_mut() > 0 {
            span.set_attribute(KeyValue::new("pushlab.overtaken", true));
        }
        match *self.last.get_mut() {
            0 => span.end(),
            // The last write's stamp, not the time at which somebody let go.
            last => span.end_with_timestamp(time(last)),
        }
    }
}

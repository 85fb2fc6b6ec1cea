//! Requests with an Idempotency-Key that are under way in this process: a duplicate waits for the first one's end.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::like::{IdempotencyKey, LikeOutcome, StoreError, Who};

/// Who, scope, value: the payload's hash is not part of a key's identity.
type Name = (Who, String, String);
/// `None` while under way or when it failed (then the sender is gone).
type Landed = Option<([u8; 20], LikeOutcome)>;

/// The requests under way. Bounded by the likes in flight.
#[derive(Debug, Clone, Default)]
pub(super) struct Flights(Arc<Mutex<HashMap<Name, watch::Receiver<Landed>>>>);

/// What a newcomer gets.
#[derive(Debug)]
pub(super) enum Seat {
    /// Nobody has this key in flight: do it.
    First(Flight),
    /// Somebody had; this was the payload's hash and the outcome.
    After([u8; 20], LikeOutcome),
}

/// The first request with a key; dropped without [`Flight::land`] it failed, and the next one in line tries.
#[derive(Debug)]
pub(super) struct Flight {
    flights: Flights,
    name: Name,
    payload_hash: [u8; 20],
    done: watch::Sender<Landed>,
}

impl Flights {
    /// Becomes the first one, or waits for it, at most `patience`.
    pub(super) async fn board(&self, who: &Who, key: &IdempotencyKey, patience: Duration) -> Result<Seat, StoreError> {
        let deadline = Instant::now() + patience;
        loop {
            let name = (who.clone(), key.scope.clone(), key.value.clone());
            let mut first = match self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name.clone()) {
                Entry::Occupied(entry) => entry.get().clone(),
                Entry::Vacant(entry) => {
                    let (done, receiver) = watch::channel(None);
                    entry.insert(receiver);
                    return Ok(Seat::First(Flight {
                        flights: self.clone(),
                        name,
                        payload_hash: key.payload_hash,
                        done,
                    }));
                }
            };
            match timeout_at(deadline, first.wait_for(Option::is_some)).await {
                Err(_) => return Err(StoreError::KeyInFlight),
                Ok(Err(_)) => {}
                Ok(Ok(landed)) => {
                    if let Some((hash, outcome)) = &*landed {
                        return Ok(Seat::After(*hash, outcome.replay()));
                    }
                }
            }
        }
    }
}

impl Flight {
    /// Tells those who wait.
    pub(super) fn land(self, outcome: &LikeOutcome) {
        self.done.send_replace(Some((self.payload_hash, outcome.clone())));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

//! How often: new streams per pod, and requests per client. Off unless told; each refusal says when to come back.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::{HeaderMap, HeaderName};

use super::error::ApiError;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Clients remembered at most; those beyond share one allowance until some are forgotten.
const CLIENTS: usize = 100_000;

/// Options of rates.
#[derive(Debug, Clone, clap::Args)]
pub struct RateConfig {
    /// Streams (SSE and STOMP) that may begin per second on this pod; more are answered 503 + Retry-After; 0: no limit
    #[arg(long, env = "PUSHLAB_CONNECT_RATE", value_name = "N", default_value = "0")]
    pub connect_rate: u32,

    /// Requests and SENDs per second of one client (its user, else its address); more are answered 429 + Retry-After; 0: no limit
    #[arg(long, env = "PUSHLAB_CLIENT_RATE", value_name = "N", default_value = "0")]
    pub client_rate: u32,

    /// How many requests one client may save up
    #[arg(long, env = "PUSHLAB_CLIENT_BURST", value_name = "N", default_value = "50")]
    pub client_burst: NonZeroU32,

    /// Proxies before this pod that append to X-Forwarded-For: the client's address is the entry this far from its end; 0: the header is not believed
    #[arg(long, env = "PUSHLAB_FORWARDED_HOPS", value_name = "N", default_value = "0")]
    pub forwarded_hops: usize,
}

/// Who is counted as one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// A verified user.
    User(Arc<str>),
    /// An IPv4 address or an IPv6 /64, which is what one customer gets.
    Address(IpAddr),
    /// Everybody else, when too many are remembered.
    Others,
}

/// The pod's allowances.
pub(super) struct Rates {
    streams: Option<DefaultDirectRateLimiter>,
    clients: Option<DefaultKeyedRateLimiter<Client>>,
    hops: usize,
    clock: DefaultClock,
}

impl Rates {
    pub(super) fn new(config: &RateConfig) -> Self {
        let streams = NonZeroU32::new(config.connect_rate).map(|rate| RateLimiter::direct(Quota::per_second(rate)));
        let clients = NonZeroU32::new(config.client_rate)
            .map(|rate| RateLimiter::keyed(Quota::per_second(rate).allow_burst(config.client_burst)));
        Self { streams, clients, hops: config.forwarded_hops, clock: DefaultClock::default() }
    }

    /// One more stream.
    ///
    /// # Errors
    /// [`ApiError::Rush`].
    pub(super) fn stream(&self) -> Result<(), ApiError> {
        match &self.streams {
            Some(streams) => streams.check().map_err(|_| ApiError::Rush),
            None => Ok(()),
        }
    }

    /// One more request or SEND of this client's.
    ///
    /// # Errors
    /// [`ApiError::RateLimited`].
    pub(super) fn check(&self, client: &Client) -> Result<(), ApiError> {
        let Some(clients) = &self.clients else { return Ok(()) };
        // A forger of addresses must not make this grow; `forget` makes room.
        let client = if clients.len() >= CLIENTS { &Client::Others } else { client };
        clients.check_key(client).map_err(|not_until| {
            let wait = not_until.wait_time_from(self.clock.now());
            ApiError::RateLimited { seconds: u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1) }
        })
    }

    /// Forgets clients whose allowance is full again; call it now and then.
    pub(super) fn forget(&self) {
        if let Some(clients) = &self.clients {
            clients.retain_recent();
            clients.shrink_to_fit();
        }
    }

    /// The client by its address.
    pub(super) fn address(&self, request: &Request) -> Client {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
        self.address_of(peer, request.headers())
    }

    fn address_of(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Client {
        let lines = || headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        // Counted from the end: what stands before was written by the client.
        let forwarded = match self.hops {
            0 => None,
            hops => {
                let mut entries: Vec<&str> = lines().flat_map(|line| line.split(',')).collect();
                entries.reverse();
                entries.get(hops - 1).and_then(|entry| entry.trim().parse().ok())
            }
        };
        match forwarded.or(peer) {
            Some(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
                Some(address) => Client::Address(address.into()),
                None => Client::Address(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into()),
            },
            Some(address) => Client::Address(address),
            None => Client::Others,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(connect_rate: u32, client_rate: u32, forwarded_hops: usize) -> Rates {
        let client_burst = NonZeroU32::new(2).unwrap();
        Rates::new(&RateConfig { connect_rate, client_rate, client_burst, forwarded_hops })
    }

    #[test]
    fn a_client_has_an_allowance_of_its_own() {
        let rates = rates(0, 1, 0);
        let (ann, bob) = (Client::User("ann".into()), Client::User("bob".into()));
        assert!(rates.check(&ann).is_ok() && rates.check(&ann).is_ok());
        let Err(ApiError::RateLimited { seconds }) = rates.check(&ann) else { panic!("a third") };
        assert!((1..=2).contains(&seconds));
        assert!(rates.check(&bob).is_ok() && rates.stream().is_ok());
    }

    #[test]
    fn without_a_limit_nobody_is_counted_and_a_pods_rate_is_all_streams() {
        let free = rates(0, 0, 0);
        assert!((0..1000).all(|_| free.check(&Client::Others).is_ok() && free.stream().is_ok()));
        let slow = rates(2, 0, 0);
        let begun = (0..10).filter(|_| slow.stream().is_ok()).count();
        assert_eq!(begun, 2);
        assert_eq!(slow.stream(), Err(ApiError::Rush));
    }

    #[test]
    fn an_address_is_believed_only_as_far_as_told() {
        let address = |text: &str| Client::Address(text.parse().unwrap());
        let peer = Some("10.0.0.1".parse().unwrap());
        let mut headers = HeaderMap::new();
        headers.append(FORWARDED_FOR, "1.1.1.1, 2.2.2.2".parse().unwrap());
        headers.append(FORWARDED_FOR, "3.3.3.3".parse().unwrap());
        for (hops, expected) in [(0, "10.0.0.1"), (1, "3.3.3.3"), (2, "2.2.2.2"), (9, "10.0.0.1")] {
            assert_eq!(rates(0, 1, hops).address_of(peer, &headers), address(expected), "{hops} hops");
        }
        let none = HeaderMap::new();
        let v6 = Some("2001:db8:1:2:3:4:5:6".parse().unwrap());
        assert_eq!(rates(0, 1, 0).address_of(v6, &none), address("2001:db8:1:2::"));
        let mapped = Some("::ffff:10.0.0.1".parse().unwrap());
        assert_eq!(rates(0, 1, 0).address_of(mapped, &none), address("10.0.0.1"));
    }
}

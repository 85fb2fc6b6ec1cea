//! A TCP proxy that misbehaves on request: freezes connections without closing them, swallows the answer to a request.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// The proxy; it ends with the test's runtime.
pub(crate) struct Proxy {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Connections older than this generation are frozen: nothing passes, nothing is closed.
    generation: AtomicU64,
    /// A connection falls silent after a request that holds these bytes was passed on.
    swallow: Mutex<Option<&'static [u8]>>,
    swallowed: AtomicU64,
    /// Raised to cut all connections.
    cuts: tokio::sync::watch::Sender<u64>,
}

impl Proxy {
    /// In front of `127.0.0.1:{to}`.
    pub(crate) async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        tokio::spawn({
            let state = state.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { continue };
                    client.set_nodelay(true).unwrap();
                    server.set_nodelay(true).unwrap();
                    let generation = state.generation.load(Ordering::SeqCst);
                    let silent = Arc::new(AtomicBool::new(false));
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    tokio::spawn(pass(state.clone(), generation, silent.clone(), from_client, to_server, true));
                    tokio::spawn(pass(state.clone(), generation, silent, from_server, to_client, false));
                }
            }
        });
        Self { port, state }
    }

    /// `url` with this proxy's port in the place of its own.
    pub(crate) fn instead_of(&self, url: &str) -> String {
        let (server, database) = url.rsplit_once('/').unwrap();
        let (host, _) = server.rsplit_once(':').unwrap();
        format!("{host}:{}/{database}", self.port)
    }

    /// Where it is, for HTTP.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Closes the connections that are open; new ones are served.
    pub(crate) fn cut(&self) {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// From now on nothing passes over the connections that are open; new ones are served.
    pub(crate) fn freeze(&self) {
        self.state.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// From now on a connection falls silent after a request that holds these bytes was passed on.
    pub(crate) fn swallow(&self, request: Option<&'static [u8]>) {
        *self.state.swallow.lock().unwrap() = request;
    }

    /// Answers swallowed.
    pub(crate) fn swallowed(&self) -> u64 {
        self.state.swallowed.load(Ordering::SeqCst)
    }
}

async fn pass(
    state: Arc<State>,
    generation: u64,
    silent: Arc<AtomicBool>,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    from_client: bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut cuts = state.cuts.subscribe();
    loop {
        let read = tokio::select! { read = from.read(&mut buffer) => read, _ = cuts.changed() => return };
        let Ok(n @ 1..) = read else { return };
        let holds = |part: &'static [u8]| buffer[..n].windows(part.len()).any(|window| window == part);
        if from_client && state.swallow.lock().unwrap().is_some_and(holds) {
            silent.store(true, Ordering::SeqCst);
            state.swallowed.fetch_add(1, Ordering::SeqCst);
        }
        let frozen = state.generation.load(Ordering::SeqCst) != generation;
        if frozen || (!from_client && silent.load(Ordering::SeqCst)) {
            // Until the client closes, which the other direction's end shows soon enough for a test.
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

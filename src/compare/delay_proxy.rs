//! A TCP proxy whose one fault is known: it holds what the server sends for a given time, and does nothing else.
//!
//! It waits by spinning, not by sleeping: a timer's slack is as large as the latencies that are compared. A run without
//! a delay takes the same way through the same code.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::affinity;

/// A running proxy; dropped, it accepts nothing more. Its connections end with their peers.
#[derive(Debug)]
pub struct DelayProxy {
    /// Where viewers connect.
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    delay_ns: AtomicU64,
    stopping: AtomicBool,
}

impl DelayProxy {
    /// In front of `upstream`, without a delay yet, with its threads on `cpus` (empty: anywhere).
    ///
    /// # Errors
    /// When no port or thread can be had, or a CPU is not there.
    pub fn start(upstream: SocketAddr, cpus: &[usize]) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for the proxy")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let accepting = Arc::clone(&state);
        let proxy = thread::Builder::new().name("proxy".into());
        // The threads of its connections inherit the CPUs. Unpinned, A and B suffer alike.
        affinity::within(cpus, || proxy.spawn(move || accept(&listener, upstream, &accepting)))??;
        Ok(Self { address, state })
    }

    /// How long everything read from the server is held from now on.
    pub fn set_delay(&self, delay: Duration) {
        let ns = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        self.state.delay_ns.store(ns, Ordering::Relaxed);
    }
}

impl Drop for DelayProxy {
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address); // wakes the accepting thread
    }
}

fn accept(listener: &TcpListener, upstream: SocketAddr, state: &Arc<State>) {
    for viewer in listener.incoming().map_while(Result::ok) {
        if state.stopping.load(Ordering::Relaxed) {
            return;
        }
        let state = Arc::clone(state);
        // A viewer that cannot be served is closed, and its run says so.
        let _ = thread::Builder::new().name("proxied".into()).spawn(move || connection(viewer, upstream, &state));
    }
}

fn connection(viewer: TcpStream, upstream: SocketAddr, state: &State) -> std::io::Result<()> {
    let server = TcpStream::connect(upstream)?;
    viewer.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (asking, asked) = (viewer.try_clone()?, server.try_clone()?);
    let requests = thread::Builder::new().name("requests".into()).spawn(move || pump(asking, asked, None))?;
    pump(server, viewer, Some(state));
    let _ = requests.join();
    Ok(())
}

/// Copies until one side ends, then ends both: a viewer never half-closes.
fn pump(mut from: TcpStream, mut to: TcpStream, held_by: Option<&State>) {
    let mut buffer = [0; 16_384];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if let Some(state) = held_by {
            let (read_at, delay) = (Instant::now(), Duration::from_nanos(state.delay_ns.load(Ordering::Relaxed)));
            while read_at.elapsed() < delay {
                std::hint::spin_loop();
            }
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_held_whole_and_in_order_and_requests_are_not() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = DelayProxy::start(server.local_addr().unwrap(), &[]).unwrap();
        let mut viewer = TcpStream::connect(proxy.address).unwrap();
        let (mut pod, _) = server.accept().unwrap();
        let said: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut heard = vec![0; said.len()];
        viewer.write_all(b"ask").unwrap();
        pod.read_exact(&mut heard[..3]).unwrap();
        let writer = thread::spawn({
            let (said, mut pod) = (said.clone(), pod.try_clone().unwrap());
            move || pod.write_all(&said).unwrap()
        });
        viewer.read_exact(&mut heard).unwrap();
        writer.join().unwrap();
        assert_eq!(heard, said);

        proxy.set_delay(Duration::from_millis(30));
        let sent = Instant::now();
        pod.write_all(b"!").unwrap();
        viewer.read_exact(&mut heard[..1]).unwrap();
        assert!(sent.elapsed() >= Duration::from_millis(30), "held only {:?}", sent.elapsed());
        // The other direction: the pod has it although the delay would take minutes.
        proxy.set_delay(Duration::from_secs(600));
        pod.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        viewer.write_all(b"?").unwrap();
        pod.read_exact(&mut heard[..1]).unwrap();
    }

    #[test]
    fn when_one_side_ends_the_other_learns_of_it() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = DelayProxy::start(server.local_addr().unwrap(), &[]).unwrap();
        let viewer = TcpStream::connect(proxy.address).unwrap();
        let (mut pod, _) = server.accept().unwrap();
        pod.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        drop(viewer);
        assert_eq!(pod.read(&mut [0; 1]).unwrap(), 0);
        let mut viewer = TcpStream::connect(proxy.address).unwrap();
        let (pod, _) = server.accept().unwrap();
        viewer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        drop(pod);
        assert_eq!(viewer.read(&mut [0; 1]).unwrap(), 0);
    }
}

//! From TLS to a socket pair and back: whoever writes into the pair, hyper or an engine, need not know of TLS.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, sink, split};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long a peer may go on talking after the pod's last byte, so that what it was told is not cut off by a reset.
const LINGER: Duration = Duration::from_secs(1);

/// Copies until the pod has ended its side. A peer that ends its own side, or vanishes, is told to the pod as an end of
/// input; the pod's end then follows by itself. Both directions are bounded by their copy's buffer and the pair's.
pub(super) async fn run<S: AsyncRead + AsyncWrite>(secured: S, plain: UnixStream) {
    let (mut from_peer, mut to_peer) = split(secured);
    let (mut from_pod, mut to_pod) = plain.into_split();
    {
        let inward = async {
            let _ = copy(&mut from_peer, &mut to_pod).await;
            let _ = to_pod.shutdown().await;
            std::future::pending::<()>().await;
        };
        let outward = async {
            let _ = copy(&mut from_pod, &mut to_peer).await;
            let _ = to_peer.shutdown().await;
        };
        tokio::select! {
            () = inward => {}
            () = outward => {}
        }
    }
    let _ = timeout(LINGER, copy(&mut from_peer, &mut sink())).await;
}

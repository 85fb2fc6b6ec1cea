//! Ports of pods on 127.0.0.1, through the API server (`kubectl port-forward`): what watches a local stack can watch a
//! cluster's as it is, and no network policy is in the way.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Connections through one forwarded port at a time; more wait in the listener's backlog.
const AT_ONCE: usize = 64;

/// One forwarded port, closed when dropped.
#[derive(Debug)]
pub(super) struct Forward {
    /// Where it is reached.
    pub(super) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Forward {
    /// Listens for this port of this pod. Whether the pod takes connections shows at the first one.
    pub(super) async fn open(pods: Api<Pod>, pod: &str, port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no free port on 127.0.0.1")?;
        let (address, pod) = (listener.local_addr()?, pod.to_owned());
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let task = tokio::spawn(async move {
            while let (Ok(place), Ok((near, _))) = (Arc::clone(&places).acquire_owned().await, listener.accept().await)
            {
                let (pods, pod) = (pods.clone(), pod.clone());
                tokio::spawn(async move {
                    if let Err(error) = carry(&pods, &pod, port, near).await {
                        tracing::debug!(pod, port, %error, "a forwarded connection");
                    }
                    drop(place);
                });
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(pods: &Api<Pod>, pod: &str, port: u16, mut near: TcpStream) -> anyhow::Result<()> {
    let mut forward = pods.portforward(pod, &[port]).await?;
    let mut far = forward.take_stream(port).context("no stream")?;
    let carried = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    forward.abort();
    carried?;
    Ok(())
}

//! TLS by rustls with ring: for pods that no edge stands before.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Options of TLS.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TlsConfig {
    /// Certificate chain (PEM): the public port then speaks TLS only, HTTP/2 and HTTP/1.1; SIGHUP reads it again
    #[arg(long, env = "PUSHLAB_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM)
    #[arg(long, env = "PUSHLAB_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

/// Makes ring the process's provider of cryptography, which reqwest and rustls look for. A second call changes nothing.
pub fn provide() {
    // Someone else's provider serves as well.
    drop(ring::default_provider().install_default());
}

/// What new connections are met with; the certificate can be exchanged.
#[derive(Clone)]
pub struct Tls {
    files: Arc<(PathBuf, PathBuf)>,
    current: Arc<RwLock<Arc<ServerConfig>>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads certificate and key; `None` when none are given.
    ///
    /// # Errors
    /// A file that cannot be read, or a key that is not the certificate's.
    pub fn open(config: &TlsConfig) -> anyhow::Result<Option<Self>> {
        let (Some(certificate), Some(key)) = (&config.tls_cert, &config.tls_key) else { return Ok(None) };
        let files = (certificate.clone(), key.clone());
        let current = Arc::new(RwLock::new(Arc::new(read(&files)?)));
        Ok(Some(Self { files: Arc::new(files), current }))
    }

    /// Reads the files again; connections that are open keep the old certificate.
    ///
    /// # Errors
    /// As [`Tls::open`]; the old certificate stays.
    pub fn reload(&self) -> anyhow::Result<()> {
        let fresh = Arc::new(read(&self.files)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// For one handshake.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)).into()
    }

    /// Reloads at every SIGHUP, for ever. From the call on, the signal no longer ends the process.
    pub(super) fn reload_on_hangup(self) -> impl Future<Output = ()> {
        let hangups = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
        async move {
            let Ok(mut hangups) = hangups else { return };
            while hangups.recv().await.is_some() {
                match self.reload() {
                    Ok(()) => tracing::info!("the certificate was read again"),
                    Err(error) => tracing::error!("the certificate stays as it is: {error:#}"),
                }
            }
        }
    }
}

/// TLS 1.2 and 1.3 with rustls' own choice of suites; HTTP/2 before HTTP/1.1.
fn read((certificate, key): &(PathBuf, PathBuf)) -> anyhow::Result<ServerConfig> {
    let place = || format!("--tls-cert {}", certificate.display());
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect).with_context(place)?;
    anyhow::ensure!(!chain.is_empty(), "{}: no certificate in it", place());
    let secret = PrivateKeyDer::from_pem_file(key).with_context(|| format!("--tls-key {}", key.display()))?;
    provide();
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .with_context(|| format!("{} and --tls-key {} do not fit together", place(), key.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

//! TLS by rustls with ring.

use tokio_rustls::rustls::crypto::ring;

/// Makes ring the process's provider of cryptography, which reqwest and rustls look for. A second call changes nothing.
pub fn provide() {
    // Someone else's provider serves as well.
    drop(ring::default_provider().install_default());
}

//! An identity provider as small as can be: keys from openssl, tokens, and a JWKS over HTTP that can change.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::serve::Listener;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::server::TlsStream;

/// For HS256.
pub(super) const SECRET: &str = "a secret of the test suite, long enough";

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A file with [`SECRET`].
pub(crate) fn secret_file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{SECRET}\n")).unwrap();
    file
}

/// A HS256 token with these claims.
pub(super) fn hs256(claims: &Value) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

/// A HS256 token of a user's for an hour.
pub(crate) fn token(user: &str) -> String {
    hs256(&json!({ "sub": user, "exp": now() + 3600 }))
}

/// A token put together by hand: header and claims as given, and this signature.
pub(super) fn raw(header: &Value, claims: &Value, signature: &str) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{signature}", part(header), part(claims))
}

/// A key pair of an identity provider.
pub(super) struct Issuer {
    kid: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
    pem: Vec<u8>,
}

impl Issuer {
    pub(super) fn new(kid: &'static str, algorithm: Algorithm) -> Self {
        let kind: &[&str] = match algorithm {
            Algorithm::RS256 => &["RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            Algorithm::ES256 => &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            _ => &["ed25519"],
        };
        let made = Command::new("openssl").args(["genpkey", "-algorithm"]).args(kind).output();
        let pem = made.expect("openssl: apt-get install openssl").stdout;
        let key = match algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(&pem),
            Algorithm::ES256 => EncodingKey::from_ec_pem(&pem),
            _ => EncodingKey::from_ed_pem(&pem),
        };
        Self { kid, algorithm, key: key.unwrap(), pem }
    }

    /// Its public key as a JWK.
    pub(super) fn jwk(&self) -> Value {
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&self.key, self.algorithm).unwrap()).unwrap();
        jwk["kid"] = json!(self.kid);
        jwk["use"] = json!("sig");
        jwk
    }

    /// Its public key as everybody has it.
    pub(super) fn public_pem(&self) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &self.pem).unwrap();
        Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(file.path()).output().unwrap().stdout
    }

    /// A token signed with it.
    pub(super) fn token(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid.into()), ..Header::new(self.algorithm) };
        encode(&header, claims, &self.key).unwrap()
    }
}

/// TLS over TCP, for axum.
struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((socket, address)) = self.listener.accept().await else { continue };
            if let Ok(stream) = self.acceptor.accept(socket).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A JWKS over HTTP.
pub(super) struct Provider {
    /// `--jwks`.
    pub(super) url: String,
    shared: Arc<(Mutex<Option<Value>>, AtomicUsize)>,
    serving: tokio::task::JoinHandle<()>,
}

impl Provider {
    pub(super) async fn start(keys: &[Value]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve("http", keys, listener)
    }

    /// The same over https.
    pub(super) async fn over_tls(keys: &[Value], certificate: &rcgen::CertifiedKey<rcgen::KeyPair>) -> Self {
        pushlab::serve::tls::provide();
        let key = PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![certificate.cert.der().clone()], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve("https", keys, TlsListener { listener, acceptor: Arc::new(config).into() })
    }

    fn serve<L: Listener<Addr = SocketAddr>>(scheme: &str, keys: &[Value], listener: L) -> Self {
        let shared = Arc::new((Mutex::new(Some(json!({ "keys": keys }))), AtomicUsize::new(0)));
        let url = format!("{scheme}://{}/jwks.json", listener.local_addr().unwrap());
        let served = Arc::clone(&shared);
        let answer = move || {
            served.1.fetch_add(1, Ordering::SeqCst);
            let jwks = served.0.lock().unwrap().clone();
            async move { jwks.map(axum::Json).ok_or(http::StatusCode::INTERNAL_SERVER_ERROR) }
        };
        let router = axum::Router::new().route("/jwks.json", axum::routing::get(answer));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared, serving }
    }

    /// Other keys from now on; `None`: it fails.
    pub(super) fn set(&self, keys: Option<&[Value]>) {
        *self.shared.0.lock().unwrap() = keys.map(|keys| json!({ "keys": keys }));
    }

    /// The first of its keys.
    pub(super) fn first(&self) -> Value {
        self.shared.0.lock().unwrap().as_ref().unwrap()["keys"][0].clone()
    }

    /// How often it was asked.
    pub(super) fn asked(&self) -> usize {
        self.shared.1.load(Ordering::SeqCst)
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

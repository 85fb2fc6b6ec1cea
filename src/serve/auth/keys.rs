//! The keys that verify tokens, each pinned to one algorithm.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header};

/// Most keys of a set; more are ignored.
const KEYS: usize = 100;
/// Longest key id that is looked for.
const ID: usize = 128;
/// Shortest RSA modulus, bits.
const RSA_BITS: usize = 2048;

/// A key, its id and the one algorithm it is for. A token's header never chooses: it must agree.
#[derive(Debug)]
pub(super) struct Key {
    id: Option<Box<str>>,
    /// The only algorithm this key verifies.
    pub(super) algorithm: Algorithm,
    /// The key.
    pub(super) key: DecodingKey,
}

/// All keys that count now.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    /// Entries of the JWKS that are no key for us: encryption keys, other algorithms, weak or doubled ones.
    pub(super) ignored: usize,
}

/// What a token's header leads to.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// The key it names, and the algorithm is that key's.
    Key(&'a Key),
    /// Such a key, but for another algorithm: confusion, or worse.
    OtherAlgorithm,
    /// No such key; the set may be out of date.
    Unknown,
    /// Nothing a new set could change.
    Never,
}

impl KeySet {
    /// One secret, for HS256.
    pub(super) fn secret(secret: &[u8]) -> Self {
        let key = Key { id: None, algorithm: Algorithm::HS256, key: DecodingKey::from_secret(secret) };
        Self { keys: vec![key], ignored: 0 }
    }

    /// The public signature keys of a JWKS (RFC 7517). A secret in it is ignored: it was no secret any more.
    pub(super) fn from_jwks(json: &[u8]) -> Result<Self, &'static str> {
        #[derive(serde::Deserialize)]
        struct Jwks {
            keys: Vec<serde_json::Value>,
        }
        let jwks: Jwks = serde_json::from_slice(json).map_err(|_| "it is no JWKS: {\"keys\": […]} is expected")?;
        let mut set = Self::default();
        for entry in jwks.keys {
            let key = serde_json::from_value::<Jwk>(entry).ok().and_then(|jwk| Key::public(&jwk));
            match key {
                Some(key) if set.keys.len() < KEYS && !set.keys.iter().any(|other| other.id == key.id) => {
                    set.keys.push(key);
                }
                _ => set.ignored += 1,
            }
        }
        if set.keys.is_empty() { Err("it holds no RS256, ES256 or EdDSA signature key") } else { Ok(set) }
    }

    /// How many keys count.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key a token was signed with, by its header's words. A key id is compared and nothing else: it is no path, no
    /// URL, no query; `jku`, `x5u`, `x5c` and `jwk` are not looked at.
    pub(super) fn find(&self, header: &Header) -> Found<'_> {
        // What is critical must be understood, and we understand nothing beyond RFC 7519.
        if header.crit.is_some() {
            return Found::Never;
        }
        let found = match (&header.kid, &self.keys[..]) {
            (Some(kid), _) if kid.len() > ID => return Found::Never,
            // A secret has no id, so a token may call it what it likes.
            (_, [only]) if only.id.is_none() => Some(only),
            (Some(kid), keys) => keys.iter().find(|key| key.id.as_deref() == Some(kid.as_str())),
            (None, [only]) => Some(only),
            (None, _) => return Found::Never,
        };
        match found {
            Some(key) if key.algorithm == header.alg => Found::Key(key),
            Some(_) => Found::OtherAlgorithm,
            None => Found::Unknown,
        }
    }
}

impl Key {
    fn public(jwk: &Jwk) -> Option<Self> {
        let (algorithm, strong) = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) => (Algorithm::RS256, rsa.n.trim_end_matches('=').len() * 6 >= RSA_BITS),
            AlgorithmParameters::EllipticCurve(ec) => (Algorithm::ES256, ec.curve == EllipticCurve::P256),
            AlgorithmParameters::OctetKeyPair(okp) => (Algorithm::EdDSA, okp.curve == EllipticCurve::Ed25519),
            _ => return None,
        };
        let common = &jwk.common;
        let named = common.key_algorithm.is_none_or(|named| named == KeyAlgorithm::from(algorithm));
        let signs = common.public_key_use.as_ref().is_none_or(|of| *of == PublicKeyUse::Signature);
        let verifies = common.key_operations.as_ref().is_none_or(|list| list.contains(&KeyOperations::Verify));
        let short = common.key_id.as_ref().is_none_or(|id| id.len() <= ID);
        if !(strong && named && signs && verifies && short) {
            return None;
        }
        let key = DecodingKey::from_jwk(jwk).ok()?;
        Some(Self { id: common.key_id.as_deref().map(Into::into), algorithm, key })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ed(kid: Option<&str>) -> serde_json::Value {
        // RFC 8037 A.2.
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" })
    }

    fn set(keys: &[serde_json::Value]) -> Result<KeySet, &'static str> {
        KeySet::from_jwks(json!({ "keys": keys }).to_string().as_bytes())
    }

    fn header(alg: Algorithm, kid: Option<&str>) -> Header {
        Header { kid: kid.map(Into::into), ..Header::new(alg) }
    }

    #[test]
    fn a_key_verifies_with_its_own_algorithm_only() {
        let keys = set(&[ed(Some("a")), ed(Some("b"))]).unwrap();
        assert!(matches!(keys.find(&header(Algorithm::EdDSA, Some("a"))), Found::Key(_)));
        for other in [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256] {
            assert!(matches!(keys.find(&header(other, Some("a"))), Found::OtherAlgorithm), "{other:?}");
        }
        assert!(matches!(keys.find(&header(Algorithm::EdDSA, Some("c"))), Found::Unknown));
        assert!(matches!(keys.find(&header(Algorithm::EdDSA, None)), Found::Never), "which of the two?");
        let critical = Header { crit: Some(vec!["b64".into()]), ..header(Algorithm::EdDSA, Some("a")) };
        assert!(matches!(keys.find(&critical), Found::Never));
        let long = "k".repeat(ID + 1);
        assert!(matches!(keys.find(&header(Algorithm::EdDSA, Some(&long))), Found::Never));
    }

    #[test]
    fn what_is_no_signature_key_of_ours_is_ignored() {
        let with = |name: &str, value: serde_json::Value| {
            let mut key = ed(Some(name));
            key[name] = value;
            key
        };
        let weak = json!({ "kty": "RSA", "kid": "weak", "n": "A".repeat(171), "e": "AQAB" });
        let secret = json!({ "kty": "oct", "kid": "secret", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA" });
        let strange = json!({ "kty": "mystery" });
        let bad = [
            with("use", json!("enc")),
            with("alg", json!("HS256")),
            with("key_ops", json!(["sign"])),
            weak,
            secret,
            strange,
            ed(Some("a")),
        ];
        let keys: Vec<_> = [ed(Some("a"))].into_iter().chain(bad).collect();
        let set = set(&keys).unwrap();
        assert_eq!((set.len(), set.ignored), (1, 7));
        assert!(KeySet::from_jwks(b"{}").is_err() && KeySet::from_jwks(br#"{"keys":[]}"#).is_err());
    }

    #[test]
    fn a_secret_is_for_hs256_whatever_a_token_calls_it() {
        let keys = KeySet::secret(&[7; 32]);
        assert!(matches!(keys.find(&header(Algorithm::HS256, Some("../../etc/passwd"))), Found::Key(_)));
        assert!(matches!(keys.find(&header(Algorithm::HS384, None)), Found::OtherAlgorithm));
    }
}

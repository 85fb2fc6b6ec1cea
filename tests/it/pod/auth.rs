//! Tokens over HTTP: who gets in, who does not, and that nobody is told why.

use std::collections::BTreeSet;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use super::tokens::{Issuer, Provider, SECRET, hs256, now, raw, secret_file, token};
use super::{Cli, PATIENCE, TestPods};

/// The answer to a request with this `Authorization`, if any.
async fn call(pods: &TestPods, method: &str, path: &str, bearer: Option<&str>) -> (u16, HeaderMap, Value) {
    let mut request = pods.http.request(method.parse().unwrap(), pods.url(0, path));
    if let Some(token) = bearer {
        request = request.bearer_auth(token);
    }
    let answer = tokio::time::timeout(PATIENCE, request.send()).await.expect("an answer").unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    (status, headers, answer.json().await.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_in_and_its_sub_is_the_user() {
    let secret = secret_file();
    let pods = TestPods::start(&["--auth", "jwt", "--jwt-secret-file", secret.path().to_str().unwrap()]).await;
    let (ann, bob) = (token("ann"), token("bob"));
    let answer = pods.http.post(pods.url(0, "/posts")).json(&json!({ "title": "a post" })).bearer_auth(&ann);
    let post = answer.send().await.unwrap().json::<Value>().await.unwrap()["id"].as_u64().unwrap();
    let (likes, me) = (format!("/posts/{post}/likes"), format!("/posts/{post}/likes/me"));
    for (method, path) in [
        ("GET", format!("/posts/{post}")),
        ("GET", likes.clone()),
        ("POST", likes.clone()),
        ("PUT", me.clone()),
        ("GET", format!("/likes?post={post}")),
        ("POST", "/tickets".into()),
        ("POST", "/session".into()),
    ] {
        let (status, headers, problem) = call(&pods, method, &path, None).await;
        assert_eq!((status, &problem["type"]), (401, &json!("/problems/unauthorized")), "{method} {path}");
        assert_eq!(headers["www-authenticate"], "Bearer realm=\"pushlab\"");
        assert_eq!(headers["content-type"], "application/problem+json");
        assert_eq!(headers["cache-control"], "no-store");
    }
    for (user, count, changed) in [(&ann, 1, true), (&ann, 1, false), (&bob, 2, true)] {
        let (status, _, body) = call(&pods, "PUT", &me, Some(user)).await;
        assert_eq!((status, &body["likes"], &body["changed"]), (200, &json!(count), &json!(changed)));
    }
    let (status, headers, _) = call(&pods, "GET", &format!("/posts/{post}"), Some(&ann)).await;
    assert_eq!((status, headers["cache-control"].to_str().unwrap()), (200, "private, max-age=60"));
    // The page, what does not exist, and a preflight need none.
    for (method, path, status) in [("GET", "/", 200), ("GET", "/nothing", 404), ("OPTIONS", likes.as_str(), 204)] {
        assert_eq!(call(&pods, method, path, None).await.0, status, "{method} {path}");
    }
    assert!(pods.metric(0, "pushlab_auth_total", "accepted").await >= 5.0);
    assert!(pods.metric(0, "pushlab_auth_total", "missing").await >= 7.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_token_gets_the_same_answer() {
    let secret = secret_file();
    let flags = ["--auth", "jwt", "--jwt-secret-file", secret.path().to_str().unwrap(), "--jwt-leeway", "0"];
    let pods =
        TestPods::start(&[&flags[..], &["--jwt-audience", "us", "--jwt-issuer", "https://id.test"]].concat()).await;
    let good = json!({ "sub": "ann", "exp": now() + 3600, "aud": ["them", "us"], "iss": "https://id.test" });
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        hs256(&claims)
    };
    let signed = |header: Header, key: &[u8]| encode(&header, &good, &EncodingKey::from_secret(key)).unwrap();
    let valid = hs256(&good);
    let (body, signature) = valid.rsplit_once('.').unwrap();
    let none = |alg: &str| raw(&json!({ "typ": "JWT", "alg": alg }), &good, "");
    let mut bad = vec![
        ("alg: none", none("none")),
        ("alg: None", none("None")),
        ("alg: nOnE", none("nOnE")),
        ("none, old signature", raw(&json!({ "alg": "none" }), &good, signature)),
        ("no signature", format!("{body}.")),
        ("two parts", body.to_owned()),
        ("another secret", signed(Header::new(Algorithm::HS256), &[7; 40])),
        ("HS384 with our secret", signed(Header::new(Algorithm::HS384), SECRET.as_bytes())),
        ("crit", signed(Header { crit: Some(vec!["b64".into()]), ..Header::default() }, SECRET.as_bytes())),
        ("expired", with("exp", json!(now() - 1))),
        ("expired long ago", with("exp", json!(1))),
        ("negative exp", with("exp", json!(-1))),
        ("exp as text", with("exp", json!("tomorrow"))),
        ("not yet", with("nbf", json!(now() + 3600))),
        ("another audience", with("aud", json!("them"))),
        ("no audience", with("aud", Value::Null)),
        ("another issuer", with("iss", json!("https://evil.test"))),
        ("no subject", with("sub", Value::Null)),
        ("empty subject", with("sub", json!(""))),
        ("a subject with a line end", with("sub", json!("ann\nroot"))),
        ("a subject too long", with("sub", json!("a".repeat(129)))),
        ("a token too long", with("more", json!("x".repeat(5000)))),
        ("nothing", String::new()),
        ("dots", "..".into()),
        ("no base64", "a b.c.d".into()),
    ];
    let claims: Value = json!({ "sub": "root", "exp": now() + 3600, "aud": "us", "iss": "https://id.test" });
    bad.push(("other claims, old signature", raw(&json!({ "alg": "HS256" }), &claims, signature)));
    let post = pods.http.post(pods.url(0, "/posts")).json(&json!({ "title": "t" })).bearer_auth(&valid).send();
    assert_eq!(post.await.unwrap().status(), 201);
    let mut answers = BTreeSet::new();
    for (what, token) in &bad {
        let (status, headers, problem) = call(&pods, "POST", "/posts/1/likes", Some(token)).await;
        assert_eq!(status, 401, "{what}");
        answers.insert((problem.to_string(), headers["www-authenticate"].to_str().unwrap().to_owned()));
    }
    assert_eq!(answers.len(), 1, "{answers:#?}");
    let basic = pods.http.post(pods.url(0, "/posts/1/likes")).header("authorization", "Basic YTpi").send();
    assert_eq!(basic.await.unwrap().status(), 401);
    let (_, _, body) = call(&pods, "GET", "/posts/1/likes", Some(&valid)).await;
    assert_eq!(body["likes"], 0);
    let refused = ["malformed", "key", "signature", "time", "claims"];
    for label in refused {
        assert!(pods.metric(0, "pushlab_auth_total", label).await >= 1.0, "{label}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_of_a_jwks_has_one_algorithm() {
    let issuers = [("r", Algorithm::RS256), ("e", Algorithm::ES256), ("d", Algorithm::EdDSA)];
    let issuers = issuers.map(|(kid, algorithm)| Issuer::new(kid, algorithm));
    let provider = Provider::start(&issuers.each_ref().map(Issuer::jwk)).await;
    let pods = TestPods::start(&["--auth", "jwt", "--jwks", &provider.url]).await;
    let claims = json!({ "sub": "ann", "exp": now() + 3600 });
    for issuer in &issuers {
        assert_eq!(call(&pods, "POST", "/tickets", Some(&issuer.token(&claims))).await.0, 201);
    }
    // The classic: the public key, which everybody has, taken for the secret of HS256.
    let jwk = issuers[0].jwk();
    let modulus = jwk["n"].as_str().unwrap().to_owned();
    for key in [issuers[0].public_pem(), modulus.into_bytes(), jwk.to_string().into_bytes(), Vec::new()] {
        for kid in [Some("r".to_owned()), None] {
            let header = Header { kid, ..Header::new(Algorithm::HS256) };
            let confused = encode(&header, &claims, &EncodingKey::from_secret(&key)).unwrap();
            assert_eq!(call(&pods, "POST", "/tickets", Some(&confused)).await.0, 401);
        }
    }
    // A right signature under another key's name; a key brought along; a key id that wants to be a file or a URL.
    let own = Issuer::new("e", Algorithm::EdDSA);
    assert_eq!(call(&pods, "POST", "/tickets", Some(&own.token(&claims))).await.0, 401);
    let brought = json!({ "alg": "EdDSA", "kid": "e", "jwk": own.jwk(), "jku": provider.url, "x5u": provider.url });
    assert_eq!(call(&pods, "POST", "/tickets", Some(&raw(&brought, &claims, "AAAA"))).await.0, 401);
    for kid in ["../../../../dev/null", "/etc/hostname", "http://127.0.0.1:1/", "' or 1=1 --", "r\u{0}", "\r\nx: y"] {
        let named = raw(&json!({ "alg": "RS256", "kid": kid }), &claims, "AAAA");
        assert_eq!(call(&pods, "POST", "/tickets", Some(&named)).await.0, 401, "{kid:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_found_and_unknown_ones_do_not_flood_the_provider() {
    let (old, new) = (Issuer::new("old", Algorithm::EdDSA), Issuer::new("new", Algorithm::ES256));
    let provider = Provider::start(&[old.jwk()]).await;
    let pods = TestPods::start(&["--auth", "jwt", "--jwks", &provider.url]).await;
    let claims = json!({ "sub": "ann", "exp": now() + 3600 });
    assert_eq!((call(&pods, "POST", "/tickets", Some(&old.token(&claims))).await.0, provider.asked()), (201, 1));
    provider.set(Some(&[old.jwk(), new.jwk()]));
    let fresh = new.token(&claims);
    let (a, b) =
        tokio::join!(call(&pods, "POST", "/tickets", Some(&fresh)), call(&pods, "POST", "/tickets", Some(&fresh)));
    assert_eq!((a.0, b.0, provider.asked()), (201, 201, 2), "those who ask together share one reading");
    provider.set(None);
    for n in 0..50 {
        let unknown = raw(&json!({ "alg": "ES256", "kid": format!("k{n}") }), &claims, "AAAA");
        assert_eq!(call(&pods, "POST", "/tickets", Some(&unknown)).await.0, 401);
    }
    assert!(provider.asked() <= 3, "{} times", provider.asked());
    assert_eq!(call(&pods, "POST", "/tickets", Some(&old.token(&claims))).await.0, 201, "what was known stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_look_safe_and_not_be_does_not_start() {
    use clap::Parser;
    let (secret, short) = (secret_file(), tempfile::NamedTempFile::new().unwrap());
    std::fs::write(short.path(), "short").unwrap();
    let (secret, short) = (secret.path().to_str().unwrap(), short.path().to_str().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}", folder.path().join("likes.db").display());
    for (flags, part) in [
        (vec!["--auth", "jwt"], "--auth jwt needs keys"),
        (vec!["--auth", "jwt", "--jwt-secret-file", short], "at least 32 bytes"),
        (vec!["--auth", "jwt", "--jwt-secret-file", secret, "--trust-user-header", "X-User"], "--trust-user-header"),
        (vec!["--auth", "jwt", "--jwks", "http://id.example.org/jwks"], "use https"),
        // Nobody listens there; TLS as such can be had.
        (vec!["--auth", "jwt", "--jwks", "https://127.0.0.1:1/jwks"], "--jwks https://127.0.0.1:1/jwks"),
        (vec!["--auth", "jwt", "--jwks", "/no/such/file"], "/no/such/file"),
        (vec!["--auth", "jwt", "--jwks", secret], "no JWKS"),
        (vec!["--jwks", secret], "nothing without --auth jwt"),
        (vec!["--tls-cert", secret, "--tls-key", secret], "--tls-cert"),
    ] {
        let fixed =
            ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--database-url", database.as_str()];
        let config = Cli::try_parse_from(fixed.iter().chain(&flags)).unwrap().config;
        let error = format!("{:#}", pushlab::serve::build(&config).await.expect_err("an error"));
        assert!(error.contains(part), "{flags:?}: {error}");
    }
    for flags in [["--origin", "*"], ["--origin", "null"], ["--tls-cert", "x"], ["--auth-cookie", "a;b"]] {
        assert!(Cli::try_parse_from([&["serve"][..], &flags[..]].concat()).is_err(), "{flags:?}");
    }
}

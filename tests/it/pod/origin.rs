//! Pages of other origins, and what browsers are told about them.

use reqwest::header::HeaderMap;

use super::TestPods;
use super::tokens::{secret_file, token};

const UPGRADE: [(&str, &str); 4] = [
    ("connection", "upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

async fn call(pods: &TestPods, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap) {
    let request = pods.http.request(method.parse().unwrap(), pods.url(0, path));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.headers().clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_page_gets_403_on_everything_that_counts() {
    let pods = TestPods::start(&["--origin", "https://good.test,https://other.test:8443"]).await;
    let post = pods.post().await;
    let likes = format!("/posts/{post}/likes");
    let own = format!("http://{}", pods.addresses[0]);
    let stream = [("accept", "text/event-stream")];
    for (origin, allowed) in [
        ("https://good.test", true),
        ("https://other.test:8443", true),
        (own.as_str(), true),
        ("https://evil.test", false),
        ("null", false),
        ("http://good.test", false),
        ("https://good.test.evil.test", false),
        ("https://sub.good.test", false),
        ("https://other.test", false),
        ("https://good.test/", false),
        ("", false),
    ] {
        for (method, path, more, fine) in [
            ("POST", likes.as_str(), &[][..], 200),
            ("GET", likes.as_str(), &stream[..], 200),
            ("GET", "/stomp", &UPGRADE[..], 101),
        ] {
            let headers = [more, &[("origin", origin)]].concat();
            let (status, answered) = call(&pods, method, path, &headers).await;
            assert_eq!(status, if allowed { fine } else { 403 }, "{origin} {method} {path}");
            let told = answered.get("access-control-allow-origin").map(|value| value.to_str().unwrap());
            assert_eq!(told, (allowed && origin != own).then_some(origin), "{origin}");
            assert!(!allowed || origin == own || answered["access-control-allow-credentials"] == "true");
            assert!(answered.get_all("vary").iter().any(|v| v.to_str().unwrap().to_lowercase().contains("origin")));
        }
    }
    // Two origins, one of them right: nobody honest sends that.
    let two = [("origin", "https://good.test"), ("origin", "https://evil.test")];
    assert_eq!(call(&pods, "POST", &likes, &two).await.0, 403);
    // A program, which has no Origin.
    assert_eq!(call(&pods, "POST", &likes, &[]).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_names_exact_origins_and_is_not_kept_long() {
    let secret = secret_file();
    let flags =
        ["--origin", "https://good.test", "--auth", "jwt", "--jwt-secret-file", secret.path().to_str().unwrap()];
    let pods = TestPods::start(&flags).await;
    let ask = |origin| [("origin", origin), ("access-control-request-method", "PUT")];
    let (status, headers) = call(&pods, "OPTIONS", "/posts/1/likes/me", &ask("https://good.test")).await;
    let header = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap());
    assert_eq!(status, 200);
    assert_eq!(header("access-control-allow-origin"), "https://good.test");
    assert_eq!(header("access-control-allow-credentials"), "true");
    assert!(header("access-control-allow-headers").contains("authorization"));
    assert!(header("access-control-max-age").parse::<u32>().unwrap() <= 600);
    assert!(header("vary").contains("origin"));
    for origin in ["https://evil.test", "null"] {
        let (_, headers) = call(&pods, "OPTIONS", "/posts/1/likes/me", &ask(origin)).await;
        assert!(!headers.contains_key("access-control-allow-origin"), "{origin}");
    }
    // A refusal can be read by the page it is meant for.
    let (status, headers) = call(&pods, "GET", "/posts/1/likes", &[("origin", "https://good.test")]).await;
    assert_eq!((status, headers["access-control-allow-origin"].to_str().unwrap()), (401, "https://good.test"));
    let bearer = format!("Bearer {}", token("ann"));
    let (status, _) =
        call(&pods, "GET", "/posts/1/likes", &[("origin", "https://evil.test"), ("authorization", &bearer)]).await;
    assert_eq!(status, 403, "a foreign page with a token is still a foreign page");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_says_what_browsers_must_not_do() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    for path in ["/", "/nothing", "/stomp", &format!("/posts/{post}"), &format!("/posts/{post}/likes")] {
        let (_, headers) = call(&pods, "GET", path, &[]).await;
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["referrer-policy"], "no-referrer", "{path}");
        assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"), "{path}");
        assert!(!headers.contains_key("server") && !headers.contains_key("x-powered-by"), "{path}");
    }
}

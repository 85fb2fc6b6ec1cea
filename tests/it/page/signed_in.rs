//! The page where the operator asks who you are: a cookie signs it in for HTTP, a token for STOMP too.

use serde_json::{Value, json};

use super::Lab;
use crate::pod::tokens::{secret_file, token};
use crate::servers::MariaDb;

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_signs_the_page_in_over_http_and_a_token_on_both_sides() {
    let secret = secret_file();
    let flags = format!("--auth jwt --jwt-secret-file {}", secret.path().display());
    let lab = Lab::with(&MariaDb::shared().database().await, &flags).await;
    let made = lab.http.post(format!("http://{}/posts", lab.pods[0].listen)).bearer_auth(token("ann"));
    let made: Value = made.json(&json!({ "title": "guarded" })).send().await.unwrap().json().await.unwrap();
    let page = lab.url(&format!("/?post={}", made["id"]));
    let browser = &lab.browser;
    browser.open(&page).await;
    let asks = "document.getElementById('auth').open && document.getElementById('trouble').textContent.includes('401')";
    lab.until("the page asks for a token", asks).await;

    let headers = format!("{{ Authorization: 'Bearer {}' }}", token("ann"));
    let set = format!("return fetch('/session', {{ method: 'POST', headers: {headers} }}).then(a => a.status)");
    assert_eq!(browser.script(&set).await, 204);
    assert_eq!(browser.script("return document.cookie").await, "", "no script can read it");
    browser.open(&page).await;
    lab.until("SSE is live by the cookie", "document.getElementById('sse').dataset.state === 'open'").await;
    browser.click("#like").await;
    lab.said("POST: counted; 1 like").await;
    lab.until("SSE shows it", "document.querySelector('#sse .count').textContent === '1'").await;
    let refused = "document.querySelector('#stomp .why').textContent.includes('authentication failed')";
    lab.until("STOMP, whose CONNECT has no cookie, says why it cannot", refused).await;

    browser.script("document.getElementById('auth').open = true").await;
    browser.keys("#token", &token("bob")).await;
    browser.click("#sign-in button").await;
    lab.live().await;
    lab.both_show(1).await;
    browser.click("[name=by][value=send]").await;
    browser.click("#like").await;
    lab.said("SEND: counted; 2 likes").await;
    lab.both_show(2).await;
    lab.end().await;
}

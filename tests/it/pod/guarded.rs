//! `probe` and `load` against a pod that asks for tokens, and keys that come over https.

use std::path::Path;
use std::process::Command;

use jsonwebtoken::Algorithm;
use pushlab::domain::Arm;
use serde_json::json;

use super::client::Stomp;
use super::tokens::{Issuer, Provider, now, secret_file, token};
use super::{PATIENCE, TestPods};
use crate::pod_process::PodProcess;

/// `pushlab` with this token in the environment; its exit code and all it said.
fn pushlab(args: &[&str], token: Option<&str>) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pushlab"));
    command.env_remove("PUSHLAB_TOKEN").envs(token.map(|token| ("PUSHLAB_TOKEN", token)));
    let output = command.args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_shows_its_token_to_the_service_and_to_nobody_else() {
    let secret = secret_file();
    let pod = PodProcess::with(
        &["--auth", "jwt", "--jwt-secret-file", secret.path().to_str().unwrap()],
        &[("RUST_LOG", "pushlab=trace,info")],
    );
    let (base, admin, ann) = (pod.url(""), format!("http://{}", pod.admin), token("ann"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{ann}\n")).unwrap();
    let args = ["probe", "--base-url", &base, "--admin-url", &admin];
    let by_file = [&args[..], &["--token-file", file.path().to_str().unwrap()]].concat();
    for (args, token) in [(&args[..], Some(ann.as_str())), (&by_file[..], None)] {
        let (code, said) = pushlab(args, token);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("both transports delivered version 1") && !said.contains(&ann), "{said}");
    }
    let wrong = [&args[..], &["--token", "Bearer x"]].concat();
    for (args, token, hint, expected) in [
        (&args[..], None, "the service asks for a token", 1),
        (&args[..], Some("e.y.J"), "the service asks for a token", 1),
        (&wrong[..], None, "this is no token", 2),
    ] {
        let (code, said) = pushlab(args, token);
        assert_eq!(code, Some(expected), "{said}");
        assert!(said.contains(hint), "{said}");
    }
    assert!(!pushlab(&["probe", "--help"], Some(&ann)).1.contains(&ann), "help shows no token");
    assert!(!pod.log().contains(&ann), "nor does the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_generator_shows_its_token_on_every_arm() {
    let secret = secret_file();
    let pod = PodProcess::start(&["--auth", "jwt", "--jwt-secret-file", secret.path().to_str().unwrap()]);
    let folder = tempfile::tempdir().unwrap();
    let run = |arm: Arm, token: Option<&str>| {
        let out = folder.path().join(format!("{arm}.run.gz"));
        let args = crate::load::load_args(&pod, arm, "300ms", &out);
        pushlab(&args.iter().map(String::as_str).collect::<Vec<_>>(), token)
    };
    for arm in Arm::ALL {
        let (code, said) = run(arm, Some(&token("ann")));
        assert_eq!(code, Some(0), "{arm}: {said}");
        let out = folder.path().join(format!("{arm}.run.gz"));
        let account = pushlab::result::ledger::account(&pushlab::result::file::read(&out).unwrap());
        assert!(account.ok > 10 && account.on_final == 8, "{arm}: {account:?}");
    }
    let (code, said) = run(Arm::SsePost, None);
    assert!(code == Some(1) && said.contains("401"), "{said}");
}

/// A certificate for 127.0.0.1 and its key, in files.
fn certify(folder: &Path) -> (rcgen::CertifiedKey<rcgen::KeyPair>, String) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let file = folder.join("ca.pem");
    std::fs::write(&file, made.cert.pem()).unwrap();
    (made, file.to_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_come_over_https_and_one_taken_out_stops_counting_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, file) = certify(folder.path());
    let (kept, withdrawn) = (Issuer::new("kept", Algorithm::ES256), Issuer::new("withdrawn", Algorithm::EdDSA));
    let provider = Provider::over_tls(&[kept.jwk(), withdrawn.jwk()], &certificate).await;
    let flags = ["--auth", "jwt", "--jwks", &provider.url, "--jwks-refresh", "1s"];
    let pod = PodProcess::with(&flags, &[("SSL_CERT_FILE", &file)]);
    let pods = TestPods::of(&pod);
    let claims = json!({ "sub": "ann", "exp": now() + 3600 });
    let (kept, withdrawn) = (kept.token(&claims), withdrawn.token(&claims));
    let status = async |token: &str| {
        let asked = pods.http.post(pods.url(0, "/tickets")).bearer_auth(token).send();
        asked.await.unwrap().status().as_u16()
    };
    assert_eq!((status(&kept).await, status(&withdrawn).await), (201, 201));
    provider.set(Some(&[provider.first()]));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while status(&withdrawn).await == 201 {
        assert!(tokio::time::Instant::now() < deadline, "the key still counts");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // What was known stays when the provider fails.
    provider.set(None);
    let failed = pods.metric(0, "pushlab_jwks_refreshes_total", "failed").await;
    while pods.metric(0, "pushlab_jwks_refreshes_total", "failed").await < failed + 1.0 {
        assert!(tokio::time::Instant::now() < deadline, "it is not read again");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!((status(&kept).await, status(&withdrawn).await), (201, 401));

    // Without its certificate the provider could be anybody.
    let database = format!("sqlite:{}", folder.path().join("likes.db").display());
    let serve = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--database-url", &database];
    let (code, said) = pushlab(&[&serve[..], &["--nats-url", "local"], &flags].concat(), None);
    assert!(code == Some(1) && said.contains("--jwks https://") && said.contains("certificate"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_log_in_in_time_is_closed() {
    let secret = secret_file();
    let guarded = TestPods::start(&["--auth", "jwt", "--jwt-secret-file", secret.path().to_str().unwrap()]).await;
    let open = TestPods::start(&[]).await;
    let silent = async |pods: &TestPods, first: &str| {
        let mut session = Stomp::socket(pods.addresses[0]).await;
        if !first.is_empty() {
            session.send(first).await;
        }
        let error = session.frame().await;
        assert_eq!((error.command.as_str(), error.header("message")), ("ERROR", "no CONNECT arrived in time"));
        assert!(matches!(session.next().await, super::client::Next::Closed(Some(_))));
    };
    // Nothing at all; and a CONNECT that never ends, with or without heart-beats to look alive.
    let half = "CONNECT\naccept-version:1.2\nhost:t\n";
    tokio::join!(silent(&open, ""), silent(&guarded, ""), silent(&guarded, half), silent(&open, "\n\n"));
    for pods in [&guarded, &open] {
        pods.metric_becomes(0, "pushlab_connections", "stomp", 0.0).await;
    }
}

//! Signals: a pod as a process of its own.

use nix::sys::signal::Signal;

use crate::pod_process::PodProcess;
use crate::servers::until;

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_a_drain_at_once() {
    let mut pod = PodProcess::start(&["--drain", "10m", "--drain-grace", "10m"]);
    pod.post().await;
    pod.signal(Signal::SIGTERM);
    until("it drains", || pod.log().contains("draining")).await;
    let ready = reqwest::get(format!("http://{}/readyz", pod.admin)).await.unwrap();
    assert_eq!(ready.status(), 503);
    pod.signal(Signal::SIGTERM);
    assert_eq!(pod.ended().await.code(), Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_reads_the_log_filter_again_and_a_bad_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("filter");
    std::fs::write(&file, "warn\n").unwrap();
    let mut pod =
        PodProcess::start(&["--log-filter-file", file.to_str().unwrap(), "--drain", "0", "--drain-grace", "0"]);
    let logged = |pod: &PodProcess, part| pod.log().contains(part);
    std::fs::write(&file, "pushlab=???").unwrap();
    pod.signal(Signal::SIGHUP);
    until("it says so", || logged(&pod, "stays as it was") && logged(&pod, "write for example")).await;
    std::fs::write(&file, "info").unwrap();
    pod.signal(Signal::SIGHUP);
    until("it is read", || logged(&pod, "was read again")).await;
    assert!(!logged(&pod, "INFO"), "{}", pod.log());
    pod.signal(Signal::SIGTERM);
    assert_eq!(pod.ended().await.code(), Some(0));
    until("what is logged at info is there now", || logged(&pod, "INFO") && logged(&pod, "drained")).await;

    let mut pod = PodProcess::start(&["--drain", "0", "--drain-grace", "0"]);
    pod.signal(Signal::SIGHUP);
    until("it says what to do", || logged(&pod, "--log-filter-file")).await;
    pod.signal(Signal::SIGTERM);
    assert_eq!(pod.ended().await.code(), Some(0));
}

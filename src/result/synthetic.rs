//! A small good history, made by hand, for tests that break it.

use super::{ArrivalColumns, EventColumns, Header, LikeColumns, PodCounters, RunConfig, RunResult, SNAPSHOT, Session};
use crate::domain::PostId;

/// Likes per second of [`good`], and its viewers.
pub(crate) const LIKES: u32 = 400;
pub(crate) const VIEWERS: u32 = 3;

/// 400 likes on one post over 2 s (window: the second from 0.5 s to 1.5 s), three viewers. Viewer 1 misses version 100
/// (conflated at its pod) and is reconnected after 200; every event is committed 1 ms after its like is due and arrives
/// 200 µs (viewer 0), 300 µs, 400 µs later.
pub(crate) fn good() -> RunResult {
    let config = RunConfig {
        viewers: VIEWERS,
        likers: 2,
        rate: 200.0,
        warmup_s: 0.5,
        measure_s: 1.0,
        cooldown_s: 0.5,
        base_urls: vec!["http://127.0.0.1:1".into()],
        ..RunConfig::default()
    };
    let due = |v: u32| (v - 1) * 5_000;
    let committed = |v: u32| due(v) + 1_000;
    let (mut likes, mut events, mut arrivals) =
        (LikeColumns::default(), EventColumns::default(), ArrivalColumns::default());
    for v in 1..=LIKES {
        likes.due_us.push(due(v));
        likes.sent_us.push(due(v) + 50);
        likes.answered_us.push(due(v) + 1_500);
        likes.post.push(0);
        likes.version.push(v);
        likes.outcome.push(0);
        events.post.push(0);
        events.version.push(v);
        events.prev.push(v - 1);
        events.likes.push(v);
        events.committed_us.push(committed(v));
    }
    let mut sessions = Vec::new();
    let mut arrive = |session: usize, version: u32, at: u32| {
        arrivals.session.push(u32::try_from(session).unwrap());
        arrivals.version.push(version);
        arrivals.at_us.push(at);
    };
    let session = |viewer| Session { viewer, joined_us: Some(0), pod: Some("pod-1".into()), ..Session::default() };
    for viewer in 0..VIEWERS {
        let delay = 200 + 100 * viewer;
        arrive(sessions.len(), 0, SNAPSHOT);
        if viewer != 1 {
            (1..=LIKES).for_each(|v| arrive(sessions.len(), v, committed(v) + delay));
            sessions.push(session(viewer));
            continue;
        }
        // Version 100 was conflated at the pod; after 200 the connection is lost until 210.
        (1..=200).filter(|v| *v != 100).for_each(|v| arrive(sessions.len(), v, committed(v) + delay));
        sessions.push(Session { ended_us: Some(due(201)), reason: Some("eof".into()), ..session(1) });
        let back = committed(210) + 500;
        arrive(sessions.len(), 210, back | SNAPSHOT);
        (211..=LIKES).for_each(|v| arrive(sessions.len(), v, committed(v) + delay));
        sessions.push(Session {
            attempted_us: due(205),
            joined_us: Some(back),
            joined_version: 210,
            resumed_from: Some(200),
            ..session(1)
        });
    }
    let pod = PodCounters {
        admin_url: "http://127.0.0.1:2".into(),
        complete: true,
        conflated: 1,
        deliveries: u64::from(3 * LIKES - 11),
        socket_writes: u64::from(3 * LIKES - 11),
        written_bytes: 120 * u64::from(3 * LIKES - 11),
        ..PodCounters::default()
    };
    let mut run = RunResult { likes, events, arrivals, ..RunResult::default() };
    run.header = Header {
        format: super::FORMAT,
        pushlab: "test".into(),
        config,
        origin_us: 1_700_000_000_000_000,
        warmup_end_us: 500_000,
        measure_end_us: 1_500_000,
        cooldown_end_us: 2_000_000,
        posts: vec![PostId::new(7).unwrap()],
        sessions,
        finals: vec![(u64::from(LIKES), u64::from(LIKES))],
        initial: vec![(0, 0)],
        converged: true,
        pods: vec![pod],
        ..Header::default()
    };
    run.header.generator.kernel_stamps = true;
    run.header.generator.window_s = 1.0;
    run
}

//! A made-up result folder for tests: every sort of cell, claim and chart a report knows.

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Normal};

use super::model::{Results, Run};
use crate::domain::Arm;
use crate::result::summary::{Account, Quantiles, RunSummary, Validity};
use crate::result::{
    Cell, Environment, GeneratorHealth, Marker, Observed, PairRef, ParityRow, PodConnections, PodCounters, ProcessUse,
    RunConfig,
};

/// A full plan on the local stack: Q1 with pairs and a load sweep, Q2 figures, Q4 with a pod added.
pub(super) fn local() -> Results {
    let mut rng = SmallRng::seed_from_u64(7);
    let mut runs = Vec::new();
    for edge in ["direct", "nginx-least-conn"] {
        for pair in 1..=10 {
            pairs(&mut runs, &mut rng, edge, pair);
        }
    }
    runs[5].summary.validity = Validity::Invalid;
    runs[5].summary.reasons.push("schedule lag p99.9 was 1.8 ms (limit 1 ms)".into());
    for (rate, viewers) in [(1.0, 1), (1.0, 1000), (10.0, 1), (10.0, 1000), (100.0, 100), (1000.0, 1), (1000.0, 1000)] {
        for arm in Arm::ALL {
            runs.push(matrix(&mut rng, arm, rate, viewers));
        }
    }
    for (edge, ms) in
        [("buffering-on-1.1", 0.2), ("buffering-off-1.1", 0.2), ("buffering-on-1.0", 2206.0), ("gzip", 2208.0)]
    {
        let mut run = base(&mut rng, "Q2", Arm::SsePost, &[("edge", edge)], 10.0, 1, 400.0);
        run.summary.figures = [("held_ms".into(), ms), ("slow_reader_accepted_mib".into(), ms / 8.0)].into();
        runs.push(run);
    }
    for method in ["round-robin", "least-conn", "random-two-least-conn"] {
        runs.push(balance(&mut rng, method));
    }
    for (index, run) in (0..).zip(&mut runs) {
        let cell = run.summary.cell.as_mut().unwrap();
        cell.index = index;
        cell.id = format!("{}-{index:03}", cell.id);
        run.summary.file = format!("cells/{}.run.gz", cell.id);
    }
    Results {
        environment: environment("local"),
        runs,
        k6: Vec::new(),
        unreadable: vec!["cells/099.run.gz: cut off after 12 kB".into()],
        snapshots: Vec::new(),
    }
}

/// The same runs as if they had come from the embedded stack.
pub(super) fn embedded() -> Results {
    let mut results = local();
    results.environment = environment("embedded");
    results.unreadable.clear();
    results
}

fn environment(stack: &str) -> Environment {
    let fact = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let row = |what: &str, sse: &str, stomp: &str, note: &str| ParityRow {
        what: what.into(),
        sse: sse.into(),
        stomp: stomp.into(),
        equal: sse == stomp,
        note: note.into(),
    };
    Environment {
        stack: stack.into(),
        notes: vec![format!("Stack {stack}: chosen because nats-server, mariadbd and nginx were found.")],
        plan: "full".into(),
        command: format!("pushlab compare --stack {stack} --plan full"),
        started: 1_795_408_200,
        facts: [
            fact("cpu", "AMD EPYC 7R13, 2 cores"),
            fact("kernel", "Linux 6.8.0"),
            fact("mariadbd", "10.11.14"),
            fact("nats-server", "2.12.1"),
            fact("nginx", "1.22.1"),
            fact("pushlab", "0.1.0 (2125bdd)"),
        ]
        .into(),
        parity: vec![
            row("JSON body", "the same bytes", "the same bytes", ""),
            row("TCP_NODELAY", "on", "on", ""),
            row("heartbeat", "10s", "10s", ""),
            row("framing per event", "31 B", "171 B", "STOMP's headers: 140 B on the wire, +0.2 µs"),
        ],
        calibration: [("raw_write_us".into(), 3.1), ("write_path_likes_per_s".into(), 812.0)].into(),
    }
}

fn base(
    rng: &mut SmallRng,
    question: &str,
    arm: Arm,
    levels: &[(&str, &str)],
    rate: f64,
    viewers: u32,
    p50: f64,
) -> Run {
    let noise = Normal::new(0.0, 0.03).unwrap();
    let p50 = p50 * f64::exp(noise.sample(rng));
    let mut all: BTreeMap<String, String> = levels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    all.insert("arm".into(), arm.name().into());
    all.insert("rate".into(), rate.to_string());
    all.insert("viewers".into(), viewers.to_string());
    let deliveries = rate * f64::from(viewers);
    let likes = (rate * 20.0) as u64;
    let at = |factor: f64| Quantiles {
        likes,
        samples: (deliveries * 20.0) as u64,
        p50: Some(p50 * factor),
        p90: Some(p50 * factor * 1.6),
        p99: (likes >= 100).then_some(p50 * factor * 3.1),
        p999: None,
        max: Some(p50 * factor * 9.0),
        hdr: "HISTFAAAAA==".into(),
    };
    let expected = (deliveries * 35.0) as u64;
    let curve = |q: f64| (q, p50 * (0.4 + 0.9 * (1.0 / (1.0 - q)).ln()));
    let cpu: BTreeMap<String, f64> = [("pod-1", 2.1), ("pod-2", 2.0), ("nginx", 1.2), ("mariadb", 0.7), ("nats", 0.2)]
        .map(|(n, v)| (n.into(), v))
        .into();
    let summary = RunSummary {
        file: String::new(),
        cell: Some(Cell {
            index: 0,
            id: format!("{question}-{}", arm.name()),
            question: question.into(),
            levels: all,
            pairs: Vec::new(),
            primary_metric: "commit_to_arrival.p50".into(),
            offered_over_capacity: Some((deliveries / 40_000.0).max(rate / 812.0)),
            invalid_before: Vec::new(),
        }),
        config: RunConfig {
            arm,
            rate,
            viewers,
            measure_s: 20.0,
            warmup_s: 10.0,
            cooldown_s: 5.0,
            ..RunConfig::default()
        },
        likes_due: likes,
        likes_ok: likes,
        accepted_rate: rate,
        due_to_arrival: at(1.9),
        commit_to_arrival: at(1.0),
        commit_to_last: at(1.5),
        due_to_answer: at(1.4),
        deliveries_per_s: deliveries,
        events_per_write: Some(1.0),
        bytes_per_delivery: Some(if arm == Arm::SsePost { 131.0 } else { 268.0 }),
        staleness_us: Some([p50 * 2.0, p50 * 9.0]),
        delivered_share: 1.0,
        cpu_us_per_delivery: Some(cpu.values().sum()),
        cpu_us_by_process: cpu,
        account: Account {
            expected,
            received: expected,
            counters_agree: Some(true),
            live_viewers: u64::from(viewers),
            on_final: u64::from(viewers),
            ok: (rate * 35.0) as u64,
            version_delta: (rate * 35.0) as u64,
            ..Account::default()
        },
        curve: [0.0, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999].map(curve).into(),
        timeline: (0..35)
            .map(|s| (f64::from(s), p50 * rng.random_range(0.9..1.1), p50 * rng.random_range(2.0..4.0)))
            .collect(),
        ..RunSummary::default()
    };
    let series = |name: &str, sum: f64| {
        [(format!("pushlab_{name}_sum"), sum * 1e-6 * 700.0), (format!("pushlab_{name}_count"), 700.0)]
    };
    let stages = [("lock_wait_seconds", 40.0), ("transaction_seconds", 310.0), ("publish_seconds", 22.0)];
    let delivery = format!("delivery_latency_seconds_sum{{transport=\"{}\"}}", arm.transport().label());
    let mut other: BTreeMap<String, f64> = stages.into_iter().flat_map(|(name, us)| series(name, us)).collect();
    other.insert(format!("pushlab_{delivery}"), p50 * 0.8 * 1e-6 * 700.0);
    other.insert(format!("pushlab_{}", delivery.replace("_sum", "_count")), 700.0);
    Run {
        summary,
        phases_s: [10.0, 30.0, 35.0],
        generator: GeneratorHealth {
            schedule_lag_us: [12.0, 61.0, 240.0],
            stamp_to_read_us: [9.0, 22.0, 80.0],
            cpu_s: 6.2,
            window_s: 20.0,
            cores: 1.0,
            kernel_stamps: true,
            viewer_connections: viewers,
            liker_connections: 1000,
            fds: viewers + 1010,
            ..GeneratorHealth::default()
        },
        pods: vec![PodCounters {
            admin_url: "http://127.0.0.1:41235".into(),
            complete: true,
            other,
            ..PodCounters::default()
        }],
        observed: Some(Observed {
            processes: vec![ProcessUse {
                name: "pod-1".into(),
                user_s: 1.2,
                system_s: 2.0,
                rss_bytes: 31 << 20,
                fds: 530,
            }],
            ..Observed::default()
        }),
    }
}

/// One ABBA pair per claim at one edge: SSE 8 % quicker than STOMP, SEND equal to POST, and an A/A pair.
fn pairs(runs: &mut Vec<Run>, rng: &mut SmallRng, edge: &str, number: u32) {
    let claims = [
        ("arm: sse-post / stomp-post", Arm::SsePost, 460.0, Arm::StompPost, 500.0),
        ("arm: stomp-post / stomp-send", Arm::StompPost, 500.0, Arm::StompSend, 500.0),
        ("A/A arm: sse-post / sse-post", Arm::SsePost, 460.0, Arm::SsePost, 460.0),
    ];
    for (claim, a, a_us, b, b_us) in claims {
        for (side, arm, us) in [('a', a, a_us), ('b', b, b_us)] {
            let mut run = base(rng, "Q1", arm, &[("edge", edge)], 10.0, 100, us);
            let claim = format!("{claim} @ edge={edge}, posts=1, rate=10, viewers=100");
            run.summary.cell.as_mut().unwrap().pairs.push(PairRef { claim, number, side });
            runs.push(run);
        }
    }
}

fn matrix(rng: &mut SmallRng, arm: Arm, rate: f64, viewers: u32) -> Run {
    let deliveries = rate * f64::from(viewers);
    let mut run = base(rng, "Q1", arm, &[("edge", "nginx-round-robin")], rate, viewers, 380.0 + deliveries / 60.0);
    let s = &mut run.summary;
    if deliveries > 100_000.0 {
        s.validity = Validity::Saturated;
        s.reasons.push("1,000,000 deliveries/s were offered, about 45,000 are possible here".into());
        s.deliveries_per_s = 44_000.0;
        (s.delivered_share, s.conflated_share) = (0.044, 0.956);
        s.events_per_write = Some(3.4);
        s.account.received = s.account.expected / 22;
        s.account.conflated = s.account.expected - s.account.received;
        s.account.missing = s.account.conflated;
        s.account.pods_missing = s.account.conflated;
    } else if rate > 900.0 {
        s.validity = Validity::WriteBound;
        s.accepted_rate = 807.0;
        s.reasons.push("1000 likes/s were offered, the write path took 807".into());
    }
    run
}

fn balance(rng: &mut SmallRng, method: &str) -> Run {
    let mut run = base(rng, "Q4", Arm::SsePost, &[("edge", method)], 10.0, 300, 450.0);
    run.summary.figures = [
        ("max_over_mean_before".into(), if method == "round-robin" { 1.31 } else { 1.04 }),
        ("max_over_mean_after".into(), if method == "round-robin" { 1.92 } else { 1.12 }),
        ("newcomer_share_10s".into(), if method == "round-robin" { 0.33 } else { 0.97 }),
        ("balanced_after_s".into(), if method == "round-robin" { 141.0 } else { 22.0 }),
    ]
    .into();
    let observed = run.observed.as_mut().unwrap();
    observed.markers = vec![Marker { at_us: 15_000_000, label: "pod-3 added".into(), recovery: false }];
    let pod = |name: &str, of: &dyn Fn(u64) -> u32| PodConnections {
        pod: name.into(),
        samples: (0..35).map(|s| (s * 1_000_000, of(s))).collect(),
    };
    observed.connections = vec![
        pod("pod-1", &|s| if s < 15 { 152 } else { 152 - ((s - 15) * 2) as u32 }),
        pod("pod-2", &|s| if s < 15 { 148 } else { 148 - ((s - 15) * 2) as u32 }),
        pod("pod-3", &|s| if s < 15 { 0 } else { ((s - 15) * 4) as u32 }),
    ];
    run
}

//! The engine over real sockets, with a protocol of lines.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::{Poll, Waker};

use super::{Adopted, Engine, Inbox, WAKER};
use crate::domain::{Epoch, LikesChanged, LikesState, PostId, Transport, Update, Version, unix_micros};
use crate::hub::{Change, CloseReason, ConnKey, EngineOptions, Flow, Hub, Protocol, Subscription};

/// `tag:version\n` per update; input lines are orders.
#[derive(Debug)]
struct Lines {
    orders: Option<std::sync::mpsc::Sender<(ConnKey, String)>>,
}

#[derive(Debug)]
enum Answer {
    Say(Vec<u8>),
    Do(Vec<Change<Lines>>),
}

impl Protocol for Lines {
    type Format = u8;
    type Reply = Answer;
    type Guard = Arc<()>;

    fn encode(update: &Update, tag: &u8) -> Bytes {
        format!("{tag}:{}\n", update.version()).into()
    }

    fn feed(&mut self, key: ConnKey, input: &[u8], out: &mut Vec<u8>) -> Flow {
        let text = String::from_utf8_lossy(input).into_owned();
        if let Some(orders) = &self.orders {
            let _ = orders.send((key, text.clone()));
        }
        match text.trim_end() {
            "pause" => Flow::Pause,
            "bye" => {
                out.extend_from_slice(b"bye\n");
                Flow::Close(CloseReason::Peer)
            }
            "panic" => panic!("as ordered by the test"),
            _ => Flow::Continue,
        }
    }

    fn reply(&mut self, _: ConnKey, reply: Answer, out: &mut Vec<u8>) -> (Flow, Vec<Change<Self>>) {
        match reply {
            Answer::Say(bytes) => {
                out.extend_from_slice(&bytes);
                (Flow::Continue, vec![])
            }
            Answer::Do(changes) => (Flow::Continue, changes),
        }
    }

    fn sweep(&mut self, now: Instant, _: Instant, last_write: Instant, out: &mut Vec<u8>) -> Flow {
        if now.duration_since(last_write) > Duration::from_secs(1) {
            out.extend_from_slice(b"beat\n");
        }
        Flow::Continue
    }

    fn end(&mut self, why: CloseReason, out: &mut Vec<u8>) {
        out.extend_from_slice(why.label().as_bytes());
        out.push(b'\n');
    }

    fn transport(&self) -> Transport {
        Transport::Sse
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

fn post(id: u64) -> PostId {
    PostId::new(id).unwrap()
}

fn changed(id: u64, prev: u64, version: u64) -> Update {
    let (version, prev) = (Version(version), Version(prev));
    Update::Changed(LikesChanged { post_id: post(id), likes: 0, version, prev, committed_at: 0 })
}

fn viewer(id: u64, slot: u32, tag: u8, cursor: u64) -> Subscription<Lines> {
    let first = format!("snapshot:{cursor}\n").into();
    let (epoch, cursor) = (Epoch(0), Version(cursor));
    Subscription { post: post(id), slot, epoch, format: tag, cursor, first, alone: false, guard: Arc::new(()) }
}

/// A connected pair: ours for the engine, the viewer's with a receive buffer of `window` bytes (0: the default).
fn pair(window: usize) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    if window > 0 {
        socket.set_recv_buffer_size(window).unwrap();
    }
    socket.connect(&listener.local_addr().unwrap().into()).unwrap();
    let theirs: TcpStream = socket.into();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    (listener.accept().unwrap().0, theirs)
}

fn join(hub: &Hub<Lines>, window: usize, subscriptions: Vec<Subscription<Lines>>) -> BufReader<TcpStream> {
    let (ours, theirs) = pair(window);
    hub.pick().take_over(ours, Lines { orders: None }, Bytes::new(), subscriptions, Bytes::from_static(b"hello\n"));
    BufReader::new(theirs)
}

fn line(reader: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// Reads until the line says `version`; all versions seen, which must ascend.
fn versions_until(reader: &mut BufReader<TcpStream>, version: u64) -> Vec<u64> {
    let mut seen: Vec<u64> = vec![];
    while seen.last() != Some(&version) {
        let line = line(reader);
        assert!(!line.is_empty(), "closed after {:?}", seen.last());
        let Some((tag, number)) = line.split_once(':') else { continue };
        if tag != "snapshot" {
            let number = number.parse().unwrap();
            assert!(seen.last().is_none_or(|last| *last < number), "{number} after {:?}", seen.last());
            seen.push(number);
        }
    }
    seen
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn closed(hub: &Hub<Lines>, reason: CloseReason) -> u64 {
    hub.counters().of(Transport::Sse).closed[reason as usize]
}

fn hub(options: &EngineOptions) -> Hub<Lines> {
    Hub::start(1, options).unwrap()
}

#[test]
fn viewers_get_the_snapshot_then_every_change_in_order() {
    let hub = Hub::start(2, &EngineOptions::default()).unwrap();
    let mut readers: Vec<_> = (0..20).map(|i| join(&hub, 0, vec![viewer(1, 0, i % 3, 5)])).collect();
    for reader in &mut readers {
        assert_eq!((line(reader), line(reader)), ("hello".into(), "snapshot:5".into()));
    }
    for version in 6..=40 {
        hub.publish(changed(1, version - 1, version), 0);
        for (i, reader) in readers.iter_mut().enumerate() {
            assert_eq!(line(reader), format!("{}:{version}", i % 3));
        }
    }
    eventually("counts", || hub.counters().of(Transport::Sse).deliveries == 20 * 35);
    let counters = *hub.counters().of(Transport::Sse);
    assert_eq!((counters.accepted, counters.conflated, counters.superseded), (20, 0, 0));
    assert_eq!(counters.latency_counts.iter().sum::<u64>(), counters.deliveries);
    assert_eq!(hub.connections(Transport::Sse), 20);
    drop(readers);
    eventually("closed", || hub.connections(Transport::Sse) == 0);
    assert_eq!(closed(&hub, CloseReason::Peer), 20);
}

#[test]
fn a_change_published_before_its_viewer_arrives_is_not_lost() {
    let hub = hub(&EngineOptions::default());
    hub.publish(changed(1, 5, 6), 0);
    let mut reader = join(&hub, 0, vec![viewer(1, 0, 7, 5)]);
    assert_eq!(versions_until(&mut reader, 6), [6]);
    hub.publish(changed(2, 5, 6), 0);
    hub.forget(post(2));
    let mut reader = join(&hub, 0, vec![viewer(2, 0, 7, 5)]);
    hub.publish(changed(2, 6, 7), 1);
    assert_eq!(versions_until(&mut reader, 7), [7]);
}

#[test]
fn a_stalled_reader_is_bounded_holds_nobody_up_and_ends_on_the_newest() {
    let hub = hub(&EngineOptions::default());
    let mut stalled = join(&hub, 4096, vec![viewer(1, 0, 1, 0)]);
    let mut quick = join(&hub, 0, vec![viewer(1, 0, 1, 0)]);
    const LAST: u64 = 30_000;
    for version in 1..=LAST {
        hub.publish(changed(1, version - 1, version), 0);
        if version % 100 == 0 {
            versions_until(&mut quick, version);
        }
    }
    let seen = versions_until(&mut stalled, LAST);
    assert!(seen.len() < 4_000, "{} stale events were buffered", seen.len());
    eventually("counts", || {
        let c = *hub.counters().of(Transport::Sse);
        c.deliveries + c.conflated == 2 * LAST
    });
    assert_eq!(hub.counters().of(Transport::Sse).superseded, 0);
}

#[test]
fn versions_not_sent_are_accounted_exactly() {
    let hub = hub(&EngineOptions::default());
    let mut reader = join(&hub, 0, vec![viewer(1, 0, 1, 10)]);
    // 11 and 12 arrive after 13: superseded. 14 to 16 share a commit. The snapshot 20 counts nothing, nor does 21 after it.
    hub.publish(changed(1, 12, 13), 2);
    versions_until(&mut reader, 13);
    hub.publish(changed(1, 13, 16), 0);
    versions_until(&mut reader, 16);
    hub.publish(Update::Snapshot(LikesState { post_id: post(1), likes: 1, version: Version(20) }), 0);
    versions_until(&mut reader, 20);
    hub.publish(changed(1, 18, 21), 0);
    versions_until(&mut reader, 21);
    // An old one is nobody's.
    hub.publish(changed(1, 10, 11), 0);
    hub.publish(changed(1, 21, 22), 0);
    assert_eq!(versions_until(&mut reader, 22), [22]);
    eventually("counts", || hub.counters().of(Transport::Sse).deliveries == 5);
    let counters = *hub.counters().of(Transport::Sse);
    assert_eq!((counters.superseded, counters.conflated), (2, 0));
    // A viewer who comes with an old cursor: what it skips was skipped before it came.
    let mut late = join(&hub, 0, vec![viewer(1, 0, 1, 10)]);
    assert_eq!(versions_until(&mut late, 22), [22]);
    eventually("conflated", || hub.counters().of(Transport::Sse).conflated == 11);
}

#[test]
fn closing_in_mid_round_leaves_nobody_behind() {
    let hub = hub(&EngineOptions { slice: 1, ..EngineOptions::default() });
    let mut readers: Vec<_> = (0..60).map(|_| join(&hub, 0, vec![viewer(1, 0, 1, 0)])).collect();
    for version in 1..=45u64 {
        hub.publish(changed(1, version - 1, version), 0);
        // Somebody leaves from varying places while the round goes on one viewer at a time.
        readers.swap_remove((version as usize * 7919) % readers.len());
        for reader in &mut readers {
            versions_until(reader, version);
        }
    }
    eventually("the rest", || hub.connections(Transport::Sse) == 15);
}

/// The same without a thread: whoever leaves after however many steps of a round, everyone else is served by its end.
#[test]
fn a_round_serves_everyone_wherever_somebody_leaves_or_comes() {
    const VIEWERS: u32 = 7;
    let cases = (0..=VIEWERS).flat_map(|steps| (0..VIEWERS).map(move |victim| (steps, victim)));
    // Each round begins at another viewer, so the rounds before decide where this one does.
    for ((steps, victim), before) in cases.flat_map(|case| (0..5).map(move |before| (case, before))) {
        let poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), WAKER).unwrap();
        let options = EngineOptions { slice: 1, ..EngineOptions::default() };
        let mut engine = Engine::<Lines>::new(poll, Arc::new(Inbox::new(0, waker)), options);
        let mut peers = vec![];
        let mut add = |engine: &mut Engine<Lines>| {
            let (ours, theirs) = pair(0);
            peers.push(theirs);
            let subscriptions = vec![viewer(1, 0, 1, 0)];
            let (protocol, none) = (Lines { orders: None }, Bytes::new());
            let socket = crate::hub::handle::Socket::Tcp(ours);
            engine.add(Adopted { socket, protocol, unread: none.clone(), subscriptions, first: none });
        };
        (0..VIEWERS).for_each(|_| add(&mut engine));
        for version in 1..=before {
            engine.publish(changed(1, version - 1, version), 0, unix_micros());
            while engine.run_slice() {}
        }
        let earlier = engine.counters.of(Transport::Sse).deliveries;
        engine.publish(changed(1, before, before + 1), 0, unix_micros());
        for _ in 0..steps {
            engine.run_slice();
        }
        engine.doom(victim, CloseReason::Peer);
        engine.reap();
        add(&mut engine);
        while engine.run_slice() {}
        let counters = *engine.counters.of(Transport::Sse);
        // The one who left may have been served before; the one who came asked from version 0, so skipped the rounds before.
        let served = counters.deliveries - earlier;
        assert!((VIEWERS.into()..=u64::from(VIEWERS) + 1).contains(&served), "{served}: {steps}, {victim}, {before}");
        assert_eq!(counters.conflated, before);
        engine.publish(changed(1, before + 1, before + 2), 0, unix_micros());
        while engine.run_slice() {}
        let after = engine.counters.of(Transport::Sse);
        assert_eq!(after.deliveries - counters.deliveries, u64::from(VIEWERS));
        assert_eq!(after.conflated, before, "somebody missed the round: {steps}, {victim}, {before}");
    }
}

#[test]
fn subscriptions_come_and_go_and_drop_their_guards() {
    let hub = hub(&EngineOptions::default());
    let (orders, heard) = std::sync::mpsc::channel();
    let (ours, theirs) = pair(0);
    let mut theirs = BufReader::new(theirs);
    let guard = Arc::new(());
    let mut first = viewer(1, 0, 1, 0);
    first.guard = Arc::clone(&guard);
    let lines = Lines { orders: Some(orders) };
    hub.pick().take_over(ours, lines, Bytes::from_static(b"left over"), vec![first], Bytes::new());
    let (key, input) = heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(input, "left over");
    let more = vec![
        Change::Subscribe(viewer(2, 1, 2, 0)),
        Change::Subscribe(viewer(1, 2, 3, 0)),
        Change::Subscribe(viewer(3, 3, 4, 0)),
        Change::Unsubscribe { slot: 3 },
    ];
    hub.reply(key, Answer::Do(more));
    (0..4).for_each(|_| assert_eq!(line(&mut theirs), "snapshot:0"));
    hub.publish(changed(1, 0, 1), 0);
    assert_eq!([line(&mut theirs), line(&mut theirs)].map(|l| l.len()), [3, 3]);
    hub.reply(key, Answer::Do(vec![Change::Unsubscribe { slot: 0 }, Change::Unsubscribe { slot: 9 }]));
    eventually("the guard is dropped", || Arc::strong_count(&guard) == 1);
    hub.publish(changed(3, 0, 1), 0);
    hub.publish(changed(1, 1, 2), 0);
    assert_eq!(line(&mut theirs), "3:2");
    hub.publish(changed(2, 0, 1), 0);
    assert_eq!(line(&mut theirs), "2:1");
    // Nobody answers to a key of another generation.
    hub.reply(ConnKey { generation: key.generation + 1, ..key }, Answer::Say(b"wrong\n".to_vec()));
    hub.reply(key, Answer::Say(b"right\n".to_vec()));
    assert_eq!(line(&mut theirs), "right");
}

#[test]
fn a_pause_leaves_input_in_the_socket_until_the_reply() {
    let hub = hub(&EngineOptions::default());
    let (orders, heard) = std::sync::mpsc::channel();
    let (ours, mut theirs) = pair(0);
    hub.pick().take_over(ours, Lines { orders: Some(orders) }, Bytes::new(), vec![viewer(1, 0, 1, 0)], Bytes::new());
    theirs.write_all(b"pause").unwrap();
    let (key, _) = heard.recv_timeout(PATIENCE).unwrap();
    theirs.write_all(b"later").unwrap();
    // Updates flow meanwhile; a sweep passes and does not resume it.
    let mut reader = BufReader::new(theirs.try_clone().unwrap());
    hub.publish(changed(1, 0, 1), 0);
    versions_until(&mut reader, 1);
    while line(&mut reader) != "beat" {}
    assert!(heard.try_recv().is_err());
    hub.reply(key, Answer::Say(vec![]));
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap().1, "later");
    theirs.write_all(b"bye").unwrap();
    assert_eq!(line(&mut reader), "bye");
    assert_eq!(line(&mut reader), "", "our end comes after the last words");
    drop((reader, theirs));
    eventually("closed", || closed(&hub, CloseReason::Peer) == 1);
}

#[test]
fn a_drain_says_the_last_words_to_everyone_spread_over_its_time() {
    let hub = hub(&EngineOptions::default());
    let mut readers: Vec<_> = (0..50).map(|_| join(&hub, 0, vec![viewer(1, 0, 1, 0)])).collect();
    eventually("accepted", || hub.counters().of(Transport::Sse).accepted == 50);
    let start = Instant::now();
    hub.drain(Duration::from_millis(800));
    let mut ends = vec![];
    for reader in &mut readers {
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(rest.ends_with("drain\n"), "{rest:?}");
        ends.push(start.elapsed());
    }
    assert!(ends[49] - ends[0] > Duration::from_millis(400), "all at once: {:?} … {:?}", ends[0], ends[49]);
    drop(readers);
    eventually("closed", || closed(&hub, CloseReason::Drain) == 50 && hub.connections(Transport::Sse) == 0);
}

#[test]
fn a_reader_stalled_for_the_write_time_out_is_closed() {
    let hub = hub(&EngineOptions { write_timeout: Duration::from_millis(300), ..EngineOptions::default() });
    let _stalled = join(&hub, 4096, vec![viewer(1, 0, 1, 0)]);
    let mut version = 0;
    eventually("closed", || {
        (0..500).for_each(|_| {
            version += 1;
            hub.publish(changed(1, version - 1, version), 0);
        });
        closed(&hub, CloseReason::WriteTimeout) == 1
    });
}

#[test]
fn answers_that_nobody_reads_end_the_connection() {
    let hub = hub(&EngineOptions::default());
    let (orders, heard) = std::sync::mpsc::channel();
    let (ours, mut theirs) = pair(4096);
    hub.pick().take_over(ours, Lines { orders: Some(orders) }, Bytes::new(), vec![], Bytes::new());
    theirs.write_all(b"hi").unwrap();
    let (key, _) = heard.recv_timeout(PATIENCE).unwrap();
    eventually("closed", || {
        hub.reply(key, Answer::Say(vec![b'x'; 64 * 1024]));
        closed(&hub, CloseReason::SlowConsumer) == 1
    });
}

#[test]
fn a_flush_window_sends_only_the_newest_of_its_time() {
    let hub = hub(&EngineOptions { flush: Duration::from_millis(50), ..EngineOptions::default() });
    let mut reader = join(&hub, 0, vec![viewer(1, 0, 1, 0)]);
    assert_eq!(line(&mut reader), "hello");
    (1..=100).for_each(|version| hub.publish(changed(1, version - 1, version), 0));
    let seen = versions_until(&mut reader, 100);
    assert!(seen.len() <= 3, "{seen:?}");
    eventually("counts", || hub.counters().of(Transport::Sse).conflated == 100 - seen.len() as u64);
}

#[test]
fn a_thousand_visits_leave_nothing_behind() {
    let hub = hub(&EngineOptions::default());
    let guard = Arc::new(());
    for round in 0..100 {
        let readers: Vec<_> = (0..10)
            .map(|i| {
                let mut subscription = viewer(1, 0, i, round);
                subscription.guard = Arc::clone(&guard);
                join(&hub, 0, vec![subscription])
            })
            .collect();
        hub.publish(changed(1, round, round + 1), 0);
        drop(readers);
    }
    eventually("closed", || hub.counters().of(Transport::Sse).closed_total() == 1000);
    assert_eq!(hub.connections(Transport::Sse), 0);
    eventually("guards", || Arc::strong_count(&guard) == 1);
}

#[test]
fn stop_ends_the_thread_and_a_panic_is_seen() {
    let hub = hub(&EngineOptions::default());
    let mut reader = join(&hub, 0, vec![viewer(1, 0, 1, 0)]);
    hub.stop();
    assert!(!hub.is_alive());
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(hub.connections(Transport::Sse), 0);

    let hub = self::hub(&EngineOptions::default());
    let mut reader = join(&hub, 0, vec![]);
    reader.get_mut().write_all(b"panic").unwrap();
    eventually("dead", || !hub.is_alive());
}

mod mailbox;

//! What is due when, over made-up time.

use super::*;

const POST: PostId = PostId::new(1).unwrap();

fn state(version: u64) -> LikesState {
    LikesState { post_id: POST, likes: version, version: Version(version) }
}

fn event(version: u64) -> LikesChanged {
    let (version, prev) = (Version(version), Version(version - 1));
    LikesChanged { post_id: POST, likes: version.0, version, prev, committed_at: 0 }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A post with one viewer, live at version 10, its first re-read done.
fn live(options: &WatchOptions) -> (Posts, Generation, Instant) {
    let (mut posts, now) = (Posts::new(Epoch(1)), Instant::now());
    let (_, done) = watch::channel(None);
    let generation = posts.begin(POST, done);
    posts.live(state(10), generation, now, options);
    let now = now + options.settle;
    assert_eq!(posts.take_due(now, 9, options).read, [(POST, Why::Reread)]);
    (posts, generation, now)
}

fn off() -> WatchOptions {
    WatchOptions { anti_entropy: false, ..WatchOptions::default() }
}

#[test]
fn an_event_that_came_before_the_snapshot_is_not_lost() {
    let (mut posts, now) = (Posts::new(Epoch(1)), Instant::now());
    let (_, done) = watch::channel(None);
    let generation = posts.begin(POST, done);
    assert!(matches!(posts.enter(POST), Some((_, Entered::Wait(_)))));
    for version in [12, 11] {
        assert!(posts.event(&event(version), now, &off()).is_none());
    }
    posts.live(state(10), generation, now, &off());
    assert_eq!(posts.start(POST, generation, None, false).map(|start| start.state), Some(state(12)));
    assert!(matches!(posts.enter(POST), Some((_, Entered::Known))));
}

#[test]
fn a_gap_is_read_only_if_it_stays_open_and_once_a_second() {
    let options = off();
    let (mut posts, _, now) = live(&options);
    posts.event(&event(12), now, &options);
    posts.event(&event(11), now + ms(50), &options);
    assert_eq!(posts.take_due(now + ms(100), 9, &options), Due::default(), "closed in time");

    let now = now + ms(200);
    posts.event(&event(14), now, &options);
    posts.event(&event(16), now + ms(1), &options);
    assert_eq!(posts.take_due(now + ms(99), 9, &options), Due::default());
    assert_eq!(posts.take_due(now + ms(100), 9, &options).read, [(POST, Why::Gap)]);
    assert!(!posts.read(state(16)), "no news, but it closes the gaps");
    posts.event(&event(18), now + ms(101), &options);
    assert_eq!(posts.take_due(now + ms(1_099), 9, &options), Due::default());
    assert_eq!(posts.take_due(now + ms(1_100), 9, &options).read, [(POST, Why::Gap)]);
    posts.put_off(&[(POST, Why::Gap)], now + ms(1_100), ms(1_000));
    assert_eq!(posts.take_due(now + ms(2_700), 9, &options).read, [(POST, Why::Gap)]);
}

#[test]
fn only_quiet_posts_are_read_again() {
    let options = WatchOptions::default();
    let (mut posts, _, mut now) = live(&options);
    for version in 11..40 {
        now += ms(2_000);
        posts.event(&event(version), now, &options);
        assert_eq!(posts.take_due(now, 9, &options), Due::default());
    }
    let mut reads = 0;
    for _ in 0..1_000 {
        now += ms(50);
        reads += posts.take_due(now, 9, &options).read.len();
    }
    assert!((7..=19).contains(&reads), "{reads} reads in 50 s");
}

#[test]
fn a_quick_return_keeps_the_post_watched() {
    let options = off();
    let (mut posts, generation, now) = live(&options);
    assert!(posts.leave(POST, generation, now, &options));
    assert!(posts.enter(POST).is_some());
    assert_eq!(posts.take_due(now + ms(60_000), 9, &options), Due::default());
    posts.leave(POST, generation, now, &options);
    posts.leave(POST, generation + 1, now, &options);
    assert_eq!(posts.take_due(now + options.linger, 9, &options).left, [POST]);
    assert_eq!(posts.len(), 0);
    assert!(!posts.leave(POST, generation, now, &options), "a guard of an entry that is gone");
}

fn had(epoch: u32, version: u64) -> Option<Position> {
    Some(Position { epoch: Epoch(epoch), version: Version(version) })
}

#[test]
fn who_comes_back_gets_what_it_lacks_or_the_state() {
    let options = WatchOptions { replay_depth: 3, ..off() };
    let (mut posts, generation, now) = live(&options);
    for version in 11..=14 {
        posts.event(&event(version), now, &options);
    }
    let start = |posts: &Posts, had| {
        let start = posts.start(POST, generation, had, true).unwrap();
        (start.resumed, start.missed.iter().map(|event| event.version.0).collect::<Vec<_>>())
    };
    assert_eq!(start(&posts, None), (Resumed::Fresh, vec![]));
    assert_eq!(start(&posts, had(1, 11)), (Resumed::Replayed, vec![12, 13, 14]));
    assert_eq!(start(&posts, had(1, 10)), (Resumed::Behind, vec![]));
    assert_eq!(start(&posts, had(1, 14)), (Resumed::Current, vec![]));
    assert_eq!(start(&posts, had(1, 15)), (Resumed::Ahead, vec![]));
    assert_eq!(start(&posts, had(2, 13)), (Resumed::OtherEpoch, vec![]));
    assert_eq!(posts.start(POST, generation, had(1, 11), false).unwrap().resumed, Resumed::Behind);
    posts.read(state(15));
    assert_eq!((start(&posts, had(1, 13)), posts.kept()), ((Resumed::Behind, vec![]), 0));

    // Kept for longer than a post is without rings, so that a reconnect finds them.
    posts.event(&event(16), now, &options);
    posts.leave(POST, generation, now, &options);
    assert_eq!(posts.take_due(now + options.linger, 9, &options), Due::default());
    assert_eq!(posts.take_due(now + options.replay_keep, 9, &options).left, [POST]);
    assert_eq!((posts.kept(), posts.idle), (0, 0));
}

#[test]
fn all_rings_together_stay_below_their_bound() {
    let options = WatchOptions { replay_depth: 8, replay_events: 20, ..off() };
    let (mut posts, now) = (Posts::new(Epoch(1)), Instant::now());
    for post in 1..=10 {
        let post_id = PostId::new(post).unwrap();
        let (_, done) = watch::channel(None);
        let generation = posts.begin(post_id, done);
        posts.live(LikesState { post_id, ..state(0) }, generation, now, &options);
        for version in 1..=20 {
            posts.event(&LikesChanged { post_id, ..event(version) }, now, &options);
            assert!(posts.kept() <= 20, "{}", posts.kept());
        }
    }
}

#[test]
fn a_new_epoch_forgets_everything_and_the_guards_of_before() {
    let options = off();
    let (mut posts, generation, now) = live(&options);
    assert_eq!((posts.renew(Epoch(2)), posts.len(), posts.epoch()), (vec![POST], 0, (Epoch(2), 1)));
    let (_, done) = watch::channel(None);
    let later = posts.begin(POST, done);
    posts.live(state(3), generation, now, &options);
    assert_eq!(posts.start(POST, later, None, false), None, "what was read for an entry that is gone");
    posts.live(state(3), later, now, &options);
    posts.leave(POST, generation, now, &options);
    assert_eq!(posts.idle, 0);
    assert_eq!(posts.start(POST, later, had(1, 2), false).unwrap().resumed, Resumed::OtherEpoch);
}

#[test]
fn a_reconnect_reads_everything_within_the_spread() {
    let options = off();
    let (mut posts, _, now) = live(&options);
    posts.reread_all(now, ms(1_000));
    assert_eq!(posts.take_due(now + ms(1_000), 9, &options).read, [(POST, Why::Reread)]);
    assert!(posts.is_news(&state(11)) && !posts.is_news(&state(10)));
    assert!(posts.read(state(11)) && !posts.read(state(11)));
}

//! A STOMP session over WebSocket: glues the frames and the session, which know no socket, to the engine and to the
//! async side, which does the joins and the likes.
//!
//! Order: what one input asks for is done in its order. A step that changes subscriptions goes through the engine's own
//! list of replies, so the steps behind it wait there with it, and nothing is read meanwhile.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;

use super::super::Role;
use super::super::api;
use super::super::app::App;
use super::super::auth::Identity;
use super::super::conformance::Member;
use super::super::error::ApiError;
use super::super::limits::{self, Lifetime, Seat};
use super::super::rates::Client;
use super::super::relay::Upstream;
use super::super::watch::{Joined, Position, Resumed};
use super::framing::{self, Framing, Got};
use super::{Format, Guard, Wire};
use crate::domain::Update;
use crate::hub::{Change, CloseReason, ConnKey, Flow, Subscription};
use crate::proto::stomp::Version;
use crate::proto::stomp::session::{
    AckMode, Action, End, Like, LikeOp, Options, Outcome, Relayed, Session, Subscribe, Token,
};
use crate::proto::ws::{self, close};
use crate::store::{self, IdempotencyKey, LikeRequest, Who};
use crate::telemetry::Trace;
use crate::telemetry::trace::Carrier;

/// One session.
pub struct Talk {
    app: Arc<App>,
    framing: Framing,
    session: Session,
    opened: Instant,
    lifetime: Lifetime,
    user: Option<Box<str>>,
    /// Whose rate its likes count for.
    client: Client,
    /// The session said so: 16 likes wait.
    paused: bool,
    /// Steps wait in the engine's list of replies.
    deferred: bool,
    /// How many missed events it may still be sent before the next sweep: none are, while its output is stuck.
    replay_room: u16,
    /// With `--fanout relay`: its own connection to the broker.
    upstream: Option<Box<Upstream>>,
    /// Joins under way, those included whose client has left again meanwhile.
    joining: u16,
    /// Some subscription has MESSAGEs of its own making (`ack` other than `auto`).
    acknowledges: bool,
    /// The like under way, so that those left over when the peer vanishes come after it.
    liking: Option<tokio::task::JoinHandle<()>>,
    /// The session gets what others send (conformance mode).
    member: Option<Box<Member>>,
    _seat: Seat,
}

impl std::fmt::Debug for Talk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Talk").field("session", &self.session).finish_non_exhaustive()
    }
}

/// Something to be done for a session, in order.
#[derive(Debug)]
pub(super) enum Step {
    Stomp(Action),
    Frame(Bytes),
    Close(Bytes, CloseReason),
}

/// What the async side (or the session itself, for later) says to a session.
#[derive(Debug)]
#[expect(private_interfaces, reason = "made and taken in this file only")]
pub enum TalkReply {
    /// A join ended.
    Joined(Subscribe, Result<Joined<Guard>, ApiError>),
    /// A token was verified, or was not.
    Authenticated(Option<Identity>),
    /// A like ended.
    Liked {
        /// The session's number for it.
        token: u64,
        /// What became of it.
        outcome: Outcome,
    },
    /// The session's own steps, put off.
    Steps(Vec<Step>),
    /// Another session sent this; the number counts what the pod has relayed (conformance mode).
    Relayed(u64, Arc<Relayed>),
}

impl Talk {
    /// A session whose handshake agreed on at most `newest`. `user`: as named by a trusted header.
    pub(in super::super) fn new(
        app: &Arc<App>,
        newest: Version,
        user: Option<&str>,
        client: Client,
        seat: Seat,
    ) -> Self {
        let stranger =
            ws::Limits { frame: limits::UNAUTHENTICATED, message: limits::UNAUTHENTICATED, ..Default::default() };
        let limits = if app.auth.is_some() { stranger } else { framing::limits(app.config.conformance) };
        let session = Session::new(app.stomp_options()).up_to(newest);
        Self::over(Framing::web_socket(limits), session, app, user, client, seat)
    }

    /// A session over TCP without WebSocket (conformance mode): no handshake has named a host, so 1.2's CONNECT must.
    pub(in super::super) fn raw(app: &Arc<App>, seat: Seat) -> Self {
        let options = Options { require_host: true, ..(*app.stomp_options()).clone() };
        Self::over(Framing::Raw, Session::new(Arc::new(options)), app, None, Client::Others, seat)
    }

    fn over(
        framing: Framing,
        session: Session,
        app: &Arc<App>,
        user: Option<&str>,
        client: Client,
        seat: Seat,
    ) -> Self {
        Self {
            framing,
            session,
            opened: Instant::now(),
            lifetime: app.lifetime(None),
            user: user.map(Into::into),
            client,
            paused: false,
            deferred: false,
            replay_room: limits::REPLAY,
            upstream: None,
            joining: 0,
            acknowledges: false,
            liking: None,
            member: None,
            app: Arc::clone(app),
            _seat: seat,
        }
    }

    pub(super) fn encode_private(&mut self, update: &Update, slot: u32) -> Option<Bytes> {
        if !self.acknowledges {
            return None;
        }
        self.session.message(update, slot).map(|message| self.framing.frame(&message))
    }

    pub(super) fn feed(&mut self, key: ConnKey, mut input: &[u8], out: &mut Vec<u8>) -> Flow {
        let mut steps = Vec::new();
        while let Some(got) = self.framing.next(&mut input) {
            match got {
                Got::Data { data, .. } => steps.extend(self.session.feed(&data).into_iter().map(Step::Stomp)),
                Got::Answer(frame) => steps.push(Step::Frame(frame)),
                Got::Close(frame, reason) => {
                    steps.push(Step::Close(frame, reason));
                    break;
                }
            }
        }
        if self.deferred {
            self.app.hub.reply(key, TalkReply::Steps(steps));
            return Flow::Pause;
        }
        self.run(key, steps, out, None)
    }

    pub(super) fn reply(&mut self, key: ConnKey, reply: TalkReply, out: &mut Vec<u8>) -> (Flow, Vec<Change<Wire>>) {
        let mut changes = Vec::new();
        let ours = match &reply {
            TalkReply::Joined(_, Err(error)) => !error.is_callers(),
            TalkReply::Liked { outcome, .. } => outcome.status >= 500,
            _ => false,
        };
        if matches!(reply, TalkReply::Joined(..)) {
            self.joining = self.joining.saturating_sub(1);
        }
        let actions = match reply {
            TalkReply::Joined(wish, Ok(joined)) if joined.epoch != wish.format.epoch => {
                // The session began before the database's epoch changed: all it says would be marked with the old one.
                self.end(CloseReason::NewEpoch, out);
                drop((wish, joined));
                return (Flow::Close(CloseReason::NewEpoch), changes);
            }
            TalkReply::Joined(wish, Ok(joined)) => self.joined(wish, joined, &mut changes),
            TalkReply::Joined(wish, Err(error)) => self.session.refused(wish.slot, &outcome(&Err(error))),
            TalkReply::Authenticated(identity) => {
                let good = identity.is_some();
                if let Some(identity) = identity {
                    self.lifetime = self.lifetime.until(identity.expires);
                    self.user = Some((*identity.user).into());
                    self.client = Client::User(identity.user);
                    self.framing.set_limits(framing::limits(false));
                }
                self.session.authenticated(good)
            }
            TalkReply::Liked { token, outcome } => {
                self.liking = None;
                self.session.outcome(token, &outcome)
            }
            TalkReply::Steps(steps) => {
                self.deferred = false;
                let flow = self.run(key, steps, out, Some(&mut changes));
                return (flow, changes);
            }
            TalkReply::Relayed(sent, relayed) => {
                self.session.relayed(sent, &relayed).into_iter().map(Action::Send).collect()
            }
        };
        match self.run(key, actions.into_iter().map(Step::Stomp).collect(), out, Some(&mut changes)) {
            Flow::Close(CloseReason::Violation) if ours => (Flow::Close(CloseReason::Refused), changes),
            flow => (flow, changes),
        }
    }

    /// Does the steps. Without `changes` to note them in, those from the first change of subscriptions on are put off.
    fn run(
        &mut self,
        key: ConnKey,
        steps: Vec<Step>,
        out: &mut Vec<u8>,
        mut changes: Option<&mut Vec<Change<Wire>>>,
    ) -> Flow {
        let mut steps = steps.into_iter();
        while let Some(step) = steps.next() {
            let action = match step {
                Step::Stomp(action) => action,
                Step::Frame(bytes) => {
                    out.extend_from_slice(&bytes);
                    continue;
                }
                Step::Close(bytes, reason) => {
                    out.extend_from_slice(&bytes);
                    return Flow::Close(reason);
                }
            };
            match action {
                Action::Send(bytes) => out.extend_from_slice(&self.framing.frame(&bytes)),
                Action::Authenticate(token) => self.authenticate(key, token),
                Action::Subscribe(wish) => self.join(key, wish),
                Action::Unsubscribe { slot, then } => {
                    let Some(changes) = changes.as_deref_mut() else {
                        let rest = std::iter::once(Step::Stomp(Action::Unsubscribe { slot, then })).chain(steps);
                        self.deferred = true;
                        self.app.hub.reply(key, TalkReply::Steps(rest.collect()));
                        return Flow::Pause;
                    };
                    changes.push(Change::Unsubscribe { slot });
                    if let Some(receipt) = then {
                        out.extend_from_slice(&self.framing.frame(&receipt));
                    }
                }
                Action::Like(like) => self.like(key, like),
                Action::Listen => self.member = Some(Box::new(self.app.broadcast.join(key))),
                Action::Relay(relayed) => self.app.broadcast.publish(&self.app.hub, &relayed),
                Action::Pause => self.paused = true,
                Action::Resume => self.paused = false,
                Action::Close(End::Disconnected) => {
                    out.extend_from_slice(&self.framing.close(close::NORMAL, "goodbye"));
                    return Flow::Close(CloseReason::Peer);
                }
                Action::Close(End::Error) => {
                    out.extend_from_slice(&self.framing.close(close::PROTOCOL, "see the ERROR frame"));
                    return Flow::Close(CloseReason::Violation);
                }
            }
        }
        self.flow()
    }

    /// Whether more may be read.
    fn flow(&self) -> Flow {
        let busy = self.paused || self.deferred || usize::from(self.joining) >= limits::SUBSCRIPTIONS;
        if busy { Flow::Pause } else { Flow::Continue }
    }

    fn authenticate(&self, key: ConnKey, token: Option<Token>) {
        let app = Arc::clone(&self.app);
        self.app.runtime.spawn(async move {
            let identity = match &app.auth {
                Some(auth) => auth.user_of(token.as_ref().map(|token| &*token.0)).await,
                None => None,
            };
            app.hub.reply(key, TalkReply::Authenticated(identity));
        });
    }

    fn join(&mut self, key: ConnKey, wish: Subscribe) {
        self.acknowledges |= wish.ack != AckMode::Auto;
        if let Some(relay) = &self.app.relay {
            let upstream = self.upstream.get_or_insert_with(|| Box::new(relay.session(key)));
            self.app.runtime.spawn(upstream.join(wish));
            return;
        }
        self.joining = self.joining.saturating_add(1);
        let app = Arc::clone(&self.app);
        self.app.runtime.spawn(async move {
            let had = wish.last.map(|(epoch, version)| Position { epoch, version });
            let joined = app.join(wish.post, had).await;
            let joined = joined.map(|joined| joined.guarded_by(Guard::Watch));
            app.hub.reply(key, TalkReply::Joined(wish, joined));
        });
    }

    fn joined(&mut self, wish: Subscribe, mut joined: Joined<Guard>, changes: &mut Vec<Change<Wire>>) -> Vec<Action> {
        let Some(actions) = self.session.subscribed(wish.slot) else {
            return Vec::new();
        };
        match usize::from(self.replay_room).checked_sub(joined.missed.len()) {
            Some(left) => self.replay_room = u16::try_from(left).unwrap_or(u16::MAX),
            None => joined.without_replay(),
        }
        self.app.metrics.resumes_total.with_label_values(&["stomp", joined.resumed.label()]).inc();
        let Subscribe { slot, post, format, .. } = wish;
        let format = match self.framing {
            Framing::WebSocket(_) => Format::Stomp(format),
            Framing::Raw => Format::RawStomp(format),
        };
        let mut message = |update| self.encode_private(&update, slot).unwrap_or_else(|| format.encode(&update));
        let first = match joined.resumed {
            Resumed::Replayed => joined.missed.iter().flat_map(|event| message(Update::Changed(*event))).collect(),
            Resumed::Ahead => Bytes::new(),
            _ => message(Update::Snapshot(joined.state)),
        };
        let Joined { epoch, cursor, guard, .. } = joined;
        let alone = matches!(guard, Guard::Relay(_));
        changes.push(Change::Subscribe(Subscription { post, slot, epoch, format, cursor, first, alone, guard }));
        actions
    }

    fn like(&mut self, key: ConnKey, like: Like) {
        let (app, user, token) = (Arc::clone(&self.app), self.user.clone(), like.token);
        let allowed = self.app.rates.check(&self.client);
        let at = self.app.tracer.is_on().then(SystemTime::now);
        self.liking = Some(self.app.runtime.spawn(async move {
            let outcome = match allowed {
                Ok(()) => outcome(&traced(&app, user, like, at).await),
                Err(refused) => outcome(&Err(refused)),
            };
            app.hub.reply(key, TalkReply::Liked { token, outcome });
        }));
    }

    pub(super) fn sweep(&mut self, now: Instant, last_read: Instant, last_write: Instant, out: &mut Vec<u8>) -> Flow {
        if let Some(why) = self.lifetime.over(now) {
            self.end(why, out);
            return Flow::Close(why);
        }
        self.replay_room = limits::REPLAY;
        let since = |then| now.saturating_duration_since(then);
        let was_open = self.session.is_open();
        for action in self.session.tick(since(self.opened), since(last_read), since(last_write)) {
            match action {
                Action::Send(bytes) => out.extend_from_slice(&self.framing.frame(&bytes)),
                Action::Close(_) => {
                    out.extend_from_slice(&self.framing.close(close::POLICY, "silent for too long"));
                    let kind = if was_open { "heartbeat" } else { "connect" };
                    self.app.metrics.timeouts_total.with_label_values(&[kind]).inc();
                    return Flow::Close(CloseReason::ReadTimeout);
                }
                other => tracing::error!(?other, "a tick asks for this"),
            }
        }
        self.flow()
    }

    /// "Come back."
    pub(super) fn end(&mut self, why: CloseReason, out: &mut Vec<u8>) {
        let (code, reason) = match why {
            CloseReason::MailboxFull => (close::TRY_LATER, "too slow: more updates wait than are kept"),
            CloseReason::NewEpoch => (close::RESTART, "the versions begin anew; come back"),
            CloseReason::Expired => (close::POLICY, "the token has expired"),
            CloseReason::MaxAge => (close::RESTART, "the session has reached its age; come back"),
            _ => (close::RESTART, "the pod leaves; come back"),
        };
        out.extend_from_slice(&self.framing.close(code, reason));
    }
}

/// Likes that were received are done, also when the peer vanishes or the pod drains before their turn.
impl Drop for Talk {
    fn drop(&mut self) {
        let pending = self.session.take_pending();
        if pending.is_empty() {
            return;
        }
        let (app, user, liking) = (Arc::clone(&self.app), self.user.clone(), self.liking.take());
        self.app.runtime.spawn(async move {
            if let Some(liking) = liking {
                drop(liking.await);
            }
            for like in pending {
                let at = app.tracer.is_on().then(SystemTime::now);
                drop(traced(&app, user.clone(), like, at).await);
            }
        });
    }
}

/// Does a like, within its span if there is tracing: then `at` says when it came.
async fn traced(
    app: &App,
    user: Option<Box<str>>,
    mut like: Like,
    at: Option<SystemTime>,
) -> Result<api::Answer, ApiError> {
    let Some(at) = at else { return do_like(app, user, like, Trace::none()).await };
    let destination = match like.op {
        LikeOp::Like => "/app/posts.{id}.like",
        LikeOp::Unlike => "/app/posts.{id}.unlike",
    };
    let carrier = like.trace.take().map(|headers| Carrier::new(Some(headers.0), headers.1)).unwrap_or_default();
    let Some(mut asked) = app.tracer.asked(at, || format!("SEND {destination}"), || carrier) else {
        return do_like(app, user, like, Trace::none()).await;
    };
    asked.note("messaging.system", "stomp");
    asked.note("messaging.destination.template", destination);
    let trace = asked.trace();
    let answer = trace.scope(do_like(app, user, like, trace.clone())).await;
    asked.answered(match &answer {
        Ok(answer) => answer.status().as_u16(),
        Err(error) => error.status(),
    });
    answer
}

async fn do_like(app: &App, user: Option<Box<str>>, like: Like, trace: Trace) -> Result<api::Answer, ApiError> {
    api::need(app, Role::Api)?;
    let (op, verb) = match like.op {
        LikeOp::Like => (store::LikeOp::Like, "like"),
        LikeOp::Unlike => (store::LikeOp::Unlike, "unlike"),
    };
    let scope = format!("SEND /app/posts.{}.{verb}", like.post);
    let key = like.key.map(|key| IdempotencyKey::new(&scope, &key, b"")).transpose();
    let key = key.map_err(|error| ApiError::BadRequest(error.to_string()))?;
    let who = user.map_or(Who::Anonymous, |name| Who::User(name.into()));
    let outcome = app.like(LikeRequest { post: like.post, op, who, once: false, key, trace }).await?;
    Ok(api::Answer::from(&outcome))
}

/// As a POST would have been answered.
fn outcome(result: &Result<api::Answer, ApiError>) -> Outcome {
    match result {
        Ok(liked) => Outcome { status: liked.status().as_u16(), body: liked.to_json() },
        Err(error) => {
            let body = serde_json::to_string(&error.problem()).unwrap_or_default();
            Outcome { status: error.status(), body }
        }
    }
}

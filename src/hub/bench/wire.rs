//! The bench's protocol: bytes as `serve` encodes them, no session; it counts visits so that the next update follows the last.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use bytes::Bytes;

use crate::domain::{Epoch, LikesChanged, PostId, Transport, Update, Version, unix_micros};
use crate::hub::{Change, CloseReason, ConnKey, EngineHandle, Flow, Protocol};
use crate::proto::{sse, stomp, ws};
use crate::telemetry::trace::Carrier;
use crate::telemetry::{FanOut, Tracer};

/// The body of the answer to a POST.
pub(super) const POST_ANSWER: &str = r#"{"postId":1,"likes":1,"version":1,"changed":true}"#;

/// The complete wire bytes of an update.
pub(super) fn encode(update: &Update, transport: Transport) -> Bytes {
    let epoch = Epoch(0x0bad_cafe);
    match transport {
        Transport::Sse => {
            let id = sse::single_id(epoch, update.version());
            sse::chunk(sse::encode(update, Some(&id)).as_bytes())
        }
        Transport::Stomp => {
            let version = stomp::Version::V12;
            let format = stomp::frame::Format { epoch, version, subscription: Some("0".into()) };
            ws::server_frame(ws::Opcode::Text, &stomp::frame::message(update, &format))
        }
    }
}

/// One transport's fan-out: publishes the next update when every viewer has been visited with the last.
#[derive(Debug)]
pub(super) struct Pace {
    pub(super) transport: Transport,
    pub(super) engine: OnceLock<EngineHandle<Frames>>,
    pub(super) running: AtomicBool,
    pub(super) viewers: AtomicU32,
    visited: AtomicU32,
    version: AtomicU64,
    /// Begins the traces of the updates.
    pub(super) tracer: RwLock<Tracer>,
}

impl Pace {
    pub(super) fn new(transport: Transport) -> Self {
        Self {
            transport,
            engine: OnceLock::new(),
            running: AtomicBool::new(false),
            viewers: AtomicU32::new(0),
            visited: AtomicU32::new(0),
            version: AtomicU64::new(0),
            tracer: RwLock::default(),
        }
    }

    /// The post of this transport's viewers.
    pub(super) fn post(&self) -> PostId {
        PostId::new(self.transport as u64 + 1).expect("small and positive")
    }

    /// The version published last.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    pub(super) fn update(&self, version: u64) -> Update {
        let (version, prev) = (Version(version), Version(version - 1));
        Update::Changed(LikesChanged {
            post_id: self.post(),
            likes: version.0,
            version,
            prev,
            committed_at: unix_micros(),
        })
    }

    /// The next update.
    pub(super) fn publish(&self) {
        self.visited.store(0, Ordering::Relaxed);
        let version = self.version.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(engine) = self.engine.get() {
            let update = self.update(version);
            engine.publish_traced(update, 0, self.traced(&update));
        }
    }

    /// From now on traces begin here.
    pub(super) fn set_tracer(&self, tracer: &Tracer) {
        *self.tracer.write().unwrap_or_else(PoisonError::into_inner) = tracer.clone();
    }

    /// All that a pod does for traces when it takes a like, publishes it, receives it and fans it out.
    fn traced(&self, update: &Update) -> FanOut {
        let tracer = self.tracer.read().unwrap_or_else(PoisonError::into_inner);
        let Update::Changed(event) = update else { return FanOut::none() };
        let name = || "POST /posts/{id}/likes".to_owned();
        let Some(asked) = tracer.asked(SystemTime::now(), name, Carrier::default) else { return FanOut::none() };
        let trace = asked.trace();
        trace.committed(event.committed_at, 0, 0);
        let publishing = trace.publishing(event);
        let carrier = publishing.trace().carrier().unwrap_or_default();
        publishing.sent();
        asked.answered(200);
        tracer.received(event, Some(event.committed_at), &carrier).fan_out(event)
    }

    fn visit(&self) {
        let visited = self.visited.load(Ordering::Relaxed) + 1;
        self.visited.store(visited, Ordering::Relaxed);
        if visited >= self.viewers.load(Ordering::Relaxed) && self.running.load(Ordering::Relaxed) {
            self.publish();
        }
    }
}

/// One viewer.
#[derive(Debug)]
pub(super) struct Frames(pub(super) Arc<Pace>);

impl Protocol for Frames {
    type Format = Transport;
    type Reply = ();
    type Guard = ();

    fn encode(update: &Update, transport: &Transport) -> Bytes {
        encode(update, *transport)
    }

    fn encode_private(&mut self, _: &Update, _: u32) -> Option<Bytes> {
        self.0.visit();
        None
    }

    fn feed(&mut self, _: ConnKey, _: &[u8], _: &mut Vec<u8>) -> Flow {
        Flow::Continue
    }

    fn reply(&mut self, _: ConnKey, (): (), _: &mut Vec<u8>) -> (Flow, Vec<Change<Self>>) {
        (Flow::Continue, Vec::new())
    }

    fn sweep(&mut self, _: Instant, _: Instant, _: Instant, _: &mut Vec<u8>) -> Flow {
        Flow::Continue
    }

    fn end(&mut self, _: CloseReason, _: &mut Vec<u8>) {}

    fn transport(&self) -> Transport {
        self.0.transport
    }
}

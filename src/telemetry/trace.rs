//! Traces: one like from POST or SEND through lock, commit, publish and the broker to the first write at every pod.
//!
//! What travels with a like is a [`Trace`], eight bytes that are zero unless the like is sampled: then no span is made, no
//! header read or sent, no clock looked at. Spans whose times are known only afterwards are made afterwards.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::Either;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceId, Tracer as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, Span};
use tokio::task::futures::TaskLocalFuture;

use crate::domain::{LikesChanged, unix_micros};

/// Where spans go.
pub mod export;
/// The span of a fan-out.
mod fan_out;

pub use fan_out::FanOut;

/// The header that names a trace and a span of it (W3C Trace Context), over HTTP, STOMP and NATS alike.
pub const TRACEPARENT: &str = "traceparent";
/// The header with what tracing systems add to it.
pub const TRACESTATE: &str = "tracestate";
/// NATS header beside these: when the event was handed to the connection, Unix µs by the sender's clock.
pub const SENT_AT: &str = "pushlab-sent-at";

/// What begins traces, or goes on with a caller's. Cheap to clone; off by default.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<On>>);

struct On {
    tracer: SdkTracer,
    pod: Arc<str>,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tracer").field(&self.is_on()).finish()
    }
}

/// A sampled like on its way: the span that what comes next belongs to. Nothing, and without cost, for all other likes.
#[derive(Clone, Default)]
pub struct Trace(Option<Arc<Point>>);

struct Point {
    on: Arc<On>,
    context: SpanContext,
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trace").field(&self.ids()).finish()
    }
}

impl PartialEq for Trace {
    fn eq(&self, other: &Self) -> bool {
        self.ids() == other.ids()
    }
}

impl Eq for Trace {}

/// The trace headers of a message, from a caller or for a receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Carrier {
    /// `traceparent`.
    pub parent: Option<String>,
    /// `tracestate`, several joined by commas.
    pub state: Option<String>,
}

impl Carrier {
    /// Of an HTTP request. A `traceparent` that comes twice counts as none (W3C Trace Context §3.2.3).
    #[must_use]
    pub fn of(headers: &http::HeaderMap) -> Self {
        let text = |value: &http::HeaderValue| value.to_str().ok().map(str::to_owned);
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let parent = parents.next().and_then(text).filter(|_| parents.next().is_none());
        let states: Vec<String> = headers.get_all(TRACESTATE).iter().filter_map(text).collect();
        Self::new(parent, (!states.is_empty()).then(|| states.join(",")))
    }

    /// Of these headers. A longer `tracestate` than everybody has to pass on (512 characters, §3.3.1.5) is left out.
    #[must_use]
    pub fn new(parent: Option<String>, state: Option<String>) -> Self {
        Self { parent, state: state.filter(|state| state.len() <= 512) }
    }
}

impl Extractor for Carrier {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            TRACEPARENT => self.parent.as_deref(),
            TRACESTATE => self.state.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT, TRACESTATE]
    }
}

impl Injector for Carrier {
    fn set(&mut self, key: &str, value: String) {
        match key {
            TRACEPARENT => self.parent = Some(value),
            TRACESTATE => self.state = Some(value).filter(|state| !state.is_empty()),
            _ => {}
        }
    }
}

impl Tracer {
    /// Begins nothing.
    pub const OFF: Self = Self(None);

    pub(super) fn new(tracer: SdkTracer) -> Self {
        Self(Some(Arc::new(On { tracer, pod: "".into() })))
    }

    /// Samples everything and exports nothing.
    #[cfg(test)]
    pub(super) fn recording() -> Self {
        use opentelemetry::trace::TracerProvider as _;
        Self::new(opentelemetry_sdk::trace::SdkTracerProvider::builder().build().tracer("test")).of_pod("pod-1")
    }

    /// The same, for spans of this pod.
    #[must_use]
    pub fn of_pod(&self, pod: &str) -> Self {
        Self(self.0.as_ref().map(|on| Arc::new(On { tracer: on.tracer.clone(), pod: pod.into() })))
    }

    /// Whether anything may be traced.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The span of a like that was asked for at `at`, in the caller's trace if it has one. The sampler decides; `name` and
    /// `carrier` are asked for only while tracing is on.
    #[must_use]
    pub fn asked(
        &self,
        at: SystemTime,
        name: impl FnOnce() -> String,
        carrier: impl FnOnce() -> Carrier,
    ) -> Option<Box<Asked>> {
        let on = self.0.as_ref()?;
        let caller = propagator().extract_with_context(&Context::new(), &carrier());
        let builder = SpanBuilder::from_name(name()).with_kind(SpanKind::Server).with_start_time(at);
        let mut span = on.tracer.build_with_context(builder, &caller);
        if !span.is_recording() {
            return None;
        }
        span.set_attribute(pod(on));
        Some(Box::new(Asked { trace: Trace::at(on, &span), span }))
    }

    /// The trace of an event that came over the broker, with the span of its way here.
    #[must_use]
    pub fn received(&self, event: &LikesChanged, sent_at: Option<u64>, carrier: &Carrier) -> Trace {
        let now = unix_micros();
        let parent = self.resumed(carrier);
        let mut attributes = about(event);
        attributes.push(KeyValue::new("messaging.operation.type", "receive"));
        // Clocks of two machines: a message that seems to come before it was sent took no time that can be told.
        parent.child("receive likes", SpanKind::Consumer, sent_at.unwrap_or(now).min(now), now, attributes)
    }

    /// A trace that was laid down and is gone on with.
    #[must_use]
    pub fn resumed(&self, carrier: &Carrier) -> Trace {
        let Some(on) = &self.0 else { return Trace::default() };
        let context = propagator().extract_with_context(&Context::new(), carrier);
        let context = context.span().span_context().clone();
        // Nobody sends or keeps headers of a like that is not sampled; whoever does all the same means it.
        Trace(context.is_sampled().then(|| Arc::new(Point { on: on.clone(), context })))
    }
}

impl Trace {
    /// Not traced.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    fn at(on: &Arc<On>, span: &Span) -> Self {
        Self(Some(Arc::new(Point { on: on.clone(), context: span.span_context().clone() })))
    }

    /// Whether the like is traced.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.0.is_some()
    }

    fn ids(&self) -> Option<(TraceId, SpanId)> {
        self.0.as_ref().map(|point| (point.context.trace_id(), point.context.span_id()))
    }

    /// For a message, or a row, that takes the trace along.
    #[must_use]
    pub fn carrier(&self) -> Option<Carrier> {
        let point = self.0.as_ref()?;
        let mut carrier = Carrier::default();
        propagator().inject_context(&Context::new().with_remote_span_context(point.context.clone()), &mut carrier);
        Some(carrier)
    }

    fn begin(&self, name: &'static str, kind: SpanKind, from: u64, attributes: Vec<KeyValue>) -> Option<Span> {
        let point = self.0.as_ref()?;
        let builder = SpanBuilder::from_name(name).with_kind(kind).with_start_time(time(from));
        let parent = Context::new().with_remote_span_context(point.context.clone());
        let mut span = point.on.tracer.build_with_context(builder.with_attributes(attributes), &parent);
        span.set_attribute(pod(&point.on));
        Some(span)
    }

    /// A span that has ended; what comes after it.
    fn child(&self, name: &'static str, kind: SpanKind, from: u64, to: u64, attributes: Vec<KeyValue>) -> Self {
        let (Some(mut span), Some(point)) = (self.begin(name, kind, from, attributes), &self.0) else {
            return Self::none();
        };
        let next = if span.is_recording() { Self::at(&point.on, &span) } else { Self::none() };
        span.end_with_timestamp(time(to.max(from)));
        next
    }

    /// The spans of a like that was committed at `committed_at` (Unix µs): the wait for the post's row (that for a
    /// connection included), then the transaction until COMMIT had returned; both in µs.
    pub fn committed(&self, committed_at: u64, lock_us: u64, commit_us: u64) {
        if self.0.is_none() {
            return;
        }
        let locked_at = committed_at.saturating_sub(commit_us);
        self.child("lock wait", SpanKind::Client, locked_at.saturating_sub(lock_us), locked_at, Vec::new());
        self.child("commit", SpanKind::Client, locked_at, committed_at, Vec::new());
    }

    /// The span of an event's publication, from its commit on.
    #[must_use]
    pub fn publishing(&self, event: &LikesChanged) -> Publishing {
        let Some(point) = &self.0 else { return Publishing(None) };
        let mut attributes = about(event);
        attributes.push(KeyValue::new("messaging.operation.type", "send"));
        let span = self.begin("publish likes", SpanKind::Producer, event.committed_at, attributes);
        let span = span.filter(|span| span.is_recording());
        Publishing(span.map(|span| Box::new((Self::at(&point.on, &span), span))))
    }

    /// The span of an event's way from here to this pod's viewers.
    #[must_use]
    pub fn fan_out(&self, event: &LikesChanged) -> FanOut {
        if self.0.is_none() {
            return FanOut::none();
        }
        let span = self.begin("fan-out", SpanKind::Internal, unix_micros(), about(event));
        span.map_or_else(FanOut::none, FanOut::of)
    }

    /// As [`Trace::scope`], for what does not wait.
    #[cfg(test)]
    pub(super) fn with<T>(&self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self.clone(), work)
    }

    /// Runs a future whose log lines carry the trace.
    pub fn scope<F: Future>(&self, work: F) -> Either<F, TaskLocalFuture<Self, F>> {
        match &self.0 {
            None => Either::Left(work),
            Some(_) => Either::Right(CURRENT.scope(self.clone(), work)),
        }
    }
}

tokio::task_local! {
    /// What the running task is about.
    static CURRENT: Trace;
}

/// Trace and span the running task is about, in the hexadecimal digits that logs have.
#[must_use]
pub fn current() -> Option<(String, String)> {
    let ids = CURRENT.try_with(Trace::ids).ok().flatten()?;
    Some((ids.0.to_string(), ids.1.to_string()))
}

/// A like that was asked for and is not answered yet. Dropped, its span ends without an answer.
pub struct Asked {
    span: Span,
    trace: Trace,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Asked").field(&self.trace).finish()
    }
}

impl Asked {
    /// What the parts belong to.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.trace.clone()
    }

    /// Says something of it.
    pub fn note(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        self.span.set_attribute(KeyValue::new(key, value));
    }

    /// The answer's status, as HTTP has it: the span ends.
    pub fn answered(mut self, status: u16) {
        self.note("http.response.status_code", i64::from(status));
        if status >= 500 {
            self.span.set_status(Status::error(""));
            self.note("error.type", status.to_string());
        }
    }
}

/// An event on its way to the broker. Dropped before it was [`Publishing::sent`], its span ends as an error: a newer event
/// of its post took its place, or there was no room.
#[derive(Default)]
pub struct Publishing(Option<Box<(Trace, Span)>>);

impl fmt::Debug for Publishing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Publishing").field(&self.0.is_some()).finish()
    }
}

impl Publishing {
    /// What comes next.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.0.as_ref().map_or_else(Trace::none, |inner| inner.0.clone())
    }

    /// The broker has it.
    pub fn sent(mut self) {
        if let Some(inner) = self.0.take() {
            let (_, mut span) = *inner;
            span.end();
        }
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        if let Some(inner) = &mut self.0 {
            inner.1.set_status(Status::error("not sent"));
        }
    }
}

fn propagator() -> TraceContextPropagator {
    TraceContextPropagator::new()
}

fn pod(on: &On) -> KeyValue {
    KeyValue::new("pushlab.pod", Arc::clone(&on.pod))
}

fn about(event: &LikesChanged) -> Vec<KeyValue> {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let mut attributes = Vec::with_capacity(5);
    attributes.push(KeyValue::new("messaging.destination.template", "likes.{post}"));
    attributes.push(KeyValue::new("pushlab.post", number(event.post_id.get())));
    attributes.push(KeyValue::new("pushlab.version", number(event.version.0)));
    attributes
}

/// Of Unix µs.
fn time(micros: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros)
}

#[cfg(test)]
mod tests;

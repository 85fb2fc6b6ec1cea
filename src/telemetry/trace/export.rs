//! Spans leave in batches by OTLP, as the `OTEL_*` variables say; without an endpoint there is no tracing.
//!
//! Bounds: a queue of `OTEL_BSP_MAX_QUEUE_SIZE` spans (2,048); what finds no room is dropped and counted. One thread of its
//! own exports, so that a collector that is slow, silent or gone keeps nobody else waiting.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, InstrumentationScope, Key, KeyValue};
use opentelemetry_otlp::{Protocol, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor,
};

use super::Tracer;
use crate::domain::unix_micros;

/// Spans in the queue unless `OTEL_BSP_MAX_QUEUE_SIZE` says otherwise: the specification's default.
const QUEUE: u64 = 2_048;

/// At the end the last spans are waited for this long.
const LAST: Duration = Duration::from_secs(3);

/// A collector that takes nothing is complained of this often, µs.
const COMPLAIN: u64 = 30_000_000;

/// What became of the spans of this process. All only grow.
#[derive(Debug, Default)]
pub struct SpanCounters {
    ended: AtomicU64,
    /// Taken by the collector.
    pub exported: AtomicU64,
    /// Sent in vain, and gone.
    pub failed: AtomicU64,
    /// Gone because the queue was full.
    pub dropped: AtomicU64,
}

impl SpanCounters {
    fn waiting(&self) -> u64 {
        let gone = [&self.exported, &self.failed, &self.dropped].map(|n| n.load(Ordering::Relaxed));
        self.ended.load(Ordering::Relaxed).saturating_sub(gone.iter().sum())
    }
}

/// Tracing of this process: where its spans go.
#[derive(Debug, Clone, Default)]
pub struct Tracing {
    tracer: Tracer,
    provider: Option<SdkTracerProvider>,
    counters: Arc<SpanCounters>,
}

impl Tracing {
    /// As the environment says: off unless `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`) is set. `instance` names
    /// this process among those of its service. Call it within the runtime.
    ///
    /// # Errors
    /// A message for the user: which variable cannot be followed, and what it may say.
    pub fn start(instance: &str) -> anyhow::Result<Self> {
        if !is_wanted()? {
            return Ok(Self::default());
        }
        check_sampler()?;
        let exporter = opentelemetry_otlp::SpanExporter::builder();
        let exporter = match protocol()? {
            Protocol::Grpc => exporter.with_tonic().with_protocol(Protocol::Grpc).build(),
            _ => exporter.with_http().with_protocol(Protocol::HttpBinary).build(),
        };
        let exporter = exporter.context(
            "traces cannot be exported: OTEL_EXPORTER_OTLP_ENDPOINT is for example http://localhost:4318, or \
             http://localhost:4317 with OTEL_EXPORTER_OTLP_PROTOCOL=grpc (https only with http/protobuf)",
        )?;
        Ok(Self::over(exporter, instance, None))
    }

    /// Whatever the environment says: a share of the likes, over HTTP to this endpoint. For benches.
    ///
    /// # Errors
    /// When the exporter cannot be made.
    pub fn of_share(share: f64, endpoint: &str) -> anyhow::Result<Self> {
        let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
        let exporter = exporter.with_endpoint(format!("{endpoint}/v1/traces")).build()?;
        Ok(Self::over(exporter, "bench", Some(Sampler::TraceIdRatioBased(share))))
    }

    fn over(exporter: opentelemetry_otlp::SpanExporter, instance: &str, sampler: Option<Sampler>) -> Self {
        let counters = Arc::new(SpanCounters::default());
        let queue = said("OTEL_BSP_MAX_QUEUE_SIZE").and_then(|size| size.parse().ok()).unwrap_or(QUEUE);
        let exporter = Counted { exporter, counters: counters.clone(), complain_at: AtomicU64::new(0) };
        let batches = BatchSpanProcessor::builder(exporter).with_batch_config(BatchConfigBuilder::default().build());
        let processor = Bounded { batches: batches.build(), counters: counters.clone(), queue };
        let mut provider =
            SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource(instance));
        if let Some(sampler) = sampler {
            provider = provider.with_sampler(sampler);
        }
        let provider = provider.build();
        let scope = InstrumentationScope::builder("pushlab").with_version(env!("CARGO_PKG_VERSION")).build();
        let tracer = Tracer::new(provider.tracer_with_scope(scope));
        Self { tracer, provider: Some(provider), counters }
    }

    /// What begins traces.
    #[must_use]
    pub fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// What became of the spans.
    #[must_use]
    pub fn counters(&self) -> &Arc<SpanCounters> {
        &self.counters
    }

    /// Sends what is there; blocks until the collector has it, or 5 s.
    pub fn flush(&self) {
        if let Some(provider) = &self.provider
            && let Err(error) = provider.force_flush()
        {
            tracing::warn!(%error, "spans are not sent yet");
        }
    }

    /// Sends what is there, waiting a bounded time, and makes no more spans.
    pub async fn end(self) {
        let Some(provider) = self.provider else { return };
        // It waits for the exporter's thread.
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST)).await;
        let left = self.counters.waiting() + self.counters.failed.load(Ordering::Relaxed);
        if !matches!(ended, Ok(Ok(()))) || left > 0 {
            tracing::warn!(left, "the collector did not take all spans");
        }
    }
}

/// Not there, or empty, which means the same (OpenTelemetry: Environment Variable Specification).
fn said(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|value| !value.is_empty())
}

fn is_wanted() -> anyhow::Result<bool> {
    if said("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(false);
    }
    match said("OTEL_TRACES_EXPORTER").as_deref() {
        None | Some("otlp") => {}
        Some("none") => return Ok(false),
        Some(other) => bail!("OTEL_TRACES_EXPORTER is otlp or none, not {other}"),
    }
    Ok(said("OTEL_EXPORTER_OTLP_ENDPOINT").or_else(|| said("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")).is_some())
}

fn protocol() -> anyhow::Result<Protocol> {
    let said = said("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| said("OTEL_EXPORTER_OTLP_PROTOCOL"));
    Ok(match said.as_deref() {
        Some("grpc") => Protocol::Grpc,
        None | Some("http/protobuf") => Protocol::HttpBinary,
        Some(other) => bail!("OTEL_EXPORTER_OTLP_PROTOCOL is grpc or http/protobuf, not {other}"),
    })
}

/// The SDK would take another sampler, and tell nobody.
fn check_sampler() -> anyhow::Result<()> {
    let Some(sampler) = said("OTEL_TRACES_SAMPLER") else { return Ok(()) };
    match sampler.as_str() {
        "always_on" | "always_off" | "parentbased_always_on" | "parentbased_always_off" => Ok(()),
        "traceidratio" | "parentbased_traceidratio" => {
            let ratio = said("OTEL_TRACES_SAMPLER_ARG").and_then(|ratio| ratio.parse::<f64>().ok());
            let good = ratio.is_some_and(|ratio| (0.0..=1.0).contains(&ratio));
            ensure!(
                good,
                "OTEL_TRACES_SAMPLER={sampler} needs OTEL_TRACES_SAMPLER_ARG, a share from 0 to 1 such as 0.01"
            );
            Ok(())
        }
        other => bail!(
            "OTEL_TRACES_SAMPLER is always_on, always_off, traceidratio, parentbased_always_on (the default), \
             parentbased_always_off or parentbased_traceidratio, not {other}"
        ),
    }
}

/// What the environment says of this process, and what it leaves out.
fn resource(instance: &str) -> Resource {
    let named = Resource::builder().build();
    let has = |key: &'static str| named.get(&Key::from_static_str(key)).map(|value| value.to_string());
    let mut resource = Resource::builder();
    if has("service.name").is_none_or(|name| name.starts_with("unknown_service")) {
        resource = resource.with_service_name("pushlab");
    }
    for (key, value) in [("service.version", env!("CARGO_PKG_VERSION")), ("service.instance.id", instance)] {
        if has(key).is_none() {
            resource = resource.with_attribute(KeyValue::new(key, value.to_owned()));
        }
    }
    resource.build()
}

/// The bound in front of the batches, so that what is dropped is counted.
#[derive(Debug)]
struct Bounded {
    batches: BatchSpanProcessor,
    counters: Arc<SpanCounters>,
    queue: u64,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        let full = self.counters.waiting() >= self.queue;
        self.counters.ended.fetch_add(1, Ordering::Relaxed);
        if full {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
        } else {
            self.batches.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Counts what the collector takes, and says when it does not: the SDK keeps that to itself.
#[derive(Debug)]
struct Counted<E> {
    exporter: E,
    counters: Arc<SpanCounters>,
    complain_at: AtomicU64,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let done = self.exporter.export(batch).await;
        let counter = if done.is_ok() { &self.counters.exported } else { &self.counters.failed };
        counter.fetch_add(spans, Ordering::Relaxed);
        let now = unix_micros();
        if let Err(error) = &done
            && now >= self.complain_at.load(Ordering::Relaxed)
        {
            self.complain_at.store(now + COMPLAIN, Ordering::Relaxed);
            let lost = [&self.counters.failed, &self.counters.dropped].map(|n| n.load(Ordering::Relaxed));
            tracing::warn!(%error, lost = lost.iter().sum::<u64>(), "the collector takes no spans; they are lost");
        }
        done
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

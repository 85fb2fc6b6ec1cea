//! A collector of traces: OTLP over gRPC and over HTTP on one port, by the protocol's own generated messages and service.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::post;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;
use tokio_util::task::AbortOnDropHandle;

/// A span that came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Hexadecimal, as in `traceparent`.
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) state: String,
    pub(crate) name: String,
    /// Unix time in ns.
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) failed: bool,
    pub(crate) attributes: BTreeMap<String, String>,
    /// Name, Unix time in ns, attributes.
    pub(crate) events: Vec<(String, u64, BTreeMap<String, String>)>,
    /// The process's own.
    pub(crate) resource: BTreeMap<String, String>,
    /// How it came: `grpc` or `http`.
    pub(crate) over: &'static str,
}

#[derive(Debug, Clone, Default)]
struct Spans(Arc<Mutex<Vec<Seen>>>);

/// Ends when dropped.
pub(crate) struct Collector {
    spans: Spans,
    address: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let spans = Spans::default();
        let router = Router::new()
            .route_service(
                "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
                TraceServiceServer::new(spans.clone()),
            )
            .route("/v1/traces", post(over_http))
            .with_state(spans.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(router.clone());
                tokio::spawn(async move {
                    let served = Builder::new(TokioExecutor::new());
                    let _ = served.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { spans, address, _serving: AbortOnDropHandle::new(serving) }
    }

    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came of this trace so far, by begin.
    pub(crate) fn of(&self, trace: &str) -> Vec<Seen> {
        let mut found: Vec<Seen> =
            self.spans.0.lock().unwrap().iter().filter(|span| span.trace == trace).cloned().collect();
        found.sort_by_key(|span| span.from);
        found
    }

    /// What came at all.
    pub(crate) fn all(&self) -> Vec<Seen> {
        self.spans.0.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.take(request.into_inner(), "grpc");
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn over_http(State(spans): State<Spans>, body: Bytes) -> impl IntoResponse {
    spans.take(ExportTraceServiceRequest::decode(body).expect("OTLP"), "http");
    ([(CONTENT_TYPE, "application/x-protobuf")], ExportTraceServiceResponse::default().encode_to_vec())
}

impl Spans {
    fn take(&self, request: ExportTraceServiceRequest, over: &'static str) {
        let mut spans = self.0.lock().unwrap();
        for of_process in request.resource_spans {
            let resource = texts(&of_process.resource.unwrap_or_default().attributes);
            for span in of_process.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let event = |event: &opentelemetry_proto::tonic::trace::v1::span::Event| {
                    (event.name.clone(), event.time_unix_nano, texts(&event.attributes))
                };
                spans.push(Seen {
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    state: span.trace_state,
                    name: span.name,
                    from: span.start_time_unix_nano,
                    to: span.end_time_unix_nano,
                    failed: span.status.is_some_and(|status| status.code == StatusCode::Error as i32),
                    attributes: texts(&span.attributes),
                    events: span.events.iter().map(event).collect(),
                    resource: resource.clone(),
                    over,
                });
            }
        }
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &AnyValue| match &value.value {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(yes)) => yes.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|pair| (pair.key.clone(), pair.value.as_ref().map(text).unwrap_or_default())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

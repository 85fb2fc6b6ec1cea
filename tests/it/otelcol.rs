//! A real OpenTelemetry Collector between the pods and the test: OTLP comes in over gRPC or HTTP, and goes on to the test's own collector.

use std::fs;
use std::path::PathBuf;

use crate::servers::{Process, free_port, program, wait_for_port};

/// Ends when dropped.
pub(crate) struct Otelcol {
    _process: Process,
    folder: PathBuf,
    grpc: u16,
    http: u16,
}

impl Otelcol {
    /// Sends what it received on to `collector` over the same protocol, and tells all of it in its log.
    pub(crate) fn start(collector: &str, protocol: &str) -> Self {
        let hint =
            "any distribution of https://github.com/open-telemetry/opentelemetry-collector-releases from 0.144 on";
        let daemon = program(&["otelcol", "otelcol-contrib"], "PUSHLAB_OTELCOL", hint);
        let folder = tempfile::Builder::new().prefix("pushlab-it-otelcol-").tempdir().unwrap().keep();
        let (grpc, http) = (free_port(), free_port());
        let exporter = if protocol == "grpc" { "otlp_grpc" } else { "otlp_http" };
        let config = format!(
            "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '127.0.0.1:{grpc}'}}, http: {{endpoint: '127.0.0.1:{http}'}}}}}}}}\n\
             exporters:\n  debug: {{verbosity: detailed}}\n  \
             {exporter}: {{endpoint: '{collector}', compression: none, tls: {{insecure: true}}}}\n\
             service:\n  telemetry: {{metrics: {{level: none}}}}\n  \
             pipelines: {{traces: {{receivers: [otlp], exporters: [{exporter}, debug]}}}}\n"
        );
        fs::write(folder.join("config.yaml"), config).unwrap();
        let arguments = [format!("--config=file:{}", folder.join("config.yaml").display())];
        let process = Process::start(&folder, &daemon, &arguments);
        [grpc, http].into_iter().for_each(|port| wait_for_port(port, &folder));
        Self { _process: process, folder, grpc, http }
    }

    /// For `OTEL_EXPORTER_OTLP_ENDPOINT` with this protocol.
    pub(crate) fn endpoint(&self, protocol: &str) -> String {
        format!("http://127.0.0.1:{}", if protocol == "grpc" { self.grpc } else { self.http })
    }

    /// What it said, every span included.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }
}

//! Logs go to stderr; `RUST_LOG` or a file filters them (default `info`); JSON lines on request. What is said of a traced
//! like names its trace.

use std::fmt;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, reload};

use super::trace;

/// What is logged when nobody says otherwise.
const DEFAULT: &str = "info,async_nats=warn,sqlx=warn";

/// Tells whole frames at `trace`, and a canary's CONNECT has its token in it.
const NEVER: &str = "tungstenite=warn";

/// Changes what is logged while the process runs.
pub struct Filter {
    file: Option<PathBuf>,
    set: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Installs the process's subscriber. A second call installs nothing, so that tests may call it freely. `file` holds a
/// filter as `RUST_LOG` would, and comes before that.
///
/// # Errors
/// When the file cannot be read or holds no filter.
pub fn init(json: bool, file: Option<PathBuf>) -> anyhow::Result<Filter> {
    let environment = || EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let filter = file.as_deref().map_or_else(|| Ok(discreet(environment())), read)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    Ok(if json {
        let builder = builder.json().map_event_format(|lines| WithIds { lines, json: true }).with_filter_reloading();
        let handle = builder.reload_handle();
        drop(builder.try_init());
        Filter { file, set: Box::new(move |filter| handle.reload(filter)) }
    } else {
        let builder = builder.with_ansi(std::io::stderr().is_terminal());
        let builder = builder.map_event_format(|lines| WithIds { lines, json: false }).with_filter_reloading();
        let handle = builder.reload_handle();
        drop(builder.try_init());
        Filter { file, set: Box::new(move |filter| handle.reload(filter)) }
    })
}

impl Filter {
    /// Reads the file again (SIGHUP). A bad one changes nothing.
    pub fn reload(&self) {
        let Some(file) = &self.file else {
            return tracing::warn!(
                "SIGHUP: nothing to read again; start with --log-filter-file to change what is logged"
            );
        };
        match read(file).and_then(|filter| (self.set)(filter).map_err(Into::into)) {
            Ok(()) => tracing::warn!(file = %file.display(), "SIGHUP: the log filter was read again"),
            Err(error) => tracing::warn!("SIGHUP: the log filter stays as it was: {error:#}"),
        }
    }
}

/// Without what nobody may read.
fn discreet(filter: EnvFilter) -> EnvFilter {
    filter.add_directive(NEVER.parse().expect("a directive"))
}

fn read(file: &Path) -> anyhow::Result<EnvFilter> {
    let name = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("the log filter file {name}"))?;
    let filter = EnvFilter::builder().parse(text.trim());
    filter
        .map(discreet)
        .map_err(|error| anyhow!("{name} holds no log filter ({error}): write for example info or info,sqlx=warn"))
}

/// Adds `trace_id` and `span_id`, named as OpenTelemetry names them in logs of other formats.
struct WithIds<L> {
    lines: L,
    json: bool,
}

impl<S, N, L> FormatEvent<S, N> for WithIds<L>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    L: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some((trace_id, span_id)) = trace::current() else {
            return self.lines.format_event(context, to, event);
        };
        let mut line = String::new();
        self.lines.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        match line.strip_suffix('}').filter(|_| self.json) {
            Some(open) => writeln!(to, r#"{open},"trace_id":"{trace_id}","span_id":"{span_id}"}}"#),
            None => writeln!(to, "{line} trace_id={trace_id} span_id={span_id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};
    use std::time::SystemTime;

    use super::*;
    use crate::telemetry::trace::{Carrier, Tracer};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// A line about a sampled like, and one about nothing.
    fn said(json: bool) -> (String, String) {
        let kept = Kept::default();
        let builder = tracing_subscriber::fmt().with_ansi(false).with_writer({
            let kept = kept.clone();
            move || kept.clone()
        });
        let subscriber: Box<dyn Subscriber + Send + Sync> = if json {
            Box::new(builder.json().map_event_format(|lines| WithIds { lines, json }).finish())
        } else {
            Box::new(builder.map_event_format(|lines| WithIds { lines, json }).finish())
        };
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let carrier = || Carrier::new(Some(parent.into()), None);
        let asked = Tracer::recording().asked(SystemTime::now(), || "POST".into(), carrier).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            asked.trace().with(|| tracing::warn!(left_out = 3, "a like failed: }}"));
            tracing::warn!("something else");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let (first, second) = text.trim_end().split_once('\n').unwrap();
        (first.into(), second.into())
    }

    #[test]
    fn a_line_about_a_sampled_like_names_its_trace() {
        let (traced, other) = said(false);
        assert!(
            traced.contains("a like failed: }")
                && traced.contains(" trace_id=0af7651916cd43dd8448eb211c80319c span_id=")
        );
        assert!(!other.contains("trace_id"), "{other}");
        let (traced, other) = said(true);
        let json: serde_json::Value = serde_json::from_str(&traced).unwrap();
        assert_eq!(json["trace_id"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!((json["span_id"].as_str().unwrap().len(), &json["fields"]["left_out"]), (16, &3.into()));
        assert!(serde_json::from_str::<serde_json::Value>(&other).unwrap().get("trace_id").is_none());
    }
}

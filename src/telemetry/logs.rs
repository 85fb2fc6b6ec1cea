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
    let filter = file.as_deref().map_or_else(|| Ok(environment()), read)?;
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

fn read(file: &Path) -> anyhow::Result<EnvFilter> {
    let name = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("the log filter file {name}"))?;
    let filter = EnvFilter::builder().parse(text.trim());
    filter.map_err(|error| anyhow!("{name} holds no log filter ({error}): write for example info or info,sqlx=warn"))
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

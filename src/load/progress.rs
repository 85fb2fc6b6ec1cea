//! Progress on stderr (a bar on a terminal, lines otherwise) and the phase lines on stdout that `compare` waits for.

use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering;

use indicatif::{ProgressBar, ProgressStyle};

use super::Progress;
use super::recorder::Shared;
use crate::domain::unix_micros;

/// Shows how far a run is.
pub(super) struct Display {
    bar: Option<ProgressBar>,
    lines: bool,
}

impl Display {
    /// As asked for.
    pub(super) fn new(progress: Progress, length_s: u64) -> Self {
        let bar = (progress == Progress::Auto && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{prefix:>10} [{bar:32}] {pos}/{len} s  {msg}");
            ProgressBar::new(length_s).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { lines: bar.is_none() && progress != Progress::None, bar }
    }

    /// A phase begins: one JSON line on stdout, for programs.
    pub(super) fn phase(&self, phase: &'static str) {
        let mut out = std::io::stdout().lock();
        // Nobody listens any more: the run goes on, its file is what counts.
        let _ = writeln!(out, r#"{{"phase":"{phase}","unix_us":{}}}"#, unix_micros());
        let _ = out.flush();
        if let Some(bar) = &self.bar {
            bar.set_prefix(phase);
        }
        if self.lines {
            eprintln!("load: {phase}");
        }
    }

    /// The state of things, `second` seconds into the likes; as a line only every tenth time.
    pub(super) fn show(&self, second: u64, shared: &Shared) {
        let get = |n: &std::sync::atomic::AtomicU32| n.load(Ordering::Relaxed);
        let text = format!(
            "{} viewers, {} likers, {} likes answered, {} updates, {} losses",
            get(&shared.joined),
            get(&shared.likers),
            get(&shared.answered),
            shared.updates.load(Ordering::Relaxed),
            shared.losses.load(Ordering::Relaxed)
        );
        if let Some(bar) = &self.bar {
            bar.set_position(second);
            bar.set_message(text);
        } else if self.lines && second.is_multiple_of(10) {
            eprintln!("load: {second} s: {text}");
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

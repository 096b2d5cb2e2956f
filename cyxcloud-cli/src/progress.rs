//! What people see while they wait, and nothing when nobody watches.

#![allow(clippy::print_stderr, reason = "this is where a command line program speaks")]

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Standard error: notes, errors and progress bars.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    verbose: bool,
    terminal: bool,
    bar: Option<ProgressBar>,
}

impl Output {
    pub(crate) fn new(verbose: bool) -> Self {
        Self { verbose, terminal: std::io::stderr().is_terminal(), bar: None }
    }

    /// Says what people must know, always.
    pub(crate) fn note(&self, text: &str) {
        self.line(&printable(text));
    }

    /// Says what is nice to know: on a terminal, or when asked for.
    pub(crate) fn done(&self, text: &str) {
        if self.terminal || self.verbose {
            self.line(&printable(text));
        }
    }

    /// Says what only `-v` wants to know.
    pub(crate) fn detail(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            self.line(&printable(&text()));
        }
    }

    /// One line, with all causes.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        self.line(&printable(&format!("error: {error:#}")));
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// The same output with a progress bar under it, and what fills the bar. `length` is unknown for a pipe.
    pub(crate) fn with_bar(&self, name: &str, length: Option<u64>) -> (Self, Meter) {
        if !self.terminal {
            return (self.clone(), Meter(None));
        }
        let template = match length {
            Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}",
            None => "{msg} {spinner} {bytes} {binary_bytes_per_sec}",
        };
        let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr_with_hz(8));
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(printable(name));
        bar.enable_steady_tick(Duration::from_millis(250));
        (Self { bar: Some(bar.clone()), ..self.clone() }, Meter(Some(bar)))
    }
}

/// Counts bytes into a progress bar, if there is one. Cleared when the last one goes.
#[derive(Clone, Debug)]
pub(crate) struct Meter(Option<ProgressBar>);

impl Meter {
    /// Counts nothing.
    pub(crate) const fn none() -> Self {
        Self(None)
    }

    pub(crate) fn add(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }

    /// Takes back what will be sent again.
    pub(crate) fn take_back(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.dec(bytes);
        }
    }

    pub(crate) const fn watched(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Text from elsewhere (keys, messages) as one line that cannot steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

/// Whether all that failed is that nobody reads our output any more, as after `| head`.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_stays_on_its_line() {
        assert_eq!(printable("a\n\u{1b}[31mb\rü"), "a\\n\\u{1b}[31mb\\rü");
    }

    #[test]
    fn nobody_watches_a_meter_without_a_bar() {
        let meter = Meter::none();
        meter.add(1);
        meter.take_back(1);
        assert!(!meter.watched());
    }
}

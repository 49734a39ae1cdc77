//! What happened, in order, as one number: two runs of a seed did the same if theirs are equal. With a file, also as text.

use std::fmt::{Arguments, Write as _};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

/// FNV-1a's numbers.
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

struct State {
    hash: u64,
    events: u64,
    line: String,
    file: Option<BufWriter<File>>,
    began: Instant,
}

/// A record of a run.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<State>>);

impl Trace {
    /// Begins one; every line also goes to `file` if there is one.
    pub fn begin(file: Option<&Path>) -> std::io::Result<Self> {
        let file = file.map(File::create).transpose()?.map(BufWriter::new);
        let began = Instant::now();
        Ok(Self(Arc::new(Mutex::new(State { hash: BASIS, events: 0, line: String::new(), file, began }))))
    }

    /// Notes that something happened now.
    pub fn note(&self, what: Arguments<'_>) {
        self.note_beside(what, "");
    }

    /// The same with details that are the machine's and not the seed's, such as names of directories and sizes of tables:
    /// they go to the file, but not into the number.
    pub fn note_beside(&self, what: Arguments<'_>, details: &str) {
        let mut state = self.0.lock();
        let at = state.began.elapsed().as_micros();
        let mut line = std::mem::take(&mut state.line);
        line.clear();
        // Writing to a string does not fail.
        let _ = writeln!(line, "{:>12.6} {what}", at as f64 / 1e6);
        for byte in line.bytes() {
            state.hash = (state.hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
        state.events += 1;
        if !details.is_empty() {
            line.pop();
            let _ = writeln!(line, ": {details}");
        }
        if let Some(file) = &mut state.file
            && let Err(error) = file.write_all(line.as_bytes())
        {
            tracing::warn!(%error, "the trace cannot be written");
            state.file = None;
        }
        state.line = line;
    }

    /// The number, and how many events it stands for.
    pub fn sum(&self) -> (u64, u64) {
        let mut state = self.0.lock();
        if let Some(file) = &mut state.file
            && let Err(error) = file.flush()
        {
            tracing::warn!(%error, "the trace cannot be written");
        }
        (state.hash, state.events)
    }
}

// SPDX-License-Identifier: Apache-2.0

//! Turns record batches into sealed Parquet files.
//!
//! In: [`Output`]s of the engine, in arrival order. Out: files sealed in the session's
//! [`spool`](super::spool). Drops, each counted in [`Sink::losses`]: rows that come while the spool is
//! full, and rows of a file that cannot be written. Rows of a session that was given up are dropped
//! with it.
//!
//! Rows are gathered up to a row group, sorted by time (rings of several CPUs are only nearly in
//! order), and written; a file is sealed when its oldest row is one interval old, or at its size, so a
//! crash loses at most one interval however the engine batched the rows before. Intervals are jittered,
//! or all nodes would upload at the same moment. There are no empty files. Memory is bounded by one row group for every table of every session.
//!
//! One thread does all this: encoding is the work, and the bounded channel before it is what pushes
//! back on the rings, where loss is counted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use dataset::catalogue::{self, Table};
use dataset::ledger::{Term, Terms};
use dataset::reader::is_full;
use dataset::schema::{self, FileInfo, ROW_GROUP_BYTES, ROW_GROUP_ROWS};
use dataset::sort::sorted;
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;
use rand::Rng;
use tracing::{debug, error};

use super::cost::{Clock, Cost};
use super::spool::{BootSpool, HashingFile, OpenSegment, SealedSegment, SpoolError};
use super::unsealed::Mark;
use crate::engine::{Batch, Output};
use crate::kernel::clock;

/// Intervals are shortened by up to this share.
const JITTER: f64 = 0.1;
/// How often intervals are looked at.
const TICK: Duration = Duration::from_millis(200);

/// Where one session's rows go, shared by the segment thread and whoever runs the session.
#[derive(Debug)]
pub struct Sink {
    /// UID of the session.
    pub session: Arc<str>,
    /// Kubernetes name of this node.
    pub node: Arc<str>,
    /// This agent process, 32 hexadecimal digits.
    pub incarnation: Arc<str>,
    /// Of this boot.
    pub spool: Arc<BootSpool>,
    /// A file is sealed at this age at the latest ...
    pub rollover_interval: Duration,
    /// ... or at about this size, in bytes.
    pub rollover_bytes: u64,
    losses: Mutex<HashMap<&'static str, Terms>>,
    closed: AtomicBool,
    discarded: AtomicBool,
    rows: AtomicU64,
}

impl Sink {
    /// A sink that has received nothing yet.
    pub fn new(
        session: Arc<str>,
        node: Arc<str>,
        incarnation: Arc<str>,
        spool: Arc<BootSpool>,
        rollover_interval: Duration,
        rollover_bytes: u64,
    ) -> Self {
        Self {
            session,
            node,
            incarnation,
            spool,
            rollover_interval,
            rollover_bytes,
            losses: Mutex::default(),
            closed: AtomicBool::new(false),
            discarded: AtomicBool::new(false),
            rows: AtomicU64::new(0),
        }
    }

    /// Events lost here, by table.
    pub fn losses(&self) -> HashMap<&'static str, Terms> {
        self.lock().clone()
    }

    /// Whether the session's last row is sealed.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Rows that came so far.
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Gives the session up: what is not sealed is dropped, and so is what still comes.
    pub fn discard(&self) {
        self.discarded.store(true, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<&'static str, Terms>> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, table: &'static str, term: Term, events: u64) {
        self.lock().entry(table).or_default().add(term, events);
    }
}

/// The sinks of all sessions that record now.
#[derive(Clone, Debug, Default)]
pub struct Sinks(Arc<Mutex<HashMap<Arc<str>, Arc<Sink>>>>);

impl Sinks {
    /// Makes a session's sink known; before the engine opens the session.
    pub fn insert(&self, sink: Arc<Sink>) {
        self.lock().insert(sink.session.clone(), sink);
    }

    /// Forgets a session.
    pub fn remove(&self, session: &str) {
        self.lock().remove(session);
    }

    fn get(&self, session: &str) -> Option<Arc<Sink>> {
        self.lock().get(session).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Sink>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The disk failed.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The rows could not be encoded or written.
    #[error("cannot write Parquet: {0}")]
    Parquet(#[from] ParquetError),
    /// The rows could not be put together.
    #[error("cannot sort rows: {0}")]
    Arrow(#[from] arrow_schema::ArrowError),
}

impl SegmentError {
    fn term(&self) -> Term {
        if is_full(self) { Term::LostSpoolFull } else { Term::LostBatchCut }
    }
}

/// A file of one table of one session, being written.
struct Segment {
    sink: Arc<Sink>,
    table: &'static Table,
    file: OpenSegment,
    writer: ArrowWriter<HashingFile>,
    gathered: Vec<RecordBatch>,
    gathered_rows: usize,
    gathered_bytes: usize,
    gathered_weight: u64,
    rows: u64,
    weight: u64,
    due: Instant,
    /// Of its rows; they go when the file is sealed.
    marks: Vec<Mark>,
    /// Takes what writing it costs.
    cost: Cost,
}

impl Segment {
    /// `age` is how old the first row is already.
    fn open(sink: Arc<Sink>, table: &'static Table, age: Duration) -> Result<Self, SegmentError> {
        let mut file = sink.spool.begin(table.name)?;
        let info = FileInfo {
            session: &sink.session,
            node: &sink.node,
            boot: sink.spool.boot().as_str(),
            incarnation: &sink.incarnation,
            sequence: file.sequence(),
        };
        let properties = schema::writer_properties(table, &info);
        let writer = ArrowWriter::try_new(file.take_writer(), schema::of(table), Some(properties))?;
        let share = 1.0 - JITTER * rand::rng().random::<f64>();
        let due = Instant::now() + sink.rollover_interval.mul_f64(share).saturating_sub(age);
        Ok(Self {
            sink,
            table,
            file,
            writer,
            gathered: Vec::new(),
            gathered_rows: 0,
            gathered_bytes: 0,
            gathered_weight: 0,
            rows: 0,
            weight: 0,
            due,
            marks: Vec::new(),
            cost: Cost::default(),
        })
    }

    fn gather(&mut self, batch: Batch) -> Result<(), SegmentError> {
        self.gathered_rows += batch.rows.num_rows();
        self.gathered_bytes += batch.rows.get_array_memory_size();
        self.gathered_weight += batch.weight;
        self.gathered.push(batch.rows);
        self.marks.push(batch.mark);
        self.cost = batch.cost;
        if self.gathered_rows >= ROW_GROUP_ROWS || self.gathered_bytes >= ROW_GROUP_BYTES {
            self.write_out()?;
        }
        Ok(())
    }

    /// Writes what is gathered as one row group, sorted.
    fn write_out(&mut self) -> Result<(), SegmentError> {
        let batches = std::mem::take(&mut self.gathered);
        let (rows, weight) = (self.gathered_rows, self.gathered_weight);
        if rows == 0 {
            return Ok(());
        }
        if self.sink.spool.spool().is_full() {
            (self.gathered_rows, self.gathered_bytes, self.gathered_weight) = (0, 0, 0);
            self.sink.lose(self.table.name, Term::LostSpoolFull, weight);
            return Ok(());
        }
        self.writer.write(&sorted(schema::sort_column(self.table), &batches)?)?;
        self.writer.flush()?;
        (self.gathered_rows, self.gathered_bytes, self.gathered_weight) = (0, 0, 0);
        self.rows += rows as u64;
        self.weight += weight;
        Ok(())
    }

    fn is_due(&self, now: Instant) -> bool {
        now >= self.due || self.writer.bytes_written() as u64 >= self.sink.rollover_bytes
    }

    /// Makes the file whole and the spool's own; a file without rows is discarded.
    fn seal(mut self) -> Result<Option<SealedSegment>, (SegmentError, u64)> {
        if let Err(error) = self.write_out() {
            return Err(self.fail(error));
        }
        // The marks live to the end of this function.
        let Self { file, writer, rows, weight, sink, marks: _marks, .. } = self;
        let output = match writer.into_inner() {
            Ok(output) => output,
            Err(error) => return Err((error.into(), weight)),
        };
        if rows == 0 {
            return file.discard(output).map(|()| None).map_err(|error| (error.into(), 0));
        }
        file.seal(output, rows, weight, &sink.incarnation).map(Some).map_err(|error| (error.into(), weight))
    }

    /// The events that go down with this file.
    fn fail(self, error: SegmentError) -> (SegmentError, u64) {
        (error, self.weight + self.gathered_weight)
    }
}

/// How long ago the oldest of some rows happened.
fn age(table: &Table, rows: &RecordBatch) -> Duration {
    let times =
        schema::sort_column(table).and_then(|column| rows.column(column).as_primitive_opt::<Int64Type>());
    let oldest =
        times.and_then(|times| times.values().iter().min()).map_or(u64::MAX, |ns| (*ns).max(0) as u64);
    Duration::from_nanos(clock::boot_ns().saturating_sub(oldest))
}

/// All files that are being written.
#[derive(Default)]
pub struct Segments {
    sinks: Sinks,
    open: HashMap<(Arc<str>, &'static str), Segment>,
}

impl Segments {
    /// Writes for these sessions.
    pub fn new(sinks: Sinks) -> Self {
        Self { sinks, open: HashMap::new() }
    }

    /// Starts the thread. It ends, sealing everything, when the engine's end of the channel is dropped.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn spawn(self, outputs: Receiver<Output>) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("segment".into()).spawn(move || self.run(&outputs))
    }

    fn run(mut self, outputs: &Receiver<Output>) {
        let mut ticked = Instant::now();
        loop {
            match outputs.recv_timeout(TICK) {
                Ok(output) => self.accept(output),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // A busy channel must not keep intervals from being looked at.
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.tick(ticked);
            }
        }
        self.seal_all();
    }

    /// Takes one output of the engine.
    pub fn accept(&mut self, output: Output) {
        match output {
            Output::Batch(batch) => {
                let (cost, mut spent) = (batch.cost.clone(), Clock::start());
                self.batch(batch);
                cost.add(spent.lap());
            }
            Output::Closed { session } => {
                self.seal_where(|segment| segment.sink.session == session);
                if let Some(sink) = self.sinks.get(&session) {
                    sink.closed.store(true, Ordering::Release);
                }
            }
        }
    }

    fn batch(&mut self, batch: Batch) {
        let Some(sink) = self.sinks.get(&batch.session) else {
            debug!(session = %batch.session, table = batch.table, "rows of a session that is gone were dropped");
            return;
        };
        if batch.rows.num_rows() == 0 {
            return;
        }
        let Some(table) = catalogue::table(batch.table) else {
            error!(table = batch.table, "rows of a table that is not in the catalogue were dropped");
            return;
        };
        sink.rows.fetch_add(batch.rows.num_rows() as u64, Ordering::Relaxed);
        if sink.discarded.load(Ordering::Acquire) {
            return;
        }
        if sink.spool.spool().is_full() {
            sink.lose(table.name, Term::LostSpoolFull, batch.weight);
            return;
        }
        let id = (batch.session.clone(), table.name);
        let mut segment = match self.open.remove(&id) {
            Some(segment) => segment,
            None => match Segment::open(sink.clone(), table, age(table, &batch.rows)) {
                Ok(segment) => segment,
                Err(error) => return lost(&sink, table, &error, batch.weight),
            },
        };
        match segment.gather(batch) {
            Ok(()) if segment.is_due(Instant::now()) => seal(segment),
            Ok(()) => _ = self.open.insert(id, segment),
            Err(error) => {
                let (error, events) = segment.fail(error);
                lost(&sink, table, &error, events);
            }
        }
    }

    /// Seals files that are old enough, and drops those of sessions that were given up.
    pub fn tick(&mut self, now: Instant) {
        for (_, segment) in self.open.extract_if(|_, segment| segment.sink.discarded.load(Ordering::Acquire))
        {
            segment.sink.lose(
                segment.table.name,
                Term::LostBatchCut,
                segment.weight + segment.gathered_weight,
            );
        }
        self.seal_where(|segment| segment.is_due(now));
    }

    /// Seals everything.
    pub fn seal_all(&mut self) {
        self.seal_where(|_| true);
    }

    fn seal_where(&mut self, which: impl Fn(&Segment) -> bool) {
        for (_, segment) in self.open.extract_if(|_, segment| which(segment)) {
            let (cost, mut spent) = (segment.cost.clone(), Clock::start());
            seal(segment);
            cost.add(spent.lap());
        }
    }
}

fn seal(segment: Segment) {
    let (sink, table) = (segment.sink.clone(), segment.table);
    match segment.seal() {
        Ok(Some(sealed)) => {
            debug!(session = %sink.session, table = table.name, sequence = sealed.sequence, rows = sealed.rows, "segment sealed");
        }
        Ok(None) => {}
        Err((error, events)) => lost(&sink, table, &error, events),
    }
}

fn lost(sink: &Sink, table: &'static Table, error: &SegmentError, events: u64) {
    error!(session = %sink.session, table = table.name, %error, events, "a segment could not be written, its events are lost");
    sink.lose(table.name, error.term(), events);
}

/// Writes one small table at once, as its own sealed file: ledger, coverage and session_nodes.
///
/// # Errors
/// When the disk fails; nothing is sealed then.
pub fn write_table(
    sink: &Arc<Sink>,
    table: &'static Table,
    rows: RecordBatch,
) -> Result<SealedSegment, SegmentError> {
    let mut segment = Segment::open(sink.clone(), table, Duration::ZERO)?;
    let count = rows.num_rows() as u64;
    // The limit is for events: an account that is not written would hide what the limit cost.
    segment.writer.write(&sorted(schema::sort_column(table), &[rows])?)?;
    segment.rows = count;
    segment.seal().map_err(|(error, _)| error)?.ok_or_else(|| {
        SegmentError::Parquet(ParquetError::General(format!("table {} has no rows to write", table.name)))
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    #[test]
    fn a_full_disk_is_told_from_one_that_fails() {
        let terms = |kind: ErrorKind| {
            let spool = SpoolError { what: "write", path: "file".into(), source: Error::from(kind) };
            let parquet = ParquetError::External(Box::new(Error::from(kind)));
            [SegmentError::from(spool).term(), SegmentError::from(parquet).term()]
        };
        assert_eq!(terms(ErrorKind::StorageFull), [Term::LostSpoolFull; 2]);
        assert_eq!(terms(ErrorKind::QuotaExceeded), [Term::LostSpoolFull; 2]);
        assert_eq!(terms(ErrorKind::PermissionDenied), [Term::LostBatchCut; 2]);
    }
}

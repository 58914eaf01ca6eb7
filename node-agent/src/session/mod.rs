// SPDX-License-Identifier: Apache-2.0

//! The life of one session on this node: record, drain, account, done.
//!
//! In: what to record ([`SessionSpec`], targets), from the agent's plan or from `tracelake record`.
//! Out: sealed segments, uploads, and at the end ledger, coverage, session_nodes and the node manifest,
//! one set for every boot during which the session wrote something.
//! Loses: nothing by itself; what others lost is put under its name here.
//!
//! ```text
//! start -> recording -> stop -> closing -> (last row sealed) -> data uploaded -> books written
//!                                          -> books uploaded -> manifest uploaded -> done
//! ```
//! While recording, the counters are written to `incarnations/<id>.json` every second. After a crash
//! they are all that is left: such an incarnation's `emitted` is unknown, its other terms are lower
//! bounds, `exported` is exact because it comes from the journal. The time from its last writing to
//! the next incarnation (or the window's end) is a gap in the coverage.
//!
//! Invariant: the books of a boot are written when no segment of data waits any more, so every
//! event's end is known; and they are made from the spool's files alone, so that a process which
//! restarts in between writes the same ones.

mod books;
mod node;
mod recorder;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataset::bookkeeping;
use dataset::coverage::{CoverageKind, CoverageRow};
use dataset::key::Boot;
use dataset::ledger::Term;
use dataset::manifest::{FORMAT_VERSION, Incarnation, NodeManifest, Totals};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, warn};

use crate::engine::{CollectorOutcome, CollectorState, EngineError, SessionSpec, TargetCoverage, TargetSpec};
use crate::kernel::clock;
use crate::pipeline::segment::{Sink, write_table};
use crate::pipeline::spool::{BootSpool, Fate, SpoolError};
use crate::pipeline::upload::{UploadError, UploadHealth};
pub use node::{Node, Uname, uname};
pub use recorder::Recorder;

use books::{Account, Checkpoint, Checkpoints, Ended, coverage_row, entry, kernel_terms, nobody, utc_us};

/// How often a recording session's counters are written down.
const CHECKPOINT: Duration = Duration::from_secs(1);

/// What the session does in this process.
enum Phase {
    /// Nothing is recorded; what is spooled is uploaded.
    Idle,
    Recording,
    /// The engine was told to close; its last rows are on their way.
    Closing(Ended),
}

/// One boot's part of a session.
struct BootRun {
    spool: Arc<BootSpool>,
    stop: CancellationToken,
    health: Arc<UploadHealth>,
    manifest_started: bool,
    checkpoints: Checkpoints,
}

/// One session on this node.
pub struct Session {
    node: Node,
    /// UID.
    pub uid: Arc<str>,
    phase: Phase,
    sink: Option<Arc<Sink>>,
    boots: BTreeMap<Boot, BootRun>,
    outcomes: Vec<CollectorOutcome>,
    checkpointed: Instant,
    window_end_ns: Option<u64>,
    /// When recording was told to end: targets that were traced until then did not leave by themselves.
    stopped_ns: u64,
    finish: bool,
}

impl Session {
    /// Takes up what the spool holds of a session, and uploads it.
    ///
    /// # Errors
    /// When the spool's disk fails.
    pub fn resume(node: Node, uid: Arc<str>) -> Result<Self, SpoolError> {
        node.spool.session_dir(&uid)?;
        let mut session = Self {
            uid,
            phase: Phase::Idle,
            sink: None,
            boots: BTreeMap::new(),
            outcomes: Vec::new(),
            checkpointed: Instant::now(),
            window_end_ns: None,
            stopped_ns: u64::MAX,
            finish: false,
            node,
        };
        for boot in session.node.spool.boots(&session.uid)? {
            session.boot(&boot)?;
        }
        Ok(session)
    }

    fn boot(&mut self, boot: &Boot) -> Result<&mut BootRun, SpoolError> {
        if !self.boots.contains_key(boot) {
            let spool = self.node.spool.boot(&self.uid, boot)?;
            let (discarded, quarantined) = spool.recovered();
            if discarded + quarantined > 0 {
                error!(session = %self.uid, %boot, discarded, quarantined, "the last process left unsealed or damaged files: a gap");
                self.node.metrics.recovered(discarded, quarantined);
            }
            let (stop, health) = (CancellationToken::new(), Arc::<UploadHealth>::default());
            let upload =
                self.node.uploader.clone().run(self.uid.clone(), spool.clone(), health.clone(), stop.clone());
            self.node.runtime.spawn(upload.in_current_span());
            let checkpoints = books::read_checkpoints(spool.dir());
            let run = BootRun { spool, stop, health, manifest_started: false, checkpoints };
            self.boots.insert(boot.clone(), run);
        }
        Ok(self.boots.get_mut(boot).expect("it was inserted above"))
    }

    /// Starts to record. Targets follow with [`set_targets`](Self::set_targets).
    ///
    /// # Errors
    /// When the engine or the spool refuses. It may be tried again.
    pub fn start(
        &mut self,
        recorder: &mut dyn Recorder,
        spec: SessionSpec,
        window_end_ns: Option<u64>,
    ) -> anyhow::Result<()> {
        anyhow::ensure!(!self.finish, "the session's window is over");
        let boot = self.node.boot.clone();
        let spool = self.boot(&boot)?.spool.clone();
        anyhow::ensure!(spool.manifest().is_none(), "the session's data of this boot are complete already");
        let (interval, bytes) = (spec.rollover_interval, spec.rollover_bytes);
        let sink = Arc::new(Sink::new(
            self.uid.clone(),
            self.node.name.clone(),
            self.node.incarnation.clone(),
            spool,
            interval,
            bytes,
        ));
        // Before the engine opens: its first row must find the sink.
        self.node.sinks.insert(sink.clone());
        match recorder.open(spec) {
            Ok(outcomes) => self.outcomes = outcomes,
            Err(error) => {
                self.node.sinks.remove(&self.uid);
                return Err(error.into());
            }
        }
        (self.sink, self.phase, self.window_end_ns) = (Some(sink), Phase::Recording, window_end_ns);
        let now = clock::boot_ns();
        let who = Incarnation {
            incarnation: self.node.incarnation.to_string(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: self.node.kernel.clone(),
            arch: self.node.arch.clone(),
            started_ns: now,
            ended_ns: now,
            clean: false,
            anchor_ns: now,
            anchor_utc_us: utc_us(now),
        };
        let checkpoint = Checkpoint {
            who,
            window_end_ns,
            ended: None,
            sealed_ns: now,
            tables: BTreeMap::new(),
            coverage: Vec::new(),
            open: Vec::new(),
        };
        let incarnation = self.node.incarnation.to_string();
        self.boot(&boot)?.checkpoints.insert(incarnation, checkpoint);
        self.checkpoint(recorder, None);
        info!(session = %self.uid, "recording");
        Ok(())
    }

    /// Replaces the set of targets.
    ///
    /// # Errors
    /// When the engine refuses.
    pub fn set_targets(
        &mut self,
        recorder: &mut dyn Recorder,
        targets: &[TargetSpec],
    ) -> Result<(), EngineError> {
        match self.phase {
            Phase::Recording => recorder.set_targets(&self.uid, targets),
            _ => Ok(()),
        }
    }

    /// Moves the end of the window.
    pub fn set_window_end(&mut self, window_end_ns: u64) {
        self.window_end_ns = Some(window_end_ns);
    }

    /// Ends recording because the window is over; once the last row is sealed and uploaded, the books follow.
    ///
    /// # Errors
    /// When the spool's disk fails. It may be tried again.
    pub fn drain(&mut self, recorder: &mut dyn Recorder) -> Result<(), SpoolError> {
        self.stop(recorder, Ended::Window);
        if self.boots.is_empty() {
            // A node that recorded nothing says so in a manifest as well.
            let boot = self.node.boot.clone();
            self.boot(&boot)?;
        }
        self.finish = true;
        Ok(())
    }

    /// Takes over the names of containers, which may come after the end of what ran in them.
    pub fn learn(&self, recorder: &mut dyn Recorder, targets: &[TargetSpec]) {
        if !matches!(self.phase, Phase::Idle) {
            recorder.learn(targets);
        }
    }

    /// Ends recording because this process ends; another one may go on with the session.
    pub fn interrupt(&mut self, recorder: &mut dyn Recorder) {
        self.stop(recorder, Ended::Stopped);
    }

    fn stop(&mut self, recorder: &mut dyn Recorder, why: Ended) {
        if matches!(self.phase, Phase::Recording) {
            self.stopped_ns = clock::boot_ns();
            // A process that is told to end has no time for names.
            recorder.close(&self.uid, why == Ended::Window);
            self.phase = Phase::Closing(why);
        }
    }

    /// Gives the session up: records nothing more and removes what is not uploaded. Returns how many events that was, of
    /// those that the counters told of.
    ///
    /// # Errors
    /// When the spool's disk fails.
    pub fn discard(mut self, recorder: &mut dyn Recorder) -> Result<u64, SpoolError> {
        if let Some(sink) = &self.sink {
            sink.discard();
        }
        self.stop(recorder, Ended::Stopped);
        self.node.sinks.remove(&self.uid);
        for run in self.boots.values() {
            run.stop.cancel();
            run.spool.abandon()?;
        }
        let totals = self.totals();
        let unsealed = totals.emitted.saturating_sub(totals.terms.total());
        let discarded = totals.terms.get(Term::LostUploadAbandoned) + unsealed;
        self.node.metrics.discarded(discarded);
        self.node.spool.forget(&self.uid)?;
        Ok(discarded)
    }

    /// Takes every step that is due. Cheap when none is.
    pub fn tick(&mut self, recorder: &dyn Recorder) {
        match self.phase {
            Phase::Recording if self.checkpointed.elapsed() >= CHECKPOINT => self.checkpoint(recorder, None),
            Phase::Closing(why) if self.sink.as_ref().is_some_and(|sink| sink.is_closed()) => {
                self.checkpoint(recorder, Some(why));
                self.node.sinks.remove(&self.uid);
                (self.phase, self.sink) = (Phase::Idle, None);
            }
            _ => {}
        }
        let current = self.node.boot.clone();
        let (uid, node) = (self.uid.clone(), self.node.clone());
        let (idle, finish) = (matches!(self.phase, Phase::Idle), self.finish);
        for (boot, run) in &mut self.boots {
            // An older boot's rows are all there are; this boot's are when recording is over for good.
            if *boot == current && !(idle && finish) {
                continue;
            }
            if let Err(error) = run.advance(&uid, &node) {
                error!(session = %uid, %boot, %error, "the session's books cannot be written, will retry");
            }
        }
    }

    /// Whether its window is over on this node. It does not open again: its account may be written already.
    pub fn is_over(&self) -> bool {
        self.finish
    }

    /// Whether rows are recorded now.
    pub fn is_recording(&self) -> bool {
        matches!(self.phase, Phase::Recording)
    }

    /// Whether the last row is sealed, or there never was one.
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Whether everything is acknowledged by the store, every boot's manifest included.
    pub fn is_done(&self) -> bool {
        self.finish && self.is_idle() && self.boots.values().all(|run| run.spool.manifest().is_some())
    }

    /// Whether any collector ran for it, in any process or boot that the spool knows of.
    pub fn has_recorded(&self) -> bool {
        let mut checkpoints = self.boots.values().flat_map(|run| run.checkpoints.values());
        checkpoints.any(|checkpoint| !checkpoint.tables.is_empty())
    }

    /// What came of each collector.
    pub fn outcomes(&self) -> &[CollectorOutcome] {
        &self.outcomes
    }

    /// Why uploads fail now, if they do.
    pub fn upload_error(&self) -> Option<UploadError> {
        self.boots.values().find_map(|run| run.health.last_error())
    }

    /// Keys of the node manifests that the store has.
    pub fn manifests(&self) -> Vec<String> {
        self.boots.values().filter_map(|run| run.spool.manifest()).collect()
    }

    /// Bytes that wait for the store.
    pub fn bytes_pending(&self) -> u64 {
        self.boots.values().map(|run| run.spool.pending().1).sum()
    }

    /// The account so far, all boots and incarnations.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for run in self.boots.values() {
            for row in books::ledger(&self.node.name, &run.spool, &run.checkpoints) {
                let known = run
                    .checkpoints
                    .get(&row.incarnation)
                    .and_then(|checkpoint| checkpoint.tables.get(&row.table));
                totals.emitted += known.map_or(0, |account| account.emitted);
                totals.unknown |= row.emitted.is_none() && row.incarnation != *self.node.incarnation;
                totals.terms.merge(&row.terms);
                totals.rows += row.rows;
            }
            for (segment, fate) in run.spool.segments() {
                if fate == Fate::Acknowledged {
                    totals.objects += 1;
                    totals.bytes += segment.bytes;
                }
            }
        }
        totals
    }

    /// Writes down what is known now, so that a crash loses at most what comes later.
    fn checkpoint(&mut self, recorder: &dyn Recorder, ended: Option<Ended>) {
        self.checkpointed = Instant::now();
        let (counters, traced) = (recorder.counters(&self.uid), recorder.coverage(&self.uid));
        let losses = self.sink.as_ref().map(|sink| sink.losses()).unwrap_or_default();
        let now = clock::boot_ns();
        let (outcomes, window_end_ns, stopped_ns) =
            (self.outcomes.clone(), self.window_end_ns, self.stopped_ns);
        let (boot, incarnation) = (self.node.boot.clone(), self.node.incarnation.clone());
        let name = self.node.name.clone();
        let Some(run) = self.boots.get_mut(&boot) else { return };
        let Some(checkpoint) = run.checkpoints.get_mut(&*incarnation) else { return };
        for table in &counters {
            let account = checkpoint.tables.entry(table.table.to_owned()).or_default();
            *account = Account { emitted: table.emitted, terms: kernel_terms(table) };
            if let Some(lost) = losses.get(table.table) {
                account.terms.merge(lost);
            }
        }
        checkpoint.sealed_ns = counters.iter().map(|table| table.sealed_ns).min().unwrap_or(now);
        checkpoint.who.ended_ns = now;
        checkpoint.who.clean = ended.is_some();
        checkpoint.ended = ended;
        checkpoint.window_end_ns = window_end_ns;
        let row = |target: &TargetCoverage| coverage_row(&name, &boot, &checkpoint.who, target, now);
        let mut coverage: Vec<CoverageRow> = traced.iter().map(row).collect();
        let mut open: Vec<bool> = traced
            .iter()
            .map(|target| {
                target.to_ns.is_none_or(|to_ns| ended == Some(Ended::Stopped) && to_ns >= stopped_ns)
            })
            .collect();
        for outcome in outcomes {
            let CollectorState::Unsupported { reason, message } = outcome.state else { continue };
            if traced.iter().any(|target| target.collector == outcome.collector) {
                continue;
            }
            let mut row = coverage_row(&name, &boot, &checkpoint.who, &nobody(now), now);
            (row.collector, row.kind, row.reason) =
                (outcome.collector, CoverageKind::Unsupported, format!("{reason}: {message}"));
            coverage.push(row);
            open.push(false);
        }
        (checkpoint.coverage, checkpoint.open) = (coverage, open);
        if let Err(error) = books::write_checkpoint(run.spool.dir(), checkpoint) {
            warn!(session = %self.uid, %error, "the counters cannot be written down; a crash now would lose them");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.boots.values().for_each(|run| run.stop.cancel());
    }
}

impl BootRun {
    /// The steps after the last row: books when all data are uploaded, the manifest when the books are.
    fn advance(&mut self, uid: &Arc<str>, node: &Node) -> anyhow::Result<()> {
        if self.spool.manifest().is_some() || self.manifest_started || self.spool.pending().0 > 0 {
            return Ok(());
        }
        let (ledger, coverage) = (
            books::ledger(&node.name, &self.spool, &self.checkpoints),
            books::coverage(&node.name, &self.spool, &self.checkpoints),
        );
        let incarnations: Vec<Incarnation> =
            self.checkpoints.values().map(|checkpoint| checkpoint.who.clone()).collect();
        let sink = Arc::new(Sink::new(
            uid.clone(),
            node.name.clone(),
            node.incarnation.clone(),
            self.spool.clone(),
            Duration::ZERO,
            u64::MAX,
        ));
        let segments = self.spool.segments();
        let boot = self.spool.boot().as_str();
        let books = [
            (&bookkeeping::LEDGER, bookkeeping::ledger_batch(&ledger)),
            (&bookkeeping::COVERAGE, bookkeeping::coverage_batch(&coverage)),
            (&bookkeeping::SESSION_NODES, bookkeeping::session_nodes_batch(&node.name, boot, &incarnations)),
        ];
        let mut missing = false;
        for (table, rows) in books {
            let there = segments
                .iter()
                .any(|(segment, fate)| segment.table == table.name && *fate == Fate::Acknowledged);
            if !there && rows.num_rows() > 0 {
                write_table(&sink, table, rows)?;
                missing = true;
            }
        }
        if missing {
            return Ok(());
        }
        let manifest = NodeManifest {
            format_version: FORMAT_VERSION,
            node: node.name.to_string(),
            boot: boot.to_owned(),
            incarnations,
            objects: segments
                .iter()
                .filter_map(|(segment, fate)| entry(&node.name, self.spool.boot(), segment, *fate))
                .collect(),
            ledger,
            coverage,
        };
        let json = serde_json::to_vec_pretty(&manifest)?.into();
        let (uploader, spool) = (node.uploader.clone(), self.spool.clone());
        let (uid, health, stop) = (uid.clone(), self.health.clone(), self.stop.clone());
        self.manifest_started = true;
        let upload = async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = uploader.manifest(&uid, &spool, json, &health) => info!(session = %uid, "everything is uploaded"),
            }
        };
        node.runtime.spawn(upload.in_current_span());
        Ok(())
    }
}

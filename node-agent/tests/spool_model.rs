// SPDX-License-Identifier: Apache-2.0

//! The spool against a model, with crashes at every point that leaves a trace on disk.
//!
//! The model knows what must survive: every segment that was sealed is pending until it is
//! acknowledged, given up, or damaged, and no sequence number is used twice, whatever happens in between. Proptest
//! commits the seeds of failures beside this file.

extern crate tracelake_node_agent as node_agent;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dataset::key::Boot;
use dataset::ledger::Term;
use node_agent::pipeline::spool::{BootSpool, Fate, SealedSegment, Spool};
use proptest::prelude::*;

const BOOT: &str = "0123456789abcdef0123456789abcdef";
const TABLES: [&str; 2] = ["processes", "tcp_connections"];

#[derive(Clone, Debug)]
enum Step {
    /// Begin a file, write, seal it.
    Seal { table: usize, bytes: Vec<u8> },
    /// Begin a file and give it up in order.
    Discard { table: usize },
    /// The oldest pending segment reaches the store.
    Upload,
    /// The process dies and the next one starts.
    Crash(Crash),
    /// Everything pending is given up.
    Abandon,
}

/// What a crash, or the disk, may leave.
#[derive(Clone, Debug)]
enum Crash {
    Clean,
    /// A file was begun and never sealed.
    Unsealed {
        table: usize,
    },
    /// The journal's last line is cut.
    TornJournal,
    /// Sealed by the journal, but not renamed yet.
    NotRenamed,
    /// Acknowledged by the journal, but not removed yet.
    NotRemoved,
    /// A sealed file lost its end.
    Truncated,
    /// A byte of a sealed file flipped.
    Flipped,
    /// A sealed file is gone.
    Missing,
}

fn step() -> impl Strategy<Value = Step> {
    let table = 0..TABLES.len();
    prop_oneof![
        5 => (table.clone(), prop::collection::vec(any::<u8>(), 1..200)).prop_map(|(table, bytes)| Step::Seal { table, bytes }),
        1 => table.clone().prop_map(|table| Step::Discard { table }),
        4 => Just(Step::Upload),
        1 => Just(Step::Abandon),
        4 => prop_oneof![
            Just(Crash::Clean),
            table.prop_map(|table| Crash::Unsealed { table }),
            Just(Crash::TornJournal),
            Just(Crash::NotRenamed),
            Just(Crash::NotRemoved),
            Just(Crash::Truncated),
            Just(Crash::Flipped),
            Just(Crash::Missing),
        ].prop_map(Step::Crash),
    ]
}

/// What must be true.
#[derive(Default)]
struct Model {
    segments: BTreeMap<(String, u64), (SealedSegment, Fate, Vec<u8>)>,
    used: BTreeMap<String, BTreeSet<u64>>,
}

impl Model {
    fn take(&mut self, table: &str, sequence: u64) {
        let fresh = self.used.entry(table.to_owned()).or_default().insert(sequence);
        assert!(fresh, "sequence {sequence} of {table} was used twice");
    }

    fn pending(&self) -> Vec<(String, u64)> {
        self.segments
            .iter()
            .filter(|(_, (_, fate, _))| *fate == Fate::Pending)
            .map(|(id, _)| id.clone())
            .collect()
    }
}

struct World {
    root: tempfile::TempDir,
    spool: Arc<BootSpool>,
    model: Model,
}

fn open(root: &Path) -> Arc<BootSpool> {
    let boot: Boot = BOOT.parse().unwrap();
    Spool::open(root, u64::MAX).unwrap().boot("session", &boot).unwrap()
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let spool = open(root.path());
        Self { root, spool, model: Model::default() }
    }

    fn path(&self, id: &(String, u64)) -> PathBuf {
        self.spool.file(&self.model.segments[id].0)
    }

    fn seal(&mut self, table: &str, bytes: &[u8]) {
        let mut file = self.spool.begin(table).unwrap();
        self.model.take(table, file.sequence());
        let mut writer = file.take_writer();
        writer.write_all(bytes).unwrap();
        let sealed = file.seal(writer, 1, bytes.len() as u64, "incarnation").unwrap();
        let id = (sealed.table.clone(), sealed.sequence);
        self.model.segments.insert(id, (sealed, Fate::Pending, bytes.to_vec()));
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Seal { table, bytes } => self.seal(TABLES[table], &bytes),
            Step::Discard { table } => {
                let mut file = self.spool.begin(TABLES[table]).unwrap();
                self.model.take(TABLES[table], file.sequence());
                let writer = file.take_writer();
                file.discard(writer).unwrap();
            }
            Step::Upload => {
                let claimed = self.spool.claim();
                assert_eq!(claimed.is_some(), !self.model.pending().is_empty());
                let Some(segment) = claimed else { return };
                let entry = self.model.segments.get_mut(&(segment.table.clone(), segment.sequence)).unwrap();
                assert_eq!(fs::read(self.spool.file(&segment)).unwrap(), entry.2, "not what was sealed");
                self.spool.acknowledge(&segment).unwrap();
                entry.1 = Fate::Acknowledged;
            }
            Step::Abandon => {
                assert_eq!(self.spool.abandon().unwrap(), self.model.pending().len());
                for (_, fate, _) in
                    self.model.segments.values_mut().filter(|(_, fate, _)| *fate == Fate::Pending)
                {
                    *fate = Fate::Lost(Term::LostUploadAbandoned);
                }
            }
            Step::Crash(crash) => self.crash(&crash),
        }
    }

    fn crash(&mut self, crash: &Crash) {
        let pending = self.model.pending();
        let acknowledged = self
            .model
            .segments
            .iter()
            .find(|(_, (_, fate, _))| *fate == Fate::Acknowledged)
            .map(|(id, _)| id.clone());
        let journal = self.spool.dir().join("journal");
        match (crash, pending.first(), acknowledged) {
            (Crash::Unsealed { table }, ..) => {
                let mut file = self.spool.begin(TABLES[*table]).unwrap();
                self.model.take(TABLES[*table], file.sequence());
                file.take_writer().write_all(b"half a file").unwrap();
                // A process that is killed runs no destructor.
                std::mem::forget(file);
            }
            (Crash::TornJournal, ..) => {
                let mut file = fs::OpenOptions::new().append(true).open(&journal).unwrap();
                file.write_all(b"{\"sealed\":{\"table\":\"proc").unwrap();
            }
            (Crash::NotRenamed, Some(id), _) => {
                let path = self.path(id);
                fs::rename(&path, path.with_added_extension("tmp")).unwrap();
            }
            (Crash::NotRemoved, _, Some(id)) => {
                fs::write(self.path(&id), &self.model.segments[&id].2).unwrap()
            }
            (Crash::Truncated, Some(id), _) => {
                let path = self.path(id);
                let length = fs::metadata(&path).unwrap().len();
                fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
                self.damaged(id);
            }
            (Crash::Flipped, Some(id), _) => {
                let path = self.path(id);
                let mut bytes = fs::read(&path).unwrap();
                bytes[0] ^= 0x80;
                fs::write(&path, bytes).unwrap();
                self.damaged(id);
            }
            (Crash::Missing, Some(id), _) => {
                fs::remove_file(self.path(id)).unwrap();
                self.damaged(id);
            }
            _ => {}
        }
        self.spool = open(self.root.path());
    }

    fn damaged(&mut self, id: &(String, u64)) {
        self.model.segments.get_mut(id).unwrap().1 = Fate::Lost(Term::LostSpoolCorrupt);
    }

    fn check(&self) {
        let expected: Vec<_> =
            self.model.segments.values().map(|(segment, fate, _)| (segment.clone(), *fate)).collect();
        assert_eq!(self.spool.segments(), expected);
        let pending = self.model.pending();
        let bytes: u64 = pending.iter().map(|id| self.model.segments[id].0.bytes).sum();
        assert_eq!(self.spool.pending(), (pending.len(), bytes));
        assert_eq!(self.spool.spool().used_bytes(), bytes);
        let files = fs::read_dir(self.spool.dir()).unwrap().map(|entry| entry.unwrap().path());
        let files: BTreeSet<_> = files.filter(|path| path.is_file() && !path.ends_with("journal")).collect();
        assert_eq!(
            files,
            pending.iter().map(|id| self.path(id)).collect(),
            "the folder holds what is pending, no more"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_was_sealed_is_pending_until_acknowledged_or_counted(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        for step in steps {
            world.apply(step);
            world.check();
        }
        // Once more from the disk alone.
        world.crash(&Crash::Clean);
        world.check();
    }
}

#[test]
fn a_journal_that_lost_a_line_in_its_middle_loses_that_segment_only() {
    let mut world = World::new();
    world.seal("processes", b"first");
    world.seal("processes", b"second");
    let journal = world.spool.dir().join("journal");
    let text = fs::read_to_string(&journal).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    fs::write(&journal, format!("{}\n{rest}", "x".repeat(first.len()))).unwrap();
    let spool = open(world.root.path());
    assert_eq!(spool.segments().len(), 1);
    assert_eq!(spool.recovered(), (0, 1));
    assert_eq!(spool.begin("processes").unwrap().sequence(), 2);
}

#[test]
fn a_segment_is_claimed_once_until_it_is_given_back() {
    let mut world = World::new();
    world.seal("processes", b"one");
    let claimed = world.spool.claim().unwrap();
    assert_eq!(world.spool.claim(), None);
    world.spool.release(&claimed);
    assert_eq!(world.spool.claim(), Some(claimed));
}

#[test]
fn a_segment_that_failed_comes_after_those_that_did_not() {
    let mut world = World::new();
    for content in [b"one", b"two"] {
        world.seal("processes", content);
    }
    let first = world.spool.claim().unwrap();
    world.spool.release(&first);
    let second = world.spool.claim().unwrap();
    assert_eq!((first.sequence, second.sequence), (0, 1));
    assert!(world.spool.has_failed());
    assert_eq!(world.spool.claim(), Some(first.clone()));
    world.spool.acknowledge(&first).unwrap();
    assert!(!world.spool.has_failed());
}

#[test]
fn only_root_can_look_into_the_spool() {
    use std::os::unix::fs::PermissionsExt;
    let mut world = World::new();
    world.seal("processes", b"rows");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(world.root.path()), 0o700);
    assert_eq!(mode(world.spool.dir()), 0o700);
    let segment = world.spool.claim().unwrap();
    assert_eq!(mode(&world.spool.file(&segment)), 0o600);
}

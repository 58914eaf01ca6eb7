// SPDX-License-Identifier: Apache-2.0
//! `memoryRss`: resident memory of the targets' processes over time.
//!
//! In: entries of [`MemoryRss`]. Out: rows of `memory_rss`, where memory changed by as much as the session asks for.

use std::collections::{HashMap, HashSet};

use node_agent_common::event::{Event, Header};
use node_agent_common::fields::{Field, TASK_FIELDS};
use node_agent_common::memory_rss::{COLLECTOR, ENUMERATORS, MEMBERS, MemoryRss, RSS_FIELDS, at};
use node_agent_common::table::CollectorInfo;

use super::{Collector, DecodeError, Decoder, Hook, Values, Verdict};
use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::load::{Kernel, KernelError};
use crate::pipeline::batch::Row;
use crate::pipeline::window::Aggregation;

/// The collector.
pub struct MemoryRssCollector;

const PASS: &str = "rss_pass";

impl Collector for MemoryRssCollector {
    fn info(&self) -> &'static CollectorInfo {
        &COLLECTOR
    }

    fn hooks(&self) -> &'static [Hook] {
        const { &[Hook::iterator(PASS, "task")] }
    }

    fn fields(&self) -> &'static [&'static [Field]] {
        &[TASK_FIELDS, RSS_FIELDS]
    }

    fn constants(&self, btf: &Btf) -> Result<Vec<(&'static str, u64)>, BtfError> {
        for (position, name) in ENUMERATORS.into_iter().enumerate() {
            if btf.enumerator(None, name)? != position as i64 {
                return Err(BtfError::MissingType {
                    kind: "enumerator",
                    name: format!("{name} = {position}"),
                });
            }
        }
        // Up to 6.1 the counters are plain words in a struct of their own.
        let has_shares = !btf.has_type("mm_rss_stat");
        let stride = if has_shares { u64::from(btf.size_of("percpu_counter")?) } else { 8 };
        let cpus = aya::util::nr_cpus().map_or(1, |cpus| cpus as u64);
        Ok(vec![("RSS_STRIDE", stride), ("RSS_HAS_SHARES", u64::from(has_shares)), ("RSS_CPUS", cpus)])
    }

    fn aggregations(&self) -> &'static [Aggregation] {
        const { &[Aggregation::of::<MemoryRss>("MEMORY_RSS").looks()] }
    }

    fn decoder(&self, values: &Values) -> Box<dyn Decoder> {
        Box::new(RssDecoder {
            page_bytes: super::page_bytes(),
            min_change: u64::try_from(values.integer("minChangeKiB")).unwrap_or(0) << 10,
            shown: HashMap::new(),
        })
    }

    fn sample(&self, kernel: &mut Kernel) -> Result<(), KernelError> {
        kernel.iterate(PASS).map(drop)
    }
}

struct RssDecoder {
    page_bytes: u64,
    min_change: u64,
    /// What the last row of each kind of memory showed, with its record: only what is above 0.
    shown: HashMap<Memory, (u64, Box<[u8]>)>,
}

/// One kind of memory of one process.
type Memory = (u64, u64, u32);

fn memory(record: &MemoryRss) -> Memory {
    (record.start_ns ^ u64::from(record.pid) << 32, record.mm_raw, record.member_raw)
}

/// Kinds of memory whose last row is remembered; with more, the next rows are shown whatever changed, and ends are not.
const MOST_SHOWN: usize = 1 << 15;

impl Decoder for RssDecoder {
    fn window(&mut self, _span: (u64, u64), records: &mut Vec<(Vec<u8>, u64)>) {
        let there: HashSet<Memory> =
            records.iter().filter_map(|(raw, _)| MemoryRss::read(raw)).map(|one| memory(&one)).collect();
        let gone = self.shown.iter().filter(|(memory, _)| !there.contains(*memory));
        // It ended, or is a target no more.
        let ends = gone.filter_map(|(_, (_, raw))| {
            let nothing = MemoryRss { pages: 0, peak_pages: 0, ..MemoryRss::read(raw)? };
            Some((nothing.bytes().to_vec(), 1))
        });
        records.extend(ends);
    }

    fn decode(&mut self, _header: &Header, raw: &[u8], row: &mut Row<'_>) -> Result<Verdict, DecodeError> {
        let memory = MemoryRss::read(raw).ok_or(DecodeError::Length)?;
        let member = MEMBERS.get(memory.member_raw as usize).ok_or(DecodeError::Value("member"))?;
        let bytes = memory.pages.saturating_mul(self.page_bytes);
        let key = self::memory(&memory);
        let shown = self.shown.get(&key).map_or(0, |(bytes, _)| *bytes);
        // An end is shown, however little it was.
        if shown.abs_diff(bytes) < self.min_change && (bytes != 0 || shown == 0) {
            return Ok(Verdict::Filtered);
        }
        if bytes == 0 {
            self.shown.remove(&key);
        } else {
            if self.shown.len() >= MOST_SHOWN {
                self.shown.clear();
            }
            self.shown.insert(key, (bytes, raw.into()));
        }
        row.process(memory.pid, memory.pid, memory.start_ns, &memory.comm);
        row.word(at::member, member);
        row.uint(at::bytes, bytes);
        row.uint(at::peak_bytes, memory.peak_pages.saturating_mul(self.page_bytes));
        // Where code begins is a secret of the process: its hash tells as much.
        row.int(at::mm_id, (hash(memory.mm_raw ^ memory.start_ns) >> 1).cast_signed());
        Ok(Verdict::Row)
    }
}

fn hash(value: u64) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::LazyLock;
    static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    SECRET.hash_one(value)
}

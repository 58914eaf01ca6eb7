// SPDX-License-Identifier: Apache-2.0
//! The object of kernel programs: made once the first session needs it, with the running kernel's offsets; programs are
//! loaded and attached per collector, and all of it goes when the last session does.
//!
//! In: the embedded object, the kernel's BTF. Out: [`Kernel`], the handle by which everything else reaches maps and
//! programs. Nothing is pinned: what this process holds ends with it.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};

use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, MapFd, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, FEntry, FExit, Iter, RawTracePoint};
use aya::{Ebpf, EbpfLoader};
use node_agent_common::fields::{BASE_FIELDS, Field, MISSING, pack};

use crate::collectors::{ALL, Attach, Hook, Role, Running};
use crate::kernel::btf::Btf;
use crate::kernel::{entries, probe};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/node-agent.bpf.o"));

/// Why the kernel side cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel's types could not be read.
    #[error(transparent)]
    Btf(#[from] crate::kernel::btf::BtfError),
    /// The collector cannot run on this kernel.
    #[error("{0}")]
    Unsupported(String),
    /// The object could not be loaded.
    #[error("cannot load the kernel programs: {0}; CAP_BPF and CAP_PERFMON are needed")]
    Object(#[source] Box<aya::EbpfError>),
    /// The kernel refused a program or its attachment.
    #[error("the kernel refused program {program}: {reason}")]
    Program {
        /// Name in the object.
        program: &'static str,
        /// What the kernel said, with the verifier's last lines.
        reason: String,
    },
    /// A map could not be read or written.
    #[error("map {map}: {source}")]
    Map {
        /// Name in the object.
        map: &'static str,
        /// What the kernel said.
        source: aya::maps::MapError,
    },
    /// A call outside of maps and programs failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The loaded object.
pub struct Kernel {
    ebpf: Ebpf,
    btf: Btf,
    /// How many sessions use each collector, in the order of [`ALL`].
    users: Vec<usize>,
    /// Programs that sessions ask for, once for each that does.
    asked: Vec<&'static str>,
    /// Programs that each collector has attached; some are shared.
    attached: Vec<BTreeSet<&'static str>>,
    targets_attached: bool,
    /// Holds the rings for the programs: a program keeps the outer map, and that its entries, only while it is loaded.
    rings: Option<ArrayOfMaps<MapData, RingBuf<MapData>>>,
}

impl Kernel {
    /// Makes the maps and sets every constant. Loads no program. `rows` is the room of each map that adds events up, where
    /// it is not what the tables say.
    ///
    /// # Errors
    /// When the kernel has no BTF, lacks what every program needs, or refuses the maps.
    pub fn load(ring_mask: u64, rows: Option<u32>) -> Result<Kernel, KernelError> {
        let btf = Btf::running()?;
        let mut constants: Vec<(&'static str, u64)> = vec![("RING_MASK", ring_mask)];
        let places = |fields: &'static [Field], constants: &mut Vec<(&'static str, u64)>| {
            for field in fields {
                let value = btf.member(field.type_name, field.path).map_or(MISSING, |member| {
                    pack(member.offset, member.size, member.bit_offset, member.bit_width)
                });
                constants.push((field.symbol, value));
            }
        };
        places(BASE_FIELDS, &mut constants);
        for collector in ALL {
            collector.fields().iter().for_each(|fields| places(fields, &mut constants));
            // A collector whose constants are missing is unsupported and never attached: see `probe`.
            constants.extend(collector.constants(&btf).unwrap_or_default());
        }
        let mut loader = EbpfLoader::new();
        for (symbol, value) in &constants {
            loader.override_global(symbol, value, true);
        }
        let maps =
            ALL.iter().flat_map(|collector| collector.aggregations()).filter(|one| !one.map.is_empty());
        for (map, rows) in maps.flat_map(|one| rows.map(|rows| (one.map, rows))) {
            loader.map_max_entries(map, rows);
        }
        let ebpf = loader.load(OBJECT).map_err(|error| KernelError::Object(Box::new(error)))?;
        let (users, attached) = (vec![0; ALL.len()], vec![BTreeSet::new(); ALL.len()]);
        Ok(Kernel { ebpf, btf, users, asked: Vec::new(), attached, targets_attached: false, rings: None })
    }

    /// The running kernel's types.
    pub fn btf(&self) -> &Btf {
        &self.btf
    }

    /// Takes a map out of the object, to be owned by somebody else.
    ///
    /// # Errors
    /// When it was taken already.
    pub fn take_map(&mut self, name: &'static str) -> Result<Map, KernelError> {
        self.ebpf.take_map(name).ok_or(KernelError::Unsupported(format!("the object has no map {name}")))
    }

    /// Keeps the map of rings as long as the object.
    pub fn keep(&mut self, rings: ArrayOfMaps<MapData, RingBuf<MapData>>) {
        self.rings = Some(rings);
    }

    /// Detaches and unloads the programs that follow cgroups; the next collector's start brings them back.
    pub fn detach_targets(&mut self) {
        for name in probe::TARGET_HOOKS {
            if let Some(program) = self.ebpf.program_mut(name) {
                // Not loaded is the one way to fail.
                let _ = <&mut BtfTracePoint>::try_from(program).and_then(BtfTracePoint::unload);
            }
        }
        self.targets_attached = false;
    }

    /// A map of the object as a hash map.
    ///
    /// # Errors
    /// When the object has no such map of these types.
    pub fn hash<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<HashMap<&mut MapData, K, V>, KernelError> {
        let map = self.ebpf.map_mut(name).ok_or_else(|| no_map(name))?;
        HashMap::try_from(map).map_err(|source| KernelError::Map { map: name, source })
    }

    /// A map of the object as an array.
    ///
    /// # Errors
    /// When the object has no such map of that type.
    pub fn array<V: aya::Pod>(&mut self, name: &'static str) -> Result<Array<&mut MapData, V>, KernelError> {
        let map = self.ebpf.map_mut(name).ok_or_else(|| no_map(name))?;
        Array::try_from(map).map_err(|source| KernelError::Map { map: name, source })
    }

    /// File descriptor of a hash map.
    ///
    /// # Errors
    /// When the object has no such map.
    pub fn map_fd(&self, name: &'static str) -> Result<&MapFd, KernelError> {
        match self.ebpf.map(name) {
            Some(Map::HashMap(data)) => Ok(data.fd()),
            _ => Err(no_map(name)),
        }
    }

    /// Runs a program that is never attached, with these words as its arguments; returns its answer.
    ///
    /// # Errors
    /// When it is not loaded, or the kernel refuses.
    pub fn run(&self, program: &'static str, arguments: &[u64]) -> Result<u32, KernelError> {
        self.run_on(None, program, arguments)
            .map_err(|source| KernelError::Io { what: "cannot run a program of the agent's own", source })
    }

    /// Runs a program that is never attached once on each CPU that is online.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_everywhere(&self, program: &'static str) -> Result<(), KernelError> {
        let failed = |(what, source)| KernelError::Io { what, source };
        for cpu in aya::util::online_cpus().map_err(failed)? {
            match self.run_on(Some(cpu), program, &[]) {
                // It has gone offline meanwhile.
                Err(source) if source.raw_os_error() == Some(libc::ENXIO) => {}
                Err(source) => return Err(failed(("cannot run a program on each CPU", source))),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    fn run_on(&self, cpu: Option<u32>, program: &'static str, arguments: &[u64]) -> std::io::Result<u32> {
        /// The part of `union bpf_attr` for BPF_PROG_TEST_RUN, of include/uapi/linux/bpf.h.
        #[repr(C)]
        #[derive(Default)]
        struct TestRun {
            prog_fd: u32,
            retval: u32,
            data_size_in: u32,
            data_size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            ctx_size_in: u32,
            ctx_size_out: u32,
            ctx_in: u64,
            ctx_out: u64,
            flags: u32,
            cpu: u32,
        }
        const BPF_PROG_TEST_RUN: libc::c_long = 10;
        const BPF_F_TEST_RUN_ON_CPU: u32 = 1;
        let loaded = self.ebpf.program(program).ok_or(std::io::ErrorKind::NotFound)?;
        let fd = loaded.fd().map_err(std::io::Error::other)?.as_fd().as_raw_fd();
        let mut attr = TestRun {
            prog_fd: fd.cast_unsigned(),
            ctx_size_in: size_of_val(arguments) as u32,
            // The kernel refuses a place without a size.
            ctx_in: if arguments.is_empty() { 0 } else { arguments.as_ptr() as u64 },
            flags: cpu.map_or(0, |_| BPF_F_TEST_RUN_ON_CPU),
            cpu: cpu.unwrap_or(0),
            ..TestRun::default()
        };
        // SAFETY: the kernel reads `attr` of the size given and `ctx_size_in` bytes at `ctx_in`, and writes to `attr`.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<TestRun>()) };
        if result != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(attr.retval)
    }

    /// Sets or clears a slot's bit in a word of an array.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn set_bit(&mut self, map: &'static str, index: u32, slot: u32, on: bool) -> Result<(), KernelError> {
        let mut array = self.array::<u64>(map)?;
        let word = array.get(&index, 0).map_err(|source| KernelError::Map { map, source })?;
        let word = if on { word | 1 << slot } else { word & !(1 << slot) };
        array.set(index, word, 0).map_err(|source| KernelError::Map { map, source })
    }

    /// Hits of a table that nothing said whose they were, since the object was loaded.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn unattributed(&mut self, table: u32) -> Result<u64, KernelError> {
        const MAP: &str = "UNATTRIBUTED";
        let failed = |source| KernelError::Map { map: MAP, source };
        let map = self.ebpf.map_mut(MAP).ok_or_else(|| no_map(MAP))?;
        let hits = PerCpuArray::<_, u64>::try_from(map).map_err(failed)?;
        Ok(hits.get(&table, 0).map_err(failed)?.iter().sum())
    }

    /// Loads and attaches what the collector needs, unless another session has had that done.
    ///
    /// # Errors
    /// The reason why it cannot run here; nothing of it stays loaded then.
    pub fn attach(&mut self, running: Running) -> Result<(), KernelError> {
        let index = running.index;
        let collector = ALL[index];
        let is_first = self.users[index] == 0;
        if is_first && let Some(reason) = probe::missing(collector, &self.btf) {
            return Err(KernelError::Unsupported(reason));
        }
        // The kernel's types are large: they are read only for what has to be attached.
        if is_first || running.asks.iter().any(|program| !self.attached[index].contains(program)) {
            let types =
                aya::Btf::from_sys_fs().map_err(|error| KernelError::Unsupported(error.to_string()))?;
            if !self.targets_attached {
                for name in probe::TARGET_HOOKS {
                    self.attach_hook(&Hook::tracepoint(name), &types)?;
                }
                self.targets_attached = true;
            }
            let attached = if is_first { self.attach_hooks(index, &types) } else { Ok(()) };
            if let Err(error) = attached.and_then(|()| self.attach_asked(running, &types)) {
                if is_first {
                    self.unload(index);
                }
                return Err(error);
            }
        }
        self.asked.extend(running.asks);
        self.users[index] += 1;
        Ok(())
    }

    fn attach_hooks(&mut self, index: usize, types: &aya::Btf) -> Result<(), KernelError> {
        let (mut left_out, mut together) = (Vec::new(), true);
        for hook in ALL[index].hooks() {
            if left_out.contains(&hook.program) {
                continue;
            }
            match hook.role {
                Role::Needed => self.attach_for(index, hook, types)?,
                Role::Better(better) if (better.on)(&self.btf) => match self.attach_for(index, hook, types) {
                    Ok(()) => left_out.push(better.than),
                    Err(error) => {
                        tracing::info!(%error, instead = better.than, "this kernel gives the lesser hook only");
                    }
                },
                Role::Better(_) => {}
                Role::Extra => {
                    if let Err(error) = self.attach_for(index, hook, types) {
                        let collector = ALL[index].info().name;
                        tracing::info!(%error, collector, "some columns stay null on this kernel");
                    }
                }
                Role::Together if together => {
                    if let Err(error) = self.attach_for(index, hook, types) {
                        let collector = ALL[index].info().name;
                        tracing::info!(%error, collector, "this kernel gives the lesser hooks only");
                        self.unload_where(index, |hook| matches!(hook.role, Role::Together));
                        together = false;
                    }
                }
                Role::Instead if !together => self.attach_for(index, hook, types)?,
                Role::Together | Role::Instead | Role::Asked | Role::AskedExtra => {}
            }
        }
        Ok(())
    }

    /// Attaches the hooks of these programs, or none of them.
    fn attach_asked(&mut self, running: Running, types: &aya::Btf) -> Result<(), KernelError> {
        let is_asked = |hook: &&Hook| running.asks.contains(&hook.program);
        for hook in ALL[running.index].hooks().iter().filter(is_asked) {
            self.attach_for(running.index, hook, types)
                .inspect_err(|_| self.unload_unasked(running.index))?;
        }
        Ok(())
    }

    /// Unloads what no session asks for any more.
    fn unload_unasked(&mut self, index: usize) {
        let asked = std::mem::take(&mut self.asked);
        self.unload_where(index, |hook| hook.role.is_asked() && !asked.contains(&hook.program));
        self.asked = asked;
    }

    /// Attaches a program for a collector, unless another one has it attached already.
    fn attach_for(&mut self, index: usize, hook: &Hook, types: &aya::Btf) -> Result<(), KernelError> {
        if !self.is_attached(hook) {
            self.attach_hook(hook, types).inspect_err(|_| self.unload_hook(hook))?;
        }
        self.attached[index].insert(hook.program);
        Ok(())
    }

    /// Whether some collector has the program attached.
    pub fn is_attached(&self, hook: &Hook) -> bool {
        self.attached.iter().any(|programs| programs.contains(hook.program))
    }

    fn attach_hook(&mut self, hook: &Hook, types: &aya::Btf) -> Result<(), KernelError> {
        let name = hook.program;
        let program = self.ebpf.program_mut(name).ok_or_else(|| no_program(name))?;
        let result = match hook.attach {
            Attach::Tracepoint(tracepoint) => <&mut BtfTracePoint>::try_from(program).and_then(|program| {
                program.load(tracepoint, types)?;
                program.attach().map(drop)
            }),
            Attach::Entry(functions) => {
                let function = first_of(&self.btf, functions)?;
                <&mut FEntry>::try_from(program).and_then(|program| {
                    program.load(function, types)?;
                    program.attach().map(drop)
                })
            }
            Attach::Exit(functions) => {
                let function = first_of(&self.btf, functions)?;
                <&mut FExit>::try_from(program).and_then(|program| {
                    program.load(function, types)?;
                    program.attach().map(drop)
                })
            }
            Attach::Iterator(kind) => {
                <&mut Iter>::try_from(program).and_then(|program| program.load(kind, types))
            }
            Attach::Run => <&mut RawTracePoint>::try_from(program).and_then(RawTracePoint::load),
        };
        result.map_err(|error| refused(name, &error))
    }

    /// One session less uses the collector; with the last its programs are detached and unloaded, with the last that asked for
    /// some of them those.
    pub fn detach(&mut self, running: Running) {
        let index = running.index;
        for program in running.asks {
            if let Some(at) = self.asked.iter().position(|asked| asked == program) {
                self.asked.swap_remove(at);
            }
        }
        self.users[index] = self.users[index].saturating_sub(1);
        if self.users[index] > 0 {
            self.unload_unasked(index);
            return;
        }
        self.unload(index);
        for &map in ALL[index].state() {
            // What is left in it would fill it in the end.
            let failed = |source| KernelError::Io { what: "cannot empty a map", source };
            let cleared = self.map_fd(map).and_then(|map| entries::clear(map.as_fd()).map_err(failed));
            if let Err(error) = cleared {
                tracing::warn!(%error, map, "what a collector knew takes room until the agent has no session");
            }
        }
    }

    /// Unloads the collector's programs, but those that another one has attached as well.
    fn unload(&mut self, index: usize) {
        self.unload_where(index, |_| true);
    }

    fn unload_where(&mut self, index: usize, of: impl Fn(&Hook) -> bool) {
        for hook in ALL[index].hooks().iter().filter(|hook| of(hook)) {
            if self.attached[index].remove(hook.program) && !self.is_attached(hook) {
                self.unload_hook(hook);
            }
        }
    }

    fn unload_hook(&mut self, hook: &Hook) {
        let Some(program) = self.ebpf.program_mut(hook.program) else { return };
        // Not loaded is the one way to fail, and then there is nothing to do.
        let _ = match hook.attach {
            Attach::Tracepoint(_) => <&mut BtfTracePoint>::try_from(program).and_then(BtfTracePoint::unload),
            Attach::Entry(_) => <&mut FEntry>::try_from(program).and_then(FEntry::unload),
            Attach::Exit(_) => <&mut FExit>::try_from(program).and_then(FExit::unload),
            Attach::Iterator(_) => <&mut Iter>::try_from(program).and_then(Iter::unload),
            Attach::Run => <&mut RawTracePoint>::try_from(program).and_then(RawTracePoint::unload),
        };
    }

    /// Runs one pass of a loaded iterator and returns what it wrote.
    ///
    /// # Errors
    /// When the pass cannot be made.
    pub fn iterate(&mut self, program: &'static str) -> Result<Vec<u8>, KernelError> {
        let iterator = self.ebpf.program_mut(program).ok_or_else(|| no_program(program))?;
        let iterator = <&mut Iter>::try_from(iterator).map_err(|error| refused(program, &error))?;
        let link = iterator
            .attach()
            .and_then(|id| iterator.take_link(id))
            .map_err(|error| refused(program, &error))?;
        let mut file =
            link.into_file().map_err(|error| KernelError::Program { program, reason: error.to_string() })?;
        let mut output = Vec::new();
        file.read_to_end(&mut output)
            .map_err(|source| KernelError::Io { what: "pass of an iterator", source })?;
        Ok(output)
    }

    /// As [`iterate`](Self::iterate), for a program that tells by the number of the pass what it has met already: processes
    /// share files.
    ///
    /// # Errors
    /// When the number cannot be raised, or the pass cannot be made.
    pub fn pass(&mut self, program: &'static str, passes: &'static str) -> Result<(), KernelError> {
        let failed = |source| KernelError::Map { map: passes, source };
        let mut numbers = self.array::<u64>(passes)?;
        let next = numbers.get(&0, 0).map_err(failed)? + 1;
        numbers.set(0, next, 0).map_err(failed)?;
        self.iterate(program).map(drop)
    }

    /// How the collector's programs meet the kernel here, as in the coverage: `tp_btf`, or `tp_btf,fentry`; `iter` where it
    /// only looks.
    pub fn hook_words(&self, running: Running) -> String {
        let index = running.index;
        let loaded = |hook: &&Hook| self.attached[index].contains(hook.program) && running.has(hook);
        let words: BTreeSet<_> =
            ALL[index].hooks().iter().filter(loaded).filter_map(|hook| hook.attach.word()).collect();
        let looks = |hook: &Hook| matches!(hook.attach, Attach::Iterator(_));
        if words.is_empty() && ALL[index].hooks().iter().filter(loaded).any(looks) {
            return "iter".to_owned();
        }
        words.into_iter().rev().collect::<Vec<_>>().join(",")
    }

    /// Times that the collector's programs were skipped because they ran on that CPU already, since they were loaded. An
    /// extra one that is skipped costs a column's value, no event.
    pub fn recursion_misses(&self, running: Running) -> u64 {
        let index = running.index;
        let attached = |hook: &&Hook| self.attached[index].contains(hook.program) && running.has(hook);
        let hooks = ALL[index]
            .hooks()
            .iter()
            .filter(attached)
            .filter(|hook| !matches!(hook.role, Role::Extra | Role::AskedExtra));
        let programs = hooks.filter_map(|hook| self.ebpf.program(hook.program)?.fd().ok());
        programs.map(|fd| recursion_misses(fd.as_fd().as_raw_fd()).unwrap_or(0)).sum()
    }
}

/// The first of these functions that the kernel has.
fn first_of(btf: &Btf, functions: &[&'static str]) -> Result<&'static str, KernelError> {
    let found = functions.iter().find(|function| btf.function(function).is_some());
    found.copied().ok_or_else(|| {
        KernelError::Unsupported(format!("this kernel has no function {}", functions.join(" or ")))
    })
}

fn no_map(map: &'static str) -> KernelError {
    KernelError::Unsupported(format!("the object has no map {map}"))
}

fn no_program(program: &'static str) -> KernelError {
    KernelError::Unsupported(format!("the object has no program {program}"))
}

fn refused(program: &'static str, error: &dyn std::error::Error) -> KernelError {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        reason = format!("{reason}: {error}");
        source = error.source();
    }
    // The verifier's log is long, and its end says why.
    let lines: Vec<_> = reason.lines().collect();
    if lines.len() > 24 {
        reason = format!("{}\n...\n{}", lines[0], lines[lines.len() - 20..].join("\n"));
    }
    KernelError::Program { program, reason }
}

/// `struct bpf_prog_info` up to and with `recursion_misses` (5.12), of include/uapi/linux/bpf.h.
const PROG_INFO_BYTES: usize = 232;
const RECURSION_MISSES_AT: usize = 208;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// aya does not pass this field on.
fn recursion_misses(fd: i32) -> Option<u64> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut info = [0u8; PROG_INFO_BYTES];
    let attr =
        Attr { fd: fd.cast_unsigned(), info_len: PROG_INFO_BYTES as u32, info: info.as_mut_ptr() as u64 };
    // SAFETY: the kernel reads `attr` of the size given and writes at most `info_len` bytes to `info`.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const attr, size_of::<Attr>()) };
    let field = info[RECURSION_MISSES_AT..].first_chunk::<8>()?;
    (result == 0).then(|| u64::from_ne_bytes(*field))
}

/// Waits until every program that runs now has ended.
pub fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes no pointers. It is the kernel's synchronize_rcu, and programs run inside RCU.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // Refused on kernels with isolated CPUs (nohz_full). Programs run for microseconds.
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The kernel's rings, seen from user space: made per group of CPUs, read in place.
//!
//! In: records that programs submit. Out: byte slices, in the order of each ring.
//! Loses: nothing here; a ring without room is counted by the program that met it.
//! Why several: one ring shared by all CPUs loses 2-6 times its throughput on many cores. Why no epoll: programs submit
//! without wakeup (an event then costs its target about 120 ns instead of 400-500), so the reader comes by on a timer.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use aya::maps::{Map, MapData, RingBuf};

/// CPUs that share a ring.
const CPUS_PER_RING: usize = 2;
/// The kernel side has room for this many.
const MAX_RINGS: usize = 64;
/// All rings together, so that a node with many CPUs does not pay for its worst case on each of them.
const ALL_BYTES: usize = 128 << 20;
/// 8 MiB hold 100,000 records of 80 bytes: 50 ms at 2 M events/s, ten times the reader's period.
const RING_BYTES: usize = 8 << 20;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_TYPE_RINGBUF: u32 = 27;

/// Number and size of the rings for so many CPUs; both are powers of two.
pub fn layout(cpus: usize) -> (usize, usize) {
    let count = cpus.div_ceil(CPUS_PER_RING).next_power_of_two().min(MAX_RINGS);
    (count, RING_BYTES.min(ALL_BYTES / count))
}

/// Makes a ring of `bytes`, a power of two.
///
/// # Errors
/// When the kernel refuses it: privileges, or memory.
pub fn create(bytes: usize) -> io::Result<RingBuf<MapData>> {
    #[repr(C)]
    struct Attr {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        rest: [u32; 14],
    }
    let max_entries = u32::try_from(bytes).map_err(io::Error::other)?;
    let attr =
        Attr { map_type: BPF_MAP_TYPE_RINGBUF, key_size: 0, value_size: 0, max_entries, rest: [0; 14] };
    // SAFETY: the kernel reads `attr` of the size given. aya makes rings from an object only, and these are as many as
    // the node has CPUs.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const attr, size_of::<Attr>()) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let map = MapData::from_fd(fd).and_then(Map::from_map_data).map_err(io::Error::other)?;
    RingBuf::try_from(map).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::layout;

    #[test]
    fn rings_follow_the_cpus_and_stay_within_their_memory() {
        for (cpus, expected) in [
            (1, (1, 8 << 20)),
            (2, (1, 8 << 20)),
            (6, (4, 8 << 20)),
            (64, (32, 4 << 20)),
            (512, (64, 2 << 20)),
        ] {
            assert_eq!(layout(cpus), expected, "{cpus} CPUs");
        }
    }
}

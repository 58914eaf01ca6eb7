// SPDX-License-Identifier: Apache-2.0
//! Reads and deletes many entries of a hash map with one system call each few hundred, whatever their types.
//!
//! aya has no call for it; one entry at a time costs three system calls. Since kernel 5.6.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;
/// Entries of one call at first; a bucket that holds more is asked for with more.
const ENTRIES: usize = 512;

/// The part of `union bpf_attr` for batches, of include/uapi/linux/bpf.h.
#[repr(C)]
#[derive(Default)]
struct Attr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn call(command: libc::c_long, attr: &mut Attr) -> io::Result<()> {
    // SAFETY: the kernel reads and writes `attr` of the size given, and the buffers that it names, which the callers made
    // as large as `count` says.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<Attr>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Hands every entry to `each`. Entries that are made meanwhile may be left out.
///
/// # Errors
/// What the kernel says.
pub fn read(
    map: BorrowedFd<'_>,
    key_bytes: usize,
    value_bytes: usize,
    mut each: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let mut room = ENTRIES;
    // Values are words: the buffer is aligned for them.
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let (mut position, mut next) = (0u32, 0u32);
    let mut is_first = true;
    loop {
        keys.resize(room * key_bytes, 0u8);
        values.resize(room * value_bytes, 0u8);
        let mut attr = Attr {
            in_batch: if is_first { 0 } else { std::ptr::from_ref(&position) as u64 },
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room as u32,
            map_fd: map.as_raw_fd().cast_unsigned(),
            ..Attr::default()
        };
        let result = call(BPF_MAP_LOOKUP_BATCH, &mut attr);
        let is_last = match result {
            Ok(()) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                // A bucket holds more than there was room for; what came before it was handed over.
                Some(libc::ENOSPC) => {
                    room *= 2;
                    if attr.count == 0 {
                        continue;
                    }
                    false
                }
                _ => return Err(error),
            },
        };
        let found = attr.count as usize;
        for (key, value) in keys.chunks_exact(key_bytes).zip(values.chunks_exact(value_bytes)).take(found) {
            each(key, value);
        }
        if is_last {
            return Ok(());
        }
        (position, is_first) = (next, false);
    }
}

/// Deletes every entry that is there.
///
/// # Errors
/// What the kernel says.
pub fn clear(map: BorrowedFd<'_>) -> io::Result<()> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let bytes = |name: &str| -> io::Result<usize> {
        let number = info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        number.ok_or_else(|| io::Error::other(format!("no {name} in fdinfo")))
    };
    let (key_bytes, value_bytes) = (bytes("key_size:")?, bytes("value_size:")?);
    let mut keys = Vec::new();
    read(map, key_bytes, value_bytes, |key, _| keys.extend_from_slice(key))?;
    delete(map, key_bytes, &keys).1
}

/// Deletes the entries of these keys, one after the other in `keys`, all of which are there. Returns how many of them it
/// deleted, from the first on, and what the kernel says where these are not all.
pub fn delete(map: BorrowedFd<'_>, key_bytes: usize, keys: &[u8]) -> (usize, io::Result<()>) {
    if keys.is_empty() {
        return (0, Ok(()));
    }
    let mut attr = Attr {
        keys: keys.as_ptr() as u64,
        count: (keys.len() / key_bytes) as u32,
        map_fd: map.as_raw_fd().cast_unsigned(),
        ..Attr::default()
    };
    let result = call(BPF_MAP_DELETE_BATCH, &mut attr);
    (attr.count as usize, result)
}

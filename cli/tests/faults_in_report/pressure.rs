// SPDX-License-Identifier: Apache-2.0

//! Programs that need memory and CPU time, and how they are kept short of it.

use std::fs;
use std::io::{BufRead, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

/// The file that [`read`] reads, in pages.
pub(crate) const PAGES: usize = 6 << 10;
const PAGE: usize = 4 << 10;
/// Half of it, and room for the program itself.
const LIMIT: usize = (PAGES / 2 * PAGE) + (8 << 20);
pub(crate) const PASSES: usize = 2;
/// How long threads spin.
const SPIN: Duration = Duration::from_secs(2);

/// Reads every page of a mapped file, [`PASSES`] times, once it is told to.
pub(crate) fn read(file: &str) {
    println!("{}", std::process::id());
    std::io::stdin().lock().read_line(&mut String::new()).expect("the test speaks");
    let file = fs::File::open(file).expect("the test made it");
    // SAFETY: a new mapping of a file of that length, which nobody changes.
    let pages = unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            PAGES * PAGE,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        // One page for each fault, none read ahead.
        assert_eq!(libc::madvise(at, PAGES * PAGE, libc::MADV_RANDOM), 0);
        std::slice::from_raw_parts(at.cast::<u8>(), PAGES * PAGE)
    };
    let sum: u64 = (0..PASSES).flat_map(|_| pages.iter().step_by(PAGE)).map(|byte| u64::from(*byte)).sum();
    assert_eq!(sum, (PASSES * PAGES) as u64, "every page begins with a one");
}

/// The file, on a disk; its pages in the page cache or not.
pub(crate) fn make_file(path: &Path, cached: bool) {
    let mut file = fs::File::create(path).expect("the folder is there");
    let mut page = vec![0; PAGE];
    page[0] = 1;
    for _ in 0..PAGES {
        file.write_all(&page).expect("there is room");
    }
    file.sync_all().expect("a disk");
    if !cached {
        // SAFETY: takes no pointers.
        let dropped = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        assert_eq!(dropped, 0);
    }
}

/// Threads that use one and the same CPU. Prints nanoseconds that they ran and that they waited, as the kernel has counted them.
pub(crate) fn spin(threads: usize) {
    // SAFETY: an all-zero set is valid; the kernel reads it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0, "a CPU 0");
    }
    let until = Instant::now() + SPIN;
    let work = move || {
        while Instant::now() < until {}
        let own = fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel counts waits");
        let mut numbers = own.split(' ').map(|number| number.parse::<u64>().expect("a number"));
        [numbers.next(), numbers.next()].map(|number| number.expect("three numbers"))
    };
    let threads: Vec<_> = (0..threads).map(|_| std::thread::spawn(work)).collect();
    let sums = threads.into_iter().map(|thread| thread.join().expect("it ends"));
    let [ran, waited] = sums.fold([0, 0], |all, one| [all[0] + one[0], all[1] + one[1]]);
    println!("{ran} {waited}");
}

/// A limit of memory for a recorded program: of the cgroup that it is recorded in, or where memory has a tree of its own
/// (v1), of one that is made for it.
pub(crate) struct Limit(Option<PathBuf>);

impl Limit {
    pub(crate) fn set(record: &Child, program: u32) -> Self {
        let unified = Path::new("/sys/fs/cgroup").join(format!("tracelake-record-{}", record.id()));
        let limit = LIMIT.to_string();
        if unified.join("memory.max").exists() {
            fs::write(unified.join("memory.max"), limit).expect("root may limit memory");
            return Self(None);
        }
        let own = PathBuf::from(format!("/sys/fs/cgroup/memory/tlf-{program}"));
        fs::create_dir(&own).expect("memory is limited by one of the two trees of cgroups");
        let own = Self(Some(own));
        let write = |file: &str, text: &str| {
            let path = own.0.as_ref().expect("was just made").join(file);
            fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        };
        write("memory.limit_in_bytes", &limit);
        write("cgroup.procs", &program.to_string());
        own
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = self.0.as_ref().map(fs::remove_dir);
    }
}

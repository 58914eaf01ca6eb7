// SPDX-License-Identifier: Apache-2.0

//! What a session's end costs where its store is full of what nobody of the session wrote.
//!
//! This process counts what it allocates, so the tests here run one after another.

extern crate tracelake_dataset as dataset;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use dataset::closing::{self, Closing, Effort};
use dataset::key::{Boot, Key, SessionPrefix};
use dataset::ledger::{LedgerRow, Terms};
use dataset::manifest::{FORMAT_VERSION, NodeManifest, ObjectEntry, Verdict};
use dataset::reader::{self, ReadError};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;

const BOOT: &str = "0123456789abcdef0123456789abcdef";

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is done by the system's allocator; this counts beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

static ALONE: Mutex<()> = Mutex::new(());

/// What comes of it, and the bytes that it took at most.
fn measured<T>(work: impl Future<Output = T>) -> (T, u64) {
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let done = runtime.block_on(work);
    (done, (MOST.load(Ordering::Relaxed) - before) as u64)
}

fn prefix() -> SessionPrefix {
    SessionPrefix::new("", "shop", "checkout", "uid").unwrap()
}

fn boot(number: u32) -> Boot {
    format!("{number:032x}").parse().unwrap()
}

fn manifest(node: &str, objects: Vec<ObjectEntry>, ledger: Vec<LedgerRow>) -> NodeManifest {
    NodeManifest {
        format_version: FORMAT_VERSION,
        node: node.to_owned(),
        boot: BOOT.to_owned(),
        incarnations: Vec::new(),
        objects,
        ledger,
        coverage: Vec::new(),
    }
}

async fn put(store: &InMemory, key: &Key, content: Bytes) {
    store.put(&prefix().object(key), content.into()).await.unwrap();
}

async fn write(store: &InMemory, node: &NodeManifest) {
    let key = Key::node_manifest(&node.node, &BOOT.parse().unwrap()).unwrap();
    reader::create_json(store, &prefix(), &key, node).await.unwrap();
}

async fn close(store: &InMemory, nodes: &[&str], effort: Effort) -> Result<Closing, ReadError> {
    let nodes: BTreeMap<_, _> = nodes.iter().map(|node| ((*node).to_owned(), Some(String::new()))).collect();
    closing::close(store, &prefix(), &nodes, "2026-11-23T00:00:00Z".to_owned(), effort).await
}

#[test]
fn nodes_that_took_no_part_are_counted_and_neither_read_nor_named() {
    let _alone = ALONE.lock();
    let store = InMemory::new();
    let (closing, held) = {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            write(&store, &manifest("node-1", Vec::new(), Vec::new())).await;
            let text = Bytes::from(vec![b' '; 8 << 20]);
            for number in 0..200 {
                let made_up = format!("made-up-{number}");
                put(&store, &Key::node_manifest(&made_up, &boot(1)).unwrap(), text.clone()).await;
                put(&store, &Key::segment("processes", &made_up, &boot(1), 0).unwrap(), text.clone()).await;
            }
            store.put(&"shop/checkout/uid/anything".into(), "x".into()).await.unwrap();
        });
        measured(close(&store, &["node-1"], Effort::Ordinary))
    };
    let closing = closing.unwrap();
    let names: Vec<_> = closing.manifest.nodes.iter().map(|node| node.node.as_str()).collect();
    assert_eq!((names, closing.manifest.verdict), (vec!["node-1"], Verdict::Complete));
    assert_eq!((closing.strangers, closing.found), (401, 0));
    // Not one of them was read.
    assert!(held < 8 << 20, "{held} bytes were held");
}

#[test]
fn what_a_store_is_filled_with_takes_no_more_memory_than_there_is_for_it() {
    let _alone = ALONE.lock();
    // Of all that a manifest may be made of, rows of a ledger take the most memory for their text.
    let row = serde_json::to_string(&LedgerRow::default()).unwrap();
    let row = row.replace(&serde_json::to_string(&Terms::default()).unwrap(), "{}");
    let rows = |bytes: u64| vec![row.as_str(); (bytes as usize - 200) / (row.len() + 1)].join(",");
    let full = |bytes: u64| {
        format!(
            r#"{{"formatVersion":1,"node":"node-1","boot":"{BOOT}","incarnations":[],"objects":[],"ledger":[{}],"coverage":[]}}"#,
            rows(bytes)
        )
    };
    for effort in [Effort::Ordinary, Effort::Large] {
        // As long as one that is read alone may be, and as those that are read side by side.
        for (bytes, count) in [(effort.manifest(), 3), (effort.manifest() / 4, 12)] {
            let store = InMemory::new();
            let text = Bytes::from(full(bytes));
            assert!(text.len() as u64 <= bytes && text.len() as u64 > bytes - 1_000);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            for number in 0..count {
                // Boots are made up as easily as nodes.
                let key = Key::node_manifest("node-1", &boot(number)).unwrap();
                runtime.block_on(put(&store, &key, text.clone()));
            }
            let (closing, held) = measured(close(&store, &["node-1"], effort));
            let closing = closing.unwrap();
            assert_eq!((closing.found, closing.manifest.verdict), (u64::from(count), Verdict::Incomplete));
            assert!(held > bytes, "they were read");
            assert!(held < effort.memory(), "{effort:?}: {held} bytes were held for {count} of {bytes}");
        }
    }
}

#[test]
fn a_folder_that_lists_more_than_fits_is_refused_and_what_is_too_long_is_named() {
    let _alone = ALONE.lock();
    let store = InMemory::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    // Groups of one object each take the most.
    let most = Effort::Ordinary.memory() / 4 / 512;
    runtime.block_on(async {
        for number in 0..=u32::try_from(most).unwrap() {
            let key = Key::segment("processes", "node-1", &boot(number), 0).unwrap();
            put(&store, &key, Bytes::new()).await;
        }
    });
    let (closing, held) = measured(close(&store, &["node-1"], Effort::Ordinary));
    let error = closing.unwrap_err();
    assert!(matches!(error, ReadError::TooLarge { .. }), "{error}");
    // The store's own list of keys is in memory here.
    assert!(held < 3 * Effort::Ordinary.memory(), "{held}");
    assert!(runtime.block_on(close(&store, &["node-1"], Effort::Large)).is_ok());

    let store = InMemory::new();
    let length = usize::try_from(Effort::Large.manifest()).unwrap() + 1;
    let key = Key::node_manifest("node-1", &boot(1)).unwrap();
    runtime.block_on(put(&store, &key, vec![b' '; length].into()));
    runtime.block_on(write(&store, &manifest("node-2", Vec::new(), Vec::new())));
    let both = ["node-1", "node-2"];
    let error = runtime.block_on(close(&store, &both, Effort::Ordinary)).unwrap_err();
    assert!(matches!(error, ReadError::TooLarge { .. }), "{error}");
    let closing = runtime.block_on(close(&store, &both, Effort::Large)).unwrap();
    let reasons: Vec<_> = closing.manifest.nodes.iter().map(|node| node.reason.as_str()).collect();
    assert!(reasons[0].contains(&format!("has {length} bytes")) && reasons[1].is_empty(), "{reasons:?}");
}

#[test]
fn what_a_manifest_says_is_cut_and_has_no_control_characters_where_it_is_told() {
    let _alone = ALONE.lock();
    let store = InMemory::new();
    let key = format!("\u{1b}[2J{}", "x".repeat(10_000));
    let entry = ObjectEntry { key, rows: 0, weight: 0, bytes: 0, sha256: String::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(write(&store, &manifest("node-1", vec![entry; 50], Vec::new())));
    let closing = runtime.block_on(close(&store, &["node-1"], Effort::Ordinary)).unwrap();
    assert_eq!((closing.found, closing.findings.len()), (50, 20));
    let reason = &closing.manifest.nodes[0].reason;
    for text in closing.findings.iter().chain([reason]) {
        assert!(!text.contains(char::is_control) && text.chars().count() <= 500, "{text:?}");
    }
}

// SPDX-License-Identifier: Apache-2.0

//! Batches to Parquet to spool to store and back to rows. The faults of a store in between are in `faults.rs`.
//!
//! Everything is real but the kernel: the segment thread, the spool on disk, presigned uploads over HTTP to an S3
//! server in this process, and the dataset's own verification at the end.

extern crate tracelake_node_agent as node_agent;

#[allow(dead_code, reason = "each test of the agent uses a part of it")]
mod support;

use std::sync::Arc;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use dataset::coverage::CoverageKind;
use dataset::key::{Key, SessionPrefix};
use dataset::ledger::Term;
use dataset::manifest::Verdict;
use node_agent::pipeline::upload::{Destination, UploadError};
use object_store::ObjectStoreExt;
use support::{BOOT, Fault, NODE, Server, World, close_and_verify, granted, prefix};

const UID: &str = "uid-1";

#[tokio::test(flavor = "multi_thread")]
async fn rows_reach_the_store_sorted_and_accounted_for() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    let mut world = World::start(root.path(), u64::MAX, granted(&server));
    let mut session = world.record(UID);
    // Two rings, each in order, one late. Fresh rows: those older than an interval are sealed at once.
    let now = node_agent::kernel::clock::boot_ns() as i64;
    world.engine.events(UID, "processes", &[now + 10, now + 30, now + 50], 4);
    world.engine.events(UID, "processes", &[now + 20, now + 40], 0);
    world.engine.events(UID, "tcp_connections", &[15], 0);
    world.finish(&mut session).await;

    let contents = close_and_verify(server.client.as_ref(), &prefix()).await;
    let read = dataset::reader::read_table(server.client.as_ref(), &contents, "processes").await.unwrap();
    let times: Vec<i64> =
        read.iter().flat_map(|rows| rows["ts_ns"].as_primitive::<Int64Type>().values().to_vec()).collect();
    assert_eq!(times, [10, 20, 30, 40, 50].map(|ns| now + ns));
    let manifest = contents.manifest.unwrap();
    assert_eq!(manifest.verdict, Verdict::Complete);
    assert_eq!(manifest.totals.emitted, 10);
    assert_eq!(manifest.totals.terms.get(Term::Exported), 6);
    assert_eq!(manifest.totals.terms.get(Term::LostRingFull), 4);
    assert_eq!(session.totals().terms, manifest.totals.terms);
    assert_eq!(session.bytes_pending(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_with_other_content_under_our_key_is_never_taken_for_ours_and_holds_up_no_other() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    // As many as there are uploads at the same time.
    for sequence in 0..2 {
        let key = Key::segment("processes", NODE, &BOOT.parse().unwrap(), sequence).unwrap();
        server.client.put(&prefix().object(&key), "somebody else's".into()).await.unwrap();
    }
    let mut world = World::start(root.path(), u64::MAX, granted(&server));
    let mut session = world.record(UID);
    // Rows that are older than a file may become are sealed at once, each in a file of its own.
    let old = node_agent::kernel::clock::boot_ns() as i64 - 61_000_000_000;
    let mut pending = 0;
    for _ in 0..2 {
        world.engine.events(UID, "processes", &[old], 0);
        world.until(&mut session, |session| session.bytes_pending() > pending).await;
        pending = session.bytes_pending();
    }
    let conflict = |session: &node_agent::session::Session| {
        matches!(session.upload_error(), Some(UploadError::ObjectConflict { .. }))
    };
    world.until(&mut session, conflict).await;
    world.engine.events(UID, "processes", &[old, old], 0);
    session.drain(&mut world.engine).unwrap();
    world.until(&mut session, |session| session.totals().terms.get(Term::Exported) == 2).await;
    assert!(session.bytes_pending() == pending && !session.is_done());
    assert!(conflict(&session), "what is still refused is still told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_leaves_its_sealed_rows_and_a_gap() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    // The first process seals one segment, loses another, and the store is away.
    let lost = {
        server.faults.push(&[Fault::Refuse(503); 50]);
        let mut world = World::start(root.path(), u64::MAX, granted(&server));
        let mut session = world.record(UID);
        let old = node_agent::kernel::clock::boot_ns() as i64 - 61_000_000_000;
        world.engine.events(UID, "processes", &[old], 0);
        world.until(&mut session, |session| session.bytes_pending() > 0).await;
        let lost = node_agent::kernel::clock::boot_ns();
        world.engine.events(UID, "processes", &[lost as i64], 0);
        // The counters are written down once a second: until they tell of both events.
        world.until(&mut session, |session| session.totals().emitted == 2).await;
        // Its uploads end with it, and nothing else: a process that is killed seals no file.
        drop(session);
        std::mem::forget(world);
        lost
    };
    server.faults.clear();
    let mut world = World::start(root.path(), u64::MAX, granted(&server));
    let mut session = world.record(UID);
    world.engine.events(UID, "processes", &[7, 8], 0);
    world.finish(&mut session).await;

    let contents = close_and_verify(server.client.as_ref(), &prefix()).await;
    let node = contents.nodes.values().next().unwrap();
    assert_eq!(node.incarnations.len(), 2);
    let crashed: Vec<_> = node.ledger.iter().filter(|row| row.emitted.is_none()).collect();
    assert_eq!(crashed.len(), 1);
    assert_eq!(crashed[0].terms.get(Term::Exported), 1);
    let lived = node.ledger.iter().find(|row| row.emitted.is_some()).unwrap();
    assert_eq!((lived.emitted, lived.terms.get(Term::Exported)), (Some(2), 2));
    let gaps: Vec<_> = node.coverage.iter().filter(|row| row.kind == CoverageKind::Gap).collect();
    assert_eq!(gaps.len(), 1, "{:?}", node.coverage);
    assert!(gaps[0].from_ns < gaps[0].to_ns && gaps[0].reason == "AgentLost" && gaps[0].pod == "web-0");
    // Nobody is told that nothing happened while the lost event did.
    assert!((gaps[0].from_ns..gaps[0].to_ns).contains(&lost), "{lost} {:?}", gaps[0]);
    let traced = node.coverage.iter().filter(|row| row.kind == CoverageKind::Traced);
    assert!(traced.clone().count() > 0);
    assert!(
        traced.clone().all(|row| !(row.from_ns..row.to_ns).contains(&lost)),
        "{lost} {:?}",
        node.coverage
    );
    assert!(contents.manifest.as_ref().unwrap().totals.unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_told_to_stop_loses_nothing_and_declares_the_gap() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    {
        let mut world = World::start(root.path(), u64::MAX, granted(&server));
        let mut session = world.record(UID);
        world.engine.events(UID, "processes", &[1, 2], 3);
        session.interrupt(&mut world.engine);
        world.until(&mut session, |session| session.is_idle()).await;
    }
    let mut world = World::start(root.path(), u64::MAX, granted(&server));
    let mut session = world.record(UID);
    world.finish(&mut session).await;
    let contents = close_and_verify(server.client.as_ref(), &prefix()).await;
    let node = contents.nodes.values().next().unwrap();
    assert!(node.ledger.iter().all(|row| row.emitted.is_some()));
    assert_eq!(node.totals().emitted, 5);
    assert!(node.coverage.iter().any(|row| row.kind == CoverageKind::Gap && row.reason == "AgentStopped"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_counts_what_it_does_not_take() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    let mut world = World::start(root.path(), 0, granted(&server));
    let mut session = world.record(UID);
    world.engine.events(UID, "processes", &[1, 2, 3], 0);
    world.finish(&mut session).await;
    let contents = close_and_verify(server.client.as_ref(), &prefix()).await;
    let totals = contents.manifest.unwrap().totals;
    assert_eq!((totals.emitted, totals.terms.get(Term::LostSpoolFull)), (3, 3));
    assert!(
        !contents
            .nodes
            .values()
            .next()
            .unwrap()
            .objects
            .iter()
            .any(|object| object.key.starts_with("processes/"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_our_own_gets_the_same_dataset() {
    let (folder, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Arc::new(object_store::local::LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    let prefix = SessionPrefix::root("").unwrap();
    let destination = Destination::Store { store: store.clone(), prefix: prefix.clone(), node: NODE.into() };
    let mut world = World::start(root.path(), u64::MAX, destination);
    let mut session = world.record(UID);
    world.engine.events(UID, "processes", &[3, 1, 2], 0);
    world.finish(&mut session).await;
    let contents = tokio::time::timeout(Duration::from_secs(10), close_and_verify(store.as_ref(), &prefix))
        .await
        .unwrap();
    assert_eq!(contents.manifest.unwrap().totals.rows, 3);
}

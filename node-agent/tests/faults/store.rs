// SPDX-License-Identifier: Apache-2.0

//! What a store does to an agent.
//!
//! Everything is real but the kernel, as in `pipeline.rs`; the S3 server in this process fails in the way that a test says.

use std::time::{Duration, Instant};

use dataset::ledger::Term;
use node_agent::pipeline::upload::UploadError;
use node_agent::session::Session;
use object_store::{ObjectStore, PutMode};

use crate::support::{Fault, Server, World, close_and_verify, granted, granted_each, prefix};

const UID: &str = "uid-1";

/// One session of three events against a store with these faults. Each costs an attempt, none an object or a row.
async fn ends_with_one_object(faults: &[Fault], heads: &[Fault]) {
    ends_with_one_object_in(Server::start().await, faults, heads).await;
}

async fn ends_with_one_object_in(server: Server, faults: &[Fault], heads: &[Fault]) {
    let root = tempfile::tempdir().unwrap();
    server.faults.push(faults);
    server.faults.push_heads(heads);
    let mut world = World::patient(Duration::from_secs(1), root.path(), u64::MAX, granted(&server));
    let mut session = world.record(UID);
    world.engine.events(UID, "processes", &[1, 2, 3], 0);
    world.finish(&mut session).await;
    assert!(server.faults.are_used_up(), "{faults:?} {heads:?}");
    let puts = server.faults.puts();
    let contents = close_and_verify(server.client.as_ref(), &prefix()).await;
    assert_eq!(contents.tables()["processes"].len(), 1, "{faults:?}");
    let manifest = contents.manifest.unwrap();
    assert_eq!((manifest.totals.rows, manifest.totals.terms.get(Term::Exported)), (3, 3), "{faults:?}");
    // processes, ledger, coverage, session_nodes, node manifest, and one more for each fault.
    assert_eq!(puts, 5 + (faults.len() + heads.len()) as u64, "{faults:?}");
}

/// An event that is older than a file may become, so that its file is sealed at once.
fn sealed_event(world: &mut World, uid: &str) {
    let old = node_agent::kernel::clock::boot_ns() as i64 - 61_000_000_000;
    world.engine.events(uid, "processes", &[old], 0);
}

fn lost(session: &Session) -> u64 {
    session.totals().terms.get(Term::LostSpoolFull)
}

#[tokio::test(flavor = "multi_thread")]
async fn f04_a_store_that_is_away_costs_nothing_until_the_spool_is_full_and_then_what_is_counted() {
    const CAP: u64 = 96 << 10;
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    server.faults.always(Fault::Refuse(503));
    let mut world = World::start(root.path(), CAP, granted(&server));
    let mut session = world.record(UID);
    let (mut events, mut largest) = (0, 0);
    while lost(&session) == 0 {
        let before = session.bytes_pending();
        sealed_event(&mut world, UID);
        events += 1;
        world.until(&mut session, |session| session.bytes_pending() > before || lost(session) > 0).await;
        assert!(before < 2 * CAP, "the cap does not hold");
        largest = largest.max(session.bytes_pending() - before);
        // A session has at most twice what it leaves to others.
        assert!(
            lost(&session) == 0 || 3 * before >= 2 * CAP,
            "lost with {before} of {CAP} bytes in the spool"
        );
    }
    // The file that passes its share is the last one.
    let used = world.node.spool.used_bytes();
    assert!(3 * used < 2 * CAP + 3 * 2 * largest, "{used}, files of {largest}");
    sealed_event(&mut world, UID);
    events += 1;
    world.until(&mut session, |session| lost(session) == 2).await;
    assert!(matches!(session.upload_error(), Some(UploadError::StoreError { .. })), "it says why");

    // Two uploads at a time, each with pauses that begin at a quarter of a second and double.
    let came = server.faults.came();
    let (tries, took) = (came.len() as u64, came[came.len() - 1].duration_since(came[0]));
    assert!(tries <= 2 + 2 * (1 + took.as_millis() as u64 / 250), "{tries} tries in {took:?}");

    server.faults.clear();
    world.finish(&mut session).await;
    let manifest = close_and_verify(server.client.as_ref(), &prefix()).await.manifest.unwrap();
    let terms = &manifest.totals.terms;
    assert_eq!((manifest.totals.emitted, terms.get(Term::LostSpoolFull)), (events, 2));
    assert_eq!(terms.get(Term::Exported), events - 2);
    assert_eq!(world.node.spool.used_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn f04_what_a_store_refuses_for_a_while_is_there_once() {
    for faults in [[Fault::Refuse(500)].as_slice(), &[Fault::Refuse(503), Fault::Refuse(429)]] {
        ends_with_one_object(faults, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f05_what_was_stored_and_answered_with_an_error_is_there_once() {
    for faults in [[Fault::StoreThenFail].as_slice(), &[Fault::StoreThenFail, Fault::Refuse(500)]] {
        ends_with_one_object(faults, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f06_a_conflict_is_no_success() {
    // Nothing was stored: taken for success, the object would be missing.
    ends_with_one_object(&[Fault::Refuse(409)], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f07_a_store_that_hangs_or_trickles_is_given_up_in_time_and_tried_again() {
    for fault in [Fault::Hang, Fault::Trickle] {
        ends_with_one_object(&[fault], &[]).await;
    }
    // The look at an object that is there already may hang as well.
    ends_with_one_object(&[Fault::StoreThenFail], &[Fault::Hang]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f07_stores_that_hang_keep_no_other_session_from_its_own() {
    let (hung, good) = (Server::start().await, Server::start().await);
    let root = tempfile::tempdir().unwrap();
    hung.faults.always(Fault::Hang);
    // With two uploads each they would fill every place.
    let hanging = ["uid-2", "uid-3", "uid-4"];
    let stores = [(UID, &good), (hanging[0], &hung), (hanging[1], &hung), (hanging[2], &hung)];
    let mut world = World::patient(Duration::from_secs(2), root.path(), u64::MAX, granted_each(&stores));
    let mut sessions: Vec<_> = hanging.iter().map(|uid| world.record(uid)).collect();
    for (uid, session) in hanging.iter().zip(&mut sessions) {
        for _ in 0..2 {
            let before = session.bytes_pending();
            sealed_event(&mut world, uid);
            world.until(session, |session| session.bytes_pending() > before).await;
        }
    }
    let began = Instant::now();
    while hung.faults.puts() < 4 {
        assert!(began.elapsed() < Duration::from_secs(30), "the hanging store was not asked");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut session = world.record(UID);
    for uploaded in 1..=3 {
        sealed_event(&mut world, UID);
        world.until(&mut session, |session| session.totals().objects == uploaded).await;
        assert!(sessions.iter().all(|session| session.totals().objects == 0));
    }
    hung.faults.clear();
    for session in &mut sessions {
        world.until(session, |session| session.bytes_pending() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f07_a_store_that_takes_its_time_has_two_of_the_uploads_however_many_sessions_go_there() {
    let (slow, good) = (Server::start().await, Server::start().await);
    let root = tempfile::tempdir().unwrap();
    // It answers within the time that a store has; here never, which nobody can tell before.
    slow.faults.always(Fault::Hang);
    let waiting = ["uid-2", "uid-3", "uid-4"];
    let stores = [(UID, &good), (waiting[0], &slow), (waiting[1], &slow), (waiting[2], &slow)];
    let mut world = World::patient(Duration::from_secs(120), root.path(), u64::MAX, granted_each(&stores));
    let mut sessions: Vec<_> = waiting.iter().map(|uid| world.record(uid)).collect();
    for (uid, session) in waiting.iter().zip(&mut sessions) {
        for _ in 0..2 {
            let before = session.bytes_pending();
            sealed_event(&mut world, uid);
            world.until(session, |session| session.bytes_pending() > before).await;
        }
    }
    let mut session = world.record(UID);
    for uploaded in 1..=3 {
        sealed_event(&mut world, UID);
        world.until(&mut session, |session| session.totals().objects == uploaded).await;
    }
    assert_eq!(slow.faults.puts(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn f08_an_answer_that_is_cut_or_names_other_content_acknowledges_nothing() {
    for fault in [Fault::CutBody, Fault::CutAnswer, Fault::WrongChecksum] {
        ends_with_one_object(&[fault], &[]).await;
    }
    // What is there is asked for, and the answer is of something else, or broken off.
    for head in [Fault::WrongEtag, Fault::WrongChecksum] {
        ends_with_one_object(&[Fault::StoreThenFail], &[head]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f09_what_is_denied_is_kept_until_the_key_is_right_again() {
    ends_with_one_object(&[Fault::Refuse(403), Fault::Refuse(403)], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f10_data_of_a_store_that_is_gone_are_kept_until_the_session_is_given_up_and_then_counted() {
    let (server, root) = (Server::start().await, tempfile::tempdir().unwrap());
    server.faults.always(Fault::Refuse(404));
    let mut world = World::start(root.path(), u64::MAX, granted(&server));
    let mut session = world.record(UID);
    world.engine.events(UID, "processes", &[1, 2, 3], 0);
    session.drain(&mut world.engine).unwrap();
    // Tried again and again after the window's end, and kept.
    world.until(&mut session, |_| server.faults.puts() >= 3).await;
    assert!(session.bytes_pending() > 0 && !session.is_done());
    assert!(matches!(session.upload_error(), Some(UploadError::StoreError { .. })));
    assert_eq!(session.discard(&mut world.engine).unwrap(), 3);
    let metrics = world.node.metrics.encode().unwrap();
    assert!(metrics.contains("tracelake_spool_discarded_events_total 3"), "{metrics}");
    assert_eq!(world.node.spool.sessions().unwrap(), Vec::<String>::new());
    assert_eq!(world.node.spool.used_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn f11_in_a_store_that_overwrites_each_row_is_there_once_all_the_same() {
    let server = Server::without_conditional_put().await;
    for content in ["one", "two"] {
        let create = PutMode::Create.into();
        let put = server.client.put_opts(&"it overwrites".into(), content.into(), create).await;
        put.expect("a store that forgets what it was asked");
    }
    for faults in [[Fault::StoreThenFail, Fault::CutAnswer].as_slice(), &[Fault::Refuse(500)]] {
        ends_with_one_object_in(Server::without_conditional_put().await, faults, &[]).await;
    }
}

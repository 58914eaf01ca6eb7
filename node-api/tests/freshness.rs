// SPDX-License-Identifier: Apache-2.0
//! Regenerates `src/generated` from `proto/node.proto` and compares.
//!
//! `UPDATE=1 cargo test -p tracelake-node-api --test freshness` rewrites it. Needs `protoc` (Debian:
//! `protobuf-compiler`); without it the test fails, because a stale contract would go unseen.

use std::path::Path;

const GENERATED: &str = "tracelake.node.v1.rs";
const COMMAND: &str = "UPDATE=1 cargo test -p tracelake-node-api --test freshness";

#[test]
fn generated_code_is_what_protoc_makes_of_the_proto() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().expect("temporary folder");
    tonic_prost_build::configure()
        // The service has a method named `connect`, which is also what a generated constructor would be called.
        .build_transport(false)
        // Ordered maps: a plan is named by the hash of its encoding.
        .btree_map(".")
        .emit_rerun_if_changed(false)
        .out_dir(out.path())
        .compile_protos(&[root.join("proto/node.proto")], &[root.join("proto")])
        .expect("protoc runs on proto/node.proto; install it with: apt-get install protobuf-compiler");
    let made = std::fs::read_to_string(out.path().join(GENERATED)).expect("protoc's output");
    let committed = root.join("src/generated").join(GENERATED);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&committed, &made).expect("write src/generated");
    }
    let held = std::fs::read_to_string(&committed).expect("src/generated");
    assert!(held == made, "node-api/src/generated/{GENERATED} is stale; run: {COMMAND}");
}

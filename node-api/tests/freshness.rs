// SPDX-License-Identifier: Apache-2.0
//! Regenerates `src/generated` from `proto` and compares.
//!
//! `UPDATE=1 cargo test -p tracelake-node-api --test freshness` rewrites it. Needs `protoc` (Debian:
//! `protobuf-compiler`); without it the test fails, because a stale contract would go unseen.

use std::path::Path;

const GENERATED: [&str; 2] = ["tracelake.data.v1.rs", "tracelake.node.v1.rs"];
const COMMAND: &str = "UPDATE=1 cargo test -p tracelake-node-api --test freshness";

#[test]
fn generated_code_is_what_protoc_makes_of_the_protos() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().expect("temporary folder");
    tonic_prost_build::configure()
        // The service has a method named `connect`, which is also what a generated constructor would be called.
        .build_transport(false)
        // Ordered maps: a plan is named by the hash of its encoding.
        .btree_map(".")
        .emit_rerun_if_changed(false)
        .out_dir(out.path())
        .compile_protos(
            &["node.proto", "data.proto"].map(|file| root.join("proto").join(file)),
            &[root.join("proto")],
        )
        .expect("protoc runs on the protos; install it with: apt-get install protobuf-compiler");
    for name in GENERATED {
        let made = std::fs::read_to_string(out.path().join(name)).expect("protoc's output");
        let committed = root.join("src/generated").join(name);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&committed, &made).expect("write src/generated");
        }
        let held = std::fs::read_to_string(&committed).expect("src/generated");
        assert!(held == made, "node-api/src/generated/{name} is stale; run: {COMMAND}");
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Builds the kernel programs (`node-agent-ebpf`) into the object that the agent embeds.
//!
//! In: the sources of node-agent-ebpf and node-agent-common. Out: `$OUT_DIR/node-agent.bpf.o`.
//! A nested cargo, because the target (`bpfel-unknown-none`) has no prebuilt `core`: `-Z build-std` with
//! `RUSTC_BOOTSTRAP=1`, so that one pinned stable toolchain builds everything. Its target directory lies beside the outer
//! one and is shared by the debug, release and musl builds, since the object is the same for all of them.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

const OBJECT: &str = "node-agent.bpf.o";
const TARGET: &str = "bpfel-unknown-none";

fn main() {
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in a workspace")
        .to_owned();
    // Relative: another checkout may share the target directory.
    for path in ["node-agent-ebpf", "node-agent-common", "Cargo.lock", "rust-toolchain.toml"] {
        println!("cargo::rerun-if-changed=../{path}");
    }
    println!("cargo::rerun-if-env-changed=PATH");
    let out_dir = PathBuf::from(variable("OUT_DIR"));
    let target_dir = target_dir(&out_dir).join("bpf");
    let linker = linker();
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| "x86_64".into());
    // v3 has the atomic instructions that return a value; kernels know it since 5.12.
    let flags = [
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        &format!("-Clinker={}", linker.display()),
        &format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Ctarget-cpu=v3",
    ]
    .join("\u{1f}");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args([
            "build",
            "--release",
            "--package",
            "tracelake-node-agent-ebpf",
            "--target",
            TARGET,
            "-Z",
            "build-std=core",
        ])
        .arg("--manifest-path")
        .arg(workspace.join("node-agent-ebpf/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags);
    // What the outer cargo tells its compiler is not meant for the nested one.
    for name in [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
    ] {
        cargo.env_remove(name);
    }
    let status =
        cargo.status().unwrap_or_else(|error| panic!("cannot run cargo for the kernel programs: {error}"));
    assert!(
        status.success(),
        "the kernel programs did not build; the messages of the nested cargo stand above"
    );
    let built = target_dir.join(TARGET).join("release/tracelake-node-agent-ebpf");
    std::fs::copy(&built, out_dir.join(OBJECT))
        .unwrap_or_else(|error| panic!("cannot copy the kernel programs from {}: {error}", built.display()));
}

fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name} for build scripts"))
}

/// The directory that holds `debug/`, `release/` and the folders of other targets.
fn target_dir(out_dir: &Path) -> PathBuf {
    // OUT_DIR is <target dir>[/<triple>]/<profile>/build/<package>-<hash>/out.
    let mut directory =
        out_dir.ancestors().nth(4).expect("OUT_DIR lies four levels below the profile's parent");
    let triple = env::var("TARGET").unwrap_or_default();
    if directory.file_name().is_some_and(|name| *name == *triple) {
        directory = directory.parent().expect("a triple's folder lies in the target directory");
    }
    directory.to_owned()
}

/// Finds bpf-linker in PATH or in the cache of this project's tools.
fn linker() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .map(|cache| cache.join("tracelake/tools/bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cache)
        .map(|directory| directory.join("bpf-linker"))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| {
            panic!(
                "bpf-linker is neither in PATH nor in the cache of tools; \
                 `cargo install bpf-linker --version 0.10.4 --locked` installs it"
            )
        })
}

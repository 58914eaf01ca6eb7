// SPDX-License-Identifier: Apache-2.0

//! Root file systems of Debian 13, for nodes and for images of workloads.

use std::path::Path;

use anyhow::{Context, Result};

use crate::{exec, tools};

/// The suite; its containerd and runc are the ones that the cluster runs on.
pub(crate) const SUITE: &str = "trixie";

/// Makes a root file system with the essential packages and these, as a folder.
pub(crate) fn folder(packages: &[&str], path: &Path) -> Result<()> {
    bootstrap("directory", packages, path)
}

/// The same as a tar archive.
pub(crate) fn archive(packages: &[&str], path: &Path) -> Result<()> {
    bootstrap("tar", packages, path)
}

fn bootstrap(format: &str, packages: &[&str], path: &Path) -> Result<()> {
    tools::packages()?;
    let mirror = tools::debian_mirror()?;
    let source = format!("deb [signed-by={}] {mirror} {SUITE} main", tools::DEBIAN_KEYRING);
    let mut mmdebstrap = exec::command("mmdebstrap", ["--mode=root", "--variant=essential", "--quiet"]);
    mmdebstrap.args(["--format", format, "--include", &packages.join(",")]);
    mmdebstrap.args(["--aptopt=APT::Install-Recommends false", "--aptopt=Acquire::Languages none"]);
    // Neither nodes nor workloads read documentation, and copying it takes time under emulation.
    for pattern in ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"] {
        mmdebstrap.args(["--dpkgopt", &format!("path-exclude={pattern}")]);
    }
    mmdebstrap.arg("--customize-hook=rm -rf \"$1\"/var/lib/apt/lists/* \"$1\"/var/cache/apt/*");
    mmdebstrap.arg(SUITE).arg(path).arg(source);
    exec::quiet(&mut mmdebstrap).context("cannot make a Debian root file system")
}

// SPDX-License-Identifier: Apache-2.0

//! Root file systems of Debian 13, for nodes and for images of workloads.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};

use crate::{exec, tools};

/// The suite; its containerd and runc are the ones that the cluster runs on.
pub(crate) const SUITE: &str = "trixie";

/// Installs the packages that it is called with, and writes the archive to standard output.
pub(crate) const IN_CONTAINER: &str = r#"
export DEBIAN_FRONTEND=noninteractive
apt-get update >&2
apt-get install -y --no-install-recommends "$@" >&2
rm -rf /var/lib/apt/lists/* /var/cache/apt/*
tar --create --file=- --directory=/ --exclude=./proc --exclude=./sys --exclude=./dev .
"#;

/// Makes a root file system with the essential packages and these, as a folder.
pub(crate) fn folder(packages: &[&str], path: &Path) -> Result<()> {
    bootstrap("directory", packages, path)
}

/// The same as a tar archive.
pub(crate) fn archive(packages: &[&str], path: &Path) -> Result<()> {
    bootstrap("tar", packages, path)
}

/// Such an archive, made in a container of Debian's own image: whichever suite this machine has.
pub(crate) fn archive_by_docker(packages: &[&str], path: &Path) -> Result<()> {
    let image = format!("debian:{SUITE}-slim");
    // A shell that is a container's first process would not notice Ctrl-C.
    let run = ["run", "--rm", "--init", &image, "sh", "-ec", IN_CONTAINER, "install"];
    let mut docker = exec::command("docker", run);
    docker.args(packages).stdout(File::create(path)?);
    exec::quiet(&mut docker).context("cannot make a Debian root file system in a container")
}

fn bootstrap(format: &str, packages: &[&str], path: &Path) -> Result<()> {
    tools::machines()?;
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

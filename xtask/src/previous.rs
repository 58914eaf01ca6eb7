// SPDX-License-Identifier: Apache-2.0

//! The version before this one, for tests of upgrades: its chart, and its images with a tag of their own.
//!
//! In: a commit of this repository's history. Out: an entry of the cache with its source and binaries, built once by its own
//! lock file, in a folder of their own: two checkouts share names in one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::image::Image;
use crate::{cache, exec, image, tools};

/// What operator and agents of this commit have to work with, and what a cluster can be upgraded from. With the first release
/// it becomes the last release's tag.
const COMMIT: &str = "a43b66e0ba06672df8284b9a8bd9592eff29a70f";
/// The tag of its images.
pub(crate) const TAG: &str = "previous";

/// Its chart.
pub(crate) fn chart() -> Result<PathBuf> {
    Ok(built()?.join("source/charts/tracelake"))
}

/// Its images, and those that its chart names besides.
pub(crate) fn images() -> Result<Vec<Image>> {
    let (built, assets) = (built()?, cache::repository().join("e2e/cluster/images"));
    let product = |name: &str, binary: &'static str| {
        let dockerfile = built.join("source").join(name).join("Dockerfile");
        image::archive((name, TAG), &dockerfile, &[(built.join(binary), binary)])
    };
    Ok(vec![
        product("operator", "tracelake-operator")?,
        product("node-agent", "tracelake-node-agent")?,
        image::archive(
            ("dev-store", TAG),
            &assets.join("dev-store/Dockerfile"),
            &[(tools::weed()?, "weed")],
        )?,
    ])
}

/// The entry of the cache: `source/` and the two binaries.
fn built() -> Result<PathBuf> {
    tools::packages()?;
    tools::rust()?;
    tools::bpf_linker()?;
    cache::entry("previous", "product", cache::Key::default().text(COMMIT), |path| {
        let source = path.join("source");
        std::fs::create_dir_all(&source)?;
        check_out(&source)?;
        let target = path.join("target");
        let binaries = ["tracelake-operator", "tracelake-node-agent"];
        let mut cargo = cache::cargo_in(&source, &target);
        cargo.args(["build", "--locked", "--profile", image::PROFILE, "--target", tools::MUSL_TARGET]);
        cargo.args(binaries.iter().flat_map(|name| ["--package", name]));
        exec::loud(&mut cargo)?;
        for name in binaries {
            let binary = target.join(tools::MUSL_TARGET).join(image::PROFILE).join(name);
            std::fs::copy(&binary, path.join(name)).with_context(|| format!("no {}", binary.display()))?;
        }
        cache::remove(&target)
    })
}

fn check_out(to: &Path) -> Result<()> {
    let archive = to.with_extension("tar");
    let mut git = exec::command("git", ["archive", "--format=tar", "--output"]);
    exec::quiet(git.arg(&archive).arg(COMMIT).current_dir(cache::repository()))
        .context("the version to upgrade from is not in this clone; `git fetch --unshallow` gets it")?;
    exec::quiet(exec::command("tar", ["--extract", "--file"]).arg(&archive).arg("--directory").arg(to))?;
    cache::remove(&archive)
}

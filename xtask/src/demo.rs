// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask demo`: from nothing to a session's tables, on a cluster of two kernels.
//!
//! What is shown is `e2e/src/bin/demo.rs`; here is what it stands on.

use anyhow::Result;

use crate::install::{Access, Existing};
use crate::{cache, cluster, exec, image, install};

/// Show the whole path on a cluster: a shop, one session, its tables.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    cluster: cluster::Options,
    #[command(flatten)]
    existing: Existing,
    /// Leave the cluster running, and say how to use it.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    if let Some(access) = args.existing.access()? {
        // Compiled before anything is changed there.
        image::static_binary("demo")?;
        access.install()?;
        return show(&access);
    }
    image::prepare(args.cluster.choice)?;
    let images = image::build_all()?;
    // The shop's servers start while the chart does, on both nodes; the program that shows it all applies them again.
    let servers = cache::repository().join("e2e/shop/servers.yaml");
    let meanwhile = |access: &Access| exec::quiet(access.kubectl().args(["apply", "-f"]).arg(&servers));
    install::in_ours(&args.cluster, &images, args.keep, meanwhile, show)
}

fn show(access: &Access) -> Result<()> {
    let mut demo = exec::command(image::static_binary("demo")?, [] as [&str; 0]);
    demo.current_dir(cache::repository());
    access.apply_to(&mut demo)?;
    exec::loud(&mut demo)
}

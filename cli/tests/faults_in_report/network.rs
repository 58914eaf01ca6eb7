// SPDX-License-Identifier: Apache-2.0

//! Three network namespaces of a test's own: a pod's, its peer's, and a router between them.
//!
//! ```text
//! pod 10.77.1.2 ---- 10.77.1.1 router 10.77.2.1 ---- 10.77.2.2 peer
//! ```
//!
//! Both of the router's devices send through a token bucket (tbf), so that segments take time, as on a wire, and answers
//! come while the sender does something else. Its queue has room for whatever the tests send, unless a test makes it short:
//! then the router drops, where neither pod nor peer can see it.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) const POD: &str = "10.77.1.2";
pub(crate) const PEER: &str = "10.77.2.2";

/// What a device may send, and how much may wait for it.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    pub(crate) rate: &'static str,
    pub(crate) queue_bytes: u32,
}

impl Link {
    /// Nothing that the tests send is dropped.
    pub(crate) const AMPLE: Link = Link { rate: "200mbit", queue_bytes: 64 << 20 };
    /// A burst of more than some ten segments is.
    pub(crate) const SHORT: Link = Link { rate: "20mbit", queue_bytes: 24_000 };
}

pub(crate) struct Network {
    name: String,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Network {
    /// Makes the namespaces; `path` is what the router sends by towards the peer, `own` what the pod itself does.
    pub(crate) fn new(path: Link, own: Option<Link>) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let network = Self { name: format!("tlf{}x{number}", std::process::id()) };
        let [pod, router, peer] = ["pod", "router", "peer"].map(|end| network.namespace(end));
        for namespace in [&pod, &router, &peer] {
            ip(&["netns", "add", namespace]);
            ip(&["-n", namespace, "link", "set", "lo", "up"]);
        }
        for (namespace, device, address, gateway) in
            [(&pod, "p", POD, "10.77.1.1"), (&peer, "q", PEER, "10.77.2.1")]
        {
            let (near, far) = (format!("{device}0"), format!("{device}1"));
            ip(&[
                "-n", namespace, "link", "add", &near, "type", "veth", "peer", "name", &far, "netns", &router,
            ]);
            ip(&["-n", namespace, "address", "add", &format!("{address}/24"), "dev", &near]);
            ip(&["-n", &router, "address", "add", &format!("{gateway}/24"), "dev", &far]);
            ip(&["-n", namespace, "link", "set", &near, "up"]);
            ip(&["-n", &router, "link", "set", &far, "up"]);
            ip(&["-n", namespace, "route", "add", "default", "via", gateway]);
        }
        run(Command::new("ip").args(["netns", "exec", &router, "sysctl", "-qw", "net.ipv4.ip_forward=1"]));
        shape(&router, "q1", path);
        shape(&router, "p1", Link::AMPLE);
        if let Some(own) = own {
            shape(&pod, "p0", own);
        }
        network
    }

    /// The name of one of `pod`, `router` and `peer`.
    pub(crate) fn namespace(&self, end: &str) -> String {
        format!("{}{end}", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for end in ["pod", "router", "peer"] {
            // One that was not made need not be removed.
            let _ = Command::new("ip").args(["netns", "delete", &self.namespace(end)]).output();
        }
    }
}

fn shape(namespace: &str, device: &str, link: Link) {
    let limit = link.queue_bytes.to_string();
    run(Command::new("tc")
        .args(["-n", namespace, "qdisc", "add", "dev", device, "root", "tbf"])
        .args(["rate", link.rate, "burst", "16000", "limit", &limit]));
}

fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}

fn run(command: &mut Command) {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

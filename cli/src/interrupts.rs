// SPDX-License-Identifier: Apache-2.0

//! What ends a program from outside, for commands that have something to do before they end: a session to stop, files to remove.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Ctrl-C, and what others send to end a program.
pub(crate) struct Interrupts {
    /// None: somebody else listens to Ctrl-C.
    interrupt: Option<Signal>,
    terminate: Signal,
    /// The terminal is gone. None: that ends the program, and no session.
    hangup: Option<Signal>,
}

impl Interrupts {
    /// From now on they end nothing by themselves.
    ///
    /// # Errors
    /// When the system does not let them be listened to.
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("signals cannot be listened to");
        Ok(Self {
            interrupt: Some(listen(SignalKind::interrupt())?),
            terminate: listen(SignalKind::terminate())?,
            hangup: None,
        })
    }

    /// As [`listen`](Self::listen), and to a terminal that is gone: for what has something to clean up. Under `nohup` that is no end.
    ///
    /// # Errors
    /// As [`listen`](Self::listen).
    #[cfg(feature = "sql")]
    pub(crate) fn listen_to_all() -> Result<Self> {
        // SAFETY: a struct of numbers, which the call fills.
        let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: nothing is changed, and `now` is ours.
        let asked = unsafe { libc::sigaction(libc::SIGHUP, std::ptr::null(), &mut now) };
        let ignored = asked == 0 && now.sa_sigaction == libc::SIG_IGN;
        let hangup = if ignored { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self { hangup, ..Self::listen()? })
    }

    /// Without Ctrl-C, which means something else from now on.
    #[cfg(feature = "sql")]
    pub(crate) fn without_ctrl_c(self) -> Self {
        Self { interrupt: None, ..self }
    }

    /// Does work until it is done or one of them comes: then it is dropped, and what it has made goes with it.
    ///
    /// # Errors
    /// Those of the work, and that it was interrupted.
    #[cfg(feature = "sql")]
    pub(crate) async fn end<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            () = self.next() => Err(anyhow::anyhow!("interrupted")),
        }
    }

    /// The next one.
    pub(crate) async fn next(&mut self) {
        async fn of(signal: &mut Option<Signal>) {
            match signal {
                Some(signal) => _ = signal.recv().await,
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            () = of(&mut self.interrupt) => {}
            _ = self.terminate.recv() => {}
            () = of(&mut self.hangup) => {}
        }
    }
}

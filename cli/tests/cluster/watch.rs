// SPDX-License-Identifier: Apache-2.0

//! `status --watch`: what it does to a terminal, and when it gives up.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::server::{Server, said};
use crate::{session, status};

/// Both ends of a terminal: ours, and the program's.
pub(crate) fn terminal() -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: both numbers are written, and what may be null is.
    assert_eq!(unsafe { libc::openpty(&mut ours, &mut theirs, none, none.cast(), none.cast()) }, 0);
    // SAFETY: they are open, and nobody else's.
    unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

/// How a program ends, and what it draws until then on a terminal that it has the other end of.
pub(crate) async fn drawn(mut command: Command, mut ours: File) -> (Option<i32>, String) {
    let mut child = command.spawn().unwrap();
    // The other end closes with the program.
    drop(command);
    let drawn = tokio::task::spawn_blocking(move || {
        let (mut drawn, mut some) = (Vec::new(), [0; 4096]);
        while let Ok(read @ 1..) = ours.read(&mut some) {
            drawn.extend_from_slice(&some[..read]);
        }
        String::from_utf8(drawn).unwrap()
    });
    let ended = child.wait().await.unwrap();
    (ended.code(), drawn.await.unwrap())
}

#[tokio::test]
async fn a_screen_is_drawn_again_whether_or_not_it_has_colours() {
    let server = Server::start().await;
    for colours in [true, false] {
        server.world().sessions = vec![session("checkout", Value::Null)];
        server.world().statuses =
            [status("Running", json!([])), status("Running", json!([])), status("Completed", json!([]))]
                .into();
        let (ours, theirs) = terminal();
        let mut command = server.command("status checkout --watch");
        command.env("TERM", "xterm").stdout(Stdio::from(theirs));
        if !colours {
            command.env("NO_COLOR", "1");
        }
        let (ended, drawn) = drawn(command, ours).await;
        assert_eq!(ended, Some(0), "{drawn:?}");
        assert_eq!(drawn.matches("\u{1b}[H\u{1b}[2J").count(), 3, "{drawn:?}");
        assert_eq!(drawn.contains("\u{1b}[1m"), colours, "{drawn:?}");
    }
}

#[tokio::test]
async fn what_is_no_api_server_is_not_asked_for_ever() {
    let server = Server::start().await;
    server.world().sessions = vec![session("checkout", status("Running", json!([])))];
    let child = server.command("status checkout --watch").spawn().unwrap();
    server.asked("GET").await;
    server.world().refusal = Some((200, Value::String("<html>log in</html>".to_owned())));
    let ended = crate::server::ended(child).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let refused = said(server.command("status checkout --watch")).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
}

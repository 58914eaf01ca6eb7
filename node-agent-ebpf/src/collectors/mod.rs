// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! One module per collector: its hooks and the state they keep.

mod processes;
mod tcp_connections;

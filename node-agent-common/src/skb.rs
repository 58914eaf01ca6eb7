// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Places that the hooks of packets read.

use crate::fields;

fields! {
    /// What the hooks read of a packet and of its device.
    pub SKB_FIELDS, declare_skb_fields {
        SKB_LEN: "sk_buff", "len";
        SKB_SK: "sk_buff", "sk";
        SKB_DEV: "sk_buff", "dev";
        SKB_PROTOCOL: "sk_buff", "protocol";
        SKB_HEAD: "sk_buff", "head";
        SKB_DATA: "sk_buff", "data";
        SKB_END: "sk_buff", "end";
        SKB_TAIL: "sk_buff", "tail";
        SKB_IIF: "sk_buff", "skb_iif";
        SKB_NETWORK: "sk_buff", "network_header";
        SKB_TRANSPORT: "sk_buff", "transport_header";
        SKB_CB: "sk_buff", "cb";
        SHINFO_GSO_SEGS: "skb_shared_info", "gso_segs";
        DEV_NET: "net_device", "nd_net.net";
        TCP_CB_SEQ: "tcp_skb_cb", "seq";
        TCP_CB_SEGS: "tcp_skb_cb", "tcp_gso_segs";
        TCP_CB_FLAGS: "tcp_skb_cb", "tcp_flags";
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The running kernel's BTF (required: the agent cannot run without it) and a hand-made blob of a few types.

use std::mem::{offset_of, size_of};

use super::{Btf, BtfError, KIND_ENUM, KIND_INT, KIND_STRUCT, KIND_TYPEDEF, KIND_UNION, MAGIC, Member};

fn running() -> Btf {
    Btf::running().expect("these tests need a kernel with /sys/kernel/btf/vmlinux")
}

/// Builds a BTF file in memory, one type after the other.
#[derive(Default)]
struct Blob {
    types: Vec<u8>,
    strings: Vec<u8>,
}

impl Blob {
    fn new() -> Blob {
        Blob { types: Vec::new(), strings: vec![0] }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn words(&mut self, words: &[u32]) {
        self.types.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    }

    fn ty(&mut self, name: &str, kind: u32, kflag: bool, vlen: u32, size_or_type: u32) {
        let name = self.name(name);
        self.words(&[name, u32::from(kflag) << 31 | kind << 24 | vlen, size_or_type]);
    }

    fn member(&mut self, name: &str, id: u32, bits: u32, width: u32) {
        let name = self.name(name);
        self.words(&[name, id, width << 24 | bits]);
    }

    fn bytes(self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(MAGIC.to_ne_bytes());
        out.extend([1, 0]);
        let types = self.types.len() as u32;
        for word in [24, 0, types, types, self.strings.len() as u32] {
            out.extend(word.to_ne_bytes());
        }
        out.extend(self.types);
        out.extend(self.strings);
        out
    }
}

/// 1 u32; 2 typedef word=u32; 3 union {u32 low; word high}; 4 struct outer {u32 a; union; word flag:3@65; word next};
/// 5 enum {NEGATIVE=-1, ONE=1}; 6 a typedef of itself.
fn small() -> Blob {
    let mut blob = Blob::new();
    blob.ty("u32", KIND_INT, false, 0, 4);
    blob.words(&[32]);
    blob.ty("word", KIND_TYPEDEF, false, 0, 1);
    blob.ty("", KIND_UNION, false, 2, 4);
    blob.member("low", 1, 0, 0);
    blob.member("high", 2, 0, 0);
    blob.ty("outer", KIND_STRUCT, true, 4, 16);
    blob.member("a", 1, 0, 0);
    blob.member("", 3, 32, 0);
    blob.member("flag", 2, 65, 3);
    blob.member("next", 2, 96, 0);
    blob.ty("", KIND_ENUM, true, 2, 4);
    let (negative, one) = (blob.name("NEGATIVE"), blob.name("ONE"));
    blob.words(&[negative, u32::MAX, one, 1]);
    blob.ty("cycle", KIND_TYPEDEF, false, 0, 6);
    blob
}

#[test]
fn members_are_found_through_anonymous_unions_and_typedefs() {
    let btf = Btf::parse(small().bytes()).expect("parses");
    let plain = |offset| Ok(Member { offset, size: 4, bit_offset: 0, bit_width: 0 });
    assert_eq!(btf.member("outer", "a"), plain(0));
    assert_eq!(btf.member("outer", "low"), plain(4));
    assert_eq!(btf.member("outer", "high"), plain(4));
    assert_eq!(btf.member("outer", "next"), plain(12));
    assert_eq!(btf.size_of("outer"), Ok(16));
}

#[test]
fn a_bit_field_keeps_its_shift_and_width() {
    let btf = Btf::parse(small().bytes()).expect("parses");
    let flag = btf.member("outer", "flag").expect("is there");
    assert_eq!(flag, Member { offset: 8, size: 1, bit_offset: 1, bit_width: 3 });
    assert_eq!(flag.mask(), 0b111);
}

#[test]
fn enumerators_keep_their_sign() {
    let btf = Btf::parse(small().bytes()).expect("parses");
    assert_eq!(btf.enumerator(None, "NEGATIVE"), Ok(-1));
    assert_eq!(btf.enumerator(None, "ONE"), Ok(1));
}

#[test]
fn what_is_missing_is_named() {
    let btf = Btf::parse(small().bytes()).expect("parses");
    let text = |error: BtfError| error.to_string();
    assert_eq!(
        btf.member("outer", "b").map_err(text),
        Err("this kernel's `outer` has no member `b`".to_owned())
    );
    assert_eq!(
        btf.member("inner", "b").map_err(text),
        Err("this kernel's BTF has no struct or union `inner`".to_owned())
    );
    assert_eq!(
        btf.member_any(&[("outer", "parent"), ("outer", "__parent")]).map_err(text),
        Err("this kernel's `outer` has no member `parent`".to_owned())
    );
    assert!(btf.member_any(&[("outer", "parent"), ("outer", "next")]).is_ok());
    assert_eq!(btf.tracepoint("nothing"), None);
}

#[test]
fn a_cycle_of_typedefs_ends() {
    let btf = Btf::parse(small().bytes()).expect("parses");
    assert!(btf.member("cycle", "a").is_err());
}

#[test]
fn anonymous_members_that_contain_each_other_end() {
    let mut blob = Blob::new();
    blob.ty("", KIND_UNION, false, 2, 4);
    blob.member("", 1, 0, 0);
    blob.member("", 1, 0, 0);
    blob.ty("outer", KIND_STRUCT, false, 1, 4);
    blob.member("", 1, 0, 0);
    let btf = Btf::parse(blob.bytes()).expect("parses");
    assert!(btf.member("outer", "a").is_err());
}

#[test]
fn every_truncation_and_every_flipped_byte_is_answered_without_a_panic() {
    let whole = small().bytes();
    let ask = |bytes: Vec<u8>| {
        if let Ok(btf) = Btf::parse(bytes) {
            for path in ["a", "low", "flag", "next", "low.deeper", ""] {
                let _ = btf.member("outer", path);
            }
            let _ = (
                btf.enumerator(None, "ONE"),
                btf.enumerators("outer"),
                btf.function("outer"),
                btf.tracepoint("x"),
            );
        }
    };
    for end in 0..whole.len() {
        ask(whole[..end].to_vec());
    }
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            ask(bytes);
        }
    }
    assert!(Btf::parse(whole[..whole.len() - 1].to_vec()).is_err(), "a cut string section is noticed");
}

#[test]
fn an_unknown_kind_is_refused_unless_the_file_says_its_size() {
    let mut blob = small();
    blob.ty("novelty", 31, false, 1, 0);
    blob.words(&[0xdead, 0xbeef]);
    blob.ty("after", KIND_TYPEDEF, false, 0, 4);
    let plain = blob.bytes();
    assert!(
        matches!(Btf::parse(plain.clone()), Err(BtfError::Malformed { what, .. }) if what.contains("kind"))
    );

    // The same file with a layout section: 4 fixed bytes and 4 per element for kind 31.
    let mut layout = vec![0u8; 32 * 4];
    layout[31 * 4] = 4;
    layout[31 * 4 + 1] = 4;
    let body = plain.len() - 24;
    let mut described = plain[..4].to_vec();
    described.extend(32u32.to_ne_bytes());
    described.extend(&plain[8..24]);
    described.extend((body as u32).to_ne_bytes());
    described.extend((layout.len() as u32).to_ne_bytes());
    described.extend(&plain[24..]);
    described.extend(layout);
    let btf = Btf::parse(described).expect("the layout section gives the size");
    assert_eq!(btf.size_of("after"), Ok(16));
}

#[test]
fn the_running_kernel_has_what_the_collectors_read() {
    let btf = running();
    assert!(btf.len() > 10_000, "{} types", btf.len());
    for (type_name, path, size) in [
        ("task_struct", "tgid", 4),
        ("task_struct", "start_boottime", 8),
        ("sock", "sk_err", 4),
        ("sock", "sk_cgrp_data.cgroup", 8),
        ("sock", "__sk_common.skc_net.net", 8),
        ("sock", "__sk_common.skc_daddr", 4),
        ("net", "ns.inum", 4),
        ("cgroup", "kn", 8),
        ("kernfs_node", "id", 8),
        ("tcp_sock", "bytes_received", 8),
        ("tcp_sock", "inet_conn.icsk_inet.inet_sport", 2),
        ("tcp_congestion_ops", "name", 16),
        ("tcp_sock", "rtt_min.s.v", 4),
    ] {
        let member = btf.member(type_name, path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((member.size, member.bit_width), (size, 0), "{type_name}.{path}");
    }
    let protocol = btf.member("sock", "sk_protocol").expect("is there");
    assert!(protocol.mask() >= 0xff, "{protocol:?}");
    let state = btf.member("inet_connection_sock", "icsk_ca_state").expect("is there");
    assert_eq!(state.bit_width, 5, "{state:?}");
}

#[test]
fn the_running_kernels_enumerators_and_prototypes_are_read() {
    let btf = running();
    assert_eq!(btf.enumerator(None, "TCP_SYN_SENT"), Ok(2), "part of the ABI since RFC 793 in Linux");
    assert_eq!(btf.enumerator(Some("sock_flags"), "SOCK_DEAD"), Ok(0));
    assert!(btf.enumerators("sock_flags").expect("is there").iter().any(|(name, _)| name == "SOCK_DONE"));
    let set_state = btf.tracepoint("inet_sock_set_state").expect("is there");
    assert_eq!(set_state.args, ["*sock", "int", "int"]);
    assert_eq!(set_state.ret, "void");
    assert!(btf.function("tcp_v4_rcv").is_some_and(|f| f.args == ["*sk_buff"] && f.ret == "int"));
    assert_eq!(btf.function("no_such_function_here"), None);
}

#[test]
fn the_user_abi_that_both_sides_know_agrees() {
    // Independent source: libc's declaration of the same kernel struct.
    let btf = running();
    let member = btf.member("tcp_info", "tcpi_rtt").expect("is there");
    assert_eq!(member.offset as usize, offset_of!(libc::tcp_info, tcpi_rtt));
    assert_eq!(btf.member("sockaddr_in", "sin_addr.s_addr").expect("is there").offset, 4);
    assert_eq!(btf.size_of("iovec").expect("is there") as usize, size_of::<libc::iovec>());
}

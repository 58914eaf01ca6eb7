// SPDX-License-Identifier: Apache-2.0
//! Puts the running kernel's functions into the object's calls of [`node_agent_common::kfunc`]. aya 0.14 has no such
//! relocation.

use node_agent_common::kfunc;

/// `struct bpf_insn` of include/uapi/linux/bpf.h: code, registers (source in the upper half), offset, immediate.
const INSTRUCTION: usize = 8;
/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL` as the source register.
const KERNEL_FUNCTION: u8 = 2 << 4;
/// `BPF_ALU64 | BPF_MOV | BPF_K`: what stands where the kernel lacks the function; it sets r0 to 0, as a call may.
const MOVE: u8 = 0xb7;

/// Replaces every such call; returns their number. `id_of` is the BTF id of a function of the kernel.
pub(super) fn resolve(object: &mut [u8], id_of: impl Fn(&str) -> Option<u32>) -> usize {
    let ids = kfunc::ALL.map(|(number, name)| (number, id_of(name)));
    let mut found = 0;
    // Sections with programs are aligned to an instruction, so every instruction is at such a place of the file.
    for instruction in object.chunks_exact_mut(INSTRUCTION) {
        let Some(number) = instruction.last_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes)) else {
            continue;
        };
        let Some((_, id)) = ids.iter().find(|(known, _)| *known == number) else { continue };
        if instruction[..4] != [CALL, 0, 0, 0] {
            continue;
        }
        let (code, registers) = if id.is_some() { (CALL, KERNEL_FUNCTION) } else { (MOVE, 0) };
        instruction[0] = code;
        instruction[1] = registers;
        instruction[4..].copy_from_slice(&id.unwrap_or(0).to_le_bytes());
        found += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_replaced_and_nothing_else() {
        let call = |number: u32| [[CALL, 0, 0, 0], number.to_le_bytes()].concat();
        let other = [[0xb7, 1, 0, 0], kfunc::PREEMPT_ENABLE.to_le_bytes()].concat();
        let mut object =
            [call(kfunc::PREEMPT_DISABLE), call(14), other.clone(), call(kfunc::PREEMPT_ENABLE)].concat();
        let found = resolve(&mut object, |name| (name == "bpf_preempt_disable").then_some(77));
        let disable = [[CALL, 0x20, 0, 0], 77u32.to_le_bytes()].concat();
        let nothing = [[MOVE, 0, 0, 0], [0; 4]].concat();
        assert_eq!((found, object), (2, [disable, call(14), other, nothing].concat()));
    }

    #[test]
    fn the_object_has_as_many_calls_to_disable_as_to_enable() {
        let count = |name: &str| {
            let mut object = super::super::load::OBJECT.to_vec();
            let all = resolve(&mut object, |_| None);
            let mut object = super::super::load::OBJECT.to_vec();
            resolve(&mut object, |other| (other == name).then_some(1));
            (
                all,
                object
                    .chunks_exact(INSTRUCTION)
                    .filter(|at| **at == [CALL, KERNEL_FUNCTION, 0, 0, 1, 0, 0, 0])
                    .count(),
            )
        };
        let (all, disabling) = count("bpf_preempt_disable");
        let (_, enabling) = count("bpf_preempt_enable");
        assert!(
            disabling > 0 && disabling == enabling && all == disabling + enabling,
            "{disabling} {enabling}"
        );
    }
}

"""Device rules as an eBPF program: what cgroup v2 has in place of the devices controller.

The kernel asks the program about each opening and making of a device node (Documentation/admin-guide/cgroup-v2,
"Device controller"). It gets the kind of device, its numbers and the accesses wanted together, and answers yes or no.

The rules apply in order and a later one wins, for each access by itself. So the program goes through them backwards
and keeps the accesses that no rule has decided yet: an allowing rule strikes out what it allows, a denying one that
meets an undecided access says no; with none left the answer is yes, and at the end no.
"""

from __future__ import annotations

import os

from sampan.linux import bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.cgroup.devices import Rule

_BLOCK, _CHARACTER = 1, 2
_ACCESS = {"m": 1, "r": 2, "w": 4}
_EVERYTHING = 7

# Registers: the context, then what is taken out of it.
_CONTEXT, _KIND, _WANTED, _MAJOR, _MINOR, _SCRATCH, _RESULT = 1, 2, 3, 4, 5, 6, 0


def assemble(rules: list[Rule]) -> bytes:
    """The program of rules in order."""
    code = [
        bpf.instruction(bpf.LOAD_WORD, dst=_KIND, src=_CONTEXT, offset=0),
        bpf.instruction(bpf.MOVE, dst=_WANTED, src=_KIND),
        bpf.instruction(bpf.AND_VALUE_32, dst=_KIND, value=0xFFFF),
        bpf.instruction(bpf.RIGHT_SHIFT_32, dst=_WANTED, value=16),
        bpf.instruction(bpf.LOAD_WORD, dst=_MAJOR, src=_CONTEXT, offset=4),
        bpf.instruction(bpf.LOAD_WORD, dst=_MINOR, src=_CONTEXT, offset=8),
    ]
    for rule in reversed(rules):
        code += _block(rule)
        if rule.kind == "a":
            break  # decides everything; the verifier refuses what cannot be reached
    else:
        code += _answer(0)
    return b"".join(code)


def _answer(value: int) -> list[bytes]:
    return [bpf.instruction(bpf.MOVE_VALUE, dst=_RESULT, value=value), bpf.instruction(bpf.EXIT)]


def _block(rule: Rule) -> list[bytes]:
    if rule.kind == "a":
        return _answer(1 if rule.allow else 0)
    tests = [(_KIND, _BLOCK if rule.kind == "b" else _CHARACTER)]
    tests += [(register, number) for register, number in ((_MAJOR, rule.major), (_MINOR, rule.minor)) if number >= 0]
    mask = sum(_ACCESS[letter] for letter in rule.access)
    if rule.allow:
        decision = [
            bpf.instruction(bpf.AND_VALUE_32, dst=_WANTED, value=_EVERYTHING & ~mask),
            bpf.instruction(bpf.JUMP_NOT_EQUAL, dst=_WANTED, value=0, offset=2),
            *_answer(1),
        ]
    else:
        decision = [
            bpf.instruction(bpf.MOVE, dst=_SCRATCH, src=_WANTED),
            bpf.instruction(bpf.AND_VALUE_32, dst=_SCRATCH, value=mask),
            bpf.instruction(bpf.JUMP_EQUAL, dst=_SCRATCH, value=0, offset=2),
            *_answer(0),
        ]
    block = []
    for position, (register, number) in enumerate(tests):
        beyond = len(tests) - position - 1 + len(decision)
        block.append(bpf.instruction(bpf.JUMP_NOT_EQUAL, dst=register, value=number, offset=beyond))
    return block + decision


def install(directory: str, rules: list[Rule]) -> None:
    """Put the rules in force on a group, in place of those that were.

    Raises:
        OSError: The kernel refuses the program, or has no eBPF for cgroups.
    """
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        before = bpf.attached(group, bpf.BPF_CGROUP_DEVICE)
        program = bpf.load(bpf.BPF_PROG_TYPE_CGROUP_DEVICE, assemble(rules), "sampan_devices")
        try:
            # The new one first: programs add up to the strictest, so at no moment is more allowed than should be.
            bpf.attach(group, program, bpf.BPF_CGROUP_DEVICE)
        finally:
            os.close(program)
        for number in before:
            _detach(group, number)
    finally:
        os.close(group)


def _detach(group: int, number: int) -> None:
    program = bpf.open_program(number)
    try:
        bpf.detach(group, program, bpf.BPF_CGROUP_DEVICE)
    finally:
        os.close(program)

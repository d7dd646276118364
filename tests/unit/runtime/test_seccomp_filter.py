"""Sections of a configuration as BPF programs, run by a small interpreter of our own."""

import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.errors import InvalidInput
from sampan.linux import libseccomp
from sampan.runtime import seccomp
from sampan.runtime.seccomp_default import profile

X86_64 = 0xC000003E
I386 = 0x40000003
ALLOW = 0x7FFF0000
ERRNO = 0x00050000

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers are those of x86_64")


def answer(bpf: bytes, syscall: int, args: tuple[int, ...] = (), arch: int = X86_64) -> int:
    """What the kernel would answer: the opcodes that libseccomp emits, on a ``struct seccomp_data``."""
    data = struct.pack("=iIQ6Q", syscall, arch, 0, *(args + (0,) * 6)[:6])
    code = [struct.unpack_from("=HBBI", bpf, at) for at in range(0, len(bpf), 8)]
    a = at = 0
    while True:
        op, jt, jf, k = code[at]
        at += 1
        if op == 0x20:
            a = struct.unpack_from("=I", data, k)[0]
        elif op == 0x54:
            a &= k
        elif op == 0x05:
            at += k
        elif op == 0x06:
            return int(k)
        else:
            at += jt if {0x15: a == k, 0x25: a > k, 0x35: a >= k}[op] else jf


def compiled(**section: Any) -> bytes:
    return seccomp.compile_filter({"defaultAction": "SCMP_ACT_ALLOW", **section}).bpf


def rule(action: str, *names: str, **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": f"SCMP_ACT_{action}", **more}


def number(name: str) -> int:
    found = libseccomp.number(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("action", "value"),
    [
        ("KILL", 0),
        ("KILL_THREAD", 0),
        ("KILL_PROCESS", 0x80000000),
        ("TRAP", 0x30000),
        ("ERRNO", ERRNO | errno.EPERM),
        ("TRACE", 0x7FF00000 | errno.EPERM),
        ("LOG", 0x7FFC0000),
        ("NOTIFY", 0x7FC00000),
    ],
)
def test_every_action(action: str, value: int) -> None:
    bpf = compiled(syscalls=[rule(action, "mkdir")])
    assert answer(bpf, number("mkdir")) == value
    assert answer(bpf, number("rmdir")) == ALLOW


def test_errno_values() -> None:
    bpf = compiled(syscalls=[rule("ERRNO", "mkdir", errnoRet=38)])
    assert answer(bpf, number("mkdir")) == ERRNO | 38
    with pytest.raises(InvalidInput, match=r"syscalls\[0\]\.errnoRet: SCMP_ACT_KILL takes no errno"):
        compiled(syscalls=[rule("KILL", "mkdir", errnoRet=38)])


@pytest.mark.parametrize(
    ("op", "value", "two", "hits", "misses"),
    [
        ("NE", 5, 0, 6, 5),
        ("LT", 5, 0, 4, 5),
        ("LE", 5, 0, 5, 6),
        ("EQ", 1 << 40, 0, 1 << 40, 0),
        ("GE", 5, 0, 5, 4),
        ("GT", 5, 0, 6, 5),
        ("MASKED_EQ", 0xF0, 0x10, 0x1F, 0x2F),
    ],
)
def test_every_operator(op: str, value: int, two: int, hits: int, misses: int) -> None:
    condition = {"index": 2, "value": value, "valueTwo": two, "op": f"SCMP_CMP_{op}"}
    bpf = compiled(syscalls=[rule("KILL", "ioctl", args=[condition])])
    assert answer(bpf, number("ioctl"), (0, 0, hits)) == 0
    assert answer(bpf, number("ioctl"), (0, 0, misses)) == ALLOW


def test_conditions_hold_together_unless_they_share_an_argument() -> None:
    def conditions(*pairs: tuple[int, int]) -> list[dict[str, Any]]:
        return [{"index": index, "value": value, "op": "SCMP_CMP_EQ"} for index, value in pairs]

    both = compiled(syscalls=[rule("KILL", "ioctl", args=conditions((0, 1), (1, 2)))])
    assert [answer(both, number("ioctl"), args) for args in ((1, 2), (1, 3))] == [0, ALLOW]
    either = compiled(syscalls=[rule("KILL", "ioctl", args=conditions((0, 1), (0, 2)))])
    assert [answer(either, number("ioctl"), args) for args in ((1,), (2,), (3,))] == [0, 0, ALLOW]


def test_calls_newer_than_the_profile_do_not_exist() -> None:
    section = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule("ALLOW", "read", "openat2")]}
    bpf = seccomp.compile_filter(section | {"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]}).bpf
    assert answer(bpf, number("read")) == ALLOW
    assert answer(bpf, number("mkdir")) == ERRNO | errno.EPERM
    assert answer(bpf, number("openat2") + 1) == ERRNO | errno.ENOSYS
    assert answer(bpf, 600, arch=I386) == ERRNO | errno.ENOSYS
    assert answer(bpf, 3, arch=I386) == ALLOW


def test_an_architecture_that_is_not_listed_is_killed() -> None:
    assert answer(compiled(architectures=["SCMP_ARCH_X86_64"]), 3, arch=I386) == 0
    assert answer(compiled(architectures=["SCMP_ARCH_X86"]), 3, arch=I386) == ALLOW


def test_flags() -> None:
    def flags(**section: Any) -> int:
        return seccomp.compile_filter({"defaultAction": "SCMP_ACT_ALLOW", **section}).flags

    assert flags() == 4
    assert flags(flags=[]) == 0
    assert flags(flags=["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"]) == 2
    with pytest.raises(InvalidInput, match=r"flags\[0\]: unknown flag 'X'"):
        flags(flags=["X"])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"defaultAction": "ALLOW"}, "defaultAction: unknown action"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z80"]}, r"architectures\[0\]"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("NOTIFY", "write")]}, r"syscalls\[0\]"),
        (
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [rule("KILL", "read", args=[{"index": 6, "op": "SCMP_CMP_EQ"}])],
            },
            r"syscalls\[0\]\.args\[0\]\.index",
        ),
        (
            {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("KILL", "read", args=[{"index": 0, "op": "EQ"}])]},
            r"syscalls\[0\]\.args\[0\]\.op",
        ),
    ],
)
def test_faults_name_the_field(section: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        seccomp.compile_filter(section)


def test_programs_are_kept_on_disk(tmp_path: Path) -> None:
    section = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("KILL", "mkdir")], "flags": []}
    cache = tmp_path / "seccomp"
    first = seccomp.compile_filter(section, cache=str(cache)).bpf
    seccomp._compiled.clear()
    (entry,) = cache.iterdir()
    assert seccomp.compile_filter(section, cache=str(cache)).bpf == first
    entry.chmod(0o666)  # anyone may have written it: not to be trusted
    entry.write_bytes(b"\0" * 8)
    seccomp._compiled.clear()
    assert seccomp.compile_filter(section, cache=str(cache)).bpf == first


def test_the_default_profile() -> None:
    plain = seccomp.compile_filter(profile(["CAP_CHOWN"], "x86_64")).bpf
    admin = seccomp.compile_filter(profile(["CAP_SYS_ADMIN"], "x86_64")).bpf
    denied = ERRNO | errno.EPERM
    assert len(plain) // 8 < 4096
    for name, without, with_admin in (
        ("mount", denied, ALLOW),
        ("unshare", denied, ALLOW),
        ("clone3", ERRNO | errno.ENOSYS, ALLOW),
        ("io_uring_setup", denied, denied),
        ("reboot", denied, denied),
        ("chroot", denied, denied),
        ("keyctl", denied, denied),
        ("read", ALLOW, ALLOW),
        ("arch_prctl", ALLOW, ALLOW),
        ("ptrace", ALLOW, ALLOW),
    ):
        assert answer(plain, number(name)) == without, name
        assert answer(admin, number(name)) == with_admin, name
    assert answer(plain, number("clone"), (0x11,)) == ALLOW
    assert answer(plain, number("clone"), (0x10000000,)) == denied
    assert answer(plain, number("socket"), (2,)) == ALLOW
    assert answer(plain, number("socket"), (40,)) == denied
    assert answer(plain, number("personality"), (0x20008,)) == ALLOW
    assert answer(plain, number("personality"), (0x0040000,)) == denied
    assert answer(plain, 200 | 0x40000000) == ALLOW  # tkill of x32


def test_each_name_of_the_default_profile_is_a_call() -> None:
    names = {name for r in profile([], "x86_64")["syscalls"] for name in r["names"]}
    unknown = {name for name in names if libseccomp.number(name) is None}
    newer_than_our_library = {"cachestat", "fchmodat2", "map_shadow_stack", "mseal"}
    assert {n for n in unknown if not n.startswith("futex_") and not n.endswith("xattrat")} <= newer_than_our_library


def test_rules_that_contradict_each_other_are_named() -> None:
    same = [{"index": 0, "value": 0, "op": "SCMP_CMP_NE"}]
    rules = [{"names": ["read"], "action": action, "args": same} for action in ("SCMP_ACT_LOG", "SCMP_ACT_ERRNO")]
    with pytest.raises(InvalidInput, match="another rule has another action for the same calls of 'read'") as caught:
        seccomp.compile_filter({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})
    assert caught.value.field == "linux.seccomp.syscalls[1]"


@given(
    st.fixed_dictionaries(
        {"defaultAction": st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "x"])},
        optional={
            "flags": st.lists(st.sampled_from(["SECCOMP_FILTER_FLAG_LOG", "y"]), max_size=2),
            "syscalls": st.lists(
                st.fixed_dictionaries(
                    {
                        "names": st.lists(st.sampled_from(["read", "mkdir", "socket", "nonsense", ""]), max_size=3),
                        "action": st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_ERRNO"]),
                        "args": st.lists(
                            st.fixed_dictionaries(
                                {
                                    "index": st.integers(-1, 7),
                                    "value": st.integers(0, 2**64 - 1),
                                    "valueTwo": st.integers(0, 2**64 - 1),
                                    "op": st.sampled_from(["SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"]),
                                }
                            ),
                            max_size=3,
                        ),
                    }
                ),
                max_size=4,
            ),
        },
    )
)
def test_any_section_compiles_or_is_refused(section: dict[str, Any]) -> None:
    try:
        bpf = seccomp.compile_filter(section).bpf
    except InvalidInput:
        return
    assert answer(bpf, number("mkdir")) is not None

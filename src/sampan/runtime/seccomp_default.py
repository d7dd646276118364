"""The default system call filter: containerd's, as a function of the container's capabilities.

A list of what is allowed; everything else fails with EPERM, or with ENOSYS if it is newer than the list. Stricter than
containerd 1.x in one point, as containerd 2 is: no io_uring, whose bugs let containers into the kernel again and again.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# ptrace and process_vm_*: safe since Linux 4.8, where a tracer can no longer change a call after the filter saw it.
_ALWAYS = """
_llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32
clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32
geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid
getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt
gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1
inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl
ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32
lgetxattr link linkat listen listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise
map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap
mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc
pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease
process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink
readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename
renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area
set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid
setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid
setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statx symlink symlinkat sync
sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat utime utimensat
utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
"""

#: Capability -> the calls it adds. Without the capability the kernel would refuse them anyway; the filter keeps the
#: code behind them out of reach.
_BY_CAPABILITY = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": (
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount"
        " open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare"
    ),
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}

#: Machine (uname -m) -> its architectures, and the calls that only it has.
_MACHINES = {
    "x86_64": (("X86_64", "X86", "X32"), "arch_prctl modify_ldt"),
    "i686": ((), "modify_ldt"),
    "aarch64": (
        ("ARM", "AARCH64"),
        "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    ),
    "armv7l": ((), "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2"),
    "ppc64le": ((), "swapcontext sync_file_range2"),
    "riscv64": (("RISCV64",), "riscv_flush_icache"),
    "s390x": (("S390", "S390X"), "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
}

#: Personalities that are harmless: Linux, 32-bit Linux, each with UNAME26, and the question which one it is.
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

_AF_VSOCK = 40
#: New cgroup, UTS, IPC, user, PID, network and mount namespaces.
_CLONE_NAMESPACES = 0x7E020000


def profile(capabilities: Iterable[str], machine: str = "") -> dict[str, Any]:
    """A ``linux.seccomp`` section.

    Args:
        capabilities: The container's bounding set, as in ``process.capabilities.bounding``.
        machine: As ``uname -m`` has it; empty is this machine.
    """
    machine = machine or os.uname().machine
    held = set(capabilities)
    architectures, own = _MACHINES.get(machine, ((), ""))
    names = [*_ALWAYS.split(), *own.split()]
    for capability in sorted(held & _BY_CAPABILITY.keys()):
        names += _BY_CAPABILITY[capability].split()
    rules: list[dict[str, Any]] = [
        {"names": sorted(set(names)), "action": "SCMP_ACT_ALLOW"},
        # Sockets to the hypervisor are not confined by network namespaces.
        _allow_if("socket", 0, "SCMP_CMP_NE", _AF_VSOCK),
        *(_allow_if("personality", 0, "SCMP_CMP_EQ", value) for value in _PERSONALITIES),
    ]
    if "CAP_SYS_ADMIN" not in held:
        position = 1 if machine.startswith("s390") else 0
        rules.append(_allow_if("clone", position, "SCMP_CMP_MASKED_EQ", _CLONE_NAMESPACES))
        # Its flags are in memory, where a filter can't look; ENOSYS makes the C library fall back on clone.
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS})
    section: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}
    if architectures:
        section["architectures"] = [f"SCMP_ARCH_{name}" for name in architectures]
    return section


def _allow_if(name: str, index: int, operator: str, value: int) -> dict[str, Any]:
    condition: dict[str, Any] = {"index": index, "value": value, "op": operator}
    if operator == "SCMP_CMP_MASKED_EQ":
        condition["valueTwo"] = 0
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [condition]}

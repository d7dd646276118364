"""The shape of config.json, field by field (config.md and config-linux.md of the runtime specification, 1.2)."""

from __future__ import annotations

from sampan.linux import scheduling
from sampan.spec.shape import absolute, fields, filled, flag, letters, listing, mapping, one_of, text, whole

#: 2**32 - 1 is "no change" to setresuid(2): as a uid it would leave the process root.
ID = whole(0, 2**32 - 2)
_U16 = whole(0, 2**16 - 1)
_U32 = whole(0, 2**32 - 1)
_U64 = whole(0, 2**64 - 1)
_I64 = whole(-(2**63), 2**63 - 1)
_TEXTS = listing(text)

NAMESPACES = ("cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts")
RLIMITS = tuple(
    f"RLIMIT_{name}"
    for name in (
        "AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE",
        "NOFILE", "NPROC", "RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK",
    )
)  # fmt: skip
PROPAGATIONS = ("private", "rprivate", "rshared", "rslave", "runbindable", "shared", "slave", "unbindable")
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
SECCOMP_ACTIONS = tuple(
    f"SCMP_ACT_{name}"
    for name in ("ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "LOG", "NOTIFY", "TRACE", "TRAP")
)
SECCOMP_FLAGS = tuple(f"SECCOMP_FILTER_FLAG_{name}" for name in ("LOG", "SPEC_ALLOW", "TSYNC", "WAIT_KILLABLE_RECV"))
SECCOMP_ARCHITECTURES = tuple(
    f"SCMP_ARCH_{name}"
    for name in (
        "AARCH64", "ARM", "LOONGARCH64", "M68K", "MIPS", "MIPS64", "MIPS64N32", "MIPSEL", "MIPSEL64", "MIPSEL64N32",
        "PARISC", "PARISC64", "PPC", "PPC64", "PPC64LE", "RISCV64", "S390", "S390X", "SH", "SHEB", "X32", "X86",
        "X86_64",
    )
)  # fmt: skip
_COMPARISONS = tuple(f"SCMP_CMP_{name}" for name in ("EQ", "GE", "GT", "LE", "LT", "MASKED_EQ", "NE"))

_USER = fields({"uid": ID, "gid": ID, "umask": whole(0, 0o7777), "additionalGids": listing(ID), "username": text})
_CAPABILITIES = fields(
    dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), _TEXTS),
)
_RLIMIT = fields({}, {"type": one_of(RLIMITS), "soft": _U64, "hard": _U64})
_SCHEDULER = fields(
    {
        "nice": whole(-20, 19),
        "priority": whole(0, 99),
        "flags": listing(one_of(scheduling.FLAGS)),
        "runtime": _U64,
        "deadline": _U64,
        "period": _U64,
    },
    {"policy": one_of(scheduling.POLICIES)},
)
_IO_PRIORITY = fields({"priority": whole(0, 7)}, {"class": one_of(scheduling.IO_CLASSES)})

PROCESS = fields(
    {
        "terminal": flag,
        "consoleSize": fields({}, {"height": _U16, "width": _U16}),
        "user": _USER,
        "env": _TEXTS,
        "capabilities": _CAPABILITIES,
        "rlimits": listing(_RLIMIT),
        "noNewPrivileges": flag,
        "apparmorProfile": text,
        "selinuxLabel": text,
        "oomScoreAdj": whole(-1000, 1000),
        "scheduler": _SCHEDULER,
        "ioPriority": _IO_PRIORITY,
        "execCPUAffinity": fields({"initial": text, "final": text}),
    },
    {"args": listing(text, least=1), "cwd": absolute},
)

_MAPPING = fields({}, {"containerID": ID, "hostID": ID, "size": whole(1, 2**32 - 1)})
#: The kernel takes 340 lines (user_namespaces(7)).
_MAPPINGS = listing(_MAPPING, most=340)
_MOUNT = fields(
    {"type": text, "source": text, "options": _TEXTS, "uidMappings": _MAPPINGS, "gidMappings": _MAPPINGS},
    {"destination": absolute},
)
_HOOK = fields({"args": _TEXTS, "env": _TEXTS, "timeout": whole(1, 2**31 - 1)}, {"path": absolute})
_DEVICE = fields(
    {"major": _I64, "minor": _I64, "fileMode": _U32, "uid": ID, "gid": ID},
    {"type": one_of(("c", "u", "b", "p")), "path": absolute},
)
_DEVICE_RULE = fields(
    {
        "type": one_of(("a", "b", "c", "u")),
        "major": whole(-1, 2**32 - 1),
        "minor": whole(-1, 2**32 - 1),
        "access": letters("rwm"),
    },
    {"allow": flag},
)
_WEIGHT_DEVICE = fields({"weight": _U16, "leafWeight": _U16}, {"major": _I64, "minor": _I64})
_THROTTLE = listing(fields({}, {"major": _I64, "minor": _I64, "rate": _U64}))

RESOURCES = fields(
    {
        "devices": listing(_DEVICE_RULE),
        "memory": fields(
            {
                "limit": _I64,
                "reservation": _I64,
                "swap": _I64,
                "kernel": _I64,
                "kernelTCP": _I64,
                "swappiness": whole(0, 100),
                "disableOOMKiller": flag,
                "useHierarchy": flag,
                "checkBeforeUpdate": flag,
            }
        ),
        "cpu": fields(
            {
                "shares": _U64,
                "quota": _I64,
                "burst": _U64,
                "period": _U64,
                "realtimeRuntime": _I64,
                "realtimePeriod": _U64,
                "cpus": text,
                "mems": text,
                "idle": whole(0, 1),
            }
        ),
        "pids": fields({"limit": _I64}),
        "blockIO": fields(
            {
                "weight": _U16,
                "leafWeight": _U16,
                "weightDevice": listing(_WEIGHT_DEVICE),
                **{f"throttle{what}Device": _THROTTLE for what in ("ReadBps", "WriteBps", "ReadIOPS", "WriteIOPS")},
            }
        ),
        "hugepageLimits": listing(fields({}, {"pageSize": filled, "limit": _U64})),
        "network": fields(
            {"classID": _U32, "priorities": listing(fields({}, {"name": filled, "priority": _U32}))},
        ),
        "rdma": mapping(fields({"hcaHandles": _U32, "hcaObjects": _U32})),
        "unified": mapping(text),
    }
)

_SECCOMP_ARG = fields({"valueTwo": _U64}, {"index": whole(0, 5), "value": _U64, "op": one_of(_COMPARISONS)})
SECCOMP = fields(
    {
        "defaultErrnoRet": whole(0, 4095),
        "architectures": listing(one_of(SECCOMP_ARCHITECTURES)),
        "flags": listing(one_of(SECCOMP_FLAGS)),
        "listenerPath": text,
        "listenerMetadata": text,
        "syscalls": listing(
            fields(
                {"errnoRet": whole(0, 2**16 - 1), "args": listing(_SECCOMP_ARG, most=64)},
                {"names": listing(filled, least=1), "action": one_of(SECCOMP_ACTIONS)},
            )
        ),
    },
    {"defaultAction": one_of(SECCOMP_ACTIONS)},
)

_CLOCK = fields({"secs": _I64, "nanosecs": whole(0, 999_999_999)})
LINUX = fields(
    {
        "namespaces": listing(fields({"path": text}, {"type": one_of(NAMESPACES)})),
        "uidMappings": _MAPPINGS,
        "gidMappings": _MAPPINGS,
        "timeOffsets": mapping(_CLOCK),
        "devices": listing(_DEVICE),
        "cgroupsPath": text,
        "resources": RESOURCES,
        "rootfsPropagation": one_of(("", *PROPAGATIONS)),
        "seccomp": SECCOMP,
        "sysctl": mapping(text),
        "maskedPaths": listing(absolute),
        "readonlyPaths": listing(absolute),
        "mountLabel": text,
        "intelRdt": fields({"closID": text, "l3CacheSchema": text, "memBwSchema": text, "schemata": _TEXTS}),
        "memoryPolicy": fields(
            {"nodes": text, "flags": listing(one_of(scheduling.MEMORY_FLAGS))},
            {"mode": one_of(scheduling.MEMORY_MODES)},
        ),
        "personality": fields({"flags": _TEXTS}, {"domain": one_of(scheduling.PERSONALITIES)}),
        "netDevices": mapping(fields({"name": text})),
    }
)

CONFIG = fields(
    {
        "process": PROCESS,
        "hostname": text,
        "domainname": text,
        "mounts": listing(_MOUNT),
        "hooks": fields({kind: listing(_HOOK) for kind in HOOKS}),
        "linux": LINUX,
        "annotations": mapping(text),
    },
    {"ociVersion": filled, "root": fields({"readonly": flag}, {"path": filled})},
)

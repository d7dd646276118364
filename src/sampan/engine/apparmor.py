"""The AppArmor profile of a container: the request's, or Sampan's own, which is loaded when it is first needed.

Containers without a profile of their own get the default, as with containerd; nobody does on a machine that does not
run AppArmor or has no apparmor_parser(8), where it could not be loaded. A privileged container gets what it asks for by
name and nothing else.
"""

from sampan.engine.model import Security
from sampan.errors import StageFailed
from sampan.linux import apparmor
from sampan.runtime.labels import DEFAULT_PROFILE

#: What a container may not do even as root with capabilities: change the machine through /proc and /sys, mount, look
#: into or signal processes that are not its own. It includes no file, since a machine need not have the usual ones.
TEXT = f"""\
profile {DEFAULT_PROFILE} flags=(attach_disconnected, mediate_deleted) {{
  file,
  network,
  capability,
  umount,
  deny mount,

  # The machine's processes may signal it; among themselves its processes may do as they like.
  signal (receive) peer=unconfined,
  signal (receive) peer={{runc,crun}},
  signal (send, receive) peer={DEFAULT_PROFILE},
  ptrace (trace, read, tracedby, readby) peer={DEFAULT_PROFILE},

  # Of /proc, the files of processes, and of the sysctls those that an IPC namespace has for itself.
  deny /proc/* w,
  deny /proc/{{acpi,asound,bus,driver,fs,irq,scsi,tty}}/** w,
  deny /proc/{{kcore,kmem,mem,sysrq-trigger}} rwklx,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/ke[^r]** w,
  deny /proc/sys/kernel/[^ms]** w,
  deny /proc/sys/kernel/m[^s]** w,
  deny /proc/sys/kernel/s[^eh]** w,
  deny /proc/sys/kernel/seccomp/** w,

  # Of /sys, the control groups.
  deny /sys/{{block,bus,class,dev,devices,firmware,hypervisor,kernel,module,power}}/** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/firmware/** r,
  deny /sys/devices/virtual/powercap/** r,
  deny /sys/kernel/security/** r,
}}
"""


def profile(security: Security) -> str:
    """``process.apparmorProfile``; empty for none.

    Raises:
        StageFailed: The default could not be loaded though this machine could: a container must not seem confined.
    """
    wanted = security.apparmor
    if wanted.kind == "localhost":
        return wanted.reference
    if wanted.kind == "unconfined" or security.privileged or not apparmor.enabled():
        return ""
    try:
        if not apparmor.loaded(DEFAULT_PROFILE):
            if not apparmor.parser():
                return ""
            apparmor.load(TEXT)
    except FileNotFoundError:
        return ""  # securityfs is not mounted: this is a container, whose policy is the machine's
    except OSError as error:
        hint = "containers with the profile unconfined, or those of your own profiles, do without it"
        raise StageFailed(f"load AppArmor profile {DEFAULT_PROFILE}", error, hint=hint) from error
    return DEFAULT_PROFILE

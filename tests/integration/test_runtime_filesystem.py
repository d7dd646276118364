"""The container's mounts, devices and paths as the kernel shows them from inside."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime_bundle import Box

from sampan.errors import StageFailed

pytestmark = pytest.mark.root


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.discard()


def _mount(box: Box, destination: str, source: Path | str, *options: str, fstype: str = "bind") -> None:
    box.config["mounts"].append(
        {"destination": destination, "source": str(source), "type": fstype, "options": list(options)}
    )


def _options_of(box: Box, destination: str) -> list[str]:
    return box.sh(f"grep ' {destination} ' /proc/self/mounts | tail -n 1 | cut -d' ' -f4").split(",")


def test_default_devices_and_links(box: Box) -> None:
    said = box.sh(
        "for d in null zero full random urandom tty; do stat -c '%F %t:%T %a' /dev/$d; done;"
        "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done"
    ).split("\n")
    assert said == [
        "character special file 1:3 666",
        "character special file 1:5 666",
        "character special file 1:7 666",
        "character special file 1:8 666",
        "character special file 1:9 666",
        "character special file 5:0 666",
        "/proc/self/fd",
        "/proc/self/fd/0",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
        "pts/ptmx",
    ]


def test_extra_devices(box: Box) -> None:
    box.linux["devices"] = [
        {"type": "c", "path": "/dev/mine", "major": 1, "minor": 3, "fileMode": 0o620, "uid": 5, "gid": 6},
        {"type": "p", "path": "/dev/deep/pipe"},
        {"type": "b", "path": "/dev/disk", "major": 7, "minor": 200},
    ]
    assert box.sh("stat -c '%F %t:%T %a %u:%g' /dev/mine; stat -c %F /dev/deep/pipe; stat -c '%F %t:%T' /dev/disk") == (
        "character special file 1:3 620 5:6\nfifo\nblock special file 7:c8"
    )


@pytest.mark.parametrize(
    ("options", "present"),
    [
        (["ro"], ["ro"]),
        (["ro", "rw"], ["rw"]),
        (["nosuid", "nodev", "noexec"], ["nosuid", "nodev", "noexec"]),
        (["noatime"], ["noatime"]),
        (["nodiratime"], ["nodiratime"]),
        (["nosymfollow"], ["nosymfollow"]),
        (["rro"], ["ro"]),
        (["rnosuid", "suid"], ["nosuid"]),
    ],
)
def test_bind_options(box: Box, tmp_path: Path, options: list[str], present: list[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    _mount(box, "/data", source, "bind", *options)
    found = _options_of(box, "/data")
    assert set(present) <= set(found)


def test_recursive_attributes_reach_submounts(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "sub", str(source / "sub")], check=True)
    try:
        _mount(box, "/plain", source, "rbind", "ro")
        _mount(box, "/deep", source, "rbind", "rro")
        _mount(box, "/flat", source, "bind", "ro")
        assert (
            box.sh(
                "touch /plain/sub/a; ! touch /plain/b 2>/dev/null; ! touch /deep/sub/c 2>/dev/null; ls /flat/sub|wc -l"
            )
            == "0"
        )
    finally:
        subprocess.run(["umount", str(source / "sub")], check=True)


def test_a_file_is_bound_over_a_file_made_for_it(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_text("content")
    _mount(box, "/etc/deep/down/file", source, "bind", "ro")
    assert box.sh("cat /etc/deep/down/file") == "content"


@pytest.mark.parametrize("fstype", ["bind", "tmpfs"])
@pytest.mark.parametrize("link", ["/", "../../..", "."])
def test_a_mount_over_the_root_is_refused(box: Box, tmp_path: Path, fstype: str, link: str) -> None:
    (source := tmp_path / "source").mkdir()
    (box.rootfs / "up").symlink_to(link)
    _mount(box, "/up", source, fstype=fstype)
    with pytest.raises(StageFailed, match=r"at /up: .*over the root is refused"):
        box.create("true")
    assert os.listdir(box.handler.root) == []


def test_the_root_may_be_mounted_in_itself(box: Box) -> None:
    _mount(box, "/data", box.rootfs, "bind")
    _mount(box, "/data/tmp", "tmpfs", fstype="tmpfs")
    assert box.sh("ls /data/bin/busybox; grep -c ' /data/tmp ' /proc/self/mounts") == "/data/bin/busybox\n1"


def test_destinations_may_be_symlinks_inside_the_root(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "here").touch()
    (box.rootfs / "var").mkdir()
    (box.rootfs / "var" / "run").symlink_to("/run")
    (box.rootfs / "up").symlink_to("../../../../elsewhere")
    _mount(box, "/var/run/secrets", source, "bind")
    _mount(box, "/up/there", source, "bind")
    assert box.sh("ls /run/secrets /elsewhere/there").split() == ["/elsewhere/there:", "here", "/run/secrets:", "here"]
    assert (box.rootfs / "run" / "secrets").is_dir()


def test_tmpfs_takes_the_mode_and_copies_up(box: Box) -> None:
    (box.rootfs / "spool" / "in").mkdir(parents=True)
    (box.rootfs / "spool" / "in" / "a").write_text("one")
    (box.rootfs / "spool" / "link").symlink_to("in/a")
    os.chown(box.rootfs / "spool" / "in" / "a", 12, 34)
    (box.rootfs / "spool").chmod(0o1777)
    _mount(box, "/spool", "tmpfs", "tmpcopyup", "size=1m", fstype="tmpfs")
    assert box.sh("stat -c %a /spool; cat /spool/link; echo; stat -c %u:%g /spool/in/a; touch /spool/new") == (
        "1777\none\n12:34"
    )
    assert not (box.rootfs / "spool" / "new").exists()


@pytest.mark.parametrize("copied", [[], ["tmpcopyup"]])
def test_a_tmpfs_covers_a_directory_or_is_a_new_one(box: Box, copied: list[str]) -> None:
    """Engines give users scratch space by it, most with no mode, in images that know nothing of it."""
    (box.rootfs / "old").mkdir(0o750)
    (box.rootfs / "old").chmod(0o750)
    for path, options in (("/new", []), ("/old", []), ("/open", ["mode=1770"]), ("/old/inner", ["mode=700"])):
        _mount(box, path, "tmpfs", *options, *copied, fstype="tmpfs")
    (box.rootfs / "closed").mkdir()
    (box.rootfs / "closed").chmod(0o700)
    _mount(box, "/closed", "tmpfs", "mode=1777", *copied, fstype="tmpfs")
    said = box.sh("stat -c %a /new /old /open /old/inner /closed")
    assert said.split() == ["1777", "750", "1770", "700", "1777"]


def test_a_file_is_not_mounted_on_a_directory(box: Box, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    _mount(box, "/etc", tmp_path / "file", "bind")
    with pytest.raises(StageFailed, match=r'mount "bind" at /etc: ENOTDIR: .* is not a directory'):
        box.create("true")


def test_a_root_on_an_unbindable_mount(box: Box) -> None:
    subprocess.run(["mount", "--bind", box.bundle, box.bundle], check=True)
    try:
        subprocess.run(["mount", "--make-unbindable", box.bundle], check=True)
        assert box.sh("echo runs") == "runs"
    finally:
        subprocess.run(["umount", box.bundle], check=True)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_read_only_tmpfs_holds_what_the_container_needs_in_it(box: Box, tmp_path: Path, terminal: bool) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "token").write_text("secret")
    next(one for one in box.config["mounts"] if one["destination"] == "/dev")["options"] += ["ro"]
    _mount(box, "/run", "tmpfs", "rro", fstype="tmpfs")
    _mount(box, "/run/secrets", source, "bind")
    box.process["terminal"] = terminal
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    said = box.exec(
        "sh", "-c",
        "cat /run/secrets/token; touch /run/secrets/new; echo > /dev/null; ls -d /dev/pts/ptmx;"
        "! touch /dev/new 2>/dev/null && ! touch /run/new 2>/dev/null",
        process={"terminal": False},
    )  # fmt: skip
    assert (said.status, said.output) == (0, "secret/dev/pts/ptmx\n")
    with open(f"/proc/{created.pid}/mounts") as file:
        options = {line.split()[1]: line.split()[3].split(",") for line in file}
    assert "ro" in options["/dev"]
    assert "ro" in options["/run"]
    assert "rw" in options["/run/secrets"]
    assert ("/dev/console" in options) == terminal
    box.discard(created)


@pytest.mark.parametrize("user_namespace", [False, True])
@pytest.mark.parametrize("cwd", ["/srv/app", "/run/app"])
def test_a_missing_cwd_is_made_in_a_read_only_root(box: Box, cwd: str, user_namespace: bool) -> None:
    if user_namespace:
        box.linux["namespaces"].append({"type": "user"})
        box.linux["uidMappings"] = box.linux["gidMappings"] = [{"containerID": 0, "hostID": 200000, "size": 65536}]
        for path in (box.rootfs, *box.rootfs.rglob("*")):
            os.lchown(path, 200000, 200000)
    box.config["root"]["readonly"] = True
    (box.rootfs / "run").mkdir()
    _mount(box, "/run", "tmpfs", "ro", fstype="tmpfs")
    box.process["cwd"] = cwd
    box.process["user"] = {"uid": 33, "gid": 33, "umask": 0o077}
    assert box.sh("pwd; stat -c '%a %u:%g' .; ! touch new 2>/dev/null") == f"{cwd}\n755 0:0"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """A write-protected disk with an empty ext4."""
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    command = ["losetup", "--find", "--show", "--read-only", str(image)]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    yield path
    subprocess.run(["losetup", "--detach", path], check=True)


@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="there is no mkfs.ext4")
@pytest.mark.parametrize("option", ["ro", "rro"])
def test_a_write_protected_disk_is_mounted_read_only(box: Box, disk: str, option: str) -> None:
    _mount(box, "/disk", disk, option, "nosuid", fstype="ext4")
    said = box.sh("ls /disk; grep ' /disk ' /proc/self/mounts").split()
    assert said[:4] == ["lost+found", disk, "/disk", "ext4"]
    assert {"ro", "nosuid"} <= set(said[4].split(","))


@pytest.fixture
def layers() -> Iterator[Path]:
    """A directory with a long name that anybody may search."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        yield Path(directory) / ("l" * 200)


@pytest.mark.parametrize("user_namespace", [False, True])
def test_an_overlay_of_long_paths(box: Box, layers: Path, user_namespace: bool) -> None:
    """fsconfig(2) takes no more than 255 bytes at a time."""
    for name in ("one", "two", "three", "upper", "work"):
        (layers / (name * 20)).mkdir(parents=True)
        (layers / (name * 20) / name).touch()
    if user_namespace:
        box.linux["namespaces"].append({"type": "user"})
        box.linux["uidMappings"] = box.linux["gidMappings"] = [{"containerID": 0, "hostID": 200000, "size": 65536}]
        for path in (box.rootfs, *box.rootfs.rglob("*"), layers, *layers.rglob("*")):
            os.lchown(path, 200000, 200000)
    lower = ":".join(str(layers / (name * 20)) for name in ("one", "two", "three"))
    upper, work = (layers / (name * 20) for name in ("upper", "work"))
    more = ["userxattr"] if user_namespace else []
    options = [f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}", "nosuid", *more]
    _mount(box, "/srv/merged", "s" * 300, *options, fstype="overlay")
    _mount(box, "/fixed", "overlay", f"lowerdir={lower}", "ro", *more, fstype="overlay")
    said = box.sh(
        "ls /srv/merged; touch /srv/merged/new; ! touch /fixed/new 2>/dev/null; ls /fixed;"
        "grep -c ' /srv/merged' /proc/self/mounts"
    ).split()
    assert said == ["one", "three", "two", "upper", "one", "three", "two", "1"]
    assert (upper / "new").exists()
    options_found = _options_of(box, "/srv/merged")
    assert "nosuid" in options_found
    assert f"upperdir={upper}" in options_found


def test_what_mount_says_of_a_bad_overlay_is_told(box: Box, tmp_path: Path) -> None:
    _mount(box, "/merged", "overlay", f"lowerdir={tmp_path}:/no/such/{'x' * 250}", fstype="overlay")
    with pytest.raises(StageFailed, match='mount "overlay" at /merged: ENOENT'):
        box.create("true")


def test_masked_and_read_only_paths(box: Box) -> None:
    (box.rootfs / "etc" / "secret").write_text("secret")
    (box.rootfs / "etc" / "dir").mkdir()
    (box.rootfs / "etc" / "dir" / "x").touch()
    box.linux["maskedPaths"] += ["/etc/secret", "/etc/dir", "/not/there"]
    box.linux["readonlyPaths"] += ["/etc/passwd"]
    assert (
        box.sh(
            "wc -c < /etc/secret; ls /etc/dir; ! touch /etc/dir/y 2>/dev/null; ! touch /etc/passwd 2>/dev/null;"
            "! echo 1 2>/dev/null > /proc/sys/kernel/domainname; ls /sys/firmware; touch /etc/new"
        )
        == "0"
    )


def test_a_read_only_root(box: Box) -> None:
    box.config["root"]["readonly"] = True
    assert box.sh("! touch /x 2>/dev/null; touch /dev/shm/x; echo fine") == "fine"


def test_mounts_of_the_host_arrive_only_in_slaves(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "top", str(source)], check=True)
    subprocess.run(["mount", "--make-shared", str(source)], check=True)
    try:
        (source / "late").mkdir()
        _mount(box, "/slave", source, "rbind", "rslave")
        _mount(box, "/private", source, "rbind", "rprivate")
        created = box.create("sleep", "100")
        box.handler.start(box.container_id)
        subprocess.run(["mount", "-t", "tmpfs", "late", str(source / "late")], check=True)
        try:
            ended = box.exec("grep", "-c", "late", "/proc/self/mounts")
            assert ended.output.strip() == "1"
            assert "/slave/late" in box.exec("cat", "/proc/self/mounts").output
        finally:
            subprocess.run(["umount", str(source / "late")], check=True)
        box.discard(created)
    finally:
        subprocess.run(["umount", str(source)], check=True)


@pytest.mark.parametrize(
    ("kind", "mark"),
    [("", ""), ("private", ""), ("rprivate", ""), ("slave", "master:"), ("rslave", "master:"),
     ("unbindable", "unbindable"), ("runbindable", "unbindable"), ("shared", "shared:"), ("rshared", "shared:")],
)  # fmt: skip
def test_propagation_of_the_root(box: Box, tmp_path: Path, kind: str, mark: str) -> None:
    """As its line of the mount table tells; of a root that is shared on the host."""
    root = tmp_path / "shared"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "shared", str(root)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(root)], check=True)
        subprocess.run(["cp", "-a", str(box.rootfs), str(root)], check=True)
        box.config["root"]["path"] = str(root / "rootfs")
        box.linux["rootfsPropagation"] = kind
        line = box.sh("grep ' / / \\| /rootfs / ' /proc/self/mountinfo").split(" - ")[0].split()
        marks = [word for word in line[6:] if not word.startswith("propagate_from")]
        assert len(marks) == bool(mark)
        assert all(word.startswith(mark) for word in marks)
    finally:
        subprocess.run(["umount", "-R", str(root)], check=True)


@pytest.mark.parametrize("root", ["", "private", "rprivate"])
def test_a_mounts_own_propagation_is_kept(box: Box, tmp_path: Path, root: str) -> None:
    (source := tmp_path / "source").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "top", str(source)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(source)], check=True)
        (source / "inner").mkdir()
        box.linux["rootfsPropagation"] = root
        for kind in ("bounding", "effective", "permitted"):
            box.process["capabilities"][kind].append("CAP_SYS_ADMIN")
        box.config["mounts"].append({"destination": "/own", "type": "tmpfs", "source": "own", "options": ["shared"]})
        _mount(box, "/data", source, "rbind", "rshared")
        table = box.sh("mount -t tmpfs inner /data/inner; grep -E ' /(own|data) ' /proc/self/mountinfo")
        assert table.count(" shared:") == 2
        # In a peer group of the container's own.
        assert f" {source}/inner " not in Path("/proc/self/mountinfo").read_text()
    finally:
        subprocess.run(["umount", "-R", str(source)], check=True)


def test_what_the_host_mounts_below_a_slave_root_is_seen_inside(box: Box) -> None:
    subprocess.run(["mount", "--bind", str(box.rootfs), str(box.rootfs)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(box.rootfs)], check=True)
        box.linux["rootfsPropagation"] = "rslave"
        created = box.create("sleep", "100")
        box.handler.start(box.container_id)
        subprocess.run(["mount", "-t", "tmpfs", "late", str(box.rootfs / "data")], check=True)
        (box.rootfs / "data" / "late").touch()
        assert box.exec("ls", "/data").output == "late\n"
        subprocess.run(["umount", str(box.rootfs / "data")], check=True)
        assert box.exec("ls", "/data").output == ""
        box.discard(created)
    finally:
        subprocess.run(["umount", "-R", str(box.rootfs)], check=True)


def test_shared_root_propagates_to_the_host(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "top", str(source)], check=True)
    subprocess.run(["mount", "--make-shared", str(source)], check=True)
    (source / "inner").mkdir()
    try:
        box.linux["rootfsPropagation"] = "rshared"
        for kind in ("bounding", "effective", "permitted"):
            box.process["capabilities"][kind].append("CAP_SYS_ADMIN")
        _mount(box, "/shared", source, "rbind", "rshared")
        box.sh("mount -t tmpfs inner /shared/inner")
        with open("/proc/self/mountinfo") as file:
            table = file.read()
        assert f" {source}/inner " in table
        assert f" {box.rootfs}" not in table
    finally:
        subprocess.run(["umount", "-R", str(source)], check=True)


def test_id_mapped_bind(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").touch()
    os.chown(source / "file", 100000, 100000)
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    # Of an id-mapped mount, containerID is the id on disk... and hostID what it is seen as.
    inverse = [{"containerID": 100000, "hostID": 0, "size": 65536}]
    assert mapping
    box.config["mounts"].append(
        {
            "destination": "/data",
            "source": str(source),
            "type": "bind",
            "options": ["bind"],
            "uidMappings": inverse,
            "gidMappings": inverse,
        }
    )
    assert box.sh("stat -c %u:%g /data/file") == "0:0"


def test_a_missing_source_is_named(box: Box) -> None:
    _mount(box, "/data", "/no/such/place", "bind")
    with pytest.raises(StageFailed, match="open mount source at /no/such/place: ENOENT"):
        box.create("true")
    assert os.listdir(box.handler.root) == []


def test_a_bad_file_system_option_says_what_the_kernel_said(box: Box) -> None:
    _mount(box, "/data", "tmpfs", "nonsense=1", fstype="tmpfs")
    with pytest.raises(StageFailed, match=r'mount "tmpfs" at /data: EINVAL: .*nonsense'):
        box.create("true")


@pytest.mark.parametrize("option", ["sync", "dirsync", "lazytime"])
def test_options_of_the_superblock(box: Box, option: str) -> None:
    _mount(box, "/data", "tmpfs", option, fstype="tmpfs")
    assert option in _options_of(box, "/data")


def test_options_that_a_bind_mount_has_not_are_told_of(box: Box, tmp_path: Path) -> None:
    _mount(box, "/data", tmp_path, "bind", "ro", "size=1m", "sync")
    ended = box.run("grep", " /data ", "/proc/self/mounts")
    assert ended.created.warnings == ("mounts[6].options: a bind mount has no size=1m, sync",)
    assert " ro," in ended.output


def test_an_option_that_the_kernel_has_no_more_is_named(box: Box) -> None:
    _mount(box, "/data", "tmpfs", "iversion", fstype="tmpfs")
    with pytest.raises(StageFailed, match="iversion"):
        box.create("true")


def test_a_remount_changes_what_is_mounted(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    _mount(box, "/dev/shm", "shm", "remount", "ro", "nosymfollow", "size=64k", fstype="tmpfs")
    assert {"ro", "nosymfollow", "nosuid", "size=64k"} <= set(_options_of(box, "/dev/shm"))
    _mount(box, "/data", source, "bind")
    _mount(box, "/data", source, "bind", "remount", "ro", "noexec")
    assert {"ro", "noexec"} <= set(_options_of(box, "/data"))
    _mount(box, "/etc", "tmpfs", "remount", "ro", fstype="tmpfs")
    with pytest.raises(StageFailed, match='mount "tmpfs" at /etc: EINVAL'):
        box.create("true")


def test_cgroup_mount_shows_the_containers_own(box: Box) -> None:
    box.config["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]}
    )
    if os.path.exists("/sys/fs/cgroup/pids"):
        assert box.sh("cat /sys/fs/cgroup/pids/tasks | head -n 1; grep pids /proc/self/cgroup | cut -d: -f3") == "1\n/"
    else:
        assert box.sh("head -n 1 /sys/fs/cgroup/cgroup.procs") == "1"


def test_no_pivot_moves_the_root(box: Box) -> None:
    from sampan.runtime.options import Options

    ended = box.run("ls", "/", options=Options(no_pivot=True))
    assert "bin" in ended.output.split()
    assert "boot" not in ended.output.split()


def test_the_mount_table_is_in_the_configurations_order(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    _mount(box, "/one", source, "bind")
    _mount(box, "/two", "tmpfs", fstype="tmpfs")
    _mount(box, "/three", source, "rbind")
    points = box.sh("cut -d' ' -f5 /proc/self/mountinfo").split()
    wanted = ["/", *(mount["destination"] for mount in box.config["mounts"])]
    assert [point for point in points if point in wanted] == wanted


def _mounts_below(path: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [point for line in lines if (point := line.split(" ", 5)[4]).startswith(str(path))]


def test_a_container_without_a_mount_namespace_has_its_own_root_and_leaves_no_mount(box: Box) -> None:
    here = os.readlink("/proc/self/ns/mnt")
    box.linux["namespaces"] = [{"type": kind} for kind in ("pid", "ipc")]
    del box.config["hostname"]
    box.config["mounts"] = [mount for mount in box.config["mounts"] if mount["type"] in ("proc", "tmpfs")]
    created = box.create("sleep", "100")
    box.handler.start(box.container_id)
    assert os.readlink(f"/proc/{created.pid}/ns/mnt") == here
    assert os.readlink(f"/proc/{created.pid}/root") == str(box.rootfs)
    assert box.exec("readlink", "/bin/sh").output.strip() == "busybox"
    assert box.exec("ls", "/bundle").status != 0
    assert len(_mounts_below(box.rootfs)) > 2
    box.discard(created)
    assert _mounts_below(box.rootfs) == []


def test_a_failed_create_without_a_mount_namespace_leaves_no_mount(box: Box) -> None:
    box.linux["namespaces"] = [{"type": "pid"}]
    del box.config["hostname"]
    _mount(box, "/data", "tmpfs", "nonsense=1", fstype="tmpfs")
    with pytest.raises(StageFailed, match="nonsense"):
        box.create("true")
    assert _mounts_below(box.rootfs) == []

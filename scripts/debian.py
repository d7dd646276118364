#!/usr/bin/env python3
"""Debian packages unpacked beside the machine: peers and test images use them and nothing is installed or started.

Command line: ``scripts/debian.py peers NAME...`` makes the named peers' programs available in ``.work/bin``;
``scripts/debian.py unpack PACKAGE...`` only unpacks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WORK = Path(__file__).resolve().parent.parent / ".work"
DEBS = WORK / "debs"
BIN = WORK / "bin"

#: Peer -> (package, programs in it).
PEERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "registry": ("docker-registry", ("usr/bin/docker-registry",)),
    "containerd": ("containerd", ("usr/bin/containerd", "usr/bin/ctr", "usr/bin/containerd-shim-runc-v2")),
    "nginx": ("nginx", ("usr/sbin/nginx",)),
}

#: Peer -> (package of a later release, its program, the packages of that release that it runs on).
LATER_PEERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "crun": ("crun", "usr/bin/crun", ("libc6", "libcap2", "libseccomp2", "libsystemd0", "libyajl2")),
    # This release's does not know Linux 6.13 and later.
    "criu": (
        "criu",
        "usr/sbin/criu",
        tuple(
            """
        libbsd0 libc6 libcap2 libcompel1 libdrm2 libedit2 libffi8 libgmp10 libgnutls30t64 libhogweed6t64 libidn2-0
        libjansson4 libmd0 libmnl0 libnet1 libnettle8t64 libnftables1 libnftnl11 libnl-3-200 libp11-kit0 libprotobuf-c1
        libtasn1-6 libtinfo6 libunistring5 libuuid1 libxtables12
    """.split()
        ),
    ),
}
LATER_RELEASE = "trixie"

#: The lists of the machine's apt, plus Debian's sources, in a directory of our own.
SOURCE_LIST = """\
deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} bookworm main
"""
LATER_SOURCE_LIST = f"""\
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {{mirror}} {LATER_RELEASE} main
"""


def unpack(package: str) -> Path:
    """The unpacked tree of a package's candidate version, downloaded at most once."""
    for tree in sorted(DEBS.glob(f"{package}_*")):
        if tree.is_dir():
            return tree
    DEBS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DEBS, prefix="incoming-") as folder:
        _run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package], cwd=folder)
        (archive,) = Path(folder).glob("*.deb")
        content = Path(folder) / "content"
        _run(["dpkg-deb", "-x", str(archive), str(content)])
        content.chmod(0o755)
        return content.rename(DEBS / archive.stem)


def source(package: str) -> Path:
    """The unpacked, patched source tree of a package, downloaded at most once."""
    folder = WORK / "sources" / package
    if folder.is_dir():
        return next(path for path in folder.iterdir() if path.is_dir())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="incoming-") as name:
        options = _private_apt(Path(name) / "apt", SOURCE_LIST)
        _run(["apt-get", "-qq", *options, "update"])
        tree = Path(name) / "tree"
        tree.mkdir()
        _run(["apt-get", "-qq", *options, "source", "--download-only", package], cwd=tree)
        _unpack_source(tree, package)
        tree.chmod(0o755)
        tree.rename(folder)
    return next(path for path in folder.iterdir() if path.is_dir())


def link_peers(names: list[str]) -> None:
    """Puts the programs of the named peers into ``.work/bin``."""
    BIN.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name in LATER_PEERS:
            _link_later(name)
            continue
        package, programs = PEERS[name]
        tree = unpack(package)
        for program in programs:
            link = BIN / os.path.basename(program)
            target = os.path.relpath(tree / program, BIN)
            if not link.is_symlink() or os.readlink(link) != target:
                link.unlink(missing_ok=True)
                link.symlink_to(target)


def _link_later(name: str) -> None:
    """Puts a program of the later release into ``.work/bin``, made to run with that release's own libraries.

    It must be started by nothing but the kernel, as crun executes itself anew: so its own headers name the loader.
    """
    package, program, libraries = LATER_PEERS[name]
    tree = DEBS / f"{package}_{LATER_RELEASE}"
    link = BIN / os.path.basename(program)
    if not tree.is_dir():
        DEBS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=DEBS, prefix="incoming-") as folder:
            options = _private_apt(Path(folder) / "apt", LATER_SOURCE_LIST)
            _run(["apt-get", "-qq", *options, "update"])
            content = Path(folder) / "content"
            for one in (package, *libraries):
                _run(["apt-get", "-qq", *options, "download", one], cwd=folder)
            for archive in sorted(Path(folder).glob("*.deb")):
                _run(["dpkg-deb", "-x", str(archive), str(content)])
            content.chmod(0o755)
            _set_loader(content, tree, program)
            content.rename(tree)
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(tree / program, BIN))


def _set_loader(content: Path, tree: Path, program: str) -> None:
    """Has the program in ``content``, which is to be moved to ``tree``, use the loader and the libraries there."""
    libraries = "usr/lib/x86_64-linux-gnu"
    loader = tree / libraries / "ld-linux-x86-64.so.2"
    patchelf = unpack("patchelf") / "usr/bin/patchelf"
    # DT_RPATH holds for the libraries' own libraries too; DT_RUNPATH would not.
    rpath = ["--force-rpath", "--set-rpath", str(tree / libraries)]
    _run([str(patchelf), "--set-interpreter", str(loader), *rpath, str(content / program)])


def _private_apt(folder: Path, sources: str) -> list[str]:
    """Options that make apt use lists of its own, with source packages, and leave the machine's alone."""
    for part in ("lists/partial", "cache/archives/partial", "parts"):
        (folder / part).mkdir(parents=True)
    (folder / "sources.list").write_text(sources.format(mirror=_mirror()))
    settings = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": folder / "parts",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
    }
    return [f"-o{key}={value}" for key, value in settings.items()]


def _mirror() -> str:
    """The machine's own Debian mirror: whichever host apt would download a base package from."""
    lines = _run(["apt-get", "-qq", "--print-uris", "download", "libc6"]).split()
    address = lines[0].strip("'") if lines else ""
    root, found, _ = address.partition("/pool/")
    return root.replace("debian-security", "debian") if found else "http://deb.debian.org/debian"


def _unpack_source(folder: Path, package: str) -> None:
    """``dpkg-source -x`` for the 3.0 (quilt) format, without needing dpkg-dev."""
    (upstream,) = folder.glob(f"{package}_*.orig.tar.*")
    (packaging,) = folder.glob(f"{package}_*.debian.tar.*")
    _run(["tar", "-xf", upstream.name], cwd=folder)
    (tree,) = (path for path in folder.iterdir() if path.is_dir())
    _run(["tar", "-xf", str(packaging), "-C", str(tree)])
    series = tree / "debian" / "patches" / "series"
    for line in series.read_text().splitlines() if series.exists() else ():
        name = line.partition("#")[0].strip()
        if name:
            _run(["patch", "-s", "-p1", "-i", f"debian/patches/{name}"], cwd=tree)


def _run(command: list[str], cwd: Path | str | None = None) -> str:
    result = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.stderr.write(result.stderr)
        raise SystemExit(f"{' '.join(command)}: exit status {result.returncode}")
    return result.stdout


def main() -> None:
    """Runs the command line."""
    if len(sys.argv) < 3 or sys.argv[1] not in ("peers", "unpack") or shutil.which("apt-get") is None:
        raise SystemExit(__doc__)
    if sys.argv[1] == "peers":
        link_peers(sys.argv[2:])
    else:
        for package in sys.argv[2:]:
            unpack(package)


if __name__ == "__main__":
    main()

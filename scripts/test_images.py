#!/usr/bin/env python3
"""The images that the demo, the tests and the conformance suite run, made here from Debian's packages and sources.

``demo_images`` needs no compiler; ``conformance_images`` builds busybox from Debian's source, static and with every
applet, because critest wants some that Debian's own build leaves out (``ipcs``).

Command line: ``scripts/test_images.py push demo|conformance http://127.0.0.1:5000``
              ``scripts/test_images.py archive demo FOLDER`` (OCI archives, one for each image)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import debian
import oci_image
from oci_image import Entry, Image, directory, file, hard_link, layer, symlink

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/false
{more}nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
GROUP = """\
root:x:0:
www-data:x:33:
{more}nogroup:x:65534:
"""
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

NGINX_CONF = """\
daemon off;
user www-data;
worker_processes 1;
pid /var/run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 64; }
http {
    default_type text/html;
    access_log /dev/stdout;
    server { listen PORT; root /usr/share/nginx/html; }
}
"""

#: Serves the page that $PAGE holds on the port that $PORT holds.
SERVE = """\
#!/bin/sh
set -e
sed "s/PORT/${PORT:-80}/" /etc/nginx/nginx.conf > /tmp/nginx.conf
echo "${PAGE:-welcome}" > /usr/share/nginx/html/index.html
exec nginx -c /tmp/nginx.conf
"""

HTTPD = """\
#!/bin/sh
echo "httpd: serving /var/www on port 80"
exec httpd -f -v -p 80 -h /var/www
"""

#: What nginx and its libraries are in.
NGINX_PACKAGES = ("nginx", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g")

PAUSE = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"
EFFECTIVE_UID = """\
#include <stdio.h>
#include <unistd.h>
int main(void) { printf("Effective uid: %d\\n", (int) geteuid()); return 0; }
"""

CRI_TOOLS = "k8s-staging-cri-tools"
#: Hosts that critest pulls from; all lead to the one registry.
CONFORMANCE_HOSTS = ["registry.k8s.io", "gcr.io", "k8s.gcr.io"]


def demo_images() -> dict[str, Image]:
    """``repository:tag`` -> image: a static busybox, and a small web server on top of it."""
    busybox = busybox_image(debian.unpack("busybox-static") / "bin" / "busybox")
    return {"demo/busybox:1": busybox, "demo/web:1": web_image(busybox).with_config(Entrypoint=["/bin/serve"], Cmd=[])}


def conformance_images() -> dict[str, Image]:
    """``repository:tag`` -> image, for every reference in critest but the one by digest."""
    busybox = busybox_image(build_busybox())
    web = web_image(busybox)
    images = {
        "e2e-test-images/busybox:1.29-2": busybox,
        "e2e-test-images/nginx:1.14-2": web,
        "e2e-test-images/httpd:2.4.39-4": _on(busybox, [file("/bin/serve-httpd", HTTPD, 0o755)], ["/bin/serve-httpd"]),
        "e2e-test-images/nonewprivs:1.3": _on(busybox, [_setuid_entry()], ["/bin/effective-uid"]),
        "pause:3.9": pause_image(),
        f"{CRI_TOOLS}/hostnet-nginx-{oci_image.host_architecture()}:latest": web.with_config(Env=[PATH, "PORT=12003"]),
    }
    for number in (1, 2, 3):
        images[f"{CRI_TOOLS}/test-image-{number}:latest"] = _marked(busybox, f"test-image-{number}")
        images[f"{CRI_TOOLS}/test-image-tags:{number}"] = _marked(busybox, "test-image-tags")
    for name in ("test-image-latest:latest", "test-image-digest:test", "test-image-tag:test", "test-image-tag:all"):
        images[f"{CRI_TOOLS}/{name}"] = _marked(busybox, name)
    users = {"uid": "1002", "username": "www-data", "uid-group": "1003:users", "username-group": "www-data:100"}
    for name, user in users.items():
        images[f"{CRI_TOOLS}/test-image-user-{name}:latest"] = busybox.with_config(User=user)
    images[f"{CRI_TOOLS}/test-image-predefined-group:latest"] = _predefined_group(busybox)
    return images


def pause_image() -> Image:
    """What other runtimes keep a pod's namespaces with."""
    return Image([layer([file("/pause", _compile("pause", PAUSE), 0o755)])], {"Entrypoint": ["/pause"]})


def busybox_image(program: Path) -> Image:
    """A root file system around a static busybox, its applets as hard links to it."""
    return Image([layer(_busybox_entries(program))], {"Cmd": ["sh"], "Env": [PATH], "WorkingDir": "/"})


def web_image(base: Image) -> Image:
    """Debian's nginx and its libraries on top of ``base``; serves on $PORT, 80 if unset."""
    trees = [debian.unpack(name) for name in NGINX_PACKAGES]
    libraries = sorted({path.name: path for tree in trees for path in _libraries(tree)}.items())
    folder = f"/lib/{os.uname().machine}-linux-gnu"
    loader = next(path.name for name, path in libraries if name.startswith("ld-linux"))
    entries = [directory("/lib"), directory(folder), directory("/lib64"), directory("/usr/sbin")]
    entries += [_copy(f"{folder}/{name}", path) for name, path in libraries]
    # The loader's name in the ELF header: /lib64 on amd64, /lib on arm64.
    entries.append(symlink(f"/lib64/{loader}", f"{folder}/{loader}"))
    entries.append(symlink(f"/lib/{loader}", f"{folder}/{loader}"))
    entries += [directory(f"/usr/share/{name}") for name in ("nginx", "nginx/html")]
    entries += [directory(name) for name in ("/etc/nginx", "/var/log/nginx", "/var/lib/nginx")]
    entries.append(_copy("/usr/sbin/nginx", trees[0] / "usr/sbin/nginx"))
    entries.append(file("/etc/nginx/nginx.conf", NGINX_CONF))
    entries.append(file("/usr/share/nginx/html/index.html", "welcome\n"))
    entries.append(file("/bin/serve", SERVE, 0o755))
    config = {**base.config, "Cmd": ["/bin/serve"], "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT"}
    return Image([*base.layers, layer(entries)], config)


def build_busybox() -> Path:
    """Debian's busybox source with the default configuration, static; built at most once."""
    built = debian.WORK / "busybox"
    if built.exists():
        return built
    tree = debian.source("busybox")
    with tempfile.TemporaryDirectory(dir=debian.WORK, prefix="busybox-") as folder:
        make = ["make", "-s", "-C", str(tree), f"O={folder}"]
        _run([*make, "defconfig"])
        config = Path(folder) / ".config"
        config.write_text(config.read_text().replace("# CONFIG_STATIC is not set", "CONFIG_STATIC=y"))
        _run([*make, "oldconfig"])
        _run([*make, f"-j{os.cpu_count() or 1}", "SKIP_STRIP=n", "busybox"])
        shutil.copyfile(Path(folder) / "busybox", built.with_suffix(".new"))
    built.with_suffix(".new").chmod(0o755)
    built.with_suffix(".new").rename(built)
    return built


def push_all(images: dict[str, Image], address: str) -> dict[str, str]:
    """Pushes every image; returns the digest of each."""
    return {name: oci_image.push(image, address, *name.rsplit(":", 1)) for name, image in images.items()}


def _busybox_entries(program: Path, *, users: str = "", groups: str = "") -> list[Entry]:
    entries = [directory(f"/{name}") for name in ("bin", "dev", "etc", "home", "proc", "run", "sys", "usr", "var")]
    entries += [directory("/root", 0o700), directory("/tmp", 0o1777), directory("/usr/bin"), directory("/usr/sbin")]
    entries += [directory(f"/var/{name}") for name in ("log", "lib", "run", "www")] + [directory("/sbin")]
    entries.append(file("/bin/busybox", program, 0o755))
    applets = subprocess.run([str(program), "--list"], capture_output=True, text=True, check=True).stdout.split()
    entries += [hard_link(f"/bin/{name}", "/bin/busybox") for name in sorted(set(applets) - {"busybox"})]
    entries.append(file("/etc/passwd", PASSWD.format(more=users)))
    entries.append(file("/etc/group", GROUP.format(more="users:x:100:\n" + groups)))
    entries.append(file("/var/www/index.html", "welcome\n"))
    return entries


def _predefined_group(base: Image) -> Image:
    """User 1000 is in group 50000 by the image's own /etc/group, and is the image's user."""
    user = PASSWD.format(more="default-user:x:1000:1000:default:/home:/bin/sh\n")
    group = GROUP.format(more="default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")
    entries = [directory("/etc"), file("/etc/passwd", user), file("/etc/group", group)]
    return Image([*base.layers, layer(entries)], {**base.config, "User": "1000"})


def _marked(base: Image, name: str) -> Image:
    """The base with a file of its own, so that its digest differs from every other image's."""
    return Image([*base.layers, layer([file("/marker", name)])], {**base.config, "Labels": {"marker": name}})


def _on(base: Image, entries: list[Entry], command: list[str]) -> Image:
    return Image([*base.layers, layer(entries)], {**base.config, "Cmd": command})


def _setuid_entry() -> Entry:
    return file("/bin/effective-uid", _compile("effective-uid", EFFECTIVE_UID), 0o4755)


def _compile(name: str, text: str) -> bytes:
    """A static program from C text; compiled at most once for the same text."""
    built = debian.WORK / "programs" / f"{name}-{oci_image.digest_of(text.encode())[7:19]}"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        source = built.with_suffix(".c")
        source.write_text(text)
        _run(["gcc", "-Os", "-static", "-s", "-o", str(built), str(source)])
    return built.read_bytes()


def _libraries(tree: Path) -> list[Path]:
    """Shared libraries directly in a package's library directories; not plug-ins in folders below."""
    patterns = ("lib/*-linux-gnu*/*.so*", "usr/lib/*-linux-gnu*/*.so*")
    return [path for pattern in patterns for path in tree.glob(pattern) if not path.is_dir()]


def _copy(path: str, original: Path) -> Entry:
    if original.is_symlink():
        return symlink(path, os.path.basename(os.readlink(original)))
    return file(path, original, original.stat().st_mode & 0o7777)


def _run(command: list[str]) -> None:
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.stderr.write(result.stdout[-2000:] + result.stderr[-4000:])
        raise SystemExit(f"{' '.join(command)}: exit status {result.returncode}")


def main() -> None:
    """Runs the command line."""
    sets = {"demo": demo_images, "conformance": conformance_images}
    match sys.argv[1:]:
        case ["push", name, address] if name in sets:
            for reference, digest in push_all(sets[name](), address).items():
                print(reference, digest)
        case ["archive", name, folder] if name in sets:
            Path(folder).mkdir(parents=True, exist_ok=True)
            for reference, image in sets[name]().items():
                path = Path(folder) / (reference.replace("/", "_").replace(":", "_") + ".tar")
                print(path, oci_image.write_archive(image, path, reference))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()

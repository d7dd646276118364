"""The daemon's configuration: defaults, drop-ins, overrides, and errors that name file and key."""

import os
import pathlib
import tomllib

import pytest

from sampan.daemon import config as configuration
from sampan.daemon.config import Config
from sampan.errors import InvalidInput, NotFound


def write(folder: pathlib.Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_the_documented_default_is_the_default(tmp_path: pathlib.Path) -> None:
    text = configuration.default_text()
    assert configuration.load(write(tmp_path, "config.toml", text)) == Config()
    assert (
        configuration.dump(Config()).split()
        == configuration.dump(configuration.load(write(tmp_path, "config.toml", text))).split()
    )
    # Every key is shown.
    assert tomllib.loads(text) == tomllib.loads(configuration.dump(Config()))


def test_dump_reads_back(tmp_path: pathlib.Path) -> None:
    path = write(
        tmp_path,
        "config.toml",
        '[runtimes.runc]\ntype = "external"\nbinary = "/usr/sbin/runc"\noptions = ["--debug"]\n'
        '[runtimes."odd name"]\n[cri]\ndefault_runtime = "runc"\nstream_port = 1234\n',
    )
    config = configuration.load(path)
    assert config.runtimes["runc"].options == ("--debug",)
    again = configuration.load(write(tmp_path / "again", "config.toml", configuration.dump(config)))
    assert again == config


def test_drop_ins_go_over_the_file_by_name(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, "config.toml", 'log_level = "debug"\n[cri]\nstream_port = 1\nshm_size = 8192\n')
    write(tmp_path, "conf.d/20-b.toml", "[cri]\nstream_port = 3\n")
    write(tmp_path, "conf.d/10-a.toml", "[cri]\nstream_port = 2\n[network]\nconf_dir = '/a'\n")
    write(tmp_path, "conf.d/ignored.conf", "not toml")
    config = configuration.load(path, {"cri.shm_size": 4096})
    assert config.log_level == "debug"
    assert config.cri.stream_port == 3
    assert config.cri.shm_size == 4096
    assert config.network.conf_dir == "/a"


def test_a_named_file_must_exist(tmp_path: pathlib.Path) -> None:
    with pytest.raises(NotFound, match=r"nothing\.toml"):
        configuration.load(str(tmp_path / "nothing.toml"))


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("root = 5\n", "{file}: root"),
        ("rooot = '/a'\n", "{file}"),
        ("[cri]\nport = 1\n", "{file}: cri"),
        ("[cri]\nstream_port = '1'\n", "{file}: cri.stream_port"),
        ("[cri]\nstream_port = 70000\n", "{file}: cri.stream_port"),
        ("log_level = 'loud'\n", "{file}: log_level"),
        ("state = 'run'\n", "{file}: state"),
        ("root = '/a/../b'\n", "{file}: root"),
        ("root = '/run/sampan'\n", "default: state"),
        (f"socket = '/{'s' * 107}'\n", "{file}: socket"),
        ("[cri]\ndefault_runtime = 'kata'\n", "{file}: cri.default_runtime"),
        ("[runtimes.kata]\ntype = 'external'\n", "{file}: runtimes.kata.binary"),
        ("[runtimes.kata]\ntype = 'vm'\n", "{file}: runtimes.NAME.type"),
        ("[registry]\nconfig_path = ['/a', 'b']\n", "{file}: registry.config_path"),
        ("[cri]\nstream_tls_cert = '/a'\n", "{file}: cri.stream_tls_cert"),
        ("metrics_address = 'foo'\n", "{file}: metrics_address"),
        ("metrics_address = '127.0.0.1:99999'\n", "{file}: metrics_address"),
        ("metrics_address = 'unix://rel'\n", "{file}: metrics_address"),
        (f"metrics_address = 'unix:///{'s' * 107}'\n", "{file}: metrics_address"),
        ("not toml", "{file}"),
        ("a = '\x00'", "{file}"),
    ],
)
def test_faults_name_file_and_key(tmp_path: pathlib.Path, text: str, field: str) -> None:
    path = write(tmp_path, "config.toml", text)
    with pytest.raises(InvalidInput) as caught:
        configuration.load(path)
    assert caught.value.field == field.format(file=path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[cri]\nstream_address = 'not an address'\n", "cri.stream_address"),
        ("[cri]\nstream_address = '127.0.0.1:10010'\n", "cri.stream_address"),
        ("metrics_address = 'not an address:9324'\n", "metrics_address"),
        ("[cri]\nstream_tls_cert = '{folder}/config.toml'\nstream_tls_key = '{folder}/no'\n", "cri.stream_tls_key"),
        ("[cri]\nstream_tls_cert = '{folder}'\nstream_tls_key = '{folder}/config.toml'\n", "cri.stream_tls_cert"),
    ],
)
def test_what_a_daemon_needs_is_looked_for_and_a_command_does_without(
    tmp_path: pathlib.Path, text: str, key: str
) -> None:
    path = write(tmp_path, "config.toml", text.format(folder=tmp_path))
    configuration.load(path)
    with pytest.raises(InvalidInput) as caught:
        configuration.load(path, serving=True)
    assert caught.value.field == f"{path}: {key}"
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("address", ["127.0.0.1:0", ":9324", "[::1]:9324", "localhost:9324", "unix:///run/m.sock"])
def test_where_metrics_may_be(tmp_path: pathlib.Path, address: str) -> None:
    path = write(tmp_path, "config.toml", f"metrics_address = '{address}'\n[cri]\nstream_address = '::'\n")
    assert configuration.load(path, serving=True).metrics_address == address


def test_a_fault_in_a_drop_in_names_the_drop_in(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, "config.toml", "")
    drop_in = write(tmp_path, "conf.d/a.toml", "[cri]\nshm_size = 1\n")
    with pytest.raises(InvalidInput) as caught:
        configuration.load(path)
    assert caught.value.field == f"{drop_in}: cri.shm_size"


def test_an_unreadable_file_is_refused(tmp_path: pathlib.Path) -> None:
    os.mkdir(tmp_path / "conf.d")
    os.mkdir(tmp_path / "conf.d" / "folder.toml")
    with pytest.raises(InvalidInput, match=r"folder\.toml"):
        configuration.load(write(tmp_path, "config.toml", ""))

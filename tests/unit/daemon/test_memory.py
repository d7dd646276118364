"""Giving back pages: only of files, and only those that nobody has changed."""

import ctypes
import mmap
from pathlib import Path

import pytest

from sampan.daemon import memory
from sampan.linux.memory import unchanged


@pytest.fixture
def mapped(tmp_path: Path) -> Path:
    file = tmp_path / "library"
    file.write_bytes(b"as in the file".ljust(3 * mmap.PAGESIZE, b"."))
    return file


def address(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def covered(place: int) -> bool:
    return any(start <= place < end for start, end in unchanged())


def protect(place: int, size: int, protection: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(place), ctypes.c_size_t(size), protection) == 0


def test_a_read_only_mapping_of_a_file_is_given_back_and_reads_as_before(mapped: Path) -> None:
    with open(mapped, "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as area:
        place = address(area)
        protect(place, len(area), mmap.PROT_READ)
        assert area[:14] == b"as in the file"
        assert covered(place)
        memory.release()
        assert area[:14] == b"as in the file"


def test_a_mapping_with_a_changed_page_is_left_alone(mapped: Path) -> None:
    with open(mapped, "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as area:
        place = address(area)
        area[:2] = b"AS"  # as the loader does it, before it takes the right to write away
        protect(place, len(area), mmap.PROT_READ)
        assert not covered(place)
        memory.release()
        assert area[:14] == b"AS in the file"
        protect(place, len(area), mmap.PROT_READ | mmap.PROT_WRITE)


def test_what_can_be_written_to_is_left_alone(mapped: Path) -> None:
    with open(mapped, "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as area:
        assert not covered(address(area))
    with mmap.mmap(-1, mmap.PAGESIZE) as anonymous:
        assert not covered(address(anonymous))

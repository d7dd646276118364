"""Mount options, sorted by who takes them."""

from hypothesis import given
from hypothesis import strategies as st

from sampan.linux import mount as m
from sampan.spec.mount_options import KNOWN, parse


def test_attributes_are_set_and_cleared_in_order() -> None:
    options = parse(["ro", "nosuid", "rw", "noatime", "nodev", "dev"])
    assert options.set == m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NOATIME
    assert options.clear == m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_ATIME


def test_the_access_time_modes_are_one_field() -> None:
    assert parse(["noatime", "strictatime"]).set == m.MOUNT_ATTR_STRICTATIME
    assert parse(["strictatime", "relatime"]).set == 0


def test_recursive_attributes_stand_apart() -> None:
    options = parse(["rro", "rnosuid", "rsuid", "rnoatime", "ro"])
    assert options.recursive_set == m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOATIME
    assert options.recursive_clear == m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_ATIME
    assert options.set == m.MOUNT_ATTR_RDONLY
    assert not options.recursive


def test_bind_and_propagation() -> None:
    options = parse(["rbind", "rslave", "shared"])
    assert (options.bind, options.recursive) == (True, True)
    assert options.propagation == [(m.MS_SLAVE, True), (m.MS_SHARED, False)]
    assert (parse(["bind"]).bind, parse(["bind"]).recursive) == (True, False)


def test_the_rest_is_the_file_systems() -> None:
    options = parse(["size=64k", "newinstance", "mode=755", "sync", "defaults", "idmap", "tmpcopyup"])
    assert options.data == ["size=64k", "newinstance", "mode=755", "sync"]
    assert (options.idmap, options.copy_up) == ("idmap", True)
    assert (parse(["remount", "ro"]).remount, parse(["ro"]).remount) == (True, False)


@given(st.lists(st.text() | st.sampled_from(KNOWN)))
def test_no_list_of_options_is_refused_or_lost(options: list[str]) -> None:
    result = parse(options)
    assert result.set & result.clear & ~m.MOUNT_ATTR_ATIME == 0
    assert set(result.data) <= set(options)

"""Options of mounts that hold SELinux labels, whose categories are parted by commas as options are."""

import pytest

from sampan.runtime import labels

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("size=1k", ["size=1k"]),
        ("size=1k,mode=700", ["size=1k", "mode=700"]),
        (f'context="{LABEL}"', [f"context={LABEL}"]),
        (f'size=1k,context="{LABEL}",mode=700', ["size=1k", f"context={LABEL}", "mode=700"]),
        (f"context={LABEL}", [f"context={LABEL.removesuffix(',c2')}", "c2"]),
        ("", [""]),
    ],
)
def test_options_are_parted_as_mount_does(option: str, parts: list[str]) -> None:
    assert labels.parted(option) == parts

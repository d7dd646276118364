"""SELinux labels: what a request leaves out is the container policy's."""

import pytest

from sampan.engine import selinux
from sampan.engine.model import SelinuxLabel


@pytest.mark.parametrize(
    ("wanted", "privileged", "labels"),
    [
        (None, True, ("", "")),
        (None, False, ("system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0")),
        (
            SelinuxLabel(level="s0:c1,c2"),
            False,
            ("system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"),
        ),
        (
            SelinuxLabel(user="u", role="r", type="spc_t", level="s1"),
            True,
            ("u:r:spc_t:s1", "u:object_r:container_file_t:s1"),
        ),
    ],
)
def test_labels(wanted: SelinuxLabel | None, privileged: bool, labels: tuple[str, str]) -> None:
    assert selinux.labels(wanted, privileged=privileged) == labels

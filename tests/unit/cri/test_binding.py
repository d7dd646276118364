"""Every call of the interface is served by one method, in the pool that it belongs to."""

import inspect

import pytest

from sampan.cri import api_pb2 as pb
from sampan.cri import failures, lists, metrics
from sampan.cri.commands import Commands
from sampan.cri.containers import Containers
from sampan.cri.events import Events
from sampan.cri.images import Images
from sampan.cri.metrics import Metrics
from sampan.cri.runtime import Runtime
from sampan.cri.sandboxes import Sandboxes
from sampan.cri.server import POOLS, find, pool_of, snake
from sampan.cri.usage import Usage

GROUPS: list[object] = [Runtime, Sandboxes, Containers, Commands, Images, Usage, Metrics, Events]
METHODS = [method for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods]


@pytest.mark.parametrize("name", [method.name for method in METHODS])
def test_every_call_is_served(name: str) -> None:
    assert pool_of(name) in POOLS
    assert list(inspect.signature(find(GROUPS, name)).parameters)[1].removeprefix("_") == "request"


def test_no_service_has_a_method_that_is_no_call() -> None:
    calls = {snake(method.name) for method in METHODS}
    for group in GROUPS:
        public = {name for name in vars(group) if not name.startswith("_")}
        assert public <= calls


@pytest.mark.parametrize(
    ("call", "pool"),
    [
        ("ListContainers", "read"),
        ("StreamPodSandboxes", "read"),
        ("ContainerStatus", "read"),
        ("Status", "read"),
        ("Exec", "read"),
        ("ExecSync", "exec"),
        ("UpdateRuntimeConfig", "work"),
        ("StopContainer", "end"),
        ("RemovePodSandbox", "end"),
        ("RunPodSandbox", "work"),
        ("PullImage", "pull"),
        ("ListContainerStats", "usage"),
        ("StreamPodSandboxMetrics", "usage"),
        ("GetContainerEvents", "follow"),
    ],
)
def test_pools(call: str, pool: str) -> None:
    assert pool_of(call) == pool


def test_snake() -> None:
    assert snake("ListPodSandboxMetrics") == "list_pod_sandbox_metrics"
    assert snake("Exec") == "exec"


def test_pieces_keep_order_and_lose_nothing() -> None:
    for size in (0, 1, lists.PIECE, lists.PIECE + 1, 3 * lists.PIECE):
        found = list(lists.pieces(range(size)))
        assert [each for piece in found for each in piece] == list(range(size))
        assert all(0 < len(piece) <= lists.PIECE for piece in found)


def test_a_status_message_is_one_bounded_line() -> None:
    assert failures.one_line("a\n b\t c") == "a b c"
    assert len(failures.one_line("x" * 10_000)) == 2000


def test_metric_names_are_distinct() -> None:
    names = [descriptor.name for descriptor in metrics.descriptors()]
    assert len(set(names)) == len(names)
    assert all(descriptor.help and descriptor.label_keys for descriptor in metrics.descriptors())

"""The libraries without what is not used of them; whoever wants that later, gets it."""

import subprocess
import sys

PROGRAM = """
import sys
from sampan.cri import libraries
libraries.load()
from sampan.cri import api_pb2, services, server
left_out = ("asyncio", "asyncio.events", "grpc.aio", "google.protobuf.internal.python_message")
assert not [name for name in left_out if name in sys.modules]
request = api_pb2.RunPodSandboxRequest(config=api_pb2.PodSandboxConfig(labels={"a": "b"}))
assert api_pb2.RunPodSandboxRequest.FromString(request.SerializeToString()) == request
assert "labels" in str(request)
import asyncio
assert asyncio.run(asyncio.sleep(0, "awake")) == "awake"
from google.protobuf.internal import python_message
assert python_message.GeneratedProtocolMessageType
"""


def test_what_is_not_used_is_not_imported_and_can_be_later() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

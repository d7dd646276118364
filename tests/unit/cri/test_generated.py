"""The generated code is that of the proto file, and the proto file is whole."""

import os
import subprocess
import sys

from sampan.cri import api_pb2

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))


def test_generated_code_is_current() -> None:
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, "scripts", "gen-proto"), "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_every_service_and_method_is_declared() -> None:
    services = api_pb2.DESCRIPTOR.services_by_name
    counts = {name: len(service.methods) for name, service in services.items()}
    assert counts == {"RuntimeService": 35, "ImageService": 6}
    assert api_pb2.DESCRIPTOR.package == "runtime.v1"


def test_secrets_are_kept_out_of_printed_messages() -> None:
    options = [
        name for name, field in api_pb2.AuthConfig.DESCRIPTOR.fields_by_name.items() if field.GetOptions().debug_redact
    ]
    assert sorted(options) == ["auth", "identity_token", "password", "registry_token"]

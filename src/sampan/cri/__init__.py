"""The Kubernetes Container Runtime Interface, v1: translation between its messages and the engine, and nothing else.

A request is read by ``*_requests`` (every string and size checked, the first fault named by its field), handed to the
engine, and the record that comes back is written by ``*_messages``. The services are one class for a group of calls;
:mod:`sampan.cri.server` binds them to the names in ``api.proto``. Nothing else in Sampan imports protobuf or grpc.
"""

"""An MDM in Python, from the .proto files alone. usage: client.py PROTO_FOLDER CERTIFICATE_FOLDER"""

import os
import sys
import tempfile
import threading
import time
import uuid

import grpc
import grpc_tools
from grpc_tools import protoc

protos, certificates = sys.argv[1:]
generated = tempfile.mkdtemp()
builtin = os.path.join(os.path.dirname(grpc_tools.__file__), "_proto")
files = ["types", "device", "session", "inspect"]
arguments = [f"-I{protos}", f"-I{builtin}", f"--python_out={generated}", f"--grpc_python_out={generated}"]
assert protoc.main(["protoc", *arguments, *[f"lazaret/v1/{f}.proto" for f in files]]) == 0
sys.path.insert(0, generated)

from google.protobuf.timestamp_pb2 import Timestamp  # noqa: E402
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase  # noqa: E402
from lazaret.v1 import device_pb2, device_pb2_grpc, inspect_pb2, inspect_pb2_grpc, session_pb2, session_pb2_grpc, types_pb2  # noqa: E402


def read(name):
    with open(os.path.join(certificates, name), "rb") as f:
        return f.read()


def channel(role):
    identity = {} if role is None else {"private_key": read(f"{role}.key"), "certificate_chain": read(f"{role}.pem")}
    credentials = grpc.ssl_channel_credentials(root_certificates=read("ca.pem"), **identity)
    return grpc.secure_channel("10.9.0.1:9443", credentials, [("grpc.ssl_target_name_override", "gw.example.test")])


def context():
    now = Timestamp()
    now.GetCurrentTime()
    return types_pb2.SignalContext(request_id=str(uuid.uuid4()), observed_at=now)


def refused(call, code, reason=None):
    try:
        call()
    except grpc.RpcError as e:
        assert e.code() == code, e
        details = dict(e.trailing_metadata() or {}).get("grpc-status-details-bin", b"")
        assert reason is None or reason.encode() in details, (reason, details)
        return
    raise AssertionError(f"not refused with {code}")


mdm = channel("mdm")
devices = device_pb2_grpc.DeviceServiceStub(mdm)
sessions = session_pb2_grpc.SessionServiceStub(channel("vpn"))
inspect = inspect_pb2_grpc.InspectServiceStub(channel("viewer"))
NAME = "from-python"

answer = devices.RegisterDevices(
    device_pb2.RegisterDevicesRequest(
        context=context(), devices=[device_pb2.DeviceRegistration(device_id=NAME, owner="Guido", full_service_pool="staff")]
    ),
    timeout=10,
)
assert answer.devices[0].state == types_pb2.DEVICE_STATE_REGISTERED, answer

changes = []
watch = devices.WatchGatewayUris(device_pb2.WatchGatewayUrisRequest(after_revision=answer.store_revision))


def listen():
    try:
        for change in watch:
            changes.append((change.device_id, change.old_gateway_uri, change.new_gateway_uri))
    except grpc.RpcError as e:
        assert e.code() == grpc.StatusCode.CANCELLED, e


listener = threading.Thread(target=listen, daemon=True)
listener.start()

opened = sessions.OpenSession(
    session_pb2.OpenSessionRequest(
        context=context(),
        source="vpn",
        session=session_pb2.SessionReport(device_name=NAME, prefixes=["10.66.0.77", "fd00:66::77/128"], interface="dev0"),
    ),
    timeout=10,
)
assert opened.session.current_pool == "quarantine", opened

applied = device_pb2.ReportPolicyAppliedRequest(context=context(), device_id=NAME, policy_revision="r1")
released = devices.ReportPolicyApplied(applied, timeout=10)
assert released.enforcement == types_pb2.ENFORCEMENT_ENFORCED, released
assert released.gateway_uri == "vpn.example.test", released
assert {p.prefix for p in released.prefixes} == {"10.66.0.77/32", "fd00:66::77/128"}, released
assert all(r.as_wanted and r.pool == "staff" for p in released.prefixes for r in p.read_backs), released
again = devices.ReportPolicyApplied(applied, timeout=10)
assert again.enforcement == types_pb2.ENFORCEMENT_ENFORCED and again.gateway_uri == released.gateway_uri, again

revoked = devices.ReportPolicyRevoked(
    device_pb2.ReportPolicyRevokedRequest(context=context(), device_id=NAME, reason="lost"), timeout=10
)
assert revoked.enforcement == types_pb2.ENFORCEMENT_ENFORCED and revoked.gateway_uri == "enrol.vpn.example.test", revoked
# The same request gets its first answer; it releases nothing.
assert devices.ReportPolicyApplied(applied, timeout=10) == released
assert devices.GetDevice(device_pb2.GetDeviceRequest(device_id=NAME), timeout=10).device.state == types_pb2.DEVICE_STATE_QUARANTINED
# Seen before the restriction: too late.
applied.context.request_id = str(uuid.uuid4())
refused(lambda: devices.ReportPolicyApplied(applied, timeout=10), grpc.StatusCode.FAILED_PRECONDITION, "STALE_SIGNAL")
unknown = device_pb2.ReportPolicyAppliedRequest(context=context(), device_id="nobody", policy_revision="r1")
refused(lambda: devices.ReportPolicyApplied(unknown, timeout=10), grpc.StatusCode.NOT_FOUND, "UNKNOWN_DEVICE")

# By role, and not at all without a certificate.
refused(
    lambda: session_pb2_grpc.SessionServiceStub(mdm).CloseSession(
        session_pb2.CloseSessionRequest(context=context(), session_id=opened.session.session_id), timeout=10
    ),
    grpc.StatusCode.PERMISSION_DENIED,
)
refused(
    lambda: inspect_pb2_grpc.InspectServiceStub(channel(None)).GetStatus(inspect_pb2.GetStatusRequest(), timeout=10),
    grpc.StatusCode.UNAVAILABLE,
)

status = inspect.GetStatus(inspect_pb2.GetStatusRequest(), timeout=10)
assert status.mode == "enforce" and status.floor == "closed" and status.sessions == 1, status

health = health_pb2_grpc.HealthStub(mdm).Check(health_pb2.HealthCheckRequest(), timeout=10)
assert health.status == health_pb2.HealthCheckResponse.SERVING, health
services = set(ProtoReflectionDescriptorDatabase(mdm).get_services())
assert {f"lazaret.v1.{s}Service" for s in ["Device", "Session", "Inspect"]} <= services, services

deadline = time.time() + 5
while len(changes) < 2 and time.time() < deadline:
    time.sleep(0.02)
watch.cancel()
listener.join()
enrol, full = "enrol.vpn.example.test", "vpn.example.test"
assert changes == [(NAME, enrol, full), (NAME, full, enrol)], changes
print("all held")

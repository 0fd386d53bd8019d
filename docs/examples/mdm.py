"""An MDM's side of Lazaret, in Python: the whole flow of docs/mdm.md. Needs grpcio, grpcio-tools and grpcio-status (PyPI).

usage: mdm.py HOST:PORT SERVER_NAME CA.pem CERTIFICATE.pem KEY.pem PROTO_FOLDER
"""

import os
import sys
import tempfile
import threading
import time
import uuid
from datetime import datetime, timedelta, timezone

import grpc
import grpc_tools
from grpc_tools import protoc

address, server_name, ca, certificate, key, protos = sys.argv[1:]

# The code that protoc makes of the .proto files; a real MDM does this when it is built.
generated = tempfile.mkdtemp()
builtin = os.path.join(os.path.dirname(grpc_tools.__file__), "_proto")
files = [f"lazaret/v1/{name}.proto" for name in ("types", "device", "policy")]
arguments = [f"-I{protos}", f"-I{builtin}", f"--python_out={generated}", f"--grpc_python_out={generated}"]
assert protoc.main(["protoc", *arguments, *files]) == 0
sys.path.insert(0, generated)

from google.protobuf.timestamp_pb2 import Timestamp  # noqa: E402
from google.rpc import error_details_pb2  # noqa: E402
from grpc_status import rpc_status  # noqa: E402
from lazaret.v1 import device_pb2, device_pb2_grpc, policy_pb2, policy_pb2_grpc, types_pb2  # noqa: E402


def read(path):
    with open(path, "rb") as f:
        return f.read()


credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(certificate))
channel = grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", server_name)])
devices = device_pb2_grpc.DeviceServiceStub(channel)
policies = policy_pb2_grpc.PolicyServiceStub(channel)


def timestamp(at):
    t = Timestamp()
    t.FromDatetime(at)
    return t


def context():
    """Made once for each thing that happened, and sent again as it is when the call is repeated."""
    return types_pb2.SignalContext(request_id=str(uuid.uuid4()), observed_at=timestamp(datetime.now(timezone.utc)))


def error_info(error):
    """google.rpc.ErrorInfo of an error: reason, domain, metadata."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            return info
    return error_details_pb2.ErrorInfo()


def call(method, request, attempts=5):
    """Calls, and repeats with the same request id what may be repeated: the gateway does it once."""
    for attempt in range(attempts):
        try:
            return method(request, timeout=10)
        except grpc.RpcError as error:
            repeatable = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            if not repeatable or attempt + 1 == attempts:
                raise
            time.sleep(0.2 * 2**attempt)


def refused(method, request):
    """The reason for which a call is refused, and its reference code."""
    try:
        method(request, timeout=10)
    except grpc.RpcError as error:
        info = error_info(error)
        return info.reason, info.metadata.get("reference", "")
    raise AssertionError("it was not refused")


# 1. Register, before the device connects: with an owner, and a window in which it may enrol.
now = datetime.now(timezone.utc)
window = types_pb2.EnrolmentWindow(not_before=timestamp(now - timedelta(minutes=1)), not_after=timestamp(now + timedelta(days=2)))
phone = device_pb2.DeviceRegistration(device_id="phone-1", owner="A. Person", full_service_pool="staff", window=window)
tablets = [
    device_pb2.DeviceRegistration(device_id=f"tablet-{i}", owner="Warehouse", full_service_pool="staff") for i in range(200)
]
registered = call(
    devices.RegisterDevices, device_pb2.RegisterDevicesRequest(context=context(), devices=[phone, *tablets])
)
assert registered.devices[0].state == types_pb2.DEVICE_STATE_REGISTERED
print("registered", len(registered.devices))


# 2. Watch the GatewayURIs, in a thread of its own; after an error go on from the last revision but one that was seen.
changes = []
stop_watching = threading.Event()


def watch(after):
    while not stop_watching.is_set():
        stream = devices.WatchGatewayUris(device_pb2.WatchGatewayUrisRequest(after_revision=after))
        stop = threading.Thread(target=lambda: (stop_watching.wait(), stream.cancel()), daemon=True)
        stop.start()
        try:
            for change in stream:
                # A revision can change several devices: resume after the one before it, and take repetition.
                after = max(after, change.revision - 1)
                entry = (change.revision, change.device_id, change.new_gateway_uri)
                if entry not in changes:
                    changes.append(entry)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.CANCELLED:
                return
            info = error_info(error)
            if info.reason == "REVISION_TOO_OLD":
                # What happened meanwhile is no longer kept: list the devices, then watch from now on.
                after = int(info.metadata["now"])
            time.sleep(0.5)


watcher = threading.Thread(target=watch, args=(registered.store_revision,), daemon=True)
watcher.start()

# 3. Publish the policy revision that devices must have.
published = call(
    policies.PublishPolicyRevision,
    policy_pb2.PublishPolicyRevisionRequest(context=context(), policy_revision="baseline-1", ceiling=50, rate_per_minute=600),
)
assert published.publication.policy_revision == "baseline-1"

# 4. The handshake: offer, acknowledge, applied.
offer = call(
    policies.OfferPolicy, policy_pb2.OfferPolicyRequest(context=context(), device_id="phone-1", policy_revision="baseline-1")
)
# ... the device gets the policy with offer.temporary_key, and sends the key back ...
acknowledge = policy_pb2.AcknowledgePolicyRequest(
    context=context(), device_id="phone-1", temporary_key=offer.temporary_key
)
final = call(policies.AcknowledgePolicy, acknowledge)
# Sent once more, the same request gets the same key; another request with a used key is refused.
assert call(policies.AcknowledgePolicy, acknowledge).final_key == final.final_key
replayed = policy_pb2.AcknowledgePolicyRequest(context=context(), device_id="phone-1", temporary_key=offer.temporary_key)
reason, reference = refused(policies.AcknowledgePolicy, replayed)
assert reason == "POLICY_KEY_UNKNOWN" and reference.startswith("A"), (reason, reference)
# ... the device has applied it ...
applied = device_pb2.ReportPolicyAppliedRequest(
    context=context(), device_id="phone-1", policy_revision="baseline-1", policy_key=final.final_key
)
released = call(devices.ReportPolicyApplied, applied)
assert released.device.state == types_pb2.DEVICE_STATE_RELEASED
# ENFORCED: in force; NO_SESSION: it applies when the device connects; COMMITTED: `prefixes` says where it is not in force yet.
print("phone-1:", types_pb2.Enforcement.Name(released.enforcement), released.gateway_uri)


# 5. Many signals: one stream, each message answered under its request id, in no particular order.
def direct(name):
    signal = device_pb2.ReportPolicyAppliedRequest(context=context(), device_id=name, policy_revision="baseline-1")
    return policy_pb2.ReportPolicyRequest(applied=signal)


signals = [direct(t.device_id) for t in tablets] + [direct("nobody")]
waiting = {s.applied.context.request_id: s.applied.device_id for s in signals}
failed = {}
for answer in policies.ReportPolicy(iter(signals), timeout=60):
    name = waiting.pop(answer.request_id)
    if answer.HasField("refusal"):
        failed[name] = answer.refusal.reason
assert not waiting, f"repeat these on another stream, as they are: {waiting}"
assert failed == {"nobody": "UNKNOWN_DEVICE"}, failed
print("released by stream:", len(signals) - len(failed))

# 6. Leases: renew what still holds, many at a time.
names = [t.device_id for t in tablets]
renewed = call(policies.RenewLeases, policy_pb2.RenewLeasesRequest(context=context(), device_ids=names))
assert all(not r.HasField("refusal") for r in renewed.renewals), renewed

# 7. A new revision: connected devices with older proof become stale in waves, and the progress is a stream.
call(
    policies.PublishPolicyRevision,
    policy_pb2.PublishPolicyRevisionRequest(context=context(), policy_revision="baseline-2", ceiling=10, rate_per_minute=600),
)
for progress in policies.WatchPublication(policy_pb2.WatchPublicationRequest(), timeout=60):
    p = progress.publication
    print(f"{p.policy_revision}: {p.done} done, {p.waiting} waiting ({p.waiting_connected} connected), {p.stale} stale")
    assert p.stale_counted <= 10, "never more than the ceiling"
    if p.stale > 0 or p.standstill:
        # Here nobody is connected: a wave with limits takes nobody before.
        print("  ", p.standstill)
        break
paused = call(policies.PausePublication, policy_pb2.PausePublicationRequest(context=context()))
assert paused.publication.paused
call(policies.ResumePublication, policy_pb2.ResumePublicationRequest(context=context()))
# The same revision with other terms: at once, connected or not.
call(
    policies.PublishPolicyRevision,
    policy_pb2.PublishPolicyRevisionRequest(context=context(), policy_revision="baseline-2", urgent=True),
)
for progress in policies.WatchPublication(policy_pb2.WatchPublicationRequest(), timeout=60):
    if progress.publication.waiting == 0:
        break
stale = devices.ListDevices(device_pb2.ListDevicesRequest(state=types_pb2.DEVICE_STATE_STALE), timeout=10).devices[-1]
old = device_pb2.ReportPolicyAppliedRequest(context=context(), device_id=stale.device_id, policy_revision="baseline-1")
assert refused(devices.ReportPolicyApplied, old)[0] == "STALE_POLICY_REVISION"
fresh = device_pb2.ReportPolicyAppliedRequest(
    context=context(), device_id=stale.device_id, policy_revision=stale.required_policy_revision
)
assert call(devices.ReportPolicyApplied, fresh).device.state == types_pb2.DEVICE_STATE_RELEASED

# 8. A revocation is never refused, and takes the keys away. A release that was seen before it comes too late.
before = context()
revoked = call(
    devices.ReportPolicyRevoked,
    device_pb2.ReportPolicyRevokedRequest(context=context(), device_id="phone-1", reason="the PIN was removed"),
)
assert revoked.device.state == types_pb2.DEVICE_STATE_QUARANTINED
late = device_pb2.ReportPolicyAppliedRequest(context=before, device_id="phone-1", policy_revision="baseline-2")
reason, reference = refused(devices.ReportPolicyApplied, late)
assert reason == "STALE_SIGNAL", reason
print("refused:", reason, reference)

# 9. Why a device is where it is, in words.
why = devices.ExplainDevice(device_pb2.ExplainDeviceRequest(device_id="phone-1"), timeout=10)
print(why.summary)
for advice in why.advice:
    print("  to do:", advice)

deadline = time.time() + 10
while sum(name == "phone-1" for _, name, _ in changes) < 2 and time.time() < deadline:
    time.sleep(0.02)
stop_watching.set()
watcher.join()
uris = [uri for _, name, uri in changes if name == "phone-1"]
assert uris == [released.gateway_uri, revoked.gateway_uri], uris
print("all held")

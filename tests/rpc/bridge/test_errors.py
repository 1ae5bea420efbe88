"""What clients learn when a handler fails, and what they must not."""

from __future__ import annotations

import pytest
import structlog
import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from lab.rpc_probe import ECHO, UNARY, UPLOAD, WATCH, text
from shovey_trio.core.errors import Code
from shovey_trio.rpc.bridge import Method, RpcError, RpcStatus, ServerOptions
from shovey_trio.rpc.bridge.status import decode_error, encode_details


async def _call(rig, method, request):
    if not method.client_streaming and not method.server_streaming:
        await rig.channel.unary(method, request)
        return
    async with rig.channel.stream(method, None if method.client_streaming else request) as stream:
        if method.client_streaming:
            await stream.send(request)
        async for _ in stream:
            pass


async def _send_for_ever(stream):
    while True:
        await stream.send(text("more"))


@pytest.mark.parametrize("method", [UNARY, WATCH, UPLOAD, ECHO], ids=lambda method: method.path.rpartition("/")[2])
@pytest.mark.parametrize("action", ["mapped", "group"])
async def test_mapped_errors_carry_reason_and_metadata(open_rig, method, action):
    with trio.fail_after(20):
        async with open_rig() as rig:
            with pytest.raises(RpcError) as caught:
                await _call(rig, method, text(action))
            assert caught.value.code is Code.NOT_FOUND
            assert caught.value.message == "no such thing"
            assert caught.value.reason == "PROBE"
            assert dict(caught.value.metadata) == {"node": "web-1"}


@pytest.mark.parametrize("method", [UNARY, WATCH, UPLOAD, ECHO], ids=lambda method: method.path.rpartition("/")[2])
async def test_a_bug_is_internal_with_an_incident_and_no_secret(open_rig, method):
    with trio.fail_after(20), structlog.testing.capture_logs() as logs:
        async with open_rig() as rig:
            with pytest.raises(RpcError) as caught:
                await _call(rig, method, text("secret"))
            assert caught.value.code is Code.INTERNAL
            assert "password123" not in str(caught.value)
            (record,) = [record for record in logs if record["event"] == "rpc.failed"]
            assert record["incident"] in caught.value.message
            assert record["method"] == method.path
            assert (await rig.channel.unary(UNARY, text("alive"))).value == "alive"


async def test_abort_gives_its_own_status(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig:
            with pytest.raises(RpcError) as caught:
                await rig.channel.unary(UNARY, text("abort"))
            assert (caught.value.code, caught.value.message) == (Code.FAILED_PRECONDITION, "not now")
            assert caught.value.reason == "FAILED_PRECONDITION"


async def test_sending_on_a_failed_stream_raises_its_status(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig, rig.channel.stream(ECHO) as stream:
            await stream.send(text("abort"))
            await rig.probe.until(lambda probe: probe.running == 0)
            with pytest.raises(RpcError) as caught:
                await _send_for_ever(stream)
            assert caught.value.code is Code.FAILED_PRECONDITION


async def test_oversized_request_is_resource_exhausted(open_rig):
    with trio.fail_after(20):
        async with open_rig(options=ServerOptions(max_receive_bytes=10_000)) as rig:
            assert len((await rig.channel.unary(UNARY, text("x" * 9_000))).value) == 9_000
            with pytest.raises(RpcError) as caught:
                await rig.channel.unary(UNARY, text("x" * 20_000))
            assert caught.value.code is Code.RESOURCE_EXHAUSTED
            assert (await rig.channel.unary(UNARY, text("alive"))).value == "alive"


@pytest.mark.parametrize("method", [UNARY, ECHO], ids=lambda method: method.path.rpartition("/")[2])
async def test_a_request_that_does_not_parse_is_invalid_argument(open_rig, method):
    """BytesValue with invalid UTF-8 is a StringValue that does not parse."""
    raw = Method(
        path=method.path,
        request_type=BytesValue,
        response_type=StringValue,
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
    )
    with trio.fail_after(20):
        async with open_rig() as rig:
            with pytest.raises(RpcError) as caught:
                await _call(rig, raw, BytesValue(value=b"\xff\xfe"))
            assert caught.value.code is Code.INVALID_ARGUMENT


def test_details_too_large_for_metadata_are_left_out():
    status = RpcStatus(code=Code.NOT_FOUND, message="m" * 5_000, details=(text("x" * 10_000),))
    message, trailing = encode_details(status)
    assert len(message) == 1024
    assert trailing == ()


def test_details_survive_the_wire():
    status = RpcStatus(code=Code.NOT_FOUND, message="gone", details=(text("a"), text("b")))
    message, trailing = encode_details(status)
    error = decode_error(Code.NOT_FOUND.value, message, trailing)
    assert error.code is Code.NOT_FOUND
    unpacked = [StringValue() for _ in error.details]
    assert all(detail.Unpack(into) for detail, into in zip(error.details, unpacked, strict=True))
    assert [into.value for into in unpacked] == ["a", "b"]


@pytest.mark.parametrize("junk", [b"\xff\xff\xff", b"\x0a", AnyMessage(value=b"\xff").SerializeToString()])
def test_details_that_do_not_parse_leave_the_plain_error(junk):
    error = decode_error(99, "odd", [("grpc-status-details-bin", junk)])
    assert error.code is Code.UNKNOWN
    assert error.message == "odd"
    assert error.reason == "UNKNOWN"


def test_ok_is_not_an_error_status():
    with pytest.raises(ValueError, match="OK"):
        RpcStatus(code=Code.OK, message="")

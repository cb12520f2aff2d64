"""What passes a gateway is the sender's, byte for byte; only what must change does, in place.

The upstream is a script on a raw socket: it answers with bytes that no JSON encoder would write in that way.
"""

from typing import Final

import pytest
import trio

from tests.e2e.conftest import Start
from tests.e2e.peers import (
    Client,
    RawUpstream,
    Response,
    Script,
    UpstreamRequest,
    answer,
    chunked,
    connect,
    post,
    sse_head,
)
from tests.support.process import eventually

# White space, escapes, order, numbers beyond 64 bits and beyond a double, members that nobody knows, a nested model.
REQUEST: Final = (
    b' {\r\n\t"messages" :[{"content":"caf\\u00e9 \xf0\x9f\x98\x80 \\/ \\ud83d\\ude00","role":"user"}],'
    b'"model"\n: "MODEL" ,"n":1,"seed":12345678901234567890123,"temperature":1.0000000000000000001e-0,'
    b'"x_unknown":{"model":"inner","b":[ ],"a":{ } },"metadata":{"model":"kept"},"stop":null,'
    b'"logit_bias":{"1":-1E+2}}\n'
)
ANSWER: Final = (
    b'{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"a \\u003cb\\u003e"}}],\n'
    b' "usage" : {"prompt_tokens":3,"completion_tokens":4, "x":99999999999999999999},"model"\t:\t"MODEL",'
    b'"id":"x\\u0000","tools":[{"model":"inner"}],"1e400":1e400  }\n\n'
)
# What the gateway reads of a stream is little, and it must not show in what it does not.
CHUNKS: Final = (
    b'{"id":"1","model":"MODEL","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}',
    b'{"choices" : [ {"delta":{"content":"{\\"model\\":\\"inner\\"}"},"index":0}], "model" : "MODEL",'
    b'"big":12345678901234567890}',
    b'{"model":"MODEL","obfuscation":"a","choices":[{"index":0,"delta":{"content":"\\u2028\xe2\x80\xa8 '
    b'\xf0\x9f\x98\x80"}}]}',
    b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"x":{"model":"MODEL"},"model":"MODEL"}',
)
USAGE_CHUNK: Final = b'{"model":"MODEL","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}'


def stream_of(line_end: bytes, *chunks: bytes, space: bytes = b" ", comments: bool = False) -> bytes:
    """An event stream in one of its legal spellings."""
    lines = [b": hello", b""] if comments else []
    for chunk in chunks:
        lines += [b"data:" + space + chunk, b""]
        lines += [b":", b""] if comments else []
    return line_end.join([*lines, b"data: [DONE]", b"", b""])


STREAMS: Final = {
    "lf": stream_of(b"\n", *CHUNKS, USAGE_CHUNK),
    "crlf": stream_of(b"\r\n", *CHUNKS, USAGE_CHUNK),
    "cr": stream_of(b"\r", *CHUNKS, USAGE_CHUNK),
    "no_space": stream_of(b"\n", *CHUNKS, USAGE_CHUNK, space=b""),
    "comments": stream_of(b"\r\n", *CHUNKS, USAGE_CHUNK, comments=True),
    "extra_blank_lines": stream_of(b"\n", *CHUNKS, USAGE_CHUNK).replace(b"\n\ndata", b"\n\n\n\ndata"),
    "named_events": stream_of(b"\n", *CHUNKS, USAGE_CHUNK).replace(b"data: {", b"event: message\nid: 7\ndata: {"),
}


def playing(body: bytes) -> Script:
    """An upstream that answers with a whole JSON document."""

    async def script(stream: trio.SocketStream, received: UpstreamRequest) -> None:
        await stream.send_all(answer(body))

    return script


def streaming(body: bytes, size: int) -> Script:
    """An upstream that answers with an event stream, in chunks of `size` bytes."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]

    async def script(stream: trio.SocketStream, received: UpstreamRequest) -> None:
        await stream.send_all(sse_head())
        for piece in pieces:
            await stream.send_all(chunked(piece, end=False))
        await stream.send_all(chunked())

    return script


def config(upstream: RawUpstream, *, alias: bool) -> dict[str, object]:
    """One upstream that serves the model `real`, which is also called `nick` with `alias`."""
    models = {"nick": {"upstream": "real"}} if alias else {}
    return {
        "models": models,
        "upstreams": {"raw": {"kind": "openai", "base_url": upstream.base_url, "models": ["real"]}},
    }


async def ask(client: Client, document: bytes, *fields: bytes) -> Response:
    await client.send(post(document, *fields))
    return await client.response()


def named(data: bytes, model: bytes) -> bytes:
    """The text with its placeholder filled."""
    return data.replace(b"MODEL", model)


@pytest.mark.parametrize("alias", [False, True])
async def test_a_whole_answer_and_its_request_differ_in_the_model_only(start: Start, alias: bool) -> None:
    """Without an alias, in nothing."""
    asked = b"nick" if alias else b"real"
    async with RawUpstream.serving(playing(named(ANSWER, b"real"))) as upstream:
        with start(config(upstream, alias=alias)) as capi:
            async with connect(capi.port) as client:
                response = await ask(client, named(REQUEST, asked))
    assert (response.status, response.header(b"content-type")) == (200, b"application/json")
    assert upstream.requests[0].body == named(REQUEST, b"real")
    assert response.body == named(ANSWER, asked)


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_a_stream_differs_in_the_model_only(start: Start, size: int) -> None:
    """However its upstream spells it and cuts it; a `model` in tool arguments or in unknown members is not it."""
    asks = b',"stream":true,"stream_options":{"include_usage": true , "x":1}}'
    async with RawUpstream.serving(playing(b"{}")) as upstream:
        with start(config(upstream, alias=True)) as capi:
            async with connect(capi.port) as client:
                for name, stream in STREAMS.items():
                    sent = named(stream, b"real")
                    upstream.script = streaming(sent, size)
                    for model in (b"real", b"nick"):
                        response = await ask(client, b'{"model":"' + model + b'"' + asks)
                        assert response.status == 200
                        # The inner one belongs to whoever wrote it.
                        want = sent.replace(b'"model":"real"', b'"model":"nick"').replace(
                            b'"model" : "real"', b'"model" : "nick"'
                        )
                        want = want.replace(b'"x":{"model":"nick"}', b'"x":{"model":"real"}')
                        assert response.body == (want if model == b"nick" else sent), (name, model)
                        assert upstream.requests[-1].body == b'{"model":"real"' + asks, (name, model)


async def test_usage_that_the_client_did_not_ask_for_is_asked_for_and_swallowed(start: Start) -> None:
    """The request grows by one member at its end, and the stream loses one event."""
    async with RawUpstream.serving(playing(b"{}")) as upstream:
        with start(config(upstream, alias=False)) as capi:
            async with connect(capi.port) as client:
                for line_end in (b"\n", b"\r\n", b"\r"):
                    upstream.script = streaming(named(stream_of(line_end, *CHUNKS, USAGE_CHUNK), b"real"), 9)
                    response = await ask(client, b'{"model":"real", "stream" : true}')
                    assert response.body == named(stream_of(line_end, *CHUNKS), b"real")
                for options, want in (
                    (b"null", b'{"include_usage":true}'),
                    (b'{"include_usage":false,"x": 1}', b'{"include_usage":true,"x": 1}'),
                    (b'{ "x" :1 }', b'{ "x" :1 ,"include_usage":true}'),
                ):
                    await ask(client, b'{"model":"real","stream":true,"stream_options":' + options + b',"z":0}')
                    assert upstream.requests[-1].body.replace(b" ", b"") == (
                        b'{"model":"real","stream":true,"stream_options":' + want + b',"z":0}'
                    ).replace(b" ", b"")
    first = upstream.requests[0].body
    assert first.replace(b',"stream_options":{"include_usage":true}', b"") == b'{"model":"real", "stream" : true}'


async def test_a_client_of_http_1_0_gets_the_stream_without_chunks(start: Start) -> None:
    """It ends with the connection."""
    document = b'{"model":"real","stream":true,"stream_options":{"include_usage":true}}'
    stream = named(STREAMS["lf"], b"real")
    async with RawUpstream.serving(streaming(stream, 100)) as upstream:
        with start(config(upstream, alias=False)) as capi:
            async with connect(capi.port) as client:
                head = b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(document)
                await client.send(head + document)
                head, _, body = (await client.ended()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head.lower()
    assert body == stream


async def test_embeddings_pass_as_they_are(start: Start) -> None:
    document = b'{ "input":["a\\u00e9", [1,2 ]],"model":"nick","encoding_format":"base64","dimensions":1e1}'
    vectors = (
        b'{"object":"list","data":[{"embedding":"AAAA\\/w==","index":0}],"model":"real","usage":{"prompt_tokens":2}} '
    )
    async with RawUpstream.serving(playing(vectors)) as upstream:
        with start(config(upstream, alias=True)) as capi:
            async with connect(capi.port) as client:
                await client.send(post(document, target=b"/v1/embeddings"))
                response = await client.response()
    assert upstream.requests[0].head.startswith(b"POST /v1/embeddings HTTP/1.1\r\n")
    assert upstream.requests[0].body == document.replace(b"nick", b"real")
    assert response.body == vectors.replace(b"real", b"nick")


async def test_an_upstreams_error_passes_as_it_is(start: Start) -> None:
    error = b' {"error" : {"message":"caf\\u00e9","type":"x","param":null,"code":12345678901234567890},"more":[1, 2]}\n'

    async def script(stream: trio.SocketStream, received: UpstreamRequest) -> None:
        await stream.send_all(answer(error, status=418))

    async with RawUpstream.serving(script) as upstream:
        with start(config(upstream, alias=False)) as capi:
            async with connect(capi.port) as client:
                for stream in (b"false", b"true"):
                    response = await ask(client, b'{"model":"real","stream":' + stream + b"}")
                    assert (response.status, response.body) == (418, error)


async def test_no_header_of_the_client_reaches_the_upstream(start: Start) -> None:
    """Nor one of the upstream's the client, but those that say when to try again."""
    secret = b"s3cret"
    fields = (
        b"Authorization", b"Cookie", b"X-Api-Key", b"X-Forwarded-For", b"X-Forwarded-Host", b"Forwarded", b"Via",
        b"X-Real-IP", b"OpenAI-Organization", b"OpenAI-Project", b"Traceparent", b"Baggage", b"User-Agent",
        b"Referer", b"X-Stainless-Lang", b"Accept-Language", b"Idempotency-Key", b"X-Request-Id", b"X_Api_Key",
        b"Proxy-Authorization", b"Accept-Encoding", b"Accept", b"If-None-Match", b"Range", b"Priority",
    )  # fmt: skip
    head = (
        b"HTTP/1.1 429 x\r\ncontent-type: application/json\r\nset-cookie: s3cret\r\nx-request-id: s3cret\r\n"
        b"retry-after: 9\r\nserver: s3cret\r\nx-ratelimit-remaining: s3cret\r\nopenai-organization: s3cret\r\n"
        b"access-control-allow-origin: s3cret\r\ncontent-length: 28\r\n\r\n"
    )

    async def script(stream: trio.SocketStream, received: UpstreamRequest) -> None:
        await stream.send_all(head + b'{"error":{"message":"wait"}}')

    async with RawUpstream.serving(script) as upstream:
        with start(config(upstream, alias=False)) as capi:
            async with connect(capi.port) as client:
                response = await ask(client, b'{"model":"real"}', *(name + b": " + secret for name in fields))
                ours = response.header(b"x-request-id")
    assert response.status == 429
    assert response.header(b"retry-after") == b"9"
    assert not any(secret in value for _, value in response.headers)
    received = upstream.requests[0]
    assert secret not in received.head
    assert {name for name, _ in received.headers} == {
        b"host", b"accept", b"accept-encoding", b"connection", b"content-length", b"content-type", b"user-agent",
        b"x-request-id",
    }  # fmt: skip
    assert dict(received.headers)[b"x-request-id"] == ours
    assert dict(received.headers)[b"accept-encoding"] == b"identity"


async def test_the_upstream_gets_its_own_key_and_no_error_shows_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-fake-0123456789abcdef"
    monkeypatch.setenv("RAW_UPSTREAM_KEY", key)

    async def script(stream: trio.SocketStream, received: UpstreamRequest) -> None:
        error = b'{"error":{"message":"Incorrect API key provided: ' + key.encode() + b'","type":"x"}}'
        await stream.send_all(answer(error, status=400))

    async with RawUpstream.serving(script) as upstream:
        upstreams = config(upstream, alias=False)["upstreams"]
        assert isinstance(upstreams, dict)
        upstreams["raw"]["api_key_env"] = "RAW_UPSTREAM_KEY"
        with start({"upstreams": upstreams}) as capi:
            async with connect(capi.port) as client:
                response = await ask(client, b'{"model":"real"}', b"Authorization: Bearer sk-of-the-client")
            await eventually(lambda: bool(capi.events("exchange")), 2)
    assert dict(upstream.requests[0].headers)[b"authorization"] == f"Bearer {key}".encode()
    assert key.encode() not in response.body
    assert key not in str(capi.logs)
    assert key not in str(capi.text)

"""Embeddings: only the model's name changes on the way in."""

import pytest

from capi_core.errors import ProtocolError
from capi_core.protocols.embeddings import decode_request, encode_request

BODY = b' { "input" : [[1, 2.50], "\\u00e9"], "model"\t:\t"fast" , "encoding_format":"base64","x":1e999 }\n'


def test_the_models_name_is_replaced_and_every_other_byte_stays() -> None:
    request = decode_request(BODY)
    assert request.model == "fast"
    assert encode_request(request, upstream_model='a"b') == BODY.replace(b'"fast"', b'"a\\"b"')


def test_the_same_name_changes_nothing_not_even_its_spelling() -> None:
    body = b'{"model":"f\\u0061st"}'
    assert encode_request(decode_request(body), upstream_model="fast") == body


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "empty_body", None),
        (b"[]", "not_an_object", None),
        (b'{"model":', "invalid_json", None),
        (b'{"input":"x"}', "missing_model", "model"),
        (b'{"model":5}', "invalid_model", "model"),
        (b'{"model":"a","model":"b"}', "duplicate_member", None),
    ],
)
def test_what_names_no_model_is_refused(body: bytes, code: str, param: str | None) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_request(body)
    assert (caught.value.code, caught.value.status_hint, caught.value.param) == (code, 400, param)

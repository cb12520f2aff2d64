"""Config: a file is either understood whole or refused with every problem at its place; a URL never surprises."""

import json
from typing import Literal

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.aliases import Alias, UpstreamModels
from capi_core.config import (
    Config,
    ConfigError,
    FanoutConfig,
    FeaturesConfig,
    LimitsConfig,
    ModelConfig,
    RetentionConfig,
    UpstreamConfig,
    is_loopback_host,
    json_schema,
    parse,
)
from capi_core.fanout import FanoutThresholds
from capi_core.protocols.kinds import Protocol
from capi_core.routing import UpstreamTraits

GOOD = {
    "version": 1,
    "strict": True,
    "default_model": "fast",
    "models": {"fast": {"upstream": "org/model:tag", "via": "lab"}, "old": {"upstream": "x", "enabled": False}},
    "upstreams": {
        "openai": {"kind": "openai", "base_url": "https://api.openai.com/v1", "api_key_env": "OPENAI_API_KEY"},
        "lab": {"kind": "openai", "base_url": "http://10.0.0.7:8000/v1", "allow_http": True, "models": ["x"]},
        "play": {"kind": "demo"},
    },
    "limits": {"max_body_bytes": 1024, "grace_s": 0.5},
}


COPILOT = {"kind": "copilot"}


def problems(document: object) -> list[str]:
    """Every problem as `path: message`, of a document or of a text."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.problems
    assert str(caught.value) == "; ".join(map(str, caught.value.problems))
    return [str(problem) for problem in caught.value.problems]


def paths(document: object) -> list[str]:
    return [problem.partition(": ")[0] for problem in problems(document)]


def with_upstream(**members: object) -> dict[str, object]:
    return {"upstreams": {"u": {"kind": "openai", "base_url": "https://h.example/v1"} | members}}


# --- what is understood ---


def test_a_good_file_is_understood_without_a_warning() -> None:
    config, warnings = parse(json.dumps(GOOD).encode())
    assert warnings == ()
    assert (config.version, config.strict, config.default_model) == (1, True, "fast")
    assert config.models["fast"] == ModelConfig(upstream="org/model:tag", via="lab")
    assert config.models["old"] == ModelConfig(upstream="x", enabled=False)
    assert list(config.upstreams) == ["openai", "lab", "play"]
    assert config.upstreams["lab"].models == ["x"]
    assert config.limits == LimitsConfig(max_body_bytes=1024, grace_s=0.5)


def test_an_empty_object_is_a_file_of_defaults() -> None:
    assert parse(b"{}") == (Config(), ())
    assert Config().limits.max_body_bytes == 32 * 1024 * 1024
    assert UpstreamConfig(kind="demo").ask_usage


def test_the_catalog_keeps_the_files_order_and_takes_lists_from_the_caller() -> None:
    config, _ = parse(json.dumps(GOOD).encode())
    catalog = config.catalog({"openai": {"gpt-a": b"{}"}, "lab": None})
    assert catalog.aliases == {
        "fast": Alias("fast", "org/model:tag", via="lab"),
        "old": Alias("old", "x", enabled=False),
    }
    assert catalog.upstreams == (
        UpstreamModels("openai", {"gpt-a": b"{}"}),
        UpstreamModels("lab", None),
        UpstreamModels("play", None),
    )
    assert (catalog.strict, catalog.default_model) == (True, "fast")


# --- what is refused, and where ---


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ([], "$"),
        (b"", "$"),
        (b"{", "$"),
        (b"null", "$"),
        (b'\xef\xbb\xbf{"version":1}', "$"),
        (b'{"note":"\xff"}', "$"),
        (b'{"\xff":1}', "$"),
        (b'{"note":"\\ud83d"}', "$"),
        (b'{"note":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "$"),
        ({"version": 2}, "$.version"),
        ({"version": "1"}, "$.version"),
        ({"strict": "yes"}, "$.strict"),
        ({"limits": {"fanout": {"owners": 0}}}, "$.limits.fanout.owners"),
        ({"limits": {"fanout": {"keys": 1025}}}, "$.limits.fanout.keys"),
        ({"default_model": 5}, "$.default_model"),
        ({"default_model": ""}, "$.default_model"),
        ({"default_model": "no-such"}, "$.default_model"),
        ({"models": []}, "$.models"),
        ({"models": None}, "$.models"),
        ({"models": {"a": {}}}, "$.models.a"),
        ({"models": {"a": "gpt"}}, "$.models.a"),
        ({"models": {"a": {"upstream": 5}}}, "$.models.a.upstream"),
        ({"models": {"a": {"upstream": "a b"}}}, "$.models.a.upstream"),
        ({"models": {"a": {"upstream": "a\n"}}}, "$.models.a.upstream"),
        ({"models": {"a": {"upstream": "-a"}}}, "$.models.a.upstream"),
        ({"models": {"a": {"upstream": "x" * 129}}}, "$.models.a.upstream"),
        ({"models": {"a": {"upstream": "x", "enabled": 1}}}, "$.models.a.enabled"),
        ({"models": {"a": {"upstream": "x", "via": "U"}}}, "$.models.a.via"),
        ({"models": {"a": {"upstream": "x", "via": "gone"}}}, "$.models.a.via"),
        ({"models": {"a": {"upstream": "x", "allowed_keys": []}}}, "$.models.a.allowed_keys"),
        ({"models": {"a": {"upstream": "x", "allowed_keys": "*"}}}, "$.models.a.allowed_keys"),
        ({"models": {"a": {"upstream": "x", "allowed_keys": ["*", "k1"]}}}, "$.models.a.allowed_keys"),
        ({"models": {"a": {"upstream": "b"}, "b": {"upstream": "x"}}}, "$.models.a.upstream"),
        ({"models": {"a b": {"upstream": "x"}}}, "$.models.a b"),
        ({"models": {"": {"upstream": "x"}}}, "$.models."),
        ({"models": {"a\n": {"upstream": "x"}}}, "$.models.a\n"),
        ({"upstreams": 5}, "$.upstreams"),
        ({"upstreams": {"u": {}}}, "$.upstreams.u"),
        ({"upstreams": {"u": {"kind": "gopher"}}}, "$.upstreams.u.kind"),
        ({"upstreams": {"u": {"kind": "openai"}}}, "$.upstreams.u.base_url"),
        ({"upstreams": {"U": {"kind": "demo"}}}, "$.upstreams.U"),
        ({"upstreams": {"u\n": {"kind": "demo"}}}, "$.upstreams.u\n"),
        ({"upstreams": {"u": {"kind": "demo", "base_url": "http://127.0.0.1/v1"}}}, "$.upstreams.u.base_url"),
        ({"upstreams": {"u": {"kind": "copilot", "base_url": "https://h.example/v1"}}}, "$.upstreams.u.base_url"),
        ({"upstreams": {"u": {"kind": "copilot", "api_key_env": "A_KEY"}}}, "$.upstreams.u"),
        ({"upstreams": {"u": {"kind": "copilot", "api_key_file": "k"}}}, "$.upstreams.u"),
        ({"upstreams": {"u": {"kind": "copilot"}, "v": {"kind": "copilot"}}}, "$.upstreams.v.kind"),
        ({"upstreams": {"u": COPILOT | {"extra_headers": {"x-initiator": "user"}}}}, "$.upstreams.u.extra_headers"),
        ({"upstreams": {"u": COPILOT | {"extra_headers": {"A": "c"}}}}, "$.upstreams.u.extra_headers"),
        ({"upstreams": {"u": COPILOT | {"extra_headers": {"a b": "c"}}}}, "$.upstreams.u.extra_headers"),
        ({"upstreams": {"u": COPILOT | {"extra_headers": {"a": "b\n"}}}}, "$.upstreams.u.extra_headers[...]"),
        ({"upstreams": {"u": COPILOT | {"editor_version": " x"}}}, "$.upstreams.u.editor_version"),
        (with_upstream(api_key_env="A", api_key_file="b"), "$.upstreams.u"),
        (with_upstream(api_key_env="A-B"), "$.upstreams.u.api_key_env"),
        (with_upstream(api_key_env="A\n"), "$.upstreams.u.api_key_env"),
        (with_upstream(api_key_env=""), "$.upstreams.u.api_key_env"),
        (with_upstream(api_key_file=5), "$.upstreams.u.api_key_file"),
        (with_upstream(allow_http="true"), "$.upstreams.u.allow_http"),
        (with_upstream(models=["a", "b c"]), "$.upstreams.u.models[1]"),
        (with_upstream(models="a"), "$.upstreams.u.models"),
        (with_upstream(ask_usage=None), "$.upstreams.u.ask_usage"),
        (with_upstream(connect_timeout_s=0), "$.upstreams.u.connect_timeout_s"),
        (with_upstream(head_timeout_s=-1), "$.upstreams.u.head_timeout_s"),
        (with_upstream(idle_timeout_s="1"), "$.upstreams.u.idle_timeout_s"),
        (with_upstream(total_timeout_s=86_401), "$.upstreams.u.total_timeout_s"),
        ({"features": {"auth": "off"}}, "$.features.auth"),
        ({"retention": {"audit_days": 0}}, "$.retention.audit_days"),
        ({"retention": {"audit_days": 36_501}}, "$.retention.audit_days"),
        ({"limits": {"requests_per_minute": 0}}, "$.limits.requests_per_minute"),
        ({"limits": None}, "$.limits"),
        ({"limits": {"max_body_bytes": 1023}}, "$.limits.max_body_bytes"),
        ({"limits": {"max_body_bytes": 1024**3 + 1}}, "$.limits.max_body_bytes"),
        ({"limits": {"max_event_bytes": 1.5}}, "$.limits.max_event_bytes"),
        ({"limits": {"max_answer_bytes": "1 MB"}}, "$.limits.max_answer_bytes"),
        ({"limits": {"max_connections": 0}}, "$.limits.max_connections"),
        ({"limits": {"max_connections_per_address": 100_001}}, "$.limits.max_connections_per_address"),
        ({"limits": {"min_body_rate": 0}}, "$.limits.min_body_rate"),
        ({"limits": {"grace_s": 0}}, "$.limits.grace_s"),
        ({"limits": {"keep_alive_s": True}}, "$.limits.keep_alive_s"),
        (b'{"limits":{"head_timeout_s":1e999}}', "$.limits.head_timeout_s"),
        (b'{"limits":{"write_stall_s":NaN}}', "$"),
    ],
)
def test_each_rule_tells_its_place(document: object, path: str) -> None:
    (problem,) = problems(document)
    assert problem.startswith(f"{path}: ")
    assert problem != f"{path}: "


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b'{"strict":true,"strict":false}', "$"),
        (b'{"strict":5,"strict":true}', "$"),
        (b'{"note":1,"note":2}', "$"),
        (b'{"models":{"a":{"upstream":"x"},"a":{"upstream":"y"}}}', "$.models"),
        (b'{"models":{"a":{"upstream":5},"\\u0061":{"upstream":"y"}}}', "$.models"),
        (b'{"models":{"a":{"upstream":"x","upstream":"y"}}}', "$.models.a"),
        (b'{"upstreams":{"u":{"kind":"demo","kind":"demo"}}}', "$.upstreams.u"),
        (b'{"limits":{"grace_s":1,"grace_s":2}}', "$.limits"),
        (b'{"limits":{"fanout":{"keys":1,"keys":2}}}', "$.limits.fanout"),
    ],
)
def test_a_name_that_stands_twice_is_refused(text: bytes, path: str) -> None:
    """JSON readers take the last and say nothing; the operator who wrote the other would never know."""
    assert paths(text) == [path]


def test_everything_wrong_is_told_at_once() -> None:
    document = {
        "version": 9,
        "strict": 1,
        "models": {"a": {"upstream": ""}, "b": 5, "c d": {"upstream": "x"}},
        "upstreams": {"u": {"kind": "gopher"}, "v": {"kind": "demo", "allow_http": 1}},
        "limits": {"grace_s": -1},
    }
    assert paths(document) == [
        "$.limits.grace_s",
        "$.models.a.upstream",
        "$.models.b",
        "$.models.c d",
        "$.strict",
        "$.upstreams.u.kind",
        "$.upstreams.v.allow_http",
        "$.version",
    ]


def test_an_alias_may_have_the_name_of_its_own_model_and_others_may_lead_there() -> None:
    text = b'{"models":{"gpt-a":{"upstream":"gpt-a","allowed_keys":["k1"]},"fast":{"upstream":"gpt-a"}}}'
    config, warnings = parse(text)
    assert warnings == ()
    assert config.catalog({}).aliases["gpt-a"].allowed_keys == ("k1",)


def test_so_is_everything_that_does_not_fit_together() -> None:
    document = {
        "default_model": "gone",
        "models": {"a": {"upstream": "x", "via": "nowhere"}, "b": {"upstream": "x", "via": "u"}},
        "upstreams": {
            "u": {"kind": "openai", "api_key_env": "A", "api_key_file": "b"},
            "v": {"kind": "demo", "base_url": "https://h.example"},
        },
    }
    assert paths(document) == [
        "$.models.a.via",
        "$.default_model",
        "$.upstreams.u.base_url",
        "$.upstreams.u",
        "$.upstreams.v.base_url",
    ]


def test_a_problem_shows_no_value_of_the_file() -> None:
    """A key that was pasted into the wrong member must not end in a log."""
    secret = "sk-live-do-not-show"
    for document in (
        {"strict": secret},
        with_upstream(models=secret),
        with_upstream(api_key_env=secret),
        with_upstream(base_url=f"https://{secret}@h.example/v1"),
        with_upstream(base_url=f"https://h.example/v1?key={secret}"),
        with_upstream(base_url=f"https://user:{secret}@h.example/v1"),
    ):
        assert secret not in "".join(problems(document))


# --- warnings ---


def test_members_that_this_version_does_not_know_are_warned_about_and_nothing_else() -> None:
    document = GOOD | {
        "fines": {"gpt": {}},
        "limits": {"max_dogs": 1, "fanout": {"keys": 9, "cats": 2}},
        "models": {"fast": {"upstream": "x", "weight": 3}},
        "upstreams": {"openai": {"kind": "openai", "base_url": "https://h.example/v1", "max_in_flight": 4}},
    }
    config, warnings = parse(json.dumps(document).encode())
    assert [warning.path for warning in warnings] == [
        "$.fines",
        "$.limits.fanout.cats",
        "$.limits.max_dogs",
        "$.models.fast.weight",
    ]
    assert str(warnings[0]) == "$.fines: this version does not know this member; it is kept and ignored"
    assert config.models["fast"].upstream == "x"


# --- the base URL decides who gets the key ---


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "https://api.openai.com/v1/",
        "HTTPS://API.OPENAI.COM/v1",
        "https://h.example:8443/v1",
        "https://a_b-c.example/openai/v1",
        "https://192.0.2.1/v1",
        "https://[2001:db8::1]:8443/v1",
        "http://127.0.0.1:8000/v1",
        "http://127.255.255.254/v1",
        "http://localhost:11434/v1",
        "http://LocalHost/v1",
        "http://[::1]:8000/v1",
        "http://[::ffff:127.0.0.1]/v1",
        "http://[0:0:0:0:0:0:0:1]/v1",
    ],
)
def test_a_url_of_a_server_is_taken(url: str) -> None:
    config, _ = parse(json.dumps(with_upstream(base_url=url)).encode())
    assert config.upstreams["u"].base_url == url


HOSTILE = [
    "",
    "api.openai.com/v1",
    "//api.openai.com/v1",
    "///api.openai.com",
    "/v1",
    "file:///etc/passwd",
    "ftp://h.example/v1",
    "gopher://h.example/",
    "javascript:alert(1)",
    "unix:/run/sock",
    "http+unix://%2Frun%2Fsock/v1",
    "https:h.example/v1",
    "https:/h.example/v1",
    "https://",
    "https:///v1",
    "https://:443/v1",
    "https://?",
    "https://user@h.example/v1",
    "https://user:word@h.example/v1",
    "https://@h.example/v1",
    "https://api.openai.com@h.example/v1",
    "https://api.openai.com:443@h.example/v1",
    "https://h.example/v1?key=1",
    "https://h.example/v1?",
    "https://h.example?@api.openai.com/v1",
    "https://h.example/v1#x",
    "https://h.example#",
    "https://h.example#@api.openai.com/v1",
    "https://h.example:0/v1",
    "https://h.example:/v1",
    "https://h.example:65536/v1",
    "https://h.example:99999999999999999999/v1",
    "https://h.example:-1/v1",
    "https://h.example:+443/v1",
    "https://h.example:4 43/v1",
    "https://h.example:port/v1",
    "https://h.example:80:80/v1",
    " https://h.example/v1",
    "https://h.example/v1 ",
    "https://h.example/v 1",
    "https://h.example/\tv1",
    "https://h.example/v1\n",
    "https://h.exa\nmple/v1",
    "https://h.example/\0v1",
    "https://h.example\\v1",
    "https://api.openai.com\\@h.example/v1",
    "https:\\\\h.example\\v1",
    "https://h.example\u3002com/v1",
    "https://\u24d7.example/v1",
    "https://xn\u2010-a.example/v1",
    "https://\u0430pi.openai.com/v1",  # a Cyrillic letter
    "https://\u0661.0.0.1/v1",
    "https://h%2eexample/v1",
    "https://h.example%00.evil.example/v1",
    "https://%68.example/v1",
    "https://[::1/v1",
    "https://::1/v1",
    "https://2001:db8::1/v1",
    "https://[::1].evil.example/v1",
    "https://evil.example[::1]/v1",
    "https://[::1]evil.example/v1",
    "https://[fe80::1%25eth0]/v1",
    "https://[v1.x]/v1",
    "https://[localhost]/v1",
    "https://[127.0.0.1]/v1",
    "https://[::1::]/v1",
    "https://2130706433/v1",
    "https://0x7f000001/v1",
    "https://0x7f.0.0.1/v1",
    "https://0177.0.0.1/v1",
    "https://127.1/v1",
    "https://127.0.0.1./v1",
    "https://127.0.0.01/v1",
    "https://1.2.3.256/v1",
    "https://1.2.3.4.5/v1",
    "https://h.example.0x1/v1",
]


@pytest.mark.parametrize("url", HOSTILE)
@pytest.mark.parametrize("allow_http", [False, True])
def test_anything_else_is_refused_whatever_is_allowed(url: str, allow_http: bool) -> None:
    assert paths(with_upstream(base_url=url, allow_http=allow_http)) == ["$.upstreams.u.base_url"]


@pytest.mark.parametrize(
    "host",
    [
        "h.example",
        "10.0.0.7:8000",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104 - nothing is bound here
        "126.255.255.255",
        "128.0.0.1",
        "127.0.0.1.example.com",
        "127.0.0.1.nip.io",
        "localhost.example.com",
        "localhost.",
        "sub.localhost",
        "1ocalhost",
        "[::]",
        "[::2]",
        "[::ffff:10.0.0.1]",
        "[::127.0.0.1]",
        "[2002:7f00:1::]",
        "[64:ff9b::127.0.0.1]",
        "[fec0::1]",
        "[fe80::1]",
    ],
)
def test_plain_http_off_the_loopback_interface_needs_the_operators_word(host: str) -> None:
    url = f"http://{host}/v1"
    assert paths(with_upstream(base_url=url)) == ["$.upstreams.u.base_url"]
    config, _ = parse(json.dumps(with_upstream(base_url=url, allow_http=True)).encode())
    assert config.upstreams["u"].base_url == url


hosts = ["127.0.0.1", "localhost", "[::1]", "::1", "h.example", "0x7f", "0177", "80", "x", "é", "%2e"]
marks = [
    "http://",
    "https://",
    "[",
    "]",
    "@",
    ":",
    "/",
    "//",
    "\\",
    "?",
    "#",
    "%",
    ".",
    "..",
    "-",
    "_",
    ";",
    "=",
    "|",
    " ",
]
fragments = st.sampled_from(hosts + marks)
urls = st.lists(fragments, max_size=7).map("".join) | st.lists(fragments, max_size=6).map(
    lambda parts: "http://" + "".join(parts)
)


@given(urls, st.booleans())
def test_a_url_that_is_taken_means_the_same_to_the_client_that_will_use_it(url: str, allow_http: bool) -> None:
    """Our reading decides whether a key may go there, httpx's where it goes."""
    try:
        parse(json.dumps(with_upstream(base_url=url, allow_http=allow_http)).encode())
    except ConfigError:
        return
    used = httpx.URL(url.rstrip("/") + "/chat/completions")
    assert used.scheme == "https" or allow_http or is_loopback_host(used.host)
    assert used.host in url.lower()
    assert not used.userinfo
    assert not used.query
    assert not used.fragment


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("LOCALHOST", True),
        ("::1", True),
        ("0:0:0:0:0:0:0:1", True),
        ("::ffff:127.0.0.1", True),
        ("::FFFF:127.0.0.1", True),
        ("::ffff:7f00:1", True),
        ("", False),
        ("0.0.0.0", False),  # noqa: S104 - nothing is bound here
        ("::", False),
        ("::ffff:128.0.0.1", False),
        ("127.0.0.1.example.com", False),
        ("127.0.0.999", False),
        ("127.1", False),
        ("127", False),
        ("127.0.0.1 ", False),
        ("0127.0.0.1", False),
        ("\u0661\u0662\u0667.0.0.1", False),
        ("2130706433", False),
        ("[::1]", False),
        ("localhost.localdomain", False),
    ],
)
def test_look_alikes_are_not_loopback(host: str, loopback: bool) -> None:
    assert is_loopback_host(host) is loopback


# --- the schema ---


def test_the_schema_has_the_shape_of_json_schema_and_names_every_member() -> None:
    schema = json.loads(json_schema())
    definitions = schema["$defs"]
    assert schema["$ref"].removeprefix("#/$defs/") in definitions
    for struct in (Config, ModelConfig, UpstreamConfig, LimitsConfig, FanoutConfig, FeaturesConfig, RetentionConfig):
        definition = definitions[struct.__name__]
        assert definition["type"] == "object"
        assert set(definition["properties"]) == {member.name for member in msgspec.structs.fields(struct)}
        assert set(definition["required"]) <= set(definition["properties"])
    assert definitions["UpstreamConfig"]["required"] == ["kind"]
    assert_references_lead_somewhere(schema, definitions)


def assert_references_lead_somewhere(node: object, definitions: dict[str, object]) -> None:
    if isinstance(node, dict):
        target = node.get("$ref", "#/$defs/Config")
        assert target.removeprefix("#/$defs/") in definitions
        for child in node.values():
            assert_references_lead_somewhere(child, definitions)
    elif isinstance(node, list):
        for child in node:
            assert_references_lead_somewhere(child, definitions)


def test_the_schema_is_for_people_to_read_too() -> None:
    assert json_schema().startswith(b'{\n  "')


# --- any bytes ---

sections = ["version", "strict", "default_model", "models", "upstreams", "limits", "note"]
inner_members = ["kind", "base_url", "upstream", "via", "enabled", "api_key_env", "api_key_file", "grace_s", "a"]
members = st.sampled_from(sections + inner_members)
scalars = st.sampled_from([None, True, 0, 1, -1, 1.5, "", "a", "demo", "openai", "https://h.example/v1", "A_KEY"])
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(members, inner, max_size=4), max_leaves=12
)
top_level = st.dictionaries(members, documents, max_size=5)


def check(text: bytes) -> None:
    """What is understood is written and read again without a change; what is not is refused with places."""
    try:
        config, told = parse(text)
    except ConfigError as error:
        told = error.problems
    else:
        assert parse(msgspec.json.encode(config)) == (config, ())
        config.catalog({})
    assert all(problem.path.startswith("$") for problem in told)


@given(top_level)
def test_any_document_is_a_config_or_an_error(document: dict[str, object]) -> None:
    check(json.dumps(document).encode())


@given(st.binary(max_size=60))
def test_any_bytes_are_a_config_or_an_error(text: bytes) -> None:
    check(text)


@given(st.integers(0, len(json.dumps(GOOD))), st.binary(max_size=2))
def test_a_damaged_file_is_a_config_or_an_error(at: int, damage: bytes) -> None:
    text = json.dumps(GOOD).encode()
    check(text[:at] + damage + text[at + len(damage) :])
    check(text[:at])


# --- what routing asks ---


@pytest.mark.parametrize(
    ("kind", "protocols", "counts"),
    [
        ("openai", (Protocol.CHAT,), False),
        ("anthropic", (Protocol.MESSAGES,), True),
        ("demo", tuple(Protocol), True),
    ],
)
def test_each_kind_of_upstream_has_its_protocols(
    kind: Literal["openai", "anthropic", "demo"], protocols: tuple[Protocol, ...], counts: bool
) -> None:
    traits = UpstreamConfig(kind=kind).traits
    assert (traits.protocols, traits.count_tokens) == (protocols, counts)


def test_what_an_upstream_says_of_itself_counts() -> None:
    given = UpstreamConfig(kind="openai", protocols=(Protocol.RESPONSES,), count_tokens=True, betas=("b-1",))
    assert given.traits == UpstreamTraits(protocols=(Protocol.RESPONSES,), count_tokens=True, betas=("b-1",))


def test_the_thresholds_of_the_fan_out_are_the_meters_own_unless_they_are_set() -> None:
    assert LimitsConfig().fanout.thresholds() == FanoutThresholds()
    config, warnings = parse(b'{"limits":{"fanout":{"addresses":9}}}')
    assert (config.limits.fanout.thresholds(), warnings) == (FanoutThresholds(addresses=9), ())


def test_copilot_needs_nothing_but_its_kind() -> None:
    """And speaks what each model's record says, Chat where that says nothing."""
    config, warnings = parse(b'{"upstreams":{"gh":{"kind":"copilot","extra_headers":{"x-a":"b"}}}}')
    assert warnings == ()
    assert config.upstreams["gh"].traits == UpstreamTraits(copilot=True)
    assert config.limits.max_in_flight_per_identity == 4


def test_prices_are_an_operators_own() -> None:
    """In dollars as people write them; a name may end with a star."""
    config, warnings = parse(b'{"prices":{"gpt-5*":{"input":1.25,"output":10},"mine":{"request":0.04}}}')
    assert warnings == ()
    assert sorted(config.prices) == ["gpt-5*", "mine"]
    assert paths({"prices": {"gpt*5": {}}}) == ["$.prices.gpt*5"]
    assert paths({"prices": {"gpt": {"output": -1}}})[0].startswith("$.prices.gpt")

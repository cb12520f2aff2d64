"""Aliases: what can be called and what is listed are the same, and each name leads to one place."""

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.aliases import (
    Alias,
    Catalog,
    Fallback,
    ListedModel,
    MayCall,
    ModelRefusedError,
    OutOfScopeError,
    Resolution,
    UpstreamModels,
    anybody,
)

OPENAI = UpstreamModels("openai", {"gpt-a": b'{"id":"gpt-a"}', "shared": b'{"id":"shared","by":"openai"}'})
LAB = UpstreamModels("lab", {"qwen": b"{}", "shared": b'{"id":"shared","by":"lab"}'})
BLIND = UpstreamModels("blind", None)
EMPTY = UpstreamModels("empty", {})


def aliases(*entries: Alias) -> dict[str, Alias]:
    return {alias.name: alias for alias in entries}


def refusal(catalog: Catalog, name: str) -> ModelRefusedError:
    with pytest.raises(ModelRefusedError) as caught:
        catalog.resolve(name)
    return caught.value


# --- other spellings ---


def test_another_spelling_leads_to_the_listed_model_and_is_what_the_client_sees() -> None:
    catalog = Catalog(upstreams=(UpstreamModels("seat", {"claude-sonnet-4.5": b'{"id":1}'}), BLIND))
    found = catalog.resolve("claude-sonnet-4-5-20250929")
    assert found == Resolution("seat", "claude-sonnet-4.5", "claude-sonnet-4-5-20250929", renames=True)
    assert catalog.record("seat", "claude-sonnet-4.5") == b'{"id":1}'
    assert catalog.record("seat", "other") is None
    assert catalog.record("nobody", "claude-sonnet-4.5") is None


def test_another_spelling_of_an_alias_passes_the_aliass_own_fence() -> None:
    fenced = Alias("claude-sonnet-4.5", "gpt-a", allowed_keys=("k1",))
    catalog = Catalog(aliases(fenced), (UpstreamModels("seat", {"claude-sonnet-4-5-20250929": b"{}"}),))
    with pytest.raises(ModelRefusedError):
        catalog.resolve("claude-sonnet-4-5", lambda name, allowed_keys: allowed_keys == ("*",))
    listed_exactly = catalog.resolve("claude-sonnet-4-5-20250929", lambda name, allowed_keys: allowed_keys == ("*",))
    assert listed_exactly.upstream == "seat"  # its own listed name is no alias


def test_the_scope_is_asked_about_the_listed_spelling() -> None:
    catalog = Catalog(upstreams=(UpstreamModels("seat", {"claude-sonnet-4.5": b"{}"}),))
    asked: list[str] = []

    def only_others(name: str, allowed_keys: Collection[str]) -> bool:
        asked.append(name)
        return False

    with pytest.raises(OutOfScopeError):
        catalog.resolve("claude-sonnet-4-5", only_others)
    assert asked == ["claude-sonnet-4.5"]


def test_strict_names_have_one_spelling() -> None:
    catalog = Catalog(aliases(Alias("claude-sonnet-4.5", "gpt-a")), (OPENAI,), strict=True)
    assert refusal(catalog, "claude-sonnet-4-5").code == "unknown_model"


# --- resolve ---


def test_an_alias_leads_to_the_upstream_that_serves_its_model() -> None:
    catalog = Catalog(aliases(Alias("fast", "qwen")), (OPENAI, LAB))
    assert catalog.resolve("fast") == Resolution("lab", "qwen", "fast", renames=True)


def test_an_alias_with_its_models_own_name_renames_nothing() -> None:
    catalog = Catalog(aliases(Alias("qwen", "qwen")), (LAB,))
    assert catalog.resolve("qwen") == Resolution("lab", "qwen", "qwen", renames=False)


def test_via_decides_among_several_upstreams() -> None:
    catalog = Catalog(aliases(Alias("s", "shared", via="lab")), (OPENAI, LAB))
    assert catalog.resolve("s").upstream == "lab"


def test_via_is_the_operators_word_even_where_the_list_lacks_the_model() -> None:
    catalog = Catalog(aliases(Alias("new", "not-listed-yet", via="lab")), (OPENAI, LAB))
    assert catalog.resolve("new") == Resolution("lab", "not-listed-yet", "new", renames=True)
    assert next(catalog.listed()) == ListedModel("new", "lab", None)


def test_an_alias_hides_the_upstream_model_of_its_name() -> None:
    catalog = Catalog(aliases(Alias("gpt-a", "qwen")), (OPENAI, LAB))
    assert catalog.resolve("gpt-a").upstream_model == "qwen"
    assert [model.name for model in catalog.listed()] == ["gpt-a", "shared", "qwen"]


def test_a_disabled_alias_hides_it_too() -> None:
    """So that an operator can take a model away."""
    catalog = Catalog(aliases(Alias("gpt-a", "gpt-a", enabled=False)), (OPENAI,))
    assert refusal(catalog, "gpt-a").code == "model_not_found"
    assert [model.name for model in catalog.listed()] == ["shared"]


def test_upstreams_are_asked_in_the_order_of_preference() -> None:
    assert Catalog(upstreams=(OPENAI, LAB)).resolve("shared").upstream == "openai"
    assert Catalog(upstreams=(LAB, OPENAI)).resolve("shared").upstream == "lab"


def test_a_name_that_is_listed_passes_as_it_is() -> None:
    assert Catalog(upstreams=(LAB,)).resolve("qwen") == Resolution("lab", "qwen", "qwen", renames=False)


def test_an_upstream_without_a_list_is_asked_for_what_no_other_lists() -> None:
    """A list is knowledge; its absence is not. Among several without a list the first is asked."""
    other = UpstreamModels("other", None)
    catalog = Catalog(upstreams=(BLIND, other, LAB))
    assert catalog.resolve("qwen").upstream == "lab"
    assert catalog.resolve("anything").upstream == "blind"


def test_an_empty_list_serves_nothing_and_no_list_may_serve_all() -> None:
    assert Catalog(upstreams=(EMPTY, BLIND)).resolve("gpt-a").upstream == "blind"
    assert refusal(Catalog(upstreams=(EMPTY,)), "gpt-a").code == "model_not_found"


def test_strict_admits_aliases_only() -> None:
    catalog = Catalog(aliases(Alias("fast", "gpt-a")), (OPENAI, BLIND), strict=True)
    assert catalog.resolve("fast").upstream == "openai"
    error = refusal(catalog, "gpt-a")
    assert (error.code, error.status_hint, error.param) == ("unknown_model", 400, "model")
    assert [model.name for model in catalog.listed()] == ["fast"]


@pytest.mark.parametrize("strict", [False, True])
def test_the_default_model_takes_the_place_of_an_unknown_name(strict: bool) -> None:
    catalog = Catalog(aliases(Alias("fast", "gpt-a")), (OPENAI,), strict=strict, default_model="fast")
    assert catalog.resolve("nobody-knows-it") == Resolution("openai", "gpt-a", "fast", renames=True)
    assert catalog.resolve("shared").public_name == ("fast" if strict else "shared")


def test_a_disabled_alias_is_refused_although_there_is_a_default() -> None:
    """It is not unknown: the operator switched it off, and a silent substitute would hide that."""
    catalog = Catalog(
        aliases(Alias("fast", "gpt-a"), Alias("old", "qwen", enabled=False)), (OPENAI, LAB), default_model="fast"
    )
    assert "'old'" in str(refusal(catalog, "old"))


@pytest.mark.parametrize("default", ["off", "missing"])
def test_a_default_that_cannot_be_called_leaves_a_name_unknown(default: str) -> None:
    """The message names what the client asked for, not the operator's default."""
    catalog = Catalog(aliases(Alias("off", "gpt-a", enabled=False)), (OPENAI,), default_model=default)
    error = refusal(catalog, "nobody-knows-it")
    assert error.code == "model_not_found"
    assert "'nobody-knows-it'" in str(error)


@pytest.mark.parametrize(
    ("alias", "upstreams"),
    [
        (Alias("a", "gone"), (OPENAI, LAB)),
        (Alias("a", "gpt-a", via="gone"), (OPENAI, BLIND)),
        (Alias("a", "gpt-a"), ()),
    ],
)
def test_an_alias_that_leads_nowhere_is_refused_and_not_listed(
    alias: Alias, upstreams: tuple[UpstreamModels, ...]
) -> None:
    catalog = Catalog(aliases(alias), upstreams)
    error = refusal(catalog, "a")
    assert (error.code, error.status_hint, error.param) == ("model_not_found", 404, "model")
    assert "a" not in [model.name for model in catalog.listed()]


def test_an_unknown_name_is_404_and_says_where_the_names_are() -> None:
    error = refusal(Catalog(upstreams=(OPENAI,)), "no-such")
    assert (error.code, error.status_hint, error.param) == ("model_not_found", 404, "model")
    assert "'no-such'" in str(error)
    assert "/v1/models" in str(error)


@pytest.mark.parametrize("name", ["x" * 65, "a\nb", "a\x1b[2J", "\u202e"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_name_that_is_long_or_cannot_be_shown_is_not_echoed(name: str, strict: bool) -> None:
    assert name not in str(refusal(Catalog(upstreams=(OPENAI,), strict=strict), name))


def test_a_catalog_of_nothing_refuses_everything() -> None:
    assert refusal(Catalog(), "gpt-a").code == "model_not_found"
    assert list(Catalog().listed()) == []


# --- listed ---


def test_the_listing_gives_aliases_first_then_models_in_order_each_once_with_the_record_of_its_upstream() -> None:
    catalog = Catalog(aliases(Alias("fast", "qwen")), (OPENAI, LAB))
    assert list(catalog.listed()) == [
        ListedModel("fast", "lab", b"{}"),
        ListedModel("gpt-a", "openai", b'{"id":"gpt-a"}'),
        ListedModel("shared", "openai", b'{"id":"shared","by":"openai"}'),
        ListedModel("qwen", "lab", b"{}"),
    ]


def test_an_alias_through_an_upstream_without_a_list_is_listed_without_a_record() -> None:
    catalog = Catalog(aliases(Alias("fast", "anything")), (BLIND,))
    assert list(catalog.listed()) == [ListedModel("fast", "blind", None)]


# --- the caller's scope ---


def key(own_id: str, *allowed_models: str) -> MayCall:
    """A key that may use these models, all of them if none is named; the other half is what a model's keys allow."""

    def may_call(name: str, allowed_keys: Collection[str]) -> bool:
        return bool({"*", own_id} & set(allowed_keys)) and (not allowed_models or name in allowed_models)

    return may_call


SCOPED = Catalog(
    aliases(Alias("fast", "gpt-a", allowed_keys=("k1",)), Alias("slow", "qwen")), (OPENAI, LAB), default_model="fast"
)


@pytest.mark.parametrize(
    ("caller", "callable_names"),
    [
        (anybody, ["fast", "slow", "gpt-a", "shared", "qwen"]),
        (key("k1"), ["fast", "slow", "gpt-a", "shared", "qwen"]),
        (key("k2"), ["slow", "gpt-a", "shared", "qwen"]),
        (key("k1", "fast", "shared"), ["fast", "shared"]),
        (key("k2", "fast", "shared"), ["shared"]),
    ],
)
def test_a_model_is_callable_and_visible_when_it_admits_the_key_and_the_key_admits_it(
    caller: MayCall, callable_names: list[str]
) -> None:
    assert [model.name for model in SCOPED.listed(caller)] == callable_names
    for model in SCOPED.listed():
        if model.name in callable_names:
            assert SCOPED.resolve(model.name, caller).public_name == model.name
        else:
            with pytest.raises(OutOfScopeError) as caught:
                SCOPED.resolve(model.name, caller)
            assert (caught.value.code, caught.value.status_hint, caught.value.param) == (
                "model_not_allowed",
                403,
                "model",
            )


def test_the_scope_is_judged_on_the_default_and_not_on_the_name_that_it_replaced() -> None:
    """Else any unknown name would open the default model to every key."""
    with pytest.raises(OutOfScopeError):
        SCOPED.resolve("nobody-knows-it", key("k1", "nobody-knows-it"))
    assert SCOPED.resolve("nobody-knows-it", key("k1", "fast")).public_name == "fast"


# --- both agree ---

names = st.sampled_from(["a", "b", "c", "d", "e"])
upstream_names = st.sampled_from(["u1", "u2", "u3"])
upstream_models = st.none() | st.dictionaries(names, st.just(b"{}"), max_size=3)


@st.composite
def catalogs(draw: st.DrawFn) -> Catalog:
    known = draw(st.lists(names, unique=True, max_size=4))
    return Catalog(
        aliases(
            *(
                Alias(
                    name,
                    draw(names),
                    draw(st.booleans()),
                    draw(st.none() | upstream_names | st.just("gone")),
                    draw(st.sampled_from([("*",), ("k1",), ("k2",)])),
                )
                for name in known
            )
        ),
        tuple(UpstreamModels(name, draw(upstream_models)) for name in draw(st.lists(upstream_names, unique=True))),
        strict=draw(st.booleans()),
        default_model=draw(st.none() | names),
    )


def called(catalog: Catalog, name: str, caller: MayCall = anybody) -> Resolution | None:
    try:
        return catalog.resolve(name, caller)
    except OutOfScopeError:
        assert caller is not anybody
        return None
    except ModelRefusedError as error:
        told = (error.code, error.status_hint, error.param)
    assert told in [("model_not_found", 404, "model"), ("unknown_model", 400, "model")]
    return None


@given(catalogs())
def test_everything_listed_can_be_called_by_that_name_and_leads_where_the_listing_says(catalog: Catalog) -> None:
    listed = list(catalog.listed())
    assert len({model.name for model in listed}) == len(listed)
    for model in listed:
        resolution = called(catalog, model.name)
        assert resolution is not None
        assert (resolution.public_name, resolution.upstream) == (model.name, model.upstream)


@given(catalogs(), st.sets(names, min_size=1))
def test_what_a_key_sees_is_what_it_can_call(catalog: Catalog, allowed: set[str]) -> None:
    caller = key("k1", *allowed)
    seen = list(catalog.listed(caller))
    for model in catalog.listed():
        assert (called(catalog, model.name, caller) is not None) == (model in seen)
    assert all(model.name in allowed for model in seen)


@given(catalogs(), names | st.just("zz"))
def test_everything_known_that_can_be_called_is_listed(catalog: Catalog, name: str) -> None:
    """What is called under a name nobody listed went to the default, or to an upstream that has no list."""
    resolution = called(catalog, name)
    listed = {model.name for model in catalog.listed()}
    if resolution is None:
        assert name not in listed
    elif name not in listed:
        to_default = resolution.public_name == catalog.default_model != name
        to_unlisted = UpstreamModels(resolution.upstream, None) in catalog.upstreams and not catalog.strict
        assert to_default or to_unlisted


@given(catalogs(), names)
def test_a_resolution_is_consistent_in_itself(catalog: Catalog, name: str) -> None:
    resolution = called(catalog, name)
    if resolution is not None:
        assert resolution.upstream in [source.name for source in catalog.upstreams]
        assert resolution.renames == (resolution.public_name != resolution.upstream_model)
        assert resolution.public_name in (name, catalog.default_model)
        if catalog.strict:
            assert resolution.public_name in catalog.aliases


def test_fallbacks_are_what_an_alias_may_lead_to_instead() -> None:
    """In order, each once, and only those that are there; the first one that is there is where it leads."""
    spare = (Fallback("gpt-a", "openai"), Fallback("qwen"), Fallback("x", "gone"), Fallback("gpt-a", "openai"))
    upstreams = (UpstreamModels("lab", {"qwen": b"{}"}), UpstreamModels("openai", {"gpt-a": b'{"id":"gpt-a"}'}))
    catalog = Catalog({"fast": Alias("fast", "qwen", fallbacks=spare)}, upstreams)
    found = catalog.resolve("fast")
    assert (found.upstream, found.upstream_model) == ("lab", "qwen")
    assert found.fallbacks == (Resolution("openai", "gpt-a", "fast", renames=True),)
    without = Catalog({"fast": Alias("fast", "qwen", fallbacks=spare)}, upstreams[1:])
    assert without.resolve("fast") == Resolution("openai", "gpt-a", "fast", renames=True)
    assert next((model.upstream, model.record) for model in without.listed()) == ("openai", b'{"id":"gpt-a"}')

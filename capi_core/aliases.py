"""From the model a client names to the upstream that serves it.

An alias is a name that the operator gave to a model of an upstream. A name that is no alias is looked up in the
upstreams' own model lists, in the order of preference, unless the operator asked for `strict` names. What `resolve`
accepts and what `listed` shows are the same set: a listing never hides what can be called, nor shows what cannot. Only
another spelling of a listed name (`model_names`) is accepted without being listed: it leads where the listed name does.

Both take the caller's `MayCall`: whether the caller's key admits this name, and this name the key. It is asked about
the effective name: the alias, also when it took the place of an unknown name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from attrs import evolve, field, frozen

from capi_core.errors import ProtocolError
from capi_core.model_names import find_same

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = [
    "Alias",
    "Catalog",
    "Fallback",
    "ListedModel",
    "MayCall",
    "ModelRefusedError",
    "OutOfScopeError",
    "Resolution",
    "UpstreamModels",
    "anybody",
]

EVERY_KEY: Final = ("*",)


class MayCall(Protocol):
    """Whether the caller may use the model called `name`, which only the keys in `allowed_keys` may use."""

    def __call__(self, name: str, allowed_keys: Collection[str]) -> bool: ...


def anybody(name: str, allowed_keys: Collection[str]) -> bool:
    """The caller when there are no keys: every model is open."""
    return True


class ModelRefusedError(ProtocolError):
    """The named model cannot be called: unknown, disabled, or served by nobody."""


class OutOfScopeError(ModelRefusedError):
    """The model is there, but not for this caller: 403."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"this key may not use the model {_shown(name)}; GET /v1/models lists what it may use",
            code="model_not_allowed",
            status_hint=403,
            param="model",
        )


@frozen
class Fallback:
    """Another model, of the same upstream or another one, that can take an alias's place."""

    upstream_model: str
    via: str | None = None


@frozen
class Alias:
    """The operator's own name for an upstream's model.

    `upstream_model` is the model's name at the upstream; `via` names the upstream, and is only needed when several
    upstreams serve that model. `allowed_keys`: ids of the keys that may use it, `("*",)` for all. `fallbacks`: what is
    asked, in order, when that upstream fails.
    """

    name: str
    upstream_model: str
    enabled: bool = True
    via: str | None = None
    allowed_keys: tuple[str, ...] = EVERY_KEY
    fallbacks: tuple[Fallback, ...] = ()


@frozen
class UpstreamModels:
    """What one upstream says it serves: model id to the raw JSON of its record.

    `models is None`: the upstream has no list, or it could not be read yet. Such an upstream is asked for any
    model, and its own answer decides.
    """

    name: str
    models: Mapping[str, bytes] | None = None


@frozen
class Resolution:
    """Where a request goes. `public_name` is what the client sees as the model's name in every answer.

    `renames` tells whether the upstream's name for the model must be replaced on the way in and out. `fallbacks`: where
    it may go instead, in order; they have none of their own.
    """

    upstream: str
    upstream_model: str
    public_name: str
    renames: bool
    fallbacks: tuple[Resolution, ...] = ()


@frozen
class ListedModel:
    """One entry of the model listing: `record` is the upstream's own record of it as raw JSON, if there is one."""

    name: str
    upstream: str | None
    record: bytes | None


@frozen
class Catalog:
    """A snapshot of everything that decides where a model name leads. Immutable: a request keeps the one it got.

    `upstreams` are in order of preference. `strict`: only aliases can be called. `default_model`: the alias that
    takes the place of an unknown name.
    """

    aliases: Mapping[str, Alias] = field(factory=dict)
    upstreams: tuple[UpstreamModels, ...] = ()
    strict: bool = False
    default_model: str | None = None

    def resolve(self, name: str, may_call: MayCall = anybody) -> Resolution:
        """Finds the upstream for the model that the client called `name`.

        Raises `ModelRefusedError` for a name that leads nowhere, `OutOfScopeError` for one that is not the caller's.
        """
        alias = self.aliases.get(name)
        if alias is None and not self.strict and self._listing(name) is None:
            alias = self.aliases.get(find_same(name, self.aliases) or "")
        if alias is not None:
            return self._resolve_alias(alias, may_call)
        if not self.strict:
            model = name if self._listing(name) else self._listed_spelling(name)
            upstream = self._serving(model)
            if upstream is not None:
                if not may_call(model, EVERY_KEY):
                    raise OutOfScopeError(name)
                return Resolution(upstream, model, public_name=name, renames=name != model)
        default = self.aliases.get(self.default_model) if self.default_model is not None else None
        if default is not None and default.enabled:
            return self._resolve_alias(default, may_call)
        raise self._unknown(name)

    def listed(self, may_call: MayCall = anybody) -> Iterator[ListedModel]:
        """Every model that `resolve` accepts by name, aliases first, each name once."""
        for alias in self.aliases.values():
            if not alias.enabled or not may_call(alias.name, alias.allowed_keys):
                continue
            for model, via in self._ways(alias):
                upstream = self._upstream_of(model, via)
                if upstream is not None:
                    yield ListedModel(alias.name, upstream, self.record(upstream, model))
                    break
        if self.strict:
            return
        seen = set(self.aliases)
        for source in self.upstreams:
            for model, record in (source.models or {}).items():
                if model not in seen:
                    seen.add(model)
                    if may_call(model, EVERY_KEY):
                        yield ListedModel(model, source.name, record)

    def _resolve_alias(self, alias: Alias, may_call: MayCall) -> Resolution:
        if not alias.enabled:
            raise self._unknown(alias.name)
        if not may_call(alias.name, alias.allowed_keys):
            raise OutOfScopeError(alias.name)
        found = [
            Resolution(upstream, model, alias.name, renames=alias.name != model)
            for model, via in self._ways(alias)
            if (upstream := self._upstream_of(model, via)) is not None
        ]
        if not found:
            raise ModelRefusedError(
                f"the alias {alias.name!r} leads to a model that no configured upstream serves; "
                "ask the operator to check it with `capi models`",
                code="model_not_found",
                status_hint=404,
                param="model",
            )
        first, *others = dict.fromkeys(found)
        return evolve(first, fallbacks=tuple(others))

    @staticmethod
    def _ways(alias: Alias) -> tuple[tuple[str, str | None], ...]:
        """The alias's models, each with the upstream that was named for it."""
        return ((alias.upstream_model, alias.via), *((spare.upstream_model, spare.via) for spare in alias.fallbacks))

    def _upstream_of(self, model: str, via: str | None) -> str | None:
        if via is not None:
            known = any(source.name == via for source in self.upstreams)
            return via if known else None
        return self._serving(model)

    def _serving(self, model: str) -> str | None:
        """The preferred upstream for `model`: one whose list has it before one that has no list."""
        blind = (source.name for source in self.upstreams if source.models is None)
        return self._listing(model) or next(blind, None)

    def _listing(self, model: str) -> str | None:
        """The preferred upstream among those whose list has `model`."""
        return next((source.name for source in self.upstreams if model in (source.models or ())), None)

    def _listed_spelling(self, name: str) -> str:
        """The name under which an upstream lists the model that `name` means; `name` itself when none does."""
        for source in self.upstreams:
            found = find_same(name, source.models or ())
            if found is not None:
                return found
        return name

    def record(self, upstream: str, model: str) -> bytes | None:
        """What that upstream's list says of a model: its raw JSON record, if there is one."""
        for source in self.upstreams:
            if source.name == upstream and source.models is not None:
                return source.models.get(model)
        return None

    def _unknown(self, name: str) -> ModelRefusedError:
        if self.strict:
            return ModelRefusedError(
                f"the model {_shown(name)} is not one of this gateway's aliases; GET /v1/models lists them",
                code="unknown_model",
                param="model",
            )
        return ModelRefusedError(
            f"the model {_shown(name)} does not exist here; GET /v1/models lists what this gateway serves",
            code="model_not_found",
            status_hint=404,
            param="model",
        )


def _shown(name: str) -> str:
    """A client's text as a message may repeat it: short and printable, or not at all."""
    return repr(name) if len(name) <= 64 and name.isprintable() else "given"

"""How the calls of a capability are shared among its providers: a table that policies write."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from loom.errors import Exhausted, InvalidParams
from loom.limits import ROUTE_PROVIDERS, ROUTE_WEIGHT, ROUTES
from loom.topics import check_capability_name, check_name

if TYPE_CHECKING:
    from loom.link import RouteTable

Weights: TypeAlias = dict[str, float]


class Routes:
    """The selection table of one app. ``app.routes.set("draft", {"fast": 9, "careful": 1})``.

    Without an entry a call goes to the provider with the least to do. It may be written at any
    time: what is called from then on follows it.
    """

    def __init__(self) -> None:
        self._table: dict[str, Weights] = {}
        self._engine: RouteTable | None = None

    def set(self, capability: str, weights: Mapping[str, float]) -> None:
        """Share the calls of ``capability`` in proportion to the weights of its providers.

        A provider is the agent that offers it, or the app. Weight 0 gives it no calls; one that is
        not named has weight 1.

        Raises:
            InvalidParams: a name is none, or a weight is not a number from 0 to 1000.
            Exhausted: the table is full.
        """
        check_capability_name(capability, field="capability")
        checked = _checked(weights)
        if capability not in self._table and len(self._table) >= ROUTES:
            raise Exhausted(f"there are {ROUTES} routes", field="capability", limit="routes")
        if self._engine is not None:
            self._engine.write(capability, checked)
        self._table[capability] = checked

    def get(self, capability: str) -> Weights | None:
        """Return the weights that hold, None where there are none.

        Raises:
            InvalidParams: ``capability`` is not a name.
        """
        check_capability_name(capability, field="capability")
        table = self._table if self._engine is None else self._engine.read()
        weights = table.get(capability)
        return None if weights is None else dict(weights)

    def clear(self, capability: str) -> None:
        """Let calls of ``capability`` go to the provider with the least to do again.

        Raises:
            InvalidParams: ``capability`` is not a name.
        """
        check_capability_name(capability, field="capability")
        if self._engine is not None:
            self._engine.write(capability, None)
        self._table.pop(capability, None)

    def bind(self, engine: "RouteTable | None") -> None:
        """Write what was set to a running engine, and from now on; None: to none."""
        self._engine = engine
        if engine is not None:
            for capability, weights in self._table.items():
                engine.write(capability, weights)


def _checked(weights: Mapping[str, Any]) -> Weights:
    if not isinstance(weights, Mapping) or not weights:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidParams(
            f"the weights are {weights!r}",
            field="weights",
            hint='give {"provider": weight}; routes.clear(capability) removes them',
        )
    if len(weights) > ROUTE_PROVIDERS:
        raise InvalidParams(
            f"{len(weights)} providers of at most {ROUTE_PROVIDERS}",
            field="weights",
            limit="route_providers",
        )
    for provider, weight in weights.items():
        check_name(provider, field="weights")
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight) or not 0 <= weight <= ROUTE_WEIGHT:
            raise InvalidParams(
                f"the weight of {provider!r} is {weight!r}",
                field=f"weights.{provider}",
                limit="route_weight",
                hint=f"a number from 0 to {ROUTE_WEIGHT}",
            )
    return {provider: float(weight) for provider, weight in weights.items()}

"""A model: a traced network, and how its populations and pools behave over time."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

from jaxburst.checks import instance, one_of
from jaxburst.graph import Graph, Neuron, Product, Route, Synapse, routes
from jaxburst.network import Network
from jaxburst.neurons import POOLS, Burst
from jaxburst.neurons import Neuron as Kind
from jaxburst.units import places_added


@dataclasses.dataclass(frozen=True)
class Model:
    """Everything about a simulation that is not an array: hashable, static under jit.

    Attributes:
      network: the traced network.
      neuron: the kind of neuron that every population is made of.
      pool: max pooling by `'lateral'` inhibition, or `'gated'`, the baseline.
      exact: convolve by definition only. Otherwise some layers use a faster algorithm
        where there is one (Winograd's, on CPU, in single precision), which rounds
        differently: a potential at the very threshold may cross it a step apart.
      precision: of the kernels of convolutions that receive spikes, `'float32'` or
        `'bfloat16'`, for accelerators. Spikes are whole numbers, exact in both, and
        sums, currents and membranes keep the precision of the weights; but these
        kernels are rounded to 8 bits of mantissa.

    Example:
      >>> model.network.neurons, model.neuron.gamma, model.pool
      (('relu0',), 5, 'lateral')
    """

    network: Network
    neuron: Kind = Burst()
    pool: str = "lateral"
    exact: bool = False
    precision: str = "float32"

    def __post_init__(self):
        expected = "a kind of neuron such as Burst() or Refining()"
        instance("Model: network", self.network, Network, "what trace returns")
        instance("Model: neuron", self.neuron, Kind, expected)
        instance("Model: exact", self.exact, bool, "True or False")
        one_of("Model: pool", self.pool, POOLS)
        one_of("Model: precision", self.precision, ("float32", "bfloat16"))
        self.neuron.check(self.network.neurons)
        if not self.neuron.universal:
            self._check_rectifies()
        if self.pool == "gated" and not self.neuron.repeats:
            raise ValueError(
                "Model: gating passes current spikes, but those of refining neurons "
                "are changes; use pool='lateral'"
            )
        if self.precision == "bfloat16":
            self._check_counts()

    def _check_rectifies(self) -> None:
        """Refuses functions and products that the neurons cannot do."""
        for node in self.network.graph.of(Neuron, Product):
            what = "is a product of two signals"
            if isinstance(node.role, Neuron):
                if node.role.function is None:
                    continue
                what = "stands for another function than a ReLU"
            raise ValueError(
                f"Model: {node.name} {what} ({node.source}), which {self.neuron!r} "
                "cannot do; use Refining() (presets.refining), whose spikes add up to "
                "any function of what they receive"
            )

    def _check_counts(self) -> None:
        """Refuses spikes of a step that are too many for 8 bits of mantissa."""
        graph, most = self.network.graph, self.neuron.most
        received = [
            places_added(graph, node.inputs[0])
            for node in graph.of(Synapse)
            if node.role.is_conv and node.inputs[0] in self.routes
        ]
        most = None if most is None else most * max(received, default=1)
        if most is None or most > 256:
            raise ValueError(
                "Model: bfloat16 holds whole numbers up to 256, but a convolution may "
                f"receive {most or 'any number'}: the most spikes of a step, times the "
                "window of an average pool before it; use a smaller gamma or "
                "precision='float32'"
            )

    @property
    def routes(self) -> dict[str, Route]:
        """Which nodes pass on whole numbers, and what these are worth."""
        return _routes(self.network.graph)


@lru_cache
def _routes(graph: Graph) -> dict[str, Route]:
    return routes(graph)

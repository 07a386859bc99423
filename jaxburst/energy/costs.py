"""Cost models: what an operation and an access to memory takes, in picojoules.

A model prices what `energy.report` counts. None is a chip: compare ratios, and read
more than one. Constants come from the sources named here; how often each is paid is
counted by this library in the same way for all of them.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from jaxburst.checks import instance, number, refuse, whole

Points = tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class Memory:
    """A memory of words.

    Attributes:
      bits: of a word.
      read: `(bytes, pJ)`, ...: one word read from a buffer of so many bytes; linear in
        between, constant beyond.
      write: the same of a word written; without any as `read`.

    Example:
      >>> # 4 KiB lie half way between 0 and 8
      >>> Memory(32, ((0, 0.0), (8192, 10.0))).of(1024)
      (5.0, 5.0)
    """

    bits: int
    read: Points = ((0.0, 0.0),)
    write: Points = ()

    def __post_init__(self):
        whole("Memory.bits", self.bits, 1, 2**16)
        expected = "pairs (bytes, pJ), ((0.0, 1.0), ...), of at least 0, bytes rising"
        for name in ("read", "write"):
            place, points = f"Memory.{name}", getattr(self, name)
            fine = isinstance(points, tuple) and all(
                isinstance(point, tuple) and len(point) == 2 for point in points
            )
            if not fine or not (points or name == "write"):
                refuse(place, expected, points)
            for one in itertools.chain(*points):
                number(place, one, expected, lambda x: x >= 0)
            sizes = [size for size, _ in points]
            if sorted(set(sizes)) != sizes:
                refuse(place, expected, points)

    def of(self, words: float) -> tuple[float, float]:
        """Picojoules to read and to write one word of a buffer of so many.

        Example:
          >>> Memory(32, ((0, 0.0), (8192, 10.0))).of(1024)
          (5.0, 5.0)
        """
        number("words", words, "a number of at least 0", lambda x: x >= 0)
        size = words * self.bits / 8
        read, write = (np.array(x) for x in (self.read, self.write or self.read))
        return float(np.interp(size, *read.T[:2])), float(np.interp(size, *write.T[:2]))


@dataclasses.dataclass(frozen=True)
class Cost:
    """A cost model, everything in picojoules.

    Attributes:
      name: what tables call it.
      accumulate: adds a weight to a potential or sum.
      mac: multiplies a weight with a signal of full width, and adds.
      weight: where weights are; one is read for each event and synapse.
      potential: where potentials are; one is read and written for each event and
        synapse, and all of a neuron's state at each of its updates.
      signal: where activations are, and events wait: written once, read once by
        everyone that they reach.
      scales: whether a multiplication takes less for fewer bits of the signal, in
        proportion, as with whole numbers.
      addition: an addition or comparison outside of synapses: at shortcuts, in pools.
      neuron: the arithmetic of a neuron's update.
      sent: an event on its way, beside the memory it waits in.
      captured: an event that arrives, beside that memory; its address.
      address: the address of a weight.

    Example:
      >>> import dataclasses
      >>> dataclasses.replace(LEMAIRE, name="8 bits", weight=Memory(8)).weight.bits
      8
    """

    name: str
    accumulate: float
    mac: float
    weight: Memory = Memory(32)
    potential: Memory = Memory(32)
    signal: Memory = Memory(32)
    scales: bool = False
    addition: float = 0.0
    neuron: float = 0.0
    sent: float = 0.0
    captured: float = 0.0
    address: float = 0.0

    def __post_init__(self):
        instance("Cost.name", self.name, str, "a string")
        instance("Cost.scales", self.scales, bool, "True or False")
        for field in dataclasses.fields(self):
            if field.type == "Memory":
                memory = getattr(self, field.name)
                instance(f"Cost.{field.name}", memory, Memory, "a Memory")
            if field.type == "float":
                number(
                    f"Cost.{field.name}",
                    getattr(self, field.name),
                    "picojoules, a number of at least 0",
                    lambda x: x >= 0,
                )

    def product(self, bits: int | None = None) -> float:
        """A multiply-accumulate with a signal of so many bits; by default of all.

        Example:
          >>> HOROWITZ_INT8.product(4)  # half of the 0.2 pJ, and the addition
          0.2
        """
        if bits is None or not self.scales:
            return self.mac
        number("bits", bits, "a number of at least 0", lambda x: x >= 0)
        share = min(bits / self.signal.bits, 1.0)
        return self.accumulate + (self.mac - self.accumulate) * share


HOROWITZ_FP32 = Cost("horowitz_fp32", accumulate=0.9, mac=4.6)
"""Operations alone, 32-bit floating point, 45 nm: add 0.9, multiply 3.7 (Horowitz,
ISSCC 2014). What papers on conversion count: no memory, no neurons, no sums."""

_CACHE: Points = ((8 * 2**10, 10.0), (32 * 2**10, 20.0), (2**20, 100.0))
"""Of a cache of 8 KiB, 32 KiB and 1 MiB, 45 nm (Horowitz, ISSCC 2014)."""


def _share(points: Points, bits: int, width: int) -> Points:
    """What a word takes of an access as wide as several."""
    return tuple((size, pj * bits / width) for size, pj in points)


HOROWITZ_INT8 = Cost(
    "horowitz_int8",
    accumulate=0.1,
    mac=0.3,
    weight=Memory(8, _share(_CACHE, 8, 64)),
    potential=Memory(32, _share(_CACHE, 32, 64)),
    signal=Memory(8, _share(_CACHE, 8, 64)),
    scales=True,
    addition=0.1,
    neuron=0.2,
)
"""8-bit weights and activations, 32-bit sums, 45 nm: 8-bit multiply 0.2, 32-bit add
0.1;
caches read 64 bits at a time, 10, 20 and 100 pJ (Horowitz, ISSCC 2014), the smallest
of 8 KiB. A neuron compares and subtracts, 2 additions."""

LEMAIRE = Cost(
    "lemaire",
    accumulate=0.1,
    mac=3.2,
    weight=Memory(32, ((0.0, 0.0), *_CACHE)),
    potential=Memory(32, ((0.0, 0.0), *_CACHE)),
    signal=Memory(32, ((0.0, 0.0), *_CACHE)),
    scales=True,
    addition=0.1,
    neuron=0.2,
    captured=6.4,
    address=0.1,
)
"""32-bit whole numbers, 45 nm: add 0.1, multiply 3.1; 32 bits at a time of memory as
large as each layer needs, 0 to 10, 20 and 100 pJ at 8 KiB, 32 KiB and 1 MiB; two
multiply-adds to address an event, an addition for each of its synapses (Lemaire et al.,
ICONIP 2022, arXiv 2210.13107)."""

NEUROMC = Cost(
    "neuromc",
    accumulate=0.548,
    mac=1.36,
    weight=Memory(16, ((0.0, 5.302),)),
    potential=Memory(16, ((0.0, 5.793),)),
    signal=Memory(16, ((0.0, 5.793),)),
    addition=0.548,
    neuron=0.604,
)
"""16 bits, 32 nm: multiply 0.812, add 0.548, compare 0.056; SRAM of weights 5.302 and
of sums and activations 5.793 per 16 bits, of membranes 92.68 per 256 (constants of
NeuroMC as in SpikingJelly's `op_counter/neuromc`). A neuron compares and subtracts. An
event is a word of 16 bits, its address; NeuroMC itself sends maps of 1-bit spikes."""

SENECA = Cost(
    "seneca",
    accumulate=1.4,
    mac=2.8,
    weight=Memory(16, ((0.0, 3.7),), ((0.0, 3.9),)),
    potential=Memory(16, ((0.0, 3.7),), ((0.0, 3.9),)),
    signal=Memory(16, ((0.0, 3.7),), ((0.0, 3.9),)),
    addition=1.4,
    neuron=3.1,
    sent=3.1,
)
"""A digital neuromorphic core, 22 nm, 16-bit floating point, control included: add or
multiply 1.4, compare 1.2, load 3.7, store 3.9, event capture 0.5, an event generated
1.1 and sent over the network 2 (Tang et al., SENECA, Frontiers in Neuroscience 2023,
table 8). A neuron compares, subtracts and is looked at for an event. Nothing is kept in
registers, as their mappings do: those reach 2.8 pJ per synaptic operation."""

FUNCTIONS = {
    name: price
    for price, names in {
        0: "reshape transpose broadcast_in_dim squeeze expand_dims slice concatenate "
        "pad rev copy copy_p gather dynamic_slice convert_element_type stop_gradient "
        "neg abs",
        1: "add sub add_any reduce_sum reduce_window_sum max min reduce_max clamp sign "
        "select_n gt ge lt le eq ne floor round mul square integer_pow",
        4: "div",
        5: "exp exp2",
        6: "sqrt rsqrt expm1 log",
        7: "log1p",
        9: "logistic tanh",
        12: "pow",
        14: "erf",
    }.items()
    for name in names.split()
}
"""Multiply-accumulates of one number in the function of a population, by primitive.

Moving is free. An addition or comparison is charged as one, so that nothing is too
cheap. A reciprocal is two steps of Newton's, of two each (4); a root is three (6). An
exponential is a shift and a polynomial of degree 5 (5), a logarithm one more. A
logistic or hyperbolic tangent is an exponential and a reciprocal (9), an error function
a polynomial of degree 5 besides (14; Abramowitz and Stegun 7.1.26), a power a
logarithm, a product and an exponential (12). Another costs as much as the dearest."""

PRESETS = {
    cost.name: cost for cost in (HOROWITZ_FP32, HOROWITZ_INT8, LEMAIRE, NEUROMC, SENECA)
}

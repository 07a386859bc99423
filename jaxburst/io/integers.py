r"""A converted network in whole numbers alone: 8-bit kernels, 32-bit membranes.

    integers = to_integers(model, spiking, images, steps=4)
    integers.save("digits.safetensors")
    trace = integers.simulate(images, steps=4)     # logits to the last bit

Nothing of JAX, of the traced function or of a floating-point number is left in what
runs. Wires are gone, too: what they move and add has become *links*, matrices of whole
numbers between the parts that have a state or a kernel. A part receives sums of what
others send, in one unit for each of its channels:

.. math::
    x_c = \sum_k A_{ck} n_k, \qquad
    A_{ck} = \mathrm{round}(R_{ck} u_k / q_c)

with the wires' factors :math:`R`, the units :math:`u` of the senders and the receiver's
unit :math:`q`. A threshold is a power of two in the unit of its membrane,
:math:`\theta_c = 2^b q_c`, so dividing by it is a shift, and it is never rounded. A
synapse weighs with 8 bits and a multiplier for each of its output channels,

.. math:: W_{ic} u_i \approx M_c K_{ic} q_c, \qquad K \in \{-127, \dots, 127\}

so that kernels of different scales may meet in one sum. `b` is as large as 32 bits
allow, whatever arrives: no sum can overflow, in any order.

Refining neurons at step `t` count in quanta that are `ratio` times smaller than before:
all sums that are carried on are multiplied by it. The unit is the quantum's.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from jaxburst.checks import door, is_whole, refuse
from jaxburst.convert import Spiking
from jaxburst.graph import (
    Graph,
    Input,
    Neuron,
    Node,
    Operand,
    Pool,
    Synapse,
    Wire,
    apply_wire,
    at_batch,
    read,
)
from jaxburst.io.files import write
from jaxburst.io.sealed import WRONG, seal, unseal
from jaxburst.model import Model
from jaxburst.neurons import Burst, Refining, SigmaDelta
from jaxburst.text import aligned
from jaxburst.units import shifts

FORMAT = "jaxburst integers 1"
LIMIT = 2**31 - 1
"""The largest number in a membrane."""

RANGE = 1023
"""Inputs are whole numbers up to this."""

LIMITED = 255
"""Changes are whole numbers up to this, where nothing else limits them: 8 bits."""

LARGEST = 127
"""Kernels are whole numbers up to this: 8 bits."""

SMALL = 2**16
"""Sums of charges that several parts read, or that are weighed again, are rounded so
far that none exceeds this."""

_BITS = range(24, 5, -1)
"""Of a threshold, the finest first."""


class Axis(NamedTuple):
    """How the windows of a kernel or pool lie along one axis.

    Place `i` of the input meets tap `k` at place `o` of the output if
    `o stride + k dilation - low = i apart`.

    Example:
      >>> Axis(4, 4, taps=3, low=1).meets[0].tolist()  # the first place, by tap
      [1, 0, -1]
    """

    size: int
    out: int
    taps: int = 1
    stride: int = 1
    low: int = 0
    apart: int = 1
    dilation: int = 1

    @property
    def neighbours(self) -> bool:
        """Whether the taps that meet a place do so at places side by side."""
        return self.taps > 1 and self[3:] == (1, self.low, 1, 1)

    def begin(self, place: str) -> tuple[str, str]:
        """In C: the first of these places, and whether all are there."""
        first = f"{place} - {self.taps - 1 - self.low}u"
        least = f"{place} + 1 > {self.taps - 1 - self.low}"
        return first, f"{least} && {place} + {self.low} < {self.out}"

    @property
    def back(self) -> Axis:
        """From places of the output to those of the input."""
        step = -self.dilation if self.taps > 1 else self.dilation
        sizes = self.out, self.size, self.taps
        return Axis(*sizes, self.apart, -self.low, self.stride, step)

    @property
    def meets(self) -> np.ndarray:
        """`[size, taps]`: the place of the output, or -1."""
        place, tap = np.ogrid[: self.size, : self.taps]
        at = place * self.apart + self.low - tap * self.dilation
        found = at // self.stride
        valid = (at % self.stride == 0) & (found >= 0) & (found < self.out)
        return np.where(valid, found, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Something that receives and sends whole numbers.

    Attributes:
      name: of the node; of an output `output0`, ...
      kind: `'input'`, `'synapse'`, `'charge'` (sums that are rounded to fewer bits),
        `'neuron'`, `'pool'` or `'output'`.
      shape: of what it sends, one image's, channels last.
      order: for each axis of `shape`, the node's own; the batch is among them.
      batch: which of the node's axes that is.
      received: the shape of what it receives, channels last.
      width: how many channels it sends.
      dynamic: whether it changes from step to step.
      axes: of synapses and pools: all of `received` but a synapse's channels.
      groups: of a synapse's channels.
      bits: of the threshold of neurons, which is `2**bits`, and what charges are
        divided by.
      gamma: the largest number of spikes of a step, if there is one.
      count: the largest number that it can send in one step.
      total: the largest sum of what it sends, at the last step's quantum.
      arrays: `kernel` int8 `[taps, inputs, outputs]` and `multiplier` `[outputs]` of
        synapses; `bias`, presented like an input, `[1, C]` or `[places, C]`; of neurons
        `start` (the initial membrane; of refining ones what the first step rounds by),
        `rows`, corrections for each step, and `cap`; of inputs and outputs `unit`.

    Example:
      >>> part = to_integers(model, spiking, inputs)["relu0"]
      >>> part.kind, part.shape, part.size, part.gamma
      ('neuron', (1, 2), 2, 5)
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    batch: int
    received: tuple[int, ...] = ()
    width: int = 1
    dynamic: bool = True
    axes: tuple[Axis, ...] = ()
    groups: int = 1
    bits: int = 0
    gamma: int | None = None
    count: int = 0
    total: int = 0
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def given(self) -> tuple[int, ...]:
        """Of an input: the shape of an image, as the network takes it."""
        return tuple(self.shape[i] for i in np.argsort(self.order))[1:]

    def shown(self, values: np.ndarray) -> np.ndarray:
        """`[..., places]` as the node has it, the batch's axis in front or left out."""
        lead = values.shape[:-1]
        values = values.reshape(*lead, *self.shape)
        back = np.argsort(self.order) + len(lead)
        values = values.transpose(*range(len(lead)), *back)
        values = np.moveaxis(values, len(lead) + self.batch, len(lead))
        return values.squeeze(len(lead)) if values.shape[len(lead)] == 1 else values


class Link(NamedTuple):
    """What a part receives of another: `matrix @ sent`, or all of it as it is.

    Example:
      >>> integers = to_integers(model, spiking, inputs)
      >>> [(link.source, link.target) for link in integers.links][-2:]
      [('relu0', 'out'), ('out', 'output0')]
    """

    source: str
    target: str
    matrix: sparse.csr_array | None


class IntegerTrace(NamedTuple):
    """What a simulation in whole numbers gives.

    Attributes:
      logits: `[T, B, ...]` of each output, in the unit of the trained network.
      spikes: `{name: [T, B, ...]}` of every population and pool.
      events: `{name: [T, B]}`, sums of `|n|`.

    Example:
      >>> integers = to_integers(model, spiking, inputs)
      >>> trace = integers.simulate(inputs + 0.1, steps=2)
      >>> trace.events["relu0"].tolist()
      [[1, 6], [1, 5]]
    """

    logits: list[np.ndarray]
    spikes: dict[str, np.ndarray]
    events: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Integers:
    """A spiking network of whole numbers, from `to_integers`.

    Attributes:
      parts: in an order in which senders come first.
      links: who receives what.
      refining: whether spikes are changes, as those of `Refining` and `SigmaDelta`.
      settings: of the neurons: `ratio`, `silence` (refining), `signed`, `reset`.
      steps: the largest number of steps for which nothing can overflow.

    Example:
      >>> import jaxburst as jb
      >>> weights, x = (np.eye(2), np.ones((2, 1))), np.array([[0.5, 1.0]], np.float32)
      >>> network = jb.trace(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], weights, x)
      >>> spiking = jb.convert(network, weights, {"relu0": 0.5})
      >>> whole = jb.to_integers(jb.Model(network, jb.Refining()), spiking, x)
      >>> [(part.name, part.kind) for part in whole.parts][:3]
      [('input0', 'input'), ('0', 'synapse'), ('relu0', 'neuron')]
      >>> whole["0"].arrays["kernel"].dtype, whole["relu0"].bits
      (dtype('int8'), 23)
      >>> whole.stream(np.stack([x, x])).events["relu0"].ravel().tolist()
      [24, 0]
    """

    parts: tuple[Part, ...]
    links: tuple[Link, ...]
    refining: bool
    settings: dict[str, Any]
    steps: int

    def __post_init__(self):
        place = {part.name: i for i, part in enumerate(self.parts)}
        for source, target, _ in self.links:
            if place[source] >= place[target]:
                raise ValueError(f"{target}: comes before {source}, which it reads")

    def __repr__(self) -> str:
        rows = [("name", "kind", "shape", "largest", "bits of threshold")]
        for part in self.parts:
            shape = "x".join(map(str, part.shape[1:])) if part.shape else ""
            bits = str(part.bits) if part.kind == "neuron" else ""
            count = str(part.count) if part.count else ""
            rows.append((part.name, part.kind, shape, count, bits))
        return aligned(rows, left=2)

    def __getitem__(self, name: str) -> Part:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Part]:
        return {part.name: part for part in self.parts}

    def of(self, *kinds: str) -> list[Part]:
        """The parts of some kinds, in order."""
        return [part for part in self.parts if part.kind in kinds]

    def arriving(self, name: str) -> list[Link]:
        """The links to a part."""
        return [link for link in self.links if link.target == name]

    def leaving(self, name: str) -> list[Link]:
        """The links from a part."""
        return [link for link in self.links if link.source == name]

    @cached_property
    def constant(self) -> frozenset[str]:
        """Parts that send or receive what is constant while an image is presented."""
        found: set[str] = set()
        for part in self.parts:
            arrives = any(link.source in found for link in self.arriving(part.name))
            if part.kind == "input" or (
                arrives and (part.kind == "synapse" or not part.dynamic)
            ):
                found.add(part.name)
        return frozenset(found)

    @property
    def ratio(self) -> int:
        """By what sums are multiplied from step to step."""
        return self.settings.get("ratio", 1)

    @property
    def finest(self) -> int:
        """How many of the last step's quanta one of the first is."""
        return self.ratio ** (self.steps - 1)

    @door
    def quantised(self, inputs) -> list[np.ndarray]:
        """Inputs as whole numbers, `[B, places]` each, int16.

        .. math:: x = \\mathrm{clip}(\\mathrm{round}(x / u), -1023, 1023)
        """
        return self._quantised("inputs", inputs)

    def _quantised(self, name: str, inputs) -> list[np.ndarray]:
        leaves, parts = jax.tree.leaves(inputs), self.of("input")
        if len(leaves) != len(parts):
            raise ValueError(
                f"{name}: the network takes {len(parts)}, found {len(leaves)}"
            )
        found = []
        for part, leaf in zip(parts, leaves, strict=True):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                refuse(
                    f"{part.name}: {name}", "floating-point numbers", leaf,
                    "normalise pixels as for training", TypeError,
                )  # fmt: skip
            leaf = np.asarray(leaf, np.float64)
            if leaf.shape[1:] != part.given or not len(leaf):
                raise ValueError(
                    f"{part.name}: {name} must have the shape [B, "
                    f"{', '.join(map(str, part.given))}], found {list(leaf.shape)}"
                )
            leaf = leaf.transpose(part.order).reshape(len(leaf), -1)
            whole = np.rint(leaf / part.arrays["unit"]).clip(-RANGE, RANGE)
            found.append(whole.astype(np.min_scalar_type(-RANGE)))
        return found

    @door(record="flag")
    def simulate(self, inputs, steps: int, *, record: bool = True) -> IntegerTrace:
        """Presents inputs for some steps.

        Args:
          inputs: `[B, ...]`, as the trained network takes them.
          steps: number of time steps, at most `self.steps`.
          record: whether spikes are wanted; they take memory.

        Returns:
          The `IntegerTrace`.

        Raises:
          ValueError: for inputs that do not fit, or more steps than cannot overflow.
        """
        if steps > self.steps:
            raise ValueError(
                f"steps must be a whole number from 1 to {self.steps}, for which "
                f"overflow is ruled out, found {steps!r}; pass steps= to to_integers"
            )
        run = _Run(self, self.quantised(inputs), stream=False)
        return self._collect(run, [run.step() for _ in range(steps)], record)

    @door(record="flag")
    def stream(self, frames, *, record: bool = True) -> IntegerTrace:
        """Presents a new frame at every step; the state is carried on.

        Bursts receive frame `t` at step `t`. Refining neurons keep the finest quantum,
        that of step `steps`, and send what a new frame changes,

        .. math:: n_t = \\min(\\lfloor f(v_t) / \\theta + \\tfrac12 \\rfloor, N_{max})
            - N_{t-1}

        (silent as ever), with the most that a refinement could have sent,
        :math:`N_{max}`, as their limit: after any stream the state is the network of
        the last frame.

        Args:
          frames: `[T, B, ...]`.
          record: as in `simulate`.

        Returns:
          The `IntegerTrace`, a step for each frame.
        """
        leaves = jax.tree.leaves(frames)
        count = len(leaves[0])
        if not self.refining and count > self.steps:
            raise ValueError(
                f"frames: overflow is ruled out for {self.steps} steps, found {count} "
                "frames; pass steps= to to_integers"
            )
        each = [
            self._quantised("frames", [leaf[t] for leaf in leaves])
            for t in range(count)
        ]
        run = _Run(self, each[0], stream=True)
        found = [run.step()] + [run.step(frame) for frame in each[1:]]
        return self._collect(run, found, record)

    def _collect(self, run: _Run, found: list[dict], record: bool) -> IntegerTrace:
        logits, spikes, events = [], {}, {}
        for part in self.of("output"):
            totals = np.stack([step[part.name] for step in found]).astype(np.float64)
            times = np.arange(1, len(found) + 1).reshape(-1, 1, 1)
            scale = 1 / times
            if self.refining:
                scale = 1 / self.ratio ** (times - 1.0)
                scale = scale if not run.stream else np.full(times.shape, 1 / run.grown)
            logits.append(part.shown(totals * part.arrays["unit"] * scale))
        for part in self.of("neuron", "pool"):
            if part.dynamic:
                sent = np.stack([step[part.name] for step in found])
                events[part.name] = np.abs(sent).sum(-1)
                if record:
                    spikes[part.name] = part.shown(sent)
        return IntegerTrace(logits, spikes, events)

    @door
    def save(self, path: str | os.PathLike) -> Path:
        """Writes one safetensors file with a JSON header; replaces one, all or nothing.

        Returns:
          The path.
        """
        arrays, parts, links = {}, [], []
        for part in self.parts:
            row = {
                field.name: getattr(part, field.name)
                for field in dataclasses.fields(part)
                if field.name != "arrays"
            }
            parts.append(row)
            for name, value in part.arrays.items():
                arrays[f"{part.name}/{name}"] = value
        for i, link in enumerate(self.links):
            links.append([link.source, link.target])
            if link.matrix is not None:
                for name in ("indptr", "indices", "data"):
                    arrays[f"links/{i}/{name}"] = getattr(link.matrix, name)
        description = {
            "parts": parts, "links": links, "refining": self.refining,
            "settings": self.settings, "steps": self.steps,
        }  # fmt: skip
        return write(path, seal(FORMAT, description, arrays))

    @classmethod
    @door
    def load(cls, path: str | os.PathLike) -> Integers:
        """Reads what `save` wrote, and verifies every byte of it.

        Raises:
          FileNotFoundError, ValueError: it is not there, damaged, or of another kind.
        """
        described, arrays = unseal(
            path, FORMAT, "a file of Integers.save",
            parts=list, links=list, settings=dict, refining=bool, steps=int,
        )  # fmt: skip
        try:
            return cls._assembled(described, arrays)
        except (*WRONG, MemoryError) as error:
            raise ValueError(
                f"{path}: its parts do not fit together ({error!r}); save it again"
            ) from error

    @classmethod
    def _assembled(cls, described: dict[str, Any], arrays) -> Integers:
        parts, links = [], []
        for row in described["parts"]:
            axes = tuple(Axis(*axis) for axis in row.pop("axes"))
            row |= {k: tuple(v) for k, v in row.items() if isinstance(v, list)}
            start = f"{row['name']}/"
            own = {
                key[len(start) :]: value
                for key, value in arrays.items()
                if key.startswith(start) and "/" not in key[len(start) :]
            }
            parts.append(Part(**row, axes=axes, arrays=own))
        sizes = {part.name: part for part in parts}
        for i, (source, target) in enumerate(described["links"]):
            matrix = None
            if f"links/{i}/data" in arrays:
                names = ("data", "indices", "indptr")
                shape = math.prod(sizes[target].received), sizes[source].size
                own = tuple(arrays[f"links/{i}/{name}"] for name in names)
                matrix = sparse.csr_array(own, shape=shape)
                matrix.check_format()  # all indices are within
            links.append(Link(source, target, matrix))
        settings = described["settings"]
        refining, steps = described["refining"], described["steps"]
        found = cls(tuple(parts), tuple(links), refining, settings, steps)
        found._check()
        return found

    def _check(self) -> None:
        """Refuses what `to_integers` does not make: an image goes through it."""
        for part in self.parts:
            if part.size > 2**26 or not is_whole(part.bits, 0, 62):
                raise ValueError(f"{part.name}: its size or bits are out of range")
            for name, value in part.arrays.items():
                fine = value.dtype.kind == "i" if name != "unit" else (value > 0).all()
                if not fine:
                    raise ValueError(f"{part.name}: its {name} is out of range")
        outputs = [self.arriving(part.name) for part in self.of("output")]
        ends = {name for link in self.links for name in link[:2]}
        if not outputs or not all(outputs) or ends - self._by_name.keys():
            raise ValueError("its links are not those of its parts")
        if not is_whole(self.ratio, 1) or not is_whole(self.steps, 1):
            raise ValueError("its ratio or steps are out of range")
        self.simulate([np.zeros((1, *p.given), "f") for p in self.of("input")], 1)


# The simulation.


class _Run:
    """A state, and what advances it; int64 throughout, sums by BLAS, exactly."""

    def __init__(self, integers: Integers, images: list[np.ndarray], stream: bool):
        self.net, self.stream, self.time = integers, stream, 0
        self.grown = integers.finest if stream and integers.refining else 1
        self.images = [image.astype(np.int64) for image in images]
        batch = len(images[0])
        self.sums: dict[str, Any] = {}
        self.sent: dict[str, Any] = {}
        for part in integers.of("charge", "neuron", "pool", "output"):
            received = (batch, math.prod(part.received))
            self.sums[part.name] = np.zeros(received, np.int64)
            self.sent[part.name] = np.zeros((batch, part.size), np.int64)
            if part.kind == "neuron" and not integers.refining:
                self.sums[part.name] += _spread(part, "start")
        self.held = self.constant(self.images)

    def constant(self, images: list[np.ndarray]) -> dict[str, np.ndarray]:
        """What arrives at every part that has a state, of the inputs alone."""
        net, values, given = self.net, {}, iter(images)
        for part in net.parts:
            if part.kind == "input":
                values[part.name] = next(given) * self.grown
            elif part.name in net.constant:
                x = self.gather(part, values)
                if part.kind == "synapse":
                    values[part.name] = _weigh(part, x)
                else:
                    x = x + _spread(part, "bias") * self.grown
                    values[part.name] = _passed(part, x)
        found = {}
        for part in net.parts:
            if part.name in self.sums and part.dynamic:
                found[part.name] = self.gather(part, values) + (
                    _spread(part, "bias") * self.grown
                )
        return found

    def gather(self, part: Part, values: dict[str, np.ndarray]):
        total: Any = 0
        for link in self.net.arriving(part.name):
            if link.source in values:
                value = values[link.source]
                if link.matrix is not None:
                    value = (link.matrix @ value.T).T
                total = total + value
        return total

    def step(self, frame: list[np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """One time step: what every part with a state has sent; of outputs, sums."""
        net, first = self.net, self.time == 0
        self.time += 1
        presented = self.held
        if frame is not None:
            self.images = [image.astype(np.int64) for image in frame]
            before, self.held = self.held, self.constant(self.images)
            presented = self.held
            if net.refining:
                presented = {name: self.held[name] - before[name] for name in before}
        elif net.refining and not first:
            presented = {}
        growth = 1 if first or self.stream else net.ratio
        values: dict[str, np.ndarray] = {}
        shown: dict[str, np.ndarray] = {}
        for part in net.parts:
            if not part.dynamic:
                continue
            x = self.gather(part, values)
            if part.kind == "synapse":
                if not np.ndim(x):
                    continue
                values[part.name] = _weigh(part, x)
                continue
            name = part.name
            self.sums[name] = self.sums[name] * growth + x + presented.get(name, 0)
            if part.kind == "output":
                shown[name] = self.sums[name]
                continue
            if part.kind in ("pool", "charge"):
                known = self.sent[name] * growth
                self.sent[name] = _passed(part, self.sums[name])
                sent = self.sent[name] - known
            elif net.refining:
                sent = self.refine(part, growth)
            else:
                sent = self.burst(part)
            values[name] = sent
            if part.kind != "charge":
                shown[name] = sent
        return shown

    def refine(self, part: Part, growth: int) -> np.ndarray:
        settings, bits, name = self.net.settings, part.bits, part.name
        step = self.net.steps if self.stream else self.time
        drive = self.sums[name]
        if "rows" in part.arrays:
            row = min(step, len(part.arrays["rows"])) - 1
            drive = drive + _spread(part, "rows", row)
        wanted = np.maximum(drive, 0)
        if "cap" in part.arrays:
            cap = _spread(part, "cap")
            wanted = np.minimum(wanted, cap * self.net.ratio ** (step - 1))
        known, first = self.sent[name] * growth, self.time == 1
        half = 1 << bits >> 1
        start = _spread(part, "start") if first and not self.stream else half
        target = (wanted + start) >> bits
        if self.stream:
            target = np.minimum(target, part.total)
        spikes = target - known
        if not first:
            close = np.abs(wanted - (known << bits)) <= int(
                settings["silence"] * (1 << bits)
            )
            spikes = np.where(close, 0, spikes)
        if part.gamma is not None and not self.stream:
            spikes = np.clip(spikes, -part.gamma, part.gamma)
        self.sent[name] = known + spikes
        return spikes

    def burst(self, part: Part) -> np.ndarray:
        settings, bits, name = self.net.settings, part.bits, part.name
        charged = self.sums[name]
        if "rows" in part.arrays and self.time <= len(part.arrays["rows"]):
            charged = charged + _spread(part, "rows", self.time - 1)
        spikes = charged >> bits
        most = part.total if part.gamma is None else part.gamma
        low = np.maximum(-most, -self.sent[name]) if settings["signed"] else 0
        spikes = np.minimum(np.maximum(spikes, low), most)
        if "cap" in part.arrays:
            allowed = (self.time * _spread(part, "cap")) >> bits
            spikes = np.minimum(spikes, allowed - self.sent[name])
        rest = charged - (spikes << bits)
        if settings["reset"] == "zero":
            rest = np.where(spikes > 0, 0, charged)
        self.sums[name] = rest
        self.sent[name] = self.sent[name] + spikes
        return spikes


def _spread(part: Part, name: str, row: int | None = None):
    """An array of a part, or a row, for each of its places; 0 if it has none."""
    if name not in part.arrays:
        return np.int64(0)
    value = part.arrays[name].astype(np.int64)
    value = value if row is None else value[row]
    shape = part.received if name == "bias" else part.shape
    return np.broadcast_to(value, (math.prod(shape[:-1]), shape[-1])).reshape(-1)


def windows(axes: tuple[Axis, ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For every tap, in order: places of the input, and those of the output there.

    Example:
      >>> [pair[0].tolist() for pair in windows((Axis(3, 3, taps=3, low=1),))]
      [[0, 1], [0, 1, 2], [1, 2]]
    """
    tables = [axis.meets for axis in axes]
    sizes, outs = [axis.size for axis in axes], [axis.out for axis in axes]
    for tap in np.ndindex(*[axis.taps for axis in axes]):
        rows = [table[:, k] for table, k in zip(tables, tap, strict=True)]
        kept = [np.flatnonzero(row >= 0) for row in rows]
        places = np.ravel_multi_index(np.ix_(*kept), sizes).reshape(-1)
        met = [row[index] for row, index in zip(rows, kept, strict=True)]
        yield places, np.ravel_multi_index(np.ix_(*met), outs).reshape(-1)


def _weigh(part: Part, x: np.ndarray) -> np.ndarray:
    """A synapse, `[B, places in]` to `[B, places out]`.

    Products of whole numbers are summed in floating point, which is exact below 2^24 in
    single and 2^53 in double precision.
    """
    kernel, groups = part.arrays["kernel"], part.groups
    batch, rows = len(x), kernel.shape[1]
    most = np.abs(kernel.astype(np.int64)).sum((0, 1)).max() * max(1, np.abs(x).max())
    kind = np.float32 if most < 2**24 else np.float64
    x = x.reshape(batch, -1, groups, rows).astype(kind)
    weights = kernel.reshape(len(kernel), rows, groups, -1).astype(kind)
    places = math.prod(axis.out for axis in part.axes)
    out = np.zeros((batch, places, groups, weights.shape[-1]), kind)
    for tap, (sources, targets) in enumerate(windows(part.axes)):
        if not len(sources):
            continue
        for g in range(groups):
            out[:, targets, g] += x[:, sources, g] @ weights[tap, :, g]
    multiplier = part.arrays["multiplier"].astype(np.int64)
    return (out.reshape(batch, places, -1).astype(np.int64) * multiplier).reshape(
        batch, -1
    )


def _passed(part: Part, x: np.ndarray) -> np.ndarray:
    """What pools and charges make of their sums: maxima over windows, or a quotient."""
    if part.kind == "charge":
        return (x + (1 << part.bits >> 1)) >> part.bits
    best = np.full((len(x), part.size), -(2**62), np.int64)
    for sources, targets in windows(part.axes):
        best[:, targets] = np.maximum(best[:, targets], x[:, sources])
    return best


# From the graph.


@door(inputs="calibration")
def to_integers(model: Model, spiking: Spiking, inputs, steps: int = 4) -> Integers:
    """Writes a converted network in whole numbers.

    Args:
      model: network, neuron (`Burst`, `Refining` or `SigmaDelta`), lateral pooling.
      spiking: its converted weights.
      inputs: representative inputs `[N, ...]`: their largest magnitude is the largest
        that is represented, by 1023.
      steps: the largest number of steps that will be simulated. Membranes are so fine
        that no sum can overflow in that time, whatever the input; streams of refining
        neurons may be of any length.

    Returns:
      The `Integers`.

    Raises:
      ValueError: for weights that do not fit the network, for what cannot be said in
        whole numbers, naming it and what to use instead, and for a membrane that could
        overflow, naming the layer.

    Example:
      >>> import jaxburst as jb
      >>> net = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1]
      >>> weights = (np.eye(3), np.ones((3, 2)))
      >>> x = np.array([[0.5, 1.0, -1.0]], np.float32)
      >>> network = jb.trace(net, weights, x)
      >>> spiking = jb.convert(network, weights, {"relu0": 0.5})
      >>> model = jb.Model(network, jb.Refining())
      >>> integers = to_integers(model, spiking, x)
      >>> integers.simulate(x, 1).spikes["relu0"].tolist()  # of 0.5, ½ and 1
      [[[1, 2, 0]]]
    """
    return _Builder(model, spiking, model.network.leaves(inputs), steps).build()


def _sayable(model: Model):
    """The model's neuron, if what it does can be said in whole numbers."""
    neuron, what = model.neuron, ""
    if type(neuron) not in (Burst, Refining, SigmaDelta):
        what = f"{type(neuron).__name__} neurons have", "Burst, Refining or SigmaDelta"
    elif getattr(neuron, "allowance", None) is not None:
        what = "an allowance has", "Burst(signed=True), which takes back errors too"
    elif getattr(neuron, "digits", None) is not None:
        what = "a limit of digits has", "SigmaDelta()"
    elif model.pool != "lateral":
        what = "gated pooling has", "pool='lateral', which is exact"
    if what:
        raise ValueError(f"to_integers: {what[0]} no integer form; use {what[1]}")
    return neuron


class _Sum(NamedTuple):
    """A value as a sum over parts, `{part: [places, places of it]}`, and a constant."""

    sources: dict[str, sparse.csr_array]
    constant: np.ndarray


class _Builder:
    """Reads a graph from the inputs on and makes its parts and links."""

    def __init__(self, model: Model, spiking: Spiking, leaves: list, steps: int):
        self.graph, self.spiking = model.network.graph, spiking
        self.neuron: Any = _sayable(model)
        self.leaves, self.steps = leaves, steps
        self.refining = not self.neuron.repeats
        self.ratio = getattr(self.neuron, "ratio", 1)
        # How much a constant is at the end, in the last step's quanta.
        self.times = self.ratio ** (steps - 1) if self.refining else steps
        self.parts: dict[str, Part] = {}
        self.links: list[Link] = []
        self.units: dict[str, np.ndarray] = {}  # of what a part sends, [places]
        self.open: dict[str, np.ndarray] = {}  # kernels that are not rounded yet
        self.readers = _readers(self.graph)
        self.rounded: dict[str, str] = {}  # which charges stand for a synapse's
        self.charged: set[str] = set()  # parts that send charges

    def build(self) -> Integers:
        inputs = [np.asarray(leaf) for leaf in self.leaves]
        outputs = read(self.graph, self.visit, *inputs)
        for i, (name, value) in enumerate(
            zip(self.graph.outputs, outputs, strict=True)
        ):
            self.output(f"output{i}", self.graph[name], value)
        for name in [*self.open]:  # that reach nothing
            self.fix(name)
        for part in self.parts.values():
            if part.total > LIMIT:
                raise self.overflow(part.name, part.total)
            if part.kind == "synapse":
                self.check_kernel(part)
        settings: dict[str, Any] = {"ratio": self.ratio}
        if self.refining:
            settings["silence"] = float(getattr(self.neuron, "silence", 0))
        else:
            settings |= {"signed": self.neuron.signed, "reset": self.neuron.reset}
        return Integers(
            tuple(self.parts.values()), tuple(self.links), self.refining, settings,
            self.steps,
        )  # fmt: skip

    def check_kernel(self, part: Part) -> None:
        """Charges that are weighed again can need more than 32 bits."""
        most = int(np.abs(part.arrays["kernel"]).max())
        if 0 < most < LARGEST // 4:
            raise ValueError(
                f"{part.name}: 32 bits leave its kernel whole numbers up to {most}, "
                f"instead of {LARGEST}, in {self.steps} steps; use fewer steps or a "
                "smaller gamma, or fold the linear layer before it into it"
            )

    def overflow(self, name: str, bound: float) -> ValueError:
        return ValueError(
            f"{name}: its sum could reach {bound:.2g} in {self.steps} steps, more than "
            "2^31; use fewer steps, or neurons with a smaller gamma"
        )

    def visit(self, node: Node, *values) -> _Sum:
        match node.role:
            case Input():
                self.input(node, values[0])
            case Synapse():
                return self.synapse(node, values[0])
            case Neuron() if getattr(node.role, "function", None) is not None:
                raise ValueError(
                    f"{node.name}: a function other than a ReLU has no integer form; "
                    "train the network with ReLUs"
                )
            case Neuron():
                self.populate(node, values[0])
            case Pool():
                self.pool(node, values[0])
            case Wire():
                return self.wire(node, values)
            case _:
                kind = type(node.role).__name__.lower()
                raise ValueError(
                    f"{node.name}: a {kind} has no integer form; to_integers takes "
                    "networks of convolutions, products with weights, ReLUs, pools and "
                    "wires"
                )
        return self.itself(node)

    def itself(self, node: Node, constant=None) -> _Sum:
        """A part as a value, in the node's own order of places."""
        size = math.prod(node.image_shape)
        places = _places(node.image_shape, self.parts[node.name].order)
        matrix = _matrix(np.ones(size), places, np.arange(size), (size, size))
        constant = np.zeros(size) if constant is None else constant
        return _Sum({node.name: matrix}, constant)

    def add(self, node: Node, kind: str, order, name: str = "", **own) -> Part:
        shape = tuple(node.image_shape[i] for i in order)
        own.setdefault("received", shape)
        own.setdefault("dynamic", node.name in self.graph.dynamic)
        own.setdefault("width", shape[-1] if shape else 1)
        name = name or node.name
        part = Part(name, kind, shape, tuple(order), node.batch_axis or 0, **own)
        self.parts[name] = part
        return part

    def input(self, node: Node, value: np.ndarray) -> None:
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"{node.name}: whole numbers that the function looks up or normalises "
                "have no integer form; trace the network behind that, and give it the "
                "vectors of an embedding, or normalised pixels"
            )
        unit = max(float(np.abs(value).max()), 1e-30) / RANGE
        self.add(
            node, "input", self.order(node), count=RANGE * self.times,
            total=RANGE * self.times, arrays={"unit": np.array(unit)},
        )  # fmt: skip
        self.units[node.name] = np.full(math.prod(node.image_shape), unit)
        self.charged.add(node.name)

    def order(self, node: Node) -> list[int]:
        """Channels last."""
        axis = self.graph.channel_axes[node.name]
        return [i for i in range(len(node.shape)) if i != axis] + [axis]

    # Synapses.

    def synapse(self, node: Node, value: _Sum) -> _Sum:
        role, shape = node.role, self.graph[node.inputs[0]].image_shape
        kernel, bias = (np.asarray(x, np.float64) for x in self.spiking[node.name][:2])
        name = role.primitive.name
        if name == "conv_general_dilated" and role.params["batch_group_count"] == 1:
            form = _convolution(node, shape, kernel)
        elif name == "dot_general":
            form = _product(node, shape, kernel)
        else:
            raise ValueError(
                f"{node.name}: {name} has no integer form; write it as a convolution "
                "with groups of features, or as a product with weights"
            )
        order, out_order, axes, groups, weights = form
        width = groups * weights.shape[1]
        places = _places(shape, order)
        group = np.arange(len(places)) % width
        for source in value.sources:
            self.fix(source)
        found, received = self.matrices(value, places), (len(places) // width, width)
        unit = _common(found, group, self.units)
        most = sum(
            abs(matrix) @ (self.units[name] * self.parts[name].total)
            for name, matrix in found.items()
        )
        most = float(np.max(most))
        if self.charged & set(found) and (len(found) > 1 or most > SMALL * unit.min()):
            # Charges are large numbers of small units, spikes the contrary. All come in
            # one unit, fine at first, so that none vanishes in the kernel.
            unit = np.full(width, 2 * most / LIMIT)
            dynamic = node.inputs[0] in self.graph.dynamic
            name, bits = self.charge(f"{node.name}/sum", received, LIMIT // 2, dynamic)
            self.receive(name, value, places, group, unit)
            self.links.append(Link(name, node.name, None))
            unit = unit * 2.0**bits
        else:
            self.receive(node.name, value, places, group, unit)
        self.add(
            node, "synapse", out_order, axes=axes, groups=groups, received=received,
            width=weights.shape[-1],
        )  # fmt: skip
        rows = np.repeat(unit.reshape(groups, -1), weights.shape[-1] // groups, 0)
        self.open[node.name] = weights * rows.T[None]
        self.charged.add(node.name)
        out = np.zeros(node.image_shape)
        if value.constant.any():
            constant = jnp.asarray(value.constant.reshape(shape), jnp.float32)
            out = np.asarray(role.apply(constant, jnp.asarray(kernel, jnp.float32)))
        bias = bias.reshape((1,) * (out.ndim - bias.ndim) + bias.shape)
        return self.itself(node, (out + bias).reshape(-1).astype(np.float64))

    def charge(self, name: str, shape, most: int, dynamic: bool) -> tuple[str, int]:
        """A part that rounds sums to fewer bits: its name, and how many fewer."""
        bits, (places, width) = (most // SMALL).bit_length(), shape
        total = (most >> bits) + 1
        self.parts[name] = Part(
            name, "charge", shape, (0, 1), 0, shape, width, dynamic,
            (Axis(places, places), Axis(width, width)), bits=bits, count=total,
            total=total, arrays={"bias": np.zeros((1, width), np.int64)},
        )  # fmt: skip
        self.charged.add(name)
        return name, bits

    def scales(self, name: str) -> np.ndarray:
        """The unit of each output channel in which its kernel just fits 8 bits."""
        found = np.abs(self.open[name]).max((0, 1)) / LARGEST
        return np.maximum(found, max(found.max(), 1e-30) / 2**10)

    def fix(self, name: str, unit: np.ndarray | None = None) -> None:
        """Rounds the kernel of a synapse, in a unit for each output channel.

        Its own if none is given; what it sends is then rounded to few bits, too.
        """
        if name not in self.open:
            return
        own, unit = unit is None, self.scales(name) if unit is None else unit
        kernel, part = self.open.pop(name), self.parts[name]
        multiplier = np.abs(kernel).max((0, 1)) / (LARGEST * unit)
        multiplier = np.maximum(1, np.ceil(multiplier - 1e-9))
        kernel = np.rint(kernel / (multiplier * unit)).clip(-LARGEST, LARGEST)
        kernel = kernel.astype(np.min_scalar_type(-LARGEST))
        bound = np.abs(kernel.astype(np.int64)).sum((0, 1)) * multiplier
        arrays = {"kernel": kernel, "multiplier": multiplier.astype(np.int64)}
        total = int(bound.max()) * self.most(name, "total")
        self.parts[name] = dataclasses.replace(
            part, arrays=arrays, total=total, count=total
        )
        self.units[name] = np.tile(unit, part.size // len(unit))
        if not own or total <= SMALL or not self.readers[name]:
            return
        shape = part.size // part.width, part.width
        charge, bits = self.charge(f"{name}/charge", shape, total, part.dynamic)
        self.links.append(Link(name, charge, None))
        self.units[charge] = self.units[name] * 2.0**bits
        self.rounded[name] = charge

    # Parts with a state.

    def populate(self, node: Node, value: _Sum) -> None:
        theta, initial, bias = (
            np.asarray(x, np.float64) for x in self.spiking[node.name]
        )
        neuron, name = self.neuron.at(node.name), node.name
        cap, gamma = node.role.cap, neuron.gamma
        if self.refining:
            gamma = gamma or LIMITED
        order, shape = self.order(node), node.image_shape
        width = shape[order[-1]]
        places = _places(shape, order)
        group = np.arange(len(places)) % width

        def placed(value):
            """A value that belongs to one image, `[places]`."""
            value = value.reshape((1,) * (len(shape) - value.ndim) + value.shape)
            return np.broadcast_to(value, shape).reshape(-1)[places]

        presented, rows = value.constant[places], []
        if bias.ndim:
            rows = [
                placed(np.asarray(neuron.correction(jnp.asarray(bias), t)))
                * float(self.ratio) ** (t - 1)
                for t in range(1, min(self.steps, len(bias)) + 1)
            ]
        else:  # at all steps alike, as a constant that is presented
            presented = presented + bias
        thetas, starts = placed(theta), placed(initial)
        geometric = gamma and gamma * sum(self.ratio**i for i in range(self.steps))
        if gamma and not self.refining:
            geometric = gamma * self.steps
        # Refining neurons compare their sums with all that they have sent.
        compared = (geometric or 0) + 2 if self.refining else 2
        self.add(node, "neuron", order, gamma=gamma)

        def attempt(bits: int):
            unit = thetas / 2**bits
            arrays = {
                "bias": _rounded(presented / unit, width),
                "start": _rounded(starts * 2**bits, width),
            }
            if rows:
                each = [np.rint(row / unit).reshape(-1, width) for row in rows]
                whole = np.stack(each).astype(np.int64)
                same = (whole == whole[:, :1]).all()
                arrays["rows"] = whole[:, :1] if same else whole
            more = np.abs(arrays["bias"]).max() * self.times
            more += (2 + self.ratio) << bits
            if rows:
                more += np.abs(arrays["rows"]).max()
            if cap is not None:
                limits = np.floor(cap / unit + 1e-6).reshape(-1, width)
                arrays["cap"] = limits[:1].astype(np.int64)
                more = max(more, int(limits.max()) * self.times)
            return arrays, int(more)

        bits, arrays, bound = self.settle(
            name, value, places, group, thetas[:width], attempt, compared
        )
        total = geometric or (bound >> bits) + 1 + self.ratio
        count = gamma if gamma and not self.refining else total
        # After the charges that it reads.
        self.parts[name] = dataclasses.replace(
            self.parts.pop(name), bits=bits, arrays=arrays, total=total, count=count
        )
        self.units[name] = thetas

    def pool(self, node: Node, value: _Sum) -> None:
        shape = self.graph[node.inputs[0]].image_shape
        order, inner = self.order(node), _windows_of(node, shape)
        if len(shape) == len(node.shape):
            before = order
        else:
            reduced = [i % len(shape) for i in node.role.params["axes"]]
            kept = [i for i in range(len(shape)) if i not in reduced]
            before = reduced + [kept[i] for i in order]
        axes = tuple(inner[i] for i in before)
        places = _places(shape, before)
        group = np.arange(len(places)) % axes[-1].size
        together = axes[-1].taps > 1  # channels are compared
        if together:
            group = np.zeros(len(places), int)
        for name in value.sources:
            if name in self.open:
                unit = self.scales(name)
                self.fix(name, np.full(len(unit), unit.max() / 8) if together else unit)
        received = tuple(axis.size for axis in axes)
        plain = axes[-1] == Axis(axes[-1].size, axes[-1].size)
        self.add(
            node, "pool", order, axes=axes, received=received,
            width=axes[-1].size if plain else 1,
        )  # fmt: skip
        unit = _common(self.matrices(value, places), group, self.units)
        self.receive(node.name, value, places, group, unit)
        if self.charged & set(value.sources):
            self.charged.add(node.name)
        unit = unit[group]
        bias = _rounded(value.constant[places] / unit, axes[-1].size)
        more = int(np.abs(bias).max())
        total = self.most(node.name, "total") + more * self.times
        count = self.most(node.name, "count") + more
        self.parts[node.name] = dataclasses.replace(
            self.parts[node.name], arrays={"bias": bias}, total=total,
            count=total if self.refining else count,
        )  # fmt: skip
        sent = np.zeros(self.parts[node.name].size)
        for sources, targets in windows(axes):
            sent[targets] = unit[sources]
        self.units[node.name] = sent

    def output(self, name: str, node: Node, value: _Sum) -> None:
        order = self.order(node)
        places = _places(node.image_shape, order)
        group = np.zeros(len(places), int)
        reference = 1e-30
        for source, matrix in self.matrices(value, places).items():
            if source in self.open:
                unit = np.resize(self.scales(source), self.parts[source].size)
            else:
                unit = self.units[source]
            charges = np.abs(matrix.data) * unit[matrix.indices]
            reference = max(reference, float(charges.max()))
        constant, width = value.constant[places], node.image_shape[order[-1]]
        reference = max(reference, float(np.abs(constant).max()) / 2**8)

        def attempt(bits: int):
            bias = _rounded(constant / (reference / 2**bits), width)
            return {"bias": bias}, int(np.abs(bias).max()) * self.times

        self.add(node, "output", order, name, dynamic=True)
        theta = np.array([reference])
        bits, arrays, bound = self.settle(name, value, places, group, theta, attempt, 0)
        arrays["unit"] = np.array(reference / 2**bits)
        self.parts[name] = dataclasses.replace(
            self.parts.pop(name), arrays=arrays, total=bound, count=bound
        )

    def settle(self, target: str, value, places, group, theta, attempt, spikes: int):
        """Links a membrane, in the finest unit `θ / 2^bits` in which nothing overflows.

        Args:
          theta: of each group of places.
          attempt: gives arrays for a number of bits, and what these add to the sums.
          spikes: the largest number of thresholds that is compared with.

        Returns:
          `(bits, arrays, the largest sum)`.
        """
        kept = {}
        for name, matrix in self.matrices(value, places).items():
            if name in self.open:
                kernel, units = self.open[name], None
                if self.readers[name] == 1:
                    units = _spread_units(matrix, kernel, group)
                if units:
                    kept[name] = kernel, units
                else:
                    self.fix(name)
        count, bound = len(self.links), 0
        for bits in _BITS:
            unit = theta / 2**bits
            for name, (kernel, units) in kept.items():
                self.open[name] = kernel
                self.fix(name, units(unit))
            self.receive(target, value, places, group, unit)
            arrays, more = attempt(bits)
            bound = self.most(target, "total") + more
            if bound <= LIMIT and spikes << bits <= LIMIT:
                return bits, arrays, bound
            del self.links[count:]
        raise self.overflow(target, max(bound, spikes << bits))

    # What arrives.

    def matrices(self, value: _Sum, places: np.ndarray):
        """`{part: [places, places of it]}` in the order of the receiver."""
        found = {}
        for name, matrix in value.sources.items():
            matrix = sparse.csr_array(matrix[places])
            matrix.eliminate_zeros()
            if matrix.nnz:
                found[self.rounded.get(name, name)] = matrix
        return found

    def receive(self, target: str, value: _Sum, places, group, unit) -> None:
        """Links a part to what it receives, in the unit of each group of places."""
        for name, matrix in self.matrices(value, places).items():
            parts = matrix.tocoo()
            exact = parts.data * self.units[name][parts.col] / unit[group[parts.row]]
            whole = np.rint(exact).astype(np.int64)
            wrong = np.abs(whole - exact).max() / np.abs(exact).max()
            if wrong > 1 / 16:
                raise ValueError(
                    f"{target}: 32 bits leave {wrong:.0%} of error in what it receives "
                    f"of {name}, in {self.steps} steps; use fewer steps or a smaller "
                    "gamma"
                )
            matrix = _matrix(whole, parts.row, parts.col, parts.shape)
            size = len(places)
            same = parts.shape == (size, size) and matrix.nnz == size
            same = same and (matrix.indices == np.arange(size)).all()
            same = same and (matrix.data == 1).all()
            self.links.append(Link(name, target, None if same else matrix))

    def most(self, target: str, bound: str) -> int:
        """The largest that can arrive at a place."""
        found = 0
        for link in self.links:
            if link.target == target:
                row = 1 if link.matrix is None else int(abs(link.matrix).sum(1).max())
                found += row * getattr(self.parts[link.source], bound)
        return found

    # Wires.

    def wire(self, node: Node, values: tuple[_Sum, ...]) -> _Sum:
        if not node.role.affine:
            raise ValueError(
                f"{node.name}: what is computed of whole numbers ({node.source}) has "
                "no integer form; trace the network behind it"
            )
        own = self.spiking.get(node.name, ())
        shapes = [self.graph[name].image_shape for name in node.inputs]
        constant = np.zeros(math.prod(node.image_shape))
        if shifts(node) or any(value.constant.any() for value in values):
            given = [
                jnp.asarray(value.constant.reshape(shape), jnp.float32)
                for value, shape in zip(values, shapes, strict=True)
            ]
            found = apply_wire(node, own, *given, batch=1)
            constant = np.asarray(found, np.float64).reshape(-1)
        sources: dict[str, Any] = {}
        for i, value in enumerate(values):
            matrix = _response(node, own, shapes, i)
            for name, before in value.sources.items():
                found = before if matrix is None else matrix @ before
                sources[name] = sources[name] + found if name in sources else found
        return _Sum(sources, constant)


def _response(node: Node, own, shapes: list, i: int) -> sparse.csr_array | None:
    """What a wire makes of its signal `i`, `[places out, places in]`; None: itself."""
    role, name, shape = node.role, node.role.primitive.name, shapes[i]
    size, out = math.prod(shape), math.prod(node.image_shape)
    plain = shape == node.image_shape
    signals = [k for k, held in enumerate(role.operands) if held is None]
    if name == "neg" or (name == "sub" and plain and signals[i] == 1):
        return -sparse.eye_array(size, format="csr")
    if plain and name in ("add", "add_any", "copy", "sub"):
        return None
    if plain and name in ("mul", "div"):
        ones = apply_wire(node, own, jnp.ones(shape), batch=1)
        each = np.asarray(ones, np.float64).reshape(-1)
        return _matrix(each, np.arange(size), np.arange(size), (size, size))
    if name in ("reshape", "squeeze", "expand_dims"):
        return None
    if name in ("reduce_sum", "reduce_window_sum"):
        pairs = list(windows(_windows_of(node, shape)))
        sources, targets = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return _matrix(np.ones(len(sources)), targets, sources, (out, size))
    if name in _MOVES:
        arguments, signal = [], 0
        for held in role.operands:
            if held is None:
                places = jnp.arange(math.prod(shapes[signal]), dtype=jnp.int32)
                places = places if signal == i else jnp.full_like(places, -1)
                arguments.append(places.reshape(shapes[signal]))
                signal += 1
                continue
            value = own[held.index] if isinstance(held, Operand) else held.value
            value = jnp.asarray(value)
            if jnp.issubdtype(value.dtype, jnp.inexact):
                value = jnp.full(value.shape, -1, jnp.int32)
            arguments.append(value)
        found = role.primitive.bind(*arguments, **at_batch(role.params, 1))
        sources = np.asarray(found).reshape(-1)
        targets = np.flatnonzero(sources >= 0)
        return _matrix(np.ones(len(targets)), targets, sources[targets], (out, size))
    if size * out > 2**24:
        raise ValueError(
            f"{node.name}: {name} from {size:,} to {out:,} places has no integer form "
            "of a reasonable size; use a smaller map, or a convolution"
        )

    def respond(change):
        given = [jnp.zeros(s) if k != i else change for k, s in enumerate(shapes)]
        return apply_wire(node, own, *given, batch=1, linear=True)

    found = jax.vmap(respond)(jnp.eye(size).reshape(size, *shape))
    return sparse.csr_array(np.asarray(found, np.float64).reshape(size, out).T)


def _readers(graph: Graph) -> dict[str, int]:
    """How many parts read each node through wires."""
    found: dict[str, set[str]] = {node.name: set() for node in graph.nodes}
    for i, name in enumerate(graph.outputs):
        found[name].add(f"output{i}")
    for node in reversed(graph.nodes):
        wire = isinstance(node.role, Wire)
        for name in node.inputs:
            found[name] |= found[node.name] if wire else {node.name}
    return {name: len(readers) for name, readers in found.items()}


_MOVES = ("transpose", "broadcast_in_dim", "slice", "rev", "pad", "concatenate") + (
    "dynamic_slice", "gather", "select_n", "split",
)  # fmt: skip


def _matrix(data, rows, columns, shape) -> sparse.csr_array:
    found = sparse.csr_array((data, (rows, columns)), shape=shape)
    found.eliminate_zeros()
    found.sort_indices()
    return found


def _places(shape, order) -> np.ndarray:
    """For each place of a part, the node's."""
    return np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(-1)


def _rounded(value: np.ndarray, width: int) -> np.ndarray:
    """As whole numbers `[places, channels]`, or `[1, channels]` where all are alike."""
    whole = np.rint(value).clip(-(2**62), 2**62).astype(np.int64).reshape(-1, width)
    return whole[:1] if (whole == whole[:1]).all() else whole


def _common(found: dict[str, sparse.csr_array], group, units) -> np.ndarray:
    """A unit for each group of places, of which all that arrives there is a multiple.

    The coarsest of which all are multiples to 0.2 %, or the 256th part of the least.
    """
    count = int(group.max()) + 1
    which, what = [np.zeros(0, int)], [np.zeros(0)]
    for name, matrix in found.items():
        parts = matrix.tocoo()
        what.append(np.abs(parts.data) * units[name][parts.col])
        which.append(group[parts.row])
    where, charges = np.concatenate(which), np.concatenate(what)
    least = np.full(count, np.inf)
    np.minimum.at(least, where, charges)
    pairs = np.stack([where, np.round(charges / least[where], 6)])
    where, ratio = np.unique(pairs, axis=1) if pairs.size else pairs
    where = where.astype(int)
    parts = np.zeros(count)
    for divisor in range(1, 257):
        wrong = np.zeros(count)
        exact = divisor * ratio
        np.maximum.at(wrong, where, np.abs(np.rint(exact) / exact - 1))
        fits = (parts == 0) & ((wrong < 2e-3) | (divisor == 256))
        parts[fits] = divisor
        if parts.all():
            break
    return np.where(np.isinf(least), 1.0, least) / parts


def _spread_units(matrix: sparse.csr_array, kernel: np.ndarray, group: np.ndarray):
    """How a synapse's units follow from those of a part that it reaches.

    None if one channel reaches several units, or is weighed unevenly by the wires.
    """
    width, parts = kernel.shape[-1], matrix.tocoo()
    channel, factor = parts.col % width, np.abs(parts.data)
    low, high = np.full(width, np.inf), np.zeros(width)
    first, last = np.full(width, len(group)), np.full(width, -1)
    np.minimum.at(low, channel, factor)
    np.maximum.at(high, channel, factor)
    np.minimum.at(first, channel, group[parts.row])
    np.maximum.at(last, channel, group[parts.row])
    used = high > 0
    if (first[used] != last[used]).any() or (low[used] < high[used] * 0.999999).any():
        return None

    def units(unit: np.ndarray) -> np.ndarray:
        found = np.full(width, unit.max())
        found[used] = unit[first[used]] / high[used]
        return found

    return units


def _windows_of(node: Node, shape) -> tuple[Axis, ...]:
    """The axes of a maximum or a sum over windows or axes."""
    params = at_batch(node.role.params, 1)
    if "axes" in params:
        axes = [i % len(shape) for i in params["axes"]]
        return tuple(Axis(n, 1, n) if i in axes else Axis(n, n)
                     for i, n in enumerate(shape))  # fmt: skip
    rows = zip(
        shape, node.image_shape, params["window_dimensions"], params["window_strides"],
        params["padding"], params["base_dilation"], params["window_dilation"],
        strict=True,
    )  # fmt: skip
    return tuple(
        Axis(n, m, k, s, low, apart, d) for n, m, k, s, (low, _), apart, d in rows
    )


def _convolution(node: Node, shape, kernel: np.ndarray):
    """`(order of the input, of the output, axes, groups, kernel [taps, in, out])`."""
    params = at_batch(node.role.params, 1)
    data, weights, out = params["dimension_numbers"]
    rows = zip(
        data[2:], weights[2:], out[2:], params["window_strides"], params["padding"],
        params["lhs_dilation"], params["rhs_dilation"], strict=True,
    )  # fmt: skip
    axes = [Axis(shape[data[0]], shape[data[0]])]
    for i, k, o, stride, (low, _), apart, dilation in rows:
        sizes = shape[i], node.image_shape[o], kernel.shape[k]
        axes.append(Axis(*sizes, stride, low, apart, dilation))
    kernel = kernel.transpose(*weights[2:], weights[1], weights[0])
    kernel = kernel.reshape(-1, *kernel.shape[-2:])
    groups = params["feature_group_count"]
    order, out_order = ([spec[0], *spec[2:], spec[1]] for spec in (data, out))
    return order, out_order, _merged(axes), groups, kernel


def _product(node: Node, shape, kernel: np.ndarray):
    """As `_convolution`, of a product: a kernel of one tap."""
    role = node.role
    (left, right), (left_batch, right_batch) = role.params["dimension_numbers"]
    own, other = (left, left_batch), (right, right_batch)
    (sums, many), (rows, each) = (own, other) if role.data == 0 else (other, own)
    free = [i for i in range(len(shape)) if i not in (*sums, *many)]
    outs = [i for i in range(kernel.ndim) if i not in (*rows, *each)]
    kernel = kernel.transpose(*rows, *each, *outs)
    groups = math.prod(shape[i] for i in many)
    kernel = kernel.reshape(1, math.prod(shape[i] for i in sums), -1)
    start = len(many)
    first, second = (free, outs) if role.data == 0 else (outs, free)
    one = list(range(start, start + len(first)))
    two = list(range(start + len(first), start + len(first) + len(second)))
    places, features = (one, two) if role.data == 0 else (two, one)
    out_order = [*places, *range(start), *features]
    axes = [Axis(shape[i], shape[i]) for i in free]
    return [*free, *many, *sums], out_order, _merged(axes), groups, kernel


def _merged(axes: list[Axis]) -> tuple[Axis, ...]:
    """Axes along which nothing happens, as one."""
    found: list[Axis] = []
    for axis in axes:
        plain = axis == Axis(axis.size, axis.size)
        if plain and axis.size == 1:
            continue
        if plain and found and found[-1] == Axis(found[-1].size, found[-1].size):
            size = found.pop().size * axis.size
            axis = Axis(size, size)
        found.append(axis)
    return tuple(found) or (Axis(1, 1),)

"""Which functions of signals become one population, and which a product.

Every equation that is not affine has been followed as a wire of its own. One population
stands for all that lies between such an equation and the nearest single signal that it
is a function of: a LayerNorm, a softmax, a GELU, the two halves of a gated linear unit.
Nothing is looked for behind synapses and products. What has no such signal is a product
of two, which spikes reach: populations that stand for the signal itself lead to it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxburst.graph import (
    Constant,
    Graph,
    Input,
    Neuron,
    Node,
    Operand,
    Pool,
    Product,
    Synapse,
    Wire,
    routes,
)
from jaxburst.network import Aside, Refused
from jaxburst.tracing.following import AT_END, ROUNDS, Follower
from jaxburst.tracing.program import Signal

_DRIVE = "drive"
_ENDS = frozenset("exp exp2 log log1p logistic tanh erf_inv".split())
_HEADS = AT_END | _ENDS
_AFTER_HEAD = frozenset(
    """max min sub add div mul neg reduce_sum reduce_max not broadcast_in_dim reshape
    convert_element_type select_n squeeze eq ne gt ge lt le transpose slice copy
    concatenate and or is_finite""".split()
)
_SCALES = ("mul", "div", "add", "sub", "neg", "add_any")
_MOVES = ("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "slice")
_KINDS = (  # of functions that JAX does not call by a name
    ("gelu", {"erf"}),
    ("gelu", {"erfc"}),
    ("gelu", {"tanh", "integer_pow"}),
    ("softmax", {"exp", "reduce_sum", "div"}),
    ("norm", {"rsqrt"}),
    ("norm", {"sqrt"}),
    ("sigmoid", {"logistic"}),
    ("tanh", {"tanh"}),
    ("exp", {"exp"}),
)


def grouped(follower: Follower, found: list) -> tuple[Graph, dict[int, Aside]]:
    """The graph of what was followed, and what is set aside behind its outputs.

    Args:
      follower: has followed the function.
      found: its results.

    Raises:
      Refused: for what is a function of several signals and no product, and for
        outputs that depend on no input.
    """
    groups = _Groups(follower)
    outputs, aside = [], {}
    for i, value in enumerate(found):
        if not isinstance(value, Signal):
            raise Refused(
                f"output {i} does not depend on the inputs; leave it out of what the "
                "function returns"
            )
        name, what = groups.peeled(value.name)
        outputs.append(name)
        if what:
            aside[i] = Aside(what, groups.behind(name, value.name))
    return _with_identities(groups.graph(outputs), follower), aside


class _Groups:
    """Nodes, and of each the nearest signal that it is a function of.

    Attributes:
      nodes: in order; products have been made.
      above: the nearest node through which all ways to a node lead; None if there is
        none, as of inputs, synapses and products.
      other: whether a node is computed by something that is not affine, with no
        population between.
    """

    def __init__(self, follower: Follower):
        self.follower = follower
        self.nodes: dict[str, Node] = {}
        self.above: dict[str, str | None] = {}
        self.depth: dict[str, int] = {}
        self.order: dict[str, int] = {}
        self.other: dict[str, bool] = {}
        self.users: dict[str, set[str]] = {}
        self.turned: dict[str, Node] = {}  # of the negative that is an output instead
        for node in follower.nodes.values():
            self.add(node)

    def add(self, node: Node) -> None:
        role, name = node.role, node.name
        above = None
        if not isinstance(role, Input | Synapse):
            above = self.common(node.inputs)
        own = isinstance(role, Wire) and not role.affine
        own = own and name not in self.follower.fronts
        if own and (above is None or _contracts(node, self.nodes)):
            node, above, own = self.product(node), None, False
        soft = isinstance(node.role, Wire | Pool | Neuron)
        other = own or (soft and any(self.other[one] for one in node.inputs))
        self.order[name] = len(self.order)
        self.nodes[name], self.above[name], self.other[name] = node, above, other
        self.depth[name] = 1 + (self.depth[above] if above is not None else 0)
        for one in node.inputs:
            self.users.setdefault(one, set()).add(name)

    def common(self, names) -> str | None:
        """The nearest node through which all ways to some nodes lead."""
        first, *others = dict.fromkeys(names)
        for other in others:
            while first != other:
                if first is None or other is None:
                    return None
                if self.depth[first] >= self.depth[other]:
                    first = self.above[first]
                else:
                    other = self.above[other]
        return first

    def product(self, node: Node) -> Node:
        name, inputs = node.role.primitive.name, node.inputs
        if name == "div":
            new = f"{node.name}/reciprocal"
            role = Wire(lax.integer_pow_p, {"y": -1}, (None,), affine=False)
            before = self.nodes[inputs[1]]
            self.follower.places[new] = self.follower.places[node.name]
            self.add(Node(new, role, (inputs[1],), before.shape, node.source))
            role = Product(lax.mul_p, {})
            return dataclasses.replace(node, role=role, inputs=(inputs[0], new))
        if name not in ("mul", "dot_general", "conv_general_dilated"):
            self.refuse(
                node,
                "is a function of several signals that is no product; only sums, "
                "maxima and products of signals have a spiking meaning",
            )
        role = Product(node.role.primitive, node.role.params)
        return dataclasses.replace(node, role=role)

    def refuse(self, node: Node, why: str):
        signals = [Signal(one) for one in node.inputs]
        self.follower.refuse(why, signals, self.follower.places[node.name])

    def is_function(self, name: str) -> bool:
        """Whether a node is not affine in what it reads, and no product."""
        role = self.nodes[name].role
        if isinstance(role, Neuron):
            return self.other[name]
        own = isinstance(role, Wire) and not role.affine
        return own and name not in self.follower.fronts

    def ranks(self, name: str) -> bool:
        """Whether a node says which signal is the largest; of truths, as `jnp.select`
        does, it is a function like others."""
        node = self.nodes[name]
        return _primitive(node) in AT_END and node.inputs[0] not in self.follower.kinds

    def drive(self, name: str) -> str:
        """The nearest affine signal above a node, or the last one above at all."""
        while (above := self.above[name]) is not None:
            name = above
            if not self.other[name]:
                break
        return name

    def between(self, drive: str, name: str) -> dict[str, Node]:
        """The nodes on the ways from one to another, in order, the last included."""
        found, queue = set(), [name]
        while queue:
            one = queue.pop()
            if one != drive and one not in found:
                found.add(one)
                queue += self.nodes[one].inputs
        return {
            one: self.nodes[one] for one in sorted(found, key=self.order.__getitem__)
        }

    def further(self, drive: str, inside) -> str:
        """A signal further up, if ReLUs and maxima on the way lead nowhere else."""
        best, passed, one = drive, set(), self.above[drive]
        while one is not None and not self.other[drive]:
            ways = self.between(one, drive)
            if not all(self.users[way] <= {*ways, *inside} for way in ways):
                break
            if any(
                isinstance(node.role, Neuron | Pool)
                for way, node in ways.items()
                if way not in passed
            ):
                best, passed = one, set(ways)
            one = self.above[one]
        return best

    # What is set aside.

    def peeled(self, name: str) -> tuple[str, str]:
        """The signal that an output is a function of, if it ends in a softmax or the
        like, and what that is.

        A softmax subtracts the maximum of its logits first: they are what is meant.
        """
        what = ""
        while self.other[name]:
            drive, kind = self.head(name)
            if not kind:
                drive, kind = self.moved(name)
            if not kind:
                break
            name, what = drive, what or kind
        return name, what

    def moved(self, name: str) -> tuple[str, str]:
        """The same of what is moved behind its softmax: the signal moves alike.

        Of a softmax all classes; one of them says nothing without the others.
        """
        node = self.nodes[name]
        if _primitive(node) not in (*_MOVES, "gather", "dynamic_slice", "rev"):
            return name, ""
        (before,) = node.inputs
        drive, what = self.peeled(before)
        ways = self.between(drive, before).values()
        apart = all(_primitive(way) != "reduce_sum" for way in ways)
        if not (apart or _count(node) == _count(self.nodes[before])):
            return name, ""
        if not what or self.nodes[drive].shape != self.nodes[before].shape:
            return name, ""
        new = f"{name}/set aside"
        self.follower.places[new] = self.follower.places[name]
        self.add(dataclasses.replace(node, name=new, inputs=(drive,)))
        return new, what

    def head(self, name: str) -> tuple[str, str]:
        """The nearest signal that a node is a softmax or the like of, and which."""
        drive = self.above[name]
        while drive is not None:
            inside = self.between(drive, name)
            kinds = {one: _primitive(node) for one, node in inside.items()}
            heads = [one for one in inside if self.ranks(one) or kinds[one] in _ENDS]
            if heads:
                break
            drive = self.above[drive]
        else:
            return name, ""
        held = [o for n in inside.values() for o in getattr(n.role, "operands", ())]
        fits = all(kind in _HEADS | _AFTER_HEAD or not kind for kind in kinds.values())
        fits = fits and not any(isinstance(one, Operand) for one in held)
        shapes = {self.nodes[one].shape for one in (drive, name)}
        fits = fits and (len(shapes) == 1 or AT_END.intersection(kinds.values()))
        logs = {"log", "reduce_sum"} <= set(kinds.values())
        if not fits or any(self.gates(node, drive, logs) for node in inside.values()):
            return name, ""
        falling = self.falling(drive, inside)[name]
        kind = kinds[heads[0]]
        if kind == "exp" and "div" in kinds.values():
            kind = "softmax" if "reduce_sum" in kinds.values() else "logistic"
        elif kind == "exp" and "log" in kinds.values():
            kind = "log_softmax"
        kind = {"logistic": "sigmoid"}.get(kind, kind)
        what = self.follower.places[heads[0]].call or kind
        before, node = self.above[drive], self.nodes[drive]
        if _primitive(node) == "sub" and before in node.inputs:  # its maximum
            ways = self.between(before, drive).values()
            if any(isinstance(way.role, Pool) for way in ways):
                drive = before
        if not falling:
            return drive, what
        if _primitive(node) == "neg":
            return node.inputs[0], what
        new, role = f"{drive}/neg", Wire(lax.neg_p, {}, (None,))
        self.add(Node(new, role, (drive,), node.shape, node.source))
        self.turned[drive] = dataclasses.replace(node, role=role, inputs=(new,))
        return new, what

    def behind(self, start: str, end: str) -> Graph | None:
        """What is set aside, a function of the output; None if it is no such function,
        as where places have been moved."""
        found, queue = {}, [end]
        while queue:
            name = queue.pop()
            node = self.turned.get(name, self.nodes[name])
            held = getattr(node.role, "operands", ())
            if name == start or name in found:
                continue
            if not node.inputs or any(isinstance(one, Operand) for one in held):
                return None
            if self.ranks(name):
                return None  # places cannot be compared
            found[name] = node
            queue += node.inputs
        order = sorted(found, key=self.order.__getitem__)
        return self.function(start, [found[name] for name in order])

    def function(self, drive: str, nodes: list[Node]) -> Graph:
        """The graph of what the last of some nodes is of their drive."""
        dtype = str(jnp.dtype(self.follower.dtype))
        start = Node(_DRIVE, Input(dtype), (), self.nodes[drive].shape)
        inner = [
            dataclasses.replace(
                one, inputs=tuple(_DRIVE if n == drive else n for n in one.inputs)
            )
            for one in nodes
        ]
        return Graph((start, *inner), (nodes[-1].name,))

    def gates(self, node: Node, drive: str, logs: bool) -> bool:
        """Whether a node multiplies two signals, as SiLU does, `x sigmoid(x)`, or adds
        them and is no logarithm of a softmax, which is a difference of two."""
        two, kind = len(node.inputs) == 2, _primitive(node)
        if kind == "div":
            return two and node.inputs[0] == drive
        return two and (kind == "mul" or kind in ("add", "add_any", "sub") and not logs)

    def falling(self, drive: str, inside: dict[str, Node]) -> dict[str, bool]:
        """Whether nodes fall where the drive rises."""
        found = {drive: False}
        for name, node in inside.items():
            kind, turns = _primitive(node), _primitive(node) == "neg"
            held = [
                o.value for o in getattr(node.role, "operands", ()) if o is not None
            ]
            if kind in ("sub", "div"):
                turns = node.role.operands[0] is not None
            if kind in ("mul", "div") and held and (held[0] < 0).all():
                turns = not turns
            found[name] = found[node.inputs[0]] != turns
        return found

    # The graph.

    def graph(self, outputs: list[str]) -> Graph:
        ends, tails = set(outputs), {}
        for name, node in self.nodes.items():  # scales and shifts behind a function
            role = node.role
            if not isinstance(role, Wire) or len(node.inputs) != 1:
                continue
            (before,) = node.inputs
            scales = role.affine and role.primitive.name in _SCALES
            scales = scales and node.shape == self.nodes[before].shape
            if scales and (before in tails or self.is_function(before)):
                if self.users[before] == {name} and before not in ends:
                    tails[name] = tails.get(before, before)
        wanted, found = set(outputs), []
        for name in reversed(self.nodes):
            node = self.nodes[name]
            if name in wanted and (name in tails or self.is_function(name)):
                node = self.population(name, tails.get(name, name))
                found.append(node)
            elif name in wanted or isinstance(node.role, Input):
                found.append(node)
            else:
                continue
            wanted.update(node.inputs)
        return _renamed(Graph(tuple(found[::-1]), tuple(outputs)), self)

    def population(self, name: str, function: str) -> Node:
        """The population of all between a node and the signal it is a function of."""
        drive = self.drive(function)
        inside = self.between(drive, name)
        drive = self.further(drive, inside)
        inside = self.between(drive, name)
        node, role = self.nodes[name], self.nodes[function].role
        if name in self.follower.kinds:
            kind = self.follower.kinds[name]
            self.refuse(node, f"gives {kind}, which no population can send")
        if isinstance(role, Wire) and role.primitive.name == "sign":
            self.refuse(self.nodes[function], ROUNDS)
        for one in inside.values():
            if self.ranks(one.name):
                self.refuse(one, "has a spiking meaning at the end of a network only")
        if list(inside) == [name] and isinstance(node.role, Neuron):
            return node
        role = Neuron(None, self.function(drive, [*inside.values()]))
        return dataclasses.replace(node, role=role, inputs=(drive,))

    def label(self, node: Node) -> str:
        """The name of a population: where it stands, and which function it is."""
        inside = node.role.function.nodes[1:]
        kinds = [n.role.primitive.name for n in inside if isinstance(n.role, Wire)]
        places = [self.follower.places[n.name] for n in inside]
        calls = [p.call for p in places[::-1] if p.call and hasattr(jax.nn, p.call)]
        calls = [call for call in calls if not call.startswith("relu")]
        known = [name for name, holds in _KINDS if holds <= set(kinds)]
        return places[-1].named([*calls, *known, *kinds[::-1], "function"][0])


def _primitive(node: Node) -> str:
    """The name of a wire's primitive; none of other roles."""
    return node.role.primitive.name if isinstance(node.role, Wire) else ""


def _count(node: Node) -> int:
    return math.prod(node.image_shape)


def _contracts(node: Node, nodes: dict[str, Node]) -> bool:
    """Whether a product of two signals sums over what both have, and each has more."""
    if len(node.inputs) < 2:
        return False
    if node.role.primitive.name == "conv_general_dilated":
        return True
    if node.role.primitive.name != "dot_general":
        return False
    contracted, batched = node.role.params["dimension_numbers"]
    ranks = [len(nodes[name].shape) for name in node.inputs]
    sides = zip(ranks, contracted, batched, strict=True)
    return all(rank > len(c) + len(b) for rank, c, b in sides)


def _renamed(graph: Graph, groups: _Groups) -> Graph:
    """Populations of functions under names of their own."""
    names: dict[str, str] = {}
    for node in graph.of(Neuron):
        if node.role.function is not None:
            taken = {*groups.nodes, *names.values()}
            names[node.name] = _fresh(groups.label(node), taken)

    def of(name: str) -> str:
        return names.get(name, name)

    nodes = [
        dataclasses.replace(n, name=of(n.name), inputs=tuple(map(of, n.inputs)))
        for n in graph.nodes
    ]
    return Graph(tuple(nodes), tuple(map(of, graph.outputs)))


def _fresh(base: str, taken: set[str]) -> str:
    """A name with the first number that is free."""
    names = (f"{base}{i}" for i in itertools.count())
    return next(name for name in names if name not in taken)


def _with_identities(graph: Graph, follower: Follower) -> Graph:
    """Populations that stand for a signal itself, where a charge would be multiplied.

    They are put before products whose operands are no spikes, and behind products that
    reach a synapse.
    """
    products = graph.of(Product)
    if not products:
        return graph
    spikes, behind = routes(graph), set()
    for node in products:
        for name in node.inputs:
            if name in graph.dynamic and name not in spikes:
                behind.add(_start(graph, name))
    for node in graph.of(Synapse):
        queue = list(node.inputs)
        while queue:
            before = graph[queue.pop()]
            if isinstance(before.role, Product) and before.name in graph.dynamic:
                behind.add(before.name)
            elif isinstance(before.role, Wire):
                queue += before.inputs
    nodes: list[Node] = []
    taken, new = {node.name for node in graph.weighing}, {}
    for name in sorted(behind):
        base = follower.places[name].named("identity")
        new[name] = _fresh(base, {*taken, *new.values()})
    for node in graph.nodes:
        inputs = tuple(new.get(name, name) for name in node.inputs)
        nodes.append(dataclasses.replace(node, inputs=inputs))
        if node.name in behind:
            drive = Node(_DRIVE, Input(str(follower.dtype)), (), node.shape)
            role = Neuron(None, Graph((drive,), (_DRIVE,)))
            nodes.append(
                Node(new[node.name], role, (node.name,), node.shape, node.source)
            )
    return Graph(tuple(nodes), graph.outputs)


def _start(graph: Graph, name: str) -> str:
    """Where a signal comes from that is only moved or scaled on the way."""
    node = graph[name]
    while isinstance(node.role, Wire) and len(node.inputs) == 1:
        role = node.role
        kind, held = role.primitive.name, [o for o in role.operands if o is not None]
        scales = kind in ("mul", "div") and role.operands[0] is None
        scales = scales and isinstance(held[0], Constant) and held[0].value.size == 1
        if not (kind in _MOVES or (scales and held[0].value.item() > 0)):
            break
        node = graph[node.inputs[0]]
    return node.name

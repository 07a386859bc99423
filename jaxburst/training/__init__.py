"""Training of any Flax module: one jitted step, runs that can be resumed.

    recipe = Recipe(epochs=100, warmup_epochs=1)
    variables, history = fit(module, dataset.train, recipe, directory="runs/vgg16")
    variables = restore(module, "runs/vgg16")

The same call with `resume=True` continues where a run ended.
"""

from jaxburst.training.recipe import LI2022, PRECISIONS, Recipe, schedule
from jaxburst.training.trainer import accuracy, fit, record, restore

__all__ = [
    "LI2022",
    "PRECISIONS",
    "Recipe",
    "accuracy",
    "fit",
    "record",
    "restore",
    "schedule",
]

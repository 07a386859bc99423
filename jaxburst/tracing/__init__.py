"""From any JAX function to a graph: `trace`."""

from jaxburst.tracing.functions import trace

__all__ = ["trace"]

"""All that is measured, and all that is wanted of it."""

from benchmarks.channels import CHANNEL_TARGETS, CHANNEL_TASKS
from benchmarks.indexed import INDEX_TARGETS, INDEX_TASKS
from benchmarks.polygons import POLYGON_TARGETS, POLYGON_TASKS
from benchmarks.targets import TARGETS as OTHER_TARGETS
from benchmarks.tasks import FRESH, WARM
from benchmarks.tiles import PASSES, TILE_TARGETS, TILE_TASKS
from benchmarks.training import TRAINING_TARGETS, TRAINING_TASKS
from benchmarks.writing import WRITING_TARGETS, WRITING_TASKS

__all__ = ["PASSES", "TARGETS", "TASKS"]

TASKS = (
    *WARM,
    *TILE_TASKS,
    *TRAINING_TASKS,
    *WRITING_TASKS,
    *POLYGON_TASKS,
    *CHANNEL_TASKS,
    *INDEX_TASKS,
    *FRESH,
)
TARGETS = (
    *TILE_TARGETS,
    *TRAINING_TARGETS,
    *WRITING_TARGETS,
    *POLYGON_TARGETS,
    *CHANNEL_TARGETS,
    *INDEX_TARGETS,
    *OTHER_TARGETS,
)

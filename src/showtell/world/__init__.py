"""The world: scenes as symbols, and everything computed from them exactly: pictures, language, motion. Numpy only."""

from showtell.world.draw import draw
from showtell.world.sampling import sample
from showtell.world.scene import Motion, Relation, Scene, SceneError, SceneObject, holds

__all__ = ["Motion", "Relation", "Scene", "SceneError", "SceneObject", "draw", "holds", "sample"]

"""A recipe whose work dies, really, of the video `deadly`; in a module of its own that a process can import."""

from __future__ import annotations

import ctypes

from jmt_fast.inference import Recipe
from jmt_fast.inference.collection import Done, Task
from jmt_fast.inference.workers import Told, Work


class DeadlyRecipe(Recipe):
    def __call__(self, place: int) -> Work:
        work = super().__call__(place)

        def do(task: Task, told: Told) -> Done:
            if task.video.stem == "deadly":
                ctypes.string_at(0)
            return work(task, told)

        return do

"""Shelf: models that stay open, the least recently used put away when memory asks for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.run.machine import free_memory

if TYPE_CHECKING:
    from interp.terms import HookedModel

SHARE = 0.5
"""Part of the memory that is free at the start that open models may take together."""

WIDTH = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class Shelf:
    """Open models by source, backend, device and dtype.

    Args:
        budget: bytes the models may take together; default half of what is free.
        load: how a model is opened; default ``interp.models.load_model``.
    """

    def __init__(
        self,
        budget: int | None = None,
        load: Callable[..., HookedModel] | None = None,
    ) -> None:
        self.budget = int(free_memory() * SHARE) if budget is None else budget
        self._load = load
        self._held: OrderedDict[tuple[Any, ...], tuple[HookedModel, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(
        self,
        ref: str,
        *,
        backend: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        **options: Any,
    ) -> HookedModel:
        """The model, opened if it is not; others are put away when it would not fit beside them.

        A local folder whose files have changed since is opened again.
        """
        key = (str(ref), backend, device, dtype, _marks(ref), tuple(sorted(options.items())))
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key][0]
        load = self._load
        if load is None:
            from interp.models import load_model as load
        said = {"backend": backend} if backend else {}
        model = load(str(ref), device=device, dtype=dtype, **said, **options)
        size = int(getattr(model.shape, "n_params", 0)) * WIDTH.get(dtype, 4)
        self._put_away(size)
        self._held[key] = (model, size)
        return model

    def _put_away(self, coming: int) -> None:
        while self._held and coming + sum(s for _, s in self._held.values()) > self.budget:
            self._held.popitem(last=False)

    def clear(self) -> None:
        """Put everything away."""
        self._held.clear()


def _marks(ref: str) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a local folder's files: a folder that changes is another model."""
    folder = Path(str(ref))
    if str(ref).startswith("zoo:") or not folder.is_dir():
        return ()
    found = []
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json")):
        status = path.stat()
        found.append((path.name, status.st_size, status.st_mtime_ns))
    return tuple(found)

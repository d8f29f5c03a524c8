"""Where batches come from: global batch ``step`` of ``epoch`` as a pure function, and each rank's share of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from accel_train import keyed
from accel_train.contents import Contents
from accel_train.task import Batch, BatchSource

if TYPE_CHECKING:
    from accel_train.data.held import Held


class IndexedSource(BatchSource):
    """Batches of items that can be read in any order.

    Args:
        data: has ``read(indices)``, one batch of these items (int64), called from several threads at once; and
            ``len(data)`` items, unless ``endless``. It may have ``fingerprint()``, as ``BatchSource`` has it; otherwise
            it is known again by the arrays that it holds.
        batch_size: items of one *global* batch. The last batch of an epoch may be shorter.
        shuffle: a permutation drawn from (seed, epoch); otherwise the items in order.
        endless: ``data`` has no length: item i of the run is item i of the data, and there is one epoch.
    """

    data: Any
    batch_size: int
    seed: int
    shuffle: bool
    endless: bool
    _held: Held | None = None

    def __init__(self, data: Any, batch_size: int, seed: int = 0, shuffle: bool = True, endless: bool = False) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.shuffle, self.endless = shuffle and not endless, endless
        self._order: tuple[int, np.ndarray] | None = None

    def content_hashes(self) -> Contents | None:
        own = getattr(self.data, "contents", None)
        return own if isinstance(own, Contents) else self._known_by().contents

    def _known_by(self) -> Held:
        """The arrays of the data, if these do not say themselves what they are."""
        if self._held is None:
            from accel_train.data.held import Held

            says = callable(getattr(self.data, "fingerprint", None))
            self._held = Held(None if says else self.data, None if self.endless else len(self.data))
        return self._held

    def steps(self, epoch: int) -> int | None:
        return None if self.endless else -(-len(self.data) // self.batch_size)

    def indices(self, epoch: int, step: int) -> np.ndarray:
        """The items of one global batch, in order."""
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        if not self.endless:
            stop = min(stop, len(self.data))
        if not self.shuffle:
            return np.arange(start, stop, dtype=np.int64)
        return self._permutation(epoch)[start:stop]

    def batch(self, epoch: int, step: int, rank: int, world_size: int) -> Batch | None:
        share = self.share(epoch, step, rank, world_size)
        if not len(share):
            return None
        batch = self.data.read(share)
        self._look_at(share)
        return batch

    def _look_at(self, items: np.ndarray) -> None:
        """These have been read: what the arrays of the data hold for them."""
        if self._held is not None:
            self._held.look_at(items)

    def share(self, epoch: int, step: int, rank: int, world_size: int) -> np.ndarray:
        """This rank's items of one global batch, in order."""
        indices = self.indices(epoch, step)
        return indices[part(len(indices), rank, world_size)]

    def item_names(self, batch: Batch) -> list[str]:
        """By the data's own ``item_names``, if they have it."""
        return self.data.item_names(batch) if hasattr(self.data, "item_names") else []

    def fingerprint(self) -> dict[str, Any]:
        items = {} if self.endless else {"items": len(self.data)}
        own = getattr(self.data, "fingerprint", None)
        if callable(own):
            said = own()
            return items | (said if isinstance(said, dict) else {"fingerprint": said})
        held = self._known_by()
        return items | held.fingerprint() | ({"unknown": held.unknown} if held.unknown else {})

    def _permutation(self, epoch: int) -> np.ndarray:
        cached = self._order  # one read: another thread may replace it
        if cached is None or cached[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=keyed.key(self.seed, "order", epoch)))
            cached = self._order = (epoch, generator.permutation(len(self.data)))
        return cached[1]

    def describe(self, epoch: int, step: int) -> str:
        indices = self.indices(epoch, step)
        shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
        return f"epoch {epoch}, batch {step}, {len(indices)} items: {shown}"


def part(items: int, rank: int, world_size: int) -> slice:
    """Which of the items of a global batch are this rank's."""
    return slice(items * rank // world_size, items * (rank + 1) // world_size)


def described(value: Any) -> str:
    """What a value is, in a few words."""
    from torch import Tensor

    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"a tensor of type {kind} and shape {tuple(value.shape)}"
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return repr(value)[:60]
    if isinstance(value, dict) and value:
        return "a dict with " + ", ".join(f"{name!r}: {described(sub)}" for name, sub in list(value.items())[:2])
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of length {len(value)}"
    module, name = type(value).__module__.split(".")[0], type(value).__name__
    what = name if module == "builtins" else f"{module} {name}"
    return f"{'an' if what[0].lower() in 'aeiou' else 'a'} {what}"

"""The tasks of the package, small, in either precision."""

from __future__ import annotations

from typing import Any

from accel_train.tasks.collatz.task import CollatzTask
from accel_train.tasks.gdynet.task import GDyNetTask
from accel_train.tasks.muon.task import MuonTask
from accel_train.tasks.sherlock.task import SherlockTask
from accel_train.tasks.tcn.task import TCNTask
from support.shots import InMemory, shot
from support.stimuli import Film, FilmItems


class EitherPrecision:
    """For a task: its models in float64 if its attribute of that name says so."""

    float64: bool

    def build_model(self, train):
        models: Any = super().build_model(train)  # pyright: ignore[reportAttributeAccessIssue]
        if not self.float64:
            return models
        return {name: model.double() for name, model in models.items()} if isinstance(models, dict) else models.double()


class Collatz(CollatzTask):
    """The task itself, small."""

    def __init__(self, **options: Any) -> None:
        small: dict[str, Any] = dict(d_model=16, num_layers=1, nhead=2, dim_feedforward=32, max_len=96, prefix=32)
        super().__init__(**small | options)


class Muon(EitherPrecision, MuonTask):
    """The task itself, small, in either precision."""

    def __init__(self, float64: bool = False, **options: Any) -> None:
        small: dict[str, Any] = dict(hidden_dim=16, critic_steps=2, held_out=0.0, lanes=4)
        super().__init__(**small | options)
        self.float64 = float64


class GDyNet(EitherPrecision, GDyNetTask):
    """The task itself, small, in either precision."""

    def __init__(self, float64: bool = False, **options: Any) -> None:
        small: dict[str, Any] = dict(atom_fea_len=6, n_conv=2, state_len=3, num_gaussians=8, tau=3, epochs=2)
        super().__init__(**small | options)
        self.float64 = float64


class Disruptions(EitherPrecision, TCNTask):
    """The tcn task, small, on shots in memory, in either precision."""

    def __init__(self, float64: bool = False, data: str = "in memory", **options: Any) -> None:
        small: dict[str, Any] = dict(
            nsub=40, twarn_ms=30.0, levels=2, nhid=4, kernel_size=3, dilation_base=3, nrecept_target=13, dropout=0.0
        )
        super().__init__(data, **small | options)
        self.float64 = float64
        self.memory = InMemory(
            [shot(i, 30.0 + i if i % 2 else None, samples=120, stop=80 + i if i % 2 else 110,
                  split="train" if i < 8 else "validation") for i in range(12)]
        )  # fmt: skip

    @property
    def store(self) -> Any:
        return self.memory


class Brains(EitherPrecision, SherlockTask):
    """The sherlock task, small, on a film in memory, in either precision."""

    def __init__(self, float64: bool = False, data: str = "in memory", **options: Any) -> None:
        small: dict[str, Any] = dict(
            window_trs=3, lags=4, latent=6, encoder_widths=[6], fusion_widths=[8], decoder_widths=[8], subject_rank=2,
            dropout=0.0,
        )  # fmt: skip
        super().__init__(data, **small | options)
        self.float64, self.film = float64, Film()

    @property
    def prepared(self) -> Any:
        return self.film

    def items(self, split: str) -> Any:
        names = [modality.name for modality in self.modalities]
        items = FilmItems(self.film, split, self.window_trs, self.lags, names, self.target == "average")
        return items if len(items) else None

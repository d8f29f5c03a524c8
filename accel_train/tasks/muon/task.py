"""The muon task: sample the muons that an air shower leaves at a depth, given its primary."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import numpy as np

from accel_train.arguments import Count, Range
from accel_train.data.lanes import Shuffle
from accel_train.data.remote.settings import RemoteFiles
from accel_train.data.source import IndexedSource
from accel_train.task import Batch, BatchSource, DataTools, Loss, Objective, Task, Watches
from accel_train.tasks.muon.data import HeldOut

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel_train.data.flat_cache import CachedSource
    from accel_train.data.lanes import LanesSource
    from accel_train.tasks.muon.sources import Sources

FIT_EVENTS = 50_000
"""Events that the normalisation is fitted on: the first that training would see."""
NOT_COMPILED = (
    "its gradient penalty needs a second backward pass, which torch.compile does not have (gradient_penalty=none does "
    "without)"
)


class MuonTask(Task, Watches, DataTools):
    """Conditional WGAN-GP for muon bundles in ragged Parquet files.

    A critic and a generator learn the muons of a bundle given the primary, the depth and how many there are; a
    zero-inflated negative binomial learns how many. Events without muons are the same for both sides of the critic and
    are left to the latter.

    Args:
        files: paths, patterns or URLs (pelican://, s3://, https://) of Parquet or HDF5 files.
        validation_files: held-out files; empty holds out showers of ``files`` instead.
        held_out: share of the showers kept from training, half for validation and half for the test.
        eval_events: held-out events of an evaluation; half of their showers are truth to compare truth with.
        reader: by the extension; ``hf`` reads whatever the datasets library can stream, slowly.
        primary_layout, muon_layout: what the numbers in the columns ``primary`` and ``muons`` are, in order, such as
            "major,minor,E,zenith_deg,mass,depth_km" and "E,r,x,y"; ``auto`` goes by their number and refuses what
            could be read in two ways.
        lanes: row groups that a batch is mixed from; a multiple of the number of ranks.
        shuffle: rows, row_groups, files (needed with ``staging_dir``) or none.
        on_bad_file: stop at data that cannot be read, or leave it out and say so.
        max_muons_per_batch: at most so many muons at once through the networks; changes memory, not results.
        max_muons_per_event: larger events are not trained on, since an event is never cut and needs some 16 kB a muon;
            null trains on all.
        outliers_dir: where those are kept, in files that can be trained on.
        preset: ``default``, or ``legacy``: the networks and constants of the guide that this task replaces, with its
            flaws.
        gradient_penalty: event, one_sided, r1, muon or none; null takes that of the preset (event; legacy: muon).
        lambda_gp: its weight.
        critic_steps: critic updates per generator update.
        latent_dim_global, latent_dim_local: noise per event, and per muon.
        hidden_dim: width of the generator's context.
        max_count: no generated bundle has more muons.
        cache_dir: a folder on local disk for a flat copy of the training events, made once: for many epochs. All events
            are then shuffled together.
        remote: how files behind URLs are reached: federation, tokens, staging to local disk.
    """

    recommended: ClassVar = {
        "optimizer": {"class_path": "Adam", "init_args": {"betas": [0.0, 0.9]}},
        "learning_rate": 1e-4,
        "global_batch_size": 1024,
        "max_grad_norm": None,
        "num_workers": 2,
    }
    """The optimiser is that of WGAN-GP (arXiv 1704.00028). Two reading threads: the speed of a raw scan."""

    file_types = (".parquet", ".pq", ".h5", ".hdf5")
    movable = ("files", "validation_files", "outliers_dir", "remote", "max_muons_per_batch")

    def __init__(
        self,
        files: list[str] | str,
        validation_files: list[str] | str = [],  # noqa: B006 - copied
        held_out: Annotated[float, Range(0, below=1)] = 0.1,
        eval_events: Count = 20_000,
        reader: Literal["auto", "parquet", "hdf5", "hf"] = "auto",
        primary_layout: str = "auto",
        muon_layout: str = "auto",
        lanes: Count = 8,
        shuffle: Shuffle = "rows",
        on_bad_file: Literal["raise", "skip"] = "raise",
        max_muons_per_batch: Count | None = None,
        max_muons_per_event: Count | None = 100_000,
        outliers_dir: str | None = None,
        preset: Literal["default", "legacy"] = "default",
        gradient_penalty: Literal["event", "one_sided", "r1", "muon", "none"] | None = None,
        lambda_gp: Annotated[float, Range(0)] = 10.0,
        critic_steps: Count = 5,
        latent_dim_global: Count = 32,
        latent_dim_local: Count = 16,
        hidden_dim: Count = 256,
        max_count: Count = 1_000_000,
        cache_dir: str | None = None,
        remote: RemoteFiles = RemoteFiles(),  # noqa: B008 - never changed
    ) -> None:
        self.files = [files] if isinstance(files, str) else list(files)
        self.validation_files = [validation_files] if isinstance(validation_files, str) else list(validation_files)
        self.held_out, self.eval_events = held_out, eval_events
        self.primary_layout, self.muon_layout, self.lanes = primary_layout, muon_layout, lanes
        self.reader: Literal["auto", "parquet", "hdf5", "hf"] = reader
        self.shuffle: Shuffle = shuffle
        self.on_bad_file: Literal["raise", "skip"] = on_bad_file
        self.max_muons_per_batch, self.max_muons_per_event = max_muons_per_batch, max_muons_per_event
        self.outliers_dir = outliers_dir
        self.legacy = preset == "legacy"
        self.gradient_penalty = (gradient_penalty or ("muon" if self.legacy else "event")) if lambda_gp else "none"
        self.lambda_gp, self.critic_steps, self.max_count = lambda_gp, critic_steps, max_count
        self.latent_dim_global, self.latent_dim_local, self.hidden_dim = latent_dim_global, latent_dim_local, hidden_dim
        self.cache_dir, self.remote = cache_dir, remote
        self._sources: Sources | None = None
        self.evaluated: HeldOut | None = None

    # -- data ----------------------------------------------------------------------------------------------------------

    def build_data(self, split: str, batch_size: int, seed: int) -> BatchSource | None:
        from accel_train.tasks.muon.sources import Reading, Sources

        if self._sources is None:
            self._sources = Sources(Reading(**{field.name: getattr(self, field.name) for field in fields(Reading)}))
        sources = self._sources
        if split == "train":
            return (sources.cached if self.cache_dir else sources.train)(batch_size, seed)
        if not self.validation_files and self.held_out == 0:
            return None
        self.evaluated = sources.held_out(split)
        return IndexedSource(self.evaluated, batch_size, shuffle=False)

    def size(self, batch: Batch) -> int:
        """Events."""
        return len(batch["counts"])

    def split(self, batch: Batch, limit: int) -> list[Batch]:
        """Cut between events, by events and by muons; what is smaller than both limits stays whole. ``some``: which
        events of a part have muons, int64."""
        import torch

        counts, muons = batch["host_counts"], len(batch["muons"])
        # A limit on events (such as the memory guard's) is one on muons too: a part in ten has a tenth of both.
        most = muons if limit >= len(counts) else -(-muons * limit // len(counts))
        cuts = cut(counts, limit, min(most, self.max_muons_per_batch or most))
        ends = np.concatenate([[0], np.cumsum(counts)])
        parts = []
        for a, b in itertools.pairwise(cuts):
            part = {name: values[a:b] for name, values in batch.items() if name != "muons"}
            some = torch.from_numpy(np.flatnonzero(counts[a:b])).to(batch["counts"].device, non_blocking=True)
            parts.append({**part, "muons": batch["muons"][int(ends[a]) : int(ends[b])], "some": some})
        return parts

    # -- models --------------------------------------------------------------------------------------------------------

    def build_model(self, train: BatchSource | None) -> dict[str, nn.Module]:
        import torch

        from accel_train.tasks.muon.model import Critic, Generator, LegacyCritic, Multiplicity
        from accel_train.tasks.muon.normalise import Fitted, Fixed

        made = Fixed if self.legacy else Fitted
        widths = (made.conditions, made.features)
        models: dict[str, nn.Module] = {
            "multiplicity": Multiplicity(Fitted.conditions),
            "critic": LegacyCritic(*widths) if self.legacy else Critic(*widths),
            "generator": Generator(*widths, self.latent_dim_global, self.latent_dim_local, self.hidden_dim),
        }
        sample = None if train is None else cast("LanesSource | CachedSource", train).first(FIT_EVENTS)
        for name, model in models.items():
            model.normalise = made() if name != "multiplicity" else Fitted()
            if sample is not None:  # read from the beginning, and thus the same on every rank
                primary, muons = sample.rows["primary"], sample.flat["muons"]
                model.normalise.fit(torch.from_numpy(primary), torch.from_numpy(muons))
        return models

    def objectives(self) -> Sequence[Objective]:
        not_compiled = "" if self.gradient_penalty == "none" else NOT_COMPILED
        return (
            Objective("multiplicity", ("multiplicity",)),
            Objective("critic", ("critic",), self.critic_steps, not_compiled=not_compiled),
            Objective("generator", ("generator",)),
        )

    # -- losses --------------------------------------------------------------------------------------------------------

    def totals(self, models: dict[str, nn.Module], batch: Batch, objective: Objective) -> dict[str, np.ndarray]:
        """Events, events with muons, and muons of the global batch."""
        return {"sizes": np.array([len(batch["counts"]), len(batch["some"]), len(batch["muons"])], np.float64)}

    def loss_step(
        self, models: dict[str, nn.Module], batch: Batch, totals: dict[str, Tensor], objective: Objective
    ) -> Loss:
        from accel_train.tasks.muon.adversarial import Bundles

        dtype = next(models["generator"].parameters()).dtype
        events, some, muons = totals["sizes"].to(dtype).clamp(min=1).unbind()
        if objective.name == "multiplicity":
            model: Any = models["multiplicity"]
            conditions = model.normalise.encode_conditions(batch["primary"].to(dtype))
            nll = model.negative_log_likelihood(conditions, batch["counts"]).sum() / events
            empty = (len(batch["counts"]) - len(batch["some"])) / events
            return Loss(nll, {"muons_per_event": len(batch["muons"]) / events, "empty": empty})
        # The guide's critic scores empty events too.
        bundles = Bundles(models, batch, objective, keep_empty=self.legacy)
        scored = events if self.legacy else some
        if objective.name == "generator":
            return Loss(-bundles.score(bundles.fake()).sum() / scored, {})
        gap, penalty = bundles.gap_and_penalty(self.gradient_penalty, paired=not self.legacy)
        gap, penalty = gap / scored, penalty / (muons if self.gradient_penalty == "muon" else some)
        return Loss(-gap + self.lambda_gp * penalty, {"w_gap": gap, "gp": penalty})

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def eval_step(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        from accel_train.tasks.muon.evaluation import statistics

        assert self.evaluated is not None
        return statistics(self.evaluated, models, batch, self.max_count)

    def eval_metrics(self, sums: dict[str, Tensor]) -> dict[str, float]:
        from accel_train.tasks.muon.evaluation import metrics

        assert self.evaluated is not None
        return metrics(self.evaluated, sums)

    def baselines(self) -> dict[str, float]:
        """What truth has against other truth: the held-out showers that are not generated."""
        if self.evaluated is None:
            return {}
        from accel_train.tasks.muon.evaluation import floors

        return floors(self.evaluated)

    def summary(self, metrics: dict[str, float]) -> str:
        from accel_train.tasks.muon.evaluation import summary

        assert self.evaluated is not None
        return summary(self.evaluated, metrics)

    def figures(self, metrics: dict[str, float], sums: dict[str, Tensor]) -> dict[str, Any]:
        from accel_train.tasks.muon.evaluation import samples
        from accel_train.tasks.muon.figures import figures

        assert self.evaluated is not None
        found = samples(self.evaluated, sums)
        return figures(found["real"], found["fake"], self.evaluated.cells)

    def histograms(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """Primaries, counts, and what the networks see of true and generated muons, all of the batch."""
        from accel_train.tasks.muon.adversarial import Bundles

        found = {"data/counts": batch["counts"]}
        if len(batch["muons"]) == 0:
            return found
        bundles = Bundles(models, self.split(batch, self.size(batch))[0], Objective("histograms"))
        sides = {
            "data/primaries": bundles.conditions,
            "real/muons": bundles.generator.normalise.encode_muons(bundles.muons),
            "fake/muons": bundles.fake(),
        }
        for name, values in sides.items():
            found |= {f"{name}_dim{i}": column for i, column in enumerate(values.unbind(1))}
        return found

    def preview(self, batch: Batch) -> str:
        """The first events, how large they are, and how many are empty, for ``accel-train inspect``."""
        from accel_train.tasks.muon.preview import preview

        return preview(batch["primary"].numpy(), batch["counts"].numpy(), batch["muons"].numpy())

    @staticmethod
    def describe_files(
        files: list[str], events: int = 5, primary_layout: str = "auto", muon_layout: str = "auto"
    ) -> str:
        """What is in data files, for ``accel-train inspect FILES``."""
        from accel_train.tasks.muon.preview import describe_files

        return describe_files(files, events, primary_layout, muon_layout)

    @staticmethod
    def synth(out: Any, seed: int = 0, size: int | None = None) -> str:
        """``size`` showers at ten depths each, as Parquet files."""
        from accel_train.tasks.muon.synth import synth

        return synth(out, seed, size)


def cut(counts: np.ndarray, events: int, muons: int) -> list[int]:
    """Where to cut so that each part has at most so many events and muons, as far as whole events allow."""
    ends, at, cuts = np.cumsum(counts), 0, [0]
    while at < len(counts):
        before = int(ends[at - 1]) if at else 0
        by_muons = int(np.searchsorted(ends, before + muons, side="right"))
        at = min(max(by_muons, at + 1), at + events, len(counts))
        cuts.append(at)
    return cuts

"""The gdynet task: which states do the surroundings of an atom have, and how slowly do they change?"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from accel_train.arguments import Count, Range
from accel_train.errors import FoundError, UserError
from accel_train.task import Batch, BatchSource, DataTools, Exports, Loss, Objective, Predicts, Task, Watches
from accel_train.tasks.gdynet.choices import EPSILON, LOSSES, Mode, Norm
from accel_train.tasks.gdynet.splits import Splits
from accel_train.tasks.gdynet.truth import noise_floor

if TYPE_CHECKING:
    from torch import Tensor, nn


SHOWN_TIMES = 4


class GDyNetTask(Task, Predicts, Watches, Exports, DataTools):
    """Graph dynamical network: soft states of atoms whose slow dynamics a linear model propagates best (VAMP).

    Args:
        train_fnames: folders, each one trajectory; or the four (ferro: five) files of one, in the order types, targets,
            neighbour lists, distances, directions.
        val_fnames: the same for validation; empty takes the last ``val_share`` of every training trajectory.
        test_fnames: the same for the test.
        val_share: see val_fnames; the ``tau`` frames before it are left out, since they resemble it.
        model_type: ``gdynet_ferro`` also reads directions (local polarisation), ``gdynet_vanilla`` distances only.
        atom_fea_len: features of an atom.
        n_conv: convolutions.
        state_len: states, at least 2.
        cutoff: end of the distances' Gaussian basis, Angstrom.
        num_gaussians: of that basis.
        tau: lag, frames.
        lobes: one network for both times, or one for each, which start equal.
        norm: ``layer`` normalises each atom or edge alone; ``batch`` over all that a rank has at once, as in the guide
            (docs/tasks/gdynet.md), so that the run depends on how a batch is cut; ``sync_batch`` over all ranks.
        epsilon: eigenvalues of a covariance below this share of their mean count as noise.
        mode: what then happens: they are left out (``trunc``), or raised to that share (``clamp``), or it is added to
            all (``regularize``).
        loss_schedule: one phase each: vamp2, vamp1 (``vamp_sym`` in the guide; makes states crisp), vamp1_true, vampe.
        epochs: length of every phase.
        repeat: the whole schedule so many times.
        dt_ns: time between two frames, ns; null takes what the data's meta.json says.
    """

    name = "gdynet"
    recommended: ClassVar = {
        "seed": 1234, "global_batch_size": 32, "learning_rate": 1e-3, "optimizer": {"class_path": "Adam"},
        "max_grad_norm": None, "logging_steps": "1ep", "eval_steps": "1ep", "save_steps": "1ep",
        "log_last_values": True,
    }  # fmt: skip
    file_types = ("nbr_lists.npy", ".npy")
    movable = ("train_fnames", "val_fnames", "test_fnames", "loss_schedule", "repeat", "dt_ns")

    def __init__(
        self,
        train_fnames: list[str] | str,
        val_fnames: list[str] | str = [],  # noqa: B006 - copied
        test_fnames: list[str] | str = [],  # noqa: B006 - copied
        val_share: Annotated[float, Range(0, 0.9)] = 0.1,
        model_type: Literal["gdynet_ferro", "gdynet_vanilla"] = "gdynet_ferro",
        atom_fea_len: Count = 64,
        n_conv: Annotated[int, Range(0)] = 3,
        state_len: Annotated[int, Range(2)] = 10,
        cutoff: Annotated[float, Range(1e-9)] = 6.0,
        num_gaussians: Annotated[int, Range(2)] = 50,
        tau: Count = 10,
        lobes: Literal["shared", "separate"] = "shared",
        norm: Norm = "layer",
        epsilon: Annotated[float, Range(1e-14, 1)] = EPSILON,
        mode: Mode = "trunc",
        loss_schedule: list[str] = ["vamp2", "vamp1", "vamp2"],  # noqa: B006 - copied
        epochs: Count = 30,
        repeat: Count = 1,
        dt_ns: Annotated[float, Range(1e-30)] | None = None,
    ) -> None:
        known = {**{name: name for name in LOSSES}, "vamp_sym": "vamp1"}
        for name in loss_schedule:
            if name not in known:
                from accel_train.errors import suggest

                hint = suggest(name, known)
                raise UserError(f"task.init_args.loss_schedule: unknown {name!r}{hint}; there are {', '.join(known)}")
        if not loss_schedule:
            raise UserError("task.init_args.loss_schedule: at least one loss is needed")
        self.fnames = {
            split: [names] if isinstance(names, str) else list(names)
            for split, names in (("train", train_fnames), ("validation", val_fnames), ("test", test_fnames))
        }
        self.val_share, self.ferro = val_share, model_type == "gdynet_ferro"
        self.sizes = (atom_fea_len, n_conv, state_len, cutoff, num_gaussians)
        self.state_len, self.tau, self.cutoff = state_len, tau, cutoff
        self.separate = lobes == "separate"
        self.norm: Norm = norm
        self.epsilon = epsilon
        self.mode: Mode = mode
        self.schedule, self.epochs, self.repeat = [known[name] for name in loss_schedule], epochs, repeat
        self.dt_ns = dt_ns
        self.splits = Splits(self.fnames, self.ferro, tau, cutoff, val_share)
        self._batch_rows: int | None = None

    # -- data ----------------------------------------------------------------------------------------------------------

    def build_data(self, split: str, batch_size: int, seed: int) -> BatchSource | None:
        from accel_train.tasks.gdynet.data import FramePairs, FrameSource

        trajectories, training = self.splits[split], split == "train"
        if not trajectories:
            return None
        warnings = self.splits.warnings(batch_size, self.state_len) if training else []
        if training:
            self._batch_rows = batch_size * len(trajectories[0].target_index)
        return FrameSource(FramePairs(trajectories, self.tau), batch_size, seed, training, warnings)

    def predict_data(self, split: str, batch_size: int) -> BatchSource | None:
        from accel_train.tasks.gdynet.data import Frames, FrameSource

        trajectories = self.splits[split]
        return FrameSource(Frames(trajectories), batch_size, shuffle=False) if trajectories else None

    def describe_predictions(self, split: str) -> dict[str, Any]:
        start, parts = 0, []
        for trajectory in self.splits[split]:
            first = trajectory.span[0] if trajectory.span else 0
            parts.append({"name": trajectory.name, "first_frame": first, "start": start, "frames": trajectory.frames})
            start += trajectory.frames
        return {"file": "probabilities.npy", "trajectories": parts, "tau": self.tau, "dt_ns": self.frame_ns()}

    def frame_ns(self) -> float | None:
        """Time between two frames, ns, if it is given."""
        if self.dt_ns is not None:
            return self.dt_ns
        opened = self.splits.any() or self.splits["train"]
        return opened[0].meta.get("dt_ns")

    @staticmethod
    def synth(
        out: Path,
        seed: int = 0,
        size: int | None = None,
        system: Literal["ferro", "prinz", "ellipsoids", "markov"] = "ferro",
        **options: Any,
    ) -> str:
        """Trajectories whose slow processes are known.

        Args:
            size: frames of train (4000 unless set, of prinz 1000); val has 3/8 of them, test twice as many.
            system: a crystal whose cages flip, a particle in four wells, turning ellipsoids, or a chain of states.
            options: of ferro: clusters, delta, p, q, sigma, correlation, marked; of the others: walkers; of ellipsoids
                also laziness, of markov states, laziness and chain_seed.
        """
        from accel_train.tasks.gdynet.synth import synth

        return synth(out, seed, size, system, **options)

    @staticmethod
    def describe_files(
        files: list[str],
        tau: int = 10,
        cutoff: float = 6.0,
        model_type: Literal["gdynet_ferro", "gdynet_vanilla"] | None = None,
    ) -> str:
        from accel_train.tasks.gdynet.report import look

        text, errors = look(files, None if model_type is None else model_type == "gdynet_ferro", tau, cutoff)
        if errors:
            raise FoundError(text)
        return text

    def size(self, batch: Batch) -> int:
        """Frames, or pairs of them."""
        return len(batch["neighbours"])

    def split(self, batch: Batch, limit: int) -> list[Batch]:
        shared = {"atom_types": batch["atom_types"], "targets": batch["targets"]}
        items = {name: array for name, array in batch.items() if name not in shared}
        return [part | shared for part in super().split(items, limit)]

    # -- model and loss ------------------------------------------------------------------------------------------------

    def build_model(self, train: BatchSource | None) -> dict[str, nn.Module]:
        from accel_train.tasks.gdynet.model import Lobe

        lobe = Lobe(*self.sizes, self.ferro, self.norm)
        return {"lobe_0": lobe, "lobe_t": copy.deepcopy(lobe)} if self.separate else {"lobe_0": lobe}

    def objectives(self) -> Sequence[Objective]:
        return tuple(Objective(name) for name in LOSSES)

    def phases(self) -> Sequence[Mapping[str, Any]]:
        return [{"objectives": [name], "length": f"{self.epochs}ep"} for name in self.schedule] * self.repeat

    def features(self, models: dict[str, nn.Module], batch: Batch) -> tuple[Tensor, Tensor]:
        """Probabilities of both times, [B * n, k] each: frames in order, and in each the targets in theirs."""
        structure, both = _structure(batch), _frames(batch)
        if self.separate:
            x, y = (
                models[lobe](*structure, *(array[:, time] for array in both))
                for time, lobe in enumerate(("lobe_0", "lobe_t"))
            )
        else:
            out = models["lobe_0"](*structure, *(array.flatten(0, 1) for array in both))
            x, y = out.unflatten(0, (-1, 2)).unbind(1)
        return x.flatten(0, 1), y.flatten(0, 1)

    def forward_step(self, models: dict[str, nn.Module], batch: Batch, objective: Objective) -> dict[str, Tensor]:
        x, y = self.features(models, batch)
        return {"x": x, "y": y}

    def totals(self, models: dict[str, nn.Module], batch: Batch, objective: Objective) -> dict[str, Tensor]:
        """The moments of the features over all rows, of which a VAMP score is a function."""
        from accel_train.tasks.gdynet import vamp

        return {"moments": vamp.moments(batch["x"], batch["y"])}

    def loss_step(
        self, models: dict[str, nn.Module], batch: Batch, totals: dict[str, Tensor], objective: Objective
    ) -> Loss:
        from accel_train.tasks.gdynet import vamp

        x, y = batch["x"], batch["y"]
        covariances = vamp.covariances(totals["moments"])
        value = vamp.loss_share(x, y, covariances, objective.name, self.epsilon, self.mode)
        singular, share = vamp.singular_values(covariances, self.epsilon, self.mode), len(x) / covariances.rows
        scores = {"vamp1": float(singular.sum()), "vamp2": float(singular.square().sum())}
        return Loss(value, {name: value.new_tensor(score * share) for name, score in scores.items()})

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def eval_step(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        from accel_train.tasks.gdynet import vamp

        x, y = self.features(models, batch)
        return {"moments": vamp.moments(x, y), "largest": x.max(1).values.double().sum()}

    def eval_metrics(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """One score of the whole set, not a mean over batches, which small batches would inflate.

        ``crispness``: mean largest probability. ``t1_frames``, ...: timescales -tau / ln s of the singular values.
        """
        from accel_train.tasks.gdynet import vamp

        covariances = vamp.covariances(sums["moments"])
        singular = vamp.singular_values(covariances, self.epsilon, self.mode)
        vamp1, vamp2 = float(singular.sum()), float(singular.square().sum())
        metrics = {"loss": -vamp2, "vamp2": vamp2, "vamp1": vamp1}
        metrics["crispness"] = float(sums["largest"]) / covariances.rows
        for i, s in enumerate(singular.tolist()[:SHOWN_TIMES], 1):
            metrics[f"t{i}_frames"] = -self.tau / math.log(s) if 0 < s < 1 else math.nan
        return metrics

    def figures(self, metrics: dict[str, float], sums: dict[str, Tensor]) -> dict[str, Any]:
        """Transitions, populations and processes at ``tau``; ``accel-train gdynet analyze`` draws more."""
        from accel_train.tasks.gdynet.analysis.analyse import at_one_lag
        from accel_train.tasks.gdynet.analysis.figures import basic

        return basic(at_one_lag(sums["moments"].double().cpu().numpy(), self.tau, self.frame_ns()))

    def baselines(self) -> dict[str, float]:
        """What a batch of independent features would score."""
        if self._batch_rows is None:
            return {}
        return {"vamp2": noise_floor(self.state_len, self._batch_rows)}

    def predict_step(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """``probabilities`` float32 [B, n, k], of one lobe for all frames: two that differ would leave a seam."""
        return {"probabilities": models["lobe_0"](*_structure(batch), *(array[:, 0] for array in _frames(batch)))}

    def summary(self, metrics: dict[str, float]) -> str:
        dt = self.frame_ns()
        lag = f"tau {self.tau} frames" + (f" = {self.tau * dt:.4g} ns" if dt else "")
        times = [v for name, v in metrics.items() if name.endswith("_frames") and math.isfinite(v)]
        shown = ", ".join(f"{v:.4g}" + (f" = {v * dt:.4g} ns" if dt else "") for v in times)
        most = self.state_len - 1
        return (
            f"VAMP-2 {metrics['vamp2']:.4f} and VAMP-1 {metrics['vamp1']:.4f} of at most {most} at {lag}\n"
            f"slowest processes (frames): {shown}\n"
            f"crispness {metrics['crispness']:.3f}: the mean largest probability of a state"
        )

    def histories(self, lists: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The fourteen lists of the guide's ``metrics.json``, one entry per evaluated epoch. A validation has one score
        from all pairs, which stands under ``last`` and ``avg``."""
        return epoch_lists(lists)

    def export_programs(self, models: dict[str, nn.Module], folder: Path) -> None:
        from accel_train.tasks.gdynet.programs import write_programs

        write_programs(models, self.ferro, folder)


def _structure(batch: Batch) -> tuple[Tensor, Tensor]:
    """Atomic numbers and targets, which all frames share."""
    return batch["atom_types"], batch["targets"]


def _frames(batch: Batch) -> list[Tensor]:
    """What changes from frame to frame, [B, times, N, ...] each."""
    return [batch[name] for name in ("neighbours", "distances", "directions") if name in batch]


def epoch_lists(lists: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """One entry per epoch: its last log line, and the evaluation that falls together with it, if one does."""
    evaluated = {step: j for j, step in enumerate(lists.get("eval_step", []))}

    def get(name: str, at: int | None) -> Any:
        return lists[name][at] if at is not None and name in lists else None

    rows: dict[int, dict[str, Any]] = {}
    for i, step in enumerate(lists.get("step", [])):
        epoch, j = lists["epoch"][i] + 1, evaluated.get(step)
        row: dict[str, Any] = {"epochs": epoch, "loss_types": lists["phase"][i]}
        for name, known in (("loss", "losses"), ("vamp1", "vamp1_scores"), ("vamp2", "vamp2_scores")):
            row[f"train_{known}_last"], row[f"train_{known}_avg"] = get(f"last/{name}", i), get(name, i)
            row[f"val_{known}_last"] = row[f"val_{known}_avg"] = get(f"eval_{name}", j)
        rows[epoch] = row
    names = next(iter(rows.values()), {})
    return {name: [row[name] for row in rows.values()] for name in names}

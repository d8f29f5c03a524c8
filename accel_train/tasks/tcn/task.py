"""The tcn task: is a disruption coming, at every step of a record?"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from accel_train.arguments import Count, Range
from accel_train.data.source import IndexedSource
from accel_train.errors import UserError
from accel_train.task import Batch, BatchSource, DataTools, Exports, Loss, Objective, Predicts, Task
from accel_train.tasks.tcn.labels import LabelSettings
from accel_train.tasks.tcn.layouts import RawFiles, open_shots, refuse_meaningless
from accel_train.tasks.tcn.synth import synth

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel_train.tasks.tcn.prebuilt import Prebuilt
    from accel_train.tasks.tcn.shots import Shots
    from accel_train.tasks.tcn.windows import Windows


class TCNTask(Task, Predicts, Exports, DataTools):
    """A causal dilated network on the imaging signals of a tokamak: log odds that a disruption is near, step by step.

    Args:
        data: a folder that ``accel-train tcn preprocess`` has made; one with the folders disrupt/ and clear/ of HDF5
            files; a table (.csv, .parquet) with shot, time, time_until_disrupt and signals; or a folder with prebuilt
            windows (train/, test/). Its content tells which.
        nsub: samples of a window, at the stored rate; prebuilt windows are as long as they are.
        stride: samples from one window to the next; null scores each step once.
        twarn_ms: a step is positive from so long before the disruption on.
        ignore_twarn: steps from there on do not count: only clear plasma is left.
        exclude_last_ms: the last steps before a disruption that do not count.
        ignore_band_ms: steps that are nearer than this to the beginning of the positive ones do not count.
        negatives: windows without a positive step for each one with, in every batch; null takes them as they come.
        balance: weigh the classes equally in every global ``batch``, as they are in the training ``dataset``, or not at
            all (``none``), which takes the weights of prebuilt windows as they are. One of them, never two: see
            docs/tasks/tcn.md.
        levels: blocks of two convolutions.
        nhid: channels of every block.
        kernel_size: taps of a convolution.
        dilation_base: dilations are its powers; null: the smallest base without gaps.
        nrecept_target: receptive field to reach, in samples.
        dropout: of features.
        channel_dropout: each training window loses a share of its channels, uniform up to this one, so that the model
            gets used to sensors that fail.
        norm: ``weight`` of each kernel, ``channel`` over the channels of a step, or ``none``. Others see the future.
        checkpointing: compute a block again in the backward pass instead of keeping it.
        raw: how HDF5 files and tables are read.
    """

    name = "tcn"
    recommended: ClassVar = {
        "global_batch_size": 48, "learning_rate": 5e-4, "max_grad_norm": 0.3,
        "optimizer": {"class_path": "AdamW", "init_args": {"weight_decay": 1e-4}},
        "warmup_start_factor": 0.125, "eval_steps": "1ep", "metric_for_best_model": "step_pr_auc",
        "greater_is_better": True,
    }  # fmt: skip
    movable = ("data", "raw", "checkpointing")  # other data are refused by their fingerprint

    def __init__(
        self,
        data: str,
        nsub: Annotated[int, Range(2)] = 78_125,
        stride: Count | None = None,
        twarn_ms: float = 300.0,
        ignore_twarn: bool = False,
        exclude_last_ms: float = 0.0,
        ignore_band_ms: float = 0.0,
        negatives: Annotated[float, Range(1e-3)] | None = 1.0,
        balance: Literal["batch", "dataset", "none"] = "batch",
        levels: Count = 4,
        nhid: Count = 80,
        kernel_size: Annotated[int, Range(2)] = 15,
        dilation_base: Annotated[int, Range(1)] | None = 10,
        nrecept_target: Count = 30_000,
        dropout: Annotated[float, Range(0, below=1)] = 0.1,
        channel_dropout: Annotated[float, Range(0, below=1)] = 0.0,
        norm: Literal["weight", "channel", "none"] = "weight",
        checkpointing: bool = False,
        raw: RawFiles = RawFiles(),  # noqa: B008 - never changed
    ) -> None:
        from accel_train.tasks.tcn.architecture import dilations, receptive_field

        self.folder, self.nsub, self.stride, self.negatives, self.balance = data, nsub, stride, negatives, balance
        self.raw, self.channel_dropout = raw, channel_dropout
        self.labels = LabelSettings(twarn_ms, ignore_twarn, exclude_last_ms, ignore_band_ms)
        self.sizes: dict[str, Any] = dict(
            levels=levels, nhid=nhid, kernel_size=kernel_size, dilation_base=dilation_base,
            nrecept_target=nrecept_target, dropout=dropout, norm=norm, checkpointing=checkpointing,
        )  # fmt: skip
        self.receptive_field = receptive_field(
            kernel_size, dilations(levels, kernel_size, dilation_base, nrecept_target)
        )
        self._store: Shots | None = None
        self._windows: dict[tuple[str, int | None], Windows | Prebuilt | None] = {}
        self.evaluated: Windows | Prebuilt | None = None

    # -- data ----------------------------------------------------------------------------------------------------------

    @property
    def store(self) -> Shots:
        """Opened when it is asked for: a constructor reads nothing."""
        if self._store is None:
            self._store = open_shots(self.folder, self.raw)
        return self._store

    def windows(self, split: str, stride: int | None = None) -> Windows | Prebuilt | None:
        """The windows of a split, cut and labelled once; None if it has none."""
        if (split, stride) not in self._windows:
            self._windows[split, stride] = self._cut(split, stride)
        return self._windows[split, stride]

    def _cut(self, split: str, stride: int | None) -> Windows | Prebuilt | None:
        from accel_train.tasks.tcn import prebuilt
        from accel_train.tasks.tcn.windows import Windows

        if prebuilt.is_prebuilt(self.folder):
            refuse_meaningless("prebuilt", self.raw)
            there = (Path(self.folder) / prebuilt.FOLDERS[split]).is_dir()
            return prebuilt.Prebuilt(self.folder, split, self.receptive_field, self.balance) if there else None
        shots = self.store.split(split)
        if not shots:
            return None
        return Windows(self.store, shots, self.nsub, self.receptive_field, self.labels, stride)

    def build_data(self, split: str, batch_size: int, seed: int) -> BatchSource | None:
        from accel_train.tasks.tcn.windows import Stratified, WindowSource

        training = split == "train"
        windows = self.windows(split, self.stride if training else None)
        if windows is None:
            return None
        if not training:
            self.evaluated = windows
        if training and self.negatives is not None:
            source = Stratified(windows, batch_size, seed, self.negatives, split)
        else:
            source = WindowSource(windows, batch_size, seed, shuffle=training)
        source.channel_dropout = self.channel_dropout if training else 0.0
        return source

    def predict_data(self, split: str, batch_size: int) -> BatchSource | None:
        from accel_train.tasks.tcn.windows import WindowSource

        windows = self.windows(split)
        return None if windows is None else WindowSource(windows, batch_size, shuffle=False)

    # -- model and loss ------------------------------------------------------------------------------------------------

    def build_model(self, train: BatchSource | None) -> nn.Module:
        """With the statistics of the training split, and the share of its steps that are positive."""
        import torch

        from accel_train.tasks.tcn.model import TCN

        windows: Any = train.data if isinstance(train, IndexedSource) else None
        model = TCN(self._channels() if windows is None else windows.channels, **self.sizes)
        share = 0.5
        if windows is not None:
            model.set_statistics(torch.from_numpy(windows.mean), torch.from_numpy(windows.std))
            counted, positive = int(windows.counted.sum()), int(windows.positive.sum())
            if not 0 < positive < counted:
                raise UserError(
                    f"train: {positive:,} of the {counted:,} steps that count are positive, and both classes are "
                    "needed; look at the split, twarn_ms, exclude_last_ms and ignore_twarn"
                )
            share = positive / counted
        model.register_buffer("positive_share", torch.tensor(share, dtype=torch.float64))
        return model

    def _channels(self) -> int:
        from accel_train.tasks.tcn import prebuilt

        return prebuilt.channels_of(self.folder) if prebuilt.is_prebuilt(self.folder) else self.store.channels

    def totals(self, models: dict[str, nn.Module], batch: Batch, objective: Objective) -> dict[str, Any]:
        """Steps that count in the global batch, and those of them that are positive."""
        return {"steps": batch["counts"].sum(), "positive": batch["target"].sum()}

    def loss_step(
        self, models: dict[str, nn.Module], batch: Batch, totals: dict[str, Tensor], objective: Objective
    ) -> Loss:
        """Binary cross-entropy, mean over the steps that count, each class with the weight that ``balance`` says."""
        from torch.nn import functional

        logits, target, counts = self._logits(models, batch), batch["target"], batch["counts"]
        each = functional.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
        positive, negative = (each * (target & counts)).sum(), (each * (~target & counts)).sum()
        steps, positives = (totals[name].to(logits.dtype) for name in ("steps", "positive"))
        mean = (positive + negative) / steps.clamp(min=1)
        if self.balance == "batch":
            value = 0.5 * positive / positives.clamp(min=1) + 0.5 * negative / (steps - positives).clamp(min=1)
        elif self.balance == "dataset":
            share: Any = models["model"].positive_share
            value = (0.5 * positive / share + 0.5 * negative / (1 - share)).to(logits.dtype) / steps.clamp(min=1)
        elif (weight := batch.get("weight")) is not None:
            value = (each * weight * counts).sum() / steps.clamp(min=1)
        else:
            value = mean
        return Loss(value, {"bce": mean.detach(), "positive": target.sum() / steps.clamp(min=1)})

    @staticmethod
    def _logits(models: dict[str, nn.Module], batch: Batch) -> Tensor:
        return models["model"](batch["x"], batch["scale"], batch["offset"], batch.get("kept"))

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def eval_step(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        from torch.nn import functional

        from accel_train.tasks.tcn.steps import step_sums, to_onset_ms

        logits, target, counts = self._logits(models, batch).float(), batch["target"], batch["counts"]
        to_onset = to_onset_ms(batch["onset_ms"], batch["dt_ms"], logits.shape[1])
        each = functional.binary_cross_entropy_with_logits(logits, target.float(), reduction="none").double()
        return {
            "positive_bce": (each * (target & counts)).sum(),
            "negative_bce": (each * (~target & counts)).sum(),
            **step_sums(logits, target, counts, to_onset),
        }

    def eval_metrics(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """``loss``: cross-entropy with both classes weighed alike, of the whole split. Numbers over steps at the
        threshold that is best on this very split (``threshold``, a logit); ``accel-train tcn report`` chooses on one
        and judges on another."""
        from accel_train.tasks.tcn.prebuilt import Prebuilt
        from accel_train.tasks.tcn.steps import best_threshold, diagnostics, step_metrics

        timed = not isinstance(self.evaluated, Prebuilt)  # of whose windows nobody knows where in a shot they are
        steps = sums["by_distance"].sum(0)
        negatives, positives = steps.sum(1).clamp(min=1).tolist()
        threshold = best_threshold(steps)
        return {
            "loss": 0.5 * float(sums["positive_bce"]) / positives + 0.5 * float(sums["negative_bce"]) / negatives,
            "threshold": threshold,
            **step_metrics(steps, threshold),
            **diagnostics(sums["by_distance"] if timed else None, sums["by_position"], threshold),
        }

    def baselines(self) -> dict[str, float]:
        """What a network scores that says the same at every step."""
        if self.evaluated is None:
            return {}
        counted, positive = int(self.evaluated.counted.sum()), int(self.evaluated.positive.sum())
        share = positive / max(counted, 1)
        return {"loss:constant": math.log(2), "step_f1:all ones": 2 * share / (1 + share), "step_pr_auc:share": share}

    def summary(self, metrics: dict[str, float]) -> str:
        known = {name.partition(":")[0]: value for name, value in self.baselines().items()}
        beside = {name: f" ({known[name]:.3f} {why})" if name in known else "" for name, why in
                  (("step_f1", "for a disruption at every step"), ("step_pr_auc", "by chance"))}  # fmt: skip
        return (
            f"steps: F1 {metrics['step_f1']:.3f}{beside['step_f1']}, precision {metrics['step_precision']:.3f}, recall "
            f"{metrics['step_recall']:.3f} at the best logit here, {metrics['threshold']:.2f}; PR AUC "
            f"{metrics['step_pr_auc']:.3f}{beside['step_pr_auc']}, ROC AUC {metrics['step_auc']:.3f}, Brier skill "
            f"{metrics['brier_skill']:.3f}\n"
            "alarms: accel-train tcn report RUN chooses on validation shots and judges on test shots"
        )

    def predict_step(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """``logits`` float32 [B, V]."""
        return {"logits": self._logits(models, batch)}

    def describe_predictions(self, split: str) -> dict[str, Any]:
        """Which steps of which shots the rows are, and what is known of the shots."""
        import numpy as np

        from accel_train.tasks.tcn.store import as_json
        from accel_train.tasks.tcn.windows import Windows

        windows = self.windows(split)
        if not isinstance(windows, Windows):
            return {}
        shots, first = windows.place(np.arange(len(windows)))
        rows = {"shot": shots.tolist(), "first": first.tolist()}
        return {"rows": rows, "shots": [as_json(shot) for shot in windows.shots], "labels": asdict(self.labels)}

    synth = staticmethod(synth)
    file_types = ("norm.npz", "labels.npy", "meta.csv", ".csv")

    @staticmethod
    def describe_files(files: list[str], **options: Any) -> str:
        from accel_train.tasks.tcn.describe import describe

        return describe(files, TCNTask, options)

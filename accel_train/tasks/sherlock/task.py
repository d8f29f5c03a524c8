"""The sherlock task: from a film to the brain that watches it, and back."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from accel_train.arguments import Count, Range
from accel_train.data.source import IndexedSource
from accel_train.errors import UserError, suggest
from accel_train.task import Batch, BatchSource, DataTools, Event, Loss, Objective, Predicts, Task, Watches
from accel_train.tasks.sherlock.architecture import Modality, sizes_of
from accel_train.tasks.sherlock.describe import FILE_TYPES, describe_files
from accel_train.tasks.sherlock.synth import synth

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from accel_train.tasks.sherlock.data import Items, Prepared
    from accel_train.tasks.sherlock.losses import TaskFMRILoss

Weight = Annotated[float, Range(0)]
TOO_LARGE = 0.9
"""A term with more than this share of the loss leaves nothing to the others."""


class SherlockTask(Task, Predicts, Watches, DataTools):
    """Video, audio, text and further features of a film through a latent to the BOLD of who watches it, and back.

    Args:
        data: a folder that ``accel-train sherlock preprocess`` has made.
        window_trs: volumes of an item that follow one another, which share the stimulus before them; about 100 for a
            network over time.
        lags: TRs of stimulus before a volume that it may depend on.
        target: the volumes of each subject, or their average over subjects.
        modalities: which of those in the data; null for all.
        held_out_subjects: withheld from training, besides those of the data, and predicted in the test by what the
            others share.
        bottleneck: what the decoder reads: the ``latent``, or the ``voxels``, so that the brain is in the path.
        lag: the response of the brain: a fixed one (``hrf``), or one learned for each voxel (``fir``).
        preset: ``default``, or ``legacy``: the widths of the guide that this task replaces.
        latent: numbers of a TR; null takes that of the preset, as for all widths.
        encoder_widths: of the dense layers of every modality; reversed, of its decoder.
        fusion_widths: between the modalities and the latent.
        voxel_widths: between the latent and the voxels.
        decoder_widths: of what all modalities share of the decoder.
        subject_rank: of the part of the voxel head that each subject has for its own; 0 for none.
        time_layers: of a transformer over the TRs of an item; 0: each TR for itself.
        heads: of it.
        causal: whether it sees earlier TRs alone.
        modality_dropout: share of the modalities that are withheld from the encoder in training.
        subject_dropout: share of the items that are trained without their subject, so that a new one can be predicted.
        dropout: of features.
        reconstruction_weight: of the reconstructions together.
        fmri_weight: of the brain.
        video_weight: of this modality among the reconstructions; those without a weight of their own have 1.
        audio_weight: likewise.
        text_weight: likewise.
        fmri_loss_type: mse, mae, correlation (over voxels), cosine (the guide's correlation, which is not centred) or
            temporal_correlation (of each voxel, over the volumes of a window; it leaves scale and offset open).
        checkpointing: compute encoders and decoder again in the backward pass instead of keeping them.
    """

    name = "sherlock"
    recommended: ClassVar = {
        "global_batch_size": 16, "learning_rate": 3e-3, "max_grad_norm": 1.0,
        "optimizer": {"class_path": "AdamW", "init_args": {"weight_decay": 0.1}},
        "lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"min_lr": 1e-6}, "warmup_steps": "5ep",
        "eval_steps": "5ep", "monitor_steps": 100,
    }  # fmt: skip
    movable = ("data", "checkpointing")
    file_types = FILE_TYPES

    def __init__(
        self,
        data: str,
        window_trs: Count = 20,
        lags: Annotated[int, Range(0)] = 14,
        target: Literal["per_subject", "average"] = "per_subject",
        modalities: list[str] | None = None,
        held_out_subjects: list[str] | None = None,
        bottleneck: Literal["latent", "voxels"] = "latent",
        lag: Literal["hrf", "fir"] = "hrf",
        preset: Literal["default", "legacy"] = "default",
        latent: Count | None = None,
        encoder_widths: list[Count] | None = None,
        fusion_widths: list[Count] | None = None,
        voxel_widths: list[Count] | None = None,
        decoder_widths: list[Count] | None = None,
        subject_rank: Annotated[int, Range(0)] = 8,
        time_layers: Annotated[int, Range(0)] = 0,
        heads: Count = 4,
        causal: bool = True,
        modality_dropout: Annotated[float, Range(0, below=1)] = 0.1,
        subject_dropout: Annotated[float, Range(0, below=1)] = 0.1,
        dropout: Annotated[float, Range(0, below=1)] = 0.2,
        reconstruction_weight: Weight = 1.0,
        fmri_weight: Weight = 1.0,
        video_weight: Weight = 1.0,
        audio_weight: Weight = 1.0,
        text_weight: Weight = 1.0,
        fmri_loss_type: Literal["mse", "mae", "correlation", "cosine", "temporal_correlation"] = "mse",
        checkpointing: bool = False,
    ) -> None:
        self.folder, self.window_trs, self.lags = data, window_trs, lags
        self.target: Literal["per_subject", "average"] = target
        self.chosen, self.withheld = modalities, held_out_subjects or []
        if self.withheld and target == "average":
            raise UserError("held_out_subjects: with target average nobody is predicted alone; take per_subject")
        self.sizes = sizes_of(preset, latent, encoder_widths, fusion_widths, voxel_widths, decoder_widths)
        self.options: dict[str, Any] = dict(
            lag=lag, bottleneck=bottleneck, subject_rank=subject_rank, time_layers=time_layers, heads=heads,
            causal=causal, dropout=dropout, checkpointing=checkpointing,
        )  # fmt: skip
        self.dropouts = {"modality_dropout": modality_dropout, "subject_dropout": subject_dropout}
        self.reconstruction_weight, self.fmri_weight = reconstruction_weight, fmri_weight
        self.modality_weights = {"video": video_weight, "audio": audio_weight, "text": text_weight}
        self.fmri_loss_type: TaskFMRILoss = fmri_loss_type
        if fmri_loss_type == "temporal_correlation" and window_trs < 3:
            raise UserError(f"fmri_loss_type: temporal_correlation is over the volumes of a window, and window_trs is "
                            f"{window_trs}; give 20 or more")  # fmt: skip
        self._prepared: Prepared | None = None
        self._told = False

    # -- data ----------------------------------------------------------------------------------------------------------

    @property
    def prepared(self) -> Prepared:
        """Opened when it is asked for: a constructor reads nothing."""
        from accel_train.tasks.sherlock.data import Prepared

        if self._prepared is None:
            self._prepared = Prepared(self.folder)
        return self._prepared

    @cached_property
    def modalities(self) -> list[Modality]:
        """Those that are used, in the order of the data."""
        found, modalities = self.prepared.modalities, list[Modality]()
        unknown = sorted(set(self.chosen or ()) - set(found))
        if unknown:
            raise UserError(f"modalities: the data have no {', '.join(unknown)}; they have {', '.join(found)}")
        for name, about in found.items():
            if self.chosen is None or name in self.chosen:
                codes = self._statistics(name)["counts"].shape[1] if about["kind"] == "codes" else 0
                modalities.append(Modality(name, about["kind"], tuple(about["shape"]), codes))
        return modalities

    @cached_property
    def weights(self) -> dict[str, float]:
        """Of each term of the loss."""
        of = {m.name: self.reconstruction_weight * self.modality_weights.get(m.name, 1.0) for m in self.modalities}
        return {"fmri": self.fmri_weight, **of}

    @property
    def names(self) -> list[str]:
        """Of the modalities."""
        return [modality.name for modality in self.modalities]

    def _statistics(self, name: str) -> dict[str, np.ndarray]:
        """``mean`` and ``var`` of a modality, or ``counts`` of codes, in the training data."""
        found = self.prepared.statistics("stimulus_stats")
        return {part: found[f"{name}_{part}"] for part in ("mean", "var", "counts") if f"{name}_{part}" in found}

    @cached_property
    def held_out(self) -> list[str]:
        """Subjects of whom nothing is used in training, in the order of the data."""
        there = self.prepared.subjects
        for name in self.withheld:
            if name not in there:
                raise UserError(f"held_out_subjects: there is no {name!r}{suggest(name, there)}; there are "
                                f"{', '.join(there)}")  # fmt: skip
        found = [name for name in there if name in self.withheld or name in self.prepared.held_out]
        if len(found) == len(there):
            raise UserError("held_out_subjects: nobody is left for training")
        return found

    def items(self, split: str) -> Items | None:
        """The items of a split; None if it has none. Subjects that are held out are in the test alone."""
        from accel_train.tasks.sherlock.data import Items

        if not self.prepared.stretches(split):
            return None
        everybody = split == "test" and self.target == "per_subject"
        subjects = [name for name in self.prepared.subjects if everybody or name not in self.held_out]
        return Items(self.prepared, split, self.window_trs, self.lags, self.target, subjects, self.names)

    def build_data(self, split: str, batch_size: int, seed: int) -> BatchSource | None:
        from accel_train.tasks.sherlock.source import StimulusSource

        items, training = self.items(split), split == "train"
        if items is None:
            return None
        return StimulusSource(items, batch_size, seed, training, **(self.dropouts if training else {}))

    def predict_data(self, split: str, batch_size: int) -> BatchSource | None:
        from accel_train.tasks.sherlock.source import StimulusSource

        items = self.items(split)
        return None if items is None else StimulusSource(items, batch_size, shuffle=False)

    # -- model and loss ------------------------------------------------------------------------------------------------

    def build_model(self, train: BatchSource | None) -> nn.Module:
        """With the statistics of the stimulus in training, and which subjects are in it."""
        import torch

        from accel_train.tasks.sherlock.model import Autoencoder

        prepared, per_subject = self.prepared, self.target == "per_subject"
        model = Autoencoder(
            self.modalities, prepared.voxels, self.sizes, self.lags, prepared.tr_s,
            subjects=len(prepared.subjects) if per_subject else 0, **self.options,
        )  # fmt: skip
        if isinstance(train, IndexedSource):
            for modality in self.modalities:
                statistics = self._statistics(modality.name)
                model.set_statistics(modality.name, {each: torch.as_tensor(a) for each, a in statistics.items()})
            if per_subject:
                model.set_known_subjects([prepared.subjects.index(name) for name in train.data.subjects])
            else:
                model.fmri_variance.fill_(prepared.fmri_variance[self.target])
        return model

    def totals(self, models: dict[str, nn.Module], batch: Batch, objective: Objective) -> dict[str, Any]:
        """How many TRs each term has in the global batch."""
        from accel_train.tasks.sherlock.losses import term_masks

        return {name: mask.sum() for name, mask in term_masks(batch, self.names).items()}

    def loss_step(
        self, models: dict[str, nn.Module], batch: Batch, totals: dict[str, Tensor], objective: Objective
    ) -> Loss:
        """The weighted sum of the terms, each a mean over its TRs; what predicts the training mean has 1 in each."""
        terms = self._terms(models, batch, totals)
        weighted = [self.weights[name] * term for name, term in terms.items() if self.weights[name]]
        if not weighted:
            raise UserError("every weight of the loss is 0: there is nothing to train")
        return Loss(sum(weighted[1:], weighted[0]), {name: term.detach() for name, term in terms.items()})

    def _terms(
        self, models: dict[str, nn.Module], batch: Batch, totals: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Shares of the terms; of this batch alone without ``totals``."""
        from accel_train.tasks.sherlock.losses import term_masks, term_rows

        made, targets = self._made(models, batch)
        masks = term_masks(batch, self.names)
        counts = {name: mask.sum() for name, mask in masks.items()} if totals is None else totals
        model: Any = models["model"]
        rows = term_rows(made, targets, batch["fmri"], batch["measured"], self.fmri_loss_type, model.fmri_variance)
        return {
            name: (rows[name] * mask).sum() / counts[name].clamp(min=1).to(rows[name].dtype)
            for name, mask in masks.items()
        }

    def _made(self, models: dict[str, nn.Module], batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the model gives, and what it should give of each modality."""
        made = models["model"](batch, batch.get("keep_modality"), batch.get("keep_subject"))
        return made, {name: made[f"target/{name}"] for name in self.names}

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def eval_step(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        from accel_train.tasks.sherlock.evaluation import evaluation_sums

        model: Any = models["model"]
        subjects = len(self.prepared.subjects) if self.target == "per_subject" else 1
        made, targets = self._made(models, batch)
        unit = model.fmri_variance
        return evaluation_sums(made, targets, batch, model.code_logs(), self.fmri_loss_type, unit, subjects)

    def eval_metrics(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """As ``evaluation.metrics_of`` says: ``loss``, its terms, ``fmri_r`` and more."""
        from accel_train.tasks.sherlock.evaluation import metrics_of

        prepared = self.prepared
        new = [prepared.subjects.index(name) for name in self.held_out] if self.target == "per_subject" else []
        return metrics_of(sums, self.weights, prepared.rois, new)

    def summary(self, metrics: dict[str, float]) -> str:
        from accel_train.tasks.sherlock.evaluation import summary_of

        return summary_of(metrics, self.names)

    def predict_step(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """As ``outputs`` says: ``fmri`` float32 [B, W, V], reconstructions, and what ablations and lesions make."""
        from accel_train.tasks.sherlock.outputs import outputs

        model: Any = models["model"]
        return outputs(model, batch, self.prepared.rois)

    def describe_predictions(self, split: str) -> dict[str, Any]:
        """Whose volumes the rows are, by index into the names (subject -1: their average), and the first of each."""
        import numpy as np

        items = self.items(split)
        if items is None:
            return {}
        names = {"subjects": list(self.prepared.subjects), "runs": list(self.prepared.runs)}
        names["held_out_subjects"] = self.held_out
        subject, run, tr = (numbers.tolist() for numbers in items.place(np.arange(len(items))))
        rows = {"subject": subject, "run": run, "tr": tr}
        return {"file": "fmri.npy", "window_trs": self.window_trs, "target": self.target, **names, "rows": rows}

    def monitor(self, models: dict[str, nn.Module], batch: Batch) -> Iterable[Event]:
        """A term that is nearly all of the loss hides the others; said once."""
        from accel_train.tasks.sherlock.evaluation import largest_share

        terms = self._terms(models, batch)
        largest = largest_share({name: self.weights[name] * float(term) for name, term in terms.items()})
        if largest is not None and largest[1] > TOO_LARGE and not self._told:
            self._told = True
            name, share = largest
            yield Event("warning", f"loss: {name} is {share:.0%} of it, and hides the others; look at the weights")

    synth = staticmethod(synth)
    describe_files = staticmethod(describe_files)

"""The task: what is withheld by key, terms that begin near 1, exact metrics, and what it says."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.small_tasks import Brains
from support.stimuli import Film, FilmItems

from accel_train import Trainer
from accel_train.errors import UserError
from accel_train.tasks.sherlock.source import StimulusSource

NAMES = ["video", "audio", "tokens", "text"]


def tensors(batch):
    return {name: torch.as_tensor(np.asarray(values)) for name, values in batch.items()}


def whole(source):
    """One batch of all items."""
    return tensors(source.data.read(np.arange(len(source.data))))


def built(task, split="train", seed=0):
    data = task.build_data("train", 8, 0)
    torch.manual_seed(seed)
    model = task.build_model(data)
    return {"model": model.eval()}, whole(task.build_data(split, 8, 0))


# -- drop-out by key -------------------------------------------------------------------------------------------------


def source(seed=5, **dropout):
    items = FilmItems(Film(), "train", 3, 2, NAMES)
    return StimulusSource(items, 8, seed, True, **{"modality_dropout": 0.5, "subject_dropout": 0.3, **dropout})


def withheld(of, epoch, ranks):
    """What is withheld of each item of an epoch."""
    found = {}
    for step in range(of.steps(epoch)):
        for rank in range(ranks):
            batch = of.batch(epoch, step, rank, ranks)
            if batch is not None:
                for item, modality, subject in zip(
                    batch["item"], batch["keep_modality"], batch["keep_subject"], strict=True
                ):
                    found[int(item)] = (*modality.tolist(), bool(subject))
    return found


def test_what_is_withheld_is_of_the_item_and_the_epoch():
    one, other, second = (withheld(source(), 0, 1), withheld(source(), 0, 3), withheld(source(), 1, 1))
    assert one == other and len(one) == len(source().data)
    assert one != second and one != withheld(source(6), 0, 1)


def test_no_item_loses_all_it_has():
    of = source(modality_dropout=0.95)
    for epoch in range(3):
        for step in range(of.steps(epoch)):
            batch = of.batch(epoch, step, 0, 1)
            assert (batch["keep_modality"] & batch["available"]).any(1).all()


def test_nothing_is_withheld_from_an_evaluation():
    task = Brains(modality_dropout=0.5, subject_dropout=0.5)
    batch = task.build_data("validation", 8, 0).batch(0, 0, 0, 1)
    assert "keep_modality" not in batch and "keep_subject" not in batch
    assert "keep_modality" in task.build_data("train", 8, 0).batch(0, 0, 0, 1)


# -- the loss --------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("loss_type", ["mse", "mae", "correlation", "cosine", "temporal_correlation"])
@pytest.mark.parametrize("options", [{}, {"lag": "fir", "bottleneck": "voxels"}, {"time_layers": 1, "heads": 2}])
def test_every_term_begins_near_one(loss_type, options):
    task = Brains(fmri_loss_type=loss_type, **options)
    models, batch = built(task)
    objective = task.objectives()[0]
    loss = task.loss_step(models, batch, task.totals(models, batch, objective), objective)
    terms = {name: float(term) for name, term in loss.terms.items()}
    assert set(terms) == {"fmri", *NAMES}
    assert all(0.7 <= term <= 1.3 for term in terms.values()), terms
    assert max(terms.values()) / sum(terms.values()) < 0.6
    assert float(loss.value) == pytest.approx(sum(terms.values()), rel=1e-5)


@torch.no_grad()
def test_an_average_of_subjects_is_in_units_of_its_own_variance():
    task = Brains(target="average")
    for run in ("a", "b"):
        for subject in (0, 1):  # nothing in common: half of the variance is left
            noise = np.random.default_rng((subject, len(run) + ord(run))).normal(size=task.film.bold[0, run].shape)
            task.film.bold[subject, run] = noise.astype(np.float32)
    models, batch = built(task)
    assert float(models["model"].fmri_variance) == pytest.approx(0.5, abs=0.08)
    objective = task.objectives()[0]
    loss = task.loss_step(models, batch, task.totals(models, batch, objective), objective)
    assert float(loss.terms["fmri"]) == pytest.approx(1, abs=0.1)
    assert task.describe_predictions("validation")["rows"]["subject"][0] == -1


@torch.no_grad()
def test_weights_of_the_guide():
    task = Brains(reconstruction_weight=2.0, fmri_weight=3.0, video_weight=0.0, audio_weight=0.5)
    assert task.weights == {"fmri": 3.0, "video": 0.0, "audio": 1.0, "tokens": 2.0, "text": 2.0}
    models, batch = built(task)
    objective = task.objectives()[0]
    loss = task.loss_step(models, batch, task.totals(models, batch, objective), objective)
    assert float(loss.value) == pytest.approx(sum(task.weights[name] * float(t) for name, t in loss.terms.items()))


def test_nothing_to_train_is_said():
    task = Brains(reconstruction_weight=0.0, fmri_weight=0.0)
    models, batch = built(task)
    with pytest.raises(UserError, match="every weight of the loss is 0"):
        task.loss_step(models, batch, task.totals(models, batch, task.objectives()[0]), task.objectives()[0])


def test_two_volumes_have_no_correlation_over_time():
    with pytest.raises(UserError, match="window_trs is 2; give 20 or more"):
        Brains(fmri_loss_type="temporal_correlation", window_trs=2)


@torch.no_grad()
def test_a_term_that_hides_the_others_is_said():
    task = Brains()
    models, batch = built(task)
    assert list(task.monitor(models, batch)) == []
    task = Brains(fmri_weight=100.0)
    (event,) = task.monitor(*built(task))
    assert event.kind == "warning" and "fmri is 9" in event.title
    assert list(Brains(reconstruction_weight=0.0).monitor(models, batch)) == []  # it has no other


# -- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_are_those_of_all_volumes_at_once():
    task = Brains()
    models, batch = built(task, "validation")
    with torch.no_grad():
        made = task.predict_step(models, batch)["fmri"].double()
        metrics = task.eval_metrics(task.eval_step(models, batch))
    r = torch.zeros(3, 5, dtype=torch.float64)  # the last subject was not in training
    for subject in range(3):
        counts = batch["measured"] & (batch["subject"] == subject)[:, None]
        pairs = zip(made[counts].T.numpy(), batch["fmri"][counts].double().T.numpy(), strict=True)
        r[subject] = torch.tensor([np.corrcoef(x, y)[0, 1] for x, y in pairs])
    assert metrics["fmri_r"] == pytest.approx(float(r[:2].mean()), abs=1e-6)
    assert metrics["fmri_r_front"] == pytest.approx(float(r[:2, :2].mean()), abs=1e-6)
    assert metrics["fmri_r_new_subjects"] == pytest.approx(float(r[2].mean()), abs=1e-6)
    measured = batch["measured"]
    rows = zip(made[measured].numpy(), batch["fmri"][measured].double().numpy(), strict=True)
    spatial = np.mean([np.corrcoef(x, y)[0, 1] for x, y in rows])
    assert metrics["fmri_correlation"] == pytest.approx(spatial, abs=1e-6)
    assert metrics["fmri_r_undefined"] == 0
    assert sum(metrics[f"share_{name}"] for name in ("fmri", *NAMES)) == pytest.approx(1)
    assert all(metrics[f"{name}_over_mean"] == pytest.approx(1, abs=0.1) for name in NAMES)
    assert task.summary(metrics).startswith("brain: r over time") and "front" in task.summary(metrics)


def test_metrics_add_up_over_any_cut():
    task = Brains(float64=True)
    models, batch = built(task, "validation")
    with torch.no_grad():
        once = task.eval_metrics(task.eval_step(models, batch))
        parts = [task.eval_step(models, part) for part in task.split(batch, 5)]
        summed = task.eval_metrics({name: sum(part[name] for part in parts) for name in parts[0]})
    assert once.keys() == summed.keys()
    for name, value in once.items():
        assert summed[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name


@torch.no_grad()
def test_a_voxel_that_never_changes_has_no_r_and_is_counted():
    task = Brains()
    for run in ("a", "b", "c"):
        for subject in range(3):
            task.film.bold[subject, run][:, 1] = 0
    models, batch = built(task, "validation")
    metrics = task.eval_metrics(task.eval_step(models, batch))
    assert metrics["fmri_r_undefined"] == pytest.approx(1 / 5) and math.isfinite(metrics["fmri_r"])
    assert "20.0% of the voxels never change" in task.summary(metrics)


@pytest.mark.slow
def test_it_learns_what_a_linear_brain_does(tmp_path):
    settings = dict(max_steps=150, global_batch_size=32, learning_rate=1e-2, warmup_steps=0, report_to=[])
    task = Brains(modality_dropout=0.0, subject_dropout=0.0, window_trs=5, lag="fir")
    result = Trainer(task, output_dir=str(tmp_path / "run"), **settings).fit()
    assert result.metrics["fmri_r"] > 0.6 and result.metrics["fmri_r_new_subjects"] > 0.5
    assert result.metrics["video_over_mean"] < 0.3 and result.metrics["audio_over_mean"] < 0.3


# -- what it says ----------------------------------------------------------------------------------------------------


def test_predictions_say_whose_they_are():
    task = Brains()
    said = task.describe_predictions("validation")
    items = task.predict_data("validation", 8).data
    assert said["subjects"] == ["one", "two", "new"] and said["runs"] == ["a", "b", "c"]
    assert len(said["rows"]["subject"]) == len(said["rows"]["tr"]) == len(items)
    assert task.describe_predictions("test") == {} and task.predict_data("test", 8) is None


def test_modalities_are_chosen_by_name():
    assert [m.name for m in Brains(modalities=["text", "video"]).modalities] == ["video", "text"]
    with pytest.raises(UserError, match="the data have no smell; they have video, audio, tokens, text"):
        Brains(modalities=["smell"]).modalities  # noqa: B018


def test_classes_are_imported_when_they_are_asked_for():
    code = "import sys, accel_train.tasks.sherlock as s; assert 'torch' not in sys.modules; s.CombinedAutoEncoderLoss"
    code += "; s.SherlockTask; s.Autoencoder; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(ImportError, match="cannot import name 'Trainer'"):
        from accel_train.tasks.sherlock import Trainer  # noqa: F401

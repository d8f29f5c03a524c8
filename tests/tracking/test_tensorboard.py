"""TensorBoard: what was written is what is read back, after a resume as well."""

import re
import time

import numpy as np
import pytest
import torch
from support.processes import run
from support.runs import config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from accel_train.task import Task
from accel_train.tracking.observer import Run
from accel_train.tracking.tensorboard import TensorBoard


def start(folder, step=0, models=None, resumed_from=None) -> TensorBoard:
    observer = TensorBoard()
    described = {"seed": 3, "task": {"class_path": "toy", "folder": folder}}
    models = models or {"model": nn.Linear(3, 2)}
    observer.on_start(Run(folder, Task(), described, models, 100, start_step=step, resumed_from=resumed_from))
    return observer


def read(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    return events.Reload()


def scalars(folder, tag) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_numbers_of_every_kind_are_kept(tmp_path):
    observer = start(tmp_path)
    observer.on_log(
        {
            "kind": "train", "step": np.int64(5), "epoch": 0, "phase": "main", "loss": np.float32(0.5),
            "hits": np.int64(7), "next": 0.25, "n": 3, "grad_norm": np.float64(2.0), "lr": 1e-3,
            "lr/critic": np.float32(0.5), "items_per_s": np.float32(100.0), "step_s": 0.5, "wait_s": 0.25,
            "eta_s": 10.0, "cuda/max_alloc_mib": 512.5,
        }
    )  # fmt: skip
    observer.on_evaluate({"kind": "eval", "step": 5, "loss": np.float16(1.5), "accuracy": 1})
    observer.on_end("completed", {})
    expected = {
        "train/loss": 0.5, "train/hits": 7, "train/next": 0.25, "train/n": 3, "train/grad_norm": 2, "lr": 1e-3,
        "lr/critic": 0.5, "perf/items_per_s": 100, "perf/wait_share": 0.5, "eval/loss": 1.5, "eval/accuracy": 1,
        "cuda/max_alloc_mib": 512.5,
    }  # fmt: skip
    events = read(tmp_path)
    assert set(events.Tags()["scalars"]) == set(expected)
    for tag, value in expected.items():
        (event,) = events.Scalars(tag)
        assert (event.step, event.value) == (5, pytest.approx(value))


def test_a_metric_stands_beside_what_it_is_compared_with(tmp_path):
    from tensorboard.plugins.custom_scalar import layout_pb2

    observer = start(tmp_path)
    observer._run.baselines = {"next": 0.46, "accuracy:majority": 0.6}
    metrics = {"next": 0.5, "accuracy": 0.7, "w1": 1.0, "w1/floor": 0.1, "w1/cell 3": 2.0, "mae": 3.0, "mae/near": 4.0}
    for step in (5, 10):
        observer.on_evaluate({"kind": "eval", "step": step, **metrics})
    observer.on_end("completed", {})
    events = read(tmp_path)
    assert scalars(tmp_path, "baseline/accuracy:majority") == [(5, pytest.approx(0.6)), (10, pytest.approx(0.6))]
    assert {"eval/w1", "eval_w1/floor", "eval_w1/cell 3", "eval_mae/near"} <= set(events.Tags()["scalars"])
    (event,) = events.Tensors("custom_scalars__config__")
    (category,) = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]).category
    charts = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    assert charts["w1"] == ["^eval/w1$", "^eval_w1/floor$"] and len(charts) == 4
    assert charts["accuracy"] == ["^eval/accuracy$", "^baseline/accuracy:majority$"]
    tags = events.Tags()["scalars"]
    assert all(any(re.search(tag, each) for each in tags) for chart in charts.values() for tag in chart)


def test_hyperparameters_with_the_best_metric(tmp_path):
    from tensorboard.plugins.hparams import plugin_data_pb2

    observer = start(tmp_path)
    for step, value in ((5, 0.5), (10, 0.25), (15, 0.25)):
        observer.on_tick({"step": step, "best": {"step": min(step, 10), "value": value}})
    observer.on_end("completed", {"best": {"step": 10, "value": 0.25}})
    assert scalars(tmp_path, "best/loss") == [(5, 0.5), (10, 0.25)]
    metadata = read(tmp_path).summary_metadata
    found = [plugin_data_pb2.HParamsPluginData.FromString(each.plugin_data.content)
             for tag, each in metadata.items() if tag.startswith("_hparams_")]  # fmt: skip
    kinds = {each.WhichOneof("data"): each for each in found}
    assert set(kinds) == {"experiment", "session_start_info", "session_end_info"}
    assert kinds["session_start_info"].session_start_info.hparams["seed"].number_value == 3
    assert kinds["experiment"].experiment.metric_infos[0].name.tag == "best/loss"
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]


def test_config_is_a_yaml_code_block(tmp_path):
    start(tmp_path).on_end("completed", {})
    (event,) = read(tmp_path).Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert text == f"```yaml\nseed: 3\ntask:\n  class_path: toy\n  folder: {tmp_path}\n```"


def test_histograms_of_weights_and_of_what_the_task_shows(tmp_path):
    models = {"a": nn.Linear(3, 2).bfloat16(), "b": nn.Linear(2, 1)}
    with torch.no_grad():
        models["b"].weight[0, 0] = float("nan")  # one diverged weight must not end the curves
        models["b"].bias.fill_(float("inf"))
    observer = start(tmp_path, models=models)
    observer.on_histograms(10, {"data/counts": torch.tensor([3, 0, 5]), "data/none": torch.zeros(0)})
    observer.on_histograms(20, {})
    observer.on_end("completed", {})
    events = read(tmp_path)
    assert set(events.Tags()["histograms"]) == {"weights/a.weight", "weights/a.bias", "weights/b.weight", "data/counts"}
    assert [event.step for event in events.Histograms("weights/a.weight")] == [10, 20]
    assert events.Histograms("weights/b.weight")[0].histogram_value.num == 1
    (counts,) = events.Histograms("data/counts")
    found = counts.histogram_value
    assert (counts.step, found.min, found.max, found.num, found.sum) == (10, 0, 5, 3, 8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard
def test_steps_go_on_after_a_resume(tmp_path):
    """A real run, stopped and gone on with: every step is there once, in order."""
    settings = config(tmp_path, report_to=["tensorboard"], logging_steps=2, histogram_steps=6)
    (first,) = run({"config": settings, "stop_at": {"step": 10}})
    assert (first["outcome"], first["step"]) == ("stopped", 10)
    time.sleep(1.05)  # event files are named by the second
    (second,) = run({"config": settings})
    assert (second["outcome"], second["step"]) == ("completed", 24)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == list(range(2, 25, 2))
    assert [step for step, _ in scalars(tmp_path, "eval/loss")] == [6, 12, 18, 24]
    for tag in ("weights/0.weight", "data/y"):
        assert [event.step for event in read(tmp_path).Histograms(tag)] == [6, 12, 18, 24]


@pytest.mark.parametrize("kept", [4, 0])
def test_what_lies_behind_the_checkpoint_is_purged(tmp_path, kept):
    killed = start(tmp_path)
    killed.on_evaluate({"step": 0, "loss": 9.0})
    for step in range(1, 8):
        killed.on_log({"step": step, "loss": 1.0})
    killed.on_save(7, tmp_path)  # flushed, then killed: never closed
    time.sleep(1.05)  # event files are named by the second
    again = start(tmp_path, step=kept, resumed_from="x" if kept else None)
    for step in range(kept + 1, 10):
        again.on_log({"step": step, "loss": 2.0})
    again.on_end("completed", {})
    killed.on_end("crashed", {})
    assert scalars(tmp_path, "train/loss") == [(step, 1.0 if step <= kept else 2.0) for step in range(1, 10)]
    assert scalars(tmp_path, "eval/loss") == ([(0, 9.0)] if kept else [])


def test_figures_are_written_and_stay_usable(tmp_path):
    figure_module = pytest.importorskip("matplotlib.figure")
    figure = figure_module.Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    observer = start(tmp_path)
    observer.on_figures(3, {"none": 3, "curve": figure})
    observer.on_end("completed", {})
    assert read(tmp_path).Tags()["images"] == ["figures/curve"]
    figure.savefig(tmp_path / "curve.png")


def test_a_record_costs_little(tmp_path):
    observer = start(tmp_path)
    record = {f"term{i}": 0.5 for i in range(10)}
    begin = time.perf_counter()
    for step in range(200):
        observer.on_log({"step": step, **record})
    each = (time.perf_counter() - begin) / 200
    observer.on_end("completed", {})
    assert each < 0.02, f"{each * 1e3:.1f} ms for ten scalars"


def test_a_histogram_that_cannot_be_drawn_is_left_out(tmp_path):
    events: list = []
    observer = TensorBoard(events.append)
    observer.on_start(Run(tmp_path, Task(), {}, {"m": nn.Linear(1, 1)}, total_steps=9))
    for step in (1, 2):
        observer.on_histograms(step, {
            "huge": torch.tensor([1e25]), "none": torch.zeros(0), "complex": torch.ones(3, dtype=torch.complex64),
            "nan": torch.tensor([float("nan")]), "words": "no tensor",
        })  # fmt: skip
        observer.on_log({"step": step, "loss": 1.0})
    observer.on_end("completed", {})
    assert [event.title.split(",")[0] for event in events] == [
        "TensorBoard cannot draw the histogram of huge", "TensorBoard cannot draw the histogram of words"
    ]  # fmt: skip
    assert "no value is within its largest bin" in events[0].title
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 1.0)]
    assert set(read(tmp_path).Tags()["histograms"]) == {"complex", "weights/weight", "weights/bias"}

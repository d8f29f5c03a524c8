"""accel-train diff: what was planted is named, with its step and its kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import planted
from support.planted import Planted
from support.processes import launch, run
from support.runs import config

from accel_train import Trainer
from accel_train.cli import main
from accel_train.run.checkpoint import write_manifest
from accel_train.train import parting
from accel_train.train.loop import Step


def trained(folder: Path, task: dict[str, Any] | None = None, on_step: Any = None, **settings: Any) -> Path:
    """16 steps of 7 in an epoch, a checkpoint at 8."""
    usual = config(folder, max_steps=16, eval_steps=0, save_steps=8, save_total_limit=None, digest_steps=4)
    Trainer(Planted(**task or {}), check_contract=False, on_step=on_step, **usual | settings).fit()
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("a") / "run")


def diff(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["diff", *map(str, arguments), "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if code < 2 else {"error": said.err}


def first_step_with(item: int) -> int:
    source = Planted().build_data("train", 8, 0)
    assert source is not None
    return next(step for step in range(7) if item in source.indices(0, step)) + 1


# -- plants: each makes run B ----------------------------------------------------------------------------------------

Plant = Callable[[Path, Path], object]


def of_the_task(plant: str) -> Plant:
    return lambda a, b: trained(b, {"plant": plant})


def of_the_config(**settings: Any) -> Plant:
    return lambda a, b: trained(b, **settings)


def bit_in(name: str, alter: Callable[[Path], None]) -> Plant:
    """In the checkpoint of step 8, its manifest mended, from which B goes on."""

    def make(a: Path, b: Path) -> None:
        trained(b, max_steps=8)
        checkpoint = b / "checkpoints" / "step-000000008"
        alter(checkpoint / name)
        write_manifest(checkpoint, {"step": 8})
        trained(b)

    return make


def in_weights(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def in_optimiser(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["state"][0]["exp_avg"].view(torch.int32).flatten()[0] ^= 1 << 12
    torch.save(state, path)


def another_rate_for_a_while(a: Path, b: Path) -> None:
    """Two sessions more, of which only their checkpoints know."""
    trained(b, max_steps=10)
    trained(b, max_steps=11, learning_rate=0.02)
    trained(b)


def in_memory(a: Path, b: Path) -> None:
    """As a faulty memory would: no replay repeats it."""
    loop: list[Trainer] = []

    def flip(step: Step) -> None:
        if step.number == 14:
            weight = loop[0].models["model"].get_parameter("0.weight").data
            weight.view(torch.int32)[0, 0] ^= 1 << 20

    usual = config(b, max_steps=16, eval_steps=0, save_steps=8, save_total_limit=None, digest_steps=1)
    loop.append(Trainer(Planted(), check_contract=False, on_step=flip, **usual))
    loop[0].fit()


def a_log_line(a: Path, b: Path) -> None:
    shutil.copytree(a, b, symlinks=True)
    lines = [json.loads(line) for line in (b / "metrics.jsonl").read_text().splitlines()]
    lines[1]["loss"] *= 1.0000001
    (b / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


ITEM_3 = first_step_with(3)
BUMPED = {"lr_scheduler_type": "support.planted.bumped", "lr_scheduler_kwargs": {"at": 12}}
SGD = {"optimizer": {"class_path": "torch.optim.SGD"}}
FAST: dict[str, tuple[Plant, int | None, str, str]] = {
    "a rate at one step": (of_the_config(**BUMPED), 13, "update", "lr is 0.01 in A and 0.02 in B"),
    "a row": (of_the_task("row"), ITEM_3, "rows", "item 3 has other values (x)"),
    "a function": (of_the_task("function"), 11, "module", "model.1 (GELU) makes other outputs of the same inputs"),
}
MORE: dict[str, tuple[Plant, int | None, str, str]] = {
    "a label": (of_the_task("label"), ITEM_3, "rows", "item 3 has other values (y)"),
    "a row more": (of_the_task("one more row"), 7, "rows", "in the batch: none in A only, item 50 in B only"),
    "an order": (of_the_task("order"), 8, "rows", "the same rows in the batch, in another order"),
    "a drop-out seed": (of_the_task("drop-out seed"), 1, "module", "model.2 (Noise) makes other outputs of the same"),
    "a loss": (of_the_task("loss"), 11, "loss", "the same outputs of all modules, and another loss"),
    "a gradient": (of_the_task("gradient"), 11, "gradient", "the same loss, and other gradients: model.0.weight"),
    "a hook": (of_the_task("after"), 11, "update", "after_step) differs: model.0.bias"),
    "a seed": (of_the_config(seed=1), 1, "weights", "the weights before it differ already: model.0.weight"),
    "a batch": (of_the_config(global_batch_size=7), 1, "rows", "other rows in the batch: item"),
    "a clipping": (of_the_config(max_grad_norm=0.01), 1, "update", "the options of the optimisers are equal (clipping"),
    "a decay": (of_the_config(optimizer={"init_args": {"weight_decay": 0.3}}), 1, "update", "weight_decay is"),
    "an optimiser": (of_the_config(**SGD), 1, "update", "momentum is None in A and 0 in B"),
    "a warm-up": (of_the_config(warmup_steps=5), 1, "update", "lr is 0.01 in A and 0.0"),
    "a rate for a while": (another_rate_for_a_while, 11, "update", "lr is 0.01 in A and 0.02 in B"),
    "a bit of a weight": (bit_in("model.safetensors", in_weights), 9, "weights", "before it differ already: model."),
    "a bit of a moment": (bit_in("optimizer.bin", in_optimiser), 9, "optimizer", "exp_avg of model.model.0.weight"),
    "a bit in memory": (in_memory, None, "unrepeated", "B itself is not repeated from step 15 on"),
    "a log line": (a_log_line, None, "unrepeated", "a log or a checkpoint was altered"),
}  # fmt: skip


def check(capsys: pytest.CaptureFixture[str], a: Path, b: Path, step: int | None, kind: str, text: str) -> None:
    code, report = diff(capsys, a, b)
    replayed = report["replayed"]
    assert code == 1, report
    said = (replayed["step"], replayed["parting"]["kind"], [replayed["parting"]["text"], *replayed["notes"]])
    assert said[:2] == (step, kind) and any(text in line for line in said[2]), report


@pytest.mark.parametrize("name", FAST)
def test_what_was_planted(a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str):
    plant, *expected = FAST[name]
    plant(a, tmp_path / "b")
    check(capsys, a, tmp_path / "b", *expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_of_what_was_planted(a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str):
    plant, *expected = MORE[name]
    plant(a, tmp_path / "b")
    check(capsys, a, tmp_path / "b", *expected)


@pytest.mark.slow
def test_a_number_of_threads(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trained(tmp_path / "a", {"long": True})
    torch.set_num_threads(2)
    try:
        trained(tmp_path / "b", {"long": True})
    finally:
        torch.set_num_threads(1)
    check(capsys, tmp_path / "a", tmp_path / "b", 1, "module", "model.3 (Long) makes other outputs of the same inputs")
    assert "environment: threads: 1 -> 2" in diff(capsys, tmp_path / "a", tmp_path / "b")[1]["about"]


@pytest.mark.slow
def test_on_other_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The step is known from what is written; why is asked where the runs were made."""
    for seed in (0, 1):
        run({"config": config(tmp_path / f"{seed}", max_steps=6, digest_steps=2, seed=seed)}, 2)
    code, report = diff(capsys, tmp_path / "0", tmp_path / "1")
    assert code == 1 and report["written"]["apart"] == 2 and report["replayed"]["parting"]["kind"] == "environment"
    assert "both were made with ranks 2, and here it is 1" in report["replayed"]["parting"]["text"]


FIXED = {"reduction": "fixed", "reduction_parts": 4}


def on_ranks(ranks: int, folder: Path, plant: str = "", **settings: Any) -> Path:
    usual = config(folder, max_steps=16, eval_steps=0, save_steps=8, save_total_limit=None, digest_steps=4,
                   check_contract=False)  # fmt: skip
    task = {"task": f"{planted.__file__}:Planted", "task_args": {"plant": plant}}
    assert [each["error"] for each in run(task | {"config": usual | settings}, ranks)] == [None] * ranks
    return folder


def test_fixed_on_any_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Equal digests; and where they part, one process finds it for all."""
    one = on_ranks(1, tmp_path / "one", **FIXED)
    two = on_ranks(2, tmp_path / "two", "label", **FIXED)
    three = on_ranks(3, tmp_path / "three", **FIXED)
    code, report = diff(capsys, one, three, "--trust")
    assert code == 0 and report["written"]["compared"].startswith("4 digests"), report
    code, report = diff(capsys, three, two, "--trust")
    found = report["replayed"]
    assert (found["step"], found["parting"]["kind"], found["notes"]) == (ITEM_3, "rows", []), report
    assert found["parting"]["text"] == "item 3 has other values (y)"


ON_TWO = {
    "row": f"step {ITEM_3}: rows: item 3 has other values (x)",
    "gradient": "step 11: gradient: the same loss, and other gradients: model.0.weight",
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, FIXED], ids=["ordinary", "fixed"])
@pytest.mark.parametrize("plant", ON_TWO)
def test_replayed_on_two_ranks(tmp_path: Path, plant: str, settings: dict[str, Any]):
    a, b = on_ranks(2, tmp_path / "a", **settings), on_ranks(2, tmp_path / "b", plant, **settings)
    program = launch(2, "diff", str(a), str(b), "--trust")
    said, _ = program.communicate(timeout=100)
    assert program.returncode == 1 and ON_TWO[plant] in said and "is not repeated" not in said, said


@pytest.mark.slow
def test_another_version_of_the_code(a: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    """Under the same name: only the one that is here can be replayed."""
    real = Planted.loss_step

    def altered(self, models, batch, totals, objective):
        loss = real(self, models, batch, totals, objective)
        return loss._replace(value=loss.value * 1.001)

    monkeypatch.setattr(Planted, "loss_step", altered)
    trained(tmp_path / "b")
    check(capsys, a, tmp_path / "b", None, "unrepeated", "A itself is not repeated from step 4 on")


# -- the rest --------------------------------------------------------------------------------------------------------


def test_equal_ones(a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As far as both go, and with what changes nothing."""
    trained(tmp_path / "b", max_steps=11, num_workers=1, log_last_values=True)
    assert main(["diff", str(a), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-4:] == [
        "config: log_last_values: False -> True", "config: max_steps: 16 -> 11", "config: num_workers: 0 -> 1",
        "equal to step 11 (2 digests, 2 log records, 1 checkpoint)",
    ]  # fmt: skip


def test_in_words(a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trained(tmp_path / "b", max_grad_norm=0.01, digest_steps=0, max_steps=5)
    assert main(["diff", str(a), str(tmp_path / "b")]) == 1
    said = capsys.readouterr().out.splitlines()
    assert "config: max_grad_norm: 1.0 -> 0.01" in said
    count = "0 digests, 1 log record, 0 checkpoints"
    assert said[-2] == f"no step is known to be equal; at step 5 values in metrics.jsonl differ ({count}); both are " \
                       "replayed from the seed"  # fmt: skip
    assert said[-1].startswith("step 1: update: the same gradients, and another update:")


def test_what_cannot_be_said_is_one_line(
    a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    code, report = diff(capsys, a, tmp_path)
    assert code == 2 and f"{tmp_path}: no run folder" in report["error"]
    trained(tmp_path / "b", max_steps=3, logging_steps=3, digest_steps=0)
    code, report = diff(capsys, a, tmp_path / "b")
    assert code == 2 and "have no step in common with a digest, a log line or a checkpoint" in report["error"]
    trained(tmp_path / "c", seed=1, max_steps=5)
    monkeypatch.setattr(parting, "is_sharded", lambda _: True)
    code, report = diff(capsys, a, tmp_path / "c")
    assert code == 2 and "diff: under FSDP there are no digests" in report["error"]
    code, report = diff(capsys, a, a, "--every")
    assert code == 2 and "diff: unrecognized arguments: --every" in report["error"]

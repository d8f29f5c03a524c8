# ruff: noqa: E402
"""The example for causal language models: cuts, stops and LoRA, and what it exports is what transformers loads."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything of Hugging Face looks
transformers = pytest.importorskip("transformers", reason="pip install 'accel_train[hf]'")
peft = pytest.importorskip("peft", reason="pip install 'accel_train[hf]'")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft with transformers

import datasets
import torch
from support.processes import run
from support.runs import assert_same_run, config, distance, records

from accel_train import Trainer, load_exported
from accel_train.cli import main
from accel_train.config.read import parse
from accel_train.errors import UserError
from accel_train.registry import find

ROOT = Path(__file__).parents[1]
TASK = f"{ROOT}/examples/hf_language_model.py:LanguageModel"
LanguageModel = find(TASK)
TINY = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 12, "vocab_size": 40}
TINY |= {"bos_token_id": 39, "eos_token_id": 39}
SURE = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Rows of 2 to 12 tokens; the labels of every third row leave out its first half."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("tokens")
    rows = [random.integers(0, 40, random.integers(2, 13)).tolist() for _ in range(22)]
    labels = [[-100] * (len(row) // 2) + row[len(row) // 2 :] if i % 3 == 0 else row for i, row in enumerate(rows)]
    table = datasets.Dataset.from_dict({"input_ids": rows, "labels": labels})
    table.save_to_disk(folder / "disk")
    table.to_parquet(folder / "rows.parquet")
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A model as it lies on the Hub, with tied weights."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    torch.manual_seed(5)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**TINY | SURE)).save_pretrained(folder)
    return folder


def job(folder, data, stop_at=None, sure=True, task=None, **settings):
    arguments = {"train": str(data / "disk"), "validation": str(data / "disk"), "config": TINY | (SURE if sure else {})}
    settings = {"max_steps": 5, "global_batch_size": 6, "eval_steps": 3, "logging_steps": 1} | settings
    arguments |= {"block": 12} | (task or {})
    return {
        "task": TASK, "task_args": arguments, "config": config(folder, **settings),
        "stop_at": stop_at and {"step": stop_at},
    }  # fmt: skip


def trained(folder, data, ranks=1, **options):
    results = run(job(folder, data, **options), ranks, timeout=240)  # each rank imports transformers
    assert [result["error"] for result in results] == [None] * ranks
    return results[0]


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stopped_run_with_dropout_goes_on_bit_for_bit(tmp_path, data, ranks):
    trained(tmp_path / "whole", data, ranks, sure=False)
    for stop in (2, None):
        trained(tmp_path / "pieces", data, ranks, sure=False, stop_at=stop)
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        pytest.param(2, {}, marks=pytest.mark.slow, id="ranks"),
        pytest.param(1, {"micro_batch_size": 1}, id="micro-batches"),
        pytest.param(1, {"task": {"gradient_checkpointing": True}}, id="checkpointing"),
    ],
)
def test_cuts_change_nothing_although_rows_have_unequal_numbers_of_tokens(tmp_path, data, ranks, options):
    sgd = {"optimizer": {"class_path": "SGD"}, "learning_rate": 0.5}
    whole = trained(tmp_path / "whole", data, **sgd)
    cut = trained(tmp_path / "cut", data, ranks, **sgd, **options)
    assert distance(cut["weights"], whole["weights"]) < 1e-5
    losses = [[r["loss"] for r in records(tmp_path / each) if "grad_norm" in r] for each in ("cut", "whole")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 5
    assert cut["metrics"] == pytest.approx(whole["metrics"], rel=1e-5)


def test_parquet_is_the_same_as_a_folder(data):
    batches = []
    for place in ("disk", "*.parquet"):
        task = LanguageModel(train=str(data / place), config=TINY, block=12)
        batches.append(task.build_data("train", 6, 1).batch(0, 1, 0, 1))
    assert all(torch.equal(value, batches[1][name]) for name, value in batches[0].items())


def test_the_loss_is_that_of_transformers_over_all_tokens(tmp_path, data, pretrained):
    """A batch of all rows: its loss, before the first step, is the mean over its tokens."""
    options = {"global_batch_size": 22, "max_steps": 1, "micro_batch_size": 5, "eval_steps": 1, "learning_rate": 0.0}
    result = trained(tmp_path / "run", data, task={"model": str(pretrained), "config": {}}, **options)
    model = transformers.AutoModelForCausalLM.from_pretrained(pretrained).eval()
    losses, tokens = 0.0, 0
    with torch.no_grad():
        for row in datasets.load_from_disk(str(data / "disk")):
            labels = torch.tensor([row["labels"]])
            count = int((labels[:, 1:] != -100).sum())
            if count:
                losses += float(model(torch.tensor([row["input_ids"]]), labels=labels).loss) * count
            tokens += count
    (logged,) = (r["loss"] for r in records(tmp_path / "run") if "grad_norm" in r)
    assert logged == pytest.approx(losses / tokens, rel=1e-5)
    metrics = result["metrics"]
    assert metrics["loss"] == pytest.approx(losses / tokens, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(np.exp(losses / tokens), rel=1e-4)
    assert metrics["perplexity/low"] < metrics["perplexity"] < metrics["perplexity/high"]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(12)[None]).logits


def test_what_is_exported_is_the_model_in_plain_transformers(tmp_path, data):
    trained(tmp_path / "run", data, sure=False)
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--trust"]) == 0
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "pretrained")
    _, models, _ = load_exported(tmp_path / "out", trust=True)
    assert torch.equal(logits(plain), logits(models["model"]))
    assert plain.lm_head.weight is plain.transformer.wte.weight
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / "pretrained")) == 259


def test_lora_trains_adapters_alone_and_exports_both(tmp_path, data, pretrained):
    lora = {"model": str(pretrained), "config": {}, "lora": LORA}
    whole = trained(tmp_path / "run", data, task=lora)
    for stop in (2, None):
        trained(tmp_path / "pieces", data, task=lora, stop_at=stop)
    assert_same_run(tmp_path / "pieces", tmp_path / "run")
    base = transformers.AutoModelForCausalLM.from_pretrained(pretrained)
    before, after = logits(base), {name.replace(".base_layer", ""): w for name, w in whole["weights"].items()}
    for name, value in base.state_dict().items():
        assert np.array_equal(after[f"model.base_model.model.{name}"], value.double().numpy())
    adapters = [value for name, value in after.items() if "lora_B" in name]
    assert adapters and all(np.abs(value).max() > 0 for value in adapters)

    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--trust"]) == 0
    _, models, _ = load_exported(tmp_path / "out", trust=True)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "pretrained")
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")
    found = logits(models["model"])
    assert not torch.allclose(found, before)
    torch.testing.assert_close(logits(merged), found, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(adapted), found)


def test_vectors_do_not_decay(data):
    task = LanguageModel(train=str(data / "disk"), config=TINY, block=12)
    options = {name: task.parameter_options(name, p) for name, p in task.build_model(None).named_parameters()}
    still = {name for name, each in options.items() if each}
    assert still == {name for name in options if name.endswith("bias") or "ln_" in name}


def test_text_is_packed_to_the_last_token(tmp_path):
    texts = ["Hello, wörld", "and a second text"]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    fields = {name: value for name, value in TINY.items() if name != "vocab_size"}
    task = LanguageModel(train=str(tmp_path / "*.txt"), config=fields, block=8)
    source = task.build_data("train", 2, 0)
    rows = [row.tolist() for row in source.data[:]["input_ids"]]
    assert [len(row) for row in rows] == [8, 8, 8, 8]
    tokens = [token for row in rows for token in row]
    assert task.tokenizer.decode(tokens) == "</s>".join([*texts, ""]) and task.config.vocab_size == 259


def test_the_example_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    task, settings = parse(
        ["--config", "examples/hf_language_model.yaml", f"--output_dir={tmp_path}/run", "--max_steps=2",
         "--report_to=[]", "--global_batch_size=2", "--logging_steps=1", "--task.init_args.config.n_embd=8",
         "--task.init_args.block=32"],
    )  # fmt: skip
    result = Trainer(task, settings).fit()
    assert result.step == 2 and "perplexity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"config": {}}, "give a model, or a config with its model_type"),
        ({"config": {"model_type": "gtp2"}}, "task.init_args.config: ValueError: .*gtp2"),
        ({"config": TINY | {"n_layers": 2}}, r"gpt2 has no 'n_layers' \(did you mean n_layer\?\)"),
        ({"model": "nobody/nothing"}, "task.init_args.model nobody/nothing: OSError: "),
        ({"train": "nowhere/*.txt"}, r"nowhere/\*.txt: there are no such files"),
        ({"block": 100}, "task.init_args.block: 100 tokens, but this model takes 12 at most"),
        ({"block": 8}, r"disk: rows of up to 12 tokens; cut them, or raise block \(8\)"),
        ({"config": TINY | {"vocab_size": 9}}, "tokens from 0 to .*, but the model knows those from 0 to 8"),
        ({"lora": {"rank": 8}}, "task.init_args.lora: TypeError: .*'rank'"),
        ({"lora": {"target_modules": ["q"]}}, "task.init_args.lora: .*Target modules .* not found"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes_are_one_line(data, arguments, says):
    with pytest.raises(UserError, match=says) as error:
        task = LanguageModel(**{"train": str(data / "disk"), "config": TINY, "block": 12} | arguments)
        source = task.build_data("train", 4, 0)
        source.batch(0, 0, 0, 1)
        task.build_model(source)
    assert "\n" not in str(error.value)

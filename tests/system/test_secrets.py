"""No secret in what a run writes and says: text, configs, a whole run folder; and how it is given again."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from accel_train import IndexedSource, Loss, Task, Trainer, load_exported
from accel_train.cli import main
from accel_train.commands.export import export_run
from accel_train.config.plain import to_dict
from accel_train.config.schema import TrainConfig
from accel_train.errors import UserError
from accel_train.system.secrets import HIDDEN, scrub, scrub_tree, was_scrubbed
from accel_train.task import Event
from accel_train.train.measuring import evaluate_run

# -- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "--hub_token=abc123", "--hub_token abc123", "--wandb.api_key=abc123", "--API-KEY=abc123",
        "WANDB_API_KEY=abc123", "AWS_SECRET_ACCESS_KEY=abc123", "--password abc123", "passwd: abc123",
        "--token='abc123'", '{"token": "abc123"}', "{'api_key': 'abc123'}", "Authorization: Bearer abc123",
        "https://user:abc123@host/x", "http://abc123@host", "git+https://oauth2:abc123@host/x.git",
        "https://user:pa@abc123@host/x", "s3 url https://abc123:x@host:80/y", "s3://id:abc123@bucket/x",
        "https://discord.com/api/webhooks/99/abc123", "https://discordapp.com/api/webhooks/99/abc123?wait=true",
        "https://hooks.slack.com/services/T0/B0/abc123", "https://chat.org/hooks/abc123",
        "https://org.webhook.office.com/webhookb2/abc123", "hf_abc123abc123abc123abc123",
        "ghp_abc123abc123abc123abc123", "AKIAABC123ABC123ABC123abc123", "eyJabc123abc123abc123.eyJabc123.abc123",
        "https://host/x.parquet?sig=abc123", "https://host/x?se=2026&sp=r&sig=abc123%3D", "https://host/x?abc123",
        "https://b.s3.amazonaws.com/x?X-Amz-Credential=abc123&X-Amz-Signature=abc123", "/x/y?sig=abc123",
        "https:/user:abc123@host/x", "https:/host/x?sig=abc123",  # as pathlib has it
        "pelican://host/x.parquet?authz=abc123", "AccountName=me;AccountKey=abc123",
    ],
)  # fmt: skip
def test_secrets_are_taken_out(text):
    for around in ("{}", "accel-train train {} --max_steps=3", "ConnectionError: {} refused", "cannot read '{}'"):
        found = scrub(around.format(text))
        assert "abc123" not in found and HIDDEN in found
        assert found.endswith(around.partition("{}")[2].lstrip("'")), "and nothing else"


@pytest.mark.parametrize(
    "text",
    [
        "accel-train train --config examples/collatz_small.yaml --max_steps=3 --task.init_args.d_model=32",
        "model.head.weight has another shape (1 such); it is of another model",
        "ValueError: 3 tokens expected, got 5 tokens in row 7",
        "https://pypi.org/project/torch and /data/token/x.parquet",
        "cannot read https://example.org/data.h5: 404",
        "https://zenodo.org/records/1/files/x.parquet?download=1",
        "pelican://osg-htc.org/a/b?.parquet", "s3://bucket/[ab]?/*.h5",
        "abfs://container@account.dfs.core.windows.net/x", "sftp://me@host/x",
        "https://host/x?se=2026-01-01&sp=r&sig=${SIG}", "https://${USER}:${PW}@host/x", "api_key=${KEY}",
        "task.init_args.remote.token_file: expected text or null, got 3", "webhook.password: no such option",
        "--task.init_args.remote.token_file=/home/me/.token", "examples/hf_language_model.py:LanguageModel",
    ],
)  # fmt: skip
def test_the_rest_stays(text):
    assert scrub(text) == text and not was_scrubbed("files", text)


@pytest.mark.parametrize("part", ["a", "a.", "-", "--a.", "token-", "a:/", "https://h/a?x=1 ", "a@", "//", "key="])
def test_a_long_text_takes_no_long_time(part):
    started = time.process_time()
    scrub(part * (200_000 // len(part)))
    assert time.process_time() - started < 5


def test_the_end_of_a_sentence_stays():
    assert scrub("cannot read https://host/x?sig=abc: 404") == "cannot read https://host/x?***: 404"
    assert scrub("(https://host/x?sig=abc), then") == "(https://host/x?***), then"


def test_a_tree_loses_values_by_their_keys_too():
    tree = {
        "password": 1234, "hub_token": "abcdefgh", "storage": {"client_secret": "x", "accountKey": "y", "key": "k"},
        "files": ["https://h/x?sig=abc", "plain"], "eos_token": "</s>", "token": 5, "token_file": "/x/y",
        "api_key": "${KEY}", "password_file": "/z", "secret": None,
    }  # fmt: skip
    assert scrub_tree(tree) == tree | {
        "password": HIDDEN, "hub_token": HIDDEN, "storage": {"client_secret": HIDDEN, "accountKey": HIDDEN, "key": "k"},
        "files": ["https://h/x?***", "plain"],
    }  # fmt: skip


def test_an_event_holds_no_secret():
    event = Event("warning", "cannot read https://h/x?sig=abc123", {"url": "https://u:abc123@h", "rows": 3})
    assert (event.title, event.fields) == ("cannot read https://h/x?***", {"url": "https://***@h", "rows": 3})


# -- a run -----------------------------------------------------------------------------------------------------------


class Rows:
    def __len__(self):
        return 8

    def read(self, indices):
        return {"x": torch.ones(len(indices), 2)}


class UrlTask(Task):
    def __init__(self, files: list[str] | str, options: dict | None = None):
        self.files = files

    def build_data(self, split, batch_size, seed):
        if "crash" in str(self.files):
            raise RuntimeError(f"cannot open {self.files}")
        return IndexedSource(Rows(), batch_size, seed)

    def build_model(self):
        return nn.Linear(2, 1)

    def loss_step(self, models, batch, totals, objective):
        return Loss(models["model"](batch["x"]).sum() / totals["items"])

    def eval_step(self, models, batch):
        return {"loss": models["model"](batch["x"]).sum()}

    def eval_metrics(self, sums):
        return {"loss": float(sums["loss"])}


URL = "https://host/x.parquet?sv=1&sig=abc123"
OPTIONS = {"password": "abc123", "proxy": "http://me:abc123@proxy"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(UrlTask, "__module__", "secret_urls")
    monkeypatch.setitem(sys.modules, "secret_urls", sys.modules[__name__])
    monkeypatch.setattr(sys, "argv", ["accel-train", "train", f"--task.init_args.files={URL}"])
    monkeypatch.setattr("accel_train.system.secrets._known", set())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(files=URL, options=OPTIONS, **settings):
    given = {"output_dir": "run", "max_steps": 2, "global_batch_size": 4, "save_steps": 1} | settings
    return Trainer(UrlTask(files, options), **given).fit()


def leaks(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and b"abc123" in file.read_bytes()]


def test_no_secret_is_in_the_run_folder_and_the_same_settings_go_on(here, capsys):
    train(tb_sync_to="memory://copies?token=abc123")
    assert (here / "run/model/config.json").is_file() and not leaks(here)
    assert train(max_steps=3, tb_sync_to="memory://copies?token=abc123").step == 3
    printed = capsys.readouterr().out
    assert "abc123" not in printed and "resuming with a changed config: max_steps: 2 -> 3" in printed
    assert not leaks(here)


def test_what_was_taken_out_is_asked_for_by_its_key_and_given_again(here, capsys):
    train(options={"password": "abc123"})
    go_on = ["train", "--config", "run/config.yaml", "--max_steps=3"]
    capsys.readouterr()
    assert main(go_on) == 2
    said = capsys.readouterr().err
    assert said.startswith("accel-train: error: task.init_args.files: ") and said.count("\n") == 1
    assert "--task.init_args.files=..." in said and "${NAME}" in said
    assert main([*go_on, f"--task.init_args.files={URL}"]) == 2
    assert "task.init_args.options.password: " in capsys.readouterr().err
    again = [f"--task.init_args.files={URL}", "--task.init_args.options.password=abc123"]
    assert main([*go_on, *again]) == 0
    assert not leaks(here)
    with pytest.raises(UserError, match=r"task.init_args.files: a secret stood where .*\*\*\*"):
        evaluate_run(Path("run"))
    assert main(["evaluate", "run"]) == 2
    assert main(["evaluate", "run", *again]) == 0
    assert main(["evaluate", "run/checkpoints/latest", *again]) == 0
    assert main(["evaluate", "run", *again, "--seed=3"]) == 2
    load_exported(export_run(Path("run"), None, Path("out")))  # what needs no data needs no secret
    assert not leaks(here)


def test_a_secret_may_come_from_the_environment(here, capsys, monkeypatch):
    monkeypatch.setenv("SIG", "abc123")
    given = ["--task=secret_urls.UrlTask", "--task.init_args.files=https://host/x?sig=${SIG}", "--max_steps=2"]
    given += ["--output_dir=run", "--global_batch_size=4"]
    assert main(["train", *given]) == 0
    assert "files: https://host/x?sig=${SIG}\n" in Path("run/config.yaml").read_text() and not leaks(here)
    assert main(["train", "--config=run/config.yaml", "--max_steps=3"]) == 0
    assert main(["evaluate", "run"]) == 0
    monkeypatch.delenv("SIG")
    capsys.readouterr()
    for command in (["train", "--config=run/config.yaml"], ["evaluate", "run"]):
        assert main(command) == 2
        said = "task.init_args.files: 'https://host/x?sig=${SIG}' needs the environment variable SIG, which is not set"
        assert capsys.readouterr().err == f"accel-train: error: {said}\n"
    assert main(["export", "run", "--out=out"]) == 0


def test_print_config_and_error_lines_and_tracebacks_hold_no_secret(here, capsys, monkeypatch):
    given = ["train", "--task=secret_urls.UrlTask", "--max_steps=2", "--output_dir=run"]
    assert main([*given, f"--task.init_args.files={URL}", "--print_config"]) == 0
    assert main([*given, f"--task.init_args.files={URL}", "--seed=http://u:abc123@host"]) == 2
    assert main([*given, "--task.init_args.files=https://crash/x?sig=abc123"]) == 1
    printed = capsys.readouterr()
    assert "abc123" not in printed.out + printed.err
    assert "Traceback" in printed.err and "RuntimeError: cannot open https://crash/x?***\n" in printed.err
    monkeypatch.setenv("MY_PASSWORD", "abc123")  # its value is known then, wherever it turns up
    assert main([*given, "--task.init_args.files=crash ${MY_PASSWORD}"]) == 1
    assert "RuntimeError: cannot open crash ***\n" in capsys.readouterr().err


def test_to_dict_of_a_config_made_in_python():
    tree = to_dict(UrlTask(URL, OPTIONS), TrainConfig(optimizer={"init_args": {"api_key": "abc123"}}))  # type: ignore
    assert tree["task"]["init_args"]["files"] == "https://host/x.parquet?***" and "abc123" not in str(tree)


def test_the_command_line_says_no_secret_from_a_process_of_its_own(tmp_path):
    given = ["--task=collatz", "--max_steps=abc", "--init_from=https://h/x?sig=abc123", "--seed=https://u:abc123@h"]
    done = subprocess.run([sys.executable, "-m", "accel_train", "train", *given], capture_output=True, text=True)
    assert done.returncode == 2 and "abc123" not in done.stderr

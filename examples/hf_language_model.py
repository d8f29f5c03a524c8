"""Causal language models of Hugging Face: from their beginning, fine-tuned, or with LoRA. A task to copy and to change.

    accel-train train --config examples/hf_language_model.yaml
    accel-train export runs/language_model --out exported --trust
    AutoModelForCausalLM.from_pretrained("exported/pretrained")  # in plain transformers

Text is packed: texts follow one another, each with a token at its end, and are cut into blocks. Rows of token ids stay
rows; short ones are padded on the right, which a causal model does not see. The first token of a row is given.
"""

from __future__ import annotations

import contextlib
import math
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Annotated, Any, Literal

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
import transformers
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from accel_train import Loss, Range, Task, from_dataset
from accel_train.errors import DataError, UserError, brief, suggest
from accel_train.intervals import ratio
from accel_train.sums import Correlation
from accel_train.task import Exports

IGNORED = -100  # a label that is not to be predicted, as in transformers


class LanguageModel(Task, Exports):
    """Predicts the next token, with a model of Hugging Face.

    Args:
        train, validation: a folder that ``Dataset.save_to_disk`` has written, Parquet files, both with ``input_ids``
            and perhaps ``labels`` (-100: not predicted), or files of text (``corpus/**/*.txt``), which are put into
            tokens at every start and kept in memory. No validation: none.
        model: a name on the Hub or a folder. Empty: random weights, by ``config`` alone.
        config: fields of its configuration, over those of the model; ``{model_type: gpt2, n_layer: 2}``.
        tokenizer: for text: a name on the Hub or a folder. Empty: that of the model; without one, a byte is a token.
        block: most tokens of a row.
        dtype: of the weights. bfloat16 is for those that LoRA freezes: what is trained needs float32.
        lora: arguments of ``peft.LoraConfig``; ``{r: 8, lora_alpha: 16, target_modules: [q_proj, v_proj]}``.
        gradient_checkpointing: less memory for activations, and a third more time.
    """

    name = "language_model"
    movable = ("train", "validation")

    def __init__(
        self,
        train: str,
        validation: str = "",
        model: str = "",
        config: dict[str, Any] | None = None,
        tokenizer: str = "",
        block: Annotated[int, Range(2)] = 512,
        dtype: Literal["float32", "bfloat16"] = "float32",
        lora: dict[str, Any] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        if not model and "model_type" not in (config or {}):
            raise UserError("task.init_args: give a model, or a config with its model_type, such as gpt2 or llama")
        self.places = {"train": train, "validation": validation}
        self.model, self.fields, self.tokenizer_name = model, config or {}, tokenizer or model
        self.block, self.dtype, self.lora = block, getattr(torch, dtype), lora
        self.gradient_checkpointing = gradient_checkpointing

    def build_data(self, split, batch_size, seed):
        if not (place := self.places.get(split)):
            return None
        longest = getattr(self.config, "max_position_embeddings", self.block)
        if self.block > longest:
            raise UserError(f"task.init_args.block: {self.block} tokens, but this model takes {longest} at most")
        rows = self.rows_of(place)
        if "input_ids" not in (columns := rows.column_names):
            raise DataError(f"{place} has no column input_ids, but {', '.join(columns)} (of splits, give one)")
        longest = pc.max(pc.list_value_length(rows.with_format("arrow")[:]["input_ids"])).as_py() or 0
        if longest > self.block:
            raise DataError(f"{place}: rows of up to {longest:,} tokens; cut them, or raise block ({self.block})")
        rows = rows.with_format("torch", columns=[name for name in ("input_ids", "labels") if name in columns])
        return from_dataset(rows, batch_size, seed, split == "train", collate_fn=self.padded)

    def padded(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """int64 [rows, tokens of the longest]"""
        tokens = pad_sequence([row["input_ids"] for row in rows], True, 0)
        if ((tokens < 0) | (tokens >= self.config.vocab_size)).any():
            raise DataError(f"tokens from {tokens.min()} to {tokens.max()}, but the model knows those from 0 to "
                            f"{self.config.vocab_size - 1}; are they of another tokenizer?")  # fmt: skip
        labels = pad_sequence([row.get("labels", row["input_ids"]) for row in rows], True, IGNORED)
        return {"input_ids": tokens, "labels": labels}

    def rows_of(self, place: str) -> datasets.Dataset:
        try:
            if Path(place).is_dir():
                return datasets.load_from_disk(place)
            files = sorted(file for file in glob(place, recursive=True) if Path(file).is_file())
            if files and all(file.endswith(".parquet") for file in files):
                return datasets.Dataset.from_parquet(files)
            texts = [Path(file).read_text(encoding="utf-8") for file in files]
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"{place}: {brief(error)}") from None
        if not texts:
            raise DataError(f"{place}: there are no such files")
        if (end := self.tokenizer.eos_token_id) is None:
            raise UserError("task.init_args.tokenizer: it has no token for the end of a text (eos_token)")
        ids = [[*self.tokenizer.encode(text, add_special_tokens=False, verbose=False), end] for text in texts]
        tokens = np.concatenate(ids).astype(np.int32)
        blocks = [tokens[i : i + self.block] for i in range(0, len(tokens), self.block)]
        return datasets.Dataset.from_dict({"input_ids": blocks})

    @cached_property
    def tokenizer(self) -> Any:
        if not self.tokenizer_name:
            return transformers.ByT5Tokenizer(extra_ids=0)  # a byte is a token
        return asked(
            f"tokenizer {self.tokenizer_name}", transformers.AutoTokenizer.from_pretrained, self.tokenizer_name
        )

    @cached_property
    def config(self) -> Any:
        if self.model:
            config, fields = (
                asked(f"model {self.model}", transformers.AutoConfig.from_pretrained, self.model),
                self.fields,
            )
        else:
            config = asked("config", transformers.AutoConfig.for_model, self.fields["model_type"])
            end = self.tokenizer.eos_token_id
            fields = {"vocab_size": len(self.tokenizer), "bos_token_id": end, "eos_token_id": end} | self.fields
        known = {**config.to_dict(), **config.attribute_map}
        if unknown := [name for name in fields if name not in known]:
            near = suggest(unknown[0], known)
            raise UserError(f"task.init_args.config: {config.model_type} has no {unknown[0]!r}{near}")
        config.update({name: value for name, value in fields.items() if name != "model_type"})
        return config

    def build_model(self, train):
        auto = transformers.AutoModelForCausalLM
        if self.model and train is not None:
            model = asked(f"model {self.model}", auto.from_pretrained, self.model, config=self.config, dtype=self.dtype)
        else:  # weights come from elsewhere, or are to be random
            model = auto.from_config(self.config, dtype=self.dtype)
        if self.gradient_checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None)  # its name in newer versions
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        if self.lora:
            import peft

            options = asked("lora", peft.LoraConfig, task_type="CAUSAL_LM", **self.lora)
            model = asked("lora", peft.get_peft_model, model, options)
        return model

    def parameter_options(self, name, parameter):
        """Biases and norms do not decay, as with the HF Trainer."""
        return {"weight_decay": 0.0} if parameter.ndim < 2 else {}

    def totals(self, models, batch, objective):
        return {"tokens": (batch["labels"][:, 1:] != IGNORED).sum()}

    def loss_step(self, models, batch, totals, objective):
        return Loss(models["model"](**batch, use_cache=False, num_items_in_batch=totals["tokens"]).loss)

    def eval_step(self, models, batch):
        logits = models["model"](batch["input_ids"], use_cache=False).logits[:, :-1].float()
        labels = batch["labels"][:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none").sum(1)
        return {"rows": Correlation.sums(losses.double(), (labels != IGNORED).sum(1).double())}

    def eval_metrics(self, sums):
        """``low`` and ``high``: how far the perplexity would move with other rows (95 %), if these are independent."""
        _, losses, tokens, *_ = sums["rows"].tolist()
        loss, ends = losses / tokens, ratio(sums["rows"])
        found = {"perplexity": loss, "perplexity/low": ends.low, "perplexity/high": ends.high}
        return {"loss": loss} | {name: math.exp(min(value, 700.0)) for name, value in found.items()}

    def summary(self, metrics):
        return "perplexity {perplexity:.4g}, 95 %: {perplexity/low:.4g} to {perplexity/high:.4g}".format(**metrics)

    def export_programs(self, models, folder):
        """``pretrained`` for transformers; with LoRA the adapters are merged there, and alone in ``adapter``."""
        model = models["model"]
        if self.lora:
            model.save_pretrained(folder / "adapter")
            model = model.merge_and_unload()
        model.save_pretrained(folder / "pretrained")
        with contextlib.suppress(UserError):  # a model may come without a tokenizer
            self.tokenizer.save_pretrained(folder / "pretrained")


def asked(option: str, make: Any, *arguments: Any, **options: Any) -> Any:
    """What a library makes of an option, or its refusal in a line."""
    try:
        return make(*arguments, **options)
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"task.init_args.{option}: {brief(error)}") from None

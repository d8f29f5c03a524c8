"""accel-train export: saved weights as safetensors, with what is needed to rebuild the models."""

from __future__ import annotations

import argparse
from pathlib import Path

from accel_train.command import Parser, add_weights
from accel_train.config.plain import to_dict
from accel_train.run.reports import Reports, warn
from accel_train.run.saved import find_saved
from accel_train.system.writing import files_in, refuse_filled, refuse_unwritable, writing
from accel_train.task import Exports, hook


def add_arguments(parser: Parser) -> None:
    add_weights(parser)
    parser.add_argument("--out", type=Path, required=True, help="an empty or new folder")


def run(options: argparse.Namespace) -> int:
    out = export_run(options.run, options.checkpoint, options.out, options.trust)
    print(f"exported to {out}: {', '.join(str(file.relative_to(out)) for file in files_in(out))}")
    trust = ", trust=True" if options.trust else ""
    print(f"  load  task, models, about = accel_train.load_exported({str(out)!r}{trust})")
    return 0


def export_run(run: Path, checkpoint: str | None, out: Path, trust: bool = False) -> Path:
    """Weights as safetensors with what is needed to rebuild the models, for ``accel_train.load_exported``.

    Args:
        trust: also import a task that is in no installed package, and not imported yet.
    """
    from accel_train.run.weights import export_models, whole_state

    refuse_unwritable("--out", Path(out))
    refuse_filled("--out", Path(out))
    target = Path(out).resolve()
    saved = find_saved(run, checkpoint, trust=trust)
    models = saved.load_models()
    states = {name: whole_state(model) for name, model in models.items()}
    described = to_dict(saved.task, saved.config)
    with writing("--out", target):
        export_models(target, states, described, saved.info)
    with Reports(target)("export_programs", warn):
        hook(saved.task, Exports, "export_programs")(models, target)
    return Path(out)

"""accel-train export: saved weights as safetensors, with what is needed to rebuild the models."""

from __future__ import annotations

from pathlib import Path

from accel_train.config.plain import to_dict
from accel_train.errors import UserError
from accel_train.run.reports import Reports, warn
from accel_train.run.saved import find_saved
from accel_train.system.writing import refuse_unwritable, writing
from accel_train.task import Exports, hook


def export_run(run: Path, checkpoint: str | None, out: Path, trust: bool = False) -> Path:
    """Weights as safetensors with what is needed to rebuild the models, for ``accel_train.load_exported``.

    Args:
        trust: also import a task that is in no installed package, and not imported yet.
    """
    from accel_train.run.weights import export_models, whole_state

    refuse_unwritable("--out", Path(out))
    target = Path(out).resolve()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"--out {out}: there is something there; give an empty or new folder")
    saved = find_saved(run, checkpoint, trust=trust)
    models = saved.load_models()
    states = {name: whole_state(model) for name, model in models.items()}
    described = to_dict(saved.task, saved.config)
    with writing("--out", target):
        export_models(target, states, described, saved.info)
    with Reports(target)("export_programs", warn):
        hook(saved.task, Exports, "export_programs")(models, target)
    return Path(out)

"""Going on from a checkpoint: which one, and whether it is this run's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from accel_train.classes import same_optimizer
from accel_train.config.plain import differences
from accel_train.errors import UserError, brief
from accel_train.run import late
from accel_train.run.checkpoint import MANIFEST, read_progress, verified
from accel_train.system.waiting import StoppedError
from accel_train.task import Event
from accel_train.train import averages
from accel_train.train.groups import Group
from accel_train.train.lineage import MEANING
from accel_train.train.optim import renew_groups, renew_options
from accel_train.train.saving import Saver
from accel_train.train.session import Session
from accel_train.train.state import RunState
from accel_train.train.world import Ranks


def restore(saver: Saver) -> dict[str, Any] | None:
    """Load the checkpoint that ``resume_from_checkpoint`` names and return its progress; None to start afresh."""
    session = saver.session
    answer: tuple[str, Any] = ("none", None)
    if session.ranks.is_main:
        try:
            chosen = _choose(saver)
            answer = ("path", chosen and (chosen, (Path(chosen) / MANIFEST).read_text()))
        except UserError as error:
            answer = ("error", str(error))
        except OSError as error:
            answer = ("error", f"{saver.checkpoints.root} cannot be used: {brief(error)}")
    kind, value = session.ranks.from_main(answer)
    if kind == "error":
        raise UserError(value)
    if value is None:
        return None
    path = Path(value[0])
    _see(session.ranks, path, manifest=value[1])
    try:
        session.accelerator.load_state(str(path))
        averages.load(session.stepper.averages, path)
    except (RuntimeError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"checkpoint {path} does not fit this model or optimizer: {first}") from error
    _renew_options(session, path)
    progress = read_progress(path)
    saver.lineage.go_on_from(path, progress["position"]["step"])
    saver.last_saved = progress["position"]["step"] if path.parent == saver.checkpoints.root else None
    saver.resumed_from = path
    return progress


def _see(ranks: Ranks, path: Path, manifest: str) -> None:
    """What rank 0 has chosen is there on all machines, or all say where it is not."""
    problem: Exception | None = None
    try:
        late.await_checkpoint(path, manifest)
    except (UserError, StoppedError) as error:
        problem = error
    if problems := [each for each in ranks.gather(problem) if each is not None]:
        raise problems[0]


def what_to_say(saver: Saver, state: RunState) -> Iterator[Event]:
    """What whoever goes on with a run should know: how good it was, and what a schedule that changed does now."""
    step, best, seen = state.position.step, state.best_model.best, len(state.best_model.evaluations)
    if best:
        name = saver.session.config.metric_for_best_model
        found = f"best {name} {best['value']:.6g} at step {int(best['step']):,}"
        yield Event("note", f"before: {seen:,} evaluation{'s' if seen > 1 else ''}, {found}")
    trained = state.plan.phases[state.phase_trained()].objectives if step and not state.done() else ()
    groups = [saver.session.stepper.groups[objective.name] for objective in trained]
    for group in {group.name: group for group in groups if group.schedule.total_steps}.values():
        schedule, saved = group.schedule, group.optimizer.param_groups[0]  # with the rate of the last step
        before = float(saved["lr"]) / (saved.get("lr_factor", 1.0) or math.nan)
        if schedule.kind in ("cosine", "linear") and abs(before - schedule(step - 1)) > 1e-6 * schedule.base:
            says = f"{schedule.kind} over {schedule.total_steps:,} steps, as if meant from the start"
            yield Event("note", f"learning rate of {group.name}: {schedule(step):.3g} now, {before:.3g} before; {says}")


def _choose(saver: Saver) -> str | None:
    """The checkpoint to resume from (on rank 0), after all checks of whether this run may go on from it."""
    session, folder, mirror = saver.session, saver.checkpoints, saver.mirror
    choice = session.config.resume_from_checkpoint
    folder.tidy()
    for done in folder.mend_links():
        session.emit(Event("warning", done))
    if choice == "never":
        path = None
    elif choice == "auto":
        path = _newest(saver)
    elif "/" not in choice and not Path(choice).exists():
        raise UserError(f"checkpoint {choice} does not exist; resume_from_checkpoint is auto, never or a path")
    else:
        path = verified(Path(choice))
        path = path.resolve() if path.is_symlink() else path
    step = -1
    if path is not None:
        _refuse_other_form(session, path)
        _compare(saver, path)
        _compare_optimizers(session, path)
        if path.parent.resolve() == folder.root.resolve():
            step = read_progress(path)["position"]["step"]
    if mirror is not None:
        mirror.claim(step if step >= 0 else None)
    for moved in folder.set_aside(step):
        newer, earlier = "is newer than the checkpoint this run goes on from", "is of an earlier run"
        session.emit(Event("warning", f"{moved.name} {newer if path else earlier}, and set aside"))
    return None if path is None else str(path)


def _newest(saver: Saver) -> Path | None:
    """The newest whole checkpoint, of the run folder or its mirror."""
    session, folder = saver.session, saver.checkpoints
    path, damaged = folder.newest_verified()
    for damage in damaged:
        session.emit(Event("warning", f"checkpoint {damage} - not used"))
    if saver.mirror is not None:
        step = None if path is None else folder.step_of(path.name)
        path = saver.mirror.bring_newer(step, session.config.allow_changed_config) or path
    if path is None and damaged:
        raise UserError(
            f"{folder.root}: every checkpoint is damaged ({damaged[0].path.name}: {damaged[0].reason}); "
            "resume_from_checkpoint=never starts over"
        )
    return path


def _refuse_other_form(session: Session, path: Path) -> None:
    whole = (path / "model.safetensors").exists()  # FSDP writes pieces
    if whole == session.is_sharded:
        form, now = ("whole", "with FSDP") if whole else ("in the pieces of FSDP", "without FSDP")
        raise UserError(
            f"{path} holds its state {form}, from which a run {now} cannot go on: take the launch config of before, or "
            f"only the weights (--init_from={session.output_dir / 'model'}, or best, and another --output_dir)"
        )


def _compare(saver: Saver, path: Path) -> None:
    session = saver.session
    old = yaml.safe_load((path / "config.yaml").read_text())
    free, identity = differences(old, session.described, session.task.movable)
    if identity and not session.config.allow_changed_config:
        shown = "; ".join(identity[:5]) + (f"; and {len(identity) - 5} more" if len(identity) > 5 else "")
        raise UserError(
            f"{path} belongs to another run: {shown}. Give another output_dir, init_from to take its weights only, "
            "or --allow_changed_config=true"
        )
    for of, what in saver.lineage.differences(path):
        if not session.config.allow_changed_data:
            raise UserError(
                f"{path} {MEANING[of]}: {what}. Give the data of before, another output_dir, init_from to take its "
                "weights only, or --allow_changed_data=true"
            )
        session.emit(Event("warning", f"resuming with changed {of}: {what}"))
    quiet = ("output_dir", "resume_from_checkpoint", "allow_changed_config", "allow_changed_data", "init_from")
    for line in [*identity, *(line for line in free if not line.startswith(quiet))]:
        session.emit(Event("warning", f"resuming with a changed config: {line}"))


def _optimizer_settings(session: Session, path: Path) -> Iterator[tuple[Group, dict[str, Any], dict[str, Any]]]:
    """Every group with its optimiser as the checkpoint's config has it, and as this run's has it."""
    configs: list[dict[str, Any]] = [yaml.safe_load((path / "config.yaml").read_text()), session.described]
    for group in session.stepper.each_group():
        old, new = (
            next((each["optimizers"][o.name] for o in group.objectives if o.name in each.get("optimizers", {})),
                 each.get("optimizer", {}))
            for each in configs
        )  # fmt: skip
        yield group, old, new


def _compare_optimizers(session: Session, path: Path) -> None:
    """Refuse another class of optimiser: the old one's state would mean nothing to it, and might load nevertheless."""
    for group, old, new in _optimizer_settings(session, path):
        before, now = old.get("class_path", new["class_path"]), new["class_path"]
        if not same_optimizer(before, now):
            raise UserError(
                f"{path} holds the optimizer state of {before} for {group.name}, with which {now} cannot go on: "
                f"take {before} again, or only the weights (--init_from={path} and another --output_dir)"
            )
        if old.get("no_weight_decay", []) != new["no_weight_decay"]:  # the state is kept by place in the groups
            raise UserError(
                f"{path} holds the optimizer state of {group.name} with no_weight_decay "
                f"{old.get('no_weight_decay', [])}, which cannot change on resume; take it again, or only the weights "
                f"(--init_from={path} and another --output_dir)"
            )


def _renew_options(session: Session, path: Path) -> None:
    """What the config says of the optimisers now, not when the checkpoint was written."""
    for group, old, new in _optimizer_settings(session, path):
        before, now = old.get("init_args", {}), new["init_args"]
        renew_groups(group.optimizer, group.parameter_groups)
        new_options = {n for n in before.keys() | now.keys() if before.get(n) != now.get(n)}
        renew_options(group.built, new_options, group.parameter_groups)

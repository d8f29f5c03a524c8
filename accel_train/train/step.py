"""One optimiser step whose gradient is that of the whole global batch, however the batch is cut.

Every micro-batch contributes its share of the global loss and shares add up, so the gradient does not depend on the
number of ranks or micro-batches. What happens when something goes wrong is agreed without asking the device: a
non-finite loss poisons the gradient of its rank, the all-reduce spreads it, and every rank skips the same update. A
rank that did not come through its backward completes the all-reduce with zeros, and says so in a vote after it.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Generator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from accel_train import contract, keyed
from accel_train.data.loader import Share
from accel_train.errors import UserError
from accel_train.task import Batch, Event, Objective, Task
from accel_train.train import additivity, averages
from accel_train.train.after_step import AfterStep, freeze, frozen_in
from accel_train.train.averages import Average, Averaging
from accel_train.train.groups import Group, communicate, remembered
from accel_train.train.optim import build_optimizer, memory_of, parameter_groups
from accel_train.train.reduction import Reduction
from accel_train.train.schedules import Schedule
from accel_train.train.sharding import is_sharded, shard, whole
from accel_train.train.step_module import StepModule, unsay_that_all_are_used
from accel_train.train.totals import Totals
from accel_train.train.world import Ranks

_NOTHING = contextlib.nullcontext()


class AbandonedError(RuntimeError):
    """No rank takes this step, since one of them has not got its share of the batch."""


class _ReentrantError(RuntimeError):
    """There is a graph within the graph, in which DDP cannot see which parameters it will reach."""


@contextlib.contextmanager
def _frozen(params: list[nn.Parameter]) -> Generator[None]:
    """No gradient is computed for these; one would be added to the next update of their own objective."""
    wanted = [param for param in params if param.requires_grad]
    for param in wanted:
        param.requires_grad_(False)
    try:
        yield
    finally:
        for param in wanted:
            param.requires_grad_(True)


class Stepper:
    """Takes optimiser steps. Knows nothing of epochs, logs or checkpoints.

    Args:
        micro_batch_size: at most so many items go through the models at once, on every rank; None for no limit.
            Halved (on all ranks together) by an out-of-memory error if ``memory_guard``.
        check_contract: the first batch of every objective is also cut in two, to see whether its shares add up.
        averaging: how the weights are averaged, if they are.
    """

    def __init__(
        self,
        task: Task,
        models: dict[str, nn.Module],
        accelerator: Accelerator,
        ranks: Ranks,
        seed: int,
        max_grad_norm: float | None = 1.0,
        micro_batch_size: int | None = None,
        memory_guard: bool = True,
        check_contract: bool = True,
        averaging: Averaging | None = None,
    ) -> None:
        self.task, self.models, self.accelerator, self.ranks = task, models, accelerator, ranks
        self.averaging = averaging
        self.max_grad_norm, self.micro_batch_size = max_grad_norm, micro_batch_size
        self.device = accelerator.device
        self.after_step = AfterStep(task, models, seed)
        self.totals = Totals(task, models, ranks, self.device)
        self.groups: dict[str, Group] = {}  # by objective name
        self.memory_halvings = 0
        self.check_contract = check_contract
        self.events: list[Event] = []  # for whoever watches the run
        self.on_gradients: Callable[[Group], None] | None = None  # reduced, before they are clipped
        self._seen: set[str] = set()  # objectives that have made a step
        self._run_seed = seed
        self._seeds: dict[tuple[str, int], int] = {}  # by objective and rank or part
        self._votes = ranks.world_size > 1  # on each step, after its gradients were reduced
        self._retry_memory = memory_guard
        self.updating = False  # still true after an error: then the weights are of no step
        self._sharded = False
        self._equal_forwards = False  # ranks talk to each other within them
        self._largest_micro_batch = 0
        self._last_cut: tuple[Batch | None, int, list[Batch]] = (None, 0, [])  # of the batch of several objectives

    def add_group(
        self, trains: tuple[str, ...], objectives: list[Objective], optimizer: dict[str, Any], schedule: Schedule
    ) -> Group:
        """Wrap and prepare the models of one group; must be called in the same order on every rank."""
        sharded = is_sharded(self.accelerator)
        module = StepModule(self.task, self.models, trains, self.ranks.world_size > 1, sharded)
        params = [p for p in module.trained.parameters() if p.requires_grad]
        if not params:
            raise UserError(f"objective {objectives[0].name!r}: {', '.join(trains)} has no trainable parameters")
        elsewhere = {id(p) for group in self.groups.values() for p in group.params}
        if any(id(p) in elsewhere for p in params):
            raise UserError(
                f"objective {objectives[0].name!r}: {', '.join(trains)} has a parameter that another objective's "
                "models have too, and two optimizers would move it; train these models by the same objectives"
            )
        names = [name for name, p in module.trained.named_parameters() if p.requires_grad]
        if sharded:
            del params  # or whole weights would outlive their being handed out
            prepared = shard(self.accelerator, module, self.ranks)
            params = [p for p in prepared.parameters() if p.requires_grad]
            self._sharded = self._equal_forwards = True
        else:
            prepared = self._wrapped(module)
        named = dict(zip(names, params, strict=True))
        options = {name: contract.parameter_options_of(self.task, name, p) for name, p in named.items()}
        groups = parameter_groups(options, optimizer["no_weight_decay"], optimizer["lr_factors"])
        built = build_optimizer(named, optimizer["class_path"], schedule.base, optimizer["init_args"], groups)
        self.accelerator.prepare_optimizer(built.optimizer)  # so that save_state knows it; stepped without the wrapper
        if self.ranks.world_size > 1 and communicate(self.models):
            self._equal_forwards = True
        if self._equal_forwards:  # nothing can be taken back on one rank alone
            self._votes = self._retry_memory = False
        scaler = None
        if self.accelerator.mixed_precision == "fp16":
            scaler = torch.amp.GradScaler(self.device.type)
        others = [model for name, model in self.models.items() if name not in trains]
        read_only = [p for model in others for p in model.parameters() if p.requires_grad]
        buffers = remembered(module.trained)
        name = "+".join(trains)
        group = Group(
            name=name,
            objectives=tuple(objectives),
            module=prepared,
            local=module,
            names=names,
            params=params,
            built=built,
            parameter_groups=groups,
            schedule=schedule,
            reduction=Reduction(prepared) if isinstance(prepared, DistributedDataParallel) else None,
            buffers=buffers,
            read_only=read_only,
            scaler=scaler,
            average=Average(name, named, self.averaging) if self.averaging else None,
        )
        for objective in objectives:
            self.groups[objective.name] = group
        return group

    def _wrapped(self, module: nn.Module) -> nn.Module:
        with warnings.catch_warnings():  # older torch knows the new name not yet, newer warns of the old one
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            prepared = self.accelerator.prepare_model(module)
            if self.ranks.world_size > 1 and not self.groups:
                unsay_that_all_are_used(self.device)
        return prepared

    # -- the step ----------------------------------------------------------------------------------------------------

    def step(self, objective: Objective, batch: Share, abandon: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        """One update of ``objective``'s models on this rank's share of a global batch; the objective says which step
        of the run it is, and which repeat.

        Returns this rank's share of the loss and of its terms (``{"loss": ..., term: ...}``, unread device tensors)
        and the global gradient norm before clipping. A norm that is not finite means that no rank updated anything.

        ``abandon``: join the other ranks without items, so that none of them takes this step. What their
        models remember besides parameters (running statistics) may have taken it in already.

        Raises:
            AbandonedError: a rank did so; the weights are those before. Only if ``can_abandon``.
        """
        group = self.groups[objective.name]
        first = objective.name not in self._seen
        if first and self.check_contract and not self._equal_forwards:  # nobody could wait for a forward more
            self._check_shares(objective, batch)
        while True:
            self.seed_generators(objective)
            cause = None
            try:
                with _frozen(group.read_only) if group.read_only else _NOTHING:
                    values = self._accumulate(group, objective, batch)
            except (torch.OutOfMemoryError, _ReentrantError) as error:
                values, cause = {}, self._complete(group, error)
            if first:
                self._check_gradients(group)
            if not self._all_came_through(group, cause, abandon):
                continue
            if first and self.check_contract and all(p.grad is None for p in group.params):
                raise UserError(
                    f"{type(self.task).__name__}.loss_step: the loss of objective {objective.name!r} has no "
                    f"gradient by any parameter of {group.name} in its first step: was it detached, or computed "
                    "without gradient? (check_contract: false goes on)"
                )
            self._seen.add(objective.name)
            self.updating = True
            norm = self._update(group)
            self.updating = False
            # DDP would do this in its first forward, at another moment on a rank that has no items
            self.ranks.broadcast_from_main(group.buffers)
            return values, norm

    def _complete(self, group: Group, error: RuntimeError) -> RuntimeError:
        """This rank did not come through: free what it holds, and do its part of what the other ranks wait for."""
        if isinstance(error, torch.OutOfMemoryError) and not self._retry_memory:
            raise error
        error.__traceback__ = None  # its frames hold the tensors that did not fit
        self._forget_gradients()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if group.reduction is not None:
            group.reduction.complete()
        return error

    def _all_came_through(self, group: Group, cause: RuntimeError | None, abandon: bool) -> bool:
        """Whether this step can be taken; if not, what has to change before it is repeated has been changed.

        Raises:
            AbandonedError: a rank has no batch.
        """
        reentrant = isinstance(cause, _ReentrantError)
        mine = (cause is not None and not reentrant, reentrant, abandon)
        out_of_memory, unforeseen, abandoned = self.ranks.count(*mine) if self._votes else map(int, mine)
        if not out_of_memory and not unforeseen and not abandoned:
            return True
        self._forget_gradients()
        if abandoned:
            raise AbandonedError
        if unforeseen:
            group.reduces_after = True
        if out_of_memory:
            self._halve_micro_batch(cause)
        return False

    def _accumulate(self, group: Group, objective: Objective, batch: Share) -> dict[str, Tensor]:
        """Add up the gradients of all micro-batches, reduced over ranks with the last one."""
        if group.reduction is not None:
            group.reduction.begin()
        try:
            micro_batches = self._cut(batch)
        except torch.OutOfMemoryError as error:
            self.totals.join_without(objective, error)
            raise
        if self._equal_forwards:
            self._check_equal_forwards(len(micro_batches))
        # autocast and sharding see what runs the models; a batch in one piece goes through them once
        has_outputs = self.totals.forwards and len(micro_batches) == 1 and not self._sharded
        totals = self.totals.of(group.module if self._sharded else group.local, objective, micro_batches, has_outputs)
        values: dict[str, Tensor] = {}
        for i, micro_batch in enumerate(micro_batches):
            # DDP acts in its own forward and in the backward after it, so what passes it by is only accumulated.
            reduce_now = self._sharded or (not group.reduces_after and i == len(micro_batches) - 1)
            loss = (group.module if reduce_now else group.local)(micro_batch, totals, objective, has_outputs)
            self._backward(group, loss.value)
            for name, share in {"loss": loss.value.detach(), **loss.terms}.items():
                values[name] = values[name] + share if name in values else share
        if not micro_batches or group.reduces_after:  # join with what has been accumulated so far and nothing more
            group.module(None, {}, objective).value.backward()
        return values

    def _check_shares(self, objective: Objective, batch: Share) -> None:
        """Look once at what the task promises, on every rank that has something to cut in two."""
        found, largest = additivity.Findings(), None
        with contextlib.suppress(torch.OutOfMemoryError):  # the step will have it too, and can take less
            largest = max(self._cut(batch), key=self.task.size, default=None)
        if largest is not None and self.task.size(largest) > 1:
            found = additivity.examine(self.task, self.models, objective, largest, self.accelerator)
        everywhere = self.ranks.gather(found)
        error = next((each.error for each in everywhere if each.error), "")
        if error:
            raise UserError(error)
        lines = dict.fromkeys(line for each in everywhere for line in each.warnings)
        already = {event.title for event in self.events}
        self.events += [Event("warning", line) for line in lines if line not in already]

    def _check_gradients(self, group: Group) -> None:
        if any(p.grad is not None and p.grad.layout != torch.strided for p in group.params):
            raise UserError(f"{group.name} has sparse gradients, which are not supported; use dense ones")

    def _cut(self, batch: Share) -> list[Batch]:
        if batch is None:
            return []
        assert not isinstance(batch, list)
        size = self.task.size(batch)
        limit = self.micro_batch_size or size
        self._largest_micro_batch = min(size, limit)
        if self._last_cut[0] is not batch or self._last_cut[1] != limit:
            self._last_cut = (batch, limit, self.task.split(batch, limit))
        return list(self._last_cut[2])

    def _check_equal_forwards(self, count: int) -> None:
        """Sharded weights are gathered in every forward, or statistics shared: all ranks must make as many."""
        counts = self.ranks.gather(count)
        if min(counts) != max(counts) or min(counts) == 0:
            what, instead = ("FSDP", "DDP") if self._sharded else ("this model", "another norm")
            raise UserError(
                f"{what}: the ranks have {counts} micro-batches in this step, and must have equally many; make "
                "global_batch_size a multiple of ranks x micro_batch_size and the data a multiple of it, or use "
                f"{instead}"
            )

    def _backward(self, group: Group, share: Tensor) -> None:
        # FSDP divides the sum over ranks by their number. A loss that is not finite must not leave a finite gradient.
        scale = float(self.ranks.world_size) if self._sharded else 1.0
        if group.scaler is not None:
            share = group.scaler.scale(share)
        try:
            if share.device.type == "cpu":
                if not math.isfinite(share.item()):
                    scale = math.nan
                (share if scale == 1.0 else share * scale).backward()
            else:
                finite = torch.isfinite(share)
                share.backward(gradient=torch.where(finite, scale, math.nan).to(share.dtype))
        except RuntimeError as error:
            if self._votes and "mark a variable ready only once" in str(error):
                raise _ReentrantError from error
            raise

    def _update(self, group: Group) -> Tensor:
        """Clip, and step if the gradient is finite; the norm says which. It is 0 where no parameter was reached."""
        optimizer, scaler = group.optimizer, group.scaler
        poison = group.local.take_poison()
        reached = next((p.grad for p in group.params if p.grad is not None), None)
        if reached is None:
            return torch.zeros((), device=self.device) if poison is None else poison
        if poison is not None:  # of a share that was not finite and may have reached nothing else
            reached.add_(poison)
        if scaler is not None:
            scaler.unscale_(optimizer)
        if self.on_gradients is not None:
            self.on_gradients(group)
        norm = self._clip(group)
        made = group.apply(norm)
        if group.average is not None:
            group.average.note(made)
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _clip(self, group: Group) -> Tensor:
        return group.clip(self.max_grad_norm)

    def end_step(self, step: int) -> None:
        """After all objectives of ``step`` (from 0): what the task does then, and averages of what comes of it."""
        self.after_step(step + 1, self.each_group(), self._sharded)
        for average in self.averages:
            average.update(step)

    @property
    def averages(self) -> list[Average]:
        """Of each group, if weights are averaged."""
        return [group.average for group in self.each_group() if group.average is not None]

    def each_group(self) -> list[Group]:
        return list({id(group): group for group in self.groups.values()}.values())

    # -- what goes wrong ---------------------------------------------------------------------------------------------

    def _forget_gradients(self) -> None:
        for each in self.groups.values():
            each.optimizer.zero_grad(set_to_none=True)
            each.local.take_poison()

    def _halve_micro_batch(self, cause: RuntimeError | None) -> None:
        """After an out-of-memory error on any rank: use half the micro-batch from now on."""
        largest = max(self.ranks.gather(self._largest_micro_batch))
        if largest <= 1:
            raise UserError("out of memory with a micro-batch of one item: take a smaller model or item") from cause
        self.micro_batch_size = max(largest // 2, 1)
        self.memory_halvings += 1

    def seed_generators(self, objective: Objective, who: int | None = None) -> None:
        """Dropout and whatever else draws from torch's global generators depends on the step alone, and on ``who``: a
        part of the batch, or else this rank."""
        who = self.ranks.rank if who is None else who
        if (key := (objective.name, who)) not in self._seeds:
            self._seeds[key] = keyed.key(self._run_seed, "generators", *key)
        place = objective.step * 0x9E3779B97F4A7C15 + objective.repeat * 0xBF58476D1CE4E5B9
        seed = (self._seeds[key] + place) & (2**63 - 1)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def whole_weights(self) -> contextlib.AbstractContextManager[None]:
        """Inside, every parameter is whole on every rank, for evaluation and export; only FSDP has anything to do.
        All ranks must enter together; what they do inside needs no further agreement."""
        return whole([group.module for group in self.each_group()], self.accelerator) if self._sharded else _NOTHING

    def memory(self) -> dict[str, int]:
        """Bytes on this rank, as ``memory_of`` says; a batch and its activations come on top."""
        found = [memory_of(group.built) for group in self.each_group()]
        kept = {"averages": sum(average.nbytes() for average in self.averages)} if self.averages else {}
        return {what: sum(each[what] for each in found) for what in found[0]} | kept

    @contextlib.contextmanager
    def final_weights(self) -> Generator[None]:
        """Inside, the models have the weights that are evaluated, whole on every rank: averages, if there are any."""
        with averages.in_place(self.averages), self.whole_weights():
            yield

    @property
    def can_abandon(self) -> bool:
        """Several ranks agree before they update, so that a step can still be dropped by all of them."""
        return self._votes

    @property
    def scale_is_settling(self) -> bool:
        """fp16 only: a loss scale that is still coming down explains non-finite gradients."""
        return any(g.scaler is not None and g.scaler.get_scale() > 1.0 for g in self.groups.values())

    def take_events(self) -> list[Event]:
        """What was noticed since the last call and whoever watches the run should hear of."""
        events, self.events = self.events, []
        return events

    def state(self) -> dict[str, Any]:
        """JSON of what is not in the optimisers: loss scales, the micro-batch that fits in memory, what is frozen."""
        scalers = {g.name: g.scaler.state_dict() for g in self.groups.values() if g.scaler is not None}
        return {
            "scalers": scalers, "micro_batch_size": self.micro_batch_size if self.memory_halvings else None,
            "frozen": frozen_in(self.each_group()),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        freeze(self.each_group(), state.get("frozen", []))
        for group in self.groups.values():
            if group.scaler is not None and group.name in state["scalers"]:
                group.scaler.load_state_dict(state["scalers"][group.name])
        if state["micro_batch_size"] is not None:  # what did not fit then would not fit now
            self.micro_batch_size = min(state["micro_batch_size"], self.micro_batch_size or state["micro_batch_size"])
            self.memory_halvings += 1

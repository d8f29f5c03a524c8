"""The processes of a run: accelerate set up for them, and the few things that they say to each other."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs

from accel_train.config.schema import TrainConfig
from accel_train.errors import LostRankError, UserError, brief, what_is_kept
from accel_train.system import process
from accel_train.system.connections import fail_with_their_machines
from accel_train.system.whereabouts import here
from accel_train.tracking.chosen import other_trackers

T = TypeVar("T")

_RECORDER = ("TORCH_NCCL_DEBUG_INFO_PIPE_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")


def launched_for_gpus() -> bool:
    """Whether ``accelerate launch`` started this process, and was not told to use the CPU."""
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ  # which it always sets
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return by_accelerate and not on_cpu and not os.environ.get("CUDA_VISIBLE_DEVICES", "").startswith("-1")


def has_mps() -> bool:
    """Whether this is a Mac whose GPU torch could use. Runs do not: it has no float64, which all exact sums are in."""
    return torch.backends.mps.is_available() and not torch.cuda.is_available()


def start_accelerate(config: TrainConfig) -> Accelerator:
    """The accelerator for this config, in this process; several runs may follow each other in one process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()  # a second run in a notebook may want another precision
    GradientState._reset_state()
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    # Launched as several processes without a GPU, accelerate joins them only where the CPU is asked for.
    several_on_cpu = process.world_size() > 1 and not torch.cuda.is_available()
    if process.world_size() > 1 and torch.cuda.is_available():
        _begin_flight_record()
    accelerator = Accelerator(
        cpu=True if several_on_cpu or has_mps() else None,  # pyright: ignore[reportArgumentType]
        mixed_precision=precision,
        log_with=other_trackers(config) or None,  # pyright: ignore[reportArgumentType]
        project_dir=config.output_dir or None,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)],
        step_scheduler_with_optimizer=False,
    )
    launched = process.world_size()
    if accelerator.num_processes != launched:
        raise UserError(
            f"{launched} processes were launched but accelerate joined {accelerator.num_processes}: "
            "look at distributed_type and use_cpu in the launch config (accel-train init copies ones that work)"
        )
    if accelerator.device.type == "mps":  # by ACCELERATE_TORCH_DEVICE
        raise UserError("ACCELERATE_TORCH_DEVICE=mps: the GPU of a Mac has no float64, which runs need; take cpu")
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("mixed_precision: fp16 does nothing on a CPU; use bf16 or no")
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    return accelerator


def _begin_flight_record() -> None:
    """NCCL then remembers its last collectives, and writes them down when asked for by a pipe. Whoever has set that up
    keeps it."""
    if set(_RECORDER) & os.environ.keys():
        return
    folder = tempfile.mkdtemp(prefix="accel_train-nccl-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.setdefault("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000")
    for name, what in zip(_RECORDER, ("pipe", "dump"), strict=True):
        os.environ[name] = os.path.join(folder, f"{what}-")


def flight_recorder(rank: int) -> tuple[str, str]:
    """The pipe that asks NCCL's flight recorder of this rank for what it knows, and the file that it then writes; both
    empty where there is none."""
    pipe, dump = (os.environ.get(name, "") for name in _RECORDER)
    return (f"{pipe}{rank}.pipe", f"{dump}{rank}") if pipe and dump else ("", "")


@contextlib.contextmanager
def accelerate_as_it_was() -> Generator[None]:
    """A process group that was joined inside is left again."""
    joined_before = dist.is_available() and dist.is_initialized()
    try:
        yield
    finally:
        if not joined_before and dist.is_available() and dist.is_initialized():
            from accelerate.state import AcceleratorState

            AcceleratorState._reset_state(reset_partial_state=True)
            leave_process_group()


class Ranks:
    """Sums over all ranks, on the device (no host sync on a GPU) or between the hosts."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank: int = accelerator.process_index
        self.world_size: int = accelerator.num_processes
        self.is_main: bool = self.rank == 0
        self._hosts = None
        if self.world_size > 1:
            # NCCL cannot sum host memory; votes and metrics must not wait for the GPU.
            gloo = dist.get_backend() == "gloo"
            self._hosts = dist.group.WORLD if gloo else dist.new_group(backend="gloo")
            fail_with_their_machines()  # nobody waits for half an hour for a rank whose machine is gone

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum in place, where the tensor lives."""
        if self.world_size > 1:
            with here.waiting:
                dist.all_reduce(tensor)
        return tensor

    def host_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a CPU tensor in place."""
        if self.world_size > 1:
            with here.waiting:
                dist.all_reduce(tensor, group=self._hosts)
        return tensor

    def broadcast_from_main(self, tensors: list[torch.Tensor]) -> None:
        """Make these device tensors those of rank 0, everywhere; one message for each dtype."""
        if self.world_size == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            dist.broadcast(flat, 0)
            for tensor, part in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def all_agree(self, ok: bool) -> bool:
        return self.count(not ok) == [0]

    def count(self, *votes: bool) -> list[int]:
        """How many ranks say so, for each of the votes."""
        if self.world_size == 1:
            return [int(vote) for vote in votes]
        return [int(n) for n in self.host_sum(torch.tensor(votes, dtype=torch.float32)).tolist()]

    def gather(self, value: T) -> list[T]:
        """One picklable value of every rank, on every rank. For rare moments only."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with here.waiting:
            dist.all_gather_object(values, value, group=self._hosts)
        return values

    def from_main(self, value: T) -> T:
        """Rank 0's value on every rank."""
        return self.gather(value)[0]


@contextlib.contextmanager
def telling_of_lost_ranks(last_saved: Callable[[], int | None] = lambda: None) -> Generator[None]:
    """Errors of gloo and NCCL about a rank that is not there any more become one plain line.

    Raises:
        LostRankError: there is one.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_loss_of_a_rank(error):
            raise
        found = re.search("connection [a-z]+ by peer|broken pipe|timed? ?out", str(error), re.IGNORECASE)
        why, kept = found[0] if found else brief(error), what_is_kept(last_saved())
        raise LostRankError(f"another rank has died or left ({why}); {kept}") from None


def _is_loss_of_a_rank(error: RuntimeError) -> bool:
    """Judged by the text of the error, since gloo's errors have no type of their own."""
    if process.world_size() == 1:
        return False
    return isinstance(error, dist.DistError) or re.search("gloo|NCCL|closed by peer", str(error)) is not None


def leave_process_group() -> None:
    """A rank that just exits is taken for a crash."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def is_first_to_say(text: str) -> bool:
    """Whether no other rank of this run has said so yet. True if they cannot be asked."""
    if process.world_size() == 1:
        return process.rank() == 0
    try:
        if dist.is_initialized():
            store = dist.distributed_c10d._get_default_store()
        elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # before they have met: the launcher's
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
                address, port, is_master=False, timeout=timedelta(seconds=5)
            )
        else:
            return True
        return store.add(f"said: {text}", 1) == 1
    except RuntimeError:  # the store was on a rank that is not there any more
        return True

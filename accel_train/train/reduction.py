"""The gradient all-reduce of DDP, which a rank can also join whose backward did not come to its end."""

import weakref

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from accel_train.system.watchdog import REDUCING
from accel_train.system.whereabouts import here


class Reduction:
    """Sums the buckets of gradients over the ranks, in the order in which DDP's backward fills them, and knows which of
    them this rank has sent. So a rank that runs out of memory in the middle can send zeros for the rest: nobody waits
    for it, and everyone can drop the sum and repeat the step."""

    def __init__(self, module: DistributedDataParallel) -> None:
        self._module = weakref.ref(module)  # which keeps the hook where Python finds no circle, to free both
        self._group = module.process_group
        self._sent: list[Future[Tensor]] = []  # of the backward that is under way
        module.register_comm_hook(None, self._send)

    def begin(self) -> None:
        """Before anything of a step that can fail."""
        self._sent = []

    # torch compares the type of the bucket with its own: annotations must not be strings in this file
    def _send(self, _: object, bucket: dist.GradBucket) -> Future[Tensor]:  # pyright: ignore[reportPrivateImportUsage]
        here.at(REDUCING)
        work = dist.all_reduce(bucket.buffer(), group=self._group, async_op=True)
        assert work is not None
        sent = work.get_future().then(lambda done: done.value()[0])
        self._sent.append(sent)
        return sent

    def complete(self) -> None:
        """Instead of the rest of a backward that failed: what the other ranks wait for, in their order. What comes of
        it is no gradient of anything. It takes as much memory as the gradients do, which should be freed before."""
        module = self._module()
        assert module is not None
        buckets = module.reducer._get_zeros_like_grad_buckets()
        if len(self._sent) < len(buckets):
            for bucket in buckets[len(self._sent) :]:
                dist.all_reduce(bucket.buffer(), group=self._group)
            # with the last bucket, DDP sends which parameters were reached
            dist.all_reduce(module.reducer._get_local_used_map(), group=self._group)
        torch.futures.wait_all(self._sent)
        module.reducer._reset_state()
        self._sent = []

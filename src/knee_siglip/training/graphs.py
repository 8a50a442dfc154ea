"""CUDA graphs: the kernels of a forward and backward pass, recorded once and launched together.

A step of RAD-DINO and SigLIP is 1,800 kernels. To launch them one by one took the host of an H200 75 ms, for whatever
size of batch, of which 64 images of 224 px kept the GPU busy for less than half (docs/decisions.md).
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from knee_siglip.model.device import is_out_of_memory

Function = Callable[..., tuple[Tensor, ...]]
Shapes = tuple[tuple[torch.Size, torch.dtype], ...]

SIGHTINGS = 3
"""Calls with inputs of the same shapes until they are recorded: the first ones compile and choose their kernels."""

MOST_GRAPHS = 4
"""Each holds gradients of all parameters; a batch of yet another shape is launched kernel by kernel."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recorded:
    """Two graphs and the memory that they read and write.

    `inputs`, `outputs`: of the function. `output_grads`: of the outputs that have one, else None. `grads`: of inputs
    and parameters, None where there is none. `kept`: whatever else lies in memory that the graphs use.
    """

    inputs: list[Tensor]
    outputs: tuple[Tensor, ...]
    output_grads: list[Tensor | None]
    grads: list[Tensor | None]
    forward: Callable[[], None]
    backward: Callable[[], None]
    kept: Any = None


@dataclass
class Graphs:
    """Calls `function`, by a CUDA graph for each of the shapes that its inputs have had a few times.

    A recorded call returns the same numbers, in memory of its own. **The gradients of its parameters lie in memory that
    the next call overwrites**, so that they cannot be added up over several calls.

    Args:
        function: of tensors to tensors, without a look at a value on the host.
        parameters: that the function reads; the inputs may have gradients, too.
        is_on: else nothing is recorded.
        state: buffers that the function keeps from call to call, held as long as the graphs.
    """

    function: Function
    parameters: Sequence[nn.Parameter]
    is_on: bool
    state: Callable[[], Any] = lambda: None
    _seen: Counter[Shapes] = field(default_factory=Counter, init=False)
    _recorded: dict[Shapes, Recorded] = field(default_factory=dict, init=False)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the function."""
        if not self.is_on or not torch.is_grad_enabled():
            return self.function(*inputs)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if shapes not in self._recorded and self._is_due(shapes):
            self._record(shapes, inputs)
        if shapes not in self._recorded:
            return self.function(*inputs)
        found: tuple[Tensor, ...] = _Replay.apply(self._recorded[shapes], *inputs, *self.parameters)
        return found

    def __len__(self) -> int:
        """How many are recorded."""
        return len(self._recorded)

    def stop(self) -> None:
        """Forget all graphs, give their memory back and record no more."""
        self.is_on = False
        self._recorded.clear()

    def _is_due(self, shapes: Shapes) -> bool:
        self._seen[shapes] += 1
        return self._seen[shapes] == SIGHTINGS and len(self._recorded) < MOST_GRAPHS and _has_room()

    def _record(self, shapes: Shapes, inputs: Sequence[Tensor]) -> None:
        try:
            self._recorded[shapes] = record(self.function, inputs, self.parameters, self.state)
        except RuntimeError as error:  # what a graph does not allow differs by version, driver and card
            self.stop()
            if is_out_of_memory(error):
                torch.cuda.empty_cache()
            cause = str(error).splitlines()[0]
            logger.warning("no CUDA graph could be recorded (%s): kernels are launched one by one", cause)


def record(
    function: Function, inputs: Sequence[Tensor], parameters: Sequence[nn.Parameter], state: Callable[[], Any]
) -> Recorded:
    """Run the function and its gradients once, then record both.

    As `torch.cuda.make_graphed_callables` does, which cannot record while another thread pins the next batch's memory.

    Raises:
        RuntimeError: the function does something that a graph cannot hold, or memory is full.
    """
    fixed = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs]
    trained = [tensor for tensor in (*fixed, *parameters) if tensor.requires_grad]
    pool = torch.cuda.graph_pool_handle()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outputs = function(*fixed)
        _gradients(outputs, [torch.zeros_like(output) for output in outputs if output.requires_grad], trained)
        del outputs
    torch.cuda.current_stream().wait_stream(stream)
    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(forward, pool=pool, stream=stream, capture_error_mode="thread_local"):
        outputs = function(*fixed)
    output_grads = [torch.empty_like(output) if output.requires_grad else None for output in outputs]
    with torch.cuda.graph(backward, pool=pool, stream=stream, capture_error_mode="thread_local"):
        found = iter(_gradients(outputs, [grad for grad in output_grads if grad is not None], trained))
    grads = [next(found) if tensor.requires_grad else None for tensor in (*fixed, *parameters)]
    outputs = tuple(output.detach() for output in outputs)
    return Recorded(fixed, outputs, output_grads, grads, forward.replay, backward.replay, (forward, backward, state()))


def _gradients(
    outputs: Sequence[Tensor], output_grads: Sequence[Tensor], of: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    live = [output for output in outputs if output.requires_grad]
    return torch.autograd.grad(live, of, output_grads, allow_unused=True)


def _has_room() -> bool:
    """Whether a second set of activations fits beside those of a step that is not recorded, such as an odd last one."""
    torch.cuda.empty_cache()
    activations = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    return torch.cuda.mem_get_info()[0] > 2 * activations


class _Replay(torch.autograd.Function):
    """Launches what was recorded."""

    @staticmethod
    def forward(ctx: Any, recorded: Recorded, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.recorded = recorded
        torch._foreach_copy_([fixed.detach() for fixed in recorded.inputs], list(tensors[: len(recorded.inputs)]))
        recorded.forward()
        outputs = tuple(output.clone() for output in recorded.outputs)
        grads = zip(outputs, recorded.output_grads, strict=True)
        ctx.mark_non_differentiable(*[output for output, grad in grads if grad is None])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        recorded = ctx.recorded
        for fixed, grad in zip(recorded.output_grads, grads, strict=True):
            if fixed is not None:
                fixed.copy_(grad)
        recorded.backward()
        return None, *[None if grad is None else grad.detach() for grad in recorded.grads]

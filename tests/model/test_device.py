"""Which errors mean that the GPU's memory is full."""

import pytest
import torch

from knee_siglip.model.device import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    ],
)
def test_a_full_memory_is_told_by_the_allocator_and_by_the_libraries(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "message", ["CUDA error: an illegal memory access was encountered", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"]
)
def test_other_errors_are_not(message):
    assert not is_out_of_memory(RuntimeError(message))

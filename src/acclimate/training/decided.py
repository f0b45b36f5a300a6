"""What was decided for this machine: which fast pieces serve here, a line each."""

import torch

from acclimate.methods import grouped
from acclimate.models import buffers, compiled, flash, graphs, kernels, layers, matrices, varlen


def decided() -> dict[str, str]:
    """By what is done; of a GPU only where there is one."""
    found = {
        "decoding_products": kernels.describe(),
        "decoding_steps": layers.describe(),
        "products": matrices.describe(),
        "packed_attention": flash.describe(),
        "memory": buffers.describe(),
    }
    if torch.cuda.is_available():
        found |= {
            "cuda_attention": varlen.describe(),
            "cuda_norms_and_gates": compiled.describe(),
            "cuda_adapters": grouped.describe(),
            "cuda_decoding": graphs.describe(),
        }
    return found

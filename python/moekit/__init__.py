"""moekit: Mixture-of-Experts layers of libmoekit, on CPUs and NVIDIA GPUs, from Python.

    import moekit, numpy as np
    layer = moekit.Layer(d_model=64, num_experts=8, top_k=2, expert_hidden_size=128)
    y = np.asarray(layer(np.ones([100, 64], np.float32)))

moekit.torch.MoE is the same as a torch.nn.Module. docs/python.md tells the rest.
"""
from ._c import VERSION as __version__
from ._c import library, library_path
from .array import Array
from .context import Context, Error, Status
from .layer import Call, Layer
from .settings import formats, options, presets

__all__ = ["Array", "Call", "Context", "Error", "Layer", "Status", "formats", "library", "library_path",
           "options", "presets"]

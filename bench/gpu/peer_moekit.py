"""This project's layer through its Python binding (python/moekit), on torch's tensors where they lie."""
import os
import sys

import torch

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ.setdefault("MOEKIT_LIBRARY", os.path.join(TOP, "build", "release", "libmoekit.so"))
sys.path.append(os.path.join(TOP, "python"))

import moekit


class Moekit:
    """The layer on the device of `numbers`, on torch's current stream there; new gradients, of experts in bf16: as the
    others'. A step is two C calls on what was prepared once."""
    ADDS = False
    PARAMS = {"gate": "gate.weight", "w1": "experts.up.weight", "w2": "experts.down.weight"}

    def __init__(self, problem, numbers):
        on_gpu = numbers["x"].is_cuda
        self.context = moekit.Context("cuda" if on_gpu else "cpu", seed=1)
        if on_gpu:
            self.context.set_stream(torch.cuda.current_stream().cuda_stream)
        self.layer = moekit.Layer(self.context, dtype="bf16", d_model=problem.d, num_experts=problem.E, top_k=problem.K,
                                  expert_hidden_size=problem.n, activation=problem.act,
                                  score_function="softmax" if problem.act == "swiglu" else "sigmoid")
        if not self.ADDS:
            self.layer.set_grad_dtype("bf16")
        self.layer.reserve(problem.T, train=True)
        for key, name in self.PARAMS.items():
            torch.from_dlpack(self.layer.params[name]).copy_(numbers[key])
        self.y, self.dx = (torch.full_like(numbers["x"], torch.nan) for _ in range(2))
        self.call = self.layer.prepare(numbers["x"], self.y, train=True, overwrite_grad=not self.ADDS)
        self.dy_dx = self.layer.matrix(numbers["dy"], "dy")[0], self.layer.matrix(self.dx, "dx", written=True)[0]
        self.forward = self.call.forward

    def about(self):
        return f"moekit {moekit.__version__}, {self.context.kernel('gemm_rows', 'bf16')}"

    def step(self):
        self.call.forward()
        self.call.backward(*self.dy_dx)

    def outputs(self):
        """Of one step, gradients from zero."""
        if self.ADDS:
            self.layer.zero_grad()
        self.step()
        self.context.wait()
        grads = self.layer.grads
        return {"y": self.y, "dx": self.dx} | {
            "d" + key: torch.from_dlpack(grads[name]).clone() for key, name in self.PARAMS.items()}

    def close(self):
        self.context.close()


class MoekitAdds(Moekit):
    """The same where gradients add up, in f32."""
    ADDS = True

"""What the tests of the CUDA paths have in common: an emulated GPU, checked op by op."""

from dataclasses import replace

import torch
from reference import assert_near, check_value, draw, gradients, terms_of, to_double


class EmulatedOps:
    """The emulated ops, as check_value takes them, and the names of the kernels that ran."""

    capability = (8, 0)

    def __init__(self, handle):
        self.handle = handle
        self.ops = handle.ops

    def set(self, multiprocessors, order="ascending"):
        self.handle.set_device(*self.capability, multiprocessors)
        self.handle.set_order(order)

    def op(self, op):
        return replace(op, ours=getattr(self.ops, op.name))

    def kernels(self):
        return [name for name, _, _ in self.handle.launches()]

    def terms(self, args, grad):
        """At least the length of every sum in the gradients."""
        return terms_of(args)

    def kernels_of_value(self, op, *args):
        """Checks the value; the kernels that made it."""
        self.kernels()
        check_value(self.op(op), *args)
        return self.kernels()

    def check_backward(self, call, plain, *args, grad=None):
        """The gradients call(grad, *args) of plain(*args); the kernels that made them."""
        wide = [to_double(t) for t in args]
        grad = draw(plain(*wide).shape, args[0].dtype) if grad is None else grad
        self.kernels()
        got = call(grad, *args)
        expected = gradients(plain, wide, to_double(grad))
        positive = [None if t is None else t.abs() for t in wide]
        bounds = gradients(plain, positive, to_double(grad).abs())
        terms = self.terms(args, grad)
        for i, (one, two, bound) in enumerate(zip(got, expected, bounds, strict=True)):
            if one is not None:
                assert_near(one, two, bound, terms, f"gradient of argument {i}")
        return self.kernels()

    def check_matmul_backward(self, a, b):
        backward = self.ops.matmul_backward
        return self.check_backward(lambda *args: backward(*args, True, True), torch.matmul, a, b)

"""Every op once by each path on a CUDA GPU, for compute-sanitizer to watch; see bench/gpu.sh.

The references are computed on the CPU, so that hardly a kernel runs but ours.

    compute-sanitizer --tool memcheck --kernel-regex kns=matcalc python bench/sanitize.py
"""

import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference import BY_NAME, arguments, check_gradients, check_value, gradients, transposed

# The kernels of bfloat16 (copies by the engine, warpgroups) have most to go wrong: they come first.
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64)
# Aligned and not; enough tiles for the warpgroup kernels, of both widths; a sum that is split; a
# batch; a matrix times a vector; a matrix for each item.
CASES = (
    ("matmul", ((128, 64), (64, 256))),
    ("matmul", ((768, 64), (64, 1536))),
    ("matmul", ((768, 64), (64, 3072))),
    ("matmul", ((70, 50), (50, 90))),
    ("matmul", ((5, 4000), (4000, 9))),
    ("matmul", ((3, 33, 20), (20, 17))),
    ("matmul", ((130, 300), (300,))),
    ("linear", ((65, 40), (33, 40), (33,))),
    ("bilinear", ((165,), (165, 230), (230,))),
    ("bilinear", ((9, 16), (9, 16, 16), (9, 16))),
    ("bilinear", ((20, 33), (33, 40), (20, 40))),
    ("quadratic", ((205,), (205, 205))),
    ("quadratic_symmetric", ((205,), (205, 205))),
    ("quadratic_symmetric", ((7, 40), (7, 40, 40))),
    ("nn_bilinear", ((20, 17), (20, 19), (33, 17, 19), (33,))),
)


def on_cuda(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args: function(*(t.cuda() for t in args)).cpu()


def run(name: str, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, checked: bool) -> None:
    op = replace(BY_NAME[name], ours=on_cuda(BY_NAME[name].ours))
    args = arguments(shapes, dtype)
    if checked:
        check_value(op, *args)
        check_gradients(op, *args)
        check_value(op, *map(transposed, args))
    else:
        gradients(op.ours, args, torch.ones_like(op.plain(*args)))


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("bench/sanitize.py: torch sees no CUDA GPU here.")
    torch.manual_seed(0)
    failed = 0
    for allowed in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = allowed
        for dtype in DTYPES if allowed == "ieee" else (torch.float32,):
            for name, shapes in CASES:
                print(f"{allowed} {dtype} {name} {shapes}", flush=True)
                try:  # how near TF32's results are, tests/test_cuda.py says
                    run(name, shapes, dtype, checked=allowed == "ieee")
                except Exception:  # the kernels of the other cases are to be watched all the same
                    failed += 1
                    traceback.print_exc()
    sys.exit(f"{failed} cases failed" if failed else 0)


if __name__ == "__main__":
    main()

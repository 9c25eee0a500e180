"""The benchmark behind `python -m matcalc_ext bench`, and what bench/gpu.py shares with it.

expressions.py   what a case computes, and how it is written in plain torch
libraries.py     the same in numpy, opt_einsum, JAX and numba
cases.py         inputs and calls of a case; the table of the CPU's cases
measure.py       checking a case against float64, then timing ours and the peers in turn
memory.py        what a call has allocated at once
report.py        the environment, tables, JSON, comparison with an earlier run
plots.py         the speed-up of each case, and the share of the machine's limits
cpu.py           the command
"""

// The machine's limits, as measured by plain loops: what the benchmark compares the ops with.
#pragma once

namespace matcalc::cpu {

// With torch's number of threads and the instruction set in use.
struct Roofs {
  double float32, float64;  // multiply-adds on registers, flops per second
  double bfloat16;          // the same, where there is an instruction for it; 0 where not
  double read, copy;        // out of the caches, bytes per second; a copy's are read and written
};

Roofs measure_roofs();  // in about a second

}  // namespace matcalc::cpu

// What the tests set, and what they read: bound to Python in module.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace matcalc::cuda::emulation {

void set_device(int major, int minor, int multiprocessors);

// Runs the kernel of basics.cpp that has this name, and gives what it has written: one number for
// each thread of each block.
std::vector<double> run_basic(const std::string& name, int64_t blocks, int threads,
                              size_t shared_bytes);

}  // namespace matcalc::cuda::emulation

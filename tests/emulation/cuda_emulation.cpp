// The fibers of a block, and who runs next.

// The C library's checked longjmp refuses to go from one stack to another.
#undef _FORTIFY_SOURCE

#include "cuda_emulation.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <exception>
#include <mutex>
#include <new>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace matcalc::cuda::emulation {
namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kGuardBytes = 16 * 1024;  // after the block's shared memory
constexpr int kMaxWarps = kMaxThreads / warpSize;
constexpr int kNamedBarriers = 16;

// A set of threads, each by its place in the order of the launch.
class Places {
 public:
  bool empty() const { return summary_ == 0; }
  int first() const {  // kMaxThreads where there is none
    if (empty()) return kMaxThreads;
    const int word = std::countr_zero(summary_);
    return word * 64 + std::countr_zero(words_[word]);
  }
  void add(int place) {
    words_[place / 64] |= uint64_t{1} << place % 64;
    summary_ |= uint32_t{1} << place / 64;
  }
  void remove(int place) {
    words_[place / 64] &= ~(uint64_t{1} << place % 64);
    if (words_[place / 64] == 0) summary_ &= ~(uint32_t{1} << place / 64);
  }
  void take(Places& other) {  // all of `other`, which is empty then
    for (size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
    summary_ |= other.summary_;
    other = {};
  }

 private:
  std::array<uint64_t, kMaxThreads / 64> words_{};
  uint32_t summary_ = 0;  // bit i: words_[i] is not 0
};

// Where a stack goes on. _setjmp, unlike swapcontext, makes no system call.
struct Continuation {
  jmp_buf jump;
  ucontext_t start;  // the first time, on a stack that has never run
  bool started = false;
};

struct Fiber {
  Continuation continuation;
  void* stack = nullptr;
  int place;
  const char* waits_at;  // nullptr: it can run
  unsigned waits_mask;   // of a warp's collective, 0 at other barriers
  bool ended = true;     // and then it waits, at the bottom of its stack, for the next block
};

struct Barrier {
  Places waiting;
  const char* what;
  Votes votes{};     // of those that have come
  Votes results[2];  // of the last opening and the one before: slow threads may still read that
  unsigned openings = 0;
};

// Where the lanes of one mask meet.
struct Meeting {
  unsigned mask;
  unsigned arrived = 0;
  const char* what = nullptr;
  size_t bytes = 0;
  // Of this meeting and the one before, which slow lanes may still read. No lane comes to the next
  // but one before all have come to the next, and have done with this.
  std::vector<std::byte> values[2];
  unsigned turn = 0;
};

struct Warp {
  unsigned live;
  std::vector<Meeting> meetings;  // few: most kernels use one mask
};

struct Guard {
  const void* memory;  // what it belongs to
  unsigned char* begin;
  size_t bytes;
};

// NaN as float, double, bfloat16 and float16; a NaN that no arithmetic gives.
constexpr unsigned char guard_byte(size_t i) { return i % 2 == 0 ? 0xfe : 0xff; }

bool untouched(const unsigned char* begin, size_t bytes) {
  // Two bytes tell all: the rest must repeat them.
  return begin[0] == guard_byte(0) && begin[1] == guard_byte(1) &&
         std::memcmp(begin, begin + 2, bytes - 2) == 0;
}

void fill_guard(unsigned char* begin, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) begin[i] = guard_byte(i);
}

struct alignas(1024) SharedMemory {
  unsigned char bytes[kMaxShared + kGuardBytes];
};

struct Emulation {
  std::mutex mutex;  // held by a launch
  Order order = Order::kAscending;
  size_t shared_limit = kMaxShared;
  std::vector<Launch> launches;
  std::vector<Guard> guards;

  // The launch
  const char* name = nullptr;
  bool inside = false;  // a fiber is running
  void (*body)(void*);
  void* context;
  int threads;
  std::mt19937 random;
  std::array<int, kMaxThreads> order_of;  // thread by place

  // The block
  Continuation host;
  std::exception_ptr error;
  int current;  // thread
  int live;
  Places ready;
  Places waiting;   // in wait_until, to be tried again
  Places tried;     // in wait_until, in vain
  bool progressed;  // some thread has gone on since all in `tried` were to be tried
  std::array<Barrier, kNamedBarriers> barriers;
  std::array<Warp, kMaxWarps> warps;
  std::array<Fiber, kMaxThreads> fibers;
  SharedMemory shared;
};

// Never destroyed: a fiber's stack may hold what the end of the process would look for.
Emulation& the() {
  static Emulation* const emulation = new Emulation;
  return *emulation;
}

void begin_fiber();

[[gnu::noinline]] void switch_to(Continuation& from, Continuation& to) {
  from.started = true;
  if (_setjmp(from.jump) != 0) return;
  if (to.started) _longjmp(to.jump, 1);
  setcontext(&to.start);
}

void prepare(Fiber& fiber, int index) {
  if (fiber.stack == nullptr) {
    // The lowest page traps what runs over the end.
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* mapped = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED || mprotect(mapped, page, PROT_NONE) != 0) throw std::bad_alloc();
    fiber.stack = static_cast<std::byte*>(mapped) + page;
  }
  getcontext(&fiber.continuation.start);
  fiber.continuation.start.uc_stack.ss_sp = fiber.stack;
  // Stacks that all began at the same offset in a page would share a few lines of the cache.
  fiber.continuation.start.uc_stack.ss_size = kStackBytes - static_cast<size_t>(index % 32) * 128;
  fiber.continuation.start.uc_link = nullptr;
  makecontext(&fiber.continuation.start, begin_fiber, 0);
  fiber.continuation.started = false;
}

void append_threads(std::string& text, const std::vector<int>& threads) {
  text += threads.size() == 1 ? "thread " : "threads ";
  int shown = 0;
  for (size_t begin = 0; begin < threads.size();) {
    size_t end = begin + 1;
    while (end < threads.size() && threads[end] == threads[end - 1] + 1) ++end;
    if (begin != 0) text += ", ";
    if (++shown > 8) {
      text += "...";
      return;
    }
    text += std::to_string(threads[begin]);
    if (end - begin > 1) text += (end - begin > 2 ? "-" : ", ") + std::to_string(threads[end - 1]);
    begin = end;
  }
}

std::string hex(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof(text), "0x%08x", mask);
  return text;
}

// Who waits where.
std::string whereabouts() {
  Emulation& e = the();
  std::vector<std::pair<std::string, std::vector<int>>> groups;
  for (int thread = 0; thread < e.threads; ++thread) {
    const Fiber& fiber = e.fibers[thread];
    std::string where = fiber.ended ? "ended" : fiber.waits_at == nullptr ? "running" : "at ";
    if (!fiber.ended && fiber.waits_at != nullptr) {
      where += fiber.waits_at;
      if (fiber.waits_mask != 0) where += " of lanes " + hex(fiber.waits_mask);
    }
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const auto& known) { return known.first == where; });
    if (group == groups.end()) group = groups.insert(groups.end(), {where, {}});
    group->second.push_back(thread);
  }
  std::string text;
  for (const auto& [where, threads] : groups) {
    if (!text.empty()) text += "; ";
    append_threads(text, threads);
    text += " " + where;
  }
  return text;
}

std::string kernel_and_block() {
  return std::string("kernel ") + the().name + ", block " + std::to_string(blockIdx.x);
}

// From a fiber back to the host, which throws. The block's fibers stay where they are: their stacks
// begin anew with the next block.
[[noreturn]] void give_up(std::exception_ptr error) {
  Emulation& e = the();
  e.error = std::move(error);
  e.fibers[e.current].ended = false;
  switch_to(e.fibers[e.current].continuation, e.host);
  std::terminate();  // no fiber of a block given up runs again
}

[[noreturn]] void give_up(const std::string& what) {
  give_up(std::make_exception_ptr(std::runtime_error("emulation: " + what)));
}

// The next fiber runs: the first that is ready, or that may stop waiting.
void run_next() {
  Emulation& e = the();
  const int previous = e.current;
  if (e.ready.empty() && e.waiting.empty() && std::exchange(e.progressed, false)) {
    e.waiting.take(e.tried);
  }
  const int ready = e.ready.first(), waiting = e.waiting.first();
  const int place = std::min(ready, waiting);
  if (place == kMaxThreads) {
    give_up(kernel_and_block() + ": no thread can go on: " + whereabouts());
  }
  if (place == ready) {
    e.ready.remove(place);
    e.progressed = true;
  } else {
    e.waiting.remove(place);
  }
  e.current = e.order_of[place];
  if (e.current != previous) {
    switch_to(e.fibers[previous].continuation, e.fibers[e.current].continuation);
  }
  // Here the fiber that called goes on, when its turn has come.
  e.fibers[previous].waits_at = nullptr;
  threadIdx.x = static_cast<unsigned>(previous);
}

void wait_at(const char* what, unsigned mask) {
  Fiber& fiber = the().fibers[the().current];
  fiber.waits_at = what;
  fiber.waits_mask = mask;
  run_next();
}

void make_ready(int thread) { the().ready.add(the().fibers[thread].place); }

void open(Barrier& barrier) {
  barrier.results[barrier.openings++ % 2] = barrier.votes;
  barrier.votes = {};
  the().ready.take(barrier.waiting);
}

void close_meeting(Meeting& meeting, int warp) {
  std::byte* values = meeting.values[meeting.turn].data();
  for (int lane = 0; meeting.arrived != kAllLanes && lane < warpSize; ++lane) {
    if ((meeting.arrived >> lane & 1) == 0) {
      std::memset(values + static_cast<size_t>(lane) * meeting.bytes, 0xff, meeting.bytes);
    }
  }
  for (unsigned rest = meeting.arrived; rest != 0; rest &= rest - 1) {
    make_ready(warp * warpSize + std::countr_zero(rest));
  }
  meeting.arrived = 0;
  meeting.turn ^= 1;
}

// One thread less: those that have waited for it alone go on.
void end_thread() {
  Emulation& e = the();
  const int warp = e.current / warpSize;
  e.fibers[e.current].ended = true;
  --e.live;
  Barrier& barrier = e.barriers[0];
  if (e.live > 0 && barrier.votes.arrived == e.live) open(barrier);
  e.warps[warp].live &= ~(1u << e.current % warpSize);
  for (Meeting& meeting : e.warps[warp].meetings) {
    if (meeting.arrived != 0 && meeting.arrived == (meeting.mask & e.warps[warp].live)) {
      close_meeting(meeting, warp);
    }
  }
  if (e.live == 0) {
    switch_to(e.fibers[e.current].continuation, e.host);
  } else {
    run_next();
  }
}

void begin_fiber() {
  Emulation& e = the();
  for (;;) {
    threadIdx.x = static_cast<unsigned>(e.current);
    std::exception_ptr error;
    try {
      e.body(e.context);
    } catch (...) {
      error = std::current_exception();
    }
    if (error) give_up(std::move(error));
    end_thread();
  }
}

// Warps as a whole, and the lanes of each. Were all threads shuffled as one, no warp would get far
// ahead of the others, and what it did too early would not show.
void shuffle_order() {
  Emulation& e = the();
  std::array<int, kMaxWarps> warps;
  const int count = (e.threads + warpSize - 1) / warpSize;
  std::iota(warps.begin(), warps.begin() + count, 0);
  std::shuffle(warps.begin(), warps.begin() + count, e.random);
  auto next = e.order_of.begin();
  for (int i = 0; i < count; ++i) {
    const int first = warps[i] * warpSize;
    const auto begin = next;
    for (int t = first; t < std::min(first + warpSize, e.threads); ++t) *next++ = t;
    std::shuffle(begin, next, e.random);
  }
}

void run_block() {
  Emulation& e = the();
  e.error = nullptr;
  e.live = e.threads;
  e.ready = e.waiting = e.tried = {};
  e.progressed = false;
  for (Barrier& barrier : e.barriers) {
    barrier.waiting = {};
    barrier.votes = {};
  }
  for (int warp = 0; warp * warpSize < e.threads; ++warp) {
    const int lanes = std::min(e.threads - warp * warpSize, warpSize);
    e.warps[warp].live = lanes == warpSize ? kAllLanes : (1u << lanes) - 1;
    for (Meeting& meeting : e.warps[warp].meetings) meeting.arrived = 0;
  }
  if (e.order == Order::kShuffled) shuffle_order();
  for (int place = 0; place < e.threads; ++place) {
    Fiber& fiber = e.fibers[e.order_of[place]];
    if (fiber.stack == nullptr || !fiber.ended) prepare(fiber, e.order_of[place]);
    fiber.place = place;
    fiber.waits_at = nullptr;
    fiber.ended = false;
    e.ready.add(place);
  }
  e.ready.remove(0);
  e.current = e.order_of[0];
  e.inside = true;
  switch_to(e.host, e.fibers[e.current].continuation);
  e.inside = false;
  if (e.error) std::rethrow_exception(std::exchange(e.error, nullptr));
}

void check_launch(const char* name, int threads, size_t shared_bytes) {
  const std::string kernel = std::string("emulation: kernel ") + name + " is launched with ";
  if (threads < 1 || threads > kMaxThreads) {
    throw std::runtime_error(kernel + std::to_string(threads) +
                             " threads in a block, 1 to 1024 are possible");
  }
  if (shared_bytes > the().shared_limit) {
    throw std::runtime_error(kernel + std::to_string(shared_bytes) +
                             " bytes of shared memory, this device has " +
                             std::to_string(the().shared_limit));
  }
}

}  // namespace

void set_order(Order order) { the().order = order; }
void set_shared_limit(size_t bytes) { the().shared_limit = bytes; }
std::vector<Launch> take_launches() { return std::exchange(the().launches, {}); }

void add_guard(void* memory, size_t bytes, size_t guard) {
  const std::lock_guard lock(the().mutex);
  unsigned char* const begin = static_cast<unsigned char*>(memory) + bytes;
  fill_guard(begin, guard);
  the().guards.push_back({memory, begin, guard});
}

void remove_guard(void* memory) {
  const std::lock_guard lock(the().mutex);
  std::erase_if(the().guards, [&](const Guard& guard) { return guard.memory == memory; });
}

void run_kernel(const char* name, int64_t blocks, int threads, size_t shared_bytes,
                void (*body)(void*), void* context) {
  Emulation& e = the();
  const std::lock_guard lock(e.mutex);
  check_launch(name, threads, shared_bytes);
  e.launches.push_back({name, blocks, threads, shared_bytes});
  e.name = name;
  e.body = body;
  e.context = context;
  e.threads = threads;
  e.random.seed(1);
  for (int place = 0; place < threads; ++place) {
    e.order_of[place] = e.order == Order::kDescending ? threads - 1 - place : place;
  }
  blockDim = dim3(static_cast<unsigned>(threads));
  gridDim = dim3(static_cast<unsigned>(blocks));
  unsigned char* const shared_end = e.shared.bytes + shared_bytes;
  fill_guard(shared_end, kGuardBytes);
  for (int64_t block = 0; block < blocks; ++block) {
    blockIdx = make_uint3(static_cast<unsigned>(block), 0, 0);
    threadIdx = make_uint3(0, 0, 0);
    std::memset(e.shared.bytes, 0xff, shared_bytes);
    run_block();
    if (!untouched(shared_end, kGuardBytes)) {
      throw std::runtime_error("emulation: " + kernel_and_block() + " has written past its " +
                               std::to_string(shared_bytes) + " bytes of shared memory");
    }
  }
  for (const Guard& guard : e.guards) {
    if (!untouched(guard.begin, guard.bytes)) {
      fill_guard(guard.begin, guard.bytes);  // one error, not one at each launch
      throw std::runtime_error(std::string("emulation: kernel ") + name +
                               " has written past the end of working memory");
    }
  }
}

bool in_kernel() { return the().inside; }

void fail(const std::string& what) {
  if (!in_kernel()) throw std::runtime_error("emulation: " + what);
  give_up(kernel_and_block() + ", thread " + std::to_string(threadIdx.x) + ": " + what);
}

const void* exchange(const char* what, unsigned mask, const void* mine, size_t bytes) {
  Emulation& e = the();
  const int index = e.current / warpSize;
  const unsigned lane = static_cast<unsigned>(e.current % warpSize);
  Warp& warp = e.warps[index];
  if ((mask >> lane & 1) == 0) {
    fail(std::string(what) + " of lanes " + hex(mask) + ", which lane " + std::to_string(lane) +
         " is not among");
  }
  size_t found = 0;
  while (found < warp.meetings.size() && warp.meetings[found].mask != mask) ++found;
  if (found == warp.meetings.size()) warp.meetings.emplace_back().mask = mask;
  Meeting* meeting = &warp.meetings[found];
  const unsigned turn = meeting->turn;
  if (meeting->arrived == 0) {
    meeting->what = what;
    meeting->bytes = bytes;
    meeting->values[turn].resize(std::max(meeting->values[turn].size(), bytes * warpSize));
  } else if (std::strcmp(meeting->what, what) != 0 || meeting->bytes != bytes) {
    fail(std::string(what) + " of " + std::to_string(bytes) + " bytes, where other lanes of " +
         hex(mask) + " are at " + meeting->what + " of " + std::to_string(meeting->bytes));
  }
  std::memcpy(meeting->values[turn].data() + lane * bytes, mine, bytes);
  meeting->arrived |= 1u << lane;
  if (meeting->arrived == (mask & warp.live)) close_meeting(*meeting, index);
  wait_at(what, mask);
  return warp.meetings[found].values[turn].data();  // the list may have grown meanwhile
}

Votes block_barrier(const char* what, bool vote) {
  Emulation& e = the();
  Barrier& barrier = e.barriers[0];
  if (barrier.votes.arrived == 0) {
    barrier.what = what;
  } else if (std::strcmp(barrier.what, what) != 0) {
    fail(std::string("at ") + what + ", where others are at " + barrier.what);
  }
  ++barrier.votes.arrived;
  barrier.votes.yes += vote ? 1 : 0;
  barrier.waiting.add(e.fibers[e.current].place);
  const unsigned opening = barrier.openings;
  if (barrier.votes.arrived == e.live) open(barrier);
  wait_at(what, 0);
  return barrier.results[opening % 2];
}

void named_barrier(int id, int threads) {
  Emulation& e = the();
  if (id < 1 || id >= kNamedBarriers) fail("no barrier has the number " + std::to_string(id));
  Barrier& barrier = e.barriers[id];
  barrier.waiting.add(e.fibers[e.current].place);
  if (++barrier.votes.arrived == threads) open(barrier);
  wait_at("a named barrier", 0);
}

void wait_for_others() {
  Emulation& e = the();
  e.tried.add(e.fibers[e.current].place);
  wait_at("wait_until", 0);
}

void end_wait() { the().progressed = true; }

void notify() {
  Emulation& e = the();
  e.waiting.take(e.tried);
  e.ready.add(e.fibers[e.current].place);
  run_next();
}

void* shared_begin() { return the().shared.bytes; }

uint32_t shared_address(const void* at) {
  const ptrdiff_t offset = static_cast<const unsigned char*>(at) - the().shared.bytes;
  if (offset < 0 || offset > kMaxShared) fail("the address of what is not in shared memory");
  return static_cast<uint32_t>(offset);
}

void* shared_pointer(uint32_t address) {
  if (address > kMaxShared) fail("an address past the end of shared memory");
  return the().shared.bytes + address;
}

}  // namespace matcalc::cuda::emulation

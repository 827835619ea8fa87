#include "threads.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace ziggurat {
namespace {

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Cores that a container's quota amounts to, rounded up; 0: no quota (Linux, cgroup v2).
int64_t quota() {
  FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r");
  if (file == nullptr) return 0;
  long long share = 0, period = 0;
  const bool given = std::fscanf(file, "%lld %lld", &share, &period) == 2 && period > 0;
  std::fclose(file);
  return given ? (share + period - 1) / period : 0;
}

int64_t count_cores() {
  if (const char* given = std::getenv("ZIGGURAT_CPU_THREADS")) {
    const int64_t wanted = std::atoll(given);
    if (wanted > 0) return wanted;
  }
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    const int64_t allowed = CPU_COUNT(&set), share = quota();
    return share > 0 && share < allowed ? share : allowed;
  }
#endif
  const int64_t found = std::thread::hardware_concurrency();
  return found > 0 ? found : 1;
}

// One job at a time. `state_` holds the job's number (upper half), whether it may be joined and how
// many workers are inside; a worker that is still asleep when the work is done is not waited for.
class Pool {
 public:
  explicit Pool(int64_t threads) : process_(getpid()) {
    for (int64_t i = 1; i < threads; i++) std::thread([this] { work(); }).detach();
  }

  // Whether the job was run; false when another one is running or this is a fork of the process.
  bool run(int64_t tasks, Task call, const void* context) {
    if (busy_.exchange(true, std::memory_order_acquire)) return false;
    if (getpid() != process_) return false;  // the threads stayed in the parent; `busy_` stays set
    call_ = call, context_ = context, tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    const uint64_t job = (state_.load(std::memory_order_relaxed) >> 32) + 1;
    state_.store(job << 32 | kOpen, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    take_tasks();
    state_.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int spins = 0; state_.load(std::memory_order_acquire) & kInside; spins++) {
      if (spins < kSpins) pause(); else std::this_thread::yield();
    }
    busy_.store(false, std::memory_order_release);
    return true;
  }

 private:
  static constexpr uint64_t kOpen = uint64_t{1} << 31, kInside = kOpen - 1;
  static constexpr int kSpins = 2000;  // some 30 microseconds: longer than from one job to the next

  void take_tasks() {
    for (;;) {
      const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks_) return;
      call_(context_, task);
    }
  }

  bool join(uint64_t* seen) {
    uint64_t state = state_.load(std::memory_order_acquire);
    while ((state & kOpen) && state >> 32 != *seen) {
      if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) {
        *seen = state >> 32;
        return true;
      }
    }
    return false;
  }

  void work() {
    uint64_t seen = 0;
    for (;;) {
      bool joined = false;
      for (int spins = 0; spins < kSpins && !joined; spins++) {
        joined = join(&seen);
        if (!joined) pause();
      }
      if (!joined) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return joined = join(&seen); });
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
      }
      take_tasks();
      state_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  const pid_t process_;
  std::atomic<bool> busy_{false};
  std::atomic<uint64_t> state_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> sleepers_{0};
  Task call_ = nullptr;
  const void* context_ = nullptr;
  int64_t tasks_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_;
};

// Memory given back, for the next that asks. Never freed as a whole, like the pool: threads may
// still run while the process ends.
struct Store {
  static constexpr size_t kMost = 32;
  std::mutex mutex;
  std::vector<std::pair<void*, size_t>> free;
};

Store& store() {
  static Store* made = new Store;
  return *made;
}

}  // namespace

int64_t thread_count() {
  static const int64_t count = count_cores();
  return count;
}

void run_tasks(int64_t tasks, Task call, const void* context) {
  if (tasks <= 0) return;
  static Pool* pool = thread_count() > 1 ? new Pool(thread_count()) : nullptr;
  if (pool != nullptr && pool->run(tasks, call, context)) return;
  for (int64_t task = 0; task < tasks; task++) call(context, task);
}

Workspace::Workspace(size_t bytes) : memory_(nullptr), bytes_(bytes) {
  constexpr size_t kHuge = size_t{1} << 21;
  const size_t unit = bytes >= kHuge ? kHuge : 4096;
  bytes_ = (bytes + unit - 1) / unit * unit;
  if (bytes_ == 0) bytes_ = unit;
  {
    Store& kept = store();
    std::lock_guard<std::mutex> lock(kept.mutex);
    size_t best = kept.free.size();
    for (size_t i = 0; i < kept.free.size(); i++) {
      const size_t size = kept.free[i].second;
      const bool fits = size >= bytes_ && size <= 2 * bytes_;
      if (fits && (best == kept.free.size() || size < kept.free[best].second)) best = i;
    }
    if (best < kept.free.size()) {
      memory_ = kept.free[best].first, bytes_ = kept.free[best].second;
      kept.free.erase(kept.free.begin() + best);
      return;
    }
  }
  memory_ = std::aligned_alloc(unit, bytes_);
  if (memory_ == nullptr) std::abort();
#if defined(__linux__)
  if (unit == kHuge) madvise(memory_, bytes_, MADV_HUGEPAGE);
#endif
}

Workspace::~Workspace() {
  Store& kept = store();
  std::pair<void*, size_t> dropped{nullptr, 0};
  {
    std::lock_guard<std::mutex> lock(kept.mutex);
    kept.free.emplace_back(memory_, bytes_);
    if (kept.free.size() > Store::kMost) {
      dropped = kept.free.front();
      kept.free.erase(kept.free.begin());
    }
  }
  std::free(dropped.first);
}

}  // namespace ziggurat

// A pool of threads that stays, and memory that is used again.
//
//   parallel(tasks, [&](int64_t task) { ... });
//
// runs every task once; the calling thread takes part. Who runs a task is not fixed, so a task's
// result must not depend on it: then results are the same bits for any number of threads. Tasks are
// taken in order, so the longest should come first.
//
// Several callers at once are fine (XLA runs independent operations concurrently): one gets the
// threads, the others run their tasks themselves. So is a call from inside a task.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace ziggurat {

// Threads that may work at once, the caller's included: the cores this process may use by its
// affinity and its container's quota, or ZIGGURAT_CPU_THREADS.
int64_t thread_count();

using Task = void (*)(const void* context, int64_t task);
void run_tasks(int64_t tasks, Task call, const void* context);

template <typename F>
void parallel(int64_t tasks, const F& task) {
  if (tasks == 1) {
    task(int64_t{0});
    return;
  }
  run_tasks(
      tasks, [](const void* context, int64_t i) { (*static_cast<const F*>(context))(i); }, &task);
}

// Aligned memory from a store of what earlier calls gave back: fresh pages cost more than many a
// kernel. The content is whatever it was.
class Workspace {
 public:
  explicit Workspace(size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  template <typename T>
  T* as() const {
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_;
  size_t bytes_;
};

}  // namespace ziggurat

// One team of threads per process, shared by every operator.
//
// The calling thread is member 0, so a team of one starts no threads. Between jobs the others spin for a moment, then
// sleep. Jobs run one after another: a second caller waits for the first. A forked child starts a team of its own. Where
// other processes take its cores, the caller may do a job alone (governor.h).
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <type_traits>

#include "governor.h"

namespace codellama {

class Pool;

// Between two looks at what another thread or process writes.
inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// What a job sees: who it is, and the means to share out work and to wait for the others.
class Member {
 public:
  Member(Pool& pool, int rank, int size) : pool_(pool), rank_(rank), size_(size) {}
  int rank() const { return rank_; }
  int size() const { return size_; }
  // Items begin..end of `count`, `step` at a time, until nothing of this phase is left. Phases are numbered from 0 and
  // each number is used once a job. Work goes to whoever is free, so a member that lost its core delays nobody for
  // longer than one step.
  template <class Body>
  void share(int phase, int64_t count, int64_t step, Body&& body);
  // Returns once every member has come here.
  void barrier();

 private:
  Pool& pool_;
  int rank_, size_;
};

class Pool {
 public:
  static constexpr int kPhases = 64;
  static constexpr int kMostThreads = 256;

  // The pool of this process. Lives until the process ends.
  static Pool& instance();

  int size() const { return size_; }

  // Runs `body(Member&)` on every member and returns when all have finished. The caller holds `mutex()`.
  template <class Body>
  void run(Body&& body) {
    start(call<Body>, const_cast<void*>(static_cast<const void*>(&body)), running());
  }

  // The same for jobs of many short phases, which wait for each other so often that a member without a core can make the
  // team slower than one thread: the governor decides. What it compares are rates of work, so one kind of job only.
  template <class Body>
  void run_watched(Body&& body) {
    watched(call<Body>, const_cast<void*>(static_cast<const void*>(&body)));
  }

  // Held around `scratch` and `run`, so that the scratch belongs to one job until it ends.
  std::mutex& mutex() { return callers_; }

  // At least so many floats, 64-byte aligned; kept for the next job. Throws std::bad_alloc.
  float* scratch(int64_t floats);

 private:
  friend class Member;
  using Job = void (*)(void*, Member&);
  struct alignas(64) Counter {
    std::atomic<int64_t> next{0};
  };

  template <class Body>
  static void call(void* data, Member& member) {
    (*static_cast<std::remove_reference_t<Body>*>(data))(member);
  }

  explicit Pool(int size);
  int running();  // starts the threads at its first call
  void start(Job job, void* data, int members);
  void watched(Job job, void* data);
  void work(int rank);
  void wait_for_job(uint32_t seen);

  const int size_;
  int running_ = 1;  // members with a thread; fewer than size_ where threads could not be started
  bool started_ = false;
  std::mutex callers_;
  Counter counters_[kPhases];
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<uint32_t> jobs_{0};
  std::atomic<int> sleepers_{0};
  std::mutex sleep_;
  std::condition_variable wake_;
  Job job_ = nullptr;
  void* data_ = nullptr;
  float* scratch_ = nullptr;
  int64_t scratch_floats_ = 0;
  Governor governor_;
  double stalled_ = 0.0;  // seconds that member 0 has waited in vain in this job
};

template <class Body>
void Member::share(int phase, int64_t count, int64_t step, Body&& body) {
  std::atomic<int64_t>& next = pool_.counters_[phase].next;
  for (;;) {
    const int64_t begin = next.fetch_add(step, std::memory_order_relaxed);
    if (begin >= count) return;
    body(begin, begin + step < count ? begin + step : count);
  }
}

// Threads that this process may use: CODELLAMA_NUM_THREADS, or its share of the smaller of its affinity and its cgroup's
// quota.
int usable_threads();

}  // namespace codellama

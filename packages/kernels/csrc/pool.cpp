// The team of threads: starting, waiting, sleeping, and what happens at a fork.
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include <chrono>
#include <cstdlib>
#include <new>
#include <system_error>
#include <thread>

namespace codellama {
namespace {

// A member that waits for the others spins about 20 us, long enough for an undisturbed team, and then offers its core
// at every look, so that a team with fewer cores than members (or with a neighbour) still gets on.
constexpr int kSpins = 500;
// Between jobs: operators of one graph follow within microseconds, graphs within a millisecond.
constexpr auto kAwake = std::chrono::microseconds(1000);

constexpr std::align_val_t kScratchAlignment{2 << 20};  // of a large page

std::atomic<Pool*> current{nullptr};

double seconds(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// The child has none of the threads and perhaps a held mutex: it leaves that pool alone and makes a new one.
void forget_pool() { current.store(nullptr, std::memory_order_release); }

}  // namespace

Pool& Pool::instance() {
  Pool* pool = current.load(std::memory_order_acquire);
  if (pool) return *pool;
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  static_cast<void>(registered);
  Pool* fresh = new Pool(usable_threads());
  if (current.compare_exchange_strong(pool, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;  // another thread was first; ours has started nothing yet
  return *pool;
}

Pool::Pool(int size) : size_(size) {}

float* Pool::scratch(int64_t floats) {
  if (floats > scratch_floats_) {
    ::operator delete(scratch_, kScratchAlignment);
    scratch_floats_ = 0;
    scratch_ = nullptr;
    const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
    scratch_ = static_cast<float*>(::operator new(bytes, kScratchAlignment));
#if defined(MADV_HUGEPAGE)
    madvise(scratch_, bytes, MADV_HUGEPAGE);  // columns of wide matrices cross a small page with every element
#endif
    scratch_floats_ = floats;
  }
  return scratch_;
}

int Pool::running() {
  if (started_) return running_;
  started_ = true;
  for (; running_ < size_; ++running_) {
    try {
      std::thread([this, rank = running_] { work(rank); }).detach();
    } catch (const std::system_error&) {
      break;  // the system allows no more threads: a smaller team does the same work
    }
  }
  return running_;
}

// Of `members` either all or only the caller.
void Pool::start(Job job, void* data, int members) {
  for (Counter& counter : counters_) counter.next.store(0, std::memory_order_relaxed);
  job_ = job;
  data_ = data;
  if (members > 1) {
    jobs_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      { std::lock_guard<std::mutex> lock(sleep_); }
      wake_.notify_all();
    }
  }
  Member member(*this, 0, members);
  job(data, member);
  member.barrier();
}

void Pool::watched(Job job, void* data) {
  if (running() == 1) return start(job, data, 1);
  const double begin = seconds(CLOCK_MONOTONIC), busy = seconds(CLOCK_THREAD_CPUTIME_ID);
  stalled_ = 0.0;
  start(job, data, governor_.alone() ? 1 : running_);
  const double end = seconds(CLOCK_MONOTONIC), took = end - begin;
  int64_t done = 0;
  for (const Counter& counter : counters_) done += counter.next.load(std::memory_order_relaxed);
  governor_.ended(end, took, stalled_ + took - (seconds(CLOCK_THREAD_CPUTIME_ID) - busy), done);
}

void Pool::work(int rank) {
  uint32_t seen = 0;  // a job that began before this thread did is number 1
  for (;;) {
    wait_for_job(seen);
    ++seen;
    Member member(*this, rank, running_);
    job_(data_, member);
    member.barrier();
  }
}

void Pool::wait_for_job(uint32_t seen) {
  const auto ready = [&] { return jobs_.load(std::memory_order_acquire) != seen; };
  const auto until = std::chrono::steady_clock::now() + kAwake;
  for (int spin = 1;; ++spin) {
    if (ready()) return;
    relax();
    if (spin % 64 == 0) {
      if (std::chrono::steady_clock::now() > until) break;
      sched_yield();
    }
  }
  std::unique_lock<std::mutex> lock(sleep_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return jobs_.load(std::memory_order_seq_cst) != seen; });
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

void Member::barrier() {
  if (size_ == 1) return;
  const uint32_t round = pool_.round_.load(std::memory_order_relaxed);
  if (pool_.arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    pool_.arrived_.store(0, std::memory_order_relaxed);
    pool_.round_.store(round + 1, std::memory_order_release);
    return;
  }
  const auto released = [&] { return pool_.round_.load(std::memory_order_acquire) != round; };
  for (int spin = 0; spin < kSpins; ++spin) {
    if (released()) return;
    relax();
  }
  const double start = rank_ == 0 ? seconds(CLOCK_MONOTONIC) : 0.0;
  while (!released()) sched_yield();
  if (rank_ == 0) pool_.stalled_ += seconds(CLOCK_MONOTONIC) - start;
}

}  // namespace codellama

// The sum of a tensor of every process of a group, in memory that the processes of one machine share.
//
// A tensor goes through in chunks. Of each, a process writes its own numbers into its slot; adds up its share of the
// chunk over all slots, into its own; and takes every share from the slot it was added up in. After the first and the
// second it waits until all others are as far. A number is added up by one process, in the order of the ranks: the
// result is the same on all of them, to the last bit. Slots are two a process: who writes one again has seen all others
// write the next, so nobody reads it any more.
#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <vector>

#include "operator.h"
#include "pool.h"

namespace codellama {
namespace {

constexpr int64_t kChunk = 1 << 16;  // numbers, 256 KiB: the slots of a few processes stay in a core's cache
constexpr int64_t kShare = 1 << 14;  // numbers that a thread takes at a time
constexpr int64_t kLine = 16;        // numbers of a cache line; no two processes add up parts of one
constexpr int kSpins = 1000;         // looks at another's progress, 40 us on a Xeon, before sleeping
constexpr timespec kLook{1, 0};      // how often a sleeper looks whether the others live
constexpr int64_t kPage = 4096;

// What a process tells the others. Lives in the shared memory, which is zeros at first.
struct alignas(64) Seat {
  std::atomic<uint32_t> progress;  // counts the points at which the others may be waiting
  std::atomic<int32_t> process;
  int64_t elements;  // of the tensor that it is adding up
  int64_t number;    // of the sum, as its caller counts
};

struct alignas(64) Head {
  uint64_t word;  // by which the memory is recognised
  std::atomic<uint32_t> failed;
};

static_assert(std::atomic<uint32_t>::is_always_lock_free, "processes share these");

int64_t slots_at(int size) {
  const int64_t seats = static_cast<int64_t>(sizeof(Head) + sizeof(Seat) * static_cast<size_t>(size));
  return (seats + kPage - 1) / kPage * kPage;
}

int64_t bytes_of_channel(int size) { return slots_at(size) + 2 * size * kChunk * static_cast<int64_t>(sizeof(float)); }

class Channel {
 public:
  Channel(char* memory, int rank, int size, double seconds)
      : head_(reinterpret_cast<Head*>(memory)),
        seats_(reinterpret_cast<Seat*>(memory + sizeof(Head))),
        slots_(reinterpret_cast<float*>(memory + slots_at(size))),
        rank_(rank),
        size_(size),
        seconds_(seconds) {
    seats_[rank].process.store(getpid(), std::memory_order_release);
  }

  bool sum(const float* x, float* out, int64_t elements, int64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    // Who has failed goes no further: what it did next could pass for what the others still wait for.
    if (head_->failed.load(std::memory_order_acquire)) return false;
    Seat& own = seats_[rank_];
    own.elements = elements;
    own.number = number;
    for (int64_t begin = 0; begin < elements; begin += kChunk) {
      const int64_t count = std::min(kChunk, elements - begin);
      spread(0, count, [&](int64_t from, int64_t to) { std::copy(x + begin + from, x + begin + to, slot(rank_) + from); });
      if (!meet() || (begin == 0 && !agree())) return false;
      spread(first(rank_, count), first(rank_ + 1, count), [&](int64_t from, int64_t to) { add_up(from, to); });
      if (!meet()) return false;
      for (int rank = 0; rank < size_; ++rank) {
        spread(first(rank, count), first(rank + 1, count), [&](int64_t from, int64_t to) {
          std::copy(slot(rank) + from, slot(rank) + to, out + begin + from);
        });
      }
      turn_ ^= 1;
    }
    return true;
  }

 private:
  float* slot(int rank) const { return slots_ + (2 * rank + turn_) * kChunk; }

  // Where the share of a rank begins.
  int64_t first(int rank, int64_t count) const {
    return rank == size_ ? count : std::min(count, (count + kLine - 1) / kLine * rank / size_ * kLine);
  }

  void add_up(int64_t from, int64_t to) const {
    float* __restrict own = slot(rank_);
    constexpr int64_t kBlock = 1024;  // numbers; the sum is kept beside until every rank's are in it
    float block[kBlock];
    for (; from < to; from += kBlock) {
      const int64_t count = std::min(kBlock, to - from);
      std::copy(slot(0) + from, slot(0) + from + count, block);
      for (int rank = 1; rank < size_; ++rank) {
        const float* __restrict other = slot(rank) + from;
        for (int64_t index = 0; index < count; ++index) block[index] += other[index];
      }
      std::copy(block, block + count, own + from);
    }
  }

  template <class Body>
  static void spread(int64_t begin, int64_t end, Body&& body) {
    Pool& pool = Pool::instance();
    if (end - begin <= kShare || pool.size() == 1) {
      body(begin, end);
      return;
    }
    const std::lock_guard<std::mutex> lock(pool.mutex());
    pool.run([&](Member& member) {
      member.share(0, end - begin, kShare, [&](int64_t from, int64_t to) { body(begin + from, begin + to); });
    });
  }

  // Returns when all have come to this point; false where they will not.
  bool meet() {
    Seat& own = seats_[rank_];
    const uint32_t point = own.progress.load(std::memory_order_relaxed) + 1;
    own.progress.store(point, std::memory_order_release);
    wake(own.progress);
    for (int rank = 0; rank < size_; ++rank) {
      if (rank != rank_ && !wait(rank, point)) return false;
    }
    return true;
  }

  bool wait(int rank, uint32_t point) {
    std::atomic<uint32_t>& progress = seats_[rank].progress;
    const auto there = [&] { return static_cast<int32_t>(progress.load(std::memory_order_acquire) - point) >= 0; };
    for (int spin = 0; spin < kSpins; ++spin) {
      if (there()) return true;
      relax();
    }
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds_);
    for (;;) {
      const uint32_t seen = progress.load(std::memory_order_acquire);
      if (there()) return true;
      if (head_->failed.load(std::memory_order_acquire)) return false;  // who found out has said why
      syscall(SYS_futex, &progress, FUTEX_WAIT, seen, &kLook, nullptr, 0);
      const pid_t process = seats_[rank].process.load(std::memory_order_acquire);
      const bool ended = kill(process, 0) != 0 && errno == ESRCH;
      const bool late = std::chrono::steady_clock::now() > until;
      if (there()) return true;  // it may have come, and ended, since the last look
      if (ended) return fail(rank, "has ended");
      if (late) return fail(rank, "did not come in time");
    }
  }

  // All are in the same sum.
  bool agree() {
    const Seat& own = seats_[rank_];
    for (int rank = 0; rank < size_; ++rank) {
      if (seats_[rank].elements != own.elements || seats_[rank].number != own.number) {
        return fail(rank, "is in another sum");
      }
    }
    return true;
  }

  bool fail(int rank, const char* what) {
    if (head_->failed.exchange(1, std::memory_order_acq_rel)) return false;  // another was first, and has said so
    std::fprintf(stderr, "codellama-kernels: a sum of %d processes failed: number %d %s (this is %d)\n", size_, rank, what,
                 rank_);
    for (int other = 0; other < size_; ++other) wake(seats_[other].progress);
    return false;
  }

  static void wake(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, &word, FUTEX_WAKE, kEverybody, nullptr, nullptr, 0);
  }

  static constexpr int kEverybody = 1 << 30;

  Head* const head_;
  Seat* const seats_;
  float* const slots_;
  const int rank_, size_;
  const double seconds_;
  int turn_ = 0;
  std::mutex mutex_;
};

// Of this process, by number; they live until it ends.
std::vector<Channel*> channels;
std::mutex channels_mutex;

Channel* channel(int32_t number) {
  const std::lock_guard<std::mutex> lock(channels_mutex);
  const bool known = number >= 0 && static_cast<size_t>(number) < channels.size();
  return known ? channels[static_cast<size_t>(number)] : nullptr;
}

}  // namespace
}  // namespace codellama

using namespace codellama;

// Makes the memory for the sums of a group: a file without a name, recognised by its first eight bytes; -1 where there is
// none. By its number, because the C libraries that some Pythons are built for do not know the call.
CODELLAMA_EXPORT int codellama_channel_offer(int size, uint64_t word) {
  const int file = static_cast<int>(syscall(SYS_memfd_create, "codellama-sum", 1U /* MFD_CLOEXEC */));
  if (file < 0) return -1;
  if (ftruncate(file, bytes_of_channel(size)) == 0 && pwrite(file, &word, sizeof(word), 0) == sizeof(word)) return file;
  close(file);
  return -1;
}

// The number of a channel in memory that is mapped, for `codellama_shared_sum`.
CODELLAMA_EXPORT int codellama_channel_in(void* memory, int rank, int size, double seconds) {
  const std::lock_guard<std::mutex> lock(channels_mutex);
  channels.push_back(new Channel(static_cast<char*>(memory), rank, size, seconds));
  return static_cast<int>(channels.size()) - 1;
}

// The same of a file that `codellama_channel_offer` has made; -1 where it can not be mapped.
CODELLAMA_EXPORT int codellama_channel_open(int file, int rank, int size, double seconds) {
  const size_t bytes = static_cast<size_t>(bytes_of_channel(size));
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return memory == MAP_FAILED ? -1 : codellama_channel_in(memory, rank, size, seconds);
}

// x, of any shape; [2]: number of the channel, number of the sum -> x of all processes of the channel, added up
CODELLAMA_OPERATOR(codellama_shared_sum) {
  const bool plausible = a.count() == 3 && a.is(0, "float32") && a.is(1, "int32") && a.is(2, "float32") &&
                         a.elements(1) == 2 && a.elements(2) == a.elements(0);
  if (!plausible) return kWrongArguments;
  const int32_t* numbers = a.data<int32_t>(1);
  Channel* const members = channel(numbers[0]);
  if (!members) return kWrongArguments;
  return members->sum(a.data<float>(0), a.data<float>(2), a.elements(0), numbers[1]) ? kDone : kFailed;
}

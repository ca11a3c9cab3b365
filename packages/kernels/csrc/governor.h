// Decides whether a team of threads is worth its waits while other processes take its cores.
//
// A member without a core makes all others wait for a whole time slice, so that a disturbed team can be many times
// slower than one thread. Waits are watched; where they are long, one thread is tried and kept while it is faster.
#pragma once

#include <cstdint>

namespace codellama {

class Governor {
 public:
  // Whether the caller should run its next job alone.
  bool alone() const { return state_ == State::kTryAlone || state_ == State::kAlone; }

  // A job has ended: seconds since an arbitrary point, how long it took, how much of that the caller waited in vain or
  // was without a core, and how much was done in any unit that is the same for the same work.
  void ended(double now, double seconds, double lost, int64_t done) {
    seconds_ += seconds;
    lost_ += lost;
    done_ += static_cast<double>(done);
    if (seconds_ < kWindow) return;
    judge(now, done_ / seconds_, lost_ / seconds_);
    seconds_ = lost_ = done_ = 0.0;
  }

 private:
  enum class State { kTeam, kTryAlone, kAlone, kTryTeam };
  static constexpr double kWindow = 5e-3;    // seconds of work between decisions
  static constexpr double kMuchLost = 0.25;  // share of the time: an undisturbed team loses a few hundredths
  static constexpr double kFirstHold = 0.1, kLongestHold = 1.0;  // seconds until the other way is tried again

  void judge(double now, double rate, double lost) {
    switch (state_) {
      case State::kTeam:
        if (lost < kMuchLost) {
          hold_ = kFirstHold;
        } else if (now >= until_) {
          other_rate_ = rate;
          state_ = State::kTryAlone;
        }
        return;
      case State::kTryAlone:
        return settle(now, rate > other_rate_ ? State::kAlone : State::kTeam);
      case State::kAlone:
        other_rate_ = rate;
        if (now >= until_) state_ = State::kTryTeam;
        return;
      case State::kTryTeam:
        return settle(now, rate > other_rate_ ? State::kTeam : State::kAlone);
    }
  }

  void settle(double now, State state) {
    state_ = state;
    until_ = now + hold_;
    hold_ = 2 * hold_ < kLongestHold ? 2 * hold_ : kLongestHold;
  }

  State state_ = State::kTeam;
  double seconds_ = 0.0, lost_ = 0.0, done_ = 0.0;
  double other_rate_ = 0.0;  // of the way that is not being tried
  double until_ = 0.0, hold_ = kFirstHold;
};

}  // namespace codellama

// How many threads this process may use.
#include <sched.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "pool.h"

namespace codellama {
namespace {

// Processors of the main thread, which no runtime has pinned; 0 where the system does not say.
int affinity() {
  cpu_set_t set;
  if (sched_getaffinity(getpid(), sizeof set, &set) == 0) return CPU_COUNT(&set);
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? static_cast<int>(online) : 0;
}

std::string first_line(const std::string& path) {
  std::string text;
  if (FILE* file = std::fopen(path.c_str(), "r")) {
    char line[256];
    if (std::fgets(line, sizeof line, file)) text = line;
    std::fclose(file);
  }
  return text;
}

// Whole processors that a quota of `quota` in every `period` microseconds is worth, at least one; 0: no limit.
int processors(const std::string& quota, const std::string& period) {
  const double share = std::atof(quota.c_str()), whole = std::atof(period.c_str());
  if (share <= 0 || whole <= 0) return 0;  // "max", -1 or no file
  const int count = static_cast<int>(share / whole + 0.5);
  return count < 1 ? 1 : count;
}

int smaller(int a, int b) { return a == 0 ? b : b == 0 || a < b ? a : b; }

// The tightest quota from `group` up to the root, in either version of control groups.
int quota_of(const std::string& root, std::string group, bool second_version) {
  int least = 0;
  for (;;) {
    const std::string folder = root + group;
    if (second_version) {
      const std::string line = first_line(folder + "/cpu.max");
      const size_t space = line.find(' ');
      if (space != std::string::npos) least = smaller(least, processors(line.substr(0, space), line.substr(space)));
    } else {
      least = smaller(least, processors(first_line(folder + "/cpu.cfs_quota_us"),
                                        first_line(folder + "/cpu.cfs_period_us")));
    }
    const size_t slash = group.rfind('/');
    if (slash == std::string::npos) return least;
    group.erase(slash);
  }
}

int cgroup_quota() {
  int least = 0;
  FILE* file = std::fopen("/proc/self/cgroup", "r");
  if (!file) return 0;
  char text[4096];
  while (std::fgets(text, sizeof text, file)) {  // number:controllers:/group
    std::string line = text;
    while (!line.empty() && (line.back() == '\n' || line.back() == '/')) line.pop_back();
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string group = line.substr(second + 1);
    if (controllers == ",,") {
      least = smaller(least, quota_of("/sys/fs/cgroup", group, true));
    } else if (controllers.find(",cpu,") != std::string::npos) {
      least = smaller(least, quota_of("/sys/fs/cgroup/cpu", group, false));
    }
  }
  std::fclose(file);
  return least;
}

int number(const char* variable) {
  const char* text = std::getenv(variable);
  return text ? std::atoi(text) : 0;
}

// Processes of the same job on this machine, at least 1. A launcher that says how many sets LOCAL_WORLD_SIZE; msrun only
// says how many there are on all machines, and binds processes to cores of their own where it is asked to.
int local_ranks() {
  int count = number("LOCAL_WORLD_SIZE");
  if (count < 1 && !std::getenv("MSRUN_CPU_LIST")) count = number("MS_WORKER_NUM");
  return count < 1 ? 1 : count;
}

}  // namespace

int usable_threads() {
  int count = number("CODELLAMA_NUM_THREADS");
  if (count < 1) count = smaller(affinity(), cgroup_quota()) / local_ranks();
  if (count < 1) count = 1;
  return count < Pool::kMostThreads ? count : Pool::kMostThreads;
}

}  // namespace codellama

// Tensors in a region of their own, beside the C library's heap.
//
// In one heap with the small objects of Python and of the graph, large blocks end up with small ones between them, free
// room cannot be joined, and the heap grows for as long as a training runs. Here large blocks have only each other as
// neighbours: best fit, lowest address first, neighbours joined when they are free. What is freed stays with the
// process until it is given back.

#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

namespace {

constexpr size_t LEAST = 16 << 10;  // bytes; smaller tensors stay in the heap
constexpr size_t ALIGNMENT = 64;

class Region {
 public:
  // Addresses, not memory. False, with errno, where the system refuses them.
  bool reserve(size_t bytes) {
    void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return false;
    begin_ = top_ = touched_ = static_cast<char*>(found);
    end_ = begin_ + bytes;
    return true;
  }

  bool holds(const void* block) const { return begin_ <= block && block < end_; }

  // nullptr where no room is left.
  void* take(size_t size) {
    size = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const std::lock_guard<std::mutex> guard(lock);
    char* block = top_;
    if (const auto fit = sizes_.lower_bound({size, nullptr}); fit != sizes_.end()) {
      const auto [room, start] = *fit;
      block = start;
      drop(start);
      if (room > size) keep(start + size, room - size);
    } else {
      if (size > size_t(end_ - top_)) return nullptr;
      top_ += size;
      touched_ = std::max(touched_, top_);
    }
    taken_[block] = size;
    return block;
  }

  void give(void* pointer) {
    const std::lock_guard<std::mutex> guard(lock);
    const auto found = taken_.find(static_cast<char*>(pointer));
    char* start = found->first;
    size_t size = found->second;
    taken_.erase(found);
    auto after = free_.lower_bound(start);
    if (after != free_.begin()) {
      const auto [left, room] = *std::prev(after);
      if (left + room == start) {
        drop(left);
        start = left;
        size += room;
      }
    }
    if (after != free_.end() && after->first == start + size) {
      const size_t room = after->second;
      drop(start + size);
      size += room;
    }
    if (start + size == top_) {
      top_ = start;
    } else {
      keep(start, size);
    }
  }

  // Pages that nobody uses go back to the system.
  void trim() {
    const std::lock_guard<std::mutex> guard(lock);
    for (const auto& [start, size] : free_) release(start, start + size);
    release(top_, touched_);
    touched_ = top_;
  }

  std::mutex lock;

 private:
  static void release(char* from, char* to) {
    static const size_t page = sysconf(_SC_PAGESIZE);
    const size_t first = (size_t(from) + page - 1) / page * page, last = size_t(to) / page * page;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  }

  void keep(char* start, size_t size) {
    free_[start] = size;
    sizes_.insert({size, start});
  }

  void drop(char* start) {
    const auto found = free_.find(start);
    sizes_.erase({found->second, start});
    free_.erase(found);
  }

  char *begin_ = nullptr, *end_ = nullptr;
  char* top_ = nullptr;      // behind the last block in use
  char* touched_ = nullptr;  // the highest that was, since pages were given back
  std::map<char*, size_t> free_;
  std::set<std::pair<size_t, char*>> sizes_;
  std::unordered_map<char*, size_t> taken_;
};

// Never destroyed: tensors may be freed after everything else.
Region& region = *new Region;
c10::Allocator* heap = nullptr;

struct RegionAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* block = size < LEAST ? nullptr : region.take(size);
    if (block == nullptr) return heap->allocate(size);
    return {block, block, &give, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give; }

  static void give(void* block) {
    if (region.holds(block)) {
      region.give(block);
    } else if (block != nullptr) {
      heap->raw_deleter()(block);
    }
  }

  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
};

}  // namespace

extern "C" {

// From now on tensors lie in a region of so many addresses. 0, or why not (errno).
int region_begin(size_t bytes) {
  if (heap != nullptr) return 0;
  if (!region.reserve(bytes)) return errno;
  pthread_atfork([] { region.lock.lock(); }, [] { region.lock.unlock(); }, [] { region.lock.unlock(); });
  heap = c10::GetCPUAllocator();
  c10::SetCPUAllocator(new RegionAllocator, 255);
  return 0;
}

void region_trim() { region.trim(); }
}

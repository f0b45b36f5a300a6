// Memory for large tensors on a CPU that is kept when they are freed, and given to the next of any size.
//
// One range of addresses is reserved; a block lies in the lowest hole that takes it, and holes that touch are one. So a
// training step lies where the one before it lay, whatever its lengths: its pages are there already, and hardly more of
// them than tensors live at a time. All threads share it: what the forward pass frees serves the backward pass.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <unordered_map>

namespace {

constexpr size_t PAGE = 4096, HUGE = 2 << 20;
constexpr size_t LEAST = 256 << 10;  // bytes; what is smaller is the allocator's that was there before

struct Buffers final : c10::Allocator {
    c10::Allocator *before = nullptr;
    char *begin = nullptr;
    size_t size = 0, used = 0, reached = 0;
    std::mutex lock;
    std::map<size_t, size_t> holes;            // where, how long
    std::unordered_map<size_t, size_t> taken;  // the same of blocks

    bool reserve(size_t bytes) {
        void *found = mmap(nullptr, bytes + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (found == MAP_FAILED) return false;
        begin = reinterpret_cast<char *>((reinterpret_cast<size_t>(found) + HUGE - 1) / HUGE * HUGE);
        size = bytes / HUGE * HUGE;
        madvise(begin, size, MADV_HUGEPAGE);  // where the kernel has none, pages are small
        holes.emplace(0, size);
        return true;
    }

    bool own(const void *block) const { return block >= begin && block < begin + size; }

    void *take(size_t bytes) {
        const size_t wanted = (bytes + PAGE - 1) / PAGE * PAGE;
        std::lock_guard<std::mutex> held(lock);
        const auto hole = std::find_if(holes.begin(), holes.end(), [&](const auto &one) { return one.second >= wanted; });
        if (hole == holes.end()) return nullptr;
        const auto [at, length] = *hole;
        holes.erase(hole);
        if (length > wanted) holes.emplace(at + wanted, length - wanted);
        taken.emplace(at, wanted);
        used += wanted;
        reached = std::max(reached, at + wanted);
        return begin + at;
    }

    void give(void *block) {
        std::lock_guard<std::mutex> held(lock);
        const auto found = taken.find(static_cast<size_t>(static_cast<char *>(block) - begin));
        size_t at = found->first, length = found->second;
        taken.erase(found);
        used -= length;
        const auto after = holes.find(at + length);
        if (after != holes.end()) {
            length += after->second;
            holes.erase(after);
        }
        const auto next = holes.lower_bound(at);
        if (next != holes.begin()) {
            const auto hole = std::prev(next);
            if (hole->first + hole->second == at) {
                hole->second += length;
                return;
            }
        }
        holes.emplace(at, length);
    }

    void return_holes() {
        std::lock_guard<std::mutex> held(lock);
        for (const auto &[at, length] : holes) {
            const size_t end = std::min(at + length, reached);
            if (at < end) madvise(begin + at, end - at, MADV_DONTNEED);
        }
        reached = 0;
        for (const auto &[at, length] : taken) reached = std::max(reached, at + length);
    }

    static void release(void *block);

    c10::DataPtr allocate(size_t bytes) override {
        void *block = bytes >= LEAST ? take(bytes) : nullptr;
        if (block == nullptr) return before->allocate(bytes);
        c10::profiledCPUMemoryReporter().New(block, bytes);
        return {block, block, &release, c10::Device(c10::DeviceType::CPU)};
    }

    c10::DeleterFnPtr raw_deleter() const override { return &release; }

    void copy_data(void *to, const void *from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

Buffers &buffers() {
    static Buffers *one = new Buffers;  // never destroyed: tensors may be freed after everything else
    return *one;
}

void Buffers::release(void *block) {
    Buffers &one = buffers();
    if (!one.own(block)) return one.before->raw_deleter()(block);
    c10::profiledCPUMemoryReporter().Delete(block);
    one.give(block);
}

}  // namespace

// From now on PyTorch's large tensors lie here; 0 where so many addresses cannot be had.
extern "C" int buffers_begin(size_t bytes) {
    Buffers &one = buffers();
    if (one.begin != nullptr) return 1;
    c10::Allocator *before = c10::GetCPUAllocator();
    if (before->raw_deleter() == nullptr || !one.reserve(bytes)) return 0;
    one.before = before;
    pthread_atfork([] { buffers().lock.lock(); }, [] { buffers().lock.unlock(); }, [] { buffers().lock.unlock(); });
    c10::SetCPUAllocator(&one);
    return 1;
}

extern "C" void buffers_return() { buffers().return_holes(); }
extern "C" size_t buffers_used() { return buffers().used; }
extern "C" size_t buffers_reached() { return buffers().reached; }

// Threads that do a step together, and the points where they wait for each other.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

// Torch's own OpenMP, where the process has GNU's interface to it. A second pool of threads would
// fight with torch's for the cores, since a pool's threads spin for a while after their work.
extern "C" {
void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned) __attribute__((weak));
int omp_get_thread_num() __attribute__((weak));
int omp_get_num_threads() __attribute__((weak));
}

inline void pause_a_little() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

class Barrier {
   public:
    void wait(int size) {
        const int now = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round_.load(std::memory_order_acquire) == now; ++spins) {
            // The one that is waited for may have no core: other programs run too.
            if (spins < 2000) pause_a_little(); else std::this_thread::yield();
        }
    }

   private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> round_{0};
};

// Calls work(index, size) in `threads` threads at once, of which this is one.
template <class Work>
void in_team(int threads, Work& work) {
    if (threads <= 1) {
        work(0, 1);
    } else if (GOMP_parallel && omp_get_thread_num && omp_get_num_threads) {
        const auto start = [](void* data) {
            (*static_cast<Work*>(data))(omp_get_thread_num(), omp_get_num_threads());
        };
        GOMP_parallel(start, &work, static_cast<unsigned>(threads), 0);
    } else {
        std::vector<std::thread> others;
        for (int i = 1; i < threads; ++i) others.emplace_back([&, i] { work(i, threads); });
        work(0, threads);
        for (auto& other : others) other.join();
    }
}

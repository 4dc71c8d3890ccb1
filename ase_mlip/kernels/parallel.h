// Vectors of channels, and loops over the threads that XLA lends to a call.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace ase_mlip {

namespace ffi = xla::ffi;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// One library is built for each precision.
#ifndef ASE_MLIP_REAL
#define ASE_MLIP_REAL float
#endif
using Real = ASE_MLIP_REAL;

// Neighbouring channels, 64 bytes of them in as many machine registers as that takes; the number of channels is a multiple.
constexpr int kWidth = 64 / sizeof(Real);

struct Vector {
  typedef Real Register __attribute__((vector_size(kVectorBytes)));
  typedef Real Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(Real)), may_alias));
  static constexpr int kRegisters = 64 / kVectorBytes, kLanes = kVectorBytes / sizeof(Real);
  Register registers[kRegisters];

  static inline __attribute__((always_inline)) Vector load(const Real* from) {
    Vector out;
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) out.registers[i] = *reinterpret_cast<const Unaligned*>(from + i * kLanes);
    return out;
  }
  static inline __attribute__((always_inline)) Vector filled(Real value) {
    Vector out;
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) out.registers[i] = Register{} + value;
    return out;
  }
  inline __attribute__((always_inline)) void store(Real* to) const {
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) *reinterpret_cast<Unaligned*>(to + i * kLanes) = registers[i];
  }
  // this += a * b
  inline __attribute__((always_inline)) void add_product(const Vector& a, const Vector& b) {
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) registers[i] += a.registers[i] * b.registers[i];
  }
  inline __attribute__((always_inline)) void add_product(Real a, const Vector& b) {
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) registers[i] += a * b.registers[i];
  }
  inline __attribute__((always_inline)) void operator+=(const Vector& b) {
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) registers[i] += b.registers[i];
  }
  inline __attribute__((always_inline)) void operator*=(const Vector& b) {
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) registers[i] *= b.registers[i];
  }
  friend inline __attribute__((always_inline)) Vector operator*(Vector a, const Vector& b) {
    a *= b;
    return a;
  }
  // Halves are added to each other: lane after lane, each addition would wait for the one before.
  inline __attribute__((always_inline)) Real sum() const {
    Register total = registers[0];
#pragma GCC unroll 4
    for (int i = 1; i < kRegisters; ++i) total += registers[i];
    return sum_of(total);
  }
  template <typename Lanes>
  static inline __attribute__((always_inline)) Real sum_of(const Lanes& lanes) {
    if constexpr (sizeof(Lanes) == sizeof(Real)) {
      Real out;
      std::memcpy(&out, &lanes, sizeof(Real));
      return out;
    } else {
      typedef Real Half __attribute__((vector_size(sizeof(Lanes) / 2)));
      Half low, high;
      std::memcpy(&low, &lanes, sizeof(Half));
      std::memcpy(&high, reinterpret_cast<const char*>(&lanes) + sizeof(Half), sizeof(Half));
      return sum_of(low + high);
    }
  }
};

// Runs body(task) for every task on the calling thread and on those of the pool that are free. The caller waits only for
// tasks that have begun, so that it cannot be stuck behind itself. Which thread takes a task must not change its result.
template <typename Body>
void parallel_for(ffi::ThreadPool& pool, int64_t tasks, Body body) {
  struct Shared {
    Body body;
    int64_t tasks;
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
    Shared(Body b, int64_t n) : body(std::move(b)), tasks(n) {}
    void work() {
      for (int64_t task; (task = next.fetch_add(1)) < tasks;) {
        body(task);
        if (done.fetch_add(1) + 1 == tasks) {
          std::lock_guard<std::mutex> lock(mutex);
          finished.notify_all();
        }
      }
    }
  };
  const int64_t threads = std::min<int64_t>(pool.num_threads(), tasks);
  if (threads <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  auto shared = std::make_shared<Shared>(std::move(body), tasks);
  for (int64_t thread = 1; thread < threads; ++thread) pool.Schedule([shared] { shared->work(); });
  shared->work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done.load() == tasks; });
}

}  // namespace ase_mlip

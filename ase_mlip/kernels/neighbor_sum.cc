// The sum over neighbours of MACE (arXiv:2206.07697, Eq. 8) and its derivatives, over vectors of channels.
//
//   total = sum over nodes n, slots k, paths p, components a and m, channels c of
//           weights[row(n,k),p,c] * features[j(n,k),a,c] * couplings[n,k,(p,a,m)] * messages[n,(p,m),c]
//
// is linear in each of its four factors. `sum_messages` gives its derivative by the messages from the other three factors,
// `sum_gradients` those by the other three; derivatives of these are made of the same two. The path weights are stored,
// both directions of a pair in one row (training), or read from a table of cubic Hermite splines of the distance (inference): then nothing of size
// edges x channels is ever in memory.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace ase_mlip {
namespace {

constexpr int kNodeBlock = 4;                    // nodes in a task
constexpr int64_t kMaxBytes = int64_t{1} << 31;  // of the threads' own sums over neighbours

// One coupling path: rows of `features`, entries of `couplings` and rows of `messages`.
struct Path {
  int feature_row, components, coupling, outputs, message_row, message_stride;
};

struct Shape {
  int64_t nodes, slots;
  int channels, feature_rows, couplings, message_rows;
  std::vector<Path> paths;
};

struct Factors {
  const Real* weights;    // [rows, paths, channels], or the table [knots, paths, 2, channels]
  const Real* features;   // [nodes, feature_rows, channels]
  const Real* couplings;  // [nodes, slots, couplings]
  const Real* messages;   // [nodes, message_rows, channels]
  const int32_t* neighbors;
  const bool* inside;
  const int32_t* places;  // [nodes, slots], if the weights are stored: a row, from the number of rows on counted anew
  const Real* distances;  // [nodes, slots], if the weights are a table
  int64_t rows;           // of the weights, or knots
  Real spacing;
};

// Where derivatives go; null if not wanted. That by the weights is by the distances if the weights are a table; by stored
// weights it is the sum of `weights` and `second_weights`, one for each direction.
struct Gradients {
  Real *weights, *second_weights, *features, *couplings;
};

// A neighbour within the cutoff.
struct Slot {
  int64_t edge;           // n * slots + k
  const Real* features;      // of the neighbour
  const Real* couplings;     // of the edge
  int64_t neighbor;
  const Real* knot;          // of the table
  Real value[4], slope[4];   // Hermite basis, and its derivative by the distance
  const Real* weights;       // [channels] of the present path
};

// Weights of the present path for all neighbours of a node, and their slopes, [neighbours, channels].
struct Weights {
  std::vector<Real> value, slope;
};

void find_knot(const Shape& shape, const Factors& in, Slot& slot) {
  const Real x = in.distances[slot.edge] / in.spacing;
  const int64_t knot = std::min<int64_t>(std::max<int64_t>(static_cast<int64_t>(x), 0), in.rows - 2);
  const Real t = x - knot, u = 1 - t;
  slot.knot = in.weights + knot * shape.paths.size() * 2 * shape.channels;
  const Real value[4] = {u * u * (1 + 2 * t), t * u * u, t * t * (3 - 2 * t), -t * t * u};
  const Real slope[4] = {-6 * t * u, u * (1 - 3 * t), 6 * t * u, t * (3 * t - 2)};
  for (int i = 0; i < 4; ++i) {
    slot.value[i] = value[i];
    slot.slope[i] = slope[i] / in.spacing;
  }
}

// The neighbours of node n within the cutoff.
void find_slots(const Shape& shape, const Factors& in, int64_t n, std::vector<Slot>& slots) {
  slots.clear();
  for (int64_t edge = n * shape.slots; edge < (n + 1) * shape.slots; ++edge) {
    if (!in.inside[edge]) continue;
    Slot slot;
    slot.edge = edge;
    slot.neighbor = in.neighbors[edge];
    slot.features = in.features + slot.neighbor * shape.feature_rows * shape.channels;
    slot.couplings = in.couplings + edge * shape.couplings;
    if (in.distances) find_knot(shape, in, slot);
    slots.push_back(slot);
  }
}

// Weights, and slopes if not null, of all channels between two knots.
inline void interpolate(const Slot& slot, const Real* first, const Real* second, int channels, Real* value, Real* slope) {
  for (int c = 0; c < channels; c += kWidth) {
    const Vector corners[4] = {Vector::load(first + c), Vector::load(first + channels + c), Vector::load(second + c),
                          Vector::load(second + channels + c)};
    Vector sum = Vector::filled(0);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sum.add_product(slot.value[i], corners[i]);
    sum.store(value + c);
    if (!slope) continue;
    Vector along = Vector::filled(0);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) along.add_product(slot.slope[i], corners[i]);
    along.store(slope + c);
  }
}

// The row of a slot's stored weights, or of their derivative in one of two arrays.
template <typename Pointer>
Pointer row_of(const Shape& shape, const Factors& in, int64_t edge, Pointer first, Pointer second) {
  const int64_t place = in.places[edge], size = shape.paths.size() * shape.channels;
  return place < in.rows ? first + place * size : second + (place - in.rows) * size;
}

// Points every slot to its weights of path p, which are interpolated if they come from a table.
void place_weights(const Shape& shape, const Factors& in, size_t p, bool slopes, std::vector<Slot>& slots,
                   Weights& weights) {
  const int channels = shape.channels;
  if (!in.distances) {
    for (auto& slot : slots) slot.weights = row_of(shape, in, slot.edge, in.weights, in.weights) + p * channels;
    return;
  }
  weights.value.resize(slots.size() * channels);
  weights.slope.resize(slots.size() * channels);
  for (size_t i = 0; i < slots.size(); ++i) {
    const Real* first = slots[i].knot + p * 2 * channels;
    const Real* second = first + shape.paths.size() * 2 * channels;
    Real* slope = slopes ? weights.slope.data() + i * channels : nullptr;
    interpolate(slots[i], first, second, channels, weights.value.data() + i * channels, slope);
    slots[i].weights = weights.value.data() + i * channels;
  }
}

// Calls body with the path's numbers of components as constants.
template <typename Body>
void with_sizes(const Path& path, Body&& body) {
  auto outputs = [&](auto components) {
    switch (path.outputs) {
      case 1:
        return body(components, std::integral_constant<int, 1>{});
      case 3:
        return body(components, std::integral_constant<int, 3>{});
      case 5:
        return body(components, std::integral_constant<int, 5>{});
      default:
        return body(components, std::integral_constant<int, 7>{});
    }
  };
  switch (path.components) {
    case 1:
      return outputs(std::integral_constant<int, 1>{});
    case 3:
      return outputs(std::integral_constant<int, 3>{});
    case 5:
      return outputs(std::integral_constant<int, 5>{});
    default:
      return outputs(std::integral_constant<int, 7>{});
  }
}

// messages[(p,m),c] of one node and path: sum over k and a of weights features couplings.
template <int kComponents, int kOutputs>
void add_messages(const std::vector<Slot>& slots, const Path& path, int channels, Real* out) {
  for (int c = 0; c < channels; c += kWidth) {
    Vector sum[kOutputs];
#pragma GCC unroll 8
    for (int m = 0; m < kOutputs; ++m) sum[m] = Vector::filled(0);
    for (const auto& slot : slots) {
      const Real* features = slot.features + path.feature_row * channels + c;
      const Real* couplings = slot.couplings + path.coupling;
      const Vector weight = Vector::load(slot.weights + c);
#pragma GCC unroll 8
      for (int a = 0; a < kComponents; ++a) {
        const Vector x = weight * Vector::load(features + a * channels);
#pragma GCC unroll 8
        for (int m = 0; m < kOutputs; ++m) sum[m].add_product(couplings[a * kOutputs + m], x);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < kOutputs; ++m) sum[m].store(out + m * path.message_stride * channels + c);
  }
}

// Derivatives of one node and path by weights, [channels] at the pointers of `by_weight`, and by features, added at the
// neighbours' rows of `by_feature`; both if not null.
template <int kComponents, int kOutputs>
void add_by_edges(const std::vector<Slot>& slots, const Path& path, const Shape& shape, const Real* messages,
                  Real* const* by_weight, Real* by_feature) {
  const int channels = shape.channels;
  for (int c = 0; c < channels; c += kWidth) {
    Vector row[kOutputs];
#pragma GCC unroll 8
    for (int m = 0; m < kOutputs; ++m) row[m] = Vector::load(messages + m * path.message_stride * channels + c);
    for (size_t i = 0; i < slots.size(); ++i) {
      const auto& slot = slots[i];
      const Real* couplings = slot.couplings + path.coupling;
      const int64_t first = static_cast<int64_t>(path.feature_row) * channels + c;
      Real* to = by_feature ? by_feature + slot.neighbor * shape.feature_rows * channels + first : nullptr;
      Vector sum = Vector::filled(0);
#pragma GCC unroll 8
      for (int a = 0; a < kComponents; ++a) {
        Vector pull = Vector::filled(0);
#pragma GCC unroll 8
        for (int m = 0; m < kOutputs; ++m) pull.add_product(couplings[a * kOutputs + m], row[m]);
        if (by_weight) sum.add_product(pull, Vector::load(slot.features + first + a * channels));
        if (by_feature) {
          Vector total = Vector::load(to + a * channels);
          total.add_product(pull, Vector::load(slot.weights + c));
          total.store(to + a * channels);
        }
      }
      if (by_weight) sum.store(by_weight[i] + c);
    }
  }
}

// Derivatives of one node and path by couplings.
template <int kComponents, int kOutputs>
void add_by_couplings(const std::vector<Slot>& slots, const Path& path, const Shape& shape, const Real* messages, Real* out) {
  const int channels = shape.channels;
  for (const auto& slot : slots) {
    const Real* features = slot.features + path.feature_row * channels;
    for (int a = 0; a < kComponents; ++a) {
      Vector sum[kOutputs];
  #pragma GCC unroll 8
    for (int m = 0; m < kOutputs; ++m) sum[m] = Vector::filled(0);
      for (int c = 0; c < channels; c += kWidth) {
        const Vector x = Vector::load(slot.weights + c) * Vector::load(features + a * channels + c);
#pragma GCC unroll 8
        for (int m = 0; m < kOutputs; ++m) sum[m].add_product(x, Vector::load(messages + m * path.message_stride * channels + c));
      }
      Real* to = out + slot.edge * shape.couplings + path.coupling + a * kOutputs;
#pragma GCC unroll 8
      for (int m = 0; m < kOutputs; ++m) to[m] = sum[m].sum();
    }
  }
}

void sum_messages(ffi::ThreadPool& pool, const Shape& shape, const Factors& in, Real* out) {
  parallel_for(pool, (shape.nodes + kNodeBlock - 1) / kNodeBlock, [=, &shape](int64_t task) {
    std::vector<Slot> slots;
    Weights weights;
    for (int64_t n = task * kNodeBlock; n < std::min(shape.nodes, (task + 1) * kNodeBlock); ++n) {
      find_slots(shape, in, n, slots);
      for (size_t p = 0; p < shape.paths.size(); ++p) {
        const Path& path = shape.paths[p];
        place_weights(shape, in, p, false, slots, weights);
        Real* to = out + (n * shape.message_rows + path.message_row) * shape.channels;
        with_sizes(path, [&](auto components, auto outputs) {
          add_messages<decltype(components)::value, decltype(outputs)::value>(slots, path, shape.channels, to);
        });
      }
    }
  });
}

// All wanted derivatives of one node; `by_feature` is the sum that this thread adds to.
void add_gradients(const Shape& shape, const Factors& in, const Gradients& out, int64_t n, Real* by_feature) {
  thread_local std::vector<Slot> slots;
  thread_local Weights weights;
  thread_local std::vector<Real> scratch;
  thread_local std::vector<Real*> by_weight;
  const int channels = shape.channels;
  const int64_t paths = shape.paths.size();
  find_slots(shape, in, n, slots);
  if (out.weights && in.distances) std::fill_n(out.weights + n * shape.slots, shape.slots, Real(0));
  if (out.couplings) std::fill_n(out.couplings + n * shape.slots * shape.couplings, shape.slots * shape.couplings, Real(0));
  scratch.resize(slots.size() * channels);
  by_weight.resize(slots.size());
  for (int64_t p = 0; p < paths; ++p) {
    const Path& path = shape.paths[p];
    const Real* messages = in.messages + (n * shape.message_rows + path.message_row) * channels;
    place_weights(shape, in, p, out.weights != nullptr, slots, weights);
    for (size_t i = 0; out.weights && i < slots.size(); ++i)
      by_weight[i] = in.distances ? scratch.data() + i * channels
                                  : row_of(shape, in, slots[i].edge, out.weights, out.second_weights) + p * channels;
    with_sizes(path, [&](auto components, auto outputs) {
      constexpr int a = decltype(components)::value, m = decltype(outputs)::value;
      if (out.weights || by_feature)
        add_by_edges<a, m>(slots, path, shape, messages, out.weights ? by_weight.data() : nullptr, by_feature);
      if (out.couplings) add_by_couplings<a, m>(slots, path, shape, messages, out.couplings);
    });
    if (!out.weights || !in.distances) continue;
    for (size_t i = 0; i < slots.size(); ++i) {
      Vector sum = Vector::filled(0);
      for (int c = 0; c < channels; c += kWidth)
        sum.add_product(Vector::load(by_weight[i] + c), Vector::load(weights.slope.data() + i * channels + c));
      out.weights[slots[i].edge] += sum.sum();
    }
  }
}

// Neighbours of different nodes are the same nodes: each part of the nodes has a sum of its own by features, added up in a
// fixed order.
void sum_gradients(ffi::ThreadPool& pool, const Shape& shape, const Factors& in, Gradients out) {
  const int64_t edges = shape.nodes * shape.slots, row = shape.paths.size() * shape.channels;
  std::vector<Real> second_weights;
  if (out.weights && !in.distances) {
    const bool twice = std::any_of(in.places, in.places + edges, [&](int32_t place) { return place >= in.rows; });
    std::fill_n(out.weights, in.rows * row, Real(0));
    second_weights.resize(twice ? in.rows * row : 0);
    out.second_weights = second_weights.data();
  }
  const int64_t size = shape.nodes * shape.feature_rows * shape.channels;
  int64_t parts = (shape.nodes + kNodeBlock - 1) / kNodeBlock;
  if (out.features) {
    const int64_t affordable = std::max<int64_t>(1, kMaxBytes / (size * sizeof(Real)));
    parts = std::max<int64_t>(1, std::min({pool.num_threads(), parts, affordable}));
    std::fill_n(out.features, size, Real(0));
  }
  std::vector<Real> buffers(out.features ? (parts - 1) * size : 0);
  Real* others = buffers.data();
  parallel_for(pool, parts, [=, &shape](int64_t part) {
    Real* by_feature = !out.features ? nullptr : part == 0 ? out.features : others + (part - 1) * size;
    for (int64_t n = shape.nodes * part / parts; n < shape.nodes * (part + 1) / parts; ++n)
      add_gradients(shape, in, out, n, by_feature);
  });
  for (int64_t part = 1; out.features && part < parts; ++part)
    for (int64_t i = 0; i < size; ++i) out.features[i] += others[(part - 1) * size + i];
  for (size_t i = 0; i < second_weights.size(); ++i) out.weights[i] += second_weights[i];
}

using AnyBuffer = ffi::AnyBuffer;

// What is asked for: the sum of these numbers, which are known to neighbor_sum.py.
enum Wanted { kWeights = 1, kFeatures = 2, kCouplings = 4, kMessages = 8 };

// Arguments: weights, features, couplings, messages (unless wanted), neighbours [nodes, slots], whether each is within the
// cutoff, and the places of the weights, or if `spacing` is not zero, when they are a table, the distances. Results in the order of the factors.
ffi::Error neighbor_sum(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t wanted,
                        ffi::Span<const int32_t> table, double spacing) {
  size_t next_arg = 0, next_ret = 0;
  auto take = [&] { return *args.get<AnyBuffer>(next_arg++); };
  auto give = [&]() -> AnyBuffer { return *(*rets.get<AnyBuffer>(next_ret++)); };
  auto data = [](const AnyBuffer& buffer) { return reinterpret_cast<Real*>(buffer.untyped_data()); };
  const AnyBuffer weights = take(), features = take(), couplings = take();
  const AnyBuffer messages = wanted == kMessages ? give() : take();
  const AnyBuffer neighbors = take(), inside = take(), last = take();
  const auto e = couplings.dimensions(), f = features.dimensions();
  Shape shape{e[0], e[1], static_cast<int>(f[2]), static_cast<int>(f[1]), static_cast<int>(e[2]),
              static_cast<int>(messages.dimensions()[1]), {}};
  for (size_t i = 0; i + 6 <= table.size(); i += 6)
    shape.paths.push_back({table[i], table[i + 1], table[i + 2], table[i + 3], table[i + 4], table[i + 5]});
  if (shape.channels % kWidth) return ffi::Error::InvalidArgument("neighbor_sum: the channels do not fill vectors");
  const Factors in{data(weights), data(features), data(couplings), data(messages),
                      reinterpret_cast<const int32_t*>(neighbors.untyped_data()),
                      reinterpret_cast<const bool*>(inside.untyped_data()),
                      spacing > 0 ? nullptr : reinterpret_cast<const int32_t*>(last.untyped_data()),
                      spacing > 0 ? data(last) : nullptr, weights.dimensions()[0], static_cast<Real>(spacing)};
  if (wanted == kMessages) {
    sum_messages(pool, shape, in, data(messages));
  } else {
    Real* by_weight = wanted & kWeights ? data(give()) : nullptr;
    Real* by_feature = wanted & kFeatures ? data(give()) : nullptr;
    Real* by_coupling = wanted & kCouplings ? data(give()) : nullptr;
    sum_gradients(pool, shape, in, Gradients{by_weight, nullptr, by_feature, by_coupling});
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(ase_mlip_neighbor_sum, neighbor_sum,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("wanted")
                                  .Attr<ffi::Span<const int32_t>>("paths")
                                  .Attr<double>("spacing"));

}  // namespace ase_mlip

// The symmetric contraction of MACE (arXiv:2206.07697, Eqs. 10-11) and its derivatives, over vectors of channels.
//
//   total = sum over nodes n, terms t, channels c of
//           gradient[n,row(t),c] * table[species(n),t,c] * product over the factors i of t of density[n,i,c]
//
// Terms come in runs of equal row and degree. `values` is the derivative of the total by `gradient`; the others are those
// by the density and the table, and the derivative of <cotangent, derivative by the density> for training on forces.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace ase_mlip {
namespace {

constexpr int kNodeBlock = 16;
constexpr int kMaxRows = 32;  // of the density, and of the output

struct Run {
  int row, degree, first, last;
};

struct Shape {
  int64_t nodes, elements;
  int channels, density_rows, rows, terms;
  std::vector<Run> runs;
  const int32_t* factors;  // [terms, 4]
};

struct Arrays {
  const Real* density;    // [nodes, density_rows, channels]
  const Real* table;      // [elements, terms, channels]
  const Real* gradient;   // [nodes, rows, channels]
  const Real* cotangent;  // [nodes, density_rows, channels]
  const int32_t* species;
};

// The product of the factors, all but number `skip`.
template <int kDegree>
inline Vector product(const Vector* values, const int32_t* factors, int skip = -1) {
  Vector out = Vector::filled(1);
#pragma GCC unroll 4
  for (int f = 0; f < kDegree; ++f)
    if (f != skip) out *= values[factors[f]];
  return out;
}

template <typename Body>
inline void with_degree(const Run& run, Body&& body) {
  switch (run.degree) {
    case 1: return body(std::integral_constant<int, 1>{});
    case 2: return body(std::integral_constant<int, 2>{});
    case 3: return body(std::integral_constant<int, 3>{});
    default: return body(std::integral_constant<int, 4>{});
  }
}

inline void add_to(Real* to, Vector value) {
  value += Vector::load(to);
  value.store(to);
}

inline void gather(const Real* from, int rows, int channels, Vector* to) {
  for (int row = 0; row < rows; ++row) to[row] = Vector::load(from + row * channels);
}

inline void scatter(const Vector* from, int rows, int channels, Real* to) {
  for (int row = 0; row < rows; ++row) from[row].store(to + row * channels);
}

// Calls body(node, first channel, density, place) for all nodes: the density of these channels, and the place of the first
// term's in a table, whose terms are `channels` apart. A task is one vector of channels of some nodes.
template <typename Body>
void for_nodes(ffi::ThreadPool& pool, const Shape& shape, const Arrays& in, int64_t node_block, Body body) {
  const int64_t parts = (shape.nodes + node_block - 1) / node_block;
  const int64_t vectors = shape.channels / kWidth;
  parallel_for(pool, parts * vectors, [=, &shape](int64_t task) {
    const int c = static_cast<int>(task / parts) * kWidth;
    const int64_t first = (task % parts) * node_block;
    for (int64_t n = first; n < std::min(shape.nodes, first + node_block); ++n) {
      Vector a[kMaxRows];
      gather(in.density + n * shape.density_rows * shape.channels + c, shape.density_rows, shape.channels, a);
      body(n, c, a, static_cast<int64_t>(in.species[n]) * shape.terms * shape.channels + c);
    }
  });
}

void values(ffi::ThreadPool& pool, const Shape& shape, const Arrays& in, Real* out) {
  for_nodes(pool, shape, in, kNodeBlock, [=, &shape](int64_t n, int c, const Vector* a, int64_t place) {
    Vector sum[kMaxRows] = {};
    const Real* table = in.table + place;
    for (const Run& run : shape.runs) {
      with_degree(run, [&](auto degree) {
        Vector total = {};
        for (int t = run.first; t < run.last; ++t)
          total.add_product(Vector::load(table + static_cast<int64_t>(t) * shape.channels),
                            product<decltype(degree)::value>(a, shape.factors + 4 * t));
        sum[run.row] += total;
      });
    }
    scatter(sum, shape.rows, shape.channels, out + n * shape.rows * shape.channels + c);
  });
}

void by_density(ffi::ThreadPool& pool, const Shape& shape, const Arrays& in, Real* out) {
  for_nodes(pool, shape, in, kNodeBlock, [=, &shape](int64_t n, int c, const Vector* a, int64_t place) {
    Vector sum[kMaxRows] = {};
    const Real* table = in.table + place;
    for (const Run& run : shape.runs) {
      const Vector g = Vector::load(in.gradient + (n * shape.rows + run.row) * shape.channels + c);
      with_degree(run, [&](auto degree_tag) {
        constexpr int degree = decltype(degree_tag)::value;
        for (int t = run.first; t < run.last; ++t) {
          const Vector scaled = g * Vector::load(table + static_cast<int64_t>(t) * shape.channels);
          const int32_t* factors = shape.factors + 4 * t;
#pragma GCC unroll 4
          for (int f = 0; f < degree; ++f) sum[factors[f]].add_product(scaled, product<degree>(a, factors, f));
        }
      });
    }
    scatter(sum, shape.density_rows, shape.channels, out + n * shape.density_rows * shape.channels + c);
  });
}

void by_table(ffi::ThreadPool& pool, const Shape& shape, const Arrays& in, Real* out) {
  std::fill(out, out + shape.elements * shape.terms * shape.channels, Real(0));
  for_nodes(pool, shape, in, shape.nodes, [=, &shape](int64_t n, int c, const Vector* a, int64_t place) {
    Real* table = out + place;
    for (const Run& run : shape.runs) {
      const Vector g = Vector::load(in.gradient + (n * shape.rows + run.row) * shape.channels + c);
      with_degree(run, [&](auto degree) {
        for (int t = run.first; t < run.last; ++t)
          add_to(table + static_cast<int64_t>(t) * shape.channels,
                 g * product<decltype(degree)::value>(a, shape.factors + 4 * t));
      });
    }
  });
}

// Derivatives of sum_i cotangent_i d total / d density_i by the density, the table and the gradient.
void second(ffi::ThreadPool& pool, const Shape& shape, const Arrays& in, Real* out, Real* out_table, Real* out_gradient) {
  std::fill(out_table, out_table + shape.elements * shape.terms * shape.channels, Real(0));
  for_nodes(pool, shape, in, shape.nodes, [=, &shape](int64_t n, int c, const Vector* a, int64_t place) {
    Vector b[kMaxRows], sum[kMaxRows] = {}, rows[kMaxRows] = {};
    gather(in.cotangent + n * shape.density_rows * shape.channels + c, shape.density_rows, shape.channels, b);
    for (const Run& run : shape.runs) {
      const Vector g = Vector::load(in.gradient + (n * shape.rows + run.row) * shape.channels + c);
      with_degree(run, [&](auto degree_tag) {
        constexpr int degree = decltype(degree_tag)::value;
        Vector total = {};
        for (int t = run.first; t < run.last; ++t) {
          const Vector weight = Vector::load(in.table + place + static_cast<int64_t>(t) * shape.channels);
          const Vector scaled = g * weight;
          const int32_t* factors = shape.factors + 4 * t;
          Vector along = {};  // derivative of the product along the cotangent
#pragma GCC unroll 4
          for (int f = 0; f < degree; ++f) {
            along.add_product(b[factors[f]], product<degree>(a, factors, f));
            Vector rest = {};  // and of the product without this factor
#pragma GCC unroll 4
            for (int h = 0; h < degree; ++h) {
              if (h == f) continue;
              Vector others = b[factors[h]];
#pragma GCC unroll 4
              for (int i = 0; i < degree; ++i)
                if (i != f && i != h) others *= a[factors[i]];
              rest += others;
            }
            if constexpr (degree > 1) sum[factors[f]].add_product(scaled, rest);
          }
          add_to(out_table + place + static_cast<int64_t>(t) * shape.channels, g * along);
          total.add_product(weight, along);
        }
        rows[run.row] += total;
      });
    }
    scatter(sum, shape.density_rows, shape.channels, out + n * shape.density_rows * shape.channels + c);
    scatter(rows, shape.rows, shape.channels, out_gradient + n * shape.rows * shape.channels + c);
  });
}

// Which derivative is asked for; the numbers are known to contraction.py.
enum class Result : int64_t { kValues = 0, kDensity = 1, kTable = 2, kSecond = 3 };

using AnyBuffer = ffi::AnyBuffer;

// Arguments: species, density, then table (not for kTable), gradient (not for kValues) and cotangent (for kSecond).
ffi::Error dispatch(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, Result result, Shape shape) {
  size_t next = 0;
  auto take = [&] { return *args.get<AnyBuffer>(next++); };
  auto result_buffer = [&](size_t i) -> AnyBuffer { return *(*rets.get<AnyBuffer>(i)); };
  auto pointer = [](const AnyBuffer& buffer) { return reinterpret_cast<Real*>(buffer.untyped_data()); };
  const AnyBuffer species = take(), density = take();
  const AnyBuffer table = result == Result::kTable ? result_buffer(0) : take();
  const AnyBuffer gradient = result == Result::kValues ? result_buffer(0) : take();
  const AnyBuffer cotangent = result == Result::kSecond ? take() : density;
  shape.nodes = density.dimensions()[0];
  shape.density_rows = static_cast<int>(density.dimensions()[1]);
  shape.channels = static_cast<int>(density.dimensions()[2]);
  shape.elements = table.dimensions()[0];
  shape.terms = static_cast<int>(table.dimensions()[1]);
  shape.rows = static_cast<int>(gradient.dimensions()[1]);
  if (shape.density_rows >= kMaxRows || shape.rows > kMaxRows || shape.channels % kWidth)
    return ffi::Error::InvalidArgument("contraction: too many rows, or channels that do not fill vectors");
  const Arrays in{pointer(density), pointer(table), pointer(gradient), pointer(cotangent),
                     reinterpret_cast<const int32_t*>(species.untyped_data())};
  Real* out = pointer(result_buffer(0));
  switch (result) {
    case Result::kValues:
      values(pool, shape, in, out);
      break;
    case Result::kDensity:
      by_density(pool, shape, in, out);
      break;
    case Result::kTable:
      by_table(pool, shape, in, out);
      break;
    case Result::kSecond:
      second(pool, shape, in, out, pointer(result_buffer(1)), pointer(result_buffer(2)));
      break;
  }
  return ffi::Error::Success();
}

// `runs` is [runs, 4] as in `Run`, `factors` [terms, 4].
ffi::Error contraction(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t result,
                       ffi::Span<const int32_t> runs, ffi::Span<const int32_t> factors) {
  Shape shape{};
  for (size_t i = 0; i + 4 <= runs.size(); i += 4) shape.runs.push_back({runs[i], runs[i + 1], runs[i + 2], runs[i + 3]});
  shape.factors = factors.begin();
  return dispatch(pool, args, rets, static_cast<Result>(result), shape);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(ase_mlip_contraction, contraction,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("result")
                                  .Attr<ffi::Span<const int32_t>>("runs")
                                  .Attr<ffi::Span<const int32_t>>("factors"));

}  // namespace ase_mlip

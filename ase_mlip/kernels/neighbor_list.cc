// All neighbours of all atoms within a cutoff, as a dense table: atoms are sorted into bins of half the cutoff.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr int64_t kBinsPerAtom = 4;  // at most, so that atoms far apart do not need a bin for every bit of vacuum

int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

struct Box {
  const double* vectors;      // [3, 3], rows
  const uint8_t* periodic;    // [3]
  int64_t bins[3], reach[3];  // along each vector, and how many bins away neighbours can be
};

double height(const double* v, int axis) {
  const double *a = v + 3 * axis, *b = v + 3 * ((axis + 1) % 3), *c = v + 3 * ((axis + 2) % 3);
  const double normal[3] = {b[1] * c[2] - b[2] * c[1], b[2] * c[0] - b[0] * c[2], b[0] * c[1] - b[1] * c[0]};
  const double volume = a[0] * normal[0] + a[1] * normal[1] + a[2] * normal[2];
  return std::abs(volume) / std::sqrt(normal[0] * normal[0] + normal[1] * normal[1] + normal[2] * normal[2]);
}

Box make_box(const double* vectors, const uint8_t* periodic, int64_t nodes, double cutoff) {
  Box box{vectors, periodic, {}, {}};
  double heights[3];
  for (int axis = 0; axis < 3; ++axis) {
    heights[axis] = height(vectors, axis);
    box.bins[axis] = std::max<int64_t>(1, static_cast<int64_t>(std::min(2 * heights[axis] / cutoff, 1e6)));
  }
  while (box.bins[0] * box.bins[1] * box.bins[2] > kBinsPerAtom * nodes + 64) {
    int64_t& most = *std::max_element(box.bins, box.bins + 3);
    most = std::max<int64_t>(1, most / 2);
  }
  for (int axis = 0; axis < 3; ++axis)
    box.reach[axis] = static_cast<int64_t>(std::ceil(cutoff * box.bins[axis] / heights[axis] + 1e-9));
  return box;
}

struct Atom {
  double position[3];
  int32_t node;
};

}  // namespace

// Fills `neighbors` [nodes, slots], their `shifts` [nodes, slots, 3] in whole box vectors and `counts` [nodes]; what is left
// of a row points at itself. Returns the largest count: where that exceeds `slots`, the tables are not whole.
//
// `fractional` and `positions` [nodes, 3] lie within the box; `wrap` [nodes, 3] box vectors were taken off to put them there.
extern "C" int64_t ase_mlip_neighbor_list(int64_t nodes, const double* fractional, const double* positions, const double* wrap,
                                          const double* vectors, const uint8_t* periodic, double cutoff, int64_t slots,
                                          int32_t* neighbors, double* shifts, int32_t* counts) {
  const Box box = make_box(vectors, periodic, nodes, cutoff);
  std::vector<int64_t> place(nodes), start(box.bins[0] * box.bins[1] * box.bins[2] + 1, 0);
  for (int64_t n = 0; n < nodes; ++n) {
    int64_t bin = 0;
    for (int axis = 0; axis < 3; ++axis) {
      const auto along = static_cast<int64_t>(std::floor(fractional[3 * n + axis] * box.bins[axis]));
      bin = bin * box.bins[axis] + std::clamp<int64_t>(along, 0, box.bins[axis] - 1);
    }
    place[n] = bin;
    ++start[bin + 1];
  }
  for (size_t bin = 1; bin < start.size(); ++bin) start[bin] += start[bin - 1];
  std::vector<Atom> sorted(nodes);
  std::vector<int64_t> next(start.begin(), start.end() - 1);
  for (int64_t n = 0; n < nodes; ++n)
    sorted[next[place[n]]++] = {{positions[3 * n], positions[3 * n + 1], positions[3 * n + 2]}, static_cast<int32_t>(n)};

  int64_t largest = 0;
  for (int64_t n = 0; n < nodes; ++n) {
    const double* here = positions + 3 * n;
    const int64_t bin[3] = {place[n] / (box.bins[1] * box.bins[2]), place[n] / box.bins[2] % box.bins[1],
                            place[n] % box.bins[2]};
    int64_t found = 0, at[3], image[3];
    for (int64_t i = -box.reach[0]; i <= box.reach[0]; ++i) {
      for (int64_t j = -box.reach[1]; j <= box.reach[1]; ++j) {
        for (int64_t k = -box.reach[2]; k <= box.reach[2]; ++k) {
          const int64_t to[3] = {bin[0] + i, bin[1] + j, bin[2] + k};
          bool outside = false;
          for (int axis = 0; axis < 3; ++axis) {
            image[axis] = floor_divide(to[axis], box.bins[axis]);
            at[axis] = to[axis] - image[axis] * box.bins[axis];
            outside |= image[axis] != 0 && !box.periodic[axis];
          }
          if (outside) continue;
          double offset[3];
          for (int x = 0; x < 3; ++x)
            offset[x] = image[0] * vectors[x] + image[1] * vectors[3 + x] + image[2] * vectors[6 + x] - here[x];
          const int64_t other = (at[0] * box.bins[1] + at[1]) * box.bins[2] + at[2];
          for (int64_t s = start[other]; s < start[other + 1]; ++s) {
            const Atom& atom = sorted[s];
            const double x = atom.position[0] + offset[0], y = atom.position[1] + offset[1], z = atom.position[2] + offset[2];
            if (x * x + y * y + z * z >= cutoff * cutoff) continue;
            if (atom.node == n && !image[0] && !image[1] && !image[2]) continue;
            if (found < slots) {
              neighbors[n * slots + found] = atom.node;
              for (int axis = 0; axis < 3; ++axis)
                shifts[(n * slots + found) * 3 + axis] =
                    box.periodic[axis] ? image[axis] - wrap[3 * atom.node + axis] + wrap[3 * n + axis] : 0;
            }
            ++found;
          }
        }
      }
    }
    counts[n] = static_cast<int32_t>(found);
    largest = std::max(largest, found);
    for (int64_t slot = found; slot < slots; ++slot) {
      neighbors[n * slots + slot] = static_cast<int32_t>(n);
      std::fill_n(shifts + (n * slots + slot) * 3, 3, 0.0);
    }
  }
  return largest;
}

#include "client/cpp/tune/bit_allotment.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/format.h"

namespace sketchkv::tune {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

uint32_t GroupRows(size_t dim, size_t group) {
  return static_cast<uint32_t>(std::min<size_t>(kGroupRows, dim - group * kGroupRows));
}

// The least distortion of the groups from `group` on, which take exactly `words` words, none more
// than `most` bits a coordinate; and the bits of the first of them. Filled from the last group up.
class Table {
 public:
  Table(std::span<const double> importance, RowKind kind, uint32_t words)
      : num_groups_((importance.size() + kGroupRows - 1) / kGroupRows),
        num_words_(words + 1),
        least_((num_groups_ + 1) * kStates * num_words_, kNever),
        steps_(least_.size()) {
    for (uint32_t most = 0; most < kStates; ++most) least_[At(num_groups_, most, 0)] = 0;
    for (size_t group = num_groups_; group-- > 0;) {
      const uint32_t rows = GroupRows(importance.size(), group);
      const auto first = importance.begin() + static_cast<ptrdiff_t>(group * kGroupRows);
      Fill(group, kind, rows, std::accumulate(first, first + rows, 0.0));
    }
  }

  [[nodiscard]] std::optional<std::vector<uint8_t>> Best() const {
    uint32_t most = kMaxGroupBits, left = num_words_ - 1;
    if (least_[At(0, most, left)] == kNever) return std::nullopt;
    std::vector<uint8_t> best;
    for (size_t group = 0; group < num_groups_; ++group) {
      const Step step = steps_[At(group, most, left)];
      if (step.bits == 0) break;
      best.push_back(step.bits);
      most = step.bits;
      left -= step.words;
    }
    return best;
  }

  [[nodiscard]] bool possible(uint32_t words) const {
    return least_[At(0, kMaxGroupBits, words)] != kNever;
  }

 private:
  static constexpr uint32_t kStates = kMaxGroupBits + 1;
  struct Step {
    uint8_t bits = 0;
    uint8_t words = 0;
  };

  [[nodiscard]] size_t At(size_t group, uint32_t most, uint32_t words) const {
    return (group * kStates + most) * num_words_ + words;
  }

  void Fill(size_t group, RowKind kind, uint32_t rows, double importance) {
    for (uint32_t most = 0; most < kStates; ++most) {
      for (uint32_t bits = 0; bits <= most; ++bits) {
        const uint32_t taken = GroupRowBits(kind, rows, bits) / kWordBits;
        for (uint32_t words = taken; words < num_words_; ++words) {
          const double sum =
              importance * kDistortion[bits] + least_[At(group + 1, bits, words - taken)];
          const size_t at = At(group, most, words);
          if (sum >= least_[at]) continue;
          least_[at] = sum;
          steps_[at].bits = static_cast<uint8_t>(bits);
          steps_[at].words = static_cast<uint8_t>(taken);
        }
      }
    }
  }

  const size_t num_groups_;
  const uint32_t num_words_;
  std::vector<double> least_;  // [groups + 1][most][words]
  std::vector<Step> steps_;    // likewise
};

// All groups at 4 bits. Three bits of a short last group can take more than four, and never pay.
uint32_t MostWords(RowKind kind, size_t dim) {
  uint32_t words = 0;
  for (size_t group = 0; group * kGroupRows < dim; ++group) {
    words += GroupRowBits(kind, GroupRows(dim, group), kMaxGroupBits) / kWordBits;
  }
  return words;
}

}  // namespace

uint32_t GroupRowBits(RowKind kind, uint32_t rows, uint32_t bits) {
  if (bits == 0) return 0;
  return kWordBits * (kind == RowKind::kKeys ? KeyWords(rows, bits) : ValueLines(rows, bits));
}

std::optional<std::vector<uint8_t>> AllotBits(std::span<const double> importance, RowKind kind,
                                              uint32_t row_bits) {
  if (row_bits == 0 || row_bits % kWordBits != 0) return std::nullopt;
  if (row_bits / kWordBits > MostWords(kind, importance.size())) return std::nullopt;
  return Table(importance, kind, row_bits / kWordBits).Best();
}

std::vector<uint32_t> PossibleRowBits(RowKind kind, uint32_t dim) {
  const uint32_t most = MostWords(kind, dim);
  const Table table(std::vector<double>(dim, 1.0), kind, most);
  std::vector<uint32_t> possible;
  for (uint32_t words = 1; words <= most; ++words) {
    if (table.possible(words)) possible.push_back(words * kWordBits);
  }
  return possible;
}

}  // namespace sketchkv::tune

// Sequences in pages, as the tests of attention need them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu_test_util.h"
#include "backend/staged_backend.h"
#include "core/float16.h"
#include "kv/moved_pages.h"
#include "kv/page_layout.h"
#include "quant/kv_codec.h"

namespace millrace {

struct AttendShape {
  std::int32_t heads = 4, kv_heads = 2, head_dim = 16, page_tokens = 16;
  std::int64_t length = 100;
  std::int64_t window = 0;
  float softcap = 0.0f;
  bool sinks = false;
  KvFormat format = KvFormat::f32;
  std::optional<PageSelection> selection = {};  // of rows from `answer_begin` on
  std::int64_t answer_begin = 0;
  std::optional<BlockSelection> prompt_selection = {};  // of rows before it, or
  std::optional<HyperAttention> hyper = {};             // likewise
};

/// Sequences whose keys and values lie in pages of one buffer. Whatever no row may look at holds NaN.
class AttendWorld {
 public:
  AttendWorld(const AttendShape& shape, int sequences, std::uint32_t seed) : shape_(shape), random_(seed) {
    pages_each_ = (shape.length + shape.page_tokens - 1) / shape.page_tokens;
    KvShape layer{.kv_heads = shape.kv_heads, .head_dim = shape.head_dim, .key_bounds = shape.selection.has_value()};
    if (shape.hyper) layer.key_buckets = shape.hyper->seed;
    const PageLayout layout = make_page_layout(std::vector<KvShape>(2, layer), shape.page_tokens, shape.format);
    const KvPlace& place = layout.layers[1];  // the other layer's share holds NaN
    kv_ = {.page_bytes = layout.groups[0].page_bytes,
           .key_offset = place.key_offset,
           .value_offset = place.value_offset,
           .key_scale_offset = place.key_scale_offset,
           .value_scale_offset = place.value_scale_offset,
           .page_tokens = shape.page_tokens,
           .format = shape.format};
    memory_.assign(kv_.page_bytes * static_cast<std::size_t>(pages_each_ * sequences), std::byte{0xff});
    kv_.pages = memory_.data();
    if (!layout.key_bounds.empty()) {
      kv_.key_bound_numbers = layout.key_bounds[1].page_bytes / sizeof(std::uint16_t);
      bounds_.assign(kv_.key_bound_numbers * static_cast<std::size_t>(pages_each_ * sequences), 0xffff);  // NaN
      kv_.key_bounds = bounds_.data();
    }
    if (!layout.key_buckets.empty()) {
      kv_.key_bucket_bytes = layout.key_buckets[1].page_bytes;
      buckets_.assign(kv_.key_bucket_bytes * static_cast<std::size_t>(pages_each_ * sequences), 0xff);
      kv_.key_buckets = buckets_.data();
      kv_.hash = layout.layers[1].hash;
      for (std::int32_t head = 0; head < shape.kv_heads; ++head) {
        planes_.push_back(hash_planes(kv_.hash, static_cast<std::uint32_t>(head), shape.head_dim));
      }
    }
    // Pages of the sequences interleave, and no sequence has them in ascending order.
    std::vector<std::int32_t> ids(static_cast<std::size_t>(pages_each_ * sequences));
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i);
    for (std::size_t i = ids.size(); i > 1; --i)
      std::swap(ids[i - 1], ids[static_cast<std::size_t>(random_.below(static_cast<std::int64_t>(i)))]);
    for (int s = 0; s < sequences; ++s) {
      dropped_.push_back(0);
      tables_.emplace_back(ids.begin() + s * pages_each_, ids.begin() + (s + 1) * pages_each_);
      if (s == 0) {
        queries_.push_back(random_.normals(shape.length * q_width()));
        keys_.push_back(random_.normals(shape.length * kv_width()));
        values_.push_back(random_.normals(shape.length * kv_width()));
      } else {  // the first one's numbers in another order
        for (auto* all : {&queries_, &keys_, &values_}) {
          std::vector<float> turned = all->front();
          std::rotate(turned.begin(), turned.begin() + 17 * s % static_cast<std::ptrdiff_t>(turned.size()),
                      turned.end());
          all->push_back(std::move(turned));
        }
      }
    }
    sinks_ = random_.normals(shape.heads, 2.0f);
  }

  [[nodiscard]] std::int64_t q_width() const { return std::int64_t{shape_.heads} * shape_.head_dim; }
  [[nodiscard]] std::int64_t kv_width() const { return std::int64_t{shape_.kv_heads} * shape_.head_dim; }

  /// Makes positions [begin, end) of a sequence readable, and drops what the window has left behind before `begin`.
  void store(int sequence, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int32_t head = 0; head < shape_.kv_heads; ++head) {
        const std::int64_t source = t * kv_width() + head * shape_.head_dim;
        put(sequence, t, head, true, keys_[static_cast<std::size_t>(sequence)].data() + source);
        put(sequence, t, head, false, values_[static_cast<std::size_t>(sequence)].data() + source);
      }
      if (shape_.hyper) hash(sequence, t);
      if (shape_.selection && (t + 1) % shape_.page_tokens == 0) bound(sequence, t);
    }
    if (shape_.window == 0) return;
    const std::int64_t first = std::max<std::int64_t>(0, begin - shape_.window + 1);
    for (std::int64_t page = 0; page < first / shape_.page_tokens; ++page) {
      tables_[static_cast<std::size_t>(sequence)][static_cast<std::size_t>(page)] = -1;
    }
  }

  /// The page of `page_index` in the sequence's table.
  [[nodiscard]] std::int32_t page_number(int sequence, std::int64_t page_index) const {
    return tables_[static_cast<std::size_t>(sequence)][static_cast<std::size_t>(page_index)];
  }
  [[nodiscard]] const KvLayer& kv() const { return kv_; }

  /// Number `d` of the key that is stored.
  [[nodiscard]] float key(int sequence, std::int64_t position, std::int32_t head, std::int32_t d) {
    return decode_kv(shape_.format, slot(sequence, position, head, true), d);
  }

  [[nodiscard]] float value(int sequence, std::int64_t position, std::int32_t head, std::int32_t d) {
    return decode_kv(shape_.format, slot(sequence, position, head, false), d);
  }

  /// The bounds of a page's keys: [kv heads][2][kv_bound_numbers(head_dim)] of bf16.
  [[nodiscard]] std::uint16_t* bounds(int sequence, std::int64_t page_index) {
    const auto page =
        static_cast<std::size_t>(tables_[static_cast<std::size_t>(sequence)][static_cast<std::size_t>(page_index)]);
    return bounds_.data() + page * kv_.key_bound_numbers;
  }

  /// The bucket of a key.
  [[nodiscard]] std::uint8_t& bucket(int sequence, std::int64_t position, std::int32_t head) {
    return buckets_[static_cast<std::size_t>(page_number(sequence, position / shape_.page_tokens)) *
                        kv_.key_bucket_bytes +
                    static_cast<std::size_t>(head * shape_.page_tokens + position % shape_.page_tokens)];
  }

  /// Takes over queries, keys and values of the other world's first sequence, before any is stored.
  void adopt(int sequence, const AttendWorld& other) {
    const auto s = static_cast<std::size_t>(sequence);
    queries_[s] = other.queries_.front();
    keys_[s] = other.keys_.front();
    values_[s] = other.values_.front();
    sinks_ = other.sinks_;
  }

  /// Takes entries, ascending, out of the sequence's page table, whose positions are all before those of later steps.
  void drop(int sequence, const std::vector<std::int32_t>& entries) {
    std::vector<std::int32_t>& table = tables_[static_cast<std::size_t>(sequence)];
    for (auto it = entries.rbegin(); it != entries.rend(); ++it) table.erase(table.begin() + *it);
    dropped_[static_cast<std::size_t>(sequence)] += std::ssize(entries) * shape_.page_tokens;
  }

  /// Makes the first sequence one that never had more than these positions of the other world's, before any is stored.
  void adopt_some(const AttendWorld& other, const std::vector<std::int64_t>& positions) {
    for (std::size_t i = 0; i < positions.size(); ++i) {
      const auto to = static_cast<std::ptrdiff_t>(i), from = static_cast<std::ptrdiff_t>(positions[i]);
      std::copy_n(other.queries_.front().begin() + from * q_width(), q_width(),
                  queries_.front().begin() + to * q_width());
      std::copy_n(other.keys_.front().begin() + from * kv_width(), kv_width(), keys_.front().begin() + to * kv_width());
      std::copy_n(other.values_.front().begin() + from * kv_width(), kv_width(),
                  values_.front().begin() + to * kv_width());
    }
    sinks_ = other.sinks_;
  }

  /// Turns number pairs of a key as a rotation by `by` positions does, before it is stored.
  void turn_key(int sequence, std::int64_t position, std::int64_t by) {
    for (std::int32_t head = 0; head < shape_.kv_heads; ++head) {
      float* key = keys_[static_cast<std::size_t>(sequence)].data() + position * kv_width() + head * shape_.head_dim;
      const std::int32_t half = rotary_dim / 2;
      for (std::int32_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(by) * frequency(i), a = key[i], b = key[half + i];
        key[i] = static_cast<float>(a * std::cos(angle) - b * std::sin(angle));
        key[half + i] = static_cast<float>(a * std::sin(angle) + b * std::cos(angle));
      }
    }
  }

  // How rows of all sequences see their pages, and, where these have moved, how many numbers of a query turn.
  std::vector<MovedPages> moved;
  std::int32_t rotary_dim = 0;
  float skip_margin = std::numeric_limits<float>::infinity();
  std::int64_t measured_from = std::numeric_limits<std::int64_t>::max();
  PageMasses masses;  // of the last attend(), by the places in `steps`

  /// Rounds all queries to bfloat16.
  void round_queries() {
    for (std::vector<float>& all : queries_) {
      for (float& number : all) number = round_to_bf16(number);
    }
  }

  [[nodiscard]] float largest_value() const {
    float largest = 0.0f;
    for (const std::vector<float>& all : values_) {
      for (const float number : all) largest = std::fmax(largest, std::fabs(number));
    }
    return largest;
  }

  /// Gives all numbers of a position's queries, keys, or values, before they are stored.
  void set_query(int sequence, std::int64_t position, float number) {
    std::fill_n(queries_[static_cast<std::size_t>(sequence)].begin() + position * q_width(), q_width(), number);
  }
  void set_key(int sequence, std::int64_t position, float number) { set(keys_, sequence, position, number); }
  void set_value(int sequence, std::int64_t position, float number) { set(values_, sequence, position, number); }

  /// Gives the sequences after `first` its pages, keys and values for the positions below `tokens`, whole pages of
  /// them, before any is stored. Returns the hint about it.
  SharedPrefix share(int first, int sequences, std::int64_t tokens) {
    const auto pages = tokens / shape_.page_tokens, elements = pages * shape_.page_tokens * kv_width();
    const auto from = static_cast<std::size_t>(first);
    for (std::size_t s = from + 1; s < from + static_cast<std::size_t>(sequences); ++s) {
      std::copy_n(tables_[from].begin(), pages, tables_[s].begin());
      std::copy_n(keys_[from].begin(), elements, keys_[s].begin());
      std::copy_n(values_[from].begin(), elements, values_[s].begin());
    }
    return {.group = 0, .first_sequence = first, .sequences = sequences, .tokens = pages * shape_.page_tokens};
  }

  struct Step {
    int sequence;
    std::int64_t begin, end;
  };

  /// Attention of the rows of `steps`, in one batch; the keys and values must be stored. `shared` speaks of the places
  /// in `steps`.
  std::vector<float> attend(Backend& backend, const std::vector<Step>& steps,
                            const std::vector<SharedPrefix>& shared = {}) {
    ForwardBatch batch;
    batch.shared = shared;
    std::vector<float> q;
    const std::int64_t stride = q_width() + 2 * kv_width();
    for (const Step& step : steps) {
      const auto rows = static_cast<std::int32_t>(step.end - step.begin);
      batch.sequences.push_back({.first_row = static_cast<std::int32_t>(batch.rows()),
                                 .rows = rows,
                                 .first_position = step.begin,
                                 .admission_length = 0,
                                 .answer_begin = shape_.answer_begin,
                                 .page_tables = {tables_[static_cast<std::size_t>(step.sequence)]},
                                 .dropped = {dropped_[static_cast<std::size_t>(step.sequence)]},
                                 .measured_from = measured_from});
      for (std::int64_t t = step.begin; t < step.end; ++t) {
        batch.token_ids.push_back(0);
        batch.positions.push_back(t);
        const auto from = queries_[static_cast<std::size_t>(step.sequence)].begin() + t * q_width();
        q.insert(q.end(), from, from + q_width());
        q.insert(q.end(), static_cast<std::size_t>(2 * kv_width()), std::numeric_limits<float>::quiet_NaN());
      }
    }
    AttendArgs args{.q = q.data(),
                    .q_stride = stride,
                    .heads = shape_.heads,
                    .kv_heads = shape_.kv_heads,
                    .head_dim = shape_.head_dim,
                    .window = shape_.window,
                    .scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
                    .softcap = shape_.softcap,
                    .sinks = shape_.sinks ? sinks_.data() : nullptr,
                    .kv = kv_,
                    .selection = shape_.selection ? &*shape_.selection : nullptr,
                    .prompt_selection = shape_.prompt_selection ? &*shape_.prompt_selection : nullptr,
                    .hyper = shape_.hyper ? &*shape_.hyper : nullptr,
                    .skip_margin = skip_margin,
                    .layer = 1};
    std::vector<float> cos, sin;
    for (const MovedPages& pages : moved) {
      if (pages.by > 0) batch.turns.push_back(pages.by);
    }
    std::ranges::sort(batch.turns);
    for (const std::int64_t by : batch.turns) {
      for (std::int32_t i = 0; i < rotary_dim / 2; ++i) {
        cos.push_back(static_cast<float>(std::cos(static_cast<double>(by) * frequency(i))));
        sin.push_back(static_cast<float>(std::sin(static_cast<double>(by) * frequency(i))));
      }
    }
    std::vector<std::int32_t> rows_of_turns(batch.turns.size());
    std::iota(rows_of_turns.begin(), rows_of_turns.end(), 0);
    const QueryTurns turns{.rotary_dim = rotary_dim, .cos = cos, .sin = sin, .rows = rows_of_turns};
    if (!moved.empty()) {
      args.turns = &turns;
      for (SequenceRows& sequence : batch.sequences) sequence.moved = {moved};
    }
    masses.reset(1, std::vector(batch.sequences.size(), pages_each_));
    if (std::ranges::any_of(batch.sequences, &SequenceRows::measured)) batch.masses = &masses;
    std::vector<float> out(static_cast<std::size_t>(batch.rows() * q_width()), -7e33f);
    args.out = out.data();
    set_pages(backend, memory_);
    backend.begin(batch);
    backend.attend(batch, args);
    return out;
  }

 private:
  static double frequency(std::int32_t pair) { return std::pow(0.6, pair); }

  void set(std::vector<std::vector<float>>& of, int sequence, std::int64_t position, float number) const {
    std::fill_n(of[static_cast<std::size_t>(sequence)].begin() + position * kv_width(), kv_width(), number);
  }

  /// A key or value [head_dim], rounded as its format has it.
  void put(int sequence, std::int64_t t, std::int32_t head, bool key, const float* numbers) {
    encode_kv(shape_.format, numbers, shape_.head_dim, slot(sequence, t, head, key));
  }

  /// The bounds of the page whose last position is t.
  void bound(int sequence, std::int64_t t) {
    const auto width = static_cast<std::int64_t>(kv_bound_numbers(static_cast<std::size_t>(shape_.head_dim)));
    const std::int64_t first = t + 1 - shape_.page_tokens;
    for (std::int32_t head = 0; head < shape_.kv_heads; ++head) {
      std::uint16_t* largest = bounds(sequence, t / shape_.page_tokens) + head * 2 * width;
      std::fill_n(largest, 2 * width, std::uint16_t{0});
      for (std::int32_t d = 0; d < shape_.head_dim; ++d) {
        float high = key(sequence, first, head, d), low = high;
        for (std::int64_t other = first + 1; other <= t; ++other) {
          high = std::max(high, key(sequence, other, head, d));
          low = std::min(low, key(sequence, other, head, d));
        }
        largest[d] = kv_bound(high, true);
        largest[width + d] = kv_bound(low, false);
      }
    }
  }

  /// The buckets of position t.
  void hash(int sequence, std::int64_t t) {
    std::vector<float> numbers(static_cast<std::size_t>(shape_.head_dim));
    for (std::int32_t head = 0; head < shape_.kv_heads; ++head) {
      for (std::int32_t d = 0; d < shape_.head_dim; ++d) {
        numbers[static_cast<std::size_t>(d)] = key(sequence, t, head, d);
      }
      bucket(sequence, t, head) =
          bucket_of(planes_[static_cast<std::size_t>(head)].data(), numbers.data(), shape_.head_dim);
    }
  }

  KvSlot slot(int sequence, std::int64_t t, std::int32_t head, bool key) {
    std::byte* start =
        kv_.pages + static_cast<std::size_t>(page_number(sequence, t / shape_.page_tokens)) * kv_.page_bytes;
    const std::int64_t slot = t % shape_.page_tokens, slots = std::int64_t{head} * shape_.page_tokens;
    const auto bytes = static_cast<std::int64_t>(kv_element_bytes(shape_.format)),
               row_bytes = bytes * static_cast<std::int64_t>(
                                       kv_elements(shape_.format, static_cast<std::size_t>(shape_.head_dim)));
    KvSlot target;
    target.elements =
        start + (key ? kv_.key_offset : kv_.value_offset) + slots * row_bytes + slot * (key ? bytes : row_bytes);
    target.step = key ? shape_.page_tokens * bytes : bytes;
    target.scale =
        reinterpret_cast<float*>(start + (key ? kv_.key_scale_offset : kv_.value_scale_offset)) + slots + slot;
    target.middle = target.scale + std::int64_t{shape_.kv_heads} * shape_.page_tokens;
    return target;
  }

  AttendShape shape_;
  Random random_;
  std::int64_t pages_each_ = 0;
  KvLayer kv_;
  std::vector<std::byte> memory_;
  std::vector<std::uint16_t> bounds_;
  std::vector<std::uint8_t> buckets_;
  std::vector<std::vector<double>> planes_;  // of each kv head
  std::vector<std::vector<std::int32_t>> tables_;
  std::vector<std::int64_t> dropped_;  // positions, of each sequence
  std::vector<std::vector<float>> queries_, keys_, values_;
  std::vector<float> sinks_;
};

/// A test of attention, on levels that have one of their own.
class CpuAttendLevelTest : public CpuLevelTest {
 protected:
  void SetUp() override {
    CpuLevelTest::SetUp();
    if (IsSkipped()) return;
    const KernelTable own = kernel_table(GetParam());
    for (const IsaLevel lower : kIsaLevels) {
      if (lower == GetParam()) break;
      if (!isa_available(lower)) continue;
      const KernelTable other = kernel_table(lower);
      if (own.attend == other.attend && own.products.attend_rounded == other.products.attend_rounded) {
        GTEST_SKIP() << "attention of " << isa_level_name(GetParam()) << " is that of " << isa_level_name(lower);
      }
    }
  }
};

inline std::vector<AttendShape> attend_shapes() {
  std::vector<AttendShape> all;
  all.push_back({});
  all.push_back({.heads = 3, .kv_heads = 3, .head_dim = 64, .length = 200});
  all.push_back({.heads = 8, .kv_heads = 1, .head_dim = 128, .length = 150, .format = KvFormat::bf16});
  all.push_back({.heads = 16, .kv_heads = 8, .head_dim = 64, .length = 140, .format = KvFormat::bf16});
  all.push_back({.heads = 40, .kv_heads = 2, .head_dim = 32, .length = 100, .format = KvFormat::int8});
  all.push_back({.heads = 6, .kv_heads = 2, .head_dim = 20, .page_tokens = 5, .length = 131});
  all.push_back({.heads = 2, .kv_heads = 1, .head_dim = 8, .page_tokens = 1, .length = 70, .format = KvFormat::bf16});
  all.push_back({.heads = 4, .kv_heads = 2, .head_dim = 80, .page_tokens = 32, .length = 260, .window = 50});
  all.push_back({.heads = 4, .kv_heads = 4, .head_dim = 32, .length = 300, .window = 64, .softcap = 3.0f});
  all.push_back({.heads = 8, .kv_heads = 2, .head_dim = 64, .length = 140, .window = 130, .sinks = true});
  all.push_back({.heads = 2,
                 .kv_heads = 1,
                 .head_dim = 256,
                 .page_tokens = 64,
                 .length = 193,
                 .sinks = true,
                 .format = KvFormat::bf16});
  all.push_back({.heads = 5,
                 .kv_heads = 1,
                 .head_dim = 24,
                 .page_tokens = 7,
                 .length = 90,
                 .window = 1,
                 .format = KvFormat::bf16});
  all.push_back({.heads = 4, .kv_heads = 1, .head_dim = 512, .length = 66, .softcap = 50.0f});
  for (const KvFormat format : kKvFormats) {
    if (kv_element_bytes(format) > 1) continue;
    all.push_back({.heads = 6, .kv_heads = 2, .head_dim = 64, .length = 220, .format = format});
    all.push_back({.heads = 8, .kv_heads = 1, .head_dim = 128, .length = 150, .sinks = true, .format = format});
    all.push_back({.heads = 8, .kv_heads = 8, .head_dim = 32, .length = 100, .format = format});
    all.push_back({.heads = 6, .kv_heads = 2, .head_dim = 20, .page_tokens = 5, .length = 131, .format = format});
    all.push_back(
        {.heads = 4, .kv_heads = 2, .head_dim = 80, .page_tokens = 32, .length = 260, .window = 50, .format = format});
    all.push_back({.heads = 3, .kv_heads = 1, .head_dim = 11, .length = 70, .softcap = 5.0f, .format = format});
  }
  return all;
}

inline std::string describe(const AttendShape& s) {
  return fmt::format("{} heads, {} kv, dim {}, pages of {}, length {}, window {}, cap {}, sinks {}, {}", s.heads,
                     s.kv_heads, s.head_dim, s.page_tokens, s.length, s.window, s.softcap, s.sinks,
                     kv_format_name(s.format));
}

}  // namespace millrace

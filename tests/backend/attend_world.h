// Sequences in pages, as the tests of attention need them.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "backend/cpu_test_util.h"
#include "core/float16.h"

namespace millrace {

struct AttendShape {
  std::int32_t heads = 4, kv_heads = 2, head_dim = 16, page_tokens = 16;
  std::int64_t length = 100;
  std::int64_t window = 0;
  float softcap = 0.0f;
  bool sinks = false;
  DType dtype = DType::f32;
};

/// Sequences whose keys and values lie in pages of one buffer. Whatever no row may look at holds NaN.
class AttendWorld {
 public:
  AttendWorld(const AttendShape& shape, int sequences, std::uint32_t seed) : shape_(shape), random_(seed) {
    pages_each_ = (shape.length + shape.page_tokens - 1) / shape.page_tokens;
    const std::size_t element = dtype_bytes(shape.dtype);
    const std::size_t part = static_cast<std::size_t>(shape.kv_heads * shape.page_tokens * shape.head_dim) * element;
    kv_.page_bytes = 2 * part + 64;  // some other layer's share
    kv_.key_offset = 64;
    kv_.value_offset = 64 + part;
    kv_.page_tokens = shape.page_tokens;
    kv_.dtype = shape.dtype;
    memory_.assign(kv_.page_bytes * static_cast<std::size_t>(pages_each_ * sequences), std::byte{0xff});
    kv_.pages = memory_.data();
    // Pages of the sequences interleave, and no sequence has them in ascending order.
    std::vector<std::int32_t> ids(static_cast<std::size_t>(pages_each_ * sequences));
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i);
    for (std::size_t i = ids.size(); i > 1; --i)
      std::swap(ids[i - 1], ids[static_cast<std::size_t>(random_.below(static_cast<std::int64_t>(i)))]);
    for (int s = 0; s < sequences; ++s) {
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
        for (std::int32_t i = 0; i < shape_.head_dim; ++i) {
          put(sequence, t, head, kv_.key_offset, i,
              keys_[static_cast<std::size_t>(sequence)][static_cast<std::size_t>(source + i)]);
          put(sequence, t, head, kv_.value_offset, i,
              values_[static_cast<std::size_t>(sequence)][static_cast<std::size_t>(source + i)]);
        }
      }
    }
    if (shape_.window == 0) return;
    const std::int64_t first = std::max<std::int64_t>(0, begin - shape_.window + 1);
    for (std::int64_t page = 0; page < first / shape_.page_tokens; ++page) {
      tables_[static_cast<std::size_t>(sequence)][static_cast<std::size_t>(page)] = -1;
    }
  }

  /// Takes over queries, keys and values of the other world's first sequence, before any is stored.
  void adopt(int sequence, const AttendWorld& other) {
    const auto s = static_cast<std::size_t>(sequence);
    queries_[s] = other.queries_.front();
    keys_[s] = other.keys_.front();
    values_[s] = other.values_.front();
    sinks_ = other.sinks_;
  }

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
                                 .page_tables = {tables_[static_cast<std::size_t>(step.sequence)]}});
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
                    .kv = kv_};
    std::vector<float> out(static_cast<std::size_t>(batch.rows() * q_width()));
    args.out = out.data();
    backend.begin(batch);
    backend.attend(batch, args);
    return out;
  }

 private:
  void put(int sequence, std::int64_t t, std::int32_t head, std::size_t offset, std::int32_t i, float value) {
    const std::int32_t page =
        tables_[static_cast<std::size_t>(sequence)][static_cast<std::size_t>(t / shape_.page_tokens)];
    const std::int64_t slot = t % shape_.page_tokens, slab = std::int64_t{head} * shape_.page_tokens * shape_.head_dim;
    const auto element = static_cast<std::size_t>(
        slab + (offset == kv_.key_offset ? i * shape_.page_tokens + slot : slot * shape_.head_dim + i));
    std::byte* target =
        kv_.pages + static_cast<std::size_t>(page) * kv_.page_bytes + offset + element * dtype_bytes(shape_.dtype);
    const std::uint16_t rounded = float_to_bf16(value);
    std::memcpy(target, shape_.dtype == DType::f32 ? static_cast<const void*>(&value) : &rounded,
                dtype_bytes(shape_.dtype));
  }

  AttendShape shape_;
  Random random_;
  std::int64_t pages_each_ = 0;
  KvLayer kv_;
  std::vector<std::byte> memory_;
  std::vector<std::vector<std::int32_t>> tables_;
  std::vector<std::vector<float>> queries_, keys_, values_;
  std::vector<float> sinks_;
};

inline std::string describe(const AttendShape& s) {
  return fmt::format("{} heads, {} kv, dim {}, pages of {}, length {}, window {}, cap {}, sinks {}, {}", s.heads,
                     s.kv_heads, s.head_dim, s.page_tokens, s.length, s.window, s.softcap, s.sinks,
                     dtype_name(s.dtype));
}

}  // namespace millrace

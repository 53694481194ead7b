// LineCharge: what a line of a batch costs its tenant, from what was reserved for it on.
#pragma once

#include <functional>
#include <utility>

#include "tenants/tenant.h"

namespace millrace {

/// Charged when the line's result is taken; otherwise what was reserved is given back. One thread.
class LineCharge {
 public:
  LineCharge() = default;
  /// `settle` is told once what it is charged.
  explicit LineCharge(std::function<void(NanoUsd cost)> settle) : settle_(std::move(settle)) {}
  LineCharge(LineCharge&& other) noexcept : settle_(std::exchange(other.settle_, nullptr)), cost_(other.cost_) {}
  LineCharge& operator=(LineCharge&& other) noexcept {
    end(0);
    settle_ = std::exchange(other.settle_, nullptr);
    cost_ = other.cost_;
    return *this;
  }
  ~LineCharge() { end(0); }

  /// What it will be charged.
  void costs(NanoUsd cost) { cost_ = cost; }
  void take() { end(cost_); }

 private:
  void end(NanoUsd cost) {
    if (const auto settle = std::exchange(settle_, nullptr)) settle(cost);
  }

  std::function<void(NanoUsd)> settle_;
  NanoUsd cost_ = 0;
};

}  // namespace millrace

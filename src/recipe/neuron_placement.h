// Which neurons are in memory and which on disk. Pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace millrace {

/// A feed-forward network whose neurons can be on disk.
struct PlacedLayer {
  std::uint64_t neuron_bytes = 0;  // that a neuron's weights take
  std::vector<float> frequency;    // [neurons]: how often each fires, in descending order
};

/// Fills `budget` bytes with the neurons that save the most reading: those that fire most often for a byte, over all
/// layers; equal ones in turns. That is the exact answer of PowerInfer's placement problem (Song et al. 2023, arXiv
/// 2312.12456, section 6) but for what is left over at the end. First each layer gets `least` of its neurons (all,
/// where it has no more), as far as the budget goes round: a layer without any would wait for the disk with every
/// token. Returns how many of the first neurons of each layer are in memory.
std::vector<std::int64_t> place_neurons(std::span<const PlacedLayer> layers, std::uint64_t budget, std::int64_t least);

}  // namespace millrace

// Products in tiles of 16 rows and 16 outputs (AMX). Included inside an anonymous namespace (see kernel_table.h).
//
// A tile of weights is what a panel has anyway: 16 lines, each with four bytes of inputs for 16 outputs. Rows are taken
// 16 at a time; in products those that do not exist are read from the padding of the inputs (kInputRowPadding) and
// never stored.

constexpr std::int64_t kTileSide = 16;  // rows, and outputs, of a tile of sums
constexpr std::int64_t kTileBytes = 1024;
constexpr std::int64_t kAhead = 4096;  // bytes of a panel that are asked for ahead

struct TileConfig {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

/// The compiler does not know that tiles and their configuration are loaded from memory: what was stored there has to
/// be there.
inline void finish_stores(const void* memory) {
  __asm__ volatile("" : : "r"(memory) : "memory");
}

/// Sums in tiles 0 to 3, inputs in 4 and 5, weights in 6 and 7. `depth`: bytes of a row of inputs that a product takes.
/// `rows`: of inputs and sums; a product takes as long as it has rows.
inline void configure_tiles(std::int64_t depth, std::int64_t rows = kTileSide) {
  alignas(64) TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = static_cast<std::uint16_t>(tile == 4 || tile == 5 ? depth : 64);
    config.rows[tile] = static_cast<std::uint8_t>(tile >= 6 ? depth / 4 : rows);
  }
  finish_stores(&config);
  _tile_loadconfig(&config);
}

/// Sums of a tile of rows and a panel, integers or floats, in the order in which they are kept.
using TileSums = std::byte[kTileBytes];

/// Rows that meet one or two panels.
struct TileProduct {
  const std::byte* x = nullptr;  // of the first row: codes, or bf16
  std::int64_t x_stride = 0;     // in bytes
  std::int64_t rows = 0;
  const std::byte* w[2] = {};     // of each panel
  const std::byte* next[2] = {};  // what is needed later
  std::int64_t next_bytes = 64;   // of that, for each 64 of w
  std::int64_t bytes = 0;         // of a row of inputs: a multiple of the depth
  std::int64_t depth = 0;         // of configure_tiles()
  bool begin = false;             // sums start from zero
  TileSums (*sums)[2] = nullptr;  // [tiles of rows][panel], 64-byte aligned
};

/// kTiles tiles of rows from `tile` on, kPanels panels. The first ones ask for what is next, on behalf of the others: a
/// share with each product, since a burst would wait for the few that can be under way.
template <bool kCodes, int kTiles, int kPanels>
inline void multiply_tiles(const TileProduct& a, std::int64_t tile) {
  const std::byte* const x = a.x + tile * kTileSide * a.x_stride;
  const std::byte* const second = x + kTileSide * a.x_stride;
  TileSums* const sums = a.sums[tile];
  TileSums* const more = a.sums[tile + kTiles - 1];
  if (a.begin) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums[0], 64);
    if constexpr (kPanels == 2) _tile_loadd(1, sums[1], 64);
    if constexpr (kTiles == 2) _tile_loadd(2, more[0], 64);
    if constexpr (kTiles == 2 && kPanels == 2) _tile_loadd(3, more[1], 64);
  }
  for (std::int64_t k = 0; k < a.bytes; k += a.depth) {
    const std::byte* const w = a.w[0] + k * 16;
    const std::byte* const other = a.w[kPanels - 1] + k * 16;
    if (tile == 0) {
      const std::int64_t share = a.depth * 16 / 64 * a.next_bytes, first = k / a.depth * share;
      for (std::int64_t line = first; line < first + share; line += 64) {
        __builtin_prefetch(a.next[0] + line);
        if constexpr (kPanels == 2) __builtin_prefetch(a.next[1] + line);
      }
    }
    _tile_stream_loadd(4, x + k, a.x_stride);
    _tile_loadd(6, w, 64);
    if constexpr (kPanels == 2) _tile_loadd(7, other, 64);
    if constexpr (kTiles == 2) _tile_stream_loadd(5, second + k, a.x_stride);
    if constexpr (kCodes) {
      _tile_dpbssd(0, 4, 6);
      if constexpr (kPanels == 2) _tile_dpbssd(1, 4, 7);
      if constexpr (kTiles == 2) _tile_dpbssd(2, 5, 6);
      if constexpr (kTiles == 2 && kPanels == 2) _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kPanels == 2) _tile_dpbf16ps(1, 4, 7);
      if constexpr (kTiles == 2) _tile_dpbf16ps(2, 5, 6);
      if constexpr (kTiles == 2 && kPanels == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0], 64);
  if constexpr (kPanels == 2) _tile_stored(1, sums[1], 64);
  if constexpr (kTiles == 2) _tile_stored(2, more[0], 64);
  if constexpr (kTiles == 2 && kPanels == 2) _tile_stored(3, more[1], 64);
}

template <bool kCodes, int kPanels>
inline void multiply_rows(const TileProduct& a) {
  const std::int64_t tiles = (a.rows + kTileSide - 1) / kTileSide;
  for (std::int64_t tile = 0; tile < tiles; tile += 2) {
    if (tile + 1 < tiles) {
      multiply_tiles<kCodes, 2, kPanels>(a, tile);
    } else {
      multiply_tiles<kCodes, 1, kPanels>(a, tile);
    }
  }
}

/// Adds the products of `panels` panels.
template <bool kCodes>
inline void multiply_tiles(const TileProduct& a, std::int64_t panels) {
  if (panels == 2) {
    multiply_rows<kCodes, 2>(a);
  } else {
    multiply_rows<kCodes, 1>(a);
  }
}

/// Bytes of a row of inputs that are multiplied before the next tiles of rows come: their weights then stay in the
/// first-level cache. Two tiles of rows take all at once.
inline std::int64_t span_bytes(std::int64_t rows, std::int64_t bytes) {
  constexpr std::int64_t kSpanBytes = 1024;
  return rows > 2 * kTileSide ? kSpanBytes : bytes;
}

/// Line `row` of the sums of a panel.
inline const std::byte* line_of(const TileSums (*sums)[2], std::int64_t panel, std::int64_t row) {
  return sums[row / kTileSide][panel] + row % kTileSide * 64;
}

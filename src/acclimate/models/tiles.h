// 16 rows of 16 words: turned over by AVX-512, and multiplied by the tiles of AMX where Linux gives them.
#pragma once
#if defined(__AVX512F__)
#include <immintrin.h>

#include <cstdint>

// Four times, rows i and i + 8 become rows 2i and 2i + 1 with their words in turns.
static inline void turned(__m512i (&v)[16]) {
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
  for (int turn = 0; turn < 4; turn++) {
    __m512i next[16];
    for (int i = 0; i < 8; i++) {
      next[2 * i] = _mm512_permutex2var_epi32(v[i], low, v[i + 8]);
      next[2 * i + 1] = _mm512_permutex2var_epi32(v[i], high, v[i + 8]);
    }
    for (int i = 0; i < 16; i++) v[i] = next[i];
  }
}

constexpr long TILE = 16;  // rows of a tile, and words

// 16 words each of up to 16 rows of x, zeros behind them: word after word, that word of every row.
template <class X>
static inline void turned_rows(const X* x, long step, long rows, __m512i (&v)[16]) {
  for (int i = 0; i < 16; i++) v[i] = i < rows ? _mm512_loadu_si512(x + i * step) : _mm512_setzero_si512();
  turned(v);
}
#endif

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define TILES 1
constexpr long DEPTH = 32;  // bfloat16 numbers of a row of a tile

static bool tiles_allowed() {  // a process has to ask for them
  static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return allowed;
}

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

static void tiles_on() {
  static const TileShapes shapes;
  _tile_loadconfig(&shapes);
}
#endif

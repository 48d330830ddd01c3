// Products of rows of numbers with a matrix, x W^T: what a step spends its time on.
//
// Each number of a result is summed in one order, whatever other rows are computed beside it and
// whichever thread does it. Every weight is read from memory once for all rows.
//
// * fp32: sixteen sums side by side.
// * bf16: the same; or the processor's dot products of pairs, AVX512-BF16 or AMX.
// * int8: exact. A row's numbers become integers of 16 bits times one scale, the row's; their sums
//   with the weights are integers, so no order and no instruction gives another result.
#pragma once

#include "rows.h"

// --- a unit of outputs of some rows of a group: out[output][row of the group]

#ifdef __AVX512F__
constexpr int TOGETHER = 4;  // sums of outputs and of rows that fit into registers together
#else
constexpr int TOGETHER = 2;
#endif

// The sums of outputs by rows, each a vector, to their places.
template <int R>
void put_sums(const Floats (*x)[R], float* out) {
#ifdef __AVX512F__
    if constexpr (R == 4) {
        const Floats totals = sums(&x[0][0]);
        for (int o = 0; o < 4; ++o)
            std::memcpy(out + o * GROUP, reinterpret_cast<const float*>(&totals) + 4 * o, 16);
        return;
    }
#endif
    for (int o = 0; o < TOGETHER; ++o)
        for (int r = 0; r < R; ++r) out[o * GROUP + r] = sum(x[o][r]);
}

template <int R, class Weight>
void plain_dots(const Weight* w, int64_t n, const float* x, float* out, Ahead& ahead) {
    Floats sums[TOGETHER][R]{};
    for (int64_t k = 0; k < n; k += LANES) {
        Floats xs[R];
        for (int r = 0; r < R; ++r) xs[r] = load(x + r * n + k);
        for (int o = 0; o < TOGETHER; ++o) {
            const Floats weights = load(w + o * n + k);
            for (int r = 0; r < R; ++r) sums[o][r] += weights * xs[r];
        }
        ahead.fetch(TOGETHER * sizeof(Weight) / 4);
    }
    put_sums<R>(sums, out);
}

#ifdef __AVX512BF16__
template <int R>
void paired_dots(const uint16_t* w, int64_t n, const uint16_t* x, float* out, Ahead& ahead) {
    Floats sums[TOGETHER][R]{};
    for (int64_t k = 0; k < n; k += 32) {
        __m512bh xs[R];
        for (int r = 0; r < R; ++r) xs[r] = (__m512bh)_mm512_loadu_si512(x + r * n + k);
        for (int o = 0; o < TOGETHER; ++o) {
            const auto weights = (__m512bh)_mm512_loadu_si512(w + o * n + k);
            for (int r = 0; r < R; ++r)
                sums[o][r] = (Floats)_mm512_dpbf16_ps((__m512)sums[o][r], weights, xs[r]);
        }
        ahead.fetch(TOGETHER);
    }
    put_sums<R>(sums, out);
}
#endif

template <int R>
void integer_dots(const int8_t* w, int64_t n, const char* x, const int32_t* weight_sums,
                  float* out, Ahead& ahead) {
#ifdef __AVX512VNNI__
    __m512i high[TOGETHER][R], low[TOGETHER][R];
    for (int o = 0; o < TOGETHER; ++o)
        for (int r = 0; r < R; ++r) high[o][r] = low[o][r] = _mm512_setzero_si512();
    for (int64_t k = 0; k < n; k += 64) {
        for (int o = 0; o < TOGETHER; ++o) {
            const __m512i weights = _mm512_loadu_si512(w + o * n + k);
            for (int r = 0; r < R; ++r) {
                const char* row = x + r * 2 * n + k;
                high[o][r] = _mm512_dpbusd_epi32(high[o][r], _mm512_loadu_si512(row), weights);
                low[o][r] = _mm512_dpbusd_epi32(low[o][r], _mm512_loadu_si512(row + n), weights);
            }
        }
        ahead.fetch(TOGETHER);
    }
    for (int o = 0; o < TOGETHER; ++o)
        for (int r = 0; r < R; ++r) {
            const int64_t above = sum((Ints)high[o][r]) - 128 * int64_t{weight_sums[o]};
            out[o * GROUP + r] = static_cast<float>(above * 256 + sum((Ints)low[o][r]));
        }
#else
    (void)weight_sums;
    for (int o = 0; o < TOGETHER; ++o, ahead.fetch(n / 64))
        for (int r = 0; r < R; ++r) {
            const auto* row = reinterpret_cast<const int16_t*>(x) + r * n;
            int64_t total = 0;
            for (int64_t k = 0; k < n; k += 64) {  // few enough for sums of 32 bits
                int32_t part = 0;
                for (int64_t i = k; i < k + 64; ++i)
                    part += static_cast<int32_t>(row[i]) * static_cast<int16_t>(w[o * n + i]);
                total += part;
            }
            out[o * GROUP + r] = static_cast<float>(total);
        }
#endif
}

template <int R>
void some_dots(const Matrix& m, const char* w, const char* group, int64_t row,
               const int32_t* weight_sums, float* out, Ahead& ahead) {
    const int64_t n = m.num_inputs;
    if (m.kind == INT8) {
        // Two rows at most: each has two sums.
        const auto* weights = reinterpret_cast<const int8_t*>(w);
        const char* x = group + row * 2 * n;
        integer_dots<(R > 2 ? 2 : R)>(weights, n, x, weight_sums, out, ahead);
        if constexpr (R > 2)
            integer_dots<R - 2>(weights, n, x + 4 * n, weight_sums, out + 2, ahead);
        return;
    }
#ifdef __AVX512BF16__
    if (m.kind == BF16) {
        const auto* x = reinterpret_cast<const uint16_t*>(group) + row * n;
        return paired_dots<R>(reinterpret_cast<const uint16_t*>(w), n, x, out, ahead);
    }
#endif
    const auto* x = reinterpret_cast<const float*>(group) + row * n;
    if (m.kind == BF16)
        return plain_dots<R>(reinterpret_cast<const uint16_t*>(w), n, x, out, ahead);
    plain_dots<R>(reinterpret_cast<const float*>(w), n, x, out, ahead);
}

inline void unit_by_vectors(const Matrix& m, int64_t unit, const char* group, int64_t count,
                            float* out, Ahead& ahead) {
    const char* w = unit_of(m, unit);
    for (int64_t o = 0; o < UNIT; o += TOGETHER) {
        const char* weights = w + o * m.num_inputs * bytes_of(m.kind);
        const int32_t* sums = m.sums ? m.sums + unit * UNIT + o : nullptr;
        for (int64_t row = 0; row < count; row += TOGETHER) {
            float* to = out + o * GROUP + row;
            const int64_t left = count - row;
            const auto dots = left == 1                    ? some_dots<1>
                              : left == 2 || TOGETHER == 2 ? some_dots<2>
                              : left == 3                  ? some_dots<3>
                                                           : some_dots<4>;
            dots(m, weights, group, row, sums, to, ahead);
        }
    }
}

#ifdef HAS_AMX
// Tiles of weights are 16 outputs by 64 bytes, as they lie in memory; of x, 64 bytes by 16 rows.
inline void block_bf16_by_tiles(const Matrix& m, const char* const* w, const char* group,
                                float* out, Ahead& ahead) {
    const int64_t stride = m.num_inputs * 2;
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (int64_t k = 0; k < stride; k += 64, group += 1024) {
        _tile_loadd(4, group, 64);
        _tile_loadd(5, w[0] + k, stride); _tile_dpbf16ps(0, 5, 4);
        ahead.fetch(32);
        _tile_loadd(6, w[1] + k, stride); _tile_dpbf16ps(1, 6, 4);
        _tile_loadd(7, w[2] + k, stride); _tile_dpbf16ps(2, 7, 4);
        ahead.fetch(32);
        _tile_loadd(5, w[3] + k, stride); _tile_dpbf16ps(3, 5, 4);
    }
    _tile_stored(0, out, 64);
    _tile_stored(1, out + 256, 64);
    _tile_stored(2, out + 512, 64);
    _tile_stored(3, out + 768, 64);
}

inline void pair_int8_by_tiles(const Matrix& m, const char* const* w, const char* group,
                               int64_t count, float* out, Ahead& ahead) {
    const int64_t stride = m.num_inputs;
    alignas(64) int32_t sums[4][256];
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (int64_t k = 0; k < stride; k += 64, group += 2048) {
        _tile_loadd(4, group, 64);
        _tile_loadd(5, group + 1024, 64);
        _tile_loadd(6, w[0] + k, stride); _tile_dpbssd(0, 6, 4); _tile_dpbsud(1, 6, 5);
        ahead.fetch(32);
        _tile_loadd(7, w[1] + k, stride); _tile_dpbssd(2, 7, 4); _tile_dpbsud(3, 7, 5);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    for (int64_t o = 0; o < 2 * UNIT; ++o) {
        const int32_t* high = sums[o / UNIT * 2] + o % UNIT * GROUP;
        const int32_t* low = high + 256;
        for (int64_t r = 0; r < count; ++r)
            out[o * GROUP + r] = static_cast<float>(high[r] * 256.0 + low[r]);
    }
}

inline void block_by_tiles(const Matrix& m, int64_t first, int64_t units, const char* group,
                           int64_t count, float* out, Ahead& ahead) {
    const char* w[UNITS];
    for (int64_t i = 0; i < UNITS; ++i) w[i] = unit_of(m, first + (i < units ? i : units - 1));
    if (m.kind == BF16) return block_bf16_by_tiles(m, w, group, out, ahead);
    for (int64_t i = 0; i < units; i += 2)
        pair_int8_by_tiles(m, w + i, group, count, out + i * UNIT * GROUP, ahead);
}
#endif

// Where results go: row r's number of output n to data[r * stride + n], or on top of what is there.
struct Target {
    float* data;
    int64_t stride;
    bool adds;
};

// A row's outputs of a block, from `first` on. One function for all, so that they round alike.
__attribute__((noinline)) inline void put(const Matrix& m, const Rows& rows, int64_t row,
                                          int64_t first, int64_t units, const Floats* block,
                                          const Target& target) {
    float* out = target.data + row * target.stride;
    for (int64_t i = 0; i < units; ++i, first += UNIT) {
        const int64_t left = m.num_outputs - first;
        Floats y = block[i * GROUP];
        if (m.kind == INT8) y *= load(m.scales + first, left) * rows.scales[row].inverse;
        if (m.bias) y += load(m.bias + first, left);
        if (target.adds) y += load(out + first, left);
        store(out + first, y, left);
    }
}

// A unit of outputs, as the products leave it, becomes the rows of a group.
inline void turn(const float* unit, int64_t count, Floats* rows) {
#ifdef __AVX512F__
    if (count > FEW) {
        std::memcpy(rows, unit, UNIT * GROUP * sizeof *unit);
        return transpose(rows);
    }
#endif
    for (int64_t r = 0; r < count; ++r)
        for (int64_t i = 0; i < UNIT; ++i) rows[r][i] = unit[i * GROUP + r];
}

// A block of outputs, for all rows.
inline void multiply_block(const Matrix& m, int64_t block, const Rows& rows, const Target& target,
                           Ahead ahead) {
    alignas(64) float out[BLOCK * GROUP];
    const int64_t all_units = rounded_up(m.num_outputs, UNIT) / UNIT, first = block * UNITS;
    const int64_t units = all_units - first < UNITS ? all_units - first : UNITS;
    for (int64_t row = 0; row < rows.count; row += GROUP) {
        const char* group = group_of(rows, m, row);
        const int64_t count = rows.count - row < GROUP ? rows.count - row : GROUP;
#ifdef HAS_AMX
        if (by_tiles(m, rows.count))
            block_by_tiles(m, first, units, group, count, out, ahead);
        else
#endif
            for (int64_t i = 0; i < units; ++i)
                unit_by_vectors(m, first + i, group, count, out + i * UNIT * GROUP, ahead);
        Floats turned[UNITS * GROUP];
        for (int64_t i = 0; i < units; ++i) turn(out + i * UNIT * GROUP, count, turned + i * GROUP);
        for (int64_t r = 0; r < count; ++r)
            put(m, rows, row + r, block * BLOCK, units, turned + r, target);
    }
}

inline int64_t num_blocks(const Matrix& m) { return rounded_up(m.num_outputs, BLOCK) / BLOCK; }

// The memory of a block's weights.
inline Ahead weights_of(const Matrix& m, int64_t block) {
    if (block >= num_blocks(m)) return {};
    const int64_t first = block * BLOCK, left = m.num_outputs - first;
    const int64_t bytes = m.num_inputs * bytes_of(m.kind);
    const char* start = static_cast<const char*>(m.weight) + first * bytes;
    return {start, start + (left < BLOCK ? left : BLOCK) * bytes};
}

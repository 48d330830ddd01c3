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

#include "vectors.h"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)
#define HAS_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum Kind : int64_t { FP32 = 0, BF16 = 1, INT8 = 2 };

constexpr int64_t UNIT = 16;            // outputs that lie together; a matrix has whole units
constexpr int64_t UNITS = 4;            // units of a block, which one thread computes at a time
constexpr int64_t BLOCK = UNIT * UNITS;
constexpr int64_t GROUP = 16;           // rows of x that are packed together
constexpr int64_t FEW = 4;              // rows for which reading is all that counts
constexpr int64_t INPUTS = 64;          // a matrix's rows are a multiple of this
constexpr float LARGEST = 32512.0f;     // of a row's integers: 127 * 256

struct Matrix {
    const void* weight;   // [num_outputs, num_inputs]
    const void* tail;     // [UNIT, num_inputs]: outputs past the last whole unit, and zeros
    const float* bias;    // [num_outputs] or null
    const float* scales;  // int8: [num_outputs], what the integers are multiplied by
    const int32_t* sums;  // int8: [num_outputs rounded up to UNIT], of each output's integers
    int64_t num_outputs;
    int64_t num_inputs;
    int64_t num_given;    // inputs that come; the others are zeros
    int64_t kind;
};

inline int64_t bytes_of(int64_t kind) { return kind == FP32 ? 4 : kind == BF16 ? 2 : 1; }

// A matrix's unit of outputs, by its number.
inline const char* unit_of(const Matrix& m, int64_t unit) {
    const int64_t first = unit * UNIT;
    if (first + UNIT > m.num_outputs) return static_cast<const char*>(m.tail);
    return static_cast<const char*>(m.weight) + first * m.num_inputs * bytes_of(m.kind);
}

// Rows of x as the kernels read them.
struct Rows {
    int64_t count;
    char* data;     // groups of GROUP rows, num_inputs * GROUP * 4 bytes for each
    float* scales;  // int8: of each row
};

inline char* group_of(const Rows& rows, const Matrix& m, int64_t row) {
    return rows.data + row / GROUP * m.num_inputs * GROUP * 4;
}

// What lies ahead in memory, fetched a little at a time beside the work.
struct Ahead {
    const char* next = nullptr;
    const char* end = nullptr;

    void fetch(int64_t lines) {
        for (; lines > 0 && next < end; --lines, next += 64) __builtin_prefetch(next, 0, 2);
    }
};

#ifdef HAS_AMX
// Tiles may be used once Linux has been asked. 18: the data of tiles.
inline bool tiles_allowed() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

struct alignas(64) TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
#else
inline bool tiles_allowed() { return false; }
#endif

inline bool use_tiles() {
    static const bool allowed = tiles_allowed();
    return allowed;
}

// Whether rows times a matrix are done by tiles. For bytes the result is the same either way, and few
// rows are quicker without.
inline bool by_tiles(const Matrix& m, int64_t num_rows) {
    return use_tiles() && (m.kind == BF16 || (m.kind == INT8 && num_rows > FEW));
}

inline void begin_tiles() {
#ifdef HAS_AMX
    const TileConfig config;
    if (use_tiles()) _tile_loadconfig(&config);
#endif
}

inline void end_tiles() {
#ifdef HAS_AMX
    if (use_tiles()) _tile_release();
#endif
}

// --- from a row of x to what the kernels read

inline void pack_bf16(const Matrix& m, const float* x, char* group, int64_t column) {
#ifdef __AVX512BF16__
    auto* out = reinterpret_cast<uint16_t*>(group);
    for (int64_t i = 0; i < m.num_inputs; i += LANES) {
        const int64_t left = m.num_given - i;
        uint16_t part[LANES];
        const Floats y = left > 0 ? load(x + i, left) : Floats{};
        const auto narrow = _mm512_cvtneps_pbh((__m512)y);
        std::memcpy(part, &narrow, sizeof part);
        if (!use_tiles()) {
            std::memcpy(out + column * m.num_inputs + i, part, sizeof part);
            continue;
        }
        for (int64_t j = 0; j < LANES; j += 2)  // tiles hold pairs of inputs, by rows of x
            std::memcpy(out + (i + j) * GROUP + 2 * column, part + j, 4);
    }
#else
    auto* out = reinterpret_cast<float*>(group) + column * m.num_inputs;
    for (int64_t i = 0; i < m.num_inputs; i += LANES)
        store(out + i, i < m.num_given ? load(x + i, m.num_given - i) : Floats{});
#endif
}

// Sixteen integers of a row, the k-th and those after it: in bytes where instructions want bytes.
inline void put_integers(const Matrix& m, Ints x, int64_t k, bool in_tiles, char* group,
                         int64_t column) {
#ifdef __AVX512VNNI__
    const Bytes high = __builtin_convertvector(x >> 8, Bytes);
    const Bytes low = __builtin_convertvector(x & 255, Bytes);
    if (!in_tiles) {
        const Bytes unsigned_high = high ^ static_cast<int8_t>(-128);  // 128 more
        char* row = group + column * 2 * m.num_inputs + k;
        std::memcpy(row, &unsigned_high, sizeof high);
        std::memcpy(row + m.num_inputs, &low, sizeof low);
        return;
    }
    // A tile holds quadruples of inputs, by rows of x: one of high bytes, one of low bytes.
    char* tile = group + k / 64 * 2048 + k % 64 / 4 * 64 + column * 4;
    for (int64_t j = 0; j < LANES; j += 4, tile += 64) {
        std::memcpy(tile, reinterpret_cast<const char*>(&high) + j, 4);
        std::memcpy(tile + 1024, reinterpret_cast<const char*>(&low) + j, 4);
    }
#else
    (void)in_tiles;
    const Shorts narrow = __builtin_convertvector(x, Shorts);
    std::memcpy(group + (column * m.num_inputs + k) * 2, &narrow, sizeof narrow);
#endif
}

inline float pack_int8(const Matrix& m, const float* x, bool in_tiles, char* group,
                       int64_t column) {
    Floats most{}, nan{};
    for (int64_t i = 0; i < m.num_given; i += LANES) {
        const Floats y = load(x + i, m.num_given - i);
        const Floats size = choose(y < all(0.0f), -y, y);
        most = choose(size > most, size, most);
        nan += y * 0.0f;  // not 0 where a number is infinite or none
    }
    float largest = sum(nan);
    for (int64_t j = 0; j < LANES; ++j) largest = most[j] > largest ? most[j] : largest;
    const bool usable = largest == largest && largest > 0;
    const float factor = usable ? LARGEST / largest : 0.0f;
    const bool works = factor > 0 && factor < INFINITY;
    for (int64_t i = 0; i < m.num_inputs; i += LANES) {
        Floats y = i < m.num_given ? load(x + i, m.num_given - i) : Floats{};
        y = works ? y * factor + 12582912.0f : all(12582912.0f);
        Ints bits;
        std::memcpy(&bits, &y, sizeof bits);
        put_integers(m, bits - 0x4b400000, i, in_tiles, group, column);
    }
    return works ? largest / LARGEST : largest * 0.0f;
}

// One row of x, num_given numbers.
inline void pack(const Matrix& m, const float* x, const Rows& rows, int64_t row) {
    char* group = group_of(rows, m, row);
    const int64_t column = row % GROUP;
    if (m.kind == BF16) return pack_bf16(m, x, group, column);
    if (m.kind == INT8) {
        rows.scales[row] = pack_int8(m, x, by_tiles(m, rows.count), group, column);
        return;
    }
    auto* out = reinterpret_cast<float*>(group) + column * m.num_inputs;
    for (int64_t i = 0; i < m.num_inputs; i += LANES)
        store(out + i, i < m.num_given ? load(x + i, m.num_given - i) : Floats{});
}

// --- a unit of outputs of some rows of a group: out[output][row of the group]

#ifdef __AVX512F__
constexpr int TOGETHER = 4;  // sums of outputs and of rows that fit into registers together
#else
constexpr int TOGETHER = 2;
#endif

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
    for (int o = 0; o < TOGETHER; ++o)
        for (int r = 0; r < R; ++r) out[o * GROUP + r] = sum(sums[o][r]);
}

#ifdef __AVX512BF16__
template <int R>
void paired_dots(const uint16_t* w, int64_t n, const uint16_t* x, float* out, Ahead& ahead) {
    __m512 sums[TOGETHER][R];
    for (auto& each : sums)
        for (auto& one : each) one = _mm512_setzero_ps();
    for (int64_t k = 0; k < n; k += 32) {
        __m512bh xs[R];
        for (int r = 0; r < R; ++r) xs[r] = (__m512bh)_mm512_loadu_si512(x + r * n + k);
        for (int o = 0; o < TOGETHER; ++o) {
            const auto weights = (__m512bh)_mm512_loadu_si512(w + o * n + k);
            for (int r = 0; r < R; ++r)
                sums[o][r] = _mm512_dpbf16_ps(sums[o][r], weights, xs[r]);
        }
        ahead.fetch(TOGETHER);
    }
    for (int o = 0; o < TOGETHER; ++o)
        for (int r = 0; r < R; ++r) out[o * GROUP + r] = sum((Floats)sums[o][r]);
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
        const char* x = group + row * 2 * n;
        return integer_dots<R>(reinterpret_cast<const int8_t*>(w), n, x, weight_sums, out, ahead);
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
            if (left == 1) some_dots<1>(m, weights, group, row, sums, to, ahead);
            else if (left == 2 || TOGETHER == 2) some_dots<2>(m, weights, group, row, sums, to, ahead);
            else if (left == 3) some_dots<3>(m, weights, group, row, sums, to, ahead);
            else some_dots<4>(m, weights, group, row, sums, to, ahead);
        }
    }
}

#ifdef HAS_AMX
// Tiles of weights are 16 outputs by 64 bytes as they lie in memory, those of x 64 bytes by 16 rows.
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
    for (int64_t i = 0; i < units; i += 2) pair_int8_by_tiles(m, w + i, group, count, out + i * 256, ahead);
}
#endif

// Where results go: row r's number of output n to data[r * stride + n], or on top of what is there.
struct Target {
    float* data;
    int64_t stride;
    bool adds;
};

inline void put(const Matrix& m, const Rows& rows, int64_t row, int64_t first, const float* block,
                const Target& target) {
    const int64_t count = m.num_outputs - first < BLOCK ? m.num_outputs - first : BLOCK;
    float* out = target.data + row * target.stride + first;
    const float* from = block + row % GROUP;
    for (int64_t i = 0; i < count; ++i) {
        float y = from[i * GROUP];
        if (m.kind == INT8) y *= m.scales[first + i] * rows.scales[row];
        if (m.bias) y += m.bias[first + i];
        out[i] = target.adds ? out[i] + y : y;
    }
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
        for (int64_t r = row; r < row + count; ++r) put(m, rows, r, block * BLOCK, out, target);
    }
}

inline int64_t num_blocks(const Matrix& m) { return rounded_up(m.num_outputs, BLOCK) / BLOCK; }

// The memory of a block's weights.
inline Ahead weights_of(const Matrix& m, int64_t block) {
    if (block >= num_blocks(m)) return {};
    const int64_t first = block * BLOCK, left = m.num_outputs - first;
    const char* start = static_cast<const char*>(m.weight) + first * m.num_inputs * bytes_of(m.kind);
    return {start, start + (left < BLOCK ? left : BLOCK) * m.num_inputs * bytes_of(m.kind)};
}

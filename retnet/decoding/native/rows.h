// A matrix, and rows of numbers as the kernels of products.h read them.
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

// What turns a row's numbers into integers, and back: 0 where they are all zeros, or not numbers.
struct Scale {
    float factor, inverse;
};

// Rows of x as the kernels read them.
struct Rows {
    int64_t count;
    char* data;     // groups of GROUP rows, num_inputs * GROUP * 4 bytes for each
    Scale* scales;  // int8: of each row
};

// Where rows of numbers lie: row r at data + r * stride.
struct Source {
    const float* data;
    int64_t stride;
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

// Whether rows times a matrix are done by tiles. For bytes the result is the same either way, and
// few rows are quicker without.
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

// --- from rows of x to what the kernels read

// The numbers from the k-th on, zeros after the last that is given.
inline Floats given(const Matrix& m, const float* x, int64_t k) {
    return k < m.num_given ? load(x + k, m.num_given - k) : Floats{};
}

inline Scale scale_of(const Matrix& m, const float* x) {
    Floats most{}, nan{};
    for (int64_t k = 0; k < m.num_given; k += LANES) {
        const Floats y = given(m, x, k), size = choose(y < all(0.0f), -y, y);
        most = choose(size > most, size, most);
        nan += y * 0.0f;  // not 0 where a number is infinite or none
    }
    float largest = sum(nan);
    for (int64_t j = 0; j < LANES; ++j) largest = most[j] > largest ? most[j] : largest;
    const bool usable = largest == largest && largest > 0;
    const float factor = usable ? LARGEST / largest : 0.0f;
    if (factor > 0 && factor < INFINITY) return {factor, largest / LARGEST};
    return {0.0f, largest * 0.0f};
}

inline Ints integers(const Matrix& m, const float* x, int64_t k, float factor) {
    Floats y = given(m, x, k) * factor + 12582912.0f;
    if (factor == 0) y = all(12582912.0f);
    Ints bits;
    std::memcpy(&bits, &y, sizeof bits);
    return bits - 0x4b400000;
}

// A row as it is, one number after the other; bf16 in what the dot products of pairs want.
inline void pack_row(const Matrix& m, const float* x, float factor, char* group, int64_t column) {
    const int64_t n = m.num_inputs;
    if (m.kind == INT8) {
        for (int64_t k = 0; k < n; k += LANES) {
            const Ints y = integers(m, x, k, factor);
#ifdef __AVX512VNNI__
            const Bytes high = __builtin_convertvector(y >> 8, Bytes) ^ static_cast<int8_t>(-128);
            const Bytes low = __builtin_convertvector(y & 255, Bytes);
            std::memcpy(group + column * 2 * n + k, &high, sizeof high);  // 128 more, unsigned
            std::memcpy(group + column * 2 * n + n + k, &low, sizeof low);
#else
            const Shorts narrow = __builtin_convertvector(y, Shorts);
            std::memcpy(group + (column * n + k) * 2, &narrow, sizeof narrow);
#endif
        }
        return;
    }
#ifdef __AVX512BF16__
    if (m.kind == BF16) {
        for (int64_t k = 0; k < n; k += LANES) {
            const auto narrow = _mm512_cvtneps_pbh((__m512)given(m, x, k));
            std::memcpy(group + (column * n + k) * 2, &narrow, sizeof narrow);
        }
        return;
    }
#endif
    for (int64_t k = 0; k < n; k += LANES)
        store(reinterpret_cast<float*>(group) + column * n + k, given(m, x, k));
}

#ifdef HAS_AMX
inline void store_tile(Ints* words, char* tile) {
    transpose(words);
    std::memcpy(tile, words, 1024);
}

// INPUTS inputs of the rows of a group, from the k-th on: two tiles of pairs of bf16, or one of
// quadruples of high bytes and one of low bytes; a line holds those of all rows.
inline void pack_tiles(const Matrix& m, const float* x, int64_t stride, const Scale* scales,
                       int64_t count, char* group, int64_t k) {
    Ints first[GROUP]{}, second[GROUP]{};
    for (int64_t r = 0; r < count; ++r, x += stride) {
        if (m.kind == BF16) {
            const Floats a = given(m, x, k), b = given(m, x, k + 16);
            const Floats c = given(m, x, k + 32), d = given(m, x, k + 48);
            first[r] = (Ints)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
            second[r] = (Ints)_mm512_cvtne2ps_pbh((__m512)d, (__m512)c);
            continue;
        }
        for (int64_t i = 0; i < 4; ++i) {
            const Ints y = integers(m, x, k + i * LANES, scales[r].factor);
            const Bytes high = __builtin_convertvector(y >> 8, Bytes);
            const Bytes low = __builtin_convertvector(y & 255, Bytes);
            std::memcpy(reinterpret_cast<char*>(&first[r]) + i * LANES, &high, sizeof high);
            std::memcpy(reinterpret_cast<char*>(&second[r]) + i * LANES, &low, sizeof low);
        }
    }
    char* tiles = group + k / INPUTS * 2048;
    store_tile(first, tiles);
    store_tile(second, tiles + 1024);
}
#endif

// In how many parts rows are packed.
inline int64_t num_parts(const Matrix& m, const Rows& rows) {
    if (!by_tiles(m, rows.count)) return rows.count;
    return rounded_up(rows.count, GROUP) / GROUP * (m.num_inputs / INPUTS);
}

// A part of the rows x, whose scales are known.
inline void pack(const Matrix& m, const Source& x, const Rows& rows, int64_t part) {
#ifdef HAS_AMX
    if (by_tiles(m, rows.count)) {
        const int64_t parts = m.num_inputs / INPUTS, row = part / parts * GROUP;
        const int64_t count = rows.count - row < GROUP ? rows.count - row : GROUP;
        return pack_tiles(m, x.data + row * x.stride, x.stride, rows.scales + row, count,
                          group_of(rows, m, row), part % parts * INPUTS);
    }
#endif
    pack_row(m, x.data + part * x.stride, rows.scales[part].factor, group_of(rows, m, part),
             part % GROUP);
}

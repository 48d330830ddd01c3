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

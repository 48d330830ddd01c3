// Sixteen numbers at a time, in the compiler's own vectors: it knows how each processor does them.
//
// What is left over at the end of a row is computed by the same instructions as the rest.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

constexpr int64_t LANES = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int16_t Shorts __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint64_t Pairs __attribute__((vector_size(64)));

inline int64_t rounded_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

inline Floats all(float x) { return x - Floats{}; }

inline Floats load(const float* p) {
    Floats x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

inline void store(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }

// The first n <= LANES numbers, and zeros.
inline Floats load(const float* p, int64_t n) {
    if (n >= LANES) return load(p);
    Floats x{};
    std::memcpy(&x, p, n * sizeof(float));
    return x;
}

inline void store(float* p, Floats x, int64_t n) {
    if (n >= LANES) return store(p, x);
    std::memcpy(p, &x, n * sizeof(float));
}

inline float as_float(uint16_t bf16) {
    const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline Floats load(const uint16_t* bf16) {
    Halves x;
    std::memcpy(&x, bf16, sizeof x);
    const Words bits = __builtin_convertvector(x, Words) << 16;
    Floats wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// To the nearest, ties to even; what is no number stays so.
inline uint16_t as_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Of each pair of numbers the second one first.
inline Floats with_neighbours_swapped(Floats x) {
    Pairs pairs;
    std::memcpy(&pairs, &x, sizeof x);
    pairs = pairs << 32 | pairs >> 32;
    std::memcpy(&x, &pairs, sizeof x);
    return x;
}

// Halves on halves.
inline float sum(Floats x) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)x);
#else
    typedef float Four __attribute__((vector_size(16)));
    Four part[4];
    std::memcpy(part, &x, sizeof x);
    const Four four = (part[0] + part[2]) + (part[1] + part[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
#endif
}

inline int64_t sum(Ints x) {
#ifdef __AVX512F__
    return _mm512_reduce_add_epi32((__m512i)x);
#else
    int32_t total = 0;
    for (int64_t i = 0; i < LANES; ++i) total += x[i];
    return total;
#endif
}

#ifdef __AVX512F__
template <int CHOICE, class V>
V lanes(V a, V b) {
    return (V)_mm512_shuffle_f32x4((__m512)a, (__m512)b, CHOICE);
}

template <int CHOICE, class V>
V within_lanes(V a, V b) {
    return (V)_mm512_shuffle_ps((__m512)a, (__m512)b, CHOICE);
}

// The sum of each of sixteen vectors, in their order; each added as `sum` does.
template <class V>
V sums(const V* x) {
    V a[8], b[4], c[2];
    for (int i = 0; i < 8; ++i) a[i] = lanes<0x44>(x[i], x[i + 8]) + lanes<0xee>(x[i], x[i + 8]);
    for (int i = 0; i < 4; ++i) b[i] = lanes<0x88>(a[i], a[i + 4]) + lanes<0xdd>(a[i], a[i + 4]);
    for (int i = 0; i < 2; ++i)
        c[i] = within_lanes<0x44>(b[i], b[i + 2]) + within_lanes<0xee>(b[i], b[i + 2]);
    const V mixed = within_lanes<0x88>(c[0], c[1]) + within_lanes<0xdd>(c[0], c[1]);
    const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    return (V)_mm512_permutexvar_ps(order, (__m512)mixed);
}
#endif

#ifdef __AVX512F__
template <class V>
V low_pairs(V a, V b) { return (V)_mm512_unpacklo_ps((__m512)a, (__m512)b); }
template <class V>
V high_pairs(V a, V b) { return (V)_mm512_unpackhi_ps((__m512)a, (__m512)b); }
template <class V>
V low_halves(V a, V b) { return (V)_mm512_unpacklo_pd((__m512d)a, (__m512d)b); }
template <class V>
V high_halves(V a, V b) { return (V)_mm512_unpackhi_pd((__m512d)a, (__m512d)b); }

// Sixteen vectors become their columns.
template <class V>
void transpose(V* x) {
    V a[LANES];  // a[4 g + c]: in lane l, column 4 l + c of rows 4 g to 4 g + 3
    for (int64_t i = 0; i < LANES; i += 4) {
        const V p = low_pairs(x[i], x[i + 1]), q = low_pairs(x[i + 2], x[i + 3]);
        const V r = high_pairs(x[i], x[i + 1]), s = high_pairs(x[i + 2], x[i + 3]);
        a[i] = low_halves(p, q), a[i + 1] = high_halves(p, q);
        a[i + 2] = low_halves(r, s), a[i + 3] = high_halves(r, s);
    }
    for (int64_t c = 0; c < 4; ++c) {
        const V p = lanes<0x44>(a[c], a[c + 4]), q = lanes<0x44>(a[c + 8], a[c + 12]);
        const V r = lanes<0xee>(a[c], a[c + 4]), s = lanes<0xee>(a[c + 8], a[c + 12]);
        x[c] = lanes<0x88>(p, q), x[c + 4] = lanes<0xdd>(p, q);
        x[c + 8] = lanes<0x88>(r, s), x[c + 12] = lanes<0xdd>(r, s);
    }
}
#endif

inline Floats choose(Ints condition, Floats yes, Floats no) { return condition ? yes : no; }

// e^x to 2e-7, relatively; x below -87 counts as -87 and x above 88 as 88.
inline Floats exponential(Floats x) {
    x = choose(x < all(-87.0f), all(-87.0f), x);
    x = choose(x > all(88.0f), all(88.0f), x);
    const Floats shifter = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Floats shifted = x * 1.44269504f + shifter;
    const Floats n = shifted - shifter;
    const Floats r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    Floats y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    Ints bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const Ints power = (bits + 127) << 23;
    Floats scale;
    std::memcpy(&scale, &power, sizeof scale);
    return y * scale;
}

inline Floats silu(Floats x) { return x / (1.0f + exponential(-x)); }

// With Abramowitz and Stegun's 7.1.26 for the error function, good to 1.5e-7.
inline Floats gelu(Floats x) {
    const Floats z = x * 0.70710678f;
    const Floats size = choose(z < all(0.0f), -z, z);
    const Floats t = 1.0f / (1.0f + 0.3275911f * size);
    Floats poly = t * 1.061405429f - 1.453152027f;
    poly = poly * t + 1.421413741f;
    poly = poly * t - 0.284496736f;
    poly = poly * t + 0.254829592f;
    const Floats tail = poly * t * exponential(-z * z);  // 1 - erf(size)
    return 0.5f * x * choose(z < all(0.0f), tail, 2.0f - tail);
}

struct Norm {
    const float* weight;  // null: 1
    const float* bias;    // null: 0
    int64_t size;         // 0: there is no norm
    double eps;
    int64_t is_rms;
};

// out = norm(x), each of `size` numbers; they may be the same place.
inline void apply_norm(const Norm& norm, const float* x, float* out) {
    const int64_t n = norm.size;
    Floats total{};
    float mean = 0;
    if (!norm.is_rms) {
        for (int64_t i = 0; i < n; i += LANES) total += load(x + i, n - i);
        mean = sum(total) / n;
    }
    Floats squares{};
    for (int64_t i = 0; i < n; i += LANES) {
        Floats d = load(x + i, n - i) - mean;
        if (n - i < LANES)
            for (int64_t j = n - i; j < LANES; ++j) d[j] = 0;
        squares += d * d;
    }
    const float scale = 1.0f / std::sqrt(sum(squares) / n + static_cast<float>(norm.eps));
    for (int64_t i = 0; i < n; i += LANES) {
        Floats y = (load(x + i, n - i) - mean) * scale;
        if (norm.weight) y *= load(norm.weight + i, n - i);
        if (norm.bias) y += load(norm.bias + i, n - i);
        store(out + i, y, n - i);
    }
}

// One token in each of some rows: a whole model in one call, by a team of threads.
//
// The twin of torch_kernel.py, which says what is computed. Between products numbers are fp32.
// The structures here have their like in kernel.py.

#include <type_traits>

#include "products.h"
#include "team.h"

namespace {

struct Layer {
    Norm mixer_norm;
    Matrix projection;  // q, k, v, gate
    Norm head_norm;
    Matrix output;
    Norm feed_forward_norm;
    Matrix up;  // and the feed forward's gate after it
    Norm inner_norm;
    Matrix down;
};

enum Activation : int64_t { GELU = 0, SWIGLU = 1, GEGLU = 2 };
enum ScoreNorm : int64_t { NONE = 0, DECAY = 1, PAPER = 2 };

struct Model {
    int64_t vocab_size, width, num_layers, num_heads, key_size, value_size, ffn_size;
    int64_t activation, score_norm, pairs_are_halves;
    int64_t embedding_kind;
    const void* embedding;      // [vocab_size, width]
    Norm embedding_norm;
    const Layer* layers;
    Norm norm;
    Matrix head;
    const double* log_decay;    // [num_heads]
    const double* frequencies;  // [key_size / 2]
};

// What a step of `count` rows works on: all arrays begin at a multiple of 64 bytes, and so do rows.
struct Room {
    int64_t keys, values, wide, hidden;  // numbers of a row
    float *x, *normed, *merged, *mixed, *up, *active, *turns, *scales;
    Rows rows;

    // Sets all up in the given memory, or only counts its bytes where that is null.
    int64_t set(const Model& m, int64_t count, char* memory) {
        keys = m.num_heads * m.key_size;
        values = m.num_heads * m.value_size;
        wide = rounded_up(2 * keys + 2 * values, LANES);
        hidden = rounded_up((m.activation == GELU ? 1 : 2) * m.ffn_size, LANES);
        const int64_t width = rounded_up(m.width, LANES);
        rows.count = count;
        int64_t bytes = 0;
        const auto take = [&](auto*& array, int64_t numbers) {
            if (memory) array = reinterpret_cast<std::decay_t<decltype(array)>>(memory + bytes);
            bytes += rounded_up(numbers * sizeof *array, 64);
        };
        take(x, count * width);
        take(normed, count * width);
        take(merged, count * wide);
        take(mixed, count * rounded_up(values, LANES));
        take(up, count * hidden);
        take(active, count * rounded_up(m.ffn_size, LANES));
        take(turns, count * m.key_size);
        take(scales, count * m.num_heads);
        take(rows.scales, count);
        take(rows.data, rounded_up(count, GROUP) * 4 * rounded_up(most_inputs(m), INPUTS));
        return bytes;
    }

    static int64_t most_inputs(const Model& m) {
        int64_t most = m.num_heads * m.value_size;
        most = m.width > most ? m.width : most;
        return m.ffn_size > most ? m.ffn_size : most;
    }
};

class Step {
   public:
    Step(const Model& model, const int64_t* tokens, const int64_t* rows, const int64_t* positions,
         int64_t count, float* const* states, float* logits, char* memory)
        : m_(model), tokens_(tokens), rows_(rows), positions_(positions), count_(count),
          states_(states), logits_(logits) {
        room_.set(model, count, memory);
        width_ = rounded_up(model.width, LANES);
        taken_ = std::vector<std::atomic<int64_t>>(4 * model.num_layers + 1);
    }

    // What the thread of this index does.
    void operator()(int index, int size) {
        begin_tiles();
        each_row(index, size, [&](int64_t row) { begin_row(row); });
        for (int64_t l = 0; l < m_.num_layers; ++l) layer(l, index, size);
        norm_and_pack(m_.norm, m_.head, index, size);
        multiply(m_.head, 4 * m_.num_layers, {logits_, m_.vocab_size, false}, nullptr, index, size);
        end_tiles();
    }

   private:
    void layer(int64_t l, int index, int size) {
        const Layer& layer = m_.layers[l];
        const Matrix& after = l + 1 < m_.num_layers ? m_.layers[l + 1].projection : m_.head;
        norm_and_pack(layer.mixer_norm, layer.projection, index, size);
        multiply(layer.projection, 4 * l, {room_.merged, room_.wide, false}, &layer.output, index,
                 size);
        for (int64_t i = index; i < count_ * m_.num_heads; i += size)
            retain(layer, states_[l], i / m_.num_heads, i % m_.num_heads);
        barrier_.wait(size);
        const int64_t values = rounded_up(room_.values, LANES);
        each_row(index, size, [&](int64_t row) {
            pack(layer.output, room_.mixed + row * values, room_.rows, row);
        });
        multiply(layer.output, 4 * l + 1, {room_.x, width_, true}, &layer.up, index, size);
        norm_and_pack(layer.feed_forward_norm, layer.up, index, size);
        multiply(layer.up, 4 * l + 2, {room_.up, room_.hidden, false}, &layer.down, index, size);
        activate(index, size);
        const int64_t hidden = rounded_up(m_.ffn_size, LANES);
        each_row(index, size, [&](int64_t row) {
            float* active = room_.active + row * hidden;
            if (layer.inner_norm.size) apply_norm(layer.inner_norm, active, active);
            pack(layer.down, active, room_.rows, row);
        });
        multiply(layer.down, 4 * l + 3, {room_.x, width_, true}, &after, index, size);
    }

    template <class Work>
    void each_row(int index, int size, Work work) {
        for (int64_t row = index; row < count_; row += size) work(row);
        barrier_.wait(size);
    }

    void norm_and_pack(const Norm& norm, const Matrix& matrix, int index, int size) {
        each_row(index, size, [&](int64_t row) {
            float* normed = room_.normed + row * width_;
            apply_norm(norm, room_.x + row * width_, normed);
            pack(matrix, normed, room_.rows, row);
        });
    }

    // The packed rows times a matrix. Threads take blocks as they have time; beside each block they
    // fetch the weights of the next, of `after` where there is none.
    void multiply(const Matrix& m, int64_t number, const Target& target, const Matrix* after,
                  int index, int size) {
        const int64_t blocks = num_blocks(m);
        for (int64_t block = index; block < blocks;) {
            const int64_t next = size + taken_[number].fetch_add(1, std::memory_order_relaxed);
            Ahead ahead = weights_of(m, next);
            if (next >= blocks && after) ahead = weights_of(*after, index);
            multiply_block(m, block, room_.rows, target, ahead);
            block = next;
        }
        barrier_.wait(size);
    }

    // The embedding of a row's token; cosines and sines of its position; its score norms.
    void begin_row(int64_t row) {
        float* x = room_.x + row * width_;
        const int64_t first = tokens_[row] * m_.width;
        for (int64_t i = 0; i < m_.width; ++i)
            x[i] = m_.embedding_kind == BF16
                       ? as_float(static_cast<const uint16_t*>(m_.embedding)[first + i])
                       : static_cast<const float*>(m_.embedding)[first + i];
        if (m_.embedding_norm.size) apply_norm(m_.embedding_norm, x, x);
        const auto position = static_cast<double>(positions_[row]);
        float* turns = room_.turns + row * m_.key_size;
        for (int64_t j = 0; j < m_.key_size / 2; ++j) {
            const double angle = position * m_.frequencies[j];
            turns[2 * j] = static_cast<float>(std::cos(angle));
            turns[2 * j + 1] = static_cast<float>(std::sin(angle));
        }
        for (int64_t head = 0; head < m_.num_heads; ++head) {
            const double lg = m_.log_decay[head], count = position + 1;
            const double total = lg == 0 ? count : std::expm1(count * lg) / std::expm1(lg);
            room_.scales[row * m_.num_heads + head] = static_cast<float>(std::sqrt(total));
        }
    }

    void rotate(const float* x, const float* turns, float scale, float* out) const {
        const int64_t half = m_.key_size / 2;
        for (int64_t j = 0; j < half; ++j) {
            const int64_t a = m_.pairs_are_halves ? j : 2 * j;
            const int64_t b = m_.pairs_are_halves ? j + half : 2 * j + 1;
            const float cosine = turns[2 * j] * scale, sine = turns[2 * j + 1] * scale;
            out[a] = x[a] * cosine - x[b] * sine;
            out[b] = x[a] * sine + x[b] * cosine;
        }
    }

    // Eq. 6 in one head of one row, its norm and its gate.
    void retain(const Layer& layer, float* states, int64_t row, int64_t head) {
        const int64_t keys = m_.key_size, values = m_.value_size, is_paper = m_.score_norm == PAPER;
        const int64_t columns = values + is_paper;
        const float* merged = room_.merged + row * room_.wide;
        const float* turns = room_.turns + row * keys;
        static thread_local std::vector<float> own;
        own.resize(2 * keys + 2 * rounded_up(columns, LANES));
        float *q = own.data(), *k = q + keys, *v = k + keys, *out = v + rounded_up(columns, LANES);
        rotate(merged + head * keys, turns, 1.0f, q);
        const auto scale = static_cast<float>(std::pow(static_cast<double>(keys), -0.5));
        rotate(merged + room_.keys + head * keys, turns, scale, k);
        std::memcpy(v, merged + 2 * room_.keys + head * values, values * sizeof(float));
        if (is_paper) v[values] = 1.0f;
        float* state = states + (rows_[row] * m_.num_heads + head) * keys * columns;
        const auto gamma = static_cast<float>(std::exp(m_.log_decay[head]));
        read(state, gamma, q, k, v, columns, out);
        normalise(room_.scales[row * m_.num_heads + head], out);
        apply_norm(layer.head_norm, out, out);
        const float* gate = merged + 2 * room_.keys + room_.values + head * values;
        float* mixed = room_.mixed + row * rounded_up(room_.values, LANES) + head * values;
        for (int64_t i = 0; i < values; i += LANES)
            store(mixed + i, silu(load(gate + i, values - i)) * load(out + i), values - i);
    }

    // S <- gamma S + k v^T and out = q S, for a state S [key_size, columns].
    void read(float* state, float gamma, const float* q, const float* k, const float* v,
              int64_t columns, float* out) const {
        int64_t column = 0;
        for (; column + WIDE * LANES <= columns; column += WIDE * LANES)
            read_columns<WIDE>(state + column, gamma, q, k, v + column, columns, LANES,
                               out + column);
        for (; column < columns; column += LANES)
            read_columns<1>(state + column, gamma, q, k, v + column, columns, columns - column,
                            out + column);
    }

    template <int N>
    void read_columns(float* state, float gamma, const float* q, const float* k, const float* v,
                      int64_t stride, int64_t width, float* out) const {
        Floats sums[N]{}, vs[N];
        for (int i = 0; i < N; ++i) vs[i] = load(v + i * LANES, width);
        for (int64_t key = 0; key < m_.key_size; ++key, state += stride)
            for (int i = 0; i < N; ++i) {
                const Floats s = load(state + i * LANES, width) * gamma + vs[i] * k[key];
                store(state + i * LANES, s, width);
                sums[i] += s * q[key];
            }
        for (int i = 0; i < N; ++i) store(out + i * LANES, sums[i]);
    }

    void normalise(float scale, float* out) const {
        if (m_.score_norm == NONE) return;
        float divisor = scale;
        if (m_.score_norm == PAPER) {
            const float row_sum = std::fabs(out[m_.value_size]);
            divisor = row_sum > scale || row_sum != row_sum ? row_sum : scale;
        }
        for (int64_t i = 0; i < m_.value_size; ++i) out[i] /= divisor;
    }

    void activate(int index, int size) {
        const int64_t n = m_.ffn_size, part = 32 * LANES, parts = (n + part - 1) / part;
        for (int64_t unit = index; unit < count_ * parts; unit += size) {
            const int64_t row = unit / parts, first = unit % parts * part;
            const float* up = room_.up + row * room_.hidden;
            float* active = room_.active + row * rounded_up(n, LANES);
            for (int64_t i = first; i < n && i < first + part; i += LANES) {
                const Floats h = load(up + i, n - i);
                const Floats gate = m_.activation == GELU ? h : load(up + n + i, n - i);
                const Floats y = m_.activation == SWIGLU ? silu(gate) : gelu(gate);
                store(active + i, m_.activation == GELU ? y : y * h, n - i);
            }
        }
        barrier_.wait(size);
    }

#ifdef __AVX512F__
    static constexpr int WIDE = 8;
#else
    static constexpr int WIDE = 2;
#endif

    const Model& m_;
    const int64_t *tokens_, *rows_, *positions_;
    int64_t count_, width_;
    float* const* states_;
    float* logits_;
    Room room_;
    Barrier barrier_;
    std::vector<std::atomic<int64_t>> taken_;  // blocks of each product that have been taken
};

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Bytes of memory that a step of so many rows needs.
EXPORTED int64_t retnet_room_bytes(const Model* model, int64_t count) {
    Room room{};
    return room.set(*model, count, nullptr);
}

// What products are made of: 2 tiles (AMX), 1 AVX-512's dot products, 0 plain vectors.
EXPORTED int64_t retnet_instructions() {
    if (use_tiles()) return 2;
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}

// Reads tokens [count] in the rows [count] of states, num_layers pointers, which stand at positions
// [count]. logits: [count, vocab_size]. memory: of retnet_room_bytes, at a multiple of 64.
// Returns 0, or 1 where a token is not in the vocabulary, and then nothing has been done.
EXPORTED int64_t retnet_step(const Model* model, const int64_t* tokens, const int64_t* rows,
                             const int64_t* positions, int64_t count, float* const* states,
                             float* logits, char* memory, int64_t threads) {
    for (int64_t row = 0; row < count; ++row)
        if (tokens[row] < 0 || tokens[row] >= model->vocab_size) return 1;
    Step step(*model, tokens, rows, positions, count, states, logits, memory);
    in_team(static_cast<int>(threads), step);
    return 0;
}
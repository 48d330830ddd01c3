// Tokens of some rows, one or several of each: a whole model in one call, by a team of threads.
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

// What a step reads: counts[i] tokens, one after the other, in the row rows[i] of all states.
struct Reading {
    const int64_t* tokens;  // [num_tokens]
    int64_t num_tokens;
    const int64_t* rows;    // [num_rows]
    const int64_t* counts;  // [num_rows]
    int64_t num_rows;
    const int64_t* wanted;  // [num_wanted]: the tokens after which there shall be logits
    int64_t num_wanted;
};

// What a step of so many tokens works on: all arrays begin at a multiple of 64 bytes, and so do the
// numbers of a token.
struct Room {
    int64_t keys, values, wide, hidden;  // numbers of a token
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
        take(turns, count * 2 * m.key_size);
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
    Step(const Model& model, const Reading& reading, const int64_t* positions,
         float* const* states, float* logits, char* memory)
        : m_(model), reading_(reading), count_(reading.num_tokens),
          width_(rounded_up(model.width, LANES)), positions_(count_), starts_(reading.num_rows),
          key_scale_(static_cast<float>(std::pow(static_cast<double>(model.key_size), -0.5))),
          states_(states), logits_(logits), taken_(JOBS * model.num_layers + 1) {
        room_.set(model, count_, memory);
        for (int64_t i = 0, token = 0; i < reading.num_rows; ++i) {
            starts_[i] = token;
            for (int64_t j = 0; j < reading.counts[i]; ++j)
                positions_[token++] = positions[reading.rows[i]] + j;
        }
    }

    // What the thread of this index does.
    void operator()(int index, int size) {
        begin_tiles();
        each(count_, index, size, [&](int64_t token) { begin(token); });
        for (int64_t l = 0; l < m_.num_layers; ++l) layer(l, index, size);
        if (reading_.num_wanted) head(index, size);
        end_tiles();
    }

   private:
    void layer(int64_t l, int index, int size) {
        const Layer& layer = m_.layers[l];
        const Matrix& after = l + 1 < m_.num_layers ? m_.layers[l + 1].projection : m_.head;
        const int64_t first = JOBS * l;
        norm_and_pack(layer.mixer_norm, layer.projection, index, size);
        multiply(layer.projection, room_.rows, first, {room_.merged, room_.wide, false},
                 &layer.output, index, size);
        share(first + 1, reading_.num_rows * m_.num_heads, index, size, [&](int64_t i, int64_t) {
            retain(layer, states_[l], i / m_.num_heads, i % m_.num_heads);
        });
        const int64_t values = rounded_up(room_.values, LANES);
        pack_rows(layer.output, {room_.mixed, values}, room_.rows, index, size);
        multiply(layer.output, room_.rows, first + 2, {room_.x, width_, true}, &layer.up, index,
                 size);
        norm_and_pack(layer.feed_forward_norm, layer.up, index, size);
        multiply(layer.up, room_.rows, first + 3, {room_.up, room_.hidden, false}, &layer.down,
                 index, size);
        const int64_t hidden = rounded_up(m_.ffn_size, LANES);
        each(count_, index, size, [&](int64_t token) {
            float* active = room_.active + token * hidden;
            activate(room_.up + token * room_.hidden, active);
            if (layer.inner_norm.size) apply_norm(layer.inner_norm, active, active);
        });
        pack_rows(layer.down, {room_.active, hidden}, room_.rows, index, size);
        multiply(layer.down, room_.rows, first + 4, {room_.x, width_, true}, &after, index, size);
    }

    void head(int index, int size) {
        Rows rows = room_.rows;
        rows.count = reading_.num_wanted;
        each(rows.count, index, size, [&](int64_t i) {
            const float* x = room_.x + reading_.wanted[i] * width_;
            apply_norm(m_.norm, x, room_.normed + i * width_);
        });
        pack_rows(m_.head, {room_.normed, width_}, rows, index, size);
        multiply(m_.head, rows, JOBS * m_.num_layers, {logits_, m_.vocab_size, false}, nullptr,
                 index, size);
    }

    template <class Work>
    void each(int64_t count, int index, int size, Work work) {
        for (int64_t i = index; i < count; i += size) work(i);
        barrier_.wait(size);
    }

    // The parts of a job, as threads have time: work(part, the next that this thread will do).
    template <class Work>
    void share(int64_t job, int64_t parts, int index, int size, Work work) {
        for (int64_t part = index; part < parts;) {
            const int64_t next = size + taken_[job].fetch_add(1, std::memory_order_relaxed);
            work(part, next);
            part = next;
        }
        barrier_.wait(size);
    }

    void norm_and_pack(const Norm& norm, const Matrix& matrix, int index, int size) {
        each(count_, index, size, [&](int64_t token) {
            apply_norm(norm, room_.x + token * width_, room_.normed + token * width_);
        });
        pack_rows(matrix, {room_.normed, width_}, room_.rows, index, size);
    }

    void pack_rows(const Matrix& m, const Source& x, const Rows& rows, int index, int size) {
        if (m.kind == INT8)
            each(rows.count, index, size, [&](int64_t row) {
                rows.scales[row] = scale_of(m, x.data + row * x.stride);
            });
        each(num_parts(m, rows), index, size, [&](int64_t part) { pack(m, x, rows, part); });
    }

    // The packed rows times a matrix. Beside each block a thread fetches the weights of its next,
    // of `after` where there is none.
    void multiply(const Matrix& m, const Rows& rows, int64_t job, const Target& target,
                  const Matrix* after, int index, int size) {
        const int64_t blocks = num_blocks(m);
        share(job, blocks, index, size, [&](int64_t block, int64_t next) {
            Ahead ahead = weights_of(m, next);
            if (next >= blocks && after) ahead = weights_of(*after, index);
            multiply_block(m, block, rows, target, ahead);
        });
    }

    // A token's embedding; cosines and sines of its position; its score norms.
    void begin(int64_t token) {
        float* x = room_.x + token * width_;
        const int64_t first = reading_.tokens[token] * m_.width;
        for (int64_t i = 0; i < m_.width; ++i)
            x[i] = m_.embedding_kind == BF16
                       ? as_float(static_cast<const uint16_t*>(m_.embedding)[first + i])
                       : static_cast<const float*>(m_.embedding)[first + i];
        if (m_.embedding_norm.size) apply_norm(m_.embedding_norm, x, x);
        const auto position = static_cast<double>(positions_[token]);
        const int64_t keys = m_.key_size, half = keys / 2;
        float *cosines = room_.turns + token * 2 * keys, *sines = cosines + keys;
        for (int64_t j = 0; j < half; ++j) {
            const int64_t a = m_.pairs_are_halves ? j : 2 * j;
            const int64_t b = m_.pairs_are_halves ? j + half : 2 * j + 1;
            const double angle = position * m_.frequencies[j];
            cosines[a] = cosines[b] = static_cast<float>(std::cos(angle));
            sines[b] = static_cast<float>(std::sin(angle));
            sines[a] = -sines[b];
        }
        for (int64_t head = 0; head < m_.num_heads; ++head) {
            const double lg = m_.log_decay[head], count = position + 1;
            const double total = lg == 0 ? count : std::expm1(count * lg) / std::expm1(lg);
            room_.scales[token * m_.num_heads + head] = static_cast<float>(std::sqrt(total));
        }
    }

    // Pairs of numbers turned by their angles: each times its cosine, and its partner's sine.
    void rotate(const float* x, const float* turns, float scale, float* out) const {
        const int64_t keys = m_.key_size, half = keys / 2;
        const float* sines = turns + keys;
        if (m_.pairs_are_halves) {
            for (int64_t i = 0; i < half; ++i) out[i] = x[i + half] * sines[i];
            for (int64_t i = half; i < keys; ++i) out[i] = x[i - half] * sines[i];
            for (int64_t i = 0; i < keys; ++i) out[i] = (x[i] * turns[i] + out[i]) * scale;
            return;
        }
        for (int64_t i = 0; i < keys; i += LANES) {
            const int64_t left = keys - i;
            const Floats y = load(x + i, left), turned = with_neighbours_swapped(y);
            const Floats sum = y * load(turns + i, left) + turned * load(sines + i, left);
            store(out + i, sum * scale, left);
        }
    }

    // The tokens of one row in one head, one after the other.
    void retain(const Layer& layer, float* states, int64_t which, int64_t head) {
        const int64_t columns = m_.value_size + (m_.score_norm == PAPER);
        const int64_t place = reading_.rows[which] * m_.num_heads + head;
        float* state = states + place * m_.key_size * columns;
        const auto gamma = static_cast<float>(std::exp(m_.log_decay[head]));
        const int64_t first = starts_[which], end = first + reading_.counts[which];
        for (int64_t token = first; token < end; ++token) retain(layer, state, gamma, token, head);
    }

    // Eq. 6 for one token in one head, its norm and its gate.
    void retain(const Layer& layer, float* state, float gamma, int64_t token, int64_t head) {
        const int64_t keys = m_.key_size, values = m_.value_size;
        const int64_t columns = values + (m_.score_norm == PAPER);
        const float* merged = room_.merged + token * room_.wide;
        const float* turns = room_.turns + token * 2 * keys;
        static thread_local std::vector<float> own;
        own.resize(2 * keys + 2 * rounded_up(columns, LANES));
        float *q = own.data(), *k = q + keys, *v = k + keys, *out = v + rounded_up(columns, LANES);
        rotate(merged + head * keys, turns, 1.0f, q);
        rotate(merged + room_.keys + head * keys, turns, key_scale_, k);
        std::memcpy(v, merged + 2 * room_.keys + head * values, values * sizeof(float));
        if (columns > values) v[values] = 1.0f;
        read(state, gamma, q, k, v, columns, out);
        normalise(room_.scales[token * m_.num_heads + head], out);
        apply_norm(layer.head_norm, out, out);
        const float* gate = merged + 2 * room_.keys + room_.values + head * values;
        float* mixed = room_.mixed + token * rounded_up(room_.values, LANES) + head * values;
        for (int64_t i = 0; i < values; i += LANES)
            store(mixed + i, silu(load(gate + i, values - i)) * load(out + i), values - i);
    }

    // S <- gamma S + k v^T and out = q S, for a state S [key_size, columns].
    void read(float* state, float gamma, const float* q, const float* k, const float* v,
              int64_t columns, float* out) const {
        int64_t column = 0;
        for (; column + WIDE * LANES <= columns; column += WIDE * LANES)
            read_columns<WIDE>(state + column, gamma, q, k, v + column, columns, out + column);
        for (; column < columns; column += LANES)
            read_columns<0>(state + column, gamma, q, k, v + column, columns, out + column,
                            columns - column);
    }

    // N vectors of columns; 0: those that are left, of one vector or a part of it.
    template <int N>
    void read_columns(float* state, float gamma, const float* q, const float* k, const float* v,
                      int64_t stride, float* out, int64_t left = LANES) const {
        constexpr int COUNT = N ? N : 1;
        const int64_t width = N ? LANES : left;
        Floats sums[COUNT]{}, vs[COUNT];
        for (int i = 0; i < COUNT; ++i) vs[i] = load(v + i * LANES, width);
        for (int64_t key = 0; key < m_.key_size; ++key, state += stride)
            for (int i = 0; i < COUNT; ++i) {
                const Floats s = load(state + i * LANES, width) * gamma + vs[i] * k[key];
                store(state + i * LANES, s, width);
                sums[i] += s * q[key];
            }
        for (int i = 0; i < COUNT; ++i) store(out + i * LANES, sums[i]);
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

    void activate(const float* up, float* active) const {
        const int64_t n = m_.ffn_size;
        for (int64_t i = 0; i < n; i += LANES) {
            const Floats h = load(up + i, n - i);
            const Floats gate = m_.activation == GELU ? h : load(up + n + i, n - i);
            const Floats y = m_.activation == SWIGLU ? silu(gate) : gelu(gate);
            store(active + i, m_.activation == GELU ? y : y * h, n - i);
        }
    }

#ifdef __AVX512F__
    static constexpr int WIDE = 8;
#else
    static constexpr int WIDE = 2;
#endif

    // What threads share in a layer: its four products, and retention between the first two.
    static constexpr int64_t JOBS = 5;

    const Model& m_;
    const Reading& reading_;
    int64_t count_, width_;
    std::vector<int64_t> positions_, starts_;  // of each token; each row's first token
    float key_scale_;
    float* const* states_;
    float* logits_;
    Room room_;
    Barrier barrier_;
    std::vector<std::atomic<int64_t>> taken_;  // parts of each job that have been taken
};

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Bytes of memory that a step of so many tokens needs.
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

// Reads tokens. states: num_layers pointers, positions: [rows of a state]; both are changed.
// logits: [num_wanted, vocab_size]. memory: of retnet_room_bytes, at a multiple of 64.
// Returns 0, or 1 where a token is not in the vocabulary, and then nothing has been done.
EXPORTED int64_t retnet_step(const Model* model, const Reading* reading, int64_t* positions,
                             float* const* states, float* logits, char* memory, int64_t threads) {
    for (int64_t i = 0; i < reading->num_tokens; ++i)
        if (reading->tokens[i] < 0 || reading->tokens[i] >= model->vocab_size) return 1;
    Step step(*model, *reading, positions, states, logits, memory);
    in_team(static_cast<int>(threads), step);
    for (int64_t i = 0; i < reading->num_rows; ++i)
        positions[reading->rows[i]] += reading->counts[i];
    return 0;
}

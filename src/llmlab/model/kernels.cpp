// What lies between the matrix products of a training step: norms, rotary turns, attention, gates, cross entropy.
//
// Every output is computed by one thread in one order of operations that depends on nothing but its own inputs; sums
// over rows go in blocks of a fixed size, added up in order. So the bytes do not depend on the number of threads.
//
// M rows, D width, F feed-forward width, V vocabulary; B texts, T tokens, H heads, G key/value heads, E head width.
// Halves are bfloat16; accumulation is in float32.

#include <immintrin.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using half = uint16_t;
constexpr int64_t ROWS = 32;  // rows whose sums are taken together

inline __m512 wide(const half* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
inline __m512 wide(const half* p, __mmask16 some) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, p)), 16));
}
inline __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
inline void put(half* p, __m512 x) { _mm256_storeu_si256((__m256i*)p, narrow(x)); }
inline float widened(half h) {
  const uint32_t bits = uint32_t(h) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline half narrowed(float f) { return half(_mm_extract_epi16((__m128i)_mm256_cvtneps_pbh(_mm256_set1_ps(f)), 0)); }

// exp(x) for x <= 88: 2^n by the exponent's bits, the rest by a polynomial; below -87 it is 0.
inline __m512 exp16(__m512 x) {
  const __m512 tiny = _mm512_set1_ps(-87.0f);
  const __mmask16 gone = _mm512_cmp_ps_mask(x, tiny, _CMP_LT_OQ);
  x = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(tiny, x));  // in this order what is no number stays none
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 720);
  for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_mask_mov_ps(_mm512_scalef_ps(p, n), gone, _mm512_setzero_ps());
}

inline __m512 sigmoid16(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

// ------------------------------------------------------------ small products

// A matrix read pair by pair: the inputs 2 k and 2 k + 1 of row r lie at r * row + k * pair.
struct Pairs {
  const half* data;
  size_t row, pair;
};

// C[R][16 W] (+)= A B over `pairs` pairs of inputs; B[k][column][2].
template <int R, int W>
inline void tile(Pairs a, const half* b, size_t b_pair, int pairs, float* c, size_t c_row, bool add) {
  __m512 sum[R][W];
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < W; ++w) sum[r][w] = add ? _mm512_loadu_ps(c + r * c_row + 16 * w) : _mm512_setzero_ps();
  for (int k = 0; k < pairs; ++k) {
    __m512bh y[W];
    for (int w = 0; w < W; ++w) y[w] = (__m512bh)_mm512_loadu_si512(b + k * b_pair + 32 * w);
    for (int r = 0; r < R; ++r) {
      int32_t two;
      std::memcpy(&two, a.data + r * a.row + k * a.pair, 4);
      const __m512bh x = (__m512bh)_mm512_set1_epi32(two);
      for (int w = 0; w < W; ++w) sum[r][w] = _mm512_dpbf16_ps(sum[r][w], y[w], x);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < W; ++w) _mm512_storeu_ps(c + r * c_row + 16 * w, sum[r][w]);
}

// C[m][n] (+)= A[m][2 pairs] B; m is a multiple of 4, n of 16.
void product(Pairs a, const half* b, size_t b_pair, int m, int n, int pairs, float* c, size_t c_row, bool add) {
  for (int i = 0; i < m; i += 4) {
    const Pairs rows{a.data + i * a.row, a.row, a.pair};
    int j = 0;
    for (; j + 64 <= n; j += 64) tile<4, 4>(rows, b + 2 * j, b_pair, pairs, c + i * c_row + j, c_row, add);
    for (; j < n; j += 16) tile<4, 1>(rows, b + 2 * j, b_pair, pairs, c + i * c_row + j, c_row, add);
  }
}

// Rows x[t][e] as pairs over e: to[e / 2][t][2], `room` columns a pair.
void pair_columns(const half* x, size_t row, int T, int E, size_t room, half* to) {
  for (int t = 0; t < T; ++t)
    for (int e = 0; e < E; e += 2) std::memcpy(to + (size_t(e / 2) * room + t) * 2, x + t * row + e, 4);
}

// Rows x[t][e] as pairs over t: to[t / 2][e][2]; a missing last row is zero.
void pair_rows(const half* x, size_t row, int T, int E, half* to) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int t = 0; t < T; t += 2)
    for (int e = 0; e < E; e += 16) {
      const __m256i one = _mm256_loadu_si256((const __m256i*)(x + t * row + e));
      const __m256i two = t + 1 < T ? _mm256_loadu_si256((const __m256i*)(x + (t + 1) * row + e)) : _mm256_setzero_si256();
      const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(one), two, 1);
      _mm512_storeu_si512(to + (size_t(t / 2) * E + e) * 2, _mm512_permutexvar_epi16(order, both));
    }
}

struct Shape {
  int64_t B, T, H, G, E;
  float scale;
  size_t row() const { return size_t(H + 2 * G) * E; }
  int room() const { return int((T + 63) / 64 * 64); }
};

constexpr int TOGETHER = 64;  // queries that go through attention at once

// Rows that are not all there get copies with rows to spare, which are zero.
inline Pairs whole(const half* x, size_t row, int many, int full, int E, std::vector<half>& spare) {
  if (many == full) return {x, row, 2};
  std::fill(spare.begin(), spare.end(), half(0));
  for (int i = 0; i < many; ++i) std::memcpy(spare.data() + size_t(i) * E, x + i * row, E * sizeof(half));
  return {spare.data(), size_t(E), 2};
}

// Scores of one row to weights not yet divided by their sum, for keys `from` .. `from + n`; what is seen is first..last.
inline float weigh(float* scores, half* weights, int n, int from, int first, int last, float scale, float& lse) {
  const __m512 lowest = _mm512_set1_ps(-INFINITY);
  const __m512i steps = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i low = _mm512_set1_epi32(first), high = _mm512_set1_epi32(last);
  __m512 most = lowest;
  for (int j = 0; j < n; j += 16) {
    const __m512i at = _mm512_add_epi32(_mm512_set1_epi32(from + j), steps);
    const __mmask16 seen = _mm512_cmple_epi32_mask(low, at) & _mm512_cmple_epi32_mask(at, high);
    const __m512 s = _mm512_mask_mul_ps(lowest, seen, _mm512_loadu_ps(scores + j), _mm512_set1_ps(scale));
    _mm512_storeu_ps(scores + j, s);
    most = _mm512_max_ps(most, s);
  }
  const float top = _mm512_reduce_max_ps(most);
  __m512 sum = _mm512_setzero_ps();
  for (int j = 0; j < n; j += 16) {
    const __m512 w = exp16(_mm512_sub_ps(_mm512_loadu_ps(scores + j), _mm512_set1_ps(top)));
    sum = _mm512_add_ps(sum, w);
    put(weights + j, w);
  }
  const float total = _mm512_reduce_add_ps(sum);
  lse = top + std::log(total);
  return 1.0f / total;
}

}  // namespace

extern "C" {

// x' = x + add (add may be null); y = gain x' / rms(x'). `after` takes x' where there is something to add.
void rms_forward(const float* x, const half* add, const float* gain, float eps, int64_t M, int64_t D, float* after,
                 float* inverse, half* y) {
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < M; ++m) {
    const float* in = x + m * D;
    __m512 sum = _mm512_setzero_ps();
    if (add) {
      float* out = after + m * D;
      for (int64_t d = 0; d < D; d += 16) {
        const __m512 v = _mm512_add_ps(_mm512_loadu_ps(in + d), wide(add + m * D + d));
        _mm512_storeu_ps(out + d, v);
        sum = _mm512_fmadd_ps(v, v, sum);
      }
      in = out;
    } else {
      for (int64_t d = 0; d < D; d += 16) {
        const __m512 v = _mm512_loadu_ps(in + d);
        sum = _mm512_fmadd_ps(v, v, sum);
      }
    }
    const float r = 1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / float(D) + eps);
    inverse[m] = r;
    for (int64_t d = 0; d < D; d += 16)
      put(y + m * D + d, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(in + d), _mm512_set1_ps(r)), _mm512_loadu_ps(gain + d)));
  }
}

// dx += d rms_norm; `short_dx` (may be null) is dx in halves. `sums` [blocks, D] is scratch for the gain's gradient.
void rms_backward(const float* x, const float* inverse, const float* gain, const half* dy, int64_t M, int64_t D, float* dx,
                  half* short_dx, float* sums, float* dgain) {
  const int64_t blocks = (M + ROWS - 1) / ROWS;
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < blocks; ++b) {
    float* part = sums + b * D;
    std::memset(part, 0, D * sizeof(float));
    for (int64_t m = b * ROWS; m < std::min(M, (b + 1) * ROWS); ++m) {
      const __m512 r = _mm512_set1_ps(inverse[m]);
      __m512 dot = _mm512_setzero_ps();
      for (int64_t d = 0; d < D; d += 16) {
        const __m512 n = _mm512_mul_ps(_mm512_loadu_ps(x + m * D + d), r), g = wide(dy + m * D + d);
        const __m512 gn = _mm512_mul_ps(g, n);
        _mm512_storeu_ps(part + d, _mm512_add_ps(_mm512_loadu_ps(part + d), gn));
        dot = _mm512_fmadd_ps(gn, _mm512_loadu_ps(gain + d), dot);
      }
      const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(dot) / float(D));
      for (int64_t d = 0; d < D; d += 16) {
        const __m512 n = _mm512_mul_ps(_mm512_loadu_ps(x + m * D + d), r);
        const __m512 g = _mm512_mul_ps(wide(dy + m * D + d), _mm512_loadu_ps(gain + d));
        float* to = dx + m * D + d;
        const __m512 sum = _mm512_fmadd_ps(_mm512_fnmadd_ps(n, mean, g), r, _mm512_loadu_ps(to));
        _mm512_storeu_ps(to, sum);
        if (short_dx) put(short_dx + m * D + d, sum);
      }
    }
  }
  for (int64_t d = 0; d < D; ++d) {
    float sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += sums[b * D + d];
    dgain[d] = sum;
  }
}

void add_halves(const float* x, const half* add, int64_t count, float* y) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < count / 16; ++i)
    _mm512_storeu_ps(y + 16 * i, _mm512_add_ps(_mm512_loadu_ps(x + 16 * i), wide(add + 16 * i)));
}

// gate and up stand beside each other in a row: [M, 2 F] -> silu(gate) up, [M, F].
void swiglu_forward(const half* both, int64_t M, int64_t F, half* y) {
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < M; ++m)
    for (int64_t f = 0; f < F; f += 16) {
      const __m512 g = wide(both + m * 2 * F + f), u = wide(both + m * 2 * F + F + f);
      put(y + m * F + f, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid16(g)), u));
    }
}

// The same forward once more (`y`), and the gradients of gate and up.
void swiglu_backward(const half* both, const half* dy, int64_t M, int64_t F, half* y, half* dboth) {
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < M; ++m)
    for (int64_t f = 0; f < F; f += 16) {
      const half* at = both + m * 2 * F + f;
      half* to = dboth + m * 2 * F + f;
      const __m512 g = wide(at), u = wide(at + F), d = wide(dy + m * F + f), s = sigmoid16(g);
      const __m512 silu = _mm512_mul_ps(g, s);
      put(y + m * F + f, _mm512_mul_ps(silu, u));
      put(to + F, _mm512_mul_ps(d, silu));
      // silu' = s + silu (1 - s)
      const __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(_mm512_set1_ps(1.0f), s), s);
      put(to, _mm512_mul_ps(_mm512_mul_ps(d, u), slope));
    }
}

// Turn the first `heads` heads of each row in place: coordinate p with p + P. `way` -1 turns back.
void turn(half* x, const float* cosine, const float* sine, int64_t M, int64_t row, int64_t heads, int64_t E, int64_t P,
          float way) {
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < M; ++m)
    for (int64_t h = 0; h < heads; ++h) {
      half *one = x + m * row + h * E, *two = one + P;
      for (int64_t p = 0; p < P; p += 16) {
        const __mmask16 some = P - p >= 16 ? 0xffff : __mmask16((1u << (P - p)) - 1);
        const __m512 c = _mm512_maskz_loadu_ps(some, cosine + m * P + p);
        const __m512 s = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, sine + m * P + p), _mm512_set1_ps(way));
        const __m512 a = wide(one + p, some), b = wide(two + p, some);
        _mm256_mask_storeu_epi16(one + p, some, narrow(_mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s))));
        _mm256_mask_storeu_epi16(two + p, some, narrow(_mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s))));
      }
    }
}

// Query t sees keys first[t] .. t of its row, first never falling. qkv [B, T, (H + 2 G) E], keys and queries turned;
// out [B, T, H E], lse [B, H, T].
void attention_forward(const half* qkv, const int32_t* first, int64_t B, int64_t T, int64_t H, int64_t G, int64_t E,
                       float scale, half* out, float* lse) {
  const Shape s{B, T, H, G, E, scale};
  const size_t row = s.row();
  const int room = s.room();
#pragma omp parallel
  {
    std::vector<half> keys(size_t(room) * E), values(size_t(room) * E), weights(size_t(TOGETHER) * room),
        queries(size_t(TOGETHER) * E);
    std::vector<float> scores(size_t(TOGETHER) * room), mixed(size_t(TOGETHER) * E);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < B * H; ++task) {
      const int64_t b = task / H, h = task % H, g = h / (H / G);
      const half* base = qkv + size_t(b) * T * row;
      pair_columns(base + (H + g) * E, row, T, E, room, keys.data());
      pair_rows(base + (H + G + g) * E, row, T, E, values.data());
      const int32_t* begin = first + b * T;
      for (int t0 = 0; t0 < T; t0 += TOGETHER) {
        const int many = int(std::min<int64_t>(TOGETHER, T - t0)), full = (many + 3) / 4 * 4;
        const Pairs q = whole(base + t0 * row + h * E, row, many, full, int(E), queries);
        const int from = begin[t0] / 16 * 16, n = ((t0 + many - from) + 15) / 16 * 16;
        product(q, keys.data() + 2 * size_t(from), 2 * size_t(room), full, n, int(E / 2), scores.data(), n, false);
        float inverse[TOGETHER];
        for (int i = 0; i < many; ++i)
          inverse[i] = weigh(scores.data() + size_t(i) * n, weights.data() + size_t(i) * n, n, from, begin[t0 + i], t0 + i,
                             scale, lse[(b * H + h) * T + t0 + i]);
        for (int i = many; i < full; ++i) std::memset(weights.data() + size_t(i) * n, 0, n * sizeof(half));
        product({weights.data(), size_t(n), 2}, values.data() + size_t(from) * E, 2 * size_t(E), full, int(E), n / 2, mixed.data(), E,
                false);
        for (int i = 0; i < many; ++i)
          for (int e = 0; e < E; e += 16)
            put(out + ((size_t(b) * T + t0 + i) * H + h) * E + e,
                _mm512_mul_ps(_mm512_loadu_ps(mixed.data() + size_t(i) * E + e), _mm512_set1_ps(inverse[i])));
      }
    }
  }
}

// dqkv of the same: weights are made anew from the log of their sums.
void attention_backward(const half* qkv, const int32_t* first, const half* out, const float* lse, const half* dout, int64_t B,
                        int64_t T, int64_t H, int64_t G, int64_t E, float scale, half* dqkv) {
  const Shape s{B, T, H, G, E, scale};
  const size_t row = s.row(), out_row = size_t(H) * E;
  const int room = s.room();
  const __m512i steps = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma omp parallel
  {
    const size_t all = size_t(room) * E, some = size_t(TOGETHER) * room, block = size_t(TOGETHER) * E;
    std::vector<half> k_columns(all), v_columns(all), k_rows(all), q_rows(block), d_rows(block), weights(some), slopes(some),
        by_weight(some), by_slope(some), spare(block), spare2(block);
    std::vector<float> scores(some), changes(some), dq(block), dk(all), dv(all);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < B * G; ++task) {
      const int64_t b = task / G, g = task % G;
      const half* base = qkv + size_t(b) * T * row;
      half* to = dqkv + size_t(b) * T * row;
      const int32_t* begin = first + b * T;
      pair_columns(base + (H + g) * E, row, T, E, room, k_columns.data());
      pair_columns(base + (H + G + g) * E, row, T, E, room, v_columns.data());
      pair_rows(base + (H + g) * E, row, T, E, k_rows.data());
      std::fill(dk.begin(), dk.end(), 0.0f);
      std::fill(dv.begin(), dv.end(), 0.0f);
      for (int64_t h = g * (H / G); h < (g + 1) * (H / G); ++h)
        for (int t0 = 0; t0 < T; t0 += TOGETHER) {
          const int many = int(std::min<int64_t>(TOGETHER, T - t0)), full = (many + 3) / 4 * 4;
          const half *q = base + t0 * row + h * E, *d = dout + (size_t(b) * T + t0) * out_row + h * E;
          const half* o = out + (size_t(b) * T + t0) * out_row + h * E;
          const int from = begin[t0] / 16 * 16, n = ((t0 + many - from) + 15) / 16 * 16;
          product(whole(q, row, many, full, int(E), spare), k_columns.data() + 2 * size_t(from), 2 * size_t(room), full, n,
                  int(E / 2), scores.data(), n, false);
          product(whole(d, out_row, many, full, int(E), spare2), v_columns.data() + 2 * size_t(from), 2 * size_t(room), full,
                  n, int(E / 2), changes.data(), n, false);
          for (int i = 0; i < many; ++i) {
            __m512 sum = _mm512_setzero_ps();
            for (int e = 0; e < E; e += 16) sum = _mm512_fmadd_ps(wide(d + i * out_row + e), wide(o + i * out_row + e), sum);
            const __m512 delta = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
            const __m512 level = _mm512_set1_ps(lse[(b * H + h) * T + t0 + i]), times = _mm512_set1_ps(scale);
            const __m512i low = _mm512_set1_epi32(begin[t0 + i]), high = _mm512_set1_epi32(t0 + i);
            for (int j = 0; j < n; j += 16) {
              const size_t where = size_t(i) * n + j;
              const __m512i at = _mm512_add_epi32(_mm512_set1_epi32(from + j), steps);
              const __mmask16 seen = _mm512_cmple_epi32_mask(low, at) & _mm512_cmple_epi32_mask(at, high);
              const __m512 score = _mm512_fmsub_ps(_mm512_loadu_ps(scores.data() + where), times, level);
              const __m512 p = _mm512_maskz_mov_ps(seen, exp16(score));
              const __m512 c = _mm512_sub_ps(_mm512_loadu_ps(changes.data() + where), delta);
              put(weights.data() + where, p);
              put(slopes.data() + where, _mm512_maskz_mul_ps(seen, _mm512_mul_ps(p, c), times));
            }
          }
          for (int i = many; i < full; ++i) std::memset(slopes.data() + size_t(i) * n, 0, n * sizeof(half));
          product({slopes.data(), size_t(n), 2}, k_rows.data() + size_t(from) * E, 2 * size_t(E), full, int(E), n / 2, dq.data(),
                  E, false);
          for (int i = 0; i < many; ++i)
            for (int e = 0; e < E; e += 16) put(to + (t0 + i) * row + h * E + e, _mm512_loadu_ps(dq.data() + size_t(i) * E + e));
          pair_rows(q, row, many, int(E), q_rows.data());
          pair_rows(d, out_row, many, int(E), d_rows.data());
          pair_rows(weights.data(), n, many, n, by_weight.data());
          pair_rows(slopes.data(), n, many, n, by_slope.data());
          const int pairs = (many + 1) / 2;
          product({by_weight.data(), 2, 2 * size_t(n)}, d_rows.data(), 2 * size_t(E), n, int(E), pairs,
                  dv.data() + size_t(from) * E, E, true);
          product({by_slope.data(), 2, 2 * size_t(n)}, q_rows.data(), 2 * size_t(E), n, int(E), pairs,
                  dk.data() + size_t(from) * E, E, true);
        }
      for (int t = 0; t < T; ++t)
        for (int e = 0; e < E; e += 16) {
          put(to + t * row + (H + g) * E + e, _mm512_loadu_ps(dk.data() + size_t(t) * E + e));
          put(to + t * row + (H + G + g) * E + e, _mm512_loadu_ps(dv.data() + size_t(t) * E + e));
        }
    }
  }
}

// Cross entropy of each row, and in the place of the logits its gradient, softmax - one_hot. `hit`: the target is likeliest.
void cross_entropy(half* logits, const int64_t* targets, int64_t M, int64_t V, float* loss, int32_t* hit) {
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < M; ++m) {
    half* x = logits + m * V;
    const float target = widened(x[targets[m]]);
    __m512 most = _mm512_set1_ps(-INFINITY);
    int64_t v = 0;
    for (; v + 16 <= V; v += 16) most = _mm512_max_ps(most, wide(x + v));
    const __mmask16 rest = __mmask16((1u << (V - v)) - 1);
    if (rest) most = _mm512_mask_max_ps(most, rest, most, wide(x + v, rest));
    const float top = _mm512_reduce_max_ps(most);
    __m512 sum = _mm512_setzero_ps();
    for (v = 0; v + 16 <= V; v += 16) sum = _mm512_add_ps(sum, exp16(_mm512_sub_ps(wide(x + v), _mm512_set1_ps(top))));
    if (rest) sum = _mm512_mask_add_ps(sum, rest, sum, exp16(_mm512_sub_ps(wide(x + v, rest), _mm512_set1_ps(top))));
    const float lse = top + std::log(_mm512_reduce_add_ps(sum));
    loss[m] = lse - target;
    int64_t likeliest = 0;  // the first of the largest, as argmax
    const __m512 peak = _mm512_set1_ps(top);
    for (v = 0; v < V; v += 16) {
      const __mmask16 some = V - v >= 16 ? 0xffff : rest;
      if (const __mmask16 found = _mm512_mask_cmp_ps_mask(some, wide(x + v, some), peak, _CMP_EQ_OQ)) {
        likeliest = v + __builtin_ctz(found);
        break;
      }
    }
    hit[m] = likeliest == targets[m];
    const __m512 level = _mm512_set1_ps(lse);
    for (v = 0; v + 16 <= V; v += 16) put(x + v, exp16(_mm512_sub_ps(wide(x + v), level)));
    if (rest) _mm256_mask_storeu_epi16(x + v, rest, narrow(exp16(_mm512_sub_ps(wide(x + v, rest), level))));
    x[targets[m]] = narrowed(std::exp(target - lse) - 1.0f);
  }
}

// AdamW of weights whose upper half is a bfloat16 and whose lower half is the int16 beside it. `rate` is the learning rate
// without the first moment's bias, `root` 1 / sqrt(1 - beta2^t), `keep` what weight decay leaves.
void adamw(half* high, int16_t* low, const half* gradient, float* first, float* second, int64_t count, float rate,
           float keep, float beta1, float beta2, float root, float eps) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < (count + 15) / 16; ++i) {
    const int64_t at = 16 * i;
    const __mmask16 some = count - at >= 16 ? 0xffff : __mmask16((1u << (count - at)) - 1);
    const __m512 g = wide(gradient + at, some);
    const __m512i lower = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(some, low + at));
    const __m512i upper = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, high + at)), 16);
    __m512 w = _mm512_castsi512_ps(_mm512_add_epi32(upper, lower));
    __m512 m = _mm512_maskz_loadu_ps(some, first + at), v = _mm512_maskz_loadu_ps(some, second + at);
    m = _mm512_fmadd_ps(_mm512_sub_ps(g, m), _mm512_set1_ps(1.0f - beta1), m);
    v = _mm512_fmadd_ps(_mm512_mul_ps(g, g), _mm512_set1_ps(1.0f - beta2), _mm512_mul_ps(v, _mm512_set1_ps(beta2)));
    const __m512 under = _mm512_fmadd_ps(_mm512_sqrt_ps(v), _mm512_set1_ps(root), _mm512_set1_ps(eps));
    w = _mm512_mul_ps(w, _mm512_set1_ps(keep));
    w = _mm512_fnmadd_ps(_mm512_div_ps(m, under), _mm512_set1_ps(rate), w);
    _mm512_mask_storeu_ps(first + at, some, m);
    _mm512_mask_storeu_ps(second + at, some, v);
    const __m512i bits = _mm512_castps_si512(w);
    const __m256i down = _mm512_cvtepi32_epi16(bits);
    _mm256_mask_storeu_epi16(low + at, some, down);
    const __m512i up = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_cvtepi16_epi32(down)), 16);
    _mm256_mask_storeu_epi16(high + at, some, _mm512_cvtepi32_epi16(up));
  }
}

}  // extern "C"

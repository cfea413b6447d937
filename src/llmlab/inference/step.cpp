// One step of a decoder for M tokens of any sequences: all layers, then logits for the rows that ask for them.
//
// Every output is computed by one thread in one order of operations that depends on nothing but its own inputs: not on
// the number of rows, not on the number of threads, not on which tokens came in one call. So a token's bytes are the
// same alone or among others, read at once or in pieces. Prompts and answers take the same path.
//
// M rows, D width, N outputs, K inputs, H heads, G key/value heads, E head width. Weights come in tiles of 16 outputs;
// inputs in groups of 32, quantised row by row to int8 where weights are integers, rounded to bf16 where they are bf16.
// Keys and values lie in pages of 16 places: keys [G][E/2][16][2], values [G][8][E][2], both bf16, as vdpbf16ps eats them.

#include <immintrin.h>
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int TILE = 16, GROUP = 32, PAGE = 16;

inline void pause_or_yield(int& spins) {
  if (++spins < 4000) _mm_pause();
  else std::this_thread::yield();
}

// Threads that live as long as the model. They spin shortly, then sleep.
class Team {
 public:
  explicit Team(int threads) : size_(threads) {
    for (int t = 1; t < threads; ++t) others_.emplace_back([this, t] { serve(t); });
  }
  ~Team() {
    stop_ = true;
    call_.fetch_add(1);
    call_.notify_all();
    for (auto& t : others_) t.join();
  }
  template <class Work>
  void run(Work&& work) {
    work_ = [](void* w, int t) { (*static_cast<std::remove_reference_t<Work>*>(w))(t); };
    argument_ = &work;
    done_.store(0);
    call_.fetch_add(1, std::memory_order_release);
    call_.notify_all();
    work_(argument_, 0);
    for (int spins = 0; done_.load(std::memory_order_acquire) != size_ - 1;) pause_or_yield(spins);
  }
  void barrier() {
    const int phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
    } else {
      for (int spins = 0; phase_.load(std::memory_order_acquire) == phase;) pause_or_yield(spins);
    }
  }
  int size() const { return size_; }

 private:
  void serve(int t) {
    for (unsigned seen = 0;;) {
      for (int spins = 0; call_.load(std::memory_order_acquire) == seen && spins < 20000; ++spins) _mm_pause();
      call_.wait(seen, std::memory_order_acquire);
      ++seen;
      if (stop_) return;
      work_(argument_, t);
      done_.fetch_add(1, std::memory_order_release);
    }
  }
  int size_;
  std::vector<std::thread> others_;
  std::atomic<unsigned> call_{0};
  std::atomic<int> done_{0}, arrived_{0}, phase_{0};
  std::atomic<bool> stop_{false};
  void (*work_)(void*, int) = nullptr;
  void* argument_ = nullptr;
};

// ------------------------------------------------------------ inputs of a product

// M rows of K inputs: int8 with a scale and a sum a group, or bf16.
struct Inputs {
  std::vector<int8_t> codes;
  std::vector<float> scales, sums;
  std::vector<uint16_t> halves;
};

inline __m512i rounded(__m512 a, __m512 b) {  // 32 floats as bf16, in order
  return (__m512i)_mm512_cvtne2ps_pbh(b, a);
}

void take_group(const float* x, Inputs& to, size_t at, bool integers) {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
  if (!integers) {
    _mm512_storeu_si512(to.halves.data() + at * GROUP, rounded(a, b));
    return;
  }
  const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
  // max drops what is no number, and a group of such must not pass for one of zeros.
  const bool sound = largest <= 3.4e38f && !_mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q);
  const float scale = sound ? largest / 127.0f : NAN;
  const __m512 inverse = _mm512_set1_ps(largest > 0 && sound ? 127.0f / largest : 0.0f);
  const __m512i i = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), j = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
  _mm_storeu_si128((__m128i*)(to.codes.data() + at * GROUP), _mm512_cvtsepi32_epi8(i));
  _mm_storeu_si128((__m128i*)(to.codes.data() + at * GROUP + 16), _mm512_cvtsepi32_epi8(j));
  to.scales[at] = scale;
  to.sums[at] = scale * float(_mm512_reduce_add_epi32(_mm512_add_epi32(i, j)));
}

void take_row(const float* x, int K, Inputs& to, int row, bool integers) {
  for (int g = 0; g < K / GROUP; ++g) take_group(x + g * GROUP, to, size_t(row) * (K / GROUP) + g, integers);
}

// ------------------------------------------------------------ products

enum Kind { INT4 = 0, INT8 = 1, BF16 = 2 };

inline size_t group_bytes(int kind) { return kind == INT4 ? 320 : kind == INT8 ? 576 : 1024; }

struct Matrix {
  const uint8_t* data;
  const float* bias;  // may be null
  int32_t outputs, inputs, kind;
};

inline void store(const Matrix& w, int tile, __m512 sum, float* to, bool add) {
  if (w.bias) sum = _mm512_add_ps(sum, _mm512_loadu_ps(w.bias + tile * TILE));
  _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), sum) : sum);
}

template <int ROWS>
void integer_tile(const Matrix& w, int tile, const Inputs& in, int row, float* y, int stride, bool add) {
  const int groups = w.inputs / GROUP;
  const size_t bytes = group_bytes(w.kind);
  __m512 sum[ROWS];
  for (auto& s : sum) s = _mm512_setzero_ps();
  const __m512i low = _mm512_set1_epi8(15);
  for (int g = 0; g < groups; ++g) {
    const uint8_t* at = w.data + (size_t(tile) * groups + g) * bytes;
    if (ROWS != 4)  // the weights come one after another; measured: of no help to four rows
      for (size_t line = 0; line < bytes; line += 64) _mm_prefetch((const char*)at + 2048 + line, _MM_HINT_T0);
    __m512i u[8];
    if (w.kind == INT4) {
      for (int j = 0; j < 4; ++j) {
        const __m512i both = _mm512_loadu_si512(at + 64 * j);
        u[j] = _mm512_and_si512(both, low);
        u[j + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      }
    } else {
      for (int j = 0; j < 8; ++j) u[j] = _mm512_loadu_si512(at + 64 * j);
    }
    const __m512 d = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(at + bytes - 64)));
    const __m512 m = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(at + bytes - 32)));
    for (int r = 0; r < ROWS; ++r) {
      const size_t where = size_t(row + r) * groups + g;
      const int8_t* codes = in.codes.data() + where * GROUP;
      __m512i i = _mm512_setzero_si512(), k = _mm512_setzero_si512();
      for (int j = 0; j < 4; ++j) {
        int32_t one, two;
        std::memcpy(&one, codes + 4 * j, 4);
        std::memcpy(&two, codes + 4 * (j + 4), 4);
        i = _mm512_dpbusd_epi32(i, u[j], _mm512_set1_epi32(one));
        k = _mm512_dpbusd_epi32(k, u[j + 4], _mm512_set1_epi32(two));
      }
      const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(i, k)), d);
      sum[r] = _mm512_fmadd_ps(product, _mm512_set1_ps(in.scales[where]), sum[r]);
      sum[r] = _mm512_fmadd_ps(m, _mm512_set1_ps(in.sums[where]), sum[r]);
    }
  }
  for (int r = 0; r < ROWS; ++r) store(w, tile, sum[r], y + size_t(row + r) * stride + tile * TILE, add);
}

template <int ROWS>
void half_tile(const Matrix& w, int tile, const Inputs& in, int row, float* y, int stride, bool add) {
  const int groups = w.inputs / GROUP;
  __m512 even[ROWS], odd[ROWS];
  for (int r = 0; r < ROWS; ++r) even[r] = odd[r] = _mm512_setzero_ps();
  for (int g = 0; g < groups; ++g)
    for (int j = 0; j < 16; j += 2) {
      const uint8_t* at = w.data + (size_t(tile) * groups + g) * group_bytes(BF16) + 64 * j;
      const __m512bh a = (__m512bh)_mm512_loadu_si512(at), b = (__m512bh)_mm512_loadu_si512(at + 64);
      for (int r = 0; r < ROWS; ++r) {
        const uint16_t* x = in.halves.data() + size_t(row + r) * w.inputs + g * GROUP + 2 * j;
        int32_t one, two;
        std::memcpy(&one, x, 4);
        std::memcpy(&two, x + 2, 4);
        even[r] = _mm512_dpbf16_ps(even[r], a, (__m512bh)_mm512_set1_epi32(one));
        odd[r] = _mm512_dpbf16_ps(odd[r], b, (__m512bh)_mm512_set1_epi32(two));
      }
    }
  for (int r = 0; r < ROWS; ++r)
    store(w, tile, _mm512_add_ps(even[r], odd[r]), y + size_t(row + r) * stride + tile * TILE, add);
}

template <int ROWS>
inline void one_tile(const Matrix& w, int tile, const Inputs& in, int row, float* y, int stride, bool add) {
  if (w.kind == BF16) half_tile<ROWS>(w, tile, in, row, y, stride, add);
  else integer_tile<ROWS>(w, tile, in, row, y, stride, add);
}

// Outputs [M, N] of this thread's share of tiles; `add` adds them to what is there. Many rows go in blocks, so that a
// block's inputs and outputs stay near while the weights pass by.
void product(const Matrix& w, const Inputs& in, int M, float* y, int stride, bool add, int thread, int threads) {
  const int count = w.outputs / TILE;
  const int first = int(int64_t(count) * thread / threads), last = int(int64_t(count) * (thread + 1) / threads);
  for (int block = 0; block < M; block += 64) {
    const int end = std::min(M, block + 64);
    for (int tile = first; tile < last; ++tile) {
      int row = block;
      if (w.kind != BF16)  // whose two sums a row would not all stay in registers
        for (; row + 16 <= end; row += 16) one_tile<16>(w, tile, in, row, y, stride, add);
      for (; row + 8 <= end; row += 8) one_tile<8>(w, tile, in, row, y, stride, add);
      for (; row + 4 <= end; row += 4) one_tile<4>(w, tile, in, row, y, stride, add);
      if (end - row == 3) one_tile<3>(w, tile, in, row, y, stride, add);
      if (end - row == 2) one_tile<2>(w, tile, in, row, y, stride, add);
      if (end - row == 1) one_tile<1>(w, tile, in, row, y, stride, add);
    }
  }
}

// ------------------------------------------------------------ between the products

inline float widened(uint16_t h) {
  const uint32_t bits = uint32_t(h) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline uint16_t half_of(float f) {
  return uint16_t(_mm_extract_epi16((__m128i)_mm256_cvtneps_pbh(_mm256_set1_ps(f)), 0));
}

// exp(x) for x <= 88: 2^n by the exponent's bits, the rest by a polynomial; below -87 it is 0.
inline __m512 exp16(__m512 x) {
  const __m512 tiny = _mm512_set1_ps(-87.0f);
  const __mmask16 gone = _mm512_cmp_ps_mask(x, tiny, _CMP_LT_OQ);
  x = _mm512_min_ps(_mm512_max_ps(tiny, x), _mm512_set1_ps(88.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040);
  for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_mask_mov_ps(_mm512_scalef_ps(p, n), gone, _mm512_setzero_ps());
}

void rms_norm(const float* x, const float* gain, float eps, int D, float* y) {
  __m512 sum = _mm512_setzero_ps();
  for (int d = 0; d < D; d += 16) {
    const __m512 v = _mm512_loadu_ps(x + d);
    sum = _mm512_fmadd_ps(v, v, sum);
  }
  const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / float(D) + eps));
  for (int d = 0; d < D; d += 16)
    _mm512_storeu_ps(y + d, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + d), scale), _mm512_loadu_ps(gain + d)));
}

// Rotary positions, halves layout: coordinate p turns with p + E/2.
void turn(float* x, const float* cosine, const float* sine, int E) {
  const int P = E / 2;
  for (int p = 0; p < P; ++p) {
    const float a = x[p], b = x[p + P];
    x[p] = std::fma(a, cosine[p], -(b * sine[p]));
    x[p + P] = std::fma(b, cosine[p], a * sine[p]);
  }
}

struct Attending {
  int heads, E, places;   // query heads that share these keys; keys 0 .. places - 1
  float scale;
  const int32_t* pages;
  const uint16_t *keys, *values;  // of this layer and key head, page 0
  size_t page_stride;             // in halves
};

// Up to 4 query heads of one token over the keys of one head. scores: [4][places rounded up to 32], weights the same in bf16.
template <int HEADS>
void attend(const Attending& a, const uint16_t* q, float* scores, uint16_t* weights, size_t room, float* out) {
  const int E = a.E, pages = (a.places + PAGE - 1) / PAGE;
  const __m512 lowest = _mm512_set1_ps(-INFINITY);
  __m512 most[HEADS];
  for (auto& m : most) m = lowest;
  for (int p = 0; p < pages; ++p) {
    const uint16_t* k = a.keys + size_t(a.pages[p]) * a.page_stride;
    __m512 even[HEADS], odd[HEADS];
    for (int h = 0; h < HEADS; ++h) even[h] = odd[h] = _mm512_setzero_ps();
    for (int e = 0; e < E / 2; e += 2) {
      const __m512bh one = (__m512bh)_mm512_loadu_si512(k + e * 32), two = (__m512bh)_mm512_loadu_si512(k + e * 32 + 32);
      for (int h = 0; h < HEADS; ++h) {
        int32_t x, y;
        std::memcpy(&x, q + h * E + 2 * e, 4);
        std::memcpy(&y, q + h * E + 2 * e + 2, 4);
        even[h] = _mm512_dpbf16_ps(even[h], one, (__m512bh)_mm512_set1_epi32(x));
        odd[h] = _mm512_dpbf16_ps(odd[h], two, (__m512bh)_mm512_set1_epi32(y));
      }
    }
    const int left = a.places - p * PAGE;
    const __mmask16 seen = left >= PAGE ? 0xffff : __mmask16((1u << left) - 1);
    for (int h = 0; h < HEADS; ++h) {
      const __m512 s = _mm512_mask_mul_ps(lowest, seen, _mm512_add_ps(even[h], odd[h]), _mm512_set1_ps(a.scale));
      most[h] = _mm512_max_ps(most[h], s);
      _mm512_storeu_ps(scores + h * room + p * PAGE, s);
    }
  }
  float inverse[HEADS];
  for (int h = 0; h < HEADS; ++h) {
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most[h]));
    __m512 sum = _mm512_setzero_ps();
    for (int p = 0; p < pages; ++p) {
      const __m512 w = exp16(_mm512_sub_ps(_mm512_loadu_ps(scores + h * room + p * PAGE), top));
      sum = _mm512_add_ps(sum, w);
      _mm256_storeu_si256((__m256i*)(weights + h * room + p * PAGE), (__m256i)_mm512_cvtneps_pbh(w));
    }
    inverse[h] = 1.0f / _mm512_reduce_add_ps(sum);
  }
  for (int e = 0; e < E; e += 32) {
    __m512 low[HEADS], high[HEADS];
    for (int h = 0; h < HEADS; ++h) low[h] = high[h] = _mm512_setzero_ps();
    for (int p = 0; p < pages; ++p) {
      const uint16_t* v = a.values + size_t(a.pages[p]) * a.page_stride + 2 * e;
      for (int j = 0; j < PAGE / 2; ++j) {
        const __m512bh one = (__m512bh)_mm512_loadu_si512(v + j * 2 * E);
        const __m512bh two = (__m512bh)_mm512_loadu_si512(v + j * 2 * E + 32);
        for (int h = 0; h < HEADS; ++h) {
          int32_t w;
          std::memcpy(&w, weights + h * room + p * PAGE + 2 * j, 4);
          low[h] = _mm512_dpbf16_ps(low[h], one, (__m512bh)_mm512_set1_epi32(w));
          high[h] = _mm512_dpbf16_ps(high[h], two, (__m512bh)_mm512_set1_epi32(w));
        }
      }
    }
    for (int h = 0; h < HEADS; ++h) {
      _mm512_storeu_ps(out + h * E + e, _mm512_mul_ps(low[h], _mm512_set1_ps(inverse[h])));
      _mm512_storeu_ps(out + h * E + e + 16, _mm512_mul_ps(high[h], _mm512_set1_ps(inverse[h])));
    }
  }
}

// ------------------------------------------------------------ the model

struct Layer {
  const float *attention_norm, *feedforward_norm;
  Matrix qkv, output, gate_up, down;
};

struct Model {
  int32_t layers, dim, heads, key_heads, head_dim, width, vocabulary, pages;
  float eps, scale;
  const float *cosine, *sine;  // [positions, E/2]
  const float* final_norm;
  const Layer* layer;  // the caller's, who keeps them
  Matrix embedding, head;
  uint16_t *keys, *values;  // [pages][layers][G][E/2][16][2], [pages][layers][G][8][E][2]
};

struct Engine {
  Model m;
  Team team;
  Inputs in;
  std::vector<float> x, normed, qkv, mixed, gate, scores;
  std::vector<uint16_t> weights;
  Engine(const Model& model, int threads) : m(model), team(threads) {}
};

void embed(const Matrix& w, int id, float* x) {
  const int tile = id / TILE, lane = id % TILE, groups = w.inputs / GROUP;
  for (int g = 0; g < groups; ++g) {
    const uint8_t* at = w.data + (size_t(tile) * groups + g) * group_bytes(w.kind);
    if (w.kind == BF16) {
      for (int k = 0; k < GROUP; ++k) {
        uint16_t h;
        std::memcpy(&h, at + ((k / 2) * TILE + lane) * 4 + (k % 2) * 2, 2);
        x[g * GROUP + k] = widened(h);
      }
      continue;
    }
    uint16_t d, m;
    std::memcpy(&d, at + group_bytes(w.kind) - 64 + 2 * lane, 2);
    std::memcpy(&m, at + group_bytes(w.kind) - 32 + 2 * lane, 2);
    const float scale = _cvtsh_ss(d), least = _cvtsh_ss(m);
    for (int k = 0; k < GROUP; ++k) {
      const int chunk = k / 4, byte = lane * 4 + k % 4;
      const int code = w.kind == INT8 ? at[chunk * 64 + byte]
                                      : (chunk < 4 ? at[chunk * 64 + byte] & 15 : at[(chunk - 4) * 64 + byte] >> 4);
      x[g * GROUP + k] = std::fma(scale, float(code), least);
    }
  }
}

inline void fit(Inputs& in, size_t numbers) {
  if (in.codes.size() < numbers) {
    in.codes.resize(numbers), in.halves.resize(numbers);
    in.scales.resize(numbers / GROUP), in.sums.resize(numbers / GROUP);
  }
}

template <class T>
inline void fit(std::vector<T>& v, size_t size) {
  if (v.size() < size) v.resize(size);
}

}  // namespace

extern "C" {

void* llmlab_open(const Model* model, int threads) { return new Engine(*model, threads); }
void llmlab_close(void* engine) { delete static_cast<Engine*>(engine); }

// Row i is token ids[i] at places[i] of the sequence whose pages are tables[i * table_width ..]; its keys and values are
// written there. A row sees what its sequence holds at smaller places, rows of this call included.
// logits [asked, vocabulary] are those of the rows in `ask`.
void llmlab_step(void* engine, int M, const int32_t* ids, const int32_t* places, const int32_t* tables, int table_width,
                 int asked, const int32_t* ask, float* logits) {
  Engine& e = *static_cast<Engine*>(engine);
  const Model& m = e.m;
  const int D = m.dim, H = m.heads, G = m.key_heads, E = m.head_dim, W = m.width, share = H / G, T = e.team.size();
  const int Q = (H + 2 * G) * E;
  int furthest = 0;
  for (int i = 0; i < M; ++i) furthest = std::max(furthest, places[i] + 1);
  const size_t room = size_t(furthest + 31) / 32 * 32;
  fit(e.x, size_t(M) * D), fit(e.normed, size_t(M) * D), fit(e.qkv, size_t(M) * Q);
  fit(e.mixed, size_t(M) * H * E), fit(e.gate, size_t(M) * 2 * W), fit(e.scores, room * 4 * T), fit(e.weights, room * 4 * T);
  fit(e.in, size_t(M) * std::max({D, H * E, W}));
  const size_t share_of_layer = size_t(G) * E * PAGE, page = share_of_layer * m.layers;
  e.team.run([&](int thread) {
    Team& team = e.team;
    std::vector<uint16_t> halves(4 * E);
    for (int i = thread; i < M; i += T) embed(m.embedding, ids[i], e.x.data() + size_t(i) * D);
    for (int n = 0; n < m.layers; ++n) {
      const Layer& l = m.layer[n];
      uint16_t *keys = m.keys + n * share_of_layer, *values = m.values + n * share_of_layer;
      for (int i = thread; i < M; i += T) {
        float* normed = e.normed.data() + size_t(i) * D;
        rms_norm(e.x.data() + size_t(i) * D, l.attention_norm, m.eps, D, normed);
        take_row(normed, D, e.in, i, l.qkv.kind != BF16);
      }
      team.barrier();
      product(l.qkv, e.in, M, e.qkv.data(), Q, false, thread, T);
      team.barrier();
      for (int j = thread; j < M * G; j += T) {
        const int i = j / G, g = j % G, place = places[i], slot = place % PAGE;
        const size_t at = size_t(tables[size_t(i) * table_width + place / PAGE]) * page + size_t(g) * E * PAGE;
        float *q = e.qkv.data() + size_t(i) * Q, *k = q + (H + g) * E, *v = k + G * E;
        const float *c = m.cosine + size_t(place) * E / 2, *s = m.sine + size_t(place) * E / 2;
        for (int h = 0; h < share; ++h) turn(q + (g * share + h) * E, c, s, E);
        turn(k, c, s, E);
        for (int d = 0; d < E; ++d) {
          keys[at + size_t(d / 2) * 32 + slot * 2 + d % 2] = half_of(k[d]);
          values[at + size_t(slot / 2) * 2 * E + d * 2 + slot % 2] = half_of(v[d]);
        }
      }
      team.barrier();
      for (int j = thread; j < M * G; j += T) {
        const int i = j / G, g = j % G;
        Attending a{share, E, places[i] + 1, m.scale, tables + size_t(i) * table_width, keys + size_t(g) * E * PAGE,
                    values + size_t(g) * E * PAGE, page};
        float* scores = e.scores.data() + size_t(thread) * 4 * room;
        uint16_t* weights = e.weights.data() + size_t(thread) * 4 * room;
        for (int h = 0; h < share;) {
          const int now = std::min(4, share - h);
          const float* q = e.qkv.data() + size_t(i) * Q + (g * share + h) * E;
          float* out = e.mixed.data() + size_t(i) * H * E + (g * share + h) * E;
          for (int d = 0; d < now * E; d += 16)
            _mm256_storeu_si256((__m256i*)(halves.data() + d), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(q + d)));
          if (now == 4) attend<4>(a, halves.data(), scores, weights, room, out);
          else if (now == 3) attend<3>(a, halves.data(), scores, weights, room, out);
          else if (now == 2) attend<2>(a, halves.data(), scores, weights, room, out);
          else attend<1>(a, halves.data(), scores, weights, room, out);
          h += now;
        }
      }
      team.barrier();
      for (int i = thread; i < M; i += T) take_row(e.mixed.data() + size_t(i) * H * E, H * E, e.in, i, l.output.kind != BF16);
      team.barrier();
      product(l.output, e.in, M, e.x.data(), D, true, thread, T);
      team.barrier();
      for (int i = thread; i < M; i += T) {
        float* normed = e.normed.data() + size_t(i) * D;
        rms_norm(e.x.data() + size_t(i) * D, l.feedforward_norm, m.eps, D, normed);
        take_row(normed, D, e.in, i, l.gate_up.kind != BF16);
      }
      team.barrier();
      product(l.gate_up, e.in, M, e.gate.data(), 2 * W, false, thread, T);
      team.barrier();
      const int groups = W / GROUP;
      for (int j = thread; j < M * groups; j += T) {
        const int i = j / groups, g = j % groups;
        float* gate = e.gate.data() + size_t(i) * 2 * W + g * GROUP;
        const float* up = gate + W;
        for (int d = 0; d < GROUP; d += 16) {
          const __m512 z = _mm512_loadu_ps(gate + d);
          const __m512 bottom = _mm512_add_ps(_mm512_set1_ps(1.0f), exp16(_mm512_sub_ps(_mm512_setzero_ps(), z)));
          _mm512_storeu_ps(gate + d, _mm512_mul_ps(_mm512_div_ps(z, bottom), _mm512_loadu_ps(up + d)));
        }
        take_group(gate, e.in, size_t(i) * groups + g, l.down.kind != BF16);
      }
      team.barrier();
      product(l.down, e.in, M, e.x.data(), D, true, thread, T);
      team.barrier();
    }
    for (int i = thread; i < asked; i += T) {
      float* normed = e.normed.data() + size_t(i) * D;
      rms_norm(e.x.data() + size_t(ask[i]) * D, m.final_norm, m.eps, D, normed);
      take_row(normed, D, e.in, i, m.head.kind != BF16);
    }
    team.barrier();
    product(m.head, e.in, asked, logits, m.vocabulary, false, thread, T);
  });
}
}

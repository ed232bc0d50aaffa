// A layer of spiking neurons, forward and backward, each in one pass over memory. equation.py has the same
// equation, readable; cpp_build.py compiles this file once for each combination of the macros below, and cpp.py passes tensors.
//
//   PASS           1 forward, 2 backward, 3 the small ones
//   STEPS          time steps; CONSTANT: one current for all of them
//   BFLOAT16       dtype of currents, spikes and their gradients (else float32); potentials are always float32
//   HARD, DETACH   reset; detached or not
//   OWN            decay: 0 one for all, 1 of every sample's neuron and step, 2 of every neuron and step, the same for all samples
//   MOVING         thresholds of every neuron's own that follow the potential, theta += rate (h - goal)
//   NOISE          0 none, 1 at the comparison, 2 on the membrane, 3 at the comparison within noise_band of the threshold
//   BAND           0 none, 1 penalty on both sides of the threshold, 2 below it only
//   NORM           0 none, 1 fixed scale and shift a channel, 2 batch statistics (their gradient takes a second pass, `spread`)
//   INNER          channels lie innermost in memory (channels-last), else a channel is a run of pixels
//   POOL           averages 2x2 pixels of the spikes (needs INNER); full-size spikes are never written
//   WANT_U         forward writes the potentials
//   G_U, G_BAND, SHARP, SCALARS, AFFINE, G_OWN   backward: gradients of the potentials and of the penalty come in, sharpness per neuron
//                  comes in, gradients of decay and threshold, of scale and shift, of own decays and rates (a sample apart), go out
//   DERIVATIVE     of the step: an expression of vectors u (distance to the threshold) and a (sharpness)
//
// Memory is seen as rows of LENGTH numbers: SAMPLES x ROWS x LENGTH for each time step. With INNER a row is a pixel and its length the
// number of channels; without, a row is a channel. Sums are kept per thread and added in the order of the threads.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#ifdef __AVX__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));
typedef uint16_t H __attribute__((vector_size(2 * LANES)));

struct Args {
    int64_t samples, rows, length, height, width, threads;  // height and width only with POOL
    float decay, threshold, start, sigma, delta, sharpness, noise_band;
    const void *current, *g_spikes;
    void *spikes, *g_current;
    const void *other;
    float *u;
    const float *g_u, *sharp, *g_band, *scale, *shift, *mean, *decays, *rate, *goal;
    float *g_decays, *g_rate;
    const int32_t *keys;  // [samples, 1 + (STEPS + 1) / 2]
    double *sums;         // forward: the hinge; backward: decay, threshold, then per channel sums of g and of g (x - mean)
};

#define EACH_STEP _Pragma("GCC unroll 8")
constexpr int GIVEN = CONSTANT ? 1 : STEPS;

// ---- vectors ---------------------------------------------------------------------------------------------------------------

static inline V all(float x) { return x - V{}; }
static inline V choose(I mask, V a, V b) { return mask ? a : b; }
static inline V abs(V x) { return (V)((I)x & 0x7fffffff); }
static inline V max0(V x) { return choose(x > 0, x, V{}); }
static inline V sign(V x) { return choose(x > 0, all(1), choose(x < 0, all(-1), V{})); }
static inline V root(V x) {
#if defined(__AVX512F__)
    return (V)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX__)
    return (V)_mm256_sqrt_ps((__m256)x);
#else
    for (int i = 0; i < LANES; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
}
static inline V exp(V x) {
    x = choose(x < -87.0f, all(-87.0f), choose(x > 88.0f, all(88.0f), x));
    V whole = (x * 1.44269504f + 12582912.0f) - 12582912.0f, f = x * 1.44269504f - whole;
    V p = 1.0f + f * (0.693147207f + f * (0.240226512f + f * (0.0555032721f + f * (0.0096180256f + f * (0.00134004322f + f * 0.00015469732f)))));
    return (V)((I)p + (__builtin_convertvector(whole, I) << 23));
}
static inline double total(V x) {
    double sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}
static inline I counting() {
    I x;
    for (int i = 0; i < LANES; i++) x[i] = i;
    return x;
}

#if BFLOAT16
typedef uint16_t Element;
static inline V widen(H x) { return (V)(__builtin_convertvector(x, U) << 16); }
static inline H narrow(V x) {
    U bits = (U)x;
    return __builtin_convertvector((U)choose((I)(x == x), (V)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16), (V)(bits >> 16 | 0x40)), H);
}
#else
typedef float Element;
static inline V widen(V x) { return x; }
static inline V narrow(V x) { return x; }
#endif

template <class T> static inline auto read(const T *from, int n) {
    typedef T X __attribute__((vector_size(sizeof(T) * LANES)));
    X x{};
    if (n == LANES) memcpy(&x, from, sizeof x);
    else memcpy(&x, from, sizeof(T) * n);
    return x;
}
template <class T, class X> static inline void write(T *to, X x, int n) {
    if (n == LANES) memcpy(to, &x, sizeof x);
    else memcpy(to, &x, sizeof(T) * n);
}

// ---- noise: gaussian.py in vectors --------------------------------------------------------------------------------------------------

static inline U mix(U x) {
    x = (x ^ (x >> 16)) * 0x21f0aaadu;
    x = (x ^ (x >> 15)) * 0xd35a2d97u;
    return x ^ (x >> 15);
}
static inline U first_word(uint32_t at, int32_t key) { return mix(((U)counting() + at) * 0x9e3779b1u + (uint32_t)key); }
static inline V turn(V f) {  // sin(2 pi f) for |f| <= 1/4
    V s = f * f;
    return f * (6.28128008f + s * (-41.09524268f + s * 73.58551461f));
}
static inline void normals(U bits, float sigma, V &even, V &odd) {
    V x = __builtin_convertvector((I)(bits & 0xffff), V) + 0.5f;
    V power = __builtin_convertvector(143 - ((I)x >> 23), V), z = (V)(((I)x & 0x7fffff) | 0x3f800000) - 1.5f;
    V log = 2 * 0.4054481f + z * (2 * 0.66608875f + z * (2 * -0.22135511f + z * (2 * 0.10774801f + z * (2 * -0.05657175f))));
    V radius = root(power * 1.38629436f - log);  // above 0 for all 16 bits
    V f = (__builtin_convertvector((I)(bits >> 16), V) - 32767.5f) * 1.52587891e-05f;
    V across = 0.25f - abs(f), along = (V)((I)(0.25f - abs(across)) | ((I)f & (I)all(-0.0f)));
    even = sigma * (radius * turn(across));
    odd = sigma * (radius * turn(along));
}

// ---- one neuron, step by step in time ----------------------------------------------------------------------------------------------

struct Place {
    int64_t sample, row, at;  // at: where the row's lanes begin, within one time step
    int i, n;                 // lanes i to i + n of the row
};

struct Walk {
    V x[GIVEN], h[STEPS], w[STEPS], theta[STEPS];  // current as it came in, potential before reset, what is compared, threshold
};

static inline V fires(V w) { return choose(w >= 0, all(1), V{}); }
static inline V reset(V theta, V h, V s) { return HARD ? h * (1.0f - s) : h - theta * s; }

static inline V per_neuron(const Args &a, const float *values, const Place &p, int t) { return read(values + (t * a.rows + p.row) * a.length + p.i, p.n); }
static inline V decay_of(const Args &a, const Place &p, int64_t step, int t) {
    if (OWN == 1) return read(a.decays + t * step + p.at, p.n);
    return OWN ? per_neuron(a, a.decays, p, t) : all(a.decay);
}

static inline V per_channel(const float *values, const Place &p) {
    if (INNER) return read(values + p.i, p.n);
    return all(values[p.row]);
}

__attribute__((always_inline)) static inline void walk(const Args &a, const Place &p, int64_t step, Walk &k) {
    V noise[STEPS + 1];
    if (NOISE) {
        const int32_t *keys = a.keys + p.sample * (1 + (STEPS + 1) / 2);
        U shared = first_word((uint32_t)(p.row * a.length + p.i), keys[0]);
        EACH_STEP for (int t = 0; t < STEPS; t += 2) normals(mix(shared + (uint32_t)keys[1 + t / 2]), a.sigma, noise[t], noise[t + 1]);
    }
    V input[GIVEN], v = all(a.start), theta = all(a.threshold), rate = MOVING ? per_neuron(a, a.rate, p, 0) : V{};
    EACH_STEP for (int t = 0; t < GIVEN; t++) {
        k.x[t] = widen(read((const Element *)a.current + t * step + p.at, p.n));
        input[t] = NORM ? k.x[t] * per_channel(a.scale, p) + per_channel(a.shift, p) : k.x[t];
    }
    EACH_STEP for (int t = 0; t < STEPS; t++) {
        V h = decay_of(a, p, step, t) * v + input[CONSTANT ? 0 : t];
        if (NOISE == 2) h += noise[t];
        if (MOVING) theta += rate * (h - per_neuron(a, a.goal, p, t));
        V u = h - theta;
        k.theta[t] = theta, k.h[t] = h, k.w[t] = NOISE == 1 ? u + noise[t] : NOISE == 3 ? u + choose(abs(u) < a.noise_band, noise[t], V{}) : u;
        v = reset(theta, h, fires(k.w[t]));
    }
}

// ---- the loops over memory -----------------------------------------------------------------------------------------------------------

// A block is one row, or with POOL up to four rows that are averaged; `whole` is false for a block cut by an odd border.
template <class F> __attribute__((always_inline)) static inline void each_block(const Args &a, int64_t from, int64_t to, F body) {
    int64_t down = (a.height + 1) / 2, across = (a.width + 1) / 2;
    for (int64_t b = from; b < to; b++) {
        int64_t rows[4], count = 0, out = b, sample;
        bool whole = true;
        if (POOL) {
            sample = b / (down * across);
            int64_t y = b / across % down, x = b % across;
            for (int k = 0; k < 4; k++) {
                int64_t yy = 2 * y + k / 2, xx = 2 * x + k % 2;
                if (yy < a.height && xx < a.width) rows[count++] = yy * a.width + xx;
            }
            whole = count == 4;
            out = (sample * (a.height / 2) + y) * (a.width / 2) + x;
        } else {
            sample = b / a.rows;
            rows[count++] = b % a.rows;
        }
        for (int64_t i = 0; i < a.length; i += LANES)
            body(sample, rows, (int)count, out * a.length + i, whole, (int)i, (int)(a.length - i < LANES ? a.length - i : LANES));
    }
}

static inline int64_t blocks(const Args &a) {
    return a.samples * (POOL ? ((a.height + 1) / 2) * ((a.width + 1) / 2) : a.rows);
}

// Runs body(from, to, sums of this thread) over equal parts and adds up the sums in the order of the threads.
template <class F> static void parallel(const Args &a, int64_t units, int64_t sums, F body) {
    int threads = (int)a.threads;
    std::unique_ptr<double[]> held(new double[threads * sums + 1]());
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int k = 0; k < threads; k++) body(units * k / threads, units * (k + 1) / threads, held.get() + k * sums);
    for (int k = 0; k < threads; k++)
        for (int64_t i = 0; i < sums; i++) a.sums[i] += held[k * sums + i];
}

static inline int64_t channels(const Args &a) { return INNER ? a.length : a.rows; }

// Sums over rows in float32, emptied into float64 before they grow long.
struct Channels {
    const Args &a;
    double *sums;
    std::unique_ptr<float[]> held;
    int64_t size, rows = 0;
    Channels(const Args &a, double *sums, int kinds) : a(a), sums(sums), size(INNER ? kinds * (a.length + LANES) : 0) {
        if (INNER) held.reset(new float[size]());
    }
    inline void add(const Place &p, int kind, V x) {
        if (INNER) {
            float *at = held.get() + kind * (a.length + LANES) + p.i;
            V sum;
            memcpy(&sum, at, sizeof sum), sum += x, memcpy(at, &sum, sizeof sum);
        } else {
            sums[kind * a.rows + p.row] += total(x);
        }
    }
    inline void row_done() {
        if (INNER && ++rows % 128 == 0) empty();
    }
    void empty() {
        for (int64_t k = 0; k < size / (a.length + LANES); k++)
            for (int64_t i = 0; i < a.length; i++) sums[k * a.length + i] += held[k * (a.length + LANES) + i];
        memset(held.get(), 0, size * sizeof(float));
    }
    ~Channels() {
        if (INNER) empty();
    }
};

static inline V inside_band(const Args &a, V u) {  // 1 where the penalty acts
    I in = abs(u) < a.delta;
    return choose(BAND == 2 ? in & (u < 0) : in, all(1), V{});
}
static inline V only(int n, V x) { return n == LANES ? x : choose(counting() < n, x, V{}); }

#if PASS == 1
extern "C" void forward(const Args *args) {
    const Args &a = *args;
    const int64_t step = a.samples * a.rows * a.length;
    const int64_t out_step = POOL ? a.samples * (a.height / 2) * (a.width / 2) * a.length : step;
    parallel(a, blocks(a), BAND ? 1 : 0, [&](int64_t from, int64_t to, double *sums) {
        each_block(a, from, to, [&](int64_t sample, const int64_t *rows, int count, int64_t out, bool whole, int i, int n) {
            V pooled[STEPS] = {}, hinge{};
            for (int r = 0; r < count; r++) {
                Place p{sample, rows[r], (sample * a.rows + rows[r]) * a.length + i, i, n};
                Walk k;
                walk(a, p, step, k);
                EACH_STEP for (int t = 0; t < STEPS; t++) {
                    V s = fires(k.w[t]), u = k.h[t] - k.theta[t];
                    if (POOL) pooled[t] += s;
                    else write((Element *)a.spikes + t * step + p.at, narrow(s), n);
                    if (WANT_U) write(a.u + t * step + p.at, u, n);
                    if (BAND) hinge += inside_band(a, u) * (a.delta - abs(u));
                }
            }
            if (POOL && whole)
                EACH_STEP for (int t = 0; t < STEPS; t++) write((Element *)a.spikes + t * out_step + out, narrow(0.25f * pooled[t]), n);
            if (BAND) sums[0] += total(only(n, hinge));
        });
    });
}

#elif PASS == 2
extern "C" void backward(const Args *args) {
    const Args &a = *args;
    const int64_t step = a.samples * a.rows * a.length;
    const int64_t out_step = POOL ? a.samples * (a.height / 2) * (a.width / 2) * a.length : step;
    const float band = G_BAND ? *a.g_band / ((float)STEPS * (float)step) : 0.0f;
    parallel(a, blocks(a), (SCALARS ? 2 : 0) + (AFFINE ? 2 * channels(a) : 0), [&](int64_t from, int64_t to, double *sums) {
        Channels affine(a, sums + (SCALARS ? 2 : 0), AFFINE ? 2 : 0);
        each_block(a, from, to, [&](int64_t sample, const int64_t *rows, int count, int64_t out, bool whole, int i, int n) {
            V g_pooled[STEPS] = {};
            if (POOL && whole)
                EACH_STEP for (int t = 0; t < STEPS; t++) g_pooled[t] = 0.25f * widen(read((const Element *)a.g_spikes + t * out_step + out, n));
            V g_shift{}, g_scale{};
            for (int r = 0; r < count; r++) {
                Place p{sample, rows[r], (sample * a.rows + rows[r]) * a.length + i, i, n};
                Walk k;
                walk(a, p, step, k);
                V g_v{}, g_decay{}, g_threshold{}, g_rate{}, g_sum{}, g_x[GIVEN];
                EACH_STEP for (int t = STEPS - 1; t >= 0; t--) {
                    V h = k.h[t], w = k.w[t], s = fires(w), theta = k.theta[t], raw = h - theta;
                    V g_s = POOL ? g_pooled[t] : widen(read((const Element *)a.g_spikes + t * step + p.at, n));
                    if (!DETACH) g_s -= g_v * (HARD ? h : theta);
                    V sharpness = SHARP ? read(a.sharp + t * step + p.at, n) : all(a.sharpness);
                    V slope = [](V u, V a) { return DERIVATIVE; }(w, sharpness);
                    V g_here = g_s * slope;
                    if (G_U) g_here += read(a.g_u + t * step + p.at, n);
                    if (G_BAND) g_here -= band * inside_band(a, raw) * sign(raw);
                    V g_h = g_here + (HARD ? g_v * (1.0f - s) : g_v);
                    if (SCALARS || MOVING) g_threshold -= HARD ? g_here : g_here + g_v * s;
                    if (MOVING) {
                        g_rate += g_threshold * (h - per_neuron(a, a.goal, p, t));
                        g_h += per_neuron(a, a.rate, p, 0) * g_threshold;
                    }
                    if (SCALARS || (OWN && G_OWN)) {
                        V before = t ? reset(k.theta[t - 1], k.h[t - 1], fires(k.w[t - 1])) : all(a.start);
                        if (OWN && G_OWN) write(a.g_decays + t * step + p.at, g_h * before, n);
                        else g_decay += g_h * before;
                    }
                    if (CONSTANT) g_sum += g_h;
                    else g_x[t] = g_h;
                    g_v = decay_of(a, p, step, t) * g_h;
                }
                if (CONSTANT) g_x[0] = g_sum;
                EACH_STEP for (int t = 0; t < GIVEN; t++) {
                    if (AFFINE) g_shift += g_x[t], g_scale += g_x[t] * (k.x[t] - per_channel(a.mean, p));
                    V g = NORM == 1 ? g_x[t] * per_channel(a.scale, p) : g_x[t];
                    write((Element *)a.g_current + t * step + p.at, narrow(g), n);
                }
                if (MOVING && G_OWN) write(a.g_rate + p.at, g_rate, n);
                if (SCALARS) sums[0] += total(only(n, g_decay)), sums[1] += total(only(n, g_threshold));
            }
            if (AFFINE) {
                Place p{sample, rows[0], 0, i, n};
                affine.add(p, 0, only(n, g_shift));
                affine.add(p, 1, only(n, g_scale));
                if (i + LANES >= a.length) affine.row_done();
            }
        });
    });
}

#else
// Sums of x - mean and of its square for every channel.
extern "C" void moments(const Args *args) {
    const Args &a = *args;
    parallel(a, a.samples * a.rows * GIVEN, 2 * channels(a), [&](int64_t from, int64_t to, double *sums) {
        Channels held(a, sums, 2);
        const int64_t together = INNER ? 8 : 1;  // rows summed in registers: a sum in memory would wait for itself
        for (int64_t b = from; b < to; b += together) {
            for (int64_t i = 0; i < a.length; i += LANES) {
                int n = (int)(a.length - i < LANES ? a.length - i : LANES);
                Place p{0, b % a.rows, 0, (int)i, n};
                V pivot = per_channel(a.mean, p), sum{}, squares{};
                for (int64_t row = b; row < to && row < b + together; row++) {
                    V x = widen(read((const Element *)a.current + row * a.length + i, n)) - pivot;
                    sum += x, squares += x * x;
                }
                held.add(p, 0, only(n, sum));
                held.add(p, 1, only(n, squares));
            }
            held.row_done();
        }
    });
}

// In place: g <- scale g + shift (x - mean) + mean of g, the batch statistics' share of a normalized layer's gradient.
extern "C" void spread(const Args *args) {
    const Args &a = *args;
    parallel(a, a.samples * a.rows * GIVEN, 0, [&](int64_t from, int64_t to, double *) {
        for (int64_t b = from; b < to; b++)
            for (int64_t i = 0; i < a.length; i += LANES) {
                int n = (int)(a.length - i < LANES ? a.length - i : LANES);
                Place p{0, b % a.rows, b * a.length + i, (int)i, n};
                Element *g = (Element *)a.g_current + p.at;
                V x = widen(read((const Element *)a.current + p.at, n));
                write(g, narrow(widen(read(g, n)) * per_channel(a.scale, p) + x * per_channel(a.shift, p) + per_channel(a.mean, p)), n);
            }
    });
}

// Random numbers into u, as gaussian.py has them: STEPS normal ones of deviation sigma a position, [STEPS, samples, length], or one uniform one.
extern "C" void normal(const Args *args) {
    const Args &a = *args;
    parallel(a, a.samples, 0, [&](int64_t from, int64_t to, double *) {
        for (int64_t sample = from; sample < to; sample++)
            for (int64_t i = 0; i < a.length; i += LANES) {
                int n = (int)(a.length - i < LANES ? a.length - i : LANES);
                const int32_t *keys = a.keys + sample * (1 + (STEPS + 1) / 2);
                U shared = first_word((uint32_t)i, keys[0]);
                for (int t = 0; t < STEPS; t += 2) {
                    V even, odd;
                    normals(mix(shared + (uint32_t)keys[1 + t / 2]), a.sigma, even, odd);
                    write(a.u + (t * a.samples + sample) * a.length + i, even, n);
                    if (t + 1 < STEPS) write(a.u + ((t + 1) * a.samples + sample) * a.length + i, odd, n);
                }
            }
    });
}

extern "C" void uniform(const Args *args) {
    const Args &a = *args;
    parallel(a, a.samples, 0, [&](int64_t from, int64_t to, double *) {
        for (int64_t sample = from; sample < to; sample++)
            for (int64_t i = 0; i < a.length; i += LANES) {
                U bits = mix(first_word((uint32_t)i, a.keys[2 * sample]) + (uint32_t)a.keys[2 * sample + 1]);
                V drawn = (__builtin_convertvector((I)(bits >> 9), V) + 0.5f) * 1.1920929e-07f;
                write(a.u + sample * a.length + i, drawn, (int)(a.length - i < LANES ? a.length - i : LANES));
            }
    });
}

// A weighted sum, decay current + threshold other, and its backward pass: from g_spikes to spikes and g_current, and the weights' own sums.
extern "C" void join(const Args *args) {
    const Args &a = *args;
    parallel(a, (a.samples + LANES - 1) / LANES, 0, [&](int64_t from, int64_t to, double *) {
        for (int64_t b = from * LANES; b < to * LANES; b += LANES) {
            int n = (int)(a.samples - b < LANES ? a.samples - b : LANES);
            V x = widen(read((const Element *)a.current + b, n)), y = widen(read((const Element *)a.other + b, n));
            write((Element *)a.spikes + b, narrow(a.decay * x + a.threshold * y), n);
        }
    });
}

extern "C" void part(const Args *args) {
    const Args &a = *args;
    parallel(a, (a.samples + LANES - 1) / LANES, 2, [&](int64_t from, int64_t to, double *sums) {
        V along_x{}, along_y{};
        for (int64_t b = from * LANES; b < to * LANES; b += LANES) {
            int n = (int)(a.samples - b < LANES ? a.samples - b : LANES);
            V g = widen(read((const Element *)a.g_spikes + b, n));
            write((Element *)a.spikes + b, narrow(a.decay * g), n);
            write((Element *)a.g_current + b, narrow(a.threshold * g), n);
            if (!AFFINE) continue;
            along_x += g * widen(read((const Element *)a.current + b, n)), along_y += g * widen(read((const Element *)a.other + b, n));
            if ((b / LANES) % 256 == 255) sums[0] += total(along_x), sums[1] += total(along_y), along_x = along_y = V{};
        }
        sums[0] += total(along_x), sums[1] += total(along_y);
    });
}

// Potentials u (current) of a foreign layer, `samples` of them: spikes <- u + other, and the sum of the hinge (comparator.py).
extern "C" void compare(const Args *args) {
    const Args &a = *args;
    parallel(a, (a.samples + LANES - 1) / LANES, 1, [&](int64_t from, int64_t to, double *sums) {
        V hinge{};
        for (int64_t b = from * LANES; b < to * LANES; b += LANES) {
            int n = (int)(a.samples - b < LANES ? a.samples - b : LANES);
            V u = read((const float *)a.current + b, n), far = a.delta - abs(u);
            hinge += only(n, choose((far <= 0) | (BAND == 2 & (u >= 0)), V{}, far));  // what is no number stays
            if (a.other) write((float *)a.spikes + b, u + read((const float *)a.other + b, n), n);
            if ((b / LANES) % 256 == 255) sums[0] += total(hinge), hinge = V{};
        }
        sums[0] += total(hinge);
    });
}

extern "C" void compare_back(const Args *args) {
    const Args &a = *args;
    const float band = *a.g_band / (float)a.samples;
    parallel(a, (a.samples + LANES - 1) / LANES, 0, [&](int64_t from, int64_t to, double *) {
        for (int64_t b = from * LANES; b < to * LANES; b += LANES) {
            int n = (int)(a.samples - b < LANES ? a.samples - b : LANES);
            V u = read((const float *)a.current + b, n), g = a.g_spikes ? read((const float *)a.g_spikes + b, n) : V{};
            write((float *)a.g_current + b, g - band * inside_band(a, u) * sign(u), n);
        }
    });
}

// Adaptive sharpness (gradients/assg.py), over `samples` potentials: shift is the running mean of |u|, scale its running deviation.
extern "C" void adapt(const Args *args) {
    const Args &a = *args;
    parallel(a, (a.samples + LANES - 1) / LANES, 0, [&](int64_t from, int64_t to, double *) {
        for (int64_t b = from * LANES; b < to * LANES; b += LANES) {
            int n = (int)(a.samples - b < LANES ? a.samples - b : LANES);
            V size = abs(read(a.u + b, n));
            V mean = 0.9f * read(a.shift + b, n) + 0.1f * size;
            V spread = 0.9f * read(a.scale + b, n) + 0.1f * abs(size - mean);
            write((float *)a.shift + b, mean, n);
            write((float *)a.scale + b, spread, n);
        }
    });
}
#endif

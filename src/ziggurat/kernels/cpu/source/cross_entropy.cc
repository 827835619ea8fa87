// Cross-entropy of a linear output layer and its gradients, a chunk of tokens at a time; see
// `kernels/cross_entropy/__init__.py` for the formula.
#include <algorithm>
#include <cmath>
#include <limits>

#include "handlers.h"
#include "product.h"
#include "threads.h"
#include "vectors.h"

namespace ziggurat {
namespace {

constexpr int64_t kTokens = 512;  // of a chunk at most: more gain nothing, and need memory
constexpr int64_t kTogether = 8;  // tokens of one task

struct Loss {
  float z_loss, softcap;  // softcap 0: none
  int64_t v, row;         // row: distance of tokens' logits, whole vectors
  bool gradient;
};

struct Token {
  int32_t target;
  float weight;
};

ZIGGURAT_INLINE Vec bounded(Vec x, float cap) {  // cap * tanh(x / cap)
  const Vec e = exponential((x < Vec{} ? x : -x) * (2.0f / cap));
  const Vec t = (1.0f - e) / (1.0f + e) * cap;
  return x < Vec{} ? -t : t;
}

// Statistics of one token from its logits, which then become the gradient if that is wanted. What
// lies beyond the vocabulary in the last vector is -infinity: it weighs nothing.
void finish(const Loss& loss, Token token, float* logits, float* log_prob, float* log_normalizer,
            bool* correct) {
  std::fill(logits + loss.v, logits + loss.row, -std::numeric_limits<float>::infinity());
  Vec top = all(-std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < loss.row; j += kLanes) {
    Vec x = load(logits + j);
    if (loss.softcap > 0) {
      x = bounded(x, loss.softcap);
      store(logits + j, x);
    }
    top = larger(x, top);
  }
  if (loss.softcap > 0) {
    std::fill(logits + loss.v, logits + loss.row, -std::numeric_limits<float>::infinity());
  }
  const float highest = largest(top);
  Vec total{};
  for (int64_t j = 0; j < loss.row; j += kLanes) total += exponential(load(logits + j) - highest);
  const float log_sum = highest + std::log(sum(total));
  const bool inside = token.target >= 0 && token.target < loss.v;
  const float logit = inside ? logits[token.target] : 0.0f;
  *log_prob = inside ? logit - log_sum : std::numeric_limits<float>::quiet_NaN();
  *log_normalizer = log_sum;
  *correct = inside && logit >= highest;
  if (!loss.gradient) return;
  const float scale = token.weight * (1.0f + 2.0f * loss.z_loss * log_sum);
  float slope = 1.0f;
  if (loss.softcap > 0) {
    const float t = logit / loss.softcap;
    slope = 1.0f - t * t;
  }
  for (int64_t j = 0; j < loss.row; j += kLanes) {
    const Vec x = load(logits + j);
    Vec gradient = scale * exponential(x - log_sum);
    if (loss.softcap > 0) {
      const Vec t = x * (1.0f / loss.softcap);
      gradient *= 1.0f - t * t;
    }
    store(logits + j, gradient);
  }
  if (inside) logits[token.target] -= token.weight * slope;
}

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;
using Flag = ffi::Buffer<ffi::PRED>;

ffi::Error cross_entropy(double z_loss, double softcap, int64_t chunk_tokens, bool want_hidden,
                         bool want_weight, F32 hidden, F32 weight, S32 targets, F32 weights,
                         ffi::Result<F32> log_prob, ffi::Result<F32> log_normalizer,
                         ffi::Result<Flag> correct, ffi::Result<F32> d_hidden,
                         ffi::Result<F32> d_weight) {
  const int64_t n = hidden.dimensions()[0], d = hidden.dimensions()[1];
  const int64_t v = weight.dimensions()[0], row = (v + kLanes - 1) / kLanes * kLanes;
  const int64_t chunk = std::min({kTokens, chunk_tokens, n});
  const Loss loss{static_cast<float>(z_loss), static_cast<float>(softcap), v, row,
                  want_hidden || want_weight};
  const Workspace memory(chunk * row * sizeof(float));
  float* logits = memory.as<float>();
  const Matrix table{weight.typed_data(), d, false}, turned{weight.typed_data(), d, true};
  for (int64_t first = 0; first < n; first += chunk) {
    const int64_t count = std::min(chunk, n - first);
    const Matrix tokens{hidden.typed_data() + first * d, d, false};
    multiply(count, v, d, tokens, turned, logits, row, false);
    parallel((count + kTogether - 1) / kTogether, [&](int64_t task) {
      const int64_t last = std::min((task + 1) * kTogether, count);
      for (int64_t i = task * kTogether; i < last; i++) {
        const int64_t at = first + i;
        finish(loss, {targets.typed_data()[at], weights.typed_data()[at]}, logits + i * row,
               log_prob->typed_data() + at, log_normalizer->typed_data() + at,
               correct->typed_data() + at);
      }
    });
    if (want_hidden) {
      multiply(count, d, v, {logits, row, false}, table, d_hidden->typed_data() + first * d, d,
               false);
    }
    if (want_weight) {
      multiply(v, d, count, {logits, row, true}, tokens, d_weight->typed_data(), d, first > 0);
    }
  }
  return ffi::Error::Success();
}

}  // namespace

ZIGGURAT_HANDLER(cross_entropy, cross_entropy,
                 ffi::Ffi::Bind()
                     .Attr<double>("z_loss")
                     .Attr<double>("softcap")
                     .Attr<int64_t>("chunk_tokens")
                     .Attr<bool>("want_hidden")
                     .Attr<bool>("want_weight")
                     .Arg<F32>()
                     .Arg<F32>()
                     .Arg<S32>()
                     .Arg<F32>()
                     .Ret<F32>()
                     .Ret<F32>()
                     .Ret<Flag>()
                     .Ret<F32>()
                     .Ret<F32>());

}  // namespace ziggurat

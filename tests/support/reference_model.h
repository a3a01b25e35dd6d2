// SPDX-License-Identifier: Apache-2.0
// The whole forward pass of a tiny model in double precision, one sequence, no caches.
//
// Written from the formulas and reference_math.h alone: frequencies, routing, selection and wiring
// are stated again here. Slow, and only for RandomModel's FP32 weights.
#pragma once

#include <string>
#include <vector>

#include "core/error.h"
#include "support/random_model.h"
#include "support/reference_math.h"

namespace quatrain::testing::reference {

/// θ^(−2i/dims); with YaRN (factor 16 from 65536 positions, β 32 and 1) when `yarn`.
inline std::vector<float> frequencies(std::int64_t dims, double theta, bool yarn) {
  const double pi = 3.14159265358979323846, n = static_cast<double>(dims);
  const auto turn = [&](double rotations) {
    return n * std::log(65536 / (rotations * 2 * pi)) / (2 * std::log(theta));
  };
  const double low = std::max(0.0, std::floor(turn(32)));
  const double high = std::min(n - 1, std::ceil(turn(1)));
  std::vector<float> out;
  for (std::int64_t i = 0; i < dims / 2; ++i) {
    const double f = std::pow(theta, -2.0 * static_cast<double>(i) / n);
    const double ramp =
        yarn ? std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0) : 0.0;
    out.push_back(static_cast<float>(f * (1 - ramp) + f / 16 * ramp));
  }
  return out;
}

class Model {
 public:
  explicit Model(const RandomModel& model) : model_(model), s_(model.shape()) {}

  struct Result {
    std::vector<Row> logits;                // [T][V]
    std::vector<std::vector<Row>> streams;  // per layer [T][hc·D]
  };

  Result run(const std::vector<std::int32_t>& ids) const {
    Result result;
    std::vector<Row> streams;
    for (const std::int32_t id : ids) streams.push_back(embed(id));
    for (std::size_t l = 0; l < s_.ratios.size(); ++l) {
      block(fmt::format("layers.{}", l), s_.ratios[l],
            static_cast<std::int64_t>(l) < s_.hash_layers, ids, streams);
      result.streams.push_back(streams);
    }
    for (const Row& x : streams) result.logits.push_back(head(x, "hc_head", "norm.weight"));
    return result;
  }

  /// Logits of the MTP block for positions 0 … T−2 (2.12).
  std::vector<Row> run_mtp(const std::vector<std::int32_t>& ids) const {
    std::vector<Row> streams = run(ids).streams.back(), logits;
    streams.pop_back();
    for (std::size_t t = 0; t < streams.size(); ++t) {
      Row token = embed(ids[t + 1]);
      token.resize(static_cast<std::size_t>(s_.hidden));
      const Row e = linear("mtp.0.e_proj", rms_norm(token, vec("mtp.0.enorm.weight"), kEps));
      for (std::size_t s = 0; s < static_cast<std::size_t>(s_.hc); ++s) {
        const std::size_t d = e.size();
        Row h(streams[t].begin() + static_cast<std::ptrdiff_t>(s * d),
              streams[t].begin() + static_cast<std::ptrdiff_t>((s + 1) * d));
        h = linear("mtp.0.h_proj", rms_norm(h, vec("mtp.0.hnorm.weight"), kEps));
        for (std::size_t i = 0; i < d; ++i) streams[t][s * d + i] = e[i] + h[i];
      }
    }
    block("mtp.0", 0, false, ids, streams);
    for (const Row& x : streams) logits.push_back(head(x, "mtp.0.hc_head", "mtp.0.norm.weight"));
    return logits;
  }

 private:
  static constexpr double kEps = 1e-6;

  Row vec(const std::string& name) const { return to_double(model_.floats(name)); }

  Row linear(const std::string& base, const Row& x) const {
    return product(vec(base + ".weight"), x);
  }

  static Row product(const Row& w, const Row& x) {
    Row out(w.size() / x.size());
    for (std::size_t r = 0; r < out.size(); ++r)
      out[r] = inner(std::span(w).subspan(r * x.size(), x.size()), x);
    return out;
  }

  static std::vector<Row> split(const Row& x, std::int64_t parts) {
    std::vector<Row> out;
    const auto n = static_cast<std::ptrdiff_t>(x.size()) / parts;
    for (std::ptrdiff_t p = 0; p < parts; ++p)
      out.emplace_back(x.begin() + p * n, x.begin() + (p + 1) * n);
    return out;
  }

  Row embed(std::int32_t id) const {
    const std::vector<float>& table = model_.floats("embed.weight");
    Row out;
    for (std::int64_t s = 0; s < s_.hc; ++s)
      out.insert(out.end(), table.begin() + id * s_.hidden, table.begin() + (id + 1) * s_.hidden);
    return out;
  }

  void block(const std::string& base, std::int64_t ratio, bool hash,
             const std::vector<std::int32_t>& ids, std::vector<Row>& streams) const {
    const auto site = [&](const std::string& hc, const std::string& norm, auto&& body) {
      std::vector<Site> sites;
      std::vector<Row> inputs;
      for (const Row& x : streams) {
        sites.push_back(hc_site(x, static_cast<std::size_t>(s_.hc), vec(hc + "_fn"),
                                vec(hc + "_base"), vec(hc + "_scale"), 20, 1e-6, kEps));
        inputs.push_back(rms_norm(collapse(x, sites.back().pre), vec(norm), kEps));
      }
      const std::vector<Row> f = body(inputs);
      for (std::size_t t = 0; t < streams.size(); ++t)
        streams[t] = hc_post(streams[t], f[t], sites[t].post, sites[t].comb);
    };
    site(base + ".hc_attn", base + ".attn_norm.weight",
         [&](const std::vector<Row>& x) { return attention(base + ".attn", ratio, x); });
    site(base + ".hc_ffn", base + ".ffn_norm.weight", [&](const std::vector<Row>& x) {
      std::vector<Row> out;
      for (std::size_t t = 0; t < x.size(); ++t)
        out.push_back(moe(base + ".ffn", hash, ids[t], x[t]));
      return out;
    });
  }

  std::vector<Row> compress(const std::string& base, std::int64_t ratio, std::int64_t width,
                            const std::vector<float>& freq, const std::vector<Row>& x) const {
    const Row ape = vec(base + ".ape");
    std::vector<Row> values, scores, entries;
    for (std::size_t t = 0; t < x.size(); ++t) {
      values.push_back(linear(base + ".wkv", x[t]));
      scores.push_back(linear(base + ".wgate", x[t]));
      const std::size_t channels = values[t].size();
      for (std::size_t c = 0; c < channels; ++c)
        scores[t][c] += ape[t % static_cast<std::size_t>(ratio) * channels + c];
    }
    for (std::int64_t w = 0; w < static_cast<std::int64_t>(x.size()) / ratio; ++w) {
      entries.push_back(
          rms_norm(pool_window(values, scores, w, ratio, static_cast<std::size_t>(width)),
                   vec(base + ".norm.weight"), kEps));
      rotate(entries.back(), freq, static_cast<double>(w * ratio));
    }
    return entries;
  }

  // The entries that token t attends to.
  std::vector<std::size_t> select(const std::string& base, const std::vector<float>& freq,
                                  const std::vector<Row>& index_keys, const Row& x, const Row& qr,
                                  std::size_t t) const {
    std::vector<Row> q = split(linear(base + ".wq_b", qr), s_.index_heads);
    for (Row& head : q) rotate(head, freq, static_cast<double>(t));
    const Row weights = linear(base + ".weights_proj", x);
    std::vector<std::pair<double, std::size_t>> scored;
    for (std::size_t w = 0; w < (t + 1) / 4; ++w)
      scored.emplace_back(-index_score(q, weights, index_keys[w]), w);
    std::sort(scored.begin(), scored.end());
    std::vector<std::size_t> out;
    for (const auto& [score, w] : scored)
      if (static_cast<std::int64_t>(out.size()) < s_.index_topk) out.push_back(w);
    return out;
  }

  std::vector<Row> attention(const std::string& base, std::int64_t ratio,
                             const std::vector<Row>& x) const {
    const auto freq = frequencies(s_.rope_dim, ratio == 0 ? 10000 : 160000, ratio > 0);
    std::vector<Row> latents, entries, index_keys, out;
    for (std::size_t t = 0; t < x.size(); ++t) {
      latents.push_back(rms_norm(linear(base + ".wkv", x[t]), vec(base + ".kv_norm.weight"), kEps));
      rotate(latents[t], freq, static_cast<double>(t));
    }
    if (ratio > 0) entries = compress(base + ".compressor", ratio, s_.head_dim, freq, x);
    if (ratio == 4) index_keys = compress(base + ".indexer.compressor", 4, s_.index_dim, freq, x);
    const Row sinks = vec(base + ".attn_sink");
    const std::vector<Row> wo_a = split(vec(base + ".wo_a.weight"), s_.o_groups);
    for (std::size_t t = 0; t < x.size(); ++t) {
      const Row qr = rms_norm(linear(base + ".wq_a", x[t]), vec(base + ".q_norm.weight"), kEps);
      const auto window = static_cast<std::size_t>(s_.window);
      std::vector<Row> keys(
          latents.begin() + static_cast<std::ptrdiff_t>(t < window ? 0 : t + 1 - window),
          latents.begin() + static_cast<std::ptrdiff_t>(t + 1));
      if (ratio == 128)
        keys.insert(keys.end(), entries.begin(),
                    entries.begin() + static_cast<std::ptrdiff_t>((t + 1) / 128));
      if (ratio == 4)
        for (const std::size_t w : select(base + ".indexer", freq, index_keys, x[t], qr, t))
          keys.push_back(entries[w]);
      Row heads, u;
      std::vector<Row> q = split(linear(base + ".wq_b", qr), s_.heads);
      for (std::size_t h = 0; h < q.size(); ++h) {
        q[h] = rms_norm(q[h], {}, kEps);
        rotate(q[h], freq, static_cast<double>(t));
        Row o = attend(q[h], keys, sinks[h]);
        rotate(o, freq, static_cast<double>(t), -1);
        heads.insert(heads.end(), o.begin(), o.end());
      }
      const std::vector<Row> groups = split(heads, s_.o_groups);
      for (std::size_t g = 0; g < groups.size(); ++g)
        for (const double v : product(wo_a[g], groups[g])) u.push_back(v);
      out.push_back(linear(base + ".wo_b", u));
    }
    return out;
  }

  Row expert(const std::string& base, const Row& x) const {
    const Row gate = linear(base + ".w1", x), up = linear(base + ".w3", x);
    Row h;
    for (std::size_t i = 0; i < gate.size(); ++i)
      h.push_back(swiglu(gate[i], up[i], s_.swiglu_limit));
    return linear(base + ".w2", h);
  }

  Row moe(const std::string& base, bool hash, std::int32_t id, const Row& x) const {
    const auto k = static_cast<std::size_t>(s_.experts_per_token);
    const Row logits = linear(base + ".gate", x);
    Choice choice;
    if (hash) {
      const auto& table = model_.ints(base + ".gate.tid2eid");
      Row scores;
      for (const double g : logits) scores.push_back(sqrt_softplus(g));
      for (std::size_t i = 0; i < k; ++i)
        choice.ids.push_back(static_cast<int>(table[static_cast<std::size_t>(id) * k + i]));
      choice.weights = normalised(scores, choice.ids, s_.routed_scale);
    } else {
      choice = route(logits, vec(base + ".gate.bias"), k, s_.routed_scale);
    }
    Row out = expert(base + ".shared_experts", x);
    for (std::size_t i = 0; i < k; ++i) {
      const Row y = expert(fmt::format("{}.experts.{}", base, choice.ids[i]), x);
      for (std::size_t d = 0; d < y.size(); ++d) out[d] += choice.weights[i] * y[d];
    }
    return out;
  }

  Row head(const Row& x, const std::string& hc, const std::string& norm) const {
    Row pre = mixes(x, vec(hc + "_fn"), kEps);
    const Row base = vec(hc + "_base"), scale = vec(hc + "_scale");
    for (std::size_t j = 0; j < pre.size(); ++j)
      pre[j] = sigmoid(pre[j] * scale[0] + base[j]) + 1e-6;
    return linear("head", rms_norm(collapse(x, pre), vec(norm), kEps));
  }

  const RandomModel& model_;
  const TinyShape& s_;
};

}  // namespace quatrain::testing::reference

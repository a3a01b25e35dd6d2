#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the golden cases of the model tests: tiny random DeepSeek-V4 models and what they compute.

usage: tools/make_golden.py OUT       needs torch, transformers >= 5.17 and safetensors

The expected values come from the DeepSeek-V4 of Hugging Face transformers, in fp32 on the CPU, which
shares no code with Quatrain. Its weights are rounded to the formats of the case first, so it computes
with exactly the values that an engine reads from the checkpoint. OUT/NAME/ receives

  config.json           official field names
  model.safetensors     official tensor names and storage formats
  spec.json             the case as listed below
  expected.safetensors  with R rows of T, V words, H hidden, S streams, k experts per token:
    input_ids    [T] I64
    rows         [R] I64       positions of the stored logits: every 5th and all of the last 16
    logits       [R, V] F32    plain fp32
    logits_w4a4  [R, V] F32    inputs of every routed expert GEMM on the NVFP4 grid, one FP32 scale a row
    logits_sim   [R, V] F32    latents on the FP8 grid, indexer queries and keys on the FP4 grid
    streams.L    [8, S, H] F32 residual streams after layer L, last 8 positions
    experts.L    [T, k] I64    experts of layer L, in no particular order
    mtp_logits   [R-1, V] F32  case mtp: the MTP block at rows[:-1] (the last row has no next token)

OUT/README.md says when and with what it was made. Sizes are small because the cases live in the
repository; dimensions that are no multiple of 128 exercise the edges of the FP8 blocks.
"""
import copy
import datetime
import json
import pathlib
import re
import sys
import types

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as reference

MAX_TOTAL_BYTES = 6_500_000
SLIDING, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"

# Few indexer heads would give many entries a score of exactly zero, and top-k a tie to break.
SHAPE = dict(
    vocab_size=96, hidden_size=64, moe_intermediate_size=32, num_attention_heads=2, head_dim=128,
    q_lora_rank=32, partial_rotary_factor=0.5, num_experts_per_tok=2, n_routed_experts=6,
    n_shared_experts=1, routed_scaling_factor=1.5, max_position_embeddings=4096, sliding_window=32,
    o_groups=2, o_lora_rank=32, index_n_heads=16, index_head_dim=64, index_topk=8, swiglu_limit=10.0,
    num_nextn_predict_layers=0, compress_rates={CSA: 4, HCA: 128},
    rope_parameters=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64,
                         beta_fast=32, beta_slow=1))


def case(name, seed, tokens, layers, hash_layers, experts="nvfp4", shared="bf16", attn="bf16",
         head="bf16", gain=1.0, **config):
    """One row of the table: `layers` in order, formats of the linears, overrides of SHAPE."""
    kinds = ["hash_moe"] * hash_layers + ["moe"] * (len(layers) - hash_layers)
    weights = dict(experts=experts, shared=shared, attn=attn, head=head)
    return dict(name=name, seed=seed, tokens=tokens, gain=gain, weights=weights,
                config=SHAPE | dict(num_hidden_layers=len(layers), layer_types=layers,
                                    mlp_layer_types=kinds) | config)


CASES = [
    case("sliding", 101, 140, [SLIDING, SLIDING], 1),
    case("csa", 102, 150, [CSA], 0),
    case("hca", 103, 260, [HCA], 0),
    case("mixed-nvfp4-experts", 104, 280, [SLIDING, HCA, CSA, CSA], 2),
    case("mixed-nvfp4-all", 105, 280, [SLIDING, HCA, CSA], 2, "nvfp4", "nvfp4", "nvfp4", "nvfp4"),
    case("mixed-nvfp4-fp8", 106, 280, [SLIDING, HCA, CSA], 2, "nvfp4", "fp8", "fp8",
         num_attention_heads=4),
    case("mixed-official-mxfp4", 107, 280, [SLIDING, HCA, CSA], 2, "mxfp4", "fp8", "fp8",
         num_attention_heads=4),
    case("clamp", 108, 64, [SLIDING, CSA], 0, gain=6.0),
    case("mtp", 109, 160, [SLIDING, CSA], 1, num_nextn_predict_layers=1),
]


def make_config(fields):
    config = DeepseekV4Config(**copy.deepcopy(fields))  # which may change nested fields
    config._attn_implementation = "eager"
    return config


# number formats
def e2m1_round(x):
    """Nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 with x's sign, ties to the even code."""
    a = x.abs().clamp(max=6.0)
    step = torch.where(a < 2, 0.5, torch.where(a < 4, 1.0, 2.0))
    return torch.copysign(torch.round(a / step) * step, x)


def e2m1_pack(values):
    """E2M1 values [..., K] as bytes [..., K/2], the even element in the low nibble."""
    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    codes = torch.searchsorted(table, values.abs().contiguous()) + 8 * torch.signbit(values).long()
    return (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)


def power_of_two_above(x):
    """Exponent of the smallest power of two that is not below x > 0."""
    mantissa, exponent = torch.frexp(x)
    return exponent - (mantissa == 0.5).int()


def power_of_two(exponent):
    return ((exponent + 127) << 23).view(torch.float32)


def e8m0(exponent):
    return (exponent + 127).to(torch.uint8).view(torch.float8_e8m0fnu)


def on_grid(x, block, step):
    """x [..., K] with every `block` columns rounded to E2M1 multiples of step [..., K/block]."""
    blocks, step = x.unflatten(-1, (-1, block)), step.unsqueeze(-1)
    units = torch.where(step > 0, e2m1_round(blocks / step), 0.0)  # a vanished scale loses its block
    return units.flatten(-2), (units * step).flatten(-2)


def nvfp4(x, global_scale):
    """-> E2M1 values, E4M3 scales [..., K/16], x as decoded. The global scale broadcasts to those."""
    amax = x.unflatten(-1, (-1, 16)).abs().amax(-1)
    scales = (amax / 6.0 / global_scale).clamp(max=448.0).to(torch.float8_e4m3fn)
    return (scales, *on_grid(x, 16, scales.float() * global_scale))


def nvfp4_rows(x):
    """Activations [rows, K] as decoded, with one global scale max|row| / 2688 a row."""
    return nvfp4(x, (x.abs().amax(-1, keepdim=True) / 2688.0).clamp(min=1e-30))[2]


def stored(name, weight, form):
    """One weight -> ({tensor name: tensor as a checkpoint holds it}, fp32 values it decodes to)."""
    base = name.removesuffix(".weight")
    if form == "nvfp4":
        global_scale = (weight.abs().amax() / 2688.0).clamp(min=1e-30)
        scales, units, decoded = nvfp4(weight, global_scale)
        return {name: e2m1_pack(units), base + ".weight_scale": scales,
                base + ".weight_scale_2": global_scale.clone(),
                base + ".input_scale": torch.tensor(1.0 / 2688.0)}, decoded
    if form == "mxfp4":
        amax = weight.unflatten(-1, (-1, 32)).abs().amax(-1)
        exponent = power_of_two_above((amax / 6.0).clamp(min=2.0**-126))
        units, decoded = on_grid(weight, 32, power_of_two(exponent))
        return {name: e2m1_pack(units).view(torch.int8), base + ".scale": e8m0(exponent)}, decoded
    if form == "fp8":
        rows, cols = weight.shape
        tiles = F.pad(weight, (0, -cols % 128, 0, -rows % 128))
        tiles = tiles.unflatten(1, (-1, 128)).unflatten(0, (-1, 128))  # [rows/128, 128, cols/128, 128]
        amax = tiles.abs().amax((1, 3))
        exponent = power_of_two_above((amax / 448.0).clamp(min=2.0**-126))
        scale = power_of_two(exponent)[:, None, :, None]
        values = (tiles / scale).to(torch.float8_e4m3fn)
        decoded = (values.float() * scale).flatten(2).flatten(0, 1)[:rows, :cols]
        values = values.flatten(2).flatten(0, 1)[:rows, :cols]
        return {name: values.contiguous(), base + ".scale": e8m0(exponent)}, decoded
    if form == "bf16":
        return {name: weight.bfloat16()}, weight.bfloat16().float()
    return {name: weight.clone()}, weight


# official names and which of them has which format
RENAMES = [  # applied in order, as plain text
    ("model.embed_tokens.", "embed."), ("lm_head.", "head."), ("hc_head.hc_", "hc_head_"),
    ("model.", ""), ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
    ("attn_hc.", "hc_attn_"), ("ffn_hc.", "hc_ffn_"), ("self_attn.", "attn."),
    ("compressor.indexer.scorer.", "indexer."), ("compressor.indexer.q_b_proj", "indexer.wq_b"),
    ("compressor.indexer.", "indexer.compressor."), ("compressor.kv_norm", "compressor.norm"),
    ("compressor.gate_proj", "compressor.wgate"), ("position_bias", "ape"),
    ("q_a_proj", "wq_a"), ("q_b_proj", "wq_b"), ("q_a_norm", "q_norm"), ("kv_proj", "wkv"),
    ("o_a_proj", "wo_a"), ("o_b_proj", "wo_b"), ("attn.sinks", "attn.attn_sink"), ("mlp.", "ffn."),
    ("shared_experts.gate_proj", "shared_experts.w1"), ("shared_experts.up_proj", "shared_experts.w3"),
    ("shared_experts.down_proj", "shared_experts.w2"), ("e_score_correction_bias", "bias"),
]


def official(name):
    for old, new in RENAMES:
        name = name.replace(old, new)
    return name


def form_of(name, tensor, weights):
    """Storage format of the official tensor `name`; "as is" is fp32 or an integer type."""
    if tensor.ndim < 2 or not tensor.is_floating_point() or "hc_" in name or name.endswith(".ape"):
        return "as is"
    if ".experts." in name:
        return weights["experts"]
    if ".shared_experts." in name:
        return weights["shared"]
    if re.search(r"\.attn\.(wq_a|wq_b|wkv|wo_a|wo_b)\.weight$", name):
        return weights["attn"]
    return weights["head"] if name == "head.weight" else "bf16"


def export(module, prefix, weights):
    """-> checkpoint tensors of `module`, whose own weights become the values these decode to."""
    tensors = {}

    def put(name, view):
        files, decoded = stored(name, view, form_of(name, view, weights))
        assert not tensors.keys() & files.keys(), name
        tensors.update(files)
        view.copy_(decoded)

    for name, tensor in module.state_dict().items():
        name = official(prefix + name)
        if name.endswith("experts.gate_up_proj"):
            for e, both in enumerate(tensor):
                gate, up = both.chunk(2)
                put(name.replace("gate_up_proj", f"{e}.w1.weight"), gate)
                put(name.replace("gate_up_proj", f"{e}.w3.weight"), up)
        elif name.endswith("experts.down_proj"):
            for e, down in enumerate(tensor):
                put(name.replace("down_proj", f"{e}.w2.weight"), down)
        else:
            put(name, tensor)
    return tensors


# random weights that make every term of the model matter
def randomise(module, experts, seed, gain):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("tid2eid"):  # distinct experts for every token
            order = torch.rand(tensor.shape[0], experts, generator=generator).argsort(-1)
            tensor.copy_(order[:, :tensor.shape[1]])
            continue
        for suffixes, centre, spread in (
                (("norm.weight", "scale"), 1.0, 0.2), (("e_score_correction_bias",), 0.0, 0.2),
                (("base",), 0.0, 0.5), (("sinks", "position_bias", "embed_tokens.weight"), 0.0, 1.0),
                (("",), 0.0, gain / tensor.shape[-1] ** 0.5)):
            if name.endswith(suffixes):
                tensor.copy_(centre + spread * torch.randn(tensor.shape, generator=generator))
                break


# the numeric modes, put around the reference's own modules
def fp8_grid(x):
    """Every 64 columns on the E4M3 grid times a power of two, as the FP8 cache stores them."""
    blocks = x.unflatten(-1, (-1, 64))
    amax = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-4)
    step = power_of_two(power_of_two_above(amax * (1.0 / 448.0)))
    return ((blocks / step).to(torch.float8_e4m3fn).float() * step).flatten(-2)


def fp4_grid(x):
    """Hadamard rotation, then every 32 columns on the E2M1 grid times a power of two."""
    n, rotation = x.shape[-1], torch.ones(1, 1)
    while rotation.shape[0] < n:
        rotation = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), rotation)
    x = x @ (rotation * n**-0.5)
    amax = x.unflatten(-1, (-1, 32)).abs().amax(-1).clamp(min=6 * 2.0**-126)
    return on_grid(x, 32, power_of_two(power_of_two_above(amax / 6.0)))[1]


def instrument(layer, index, mode, rope_dim):
    """mode.sim: the official cache grid. mode.w4a4: NVFP4 inputs of the routed experts. What a pass
    computes is left in mode.seen: streams.<index> and experts.<index>."""
    attention, experts = layer.self_attn, layer.mlp.experts

    def latents(module, inputs, out):
        fixed, rotary = out.split([out.shape[-1] - rope_dim, rope_dim], -1)
        return torch.cat([fp8_grid(fixed), rotary], -1) if mode.sim else out

    def index_inputs(module, inputs):
        if not mode.sim:
            return inputs
        query, keys, hidden = inputs
        return fp4_grid(query), fp4_grid(keys) if keys.shape[1] else keys, hidden

    def forward(hidden, chosen, weights):
        rounded = nvfp4_rows if mode.w4a4 else lambda x: x
        out = torch.zeros_like(hidden)
        for e in range(experts.num_experts):
            token, slot = torch.where(chosen == e)
            if token.numel() == 0:
                continue
            gate_up = F.linear(rounded(hidden[token]), experts.gate_up_proj[e])
            down = F.linear(rounded(experts._apply_gate(gate_up)), experts.down_proj[e])
            out.index_add_(0, token, down * weights[token, slot, None])
        return out

    def keep_streams(module, inputs, out):
        mode.seen[f"streams.{index}"] = out

    def keep_chosen(module, inputs, out):
        mode.seen[f"experts.{index}"] = out[2]

    experts.forward = forward
    layer.register_forward_hook(keep_streams)
    layer.mlp.gate.register_forward_hook(keep_chosen)
    attention.kv_norm.register_forward_hook(latents)
    if attention.compressor is not None:
        attention.compressor.kv_norm.register_forward_hook(latents)
        if hasattr(attention.compressor, "indexer"):
            attention.compressor.indexer.scorer.register_forward_pre_hook(index_inputs)


# the MTP block, which transformers does not have, out of its modules
class Mtp(torch.nn.Module):
    """A sliding layer with a learned router on e_proj(enorm(embedding)) + h_proj(hnorm(streams))."""

    def __init__(self, config_fields):
        super().__init__()
        config = make_config(config_fields | dict(
            num_hidden_layers=1, layer_types=[SLIDING], mlp_layer_types=["moe"]))
        hidden, self.window = config.hidden_size, config.sliding_window
        for name in ("enorm", "hnorm", "norm"):
            setattr(self, name, reference.DeepseekV4RMSNorm(hidden, eps=config.rms_norm_eps))
        for name in ("e_proj", "h_proj"):
            setattr(self, name, torch.nn.Linear(hidden, hidden, bias=False))
        self.block = reference.DeepseekV4DecoderLayer(config, 0)
        self.hc_head = reference.DeepseekV4HyperHead(config)

    def forward(self, model, streams, ids):
        """streams [1, T, S, H] after the last layer, ids [1, T] -> logits [T-1, V]."""
        following = ids[:, 1:]
        embedded = self.e_proj(self.enorm(model.model.embed_tokens(following)))
        x = embedded.unsqueeze(2) + self.h_proj(self.hnorm(streams[:, :-1]))
        position = torch.arange(following.shape[1])
        distance = position[:, None] - position[None, :]
        visible = (distance >= 0) & (distance < self.window)
        rotary = {kind: model.model.rotary_emb(x[:, :, 0], position_ids=position[None], layer_type=kind)
                  for kind in ("main", "compress")}
        x = self.block(x, input_ids=following, position_embeddings=rotary, position_ids=position[None],
                       attention_mask=torch.where(visible, 0.0, float("-inf"))[None, None],
                       past_key_values=None)
        return model.lm_head(self.norm(self.hc_head(x)))[0]


def official_config(fields, config):
    """The case's config.json: `fields` as given plus what transformers spells otherwise or assumes."""
    theirs = "layer_types mlp_layer_types compress_rates rope_parameters partial_rotary_factor".split()
    assumed = ("num_key_value_heads qk_rope_head_dim scoring_func norm_topk_prob hidden_act hc_mult "
               "hc_sinkhorn_iters hc_eps rms_norm_eps rope_theta compress_rope_theta initializer_range "
               "tie_word_embeddings attention_bias attention_dropout bos_token_id eos_token_id "
               "use_cache").split()
    ratios = [({SLIDING: 0} | fields["compress_rates"])[kind] for kind in fields["layer_types"]]
    yarn = {"type" if k == "rope_type" else k: v for k, v in fields["rope_parameters"].items()}
    return (dict(architectures=["DeepseekV4ForCausalLM"], model_type="deepseek_v4",
                 torch_dtype="bfloat16", topk_method="noaux_tc")
            | {k: v for k, v in fields.items() if k not in theirs}
            | {k: getattr(config, k) for k in assumed}
            | dict(compress_ratios=ratios + [0] * fields["num_nextn_predict_layers"],
                   num_hash_layers=fields["mlp_layer_types"].count("hash_moe"), rope_scaling=yarn,
                   quantization_config={}))


def chunked_difference(model, ids, logits):
    """How far transformers' own cached path is from its full forward pass."""
    parts, cache, begin = [], None, 0
    for size in [7, 61, 1, 1, 1, 1, 1, ids.shape[1]]:
        chunk = ids[:, begin:begin + size]
        if chunk.shape[1] == 0:
            break
        out = model(input_ids=chunk, past_key_values=cache, use_cache=True)
        cache, begin = out.past_key_values, begin + chunk.shape[1]
        parts.append(out.logits[0])
    return (torch.cat(parts) - logits).abs().max().item()


def make_case(spec, folder):
    """Writes one case. Returns its line for the report."""
    config = make_config(spec["config"])
    model = DeepseekV4ForCausalLM(config).float().eval()
    mode = types.SimpleNamespace(sim=False, w4a4=False, seen={})
    randomise(model, config.n_routed_experts, spec["seed"], spec["gain"])
    tensors = export(model, "", spec["weights"])
    for index, layer in enumerate(model.model.layers):
        instrument(layer, index, mode, config.qk_rope_head_dim)
    mtp = Mtp(spec["config"]).float().eval() if config.num_nextn_predict_layers else None
    if mtp is not None:
        randomise(mtp, config.n_routed_experts, spec["seed"] + 1000, spec["gain"])
        tensors |= {name.replace(".block.", "."): tensor
                    for name, tensor in export(mtp, "mtp.0.", spec["weights"]).items()}
        instrument(mtp.block, "mtp", mode, config.qk_rope_head_dim)

    tokens = spec["tokens"]
    ids = torch.randint(3, config.vocab_size, (1, tokens),
                        generator=torch.Generator().manual_seed(spec["seed"] + 1))
    rows = torch.tensor(sorted({*range(0, tokens, 5), *range(tokens - 16, tokens)}))
    logits = model(input_ids=ids, use_cache=False).logits[0]
    seen = dict(mode.seen)  # later passes replace the entries
    expected = {"input_ids": ids[0], "rows": rows, "logits": logits[rows]} | {
        name: out[0, -8:] if name.startswith("streams") else out for name, out in seen.items()}
    if mtp is not None:
        last_streams = seen[f"streams.{config.num_hidden_layers - 1}"]
        expected["mtp_logits"] = mtp(model, last_streams, ids)[rows[:-1]]
    difference = chunked_difference(model, ids, logits)
    for flag in ("sim", "w4a4"):
        setattr(mode, flag, True)
        expected[f"logits_{flag}"] = model(input_ids=ids, use_cache=False).logits[0][rows]
        setattr(mode, flag, False)
    assert all(torch.isfinite(t).all() for t in expected.values()), spec["name"]

    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("model", tensors), ("expected", expected)):
        safetensors.torch.save_file({k: v.contiguous() for k, v in content.items()},
                                    folder / f"{name}.safetensors", metadata={"format": "pt"})
    for name, content in (("config", official_config(spec["config"], config)), ("spec", spec)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    plain = expected["logits"]
    w4a4, sim = ((expected[k] - plain).norm() / plain.norm() for k in ("logits_w4a4", "logits_sim"))
    size = sum(path.stat().st_size for path in folder.iterdir())
    return (f"| {spec['name']} | {tokens} | {plain.std():.2f} | {difference:.1e} | {w4a4:.3f} | "
            f"{sim:.3f} | {size:,} |")


README = """# Golden model cases

Made by `tools/make_golden.py` on {date}; nothing here is edited by hand. The script's first lines say
what each file and tensor is.

- Source: random weights from fixed seeds; expected values from Hugging Face transformers
  {transformers} (its DeepSeek-V4), torch {torch}, safetensors {safetensors}, in fp32 on a CPU.
- Command: `tools/make_golden.py OUT`
- Licence: Apache-2.0, like the rest of the repository. No weights or text of anyone else are inside.

"chunked" is how far transformers' own cached path is from its full pass, at most.

| case | tokens | std of logits | chunked | w4a4 off by | sim off by | bytes |
|---|---:|---:|---:|---:|---:|---:|
{report}
"""


@torch.no_grad()
def main():
    if len(sys.argv) != 2:
        sys.exit("usage: make_golden.py OUT")
    out, report = pathlib.Path(sys.argv[1]), []
    for spec in CASES:
        report.append(make_case(spec, out / spec["name"]))
        print(report[-1], flush=True)
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    (out / "README.md").write_text(README.format(
        date=datetime.date.today(), transformers=transformers.__version__, torch=torch.__version__,
        safetensors=safetensors.__version__, report="\n".join(report)))
    print(f"{total:,} bytes in all")
    if total > MAX_TOTAL_BYTES:
        sys.exit(f"more than {MAX_TOTAL_BYTES:,} bytes: too much for the repository")


if __name__ == "__main__":
    main()

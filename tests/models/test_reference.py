"""The reference against the equations, against nn.MultiheadAttention, and against its own promises."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jmt_fast.config import JMTConfig
from jmt_fast.models import ReferenceJMT

PAIRS = [("v", "a"), ("a", "v"), ("av", "v"), ("v", "av"), ("av", "a"), ("a", "av")]


def stock_attention(weights, dim, heads):
    attention = nn.MultiheadAttention(dim, heads, batch_first=True, dtype=torch.float64)
    attention.load_state_dict(weights.state_dict())  # strict: the layout is the stock one
    return attention


def stock_encoder(layer, x, dim, heads, absent):
    """torch's own post-norm encoder layer, fed with ours by name."""
    stock = nn.TransformerEncoderLayer(dim, heads, dim, dropout=0.0, batch_first=True, dtype=torch.float64)
    names = {"attention": "self_attn", "feed_forward.0": "linear1", "feed_forward.2": "linear2"}
    state = {}
    for name, value in layer.state_dict().items():
        for ours, theirs in names.items():
            if name.startswith(ours + "."):
                name = theirs + name.removeprefix(ours)
        state[name] = value
    stock.load_state_dict(state)
    return stock(x, src_key_padding_mask=absent)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("cross_weights", ["pair", "query"])
@pytest.mark.parametrize("output", ["fc", "self_attention"])
def test_softmax_query_is_built_of_multihead_attention(heads, cross_weights, output, draw, shaken):
    dim = 32
    config = JMTConfig.preset("abaw6", dim=dim, ff_dim=dim, visual_dim=dim, heads=heads, output=output)
    config = config.model_copy(update={"cross_weights": cross_weights})
    model = shaken(ReferenceJMT(config).double())
    audio, visual, valid = draw(model.config)
    valid[-1, 0] = True  # nn.MultiheadAttention gives NaN where nothing is present
    absent = ~valid
    a, v = (F.normalize(x.double(), dim=-1) for x in (audio, visual))
    streams = {"a": a, "v": v, "av": model.joint(torch.cat((v, a), -1))}
    for name in streams:
        streams[name] = stock_encoder(model.encoders[name][0], streams[name], dim, heads, absent)
    outputs = []
    for query, key in PAIRS:
        cross = model.cross[f"{query}_{key}" if cross_weights == "pair" else query]
        attention = stock_attention(cross, dim, heads)
        outputs.append(attention(streams[query], streams[key], streams[key], key_padding_mask=absent)[0])
    if output == "fc":
        expected = model.out(torch.cat(outputs, -1))
    else:
        tokens = torch.stack(outputs, 2).flatten(0, 1)
        tokens = stock_encoder(model.final_encoder[0], tokens, dim, heads, None)
        tokens = stock_attention(model.final_attention, dim, heads)(tokens, tokens, tokens)[0]
        expected = tokens[:, -1].view(*valid.shape, dim)
    torch.testing.assert_close(model.embed(audio.double(), visual.double(), valid)[valid], expected[valid])
    heads_out = torch.cat((model.valence(expected), model.arousal(expected)), -1)
    torch.testing.assert_close(model(audio.double(), visual.double(), valid)[valid], heads_out[valid])


def test_literal_is_the_papers_equations(draw):
    """Y = sigmoid(K Q^T) V, row by row, with the sums written out."""
    config = JMTConfig.preset("literal", dim=8, visual_dim=8)
    model = ReferenceJMT(config).double()
    audio, visual, _ = (x.double() for x in draw(config, 2, 3))

    def attention(weights, source, other):
        w_q, w_k, w_v = weights.in_proj_weight.chunk(3)
        rows = []
        for b in range(2):
            for i in range(3):
                terms = [
                    torch.sigmoid((w_k @ other[b, i]) @ (w_q @ source[b, j])) * (w_v @ other[b, j]) for j in range(3)
                ]
                rows.append(sum(terms))
        return torch.stack(rows).view(2, 3, 8)

    streams = {"a": audio, "v": visual, "av": model.joint(torch.cat((visual, audio), -1))}
    streams = {name: attention(model.encoders[name][0].attention, x, x) for name, x in streams.items()}
    outputs = [attention(model.cross[f"{s}_{t}"], streams[s], streams[t]) for s, t in PAIRS]
    torch.testing.assert_close(model.embed(audio, visual), model.out(torch.cat(outputs, -1)))


def test_default_scale_and_bias(draw):
    """rsqrt and -log_n are the numbers they stand for."""
    named = ReferenceJMT(JMTConfig(dim=32, visual_dim=32, heads=2)).double()
    numbers = ReferenceJMT(JMTConfig(dim=32, visual_dim=32, heads=2, scale=0.25, bias=-math.log(5))).double()
    numbers.load_state_dict(named.state_dict())
    audio, visual, _ = (x.double() for x in draw(named.config, 3, 5))
    torch.testing.assert_close(named(audio, visual), numbers(audio, visual))


def test_absent_clips_are_left_out_and_give_0(config, draw, shaken):
    """The present clips alone, without any mask, give the same; what stands in the absent ones does not matter."""
    model = shaken(ReferenceJMT(config).double())
    audio, visual, valid = draw(config)
    audio, visual = audio.double(), visual.double()
    masked = model(audio, visual, valid)
    assert (masked[~valid] == 0).all()
    for row in range(len(valid) - 1):
        keep = valid[row]
        alone = model(audio[row : row + 1, keep], visual[row : row + 1, keep])
        torch.testing.assert_close(masked[row, keep], alone[0])
    audio[~valid], visual[~valid] = float("nan"), float("inf")
    assert torch.equal(model(audio, visual, valid), masked)
    embedded = model.embed(audio, visual, valid)
    assert embedded.isfinite().all()
    assert (embedded[~valid] == 0).all()


def test_wholly_absent_batch_has_finite_gradients(config, draw):
    model = ReferenceJMT(config)
    audio, visual, valid = draw(config)
    output = model(audio.requires_grad_(), visual.requires_grad_(), torch.zeros_like(valid))
    assert torch.equal(output, torch.zeros_like(output))
    output.sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


def test_sequences_do_not_mix(config, draw):
    model = ReferenceJMT(config).double()
    audio, visual, valid = draw(config)
    together = model(audio.double(), visual.double(), valid)
    apart = [model(a[None].double(), v[None].double(), m[None]) for a, v, m in zip(audio, visual, valid, strict=True)]
    torch.testing.assert_close(together, torch.cat(apart))


def test_computes_in_fp32_under_autocast_and_for_bf16_weights(draw):
    config = JMTConfig(dim=32, visual_dim=32)
    model = ReferenceJMT(config)
    audio, visual, valid = draw(config)
    exact = model(audio, visual, valid)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(audio, visual, valid), exact)
    model.bfloat16()
    low = model(audio.bfloat16(), visual.bfloat16(), valid)
    assert low.dtype == torch.float32
    widened = model.float()(audio.bfloat16().float(), visual.bfloat16().float(), valid)
    torch.testing.assert_close(low, widened)


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("audio", lambda a, v, m: (a[..., :-1], v, m)),
        ("audio", lambda a, v, m: (a[0], v, m)),
        ("visual", lambda a, v, m: (a, v[:, :-1], m)),
        ("visual", lambda a, v, m: (a, v[..., :-1], m)),
        ("valid", lambda a, v, m: (a, v, m[:, :-1])),
        ("valid", lambda a, v, m: (a, v, m.float())),
    ],
)
def test_wrong_shapes_are_named(argument, change, draw):
    config = JMTConfig(dim=32, visual_dim=48)
    with pytest.raises(ValueError, match=f"^{argument} "):
        ReferenceJMT(config)(*change(*draw(config)))


def test_initial_values_are_those_of_pytorch():
    torch.manual_seed(3)
    model = ReferenceJMT(JMTConfig())
    torch.manual_seed(3)
    again = ReferenceJMT(JMTConfig())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    stock = nn.MultiheadAttention(512, 1)
    ours = model.cross["v_a"]
    torch.testing.assert_close(ours.in_proj_weight.std(), stock.in_proj_weight.std(), rtol=0.02, atol=0)
    torch.testing.assert_close(ours.out_proj.weight.std(), stock.out_proj.weight.std(), rtol=0.02, atol=0)
    assert (ours.in_proj_bias == 0).all()
    assert (ours.out_proj.bias == 0).all()

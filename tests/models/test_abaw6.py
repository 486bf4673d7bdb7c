"""Import of the authors' 6th ABAW weights, against the model built anew of `nn.MultiheadAttention`."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jmt_fast.errors import CheckpointError
from jmt_fast.models import import_abaw6

DIM = 32


class Layer(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, heads)
        self.feed_forward = nn.Sequential(nn.Linear(DIM, 48), nn.ReLU(), nn.Linear(48, DIM))
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm1(x + self.attention(x, x, x)[0])
        return self.layer_norm2(x + self.feed_forward(x))


class Encoder(nn.Module):
    def __init__(self, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Layer(heads) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Fusion(nn.Module):
    """The specification's facts about `MultimodalTransformer_w_JR`; (L, B, D) inside."""

    def __init__(self, heads: int, layers: int, output: str) -> None:
        super().__init__()
        self.out_layer_pv = nn.Linear(2 * DIM, DIM)
        self.visual_encoder = Encoder(heads, layers)
        self.physiological_encoder = Encoder(heads, layers)
        self.joint_representation_encoder = Encoder(heads, layers)
        self.final_encoder = nn.Linear(3, 3)  # in the weights and never called
        self.cross_attention_v = nn.MultiheadAttention(DIM, heads)
        self.cross_attention_p = nn.MultiheadAttention(DIM, heads)
        self.cross_attention_pv = nn.MultiheadAttention(DIM, heads)
        self.output = output
        if output == "fc":
            self.out_layer1 = nn.Linear(6 * DIM, 1024)
        else:
            self.final_visual_encoder = Encoder(heads, layers)
            self.final_self_attention = nn.MultiheadAttention(DIM, heads)

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        joint = self.out_layer_pv(torch.cat((visual, audio), -1)).transpose(0, 1)
        v, p = self.visual_encoder(visual.transpose(0, 1)), self.physiological_encoder(audio.transpose(0, 1))
        pv = self.joint_representation_encoder(joint)
        outputs = [
            self.cross_attention_v(v, p, p)[0],
            self.cross_attention_p(p, v, v)[0],
            self.cross_attention_pv(pv, v, v)[0],
            self.cross_attention_v(v, pv, pv)[0],
            self.cross_attention_pv(pv, p, p)[0],
            self.cross_attention_p(p, pv, pv)[0],
        ]
        if self.output == "fc":
            return self.out_layer1(torch.cat(outputs, -1))  # (L, B, 1024)
        length, batch, _ = v.shape
        tokens = torch.stack(outputs).transpose(1, 2).reshape(6, batch * length, DIM)
        tokens = self.final_visual_encoder(tokens)
        return self.final_self_attention(tokens, tokens, tokens)[0][-1].view(batch, length, DIM)


class Whole(nn.Module):
    """The specification's facts about `Two_transformers`."""

    def __init__(self, heads: int, layers: int, output: str, visual_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(visual_dim, DIM) if visual_dim != DIM else None
        self.mm_transformer = Fusion(heads, layers, output)
        width = 1024 if output == "fc" else DIM
        self.vregressor, self.aregressor = (
            nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 1)) for _ in range(2)
        )

    def forward(self, audio: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        visual, audio = F.normalize(visual, dim=-1), F.normalize(audio, dim=-1)
        if self.linear is not None:
            visual = self.linear(visual)
        fused = self.mm_transformer(visual, audio)
        return self.vregressor(fused).squeeze(2), self.aregressor(fused).squeeze(2)


def shaken(model: nn.Module) -> nn.Module:
    """With every weight drawn, so that none can be swapped or left out unseen."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("output", ["fc", "self_attention"])
def test_bare_fusion(heads: int, layers: int, output: str) -> None:
    theirs = shaken(Fusion(heads, layers, output))
    ours = import_abaw6(theirs.state_dict(), heads).double()
    audio, visual = torch.randn(2, 3, 8, DIM).double()
    expected = theirs(visual, audio)
    found = ours.embed(audio, visual)
    torch.testing.assert_close(found, expected.transpose(0, 1) if output == "fc" else expected)


@pytest.mark.parametrize("visual_dim", [DIM, 20])
@pytest.mark.parametrize("output", ["fc", "self_attention"])
def test_whole_model(output: str, visual_dim: int) -> None:
    theirs = shaken(Whole(2, 1, output, visual_dim))
    ours = import_abaw6(theirs.state_dict(), 2).double()
    audio, visual = torch.randn(3, 8, DIM).double(), torch.randn(3, 8, visual_dim).double()
    expected = torch.stack(theirs(audio, visual), -1)
    torch.testing.assert_close(ours(audio, visual), expected.transpose(0, 1) if output == "fc" else expected)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_and_prefixes(suffix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    theirs = Whole(1, 1, "fc", DIM).eval()
    state = OrderedDict((f"module.{name}", value) for name, value in theirs.state_dict().items())
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    audio, visual = torch.randn(2, 2, 8, DIM)
    expected = torch.stack(theirs(audio, visual), -1).transpose(0, 1)
    torch.testing.assert_close(import_abaw6(path)(audio, visual), expected)


def without(name: str) -> dict[str, Tensor]:
    state = dict(Fusion(1, 1, "fc").state_dict())
    del state[name]
    return state


@pytest.mark.parametrize(
    ("state", "heads", "message"),
    [
        (without("out_layer_pv.weight"), 1, "out_layer_pv.weight is missing"),
        (without("cross_attention_p.in_proj_weight"), 1, "cross_attention_p.in_proj_weight is missing"),
        (without("visual_encoder.layers.0.layer_norm1.bias"), 1, "layers.0.layer_norm1.bias is missing"),
        ({**Fusion(1, 1, "fc").state_dict(), "extra.weight": torch.zeros(1)}, 1, "extra.weight is unknown"),
        ({**Fusion(1, 1, "fc").state_dict(), "out_layer1.bias": torch.zeros(3)}, 1, "out_layer1.bias has shape"),
        ({"epoch": 3}, 1, "epoch is not a tensor"),
        (dict(Fusion(1, 1, "fc").state_dict()), 5, "heads=5 does not divide"),
    ],
)
def test_wrong_weights(state: dict[str, Tensor], heads: int, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        import_abaw6(state, heads)


def test_wrong_files(tmp_path: Path) -> None:
    for name, content in {"text.pth": b"no weights", "empty.pth": b"", "text.safetensors": b"no weights"}.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}: not a file of weights"):
            import_abaw6(path)
    with pytest.raises(CheckpointError, match="no such file"):
        import_abaw6(tmp_path / "absent.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds list"):
        import_abaw6(tmp_path / "list.pth")

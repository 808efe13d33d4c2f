"""Every encoder preset keeps one contract; weights that do not fit are refused by name."""
import json

import pytest

from bonehisto.device import torch_vision_ready  # noqa: F401, before timm
from bonehisto.encoder import PRESETS, create_encoder, load_encoder, save_encoder
from bonehisto.files import UserError
import timm
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", PRESETS)
def test_contract(name, tmp_path):
    """Shapes at several sizes, gradients into every weight, the same features after saving and loading."""
    encoder = create_encoder(name, seed=2).eval()
    shape = PRESETS[name]
    px = 6 * shape.patch
    x = torch.rand(2, 3, px, 2 * px, generator=torch.Generator().manual_seed(0))
    tokens = encoder.tokens(x)
    assert encoder(x).shape == tokens.cls.shape == (2, shape.dim)
    assert tokens.grid == (6, 12) and len(tokens.patches) == 4
    assert all(p.shape == (2, 72, shape.dim) for p in tokens.patches)
    assert tokens.attention.shape == (2, shape.heads, 72) and (tokens.attention >= 0).all()
    assert torch.allclose(tokens.attention.mean(-1), torch.ones(2, shape.heads), atol=1e-4)
    assert torch.allclose(tokens.cls, encoder(x), atol=1e-5)

    encoder.train()
    t = encoder.tokens(x)
    loss = t.cls.square().sum() + sum(p[..., 0].sum() for p in t.patches) + (t.attention ** 2).sum()
    loss.backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert encoder.vit.reg_token.grad.abs().sum() > 0

    path = save_encoder(encoder, tmp_path / "e.safetensors", {"lam": 0.2})
    back = load_encoder(path)
    encoder.eval()
    with torch.no_grad():
        assert torch.equal(back(x), encoder(x))
    assert back.extra == {"lam": 0.2} and back.name == name and not back.training


def test_attention_is_that_of_the_block_itself():
    """The recomputed CLS row equals the full softmax of the block with fused attention off."""
    encoder = create_encoder("micro", seed=3).eval()
    block, seen = encoder.vit.blocks[-1], {}
    x = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    block.attn.fused_attn = False
    block.attn.attn_drop.register_forward_hook(lambda m, i, o: seen.update(a=o))
    with torch.no_grad():
        attention = encoder.tokens(x).attention
    full = seen["a"][:, :, 0, 5:]
    assert torch.allclose(attention, full / full.sum(-1, keepdim=True) * 36, atol=1e-4)


def test_dinov2_weights_with_a_37_grid_load_into_small(tmp_path):
    """A timm state dict of ViT-S/14 with registers is taken; positions are resampled, all else is bit for bit."""
    other = timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=False, num_classes=0)
    assert other.pos_embed.shape[1] == 37 * 37
    with torch.no_grad():
        other.pos_embed.copy_(torch.linspace(-1, 1, 37 * 37)[None, :, None].expand_as(other.pos_embed))
    save_file(other.state_dict(), tmp_path / "dino.safetensors")
    encoder = create_encoder("small", weights=tmp_path / "dino.safetensors")
    own, theirs = encoder.vit.state_dict(), other.state_dict()
    assert own["pos_embed"].shape[1] == 16 * 16
    assert abs(own["pos_embed"].mean()) < 1e-4 and (own["pos_embed"][0].diff(dim=0) > 0).float().mean() > .9
    assert all(torch.equal(own[k], theirs[k]) for k in own if k != "pos_embed")


def test_weights_of_another_encoder_are_refused_naming_both_sides(tmp_path):
    path = save_encoder(create_encoder("micro"), tmp_path / "micro.safetensors")
    with pytest.raises(UserError, match=r"micro\.safetensors.*do not fit encoder `tiny`.*file .*96.*encoder .*192"):
        create_encoder("tiny", weights=path)


@pytest.mark.parametrize("damage, message", [
    (lambda p: p.write_bytes(p.read_bytes()[:5000]), "not a whole safetensors file"),
    (lambda p: p.unlink(), "no such weights file"),
    (lambda p: p.with_suffix(".json").unlink(), "missing"),
    (lambda p: p.with_suffix(".json").write_text("{"), "not valid JSON"),
    (lambda p: p.with_suffix(".json").write_text(json.dumps({"shape": {"name": "micro", "width": 9}})), "does not describe an encoder"),
])
def test_damaged_files_are_named(tmp_path, damage, message):
    path = save_encoder(create_encoder("micro"), tmp_path / "e.safetensors")
    damage(path)
    with pytest.raises(UserError, match=message):
        load_encoder(path)


def test_unknown_preset_gets_a_hint():
    with pytest.raises(UserError, match="did you mean `micro`"):
        create_encoder("mikro")


def test_images_that_are_no_multiple_of_the_patch_are_refused():
    with pytest.raises(ValueError, match="multiples of 16"):
        create_encoder("micro")(torch.zeros(1, 3, 100, 96))

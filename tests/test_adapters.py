"""Parts of an encoder stand still or learn through adapters; what is asked for wrongly is named."""
import builtins

import pytest
import torch

from bonehisto.adapters import add_lora, freeze_parts, merge_lora
from bonehisto.encoder import create_encoder
from bonehisto.files import UserError


def trained(encoder):
    return {k for k, p in encoder.vit.named_parameters() if p.requires_grad}


def test_a_count_freezes_what_comes_before_and_that_many_blocks():
    encoder = create_encoder("micro")
    frozen = freeze_parts(encoder, 6)
    assert trained(encoder) == {"norm.weight", "norm.bias"} and frozen == sum(p.numel() for p in encoder.vit.parameters()) - 2 * 96
    untouched = create_encoder("micro")
    assert freeze_parts(untouched, 0) == 0 and all(p.requires_grad for p in untouched.vit.parameters())


def test_a_name_freezes_what_it_begins_and_nothing_alike():
    """blocks.1 is not blocks.10."""
    encoder = create_encoder("tiny")
    freeze_parts(encoder, ["blocks.1"])
    assert not any(k.startswith("blocks.1.") for k in trained(encoder)) and any(k.startswith("blocks.10.") for k in trained(encoder))


@pytest.mark.parametrize("freeze, message", [(13, "has 12 blocks, give 0 to 12"), (-1, "has 12 blocks"), (["blocks.12"], "names `blocks.12`"), (["blocks", "norm", "patch_embed", "cls_token", "reg_token", "pos_embed"], "nothing of encoder `tiny` is left")])
def test_freezing_what_is_not_there_or_everything_is_refused(freeze, message):
    with pytest.raises(UserError, match=message): freeze_parts(create_encoder("tiny"), freeze)


def test_adapters_begin_as_the_encoder_and_follow_from_their_seed():
    pytest.importorskip("peft", reason="the package peft is an optional extra: pip install 'bonehisto[lora]'")
    x = torch.rand(2, 3, 32, 32)
    plain, one, same, other = (create_encoder("micro").eval() for _ in range(4))
    for encoder, seed in ((one, 0), (same, 0), (other, 1)): add_lora(encoder, 4, seed)
    assert torch.equal(plain(x), one(x)) and merge_lora(plain) is plain
    first = lambda e: next(p for k, p in e.vit.named_parameters() if "lora_A" in k)
    assert torch.equal(first(one), first(same)) and not torch.equal(first(one), first(other))


def test_without_peft_the_message_says_what_to_install(monkeypatch):
    real = builtins.__import__
    def without(name, *args, **kwargs):
        if name.split(".")[0] == "peft": raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pretrain\.lora_rank is 4: adapters need the package peft"): add_lora(create_encoder("micro"), 4)
